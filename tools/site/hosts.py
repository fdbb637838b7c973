"""Which adapters to other people's models a technique uses, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER, PACKAGE = "reference_impls/hosts", "reference_impls.hosts"


@dataclass(frozen=True)
class Host:
    """A file of `reference_impls/hosts`."""

    path: str
    about: str
    """First line of its docstring."""


def hosts(root: Path, files: Iterable[str]) -> tuple[Host, ...]:
    """Adapters that the given files of a technique import, by name or through the package."""
    adapters = {p.stem: p for p in sorted((root / FOLDER).glob("*.py")) if p.stem != "__init__"}
    package = root / FOLDER / "__init__.py"
    imported = set().union(*(_imported(root / file) for file in files))
    wanted = {name for name in adapters if f"{PACKAGE}.{name}" in imported}
    if PACKAGE in imported and not wanted and package.is_file():
        through = _imported(package)
        wanted = {name for name in adapters if f"{PACKAGE}.{name}" in through}
    return tuple(
        Host(path.relative_to(root).as_posix(), (ast.get_docstring(_tree(path)) or "").split("\n", 1)[0])
        for name, path in adapters.items()
        if name in wanted
    )


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
