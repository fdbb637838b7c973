"""Papers as BibTeX."""

from __future__ import annotations

import re
import unicodedata

from tools.knowledge.schema import Paper

SPECIAL = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: "\\" + c for c in "&%$#_"
}
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
           "\u0327": "c", "\u0328": "k", "\u0304": "=", "\u0306": "u", "\u030b": "H", "\u0307": "."}  # fmt: skip
LETTERS = {"ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "æ": r"{\ae}", "Æ": r"{\AE}", "ł": r"{\l}", "Ł": r"{\L}",
           "å": r"{\aa}", "Å": r"{\AA}", "ı": r"{\i}", "–": "--", "—": "---", "’": "'", "“": "``",
           "”": "''"}  # fmt: skip


def bibtex(paper: Paper) -> str:
    """The BibTeX record of a paper, in ASCII with LaTeX accents; only confirmed fields are written."""
    arxiv_only = paper.venue is None or paper.venue.lower().startswith("arxiv")
    journal = bool(
        paper.venue
        and re.search(r"\b(journal|transactions|trans\.|surveys|letters|magazine|tmlr|jmlr)\b", paper.venue, re.I)
    )
    kind = "misc" if arxiv_only else "article" if journal else "inproceedings"
    fields = {
        "title": "{" + escape(paper.title) + "}",
        "author": " and ".join(escape(f"{a.family}, {a.given}" if a.given else a.family) for a in paper.authors),
        "year": str(paper.year or ""),
        {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}[kind]: escape(paper.venue or ""),
        "eprint": paper.ids.arxiv or "",
        "archiveprefix": "arXiv" if paper.ids.arxiv else "",
        "doi": paper.ids.doi or "",
        "url": paper.ids.url or "",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{paper.key},", *lines, "}"]) + "\n"


def escape(text: str) -> str:
    """Text for a BibTeX field: special characters escaped, accented letters as LaTeX."""
    out: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        if char in SPECIAL:
            out.append(SPECIAL[char])
        elif char in LETTERS:
            out.append(LETTERS[char])
        elif ord(char) < 128:
            out.append(char)
        else:
            base, marks = (decomposed := unicodedata.normalize("NFD", char))[0], decomposed[1:]
            known = marks in ACCENTS and base.isascii()
            out.append(f"{{\\{ACCENTS[marks]}{{{base}}}}}" if known else char)
    return "".join(out)
