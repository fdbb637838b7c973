"""Deduplicating a data set: `dedup`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Failure, as_json, print_json, table


@click.command()
@click.argument("input_", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make, with everything in it.")
@click.option(
    "--method", default="minhash", show_default=True, type=click.Choice(["exact", "minhash", "substring", "semantic"])
)
@click.option("--field", default="text", show_default=True, help="Field of the text in JSONL, CSV, Parquet and Arrow.")
@click.option("--id", "id_field", metavar="FIELD", help="Field of the ids; the rows are numbered by default.")
@click.option("--threshold", type=float, help="Jaccard index (0.8) or cosine (0.95) from which on a row goes.")
@click.option("--length", default=100, show_default=True, help="Characters of a passage, for substring.")
@click.option("--words", default=5, show_default=True, help="Words of a shingle, for minhash.")
@click.option("--permutations", default=128, show_default=True, help="Minima of a signature, for minhash.")
@click.option(
    "--join",
    default="greedy",
    show_default=True,
    type=click.Choice(["greedy", "components"]),
    help="A row goes for a twin that stays, or all but one of each connected component go, for minhash.",
)
@click.option(
    "--stays",
    default="first",
    show_default=True,
    type=click.Choice(["first", "longest"]),
    help="Which of two twins does, for minhash.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--encoder", metavar="MODULE:FUNCTION", help="Rows -> (N, D), for semantic; MiniLM by default.")
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="TEST", help="Only twins of the rows of this input go."
)
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]))
@click.option("--address", help="Of a Ray cluster; one is started here by default.")
@click.option(
    "--on-error",
    default="stop",
    show_default=True,
    type=click.Choice(["stop", "skip"]),
    help="What to do with a row that cannot be read: skipped ones are counted.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--write-kept", is_flag=True, help="Write the kept rows too, in the input's format.")
@as_json
def dedup(
    input_: Path,
    out: Path,
    field: str,
    id_field: str | None,
    against: Path | None,
    engine: Any,
    address: str | None,
    on_error: Any,
    resume: bool,
    write_kept: bool,
    json_: bool,
    **options: Any,
) -> None:
    """Find what repeats in a data set, and say what stands for it.

    INPUT is a file (JSONL, CSV, Parquet, Arrow), a folder of texts, images or such files, or a data set that the
    library `datasets` saved. --out holds result.parquet (id, decision, twin, similarity, method), summary.json,
    and index.html with the largest groups to look at.
    """
    from reference_impls.cluster import ClusterError
    from reference_impls.dedup import DedupError, Options, Source, run

    from ..progress import progress

    try:
        source = Source(input_, field, id_field, on_error)
        other = None if against is None else Source(against, field, None, on_error)
        for one in (source, other):
            if one is not None:
                one.kind  # noqa: B018  # a bad input is told before anything is made
        chosen = Options(**options)
        with progress() as report:
            summary = run(
                source,
                out,
                chosen,
                against=other,
                engine=engine,
                address=address,
                resume=resume,
                write_kept=write_kept,
                progress=report,
            )
    except (ValueError, TypeError) as error:
        if isinstance(error, DedupError | ClusterError) or str(error).startswith(tuple(options)):
            raise Failure(str(error)) from error
        raise
    if json_:
        print_json(summary)
        return
    shares = {name: f"{summary[name]:,}" for name in ("rows", "kept", "removed", "cut", "skipped")}
    if summary["share of characters removed"] is not None:
        shares["characters that go"] = f"{summary['share of characters removed']:.1%}"
    table(("", str(out)), [[name, value] for name, value in shares.items()])
    for group in summary["largest groups"][:5]:
        click.echo(f"{group['size']:,} rows: {group['stays']} stays, {', '.join(group['members'][:3])} ...")
    click.echo(f"look at {out / 'index.html'}")
