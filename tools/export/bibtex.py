"""Papers as BibTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

from ..knowledge.schema import Author, Paper
from .venue import Sort, sort, venue_of

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
} | {c: "\\" + c for c in "&%$#_"}  # fmt: skip
"""BibTeX counts braces even after a backslash, so that a brace of a title must not stand there as such."""
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
           "\u0327": "c", "\u0328": "k", "\u0304": "=", "\u0306": "u", "\u030b": "H", "\u0307": ".", "\u0323": "d",
           "\u0331": "b", "\u0326": "textcommabelow"}  # fmt: skip
LETTERS = {"ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "æ": r"{\ae}", "Æ": r"{\AE}", "œ": r"{\oe}", "Œ": r"{\OE}",
           "ł": r"{\l}", "Ł": r"{\L}", "å": r"{\aa}", "Å": r"{\AA}", "ı": r"{\i}", "ȷ": r"{\j}", "đ": r"{\dj}",
           "Đ": r"{\DJ}", "ð": r"{\dh}", "Ð": r"{\DH}", "þ": r"{\th}", "Þ": r"{\TH}", "ŋ": r"{\ng}", "Ŋ": r"{\NG}",
           "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "„": r"{\quotedblbase}",
           "‚": r"{\quotesinglbase}", "«": r"{\guillemotleft}", "»": r"{\guillemotright}", "\u00a0": "~",
           "‐": "-", "‑": "-", "…": r"{\ldots}", "¿": r"{\textquestiondown}", "¡": r"{\textexclamdown}",
           "™": r"{\texttrademark}", "®": r"{\textregistered}", "©": r"{\textcopyright}", "°": r"{\textdegree}",
           "•": r"{\textbullet}", "§": r"{\textsection}", "¶": r"{\textparagraph}", "€": r"{\texteuro}",
           "£": r"{\textsterling}", "‰": r"{\textperthousand}", "µ": r"{\textmu}", "½": r"{\textonehalf}",
           "¼": r"{\textonequarter}", "¾": r"{\textthreequarters}", "†": r"{\textdagger}",
           "‡": r"{\textdaggerdbl}"}  # fmt: skip
_SIGNS = """
    α alpha   β beta   γ gamma   δ delta   ε varepsilon   ζ zeta   η eta   θ theta   ι iota   κ kappa   λ lambda
    μ mu   ν nu   ξ xi   π pi   ρ rho   σ sigma   τ tau   υ upsilon   φ varphi   χ chi   ψ psi   ω omega   ϵ epsilon
    ϑ vartheta   ϖ varpi   ϱ varrho   ς varsigma   ϕ phi   Γ Gamma   Δ Delta   Θ Theta   Λ Lambda   Ξ Xi   Π Pi
    Σ Sigma   Υ Upsilon   Φ Phi   Ψ Psi   Ω Omega   ∆ Delta   × times   ÷ div   ± pm   ∓ mp   · cdot   ⋅ cdot
    ∗ ast   ∘ circ   ≤ le   ≥ ge   ≪ ll   ≫ gg   ≠ ne   ≈ approx   ≡ equiv   ∼ sim   ≃ simeq   ≅ cong   ∝ propto
    ∞ infty   ∂ partial   ∇ nabla   √ surd   ∑ sum   ∏ prod   ∫ int   ∈ in   ∉ notin   ∋ ni   ⊂ subset   ⊆ subseteq
    ⊃ supset   ⊇ supseteq   ∪ cup   ∩ cap   ∅ emptyset   ∀ forall   ∃ exists   ¬ neg   ∧ wedge   ∨ vee   ⊕ oplus
    ⊗ otimes   ⊙ odot   ⊥ perp   ∥ parallel   → rightarrow   ← leftarrow   ↔ leftrightarrow   ↑ uparrow
    ↓ downarrow   ⇒ Rightarrow   ⇐ Leftarrow   ⇔ Leftrightarrow   ↦ mapsto   ⋯ cdots   ⟨ langle   ⟩ rangle   ⌈ lceil
    ⌉ rceil   ⌊ lfloor   ⌋ rfloor   ℓ ell   ℜ Re   ℑ Im   ℵ aleph   ′ prime   ∖ setminus
"""
MATHS = dict(re.findall(r"(\S) (\w+)", _SIGNS)) | dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
"""What LaTeX sets as mathematics without a package -> its command, or the Latin letter that a Greek one looks like."""
RAISED = {"<super>": "textsuperscript", "<sub>": "textsubscript"}
LIGATURES = frozenset({"--", "``", "''", "?`", "!`"})
"""What LaTeX would set as one sign."""
IN_T1 = ("dj", "DJ", "dh", "DH", "th", "TH", "ng", "NG", "quotedblbase", "quotesinglbase", "guillemotleft",
         "guillemotright")  # fmt: skip
"""Commands that LaTeX's default encoding of fonts lacks, and T1, which every LaTeX has, does not."""
TYPES: dict[Sort, tuple[str, str]] = {
    "preprint": ("misc", "howpublished"), "web": ("misc", "howpublished"), "article": ("article", "journal"),
    "proceedings": ("inproceedings", "booktitle"),
}  # fmt: skip
"""The type of the record, and its field for the venue."""


def bibliography(papers: Iterable[Paper]) -> str:
    """A file of BibTeX records, a paper once, which pdfLaTeX sets as it is, without a package."""
    records = {paper.key: bibtex(paper) for paper in papers}
    text = "\n".join(records.values())
    return "\n".join(filter(None, (_preamble(text), text)))


def _preamble(text: str) -> str:
    """What LaTeX has to be told before it can set a text: where its default encoding of fonts lacks a letter; and what
    to show for a sign that no font of it has, such as a Chinese one."""
    orders = [
        rf"\ProvideTextCommandDefault{{\{name}}}{{\UseTextSymbol{{T1}}{{\{name}}}}}" for name in IN_T1
        if f"{{\\{name}}}" in text
    ]  # fmt: skip
    if r"\k{" in text:
        orders.append(r"\ProvideTextCommandDefault{\k}[1]{\UseTextAccent{T1}{\k}{#1}}")
    for char in sorted(set(re.sub(r"[\x00-\x7f]", "", text))):
        shown = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
        shown = shown if shown.isalnum() else "" if unicodedata.combining(char) else f"[U+{ord(char):04X}]"
        orders.append(rf"\expandafter\providecommand\csname u8:{char}\endcsname{{{shown}}}")
    return "\n".join(f'@preamble{{"{order}"}}' for order in orders) + "\n" if orders else ""


def bibtex(paper: Paper) -> str:
    """The BibTeX record of a paper, in LaTeX's own signs; only confirmed fields are written. To be set alone it may
    need more: see `bibliography`.

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
        venue: escape(venue_of(paper) or ""),
        "eprint": paper.ids.arxiv or "",
        "archiveprefix": "arXiv" if paper.ids.arxiv else "",
        "doi": _address(paper.ids.doi or ""),
        "url": _address(paper.ids.url or ""),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{paper.key},", *lines, "}"]) + "\n"


def name(author: Author) -> str:
    """A name as BibTeX reads it. What it would take for several parts or several people is held by braces, and so is
    an author without given names, who is a group."""
    family = escape(author.family)
    if author.given:
        return f"{_held(family, author.family)}, {_held(escape(author.given), author.given)}"
    return f"{{{family}}}"


def _held(latex: str, text: str) -> str:
    parts = text.lower().split()
    return f"{{{latex}}}" if "," in text or "and" in parts or parts == ["others"] else latex


def _address(text: str) -> str:
    """A DOI or URL, which LaTeX packages read as it is; only what would break the record is percent-encoded."""
    return "".join(quote(c) if c in "{}\\" or not c.isascii() else c for c in text)


def escape(text: str) -> str:
    """Text for a BibTeX field: special characters escaped, accented letters and signs as LaTeX, white space as one
    space. What LaTeX has no command for stays as it is."""
    out = ""
    for letter in re.findall(r".[\u0300-\u036f]*", unicodedata.normalize("NFD", " ".join(text.split()))):
        piece = _piece(letter)
        out += f"{{}}{piece}" if out[-1:] + piece[:1] in LIGATURES else piece
    return out


def _piece(letter: str) -> str:
    """LaTeX for one letter, its accents after it."""
    char = unicodedata.normalize("NFC", letter)
    if char in SPECIAL:
        return SPECIAL[char]
    if char in LETTERS:
        return LETTERS[char]
    if char == "−":
        return r"{\ensuremath{-}}"
    if name := MATHS.get(char):
        command = rf"\mathrm{{{name}}}" if len(name) == 1 else rf"\{name}"
        return rf"{{\ensuremath{{{command}}}}}"
    if char.isascii():
        return char
    kind, _, plain = unicodedata.decomposition(char).partition(" ") if len(char) == 1 else ("", "", "")
    if kind in RAISED and chr(int(plain.split()[0], 16)).isascii():
        return f"{{\\{RAISED[kind]}{{{chr(int(plain.split()[0], 16))}}}}}"
    base, mark = letter[:-1], letter[-1:]
    inner = re.sub(r"^\{(\\.*)\}$", r"\1", _piece(base)) if base else ""
    if mark not in ACCENTS or not inner.isascii() or base in SPECIAL:
        return char
    return f"{{\\{ACCENTS[mark]}{{{inner}}}}}"
