"""The three clocks of a stage, in nanoseconds: on the wall, on the processor, and waiting in the run queue for one.

What a stage takes on the wall is what it computes, plus what it waits for a processor that others hold, plus a rest
(blocked on input, a lock, a device). On a busy machine the second part dominates, and no wall clock tells it from the
first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

Clock = Callable[[], int]
"""A clock in nanoseconds."""


class Reading(NamedTuple):
    """The clocks at one moment, or what passed between two, in nanoseconds; None for a clock that is not read."""

    wall: int
    cpu: int | None = None
    queue: int | None = None

    def since(self, start: Reading) -> Reading:
        """What passed since `start`."""
        return Reading(
            self.wall - start.wall,
            None if self.cpu is None or start.cpu is None else self.cpu - start.cpu,
            None if self.queue is None or start.queue is None else self.queue - start.queue,
        )


@dataclass(frozen=True)
class Clocks:
    """Which clocks are read: the wall's always, those of the calling thread where they are given."""

    wall: Clock = time.perf_counter_ns
    cpu: Clock | None = None
    queue: Clock | None = None

    def read(self) -> Reading:
        if self.cpu is None and self.queue is None:
            return Reading(self.wall())
        return Reading(self.wall(), self.cpu and self.cpu(), self.queue and self.queue())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in Reading._fields if getattr(self, name) is not None)


class _RunQueue(threading.local):
    """Time that the calling thread waited for a processor, from the second field of its `schedstat` (Linux)."""

    file: int | None = None
    owner: int = 0

    def __call__(self) -> int:
        if self.file is None or self.owner != os.getpid():  # a fork would go on reading its parent's
            self.file, self.owner = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC), os.getpid()
        return int(os.pread(self.file, 80, 0).split()[1])

    def __del__(self, getpid: Callable[[], int] = os.getpid, close: Callable[[int], None] = os.close) -> None:
        if self.file is not None and self.owner == getpid():  # bound: at exit the module may be gone
            close(self.file)


def _run_queue() -> Clock | None:
    """The clock of the run queue, or None where the system keeps none."""
    clock = _RunQueue()
    try:
        clock()
    except (OSError, IndexError, ValueError):
        return None
    return clock


WALL: Final = Clocks()
"""The wall clock alone."""
ALL: Final = Clocks(cpu=time.thread_time_ns, queue=_run_queue())
"""Every clock that the system has."""


class ScriptedClock:
    """A clock for tests: each reading is the next of a script. Raises IndexError where the script has ended."""

    def __init__(self, readings: Iterable[int]) -> None:
        self._readings: Iterator[int] = iter(readings)

    def __call__(self) -> int:
        try:
            return next(self._readings)
        except StopIteration:
            raise IndexError("the script of this clock has ended: give it a reading for each begin and end") from None
