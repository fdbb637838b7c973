"""The models of what `taxonomy/` and `papers/` hold. The schema of results is `reference_impls.accounting.record`.

Unknown keys are refused, and every field has a description and an example, because the JSON Schemas that editors use
are generated from here (`tools.knowledge.editor`). Terms are not listed here: they stand in `taxonomy/axes.yml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    WithJsonSchema,
    model_validator,
)

ID = r"^[a-z0-9]+(-[a-z0-9]+)*$"
KEY = r"^[a-z]+(-[a-z]+)*-(19|20)[0-9]{2}-[a-z0-9]+$"
TERM = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"
URL = r'^https?://[^\s<>"]+$'

Status = Literal["draft", "stable", "deprecated"]
Role = Literal["introduces", "ancestor", "extends", "analyses", "applies"]
Verdict = Literal[
    "reproduced",
    "same effect in another setting",
    "partly",
    "not shown",
    "does not discriminate",
    "contradicted",
    "not attempted",
]
Differing = Literal["task", "data", "model", "quantity"]
SETTING: Final = ("task", "data", "model")
"""What makes up a setting; where all of it differs, the verdict says so."""


def _no_bool(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


NOT_BLANK = r"\S"
Text = Annotated[str, Field(min_length=1, pattern=NOT_BLANK)]
Prose = Annotated[str, Field(min_length=1, pattern=NOT_BLANK)]
"""Markdown, which may hold $LaTeX$; no raw HTML."""
Label = Annotated[
    str,
    BeforeValidator(_no_bool),
    Field(min_length=1, pattern=NOT_BLANK),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1, "pattern": NOT_BLANK}, mode="validation"),
]
"""A text that may be written as a bare integer: `table: 4`."""
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Bool = Annotated[bool, Field(strict=True)]
Date = Annotated[str, Field(pattern=DATE)]
Url = Annotated[str, Field(pattern=URL)]
Id = Annotated[str, Field(pattern=ID)]
PaperKey = Annotated[str, Field(pattern=KEY)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- taxonomy/axes.yml


class Term(Model):
    """One term of an axis."""

    name: Text = Field(examples=["Temporal similarity"])
    """The term as a reader sees it."""
    definition: Prose = Field(examples=["Close to what the same source gave at an earlier time."])
    """What it means."""
    question: Prose | None = Field(default=None, examples=["Is the reference the past of the same stream?"])
    """The question whose answer is yes exactly for this term."""
    tie_break: Prose | None = Field(default=None, examples=["It needs state carried from one input to the next."])
    """What decides when another term seems to fit as well."""


class Axis(Model):
    """One question about a technique, and the terms that answer it."""

    name: Text = Field(examples=["Relation"])
    """The axis as a reader sees it."""
    choice: Literal["single", "primary", "multi"] = Field(examples=["primary"])
    """`single`: exactly one term. `primary`: one term decides, others may follow as secondary. `multi`: all that
    apply, the main one first."""
    question: Prose = Field(examples=["Why is it redundant?"])
    """The question that the axis answers."""
    definition: Prose = Field(examples=["The reason why the unit can go without harm."])
    """What the axis is about."""
    rule: Prose | None = Field(default=None, examples=["Name the signal that is thresholded or ranked."])
    """How to choose among its terms."""
    tie_breaks: tuple[Prose, ...] = Field(default=(), examples=[["An equality test would find it: exact repetition."]])
    """What decides when two terms fit, in the order in which to ask."""
    rulings: tuple[Prose, ...] = Field(default=(), examples=[["Uniform stride sampling: over-resolution, rescale."]])
    """Hard cases that were decided."""
    optional_for: tuple[Literal["technique", "system", "study"], ...] = Field(default=(), examples=[["study"]])
    """Kinds of entry that need no term on this axis."""
    terms: dict[Annotated[str, Field(pattern=TERM)], Term] = Field(min_length=2, examples=[{}])
    """The terms, in the order in which to show them."""


class Step(Model):
    """One step of the decision card."""

    ask: Prose = Field(examples=["What unit is removed, shared or made cheaper?"])
    """The question."""
    axes: tuple[Text, ...] = Field(default=(), examples=[["granularity"]])
    """The axes that the answer fills."""


class Axes(Model):
    """`taxonomy/axes.yml`: the vocabulary of the atlas."""

    about: Prose = Field(examples=["The vocabulary of the atlas, inspired by Chen et al. (2023)."])
    """Where the vocabulary comes from."""
    scope_rule: Prose = Field(examples=["Would the saving vanish on independent noise?"])
    """What belongs into the atlas, and what does not."""
    decision_card: tuple[Step, ...] = Field(min_length=1, examples=[[{"ask": "Which unit?", "axes": ["granularity"]}]])
    """The order in which to classify a technique."""
    axes: dict[Annotated[str, Field(pattern=TERM)], Axis] = Field(min_length=1, examples=[{}])
    """The axes, in the order in which to show them."""

    def __getitem__(self, axis: str) -> Axis:
        return self.axes[axis]

    def __contains__(self, axis: object) -> bool:
        return axis in self.axes

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)


# --- taxonomy/techniques/<id>.yml


class Terms(RootModel[tuple[str, ...]]):
    """The terms of an entry on one axis: a term, or a list whose first term is the primary one."""

    model_config = ConfigDict(frozen=True)
    root: Annotated[
        tuple[Annotated[str, Field(pattern=TERM)], ...],
        BeforeValidator(_listed),
        Field(min_length=1),
        PlainSerializer(lambda terms: terms[0] if len(terms) == 1 else list(terms), return_type=Any),
    ]

    @property
    def primary(self) -> str:
        """The term that classifies the entry."""
        return self.root[0]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.root)

    def __contains__(self, term: object) -> bool:
        return term in self.root

    def __len__(self) -> int:
        return len(self.root)


class AlgorithmStep(Model):
    """One step of the algorithm, and the function that does it."""

    step: Prose = Field(examples=["Split the tokens into two sets, alternating."])
    """What is done."""
    function: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", examples=["bipartite_soft_matching"]
    )
    """The function, class or `Class.method` of the implementation that does it."""


class PaperLink(Model):
    """A paper of an entry."""

    key: PaperKey = Field(examples=["bolya-2023-token"])
    """Key of the paper: the name of its file in `papers/`."""
    role: Role = Field(examples=["introduces"])
    """What the paper is to the technique."""


class Relation(Model):
    """A relation to another entry."""

    type: Literal[
        "generalises", "variant-of", "analogue-of", "composes-with", "conflicts-with", "supersedes"
    ] = Field(examples=["composes-with"])  # fmt: skip
    """Kind of relation, read from this entry to the target. A `variant-of` is the same idea for the same unit; an
    `analogue-of` is the same idea at another place, for another unit or another kind of data, said from one side."""
    target: Id = Field(examples=["confidence-early-exit"])
    """Id of the other entry."""
    note: Prose = Field(examples=["Merging makes each block cheaper, exiting leaves blocks out."])
    """Why, or under which condition."""


class Entry(Model):
    """`taxonomy/techniques/<id>.yml`: a technique, a system of techniques, or a study."""

    id: Id = Field(examples=["token-merging"])
    """Name of this file, of the page, and with underscores of the module, the notebook and the test. Never renamed."""
    kind: Literal["technique", "system", "study"] = Field(examples=["technique"])
    """`technique` removes a redundancy, `system` composes techniques, `study` measures and removes nothing."""
    name: Text = Field(max_length=80, examples=["Token merging"])
    """The name as a reader sees it."""
    aliases: tuple[Text, ...] = Field(default=(), examples=[["ToMe"]])
    """Other names that readers may look for."""
    status: Status = Field(examples=["draft"])
    """`draft` has no implementation yet, `stable` has everything, `deprecated` is kept for those who look for it."""
    replaced_by: Id | None = Field(default=None, examples=["token-merging"])
    """For a deprecated entry: the id of the entry to use in its place."""
    added: Date = Field(examples=["2026-11-22"])
    """Day on which the entry was added."""
    reviewed: Date | None = Field(default=None, examples=["2026-11-29"])
    """Day on which somebody last read the entry against its papers; `redundancy review` lists the oldest."""
    founding: Bool = Field(default=False, examples=[False])
    """Whether the entry stands for one of the founding documents."""
    axes: dict[str, Terms] = Field(examples=[{"scope": "core", "relation": ["spatial_similarity", "irrelevance"]}])
    """Classification: for each axis of `taxonomy/axes.yml` a term, or a list whose first term is the primary one."""
    summary: Text = Field(max_length=160, examples=["Average the most similar tokens in every block, dropping none."])
    """What it does, in one sentence of at most 160 characters."""
    definition: Prose | None = Field(default=None, examples=["Between attention and MLP, $r$ tokens are merged."])
    """What exactly it is, in Markdown with $LaTeX$."""
    algorithm: tuple[AlgorithmStep, ...] = Field(
        default=(), examples=[[{"step": "Match the tokens.", "function": "bipartite_soft_matching"}]]
    )
    """The algorithm, step by step."""
    invariant: Prose | None = Field(default=None, examples=["With $r = 0$ the output equals the dense model's."])
    """What a test of an implementation must hold: an equality or a bound that follows from the definition."""
    invariant_untested: Prose | None = Field(
        default=None, examples=["Which items are twins is decided by an embedding and by eye, on real data."]
    )
    """For a draft whose invariant `tests/test_invariants.py` does not try on numbers: why that needs code first."""
    cost_model: Text | None = Field(default=None, examples=[r"N^2 C \to (N - r)^2 C"])
    """MACs with and without, overhead included, as LaTeX without dollar signs."""
    symbols: dict[Text, Text] = Field(default_factory=dict, examples=[{"N": "tokens", "r": "tokens merged in a block"}])
    """What the symbols of the cost model mean: LaTeX without dollar signs -> words."""
    when_to_use: tuple[Prose, ...] = Field(default=(), examples=[["Many tokens show the same thing."]])
    """Conditions under which it pays."""
    when_not_to_use: tuple[Prose, ...] = Field(default=(), examples=[["The input has fewer than 100 tokens."]])
    """Conditions under which it does not pay, or harms."""
    limits: tuple[Prose, ...] = Field(default=(), examples=[["Dense prediction needs the tokens back."]])
    """What it cannot do."""
    deviations: tuple[Prose, ...] = Field(default=(), examples=[["Ties go to the lower index."]])
    """Where our implementation departs from the paper."""
    papers: tuple[PaperLink, ...] = Field(min_length=1, examples=[[{"key": "bolya-2023-token", "role": "introduces"}]])
    """Its papers."""
    relations: tuple[Relation, ...] = Field(default=(), examples=[[]])
    """Relations to other entries."""
    parts: tuple[Id, ...] = Field(default=(), examples=[["token-merging", "confidence-early-exit"]])
    """For a system: the ids of the techniques that it composes."""
    implementation: str | None = Field(
        default=None,
        pattern=r"^reference_impls(\.[a-z_][a-z0-9_]*)+:[A-Za-z_]\w*$",
        examples=["reference_impls.techniques.token_merging:TokenMerging"],
    )
    """`module:Class` of the implementation; absent for a draft."""


# --- papers/<key>.yml


class Author(Model):
    """An author of a paper."""

    family: Text = Field(examples=["Bolya"])
    """Family name."""
    given: Text | None = Field(default=None, examples=["Daniel"])
    """Given names, as the paper has them."""


class Ids(Model):
    """Identifiers of a paper."""

    arxiv: str | None = Field(
        default=None, pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$", examples=["2210.09461"]
    )
    """arXiv id without version, in quotes."""
    doi: str | None = Field(default=None, pattern=r"^10\.\d{4,9}/\S+$", examples=["10.1145/3564663"])
    """DOI without `https://doi.org/`."""
    url: Url | None = Field(default=None, examples=["https://openreview.net/forum?id=JroZRaRw7Eu"])
    """Page of the paper, where it has no arXiv id or DOI, or a better one."""

    @model_validator(mode="after")
    def _one(self) -> Ids:
        if not self.model_fields_set:
            raise ValueError("give at least one of arxiv, doi, url, or leave ids out")
        return self


class Code(Model):
    """A repository with code of the paper."""

    url: Url = Field(examples=["https://github.com/facebookresearch/ToMe"])
    """Address."""
    official: Bool = Field(examples=[True])
    """Whether the authors published it."""
    licence: Text | None = Field(default=None, examples=["CC-BY-NC-4.0"])
    """SPDX identifier of its licence, or what it says of it."""


class Verified(Model):
    """Who vouches for the bibliographic data."""

    source: Text = Field(examples=["arXiv listing"])
    """Where title, authors, year and venue were read."""
    on: Date = Field(examples=["2026-11-22"])
    """Day on which they were read."""


class Quantity(Model):
    """The number of a claim."""

    metric: Text = Field(examples=["throughput"])
    """What is measured."""
    value: Number = Field(examples=[2.0])
    """The number, with every digit that the paper prints."""
    printed: Text | None = Field(default=None, examples=["2.0"])
    """How the paper prints it, where that ends in zeros that `value` cannot hold; in quotes."""
    unit: Text = Field(examples=["times"])
    """Its unit: `times`, `percent`, `percentage points`, `GFLOPs`, `ms`..."""
    baseline: Label | None = Field(default=None, examples=["the same model without merging"])
    """What it is compared with, in words."""

    @model_validator(mode="after")
    def _printed_is_the_value(self) -> Quantity:
        if self.printed is not None:
            try:
                same = float(self.printed) == self.value
            except ValueError:
                same = False
            if not same:
                raise ValueError(f"printed {self.printed!r} is another number than value {self.value!r}")
        return self

    @property
    def text(self) -> str:
        """The number as the paper prints it."""
        return self.printed or format(Decimal(repr(self.value)).normalize(), "f")


class Setting(Model):
    """The setting in which the number was obtained."""

    task: Label | None = Field(default=None, examples=["image classification"])
    """Task."""
    dataset: Label | None = Field(default=None, examples=["ImageNet-1k"])
    """Data set and split."""
    model: Label | None = Field(default=None, examples=["ViT-L at 512 px"])
    """Model."""
    hardware: Label | None = Field(default=None, examples=["V100"])
    """Machine."""
    batch: Label | None = Field(default=None, examples=[32])
    """Batch size."""
    precision: Label | None = Field(default=None, examples=["fp16"])
    """Number format."""


class Locator(Model):
    """Where in the paper a reader finds the claim; at least one."""

    section: Label | None = Field(default=None, examples=["abstract"])
    """Number or name of the section; a number with a point in quotes."""
    table: Label | None = Field(default=None, examples=[4])
    """Number of the table."""
    figure: Label | None = Field(default=None, examples=[2])
    """Number of the figure."""
    equation: Label | None = Field(default=None, examples=[3])
    """Number of the equation."""
    page: Label | None = Field(default=None, examples=[7])
    """Page."""
    file: Label | None = Field(default=None, examples=["README.md"])
    """File of the official repository."""

    @model_validator(mode="after")
    def _one(self) -> Locator:
        if not self.model_fields_set:
            raise ValueError("give at least one of section, table, figure, equation, page, file")
        return self


class OperatingPoint(Model):
    """Where on its trade-off the paper makes a claim. Ours is judged at the point nearest to it, not at the best."""

    field: Text = Field(examples=["nearest.quality.value - baseline.quality.value"])
    """What tells the points apart: a field whose `nearest` is the item that `point=nearest` selects."""
    target: Number = Field(examples=[-1.5])
    """Its value at the paper's operating point, in `unit`."""
    tolerance: Annotated[Number, Field(ge=0)] = Field(examples=[0.5])
    """How far from it a point may lie and still be compared as the same, in `unit`."""
    unit: Text | None = Field(default=None, examples=["percentage points"])
    """Its unit, converted like that of the check."""


class Check(Model):
    """How a claim is compared with our own results. The verdict is computed from it, never typed."""

    scenario: Id = Field(examples=["speed-vit-s16"])
    """Scenario of the claim's technique: `reference_impls/results/<technique>/<scenario>.json`."""
    field: Text = Field(examples=["baseline.wall_ms.median / points[r=13].wall_ms.median"])
    """The number in the result record: a path, or the ratio or difference of two (see `tools.knowledge.fields`)."""
    target: Number = Field(examples=[2.0])
    """What the number should be if the claim holds, in `unit`."""
    tolerance: Annotated[Number, Field(ge=0)] = Field(examples=[0.2])
    """How far from the target it may lie, in `unit`."""
    unit: Text | None = Field(default=None, examples=["percentage points"])
    """Unit in which the paper's number and ours are shown beside each other: ours, a share or a count, is converted to
    `percent`, `percentage points`, `million` or `billion`; any other unit is that of the field."""
    differs: tuple[Differing, ...] | None = Field(default=None, examples=[["data", "model"]])
    """In what our setting is another one than the paper's; empty where in nothing. `quantity`: the number stands for
    another quantity than the paper's, so that only its direction is compared."""
    at: OperatingPoint | None = Field(
        default=None,
        examples=[{"field": "nearest.redundancy", "target": 50, "tolerance": 10, "unit": "percent"}],
    )
    """The operating point of the paper, where the field selects `point=nearest`."""
    better: Literal["higher", "lower"] | None = Field(default=None, examples=["higher"])
    """The side of the target on which the claim holds even more; absent if both sides are failures."""
    neutral: Number | None = Field(default=None, examples=[0.0])
    """The number that would mean no effect; by default 1 for a ratio and 0 for a difference or a share."""
    note: Prose | None = Field(default=None, examples=["On a CPU; the paper's is a V100."])
    """In what our setting differs from the paper's."""


class Claim(Model):
    """A claim of a paper, in our own words, with the place where it is made."""

    id: str = Field(pattern=r"^c[1-9][0-9]*$", examples=["c1"])
    """`c1`, `c2`...: never renumbered."""
    technique: Id = Field(examples=["token-merging"])
    """Id of the entry that the claim is about."""
    kind: Literal[
        "speedup", "operations", "accuracy", "memory", "energy", "definition", "applicability", "negative"
    ] = Field(examples=["speedup"])
    """What sort of claim it is."""
    statement: Prose = Field(examples=["Doubles the throughput of ViT-L at 512 px without training."])
    """The claim, in our own words."""
    quantity: Quantity | None = Field(default=None, examples=[{"metric": "throughput", "value": 2.0, "unit": "times"}])
    """The number, where there is one."""
    setting: Setting | None = Field(default=None, examples=[{"dataset": "ImageNet-1k", "model": "ViT-L"}])
    """The setting of the number."""
    locator: Locator = Field(examples=[{"section": "abstract"}])
    """Where the paper makes the claim."""
    seen_at: Text | None = Field(default=None, examples=["README of the official repository"])
    """Where it was read, if not in the paper itself."""
    check: Check | None = Field(
        default=None,
        examples=[{"scenario": "speed-vit-s16", "field": "redundancy.value", "target": 2, "tolerance": 0.2}],
    )
    """How our results bear on it; absent as long as nothing here can speak for or against it."""


class Paper(Model):
    """`papers/<key>.yml`: a paper and its claims."""

    key: PaperKey = Field(examples=["bolya-2023-token"])
    """Name of this file: first author's family name, year, first telling word of the title. `unknown-...` only as long
    as the first author cannot be confirmed."""
    title: Text = Field(examples=["Token Merging: Your ViT But Faster"])
    """Title."""
    kind: Literal["method", "analysis", "survey", "benchmark"] = Field(default="method", examples=["method"])
    """`method` proposes a way to remove a redundancy; `analysis` measures, explains or refutes; `survey` reviews
    others; `benchmark` offers data, a comparison or a library."""
    authors: tuple[Author, ...] = Field(default=(), examples=[[{"family": "Bolya", "given": "Daniel"}]])
    """Authors in the paper's order, as far as they are confirmed."""
    et_al: Bool = Field(default=False, examples=[False])
    """Whether the paper has more authors than are confirmed."""
    year: Annotated[int, Field(ge=1900, le=2100, strict=True)] | None = Field(default=None, examples=[2023])
    """Year of the publication named in `venue`."""
    venue: Text | None = Field(default=None, examples=["ICLR 2023"])
    """Where it was published."""
    ids: Ids = Field(default_factory=Ids.model_construct, examples=[{"arxiv": "2210.09461"}])
    """Identifiers; absent as long as none is confirmed."""
    code: tuple[Code, ...] = Field(default=(), examples=[[]])
    """Repositories with its code."""
    axes: dict[str, Terms] = Field(
        default_factory=dict, examples=[{"scope": "core", "relation": ["spatial_similarity", "irrelevance"]}]
    )
    """Classification, as of an entry: what the paper mainly does. A survey has none."""
    summary: Prose = Field(examples=["Shows that merging similar tokens speeds up a ViT without training it again."])
    """One or two sentences, in our own words."""
    founding: Bool = Field(default=False, examples=[False])
    """Whether it is one of the founding documents."""
    verified: Verified = Field(examples=[{"source": "arXiv listing", "on": "2026-11-22"}])
    """Where the bibliographic data were confirmed."""
    claims: tuple[Claim, ...] = Field(default=(), examples=[[]])
    """Its claims."""

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """What a reference should have and nobody has confirmed yet."""
        have = {
            "authors": bool(self.authors) and not self.et_al,
            "year": self.year is not None,
            "venue": self.venue is not None,
            "identifier": bool(self.ids.arxiv or self.ids.doi or self.ids.url),
        }
        return tuple(name for name, known in have.items() if not known)


# --- taxonomy/hard_cases.yml, taxonomy/open_problems.yml, taxonomy/principles.yml


class HardCase(Model):
    """A case in which two careful readers may classify differently, and the ruling."""

    id: Id = Field(examples=["lsh-attention"])
    """Short name, unique in the file."""
    case: Prose = Field(examples=["Attention only among tokens of one hash bucket."])
    """The case, and why it is hard."""
    entries: tuple[Id, ...] = Field(default=(), examples=[["lsh-attention"]])
    """Entries that the ruling decides."""
    papers: tuple[PaperKey, ...] = Field(default=(), examples=[["kitaev-2020-reformer"]])
    """Papers that the ruling decides."""
    axis: str = Field(pattern=TERM, examples=["relation"])
    """The axis on which it is hard."""
    terms: tuple[Annotated[str, Field(pattern=TERM)], ...] = Field(
        min_length=1, examples=[["irrelevance", "spatial_similarity"]]
    )
    """The term that was ruled to be the primary one, then those that also seemed to fit."""
    ruling: Prose = Field(examples=["Irrelevance: the pairs that are left out are the dissimilar ones."])
    """What was decided."""
    because: Prose | None = Field(default=None, examples=["Tie-break 3: no stand-in takes their place."])
    """The rule that decides, where the ruling does not say it."""


class HardCases(Model):
    """`taxonomy/hard_cases.yml`."""

    about: Prose | None = Field(default=None, examples=["Cases in which two readers may differ."])
    """What the list is."""
    cases: tuple[HardCase, ...] = Field(examples=[[]])
    """The cases."""


class Support(Model):
    """What a statement rests on: exactly one of an entry, a paper, a claim or a measured result."""

    entry: Id | None = Field(default=None, examples=["token-merging"])
    """Id of an entry."""
    paper: PaperKey | None = Field(default=None, examples=["bolya-2023-token"])
    """Key of a paper."""
    claim: str | None = Field(default=None, pattern=KEY[:-1] + r"#c[1-9][0-9]*$", examples=["bolya-2023-token#c1"])
    """A claim: key of its paper, `#`, its id."""
    result: str | None = Field(
        default=None, pattern=ID[:-1] + "/" + ID[1:], examples=["token-merging/vit-small-latency"]
    )
    """A measured result: `technique/scenario`."""
    note: Prose | None = Field(default=None, examples=["MACs fall by 1.7, time by 1.6."])
    """What it shows of the statement."""

    @model_validator(mode="after")
    def _one(self) -> Support:
        if sum(value is not None for value in (self.entry, self.paper, self.claim, self.result)) != 1:
            raise ValueError("give exactly one of entry, paper, claim, result")
        return self


class Statement(Model):
    """One principle, or one open problem."""

    id: Id = Field(examples=["detection-must-be-cheaper-than-the-saving"])
    """Short name, unique in the file; never renamed."""
    title: Text = Field(max_length=120, examples=["Detection must cost less than it saves"])
    """The statement as a headline."""
    statement: Prose = Field(examples=["A detector that looks at every unit must be cheaper than the unit."])
    """The statement."""
    support: tuple[Support, ...] = Field(min_length=1, examples=[[{"entry": "token-merging"}]])
    """What it rests on."""


class Statements(Model):
    """`taxonomy/open_problems.yml` and `taxonomy/principles.yml`: the project's own reading, with what supports it."""

    about: Prose = Field(examples=["The project's own reading of its entries and results."])
    """Whose statements these are."""
    statements: tuple[Statement, ...] = Field(min_length=1, examples=[[]])
    """The statements, in the order in which to show them."""
