"""The files of a record: its JSON, and beside it its pictures in an `.npz`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reference_impls.accounting.record import Record


def save(record: Record, file: Path) -> None:
    """Write a record to `file`, and before that its pictures beside it; each appears whole or not at all."""
    if record.arrays:
        part = file.with_name(f"{file.stem}.part.npz")
        np.savez_compressed(part, **record.arrays)
        part.replace(file.with_suffix(".npz"))
    part = file.with_name(f"{file.name}.part")
    part.write_text(record.to_json(), encoding="utf-8")
    part.replace(file)


def load(file: Path) -> dict[str, Any]:
    """The pictures beside the record `file`, by name; none where there is no `.npz`."""
    if not file.with_suffix(".npz").exists():
        return {}
    with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
        return dict(arrays)
