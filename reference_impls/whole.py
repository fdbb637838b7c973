"""Writing a file whole or not at all: after it the new content is there, or the old, whatever happens."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class OutsideError(OSError):
    """A link in the way leads out of the folder that is written to, or something is there that is no file."""


def write_atomically(file: Path, content: str | bytes, root: Path | None = None) -> None:
    """Write a file whole or not at all, making its folder: after this the new content is there, or the old.

    A link is followed, and what it leads to is written, if that lies below `root` (anywhere, if `root` is None).

    Raises: OutsideError, which is an OSError.
    """
    file = place(file, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = _part(file)
    try:
        _write(part, content)
        if file.exists():
            part.chmod(stat.S_IMODE(file.stat().st_mode))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def place(file: Path, root: Path | None = None) -> Path:
    """Where `file` really lies, links followed. Raises OutsideError if that is not below `root`, or is no file."""
    try:
        real = file.resolve()
    except RuntimeError as error:  # links in a circle, up to Python 3.12
        raise OutsideError(errno.ELOOP, "links that lead in a circle", str(file)) from error
    if root is not None and not real.is_relative_to(root.resolve()):
        raise OutsideError(errno.EPERM, f"a link leads out of {root}, to {real}; nothing is written there", str(file))
    if os.path.lexists(real) and not real.is_file():
        raise OutsideError(errno.EEXIST, "there is something that is no file", str(file))
    return real


def _write(part: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk says so here at the latest


def _part(file: Path) -> Path:
    """A name beside `file` that nobody else uses; a short one, since names have a longest length."""
    return file.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.part")
