"""What a page tells of an implementation, read from its source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Host:
    """A file of `reference_impls/hosts` that brings the technique to models of others."""

    path: str
    about: str
    """First line of its docstring."""


@dataclass(frozen=True)
class SourceFile:
    """One file of an implementation."""

    path: str
    """Relative to the root."""
    source: str
    lines: Mapping[str, int] = field(default_factory=dict)
    """Function, class or `Class.method` -> its first line."""


@dataclass(frozen=True)
class Implementation:
    """A technique's module as source: one file, or those of its folder."""

    files: tuple[SourceFile, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Literal class attributes of the technique's class: `execution`, `stateful`, `waivers`..."""
    hosts: tuple[Host, ...] = ()

    def find(self, name: str) -> tuple[int, int] | None:
        """Index of the file that defines a function or class, and the line."""
        return next(((i, f.lines[name]) for i, f in enumerate(self.files) if name in f.lines), None)


def read(root: Path, dotted: str) -> Implementation | None:
    """The implementation `module:Class`, or None when its files are not there or are no Python (`check` says so)."""
    module, _, class_name = dotted.partition(":")
    base = root.joinpath(*module.split("."))
    paths = sorted(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    files, attributes, hosts = [], {}, {}
    try:
        for path in paths:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            if source.strip():
                files.append(SourceFile(path.relative_to(root).as_posix(), source, _lines(tree)))
            attributes |= _attributes(tree, class_name)
            hosts |= {host.path: host for host in _hosts(root, tree, module)}
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    return Implementation(tuple(files), attributes, tuple(hosts[p] for p in sorted(hosts))) if files else None


def _lines(tree: ast.Module) -> dict[str, int]:
    found: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return found


def _attributes(tree: ast.Module, class_name: str) -> dict[str, Any]:
    values = {}
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and node.name == class_name):
            continue
        for statement in node.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                target, value = statement.targets[0].id, statement.value
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                target, value = statement.target.id, statement.value
            else:
                continue
            try:
                values[target] = ast.literal_eval(value)
            except ValueError:
                continue  # not a literal, so not one of the attributes that the contract asks to be literal
    return values


def _hosts(root: Path, tree: ast.Module, module: str) -> tuple[Host, ...]:
    """Adapters that the module imports, by name or through the package, and adapters that import the module."""
    folder, package = root / "reference_impls" / "hosts", "reference_impls.hosts"
    imported = _imported(tree)
    adapters = {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}
    wanted = {name for name in adapters if f"{package}.{name}" in imported}
    if package in imported and not wanted and (folder / "__init__.py").is_file():
        through = _imported(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        wanted = {name for name in adapters if f"{package}.{name}" in through}
    hosts = []
    for name, path in adapters.items():
        adapter = ast.parse(path.read_text(encoding="utf-8"))
        if name in wanted or module in _imported(adapter):
            about = (ast.get_docstring(adapter) or "").split("\n", 1)[0]
            hosts.append(Host(path.relative_to(root).as_posix(), about))
    return tuple(hosts)


def _imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
