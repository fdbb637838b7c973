"""A notebook of the atlas in Jupyter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from ..files import write_atomically
from ..knowledge.findings import did_you_mean
from ..knowledge.paths import INSTALLED, code_root
from .common import Failure, path, wrong_usage


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--out", type=path, help="File to write; build/notebooks/ID.ipynb by default, ID.ipynb outside a clone.")
@click.option(
    "--fresh", is_flag=True, help="Begin again from the notebook of the atlas, where the file is there already."
)
@click.option("--no-open", is_flag=True, help="Write the file, and start nothing.")
@click.pass_context
def notebook(ctx: click.Context, id_: str, out: Path | None, fresh: bool, no_open: bool) -> None:
    """Open the notebook of an entry in Jupyter, with the kernel of this environment.

    The file is yours: it is opened again as you left it. Nothing is started where the standard input is no terminal.
    """
    from .. import jupyter

    root: Path = ctx.obj
    known = jupyter.sources(root)
    if id_ not in known:
        wrong_usage(f"there is no notebook {id_!r}", did_you_mean(id_, known))
    try:
        text = jupyter.as_ipynb(known[id_])
    except (ValueError, SyntaxError) as error:
        raise Failure(f"{known[id_]} cannot be read as a notebook: {error}") from error
    folder = Path() if root == INSTALLED else root / "build" / "notebooks"
    file = out or folder / f"{id_}.ipynb"
    if file.is_dir():
        wrong_usage(f"--out is a folder, {file}", "name a file")
    if fresh or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    else:
        click.echo(f"{file} is there already and stays as it is; --fresh begins again", err=True)
    click.echo(file)
    if no_open or not sys.stdin.isatty():
        return
    module = jupyter.front_end()
    if module is None:
        wrong_usage("Jupyter is not installed in this environment", "pip install jupyterlab")
    command, environment = jupyter.opening(module, file.resolve(), code_root(root))
    process = subprocess.Popen(command, env=environment)
    try:
        code = _wait(process)
    finally:
        if process.poll() is None:
            process.terminate()
    if code:
        raise Failure(f"{module} ended with exit code {code}")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for Jupyter to end. Ctrl+C reaches it as well, and it asks what is meant."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
