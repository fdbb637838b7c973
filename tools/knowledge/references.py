"""Measured numbers in prose are references to records, so that they change when a record does.

    {{scenario: field}}                   of the entry's own results
    {{scenario: field | format}}
    {{entry-id/scenario: field | format}} of another entry's, or of a benchmark's

The field is that of a check (`tools.knowledge.fields`). The formats, where n is a number of decimals:

    (none)      3 significant digits; whole numbers in full           0.0123, 12,289,928
    .n          decimals                                              .2: 0.73
    %, %n       per cent, 1 decimal                                   %: 84.4 %, %0: 84 %
    saved       1 - the value, in per cent                            saved0: 27 %
    points      a difference of shares, with its sign                 points: +2.4 points
    x           a factor, 2 decimals                                  x: 1.63×
    k, M, G     a count in thousands, millions, billions, 2 decimals  G: 4.60 G
    ms          milliseconds, 1 decimal                               ms: 121.8 ms

`plain` in front leaves the plus of points out, `-` turns the sign: `plain points`, `-.3`. A sign that is not expected
shows that the words around it are false by now. What stands in code or in a formula is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from .base import Knowledge
from .fields import Field, FieldAbsent, FieldError, parse_field
from .findings import did_you_mean
from .paths import ENTRIES, HARD_CASES, OPEN_PROBLEMS, PAPERS, PRINCIPLES
from .schema import Claim, Entry
from .text import one_line

M = TypeVar("M", bound=BaseModel)

MEASURED_FIELDS: Final = ("when_to_use", "when_not_to_use", "limits", "deviations")
"""Fields of an entry in which a number is ours, unless its source is said."""
ABSENT: Final = "(not measured)"
"""What stands for a reference that leads to no number."""

_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|\$\$.+?\$\$|(?<!\\)\$[^$\n]+\$|\{\{(?P<inner>.*?)\}\}", re.DOTALL)
_REFERENCE = re.compile(
    r"(?:(?P<owner>[a-z0-9-]+)/)?(?P<scenario>[a-z0-9-]+): (?P<field>[^|]*[^| ])(?: ?\| ?(?P<form>.*))?"
)
_FORM = re.compile(r"(?P<turned>-)?(?P<plain>plain )?(?P<kind>%|saved|points|x|k|M|G|ms|\.(?=\d))?(?P<digits>\d)?")
_DIGITS: Final = {"%": 1, "saved": 1, "points": 1, "x": 2, "k": 2, "M": 2, "G": 2, "ms": 1}
_FACTORS: Final = {"%": 100.0, "saved": 100.0, "points": 100.0, "k": 1e-3, "M": 1e-6, "G": 1e-9}
_UNITS: Final = {"%": " %", "saved": " %", "points": " points", "x": "×", "k": " k", "M": " M", "G": " G", "ms": " ms"}
_NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:\.\d+|(?:\.\d+)?(?= ?%| times\b| ?×| points\b))(?![\w.]*\d)(?P<percent> ?%)?")


class ReferenceProblem(ValueError):
    """A reference leads to no number; the message says why, and `hint` what may be meant."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Reference:
    """A number of a record."""

    owner: str | None
    """The entry or benchmark, where it is not the entry in whose text the reference stands."""
    scenario: str
    field: Field
    form: str = ""


def parse(inner: str) -> Reference:
    """A reference, without its braces. Raises ReferenceProblem if it cannot be read."""
    found = _REFERENCE.fullmatch(one_line(inner))
    if found is None:
        raise ReferenceProblem(
            f'cannot read "{one_line(inner)}"', "write {{scenario: field}} or {{scenario: field | %}}"
        )
    form = found["form"] or ""
    if _FORM.fullmatch(form) is None:
        raise ReferenceProblem(
            f'there is no format "{form}"', "there are: .2, %, saved, points, plain points, x, k, M, G, ms"
        )
    try:
        return Reference(found["owner"], found["scenario"], parse_field(found["field"]), form)
    except FieldError as error:
        raise ReferenceProblem(str(error), "for example points[r=13].quality.value") from error


def find(text: str) -> list[tuple[str, str]]:
    """(the reference with its braces, what stands between them) for each reference of a text."""
    if "{{" not in text:
        return []
    return [(m[0], m["inner"]) for m in _SPAN.finditer(text) if m["inner"] is not None]


def number(reference: Reference, knowledge: Knowledge, entry_id: str | None = None) -> float | None:
    """The number that a reference in a text of `entry_id` leads to; None where the file of its record cannot be read.
    Raises ReferenceProblem if it leads nowhere."""
    owner = reference.owner or entry_id
    if owner is None:
        raise ReferenceProblem("the reference does not say whose scenario it is", "write {{entry-id/scenario: field}}")
    owners = {*knowledge.entries, *knowledge.benchmarks}
    if owner not in owners:
        raise ReferenceProblem(f'there is no entry or benchmark "{owner}"', did_you_mean(owner, owners))
    record = knowledge.result(owner, reference.scenario)
    if record is None:
        known = knowledge.known_results.get(owner, set())
        if reference.scenario in known:
            return None
        hint = did_you_mean(reference.scenario, known | {r.scenario for r in knowledge.results_of(owner)})
        raise ReferenceProblem(f'{owner} has no result of a scenario "{reference.scenario}"', hint)
    try:
        return reference.field.value(record)
    except FieldAbsent as error:
        raise ReferenceProblem(str(error)) from error


def problems(text: str, knowledge: Knowledge, entry_id: str | None = None) -> Iterator[tuple[str, ReferenceProblem]]:
    """Every reference of a text that leads to no number, and why."""
    for written, inner in find(text):
        try:
            number(parse(inner), knowledge, entry_id)
        except ReferenceProblem as problem:
            yield written, problem


def resolve(text: str, knowledge: Knowledge, entry: Entry | str | None = None) -> str:
    """The text with numbers in the place of references; `ABSENT` where one leads to no number.

    `entry` is the entry in whose text they stand, or its id; without one a reference must name the entry.
    """
    if "{{" not in text:
        return text
    entry_id = entry.id if isinstance(entry, Entry) else entry

    def shown(span: re.Match[str]) -> str:
        if span["inner"] is None:
            return span[0]
        try:
            reference = parse(span["inner"])
            value = number(reference, knowledge, entry_id)
        except ReferenceProblem:
            return ABSENT
        return ABSENT if value is None else formatted(value, reference.form)

    return _SPAN.sub(shown, text)


def formatted(value: float, form: str = "") -> str:
    """A number in one of the formats."""
    found = _FORM.fullmatch(form)
    if found is None:
        raise ValueError(f"there is no format {form!r}")
    kind = found["kind"] or ""
    value = (1 - value if kind == "saved" else value) * _FACTORS.get(kind, 1.0)
    if found["turned"]:
        value = -value
    if not kind and found["digits"] is None:
        return f"{value:,.0f}" if value.is_integer() else f"{value:.3g}"
    sign = "+" if kind == "points" and not found["plain"] else ""
    digits = _DIGITS.get(kind, 0) if found["digits"] is None else int(found["digits"])
    return f"{value:{sign}.{digits}f}{_UNITS.get(kind, '')}"


def resolved(knowledge: Knowledge) -> Knowledge:
    """The same knowledge with every reference in its texts replaced by its number: what readers get."""

    def said(one: Any, file: str, entry_id: str | None = None) -> Any:
        document = knowledge.documents.get(file)
        return one if document and "{{" not in document.text else _resolved(one, knowledge, entry_id)

    return replace(
        knowledge,
        entries={key: said(entry, f"{ENTRIES}/{key}.yml", key) for key, entry in knowledge.entries.items()},
        papers={key: said(paper, f"{PAPERS}/{key}.yml") for key, paper in knowledge.papers.items()},
        hard_cases=said(knowledge.hard_cases, HARD_CASES),
        open_problems=said(knowledge.open_problems, OPEN_PROBLEMS),
        principles=said(knowledge.principles, PRINCIPLES),
    )


def _resolved(value: Any, knowledge: Knowledge, entry_id: str | None) -> Any:
    """The value itself where nothing in it refers to a record."""
    if isinstance(value, str):
        return resolve(value, knowledge, entry_id)
    if isinstance(value, tuple):
        items = tuple(_resolved(item, knowledge, entry_id) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if isinstance(value, BaseModel):
        entry_id = value.technique if isinstance(value, Claim) else entry_id
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {n: new for n, old in fields.items() if (new := _resolved(old, knowledge, entry_id)) is not old}
        return value.model_copy(update=changed) if changed else value
    return value


def bare_numbers(text: str, knobs: Collection[float] = (), papers: Collection[str] = ()) -> list[str]:
    """Numbers that look measured and stand in a text without a reference: decimals, percentages, `1.6 times`.

    Left out are those of a sentence that names a paper by its key, those in code and formulas, values of `knobs`, and
    the 95 % of an interval.
    """
    found = []
    for sentence in re.split(r"(?<=[.;:])\s+", _SPAN.sub("", text)):
        if any(word in papers for word in re.findall(r"[\w-]+", sentence)):
            continue
        for match in _NUMBER.finditer(sentence):
            value = float(match[0].removesuffix("%"))
            if match["percent"] and value == 95:
                continue
            if not {value, value / 100 if match["percent"] else value} & set(knobs):
                found.append(match[0])
    return found
