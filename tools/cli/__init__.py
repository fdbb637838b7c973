"""The command `redundancy`: a module for each group of commands, and here what holds for all.

Standard output holds what was asked for, and with `--json` one JSON document and nothing else; progress and messages go
to standard error. Exit codes: 0 fine, 1 findings or a failed run, 2 wrong usage.

Whatever is not needed to answer is imported where it is used, so that `list`, `show` and `check` start without torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click

from reference_impls.extras import DISTRIBUTION, advice

from ..knowledge import find_root
from .common import wrong_usage

HOMES: Final = {
    "affected": ".check:affected",
    "assets": ".assets:assets",
    "bench": ".run:bench",
    "check": ".check:check",
    "compare": ".compare:compare",
    "explain": ".check:explain",
    "export": ".export:export",
    "fmt": ".check:fmt",
    "gaps": ".entries:gaps",
    "list": ".entries:list_",
    "new": "..scaffold.commands:new",
    "profile": ".profile:profile",
    "review": ".review:review",
    "run": ".run:run",
    "schema": ".check:schema",
    "show": ".entries:show",
    "site": ".site:site",
}
"""Name of each command -> its module and function."""


class Commands(click.Group):
    """Imports a command when it is called, or when its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module, _, name = HOMES.get(cmd_name, "").partition(":")
        command: click.Command | None = getattr(importlib.import_module(module, __package__), name) if module else None
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; wrong usage, with what to install, where it needs an extra that is missing."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if missing := advice(error):
                wrong_usage(missing)
            raise


def version() -> str:
    """Of the installed package; a clone that is not installed has none."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of a clone that is not installed"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="redundancy")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the atlas; the one around here by default.")
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """The executable survey of data redundancy in deep learning."""
    try:
        ctx.obj = find_root(root)
    except FileNotFoundError as error:
        wrong_usage(str(error))
