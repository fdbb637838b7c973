"""The whole knowledge base in memory, with everything that is wrong with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from reference_impls.accounting.record import Record
from tools.knowledge import validation
from tools.knowledge.claims import Judgement, judge
from tools.knowledge.findings import Finding, finding
from tools.knowledge.reader import MAX_BYTES, Document, read_json, read_yaml
from tools.knowledge.schema import Axes, Claim, Entry, HardCase, HardCases, Paper, Statements
from tools.knowledge.source import Source, read_source

AXES = "taxonomy/axes.yml"
HARD_CASES = "taxonomy/hard_cases.yml"
OPEN_PROBLEMS = "taxonomy/open_problems.yml"
PRINCIPLES = "taxonomy/principles.yml"
ENTRIES = "taxonomy/techniques"
PAPERS = "papers"
RESULTS = "reference_impls/results"

M = TypeVar("M", bound=BaseModel)
NO_STATEMENTS = Statements.model_construct(about="", statements=())


@dataclass(frozen=True)
class Knowledge:
    """Everything that the files of the atlas say. What could not be read is absent, and a finding says why."""

    root: Path
    axes: Axes
    entries: dict[str, Entry] = field(default_factory=dict)
    """By id, sorted."""
    papers: dict[str, Paper] = field(default_factory=dict)
    """By key, sorted."""
    hard_cases: tuple[HardCase, ...] = ()
    """Rulings on cases that are hard to classify."""
    open_problems: Statements = NO_STATEMENTS
    principles: Statements = NO_STATEMENTS
    results: dict[str, list[Record]] = field(default_factory=dict)
    """Committed records of each technique that has some, sorted by scenario, the CPU's first."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Implementation of each entry that has one."""
    findings: list[Finding] = field(default_factory=list)
    """Everything that is wrong, sorted by place."""
    documents: dict[str, Document] = field(default_factory=dict, repr=False)
    """The YAML files as read, with the place of every value, by their path relative to the root."""
    known_results: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Scenarios of each technique for which there is a file, readable or not."""

    def result(self, entry_id: str, scenario: str) -> Record | None:
        """The committed record of a scenario, if there is one; the CPU's where there are several."""
        return next((r for r in self.results.get(entry_id, ()) if r.scenario == scenario), None)

    def judge(self, claim: Claim) -> Judgement:
        """The verdict on a claim, computed from the committed results of its technique."""
        return judge(claim, self.results.get(claim.technique, ()))

    def claims(self, entry_id: str) -> list[tuple[Paper, Claim, Judgement]]:
        """Every claim about an entry, with its paper and its verdict; the entry's own papers first, in its order."""
        entry = self.entries.get(entry_id)
        order = {link.key: n for n, link in enumerate(entry.papers)} if entry else {}
        papers = sorted(self.papers.values(), key=lambda p: (order.get(p.key, len(order)), p.key))
        return [(p, c, self.judge(c)) for p in papers for c in p.claims if c.technique == entry_id]

    @cached_property
    def claimed(self) -> frozenset[str]:
        """Ids of the entries about which a paper makes a claim."""
        return frozenset(claim.technique for paper in self.papers.values() for claim in paper.claims)

    def entries_of(self, paper_key: str) -> list[Entry]:
        """The entries that name a paper."""
        return [e for e in self.entries.values() if any(link.key == paper_key for link in e.papers)]


def find_root(start: Path | None = None) -> Path:
    """The root of the atlas: `ATLAS_ROOT`, else the nearest folder upwards that holds `taxonomy/axes.yml`, else the
    folder that this package was installed from. Raises FileNotFoundError if there is none."""
    named = os.environ.get("ATLAS_ROOT") if start is None else None
    if named:
        root = Path(named).resolve()
        if (root / "taxonomy").is_dir():
            return root
        raise FileNotFoundError(f"ATLAS_ROOT is {named!r}, which has no folder taxonomy/")
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / AXES).is_file():
            return folder
    raise FileNotFoundError(f"no {AXES} in {here} or above it: run this inside the atlas, or set ATLAS_ROOT")


def load(root: Path, *, check: bool = True) -> Knowledge:
    """Read the knowledge base at `root`. Never raises for what its files hold: that is what `findings` are for.

    With `check=False` the files are read and validated, but not compared with each other.
    """
    from tools.knowledge.check import check_all

    root = Path(root).resolve()
    findings: list[Finding] = []
    documents: dict[str, Document] = {}

    axes = _read(root / AXES, AXES, Axes, documents, findings) or empty_axes()
    entries: dict[str, Entry] = {}
    for path in _files(root / ENTRIES, findings, root):
        entry = _read(path, path.relative_to(root).as_posix(), Entry, documents, findings)
        if entry is not None:
            entries[path.stem] = entry
    papers: dict[str, Paper] = {}
    for path in _files(root / PAPERS, findings, root):
        paper = _read(path, path.relative_to(root).as_posix(), Paper, documents, findings)
        if paper is not None:
            papers[path.stem] = paper
    cases = _read(root / HARD_CASES, HARD_CASES, HardCases, documents, findings, optional=True)
    problems, principles = (
        _read(root / file, file, Statements, documents, findings, optional=True) or NO_STATEMENTS
        for file in (OPEN_PROBLEMS, PRINCIPLES)
    )
    results, known_results = _results(root, findings)
    sources = {}
    for entry_id, entry in entries.items():
        source = read_source(root, entry_id, entry.implementation, findings)
        if source is not None:
            sources[entry_id] = source
    knowledge = Knowledge(
        root=root,
        axes=axes,
        entries=entries,
        papers=papers,
        hard_cases=cases.cases if cases else (),
        open_problems=problems,
        principles=principles,
        results=results,
        sources=sources,
        findings=findings,
        documents=documents,
        known_results=known_results,
    )
    if check:
        findings.extend(check_all(knowledge))
    findings.sort()
    return knowledge


def empty_axes() -> Axes:
    """A vocabulary without axes, where the real one cannot be read: nothing is then said about terms."""
    return Axes.model_construct(about="", scope_rule="", decision_card=(), axes={})


def _files(folder: Path, findings: list[Finding], root: Path) -> list[Path]:
    """The YAML files of a folder, sorted; a finding for everything else in it."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix == ".yml" and path.is_file():
            found.append(path)
        else:
            file = path.relative_to(root).as_posix()
            findings.append(finding("E212", file, "only files named *.yml belong here", hint="rename or remove it"))
    return found


def _read(
    path: Path,
    file: str,
    model: type[M],
    documents: dict[str, Document],
    findings: list[Finding],
    *,
    optional: bool = False,
) -> M | None:
    if optional and not path.exists():
        return None
    document = read_yaml(path, file)
    documents[file] = document
    findings.extend(document.findings)
    if not document.readable:
        return None
    value, problems = validation.validate(model, document)
    findings.extend(problems)
    return value


def _results(root: Path, findings: list[Finding]) -> tuple[dict[str, list[Record]], dict[str, set[str]]]:
    """Committed records by technique. Pydantic reads a good file fast; the places are looked up for a bad one only."""
    results: dict[str, list[Record]] = {}
    known: dict[str, set[str]] = {}
    base = root / RESULTS
    for path in sorted(base.rglob("*")) if base.is_dir() else ():
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(base).parts):
            continue
        file = path.relative_to(root).as_posix()
        if path.suffix == ".npz" and path.with_suffix(".json").is_file():
            continue  # the pictures of the record beside it
        if path.suffix != ".json" or path.parent.parent != base:
            message = "only <technique>/<scenario>.json and its pictures belong here"
            findings.append(finding("E212", file, message, hint="rename or remove it"))
            continue
        technique = path.parent.name
        scenario, _, device = path.stem.partition(
            "."
        )  # <scenario>.cuda.json was measured on another device than the CPU
        known.setdefault(technique, set()).add(scenario)
        record = _record(path, file, findings)
        if record is None:
            continue
        for key, value, wanted in (
            ("technique" if record.technique else "benchmark", record.owner, technique),
            ("scenario", record.scenario, scenario),
            ("device", record.device.partition(":")[0], device or "cpu"),
        ):
            if value != wanted:
                document = read_json(path, file)
                message = f'"{value}", but the path of the file says "{wanted}"'
                findings.append(document.finding("E310", message, (key,), hint="measure it again, or move the file"))
        results.setdefault(technique, []).append(record)
    for records in results.values():
        records.sort(key=lambda r: (r.scenario, r.device != "cpu", r.device))
    return results, known


def _record(path: Path, file: str, findings: list[Finding]) -> Record | None:
    try:
        content = path.read_bytes()
        if len(content) <= MAX_BYTES:
            return Record.model_validate_json(content)
    except (OSError, ValidationError):
        pass
    document = read_json(path, file)
    findings.extend(document.findings)
    if not document.readable:
        return None
    record, problems = validation.validate(Record, document)
    findings.extend(problems)
    return record
