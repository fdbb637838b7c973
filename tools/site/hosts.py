"""Which adapters to other people's models a technique uses, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.imports import facts

FOLDER, PACKAGE = "reference_impls/hosts", "reference_impls.hosts"
SHARED = {"__init__", "block"}
"""Files that are no adapters: what these have in common."""


@dataclass(frozen=True)
class Host:
    """A file of `reference_impls/hosts`."""

    path: str
    about: str
    """First line of its docstring."""


def hosts(root: Path, files: Iterable[str]) -> tuple[Host, ...]:
    """Adapters that the given files of a technique import, by name or through the package."""
    adapters = {p.stem: p for p in sorted((root / FOLDER).glob("*.py")) if p.stem not in SHARED}

    def imported(paths: Iterable[Path]) -> set[str]:
        names = [f"{name}." for path in paths for _, name in facts(path).names]
        return {stem for stem in adapters if any(name.startswith(f"{PACKAGE}.{stem}.") for name in names)}

    technique = [root / file for file in files]
    wanted = imported(technique)
    package = root / FOLDER / "__init__.py"
    if not wanted and package.is_file() and any(n.startswith(PACKAGE) for p in technique for _, n in facts(p).names):
        wanted = imported([package])
    return tuple(
        Host(
            path.relative_to(root).as_posix(), (ast.get_docstring(ast.parse(path.read_bytes())) or "").split("\n", 1)[0]
        )
        for name, path in adapters.items()
        if name in wanted
    )
