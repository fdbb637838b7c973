"""Progress of long work on standard error: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""`report(label, done, total)`; every label has a bar of its own."""

EVERY_S = 5.0
BARS, LONGEST, MOST = 30, 200, 10**18
"""Bounds of what is shown: bars at once, characters of a label, numbers."""


@contextmanager
def progress(*, unit: str = "steps") -> Iterator[Report]:
    """Report progress inside the block. `unit="bytes"` shows sizes and speed."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bars(unit) as report:
            yield report
    else:
        yield _lines(unit)


@contextmanager
def _bars(unit: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
    if unit == "bytes":
        amount = (DownloadColumn(), TransferSpeedColumn())
    text = TextColumn("{task.description}", markup=False)
    bars = Progress(text, BarColumn(), *amount, TimeRemainingColumn(), console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}
    with bars:

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks and len(tasks) < BARS:
                tasks[label] = bars.add_task("", total=None)
            elif label not in tasks:  # the oldest bar becomes its own
                tasks[label] = tasks.pop(next(iter(tasks)))
            done, total = _bounded(done), _bounded(total)
            bars.update(tasks[label], description=_shown(label), completed=done, total=total)

        yield report


def _lines(unit: str) -> Report:
    """A line when a label first appears, every few seconds with the time that is left, and when it is done."""
    shown: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def report(label: str, done: int, total: int) -> None:
        now, done, total = time.monotonic(), _bounded(done), _bounded(total)
        if label in shown and done < total and now - shown[label] < EVERY_S:
            return
        shown[label] = now
        start, first = began.setdefault(label, (now, done))
        left = (total - done) * (now - start) / (done - first) if done > first else 0
        amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if unit == "bytes" else f"{done} of {total}"
        told = f", about {left:.0f} s left" if left >= 1 else ""
        print(f"{_shown(label)}: {amount}{told}", file=sys.stderr, flush=True)

    return report


def _shown(label: str) -> str:
    """A label as it may reach a terminal: one line, without control characters."""
    return "".join(sign for sign in label if sign.isprintable())[:LONGEST]


def _bounded(number: int) -> int:
    """A number that can be shown, and divided."""
    return max(-MOST, min(number, MOST))
