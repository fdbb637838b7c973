"""The knowledge as flat tables: CSV by RFC 4180, and a data package that describes their columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from reference_impls.accounting.record import Point, Variant

from ..knowledge.schema import Model
from . import model

ACTIVE = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""How a cell begins that a spreadsheet takes for a formula, or one that was already guarded."""


def cell(value: Any) -> str:
    """A value as a cell. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}" if ACTIVE.match(value) else value


def text(written: str) -> str:
    """The text that was written so: the apostrophe taken off again."""
    return written[1:] if written.startswith("'") and ACTIVE.match(written) else written


class EntryRow(Model):
    """Entries, one a row; their longer texts stand in `entry_texts`."""

    id: str = Field(examples=["token-merging"])
    """Id of the entry."""
    kind: str = Field(examples=["technique"])
    """technique, system or study."""
    name: str = Field(examples=["Token merging"])
    """Name."""
    aliases: str = Field(examples=["ToMe; bipartite soft matching"])
    """Other names, separated by semicolons."""
    status: str = Field(examples=["stable"])
    """draft, stable or deprecated."""
    replaced_by: str | None = Field(examples=["token-merging"])
    """Id of the entry that replaces a deprecated one."""
    added: str = Field(examples=["2026-11-22"])
    """Day on which it was added."""
    founding: bool = Field(examples=[False])
    """Whether it stands for one of the founding documents."""
    summary: str = Field(examples=["Averages similar tokens."])
    """What it does, in a sentence."""
    implementation: str | None = Field(examples=["reference_impls.techniques.token_merging:TokenMerging"])
    """module:Class, where there is one."""
    execution: str | None = Field(examples=["real"])
    """real or simulated, where there is an implementation."""
    page: str = Field(examples=["techniques/token-merging.html"])
    """Its page on the site."""


class EntryTextRow(Model):
    """Texts of entries in Markdown, one a row."""

    entry: str = Field(examples=["token-merging"])
    """Id of the entry."""
    field: str = Field(examples=["when_to_use"])
    """definition, algorithm, invariant, cost_model, when_to_use, when_not_to_use, limits or deviations."""
    position: int = Field(examples=[1])
    """Place in its list, from 1."""
    text: str = Field(examples=["Many tokens are alike."])
    """The text."""


class ClassificationRow(Model):
    """The terms of entries and papers, one a row."""

    sort: str = Field(examples=["entry"])
    """entry or paper."""
    id: str = Field(examples=["token-merging"])
    """Id of the entry or key of the paper."""
    axis: str = Field(examples=["relation"])
    """Axis."""
    position: int = Field(examples=[1])
    """1 for the primary term."""
    term: str = Field(examples=["spatial_similarity"])
    """Term."""


class PaperRow(Model):
    """Papers, one a row; only confirmed fields are filled."""

    key: str = Field(examples=["bolya-2023-token"])
    """Key."""
    kind: str = Field(examples=["method"])
    """method, analysis, survey or benchmark."""
    title: str = Field(examples=["Token Merging: Your ViT But Faster"])
    """Title."""
    authors: str = Field(examples=["Bolya, Daniel; Fu, Cheng-Yang"])
    """Family, given; separated by semicolons."""
    et_al: bool = Field(examples=[False])
    """Whether there are more authors than are confirmed."""
    year: int | None = Field(examples=[2023])
    """Year."""
    venue: str | None = Field(examples=["ICLR 2023"])
    """Venue."""
    arxiv: str | None = Field(examples=["2210.09461"])
    """arXiv id."""
    doi: str | None = Field(examples=["10.1145/3564663"])
    """DOI."""
    url: str | None = Field(examples=["https://openreview.net/forum?id=JroZRaRw7Eu"])
    """Page of the paper."""
    founding: bool = Field(examples=[False])
    """Whether it is one of the founding documents."""
    summary: str = Field(examples=["Merges similar tokens."])
    """In our own words."""
    not_confirmed: str = Field(examples=["venue"])
    """What a reference should have and nobody has confirmed yet, separated by semicolons."""
    verified_in: str = Field(examples=["arXiv listing"])
    """Where the bibliographic data were read."""
    verified_on: str = Field(examples=["2026-11-22"])
    """On which day."""
    page: str = Field(examples=["papers/bolya-2023-token.html"])
    """Its page on the site."""


class ClaimRow(Model):
    """Claims of papers beside our results, one a row."""

    id: str = Field(examples=["bolya-2023-token#c1"])
    """Key of the paper, `#`, number of the claim."""
    paper: str = Field(examples=["bolya-2023-token"])
    """Key of the paper."""
    entry: str = Field(examples=["token-merging"])
    """Id of the entry that it is about."""
    kind: str = Field(examples=["speedup"])
    """Sort of claim."""
    statement: str = Field(examples=["It is 1.64 times as fast."])
    """In our own words."""
    metric: str | None = Field(examples=["throughput"])
    """What the paper measured."""
    value: float | None = Field(examples=[1.64])
    """The paper's number."""
    printed: str | None = Field(examples=["1.64"])
    """The same as the paper prints it."""
    unit: str | None = Field(examples=["times"])
    """Its unit."""
    baseline: str | None = Field(examples=["953 images/s without merging"])
    """What it is compared with."""
    setting: str = Field(examples=["task: image classification; model: ViT-S/16"])
    """Setting of the number."""
    locator: str = Field(examples=["section: abstract"])
    """Where the paper makes the claim."""
    seen_at: str | None = Field(examples=["README of the official repository"])
    """Where it was read, if not in the paper."""
    verdict: str = Field(examples=["reproduced"])
    """Our verdict, computed from our results; the site's page on numbers says what each word means."""
    because: str = Field(examples=["Within the tolerance."])
    """The reason of the verdict."""
    measured: float | None = Field(examples=[1.6])
    """What we measured, in the unit of the next column."""
    expected: float | None = Field(examples=[1.64])
    """What it should be if the claim holds, in the same unit."""
    measured_unit: str | None = Field(examples=["times"])
    """Unit of `measured` and `expected`."""
    result: str | None = Field(examples=["token-merging/vit-small-latency"])
    """Id of the result that it was taken from."""


class ResultRow(Model):
    """Measured results, a row for each variant: the baseline, each point of a technique, each point of a control."""

    result: str = Field(examples=["token-merging/vit-small-latency"])
    """Id of the result."""
    entry: str = Field(examples=["token-merging"])
    """Id of the entry; of the benchmark where several meet, in the rows of the baseline and of controls."""
    benchmark: str | None = Field(examples=["token-reduction"])
    """Id of the benchmark that the result belongs to."""
    title: str = Field(examples=["Latency of ViT-S/16"])
    """The scenario in a line."""
    variant: str = Field(examples=["technique"])
    """baseline, technique, or the name of a control."""
    knobs: str = Field(examples=["r = 13"])
    """Setting of the variant."""
    unit: str = Field(examples=["one image"])
    """What MACs, bytes and times refer to."""
    macs: int = Field(examples=[4608000000])
    """Multiply-accumulates, counted."""
    bytes: int = Field(examples=[812000000])
    """Bytes read and written."""
    metric: str = Field(examples=["accuracy"])
    """Metric of the quality."""
    quality: float = Field(examples=[0.912])
    """The quality."""
    quality_low: float | None = Field(examples=[0.908])
    """Lower end of its 95 % interval."""
    quality_high: float | None = Field(examples=[0.916])
    """Upper end."""
    higher_is_better: bool = Field(examples=[True])
    """Direction of the metric."""
    wall_ms: float = Field(examples=[121.8])
    """Median wall-clock in milliseconds."""
    wall_ms_p10: float = Field(examples=[118.2])
    """10th percentile."""
    wall_ms_p90: float = Field(examples=[130.4])
    """90th percentile."""
    speed_up: float | None = Field(examples=[1.63])
    """Median over paired rounds of the baseline's time over that of the variant; empty where it was not paired."""
    speed_up_low: float | None = Field(examples=[1.61])
    """Lower end of its 95 % interval."""
    speed_up_high: float | None = Field(examples=[1.66])
    """Upper end."""
    removed: float | None = Field(examples=[0.41])
    """Share of the units removed, shared or made cheaper."""
    device: str = Field(examples=["cpu"])
    """Device."""
    machine: str = Field(examples=["AMD EPYC 9R14"])
    """Processor or accelerator."""
    date: str = Field(examples=["2026-11-22"])
    """Day of the measurement."""


class TermRow(Model):
    """The vocabulary: every term of every axis."""

    axis: str = Field(examples=["relation"])
    """Axis."""
    position: int = Field(examples=[1])
    """Place on the axis, from 1."""
    term: str = Field(examples=["spatial_similarity"])
    """Term."""
    name: str = Field(examples=["Spatial similarity"])
    """The term as a reader sees it."""
    definition: str = Field(examples=["Close to another part of the same input."])
    """What it means."""


class HardCaseRow(Model):
    """Cases that are hard to classify, with the ruling."""

    id: str = Field(examples=["lsh-attention"])
    """Short name."""
    axis: str = Field(examples=["relation"])
    """The axis on which it is hard."""
    terms: str = Field(examples=["irrelevance; spatial_similarity"])
    """The term ruled to be primary, then those that also seemed to fit."""
    case: str = Field(examples=["Attention among tokens of one bucket."])
    """The case."""
    ruling: str = Field(examples=["Irrelevance."])
    """What was decided."""
    because: str | None = Field(examples=["Tie-break 3."])
    """The rule that decides."""
    entries: str = Field(examples=["lsh-attention"])
    """Ids of the entries that it decides."""
    papers: str = Field(examples=["kitaev-2020-reformer"])
    """Keys of the papers that it decides."""


class StatementRow(Model):
    """Principles and open problems: the project's own reading."""

    sort: str = Field(examples=["principle"])
    """principle or open problem."""
    id: str = Field(examples=["detection-must-be-cheaper"])
    """Short name."""
    title: str = Field(examples=["Detection must cost less than it saves"])
    """Headline."""
    statement: str = Field(examples=["A detector must be cheaper than the unit."])
    """The statement."""


class SupportRow(Model):
    """What each principle and open problem rests on."""

    statement: str = Field(examples=["detection-must-be-cheaper"])
    """Short name of the statement."""
    sort: str = Field(examples=["claim"])
    """entry, paper, claim or result."""
    id: str = Field(examples=["bolya-2023-token#c1"])
    """Its id."""
    note: str | None = Field(examples=["MACs fall by 1.7."])
    """What it shows."""


TABLES: dict[str, type[Model]] = {
    "entries": EntryRow, "entry_texts": EntryTextRow, "classification": ClassificationRow, "papers": PaperRow,
    "claims": ClaimRow, "results": ResultRow, "terms": TermRow, "nodes": model.Node, "edges": model.Edge,
    "hard_cases": HardCaseRow, "statements": StatementRow, "support": SupportRow,
}  # fmt: skip
"""Name of each table -> the model of its rows."""
TEXTS = ("definition", "algorithm", "invariant", "cost_model", "when_to_use", "when_not_to_use", "limits", "deviations")


def tables(atlas: model.Everything) -> dict[str, list[Model]]:
    """The rows of every table."""
    return {
        "entries": [_entry(e) for e in atlas.entries],
        "entry_texts": [row for e in atlas.entries for row in _texts(e)],
        "classification": [
            ClassificationRow(sort=sort, id=id_, axis=axis, position=n, term=term)
            for sort, id_, axes in (
                *(("entry", e.id, e.axes) for e in atlas.entries),
                *(("paper", p.key, p.axes) for p in atlas.papers),
            )
            for axis, terms in axes.items()
            for n, term in enumerate(terms, 1)
        ],
        "papers": [_paper(p) for p in atlas.papers],
        "claims": [_claim(c) for c in atlas.claims],
        "results": [row for record in atlas.results for row in _variants(record)],
        "terms": [
            TermRow(axis=key, position=n, term=term, name=known.name, definition=known.definition)
            for key, axis in atlas.axes.items()
            for n, (term, known) in enumerate(axis.terms.items(), 1)
        ],
        "nodes": list(atlas.nodes),
        "edges": list(atlas.edges),
        "hard_cases": [
            HardCaseRow(
                **{name: getattr(case, name) for name in ("id", "axis", "case", "ruling", "because")},
                **{name: "; ".join(getattr(case, name)) for name in ("terms", "entries", "papers")},
            )
            for case in atlas.hard_cases
        ],
        "statements": [
            StatementRow(sort=sort, id=s.id, title=s.title, statement=s.statement)
            for sort, statements in (("principle", atlas.principles), ("open problem", atlas.open_problems))
            for s in statements
        ],
        "support": [
            SupportRow(statement=s.id, sort=sort, id=id_, note=support.note)
            for s in (*atlas.principles, *atlas.open_problems)
            for support in s.support
            for sort, id_ in support
            if sort != "note" and id_ is not None
        ],
    }


def _entry(e: model.EntryOut) -> EntryRow:
    same = set(EntryRow.model_fields) - {"aliases"}
    return EntryRow(**{name: getattr(e, name) for name in same}, aliases="; ".join(e.aliases))


def _texts(e: model.EntryOut) -> Iterable[EntryTextRow]:
    for field in TEXTS:
        value = getattr(e, field)
        for n, item in enumerate([value] if isinstance(value, str) else value or (), 1):
            yield EntryTextRow(entry=e.id, field=field, position=n, text=item if isinstance(item, str) else item.step)


def _paper(p: model.PaperOut) -> PaperRow:
    same = ("key", "kind", "title", "et_al", "year", "venue", "founding", "summary", "page")
    return PaperRow(
        **{name: getattr(p, name) for name in same},
        arxiv=p.ids.arxiv,
        doi=p.ids.doi,
        url=p.ids.url,
        authors="; ".join(f"{a.family}, {a.given}" if a.given else a.family for a in p.authors),
        not_confirmed="; ".join(p.not_confirmed),
        verified_in=p.verified.source,
        verified_on=p.verified.on,
    )


def _claim(c: model.ClaimOut) -> ClaimRow:
    same = ("id", "paper", "kind", "statement", "seen_at", "verdict", "because", "measured", "result")
    known: dict[str, Any] = {name: getattr(c, name) for name in same}
    known |= {name: getattr(c.quantity, name, None) for name in ("metric", "value", "unit", "baseline")}
    known["printed"] = c.quantity.text if c.quantity else None
    known |= {"expected": getattr(c.check, "target", None), "measured_unit": getattr(c.check, "unit", None)}
    return ClaimRow(
        **known,
        entry=c.technique,
        setting=_pairs(c.setting.model_dump(exclude_none=True) if c.setting else {}),
        locator=_pairs(c.locator.model_dump(exclude_none=True)),
    )


def _variants(record: model.ResultOut) -> Iterable[ResultRow]:
    variants: list[tuple[str, Variant]] = [("baseline", record.baseline), *(("technique", p) for p in record.points)]
    variants += [(control.name, point) for control in record.controls for point in control.points]
    for name, variant in variants:
        yield ResultRow(
            result=record.id,
            entry=variant.technique if isinstance(variant, Point) and variant.technique else record.owner,
            benchmark=record.benchmark,
            title=record.title,
            variant=name,
            knobs=_pairs(variant.knobs) if isinstance(variant, Point) else "",
            unit=record.unit,
            macs=variant.macs,
            bytes=variant.bytes,
            metric=variant.quality.metric,
            quality=variant.quality.value,
            quality_low=variant.quality.low,
            quality_high=variant.quality.high,
            higher_is_better=variant.quality.higher_is_better,
            wall_ms=variant.wall_ms.median,
            wall_ms_p10=variant.wall_ms.p10,
            wall_ms_p90=variant.wall_ms.p90,
            speed_up=getattr(variant.speed_up, "value", None),
            speed_up_low=getattr(variant.speed_up, "low", None),
            speed_up_high=getattr(variant.speed_up, "high", None),
            removed=variant.redundancy,
            device=record.device,
            machine=record.machine.accelerator or record.machine.cpu,
            date=record.date,
        )


def _pairs(values: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def to_csv(name: str, rows: Iterable[Model]) -> str:
    """A table as CSV: lines end in CR LF, the first one names the columns, what is absent is empty."""
    columns = list(TABLES[name].model_fields)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([cell(getattr(row, column)) for column in columns] for row in rows)
    return out.getvalue()


def package(created: str) -> dict[str, Any]:
    """The description of all tables, a tabular data package: their columns with type and meaning."""
    return {
        "profile": "tabular-data-package",
        "name": "redundancy-atlas",
        "title": "The Redundancy Atlas",
        "created": created,
        "licenses": [{"name": "CC-BY-4.0", "path": "https://creativecommons.org/licenses/by/4.0/"}],
        "resources": [
            {
                "profile": "tabular-data-resource",
                "name": name,
                "path": f"{name}.csv",
                "description": model.about(row),
                "encoding": "utf-8",
                "schema": {
                    "fields": [
                        {"name": column, "type": known["type"], "description": known["description"]}
                        for column, known in model.schema(row)["properties"].items()
                    ]
                },
            }
            for name, row in TABLES.items()
        ],
    }
