"""The small grammar in which a check, or a reference in prose, names a number of a result record:

    field    = operand [ " / " operand | " - " operand ]     a number, a ratio, a difference; spaces around the sign
             | "1 - " operand [ " / " operand ]              a share: what a ratio lacks to 1
    operand  = name { "." name | "[" selector "]" }
    selector = key | knob "=" value { "," knob "=" value }

    points[r=13].quality.value                                          the point of the sweep whose knob r is 13
    baseline.wall_ms.median / points[r=13].wall_ms.median               a speed-up
    points[r=13].quality.value - baseline.quality.value                 a change of quality
    controls[name=random merging].points[r=13].quality.value          a control
    redundancy.null[white noise]                                      a key that is no plain word
    tables[by epsilon].rows[epsilon=0.2][kept share]                  a cell of a table, by the names of its columns

A selector with `=` picks by the knobs of the items, or by their own fields where they have no knobs, and must match
exactly one item. Nothing is selected by its position: positions change when a sweep does, and names do not. In a check
with an operating point, `point=nearest` picks the one of the items that match that is nearest to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from reference_impls.accounting.record import Interval, Record

from .findings import did_you_mean
from .reader import scalar

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_SELECTOR = re.compile(r"\[([^\[\]]+)\]")
_COMMA = re.compile(r",(?=[^,=]*=)")  # a comma inside a value, such as a name with one, stays
_SIGN = re.compile(r"\s+([/-])\s+")
_SHARE = re.compile(r"1\s+-\s+")

Part = str | tuple[tuple[str, Any], ...]
"""A name or key, or the conditions of a selector."""
NEAREST: Final = ("point", "nearest")
"""The condition that picks the item nearest to an operating point; its second word is that item in the field of the
operating point."""
Choose = Callable[[list[Any]], Any]
"""Picks one of the items that match."""


class FieldError(ValueError):
    """The field of a check cannot be read; the message says why."""


class FieldAbsent(LookupError):
    """The record holds no such number; the message says what it does hold."""


@dataclass(frozen=True)
class Field:
    """A parsed field: one operand, or two and the sign between them."""

    first: tuple[Part, ...]
    sign: str | None = None
    second: tuple[Part, ...] = ()
    share: bool = False
    """Whether it is 1 minus the ratio."""

    @property
    def neutral(self) -> float | None:
        """The value that means `no difference`: 1 for a ratio, 0 for a difference or a share, none for a number."""
        if self.share or self.sign == "-" or "gain" in self.first:
            return 0.0
        return 1.0 if self.sign == "/" or "speed_up" in self.first else None

    @property
    def nearest(self) -> bool:
        """Whether it selects the point nearest to an operating point."""
        return any(NEAREST in part for part in (*self.first, *self.second) if isinstance(part, tuple))

    @property
    def roots(self) -> set[str]:
        """The fields of a record at which it starts."""
        return {str(parts[0]) for parts in (self.first, self.second) if parts} - {NEAREST[1]}

    def value(self, record: Record) -> float:
        """The number in `record`. Raises FieldAbsent if it is not there."""
        return self.read(data_of(record, self.roots)).value

    def read(self, data: dict[str, Any], choose: Choose | None = None) -> Interval:
        """The number in the data of a record, with its 95 % interval where the record holds one.

        The interval of a difference of qualities or of a ratio of times is that of the paired runs, if they were
        recorded; else the two are taken as independent. Raises FieldAbsent if the number is not there.
        """
        first = _walk(data, self.first, choose)
        value, low, high = first[-1], *_ends(first, self.first)
        if self.sign is not None:
            second = _walk(data, self.second, choose)
            if self.sign == "/" and second[-1] == 0:
                raise FieldAbsent(f"{_text(self.second)} is 0, so there is no ratio")
            value = value - second[-1] if self.sign == "-" else value / second[-1]
            if not math.isfinite(value):
                raise FieldAbsent("it is too large a number")
            low, high = self._paired(first, second, value) or _independent(
                self.sign, value, (first[-1], low, high), (second[-1], *_ends(second, self.second))
            )
        if self.share:
            value, low, high = 1 - value, 1 - high, 1 - low
        known = math.isfinite(low) and math.isfinite(high)
        return Interval(value=value, low=min(low, value) if known else None, high=max(high, value) if known else None)

    def _paired(self, first: list[Any], second: list[Any], value: float) -> tuple[float, float] | None:
        """The interval of paired runs, where the record holds that of this very difference or ratio."""
        ends = (self.first[-2:], self.second[-2:])
        if self.sign == "-" and ends == (("quality", "value"),) * 2:
            gain = first[-3].get("gain", {}).get(_name(self.second, second))
            if gain and gain["low"] is not None and math.isclose(gain["value"], value, abs_tol=1e-9):
                return gain["low"], gain["high"]
        if self.sign == "/" and ends == (("wall_ms", "median"),) * 2:
            if self.first[0] == "baseline" and (ratio := second[-3].get("speed_up")) and ratio["low"]:
                return ratio["low"], ratio["high"]
            if self.second[0] == "baseline" and (ratio := first[-3].get("speed_up")) and ratio["low"]:
                return 1 / ratio["high"], 1 / ratio["low"]
        return None


def parse_field(text: str) -> Field:
    """Parse the field of a check. Raises FieldError."""
    share = _SHARE.match(text)
    first, at = _operand(text, share.end() if share else 0)
    if at == len(text):
        return Field(first, share=share is not None)
    sign = _SIGN.match(text, at)
    if share and (sign is None or sign.group(1) != "/"):
        raise FieldError('after "1 - " a ratio is due: 1 - name / name')
    if sign is None:
        raise FieldError(f'cannot read "{text[at:]}" at character {at + 1}: expected ".name", "[...]", " / " or " - "')
    second, at = _operand(text, sign.end())
    if at != len(text):
        raise FieldError(f'"{text[at:]}" at character {at + 1} is one operand too many')
    return Field(first, sign.group(1), second, share=share is not None)


def _operand(text: str, at: int) -> tuple[tuple[Part, ...], int]:
    parts: list[Part] = []
    while True:
        name = _NAME.match(text, at)
        if name is None:
            raise FieldError(f"expected a name at character {at + 1}")
        parts.append(name.group())
        at = name.end()
        while selector := _SELECTOR.match(text, at):
            parts.append(_selector(selector.group(1)))
            at = selector.end()
        if text[at : at + 1] != ".":
            return tuple(parts), at
        at += 1


def _selector(text: str) -> Part:
    if "=" not in text:
        if type(scalar(text.strip())) is int:
            raise FieldError(f"[{text}] is a position, and positions change: select by name, such as [knob=value]")
        return text.strip()
    conditions = []
    for condition in _COMMA.split(text):
        knob, equals, value = condition.partition("=")
        if not equals or not knob.strip() or not value.strip():
            raise FieldError(f'cannot read the selector "[{text}]": write [knob=value] or [knob=value, knob=value]')
        conditions.append((knob.strip(), scalar(value.strip())))
    return tuple(conditions)


def data_of(record: Record, roots: set[str]) -> dict[str, Any]:
    """Fields of a record, with the rows of tables by their columns; all of them where one is not known."""
    data = record.model_dump(include=roots if roots <= Record.model_fields.keys() else None)
    for table in data.get("tables", {}).values():
        table["rows"] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return data


def _walk(data: Any, parts: tuple[Part, ...], choose: Choose | None) -> list[Any]:
    """What each part leads to: the data first, the number last."""
    found = [data]
    for n, part in enumerate(parts):
        found.append(_step(found[-1], part, _text(parts[:n]), choose))
    if isinstance(found[-1], bool) or not isinstance(found[-1], (int, float)):
        raise FieldAbsent(f"{_text(parts)} is {'absent' if found[-1] is None else 'no number'}")
    return [*found[:-1], float(found[-1])]


def _ends(found: list[Any], parts: tuple[Part, ...]) -> tuple[float, float]:
    """The ends of the interval that a number is the value of; not finite where there is none."""
    holder = found[-2] if parts[-1] == "value" and isinstance(found[-2], dict) else {}
    return (holder["low"], holder["high"]) if holder.get("low") is not None else (-math.inf, math.inf)


def _independent(
    sign: str, value: float, first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """The interval of a difference or a ratio of two numbers (value, low, high) that are independent; one without an
    interval counts as exact, and without any there is none."""
    known = [(n, (high - low) / 2) for n, low, high in (first, second) if math.isfinite(high - low)]
    if not known:
        return -math.inf, math.inf
    if sign == "-":
        half = math.hypot(*(half for _, half in known))
    else:
        half = abs(value) * math.hypot(*(half / abs(n) for n, half in known if n))
    return value - half, value + half


def _name(parts: tuple[Part, ...], found: list[Any]) -> str:
    """The key of what a number is of in the gains of a variant."""
    return str(found[2]["name"]) if parts[0] == "controls" else str(parts[0])


def _step(data: Any, part: Part, where: str, choose: Choose | None) -> Any:
    place = where or "the record"
    if isinstance(part, str):
        if not isinstance(data, dict):
            raise FieldAbsent(f'{place} has no field "{part}"')
        if part not in data:
            hint = did_you_mean(part, map(str, data))
            raise FieldAbsent(f'{place} has no "{part}"{f": {hint}" if hint else ""}')
        return data[part]
    if not isinstance(data, (list, tuple)):
        raise FieldAbsent(f"{place} is no list to select from")
    wanted = [condition for condition in part if condition != NEAREST]
    matches = [item for item in data if all(same(_fields(item).get(knob), value) for knob, value in wanted)]
    if NEAREST in part and matches:
        if choose is None:
            raise FieldAbsent(f"{place}: only a check with `at` has a nearest point")
        return choose(matches)
    if len(matches) == 1:
        return matches[0]
    there = "; ".join(
        ", ".join(f"{knob}={_fields(item).get(knob)}" for knob, _ in wanted) for item in data if isinstance(item, dict)
    )
    if matches:
        raise FieldAbsent(f"{place} has {len(matches)} points with {_conditions(part)}: name more knobs")
    raise FieldAbsent(f"{place} has no point with {_conditions(part)}; there are: {there}")


def _fields(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {}
    knobs = item.get("knobs", item)
    return knobs if isinstance(knobs, dict) else {}


def same(a: Any, b: Any) -> bool:
    """Whether two values of a knob are equal; true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _conditions(part: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(f"{knob}={str(value).lower() if isinstance(value, bool) else value}" for knob, value in part)


def _text(parts: tuple[Part, ...]) -> str:
    text = ""
    for part in parts:
        if isinstance(part, str) and _NAME.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{_conditions(part) if isinstance(part, tuple) else part}]"
    return text
