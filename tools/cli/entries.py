"""Looking at entries: `list`, `show`, `gaps`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..knowledge import Knowledge
from ..knowledge.findings import counted, did_you_mean, render
from ..knowledge.paths import INSTALLED
from ..numbers import number
from .common import as_json, entry_of, heading, knowledge_of, print_json, table, wrong_usage
from .records import print_record

if TYPE_CHECKING:
    from ..knowledge.claims import Judgement
    from ..knowledge.completeness import Need
    from ..knowledge.schema import Claim, Entry, Paper


FLAT_AXES = ("scope", "relation", "location", "granularity", "exploitation", "stage")
"""Axes whose primary term stands in every row of `list`."""


@click.command("list")
@click.option("--where", multiple=True, metavar="AXIS=TERM", help="Only entries with this term; may be repeated.")
@as_json
@click.pass_context
def list_(ctx: click.Context, where: tuple[str, ...], json_: bool) -> None:
    """List the entries, one a line."""
    knowledge = knowledge_of(ctx)
    conditions = [condition(knowledge, text) for text in where]
    rows = [
        row(knowledge, entry)
        for entry in knowledge.entries.values()
        if all(term in terms_of(entry, axis) for axis, term in conditions)
    ]
    if json_:
        print_json(rows)
        return
    shown = ("id", "status", "relation", "location", "exploitation", "execution")
    table(shown, [[one[name] or "-" for name in shown] for one in rows])


def condition(knowledge: Knowledge, text: str) -> tuple[str, str]:
    """`axis=term`, both known; `status` and `kind` count as axes."""
    axis, equals, term = text.partition("=")
    if not equals:
        wrong_usage(f"--where takes axis=term, got {text!r}")
    fields = {"status": ("draft", "stable", "deprecated"), "kind": ("technique", "system", "study")}
    axes = knowledge.axes.axes
    if axis not in axes and axis not in fields:
        wrong_usage(f"there is no axis {axis!r}", did_you_mean(axis, [*axes, *fields]))
    terms = fields[axis] if axis in fields else tuple(axes[axis].terms)
    if term not in terms:
        wrong_usage(f"the axis {axis} has no term {term!r}", did_you_mean(term, terms))
    return axis, term


def terms_of(entry: Entry, axis: str) -> tuple[str, ...]:
    if axis in ("status", "kind"):
        return (str(getattr(entry, axis)),)
    return tuple(entry.axes[axis]) if axis in entry.axes else ()


def row(knowledge: Knowledge, entry: Entry) -> dict[str, Any]:
    """An entry in a row: the primary terms, and all terms under `axes`."""
    source = knowledge.sources.get(entry.id)
    return {
        "id": entry.id,
        "kind": entry.kind,
        "name": entry.name,
        "status": entry.status,
        **{axis: entry.axes[axis].primary if axis in entry.axes else None for axis in FLAT_AXES},
        "execution": source.execution if source else None,
        "implementation": entry.implementation,
        "aliases": list(entry.aliases),
        "summary": entry.summary,
        "axes": {axis: list(terms) for axis, terms in entry.axes.items()},
    }


@click.command()
@click.argument("id_", metavar="ID")
@as_json
@click.pass_context
def show(ctx: click.Context, id_: str, json_: bool) -> None:
    """Show an entry with its papers, claims and results. ID may be an alias."""
    from ..headlines import WORK, of_entry
    from ..knowledge.completeness import gaps as gaps_of
    from ..knowledge.references import resolved

    written = knowledge_of(ctx)
    knowledge = resolved(written)
    entry = entry_of(knowledge, id_)
    missing = gaps_of(written, written.entries[entry.id])  # once resolved, a reference looks like a number without one
    claims = knowledge.claims(entry.id)
    papers = [knowledge.papers[link.key] for link in entry.papers if link.key in knowledge.papers]
    results = knowledge.results_of(entry.id)
    source = knowledge.sources.get(entry.id)
    knobs = source.knobs if source else ()
    saves = [one for _, one in of_entry(knowledge, entry.id)]
    if json_:
        print_json(
            row(knowledge, entry)
            | entry.model_dump(mode="json")
            | {
                "waivers": dict(source.waivers) if source else {},
                "knobs": [{n: v for n, v in asdict(knob).items() if n != "line"} for knob in knobs],
                "papers": [
                    {"role": link.role, **knowledge.papers[link.key].model_dump(mode="json", exclude={"claims"})}
                    for link in entry.papers
                    if link.key in knowledge.papers
                ],
                "claims": [
                    {
                        "paper": paper.key,
                        **claim.model_dump(mode="json", exclude_none=True),
                        "verdict": judgement.verdict,
                        "because": judgement.because,
                        "measured": judgement.value,
                        "interval": judgement.interval,
                        "controls": {name: one.value for name, one in judgement.controls.items()},
                    }
                    for paper, claim, judgement in claims
                ],
                "saves": [one.model_dump(mode="json") for one in saves],
                "results": [json.loads(record.to_json()) for record in results],
                "gaps": [need.what for need in missing],
            }
        )
        return
    heading(entry.name)
    click.echo(f"{entry.summary}\n")
    for axis, terms in entry.axes.items():
        click.echo(f"  {axis:22}{', '.join(terms)}")
    for one in saves:
        heading(f"MACs saved, {WORK[one.work]}: {one.value}")
        click.echo(f"  {one.about}\n  best control: {one.control}")
    for title, items in (
        ("Algorithm", [f"{n}. {step.step}" for n, step in enumerate(entry.algorithm, 1)]),
        ("When to use it", entry.when_to_use),
        ("When not to", entry.when_not_to_use),
        ("Limits", entry.limits),
        ("How ours departs from the paper", entry.deviations),
        ("Papers", [cite(paper) for paper in papers]),
        ("Claims, and what we found", [told(*one) for one in claims]),
    ):
        if items:
            heading(title)
            for item in items:
                click.echo(f"- {item.strip()}" if title != "Algorithm" else item.strip())
    if knobs:
        heading("Knobs")
        rows = [[k.name, k.kind, "none" if k.default is None else str(k.default), k.takes, k.about] for k in knobs]
        table(("knob", "kind", "default", "takes", "what it does"), rows)
    if missing:
        heading("What it lacks to be stable")
        print_gaps(missing)
    for record in results:
        print_record(record)


def cite(paper: Paper) -> str:
    who = ", ".join(author.family for author in paper.authors) or "authors not confirmed"
    year = str(paper.year or "")
    where = ", ".join(filter(None, (paper.venue, year if year not in (paper.venue or "") else "")))
    return f"{who}: {paper.title}{f' ({where})' if where else ''} [{paper.key}]"


def told(paper: Paper, claim: Claim, judged: Judgement) -> str:
    """A claim with our verdict; where we tried it, with our number, its scenario, why, and in what ours differs."""
    where = ", ".join(f"{name} {value}" for name, value in claim.locator.model_dump(exclude_none=True).items())
    told = f"{claim.statement.strip()} ({paper.key}, {where})"
    if judged.check is None:
        return f"[{judged.verdict}] {told}"
    ours = "" if judged.value is None else f"{number(judged.value)} {judged.check.unit or ''}".strip() + " in "
    notes = [judged.because, *([judged.check.note.strip()] if judged.check.note else [])]
    return "\n  ".join([f"[{judged.verdict}: {ours}{judged.check.scenario}] {told}", *notes])


@click.command()
@click.argument("id_", metavar="[ID]", required=False)
@as_json
@click.pass_context
def gaps(ctx: click.Context, id_: str | None, json_: bool) -> None:
    """What the entries, or the one entry ID, still lack to become stable."""
    from ..knowledge.completeness import findings_of
    from ..knowledge.completeness import gaps as gaps_of

    knowledge = knowledge_of(ctx, check=bool(id_) and ctx.obj != INSTALLED)
    entries = [entry_of(knowledge, id_)] if id_ else list(knowledge.entries.values())
    missing = {entry.id: gaps_of(knowledge, entry) for entry in entries}
    if json_:
        print_json(
            {name: [{"what": n.what, "code": n.code, "hint": n.hint} for n in lack] for name, lack in missing.items()}
        )
    elif id_:
        print_gaps(missing[entries[0].id])
        if wrong := findings_of(knowledge, entries[0]):
            click.echo(f"\n{counted(len(wrong), 'finding')} in its files:\n{render(wrong, 'text')}")
    else:
        rows = [[entry.id, entry.status, str(len(missing[entry.id]))] for entry in entries]
        table(("id", "status", "gaps"), sorted(rows, key=lambda one: (int(one[2]), one[0])))


def print_gaps(missing: Iterable[Need]) -> None:
    """Everything that is missing, with how to supply it."""
    rows = [[need.what, need.hint] for need in missing]
    if rows:
        table(("missing", "how to supply it"), rows)
    else:
        click.echo("nothing is missing")
