"""Hand-written guides that show something generated: a line of the guide says what stands in its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from reference_impls.accounting.record import Point, Record
from reference_impls.accounting.saving import macs_saved, tails

from ..headlines import knobs
from ..knowledge.verdicts import MEANINGS
from .figures import WIDE, Axis, Mark, Series, swatch, trade_off
from .hosts import Family
from .markup import Html, escape
from .model import DOCS, Atlas, Page
from .parts import View, verdict_mark
from .templates import render

APPLY = "apply.md"
FAMILIES = "<!-- families -->"
"""The line of the guide in whose place the tables of families stand."""
EVIDENCE = "evidence.md"
SPREAD = "<!-- spread -->"
"""The line in whose place stands what each technique saves on average and what it adds to the spread."""
VERDICTS = "<!-- verdicts -->"
"""The line of the guide in whose place the verdicts stand, with their meaning and how many there are of each."""


def pages(atlas: Atlas) -> list[Page]:
    """The guides, each in the place of the file that was written by hand."""
    text, families = atlas.material.guides.get(APPLY, ""), atlas.material.families
    if FAMILIES not in text:
        return []
    known = atlas.knowledge.entries
    tables = [(known[id_].name, [_row(atlas, one) for one in ones]) for id_, ones in families.techniques.items()]
    every = [one for ones in families.techniques.values() for one in ones]
    exact = sum(one.status == "exact" for one in every)
    filled = render("families.md", tables=tables, exact=exact, refused=len(every) - exact)
    return [Page(APPLY, "Apply a technique", text.replace(FAMILIES, filled), f"{DOCS}/{APPLY}")]


def verdicts(atlas: Atlas) -> list[Page]:
    """The guide to numbers, with the words of the verdicts and how many claims each is given to."""
    text = atlas.material.guides.get(EVIDENCE, "")
    if VERDICTS not in text:
        return []
    known = atlas.knowledge
    given = Counter(known.judge(claim).verdict for paper in known.papers.values() for claim in paper.claims)
    rows = [(verdict_mark(word), str(given[word]), meaning) for word, meaning in MEANINGS.items()]
    filled = text.replace(VERDICTS, render("verdicts.md", rows=rows)).replace(SPREAD, spread_added(atlas))
    return [Page(EVIDENCE, "How numbers are made", filled, f"{DOCS}/{EVIDENCE}")]


def spread_added(atlas: Atlas) -> Html | str:
    """A figure of all techniques whose records tell how cost varies from item to item, and its key; empty without."""
    entries = [entry for entry in atlas.knowledge.entries.values() if entry.kind == "technique"]
    view, drawn, key = View(atlas, EVIDENCE), list[Series](), list[Html]()
    for entry in entries:
        found = [
            (r, p) for r in atlas.knowledge.results_of(entry.id) for p in r.points if p.technique in (None, entry.id)
        ]
        marks = [_spread(r, p, both, entry.name) for r, p in found if (both := tails(r, p))]
        if marks:
            first = max(marks, key=lambda mark: mark.x)
            marks = [replace(mark, label=entry.name if mark is first else "") for mark in marks]
            drawn.append(Series(entry.name, "rival", marks, joined=False))
            key.append(Html("<li>{} {}</li>").format(swatch("rival", len(drawn)), view.of_entry(entry.id)))
    if not drawn:
        return ""
    about = "Each mark is a setting of a technique: the mean of the MACs that it saves, and what it adds to P99 - P50."
    figure = trade_off(
        drawn, Axis("mean MACs saved, % of the baseline's"), Axis("P99 - P50 added, % of the baseline's median"),
        title="Mean saved against spread added", description=about, name="fig-spread-added", frame=WIDE,
    )  # fmt: skip
    return Html(
        '<figure class="atlas-overview" data-search-exclude>{}</figure>\n\n<ul class="atlas-swatches">{}</ul>'
    ).format(figure, Html("").join(key))


def _spread(record: Record, point: Point, tails: tuple[float, float], name: str) -> Mark:
    own, base = tails
    saved, added = 100 * macs_saved(record, point), 100 * (own - base)
    tooltip = f"{name}, {record.title}, {knobs(point)}: saves {saved:.0f} %, adds {added:.0f} % of the median"
    return Mark(saved, added, tooltip=tooltip)


def _row(atlas: Atlas, one: Family) -> tuple[Html, ...]:
    """Family, models, what the technique gives, and the versions with which it was tried."""
    models = Html(", ").join(Html("<code>{}</code>").format(name) for name in one.models)
    status = Html("refused: {}" if one.because else "{}").format(one.because or one.status)
    versions = ", ".join(atlas.material.families.tried(one))
    absent = f" (not there in {', '.join(one.not_there)})" if one.not_there else ""
    return escape(one.family), models, status, escape(f"{one.library} {versions}{absent}")
