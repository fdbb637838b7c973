"""The page of all results with the claims that rest on each, and the page of the machines that measured them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reference_impls.accounting.record import Machine, Record
from reference_impls.accounting.saving import has_random_weights

from .. import headlines
from ..knowledge.claims import Judgement
from ..knowledge.schema import Claim, Paper
from .markup import Html
from .model import Atlas, Page, of_entry
from .parts import Facet, View

HERE, MACHINES = "results.md", "machines.md"
Tried = tuple[Paper, Claim, Judgement]


@dataclass(frozen=True)
class Row:
    """A record as the page shows it."""

    atlas: Atlas
    record: Record
    tried: Sequence[Tried]
    """The claims that were held against it."""

    @cached_property
    def entries(self) -> list[str]:
        """Ids of the entries that it measures."""
        named = [self.record.technique, *(point.technique for point in self.record.points)]
        return [id_ for id_ in dict.fromkeys(filter(None, named)) if id_ in self.atlas.knowledge.entries]

    @property
    def saves(self) -> list[tuple[str, str, str]]:
        """(name where there are several, what is saved, what the best control saves) of each entry, at a small loss."""
        several = len(self.entries) > 1
        return [
            (self.atlas.knowledge.entries[id_].name if several else "", one.value, one.control)
            for id_ in self.entries
            for _, one in headlines.told([self.of(id_)])
        ]

    def of(self, id_: str) -> Record:
        """The record with the points of one entry alone."""
        return of_entry(self.record, id_).record

    def anchor(self, id_: str) -> str:
        """Where the page of an entry shows it."""
        return of_entry(self.record, id_).anchor

    @property
    def data(self) -> Mapping[str, str]:
        """What the filter compares, by data attribute."""
        one = self.record
        names = [self.atlas.knowledge.entries[id_].name for id_ in self.entries]
        words = " ".join([one.title, one.scenario, one.data, one.model or "", *names]).lower()
        return {
            "data-id": f"{one.owner}/{one.scenario}", "data-text": words, "data-benchmark": one.benchmark or "own",
            "data-machine": machine_anchor(one.machine), "data-budget": one.budget,
            "data-weights": "random" if has_random_weights(one) else "trained",
            "data-verdict": " ".join(sorted({j.verdict.replace(" ", "-") for _, _, j in self.tried})) or "none",
        }  # fmt: skip


def rows(atlas: Atlas) -> list[Row]:
    """Every record, newest first, with the claims that were held against it."""
    known = atlas.knowledge
    tried: dict[int, list[Tried]] = defaultdict(list)
    for paper in atlas.papers:
        for claim in paper.claims:
            judged = known.judge(claim)
            if judged.record is not None:
                tried[id(judged.record)].append((paper, claim, judged))
    found = [Row(atlas, record, tried[id(record)]) for record in known.records]
    return sorted(found, key=lambda row: (row.record.date, row.record.title), reverse=True)


def pages(atlas: Atlas) -> list[Page]:
    """The two pages."""
    found = rows(atlas)
    return [_results(atlas, found), _machines(atlas, found)]


def _results(atlas: Atlas, found: Sequence[Row]) -> Page:
    used = {name: {word for row in found for word in row.data[f"data-{name}"].split()} for name in CHOICES}
    names = {machine_anchor(row.record.machine): machine_name(row.record.machine) for row in found}
    verdicts = {word: word.replace("-", " ") for word in sorted(used["verdict"] - {"none"})}
    options = {
        "benchmark": {id_: id_.replace("-", " ") for id_ in sorted(used["benchmark"] - {"own"})}
        | {"own": "its own task"},
        "verdict": verdicts | {"none": "no claim was held against it"},
        "machine": dict(sorted(names.items())),
        "weights": {"trained": "trained", "random": "random"},
        "budget": {"full": "full", "smoke": "smoke"},
    }
    facets = [
        Facet(name, label, {value: text for value, text in options[name].items() if value in used[name]})
        for name, label in CHOICES.items()
    ]
    return View(atlas, HERE).page(
        "results.md", "Results", "reference_impls/results", meta={"hide": ["navigation", "toc"]}, rows=found,
        facets=facets, machine=machine_anchor, machines=MACHINES,
        quick=(("Contradicts a claim", {"verdict": "contradicted"}),), small_loss=headlines.SMALL_LOSS_TEXT,
    )  # fmt: skip


CHOICES = {
    "benchmark": "Benchmark",
    "verdict": "A claim was",
    "machine": "Machine",
    "weights": "Weights",
    "budget": "Budget",
}


def _machines(atlas: Atlas, found: Sequence[Row]) -> Page:
    """Each machine with what was measured on it."""
    by: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        by[machine_anchor(row.record.machine)].append(row)
    view = View(atlas, MACHINES)
    told = [
        (anchor, machine_name(those[0].record.machine), those, _facts(view, those))
        for anchor, those in sorted(by.items(), key=lambda one: (-len(one[1]), one[0]))
    ]
    return view.page("machines.md", "Machines", "reference_impls/results", machines=told, filtered=HERE)


def _facts(view: View, those: Sequence[Row]) -> list[tuple[str, str | Html]]:
    """(what, value) of a machine."""
    first, days = those[0].record.machine, sorted(row.record.date for row in those)
    threads = sorted({row.record.machine.threads for row in those})
    entries = dict.fromkeys(id_ for row in those for id_ in row.entries)
    versions = {
        name: sorted({v for row in those if (v := row.record.versions.get(name))}) for name in ("python", "torch")
    }
    facts: list[tuple[str, str | Html]] = [
        ("Processor", first.cpu), ("Cores", str(first.cores)), ("Memory", f"{first.memory_gb:.0f} GiB"),
        *([("Accelerator", first.accelerator)] if first.accelerator else []),
        ("Threads of torch", ", ".join(map(str, threads))),
        ("Measured", " to ".join(dict.fromkeys((days[0], days[-1])))),
        *((name, ", ".join(found)) for name, found in versions.items() if found),
        ("Entries", Html(", ").join(view.of_entry(id_) for id_ in sorted(entries))),
    ]  # fmt: skip
    return facts


def machine_name(one: Machine) -> str:
    """A machine in a line."""
    words = [
        one.accelerator or "",
        one.cpu,
        f"{one.cores} {'core' if one.cores == 1 else 'cores'}",
        f"{one.memory_gb:.0f} GiB",
    ]
    return ", ".join(filter(None, words))


def machine_anchor(one: Machine) -> str:
    """The same as an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", machine_name(one).lower()).strip("-")
