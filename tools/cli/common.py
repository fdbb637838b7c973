"""What the commands share: how they read the knowledge, fail and print."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..knowledge import Knowledge, load
from ..knowledge.findings import counted, did_you_mean
from ..knowledge.paths import INSTALLED
from ..knowledge.reader import MAX_BYTES

if TYPE_CHECKING:
    from ..knowledge.schema import Entry

as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
budgets = click.Choice(["smoke", "full"])
MOST_SECONDS = 31 * 24 * 3600


def path(text: str) -> Path:
    """A path that the system can look up; whether something is there is another question."""
    try:
        os.stat(text)  # noqa: PTH116 - a text that may be no path
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        shown = text if len(text) < 200 else f"{text[:200]}..."
        raise click.BadParameter(f"{shown!r}: {getattr(error, 'strerror', None) or error}") from error
    return Path(text)


def content(text: str) -> str:
    """The text of a file, a pipe, or the standard input (`-`)."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if text == "-" else path(text).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise click.BadParameter(f"{text!r} holds more than {MAX_BYTES:,} bytes")
        return data.decode()
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{text!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def seconds(text: str) -> float:
    """A time limit: more than nothing, less than a month."""
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit <= MOST_SECONDS:
        wanted = f"a number of seconds above 0, at most {MOST_SECONDS:,}"
        raise click.BadParameter(f"{text!r} is no time limit: {wanted}")
    return limit


def device(text: str) -> str:
    """A device of torch: the CPU, or an accelerator with or without its number."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu|hpu)(:[0-9]{1,3})?", text):
        raise click.BadParameter(f"{text!r} is none of: cpu, mps, cuda, cuda:0, ...")
    return text


class Failure(click.ClickException):
    """Something that went wrong, told on standard error; exit code 1."""

    exit_code = 1


def wrong_usage(message: str, hint: str = "") -> NoReturn:
    raise click.UsageError(f"{message}; {hint}" if hint else message)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def clone(ctx: click.Context) -> Path:
    """The root, for a command that works on the files of a clone; wrong usage on the atlas of an installed package."""
    root: Path = ctx.obj
    if root == INSTALLED:
        wrong_usage(
            "this works on a clone of the atlas, and there is none around here", "run it inside one, or use --root"
        )
    return root


def knowledge_of(ctx: click.Context, *, check: bool = False) -> Knowledge:
    """The knowledge at the root; what cannot be read is told on standard error, and the rest is there."""
    knowledge = load(ctx.obj, check=check)
    if knowledge.findings and not check:
        found = counted(len(knowledge.findings), "finding")
        click.echo(f"note: {found} in the knowledge, see `redundancy check`", err=True)
    return knowledge


def told_gaps(root: Path, ids: Iterable[str]) -> None:
    """Tell on standard error what these entries, as their files are now, still lack to be stable."""
    from ..knowledge.completeness import gaps

    knowledge = load(root, check=False)
    for entry in (knowledge.entries[entry_id] for entry_id in ids if entry_id in knowledge.entries):
        if missing := gaps(knowledge, entry):
            first = ", ".join(need.what for need in missing[:3]) + (", ..." if len(missing) > 3 else "")
            lacks = counted(len(missing), "thing")
            click.echo(f"{entry.id} lacks {lacks} to be stable: {first} (`redundancy gaps {entry.id}`)", err=True)


def entry_of(knowledge: Knowledge, entry_id: str, also: Iterable[str] = ()) -> Entry:
    """The entry of that id or alias; wrong usage, with a suggestion from entries and `also`, if there is none."""
    entry = knowledge.entries.get(entry_id)
    if entry is None:
        by_name = {name.lower(): e for e in knowledge.entries.values() for name in (e.name, *e.aliases)}
        entry = by_name.get(entry_id.lower())
    if entry is None:
        wrong_usage(f"there is no entry {entry_id!r}", did_you_mean(entry_id, [*knowledge.entries, *also]))
    return entry


def heading(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def table(names: Iterable[str], rows: Iterable[list[str]]) -> None:
    """Left-aligned columns; plain text, so that it can be piped."""
    lines = [[str(name) for name in names], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for n, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if n == 0 else text)
