"""How a claim compares with our own results: the verdict is computed, and typed nowhere.

A claim's `check` names a scenario and a `field` of its result record (`tools.knowledge.fields`). Where it has an
operating point, our number is that of the point nearest to it, not of the best:

    baseline.wall_ms.median / points[rule=entropy, point=nearest].wall_ms.median
    nearest.quality.value - baseline.quality.value                      the field of its `at`

Every control on the same input is asked the same: its points take the place of the first `points` of the field, with
the same knobs, or nearest to the operating point, or as the only one that it has. What a setting costs is no question
to a control without an operating point: random merging of as many tokens is as fast. What follows from the numbers
stands in `tools.knowledge.verdicts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reference_impls.accounting.record import Control, Interval, Record

from .fields import NEAREST, Field, FieldAbsent, FieldError, Part, data_of, parse_field, same
from .schema import SETTING, Check, Claim, OperatingPoint, Verdict
from .verdicts import verdict

FACTORS: Final = {"percent": 100.0, "percentage points": 100.0, "million": 1e-6, "billion": 1e-9}
"""Unit of a check -> what a share or a count of a record is multiplied by; other units are those of the field."""

COSTS: Final = frozenset({"macs", "bytes", "wall_ms", "speed_up", "samples"})
"""Fields of a variant that say what it costs."""


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
    controls: Mapping[str, Interval] = field(default_factory=dict)
    """What the controls that were asked the same gave."""

    @property
    def value(self) -> float | None:
        """What we measured."""
        return self.ours.value if self.ours else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, where the record holds one."""
        one = self.ours
        return (one.low, one.high) if one and one.low is not None and one.high is not None else None

    @property
    def attempted(self) -> bool:
        """Whether there is a number of ours."""
        return self.verdict != "not attempted"


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


def measured(check: Check, record: Record, technique: str) -> tuple[Interval, float | None, dict[str, Interval]]:
    """Our number in the unit of the check, where our nearest point is if the check has an operating point, and what the
    controls give that were asked the same. Raises FieldError, or FieldAbsent if the record lacks the number."""
    asked, at = fields_of(check)
    data = data_of(record, asked.roots | (at.roots if at else set()) | {"controls"})
    if record.technique is None and "points" in data:  # several meet: its own points are meant
        data["points"] = [point for point in data["points"] if point["technique"] == technique]

    def read(one: Field) -> tuple[Interval, _Chooser | None]:
        chooser = _Chooser(check.at, data) if check.at else None
        return _in_unit(one.read(data, chooser), check.unit), chooser

    ours, chooser = read(asked)
    reach = max(check.at.tolerance, chooser.distance) if check.at and chooser else math.inf
    controls = {}
    for control in record.controls:
        if not control.other_input and (one := _of_control(asked, control, costs=check.at is not None)):
            try:
                theirs, place = read(one)
            except FieldAbsent:
                continue
            if place is None or place.distance <= reach:
                controls[control.name] = theirs
    return ours, chooser.found if chooser else None, controls


def _of_control(asked: Field, control: Control, *, costs: bool) -> Field | None:
    """The field with the points of a control in the place of the technique's; None where that asks it nothing, as it
    does where the control is what the technique is compared with."""
    if asked.second[:2] == ("controls", (("name", control.name),)):
        return None
    for name in ("first", "second"):
        parts: tuple[Part, ...] = getattr(asked, name)
        if parts[:1] == ("points",) and len(parts) > 2 and isinstance(parts[1], tuple):
            if parts[2] in COSTS and not costs:
                return None
            knobs = [point.knobs for point in control.points]
            if NEAREST in parts[1]:
                which: Part = (NEAREST,)
            elif sum(all(same(one.get(knob), value) for knob, value in parts[1]) for one in knobs) == 1:
                which = parts[1]
            elif len(knobs) == 1:
                which = ()
            else:
                return None
            theirs: tuple[Part, ...] = ("controls", (("name", control.name),), "points", which, *parts[2:])
            return replace(asked, first=theirs) if name == "first" else replace(asked, second=theirs)
    return None


def _in_unit(one: Interval, unit: str | None) -> Interval:
    by = FACTORS.get(unit or "", 1.0)
    if one.low is None or one.high is None:
        return Interval(value=one.value * by)
    return Interval(value=one.value * by, low=one.low * by, high=one.high * by)


def judge(claim: Claim, records: Iterable[Record]) -> Judgement:
    """Compare a claim with our results of its technique, by the rule of `tools.knowledge.verdicts`."""
    check = claim.check
    if check is None:
        return Judgement("not attempted", "No experiment of the atlas bears on this claim yet.")
    record = next((r for r in records if r.scenario == check.scenario), None)
    if record is None:
        return Judgement("not attempted", f"The scenario {check.scenario} has no result yet.", check=check)
    try:
        ours, place, controls = measured(check, record, claim.technique)
        neutral = fields_of(check)[0].neutral if check.neutral is None else check.neutral
    except (FieldError, FieldAbsent) as error:
        return Judgement("not attempted", f"The check cannot be computed: {error}.", check=check, record=record)
    near = place is None or check.at is None or abs(place - check.at.target) <= check.at.tolerance
    word, why = verdict(check, ours, neutral, controls, near=near)
    return Judgement(word, _sentence(check, why, ours, place, controls), ours, check, record, controls)


def _sentence(check: Check, why: str, ours: Interval, place: float | None, controls: Mapping[str, Interval]) -> str:
    """The reason in full: why, our number, the target, the operating point, the controls, and what differs."""
    unit = f" {check.unit}" if check.unit else ""
    text = f"{why}: we measure {ours.value:.4g}{unit}, the target is {check.target:g} ± {check.tolerance:g}"
    if ours.low is not None:
        text += f"; 95 % interval {ours.low:.4g} to {ours.high:.4g}"
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
