"""Measuring: `run`, `bench`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ..knowledge import Knowledge
from ..knowledge.findings import counted
from ..knowledge.paths import RESULTS, located
from . import common
from .common import (
    Failure,
    as_json,
    budgets,
    clone,
    entry_of,
    knowledge_of,
    table,
    told_gaps,
    wrong_usage,
)
from .records import print_record


def owner_of(knowledge: Knowledge, id_: str) -> str:
    """The id of what can be measured: an entry with an implementation, or a benchmark in which several meet."""
    if id_ in knowledge.benchmarks:
        return id_
    entry = entry_of(knowledge, id_, also=knowledge.benchmarks)
    if entry.implementation is None:
        wrong_usage(f"{entry.id} is a {entry.status} {entry.kind} without an implementation")
    return entry.id


def implementations_of(root: Path) -> Path | None:
    """The folder of `reference_impls` that belongs to the knowledge; None where the knowledge stands alone."""
    main = located(root, "reference_impls/__main__.py")
    return main.parent if main.is_file() else None


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--budget", type=budgets, default="smoke", show_default=True)
@click.option("--scenario", metavar="S", help="A scenario by name; the first one by default.")
@click.option("--device", type=common.device, default="cpu", show_default=True)
@click.option("--seconds", type=common.seconds, help="Time limit; the budget's own by default.")
@as_json
@click.pass_context
def run(
    ctx: click.Context, id_: str, budget: Any, scenario: str | None, device: str, seconds: float | None, json_: bool
) -> None:
    """Run an experiment of a technique beside its baseline, in a guarded process without network.

    ID is an entry, or a benchmark in which several techniques meet.
    """
    from .. import runner
    from ..progress import progress

    owner = owner_of(knowledge_of(ctx), id_)
    with progress() as report:
        outcome = runner.run(
            owner,
            scenario=scenario,
            budget=budget,
            device=device,
            seconds=seconds,
            progress=report,
            implementations=implementations_of(ctx.obj),
        )
    if outcome.record is None:
        if outcome.error in ("usage", "missing-extra"):
            wrong_usage(outcome.message)
        if outcome.log and outcome.error != "missing-asset":
            click.echo(outcome.log, err=True)
        raise Failure(f"{outcome.error}: {outcome.message}")
    if json_:
        click.echo(outcome.record.to_json(), nl=False)
    else:
        print_record(outcome.record)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@click.option("--save", is_flag=True, help="Write the records into reference_impls/results/.")
@click.option(
    "--force", is_flag=True, help="With --save: replace records of the full budget by those of a smaller one."
)
@click.option("--budget", type=budgets, default="full", show_default=True)
@click.option("--device", type=common.device, default="cpu", show_default=True)
@click.option(
    "--corpus",
    multiple=True,
    metavar="ENTRIESxPAPERS",
    help="Instead, time the check of a generated atlas of this size; may be repeated.",
)
@click.option("--site", is_flag=True, help="With --corpus: time the site of this atlas, filled up to this size.")
@click.option("--scenario", "only", multiple=True, metavar="S", help="Only scenarios of this name; may be repeated.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="One after the other here, or over the nodes of a Ray cluster, each experiment with a node to itself.",
)
@click.option("--address", help="Of the Ray cluster, whose nodes have this clone in the same place.")
@click.pass_context
def bench(
    ctx: click.Context,
    ids: tuple[str, ...],
    save: bool,
    force: bool,
    budget: Any,
    device: str,
    corpus: tuple[str, ...],
    site: bool,
    only: tuple[str, ...],
    engine: Any,
    address: str | None,
) -> None:
    """Measure every scenario of the techniques and benchmarks again; those of all techniques by default."""
    from reference_impls.cluster import ClusterError

    from .. import bench as benchmarks
    from ..knowledge.completeness import gaps as gaps_of
    from ..progress import progress

    root = clone(ctx)
    if address and engine != "ray":
        wrong_usage("--address is for --engine ray")
    if site and not corpus:
        wrong_usage("--site is for --corpus")
    if corpus:
        (site_corpora if site else check_corpora)(root, corpus)
        return
    knowledge = knowledge_of(ctx)
    chosen = [owner_of(knowledge, i) for i in ids] or [e.id for e in knowledge.entries.values() if e.implementation]
    entries = [knowledge.entries[i] for i in chosen if i in knowledge.entries]
    stand_ins = [f"{e.id}: {n.hint}" for e in entries for n in gaps_of(knowledge, e) if n.code == "E406"]
    if save and stand_ins:
        wrong_usage("no result is saved of the stand-in that `redundancy new` wrote", "\n".join(stand_ins))
    if save and not force and budget != "full" and (full := [i for i in chosen if is_full(knowledge, i, device)]):
        what = f"records of the full budget would be replaced: {', '.join(full)}"
        wrong_usage(what, "measure with --budget full, or say --force")
    failed, measured = list[str](), list[str]()
    with progress() as report:

        def started(technique: str, scenario: str) -> Any:
            return lambda label, done, total: report(f"{technique} {scenario}: {label}", done, total)

        results = benchmarks.run_all(
            chosen,
            save,
            budget=budget,
            device=device,
            folder=root / RESULTS,
            root=root,
            started=started,
            implementations=implementations_of(root),
            only=only,
            engine=engine,
            address=address,
        )
        try:
            for result in results:
                measured.append(result.scenario)
                if result.outcome.record is None:
                    failed.append(f"{result.technique} {result.scenario}: {result.outcome.message}")
                else:
                    print_record(result.outcome.record)
        except ClusterError as error:
            raise Failure(str(error)) from error
    if save:
        told_gaps(ctx.obj, [entry.id for entry in entries])
    if unknown := sorted(set(only) - set(measured)):
        failed.append(f"no scenario is called {', '.join(unknown)}")
    if failed:
        raise Failure("\n".join(failed))


def is_full(knowledge: Knowledge, owner: str, device: str) -> bool:
    """Whether there is a committed record of the full budget, measured on such a device."""
    kind = device.partition(":")[0]
    records = (*knowledge.results.get(owner, ()), *knowledge.meetings.get(owner, ()))
    return any(record.budget == "full" and record.device.partition(":")[0] == kind for record in records)


def counts_of(sizes: Iterable[str]) -> list[tuple[int, int]]:
    """Entries and papers of each corpus."""
    counts = []
    for size in sizes:
        entries, times, papers = size.partition("x")
        if not (entries.isdecimal() and papers.isdecimal() and times and int(entries) and int(papers) >= int(entries)):
            wrong_usage(f"--corpus takes entries x papers, such as 200x200, with no fewer papers, got {size!r}")
        counts.append((int(entries), int(papers)))
    return counts


def site_corpora(root: Path, sizes: Iterable[str]) -> None:
    """Time the site of this atlas, filled up with generated entries, a row each."""
    from ..bench import site_cost

    rows = []
    for entry_count, paper_count in counts_of(sizes):
        try:
            cost = site_cost(entry_count, paper_count, root)
        except RuntimeError as error:
            raise Failure(f"the site cannot be built: {error}") from error
        rows.append([f"{cost.entries:,}", f"{cost.papers:,}", f"{cost.pages:,}", f"{cost.seconds:.0f}"])
    table(("entries", "papers", "pages", "seconds"), rows)


def check_corpora(root: Path, sizes: Iterable[str]) -> None:
    """Time the check of generated atlases, a row each: what must grow with the number of files, and no faster."""
    from ..bench import check_cost

    rows = []
    for entry_count, paper_count in counts_of(sizes):
        cost = check_cost(entry_count, paper_count, root=root)
        if cost.findings:
            raise Failure(f"the generated atlas has {counted(len(cost.findings), 'finding')}: {cost.findings[0]}")
        fast, slow = min(cost.seconds), max(cost.seconds)
        each = 1000 * statistics.median(cost.seconds) / (entry_count + paper_count)
        rows.append([f"{entry_count:,}", f"{paper_count:,}", f"{fast:.2f} to {slow:.2f}", f"{each:.2f}"])
        rows[-1].append(f"{cost.peak_mb:.0f}")
    table(("entries", "papers", "seconds", "ms a file", "MiB"), rows)
