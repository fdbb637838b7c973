"""Which adapters to other people's models a technique uses, read from the source without importing it, and what
techniques give on families of such models."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from ..imports import facts

FOLDER, PACKAGE = "reference_impls/hosts", "reference_impls.hosts"
FAMILIES = f"{FOLDER}/families.yml"
SHARED = {"__init__", "block", "chains", "probe", "substitution", "tokens", "trial"}
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


@dataclass(frozen=True)
class Family:
    """What a technique gives on a family of models."""

    technique: str
    family: str
    library: str
    models: tuple[str, ...]
    """Names of classes, or of models where the library builds them by name."""
    status: Literal["exact", "refused"]
    because: str = ""
    """Why it is refused."""
    names: str = ""
    """What the message of a refusal names, a regular expression."""
    not_there: tuple[str, ...] = ()
    """Versions of the library that do not know the family."""


@dataclass(frozen=True)
class Families:
    """Every family that was tried."""

    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Library -> the versions of it that were tried."""
    techniques: Mapping[str, tuple[Family, ...]] = field(default_factory=dict)
    """Technique -> families, in the order of the file."""

    def tried(self, family: Family) -> tuple[str, ...]:
        """The versions with which the family was tried."""
        return tuple(v for v in self.versions[family.library] if v not in family.not_there)


def families(root: Path) -> Families:
    """The table of families of the atlas at `root`; an empty one where it has none."""
    file = root / FAMILIES
    if not file.is_file():
        return Families()
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    techniques = {
        id_: tuple(
            Family(id_, **line | {key: tuple(line.get(key, ())) for key in ("models", "not_there")}) for line in lines
        )
        for id_, lines in read["techniques"].items()
    }
    return Families({library: tuple(versions) for library, versions in read["versions"].items()}, techniques)
