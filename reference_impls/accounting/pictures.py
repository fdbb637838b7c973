"""The files of a record: its JSON, and beside it its pictures in an `.npz`."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from reference_impls import strict
from reference_impls.accounting.record import Record
from reference_impls.whole import write_atomically

PICTURES_MB = 64


def save(record: Record, file: Path, root: Path | None = None) -> None:
    """Write a record to `file`, and before that its pictures beside it; each appears whole or not at all.

    Raises: OSError; `whole.OutsideError` where a link leads out of `root`.
    """
    text = record.to_json()
    if record.arrays:
        packed = io.BytesIO()
        np.savez_compressed(packed, **record.arrays)
        write_atomically(file.with_suffix(".npz"), packed.getvalue(), root)
    write_atomically(file, text, root)


def load(file: Path) -> dict[str, Any]:
    """The pictures beside the record `file`, by name; none where there is no `.npz`.

    Raises: ValueError where it is no such file, or one of more than `PICTURES_MB`, which may be packed.
    """
    beside = file.with_suffix(".npz")
    if not os.path.lexists(beside):
        return {}
    try:
        content = io.BytesIO(strict.read(beside, PICTURES_MB * 2**20, follow=False))
        with zipfile.ZipFile(content) as packed:
            if sum(member.file_size for member in packed.infolist()) > PICTURES_MB * 2**20:
                raise ValueError(f"{beside.name} holds more than {PICTURES_MB} MiB")
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError, SyntaxError, TypeError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise ValueError(f"{beside.name} is no file of pictures: {error}") from error
