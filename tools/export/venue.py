"""What sort of publication a paper is, read off its venue: BibTeX and CSL each have their own words for it."""

from __future__ import annotations

import re
from typing import Literal

from ..knowledge.schema import Paper

Sort = Literal["preprint", "web", "article", "proceedings"]

WORDS = (
    r"journal|transactions|trans\.|surveys|letters|magazine|pattern recognition|neurocomputing|ieee (access|tc|micro)"
    r"|proceedings of the ieee(?!/)|[tj]mlr|tacl|ijcv|t?pami|tcsvt|tcad|tnnls|tip|tmm|jssc|jstsp|jetcas|csur"
)
JOURNAL = re.compile(rf"\b({WORDS})\b|^(nature|science)\b|\d\s?\(\d+\)", re.IGNORECASE)
"""Words and abbreviations of journals, or a volume with its issue."""
PREPRINT = re.compile(r"^(arxiv|corr\b|preprint|openreview)", re.IGNORECASE)


WEB = re.compile(r"^(github|gitlab|zenodo|hugging face|blog)\b", re.IGNORECASE)


def sort(paper: Paper) -> Sort:
    """A preprint as long as no venue is confirmed; proceedings where the venue does not look like anything else."""
    if paper.venue is None or PREPRINT.match(paper.venue):
        return "preprint"
    if WEB.match(paper.venue):
        return "web"
    return "article" if JOURNAL.search(paper.venue) else "proceedings"


def venue_of(paper: Paper) -> str | None:
    """The venue without the year of the paper, which has a field of its own: `ICLR 2023` -> `ICLR`."""
    if not paper.venue or not paper.year:
        return paper.venue
    year = rf"(?:{paper.year}|[’']{paper.year % 100:02})(?!\d)"
    bare = re.sub(rf"\s*\({year}\)|,?\s*(?<![\w.:/-]){year}(?![\w.:/(-])|(?<=[A-Za-z]){year}$", "", paper.venue)
    return " ".join(bare.split()).strip(" ,;") or paper.venue
