"""The result record: what one experiment measured, with everything needed to measure it again.

A record puts the baseline and the technique side by side over a sweep of the technique's knob. The same schema checks
the files in `results/`, feeds the figures of the site, and is what `redundancy run --json` prints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Knob = bool | int | Finite | str
SCHEMA_VERSION = 1


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class Quality(Model):
    """How good the result is, over the seeds of the record."""

    metric: str = Field(examples=["accuracy"])
    """Name of the metric, in words a reader knows."""
    value: Finite = Field(examples=[0.912])
    """Mean over the seeds (or the single value of a deterministic run)."""
    low: Finite | None = Field(default=None, examples=[0.908])
    """Lower end of the 95 % interval over `n` independent units."""
    high: Finite | None = Field(default=None, examples=[0.916])
    """Upper end of the 95 % interval."""
    n: Annotated[int, Field(ge=1)] = Field(default=1, examples=[5])
    """Number of independent units behind the interval (seeds, or items when the run is deterministic)."""
    higher_is_better: bool = Field(default=True, examples=[True])
    """Direction of the metric."""

    @model_validator(mode="after")
    def _interval_holds_value(self) -> Quality:
        if (self.low is None) != (self.high is None):
            raise ValueError("give both ends of the interval, or neither")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] does not hold the value {self.value}")
        return self


class WallTime(Model):
    """Wall-clock of one unit of work in milliseconds, from interleaved repetitions."""

    median: Finite = Field(ge=0, examples=[121.8])
    """Median, in milliseconds."""
    p10: Finite = Field(ge=0, examples=[118.2])
    """10th percentile, in milliseconds."""
    p50: Finite = Field(ge=0, examples=[121.8])
    """50th percentile, in milliseconds; equal to the median."""
    p90: Finite = Field(ge=0, examples=[130.4])
    """90th percentile, in milliseconds."""
    p99: Finite = Field(ge=0, examples=[140.1])
    """99th percentile, in milliseconds."""
    n: Annotated[int, Field(ge=1)] = Field(examples=[15])
    """Number of repetitions."""


class Arm(Model):
    """What one configuration cost and what it delivered."""

    operations: Count = Field(examples=[4_608_000_000])
    """Multiply-accumulate operations per unit of work, counted, not estimated; the technique's own included."""
    bytes: Count = Field(examples=[812_000_000])
    """Bytes of operands read and results written by the executed operators, per unit of work."""
    quality: Quality = Field(examples=[{"metric": "accuracy", "value": 0.912}])
    """What the configuration delivers."""
    wall_ms: WallTime = Field(
        examples=[{"median": 121.8, "p10": 118.2, "p50": 121.8, "p90": 130.4, "p99": 140.1, "n": 15}]
    )
    """Wall-clock per unit of work, measured in the same interleaved run as the other arms."""
    samples: Count | None = Field(default=None, examples=[4096])
    """Samples, tokens or frames really processed, where the technique changes that number."""
    redundancy: Finite | None = Field(default=None, ge=0, le=1, examples=[0.41])
    """Share of the units that the technique removed, shared or made cheaper in this configuration."""
    uncounted: tuple[str, ...] = Field(default=(), examples=[["aten.sort.default"]])
    """Operators that were executed but that the counter has no operation formula for."""


class Point(Arm):
    """One point of the sweep: an arm and the knobs that produced it."""

    knobs: dict[str, Knob] = Field(examples=[{"r": 13}])
    """Values of the technique's knobs at this point."""


class Control(Model):
    """A null case: what the same procedure gives where the redundancy, or the technique's insight, is absent."""

    name: str = Field(examples=["random merging"])
    """Short name of the control."""
    about: str = Field(examples=["The same number of tokens is merged, with partners drawn at random."])
    """What differs from the technique's own points."""
    points: tuple[Point, ...] = Field(min_length=1, examples=[[]])
    """The control's points, over the same knobs where that makes sense."""


class Measured(Model):
    """Redundancy measured before anything is removed."""

    measure: str = Field(examples=["mean best-match cosine of keys"])
    """What is measured; the formula stands in the docstring of the measure."""
    value: Finite = Field(ge=0, le=1, examples=[0.87])
    """The measure, in [0, 1]."""
    low: Finite | None = Field(default=None, examples=[0.85])
    """Lower end of the 95 % interval over the data items."""
    high: Finite | None = Field(default=None, examples=[0.89])
    """Upper end of the 95 % interval over the data items."""
    where: dict[str, Finite] = Field(default_factory=dict, examples=[{"block 0": 0.91}])
    """The same measure part by part (layer, block, clip)."""
    null: dict[str, Finite] = Field(default_factory=dict, examples=[{"white noise": 0.12}])
    """The same measure on null controls."""


class Machine(Model):
    """The machine a record was measured on."""

    cpu: str = Field(examples=["AMD EPYC 9R14"])
    """Processor model."""
    cores: Annotated[int, Field(ge=1)] = Field(examples=[2])
    """Logical cores that the process may use."""
    threads: Annotated[int, Field(ge=1)] = Field(examples=[1])
    """Threads that torch was allowed during the timing."""
    memory_gb: Finite = Field(gt=0, examples=[23.4])
    """Main memory in GiB."""
    accelerator: str | None = Field(default=None, examples=["NVIDIA H100"])
    """Accelerator that ran the work; absent when the CPU did."""


class Record(Model):
    """One experiment: a technique beside its baseline on named data, over a sweep of its knob."""

    schema_version: Literal[1] = Field(default=1, examples=[1])
    """Version of this schema."""
    technique: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", examples=["token-merging"])
    """Id of the entry."""
    scenario: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", examples=["saliency-photos"])
    """Name of the scenario in `experiments/<id>.py`."""
    title: str = Field(examples=["ViT-S/14 saliency on 12 photos"])
    """The scenario in a line."""
    budget: Literal["smoke", "full"] = Field(examples=["full"])
    """`smoke` runs in seconds on data that is always there; `full` is what the published numbers come from."""
    data: str = Field(examples=["12 photos of scikit-image and scikit-learn, 224 x 224"])
    """The data, with its number of items and its split."""
    model: str | None = Field(
        default=None, examples=["ViT-S/14 with a convolutional saliency decoder, 24.3 M parameters"]
    )
    """The host model, where there is one."""
    unit: str = Field(examples=["one image"])
    """The unit of work that `operations`, `bytes` and `wall_ms` refer to."""
    knobs: tuple[str, ...] = Field(min_length=1, examples=[["r"]])
    """Names of the knobs that the sweep moves, the main one first."""
    baseline: Arm = Field(examples=[{}])
    """The best native dense way to get the result, without the technique."""
    with_: tuple[Point, ...] = Field(alias="with", min_length=1, examples=[[]])
    """The technique, point by point over its knobs."""
    controls: tuple[Control, ...] = Field(default=(), examples=[[]])
    """Null cases."""
    redundancy: Measured = Field(examples=[{"measure": "mean best-match cosine of keys", "value": 0.87}])
    """How much redundancy the data hold, by the technique's own measure."""
    seeds: tuple[int, ...] = Field(min_length=1, examples=[[0, 1, 2]])
    """Seeds that were run."""
    device: str = Field(default="cpu", examples=["cpu"])
    """Torch device."""
    machine: Machine = Field(examples=[{}])
    """Where it was measured."""
    versions: dict[str, str] = Field(examples=[{"python": "3.11.7", "torch": "2.13.0"}])
    """Versions of Python, of the libraries that matter, and the commit of the atlas."""
    command: str = Field(examples=["redundancy run token-merging --budget full"])
    """The command that measures it again."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", examples=["2026-11-22"])
    """Day of the measurement."""
    notes: tuple[str, ...] = Field(default=(), examples=[["Agreement with the dense model, not accuracy: no labels."]])
    """What a reader must know to read the numbers rightly."""
    extra: dict[str, Finite | tuple[Finite, ...] | tuple[tuple[Finite, ...], ...] | str] = Field(
        default_factory=dict, examples=[{"exit_share": [0.4, 0.3, 0.3]}]
    )
    """Further measured numbers and small arrays, for the notebook and the page."""

    @model_validator(mode="after")
    def _points_name_their_knobs(self) -> Record:
        for point in self.with_:
            if missing := set(self.knobs) - set(point.knobs):
                raise ValueError(f"a point of the sweep does not say its {', '.join(sorted(missing))}")
        return self

    def to_json(self) -> str:
        """The record as indented JSON, keys as in the schema (`with`, not `with_`), absent optionals left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"
