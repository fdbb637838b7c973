"""The result record: what one experiment measured, with everything needed to measure it again.

A record puts the baseline and the technique side by side over a sweep of the technique's knob. The same schema checks
the files in `results/`, feeds the figures of the site, and is what `redundancy run --json` prints.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from reference_impls import strict

LARGEST = strict.LARGEST
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Units = Annotated[int, Field(ge=1, le=LARGEST)]
Milliseconds = Annotated[float, Field(allow_inf_nan=False, ge=1e-9, le=1e12)]
"""Nothing takes less than the billionth of a millisecond, or more than thirty years."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""Characters that no text of a record holds: a terminal obeys some, and a table breaks at others."""


def _printable(text: str) -> str:
    if odd := CONTROL.search(text):
        raise ValueError(
            f"holds U+{ord(odd.group()):04X}: texts of a record are on one line, without control characters"
        )
    return text


Text = Annotated[str, Field(max_length=4000), AfterValidator(_printable)]
Knob = bool | int | Finite | Text
Work = Literal["network", "training", "selection", "layer"]
"""What a unit of work is, in the order of headlines: a whole network's run, a training with the selection of its data,
a selection alone, a part of a network."""
Preparing = Literal["training", "embedding", "clustering", "calibration", "search"]
SLUG = r"^[a-z0-9]+(-[a-z0-9]+)*$"
VERSION: Literal[2] = 2
"""Of the schema. Records of version 1 were converted once, in the commit that brought version 2."""


class OldRecord(ValueError):
    """A record of an earlier version of the schema."""

    def __init__(self, version: object) -> None:
        again = "measure it again with the command that it names (CHANGELOG.md names the commit that converted ours)"
        super().__init__(f"this is a record of version {version!r}, the atlas reads version {VERSION}: {again}")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Interval(Model):
    """A value with its 95 % interval."""

    value: Finite = Field(examples=[0.912])
    """Mean over the independent units, median over paired rounds, or the single value of a deterministic run."""
    low: Finite | None = Field(default=None, examples=[0.908])
    """Lower end of the 95 % interval; absent together with `high` where there is none."""
    high: Finite | None = Field(default=None, examples=[0.916])
    """Upper end of the 95 % interval."""
    n: Units = Field(default=1, examples=[5])
    """Number of independent units that the interval rests on (seeds, items, or rounds)."""

    @model_validator(mode="after")
    def _interval_holds_value(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("give both ends of the interval, or neither")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] does not hold the value {self.value}")
        return self


class Quality(Interval):
    """How good the result is, over the seeds of the record."""

    metric: Text = Field(examples=["accuracy"])
    """Name of the metric, in words a reader knows."""
    higher_is_better: bool = Field(default=True, examples=[True])
    """Direction of the metric."""


class WallTime(Model):
    """Wall-clock of one unit of work in milliseconds, from interleaved repetitions."""

    median: Milliseconds = Field(examples=[121.8])
    """Median, in milliseconds."""
    p10: Milliseconds = Field(examples=[118.2])
    """10th percentile, in milliseconds."""
    p90: Milliseconds = Field(examples=[130.4])
    """90th percentile, in milliseconds."""
    p99: Milliseconds = Field(examples=[140.1])
    """99th percentile, in milliseconds."""
    n: Units = Field(examples=[15])
    """Number of repetitions."""

    @model_validator(mode="after")
    def _percentiles_are_in_order(self) -> Self:
        if not self.p10 <= self.median <= self.p90 <= self.p99:
            raise ValueError("the percentiles cross: p10 <= median <= p90 <= p99 does not hold")
        return self


class Items(Model):
    """How the cost of single items varies, where the work follows the data: P99 - P50 is its predictability."""

    n: Annotated[int, Field(ge=100)] = Field(examples=[795])
    """Number of items; of fewer than 100 there is no 99th percentile."""
    macs_p50: Finite = Field(ge=0, examples=[4.1e9])
    """Median of the MACs of an item, counted."""
    macs_p99: Finite = Field(ge=0, examples=[5.2e9])
    """99th percentile of the MACs of an item."""
    ms_p50: Finite = Field(ge=0, examples=[121.8])
    """Median of the milliseconds of an item, each the median over rounds."""
    ms_p99: Finite = Field(ge=0, examples=[140.1])
    """99th percentile of the milliseconds of an item."""


class Variant(Model):
    """What one configuration cost and what it delivered."""

    macs: Count = Field(examples=[4_608_000_000])
    """Multiply-accumulates per unit of work, counted, not estimated; the technique's own included."""
    bytes: Count = Field(examples=[812_000_000])
    """Bytes of operands read and results written by the executed operators, per unit of work."""
    quality: Quality = Field(examples=[{"metric": "accuracy", "value": 0.912}])
    """What the configuration delivers."""
    wall_ms: WallTime = Field(examples=[{"median": 121.8, "p10": 118.2, "p90": 130.4, "p99": 140.1, "n": 15}])
    """Wall-clock per unit of work, measured in the same interleaved run as the other variants."""
    speed_up: Interval | None = Field(default=None, examples=[{"value": 1.63, "low": 1.61, "high": 1.66, "n": 21}])
    """Median over paired rounds of (time of the baseline) / (time of the variant); below 1 the variant is slower."""
    gain: dict[Text, Interval] = Field(default_factory=dict, examples=[{"baseline": {"value": -0.02, "n": 5}}])
    """Quality minus that of the baseline (`baseline`) or of a control (its name) with the same seed, over the seeds."""
    items: Items | None = Field(
        default=None, examples=[{"n": 795, "macs_p50": 4e9, "macs_p99": 5e9, "ms_p50": 121.8, "ms_p99": 140.1}]
    )
    """How its cost varies from item to item; absent where that was not asked."""
    samples: Count | None = Field(default=None, examples=[4096])
    """Samples, tokens or frames really processed, where the technique changes that number."""
    redundancy: Finite | None = Field(default=None, ge=0, le=1, examples=[0.41])
    """Share of the units that the technique removed, shared or made cheaper in this configuration."""
    uncounted: tuple[Text, ...] = Field(default=(), examples=[["aten.sort.default"]])
    """Operators that were executed but that the counter has no formula for."""


class Point(Variant):
    """One point of the sweep: a variant and the knobs that produced it."""

    knobs: dict[Text, Knob] = Field(examples=[{"r": 13}])
    """Values of the technique's knobs at this point."""
    technique: Text | None = Field(default=None, examples=["token-merging"])
    """Whose point it is, in the record of a benchmark where several techniques meet."""


class Control(Model):
    """A null case: what the same procedure gives where the redundancy, or the technique's insight, is absent."""

    name: Text = Field(examples=["random merging"])
    """Short name of the control."""
    about: Text = Field(examples=["The same number of tokens is merged, with partners drawn at random."])
    """What differs from the technique's own points."""
    points: tuple[Point, ...] = Field(min_length=1, examples=[[]])
    """The control's points, over the same knobs where that makes sense."""
    other_input: bool = Field(default=False, examples=[False])
    """Whether it works on other input, such as noise: then it is no rival, and what it saves is compared with nothing.
    """


class Table(Model):
    """Further numbers, a row for each case."""

    about: Text = Field(examples=["Share of the test samples that leave at each exit."])
    """What the rows are, in a sentence."""
    columns: tuple[Text, ...] = Field(min_length=1, examples=[["threshold", "exit", "share"]])
    """Names of the columns; a claim selects a row by them."""
    rows: tuple[tuple[Knob | Interval | None, ...], ...] = Field(examples=[[[0.9, 1, 0.41]]])
    """A cell is a number, a word, a value with its interval, or empty."""

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> Self:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("two columns have the same name")
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells, there are {len(self.columns)} columns")
        return self

    def records(self) -> list[dict[str, Any]]:
        """The rows as mappings from column to cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Preparation(Model):
    """Work that is done before the first unit: a training, an embedding, a clustering, a calibration, a search."""

    what: Text = Field(examples=["embedding 4,837 mails with MiniLM"])
    """What is done, in words that follow "left out:"."""
    macs: Count = Field(examples=[6_722_693_228_160])
    """Multiply-accumulates of all of it, once."""
    kind: Preparing | None = Field(default=None, examples=["embedding"])
    """What sort of work it is."""
    technique: str | None = Field(default=None, pattern=SLUG, examples=["semantic-deduplication"])
    """Whose it is, in the record of a benchmark where several techniques meet; absent where it is everybody's."""


class Shared(Model):
    """A preparation that the baseline needs as well, so that it is no cost of the technique."""

    what: Text = Field(examples=["training the network once, without the technique"])
    """What is done, and why the baseline needs it too."""
    macs: Count | None = Field(default=None, examples=[2_779_000_000_000])
    """Multiply-accumulates of all of it, once; absent where nobody needs the number."""
    kind: Preparing | None = Field(default=None, examples=["training"])
    """What sort of work it is."""


class Measured(Interval):
    """Redundancy measured before anything is removed."""

    measure: Text = Field(examples=["mean best-match cosine of keys"])
    """What is measured; the formula stands in the docstring of the measure."""
    value: Finite = Field(ge=0, le=1, examples=[0.87])
    """The measure, in [0, 1]; its interval is over the data items or the seeds."""
    where: dict[Text, Finite] = Field(default_factory=dict, examples=[{"block 0": 0.91}])
    """The same measure part by part (layer, block, clip)."""
    null: dict[Text, Finite] = Field(default_factory=dict, examples=[{"white noise": 0.12}])
    """The same measure on null controls."""


class Machine(Model):
    """The machine a record was measured on."""

    cpu: Text = Field(examples=["AMD EPYC 9R14"])
    """Processor model."""
    cores: Units = Field(examples=[2])
    """Logical cores that the process may use."""
    threads: Units = Field(examples=[1])
    """Threads that torch was allowed during the timing."""
    memory_gb: Finite = Field(gt=0, examples=[23.4])
    """Main memory in GiB."""
    accelerator: Text | None = Field(default=None, examples=["NVIDIA H100"])
    """Accelerator that ran the work; absent when the CPU did."""
    node: Text | None = Field(default=None, examples=["worker-3 (5f2c9a10)"])
    """Node of the cluster; absent where the machine was none."""


class Record(Model):
    """One experiment on named data: a technique, or several that meet in a benchmark, beside their baseline."""

    schema_version: Literal[2] = Field(default=VERSION, examples=[VERSION])
    """Version of this schema."""
    technique: str | None = Field(default=None, pattern=SLUG, examples=["token-merging"])
    """Id of the entry; absent where several techniques meet, and each point says whose it is."""
    benchmark: str | None = Field(default=None, pattern=SLUG, examples=["token-reduction"])
    """Id of the benchmark that the scenario belongs to, `benchmarks/<id>.py`."""
    scenario: str = Field(pattern=SLUG, examples=["saliency-photos"])
    """Name of the scenario in `experiments/<id>.py`, or in the benchmark."""
    title: Text = Field(examples=["ViT-S/14 saliency on 12 photos"])
    """The scenario in a line."""
    budget: Literal["smoke", "full"] = Field(examples=["full"])
    """`smoke` runs in seconds on data that is always there; `full` is what the published numbers come from."""
    data: Text = Field(examples=["12 photos of scikit-image and scikit-learn, 224 x 224"])
    """The data, with its number of items and its split."""
    model: Text | None = Field(default=None, examples=["ViT-S/14 with a saliency decoder, 24.3 M parameters"])
    """The model, where there is one."""
    unit: Text = Field(examples=["one image"])
    """The unit of work that `macs`, `bytes` and `wall_ms` refer to."""
    work: Work = Field(default="network", examples=["network"])
    """What kind of work the unit is. A headline never spans two kinds."""
    knobs: tuple[Text, ...] = Field(min_length=1, examples=[["r"]])
    """Names of the knobs that the sweep moves, the main one first."""
    given: tuple[Text, ...] = Field(default=(), examples=[["changed"]])
    """Those of the knobs that describe the input, so that nobody can choose them."""
    baseline: Variant = Field(examples=[{}])
    """The best native dense way to get the result, without the technique."""
    points: tuple[Point, ...] = Field(min_length=1, examples=[[]])
    """The technique, point by point over its knobs."""
    controls: tuple[Control, ...] = Field(default=(), examples=[[]])
    """Null cases."""
    counted: tuple[Preparation, ...] = Field(default=(), examples=[[]])
    """Preparations that are in the MACs of every point, once per unit."""
    excluded: tuple[Preparation, ...] = Field(
        default=(), examples=[[{"what": "embedding 4,837 mails with MiniLM", "macs": 6_722_693_228_160}]]
    )
    """Preparations that the technique needs and that no MACs and no time of a point hold."""
    shared: tuple[Shared, ...] = Field(default=(), examples=[[]])
    """Preparations that the baseline needs as well."""
    grows: dict[Text, Finite] = Field(default_factory=dict, examples=[{"epochs": 5}])
    """Quantities with which the unit grows while its preparation does not, as they are here: epochs, parameters."""
    redundancy: Measured = Field(examples=[{"measure": "mean best-match cosine of keys", "value": 0.87}])
    """How much redundancy the data hold, by the technique's own measure."""
    tables: dict[Text, Table] = Field(default_factory=dict, examples=[{}])
    """Further measured numbers."""
    pictures: tuple[Text, ...] = Field(default=(), examples=[["filled in"]])
    """Names of the arrays in the `.npz` beside the record; they are shown, not compared."""
    seeds: tuple[Annotated[int, Field(ge=-LARGEST, le=LARGEST)], ...] = Field(min_length=1, examples=[[0, 1, 2]])
    """Seeds that were run."""
    device: Text = Field(default="cpu", examples=["cpu"])
    """Torch device."""
    machine: Machine = Field(examples=[{}])
    """Where it was measured."""
    versions: dict[Text, Text] = Field(examples=[{"python": "3.11.7", "torch": "2.13.0"}])
    """Versions of Python, of the libraries that matter, and the commit of the atlas."""
    command: Text = Field(examples=["redundancy run token-merging --budget full"])
    """The command that measures it again."""
    date: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", examples=["2026-11-22"])
    """Day of the measurement."""
    notes: tuple[Text, ...] = Field(default=(), examples=[["Agreement with the dense model, not accuracy: no labels."]])
    """What a reader must know to read the numbers rightly."""
    extra: dict[Text, Finite | Interval | Text] = Field(default_factory=dict, examples=[{"fitted side": 64}])
    """Few single numbers that have no other place; no page needs them."""

    _arrays: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("schema_version", mode="before")
    @classmethod
    def _is_of_this_version(cls, version: Any) -> Any:
        if version != VERSION:
            raise OldRecord(version)
        return version

    @model_validator(mode="after")
    def _points_say_what_they_are(self) -> Self:
        for point in self.points:
            if missing := set(self.knobs) - set(point.knobs):
                raise ValueError(f"a point of the sweep does not say its {', '.join(sorted(missing))}")
            if (self.technique is None) != (point.technique is not None):
                raise ValueError("either the record names the technique, or each of its points does")
        if self.technique is None and self.benchmark is None:
            raise ValueError("name the technique, or the benchmark in which several meet")
        if unknown := set(self.given) - set(self.knobs):
            raise ValueError(f"`given` names {', '.join(sorted(unknown))}, which the sweep does not move")
        return self

    @classmethod
    def from_json(cls, content: str | bytes) -> Self:
        """The record of a JSON text, read strictly: a number in quotes is none.

        Raises: ValueError, which pydantic's ValidationError, `OldRecord` and `strict.NotJson` are.
        """
        data = strict.loads(content)
        if isinstance(data, dict) and (version := data.get("schema_version", VERSION)) != VERSION:
            raise OldRecord(version)
        return cls.model_validate_json(json.dumps(data), strict=True)

    @property
    def owner(self) -> str:
        """Id of the entry, or of the benchmark where several techniques meet: the folder of the record."""
        return self.technique or self.benchmark or ""

    @property
    def prepared(self) -> set[Preparing]:
        """The kinds of preparation that the record accounts for: counted, left out or shared."""
        said: tuple[Preparation | Shared, ...] = (*self.counted, *self.excluded, *self.shared)
        return {one.kind for one in said if one.kind}

    @property
    def arrays(self) -> dict[str, Any]:
        """The pictures themselves, in a record that was just measured; a committed one has them in its `.npz`."""
        return self._arrays

    def to_json(self) -> str:
        """The record as indented JSON, a row of a table on one line; what is absent or empty is left out."""
        data = _without_empty(self.model_dump(mode="json", exclude_none=True))
        rows: list[str] = []
        for table in data.get("tables", {}).values():
            for number, row in enumerate(table["rows"]):
                rows.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
                table["rows"][number] = f"\0{len(rows) - 1}\0"
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        return re.sub(r'"\\u0000(\d+)\\u0000"', lambda row: rows[int(row[1])], text) + "\n"


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, []) or key in ("knobs", "rows", "versions")}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
