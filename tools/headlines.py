"""What an entry saves, in words: the same in the catalogue, on its page, in `show` and in the exports.

What counts is found by `reference_impls.accounting.saving`; here it is only said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import Field

from reference_impls.accounting.record import Knob, Model, Point, Record, Work
from reference_impls.accounting.saving import (
    ONCE,
    SMALL_LOSS,
    Best,
    Headline,
    headlines,
    is_error,
    left_out,
    macs_saved,
    rivals,
    tails,
    uses_to_pay,
)

from .knowledge import Knowledge
from .numbers import amounts, number, quantity, spread

PERCENT: Final = "\u00a0%"
SMALL_LOSS_TEXT: Final = f"{100 * SMALL_LOSS:g}{PERCENT}"
WORK: Final[dict[Work, str]] = {
    "network": "a whole network",
    "training": "selecting data and training on them",
    "selection": "selecting data",
    "layer": "a part of a network",
}
"""A kind of work as a reader names it."""


class Saves(Model):
    """What an entry saves in one kind of work."""

    work: Work = Field(examples=["network"])
    """The kind of work."""
    value: str = Field(examples=["37–51 %"])
    """Share of the MACs saved at a small loss, over the scenarios; `exact:` in front where nothing is lost, `none`
    where nothing is saved, `random weights` where no quality is known."""
    control: str = Field(examples=["64–66 % (one exit for all)"])
    """What the best control saves at the same loss."""
    about: str = Field(examples=["at a loss of at most 1 % of the accuracy; over 3 scenarios"])
    """The condition, the scenarios without a saving, and what is left out."""
    shares: tuple[float, ...] = Field(default=(), examples=[[0.37, 0.51]])
    """The shares from which `value` is taken: one per scenario, or per input of it; 0 where nothing is saved."""


def own_part(record: Record, entry_id: str) -> Record:
    """A record with the points of one entry, and with what it alone leaves out; where techniques meet, the others'
    points are no part of it."""
    if record.technique is not None:
        return record
    return record.model_copy(
        update={
            "points": tuple(p for p in record.points if p.technique == entry_id),
            "excluded": tuple(one for one in record.excluded if one.technique in (None, entry_id)),
        }
    )


def of_entry(knowledge: Knowledge, entry_id: str) -> list[tuple[Headline, Saves]]:
    """What an entry saves, a kind of work each; nothing for an entry without records, or for a study."""
    if knowledge.entries[entry_id].kind == "study":
        return []
    return told(own_part(record, entry_id) for record in knowledge.results_of(entry_id))


def told(records: Iterable[Record]) -> list[tuple[Headline, Saves]]:
    """What the records of one entry say."""
    return [(one, _said(one)) for one in headlines(list(records))]


def in_short(knowledge: Knowledge, entry_id: str) -> list[tuple[str, str]]:
    """(what is saved, what the best control saves) in a table of all entries, a line each; nothing without records.

    The kind of work is named where it is not a whole network's.
    """
    lines = []
    for one, saves in of_entry(knowledge, entry_id):
        what = "" if one.work == "network" else f", {WORK[one.work]}"
        lines.append((f"{saves.value}{what}{_nowhere(one)}", saves.control))
    return lines


def steadiness(knowledge: Knowledge, entry_id: str) -> tuple[str, str] | None:
    """(P99 - P50 of the MACs of single items, that of the baseline), over the settings of which a record tells it.

    Shares of the baseline's median item: a technique whose work follows the data adds to the spread what it saves of
    the mean. None where no record tells it.
    """
    records = [own_part(record, entry_id) for record in knowledge.results_of(entry_id)]
    found = [both for record in records for point in record.points if (both := tails(record, point))]
    if not found:
        return None
    own, base = ([100 * share for share in column] for column in zip(*found, strict=True))
    return spread(own, PERCENT), spread(base, PERCENT)


def knobs(point: Point) -> str:
    """The knobs of a point as a reader writes them: "r = 13, start = 2"."""
    return ", ".join(f"{name} = {shown(value)}" for name, value in point.knobs.items())


def shown(value: object) -> str:
    """A knob's value as a reader writes it."""
    return number(value) if isinstance(value, float) else str(value)


def _said(one: Headline) -> Saves:
    if not one.bests:
        about = "measured with random weights only, so that the quality says nothing"
        return Saves(work=one.work, value="random weights", control="random weights", about=about)
    shares = tuple(share for best in one.bests for share in best.saved)
    conditions = [_condition(one), _where(one) + _nowhere(one)]
    if one.random_weights:
        conditions.append(f"without {_records(one.random_weights)} with random weights, whose quality says nothing")
    return Saves(
        work=one.work,
        value=_shares(one.bests) or "none",
        control=_controls(one.bests),
        about=". ".join(["; ".join(conditions), *_remainders(one)]),
        shares=shares,
    )


def _shares(bests: Sequence[Best]) -> str:
    """ "37–51 %", "exact: 75 %", or both."""
    parts = []
    for exact, word in ((False, ""), (True, "exact: ")):
        if saved := [100 * share for best in bests if best.exact is exact for share in best.saved if share > 0]:
            parts.append(word + spread(saved, PERCENT))
    return "; ".join(parts)


def _condition(one: Headline) -> str:
    metrics = {best.record.baseline.quality.metric for best in one.bests if not is_error(best.record.baseline.quality)}
    if not metrics:
        return "without any loss"
    condition = f"at a loss of at most {SMALL_LOSS_TEXT} of the {metrics.pop() if len(metrics) == 1 else 'quality'}"
    return f"{condition}, or exact" if any(best.exact for best in one.bests) else condition


def _where(one: Headline) -> str:
    """The scenarios, or the one scenario with its setting, and the inputs that a sweep is over."""
    records = [best.record for best in one.bests]
    if len(records) > 1:
        where = f"over {len(records)} scenarios"
    else:
        found = one.bests[0].found
        where = records[0].title if len(found) != 1 else f"{knobs(found[0])}, {records[0].title}"
    values: dict[str, list[Knob]] = {}
    for record in records:
        for name in record.given:
            values.setdefault(name, []).extend(p.knobs[name] for p in record.points)
    return ", ".join([where, *(f"{name} {_range(those)}" for name, those in values.items())])


def _range(values: Sequence[Knob]) -> str:
    """Values of a knob: the range of the numbers, and the words."""
    numbers = [value for value in values if not isinstance(value, str)]
    ends = [f"from {number(min(numbers))} to {number(max(numbers))}"] if numbers else []
    return " or ".join([*ends, *dict.fromkeys(value for value in values if isinstance(value, str))])


def _nowhere(one: Headline) -> str:
    """In how many scenarios nothing is saved, where it is not all of them."""
    none = sum(not any(best.saved) for best in one.bests)
    return f"; none in {none} of {len(one.bests)} scenarios" if 0 < none < len(one.bests) else ""


def _controls(bests: Sequence[Best]) -> str:
    """What the best control of each scenario saves, and which these are."""
    if not any(rivals(best.record) for best in bests):
        return "none tried"
    found = [(best.record, *one) for best in bests for one in best.controls if one]
    if not found:
        return "none"
    names = list(dict.fromkeys(control.name for _, control, _ in found))
    shown = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
    missing = sum(not any(best.controls) for best in bests if rivals(best.record))
    value = spread([100 * macs_saved(record, point) for record, _, point in found], PERCENT)
    return f"{value} ({shown})" + (f"; none in {missing} of {len(bests)} scenarios" if missing else "")


def _remainders(one: Headline) -> list[str]:
    """What the figures leave out and how large it is; of work that is done once, what they would be without it."""
    return _end_to_end(one) if one.work in ONCE else _left_out(one)


def _left_out(one: Headline) -> list[str]:
    there = [best for best in one.bests if best.record.excluded]
    if not there:
        return []
    size = amounts([left_out(best.record) for best in there], "MACs")
    said = f"Left out: {_preparations(there)}, {size}"
    if pays := [uses for best in there for p in best.found if (uses := uses_to_pay(best.record, p))]:
        units = dict.fromkeys(re.split(r",| in a batch", best.record.unit.removeprefix("one "))[0] for best in there)
        said += f", as much as it saves on {spread(pays, '')} units ({' or '.join(units)})"
    return [said]


def _end_to_end(one: Headline) -> list[str]:
    sentences = []
    for best in one.bests:
        record, found = best.record, best.found
        shared = [s for s in record.shared if s.macs]
        alone = spread([100 * macs_saved(record, p) for p in found], PERCENT) if found else "nothing"
        if record.excluded:
            size, times = left_out(record), left_out(record) / record.baseline.macs
            said = (
                f"End to end: {_preparations([best])} takes {quantity(size, 'MACs')}, {number(times)} times the "
                f"baseline. Without it: {alone}"
            )
            if pays := [uses for p in found if (uses := uses_to_pay(record, p))]:
                said += f"; it pays where {spread(pays, '', 4)} such units share it"
            sentences.append(said)
        elif shared:
            sentences.append(f"Without {_listed(s.what for s in shared)}, which both need: {alone}")
    return sentences


def _preparations(bests: Sequence[Best]) -> str:
    """What is left out: in the words of the records, or by its kinds where there are many words."""
    left = [one for best in bests for one in best.record.excluded]
    words = dict.fromkeys(one.what for one in left)
    return _listed(words if len(words) <= 3 else dict.fromkeys(one.kind or one.what for one in left))


def _listed(words: Iterable[str]) -> str:
    *rest, last = list(words)
    return f"{', '.join(rest)} and {last}" if rest else last


def _records(count: int) -> str:
    return f"{count} record{'s' if count > 1 else ''}"
