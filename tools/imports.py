"""Which file of the atlas imports which, and what a file means: read from the sources, which are never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOMS = ("reference_impls", "tests", "tools")


@dataclass(frozen=True)
class Facts:
    """What is read from one Python file."""

    names: frozenset[tuple[int, str]]
    """(dots before the name, dotted name) of modules, and of what may be modules, that it imports anywhere in it."""
    texts: frozenset[str]
    """Its strings, docstrings left out."""
    meaning: str
    """Equal for files that differ in comments, docstrings or layout only."""


class NotPython(Exception):
    """A file that is no Python; the message says which, where and why."""


class Imports:
    """The import graph of the atlas at `root`. Imports inside functions count, those by name at run time do not."""

    def __init__(self, root: Path, missing: Iterable[Path] = ()) -> None:
        """`missing` are files that may no longer exist and still count where they are imported."""
        self._root = root
        self._missing = frozenset(missing)
        self._direct: dict[Path, set[Path]] = {}

    def reached(self, *starts: Path) -> set[Path]:
        """Files that these can import, directly or through others; those of the starts that exist included."""
        found: set[Path] = set()
        todo = [start for start in starts if self._there(start)]
        while todo:
            path = todo.pop()
            if path not in found:
                found.add(path)
                todo += self._imported(path)
        return found

    def _imported(self, path: Path) -> set[Path]:
        if path not in self._direct:
            found = self._direct[path] = set()
            package = path.parent.relative_to(self._root).parts
            loose = not (path.parent / "__init__.py").is_file()  # modules beside it are found by their bare name
            for dots, name in facts(path).names if path.is_file() else ():
                parts = name.split(".")
                if dots or (loose and parts[0] not in ROOMS):
                    parts = [*package[: len(package) - max(dots - 1, 0)], *parts]
                for end in range(1, len(parts) + 1) if parts[0] in ROOMS else ():
                    base = self._root.joinpath(*parts[:end])
                    found |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if self._there(p)}
        return self._direct[path]

    def _there(self, path: Path) -> bool:
        return path.is_file() or path in self._missing


def facts(path: Path) -> Facts:
    """What the file says now; read again only if it changed. Raises NotPython."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@cache
def _read(path: Path, changed: int, size: int) -> Facts:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise NotPython(f"{path}:{error.lineno or 1}:{error.offset or 1}: not Python: {error.msg}") from error
    except ValueError as error:  # null bytes, or not UTF-8
        raise NotPython(f"{path}:1:1: not Python: {error}") from error
    names: set[tuple[int, str]] = set()
    texts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _is_docstring(statement)]
        if isinstance(node, ast.Import):
            names |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return Facts(frozenset(names), frozenset(texts), ast.dump(tree))


def _is_docstring(statement: ast.stmt) -> bool:
    """Whether it is a bare string: the docstring of a module, class, function or attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
