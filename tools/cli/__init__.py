"""The command `redundancy`: a module for each group of commands, and here what holds for all.

Standard output holds what was asked for, and with `--json` one JSON document and nothing else; progress and messages go
to standard error. Exit codes: 0 fine, 1 findings or a failed run, 2 wrong usage.

Whatever is not needed to answer is imported where it is used, so that `list`, `show` and `check` start without torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import click

from tools.cli.common import wrong_usage
from tools.knowledge import find_root

HOMES: Final = {
    "affected": "tools.cli.check:affected",
    "assets": "tools.cli.assets:assets",
    "bench": "tools.cli.run:bench",
    "check": "tools.cli.check:check",
    "compare": "tools.cli.compare:compare",
    "explain": "tools.cli.check:explain",
    "export": "tools.cli.export:export",
    "fmt": "tools.cli.check:fmt",
    "gaps": "tools.cli.entries:gaps",
    "list": "tools.cli.entries:list_",
    "new": "tools.scaffold.commands:new",
    "run": "tools.cli.run:run",
    "schema": "tools.cli.check:schema",
    "show": "tools.cli.entries:show",
    "site": "tools.cli.site:site",
}
"""Name of each command -> its module and function."""


class Commands(click.Group):
    """Imports a command when it is called, or when its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module, _, name = HOMES.get(cmd_name, "").partition(":")
        command: click.Command | None = getattr(importlib.import_module(module), name) if module else None
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redundancy-atlas", prog_name="redundancy")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the atlas; the one around here by default.")
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """The executable survey of data redundancy in deep learning."""
    try:
        ctx.obj = find_root(root)
    except FileNotFoundError as error:
        wrong_usage(str(error))
