"""The knowledge for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import write_atomically
from ..knowledge.findings import did_you_mean
from ..knowledge.schema import Paper
from .common import entry_of, knowledge_of, path, wrong_usage


@click.group()
def export() -> None:
    """The knowledge for other programs: JSON, BibTeX, CSL-JSON, CSV."""


def written(text: str, out: Path | None) -> None:
    """Text into a file, or onto standard output, byte for byte."""
    if out is None:
        click.echo(text.encode(), nl=False)
    else:
        write_atomically(out, text)


out_file = click.option("--out", type=path, help="Write to this file.")
out_folder = click.option("--out", type=path, help="Write into this folder.")


@export.command("json")
@out_folder
@click.pass_context
def export_json(ctx: click.Context, out: Path | None) -> None:
    """The whole base as one document; with --out every file of the site's API, with its JSON Schema."""
    from ..export import api

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
    from ..export import api, tables

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
    from ..export import api

    return api.papers_of(knowledge, [entry_of(knowledge, i).id for i in ids])


@export.command("bibtex")
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@out_file
@click.pass_context
def export_bibtex(ctx: click.Context, ids: tuple[str, ...], out: Path | None) -> None:
    """Papers as BibTeX: all, or those of the entries named."""
    from ..export import bibtex

    written(bibtex.bibliography(export_papers(ctx, ids)), out)


@export.command("csl")
@click.argument("ids", nargs=-1, metavar="[ID ...]")
@out_file
@click.pass_context
def export_csl(ctx: click.Context, ids: tuple[str, ...], out: Path | None) -> None:
    """Papers as CSL-JSON: all, or those of the entries named."""
    from ..export import csl

    written(csl.bibliography(export_papers(ctx, ids)), out)
