"""The pages of principles, open problems and hard cases: the project's own reading, with its evidence."""

from __future__ import annotations

from ..knowledge.schema import HardCase, Statements, Support
from .markup import Html, escape
from .model import Atlas, Page, of_entry
from .parts import View, locator, plain, short_reference, verdict_mark


def principles(atlas: Atlas) -> Page:
    """What the entries have in common."""
    own = "Each statement names the entries, claims and measured results that are its evidence; judge it by them."
    return _page(atlas, "principles.md", "Principles", atlas.knowledge.principles, own, "taxonomy/principles.yml")


def open_problems(atlas: Atlas) -> Page:
    """What the entries leave open."""
    own = "Each problem names the entries, claims and measured results that show it; judge it by them."
    known = atlas.knowledge.open_problems
    return _page(atlas, "open-problems.md", "Open problems", known, own, "taxonomy/open_problems.yml")


def _page(atlas: Atlas, here: str, title: str, known: Statements, own: str, source: str) -> Page:
    meta = {"description": f"{title} of data redundancy in deep learning"}
    return View(atlas, here).page(
        "statements.md", title, source, meta=meta, name=title, own=own, known=known, supporting=_supporting
    )


def _supporting(view: View, support: Support) -> tuple[str, Html]:
    """What sort of thing supports, and its name with a link; the bare id of what is not there."""
    known = view.atlas.knowledge
    if support.entry is not None:
        return "entry", view.of_entry(support.entry)
    key, _, id_ = (support.paper or support.claim or support.result or "").partition("#")
    paper = known.papers.get(key)
    if support.paper is not None and paper is not None:
        return "paper", Html("{} ({})").format(view.of_paper(paper), short_reference(paper))
    claim = next((c for c in paper.claims if c.id == id_), None) if paper else None
    if paper is not None and claim is not None:
        where = view.of_claim(paper, claim), locator(claim.locator), verdict_mark(known.judge(claim).verdict)
        return "claim", Html("{} ({}, {}; {})").format(view.inline(claim.statement), *where)
    owner, _, scenario = key.partition("/")
    record = known.result(owner, scenario) if support.result else None
    ids = [owner, *(p.technique or "" for p in record.points)] if record else []
    if record and (entry := next((known.entries[i] for i in ids if i in known.entries), None)):
        name = view.link(f"techniques/{entry.id}.md", record.title, anchor=of_entry(record, entry.id).anchor)
        return "measured", Html("{} ({}, {})").format(name, entry.name, record.date)
    kind = "paper" if support.paper else "claim" if support.claim else "result"
    return kind, escape(support.paper or support.claim or key)


def hard_cases(atlas: Atlas) -> Page:
    """Cases that are hard to classify, by the axis on which they are hard."""
    found = atlas.knowledge.hard_cases
    order = [*atlas.knowledge.axes, *sorted({c.axis for c in found} - set(atlas.knowledge.axes))]
    by_axis = {axis: cases for axis in order if (cases := [c for c in found if c.axis == axis])}
    meta = {"description": "Rulings on cases that are hard to classify"}
    return View(atlas, "hard-cases.md").page(
        "hard_cases.md", "Hard cases", "taxonomy/hard_cases.yml", meta=meta, by_axis=by_axis, decides=_decides
    )


def _decides(view: View, case: HardCase) -> list[Html]:
    """Links to the entries and papers whose place follows from a case."""
    known = view.atlas.knowledge
    papers = [known.papers[key] for key in case.papers if key in known.papers]
    return [
        *(view.of_entry(id_) for id_ in case.entries if id_ in known.entries),
        *(view.link(f"papers/{p.key}.md", short_reference(p), title=plain(p.title)) for p in papers),
    ]
