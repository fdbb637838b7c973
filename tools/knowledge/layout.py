"""The canonical layout of the YAML files: what `redundancy fmt` does, and how the tools write files.

Keys come in the order of the schema, axes in that of `taxonomy/axes.yml`; lines have at most 120 characters, blocks are
indented by 2. What was written by hand stays as far as it can: the style of every scalar, flow (`{a: b}`) as long as it
fits on its line, the breaks of prose, one blank line where there were some, and every comment with its key.

The strict reader alone decides what a file says: it reads the text before and after, and a layout that would change
the data or lose a comment is refused.
"""

from __future__ import annotations

import itertools
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from . import editor
from .findings import Finding, finding
from .reader import Document, events, read_yaml, read_yaml_text, scalar
from .schema import Axes, Terms

WIDTH: Final = 120
INDENT: Final = 2
SHORT: Final = 40
"""Longest text in a list that is written as `[a, b]` where the tools choose the style."""
_UNPRINTABLE = re.compile("[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_PLAIN = re.compile(r"[A-Za-z0-9À-ɏ($./+~]([^:#\n]|:(?! |$)|(?<! )#)*")
_LOOKS_TYPED = re.compile(
    r"(?i)[-+.]?[0-9][-+0-9.,:_eExXoOtTzZa-fA-F]*|true|false|null|yes|no|on|off|y|n|~|\.(inf|nan)"
)
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_MENDED: Final = ("E103", "E116")
"""Findings that the layout does away with: a byte order mark, line ends of Windows."""
_SINGLE_SPACE = re.compile(r"(?<=[^ \n]) (?=[^ \n])")


class Refused(Exception):
    """A text that cannot be laid out, with the findings that say why."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(f.text() for f in findings))
        self.findings = findings


def layout(text: str, file: str, axes: Axes) -> str:
    """The text of a file in the canonical layout; `file` is its path relative to the root of the atlas.

    Raises Refused for a text with findings of the families E1xx.
    """
    text = _mended(text)
    before = _read(text, file)
    parsed = _Parser(text).parse()
    laid_out = _write(parsed, file, axes)
    after = _read(laid_out, file)
    lost = parsed.comments - _Parser(laid_out).parse().comments
    if repr(_sorted(after.data)) != repr(_sorted(before.data)) or lost:
        message = "the layout would change what the file says; it is left as it is"
        raise Refused([finding("E107", file, message, hint="simplify the way in which this file is written")])
    return laid_out


@dataclass(frozen=True)
class Laid:
    """A file that was looked at."""

    file: str
    text: str | None = None
    """Its text in the layout, if it has another one now."""
    findings: tuple[Finding, ...] = ()
    """Why it is left as it is."""


def files(root: Path, paths: Iterable[Path] = ()) -> list[str]:
    """The YAML files of the knowledge below the given files and folders, relative to the root; all of them by default.

    Raises FileNotFoundError for a path that is not there, ValueError for a file that is none of the knowledge.
    """
    chosen: set[str] = set()
    for path in [p.resolve() for p in paths] or [root / "taxonomy", root / "papers"]:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        below = path.rglob("*.yml") if path.is_dir() else [path]
        named = [p.relative_to(root).as_posix() for p in below if p.is_relative_to(root)]
        known = [file for file in named if editor.schema_name(file)]
        if not path.is_dir() and not known:
            raise ValueError(f"{path} is no YAML file of taxonomy/ or papers/")
        chosen.update(known)
    return sorted(chosen)


def look(root: Path, names: Iterable[str], axes: Axes) -> Iterator[Laid]:
    """What the layout makes of each of these files; nothing is written."""
    for file in names:
        document = read_yaml(root / file, file)
        findings = [f for f in document.findings if f.code.startswith("E1") and f.code not in _MENDED]
        if findings:
            yield Laid(file, findings=tuple(findings))
            continue
        text = (root / file).read_bytes().decode("utf-8")
        try:
            result = layout(text, file, axes)
        except Refused as refused:
            yield Laid(file, findings=tuple(refused.findings))
        else:
            yield Laid(file, result if result != text else None)


def dump(data: Mapping[str, Any], file: str, axes: Axes, *, notes: Sequence[str] = ()) -> str:
    """Plain data as the text of the file `file`, with the line for editors; `notes` are comments after its last key.

    Raises ValueError for what no file of the atlas may hold: control characters, numbers without a finite value.
    """
    tree = _collection(data, flow=False)
    tree.after = [f"# {line}".rstrip() for line in notes]
    return _write(_Parsed(tree, [editor.modeline(file)]), file, axes)


def document(data: Mapping[str, Any]) -> str:
    """Plain data as the text of a YAML file that is none of the knowledge."""
    return _write(_Parsed(_collection(data, flow=False)), "", None)


def put(text: str, file: str, key: str, value: Any, axes: Axes) -> str:
    """The text of a file with `value` as that of its `key`, laid out.

    Raises Refused for a text with findings of the families E1xx.
    """
    text = _mended(text)
    _read(text, file)
    parsed = _Parser(text).parse()
    owner = next((item for item in parsed.root.items if item.key is not None and item.key.value == key), None)
    if owner is None:
        parsed.root.items.append(_Item(_node(value), _Scalar(key)))
    else:
        owner.value = _node(value)
    return _write(parsed, file, axes)


def append(text: str, file: str, key: str, item: Mapping[str, Any], axes: Axes) -> str:
    """The text of a file with `item` added to the list under `key`, laid out.

    Raises Refused for a text with findings of the families E1xx, TypeError where `key` holds no list.
    """
    text = _mended(text)
    _read(text, file)
    parsed = _Parser(text).parse()
    new = _Item(_node(dict(item)))
    for owner in parsed.root.items:
        if owner.key is not None and owner.key.value == key:
            if not isinstance(owner.value, _Collection) or owner.value.mapping:
                raise TypeError(f"{file}: {key} is no list")
            owner.value.items.append(new)
            owner.value.flow = False
            break
    else:
        parsed.root.items.append(_Item(_Collection(False, False, [new]), _Scalar(key)))
    return _write(parsed, file, axes)


def _mended(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read(text: str, file: str) -> Document:
    document = read_yaml_text(text, file)
    faults = [f for f in document.findings if f.code.startswith("E1")]
    if not faults and not isinstance(document.data, dict):
        faults = [document.finding("E203", "a file of the atlas holds a mapping (key: value)")]
    if faults:
        raise Refused(faults)
    return document


def _sorted(data: Any) -> Any:
    """The same data whatever the order of its keys."""
    if isinstance(data, dict):
        return {key: _sorted(data[key]) for key in sorted(data)}
    return [_sorted(item) for item in data] if isinstance(data, list) else data


# --------------------------------------------------------------------------------------------------------------------
# The tree of a text, with the way in which everything was written


@dataclass
class _Scalar:
    value: str
    style: str = ""
    """Empty for a plain one, else its first character."""
    source: str | None = None
    """As it was written; None if the style is free."""
    base: int = 0
    """Column of the collection that holds it."""


@dataclass
class _Collection:
    mapping: bool
    flow: bool
    items: list[_Item] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    """Comments after the last item."""
    column: int = 0
    indentless: bool = False
    """A list whose dashes stand in the column of its key."""


@dataclass
class _Item:
    value: _Scalar | _Collection
    key: _Scalar | None = None
    before: list[str] = field(default_factory=list)
    """Comments and blank lines (empty) above it."""
    comment: str = ""
    """The comment on its line."""


@dataclass
class _Parsed:
    root: _Collection
    head: list[str] = field(default_factory=list)
    """Comments at the top of the file, the line for editors first."""
    comments: Counter[str] = field(default_factory=Counter)


@dataclass
class _Open:
    node: _Collection
    owner: _Item | None
    key: _Scalar | None = None


class _Parser:
    """Reads a text without findings into a tree."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.line_starts = {0, *(m.end() for m in re.finditer("\n", text))}
        self.starts = [0, *(m.end() for m in re.finditer("\n", text)), len(text)]
        self.stack: list[_Open] = []
        self.pending: list[tuple[int, str]] = []
        self.last: _Item | None = None
        self.parsed = _Parsed(_Collection(True, False))

    def parse(self) -> _Parsed:
        at = 0
        for event in events(self.text):
            if isinstance(event, (yaml.DocumentStartEvent, yaml.DocumentEndEvent)):
                continue
            start, end = self._index(event.start_mark), self._index(event.end_mark)
            if start > at:
                self._gap(at, start)
            at = max(at, end)
            if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                self._close()
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, self.text[start:end])
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
        self._gap(at, len(self.text))
        self.parsed.root.after += _lines(self.pending)
        return self.parsed

    def _index(self, mark: Any) -> int:
        return int(min(self.starts[min(mark.line, len(self.starts) - 1)] + mark.column, len(self.text)))

    def _gap(self, start: int, end: int) -> None:
        """What stands between two tokens: indicators, blank lines and comments."""
        in_flow = bool(self.stack) and self.stack[-1].node.flow
        lines = self.text[start:end].split("\n")
        for n, line in enumerate(lines):
            before, sign, _ = line.partition("#")
            own_line = n > 0 or start in self.line_starts
            if sign:
                comment = line[len(before) :].rstrip()
                self.parsed.comments[comment] += 1
                if (own_line and not before.strip()) or "-" in before or self.last is None:
                    self.pending.append((len(before), comment))
                elif self.last.comment:
                    self.last.before.append(comment)
                else:
                    self.last.comment = comment
            elif own_line and not line.strip() and n < len(lines) - 1 and not in_flow:
                self.pending.append((0, ""))

    def _item(self, value: _Scalar | _Collection, key: _Scalar | None) -> _Item:
        item = _Item(value, key)
        if key is None:
            item.before = self._take()
        self.last = item
        return item

    def _take(self) -> list[str]:
        lines, self.pending = _lines(self.pending), []
        return lines

    def _scalar(self, event: yaml.ScalarEvent, source: str) -> None:
        style = str(event.style or "")
        top = self.stack[-1]
        node = _Scalar(event.value, style, source, top.node.column)
        if top.node.mapping and top.key is None:
            self._key(top, node)
            return
        self._value(node)
        if style in ("|", ">") and self.last is not None:
            header = source.partition("\n")[0]
            _, sign, comment = header.partition("#")
            if sign:
                self.parsed.comments[f"#{comment}".rstrip()] += 1
                self.last.comment = f"#{comment}".rstrip()
            if source.endswith("\n\n"):
                self.pending.append((0, ""))

    def _key(self, top: _Open, node: _Scalar) -> None:
        top.key = node
        item = _Item(_Scalar("", "", ""), node)
        if top.node is self.parsed.root and not top.node.items:
            lines = self._take()
            lines = lines[lines[:1] == [""] :]
            last_blank = max((n for n, line in enumerate(lines) if not line), default=len(lines))
            self.parsed.head, item.before = lines[:last_blank], lines[last_blank:]
        else:
            item.before = self._take()
        top.node.items.append(item)
        self.last = item

    def _value(self, node: _Scalar | _Collection) -> _Item:
        top = self.stack[-1]
        if top.key is not None:
            item = top.node.items[-1]
            item.value, top.key = node, None
            self.last = item
        else:
            item = self._item(node, None)
            top.node.items.append(item)
        return item

    def _open(self, event: Any) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        node = _Collection(mapping, bool(event.flow_style), column=event.start_mark.column)
        if not self.stack:
            self.parsed.root = node
            node.flow = False
            self.stack.append(_Open(node, None))
            return
        parent = self.stack[-1].node
        node.indentless = not mapping and not node.flow and parent.mapping and parent.column == node.column
        if node.flow:
            node.column = parent.column
        self.stack.append(_Open(node, self._value(node)))

    def _close(self) -> None:
        closed = self.stack.pop()
        node = closed.node
        count = len(self.pending) if node.flow else 0
        if not node.flow and not node.indentless and self.stack:
            deep = [n for n, (column, line) in enumerate(self.pending) if line and column < node.column]
            upto = deep[0] if deep else len(self.pending)
            taken = [n for n in range(upto) if self.pending[n][1]]
            count = taken[-1] + 1 if taken else 0
        node.after += _lines(self.pending[:count])
        self.pending = self.pending[count:]
        if node.flow:
            self.last = closed.owner


def _lines(pending: list[tuple[int, str]]) -> list[str]:
    """Comments with single blank lines."""
    lines: list[str] = []
    for _, line in pending:
        if line or (not lines or lines[-1]):
            lines.append(line)
    return lines


# --------------------------------------------------------------------------------------------------------------------
# Order


def _order(node: _Scalar | _Collection, annotation: Any, axes: Axes) -> None:
    """Bring the keys of all mappings into the order of the schema."""
    if not isinstance(node, _Collection):
        return
    form, inner = _form(annotation)
    if form == "model":
        fields = {f.alias or name: f.annotation for name, f in inner.model_fields.items()}
        _sort(node, list(fields))
        for item in node.items:
            _order(item.value, fields.get(item.key.value if item.key else ""), axes)
    else:
        if form == "dict" and inner is Terms:
            _sort(node, list(axes))
        for item in node.items:
            _order(item.value, inner, axes)


def _sort(node: _Collection, known: list[str]) -> None:
    if node.mapping:
        place = {name: n for n, name in enumerate(known)}
        node.items.sort(key=lambda item: place.get(item.key.value if item.key else "", len(known)))


def _form(annotation: Any) -> tuple[str, Any]:
    """Whether an annotation is a model, a list or a dict, and of what; the first such member of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ("", None) if annotation is Terms else ("model", annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (tuple, list):
        return "list", arguments[0]
    if origin is dict:
        return "dict", arguments[1]
    if origin in (Union, types.UnionType) or hasattr(annotation, "__metadata__"):
        return next((found for a in arguments if (found := _form(a))[0]), ("", None))
    return "", None


# --------------------------------------------------------------------------------------------------------------------
# Writing


class _Kept(str):
    """A blank line that belongs to a text: none may be added after it."""

    __slots__ = ()


def _write(parsed: _Parsed, file: str, axes: Axes | None) -> str:
    name = editor.schema_name(file)
    if name is not None and axes is not None:
        _order(parsed.root, editor.MODELS[name], axes)
    root = parsed.root
    if root.items:
        first = root.items[0]
        comments = "\n".join(first.before).strip("\n").split("\n") if any(first.before) else []
        first.before = []
        separator = [""] if comments and parsed.head else []
        lines = [*parsed.head, *separator, *comments, *_block(root, 0)]
    else:
        lines = [*parsed.head, "{}", *root.after]
    kept: list[str] = []
    for line in lines:
        if line or not kept or isinstance(line, _Kept) or not isinstance(kept[-1], _Kept):
            kept.append(line)
    while kept and not kept[-1] and not isinstance(kept[-1], _Kept):
        kept.pop()
    return "\n".join(kept) + "\n"


def _block(node: _Collection, indent: int) -> Iterator[str]:
    space = " " * indent
    for n, item in enumerate(node.items):
        head = space + (f"{_key_text(item.key)}:" if item.key else "-")
        before = [*item.before, *_hoisted(item, indent)]
        if n == 0 and before[:1] == [""]:
            before = before[1:]
        yield from (space + line if line else "" for line in before)
        yield from _item_lines(item, head, indent)
    yield from (space + line if line else "" for line in node.after)


def _hoisted(item: _Item, indent: int) -> list[str]:
    """Comments that would stand on the line of a dash, or between it and the first key, to be written above it."""
    lines: list[str] = []
    while item.key is None and isinstance(item.value, _Collection) and _inline(item.value, " " * indent + "-") is None:
        lines += [item.comment] if item.comment else []
        item.comment = ""
        item, indent = item.value.items[0], indent + INDENT
        lines += [line for line in item.before if line]
        item.before = []
    return lines


def _item_lines(item: _Item, head: str, indent: int) -> Iterator[str]:
    value, comment = item.value, f"  {item.comment}" if item.comment else ""
    if isinstance(value, _Scalar):
        lines = _scalar_lines(value, head, indent)
        at = 0 if re.fullmatch(r"[|>][-+0-9]*", lines[0][len(head) + 1 :]) else -1
        lines[at] += comment
        yield from lines
        return
    inline = _inline(value, head)
    if inline is not None:
        yield f"{inline}{comment}"
        yield from (" " * indent + line for line in value.after if line)
        return
    lines = list(_block(value, indent + INDENT))
    if item.key is None:
        lines[0] = head + " " + lines[0][indent + INDENT :]
    else:
        yield head + comment
    yield from lines


def _inline(node: _Collection, head: str) -> str | None:
    """A collection after `head` as `{...}` or `[...]`, if it is to be written so and fits."""
    if not _fits_flow(node):
        return None
    line = f"{head} {_flow(node)}"
    return line if len(line) <= WIDTH or not node.items else None


def _fits_flow(node: _Collection) -> bool:
    """Whether a collection can be written as `{...}` or `[...]`: it was, and there is no comment inside."""
    return not node.items or (
        node.flow
        and not node.after
        and all(
            not item.comment
            and not any(item.before)
            and (isinstance(item.value, _Scalar) or (_fits_flow(item.value) and not item.value.after))
            for item in node.items
        )
    )


def _flow(node: _Scalar | _Collection) -> str:
    if isinstance(node, _Scalar):
        return _flow_scalar(node)
    if node.mapping:
        return f"{{{', '.join(f'{_key_text(i.key, flow=True)}: {_flow(i.value)}' for i in node.items if i.key)}}}"
    return f"[{', '.join(_flow(i.value) for i in node.items)}]"


def _flow_scalar(node: _Scalar) -> str:
    if node.source is None or "\n" in node.source:
        return _token(node.value, flow=True)
    if node.style:
        return node.source
    if not node.source:
        return "null"
    if "?" in node.source or node.source[0] == ":":  # other readers of YAML stumble over these
        return _quoted(node.value)
    return node.source


def _key_text(key: _Scalar | None, *, flow: bool = False) -> str:
    assert key is not None
    if key.source is None or "\n" in key.source or key.style in ("|", ">"):
        return _token(key.value, flow=True, key=True)  # a key is a text, whatever it looks like
    if not key.style and (not key.source or key.source in "-?:" or (flow and "?" in key.source)):
        return _quoted(key.value)
    return key.source


def _scalar_lines(node: _Scalar, head: str, indent: int) -> list[str]:
    """A scalar after `head`, its further lines indented by more than `indent`."""
    if node.source is None:
        return _text_lines(node.value, head, indent)
    if node.style == "|":
        return _literal(node.value, head, indent)
    if node.style == ">":
        return _folded(node, head, indent)
    lines = [line.strip(" ") for line in node.source.split("\n")]
    if len(lines) == 1:
        if not node.source:
            return [head]
        is_text = node.style or isinstance(scalar(node.source), str)
        if is_text and len(head) + 1 + len(node.source) > WIDTH and _foldable(node.value, indent):
            return _fold(node.value, head, indent)
        text = _quoted(node.value) if not node.style and node.source in "-?:" else node.source
        return [f"{head} {text}"]
    if node.style:
        return _text_lines(node.value, head, indent)
    return _plain_lines(lines, head, indent)


def _plain_lines(lines: list[str], head: str, indent: int) -> list[str]:
    """A plain text over several lines."""
    space = " " * (indent + INDENT)
    room = WIDTH - len(space)
    laid_out: list[str] = []
    for blank, paragraph in itertools.groupby(lines, lambda line: not line):
        first = room if laid_out else WIDTH - len(head) - 1
        part = list(paragraph)
        laid_out += part if blank else _reflow(part, first, room)
    return [f"{head} {laid_out[0]}", *(space + line if line else "" for line in laid_out[1:])]


def _reflow(lines: list[str], first: int, width: int) -> list[str]:
    """Lines that are folded when read: their breaks stay up to the first line that is too long."""
    for n, line in enumerate(lines):
        room = width if n else first
        if len(line) > room:
            return [*lines[:n], *_wrap(" ".join(lines[n:]), room, width)]
    return lines


def _text_lines(value: str, head: str, indent: int) -> list[str]:
    """A text in the style that suits it."""
    if "\n" in value and not _UNPRINTABLE.search(value):
        return _literal(value, head, indent)
    token = _token(value)
    if len(head) + 1 + len(token) > WIDTH and _foldable(value, indent):
        return _fold(value, head, indent)
    return [f"{head} {token}"]


def _literal(value: str, head: str, indent: int) -> list[str]:
    body = value.rstrip("\n")
    tail = len(value) - len(body)
    lines = body.split("\n") if body else []
    return _block_scalar("|", lines, tail, head, indent)


def _folded(node: _Scalar, head: str, indent: int) -> list[str]:
    header, *lines = (node.source or "").split("\n")
    digit = re.search(r"[1-9]", header.partition("#")[0])
    if digit:
        column = node.base + int(digit.group())
    else:
        column = next((len(line) - len(line.lstrip(" ")) for line in lines if line.strip(" ")), 0)
    lines = [line[column:] for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    tail = len(node.value) - len(node.value.rstrip("\n"))
    room = WIDTH - indent - INDENT
    wrapped: list[str] = []
    for folded, paragraph in itertools.groupby(lines, lambda line: bool(line) and not line.startswith(" ")):
        part = list(paragraph)
        wrapped += _reflow(part, room, room) if folded else part
    return _block_scalar(">", wrapped, tail, head, indent)


def _block_scalar(sign: str, lines: list[str], tail: int, head: str, indent: int) -> list[str]:
    space = " " * (indent + INDENT)
    if not lines:
        chomping = "+" if tail else ""
        tail += 1
    else:
        chomping = "-" if tail == 0 else "" if tail == 1 else "+"
    first = next((line for line in lines if line), "")
    explicit = str(INDENT) if first.startswith(" ") else ""
    body = [space + line if line else "" for line in lines]
    return [f"{head} {sign}{explicit}{chomping}", *body, *[_Kept()] * (tail - 1)]


def _foldable(value: str, indent: int) -> bool:
    """Whether a text can stand below its key, on lines that are folded when read, and be narrower there."""
    room = WIDTH - indent - INDENT
    return (
        value != ""
        and "\n" not in value
        and not _UNPRINTABLE.search(value)
        and value == value.strip(" ")
        and (len(value) <= room or len(_wrap(value, room, room)) > 1)
    )


def _fold(value: str, head: str, indent: int) -> list[str]:
    room = WIDTH - indent - INDENT
    return [f"{head} >-", *(" " * (indent + INDENT) + line for line in _wrap(value, room, room))]


def _wrap(text: str, first: int, width: int) -> list[str]:
    """Break a line at single spaces, so that folding puts it together again."""
    lines = [""]
    for word in _SINGLE_SPACE.split(text):
        room = first if len(lines) == 1 else width
        if not lines[-1]:
            lines[-1] = word
        elif len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _token(value: str, *, flow: bool = False, key: bool = False) -> str:
    """A text on one line: plain where no reader of YAML could take it for something else, else quoted."""
    plain = (
        _PLAIN.fullmatch(value)
        and value == value.strip(" ")
        and (key or not _LOOKS_TYPED.fullmatch(value))
        and (key or scalar(value) == value)
        and not re.search(r"[\[\]{},?]" if flow else r"^\?", value)
        and not _UNPRINTABLE.search(value)
    )
    return value if plain else _quoted(value)


def _quoted(value: str) -> str:
    if not _UNPRINTABLE.search(value) and "\n" not in value and ("\\" in value or '"' in value):
        return "'" + value.replace("'", "''") + "'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + _UNPRINTABLE.sub(lambda m: f"\\u{ord(m.group()):04x}", escaped) + '"'


# --------------------------------------------------------------------------------------------------------------------
# From plain data


def _collection(data: Mapping[str, Any], *, flow: bool = True) -> _Collection:
    items = [_Item(_node(value), _Scalar(str(key))) for key, value in data.items()]
    nested = any(isinstance(item.value, _Collection) for item in items)
    return _Collection(True, flow and not nested, items)


def _node(data: Any) -> _Scalar | _Collection:
    """Plain data in the style of the atlas: short things on one line, all else below each other."""
    if isinstance(data, Mapping):
        return _collection(data)
    if isinstance(data, (list, tuple)):
        items = [_Item(_node(value)) for value in data]
        short = all(isinstance(i.value, _Scalar) and len(i.value.value) <= SHORT for i in items)
        return _Collection(False, short, items)
    if isinstance(data, str):
        if _CONTROL.search(data):
            raise ValueError(f"a control character in {data!r}")
        return _Scalar(data)
    text = str(data).lower() if isinstance(data, bool) else "null" if data is None else repr(data)
    if isinstance(scalar(text), str) or scalar(text) != data:
        raise ValueError(f"{data!r} is no value of a file of the atlas")
    return _Scalar(text, "", text)
