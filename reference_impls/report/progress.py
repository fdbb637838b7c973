"""How far a report is, and what of it outlives an interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reference_impls.report.result import Finding

PART: Final = "findings.part.json"


@dataclass(frozen=True)
class Progress:
    """How far a report is, for whoever shows it."""

    doing: str
    """What runs now, such as "tokens: curve"."""
    done: float
    """Share of the expected work that is done, in [0, 1]."""
    left_s: float | None
    """Seconds that are left, as expected; None before that can be told."""


class Clock:
    """Counts the items that went through the model, and tells how many are left."""

    def __init__(self, tell: Callable[[Progress], None] | None = None) -> None:
        self._tell, self._began = tell, time.monotonic()
        self._done, self._planned, self._doing = 0, 0, ""

    def plan(self, items: float) -> None:
        """So many items are still to come."""
        self._planned = self._done + int(items)

    def say(self, doing: str) -> None:
        """What runs from now on."""
        self._doing = doing
        self.tick(0)

    def tick(self, items: int) -> None:
        """So many items went through."""
        self._done += items
        if self._tell is None:
            return
        share = min(self._done / self._planned, 1.0) if self._planned else 0.0
        passed = time.monotonic() - self._began
        left = passed / self._done * (self._planned - self._done) if self._planned and self._done else None
        self._tell(Progress(self._doing, share, None if left is None else max(left, 0.0)))


class Saved:
    """The findings of a report that are done, in a folder; those of another report are not taken for its own."""

    def __init__(self, folder: Path, key: str) -> None:
        self._file, self._key = folder / PART, key
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, str] = {}
        if self._file.exists():
            try:
                kept = json.loads(self._file.read_text(encoding="utf-8"))
            except ValueError:
                kept = {}
            if kept.get("report") == key:
                self._known = kept["findings"]

    def get(self, axis: str) -> Finding | None:
        """The finding of an axis, if it was done before."""
        return Finding.model_validate_json(self._known[axis]) if axis in self._known else None

    def put(self, finding: Finding) -> None:
        """Keep a finding."""
        self._known[finding.axis] = finding.model_dump_json()
        part = self._file.with_suffix(".new")
        part.write_text(json.dumps({"report": self._key, "findings": self._known}), encoding="utf-8")
        part.replace(self._file)
