"""The command `redundancy`.

Standard output holds what was asked for, and with `--json` one JSON document and nothing else; progress and messages go
to standard error. Exit codes: 0 fine, 1 findings or a failed run, 2 wrong usage.

Whatever is not needed to answer is imported where it is used, so that `list`, `show` and `check` start without torch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tools.knowledge import Knowledge, find_root, load
from tools.knowledge.findings import did_you_mean, render
from tools.scaffold.commands import new

if TYPE_CHECKING:
    from reference_impls.accounting.record import Record, Variant
    from tools.knowledge.completeness import Need
    from tools.knowledge.schema import Claim, Entry, Paper

FLAT_AXES = ("scope", "relation", "location", "granularity", "exploitation", "stage")
"""Axes whose primary term stands in every row of `list`."""

as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
budgets = click.Choice(["smoke", "full"])


class Failure(click.ClickException):
    """Something that went wrong, told on standard error; exit code 1."""

    exit_code = 1


def wrong_usage(message: str, hint: str = "") -> NoReturn:
    raise click.UsageError(f"{message}; {hint}" if hint else message)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def knowledge_of(ctx: click.Context, *, check: bool = False) -> Knowledge:
    """The knowledge at the root; what cannot be read is told on standard error, and the rest is there."""
    knowledge = load(ctx.obj, check=check)
    if knowledge.findings and not check:
        click.echo(f"note: {len(knowledge.findings)} findings in the knowledge, see `redundancy check`", err=True)
    return knowledge


def entry_of(knowledge: Knowledge, entry_id: str) -> Entry:
    """The entry of that id or alias; wrong usage, with a suggestion, if there is none."""
    entry = knowledge.entries.get(entry_id)
    if entry is None:
        by_name = {name.lower(): e for e in knowledge.entries.values() for name in (e.name, *e.aliases)}
        entry = by_name.get(entry_id.lower())
    if entry is None:
        wrong_usage(f"there is no entry {entry_id!r}", did_you_mean(entry_id, knowledge.entries))
    return entry


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redundancy-atlas", prog_name="redundancy")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the atlas; the one around here by default.")
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """The executable survey of data redundancy in deep learning."""
    try:
        ctx.obj = find_root(root)
    except FileNotFoundError as error:
        wrong_usage(str(error))


main.add_command(new)

# --------------------------------------------------------------------------------------------------------------------
# The knowledge


@main.command("list")
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


@main.command()
@click.argument("id_", metavar="ID")
@as_json
@click.pass_context
def show(ctx: click.Context, id_: str, json_: bool) -> None:
    """Show an entry with its papers, claims and results. ID may be an alias."""
    from tools.knowledge.completeness import gaps as gaps_of

    knowledge = knowledge_of(ctx)
    entry = entry_of(knowledge, id_)
    claims = knowledge.claims(entry.id)
    papers = [knowledge.papers[link.key] for link in entry.papers if link.key in knowledge.papers]
    results = knowledge.results.get(entry.id, [])
    if json_:
        source = knowledge.sources.get(entry.id)
        print_json(
            row(knowledge, entry)
            | entry.model_dump(mode="json")
            | {
                "waivers": dict(source.waivers) if source else {},
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
                    }
                    for paper, claim, judgement in claims
                ],
                "results": [json.loads(record.to_json()) for record in results],
                "gaps": [need.what for need in gaps_of(knowledge, entry)],
            }
        )
        return
    heading(entry.name)
    click.echo(f"{entry.summary}\n")
    for axis, terms in entry.axes.items():
        click.echo(f"  {axis:22}{', '.join(terms)}")
    for title, items in (
        ("Algorithm", [f"{n}. {step.step}" for n, step in enumerate(entry.algorithm, 1)]),
        ("When to use it", entry.when_to_use),
        ("When not to", entry.when_not_to_use),
        ("Limits", entry.limits),
        ("How ours departs from the paper", entry.deviations),
        ("Papers", [cite(paper) for paper in papers]),
        ("Claims, and what we found", [told(paper, claim, judged.verdict) for paper, claim, judged in claims]),
    ):
        if items:
            heading(title)
            for item in items:
                click.echo(f"- {item.strip()}" if title != "Algorithm" else item.strip())
    if missing := gaps_of(knowledge, entry):
        heading("What it lacks to be stable")
        print_gaps(missing)
    for record in results:
        print_record(record)


def heading(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def cite(paper: Paper) -> str:
    who = ", ".join(author.family for author in paper.authors) or "authors not confirmed"
    where = ", ".join(str(part) for part in (paper.venue, paper.year) if part)
    return f"{who}: {paper.title}{f' ({where})' if where else ''} [{paper.key}]"


def told(paper: Paper, claim: Claim, verdict: str) -> str:
    where = ", ".join(f"{name} {value}" for name, value in claim.locator.model_dump(exclude_none=True).items())
    return f"[{verdict}] {claim.statement} ({paper.key}, {where})"


@main.command()
@click.argument("id_", metavar="[ID]", required=False)
@as_json
@click.pass_context
def gaps(ctx: click.Context, id_: str | None, json_: bool) -> None:
    """What the entries, or the one entry ID, still lack to become stable."""
    from tools.knowledge.completeness import gaps as gaps_of

    knowledge = knowledge_of(ctx)
    entries = [entry_of(knowledge, id_)] if id_ else list(knowledge.entries.values())
    missing = {entry.id: gaps_of(knowledge, entry) for entry in entries}
    if json_:
        print_json(
            {name: [{"what": n.what, "code": n.code, "hint": n.hint} for n in lack] for name, lack in missing.items()}
        )
    elif id_:
        print_gaps(missing[entries[0].id])
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


@main.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a file is not in the layout.")
@click.pass_context
def fmt(ctx: click.Context, paths: tuple[Path, ...], only_check: bool) -> None:
    """Bring the YAML files of the knowledge, or PATHS, into the canonical layout; data and comments stay."""
    from tools.files import write_atomically
    from tools.knowledge import layout

    try:
        names = layout.files(ctx.obj, paths)
    except (FileNotFoundError, ValueError) as error:
        wrong_usage(str(error))
    looked = list(layout.look(ctx.obj, names, knowledge_of(ctx).axes))
    for laid in looked:
        if laid.text is not None:
            click.echo(laid.file)
            if not only_check:
                write_atomically(ctx.obj / laid.file, laid.text)
    changed = sum(laid.text is not None for laid in looked)
    refused = [finding for laid in looked for finding in laid.findings]
    if refused:
        click.echo(render(refused, "text"))
    what = "not in the layout; run `redundancy fmt`" if only_check else "written"
    click.echo(f"{len(looked)} files, {changed} {what}" if changed else f"{len(looked)} files, nothing to do", err=True)
    ctx.exit(1 if refused or (only_check and changed) else 0)


@main.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json", "github"]), default="text")
@click.option("--changed", is_flag=True, help="Report only what is found in files that changed since the last commit.")
@click.option("--base", metavar="REV", help="With --changed: since this branch left REV.")
@click.pass_context
def check(ctx: click.Context, paths: tuple[Path, ...], form: str, changed: bool, base: str | None) -> None:
    """Check the knowledge, or report only what is found in PATHS.

    What is found with --changed in other files is counted, not shown: a change can break a file that it does not touch.
    """
    if base and not changed:
        wrong_usage("--base goes with --changed")
    files = changes(ctx.obj, base) if changed else None
    knowledge = knowledge_of(ctx, check=True)
    findings = knowledge.findings
    if files is not None:
        findings = [f for f in findings if f.file in files]
        if elsewhere := len(knowledge.findings) - len(findings):
            click.echo(f"findings in files that did not change: {elsewhere}, see `redundancy check`", err=True)
    if paths:
        wanted = []
        for path in paths:
            if not path.exists():
                wrong_usage(f"there is no file or folder {path}")
            wanted.append(path.resolve())
        places = [(f, (knowledge.root / f.file).resolve()) for f in findings]
        findings = [f for f, place in places if any(place.is_relative_to(path) for path in wanted)]
    if text := render(findings, form):
        click.echo(text)
    counted = f"{len(knowledge.entries)} entries, {len(knowledge.papers)} papers"
    if files is not None:
        counted = f"{len(files)} changed files"
    click.echo(f"{len(findings)} findings in {counted}" if findings else f"no findings in {counted}", err=True)
    ctx.exit(1 if findings else 0)


def changes(root: Path, base: str | None) -> set[str]:
    """The files that changed; wrong usage where git cannot say so."""
    from tools.changed import NoRepository, changed_files

    try:
        return changed_files(root, base)
    except NoRepository as error:
        wrong_usage(f"what changed is not known: {error}")


@main.command()
@click.option("--base", metavar="REV", help="Since this branch left REV; since the last commit by default.")
@click.option("--run", "run_them", is_flag=True, help="Run these tests.")
@click.pass_context
def affected(ctx: click.Context, base: str | None, run_them: bool) -> None:
    """Print the arguments for pytest that test what changed, one a line; nothing where no test is concerned."""
    from tools.changed import tests_for

    arguments = tests_for(ctx.obj, changes(ctx.obj, base))
    if not run_them:
        for argument in arguments:
            click.echo(argument)
    elif arguments:
        ctx.exit(subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ctx.obj, check=False).returncode)
    else:
        click.echo("no test is concerned", err=True)


@main.command()
@click.argument("code")
def explain(code: str) -> None:
    """Explain the CODE of a finding, with an example of wrong and right."""
    from tools.knowledge.codes import CODES

    one = CODES.get(code.upper())
    if one is None:
        wrong_usage(f"there is no code {code!r}", did_you_mean(code, CODES))
    click.echo(one.text())


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a schema is out of date.")
@click.pass_context
def schema(ctx: click.Context, only_check: bool) -> None:
    """Write what follows from the schema and the axes anew: the JSON Schemas for editors, and the issue form."""
    from tools.files import write_atomically
    from tools.knowledge import editor
    from tools.scaffold import issue

    axes = knowledge_of(ctx).axes
    form = ctx.obj / issue.FILE
    stale = editor.stale(ctx.obj, axes)
    if not form.is_file() or form.read_text(encoding="utf-8") != issue.form(axes):
        stale.append(issue.FILE)
    if stale and only_check:
        raise Failure(f"out of date: {', '.join(stale)}; run `redundancy schema`")
    editor.write(ctx.obj, axes)
    if issue.FILE in stale:
        write_atomically(form, issue.form(axes))
    for name in stale:
        click.echo(name)


@main.group()
def export() -> None:
    """The knowledge for other programs: JSON, BibTeX, CSL-JSON, CSV."""


def written(text: str, out: Path | None) -> None:
    """Text into a file, or onto standard output, byte for byte."""
    if out is None:
        click.echo(text.encode(), nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(text.encode())


out_file = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
out_folder = click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write into this folder.")


@export.command("json")
@out_folder
@click.pass_context
def export_json(ctx: click.Context, out: Path | None) -> None:
    """The whole base as one document; with --out every file of the site's API, with its JSON Schema."""
    from tools.export import api

    files = api.files(knowledge_of(ctx))
    if out is None:
        written(files["atlas.json"], None)
        return
    for name, text in files.items():
        written(text, out / name)
    click.echo(f"{len(files)} files in {out}", err=True)


@export.command("csv")
@click.argument("table", required=False)
@out_folder
@click.pass_context
def export_csv(ctx: click.Context, table: str | None, out: Path | None) -> None:
    """Flat tables. TABLE names one to print; with --out all are written, with a description of their columns."""
    from tools.export import api, tables

    if table is None and out is None:
        wrong_usage(f"name a table or give --out; the tables are {', '.join(tables.TABLES)}")
    if table is not None and table not in tables.TABLES:
        wrong_usage(f"there is no table {table!r}", did_you_mean(table, tables.TABLES))
    files = {n.removeprefix("csv/"): t for n, t in api.files(knowledge_of(ctx)).items() if n.startswith("csv/")}
    if table is not None:
        written(files[f"{table}.csv"], out / f"{table}.csv" if out else None)
        return
    for name, text in files.items():
        written(text, (out or Path()) / name)
    click.echo(f"{len(files)} files in {out}", err=True)


def export_papers(ctx: click.Context, ids: tuple[str, ...]) -> list[Paper]:
    """All papers, or those of the entries named, in the order of the entries."""
    knowledge = knowledge_of(ctx)
    if not ids:
        return list(knowledge.papers.values())
    keys = dict.fromkeys(link.key for i in ids for link in entry_of(knowledge, i).papers)
    return [knowledge.papers[key] for key in keys if key in knowledge.papers]


@export.command("bibtex")
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@out_file
@click.pass_context
def export_bibtex(ctx: click.Context, ids: tuple[str, ...], out: Path | None) -> None:
    """Papers as BibTeX: all, or those of the entries named."""
    from tools.export import bibtex

    written(bibtex.bibliography(export_papers(ctx, ids)), out)


@export.command("csl")
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@out_file
@click.pass_context
def export_csl(ctx: click.Context, ids: tuple[str, ...], out: Path | None) -> None:
    """Papers as CSL-JSON: all, or those of the entries named."""
    from tools.export import csl

    written(csl.bibliography(export_papers(ctx, ids)), out)


# --------------------------------------------------------------------------------------------------------------------
# Running


@main.command()
@click.argument("id_", metavar="ID")
@click.option("--budget", type=budgets, default="smoke", show_default=True)
@click.option("--scenario", metavar="S", help="A scenario by name; the first one by default.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--seconds", type=float, help="Time limit; the budget's own by default.")
@as_json
@click.pass_context
def run(
    ctx: click.Context, id_: str, budget: Any, scenario: str | None, device: str, seconds: float | None, json_: bool
) -> None:
    """Run an experiment of a technique beside its baseline, in a guarded process without network."""
    from tools import runner
    from tools.progress import progress

    entry = entry_of(knowledge_of(ctx), id_)
    if entry.implementation is None:
        wrong_usage(f"{entry.id} is a {entry.status} {entry.kind} without an implementation")
    with progress() as report:
        outcome = runner.run(
            entry.id, scenario=scenario, budget=budget, device=device, seconds=seconds, progress=report
        )
    if outcome.record is None:
        if outcome.error == "usage":
            wrong_usage(outcome.message)
        if outcome.log and outcome.error != "missing-asset":
            click.echo(outcome.log, err=True)
        raise Failure(f"{outcome.error}: {outcome.message}")
    if json_:
        click.echo(outcome.record.to_json(), nl=False)
    else:
        print_record(outcome.record)


@main.command()
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@click.option("--save", is_flag=True, help="Write the records into reference_impls/results/.")
@click.option("--budget", type=budgets, default="full", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--corpus",
    multiple=True,
    metavar="ENTRIESxPAPERS",
    help="Instead, time the check of a generated atlas of this size; may be repeated.",
)
@click.pass_context
def bench(
    ctx: click.Context, ids: tuple[str, ...], save: bool, budget: Any, device: str, corpus: tuple[str, ...]
) -> None:
    """Measure every scenario of the techniques again; all of them by default."""
    from tools import bench as benchmarks
    from tools.knowledge.completeness import gaps as gaps_of
    from tools.progress import progress

    if corpus:
        check_corpora(ctx.obj, corpus)
        return
    knowledge = knowledge_of(ctx)
    chosen = [entry_of(knowledge, i).id for i in ids] or [e.id for e in knowledge.entries.values() if e.implementation]
    if save and (
        stand_ins := [i for i in chosen if any(n.code == "E406" for n in gaps_of(knowledge, knowledge.entries[i]))]
    ):
        wrong_usage(f"no result is saved of the stand-in that `redundancy new` wrote: {', '.join(stand_ins)}")
    failed = []
    with progress() as report:

        def started(technique: str, scenario: str) -> Any:
            return lambda label, done, total: report(f"{technique} {scenario}: {label}", done, total)

        for result in benchmarks.run_all(chosen, save, budget=budget, device=device, started=started):
            if result.outcome.record is None:
                failed.append(f"{result.technique} {result.scenario}: {result.outcome.message}")
            else:
                print_record(result.outcome.record)
    if failed:
        raise Failure("\n".join(failed))


def check_corpora(root: Path, sizes: Iterable[str]) -> None:
    """Time the check of generated atlases, a row each: what must grow with the number of files, and no faster."""
    from tools.bench import check_cost

    counts = []
    for size in sizes:
        entries, times, papers = size.partition("x")
        if not (entries.isdecimal() and papers.isdecimal() and times and int(entries) and int(papers) >= int(entries)):
            wrong_usage(f"--corpus takes entries x papers, such as 200x200, with no fewer papers, got {size!r}")
        counts.append((int(entries), int(papers)))
    rows = []
    for entry_count, paper_count in counts:
        cost = check_cost(entry_count, paper_count, root=root)
        if cost.findings:
            raise Failure(f"the generated atlas has {len(cost.findings)} findings: {cost.findings[0]}")
        fast, slow = min(cost.seconds), max(cost.seconds)
        each = 1000 * statistics.median(cost.seconds) / (entry_count + paper_count)
        rows.append([f"{entry_count:,}", f"{paper_count:,}", f"{fast:.2f} to {slow:.2f}", f"{each:.2f}"])
        rows[-1].append(f"{cost.peak_mb:.0f}")
    table(("entries", "papers", "seconds", "ms a file", "MiB"), rows)


def print_record(record: Record) -> None:
    """A record as a table, the baseline in the first line."""
    heading(f"{record.title} ({record.scenario}, {record.budget})")
    redundancy = record.redundancy
    null = "".join(f"; {name}: {value:.3f}" for name, value in redundancy.null.items())
    click.echo(f"  data: {record.data}\n  {redundancy.measure}: {redundancy.value:.3f}{null}")
    names = (*record.knobs, "MACs", "bytes", record.baseline.quality.metric, "ms (p10 to p90)")
    rows = [["baseline", *[""] * (len(record.knobs) - 1), *figures(record.baseline)]]
    rows += [[*(str(point.knobs[knob]) for knob in record.knobs), *figures(point)] for point in record.points]
    for control in record.controls:
        for point in control.points:
            knobs = " ".join(str(point.knobs.get(knob, "")) for knob in record.knobs)
            rows.append([f"{control.name} {knobs}".strip(), *[""] * (len(record.knobs) - 1), *figures(point)])
    table(names, rows)
    for note in record.notes:
        click.echo(f"  note: {note}")


def figures(variant: Variant) -> list[str]:
    quality, wall = variant.quality, variant.wall_ms
    spread = "" if quality.low is None or quality.high is None else f" ({quality.low:.4g} to {quality.high:.4g})"
    time = f"{wall.median:.3g} ({wall.p10:.3g} to {wall.p90:.3g})"
    return [f"{variant.macs:,}", f"{variant.bytes:,}", f"{quality.value:.4g}{spread}", time]


def table(names: Iterable[str], rows: Iterable[list[str]]) -> None:
    """Left-aligned columns; plain text, so that it can be piped."""
    lines = [[str(name) for name in names], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for n, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if n == 0 else text)


# --------------------------------------------------------------------------------------------------------------------
# Assets and the site


@main.group()
def assets() -> None:
    """Pinned data and weights in the user's cache."""


@assets.command("list")
@as_json
def assets_list(json_: bool) -> None:
    """List the assets with their state, size and licence."""
    from reference_impls.data import assets as room

    rows = [status._asdict() | {"folder": str(status.folder)} for status in room.status()]
    if json_:
        print_json(rows)
        return
    cells = [
        [s["name"], s["state"], f"{s['download'] / 1e6:.1f} MB", "yes" if s["smoke"] else "", s["licence"], s["title"]]
        for s in rows
    ]
    table(("name", "state", "download", "smoke", "licence", "what"), cells)


def asset_names(names: tuple[str, ...]) -> list[str]:
    from reference_impls.data import assets as room

    for name in names:
        if name not in room.catalogue():
            wrong_usage(f"there is no asset {name!r}", did_you_mean(name, room.catalogue()))
    return list(names) or list(room.catalogue())


@assets.command("get")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--smoke", is_flag=True, help="Those that smoke runs and the notebooks need.")
def assets_get(names: tuple[str, ...], smoke: bool) -> None:
    """Fetch assets that are not in the cache; all of them by default. An interrupted download is resumed."""
    from reference_impls.data import assets as room
    from tools.progress import progress

    chosen = list(room.smoke()) if smoke and not names else asset_names(names)
    failures = []
    with progress(unit="bytes") as report:
        for name in chosen:
            try:
                room.get(name, progress=report)
            except room.AssetError as error:
                failures.append(str(error))
    if failures:
        raise Failure("\n".join(failures))


@assets.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
def assets_verify(names: tuple[str, ...]) -> None:
    """Hash the files of the assets in the cache again."""
    from reference_impls.data import assets as room

    states = {status.name: status.state for status in room.status()}
    faults = []
    for name in asset_names(names):
        if states[name] == "missing":
            click.echo(f"{name}: missing")
            faults += [name] if names else []
            continue
        problems = room.verify(name)
        click.echo(f"{name}: {'; '.join(problems) or 'intact'}")
        faults += [name] if problems else []
    if faults:
        raise Failure(f"to mend it, run `redundancy assets get {' '.join(faults)}`")


@main.group()
def site() -> None:
    """The documentation site."""


def site_call(ctx: click.Context, name: str) -> None:
    from tools.site import build

    try:
        getattr(build, name)(ctx.obj)
    except build.SiteError as error:
        raise Failure(str(error)) from error


@site.command("build")
@click.pass_context
def site_build(ctx: click.Context) -> None:
    """Run what the pages need and build the site into site/."""
    site_call(ctx, "build")


@site.command("serve")
@click.pass_context
def site_serve(ctx: click.Context) -> None:
    """Build the site and serve it on localhost."""
    site_call(ctx, "serve")


@site.command("materialise")
@click.pass_context
def site_materialise(ctx: click.Context) -> None:
    """Write the generated pages as Markdown files, for another generator."""
    site_call(ctx, "materialise")


if __name__ == "__main__":
    sys.exit(main())
