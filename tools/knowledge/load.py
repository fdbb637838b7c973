"""Reading the files of the atlas, each for itself: what is wrong between them is for `check` to say."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from reference_impls import strict
from reference_impls.accounting.record import Record

from . import text, validation
from .base import NO_STATEMENTS, Knowledge, empty_axes
from .findings import Finding, finding
from .paths import (
    AXES,
    BENCHMARKS,
    ENTRIES,
    HARD_CASES,
    INSTALLED,
    OPEN_PROBLEMS,
    PAPERS,
    PRINCIPLES,
    RESULTS,
    code_root,
)
from .reader import MAX_BYTES, Document, read_json, read_yaml
from .schema import Axes, Entry, HardCases, Paper, Statements
from .source import read_shared, read_source

M = TypeVar("M", bound=BaseModel)


def find_root(start: Path | None = None) -> Path:
    """The root of the atlas: `ATLAS_ROOT`, else the nearest folder upwards that holds `taxonomy/axes.yml`, else the
    clone that this package stands in or was installed from, else the atlas that was installed with it; with `start` the
    nearest upwards of there, and no other. Raises FileNotFoundError if there is none."""
    if start is None and (named := os.environ.get("ATLAS_ROOT")):
        return named_root(Path(named), "ATLAS_ROOT")
    here = (start or Path.cwd()).resolve()
    others: tuple[Path, ...] = () if start else (Path(__file__).resolve().parents[2], INSTALLED)
    for folder in (here, *here.parents, *others):
        if (folder / AXES).is_file():
            return folder
    raise FileNotFoundError(f"no {AXES} in {here} or above it: run this inside the atlas, or set ATLAS_ROOT")


def named_root(root: Path, by: str) -> Path:
    """The atlas in this very folder, which `by` names. Raises FileNotFoundError if there is none."""
    try:
        if (root / "taxonomy").is_dir():
            return root.resolve(strict=True)
        why = "which has no folder taxonomy/" if root.is_dir() else "which is no folder"
    except (OSError, RuntimeError, ValueError) as error:
        why = f"which cannot be read: {getattr(error, 'strerror', None) or error}"
    raise FileNotFoundError(f"{by} is {str(root)!r}, {why}")


def read(root: Path) -> Knowledge:
    """Everything at `root`, with the findings of each file by itself. Never raises for what the files hold."""
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
    code = code_root(root)
    results, meetings, known_results = _results(code, findings)
    shared, sources = read_shared(code), {}
    for entry_id, entry in entries.items():
        source = read_source(code, entry_id, entry.implementation, findings, shared)
        if source is not None:
            sources[entry_id] = source
    return Knowledge(
        root=root,
        axes=axes,
        entries=entries,
        papers=papers,
        hard_cases=cases.cases if cases else (),
        open_problems=problems,
        principles=principles,
        results=results,
        meetings=meetings,
        benchmarks=_benchmarks(code),
        sources=sources,
        findings=sorted(findings),
        documents=documents,
        known_results=known_results,
    )


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
    quotes = list(text.quoted_wrongly(document))
    value, problems = validation.validate(model, document)
    said = {(f.line, f.path) for f in quotes}
    findings.extend([*quotes, *(f for f in problems if (f.line, f.path) not in said)])
    return value


def _benchmarks(root: Path) -> frozenset[str]:
    """Ids of the benchmarks that there is a module for."""
    folder = root / BENCHMARKS
    modules = (
        [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()] if folder.is_dir() else []
    )
    return frozenset(p.stem.replace("_", "-") for p in modules if not p.name.startswith("_"))


Results = dict[str, list[Record]]


def _results(root: Path, findings: list[Finding]) -> tuple[Results, Results, dict[str, set[str]]]:
    """Committed records of techniques, those in which several meet, and the scenarios that there are files for, each by
    folder. Pydantic reads a good file fast; the places are looked up for a bad one only."""
    results: Results = {}
    meetings: Results = {}
    known: dict[str, set[str]] = {}
    base = root / RESULTS
    for path in sorted(base.rglob("*")) if base.is_dir() else ():
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(base).parts):
            continue
        file = path.relative_to(root).as_posix()
        if path.suffix == ".npz" and path.with_suffix(".json").is_file():
            continue  # the pictures of the record beside it
        if path.suffix != ".json" or path.parent.parent != base:
            message = "only <technique or benchmark>/<scenario>.json and its pictures belong here"
            findings.append(finding("E212", file, message, hint="rename or remove it"))
            continue
        owner = path.parent.name
        scenario, _, device = path.stem.partition(".")  # <scenario>.cuda.json: measured on another device than the CPU
        known.setdefault(owner, set()).add(scenario)
        record = _record(path, file, findings)
        if record is None:
            continue
        for key, value, wanted in (
            ("technique" if record.technique else "benchmark", record.owner, owner),
            ("scenario", record.scenario, scenario),
            ("device", record.device.partition(":")[0], device or "cpu"),
        ):
            if value != wanted:
                document = read_json(path, file)
                message = f'"{value}", but the path of the file says "{wanted}"'
                findings.append(document.finding("E310", message, (key,), hint="measure it again, or move the file"))
        (results if record.technique else meetings).setdefault(owner, []).append(record)
    for records in (*results.values(), *meetings.values()):
        records.sort(key=lambda r: (r.scenario, r.device != "cpu", r.device))
    return results, meetings, known


def _record(path: Path, file: str, findings: list[Finding]) -> Record | None:
    with contextlib.suppress(OSError, ValueError):
        return Record.from_json(strict.read(path, MAX_BYTES))
    document = read_json(path, file)
    findings.extend(document.findings)
    if not document.readable or document.findings:
        return None
    record, problems = validation.validate(Record, document, as_json=True)
    findings.extend(problems)
    return record
