"""Papers as CSL-JSON, the form that Zotero, pandoc and citeproc read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..knowledge.schema import Paper
from .venue import Sort, sort, venue_of

TYPES: dict[Sort, str] = {
    "preprint": "article", "web": "webpage", "article": "article-journal", "proceedings": "paper-conference",
}  # fmt: skip
OTHERS = {"literal": "others"}
"""What pandoc makes of BibTeX's `and others`; CSL-JSON has no sign of its own for a list that goes on."""


def bibliography(papers: Iterable[Paper]) -> str:
    """A CSL-JSON file."""
    return json.dumps([csl(paper) for paper in papers], indent=1, ensure_ascii=False) + "\n"


def csl(paper: Paper) -> dict[str, Any]:
    """The CSL-JSON item of a paper; only confirmed fields are there. An author without given names is a group, whose
    name is not taken apart."""
    authors: list[dict[str, str]] = [
        {"family": a.family, "given": a.given} if a.given else {"literal": a.family} for a in paper.authors
    ]
    if authors and paper.et_al:
        authors.append(OTHERS)
    address = f"https://arxiv.org/abs/{paper.ids.arxiv}" if paper.ids.arxiv else None
    fields = {
        "id": paper.key,
        "type": TYPES[sort(paper)],
        "title": " ".join(paper.title.split()),
        "author": authors,
        "issued": {"date-parts": [[paper.year]]} if paper.year else None,
        "container-title": venue_of(paper),
        "DOI": paper.ids.doi,
        "number": f"arXiv:{paper.ids.arxiv}" if paper.ids.arxiv else None,
        "URL": paper.ids.url or address,
    }
    return {name: value for name, value in fields.items() if value}
