"""What a maintainer should look at again, by the dates that the files give; nothing is asked of the network.

- Looks: when somebody last read an entry (`reviewed`, else `added`) or confirmed a paper (`verified`); oldest first.
- Preprints: papers whose venue is still arXiv; those first whose identifiers say that they were published.
- Libraries: files that speak of a library, or records that were measured with one, from before the release that the
  locks pin now (`reference_impls/hosts/libraries.yml`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import yaml

from .base import Knowledge
from .paths import ENTRIES, PAPERS
from .schema import Paper

LIBRARIES: Final = "reference_impls/hosts/libraries.yml"
_PREPRINT_DOI: Final = "10.48550/"


@dataclass(frozen=True)
class Look:
    """The last look that somebody took at a file."""

    file: str
    on: str
    days: int
    """How long ago."""
    how: str
    """What was done on that day."""


@dataclass(frozen=True)
class Preprint:
    """A paper that is a preprint, as far as the atlas knows."""

    file: str
    year: int
    """By its arXiv id where it has one; 0 where it is not known."""
    on: str
    """Day of the last look."""
    published: str
    """The identifier that says that it was published; empty where none does."""


@dataclass(frozen=True)
class Stale:
    """A file from before the release of a library that it speaks of, or was measured with."""

    file: str
    library: str
    release: str
    """The release that the locks pin."""
    because: str


@dataclass(frozen=True)
class Library:
    """A library that the knowledge speaks of."""

    name: str
    repository: str
    release: str
    since: str
    """Day on which the atlas took the release."""


def looks(knowledge: Knowledge, today: date) -> list[Look]:
    """Every entry and paper by its last look, the oldest first."""
    found = []
    for name, entry in knowledge.entries.items():
        on, how = (entry.reviewed, "reviewed") if entry.reviewed else (entry.added, "added")
        found.append(Look(f"{ENTRIES}/{name}.yml", on, _days(on, today), how))
    for key, paper in knowledge.papers.items():
        on = paper.verified.on
        found.append(Look(f"{PAPERS}/{key}.yml", on, _days(on, today), f"confirmed in: {paper.verified.source}"))
    return sorted(found, key=lambda look: (look.on, look.file))


def preprints(knowledge: Knowledge) -> list[Preprint]:
    """Every preprint: those first that an identifier says were published, then the oldest."""
    found = [
        Preprint(f"{PAPERS}/{key}.yml", _year(paper), paper.verified.on, _published(paper))
        for key, paper in knowledge.papers.items()
        if paper.venue is None or paper.venue.startswith("arXiv")
    ]
    return sorted(found, key=lambda one: (not one.published, one.year, one.file))


def stale(knowledge: Knowledge, libraries: list[Library]) -> list[Stale]:
    """What is from before the release of a library: files that speak of it, and records measured with another one."""
    looked = {look.file: look.on for look in looks(knowledge, date.min)}
    found = []
    for one in libraries:
        named = re.compile(rf"\b{re.escape(one.name)}\b|{re.escape(one.repository)}")
        for file, on in looked.items():
            if on < one.since and (said := named.search(knowledge.documents[file].text)):
                because = f"speaks of {said[0]}, last looked at on {on}; the release is here since {one.since}"
                found.append(Stale(file, one.name, one.release, because))
        for record in knowledge.records:
            with_ = record.versions.get(one.name, one.release).partition("+")[0]
            if with_ != one.release:
                file = f"reference_impls/results/{record.owner}/{record.scenario}.json"
                found.append(Stale(file, one.name, one.release, f"measured with {with_}"))
    return sorted(found, key=lambda one: (one.library, one.file))


def libraries(root: Path) -> list[Library]:
    """The libraries of the atlas at `root`; none where it has no such file."""
    file = root / LIBRARIES
    read = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [Library(name, **fields) for name, fields in read.items()]


def _days(on: str, today: date) -> int:
    return (today - date.fromisoformat(on)).days


def _year(paper: Paper) -> int:
    """Of the arXiv id, or else of the paper."""
    modern = re.match(r"\d\d(?=\d\d\.)", paper.ids.arxiv or "")
    return 2000 + int(modern[0]) if modern else paper.year or 0


def _published(paper: Paper) -> str:
    ids = paper.ids
    if ids.doi and not ids.doi.startswith(_PREPRINT_DOI):
        return ids.doi
    return ids.url if ids.url and "arxiv.org" not in ids.url else ""


def everything(knowledge: Knowledge, today: date) -> Iterator[tuple[str, list[Look] | list[Preprint] | list[Stale]]]:
    """The three lists by name."""
    yield "looks", looks(knowledge, today)
    yield "preprints", preprints(knowledge)
    yield "libraries", stale(knowledge, libraries(knowledge.root))
