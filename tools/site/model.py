"""What pages are made of: the knowledge, with what they show beside it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reference_impls.accounting.record import Point, Record

from ..headlines import own_part
from ..jupyter import Home, home
from ..knowledge import Knowledge
from ..knowledge.paths import BENCHMARKS
from ..knowledge.schema import Entry, Paper
from .hosts import Families, Host, families, hosts
from .notebooks import Notebook

NavItem = str | dict[str, Any]
DOCS = "tools/site/docs"
"""Hand-written pages."""


@dataclass(frozen=True)
class Page:
    """One page: where it goes, what it says, and the file of the repository that it comes from."""

    path: str
    """In the documentation folder, ends in `.md`."""
    title: str
    markdown: str
    source: str
    """Relative to the root; what "edit" means."""
    section: str = ""
    """Within its folder, where this has many pages: what they are grouped by in the navigation."""


@dataclass(frozen=True)
class Change:
    """A file that was added, changed or removed."""

    day: str
    what: str
    """A, M or D."""
    path: str
    """Relative to the root."""


@dataclass(frozen=True)
class Material:
    """What pages show beside the knowledge."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """Source files of the implementations, by their path relative to the root."""
    hosts: Mapping[str, tuple[Host, ...]] = field(default_factory=dict)
    """Adapters of each implementation, by id."""
    notebooks: Mapping[str, Notebook] = field(default_factory=dict)
    """Executed notebooks, by id."""
    families: Families = field(default_factory=Families)
    """What techniques give on families of other people's models."""
    guides: Mapping[str, str] = field(default_factory=dict)
    """Hand-written pages that may show something generated, by their path on the site."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """Conformance checks with what each asks, in the order in which they run."""
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    """Docstring of the module of each benchmark, by id."""
    home: Home | None = None
    """Where the atlas is on GitHub, if that is known."""
    changes: tuple[Change, ...] = ()
    """What became of the files of entries and papers, newest first, as git tells; empty outside a clone."""


@dataclass(frozen=True)
class Result:
    """A record as the page of an entry shows it."""

    record: Record
    """Its points are those of the entry."""
    entry: str
    """Id of the entry."""
    rivals: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """Points of the other techniques that met in the same run, by id."""

    @property
    def anchor(self) -> str:
        """Where the page shows it: the scenario, with the benchmark where several met, and the device if no CPU."""
        kind = re.sub(r"[^a-z0-9]+", "-", self.record.device.partition(":")[0].lower())
        benchmark = self.record.benchmark if self.record.technique is None else None
        return "-".join(filter(None, (benchmark, self.record.scenario, "" if kind == "cpu" else kind)))


def of_entry(record: Record, entry_id: str) -> Result:
    """A record with the points of one entry, and those of the others as its rivals."""
    if record.technique is not None:
        return Result(record, entry_id)
    whose: dict[str, list[Point]] = {}
    for point in record.points:
        whose.setdefault(point.technique or "", []).append(point)
    whose.pop(entry_id, None)
    return Result(own_part(record, entry_id), entry_id, {id_: tuple(points) for id_, points in whose.items()})


@dataclass(frozen=True)
class Atlas:
    """The knowledge with its material, and the look-ups that several pages need."""

    knowledge: Knowledge
    material: Material

    @property
    def entries(self) -> list[Entry]:
        """Entries by name, those with an implementation first, deprecated ones last."""
        order = {"stable": 0, "draft": 1, "deprecated": 2}
        return sorted(self.knowledge.entries.values(), key=lambda e: (order[e.status], e.name.lower()))

    @property
    def papers(self) -> list[Paper]:
        """Papers, newest first."""
        return sorted(self.knowledge.papers.values(), key=lambda p: (-(p.year or 0), p.key))

    def results(self, entry_id: str) -> list[Result]:
        """Results of an entry: full budget first, trade-offs before exact results, then by scenario."""
        found = [of_entry(record, entry_id) for record in self.knowledge.results_of(entry_id)]
        return sorted(found, key=lambda r: (r.record.budget != "full", not r.record.baseline.quality.value, r.anchor))

    def term(self, axis: str, term: str) -> str:
        """A term as a reader sees it."""
        known = self.knowledge.axes.axes.get(axis)
        return known.terms[term].name if known and term in known.terms else term.replace("_", " ")

    def axis_name(self, axis: str) -> str:
        """An axis as a reader sees it."""
        known = self.knowledge.axes.axes.get(axis)
        return known.name if known else axis.replace("_", " ")

    def with_term(self, axis: str, term: str) -> list[Entry]:
        """Entries that have the term on the axis, primary or not."""
        return [e for e in self.entries if axis in e.axes and term in e.axes[axis]]


def gather(knowledge: Knowledge, notebooks: Mapping[str, Notebook]) -> Material:
    """Read the source files of every implementation, and what guides show."""
    root, sources = knowledge.root, knowledge.sources
    texts = {file: (root / file).read_text(encoding="utf-8") for s in sources.values() for file in s.files}
    adapters = {id_: hosts(root, s.files) for id_, s in sources.items()}
    guides = {path.name: path.read_text(encoding="utf-8") for path in sorted((root / DOCS).glob("*.md"))}
    return Material(
        texts, adapters, notebooks, families(root), guides, _checks(root), _benchmarks(knowledge), home(root),
        _changes(root),
    )  # fmt: skip


def _changes(root: Path) -> tuple[Change, ...]:
    """The history of the knowledge; what is not committed yet is none."""
    if not (root / ".git").exists():
        return ()
    command = ["git", "-C", str(root), "log", "--date=short", "--format=%x01%ad", "--name-status", "--no-renames",
               "--no-merges", "--", "taxonomy/techniques", "papers"]  # fmt: skip
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found, day = [], ""
    for line in told.splitlines():
        what, _, path = line.partition("\t")
        if line.startswith("\x01"):
            day = line[1:]
        elif what in ("A", "M", "D") and path.endswith(".yml"):
            found.append(Change(day, what, path))
    return tuple(found)


def _checks(root: Path) -> dict[str, str]:
    """The conformance checks, read from their module, which is not imported."""
    file = root / "reference_impls" / "contract" / "conformance.py"
    if not file.is_file():
        return {}
    functions = (n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef))
    return {
        one.name.replace("_", "-"): " ".join((ast.get_docstring(one) or "").split())
        for one in functions
        if any(isinstance(d, ast.Name) and d.id == "check" for d in one.decorator_list)
    }


def _benchmarks(knowledge: Knowledge) -> dict[str, str]:
    """Docstring of each benchmark, whose module is not imported."""
    found = {}
    for id_ in sorted(knowledge.benchmarks):
        folder = knowledge.root / BENCHMARKS / id_.replace("-", "_")
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        found[id_] = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return found
