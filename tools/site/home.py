"""The home page: what the atlas is, the map relation x location, and every entry as a card."""

from __future__ import annotations

from ..knowledge.schema import Entry
from .model import Atlas, Page
from .parts import View

ROWS, COLUMNS = "relation", "location"


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
    inside: dict[tuple[str, str], list[Entry]] = {}
    for entry in atlas.entries:
        if ROWS in entry.axes and COLUMNS in entry.axes:
            inside.setdefault((entry.axes[ROWS].primary, entry.axes[COLUMNS].primary), []).append(entry)
    most = max(map(len, inside.values()), default=1)
    steps: dict[int, list[int]] = {}
    for count in range(1, most + 1):
        steps.setdefault(heat(count, most), []).append(count)
    rows, columns = knowledge.axes[ROWS], knowledge.axes[COLUMNS]
    return View(atlas, "index.md").page(
        "home.md", "Redundancy Atlas", "taxonomy/axes.yml", facts=facts, rows=rows, columns=columns, inside=inside,
        meta={"hide": ["navigation", "toc"], "search": {"boost": 0.5}}, most=most, heat=heat, steps=steps,
        filled=sum((r, c) in inside for r in rows.terms for c in columns.terms),
        shown=[e for e in atlas.entries if e.status == "stable"],
        drafts=sum(e.status == "draft" for e in atlas.entries),
    )  # fmt: skip


def heat(count: int, most: int) -> int:
    """Step of the colour scale, 1 to 4, for `count` entries where the fullest cell has `most`."""
    if most <= 4:
        return count
    return min(4, 1 + (4 * (count - 1)) // most)
