"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder. A link is followed: the file that it leads to is written."""
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = _part(file)
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        if file.exists():
            part.chmod(file.stat().st_mode)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_new(texts: Mapping[Path, str]) -> None:
    """Write new files: all of them, or, whatever goes wrong, none.

    Raises FileExistsError if one of them is there already, and leaves it as it is.
    """
    for file in texts:
        if file.exists() or file.is_symlink():
            raise FileExistsError(f"{file} exists")
    parts = {file: _part(file) for file in texts}
    placed: list[Path] = []
    try:
        for file, part in parts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(texts[file], encoding="utf-8", newline="\n")
        for file, part in parts.items():
            with file.open("x"):  # takes the name, or fails if somebody else has taken it since
                placed.append(file)
            part.replace(file)
    except BaseException:
        for file in placed:
            file.unlink(missing_ok=True)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}.part")
