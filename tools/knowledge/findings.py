"""Findings: what is wrong, where, and what to do about it.

Every finding has a code. The families: E1xx syntax and encoding, E2xx schema and vocabulary, E3xx links between files,
E4xx completeness for the status, E5xx claims and numbers, W6xx style, E7xx the contract in the code, E8xx notebooks.
`redundancy explain CODE` prints what stands in `codes`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong. Sorts by file, line and column."""

    file: str
    """Path relative to the root of the atlas, with forward slashes."""
    line: int
    """Line, counted from 1."""
    column: int
    """Column in characters, counted from 1."""
    code: str
    """`E207`; see `codes`."""
    message: str
    """What is wrong."""
    severity: Severity = "error"
    path: str = ""
    """Where in the document: `claims[0].technique`; empty for the file itself."""
    hint: str = ""
    """What to do; empty where the message says it."""

    def text(self) -> str:
        """`file:line:col: CODE path: message`, and a line with the hint."""
        path = f"{self.path}: " if self.path else ""
        line = f"{self.file}:{self.line}:{self.column}: {self.code} {path}{self.message}"
        return f"{line}\n    hint: {self.hint}" if self.hint else line

    __str__ = text

    def github(self) -> str:
        """The finding as a workflow command, which GitHub shows beside the line in a pull request."""
        place = f"file={_property(self.file)},line={self.line},col={self.column},title={_property(self.code)}"
        message = f"{self.path}: {self.message}" if self.path else self.message
        return f"::{self.severity} {place}::{_data(f'{message} (hint: {self.hint})' if self.hint else message)}"

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain data for JSON."""
        return asdict(self)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def finding(
    code: str, file: str, message: str, *, line: int = 1, column: int = 1, path: str = "", hint: str = ""
) -> Finding:
    """A finding whose severity follows from its code: W is a warning, all else an error."""
    severity: Severity = "warning" if code.startswith("W") else "error"
    return Finding(file, line, column, code, message, severity, path, hint)


def render(findings: Iterable[Finding], form: str) -> str:
    """All findings as `text`, `json` (an array) or `github` (one workflow command a line)."""
    ordered = sorted(findings)
    if form == "json":
        return json.dumps([f.to_dict() for f in ordered], indent=1, ensure_ascii=False)
    return "\n".join(f.github() if form == "github" else f.text() for f in ordered)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "temporal_similarity"?`, or what there is, or nothing."""
    choices = sorted(set(known))
    if near := nearest(word, choices):
        return f'did you mean "{near}"?'
    return f"there are: {', '.join(choices)}" if 0 < len(choices) <= 20 else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word is most likely to mean: nearly the same, or one that begins with it; else None."""
    by_form = {_form(choice): choice for choice in sorted(set(known))}
    form = _form(word)
    close = difflib.get_close_matches(form, by_form, n=5, cutoff=0.75)
    close = [other for other in close if _same_words(form, other)]
    if not close and len(word) > 2:
        close = [other for other in by_form if other.startswith(f"{form}_")]
    return by_form[close[0]] if close else None


def _same_words(one: str, other: str) -> bool:
    """Whether the words of two names resemble each other one by one: `dilated_convolution` is no misspelt
    `delta_convolution`."""
    pairs = list(zip(one.split("_"), other.split("_"), strict=False))
    if len(pairs) != max(one.count("_"), other.count("_")) + 1:
        return True  # a word was joined or split
    return all(difflib.SequenceMatcher(None, a, b).ratio() >= 0.7 for a, b in pairs)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 finding`, `2 findings`, `3 entries`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _form(word: str) -> str:
    return word.lower().strip("“”‘’\"' ").replace("-", "_").replace(" ", "_")
