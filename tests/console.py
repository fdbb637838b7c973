"""Runs the console blocks of a Markdown document, and compares what they print with what it says.

In a fenced block of kind `console`, a line `$ command` is run (a backslash at its end continues it on the next line),
and the lines up to the next command are what it must print, on either stream. `...` stands for any text within a line;
a line `...` for any lines.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a document."""

    line: int
    """Line of the document, counted from 1."""
    command: str
    wanted: str


def commands(markdown: str) -> list[Command]:
    """The commands of all console blocks, in order."""
    found = []
    for block in _BLOCK.finditer(markdown):
        line = markdown.count("\n", 0, block.start(1)) + 1
        for part in re.split(r"^(?=\$ )", block[1], flags=re.MULTILINE):
            if part.startswith("$ "):
                command, _, wanted = re.sub(r"\\\n", "\0", part[2:]).partition("\n")
                found.append(Command(line, command.replace("\0", "\\\n"), wanted))
            elif part.strip():
                raise ValueError(f"line {line}: a console block starts with `$ `")
            line += part.count("\n")
    return found


def matches(wanted: str, printed: str) -> bool:
    """Whether a command printed what the document says."""
    lines = [
        r"(?:.*\n)*?"
        if line.strip() == "..."
        else re.escape(line.rstrip()).replace(re.escape("..."), ".*?") + r"[ ]*\n"
        for line in wanted.strip("\n").split("\n")
    ]
    pattern = "" if not wanted.strip() else "".join(lines)
    return re.fullmatch(rf"\n*{pattern}\n*", f"{printed.strip()}\n" if printed.strip() else "") is not None


def run(markdown: str, folder: Path, environment: Mapping[str, str], seconds: float = 300) -> list[str]:
    """Run every command in `folder`; what went wrong, a message each. Stops at the first command that fails."""
    wrong = []
    for one in commands(markdown):
        done = subprocess.run(
            ["bash", "-c", one.command], cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        if done.returncode:
            wrong.append(f"line {one.line}: `{one.command}` ends with {done.returncode}:\n{done.stdout}")
            break
        if not matches(one.wanted, done.stdout):
            wrong.append(f"line {one.line}: `{one.command}` prints\n{done.stdout}\nnot\n{one.wanted}")
    return wrong
