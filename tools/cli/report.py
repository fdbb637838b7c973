"""Where the redundancy of a model is on some data: `report`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from reference_impls.extras import advice

from .common import Failure, as_json, device, print_json, wrong_usage


def budget(text: str) -> dict[str, float]:
    """`flips=1%`, `error=0.05` or `metric=0.01` as a mapping."""
    found = re.fullmatch(r"\s*(flips|error|metric)\s*=\s*([0-9.]+)\s*(%?)\s*", text)
    try:
        value = float(found[2]) / (100 if found[3] else 1) if found else -1.0
    except ValueError:
        value = -1.0
    if found is None or not 0 <= value <= 1:
        raise click.BadParameter(f"{text!r} is none of flips=1%, error=0.05, metric=1%")
    return {found[1]: value}


@click.command()
@click.option("--model", metavar="MODULE:FUNCTION", help="Function that returns the model (torch.nn.Module).")
@click.option("--hf", metavar="FOLDER", help="A model of Hugging Face, in a folder; instead of --model.")
@click.option("--data", required=True, metavar="MODULE:FUNCTION|FOLDER",
              help="Function that returns a loader, or a folder of pictures, clips or texts.")  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["image", "video", "text", "tokens"]), help="Told from the files of a folder."
)
@click.option("--budget", "limit", type=budget, default="flips=1%", show_default=True,
              help="How much the outputs may change: flips, error or metric.")  # fmt: skip
@click.option("--items", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Size of the sample.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", "where", type=device, default="cpu", show_default=True)
@click.option("--axis", "axes", multiple=True, help="Measure this axis alone; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json, report.txt and index.html.")
@click.option("--resume", is_flag=True, help="Go on with the report in --out that was interrupted.")
@click.option(
    "--verify", is_flag=True, help="Apply what is suggested, and show what was predicted and what came of it."
)
@as_json
@click.pass_context
def report(
    ctx: click.Context,
    model: str | None,
    hf: str | None,
    data: str,
    kind: Any,
    limit: dict[str, float],
    items: int,
    seed: int,
    where: str,
    axes: tuple[str, ...],
    out: Path | None,
    resume: bool,
    verify: bool,
    json_: bool,
) -> None:
    """Measure where a model is redundant on some data, what could be saved, and what to try first.

    Each kind of redundancy is measured beside null controls; its ideal reuse is simulated and the rest of the model
    run, so that a saving is told at the budget. An interrupted report holds what was done.
    """
    if (model is None) == (hf is None):
        wrong_usage("give the model by --model MODULE:FUNCTION, or by --hf FOLDER")
    if resume and out is None:
        wrong_usage("--resume goes on with the report in --out, which is not given")
    try:
        from ..report.run import measured
    except ModuleNotFoundError as error:
        if missing := advice(error):
            wrong_usage(missing)
        raise
    from ..report.inputs import InputError

    command = shlex.join(["redundancy", "report", *_said(ctx)])
    try:
        done = measured(
            model=model, hf=hf, data=data, kind=kind, budget=limit, items=items, seed=seed, device=where,
            axes=axes or None, out=out, resume=resume, root=ctx.obj, command=command,
        )  # fmt: skip
    except InputError as error:
        wrong_usage(str(error))
    except (ValueError, TypeError) as error:
        raise Failure(str(error)) from error
    achieved = None
    if verify:
        from ..report.run import verified

        try:
            achieved = verified(done, out)
        except ValueError as error:
            click.echo(str(error), err=True)
    if json_:
        told = {"verdict": done.ranking.verdict, "verified": achieved and achieved.model_dump(mode="json")}
        print_json(done.result.model_dump(mode="json") | told)
        return
    click.echo(done.result.table)
    click.echo(f"\n{click.style(done.ranking.verdict, bold=True)}")
    if achieved is not None:
        click.echo(achieved.table)
    if out is not None:
        click.echo(f"look at {out / 'index.html'}")


def _said(ctx: click.Context) -> list[str]:
    """The options as they were given, for the command that measures again."""
    words: list[str] = []
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        value: Any = ctx.params.get(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in ("resume", "json_"):
            continue
        flag = parameter.opts[0]
        if parameter.name == "limit":
            name, share = next(iter(value.items()))
            words += [flag, f"{name}={share:g}"]
        elif isinstance(value, bool):
            words += [flag] if value else []
        else:
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag, str(one)]
    return words
