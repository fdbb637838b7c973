"""Keeping the files right: `check`, `fmt`, `affected`, `explain`, `schema`."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path

import click

from ..knowledge.findings import counted, did_you_mean, render
from .common import Failure, clone, knowledge_of, path, told_gaps, wrong_usage


@click.command()
@click.argument("paths", nargs=-1, type=path)
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a file is not in the layout.")
@click.pass_context
def fmt(ctx: click.Context, paths: tuple[Path, ...], only_check: bool) -> None:
    """Bring the YAML files of the knowledge, or PATHS, into the canonical layout; data and comments stay."""
    from ..files import changing
    from ..knowledge import layout

    root = clone(ctx)
    try:
        names = layout.files(root, paths)
    except (FileNotFoundError, ValueError) as error:
        wrong_usage(str(error))
    with contextlib.nullcontext() if only_check else changing(root) as changes:
        looked = list(layout.look(root, names, knowledge_of(ctx).axes))
        texts = {laid.file: laid.text for laid in looked if laid.text is not None}
        if changes is not None and texts:
            changes.write(texts)
    for file in texts:
        click.echo(file)
    changed = sum(laid.text is not None for laid in looked)
    refused = [finding for laid in looked for finding in laid.findings]
    if refused:
        click.echo(render(refused, "text"))
    what = "not in the layout; run `redundancy fmt`" if only_check else "written"
    files = counted(len(looked), "file")
    click.echo(f"{files}, {changed} {what}" if changed else f"{files}, nothing to do", err=True)
    ctx.exit(1 if refused or (only_check and changed) else 0)


@click.command()
@click.argument("paths", nargs=-1, type=path)
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
    root = clone(ctx)
    files = changes(root, base) if changed else None
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
    where = f"{counted(len(knowledge.entries), 'entry', 'entries')}, {counted(len(knowledge.papers), 'paper')}"
    if files is not None:
        where = counted(len(files), "changed file")
    found = counted(len(findings), "finding") if findings else "no findings"
    click.echo(f"{found} in {where}", err=True)
    ctx.exit(1 if findings else 0)


def changes(root: Path, base: str | None) -> set[str]:
    """The files that changed; wrong usage where git cannot say so."""
    from ..changed import NoRepository, changed_files

    try:
        return changed_files(root, base)
    except NoRepository as error:
        wrong_usage(f"what changed is not known: {error}")


@click.command()
@click.option("--base", metavar="REV", help="Since this branch left REV; since the last commit by default.")
@click.option("--run", "run_them", is_flag=True, help="Run these tests.")
@click.pass_context
def affected(ctx: click.Context, base: str | None, run_them: bool) -> None:
    """Print the arguments for pytest that test what changed, one a line; nothing where no test is concerned.

    What the entries that changed still lack to be stable is told beside it.
    """
    from reference_impls import guard

    from ..changed import entries_of, tests_for
    from ..imports import NotPython

    root = clone(ctx)
    files = changes(root, base)
    try:
        arguments = tests_for(root, files)
    except NotPython as error:
        raise Failure(str(error)) from error
    told_gaps(root, entries_of(root, files))
    if not run_them:
        for argument in arguments:
            click.echo(argument)
    elif arguments:
        importlib.import_module("pytest")  # in an extra
        ctx.exit(guard.call([sys.executable, "-m", "pytest", *arguments], cwd=root))
    else:
        click.echo("no test is concerned", err=True)


@click.command()
@click.argument("code")
def explain(code: str) -> None:
    """Explain the CODE of a finding, with an example of wrong and right."""
    from ..knowledge.codes import CODES

    one = CODES.get(code.upper())
    if one is None:
        wrong_usage(f"there is no code {code!r}", did_you_mean(code, CODES))
    click.echo(one.text())


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; fail if a schema is out of date.")
@click.pass_context
def schema(ctx: click.Context, only_check: bool) -> None:
    """Write again what follows from the schema and the axes: the JSON Schemas for editors, and the issue form."""
    from ..files import changing, write_atomically
    from ..knowledge import editor
    from ..scaffold import issue

    root = clone(ctx)
    axes = knowledge_of(ctx).axes
    form = root / issue.FILE
    stale = editor.stale(root, axes)
    if not form.is_file() or form.read_bytes() != issue.form(axes).encode():
        stale.append(issue.FILE)
    if stale and only_check:
        raise Failure(f"out of date: {', '.join(stale)}; run `redundancy schema`")
    with changing(root) if stale else contextlib.nullcontext():
        editor.write(root, axes)
        if issue.FILE in stale:
            write_atomically(form, issue.form(axes), root)
    for name in stale:
        click.echo(name)
