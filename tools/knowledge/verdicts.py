"""The rule of the verdicts, on numbers alone: `tools.knowledge.claims` reads them off the records.

A claim says that a quantity is `target`, give or take `tolerance`, where `neutral` would be no effect; the claim of a
loss or of a cost has its target on the worse side of it. Our own number comes with its interval, and so does what each
control gives when it is asked the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from reference_impls.accounting.record import Interval

from .schema import SETTING, Check, Verdict

MEANINGS: Final[Mapping[Verdict, str]] = {
    "reproduced": (
        "our number lies within the tolerance of the paper's; a better one does too, where nothing in the setting "
        "differs"
    ),
    "same effect in another setting": (
        "the effect is there and no smaller, but not as the same number in the same setting: task, data and model are "
        "all others than the paper's, or the quantity is, or our nearest point is far from its operating point, or our "
        "number is better than its"
    ),
    "partly": "it points the same way, but falls short",
    "not shown": "the difference lies inside our own spread, so that it speaks neither for the claim nor against it",
    "does not discriminate": "a control passes as well as the technique does, so that passing proves nothing",
    "contradicted": (
        "our number lies outside the tolerance, or on the other side of no effect, by more than its spread; a cost "
        "that became a gain is one of these"
    ),
    "not attempted": "nothing measured here bears on the claim",
}
"""What each word says, in the order in which to show them."""

Grade = Literal["within", "beyond", "short", "fails"]
_RANK: Final[Mapping[Grade, int]] = {"within": 2, "beyond": 2, "short": 1, "fails": 0}


def verdict(
    check: Check, ours: Interval, neutral: float | None, controls: Mapping[str, Interval], *, near: bool = True
) -> tuple[Verdict, str]:
    """The word for our number, and why. `near`: it is from a point near the operating point of the paper.

    In this order: a control that reaches as far as we do takes the claim its proof; a difference inside the spread is
    not shown; then the number itself decides. Controls are graded by their value, we have to show ours.
    """
    grade = _grade(check, ours, neutral)
    passing = [name for name, one in controls.items() if _RANK[_grade(check, one, neutral)] >= _RANK[grade]]
    if grade != "fails" and passing:
        best = max(passing, key=lambda name: _side(check) * controls[name].value)
        return "does not discriminate", f"The control {best} passes too"
    if _inside_spread(check, ours, neutral, grade):
        return "not shown", "Inside the spread"
    if grade == "fails":
        turned = neutral is not None and _opposite(ours.value, check.target, neutral)
        return "contradicted", "The sign is the other one" if turned else "Outside the tolerance"
    if grade == "short":
        return "partly", "The effect is there, but smaller"
    differs = set(check.differs or ())
    elsewhere = set(SETTING) <= differs or "quantity" in differs or not near or (grade == "beyond" and differs)
    why = "Within the tolerance" if grade == "within" else "Better than the target"
    if "quantity" in differs:
        why = "The same direction"
    return ("same effect in another setting" if elsewhere else "reproduced"), why


def _grade(check: Check, one: Interval, neutral: float | None) -> Grade:
    """How far a number goes towards the claim."""
    value, target = one.value, check.target
    turned = neutral is not None and _opposite(value, target, neutral) and not _holds(one, neutral)
    if "quantity" in (check.differs or ()):  # only the direction can be compared
        same = neutral is not None and (value - neutral) * (target - neutral) > 0
        return "beyond" if same else "fails"
    within = abs(value - target) <= check.tolerance + 1e-9 * max(abs(value), abs(target))  # rounding on the edge
    if turned:
        return "short" if within else "fails"
    if within:
        return "within"
    side = _side(check)
    if side * (value - target) > 0:
        return "beyond"
    return "short" if neutral is not None and side * (value - neutral) > 0 else "fails"


def _inside_spread(check: Check, one: Interval, neutral: float | None, grade: Grade) -> bool:
    """Whether the interval leaves open what the claim says; never so where there is none."""
    if one.low is None or one.high is None:
        return False
    any_quantity = "quantity" in (check.differs or ())
    of_effect = neutral is not None and (any_quantity or abs(check.target - neutral) > check.tolerance)
    if of_effect and _holds(one, neutral):
        return True
    if any_quantity:
        return False
    low, high = _accepted(check, neutral)
    if grade == "fails":
        return one.low <= high and one.high >= low
    return not of_effect and neutral is not None and (one.low < low or one.high > high)


def _accepted(check: Check, neutral: float | None) -> tuple[float, float]:
    """The numbers that agree with the claim: open on the better side, but a cost stays a cost."""
    low, high, side = check.target - check.tolerance, check.target + check.tolerance, _side(check)
    cost = neutral is not None and side * (check.target - neutral) < 0
    if side > 0:
        return low, max(high, neutral) if cost and neutral is not None else math.inf
    if side < 0:
        return min(low, neutral) if cost and neutral is not None else -math.inf, high
    return low, high


def _side(check: Check) -> int:
    return {"higher": 1, "lower": -1, None: 0}[check.better]


def _opposite(value: float, target: float, neutral: float) -> bool:
    """Whether two numbers lie on different sides of no effect."""
    return (value - neutral) * (target - neutral) < 0


def _holds(one: Interval, neutral: float | None) -> bool:
    """Whether no effect lies inside an interval."""
    return neutral is not None and one.low is not None and one.high is not None and one.low <= neutral <= one.high
