"""The documents of the API: what each holds, as models from which its JSON Schema is generated.

The models of the knowledge are exported as they are, with what was computed from them (verdicts, links back, pages)
beside it. Three things differ, for the sake of programs: terms are always a list, the primary one first; the claims of
a paper stand in a document of their own; and what is absent is left out, so that no document holds a null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from reference_impls.accounting.record import Record

from ..headlines import Saves
from ..knowledge.schema import (
    ID,
    KEY,
    TERM,
    Axis,
    Claim,
    Entry,
    HardCase,
    Id,
    Model,
    Number,
    Paper,
    PaperKey,
    Role,
    Statement,
    Status,
    Step,
    Verdict,
)  # fmt: skip

CLAIM = KEY[:-1] + r"#c[1-9][0-9]*$"
RESULT = ID[:-1] + "/" + ID[1:-1] + r"(\.[a-z]+)?$"
TIME = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$"

ClaimId = Annotated[str, Field(pattern=CLAIM)]
ResultId = Annotated[str, Field(pattern=RESULT)]
TermId = Annotated[str, Field(pattern=TERM)]
Terms = Annotated[tuple[TermId, ...], Field(min_length=1)]
Path = Annotated[str, Field(min_length=1)]


class EntryOut(Entry):
    """A technique, a system of techniques, or a study."""

    axes: dict[str, Terms] = Field(examples=[{"scope": ["core"], "relation": ["spatial_similarity"]}])  # type: ignore[assignment]
    """Classification: for each axis its terms, the primary one first."""
    execution: Literal["real", "simulated"] | None = Field(default=None, examples=["real"])
    """Whether the implementation executes fewer MACs or only masks; absent without an implementation."""
    waivers: dict[str, str] = Field(default_factory=dict, examples=[{"no_drift": "It carries no state."}])
    """Checks of the conformance checks that do not apply to the implementation, with the reason."""
    claims: tuple[ClaimId, ...] = Field(default=(), examples=[["bolya-2023-token#c1"]])
    """Claims about it."""
    results: tuple[ResultId, ...] = Field(default=(), examples=[["token-merging/vit-small-latency"]])
    """What was measured of it."""
    saves: tuple[Saves, ...] = Field(default=(), examples=[[]])
    """What it saves at a small loss, a kind of work each."""
    page: Path = Field(examples=["techniques/token-merging.html"])
    """Its page, relative to the root of the site."""
    file: Path = Field(examples=["taxonomy/techniques/token-merging.yml"])
    """Its file in the repository."""


class PaperEntry(Model):
    """An entry that names a paper."""

    entry: Id = Field(examples=["token-merging"])
    """Id of the entry."""
    role: Role = Field(examples=["introduces"])
    """What the paper is to it."""


class PaperOut(Paper):
    """A paper."""

    axes: dict[str, Terms] = Field(examples=[{"scope": ["core"], "relation": ["spatial_similarity"]}])  # type: ignore[assignment]
    """Classification: for each axis its terms, the primary one first."""
    claims: tuple[ClaimId, ...] = Field(default=(), examples=[["bolya-2023-token#c1"]])  # type: ignore[assignment]
    """Its claims."""
    entries: tuple[PaperEntry, ...] = Field(default=(), examples=[[{"entry": "token-merging", "role": "introduces"}]])
    """Entries that name it."""
    not_confirmed: tuple[Literal["authors", "year", "venue", "identifier"], ...] = Field(
        default=(), examples=[["venue"]]
    )
    """What a reference should have and nobody has confirmed yet."""
    page: Path = Field(examples=["papers/bolya-2023-token.html"])
    """Its page, relative to the root of the site."""
    file: Path = Field(examples=["papers/bolya-2023-token.yml"])
    """Its file in the repository."""


class ClaimOut(Claim):
    """A claim of a paper, with our verdict on it."""

    id: ClaimId = Field(examples=["bolya-2023-token#c1"])
    """Key of the paper, `#`, number of the claim."""
    paper: PaperKey = Field(examples=["bolya-2023-token"])
    """Key of the paper."""
    verdict: Verdict = Field(examples=["reproduced"])
    """How it compares with our results; computed, never typed."""
    because: str = Field(examples=["Within the tolerance: we measure 1.6, the target is 1.64 ± 0.15."])
    """The reason of the verdict."""
    measured: Number | None = Field(default=None, examples=[1.6])
    """What we measured, in the unit of the check; absent as long as nothing was."""
    interval: tuple[Number, Number] | None = Field(default=None, examples=[[1.58, 1.63]])
    """Its 95 % interval, where the result holds one."""
    controls: dict[str, Number] = Field(default_factory=dict, examples=[{"random merging": 1.6}])
    """What the controls gave that were asked the same."""
    result: ResultId | None = Field(default=None, examples=["token-merging/vit-small-latency"])
    """The result that `measured` was taken from."""
    page: Path = Field(examples=["papers/bolya-2023-token.html#c1"])
    """Its address, relative to the root of the site."""


class ResultOut(Record):
    """A measured result: a technique, or several, beside their baseline. An empty cell of a table is an empty text."""

    id: ResultId = Field(examples=["token-merging/vit-small-latency"])
    """Id of the entry or benchmark, `/`, the scenario; with the device after a point where it is not the CPU."""
    page: Path = Field(examples=["techniques/token-merging.html#vit-small-latency"])
    """Where the site shows it."""
    file: Path = Field(examples=["reference_impls/results/token-merging/vit-small-latency.json"])
    """Its file in the repository."""


class Node(Model):
    """An entry, a paper or a claim."""

    id: str = Field(pattern=r"^(entry|paper|claim):\S+$", examples=["entry:token-merging"])
    """Its sort, `:`, its id."""
    type: Literal["entry", "paper", "claim"] = Field(examples=["entry"])
    """Its sort."""
    name: str = Field(examples=["Token merging"])
    """Name of the entry, title of the paper, or statement of the claim."""
    status: Status | None = Field(default=None, examples=["stable"])
    """Of an entry."""
    verdict: Verdict | None = Field(default=None, examples=["reproduced"])
    """Of a claim."""
    page: Path = Field(examples=["techniques/token-merging.html"])
    """Where the site shows it."""


EdgeType = Literal[
    "generalises", "variant-of", "analogue-of", "composes-with", "conflicts-with", "supersedes", "has-part",
    "replaced-by", "introduces", "ancestor", "extends", "analyses", "applies", "claims", "about",
]  # fmt: skip


class Edge(Model):
    """A relation between two nodes, read from `source` to `target`."""

    source: str = Field(examples=["entry:token-merging"])
    """Id of a node."""
    type: EdgeType = Field(examples=["composes-with"])
    """Entry to entry: the relations, `has-part` of a system, `replaced-by` of a deprecated entry. Paper to entry: the
    role of the paper. Paper to claim: `claims`. Claim to entry: `about`."""
    target: str = Field(examples=["entry:confidence-early-exit"])
    """Id of a node."""
    note: str | None = Field(default=None, examples=["Merging makes each block cheaper, exiting leaves blocks out."])
    """Why, or under which condition."""


class Document(Model):
    """What every document begins with."""

    schema_version: Literal["1.0"] = Field(default="1.0", examples=["1.0"])
    """Version of the API: the first number changes when a field goes or changes its meaning, the second when one
    comes."""
    generated_at: str = Field(pattern=TIME, examples=["2026-11-25T22:00:13Z"])
    """Time of the last commit; without a repository, the newest date in the data. Never the wall-clock."""
    commit: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", examples=["0" * 40])
    """The commit whose files these are; absent where they were changed since, or are in no repository."""
    licence: Literal["CC-BY-4.0"] = Field(default="CC-BY-4.0", examples=["CC-BY-4.0"])
    """Licence of the data."""


class Counts(Model):
    """How much there is."""

    entries: int = Field(ge=0, examples=[85])
    """Entries."""
    implementations: int = Field(ge=0, examples=[20])
    """Entries that run."""
    papers: int = Field(ge=0, examples=[300])
    """Papers."""
    claims: int = Field(ge=0, examples=[150])
    """Claims."""
    results: int = Field(ge=0, examples=[60])
    """Measured results."""


class Listed(Model):
    """One file of the API."""

    path: Path = Field(examples=["entries.json"])
    """Where it lies, relative to the index."""
    schema_: Path | None = Field(default=None, alias="schema", examples=["schema/entries.schema.json"])
    """The JSON Schema of a document, or the data package that describes a table."""
    about: str = Field(examples=["Every technique, system and study."])
    """What it holds."""
    count: int | None = Field(default=None, ge=0, examples=[85])
    """How many items or rows."""


class Index(Document):
    """What there is."""

    counts: Counts = Field(examples=[{}])
    """How much there is."""
    files: tuple[Listed, ...] = Field(examples=[[]])
    """The files of the API."""


class Entries(Document):
    """Every technique, system and study."""

    entries: tuple[EntryOut, ...] = Field(examples=[[]])
    """By id."""


class Papers(Document):
    """Every paper."""

    papers: tuple[PaperOut, ...] = Field(examples=[[]])
    """By key."""


class Claims(Document):
    """Every claim of a paper, with the verdict that our results give."""

    claims: tuple[ClaimOut, ...] = Field(examples=[[]])
    """By paper, in the order in which they were recorded."""


class Results(Document):
    """Every measured result."""

    results: tuple[ResultOut, ...] = Field(examples=[[]])
    """By entry and scenario."""


class Vocabulary(Document):
    """The axes, their terms and the decision card."""

    about: str = Field(examples=["The vocabulary of the atlas."])
    """Where the vocabulary comes from."""
    scope_rule: str = Field(examples=["Would the saving vanish on independent noise?"])
    """What belongs into the atlas."""
    decision_card: tuple[Step, ...] = Field(examples=[[]])
    """The order in which to classify."""
    axes: dict[TermId, Axis] = Field(examples=[{}])
    """The axes by their key, in the order in which to show them."""


class Graph(Document):
    """Entries, papers and claims as nodes, and every relation between them as an edge."""

    nodes: tuple[Node, ...] = Field(examples=[[]])
    """Entries, papers and claims."""
    edges: tuple[Edge, ...] = Field(examples=[[]])
    """Relations; both ends are nodes."""


class Rulings(Document):
    """Cases that are hard to classify, with the ruling."""

    hard_cases: tuple[HardCase, ...] = Field(examples=[[]])
    """In the order of the file."""


class Reading(Document):
    """Statements that are the project's own reading, with what supports them."""

    about: str = Field(examples=["The project's own reading of its entries and results."])
    """Whose statements these are."""
    statements: tuple[Statement, ...] = Field(examples=[[]])
    """In the order of the file."""


class OpenProblems(Reading):
    """Open problems, as the project reads its entries and results."""


class Principles(Reading):
    """Principles, as the project reads its entries and results."""


class Everything(Document):
    """The whole base in one document: the lists of the other documents side by side."""

    entries: tuple[EntryOut, ...] = Field(examples=[[]])
    """Every technique, system and study."""
    papers: tuple[PaperOut, ...] = Field(examples=[[]])
    """Every paper."""
    claims: tuple[ClaimOut, ...] = Field(examples=[[]])
    """Every claim."""
    results: tuple[ResultOut, ...] = Field(examples=[[]])
    """Every measured result."""
    axes: dict[TermId, Axis] = Field(examples=[{}])
    """The vocabulary."""
    nodes: tuple[Node, ...] = Field(examples=[[]])
    """Nodes of the graph."""
    edges: tuple[Edge, ...] = Field(examples=[[]])
    """Edges of the graph."""
    hard_cases: tuple[HardCase, ...] = Field(examples=[[]])
    """Rulings."""
    open_problems: tuple[Statement, ...] = Field(examples=[[]])
    """Open problems."""
    principles: tuple[Statement, ...] = Field(examples=[[]])
    """Principles."""


class _WithoutNull(GenerateJsonSchema):
    """Schemas of what is written with absent fields left out: an optional field may be missing and is never null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_is_required(self, field: Any, total: bool) -> bool:
        inner: Any = field["schema"]
        while inner["type"] != "nullable":
            if inner["type"] == "model" or "schema" not in inner:
                return True
            inner = inner["schema"]
        return False


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document."""
    generated = model.model_json_schema(by_alias=True, mode="serialization", schema_generator=_WithoutNull)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


def about(documented: type) -> str:
    """What a document or a row of a table holds, in a line."""
    return (documented.__doc__ or "").split("\n")[0]
