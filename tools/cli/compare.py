"""The techniques of a benchmark side by side: `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..knowledge.findings import did_you_mean
from .common import as_json, heading, knowledge_of, print_json, table, wrong_usage
from .records import interval

if TYPE_CHECKING:
    from ..compare import Group, Row, Saving


@click.command()
@click.argument("benchmark")
@as_json
@click.pass_context
def compare(ctx: click.Context, benchmark: str, json_: bool) -> None:
    """What the techniques of BENCHMARK save at the same quality, beside the best control.

    Each row is the setting with the fewest MACs that loses at most 1 % of the baseline's quality. What a technique
    needs once and its MACs do not hold stands after them; work that is done once is told from end to end.
    """
    from ..compare import compare as compared

    knowledge = knowledge_of(ctx)
    if benchmark not in knowledge.benchmarks:
        wrong_usage(f"there is no benchmark {benchmark!r}", did_you_mean(benchmark, knowledge.benchmarks))
    found = compared(knowledge, benchmark)
    if json_:
        print_json(found.model_dump(mode="json"))
        return
    click.echo(f"{benchmark}: the cheapest setting that loses at most {found.allowed_loss:.0%} of the quality")
    if not found.groups:
        click.echo("no record yet")
    for group in found.groups:
        print_group(group)


def print_group(group: Group) -> None:
    """The rows of one group, below what they have in common."""
    heading(group.metric)
    click.echo(f"  data: {group.data}\n  model: {group.model or 'none'}\n  per {group.unit.removeprefix('one ')}")
    names = ("technique", "scenario", "setting", "quality", "baseline", "MACs saved", "speed-up", "best control")
    table(names, [cells(row) for row in group.rows])


def cells(row: Row) -> list[str]:
    """A row as text. What does not exist is said."""
    if row.best is None:
        figures = ["none", "none", interval(row.baseline), "none", "none"]
    else:
        macs, speed = savings(row.best)
        macs += f" + {row.left_out:.3g} MACs once" if row.left_out else ""
        figures = [setting(row.best), interval(row.best.quality), interval(row.baseline), macs, speed]
    if row.random_weights:
        figures[1:3] = ["random weights", "random weights"]
    scenario = row.scenario if row.device == "cpu" else f"{row.scenario} ({row.device})"
    return [row.technique, scenario, *figures, best_control(row)]


def best_control(row: Row) -> str:
    if row.control is None:
        return f"none of {row.controls}" if row.controls else "none tried"
    macs, speed = savings(row.control)
    return f"{row.control.name} ({setting(row.control)}): {macs}, {speed}"


def setting(saving: Saving) -> str:
    return ", ".join(f"{name}={value}" for name, value in saving.knobs.items()) or "one setting"


def savings(saving: Saving) -> tuple[str, str]:
    paired = "" if saving.paired else ", unpaired"
    share = f"{saving.macs_saved:.1%}".replace("%", " %") if saving.macs_saved > 0 else "none"
    return f"exact: {share}" if saving.exact else share, f"{interval(saving.speed_up, 3)} x{paired}"
