"""The whole knowledge base in memory, with everything that is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reference_impls.accounting.record import Record

from .claims import Judgement, judge
from .findings import Finding
from .paths import INVARIANTS
from .reader import Document
from .schema import Axes, Claim, Entry, HardCase, Paper, Statements
from .source import Source

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
    meetings: dict[str, list[Record]] = field(default_factory=dict)
    """Committed records in which several techniques meet, by benchmark, in the same order."""
    benchmarks: frozenset[str] = frozenset()
    """Ids of the benchmarks."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Implementation of each entry that has one."""
    findings: list[Finding] = field(default_factory=list)
    """Everything that is wrong, sorted by place."""
    documents: dict[str, Document] = field(default_factory=dict, repr=False)
    """The YAML files as read, with the place of every value, by their path relative to the root."""
    known_results: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Scenarios of each technique, and of each benchmark, for which there is a file, readable or not."""

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every committed record: those in which several techniques meet, then those of one."""
        return tuple(r for records in (*self.meetings.values(), *self.results.values()) for r in records)

    def results_of(self, owner: str) -> list[Record]:
        """The records of an entry, its own first, then those in which it meets others; or the records of a benchmark's
        own folder."""
        return [*self.results.get(owner, ()), *self._met.get(owner, ()), *self.meetings.get(owner, ())]

    @cached_property
    def _met(self) -> dict[str, list[Record]]:
        """Joint records by the entries that their points name."""
        found: dict[str, list[Record]] = {}
        for record in (r for records in self.meetings.values() for r in records):
            for entry_id in {point.technique for point in record.points if point.technique}:
                found.setdefault(entry_id, []).append(record)
        return found

    def result(self, owner: str, scenario: str) -> Record | None:
        """The committed record of a scenario, if there is one; the CPU's where there are several."""
        return next((r for r in self.results_of(owner) if r.scenario == scenario), None)

    def judge(self, claim: Claim) -> Judgement:
        """The verdict on a claim, computed from the committed results of its technique."""
        return judge(claim, self.results_of(claim.technique))

    def claims(self, entry_id: str) -> list[tuple[Paper, Claim, Judgement]]:
        """Every claim about an entry, with its paper and its verdict: those that we tried first, then the entry's own
        papers, in its order."""
        entry = self.entries.get(entry_id)
        order = {link.key: n for n, link in enumerate(entry.papers)} if entry else {}
        papers = sorted(self.papers.values(), key=lambda p: (order.get(p.key, len(order)), p.key))
        found = [(p, c, self.judge(c)) for p in papers for c in p.claims if c.technique == entry_id]
        return sorted(found, key=lambda one: not one[2].attempted)

    @cached_property
    def claimed(self) -> frozenset[str]:
        """Ids of the entries about which a paper makes a claim."""
        return frozenset(claim.technique for paper in self.papers.values() for claim in paper.claims)

    @cached_property
    def tested_invariants(self) -> frozenset[str] | None:
        """Modules' names of the entries whose invariant is tried on numbers; None where there are no such tests."""
        files = [*self.root.glob(INVARIANTS)]
        tests = "".join(file.read_text("utf-8", "replace") for file in files)
        return frozenset(re.findall(r"^def test_([a-z0-9_]+)\(", tests, re.MULTILINE)) if files else None

    def entries_of(self, paper_key: str) -> list[Entry]:
        """The entries that name a paper."""
        return [e for e in self.entries.values() if any(link.key == paper_key for link in e.papers)]


def empty_axes() -> Axes:
    """A vocabulary without axes, where the real one cannot be read: nothing is then said about terms."""
    return Axes.model_construct(about="", scope_rule="", decision_card=(), axes={})
