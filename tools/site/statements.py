"""The pages of principles, open problems and hard cases: the project's own reading, with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from tools.knowledge.schema import HardCase, Statement, Statements, Support
from tools.site import evidence
from tools.site.catalogue import linked, listed, term_link
from tools.site.home import plain
from tools.site.markup import escape, front_matter, heading, link, paragraph, prose, small
from tools.site.pages import Atlas, Page
from tools.site.papers import locator, short_reference, verdict_mark

OWN = '<p class="atlas-banner own"><b>The project\'s own reading.</b> {}</p>'


def principles(atlas: Atlas) -> Page:
    """What the entries have in common."""
    about = "Each statement names the entries, claims and measured results that it rests on; judge it by them."
    return _page(atlas, "principles.md", "Principles", atlas.knowledge.principles, about, "taxonomy/principles.yml")


def open_problems(atlas: Atlas) -> Page:
    """What the entries leave open."""
    about = "Each problem names the entries, claims and measured results that show it; judge it by them."
    known = atlas.knowledge.open_problems
    return _page(atlas, "open-problems.md", "Open problems", known, about, "taxonomy/open_problems.yml")


def _page(atlas: Atlas, here: str, title: str, known: Statements, own: str, source: str) -> Page:
    parts = [f"# {title}", OWN.format(own)]
    if known.about:
        parts.append(linked(atlas, here, prose(known.about)))
    if not known.statements:
        parts.append("None is written down yet.")
    for one in known.statements:
        parts += [heading(one.title, 2, one.id), *_statement(atlas, here, one)]
    text = front_matter(title=title, description=f"{title} of data redundancy in deep learning") + "\n\n".join(parts)
    return Page(here, title, f"{text}\n", source)


def _statement(atlas: Atlas, here: str, one: Statement) -> list[str]:
    rests = listed(_support(atlas, here, support) for support in one.support)
    return [
        linked(atlas, here, prose(one.statement)),
        f'<div class="atlas-support"><p class="atlas-eyebrow">Rests on</p>{rests}</div>',
    ]


def _support(atlas: Atlas, here: str, support: Support) -> str:
    sort, what = _supporting(atlas, here, support)
    note = small(linked(atlas, here, paragraph(support.note))) if support.note else ""
    return f'<span class="atlas-chip">{sort}</span> {what}{note}'


def _supporting(atlas: Atlas, here: str, support: Support) -> tuple[str, str]:
    """What sort of thing supports, and its name with a link; the bare id of what is not there."""
    known = atlas.knowledge
    if support.entry is not None:
        entry = known.entries.get(support.entry)
        name = link(here, f"techniques/{entry.id}.md", escape(entry.name)) if entry else escape(support.entry)
        return "entry", name
    if support.paper is not None:
        paper = known.papers.get(support.paper)
        if paper is None:
            return "paper", escape(support.paper)
        name = link(here, f"papers/{paper.key}.md", escape(paper.title))
        return "paper", f"{name} ({escape(short_reference(paper))})"
    if support.claim is not None:
        key, _, number = support.claim.partition("#")
        paper = known.papers.get(key)
        claim = next((c for c in paper.claims if c.id == number), None) if paper else None
        if paper is None or claim is None:
            return "claim", escape(support.claim)
        where = link(here, f"papers/{key}.md", escape(short_reference(paper)), anchor="claims")
        verdict = verdict_mark(known.judge(claim), reason=False)
        return "claim", f"{paragraph(claim.statement)} ({where}, {locator(claim.locator)}; {verdict})"
    technique, _, scenario = (support.result or "").partition("/")
    record = known.result(technique, scenario)
    if record is None or technique not in known.entries:
        return "result", escape(support.result or "")
    shown = link(here, f"techniques/{technique}.md", escape(record.title), anchor=evidence.anchor(record))
    return "measured", f"{shown} ({escape(known.entries[technique].name)}, {record.date})"


def hard_cases(atlas: Atlas) -> Page:
    """Cases that are hard to classify, by the axis on which they are hard."""
    here, title = "hard-cases.md", "Hard cases"
    found = atlas.knowledge.hard_cases
    own = (
        "Two careful readers of a paper may classify it differently. Here is what was ruled, and by which rule; the "
        "entry or paper follows the ruling until a better reason is given."
    )
    parts = [f"# {title}", OWN.format(own)]
    order = [*atlas.knowledge.axes, *sorted({c.axis for c in found} - set(atlas.knowledge.axes))]
    for axis in order:
        cases = [case for case in found if case.axis == axis]
        if cases:
            parts.append(heading(atlas.axis_name(axis), 2, axis.replace("_", "-")))
            parts += [_case(atlas, here, case) for case in cases]
    if not found:
        parts.append("None is written down yet.")
    text = front_matter(title=title, description="Rulings on cases that are hard to classify") + "\n\n".join(parts)
    return Page(here, title, f"{text}\n", "taxonomy/hard_cases.yml")


def _case(atlas: Atlas, here: str, case: HardCase) -> str:
    ruled, *others = case.terms
    known = atlas.knowledge
    decides = [
        *(link(here, f"techniques/{e}.md", escape(known.entries[e].name)) for e in case.entries if e in known.entries),
        *(
            link(here, f"papers/{p}.md", escape(short_reference(known.papers[p])), title=plain(known.papers[p].title))
            for p in case.papers
            if p in known.papers
        ),
    ]
    lines = [
        f'<div class="atlas-prose">{linked(atlas, here, paragraph(case.case), case.axis)}</div>',
        _terms(atlas, here, case.axis, ruled, others),
        f"<p>{linked(atlas, here, paragraph(case.ruling), case.axis)}</p>",
    ]
    if case.because:
        lines.append(f"<p><em>Because:</em> {linked(atlas, here, paragraph(case.because), case.axis)}</p>")
    if decides:
        lines.append(f'<p class="atlas-note">Decides {", ".join(decides)}.</p>')
    return f'<div class="atlas-case" id="{case.id}">{"".join(lines)}</div>'


def _terms(atlas: Atlas, here: str, axis: str, ruled: str, others: Sequence[str]) -> str:
    """The term that was ruled, and those that also seemed to fit."""
    also = f" <small>also fits: {', '.join(term_link(atlas, here, axis, t) for t in others)}</small>" if others else ""
    return f'<p class="atlas-ruled"><b>{term_link(atlas, here, axis, ruled)}</b>{also}</p>'
