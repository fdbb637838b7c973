"""Hand-written guides that show something generated: a line of the guide says what stands in its place."""

from __future__ import annotations

from collections import Counter

from ..knowledge.verdicts import MEANINGS
from .hosts import Family
from .markup import Html, escape
from .model import DOCS, Atlas, Page
from .parts import verdict_mark
from .templates import render

APPLY = "apply.md"
FAMILIES = "<!-- families -->"
"""The line of the guide in whose place the tables of families stand."""
EVIDENCE = "evidence.md"
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
    filled = text.replace(VERDICTS, render("verdicts.md", rows=rows))
    return [Page(EVIDENCE, "How numbers are made", filled, f"{DOCS}/{EVIDENCE}")]


def _row(atlas: Atlas, one: Family) -> tuple[Html, ...]:
    """Family, models, what the technique gives, and the versions with which it was tried."""
    models = Html(", ").join(Html("<code>{}</code>").format(name) for name in one.models)
    status = Html("refused: {}" if one.because else "{}").format(one.because or one.status)
    versions = ", ".join(atlas.material.families.tried(one))
    absent = f" (not there in {', '.join(one.not_there)})" if one.not_there else ""
    return escape(one.family), models, status, escape(f"{one.library} {versions}{absent}")
