"""Index and detail pages of papers, and the table of claims that entries share with them."""

from __future__ import annotations

from collections import Counter

from tools.export.bibtex import bibtex
from tools.knowledge.claims import Judgement
from tools.knowledge.schema import Claim, Locator, Paper, Setting
from tools.site.catalogue import ROLES, Facet, classification, facet_of_axis, filter_form, linked
from tools.site.figures import number
from tools.site.home import card, plain
from tools.site.markup import (
    arxiv,
    copyable,
    doi,
    escape,
    external,
    front_matter,
    heading,
    link,
    paragraph,
    scrolling,
    small,
    table,
)  # fmt: skip
from tools.site.pages import Atlas, Page

KINDS = {
    "method": "Method", "analysis": "Analysis", "survey": "Survey", "benchmark": "Benchmark",
}  # fmt: skip
MISSING = {"authors": "all authors", "year": "the year", "venue": "the venue", "identifier": "an identifier"}
"""What a reference should have -> how a reader names it."""


def papers(atlas: Atlas) -> Page:
    """All papers in one table, which a script lets readers filter."""
    here = "papers/index.md"
    found = atlas.papers
    years = Counter(str(p.year) for p in found if p.year)
    facets = [
        Facet("year", "Year", {year: year for year in sorted(years, reverse=True)}),
        *facet_of_axis(atlas, "relation", [p.axes for p in found]),
        Facet("kind", "Kind", {k: name for k, name in KINDS.items() if any(p.kind == k for p in found)}),
        Facet("missing", "Not confirmed", {k: k for k in MISSING if any(k in p.unconfirmed for p in found)}),
    ]
    head = ["Paper", "Year", "Kind", "Relation", "Entries", "Claims"]
    head_html = "".join(f'<th scope="col"{" class=num" if h == "Claims" else ""}>{h}</th>' for h in head)
    rows = "".join(_row(atlas, here, p) for p in found)
    body = filter_form("papers", "Title, author or venue", facets) + scrolling(
        f'<table class="atlas-table atlas-index atlas-papers" data-search-exclude><thead><tr>{head_html}</tr></thead>'
        f"<tbody>{rows}</tbody></table>",
        "Table of papers",
    )
    text = f"# Papers\n\n{_confirmed(found)}\n\n{body}\n"
    return Page(here, "Papers", front_matter(title="Papers", hide=["navigation", "toc"]) + text, "papers")


def _confirmed(found: list[Paper]) -> str:
    """How much of the references is confirmed, in numbers."""
    total, claims = len(found), sum(len(p.claims) for p in found)
    have = ", ".join(
        f"<b>{sum(key not in p.unconfirmed for p in found)}</b> with {name}" for key, name in MISSING.items()
    )
    stated = sum(1 for p in found if p.claims)
    return (
        f'<p class="atlas-facts"><span><b>{total}</b> papers, newest first</span><span>confirmed: {have}</span>'
        f"<span><b>{claims}</b> claims in <b>{stated}</b> of them</span></p>"
        '<p class="atlas-note">What has not been seen in the paper itself, its proceedings or its official repository '
        "stays empty and is counted here, never guessed. Summaries are our own words.</p>"
    )


def _row(atlas: Atlas, here: str, p: Paper) -> str:
    relation = p.axes.get("relation")
    data = {
        "year": str(p.year or ""), "kind": p.kind, "missing": " ".join(p.unconfirmed),
        "relation": relation.primary if relation else "",
    }  # fmt: skip
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items() if value)
    words = " ".join([p.title, *(full_name(a.family, a.given) for a in p.authors), p.venue or "", p.key]).lower()
    who = " · ".join(filter(None, (short_authors(p) or "authors not confirmed", p.venue)))
    name = link(here, f"papers/{p.key}.md", escape(p.title)) + small(escape(who))
    entries = ", ".join(link(here, f"techniques/{e.id}.md", escape(e.name)) for e in atlas.knowledge.entries_of(p.key))
    cells = [
        str(p.year or ""),
        KINDS[p.kind],
        escape(atlas.term("relation", relation.primary)) if relation else "",
        entries,
    ]
    return (
        f'<tr{attributes} data-text="{escape(words)}"><th scope="row">{name}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + f'<td class="num">{len(p.claims) or ""}</td></tr>'
    )


def paper(atlas: Atlas, one: Paper) -> Page:
    """One paper: reference, summary, what is not confirmed, claims with verdicts, entries, classification, BibTeX."""
    here = f"papers/{one.key}.md"
    parts = [
        heading(one.title),
        f'<p class="atlas-note">{_reference(one)}</p>',
        f"<p>{linked(atlas, here, paragraph(one.summary))}</p>",
        _status(one),
    ]
    if one.claims:
        rows = [(one, c, atlas.knowledge.judge(c)) for c in one.claims]
        parts += ["## Claims", claims_table(atlas, here, rows, about=True)]
    if entries := atlas.knowledge.entries_of(one.key):
        roles = {e.id: next(link.role for link in e.papers if link.key == one.key) for e in entries}
        cards = "".join(card(atlas, here, e, note=f"The paper {ROLES[roles[e.id]]}.") for e in entries)
        parts += ["## Entries", f'<ul class="atlas-cards">{cards}</ul>']
    if one.axes:
        parts += ["## Classification", classification(atlas, here, one.axes, "Place of this paper in the taxonomy")]
    parts += ["## Citation", copyable(bibtex(one), "the BibTeX record")]
    read = f"Bibliographic data read in {escape(one.verified.source)} on {one.verified.on}."
    parts.append(f'<p class="atlas-note">{read} Edit this page: <code>papers/{one.key}.yml</code></p>')
    text = front_matter(title=one.title, description=plain(one.summary)) + "\n\n".join(filter(None, parts)) + "\n"
    return Page(here, short_title(one), text, f"papers/{one.key}.yml", str(one.year or "Year not confirmed"))


def _reference(one: Paper) -> str:
    """Authors, venue and year, then the addresses."""
    names = [full_name(a.family, a.given) for a in one.authors]
    year = str(one.year or "")
    facts = [
        ", ".join(names) + (" and others" if names and one.et_al else ""),
        one.venue or "",
        "" if one.venue and year in one.venue else year,
    ]
    places = [arxiv(one.ids.arxiv)] if one.ids.arxiv else []
    places += [doi(one.ids.doi)] if one.ids.doi else []
    places += [external(one.ids.url, "page of the paper")] if one.ids.url else []
    places += [
        external(c.url, "official code" if c.official else "third-party code")
        + (f" ({escape(c.licence)})" if c.licence else "")
        for c in one.code
    ]
    lines = [" · ".join(escape(f) for f in facts if f), " · ".join(places)]
    return "<br>".join(filter(None, lines))


def _status(one: Paper) -> str:
    """Kind of the paper, and what is not confirmed."""
    chips = [f'<span class="atlas-chip">{KINDS[one.kind]}</span>']
    if one.founding:
        chips.append('<span class="atlas-chip">founding document of the atlas</span>')
    chips += [f'<span class="atlas-chip warn">{MISSING[name]} not confirmed</span>' for name in one.unconfirmed]
    return f'<p class="atlas-chips">{"".join(chips)}</p>'


def claims_table(atlas: Atlas, here: str, claims: list[tuple[Paper, Claim, Judgement]], *, about: bool = False) -> str:
    """Claims beside our results: the paper's number and ours never share a column, the verdict is computed."""
    tried = any(verdict.check for _, _, verdict in claims)
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
        statement = paragraph(claim.statement) + small(escape(setting))
        if check and check.note:
            statement += small(f"Here: {paragraph(check.note)}")
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
        rows.append([statement, where, stated, *([ours + against, verdict_mark(verdict)] if tried else [])])
    head = ["Claim, in our words", "Where", "In the paper", *(["Measured here", "Verdict"] if tried else [])]
    caption = "Claims of papers beside our own results" if tried else "Claims of papers; none was tried here yet"
    return table(head, rows, css="atlas-claims", caption=caption)


def _setting(setting: Setting) -> list[str]:
    values = setting.model_dump(exclude_none=True).items()
    return [f"batch {value}" if name == "batch" else str(value) for name, value in values]


def verdict_mark(judgement: Judgement, *, reason: bool = True) -> str:
    """A verdict with its colour and shape, and its reason."""
    word = judgement.verdict
    mark = f'<span class="atlas-verdict {word.replace(" ", "-")}">{escape(word)}</span>'
    return mark + small(escape(judgement.because)) if reason and judgement.check else mark


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
