"""Papers as BibTeX."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from ..knowledge.schema import Author, Paper
from .venue import Sort, sort

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
} | {c: "\\" + c for c in "&%$#_"}  # fmt: skip
"""BibTeX counts braces even behind a backslash, so that a brace of a title must not stand there as such."""
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
           "\u0327": "c", "\u0328": "k", "\u0304": "=", "\u0306": "u", "\u030b": "H", "\u0307": "."}  # fmt: skip
LETTERS = {"ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "æ": r"{\ae}", "Æ": r"{\AE}", "œ": r"{\oe}", "Œ": r"{\OE}",
           "ł": r"{\l}", "Ł": r"{\L}", "å": r"{\aa}", "Å": r"{\AA}", "ı": r"{\i}", "đ": r"{\dj}", "Đ": r"{\DJ}",
           "ð": r"{\dh}", "Ð": r"{\DH}", "þ": r"{\th}", "Þ": r"{\TH}", "–": "--", "—": "---", "‘": "`", "’": "'",
           "“": "``", "”": "''", "\u00a0": "~"}  # fmt: skip
LIGATURES = frozenset({"--", "``", "''", "?`", "!`"})
"""What LaTeX would set as one sign."""
TYPES: dict[Sort, tuple[str, str]] = {
    "preprint": ("misc", "howpublished"), "web": ("misc", "howpublished"), "article": ("article", "journal"),
    "proceedings": ("inproceedings", "booktitle"),
}  # fmt: skip
"""The type of the record, and its field for the venue."""


def bibliography(papers: Iterable[Paper]) -> str:
    """A file of BibTeX records."""
    return "\n".join(bibtex(paper) for paper in papers)


def bibtex(paper: Paper) -> str:
    """The BibTeX record of a paper, with LaTeX accents; only confirmed fields are written.

    A list of authors that is not confirmed to its end stops at `and others`. A record without authors has its key in
    the field `key`, by which styles then sort it.
    """
    kind, venue = TYPES[sort(paper)]
    names = [name(author) for author in paper.authors]
    fields = {
        "title": "{" + escape(paper.title) + "}",
        "author": " and ".join([*names, *(["others"] if names and paper.et_al else [])]),
        "key": "" if names else paper.key,
        "year": str(paper.year or ""),
        venue: escape(paper.venue or ""),
        "eprint": paper.ids.arxiv or "",
        "archiveprefix": "arXiv" if paper.ids.arxiv else "",
        "doi": _address(paper.ids.doi or ""),
        "url": _address(paper.ids.url or ""),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{paper.key},", *lines, "}"]) + "\n"


def name(author: Author) -> str:
    """A name as BibTeX reads it. What it would take for several parts or several people is held by braces."""
    family = escape(author.family)
    if author.given:
        return f"{_held(family, author.family, ',')}, {_held(escape(author.given), author.given, ',')}"
    return _held(family, author.family, ", ")


def _held(latex: str, text: str, separators: str) -> str:
    parts = text.lower().split()
    apart = any(c in text.strip() for c in separators) or "and" in parts or parts == ["others"]
    return f"{{{latex}}}" if apart else latex


def _address(text: str) -> str:
    """A DOI or URL, which LaTeX packages read as it is; only what would break the record is percent-encoded."""
    return "".join(f"%{ord(c):02X}" if c in "{}\\" else c for c in text)


def escape(text: str) -> str:
    """Text for a BibTeX field: special characters escaped, accented letters as LaTeX, white space as one space."""
    out = ""
    for char in unicodedata.normalize("NFC", " ".join(text.split())):
        if char in SPECIAL:
            piece = SPECIAL[char]
        elif char in LETTERS:
            piece = LETTERS[char]
        elif ord(char) < 128:
            piece = char
        else:
            base, marks = (decomposed := unicodedata.normalize("NFD", char))[0], decomposed[1:]
            known = marks in ACCENTS and base.isascii()
            piece = f"{{\\{ACCENTS[marks]}{{{base}}}}}" if known else char
        out += f"{{}}{piece}" if out[-1:] + piece[:1] in LIGATURES else piece
    return out
