"""The home page: what the atlas is, the map relation x location, and every entry that runs as a card.

A cell of the map is a link without a script. With one it opens a panel, and the map can be coloured by other things
than the number of entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .. import headlines
from ..knowledge.schema import Entry, Paper
from .model import Atlas, Page
from .parts import View

ROWS, COLUMNS = "relation", "location"
RECENT = 2024
"""The layer of recent papers counts from this year on."""
LAYERS = {
    "entries": "entries", "running": "entries that run here", "recent": f"papers since {RECENT}",
    "free": "training-free entries", "saving": "best measured saving, % of the MACs",
    "spread": "spread added, % of the median",
}  # fmt: skip
"""What the map can be coloured by."""


@dataclass(frozen=True)
class Cell:
    """A place of the map."""

    row: str
    column: str
    entries: tuple[Entry, ...]
    papers: tuple[Paper, ...]
    """Papers whose classification is this place, whether or not an entry is."""
    best: tuple[float, Entry] | None
    """The largest share of the MACs that was measured at a small loss, and whose it is."""
    spread: float | None
    """The largest P99 - P50 of the MACs beside the baseline's, in per cent of its median."""

    @property
    def running(self) -> int:
        return sum(one.status == "stable" for one in self.entries)

    @property
    def years(self) -> list[tuple[int, int]]:
        """(year, papers) in order."""
        return sorted(Counter(p.year for p in self.papers if p.year).items())

    @property
    def data(self) -> Mapping[str, str]:
        """The layers, by data attribute; what is not known is empty."""
        free = sum("adaptation" in e.axes and e.axes["adaptation"].primary == "training_free" for e in self.entries)
        values = {
            "entries": len(self.entries), "running": self.running, "free": free,
            "recent": sum((p.year or 0) >= RECENT for p in self.papers),
            "saving": round(100 * self.best[0]) if self.best else "",
            "spread": round(self.spread) if self.spread is not None else "",
        }  # fmt: skip
        return {f"data-{name}": str(value) for name, value in values.items()} | {
            "data-row": self.row,
            "data-column": self.column,
        }


def cells(atlas: Atlas) -> dict[tuple[str, str], Cell]:
    """Every place of the map, empty ones too. An entry, or a paper, is where its main terms say."""
    entries: dict[tuple[str, str], list[Entry]] = {}
    papers: dict[tuple[str, str], list[Paper]] = {}
    for one in atlas.entries:
        if ROWS in one.axes and COLUMNS in one.axes:
            entries.setdefault((one.axes[ROWS].primary, one.axes[COLUMNS].primary), []).append(one)
    for paper in atlas.papers:
        if ROWS in paper.axes and COLUMNS in paper.axes:
            papers.setdefault((paper.axes[ROWS].primary, paper.axes[COLUMNS].primary), []).append(paper)
    axes = atlas.knowledge.axes
    return {
        (r, c): Cell(r, c, tuple(entries.get((r, c), ())), tuple(papers.get((r, c), ())),
                     _best(atlas, entries.get((r, c), [])), _spread(atlas, entries.get((r, c), [])))
        for r in axes[ROWS].terms for c in axes[COLUMNS].terms
    }  # fmt: skip


def _best(atlas: Atlas, entries: list[Entry]) -> tuple[float, Entry] | None:
    found = [
        (share, entry)
        for entry in entries
        for one, _ in headlines.of_entry(atlas.knowledge, entry.id)
        for best in one.bests
        for share in best.saved
        if share > 0
    ]
    return max(found, key=lambda one: one[0], default=None)


def _spread(atlas: Atlas, entries: list[Entry]) -> float | None:
    found = [
        100 * ((p.items.macs_p99 - p.items.macs_p50) - (base.macs_p99 - base.macs_p50)) / base.macs_p50
        for entry in entries
        for record in atlas.knowledge.results_of(entry.id)
        if (base := record.baseline.items) is not None and base.macs_p50
        for p in record.points
        if p.items is not None and p.technique in (None, entry.id)
    ]
    return max(found, default=None)


def page(atlas: Atlas) -> Page:
    """The home page."""
    knowledge = atlas.knowledge
    facts = [
        (len(knowledge.entries), "entry", "entries"),
        (sum(1 for e in knowledge.entries.values() if e.implementation), "implementation that runs",
         "implementations that run"),
        (len(knowledge.records), "measured result", "measured results"),
        (len(knowledge.papers), "paper", "papers"),
        (sum(len(p.claims) for p in knowledge.papers.values()), "claim with its place", "claims with their place"),
    ]  # fmt: skip
    places = cells(atlas)
    inside = {place: cell for place, cell in places.items() if cell.entries}
    most = max((len(cell.entries) for cell in inside.values()), default=1)
    steps: dict[int, list[int]] = {}
    for count in range(1, most + 1):
        steps.setdefault(heat(count, most), []).append(count)
    rows, columns = knowledge.axes[ROWS], knowledge.axes[COLUMNS]
    return View(atlas, "index.md").page(
        "home.md", "Redundancy Atlas", "taxonomy/axes.yml", facts=facts, rows=rows, columns=columns, cells=places,
        layers=LAYERS, meta={"hide": ["navigation", "toc"]}, most=most, heat=heat, steps=steps,
        filled=len(inside), near=lambda cell: _near(places, cell, list(rows.terms), list(columns.terms)),
        shown=[e for e in atlas.entries if e.status == "stable"],
        drafts=sum(e.status == "draft" for e in atlas.entries),
    )  # fmt: skip


def _near(places: Mapping[tuple[str, str], Cell], cell: Cell, rows: list[str], columns: list[str]) -> list[Cell]:
    """Places beside, above and below that have entries: the first on each side."""
    i, j = rows.index(cell.row), columns.index(cell.column)
    ways = (
        [(cell.row, c) for c in reversed(columns[:j])], [(cell.row, c) for c in columns[j + 1 :]],
        [(r, cell.column) for r in reversed(rows[:i])], [(r, cell.column) for r in rows[i + 1 :]],
    )  # fmt: skip
    return [places[found] for way in ways if (found := next((p for p in way if places[p].entries), None))]


def heat(count: int, most: int) -> int:
    """Step of the colour scale, 1 to 4, for `count` entries where the fullest cell has `most`."""
    if most <= 4:
        return count
    return min(4, 1 + (4 * (count - 1)) // most)
