"""The time variation of a user's script: `profile`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from .common import Failure, as_json, print_json, wrong_usage


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--trace", "-o", type=click.Path(path_type=Path, dir_okay=False), default=Path("profile.trace.json"),
              show_default=True, help="Where the trace goes, for Perfetto or chrome://tracing.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(min=0), default=0, help="Frames at the beginning that do not count.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), help="Of a frame, in milliseconds.")
@as_json
@click.argument("script", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def profile(
    trace: Path, warmup: int, deadline: float | None, json_: bool, script: Path, arguments: tuple[str, ...]
) -> None:
    """Run SCRIPT and show how much the time of its frames varies, and which stage is the cause.

    The script marks them: `from reference_impls.variation import frame, stage`, then `with frame():` around each item
    and `with stage("decode"):` around each part. What was recorded is shown even if the script fails.
    """
    from reference_impls.variation import ALL, load, report, write_trace
    from reference_impls.variation.profiler import ENVIRONMENT

    if not os.access(trace.absolute().parent, os.W_OK):
        wrong_usage(f"no trace can be written to {trace.parent}", "name a folder that you may write to with --trace")
    with tempfile.TemporaryDirectory(prefix="redundancy-profile-") as folder:
        ended = _run(
            [sys.executable, str(script), *arguments], {**os.environ, ENVIRONMENT: folder}, 2 if json_ else None
        )
        spans = load(folder)
    if not spans:
        wrong_usage(f"{script} marked no stage", f"and it {ended}" if ended else "see `redundancy profile --help`")
    failed = [f"{script} {ended}; the numbers are of what it recorded until then"] if ended else []
    written = trace
    try:
        write_trace(spans, trace)
    except OSError as error:
        written = Path(tempfile.mkdtemp(prefix="redundancy-profile-")) / trace.name
        write_trace(spans, written)
        failed.append(f"{error.strerror}: {trace}; it is in {written}")
    try:
        found = report(spans, warmup=warmup, deadline=deadline, clocks=ALL)
    except ValueError as error:
        raise Failure("\n".join([*failed, f"{error}; the trace is in {written}"])) from None
    if json_:
        print_json({"frames": found.frames, "stages": found.to_rows(), "decomposition": dict(found.decomposition),
                    "missed": found.missed, "left_out": dict(found.left_out), "trace": str(written)})  # fmt: skip
    else:
        click.echo(f"{found.to_text()}\ntrace: {written}")
    if failed:
        raise Failure("\n".join(failed))


def _run(command: list[str], environment: dict[str, str], output: int | None) -> str:
    """Run a script to its end; how it ended, empty where that was in order.

    Whoever interrupts the command wants to see what was recorded until then: the script is ended, and not the command.
    """
    process = subprocess.Popen(command, env=environment, stdout=output)
    try:
        code = process.wait()
    except (KeyboardInterrupt, SystemExit):
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return "was interrupted"
    return f"ended with {code}" if code else ""
