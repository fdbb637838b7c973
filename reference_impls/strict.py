"""JSON as everything of the atlas reads it: what a reader could take for two different things is refused.

Beyond what JSON itself refuses: bytes that are not UTF-8, a key that stands twice, numbers that are not finite or that
no program of ours writes (`LARGEST`), nesting beyond `DEPTH`, and half of a surrogate pair. Control characters in texts
are for the schema to refuse, since the output of other programs may hold line breaks.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

DEPTH = 60
LARGEST = 10**18
"""No count and no measured number is larger; a 64-bit integer and every page can hold it."""
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """A text that is no JSON, or that does not say one thing. `line` and `column` are 1 where no place is known."""

    def __init__(self, why: str, text: str = "", at: int = 0) -> None:
        super().__init__(why)
        self.line, self.column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


class Twice(NotJson):
    """A text with a key that stands in an object twice."""


class TooLarge(ValueError):
    """A file larger than what was allowed."""


class _Number(ValueError):
    """A number that is not wanted: why, and as it is written."""


def loads(content: str | bytes) -> Any:
    """The data of a JSON text. Raises NotJson, and nothing else."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from error
    depth = 0
    if text.count("[") + text.count("{") > DEPTH:
        for bracket in _BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket.group(), 0)
            if depth > DEPTH:
                raise NotJson(f"nested more than {DEPTH} deep", text, bracket.start())
    try:
        data = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_none
        )
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg}", text, error.pos) from error
    except _Number as error:
        why, written = error.args
        found = re.search(rf"(?<![\w.+-]){re.escape(written)}(?![\w.])", text)
        raise NotJson(
            f"{written[:20]}{'...' * (len(written) > 20)} {why}", text, found.start() if found else 0
        ) from None
    if "\\u" in text and _HALF.search(json.dumps(data, ensure_ascii=False)):
        raise NotJson("half of a surrogate pair, which is no character")
    return data


def read(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The bytes of a regular file of at most `most` bytes; waits for nobody. A link is followed if `follow`.

    Raises: ValueError that says what is there instead; OSError.
    """
    if not follow and path.is_symlink():
        raise ValueError(f"{path.name} is no file but a link")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path.name} is no file but {_kind(mode)}")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise TooLarge(f"{path.name} is larger than {most / 2**20:g} MiB")
    return content


def _kind(mode: int) -> str:
    """What a file is that is no regular one, in words."""
    kinds = (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")
    return next((name for test, name in kinds if test(mode)), "a device")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Twice(f"the key {twice[:60]!r} stands there twice")
    return data


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > LARGEST:
        raise _Number("is larger than any number that the atlas holds", text)
    return int(text)


def _number(text: str) -> float:
    if abs(value := float(text)) > LARGEST:
        raise _Number("is larger than any number that the atlas holds", text)
    return value


def _none(text: str) -> Any:
    raise _Number("is no number of JSON", text)
