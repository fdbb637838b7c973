"""How a claim compares with our own results: the verdict is computed here, and typed nowhere.

A claim's `check` names a scenario and a `field` of its result record, in a small grammar:

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
with `at`, `point=nearest` picks among the items that match the one nearest to the operating point of the paper:

    baseline.wall_ms.median / points[rule=entropy, point=nearest].wall_ms.median
    nearest.quality.value - baseline.quality.value                      the field of its `at`

Every control on the same input is asked the same: its points take the place of the first `points` of the field, with
the same knobs, or nearest to the operating point, or as the only one that it has; `unasked` says why one is not asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as field_
from typing import Any, Final

from reference_impls.accounting.record import Control, Interval, Record

from .findings import did_you_mean
from .reader import scalar
from .schema import SETTING, Check, Claim, OperatingPoint, Verdict
from .verdicts import verdict

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_SELECTOR = re.compile(r"\[([^\[\]]+)\]")
_COMMA = re.compile(r",(?=[^,=]*=)")  # a comma inside a value, such as a name with one, stays
_SIGN = re.compile(r"\s+([/-])\s+")
_SHARE = re.compile(r"1\s+-\s+")

FACTORS: Final = {"percent": 100.0, "percentage points": 100.0, "million": 1e-6, "billion": 1e-9}
"""Unit of a check -> what a share or a count of a record is multiplied by; other units are those of the field."""

Part = str | tuple[tuple[str, Any], ...]
"""A name or key, or the conditions of a selector."""
NEAREST: Final = ("point", "nearest")
"""The condition that picks the item nearest to an operating point; the second word is the item itself in its field."""
Choose = Callable[[list[Any]], Any]


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

    def value(self, record: Record) -> float:
        """The number in `record`. Raises FieldAbsent if it is not there."""
        return self.read(_data(record, self)).value

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


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, and the numbers that it rests on."""

    verdict: Verdict
    because: str
    """The reason, in a sentence."""
    ours: Interval | None = None
    """What we measured, with its interval where the record holds one, in the unit of the check."""
    check: Check | None = None
    record: Record | None = None
    controls: Mapping[str, Interval] = field_(default_factory=dict)
    """What the controls that were asked the same gave."""

    @property
    def value(self) -> float | None:
        """What we measured."""
        return self.ours.value if self.ours else None

    @property
    def attempted(self) -> bool:
        """Whether there is a number of ours."""
        return self.verdict != "not attempted"


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


def _data(record: Record, *fields: Field, also: str = "") -> dict[str, Any]:
    """The parts of a record that the fields name, with the rows of tables by their columns."""
    named = {str(parts[0]) for one in fields for parts in (one.first, one.second) if parts} - {NEAREST[1]} | {also} - {
        ""
    }
    data = record.model_dump(include=named if named <= Record.model_fields.keys() else None)
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
    halves = [(high - low) / 2 / (abs(n) if sign == "/" else 1) if n or sign == "-" else 0
              for n, low, high in (first, second)]  # fmt: skip
    known = [half for half in halves if math.isfinite(half)]
    half = math.hypot(*known) * (abs(value) if sign == "/" else 1) if known else math.inf
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
    matches = [item for item in data if all(_same(_fields(item).get(knob), value) for knob, value in wanted)]
    if NEAREST in part and matches:
        if choose is None:
            raise FieldAbsent(f"{place}: only a check with `at` has a nearest point")
        return choose(matches)
    if len(matches) == 1:
        return matches[0]
    there = "; ".join(
        ", ".join(f"{knob}={_fields(item).get(knob)}" for knob, _ in part) for item in data if isinstance(item, dict)
    )
    if matches:
        raise FieldAbsent(f"{place} has {len(matches)} points with {_conditions(part)}: name more knobs")
    raise FieldAbsent(f"{place} has no point with {_conditions(part)}; there are: {there}")


def _fields(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {}
    knobs = item.get("knobs", item)
    return knobs if isinstance(knobs, dict) else {}


def _same(a: Any, b: Any) -> bool:
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


@dataclass
class _Chooser:
    """Picks the item nearest to an operating point, and keeps how far it is."""

    at: OperatingPoint
    data: dict[str, Any]
    found: float = math.nan
    """Where the item is that was picked, in the unit of the operating point."""

    def __call__(self, items: list[Any]) -> Any:
        one, places = parse_field(self.at.field), []
        for item in items:
            try:
                place = one.read(self.data | {NEAREST[1]: item}).value * FACTORS.get(self.at.unit or "", 1.0)
            except FieldAbsent:
                continue
            places.append((abs(place - self.at.target), place, item))
        if not places:
            raise FieldAbsent(f"no point has the operating point {self.at.field}")
        _, self.found, item = min(places, key=lambda known: known[0])
        return item

    @property
    def distance(self) -> float:
        """Of that item from the operating point; nan as long as none was picked."""
        return abs(self.found - self.at.target)


def fields_of(check: Check) -> tuple[Field, Field | None]:
    """The field of a check and that of its operating point. Raises FieldError, also where one has no use for the
    other."""
    asked, at = parse_field(check.field), parse_field(check.at.field) if check.at else None
    if asked.nearest != (at is not None):
        raise FieldError("`point=nearest` and `at` go together: one of them is missing")
    return asked, at


def measured(check: Check, record: Record) -> tuple[Interval, float | None, dict[str, Interval]]:
    """Our number in the unit of the check, where our nearest point is if the check has an operating point, and what the
    controls give that were asked the same. Raises FieldError, or FieldAbsent if the record lacks the number."""
    asked, at = fields_of(check)
    data = _data(record, asked, *([at] if at else []), also="controls")

    def read(one: Field) -> tuple[Interval, _Chooser | None]:
        chooser = _Chooser(check.at, data) if check.at else None
        return _in_unit(one.read(data, chooser), check.unit), chooser

    ours, chooser = read(asked)
    reach = max(check.at.tolerance, chooser.distance) if check.at and chooser else math.inf
    controls = {}
    for control in record.controls:
        one = None if control.other_input or control.name in check.unasked else _of_control(asked, control)
        if one:
            try:
                theirs, place = read(one)
            except FieldAbsent:
                continue
            if place is None or place.distance <= reach:
                controls[control.name] = theirs
    return ours, chooser.found if chooser else None, controls


def _of_control(asked: Field, control: Control) -> Field | None:
    """The field with the points of a control in the place of the technique's; None where that asks it nothing, as it
    does where the control is what the technique is compared with."""
    if asked.second[:2] == ("controls", (("name", control.name),)):
        return None
    for name in ("first", "second"):
        parts: tuple[Part, ...] = getattr(asked, name)
        if parts[:1] == ("points",) and len(parts) > 1 and isinstance(parts[1], tuple):
            knobs = [point.knobs for point in control.points]
            if NEAREST in parts[1]:
                which: Part = (NEAREST,)
            elif sum(all(_same(one.get(knob), value) for knob, value in parts[1]) for one in knobs) == 1:
                which = parts[1]
            elif len(knobs) == 1:
                which = ()
            else:
                return None
            return replace(asked, **{name: ("controls", (("name", control.name),), "points", which, *parts[2:])})
    return None


def _in_unit(one: Interval, unit: str | None) -> Interval:
    by = FACTORS.get(unit or "", 1.0)
    ends = {"low": one.low * by, "high": one.high * by} if one.low is not None and one.high is not None else {}
    return Interval(value=one.value * by, **ends)


def judge(claim: Claim, records: Iterable[Record]) -> Judgement:
    """Compare a claim with our results of its technique, by the rule of `tools.knowledge.verdicts`."""
    check = claim.check
    if check is None:
        return Judgement("not attempted", "No experiment of the atlas bears on this claim yet.")
    record = next((r for r in records if r.scenario == check.scenario), None)
    if record is None:
        return Judgement("not attempted", f"The scenario {check.scenario} has no result yet.", check=check)
    try:
        ours, place, controls = measured(check, record)
        neutral = fields_of(check)[0].neutral if check.neutral is None else check.neutral
    except (FieldError, FieldAbsent) as error:
        return Judgement("not attempted", f"The check cannot be computed: {error}.", check=check, record=record)
    near = place is None or check.at is None or abs(place - check.at.target) <= check.at.tolerance
    word, why = verdict(check, ours, neutral, controls, near=near)
    return Judgement(word, _sentence(check, why, ours, place, controls), ours, check, record, controls)


def _sentence(check: Check, why: str, ours: Interval, place: float | None, controls: Mapping[str, Interval]) -> str:
    """The reason in full: why, our number, the target, the operating point, the controls, and what differs."""
    unit = f" {check.unit}" if check.unit else ""
    ends = f" (95 % interval {ours.low:.4g} to {ours.high:.4g})" if ours.low is not None else ""
    text = f"{why}: we measure {ours.value:.4g}{unit}{ends}, the target is {check.target:g} ± {check.tolerance:g}"
    if place is not None and check.at:
        text += f"; our nearest point lies at {place:.3g}{f' {check.at.unit}' if check.at.unit else ''}"
        text += f", the paper's at {check.at.target:g}"
    if controls:
        text += "; controls: " + ", ".join(f"{name} {one.value:.4g}" for name, one in controls.items())
    if set(SETTING) <= set(check.differs or ()):
        text += "; task, data and model are others than the paper's"
    if "quantity" in (check.differs or ()):
        text += "; it is another quantity than the paper's"
    return f"{text}."
