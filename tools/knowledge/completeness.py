"""What an entry needs to become stable, and what of it is missing: every rule stands here, and nowhere else.

`redundancy gaps`, `check`, `bench` and `affected`, the pages of drafts and the tests ask this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from reference_impls import strict
from reference_impls.accounting.record import Record

from . import references
from .base import Knowledge
from .findings import Finding
from .latex import unexplained
from .paths import (
    ENTRIES,
    EXPERIMENTS,
    INSTALLED,
    INVARIANTS,
    NOTEBOOKS,
    RESULTS,
    TECHNIQUES,
    TESTS,
    located,
    module_name,
)
from .reader import MAX_BYTES, Keys
from .schema import Axis, Entry
from .text import one_line

INDEX_AXES: Final = ("scope", "relation", "location", "granularity", "exploitation", "stage")
"""The axes by which entries are listed: every entry is placed on them, drafts too."""
PLACEHOLDER: Final = "TO DO (redundancy new)"
"""Stands in every file that `redundancy new` writes for an implementation, until somebody puts their own there."""
_PARTS: Final = {
    "technique": (
        "definition",
        "algorithm",
        "cost_model",
        "when_to_use",
        "when_not_to_use",
        "limits",
        "implementation",
    ),
    "system": ("definition", "algorithm", "cost_model", "when_to_use", "when_not_to_use", "limits", "parts"),
    "study": ("definition", "limits"),
}

REASON_WORDS: Final = 4
"""A reason why a conformance check cannot apply has at least so many words."""
_RECORD_RULES: Final[dict[str, tuple[Callable[[Record], bool], str]]] = {
    "a null case": (
        lambda record: bool(record.controls or record.redundancy.null),
        "a control, or the measure on data without the redundancy: `study.record(controls=..., redundancy=...)`",
    ),
    "a saving": (
        lambda record: any(p.macs < record.baseline.macs or p.bytes < record.baseline.bytes for p in record.points),
        "at least one point that executes fewer MACs or moves fewer bytes than the baseline",
    ),
}
"""What at least one record of an entry shows. One point is enough: a technique may be either on or off."""
_HINTS: Final = {"implementation": "`redundancy new implementation {id}` writes one to start from"}


@dataclass(frozen=True)
class Need:
    """One thing that an entry must have, and whether it has it."""

    what: str
    """In a few words: a key of the entry, an axis, a file."""
    hint: str
    """How to supply it."""
    met: bool
    status: Literal["draft", "stable"]
    """The status from which on it is needed."""
    code: str
    """The code of the finding when an entry of that status lacks it."""
    message: str
    """What that finding says."""
    path: Keys
    """The place in the entry's file where that finding stands."""
    at_key: bool = True
    """Whether it stands at the key of that place."""


def needs(knowledge: Knowledge, entry: Entry) -> tuple[Need, ...]:
    """Everything that a stable entry of this kind must have, in the order in which to supply it."""
    return tuple(_needs(knowledge, entry))


def gaps(knowledge: Knowledge, entry: Entry) -> tuple[Need, ...]:
    """What the entry lacks to be stable; empty for one that has everything."""
    return tuple(need for need in _needs(knowledge, entry) if not need.met)


def due(knowledge: Knowledge, entry: Entry) -> tuple[Need, ...]:
    """What the entry lacks although its present status needs it."""
    if entry.status == "stable":
        return gaps(knowledge, entry)
    needed = (*_classification(knowledge, entry), *_invariant(knowledge, entry))
    return tuple(n for n in needed if not n.met and n.status == "draft")


def findings_of(knowledge: Knowledge, entry: Entry) -> list[Finding]:
    """Findings of the check in files of the entry that name no gap: they too stand in its way."""
    own = (f"{ENTRIES}/{entry.id}.yml", *files_of(entry.id))
    folders = (f"{RESULTS}/{entry.id}/", f"{TECHNIQUES}/{module_name(entry.id)}/")
    said = {need.message for need in due(knowledge, entry)}
    found = (f for f in knowledge.findings if f.file in own or f.file.startswith(folders))
    return [f for f in found if f.message not in said]


def _needs(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    yield from _classification(knowledge, entry)
    yield from _invariant(knowledge, entry)
    for name in _PARTS[entry.kind]:
        yield Need(
            what=name,
            hint=_HINTS.get(name, one_line(str(Entry.model_fields[name].description))).format(id=entry.id),
            met=bool(getattr(entry, name)),
            status="stable",
            code="E401",
            message=f'a stable {entry.kind} needs "{name}"',
            path=("status",),
            at_key=False,
        )
    letters = unexplained(entry.cost_model or "", entry.symbols)
    yield Need(
        what=f"symbols: {', '.join(letters)}" if letters else "symbols",
        hint="say under `symbols` what every letter of the cost model means",
        met=not letters,
        status="stable",
        code="E401",
        message=f"the cost model does not say what {', '.join(letters)} {'is' if len(letters) == 1 else 'are'}",
        path=("cost_model",),
    )
    if entry.kind == "technique":
        yield from _evidence(knowledge, entry)
    if entry.kind == "technique" or entry.implementation is not None:
        yield from _files(knowledge, entry)
    yield from _numbers(knowledge, entry)
    yield Need(
        what="`status: stable`",
        hint=f"write it in {ENTRIES}/{entry.id}.yml once nothing else is missing",
        met=entry.status != "draft",
        status="stable",
        code="E401",
        message="the entry is a draft",
        path=("status",),
    )


def _classification(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    for name, axis in knowledge.axes.axes.items():
        if entry.kind in axis.optional_for:
            continue
        yield Need(
            what=f"axis {name}",
            hint=axis_hint(axis),
            met=name in entry.axes,
            status="draft" if name in INDEX_AXES else "stable",
            code="E403",
            message=f"the entry has no term on the axis {name}",
            path=("axes",),
        )


def _invariant(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    """An invariant without code is tried on numbers, or says why it cannot be: one or the other."""
    tests, name = knowledge.tested_invariants, module_name(entry.id)
    if tests is None or (entry.invariant is None and entry.invariant_untested is None):
        return
    tested = name in tests or located(knowledge.root, f"{TESTS}/test_{name}.py").is_file()
    explained = entry.invariant_untested is not None
    yield Need(
        what="its invariant tried on numbers",
        hint=(
            "delete `invariant_untested`: there is a test"
            if tested
            else f"write test_{name} in {INVARIANTS.replace('*', '')}, or say in `invariant_untested` why it needs code"
        ),
        met=entry.invariant is not None and tested != explained,
        status="draft",
        code="E407",
        message="the invariant is tested" if tested else "no test tries the invariant on numbers",
        path=("invariant_untested" if explained else "invariant",),
    )


def _evidence(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    yield Need(
        what="a paper that introduces it",
        hint="which paper first described it?",
        met=any(link.role == "introduces" for link in entry.papers),
        status="stable",
        code="E404",
        message="no paper has the role `introduces`",
        path=("papers",),
    )
    unread = any(link.key not in knowledge.papers for link in entry.papers)  # its claims are not known
    yield Need(
        what="a claim",
        hint=f"add a claim with `technique: {entry.id}` and its locator to one of its papers",
        met=unread or entry.id in knowledge.claimed,
        status="stable",
        code="E404",
        message="no paper makes a claim about this entry",
        path=("papers",),
    )


def _files(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    place: Keys = ("implementation",)
    _, experiments, test, notebook = files = files_of(entry.id)
    hints = {
        experiments: "what it is measured on; the small run of its first scenario uses data that `make serve` fetches",
        test: "its small cases, and what is particular to it; the conformance checks cover the rest",
        notebook: "jupytext py:percent, without outputs; a heading, and at least one figure",
    }
    for file, hint in hints.items():
        met = located(knowledge.root, file).is_file() or knowledge.root == INSTALLED  # which has no tests
        yield Need(file, hint, met, "stable", "E402", f"a stable entry needs {file}", place)
    for file, what, pattern, hint in (
        (
            experiments,
            "SCENARIOS",
            r"\bSCENARIOS\b",
            "`SCENARIOS = (Scenario(...), ...)`: `redundancy run` chooses there",
        ),
        (test, "CASES", r"\bCASES\b", "`CASES = MyCases()`: the conformance checks run on them"),
        (notebook, "a heading", r"# # \S", "begin it with `# %% [markdown]` and `# # The name`"),
    ):
        text = _text(located(knowledge.root, file))
        met = not text or re.search(rf"^(?:from .* import .*)?{pattern}", text, re.MULTILINE) is not None
        yield Need(f"{what} in {file}", hint, met, "stable", "E402", f"{file} lacks {what}", place)
    yield Need(
        what="a measured result",
        hint=f"measure it: `redundancy bench {entry.id} --save`",
        met=entry.id in knowledge.known_results,
        status="stable",
        code="E402",
        message=f"a stable entry needs a measured result in {RESULTS}/{entry.id}/",
        path=place,
    )
    records = knowledge.results_of(entry.id)
    for fault, (has, hint) in _RECORD_RULES.items():
        met = not records or any(map(has, records))
        yield Need(fault, hint, met, "stable", "E402", f"no record of the entry shows {fault}", place)
    source = knowledge.sources.get(entry.id)
    code = dict.fromkeys((*(source.files if source else ()), *files))
    written = [file for file in code if PLACEHOLDER in _text(located(knowledge.root, file))]
    named = ", ".join(written)
    yield Need(
        what="its own code",
        hint=f"put your own in the place of what `redundancy new` wrote in {named}; delete the paragraphs that say so",
        met=not written,
        status="stable",
        code="E406",
        message=f"still the stand-in that `redundancy new` wrote: {named}",
        path=place,
    )


def _numbers(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    """Measured numbers of its texts must be references to records."""
    records = knowledge.results_of(entry.id)
    points = [p for r in records for p in (*r.points, *(p for c in r.controls for p in c.points))]
    knobs = {v for p in points for v in p.knobs.values() if not isinstance(v, str)}
    for field in references.MEASURED_FIELDS:
        for n, text in enumerate(getattr(entry, field)):
            if bare := references.bare_numbers(text, knobs, knowledge.papers):
                yield Need(
                    what=f"the source of {', '.join(bare)} in {field}",
                    hint="write {{scenario: field}}, or name the paper by its key; `redundancy explain W605` has more",
                    met=False,
                    status="stable",
                    code="W605",
                    message=f"a number that looks measured, without its record: {', '.join(bare)}",
                    path=(field, n),
                    at_key=False,
                )


def files_of(entry_id: str) -> tuple[str, str, str, str]:
    """Module, experiments, test and notebook of an entry, relative to the root."""
    name = module_name(entry_id)
    return (
        f"{TECHNIQUES}/{name}.py", f"{EXPERIMENTS}/{name}.py", f"{TESTS}/test_{name}.py", f"{NOTEBOOKS}/{name}.py",
    )  # fmt: skip


def record_faults(record: Record) -> list[str]:
    """What a record, even one of the smoke budget, does not show and an entry's records must."""
    return [fault for fault, (has, _) in _RECORD_RULES.items() if not has(record)]


def notebook_faults(outputs: Iterable[str]) -> list[str]:
    """What a notebook that was executed does not show; `outputs` are the types of its outputs."""
    return [] if "display_data" in outputs else ["a figure"]


def _text(path: Path) -> str:
    try:
        return strict.read(path, MAX_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def axis_hint(axis: Axis) -> str:
    """The question of an axis, and what may answer it."""
    return f"{one_line(axis.question)} One of: {', '.join(axis.terms)}"
