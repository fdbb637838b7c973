"""Texts of the knowledge: finding them, and what in them must not reach a page."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

from .findings import Finding
from .latex import MATH, latex_problem
from .reader import Document, Keys

_CODE = re.compile(r"^```.*?^```[^\S\n]*$|(?<![\\`])(`+)(?!`)[^\n]*?[^`\n]\1(?!`)", re.MULTILINE | re.DOTALL)
_OPENING, _CLOSING = "“„‟«‘‚", "”“»’"
_WORD = re.compile(r"\w+")
_LATIN = re.compile(r"[A-Za-z]")
_OTHER_ALPHABET = re.compile(
    "[\u0370-\u03cf\u0400-\u052f\u0531-\u0586\u13a0-\u13ff]"
)  # Greek, Cyrillic, Armenian, Cherokee
_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\u3164]")
_MARKUP = re.compile(r"[<\[$&]")
_HTML = re.compile(r"<(?!https?://|mailto:)[A-Za-z/!?]")
_DESTINATION = re.compile(r"\]\(\s*<?([^)>\s]*)|^[ ]{0,3}\[[^\]\n]+\]:\s*<?(\S+)|<([A-Za-z][\w+.-]*:)", re.MULTILINE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_REMOTE_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?\s*(https?:)?//", re.IGNORECASE)


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def texts(data: Any, path: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text inside plain data, with its path."""
    stack: list[tuple[Keys, Any]] = [(path, data)]
    while stack:
        path, data = stack.pop()
        if isinstance(data, str):
            yield path, data
        elif isinstance(data, dict):
            stack.extend(((*path, key), value) for key, value in data.items())
        elif isinstance(data, (list, tuple)):
            stack.extend(((*path, n), value) for n, value in enumerate(data))


def quoted_wrongly(document: Document) -> Iterator[Finding]:
    """A finding for every key and every value around which curly quotes stand where YAML's own were meant.

    “Memo” Functions is a title, and “2210.09461” is no id: there the quotes stand around the whole of it, or the second
    of them is elsewhere, such as after a comma that ended the item.
    """
    if not any(sign in document.text for sign in _OPENING + _CLOSING):
        return
    message = "curly quotes, which are part of the text and quote nothing"
    for path, text in texts(document.data):
        key = path[-1] if path else 0
        if isinstance(key, str) and key[:1] in _OPENING:
            yield document.finding("E118", message, path, key=True, hint=f"write: {key.strip(_OPENING + _CLOSING)}")
        if _is_wrapped(text) and _style(document, path) not in "\"'|>":
            hint = f'write straight ones, or none: "{one_line(text).strip(_OPENING + _CLOSING)}"'
            yield document.finding("E118", message, path, hint=hint)


def _is_wrapped(text: str) -> bool:
    opened, closed = text.count("“"), text.count("”")
    whole = text[:1] in _OPENING and text[-1:] in f"{_CLOSING}“" and text[1:-1].count("“") == 0
    half = opened != closed and (text[:1] == "“" or text[-1:] == "”") and "„" not in text
    return (whole or half) and len(text) > 1


def _style(document: Document, path: Keys) -> str:
    """The first character of a value as it was written."""
    place = document.place(path)
    return document.text.split("\n")[place.line - 1][place.column - 1 : place.column] or " "


def lists(data: Any, path: Keys = ()) -> Iterator[tuple[Keys, list[Any]]]:
    """Every list inside plain data, with its path."""
    if isinstance(data, list):
        yield path, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from lists(value, (*path, key))


class TextProblem(NamedTuple):
    """Something in a text that must not reach a page."""

    code: str
    message: str
    hint: str
    at: str
    """The piece of the text that is wrong."""


def text_problems(text: str) -> Iterator[TextProblem]:
    """Everything in a text that must not reach a page."""
    if not text.isascii():
        for word in _WORD.findall(text):
            if (odd := _OTHER_ALPHABET.search(word)) and _LATIN.search(word):
                shown = f"U+{ord(odd.group()):04X} ({unicodedata.name(odd.group(), 'no name').lower()})"
                yield TextProblem("E213", f'"{word}" holds {shown}', "type the word again", word)
        if odd := _INVISIBLE.search(text):
            message = f"the invisible character U+{ord(odd.group()):04X}"
            yield TextProblem("E213", message, "type the word again", odd.group())
    if not _MARKUP.search(text):
        return
    if (at := text.lower().find("[unverified]")) >= 0:
        message = "marked [unverified]: such a statement does not enter the atlas"
        yield TextProblem("E506", message, "verify it, or leave it out", text[at : at + 12])
    bare = _CODE.sub("", text)
    if (match := _HTML.search(bare)) is not None:
        shown = bare[match.start() : match.start() + 20].split("\n")[0]
        hint = "write Markdown; put code in backticks, and a space or \\lt for `less than` in formulas"
        yield TextProblem("E210", f'raw HTML: "{shown}"', hint, shown)
    for match in _DESTINATION.finditer(bare):
        target = re.sub(r"[\x00-\x20\\]", "", html.unescape(next(filter(None, match.groups()), "")))
        scheme = _SCHEME.match(target)
        if scheme and scheme.group(1).lower() not in ("http", "https", "mailto"):
            hint = "link to http, https or mailto"
            yield TextProblem("E210", f"a link to {scheme.group(1)}:", hint, match.group())
    if (match := _REMOTE_IMAGE.search(bare)) is not None:
        message = "an image from elsewhere: no request of a reader leaves the site"
        yield TextProblem("E210", message, "link to it", match.group())
    for match in MATH.finditer(bare):
        if wrong := latex_problem(match[1] or match[2]):
            hint = "write it in plain LaTeX, without packages"
            yield TextProblem("E214", f"a formula that the site cannot show: {wrong}", hint, match.group())
    if len(re.findall(r"(?<!\\)\$", bare)) % 2:
        message = "an odd number of dollar signs: a formula is not closed"
        yield TextProblem("W603", message, "write a real dollar sign as \\$", "$")
