"""Index and detail pages of papers and axes, and the table of techniques."""

from __future__ import annotations

import re
from html import escape

from tools.export.bibtex import bibtex
from tools.knowledge.claims import Judgement
from tools.knowledge.schema import Claim, Entry, Locator, Paper, Setting
from tools.site import evidence
from tools.site.figures import number
from tools.site.home import anchor, card, plain
from tools.site.markup import copyable, external, front_matter, link, paragraph, scrolling, small, table
from tools.site.pages import Atlas, Page

FACETS = ("relation", "location", "exploitation", "stage", "data_kind", "adaptation")
"""Axes that the table of techniques can be filtered by."""


def techniques(atlas: Atlas) -> Page:
    """All entries in one table, which a script lets readers filter."""
    here = "techniques/index.md"
    shown = ("relation", "location", "exploitation", "stage")
    head = ["Entry", *(escape(atlas.knowledge.axes[a].name) for a in shown), "Operations saved", "Status"]
    head_html = "".join(f'<th scope="col">{h}</th>' for h in head)
    rows = "".join(_index_row(atlas, here, e, shown) for e in atlas.entries)
    selects = "".join(
        f'<div><label for="f-{a}">{escape(atlas.knowledge.axes[a].name)}</label><select id="f-{a}" name="{a}">'
        f'<option value="">any</option>{_options(atlas, a)}</select></div>'
        for a in FACETS
        if a in atlas.knowledge.axes
    )
    text = (
        '<form class="atlas-filter atlas-needs-js" data-atlas-filter role="search" aria-label="Filter entries">'
        '<div><label for="f-text">Name, alias or word</label>'
        '<input id="f-text" name="text" type="search" autocomplete="off"></div>'
        f"{selects}</form>"
        '<p class="atlas-filter-state atlas-needs-js"><span data-atlas-count role="status" aria-live="polite"></span>'
        '<button type="button" data-atlas-clear hidden>Clear the filter</button></p>'
        + scrolling(
            f'<table class="atlas-table atlas-index"><thead><tr>{head_html}</tr></thead><tbody>{rows}</tbody></table>',
            "Table of entries",
        )
    )
    return Page(
        here, "Techniques",
        front_matter(title="Techniques", hide=["toc"]) + "# Techniques\n\n"
        "Every technique, system and study of the atlas. “Operations saved” is what we measured at a loss of at most "
        f"{evidence.SMALL_LOSS_TEXT} of the baseline's quality, over all scenarios of the entry.\n\n{text}\n",
        "taxonomy/techniques",
    )  # fmt: skip


def _options(atlas: Atlas, axis: str) -> str:
    used = {t for e in atlas.entries if axis in e.axes for t in e.axes[axis]}
    terms = atlas.knowledge.axes[axis].terms
    return "".join(
        f'<option value="{t}" data-label="{escape(terms[t].name)}">{escape(terms[t].name)}</option>'
        for t in terms
        if t in used
    )


def _index_row(atlas: Atlas, here: str, entry: Entry, shown: tuple[str, ...]) -> str:
    # The map counts by the main term, and its links must lead to what it counted.
    single = {"relation", "location"}
    data = {
        a: " ".join([entry.axes[a].primary] if a in single else list(entry.axes[a])) for a in FACETS if a in entry.axes
    }
    words = " ".join([entry.name, *entry.aliases, entry.id, entry.summary]).lower()
    attributes = "".join(f' data-{a}="{escape(v)}"' for a, v in data.items())
    found = [(r, p) for r in atlas.records(entry.id) if (p := evidence.best_point(r))]
    saving = evidence.spread([100 * evidence.saved(r, p) for r, p in found], "\u00a0%") if found else "–"
    cells = "".join(
        f"<td>{escape(atlas.term(a, entry.axes[a].primary)) if a in entry.axes else ''}</td>" for a in shown
    )
    name = link(here, f"techniques/{entry.id}.md", escape(entry.name)) + small(escape(", ".join(entry.aliases)))
    first = f'<tr{attributes} data-text="{escape(words)}"><th scope="row">{name}</th>{cells}'
    return f'{first}<td class="num">{saving}</td><td>{entry.status}</td></tr>'


def axes(atlas: Atlas) -> Page:
    """The vocabulary: every axis with its question."""
    here, known = "axes/index.md", atlas.knowledge.axes
    rows = [
        [link(here, f"axes/{name}.md", escape(a.name)), escape(plain(a.question)), str(len(a.terms))]
        for name, a in known.axes.items()
    ]
    card_steps = "\n".join(
        f"{i}. {paragraph(step.ask)} "
        + (
            ("→ " + ", ".join(link(here, f"axes/{a}.md", escape(known[a].name)) for a in step.axes if a in known))
            if step.axes
            else ""
        )
        for i, step in enumerate(known.decision_card, start=1)
    )
    return Page(
        here, "Taxonomy",
        front_matter(title="Taxonomy") + f"# Taxonomy\n\n{paragraph(known.about)}\n\n"
        f"{table(['Axis', 'The question it answers', 'Terms'], rows, numeric=[2], caption='Axes')}\n\n"
        f"## What belongs here\n\n{paragraph(known.scope_rule)}\n\n## Decision card\n\n"
        f"The order in which to classify a technique.\n\n{card_steps}\n",
        "taxonomy/axes.yml",
    )  # fmt: skip


def axis(atlas: Atlas, name: str) -> Page:
    """One axis: every term with its definition, question and entries."""
    here, one = f"axes/{name}.md", atlas.knowledge.axes[name]
    choice = {
        "single": "Exactly one term applies.",
        "primary": "One term decides; others may follow as secondary.",
        "multi": "All terms that apply, the main one first.",
    }[one.choice]
    parts = [
        f"# {one.name}",
        f'<p class="atlas-lead">{escape(plain(one.question))}</p>',
        _prose(atlas, here, name, one.definition) + " " + choice,
    ]
    if one.rule:
        parts.append(_prose(atlas, here, name, one.rule))
    for key, term in one.terms.items():
        parts.append(f"## {term.name} {{#{anchor(key)}}}")
        parts.append(_prose(atlas, here, name, term.definition))
        if term.question:
            parts.append(f"*Ask:* {_prose(atlas, here, name, term.question)}")
        if term.tie_break:
            parts.append(f"*Tie-break:* {_prose(atlas, here, name, term.tie_break)}")
        entries = atlas.with_term(name, key)
        parts.append(
            "Entries: " + ", ".join(
                link(here, f"techniques/{e.id}.md", escape(e.name))
                + ("" if e.axes[name].primary == key else " (secondary)")
                for e in entries
            ) + "."
            if entries
            else '<span class="atlas-note">No entry yet.</span>'
        )  # fmt: skip
    if one.tie_breaks:
        parts += [
            "## When two terms fit",
            "\n".join(f"{i}. {_prose(atlas, here, name, t)}" for i, t in enumerate(one.tie_breaks, start=1)),
        ]
    if one.rulings:
        parts += ["## Rulings on hard cases", "\n".join(f"- {_prose(atlas, here, name, r)}" for r in one.rulings)]
    text = front_matter(title=one.name, description=plain(one.question)) + "\n\n".join(parts) + "\n"
    return Page(here, one.name, text, "taxonomy/axes.yml")


def _prose(atlas: Atlas, here: str, own: str, text: str) -> str:
    """Prose of the vocabulary, in which a term in code leads to its definition, on the axis `own` if it is there."""

    def lead(match: re.Match[str]) -> str:
        term, known = match[1], atlas.knowledge.axes.axes
        order = (own, "relation", "exploitation", *known)
        home = next((axis for axis in order if axis in known and term in known[axis].terms), None)
        if home is None:
            return match[0]
        return link(here, f"axes/{home}.md", escape(known[home].terms[term].name.lower()), anchor=anchor(term))

    return re.sub(r"`([a-z_]+)`", lead, paragraph(text))


def papers(atlas: Atlas) -> Page:
    """All papers in one table."""
    here = "papers/index.md"
    rows = [
        [
            link(here, f"papers/{p.key}.md", escape(p.title)) + small(escape(short_authors(p))),
            str(p.year or ""),
            escape(p.venue or ""),
            ", ".join(link(here, f"techniques/{e.id}.md", escape(e.name)) for e in atlas.knowledge.entries_of(p.key)),
            str(len(p.claims)) if p.claims else "",
        ]
        for p in atlas.papers
    ]
    body = (
        table(["Paper", "Year", "Venue", "Entries", "Claims"], rows, numeric=[4], caption="Papers, newest first")
        if rows
        else ""
    )
    about = "What the entries rest on. Summaries are our own; a number stands only with the place that states it."
    return Page(
        here, "Papers", front_matter(title="Papers", hide=["toc"]) + f"# Papers\n\n{about}\n\n{body}\n", "papers"
    )


def paper(atlas: Atlas, one: Paper) -> Page:
    """One paper: metadata, summary, claims with verdicts, entries, BibTeX."""
    here = f"papers/{one.key}.md"
    ids = []
    if one.ids.arxiv:
        ids.append(external(f"https://arxiv.org/abs/{one.ids.arxiv}", f"arXiv:{one.ids.arxiv}"))
    if one.ids.doi:
        ids.append(external(f"https://doi.org/{one.ids.doi}", f"doi:{one.ids.doi}"))
    if one.ids.url:
        ids.append(external(one.ids.url, "page of the paper"))
    code = [
        external(c.url, "official code" if c.official else "third-party code")
        + (f" ({escape(c.licence)})" if c.licence else "")
        for c in one.code
    ]
    year = str(one.year or "")
    when = [one.venue or "", "" if one.venue and year in one.venue else year]
    facts = [", ".join(full_name(a.family, a.given) for a in one.authors), *when]
    parts = [
        f"# {one.title}",
        f'<p class="atlas-note">{" · ".join([escape(f) for f in facts if f])}<br>{" · ".join(ids + code)}</p>',
        paragraph(one.summary),
    ]
    if one.founding:
        parts.append("One of the founding documents of the atlas.")
    if one.claims:
        rows = [(one, c, atlas.knowledge.judge(c)) for c in one.claims]
        parts += ["## Claims", claims_table(atlas, here, rows, about=True)]
    if entries := atlas.knowledge.entries_of(one.key):
        parts += ["## Entries", f'<ul class="atlas-cards">{"".join(card(atlas, here, e) for e in entries)}</ul>']
    parts += ["## Citation", copyable(bibtex(one), "the BibTeX record")]
    read = f"Bibliographic data read in {escape(one.verified.source)} on {one.verified.on}."
    parts.append(f'<p class="atlas-note">{read} Edit this page: <code>papers/{one.key}.yml</code></p>')
    text = front_matter(title=one.title, description=plain(one.summary)) + "\n\n".join(parts) + "\n"
    return Page(here, short_title(one), text, f"papers/{one.key}.yml")


def claims_table(atlas: Atlas, here: str, claims: list[tuple[Paper, Claim, Judgement]], *, about: bool = False) -> str:
    """Claims beside our results: the paper's number and ours never share a column, the verdict is computed."""
    rows = []
    for paper_, claim, verdict in claims:
        ours = "–" if verdict.value is None else number(verdict.value)
        check = claim.check
        against = ""
        if check:
            side = {"higher": " or more", "lower": " or less", None: ""}[check.better]
            target = f"{number(check.target)} ± {number(check.tolerance)}{side}"
            against = small(f"expected {target}; scenario {escape(check.scenario)}")
        setting = ", ".join(_setting(claim.setting)) if claim.setting else ""
        statement = escape(plain(claim.statement)) + small(escape(setting))
        if check and check.note:
            statement += small(f"Here: {escape(plain(check.note))}")
        if about and claim.technique in atlas.knowledge.entries:
            name = atlas.knowledge.entries[claim.technique].name
            statement += small(f"about {link(here, f'techniques/{claim.technique}.md', escape(name))}")
        stated = "–"
        if claim.quantity:
            q = claim.quantity
            beside = f", against {escape(q.baseline)}" if q.baseline else ""
            stated = f"{number(q.value)} {escape(q.unit)}" + small(escape(q.metric) + beside)
        where = locator(claim.locator) + (
            f"<br><small>seen in {escape(claim.seen_at)}</small>" if claim.seen_at else ""
        )
        if not about:
            where = (
                link(here, f"papers/{paper_.key}.md", escape(short_reference(paper_)), anchor="claims") + f"<br>{where}"
            )
        rows.append([statement, where, stated, ours + against, verdict_mark(verdict)])
    head = ["Claim, in our words", "Where", "In the paper", "Measured here", "Verdict"]
    return table(head, rows, css="atlas-claims", caption="Claims of papers beside our own results")


def _setting(setting: Setting) -> list[str]:
    values = setting.model_dump(exclude_none=True).items()
    return [f"batch {value}" if name == "batch" else str(value) for name, value in values]


def verdict_mark(judgement: Judgement) -> str:
    """A verdict with its colour and shape, and its reason."""
    word = judgement.verdict
    return f'<span class="atlas-verdict {word.replace(" ", "-")}">{escape(word)}</span>' + small(
        escape(judgement.because) if judgement.check else ""
    )


def locator(where: Locator) -> str:
    """The place in a paper: "section 4.2, table 4"."""
    return escape(", ".join(f"{kind} {value}" if kind != "section" or str(value)[0].isdigit() else str(value)
                            for kind, value in where.model_dump(exclude_none=True).items()))  # fmt: skip


def full_name(family: str, given: str | None) -> str:
    """Given names, then the family name."""
    return f"{given} {family}" if given else family


def short_authors(one: Paper) -> str:
    """First author "et al.", or the two authors."""
    names = [a.family for a in one.authors]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


def short_reference(one: Paper) -> str:
    """ "Bolya et al. 2023", or the title where the authors are not confirmed."""
    return " ".join(filter(None, (short_authors(one), str(one.year or "")))) if one.authors else short_title(one)


def short_title(one: Paper) -> str:
    """The title, cut at its colon, for menus."""
    head = one.title.split(":")[0]
    return head if len(head) <= 48 else head[:47].rsplit(" ", 1)[0] + "…"
