"""Marks the stages of a pipeline and keeps what each took: across threads, processes, nesting and failures.

A *frame* is one item that goes through the pipeline, a *stage* a part of its way. Stages nest; what a frame's own
thread does outside of its stages stays visible as unattributed. A stage that fails is kept, with the error's name.
With a log, every begin and end is written at once, so that nothing is lost when a process dies, and several processes
can write to one folder; the wall clock is the same for all processes of a machine.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

from reference_impls.variation.clocks import ALL, WALL, Clocks, Reading

P = ParamSpec("P")
R = TypeVar("R")
ENVIRONMENT: Final = "ATLAS_PROFILE"
"""Names the folder of the log while `redundancy profile` runs a script."""


class Span(NamedTuple):
    """What one stage, or one whole frame, took."""

    name: str | None
    """Of the stage; None for a whole frame."""
    frame: int | None
    """Number of the frame; None for a stage outside of frames."""
    path: tuple[str, ...]
    """The stages around it, the outermost first."""
    start: int
    """On the wall clock, in nanoseconds."""
    passed: Reading
    process: int
    thread: int
    counts: Mapping[str, float] = MappingProxyType({})
    """What was counted in the frame, such as proposals."""
    failed: str = ""
    """Name of the error that ended it; empty if none did."""


class Profiler:
    """Collects spans. `clocks`: which clocks are read. `log`: a folder to which every span is written as it comes.

    Raises: OSError if the log cannot be written.
    """

    def __init__(self, clocks: Clocks = WALL, *, log: Path | str | None = None) -> None:
        self.clocks = clocks
        self.spans: list[Span] = []
        """In the order in which they ended."""
        self._where: ContextVar[tuple[int | None, tuple[str, ...]]] = ContextVar("where", default=(None, ()))
        self._frames = 0
        self._lock = threading.Lock()
        self._log = _Log(Path(log)) if log is not None else None

    def frame(self, **counts: float) -> Frame:
        """A context manager around one frame. counts: numbers that may explain its time; `count` adds more later.

        Raises: ValueError for a count that is not finite.
        """
        with self._lock:
            number, self._frames = self._frames, self._frames + 1
        return Frame(self, number, _finite(counts))

    def stage(self, name: str) -> Stage:
        """A context manager around one stage, or a decorator of a function that is one.

        It belongs to the frame and the stage in which it is entered; a worker thread begins outside of all frames,
        and takes part in one by `frame.stage`.
        """
        return Stage(self, name)

    def _keep(self, span: Span) -> None:
        self.spans.append(span)  # atomic: one operation of the list
        if self._log is not None:
            self._log.write("end", span)


class Stage:
    """One stage of a pipeline; enter it once."""

    __slots__ = ("_begun", "_inside", "_of", "_process", "_profiler", "_token", "name")

    def __init__(self, profiler: Profiler, name: str | None, frame: int | None = None) -> None:
        self._profiler, self.name, self._of = profiler, name, frame
        self._begun: Reading | None = None

    def __enter__(self) -> Self:
        if self._begun is not None:
            raise RuntimeError(f"{self.name or 'this frame'} has been entered before: make one for each time")
        profiler, where = self._profiler, self._profiler._where
        frame, path = where.get()
        if self._of is not None and self._of != frame:
            frame, path = self._of, ()
        self._inside, self._process = (frame, path), os.getpid()
        self._token = where.set((frame, path if self.name is None else (*path, self.name)))
        if profiler._log is not None:
            profiler._log.write("begin", self._span(Reading(profiler.clocks.wall()), Reading(0)))
        self._begun = profiler.clocks.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiler, begun = self._profiler, self._begun
        ended = profiler.clocks.read()
        if begun is None or self._process != os.getpid():  # a fork's copy: the stage is its parent's
            return
        try:
            profiler._where.reset(self._token)
        except ValueError:  # entered in another thread: of the clocks, the wall's alone is shared
            ended = Reading(ended.wall)
        profiler._keep(self._span(begun, ended.since(begun), kind.__name__ if kind else ""))

    def _span(self, begun: Reading, passed: Reading, failed: str = "") -> Span:
        frame, path = self._inside
        return Span(
            self.name, frame, path, begun.wall, passed, self._process, threading.get_ident(), self._counts, failed
        )

    @property
    def _counts(self) -> Mapping[str, float]:
        return {}

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function: each call is a stage. Raises: TypeError for a coroutine or generator function."""
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__name__} only begins when it is called: use `with` around what it does")
        profiler, name = self._profiler, self.name

        @functools.wraps(function)
        def staged(*args: P.args, **kwargs: P.kwargs) -> R:
            with Stage(profiler, name):
                return function(*args, **kwargs)

        return staged


class Frame(Stage):
    """One item on its way through the pipeline."""

    __slots__ = ("_known", "number")

    def __init__(self, profiler: Profiler, number: int, counts: Mapping[str, float]) -> None:
        super().__init__(profiler, None, number)
        self.number, self._known = number, dict(counts)

    def count(self, **counts: float) -> None:
        """Add what was counted on the way. Raises: ValueError for a count that is not finite."""
        self._known |= _finite(counts)

    def stage(self, name: str) -> Stage:
        """A stage of this frame, also from another thread, where it runs beside the frame's own stages."""
        return Stage(self._profiler, name, self.number)

    @property
    def _counts(self) -> Mapping[str, float]:
        return self._known

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        raise TypeError("a frame is one item, not a function: use `with`, or decorate by `profiler.stage(name)`")


def _finite(counts: Mapping[str, float]) -> Mapping[str, float]:
    for name, value in counts.items():
        if not math.isfinite(value):
            raise ValueError(f"the count {name!r} must be finite, got {value}")
    return counts


# --- the log


class _Log:
    """A file for each process, a line for each begin and end; a line is written at once or not at all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._file, self._owner = folder, -1, 0

    def write(self, event: str, span: Span) -> None:
        if self._owner != os.getpid():
            path = self._folder / f"{os.getpid()}.jsonl"
            self._file, self._owner = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC), os.getpid()
        os.write(self._file, (json.dumps([event, *span]) + "\n").encode())


def load(folder: Path | str) -> list[Span]:
    """The spans of all processes that wrote to a log, by their begin.

    A stage in which its process or thread died has no end: it is given with `failed` = "never ended" and without time.
    A last line that was cut is left out. Raises: ValueError, with file and line, for anything else that is no span.
    """
    spans: list[Span] = []
    for file in sorted(Path(folder).glob("*.jsonl")):
        begun: dict[tuple[Any, ...], list[Span]] = {}
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                event, span = _read(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: not a span of a profiler ({error})") from None
            key = (span.name, span.frame, span.path)
            if event == "begin":
                begun.setdefault(key, []).append(span)
                continue
            if begun.get(key):
                begun[key].pop()
            spans.append(span)
        spans += [span._replace(failed="never ended") for left in begun.values() for span in left]
    return sorted(spans, key=lambda span: span.start)


def _read(line: Any) -> tuple[str, Span]:
    event, name, frame, path, start, passed, process, thread, counts, failed = line
    if event not in ("begin", "end"):
        raise ValueError(f"no event is called {event!r}")
    return event, Span(name, frame, tuple(path), start, Reading(*passed), process, thread, counts, failed)


# --- the profiler of a script that `redundancy profile` runs


@functools.cache
def _of_the_script() -> Profiler | None:
    folder = os.environ.get(ENVIRONMENT)
    return Profiler(ALL, log=folder) if folder else None


def frame(**counts: float) -> Frame | Idle:
    """`Profiler.frame` of the run by `redundancy profile`; otherwise nothing."""
    profiler = _of_the_script()
    return profiler.frame(**counts) if profiler else Idle()


def stage(name: str) -> Stage | Idle:
    """`Profiler.stage` of the run by `redundancy profile`; otherwise nothing."""
    profiler = _of_the_script()
    return profiler.stage(name) if profiler else Idle()


class Idle:
    """A frame or stage while nobody profiles."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        return function

    def stage(self, name: str) -> Idle:
        """Nothing."""
        return self

    def count(self, **counts: float) -> None:
        """Nothing."""
