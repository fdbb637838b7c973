"""How a claim compares with our own results: the verdict is computed here, and typed nowhere.

A claim's `check` names a scenario and a `field` of its result record, in a small grammar:

    field    = operand [ " / " operand | " - " operand ]     a number, a ratio, a difference; spaces around the sign
             | "1 - " operand " / " operand                  a share: what the first is less than the second
    operand  = name { "." name | "[" selector "]" }
    selector = key | knob "=" value { "," knob "=" value }

    points[r=13].quality.value                                          the point of the sweep whose knob r is 13
    baseline.wall_ms.median / points[r=13].wall_ms.median               a speed-up
    points[r=13].quality.value - baseline.quality.value                 a change of quality
    controls[name=random merging].points[r=13].quality.value          a control
    redundancy.null[white noise]                                      a key that is no plain word
    tables[by epsilon].rows[epsilon=0.2][kept share]                  a cell of a table, by the names of its columns

A selector with `=` picks by the knobs of the items, or by their own fields where they have no knobs, and must match
exactly one item. Nothing is selected by its position: positions change when a sweep does, and names do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args

from reference_impls.accounting.record import Record

from .findings import did_you_mean
from .reader import scalar
from .schema import Check, Claim, Differing, Verdict

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_SELECTOR = re.compile(r"\[([^\[\]]+)\]")
_COMMA = re.compile(r",(?=[^,=]*=)")  # a comma inside a value, such as a name with one, stays
_SIGN = re.compile(r"\s+([/-])\s+")
_SHARE = re.compile(r"1\s+-\s+")

FACTORS: Final = {"percent": 100.0, "percentage points": 100.0, "million": 1e-6, "billion": 1e-9}
"""Unit of a check -> what a share or a count of a record is multiplied by; other units are those of the field."""

Part = str | tuple[tuple[str, Any], ...]
"""A name or key, or the conditions of a selector."""


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
        return 0.0 if self.share else {"/": 1.0, "-": 0.0}.get(self.sign or "")

    def value(self, record: Record) -> float:
        """The number in `record`. Raises FieldAbsent if it is not there, or is not finite."""
        value = self._value(record)
        if not math.isfinite(value):
            raise FieldAbsent("it is too large a number")
        return value

    def _value(self, record: Record) -> float:
        named = {str(parts[0]) for parts in (self.first, self.second) if parts}
        data = record.model_dump(include=named if named <= Record.model_fields.keys() else None)
        for table in data.get("tables", {}).values():
            table["rows"] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        first = _number(data, self.first)
        if self.sign is None:
            return first
        second = _number(data, self.second)
        if self.sign == "-":
            return first - second
        if second == 0:
            raise FieldAbsent(f"{_text(self.second)} is 0, so there is no ratio")
        return 1 - first / second if self.share else first / second


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, and the numbers that it rests on."""

    verdict: Verdict
    because: str
    """The reason, in a sentence."""
    value: float | None = None
    """What we measured, in the unit of the check."""
    check: Check | None = None
    record: Record | None = None

    @property
    def attempted(self) -> bool:
        """Whether there is a number of ours."""
        return self.verdict != "not attempted"


def parse_field(text: str) -> Field:
    """Parse the field of a check. Raises FieldError."""
    share = _SHARE.match(text)
    first, at = _operand(text, share.end() if share else 0)
    if at == len(text) and not share:
        return Field(first)
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


def _number(data: Any, parts: tuple[Part, ...]) -> float:
    for n, part in enumerate(parts):
        data = _step(data, part, _text(parts[:n]))
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise FieldAbsent(f"{_text(parts)} is {'absent' if data is None else 'no number'}")
    return float(data)


def _step(data: Any, part: Part, where: str) -> Any:
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
    matches = [item for item in data if all(_same(_fields(item).get(knob), value) for knob, value in part)]
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


def judge(claim: Claim, records: Iterable[Record]) -> Judgement:
    """Compare a claim with our results of its technique.

    reproduced: our number lies within the tolerance of the target, or on the better side of it; where task, data and
    model are all other ones than the paper's, that is the same effect in another setting. partly: not so, but it
    lies on the better side of no effect (a ratio of 1, a difference of 0, or what `neutral` says): it is there, and
    smaller. contradicted: neither. not attempted: the claim has no check, or its result is not there.
    """
    check = claim.check
    if check is None:
        return Judgement("not attempted", "No experiment of the atlas bears on this claim yet.")
    record = next((r for r in records if r.scenario == check.scenario), None)
    if record is None:
        return Judgement("not attempted", f"The scenario {check.scenario} has no result yet.", check=check)
    try:
        field = parse_field(check.field)
        value = field.value(record) * FACTORS.get(check.unit or "", 1.0)
    except (FieldError, FieldAbsent) as error:
        return Judgement("not attempted", f"The check cannot be computed: {error}.", check=check, record=record)
    unit = f" {check.unit}" if check.unit else ""
    numbers = f"we measure {value:.4g}{unit}, the target is {check.target:g} ± {check.tolerance:g}"
    elsewhere = len(check.differs or ()) == len(get_args(Differing))
    holds: Verdict = "same effect in another setting" if elsewhere else "reproduced"
    if elsewhere:
        numbers += "; task, data and model are others than the paper's"
    slack = 1e-9 * max(abs(value), abs(check.target))  # rounding of a number that lies on the edge
    if abs(value - check.target) <= check.tolerance + slack:
        return Judgement(holds, f"Within the tolerance: {numbers}.", value, check, record)
    side = {"higher": 1.0, "lower": -1.0}.get(check.better or "")
    if side is not None and side * (value - check.target) > 0:
        return Judgement(holds, f"Better than the target: {numbers}.", value, check, record)
    neutral = field.neutral if check.neutral is None else check.neutral
    if side is not None and neutral is not None and side * (value - neutral) > 0:
        return Judgement("partly", f"The effect is there, but smaller: {numbers}.", value, check, record)
    return Judgement("contradicted", f"Outside the tolerance: {numbers}.", value, check, record)
