"""What page modules share: links and prose of a page, filters, and how papers and claims are named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import unescape

from ..knowledge.schema import Claim, Locator, Paper, Quantity, Terms, Verdict
from ..numbers import number
from .markup import Html, escape, front_matter, href, link, paragraph, prose
from .model import Atlas, Page
from .templates import render

STATUS = {"stable": "Runs here", "draft": "Draft", "deprecated": "Deprecated"}
ROLES = {
    "introduces": "introduces it", "ancestor": "is an ancestor of it", "extends": "extends it",
    "analyses": "analyses it", "applies": "applies it",
}  # fmt: skip
"""What a paper does to an entry."""
CODE = re.compile(r"<code>((?:[a-z0-9-]|&#95;)+)</code>")


@dataclass(frozen=True)
class View:
    """A page that is being written: its links are relative to it."""

    atlas: Atlas
    here: str
    """Path of the page, ends in `.md`."""

    def page(
        self, template: str, title: str, source: str, *, section: str = "", meta: Mapping[str, object] | None = None,
        **context: object,
    ) -> Page:  # fmt: skip
        """The page from its template. `title` names it in menus, `meta` is front matter beside or instead of it."""
        known = {"title": title} | dict(meta or {})
        text = render(template, view=self, atlas=self.atlas, **HELPERS, **context)
        return Page(self.here, title, f"{front_matter(**known)}{text}\n", source, section)

    def filtered(self, there: str, **wanted: str) -> Html:
        """Address of a page whose table shows what is wanted alone."""
        return href(self.here, there) + "?" + Html("&amp;".join(f"{name}={value}" for name, value in wanted.items()))

    def link(self, there: str, text: str, *, anchor: str = "", title: str = "", css: str = "") -> Html:
        """`<a>` to another page; `text` is plain, or `Html`."""
        return link(self.here, there, text, anchor=anchor, title=title, css=css)

    def of_entry(self, id_: str, anchor: str = "") -> Html:
        """Name of an entry with a link to it; the bare id of one that is not there."""
        known = self.atlas.knowledge.entries.get(id_)
        return self.link(f"techniques/{id_}.md", known.name, anchor=anchor) if known else escape(id_)

    def of_paper(self, one: Paper) -> Html:
        """Title of a paper with a link to it."""
        return self.link(f"papers/{one.key}.md", one.title)

    def of_claim(self, one: Paper, claim: Claim) -> Html:
        """Short reference of a paper with a link to one of its claims."""
        return self.link(f"papers/{one.key}.md", short_reference(one), anchor=claim.id)

    def of_axis(self, axis: str) -> Html:
        """Name of an axis with a link to it."""
        return self.link(f"axes/{axis}.md", self.atlas.axis_name(axis))

    def of_term(self, axis: str, term: str) -> Html:
        """A term by its name, with its definition on hover, linked to its axis; just the name of an unknown one."""
        known = self.atlas.knowledge.axes.axes.get(axis)
        if known is None or term not in known.terms:
            return escape(term)
        one = known.terms[term]
        label = Html('<abbr title="{}">{}</abbr>').format(plain(one.definition), one.name)
        return self.link(f"axes/{axis}.md", label, anchor=anchor(term))

    def of_terms(self, axis: str, terms: Iterable[str]) -> Html:
        """Several terms of an axis."""
        return Html(", ").join(self.of_term(axis, term) for term in terms)

    def classified(self, axes: Mapping[str, Terms]) -> list[tuple[Html, Html, Html]]:
        """(axis, terms, question) of a classification, in the order of the axes."""
        rows = []
        for name, axis in self.atlas.knowledge.axes.axes.items():
            if name in axes:
                main, *others = axes[name]
                also = Html(" <small>also {}</small>").format(self.of_terms(name, others)) if others else ""
                question = Html("<span data-search-exclude>{}</span>").format(plain(axis.question))
                rows.append((self.of_axis(name), self.of_term(name, main) + also, question))
        return rows

    def inline(self, markdown: str) -> Html:
        """Prose from strangers inside a line."""
        return paragraph(markdown)

    def linked(self, markdown: str, axis: str = "relation", *, blocks: bool = False) -> Html:
        """Prose in which a term, an id of an entry or a key of a paper in code leads to its page.

        A term that several axes have is that of `axis`, if it is there. With `blocks` it may have paragraphs and lists.
        """
        read = prose if blocks else paragraph
        return Html(CODE.sub(lambda word: self._lead(word, axis), str(read(markdown))))

    def _lead(self, match: re.Match[str], axis: str) -> str:
        known, word = self.atlas.knowledge, unescape(match[1])
        if word in known.entries:
            return self.of_entry(word)
        if word in known.papers:
            return self.of_paper(known.papers[word])
        order = (axis, "relation", "exploitation", *known.axes)
        home = next((a for a in order if a in known.axes and word in known.axes[a].terms), None)
        if home is None:
            return match[0]
        return self.link(f"axes/{home}.md", known.axes[home].terms[word].name.lower(), anchor=anchor(word))


def anchor(term: str) -> str:
    """The anchor of a term on its axis' page."""
    return term.replace("_", "-")


def plain(markdown: str) -> str:
    """Markdown as plain text for a tooltip."""
    return " ".join(markdown.replace("`", "").replace("*", "").replace("$", "").split())


FACETS = ("relation", "location", "exploitation", "stage", "data_kind", "adaptation")
"""Axes that the tables can be filtered by at once; the others unfold."""
MAIN = {"relation", "location"}
"""Axes on which the map counts by the main term; its links must lead to what it counted."""


@dataclass(frozen=True)
class Facet:
    """One choice of a filter: the name of the data attribute, its label, and value -> label of what can be chosen."""

    name: str
    label: str
    options: Mapping[str, str]
    more: bool = False
    """Whether it stands among those that a reader unfolds."""


def facet_of_axis(atlas: Atlas, axis: str, used: Iterable[Mapping[str, Terms]], *, more: bool = False) -> list[Facet]:
    """The terms of an axis that some of the classifications use, in the order of the axis; none if there is no axis."""
    if axis not in atlas.knowledge.axes:
        return []
    known = atlas.knowledge.axes[axis]
    there = {term for axes in used if axis in axes for term in axes[axis]}
    return [Facet(axis, known.name, {key: term.name for key, term in known.terms.items() if key in there}, more)]


def verdict_mark(word: Verdict) -> Html:
    """A verdict with its colour and shape."""
    return Html('<span class="atlas-verdict {}">{}</span>').format(word.replace(" ", "-"), word)


def printed(one: Quantity) -> str:
    """The number of a claim as the paper prints it."""
    return one.text.replace("-", "\u2212")


def equivalent(claim: Claim) -> str:
    """The paper's number in the unit in which ours is measured, where it is printed as another one."""
    check, one = claim.check, claim.quantity
    if check is None or one is None or check.unit is None or (check.unit, check.target) == (one.unit, one.value):
        return ""
    return f"compared as {number(check.target)} {check.unit}"


def target(claim: Claim) -> str:
    """What the check of a claim expects: "2 ± 0.2 or more"."""
    if claim.check is None:
        return ""
    side = {"higher": " or more", "lower": " or less", None: ""}[claim.check.better]
    unit = f" {claim.check.unit}" if claim.check.unit else ""
    return f"{number(claim.check.target)} ± {number(claim.check.tolerance)}{unit}{side}"


def setting(claim: Claim) -> str:
    """The setting of a claim in words."""
    values = claim.setting.model_dump(exclude_none=True).items() if claim.setting else ()
    return ", ".join(f"batch {value}" if name == "batch" else str(value) for name, value in values)


def locator(where: Locator) -> str:
    """The place in a paper: "section 4.2, table 4"."""
    return ", ".join(f"{kind} {value}" if kind != "section" or str(value)[0].isdigit() else str(value)
                     for kind, value in where.model_dump(exclude_none=True).items())  # fmt: skip


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


HELPERS = {
    one.__name__: one
    for one in (
        anchor,
        equivalent,
        locator,
        plain,
        printed,
        setting,
        short_authors,
        short_reference,
        short_title,
        target,
        verdict_mark,
    )
}
"""What the templates of pages call by name."""
