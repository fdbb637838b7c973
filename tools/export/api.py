"""The API: every document, table and bibliography as text, as a pure function of the knowledge and the commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from reference_impls.accounting.record import Record

from ..headlines import of_entry
from ..knowledge import Knowledge
from ..knowledge.paths import ENTRIES, PAPERS, RESULTS
from ..knowledge.references import resolved
from ..knowledge.schema import Claim, Entry, Paper, Statements
from . import bibtex, csl, model, tables

FOLDER = "api/v1"
"""Where the files lie on the site."""
DOCUMENTS: dict[str, type[model.Document]] = {
    "index": model.Index, "entries": model.Entries, "papers": model.Papers, "claims": model.Claims,
    "results": model.Results, "axes": model.Vocabulary, "graph": model.Graph, "hard_cases": model.Rulings,
    "open_problems": model.OpenProblems, "principles": model.Principles, "atlas": model.Everything,
}  # fmt: skip
"""Name of each JSON document -> its model."""
BIBTEX, CSL, BIB_FOLDER = "papers.bib", "papers.csl.json", "bib"
SOURCES = (ENTRIES, PAPERS, RESULTS, "taxonomy")


@dataclass(frozen=True)
class Stamp:
    """Which state of the files an export was made from."""

    generated_at: str
    commit: str | None = None


def stamp(knowledge: Knowledge) -> Stamp:
    """Time and hash of the last commit at the root of the knowledge.

    Where the files differ from that commit it is not named. Without a repository the newest date in the data stands in,
    so that two exports of the same files are always equal.
    """
    root = knowledge.root
    head = _git(root, "log", "-1", "--format=%ct %H")
    if head and _git(root, "rev-parse", "--show-prefix") == "":
        seconds, commit = head.split()
        time = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Stamp(time, commit if _git(root, "status", "--porcelain", "--", *SOURCES) == "" else None)
    dates = [e.added for e in knowledge.entries.values()] + [p.verified.on for p in knowledge.papers.values()]
    dates += [record.date for record in knowledge.records]
    return Stamp(f"{max(dates, default='1970-01-01')}T00:00:00Z")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def files(knowledge: Knowledge, made: Stamp | None = None) -> dict[str, str]:
    """Every file of the API: its path under `api/v1/` -> its text."""
    made = made or stamp(knowledge)
    found: dict[str, str] = {}
    listed: list[model.Listed] = []
    made_of = documents(knowledge, made)
    for name, document in made_of.items():
        found[f"{name}.json"] = to_json(document)
        found[f"schema/{name}.schema.json"] = _json(model.schema(DOCUMENTS[name]))
        listed.append(
            model.Listed(
                path=f"{name}.json",
                schema=f"schema/{name}.schema.json",
                about=model.about(DOCUMENTS[name]),
                count=_count(document),
            )
        )
    papers = list(knowledge.papers.values())
    found[BIBTEX], found[CSL] = bibtex.bibliography(papers), csl.bibliography(papers)
    listed += [
        model.Listed(path=BIBTEX, about="Every paper as BibTeX.", count=len(papers)),
        model.Listed(path=CSL, about="Every paper as CSL-JSON.", count=len(papers)),
    ]
    for entry_id in knowledge.entries:
        path, own = f"{BIB_FOLDER}/{entry_id}.bib", papers_of(knowledge, [entry_id])
        found[path] = bibtex.bibliography(own)
        listed.append(model.Listed(path=path, about=f"The papers of {entry_id} as BibTeX.", count=len(own)))
    everything = made_of["atlas"]
    assert isinstance(everything, model.Everything)
    for name, rows in tables.tables(everything).items():
        found[f"csv/{name}.csv"] = tables.to_csv(name, rows)
        listed.append(
            model.Listed(
                path=f"csv/{name}.csv",
                schema="csv/datapackage.json",
                about=model.about(tables.TABLES[name]),
                count=len(rows),
            )
        )
    found["csv/datapackage.json"] = _json(tables.package(made.generated_at))
    index = model.Index(**made.__dict__, counts=counts(knowledge), files=tuple(listed))
    return {
        "index.json": to_json(index),
        "schema/index.schema.json": _json(model.schema(model.Index)),
        **found,
    }


def papers_of(knowledge: Knowledge, ids: Iterable[str]) -> list[Paper]:
    """The papers of these entries, each once, in the order of the entries."""
    keys = dict.fromkeys(link.key for entry_id in ids for link in knowledge.entries[entry_id].papers)
    return [knowledge.papers[key] for key in keys if key in knowledge.papers]


def documents(knowledge: Knowledge, made: Stamp) -> dict[str, model.Document]:
    """Every JSON document but the index, by its name; references in texts are replaced by their numbers."""
    knowledge = resolved(knowledge)
    head: dict[str, Any] = dict(made.__dict__)
    entries = tuple(entry(knowledge, e) for e in knowledge.entries.values())
    papers = tuple(paper(knowledge, p) for p in knowledge.papers.values())
    found_claims = claims(knowledge)
    results = tuple(map(result, knowledge.records))
    nodes, edges = graph(knowledge, found_claims)
    axes = knowledge.axes
    return {
        "entries": model.Entries(**head, entries=entries),
        "papers": model.Papers(**head, papers=papers),
        "claims": model.Claims(**head, claims=found_claims),
        "results": model.Results(**head, results=results),
        "axes": model.Vocabulary(**head, **{name: getattr(axes, name) for name in type(axes).model_fields}),
        "graph": model.Graph(**head, nodes=nodes, edges=edges),
        "hard_cases": model.Rulings(**head, hard_cases=knowledge.hard_cases),
        "open_problems": _reading(head, model.OpenProblems, knowledge.open_problems),
        "principles": _reading(head, model.Principles, knowledge.principles),
        "atlas": model.Everything(
            **head,
            entries=entries,
            papers=papers,
            claims=found_claims,
            results=results,
            axes=axes.axes,
            nodes=nodes,
            edges=edges,
            hard_cases=knowledge.hard_cases,
            open_problems=knowledge.open_problems.statements,
            principles=knowledge.principles.statements,
        ),
    }


def _reading(head: Mapping[str, Any], document: type[model.Reading], statements: Statements) -> model.Reading:
    return document(**head, about=statements.about, statements=statements.statements)


def counts(knowledge: Knowledge) -> model.Counts:
    """How much there is."""
    return model.Counts(
        entries=len(knowledge.entries),
        implementations=sum(1 for e in knowledge.entries.values() if e.implementation),
        papers=len(knowledge.papers),
        claims=sum(len(p.claims) for p in knowledge.papers.values()),
        results=len(knowledge.records),
    )


def entry(knowledge: Knowledge, one: Entry) -> model.EntryOut:
    """An entry with what is known about it elsewhere."""
    source = knowledge.sources.get(one.id)
    return model.EntryOut.model_construct(
        **_fields(one, "axes"),
        axes={axis: tuple(terms) for axis, terms in one.axes.items()},
        execution=source.execution if source else None,
        waivers=dict(source.waivers) if source else {},
        claims=tuple(claim_id(paper, claim) for paper, claim, _ in knowledge.claims(one.id)),
        results=tuple(result_id(record) for record in knowledge.results_of(one.id)),
        saves=tuple(saves for _, saves in of_entry(knowledge, one.id)),
        page=f"techniques/{one.id}.html",
        file=f"{ENTRIES}/{one.id}.yml",
    )


def _fields(one: BaseModel, *without: str) -> dict[str, Any]:
    """The fields of a model of the knowledge, which was validated when it was read."""
    return {name: getattr(one, name) for name in type(one).model_fields if name not in without}


def paper(knowledge: Knowledge, one: Paper) -> model.PaperOut:
    """A paper, its claims by their ids."""
    return model.PaperOut.model_construct(
        **_fields(one, "axes", "claims"),
        axes={axis: tuple(terms) for axis, terms in one.axes.items()},
        claims=tuple(claim_id(one, claim) for claim in one.claims),
        entries=tuple(
            model.PaperEntry(entry=e.id, role=link.role)
            for e in knowledge.entries_of(one.key)
            for link in e.papers
            if link.key == one.key
        ),
        not_confirmed=one.unconfirmed,
        page=f"papers/{one.key}.html",
        file=f"{PAPERS}/{one.key}.yml",
    )


def claims(knowledge: Knowledge) -> tuple[model.ClaimOut, ...]:
    """Every claim with its verdict."""
    found = []
    for one in knowledge.papers.values():
        for claim in one.claims:
            judged = knowledge.judge(claim)
            out = model.ClaimOut.model_construct(
                **_fields(claim, "id"),
                id=claim_id(one, claim),
                paper=one.key,
                verdict=judged.verdict,
                because=judged.because,
                measured=judged.value,
                interval=judged.interval,
                controls={name: one.value for name, one in judged.controls.items()},
                result=result_id(judged.record) if judged.record else None,
                page=f"papers/{one.key}.html#{claim.id}",
            )
            found.append(out)
    return tuple(found)


def result(record: Record) -> model.ResultOut:
    """A result with its id."""
    anchor = result_id(record).partition("/")[2].replace(".", "-")
    tables = {
        name: table.model_copy(update={"rows": tuple(tuple("" if c is None else c for c in row) for row in table.rows)})
        for name, table in record.tables.items()
    }
    shown_with = record.technique or record.points[0].technique
    if record.technique is None:
        anchor = f"{record.benchmark}-{anchor}"
    return model.ResultOut.model_construct(
        **_fields(record, "tables"),
        tables=tables,
        id=result_id(record),
        page=f"techniques/{shown_with}.html#{anchor}",
        file=f"{RESULTS}/{result_id(record)}.json",
    )


def graph(
    knowledge: Knowledge, found_claims: Iterable[model.ClaimOut]
) -> tuple[tuple[model.Node, ...], tuple[model.Edge, ...]]:
    """The nodes, and the edges between nodes that exist."""
    nodes: list[model.Node] = []
    edges: list[tuple[str, str, str, str | None]] = []
    for e in knowledge.entries.values():
        at = f"entry:{e.id}"
        nodes.append(model.Node(id=at, type="entry", name=e.name, status=e.status, page=f"techniques/{e.id}.html"))
        edges += [(at, r.type, f"entry:{r.target}", r.note) for r in e.relations]
        edges += [(at, "has-part", f"entry:{part}", None) for part in e.parts]
        edges += [(at, "replaced-by", f"entry:{e.replaced_by}", None)] if e.replaced_by else []
        edges += [(f"paper:{link.key}", link.role, at, None) for link in e.papers]
    for p in knowledge.papers.values():
        nodes.append(model.Node(id=f"paper:{p.key}", type="paper", name=p.title, page=f"papers/{p.key}.html"))
    for c in found_claims:
        at, page = f"claim:{c.id}", f"papers/{c.paper}.html#claims"
        nodes.append(model.Node(id=at, type="claim", name=c.statement, verdict=c.verdict, page=page))
        edges += [(f"paper:{c.paper}", "claims", at, None), (at, "about", f"entry:{c.technique}", None)]
    known = {node.id for node in nodes}
    return tuple(nodes), tuple(
        model.Edge.model_validate({"source": source, "type": type_, "target": target, "note": note})
        for source, type_, target, note in edges
        if source in known and target in known
    )


def claim_id(paper: Paper, claim: Claim) -> str:
    """A claim in the whole atlas: `bolya-2023-token#c1`."""
    return f"{paper.key}#{claim.id}"


def result_id(record: Record) -> str:
    """A result in the whole atlas: the path of its file under `results/` without `.json`."""
    kind = record.device.partition(":")[0]
    return f"{record.owner}/{record.scenario}" + ("" if kind == "cpu" else f".{kind}")


def to_json(document: BaseModel) -> str:
    """A document as JSON, absent fields left out."""
    return _json(document.model_dump(mode="json", by_alias=True, exclude_none=True))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _count(document: model.Document) -> int | None:
    """Items of the one list that a document holds."""
    own = [getattr(document, name) for name in type(document).model_fields if name not in model.Document.model_fields]
    lists = [value for value in own if isinstance(value, tuple | dict)]
    return len(lists[0]) if len(lists) == 1 else None
