"""Index and detail pages of papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..export.bibtex import bibliography
from ..knowledge.schema import Paper
from .markup import arxiv, doi, external
from .model import Atlas, Page
from .parts import FACETS, MAIN, ROLES, Facet, View, facet_of_axis, plain, short_title

KINDS = {"method": "Method", "analysis": "Analysis", "survey": "Survey", "benchmark": "Benchmark"}
MISSING = {"authors": "all authors", "year": "the year", "venue": "the venue", "identifier": "an identifier"}
"""What a reference should have -> how a reader names it."""


def papers(atlas: Atlas) -> Page:
    """All papers in one table, which a script lets readers filter."""
    found = atlas.papers
    years = Counter(str(p.year) for p in found if p.year)
    facets = [
        Facet("year", "Year", {year: year for year in sorted(years, reverse=True)}),
        *(f for axis in FACETS for f in facet_of_axis(atlas, axis, [p.axes for p in found])),
        Facet("kind", "Kind", {k: name for k, name in KINDS.items() if any(p.kind == k for p in found)}),
        Facet("missing", "Not confirmed", {k: k for k in MISSING if any(k in p.unconfirmed for p in found)}),
    ]
    return View(atlas, "papers/index.md").page(
        "papers.md", "Papers", "papers", meta={"hide": ["navigation", "toc"]}, papers=found, facets=facets, data=_data,
        kinds=KINDS, claims=sum(len(p.claims) for p in found), stated=sum(1 for p in found if p.claims),
        have={name: sum(key not in p.unconfirmed for p in found) for key, name in MISSING.items()},
    )  # fmt: skip


def _data(p: Paper) -> Mapping[str, str]:
    """What the filter compares, by data attribute."""
    return {
        "data-year": str(p.year or ""), "data-kind": p.kind, "data-missing": " ".join(p.unconfirmed),
        "data-id": p.key, "data-papers": p.key,
        **{f"data-{a}": " ".join([p.axes[a].primary] if a in MAIN else p.axes[a]) for a in FACETS if a in p.axes},
        "data-text": " ".join([p.title, *_names(p), p.venue or "", p.key]).lower(),
    }  # fmt: skip


def _names(one: Paper) -> list[str]:
    return [f"{a.given} {a.family}" if a.given else a.family for a in one.authors]


def paper(atlas: Atlas, one: Paper) -> Page:
    """One paper: reference, summary, what is not confirmed, claims with verdicts, entries, classification, BibTeX."""
    names, ids, code = _names(one), one.ids, ("third-party code", "official code")
    year = str(one.year or "")
    reference = [
        ", ".join(names) + (" and others" if names and one.et_al else ""),
        one.venue or "",
        "" if one.venue and year in one.venue else year,
    ]
    places = [
        arxiv(ids.arxiv) if ids.arxiv else "",
        doi(ids.doi) if ids.doi else "",
        external(ids.url, "page of the paper") if ids.url else "",
        *(external(c.url, code[c.official]) + (f" ({c.licence})" if c.licence else "") for c in one.code),
    ]
    return View(atlas, f"papers/{one.key}.md").page(
        "paper.md", short_title(one), f"papers/{one.key}.yml", section=year or "Year not confirmed",
        meta={"title": one.title, "description": plain(one.summary)}, paper=one, kind=KINDS[one.kind],
        reference=list(filter(None, reference)), places=list(filter(None, places)),
        unconfirmed=[MISSING[name] for name in one.unconfirmed],
        claims=sorted(((one, c, atlas.knowledge.judge(c)) for c in one.claims), key=lambda row: not row[2].attempted),
        bibtex=bibliography([one]),
        entries=[
            (e, ROLES[next(link.role for link in e.papers if link.key == one.key)])
            for e in atlas.knowledge.entries_of(one.key)
        ],
    )  # fmt: skip
