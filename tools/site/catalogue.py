"""Index pages of entries and axes, and the pages of axes."""

from __future__ import annotations

from collections.abc import Mapping

from .. import headlines
from ..knowledge.schema import Entry
from .model import Atlas, Page
from .parts import STATUS, Facet, View, facet_of_axis, plain

FACETS = ("relation", "location", "exploitation", "stage", "data_kind", "adaptation")
"""Axes that the table of techniques can be filtered by."""
MAIN = {"relation", "location"}
"""Axes on which the map counts by the main term; its links must lead to what it counted."""
CHOICE = {
    "single": "Exactly one term applies.",
    "primary": "One term decides; others may follow as secondary.",
    "multi": "All terms that apply, the main one first.",
}


def techniques(atlas: Atlas) -> Page:
    """All entries in one table, which a script lets readers filter."""
    used = [e.axes for e in atlas.entries]
    there = {e.status for e in atlas.entries}
    facets = [
        *(facet for axis in FACETS for facet in facet_of_axis(atlas, axis, used)),
        Facet("status", "Status", {s: name for s, name in STATUS.items() if s in there}),
    ]
    return View(atlas, "techniques/index.md").page(
        "techniques.md", "Techniques", "taxonomy/techniques", meta={"hide": ["navigation", "toc"]}, facets=facets,
        axes=[axis for axis in FACETS[:4] if axis in atlas.knowledge.axes], data=_data, status=STATUS,
        drafts=sum(e.status == "draft" for e in atlas.entries),
        saves=lambda entry: headlines.in_short(atlas.knowledge, entry.id), small_loss=headlines.SMALL_LOSS_TEXT,
        steady=lambda entry: _steadiness(atlas, entry),
    )  # fmt: skip


def _steadiness(atlas: Atlas, entry: Entry) -> tuple[str, str]:
    """P99 - P50 of the work of single items, and the baseline's; what is there instead where none is known."""
    if entry.status == "draft":
        return "–", ""
    found = headlines.steadiness(atlas.knowledge, entry.id) if entry.kind == "technique" else None
    follows = {axis: entry.axes[axis].primary for axis in ("stage", "detection_time") if axis in entry.axes}
    return found or ("not measured" if follows == {"stage": "inference", "detection_time": "dynamic"} else "", "")


def _data(entry: Entry) -> Mapping[str, str]:
    """What the filter compares, by data attribute."""
    terms = {a: [entry.axes[a].primary] if a in MAIN else list(entry.axes[a]) for a in FACETS if a in entry.axes}
    words = " ".join([entry.name, *entry.aliases, entry.id, entry.summary]).lower()
    return {f"data-{axis}": " ".join(own) for axis, own in terms.items()} | {
        "data-status": entry.status, "data-text": words, "data-papers": " ".join(link.key for link in entry.papers),
    }  # fmt: skip


def axes(atlas: Atlas) -> Page:
    """The vocabulary: every axis with its question."""
    view, known = View(atlas, "axes/index.md"), atlas.knowledge.axes
    rows = [(view.of_axis(name), plain(one.question), len(one.terms)) for name, one in known.axes.items()]
    return view.page("axes.md", "Taxonomy", "taxonomy/axes.yml", known=known, rows=rows)


def axis(atlas: Atlas, name: str) -> Page:
    """One axis: every term with its definition, question and entries."""
    one = atlas.knowledge.axes[name]
    meta = {"description": plain(one.question)}
    return View(atlas, f"axes/{name}.md").page(
        "axis.md", one.name, "taxonomy/axes.yml", meta=meta, name=name, axis=one, choice=CHOICE[one.choice],
        papers=lambda term: sum(name in p.axes and p.axes[name].primary == term for p in atlas.papers),
    )  # fmt: skip
