"""Index pages of entries and axes, the pages of axes, and what pages share: filters, classifications, linked prose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape

from tools.knowledge.schema import Entry, Terms
from tools.site import evidence
from tools.site.home import anchor, plain
from tools.site.markup import escape, front_matter, heading, href, link, paragraph, scrolling, small, table
from tools.site.pages import Atlas, Page

FACETS = ("relation", "location", "exploitation", "stage", "data_kind", "adaptation")
"""Axes that the table of techniques can be filtered by."""
STATUS = {"stable": "Runs here", "draft": "Draft", "deprecated": "Deprecated"}
ROLES = {
    "introduces": "introduces it", "ancestor": "is an ancestor of it", "extends": "extends it",
    "analyses": "analyses it", "applies": "applies it",
}  # fmt: skip
"""What a paper does to an entry."""


@dataclass(frozen=True)
class Facet:
    """One choice of a filter: the name of the data attribute, its label, and value -> label of what can be chosen."""

    name: str
    label: str
    options: Mapping[str, str]


def facet_of_axis(atlas: Atlas, axis: str, used: Iterable[Mapping[str, Terms]]) -> list[Facet]:
    """The terms of an axis that some of the classifications use, in the order of the axis; none if there is no axis."""
    if axis not in atlas.knowledge.axes:
        return []
    known = atlas.knowledge.axes[axis]
    there = {term for axes in used if axis in axes for term in axes[axis]}
    return [Facet(axis, known.name, {key: term.name for key, term in known.terms.items() if key in there})]


def filter_form(noun: str, words: str, facets: Sequence[Facet]) -> str:
    """The filter of the table that follows, with the count of what it shows; hidden without JavaScript."""
    selects = "".join(
        f'<div><label for="f-{f.name}">{escape(f.label)}</label><select id="f-{f.name}" name="{f.name}">'
        '<option value="">any</option>'
        + "".join(
            f'<option value="{escape(value)}" data-label="{escape(label)}">{escape(label)}</option>'
            for value, label in f.options.items()
        )
        + "</select></div>"
        for f in facets
        if f.options
    )
    return (
        f'<form class="atlas-filter atlas-needs-js" data-atlas-filter="{noun}" role="search" '
        f'aria-label="Filter {noun}">'
        f'<div><label for="f-text">{words}</label>'
        '<input id="f-text" name="text" type="search" autocomplete="off"></div>'
        f"{selects}</form>"
        '<p class="atlas-filter-state atlas-needs-js"><span data-atlas-count role="status" aria-live="polite"></span>'
        '<button type="button" data-atlas-clear hidden>Clear the filter</button></p>'
    )


def techniques(atlas: Atlas) -> Page:
    """All entries in one table, which a script lets readers filter."""
    here = "techniques/index.md"
    shown = [axis for axis in ("relation", "location", "exploitation", "stage") if axis in atlas.knowledge.axes]
    head = ["Entry", *(escape(atlas.knowledge.axes[a].name) for a in shown), "MACs saved", "Status"]
    head_html = "".join(f'<th scope="col">{h}</th>' for h in head)
    rows = "".join(_index_row(atlas, here, e, shown) for e in atlas.entries)
    facets = [f for a in FACETS for f in facet_of_axis(atlas, a, [e.axes for e in atlas.entries])]
    there = {e.status for e in atlas.entries}
    facets.append(Facet("status", "Status", {s: name for s, name in STATUS.items() if s in there}))
    text = filter_form("entries", "Name, alias or word", facets) + scrolling(
        f'<table class="atlas-table atlas-index" data-search-exclude><thead><tr>{head_html}</tr></thead>'
        f"<tbody>{rows}</tbody></table>",
        "Table of entries",
    )
    drafts = sum(e.status == "draft" for e in atlas.entries)
    waiting = (
        f" {drafts} of them are drafts: defined, classified and with their papers, and not implemented yet."
        if drafts
        else ""
    )
    return Page(
        here, "Techniques",
        front_matter(title="Techniques", hide=["navigation", "toc"]) + "# Techniques\n\n"
        f"Every technique, system and study of the atlas.{waiting} “MACs saved” is what we measured at a loss "
        f"of at most {evidence.SMALL_LOSS_TEXT} of the baseline's quality, over all scenarios of the entry. "
        f"How they hang together is drawn under {link(here, 'relations.md', 'relations')}.\n\n{text}\n",
        "taxonomy/techniques",
    )  # fmt: skip


def _index_row(atlas: Atlas, here: str, entry: Entry, shown: Sequence[str]) -> str:
    # The map counts by the main term, and its links must lead to what it counted.
    single = {"relation", "location"}
    data = {
        a: " ".join([entry.axes[a].primary] if a in single else list(entry.axes[a])) for a in FACETS if a in entry.axes
    } | {"status": entry.status}
    words = " ".join([entry.name, *entry.aliases, entry.id, entry.summary]).lower()
    attributes = "".join(f' data-{a}="{escape(v)}"' for a, v in data.items())
    found = [(r, p) for r in atlas.records(entry.id) if (p := evidence.best_point(r))]
    saving = evidence.spread([100 * evidence.saved(r, p) for r, p in found], "\u00a0%") if found else "–"
    cells = "".join(
        f"<td>{escape(atlas.term(a, entry.axes[a].primary)) if a in entry.axes else ''}</td>" for a in shown
    )
    name = link(here, f"techniques/{entry.id}.md", escape(entry.name)) + small(escape(", ".join(entry.aliases)))
    first = f'<tr class="{entry.status}"{attributes} data-text="{escape(words)}"><th scope="row">{name}</th>{cells}'
    return f'{first}<td class="num">{saving}</td><td>{status_mark(entry)}</td></tr>'


def status_mark(entry: Entry) -> str:
    """The status as a chip."""
    return f'<span class="atlas-chip {entry.status}">{STATUS[entry.status].lower()}</span>'


def classification(atlas: Atlas, here: str, axes: Mapping[str, Terms], caption: str) -> str:
    """The terms on every axis, each with its definition on hover and a link to it."""
    rows = []
    for name, one in atlas.knowledge.axes.axes.items():
        if name not in axes:
            continue
        terms = [term_link(atlas, here, name, term) for term in axes[name]]
        more = f" <small>also {', '.join(terms[1:])}</small>" if terms[1:] else ""
        question = f"<span data-search-exclude>{escape(plain(one.question))}</span>"
        rows.append([link(here, f"axes/{name}.md", escape(one.name)), terms[0] + more, question])
    return table(["Axis", "Term", "The question"], rows, css="atlas-axes", caption=caption)


def term_link(atlas: Atlas, here: str, axis: str, term: str) -> str:
    """A term by its name, with its definition on hover, linked to its axis; just the name of an unknown one."""
    known = atlas.knowledge.axes.axes.get(axis)
    if known is None or term not in known.terms:
        return escape(term)
    one = known.terms[term]
    label = f'<abbr title="{escape(plain(one.definition))}">{escape(one.name)}</abbr>'
    return link(here, f"axes/{axis}.md", label, anchor=anchor(term))


CODE = re.compile(r"<code>((?:[a-z0-9-]|&#95;)+)</code>")


def linked(atlas: Atlas, here: str, html: str, own: str = "relation") -> str:
    """Prose in which a term, an id of an entry or a key of a paper in code leads to its page.

    A term that several axes have is that of the axis `own`, if it is there.
    """
    known = atlas.knowledge

    def lead(match: re.Match[str]) -> str:
        word = unescape(match[1])
        if word in known.entries:
            return link(here, f"techniques/{word}.md", escape(known.entries[word].name))
        if word in known.papers:
            return link(here, f"papers/{word}.md", escape(known.papers[word].title))
        order = (own, "relation", "exploitation", *known.axes)
        home = next((axis for axis in order if axis in known.axes and word in known.axes[axis].terms), None)
        if home is None:
            return match[0]
        return link(here, f"axes/{home}.md", escape(known.axes[home].terms[word].name.lower()), anchor=anchor(word))

    return CODE.sub(lead, html)


def axes(atlas: Atlas) -> Page:
    """The vocabulary: every axis with its question."""
    here, known = "axes/index.md", atlas.knowledge.axes
    rows = [
        [link(here, f"axes/{name}.md", escape(a.name)), escape(plain(a.question)), str(len(a.terms))]
        for name, a in known.axes.items()
    ]
    steps = []
    for step in known.decision_card:
        filled = ", ".join(link(here, f"axes/{a}.md", escape(known[a].name)) for a in step.axes if a in known)
        steps.append(paragraph(step.ask) + (f" → {filled}" if filled else ""))
    more = (
        f"<p>Cases on which careful readers differ are decided under {link(here, 'hard-cases.md', 'hard cases')}.</p>"
    )
    return Page(
        here, "Taxonomy",
        front_matter(title="Taxonomy") + f"# Taxonomy\n\n<p>{paragraph(known.about)}</p>\n\n"
        f"{table(['Axis', 'The question it answers', 'Terms'], rows, numeric=[2], caption='Axes')}\n\n"
        f"## What belongs here\n\n<p>{paragraph(known.scope_rule)}</p>\n\n## Decision card\n\n"
        f"The order in which to classify a technique.\n\n{listed(steps, 'ol')}\n\n{more}\n",
        "taxonomy/axes.yml",
    )  # fmt: skip


def listed(items: Iterable[str], tag: str = "ul") -> str:
    """A list of pieces of HTML."""
    return f"<{tag}>{''.join(f'<li>{item}</li>' for item in items)}</{tag}>"


def axis(atlas: Atlas, name: str) -> Page:
    """One axis: every term with its definition, question and entries."""
    here, one = f"axes/{name}.md", atlas.knowledge.axes[name]
    choice = {
        "single": "Exactly one term applies.",
        "primary": "One term decides; others may follow as secondary.",
        "multi": "All terms that apply, the main one first.",
    }[one.choice]

    def said(text: str, before: str = "", after: str = "") -> str:
        return f"<p>{before}{linked(atlas, here, paragraph(text), name)}{after}</p>"

    parts = [
        heading(one.name),
        f'<p class="atlas-lead">{escape(plain(one.question))}</p>',
        said(one.definition, after=f" {choice}"),
    ]
    if one.rule:
        parts.append(said(one.rule))
    for key, term in one.terms.items():
        parts += [heading(term.name, 2, anchor(key)), said(term.definition)]
        if term.question:
            parts.append(said(term.question, "<em>Ask:</em> "))
        if term.tie_break:
            parts.append(said(term.tie_break, "<em>Tie-break:</em> "))
        parts.append(_with_term(atlas, here, name, key))
    if one.tie_breaks:
        parts += [
            "## When two terms fit",
            listed((linked(atlas, here, paragraph(t), name) for t in one.tie_breaks), "ol"),
        ]
    if one.rulings:
        parts += ["## Rulings on hard cases", listed(linked(atlas, here, paragraph(r), name) for r in one.rulings)]
    text = front_matter(title=one.name, description=plain(one.question)) + "\n\n".join(parts) + "\n"
    return Page(here, one.name, text, "taxonomy/axes.yml")


def _with_term(atlas: Atlas, here: str, axis: str, term: str) -> str:
    """The entries that have a term, and how many papers."""
    entries = [
        link(here, f"techniques/{e.id}.md", escape(e.name)) + ("" if e.axes[axis].primary == term else " (secondary)")
        for e in atlas.with_term(axis, term)
    ]
    papers = sum(axis in p.axes and p.axes[axis].primary == term for p in atlas.papers)
    counted = f"{papers} {'paper' if papers == 1 else 'papers'}"
    if axis == "relation" and papers:
        counted = f'<a href="{href(here, "papers/index.md")}?{axis}={term}">{counted}</a>'
    parts = [f"Entries: {', '.join(entries)}." if entries else "No entry yet."]
    parts += [f"Main term of {counted}."] if papers else []
    return f"<p{'' if entries else ' class=atlas-note'}>{' '.join(parts)}</p>"
