"""The command `redundancy`: a module for each group of commands, and here what holds for all.

Standard output holds what was asked for, and with `--json` one JSON document and nothing else; progress and messages go
to standard error. Exit codes: 0 fine, 1 findings or a failed run, 2 wrong usage.

Whatever is not needed to answer is imported where it is used, so that `list`, `show` and `check` start without torch.
"""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli import assets, check, compare, entries, export, run, site
from tools.cli.common import wrong_usage
from tools.knowledge import find_root
from tools.scaffold.commands import new


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redundancy-atlas", prog_name="redundancy")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the atlas; the one around here by default.")
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """The executable survey of data redundancy in deep learning."""
    try:
        ctx.obj = find_root(root)
    except FileNotFoundError as error:
        wrong_usage(str(error))


for module in (entries, compare, check, export, run, assets, site):
    for command in module.COMMANDS:
        main.add_command(command)
main.add_command(new)
