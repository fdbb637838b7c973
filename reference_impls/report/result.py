"""What a redundancy report holds: measurements, curves, null controls and ceilings of one model on some data.

Shares are of what the dense model spends on one item of the sample: 0.3 of the MACs means that 30 % of its
multiply-accumulates fall away. The relation, the location and the granularity of a finding are terms of the taxonomy,
so that a catalogue can be laid over it. Nothing here ranks or judges; what to try first is for whoever reads it.

    result = Result.load(folder)                   # or Result.from_json(text)
    result.finding("tokens").at_budget.macs_saved  # an Interval, or None where no setting keeps the budget
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from reference_impls.accounting.record import Count, Finite, Interval, Knob, Machine, Milliseconds, Model, Text, Units

VERSION: Literal[1] = 1
"""Of the schema of `report.json`."""
FILE = "report.json"
Kind = Literal["image", "video", "text", "tokens"]
Share = Annotated[float, Field(allow_inf_nan=False, le=1, ge=-1e6)]
"""A share of the dense model's cost; negative where an overhead is larger than what is saved."""
Saves = Literal["inference", "training", "bits"]
"""What the saving of a finding is a share of: the MACs of an inference, those of a training, the bits of operands."""


class Budget(Model):
    """How much the outputs may change; one of the three is given."""

    flips: Finite | None = Field(default=None, ge=0, le=1, examples=[0.01])
    """Largest share of answers that may change."""
    error: Finite | None = Field(default=None, ge=0, examples=[0.05])
    """Largest relative error of the output, |y - y'| / |y|."""
    metric: Finite | None = Field(default=None, ge=0, le=1, examples=[0.01])
    """Largest loss of accuracy on the labels."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.flips, self.error, self.metric)) != 1:
            raise ValueError("give one of flips, error and metric, such as budget={'flips': 0.01}")
        return self

    @property
    def name(self) -> Literal["flips", "error", "metric"]:
        """Which of the three is given."""
        return "flips" if self.flips is not None else "error" if self.error is not None else "metric"

    @property
    def limit(self) -> float:
        """The one that is given."""
        return next(value for value in (self.flips, self.error, self.metric) if value is not None)


class ModelFacts(Model):
    """The model as it was found."""

    name: Text
    """Its class, or what the caller calls it."""
    parameters: Count
    macs: Count
    """Multiply-accumulates of one item, dense, in closed form from the shapes of its operators."""
    bytes: Count
    """Operands read and results written for one item."""
    ms: Milliseconds
    """Wall-clock of one item within a batch of `DataFacts.batch`, the best of a few runs on this machine."""
    device: Text
    dtype: Text
    output: Text
    """What the errors are taken on, such as "logits (B, 1000)"."""
    answer: Text | None
    """What a flip is a change of, such as "the class of each item"; None where the output holds no decision."""
    was_training: bool = False
    """It came in training mode and was measured in evaluation mode."""


class DataFacts(Model):
    """The sample that was measured."""

    name: Text
    kind: Kind
    asked: Units
    """Items that the caller asked for."""
    items: Units
    """Images, frames or texts in the sample."""
    clips: Count = 0
    """Clips that the frames come from; 0 where there is no order of time."""
    seen: Count
    """Items read from the loader, for the measures that take everything (exact repetition)."""
    ended: bool
    """The loader came to its end, so `seen` is all of it."""
    batch: Units
    """Items in the batches of the sample."""
    shapes: tuple[Text, ...]
    """Shapes of what the model is given, such as "pixel_values (8, 3, 224, 224) float32"."""
    labelled: bool = False


class Layer(Model):
    """One operator with a formula for its MACs, as often as it runs for an item."""

    name: Text = Field(examples=["blocks.3.attn.qkv"])
    """The module in which it runs; with `#2` and so on where a module runs several."""
    type: Text = Field(examples=["linear"])
    """conv, linear, matmul, attention, recurrent or other."""
    operator: Text = Field(examples=["aten.addmm.default"])
    macs: Count
    """For one item."""
    bytes: Count
    """Read and written for one item."""
    time_share: Finite = Field(ge=0, le=1)
    """Of the model's wall-clock on this machine."""
    analysed: bool
    """Whether any finding looks inside it."""


class NotAnalysed(Model):
    """What no measure has looked at."""

    what: Text
    why: Text
    macs_share: Finite = Field(ge=0, le=1)
    time_share: Finite = Field(ge=0, le=1)


class CurvePoint(Model):
    """The ideal reuse at one setting, simulated, with the rest of the model run on its results."""

    setting: dict[Text, Knob]
    """In the axis's own terms; `Suggestion.knobs` has them in those of a technique."""
    macs_saved: Interval
    """Share of the model's MACs, in closed form; of the training's or of the bits where `Finding.saves` says so."""
    time_saved: Share | None
    """Share of the wall-clock that this machine could save at best; None where the saving is not in this inference."""
    error: Interval | None
    """Relative error of the output, |y - y'| / |y| of each item; the interval is a bootstrap over items or clips. None
    where the reuse gives an answer but no output."""
    flips: Interval | None
    """Share of answers that change; None where the output holds no decision."""
    metric: Interval | None = None
    """Accuracy on the labels minus that of the dense model, where labels are given."""
    within_budget: bool
    """Whether the mean keeps the user's budget."""
    n: Units
    """Items that the point was measured on: points away from the budget see a part of the sample."""


class AtLayer(Model):
    """One finding in one layer: a cell of the heat map."""

    layer: Text
    """Name of a `Layer`, or of the block of modules that the axis looks at."""
    value: Finite = Field(ge=0, le=1)
    null: dict[Text, Finite] = Field(default_factory=dict)
    """The same measure under each null control."""
    saved: Share | None = None
    """Share of this layer's MACs that falls away at the user's budget."""


class Suggestion(Model):
    """A technique of the atlas that exploits this finding, with the values to start from."""

    technique: Text
    """Id of the entry."""
    knobs: dict[Text, Knob]
    """Starting values, at the user's budget; empty where the technique's own defaults are the start."""
    execution: Literal["real", "simulated"]
    applies: bool | None
    """Whether `apply` accepts this model; None where that was not tried (it trains, or takes a data set)."""
    needs: Text = ""
    """Why not, in the words of the technique's own refusal."""


class Finding(Model):
    """One kind of redundancy at one place of the model or the data."""

    axis: Text = Field(examples=["temporal-tiles"])
    """Id of the axis of the report; one finding an axis."""
    title: Text
    relation: Text
    """Term of the taxonomy's axis `relation`, and so on."""
    location: Text
    granularity: Text
    saves: Saves
    measure: Text
    """What is measured, in a line; `source` has the formula."""
    source: Text
    """Function that measures, such as "reference_impls.redundancy.temporal_similarity:temporal_similarity"."""
    value: Interval
    """In [0, 1]: how much redundancy there is."""
    null: dict[Text, Interval] = Field(default_factory=dict)
    """The same on null controls: shuffled frames, shuffled pixels, noise, re-initialised weights."""
    excess: Finite | None
    """`value` minus the largest null of the data, the order of frames aside; None without nulls."""
    separable: bool | None
    """Whether the interval of the value lies above those of all nulls of the data; if not, the redundancy may be the
    architecture's. A null of the weights that is as high says that it was not learnt. None without nulls."""
    layers: tuple[AtLayer, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    """From the gentlest setting to the hardest; empty where nothing was simulated (`notes` says why)."""
    best: Count | None = None
    """Index in `curve` of the largest saving within the budget; None where no setting keeps it."""
    ceiling_macs: Share
    """Share of MACs at the budget, closed form; 0 where no setting keeps it."""
    ceiling_time: Share | None
    """Share of time at the budget that this machine could realise; None where `saves` is not an inference."""
    suggestions: tuple[Suggestion, ...] = ()
    notes: tuple[Text, ...] = ()
    """What limits this finding, in sentences."""

    @property
    def at_budget(self) -> CurvePoint | None:
        """The point of the curve with the largest saving within the budget."""
        return None if self.best is None else self.curve[self.best]


class Joint(Model):
    """Two findings exploited together, simulated in one run."""

    axes: tuple[Text, Text]
    settings: tuple[dict[Text, Knob], dict[Text, Knob]]
    macs_saved: Interval
    """Of both together, counted once where they overlap."""
    alone: tuple[Share, Share]
    """What each saves without the other, at the same settings."""
    error: Interval
    flips: Interval | None
    within_budget: bool


class Calibration(Model):
    """What overheads cost on this machine, measured in at most 5 seconds."""

    product_gmacs_s: Finite = Field(gt=0)
    """Dense matrix product of a large size, 10^9 MACs in a second."""
    small_product_gmacs_s: Finite = Field(gt=0)
    """The same rows in many small products, as tiles and clusters have them."""
    gather_gb_s: Finite = Field(gt=0)
    """Rows gathered by an index, read and written."""
    scatter_gb_s: Finite = Field(gt=0)
    """Rows scattered by an index."""
    compare_gb_s: Finite = Field(gt=0)
    """Two feature maps compared with a threshold, and the maximum of each tile."""
    hash_grows_s: Finite = Field(gt=0)
    """10^9 (row, bit) pairs of sign hashes in a second."""
    call_us: Finite = Field(gt=0)
    """One operator on a tiny tensor: what a dispatch costs."""
    bf16_speed_up: Finite | None
    """Time of the float32 product over that in bfloat16; None where it cannot run."""
    int8_speed_up: Finite | None
    """The same for int8."""
    threads: Units
    seconds: Finite = Field(ge=0)


class Result(Model):
    """The measuring side of a redundancy report."""

    schema_version: Literal[1] = VERSION
    model: ModelFacts
    data: DataFacts
    budget: Budget
    seed: Count
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    """In the order of the axes, not of their size."""
    joint: Joint | None
    """The pair of compatible findings that saves most within the budget; None where there are not two."""
    not_analysed: tuple[NotAnalysed, ...]
    calibration: Calibration
    machine: Machine
    versions: dict[Text, Text]
    seconds: Finite = Field(ge=0)
    """Wall-clock of the whole report."""
    complete: bool
    """False where it was interrupted: the findings are those that were done."""
    notes: tuple[Text, ...] = ()

    def finding(self, axis: str) -> Finding:
        """The finding of an axis. Raises: LookupError with those that there are."""
        for found in self.findings:
            if found.axis == axis:
                return found
        raise LookupError(f"no finding is called {axis!r}; there are: {', '.join(f.axis for f in self.findings)}")

    @property
    def table(self) -> str:
        """One line a finding, for a terminal."""
        return "\n".join(_table(self))

    def to_json(self) -> str:
        """The report as JSON, stable in the order of its keys."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises: ValueError that says what is wrong with which field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ValueError(f"this is no report of version {VERSION}: {where}: {first['msg']}") from None

    def save(self, folder: Path | str) -> Path:
        """Write `report.json` and `report.txt` into a folder, which is made; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((FILE, self.to_json()), ("report.txt", self.table + "\n")):
            part = folder / f"{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """What `save` wrote. Raises: OSError; ValueError as `from_json`."""
        return cls.from_json((Path(folder) / FILE).read_text(encoding="utf-8"))

    def stable(self) -> dict[str, Any]:
        """Everything that one seed gives again on any machine: no times, no machine, no versions."""
        found = self.model_dump(mode="json", exclude={"calibration", "machine", "versions", "seconds"})
        found["model"].pop("ms")
        for layer in found["layers"]:
            layer.pop("time_share")
        for part in found["not_analysed"]:
            part.pop("time_share")
        for one in found["findings"]:
            one.pop("ceiling_time")
            for point in one["curve"]:
                point.pop("time_saved")
        return found


def schema() -> dict[str, Any]:
    """The JSON schema of `report.json`."""
    return Result.model_json_schema()


def _table(result: Result) -> Iterator[str]:
    head = ("axis", "redundancy", "null", "MACs saved", "time here", "error", "flips", "try")
    rows = [head]
    for found in result.findings:
        point = found.at_budget
        rows.append((
            found.axis,
            f"{found.value.value:.2f}",
            f"{max(n.value for n in found.null.values()):.2f}" if found.null else "",
            f"{found.ceiling_macs:.0%}" + {"inference": "", "training": " training", "bits": " bits"}[found.saves],
            "" if found.ceiling_time is None else f"{found.ceiling_time:.0%}",
            f"{point.error.value:.3f}" if point and point.error else "",
            f"{point.flips.value:.1%}" if point and point.flips else "",
            ", ".join(s.technique for s in found.suggestions if s.applies is not False) if point else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = {0, len(head) - 1}
    yield (
        f"{result.model.name}: {result.model.macs / 1e9:.3g} GMAC and {result.model.ms:.3g} ms an item; "
        f"budget {result.budget.name} <= {result.budget.limit:g}"
    )
    for row in rows:
        cells = (c.ljust(w) if i in text else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        yield "  ".join(cells).rstrip()
    for part in result.not_analysed:
        yield f"not analysed: {part.what} ({part.macs_share:.0%} of the MACs): {part.why}"
    if result.joint:
        alone = " and ".join(f"{share:.0%}" for share in result.joint.alone)
        both = " + ".join(result.joint.axes)
        yield f"together {both}: {result.joint.macs_saved.value:.0%} of the MACs (alone {alone})"
    if not result.complete:
        yield "interrupted: the rest of the axes was not measured"
