"""A strict reader for the YAML and JSON files of the atlas, which knows the line and column of every value.

It works on PyYAML's stream of events, from which PyYAML's own `compose` builds its nodes, without recursion: a file
nested a million deep is a finding like any other. Scalars follow the core schema of YAML 1.2, narrowed so that nothing
surprises: `true` and `false` are the only booleans, `null`, `~` and nothing are null, integers are decimal without
leading zeros, floats need a point or an exponent, and all else is a string. So `no`, `on`, `2024-01-02`, `1:30` and
`0777` stay the strings that they look like, and `1e-3` is a number.

A file in which nothing is odd is read by a short loop that keeps no places (`_plain`); they are looked up, by reading
the text again in full, when a finding needs one.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from reference_impls import strict

from .findings import Finding, finding

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 40
MAX_FINDINGS: Final = 50  # of one kind in one file: a file full of tabs is said to be so, not listed in full

Keys = tuple[str | int, ...]
"""Path of a value inside a document: keys and list indices."""

MAX_DIGITS = 300
"""Longest integer, which a float can still hold; a longer one is a text."""
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")
_BREAKS = "\x85\u2028\u2029"  # YAML counts these as line breaks, editors do not: positions would drift
_FORBIDDEN = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_BREAKS}\ufeff\ufffe\uffff]|\r(?!\n)")
_TAB_OR_FORBIDDEN = re.compile(f"\t+|{_FORBIDDEN.pattern}")
_CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7})( .*)?$|^={7}$", re.MULTILINE)
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_CONTROL_OR_BREAK = re.compile("[\x00-\x1f\x7f-\x9f]")
_LOADER: Any = getattr(yaml, "CLoader", yaml.Loader)


@dataclass(frozen=True)
class Place:
    """A position in a file, both counted from 1."""

    line: int = 1
    column: int = 1


@dataclass
class Places:
    """Where the values of a document stand."""

    values: dict[Keys, Place] = field(default_factory=dict)
    """Place of every value, by its path; the path `()` is the document itself."""
    keys: dict[Keys, Place] = field(default_factory=dict)
    """Place of the key of every value in a mapping."""
    raw: dict[Keys, str] = field(default_factory=dict)
    """The text of every plain scalar that was not read as a string: `2210.09460` loses its last digit as a number."""


@dataclass
class Document:
    """What a file holds, and where."""

    file: str
    data: Any = None
    tainted: set[Keys] = field(default_factory=set)
    """Values that could not be read, so that nothing more should be said about them."""
    findings: list[Finding] = field(default_factory=list)
    text: str = field(default="", repr=False)
    """The text, as far as it is UTF-8 without characters that do not belong in it."""
    readable: bool = True
    """False if nothing of the file could be read."""

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @cached_property
    def end(self) -> Place:
        """Where the text ends, as an editor sees it."""
        return Place(self.text.count("\n") + 1, len(self.text) - self.text.rfind("\n"))

    @cached_property
    def places(self) -> Places:
        """The place of everything that could be read."""
        full = Document(self.file)
        _parse_in_full(self.text, full)
        return full.places

    def add(self, code: str, message: str, place: Place | None = None, path: Keys = (), hint: str = "") -> None:
        if sum(f.code == code for f in self.findings[-MAX_FINDINGS:]) == MAX_FINDINGS:
            return
        self.findings.append(self.finding(code, message, path, place=place, hint=hint))

    def finding(
        self, code: str, message: str, path: Keys = (), *, key: bool = False, place: Place | None = None, hint: str = ""
    ) -> Finding:
        """A finding at the value of `path`, or at its key; at the nearest enclosing value if it is not in the file."""
        place = place or self.place(path, key=key)
        if self.text and place.line > self.end.line:  # a value that is absent may count as after the end
            place = self.end
        return finding(code, self.file, message, line=place.line, column=place.column, path=dotted(path), hint=hint)

    def place(self, path: Keys, *, key: bool = False) -> Place:
        """Where the value of `path` (or its key) stands; for a value that is absent, where its parent's key stands."""
        keys, values = self.places.keys, self.places.values
        if key and path in keys:
            return keys[path]
        if path in values:
            return values[path]
        while path:
            path = path[:-1]
            if path in keys:
                return keys[path]
            if path in values:
                return values[path]
        return Place()

    def place_of_text(self, path: Keys, text: str) -> Place:
        """Where `text` stands inside the value of `path`; where the value begins if its lines are folded there."""
        place = self.place(path)
        lines = self.text.split("\n")
        start = sum(len(line) + 1 for line in lines[: place.line - 1]) + place.column - 1
        at = self.text.find(text, start)
        if at < 0:
            return place
        return Place(self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at))

    def is_tainted(self, path: Keys) -> bool:
        """Whether this value, or one that holds it, could not be read."""
        return any(path[:n] in self.tainted for n in range(len(path) + 1))


def dotted(path: Keys) -> str:
    """`("claims", 0, "id")` -> `claims[0].id`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(path: Path, file: str) -> Document:
    """Read the YAML file at `path`, called `file` in findings. Never raises for what the file holds."""
    document = Document(file)
    text = _text(path, document)
    if text is not None:
        parse_yaml(text, document)
    return document


def read_json(path: Path, file: str) -> Document:
    """Read the JSON file at `path`, called `file` in findings. Never raises for what the file holds."""
    document = Document(file)
    text = _text(path, document)
    if text is None:
        return document
    try:
        strict.loads(text)
    except strict.Twice:
        pass  # found again below, with its place
    except strict.NotJson as error:
        document.readable = False
        document.add("E115", str(error), Place(error.line, error.column))
        return document
    parse_yaml(text, document)  # what is JSON is YAML, and this reader knows the places
    return document


def read_text(path: Path, file: str) -> tuple[str | None, list[Finding]]:
    """The text of a UTF-8 file, or the findings that say why there is none."""
    document = Document(file)
    return _text(path, document, characters=False), document.findings


def _text(path: Path, document: Document, *, characters: bool = True) -> str | None:
    document.readable = False
    try:
        content = strict.read(path, MAX_BYTES)
    except strict.TooLarge:
        document.add("E104", f"the file is larger than {MAX_BYTES:,} bytes")
        return None
    except (OSError, ValueError) as error:
        document.add("E101", f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return None
    if content.startswith(b"\xef\xbb\xbf"):
        hint = "save the file as UTF-8 without it; in a YAML file `redundancy fmt` removes it"
        document.add("E103", "the file starts with a byte order mark", hint=hint)
        content = content[3:]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        start = before.rfind(b"\n") + 1
        place = Place(before.count(b"\n") + 1, len(before[start:].decode("utf-8", "replace")) + 1)
        document.add("E102", f"not UTF-8: byte 0x{content[error.start]:02x}", place)
        return None
    if not _sound(text, document, characters=characters):
        return None
    document.readable = True
    return text


def _sound(text: str, document: Document, *, characters: bool) -> bool:
    """Add findings for what no text holds, whatever it says; False if there is any, line ends of Windows aside."""
    if _unfinished_merge(text, document, code=not characters):
        return False
    return not characters or _characters(text, document)


def read_yaml_text(text: str, file: str) -> Document:
    """Read YAML text with the findings that `read_yaml` has for a file of it."""
    document = Document(file)
    if _sound(text, document, characters=True):
        parse_yaml(text, document)
    return document


def _unfinished_merge(text: str, document: Document, *, code: bool) -> bool:
    """Add a finding where git left both versions of a passage; True if it did. In `code` a line of ======= alone may
    be something else."""
    if not any(sign * 7 in text for sign in "<>=|"):
        return False
    marks = [(text.count("\n", 0, mark.start()) + 1, mark.group()[0]) for mark in _CONFLICT.finditer(text)]
    marks = [(line, sign) for line, sign in marks if not code or sign in "<>"]
    for line in [line for line, sign in marks if sign == "<"] or [line for line, _ in marks[:1]]:
        message = "a merge that is not finished: two versions of a passage stand here"
        hint = "keep what is right of both, and delete the lines that begin with <<<<<<<, ======= and >>>>>>>"
        document.add("E117", message, Place(line), hint=hint)
    return bool(marks)


def _characters(text: str, document: Document) -> bool:
    """Add findings for tabs, Windows line ends and characters that do not belong in a text file; False if there are
    any of the former or the latter."""
    if (at := text.find("\r\n")) >= 0:
        place = Place(text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))
        document.add(
            "E116",
            "a line that ends as on Windows (CR LF)",
            place,
            hint="save the file with LF line ends, or run `redundancy fmt`",
        )
    if "\t" not in text and not _FORBIDDEN.search(text):
        return True
    line, start = 1, 0
    for match in itertools.islice(_TAB_OR_FORBIDDEN.finditer(text), MAX_FINDINGS):
        line += text.count("\n", start, match.start())
        start = match.start()
        place = Place(line, start - text.rfind("\n", 0, start))
        if match.group()[0] == "\t":
            document.add("E105", "a tab: indent and align with spaces", place)
        else:
            document.add("E106", f"the character U+{ord(match.group()):04X} does not belong in a text file", place)
    return False


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar."""
    if text in ("", "~", "null"):
        return None
    if text == "true":
        return True
    if text == "false":
        return False
    if text[0] in "+-.0123456789":
        if _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
            return int(text)
        if _FLOAT.fullmatch(text) and abs(value := float(text)) != float("inf"):
            return value
    return text


@dataclass
class _Open:
    """A collection that is being read."""

    data: Any
    path: Keys
    key: str | None = None
    seen: set[str] = field(default_factory=set)
    ignored: bool = False
    """Below a duplicate key or an unreadable one: read to the end, kept nowhere."""
    is_key: bool = False


def parse_yaml(text: str, document: Document) -> None:
    """Fill `document` from YAML text."""
    document.text = text
    try:
        document.data = _plain(text)
    except (_OddError, yaml.YAMLError, ValueError):
        _parse_in_full(text, document)


def _parse_in_full(text: str, document: Document) -> None:
    """Fill `document` with data, places and findings."""
    document.text, document.places = text, Places()
    try:
        _parse(text, document)
    except yaml.MarkedYAMLError as error:
        problem, context = _place_of(error.problem_mark), _place_of(error.context_mark)
        at_end = problem is not None and problem.line >= document.end.line  # then it matters where it began
        place = context if context and (at_end or problem is None) else problem or Place()
        message = f"not YAML: {' '.join(filter(None, (error.context, error.problem)))}"
        begun = f"; what is being read begins on line {context.line}" if context and context.line < place.line else ""
        document.readable = False
        document.add("E107", message, place, hint=_guess(text, place) + begun)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        document.readable = False
        document.add("E107", f"not YAML: {' '.join(str(error).split())}")


def _place_of(mark: Any) -> Place | None:
    return Place(mark.line + 1, mark.column + 1) if mark else None


class _OddError(Exception):
    """The text holds something about which there may be a finding."""


def _plain(text: str) -> Any:
    """The data of YAML text. Raises _OddError, or an error of the parser, if it has to be read in full."""
    parser = _LOADER(text)
    next_event: Callable[[], Any] = parser.get_event
    try:
        next_event()  # the start of the stream
        start = next_event()
        if type(start) is not yaml.DocumentStartEvent or start.version or start.tags:
            raise _OddError
        data = _plain_value(next_event(), next_event, 1)
        next_event()  # the end of the document
        if data is None or type(next_event()) is not yaml.StreamEndEvent:
            raise _OddError
        return data
    finally:
        parser.dispose()


def _plain_value(event: Any, next_event: Callable[[], Any], depth: int) -> Any:
    kind = type(event)
    if kind is yaml.AliasEvent or event.anchor is not None or event.tag is not None or depth > MAX_DEPTH:
        raise _OddError
    if kind is yaml.ScalarEvent:
        if not event.style:
            return scalar(event.value)
        if _CONTROL.search(event.value):
            raise _OddError
        return event.value
    if kind is yaml.SequenceStartEvent:
        items = []
        while type(event := next_event()) is not yaml.SequenceEndEvent:
            items.append(_plain_value(event, next_event, depth + 1))
        return items
    data: dict[str, Any] = {}
    while type(event := next_event()) is not yaml.MappingEndEvent:
        if type(event) is not yaml.ScalarEvent or event.anchor is not None or event.tag is not None:
            raise _OddError
        key = sys.intern(event.value)  # a large base has few different keys, each in thousands of files
        if key in data or not key or key == "<<" or _CONTROL_OR_BREAK.search(key):
            raise _OddError
        data[key] = _plain_value(next_event(), next_event, depth + 1)
    return data


def _guess(text: str, place: Place) -> str:
    """What a syntax error most often means, from the line that it is on."""
    lines = text.split("\n")
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if re.search(r"(?:^|[:\[{,-] ?)\s*[“”„‘’]", line):
        return "“ and ” are no quotes of YAML: write straight ones"
    if ": " in line.strip().removeprefix("- ").partition(": ")[2]:
        return "a text that holds `: ` needs quotes, or its own lines below `>-`"
    if re.search(r"[:-] [@`%&*!|>{\[]", line):
        return "a text that starts with one of @ ` % & * ! | > { [ needs quotes"
    if "\\" in line and '"' in line:
        return "a backslash inside double quotes starts an escape: use single quotes for LaTeX"
    return "look at the indentation and the quotes of this line and of the one before"


def events(text: str) -> Iterator[Any]:
    """The events of PyYAML's parser for a text; yaml.YAMLError where it is not YAML."""
    return iter(yaml.parse(text, Loader=_LOADER))


def _parse(text: str, document: Document) -> None:
    stack: list[_Open] = []
    documents = 0
    for event in events(text):
        mark: Any = event.start_mark
        place = Place(mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                document.add("E111", "a second document starts here", place)
                return
            if event.version or event.tags:
                document.add("E110", "a directive (%YAML or %TAG)", place)
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            closed = stack.pop()
            if stack and not closed.is_key:
                stack[-1].key = None
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        top = stack[-1] if stack else None
        if top is not None and isinstance(top.data, dict) and top.key is None:
            _key(event, top, place, document, stack)
        else:
            _value(event, top, place, document, stack)
        if len(stack) > MAX_DEPTH:
            document.readable = False
            document.add("E112", f"nested more than {MAX_DEPTH} deep", place)
            return
    if document.data is None and not document.findings:
        document.readable = False
        document.add("E114", "the file is empty")


def _odd(event: Any, path: Keys, place: Place, document: Document) -> None:
    """Findings for what YAML allows on any node and the atlas does not."""
    if isinstance(event, yaml.AliasEvent):
        document.add("E109", f"the alias *{event.anchor}", place, path)
        document.tainted.add(path)
        return
    if event.anchor is not None:
        document.add("E109", f"the anchor &{event.anchor}", place, path)
    if event.tag is not None:
        document.add("E110", f"the tag {event.tag}", place, path)
        document.tainted.add(path)


def _key(event: Any, top: _Open, place: Place, document: Document, stack: list[_Open]) -> None:
    """Take the key of the next value of a mapping."""
    if not isinstance(event, yaml.ScalarEvent):
        _odd(event, top.path, place, document)
        document.add("E113", "a key must be plain text, not a list or a mapping", place, top.path)
        document.tainted.add(top.path)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open([], (*top.path, "?"), ignored=True, is_key=True))
        top.key = "?"
        return
    key = event.value
    path = (*top.path, key)
    _odd(event, path, place, document)
    if key == "<<" and not event.style:
        document.add("E109", "the merge key <<", place, path)
        document.tainted.add(top.path)
    elif not key or _CONTROL.search(key) or "\n" in key:
        document.add("E113", "a key must be plain text on one line", place, top.path)
    top.key = key
    if key in top.seen:
        first = document.places.keys.get(path, Place())
        document.add(
            "E108",
            f'the key "{key}" stands here for the second time',
            place,
            path,
            f"the first is on line {first.line}",
        )
        return
    top.seen.add(key)
    if not top.ignored:
        document.places.keys[path] = place


def _value(event: Any, top: _Open | None, place: Place, document: Document, stack: list[_Open]) -> None:
    """Take a value: of the document, of a list, or of the key that came before."""
    path: Keys = ()
    if top is not None:
        path = (*top.path, len(top.data) if isinstance(top.data, list) else str(top.key))
    places = document.places
    ignored = top is not None and (top.ignored or path in places.values)
    if not ignored:
        _odd(event, path, place, document)
        places.values[path] = place
    data: Any = None
    if isinstance(event, yaml.ScalarEvent):
        plain = not event.style  # None from the parser in Python, "" from the one in C
        data = scalar(event.value) if plain else event.value
        if not ignored and not isinstance(data, str):
            places.raw[path] = event.value
        if not plain and _CONTROL.search(event.value):
            document.add(
                "E106",
                "a backslash escape in double quotes made a control character of this text",
                place,
                path,
                "use single quotes or a block (`|`, `>-`) for LaTeX: there a backslash is a backslash",
            )
    elif isinstance(event, yaml.SequenceStartEvent):
        data = []
    elif isinstance(event, yaml.MappingStartEvent):
        data = {}
    if top is None:
        document.data = data
    elif isinstance(top.data, list):
        top.data.append(data)
    elif not ignored:
        top.data[top.key] = data
    if isinstance(event, yaml.CollectionStartEvent):
        stack.append(_Open(data, path, ignored=ignored))
    elif top is not None and isinstance(top.data, dict):
        top.key = None
