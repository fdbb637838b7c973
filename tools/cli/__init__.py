"""The command `redundancy`: a module for each group of commands, and here what holds for all.

Standard output holds what was asked for, and with `--json` one JSON document and nothing else; progress and messages go
to standard error. Exit codes: 0 fine, 1 findings or a failed run, 2 wrong usage.

Whatever is not needed to answer is imported where it is used, so that `list`, `show` and `check` start without torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from reference_impls.extras import DISTRIBUTION, advice

from ..knowledge import find_root, named_root
from .common import path, wrong_usage

HOMES: Final = {
    "affected": ".check:affected",
    "assets": ".assets:assets",
    "bench": ".run:bench",
    "check": ".check:check",
    "compare": ".compare:compare",
    "dedup": ".dedup:dedup",
    "explain": ".check:explain",
    "export": ".export:export",
    "fmt": ".check:fmt",
    "gaps": ".entries:gaps",
    "list": ".entries:list_",
    "new": "..scaffold.commands:new",
    "notebook": ".notebook:notebook",
    "profile": ".profile:profile",
    "report": ".report:report",
    "review": ".review:review",
    "run": ".run:run",
    "schema": ".check:schema",
    "show": ".entries:show",
    "site": ".site:site",
}
"""Name of each command -> its module and function."""


ADVICE: Final = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room",
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
    errno.EROFS: "choose a place that can be written to",
    errno.ELOOP: "mend the links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder where one is needed",
    errno.EMFILE: "close some files, or raise the limit (`ulimit -n`)",
    errno.ENOEXEC: "mend the installation",
    errno.EBADF: "open the standard streams",
}
"""What to do about an error of the system."""


class Commands(click.Group):
    """Imports a command when it is called, or when its help is asked for."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program: it ends in order when it is told to, and what is wrong around it is told in a line."""
        _streams()
        try:
            with _ending_in_order():
                try:
                    return super().main(*args, **options)
                finally:
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
        except BrokenPipeError:
            _give_up(1)  # whoever read this has seen enough
        except UnicodeEncodeError as error:
            _say(f"Error: a text holds {error.object[error.start : error.end]!a}, which is no character; write UTF-8")
            _give_up(2)
        except OSError as error:
            _say(f"Error: {_where(error)}; {ADVICE.get(error.errno or 0, 'see what is there')}")
            _give_up(2)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any("\0" in word for word in args):
            ctx.fail("an argument holds a NUL character, which no path and no name may hold")
        return super().parse_args(ctx, args)

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


def _streams() -> None:
    """Streams that were closed before the start lead nowhere, so that no file is opened in their place.

    What an encoding lacks is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            closed = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, closed)
            if name == "stdout":
                _say("Error: the standard output is closed; send it somewhere, such as > /dev/null")
                sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """The signals that end a program end this one as Ctrl+C does: what it has begun is cleaned up, once."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> NoReturn:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _say(f"ended by {signal.Signals(number).name}")
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # such as by nohup
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _where(error: OSError) -> str:
    """What the system says, and of which file."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{error.strerror or error}{f': {files}' if files else ''}"


def _say(line: str) -> None:
    """A line on standard error, if anybody hears it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _give_up(code: int) -> NoReturn:
    """End, without another try to write what could not be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number, stream, own in ((1, sys.stdout, sys.__stdout__), (2, sys.stderr, sys.__stderr__)):
        if stream is own:
            os.dup2(null, number)
    os.close(null)
    sys.exit(code)


def version() -> str:
    """Of the installed package; a clone that is not installed has none."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of a clone that is not installed"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="redundancy")
@click.option("--root", type=path, help="Folder of the atlas; $ATLAS_ROOT or the one around here by default.")
@click.pass_context
def main(ctx: click.Context, root: Path | None) -> None:
    """The executable survey of data redundancy in deep learning."""
    try:
        ctx.obj = find_root() if root is None else named_root(root, "--root")
    except FileNotFoundError as error:
        wrong_usage(str(error))
