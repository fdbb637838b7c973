"""What an entry needs to become stable, and what of it is missing. The check and the views of completeness ask here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .base import Knowledge
from .paths import EXPERIMENTS, NOTEBOOKS, RESULTS, TESTS, located, module_name
from .reader import Keys
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
    return tuple(n for n in _classification(knowledge, entry) if not n.met and n.status == "draft")


def _needs(knowledge: Knowledge, entry: Entry) -> Iterator[Need]:
    yield from _classification(knowledge, entry)
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
    if entry.kind == "technique":
        yield from _evidence(knowledge, entry)
    if entry.kind == "technique" or entry.implementation is not None:
        yield from _files(knowledge, entry)


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
    name = module_name(entry.id)
    source = knowledge.sources.get(entry.id)
    files = {
        f"{EXPERIMENTS}/{name}.py": "what it is examined on, and its scenarios on real data",
        f"{TESTS}/test_{name}.py": "what is particular to it; the conformance checks cover the rest",
        f"{NOTEBOOKS}/{name}.py": "jupytext py:percent, without outputs",
    }
    place: Keys = ("implementation",)
    for file, hint in files.items():
        met = located(knowledge.root, file).is_file()
        yield Need(file, hint, met, "stable", "E402", f"a stable entry needs {file}", place)
    yield Need(
        what="a measured result",
        hint=f"measure it: `redundancy bench {entry.id} --save`",
        met=entry.id in knowledge.known_results,
        status="stable",
        code="E402",
        message=f"a stable entry needs a measured result in {RESULTS}/{entry.id}/",
        path=place,
    )
    code = (*(source.files if source else ()), *files)
    written = [file for file in code if _is_placeholder(located(knowledge.root, file))]
    yield Need(
        what="its own code",
        hint="put your own in the place of what `redundancy new` wrote, and delete the paragraphs that say so",
        met=not written,
        status="stable",
        code="E406",
        message=f"still the stand-in that `redundancy new` wrote: {', '.join(written)}",
        path=place,
    )


def _is_placeholder(path: Path) -> bool:
    try:
        return PLACEHOLDER.encode() in path.read_bytes()
    except OSError:
        return False


def axis_hint(axis: Axis) -> str:
    """The question of an axis, and what may answer it."""
    return f"{one_line(axis.question)} One of: {', '.join(axis.terms)}"
