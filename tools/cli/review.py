"""What maintainers should look at again: `review`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

import click

from ..knowledge.findings import counted
from .common import as_json, clone, heading, knowledge_of, print_json, table


@click.command()
@click.option("--limit", default=20, show_default=True, metavar="N", help="So many lines of each list; 0: all of it.")
@as_json
@click.pass_context
def review(ctx: click.Context, limit: int, json_: bool) -> None:
    """List what to look at again: entries and papers by their last look, preprints, and what a library has outrun.

    It goes by the dates in the files: whoever has read an entry again writes `reviewed`, whoever has confirmed a paper
    again `verified`.
    """
    from ..knowledge import review as again

    clone(ctx)
    knowledge = knowledge_of(ctx)
    today = date.today()
    if json_:
        print_json({name: [asdict(one) for one in found] for name, found in again.everything(knowledge, today)})
        return
    looks, preprints = again.looks(knowledge, today), again.preprints(knowledge)
    stale = again.stale(knowledge, again.libraries(knowledge.root))
    published = sum(bool(one.published) for one in preprints)
    for title, names, rows in (
        (
            f"Last looks, the oldest of {counted(len(looks), 'file')} first",
            ("last look", "days", "file", "what was done"),
            [[one.on, str(one.days), one.file, one.how] for one in looks],
        ),
        (
            f"{counted(len(preprints), 'preprint')}, {published} of them published by their identifiers",
            ("year", "last look", "file", "published"),
            [[str(one.year or "?"), one.on, one.file, one.published or "look whether it was"] for one in preprints],
        ),
        (
            f"{counted(len(stale), 'file')} from before the release of a library",
            ("library", "release", "file", "why"),
            [[one.library, one.release, one.file, one.because] for one in stale],
        ),
    ):
        heading(title)
        shown = rows[: limit or None]
        if shown:
            table(names, shown)
        if left := len(rows) - len(shown):
            click.echo(f"... and {left} more: --limit 0")
