"""Runs one experiment in a child process that can neither hang nor take down its caller.

The child (`reference_impls.__main__`) imports the contribution; this process never does. A watchdog limits
the wall-clock and the memory of the child's whole process tree, and ends all of it, whatever happens; should this
process end first, the child's keeper does (`reference_impls.guard`). What comes back is not trusted: progress, log and
record are read within bounds, and the record is validated here again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import pydantic

import reference_impls
from reference_impls import guard, strict
from reference_impls.accounting.record import Record
from reference_impls.guard import Child

from . import forked
from .files import scratch
from .forked import Forked

Budget = Literal["smoke", "full"]
ErrorKind = Literal[
    "usage",
    "missing-extra",
    "missing-asset",
    "import",
    "timeout",
    "memory",
    "network",
    "invalid-record",
    "crash",
    "exception",
]
Progress = Callable[[str, int, int], None]
"""`progress(label, done, total)`"""

SECONDS: dict[Budget, float] = {"smoke": 120, "full": 3600}
"""Wall-clock limit of each budget."""
MEMORY_GB = 8.0
"""Memory limit of the child and its children, in GiB; on a small machine, three quarters of its memory."""

CHILD = "reference_impls.__main__"
PROGRESS = "ATLAS-PROGRESS "  # as in that module, whose import would bring in the experiments
TOKEN = "ATLAS_RUN"  # environment variable that marks the processes of a run
LOG_LINES, LINE_LENGTH = 60, 4000
LABELS, LABEL_LENGTH, WAITING = 50, 200, 200
"""Bounds of what is told of progress: labels, their characters, and reports that wait to be passed on."""
RECORD_MB = 32
MESSAGE_LENGTH = 4000
POLL_S, GRACE_S = 0.1, 5.0
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Outcome:
    """What became of a run: a record, or an error with a message that says what to do."""

    record: Record | None = None
    error: ErrorKind | None = None
    message: str = ""
    log: str = ""
    """The last lines that the child wrote to its standard output and error."""
    seconds: float = 0.0
    """Wall-clock of the child, start-up included."""
    peak_mb: float = 0.0
    """Largest memory of the child's process tree that the watchdog saw, in MiB."""


def run(
    technique: str,
    *,
    scenario: str | None = None,
    budget: Budget = "smoke",
    device: str = "cpu",
    seconds: float | None = None,
    memory_gb: float = MEMORY_GB,
    progress: Progress = lambda label, done, total: None,
    package: str = "reference_impls.experiments",
    implementations: Path | None = None,
    preloaded: bool = False,
) -> Outcome:
    """Run a scenario of a technique (the first one when `scenario` is None); what goes wrong there is in the outcome.

    Raises ValueError for limits that are not above 0.

    Args:
        seconds: wall-clock limit; the budget's own (`SECONDS`) when None.
        memory_gb: memory limit in GiB of the whole process tree.
        progress: told how far the experiment is.
        package: the package that holds the experiment's module.
        implementations: the folder of the package `reference_impls` that runs; the one of this process when None.
        preloaded: where that is possible, fork a process that has imported torch (`forked.py`) instead of starting a
            new interpreter, which takes two seconds longer. Otherwise the same, and the same limits hold.
    """
    arguments = [technique, "--budget", budget, "--device", device, "--package", package]
    if scenario:
        arguments += ["--scenario", scenario]
    pictures: dict[str, Any] = {}
    limit_s = SECONDS[budget] if seconds is None else seconds
    outcome, text = _guarded(arguments, limit_s, memory_gb, progress, implementations, pictures, preloaded)
    if text is None:
        return outcome
    wanted = {"owner": technique, "budget": budget} | ({"scenario": scenario} if scenario else {})
    try:
        record = _record(text, wanted)
        record.arrays.update(pictures)
        return replace(outcome, record=record)
    except ValueError as error:
        return replace(outcome, error="invalid-record", message=f"the result record is not valid: {_problems(error)}")


def scenarios(
    technique: str,
    *,
    seconds: float = 60,
    memory_gb: float = MEMORY_GB,
    package: str = "reference_impls.experiments",
    implementations: Path | None = None,
) -> dict[str, str]:
    """Name -> title of the scenarios of a technique; RuntimeError when its module cannot be imported."""
    arguments = [technique, "--list", "--package", package]
    outcome, text = _guarded(arguments, seconds, memory_gb, lambda label, done, total: None, implementations)
    if text is None:
        raise RuntimeError(outcome.message)
    try:
        return {str(name): str(title) for name, title in dict(strict.loads(text)).items()}
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"the scenarios of {technique!r} cannot be read: {error}") from error


def _guarded(
    arguments: Sequence[str],
    limit_s: float,
    memory_gb: float,
    progress: Progress,
    implementations: Path | None,
    pictures: dict[str, Any] | None = None,
    preloaded: bool = False,
) -> tuple[Outcome, str | None]:
    """Run the child; what it delivered, or None when the outcome holds an error. Its pictures go into `pictures`."""
    if not (limit_s > 0 and memory_gb > 0):
        raise ValueError(f"the limits must be above 0, got {limit_s!r} s and {memory_gb!r} GiB")
    limit_bytes = int(min(memory_gb * 2**30, 0.75 * psutil.virtual_memory().total))
    with scratch("atlas-run-") as folder:
        result = folder / "result.json"
        options = [*arguments, "--result", str(result), "--memory", str(limit_bytes)]
        token = uuid.uuid4().hex
        environment = _environment(token, folder, implementations)
        start = time.monotonic()
        deadline = start + limit_s
        child = (_forked if preloaded and forked.AVAILABLE else _started)(options, str(folder), environment)
        tree = _Tree(child, token)
        try:
            output = _Output(child)
            stopped = _watch(tree, output, progress, result, deadline, limit_bytes)
        finally:
            tree.end()
        output.close()
        if stopped is None:
            output.pass_on(progress, deadline)
        about = Outcome(
            log="\n".join(output.lines), seconds=time.monotonic() - start, peak_mb=round(tree.peak / 2**20, 1)
        )
        if stopped == "timeout":
            remedy = f"did not finish within {limit_s:g} s and was stopped; make it smaller, or allow more time"
            return replace(about, error=stopped, message=f"{arguments[0]} {remedy}"), None
        if stopped == "memory":
            remedy = f"used more than {limit_bytes / 2**30:.1f} GiB of memory and was stopped"
            advice = "make it smaller, or allow more memory"
            return replace(about, error=stopped, message=f"{arguments[0]} {remedy}; {advice}"), None
        if pictures is not None and os.path.lexists(result.with_suffix(".npz")):
            from reference_impls.accounting.pictures import load

            try:
                pictures.update(load(result))
            except ValueError as error:
                return replace(about, error="invalid-record", message=f"the pictures cannot be read: {error}"), None
        return _delivered(about, result, child.returncode)


def _started(options: Sequence[str], folder: str, environment: Mapping[str, str]) -> Child:
    """The child in a new interpreter."""
    return guard.start(
        [sys.executable, "-m", CHILD.removesuffix(".__main__"), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
    )


def _forked(options: Sequence[str], folder: str, environment: Mapping[str, str]) -> Child:
    """The child in a fork of a process that has imported torch."""
    return Forked(f"{CHILD}:main", options, folder=folder, environment=environment)


def _environment(token: str, folder: Path, implementations: Path | None) -> dict[str, str]:
    """The caller's environment, in which the child finds the same `reference_impls` from `folder`.

    A package in `folder` leads there, and not the path of the clone: that would put its `tools`, `tests` and
    `notebooks` before packages of the caller that are called so.
    """
    places = [implementations] if implementations else reference_impls.__path__
    package = folder / reference_impls.__name__
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__ = {[str(Path(p).resolve()) for p in places]}\n", encoding="utf-8")
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), *paths]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash of native code leaves the Python line in the log
        TOKEN: token,
    }


class _Tree:
    """The child, its descendants, and descendants that were handed to another parent."""

    def __init__(self, child: Child, token: str) -> None:
        self.child = child
        self.peak = 0
        self._token = token
        self._descendants: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            self._root = psutil.Process(child.pid)

    def memory(self) -> int:
        """Bytes in main memory, without those of a keeper; pages that forked processes share are divided among them."""
        with contextlib.suppress(psutil.Error, AttributeError):
            below = self._root.children(recursive=True)
            self._descendants |= {
                process.pid: process for process in (below if guard.AVAILABLE else [self._root, *below])
            }
        processes = list(self._descendants.values())
        used = sum(_memory(process, "rss") for process in processes)
        if len(processes) > 1 and used > self.peak:
            used = sum(_memory(process, "pss") for process in processes)
        self.peak = max(self.peak, used)
        return used

    def end(self) -> None:
        """Kill every process of the run that is still there: the keeper does, or what is left is found by its marks."""
        guard.end(self.child)
        for _ in range(20):  # a process may start another one while it is being killed
            if not [process for process in (*self._descendants.values(), *self._marked()) if _kill(process)]:
                break
            time.sleep(POLL_S / 2)

    def _marked(self) -> Iterator[psutil.Process]:
        """Processes of the child's session, or with the run's token in their environment, whoever their parent is."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == self.child.pid or process.environ().get(TOKEN) == self._token:
                    yield process


def _memory(process: psutil.Process, kind: Literal["rss", "pss"]) -> int:
    with contextlib.suppress(psutil.Error):
        info = process.memory_full_info() if kind == "pss" else process.memory_info()
        return int(getattr(info, kind, info.rss))
    return 0


def _kill(process: psutil.Process) -> bool:
    """Kill a process; whether it was there."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.Error:
        return False
    return True


class _Output:
    """What the child writes: the last lines of its log, and its progress."""

    def __init__(self, child: Child) -> None:
        assert child.stdout is not None
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self._progress: deque[tuple[str, int, int]] = deque(maxlen=WAITING)
        self._labels: set[str] = set()
        self._stream = child.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the stream was closed
            while line := self._stream.readline(LINE_LENGTH):
                text = _CONTROL.sub("", line.decode("utf-8", "replace")).rstrip()
                if text.startswith(PROGRESS) and (told := self._told(text.removeprefix(PROGRESS))):
                    self._progress.append(told)
                elif text:
                    self.lines.append(text)

    def _told(self, text: str) -> tuple[str, int, int] | None:
        """A report of progress; None for a line that is none, or has one label too many."""
        try:
            told = strict.loads(text)
            label, done, total = told["label"], told["done"], told["total"]
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(label, str) or type(done) is not int or type(total) is not int:
            return None
        label = _CONTROL.sub("", label).replace("\n", " ")[:LABEL_LENGTH]
        if len(self._labels) < LABELS:
            self._labels.add(label)
        return (label, done, total) if label in self._labels else None

    def pass_on(self, progress: Progress, deadline: float) -> None:
        """Report the progress that came in since the last call, as far as there is time."""
        for _ in range(len(self._progress)):
            if time.monotonic() > deadline:
                return
            progress(*self._progress.popleft())

    def close(self) -> None:
        """Wait for what was written before the end; not for ever, should somebody still hold the other end."""
        self._thread.join(GRACE_S)
        if not self._thread.is_alive():
            self._stream.close()


def _watch(
    tree: _Tree, output: _Output, progress: Progress, result: Path, deadline: float, limit_bytes: int
) -> Literal["timeout", "memory"] | None:
    """Wait for the child; why it has to be stopped, or None if it ended or delivered."""
    while tree.child.poll() is None:
        output.pass_on(progress, deadline)
        if os.path.lexists(result):  # delivered: a thread or a child that never ends must not cost the record
            with contextlib.suppress(subprocess.TimeoutExpired):
                tree.child.wait(GRACE_S)
            return None
        if tree.memory() > limit_bytes:
            return "memory"
        if time.monotonic() > deadline:
            return "timeout"
        time.sleep(POLL_S)
    return None


def _delivered(about: Outcome, result: Path, code: int) -> tuple[Outcome, str | None]:
    """What a child left that ended by itself, or that has written its result."""
    if not os.path.lexists(result):
        message = f"the process ended without a result ({_ending(code)}); see its log"
        return replace(about, error="crash", message=message), None
    try:
        text = strict.read(result, RECORD_MB * 2**20, follow=False).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        message = f"what it left as its result cannot be read: {error}; keep to summaries in one file"
        return replace(about, error="invalid-record", message=message), None
    with contextlib.suppress(ValueError, TypeError):
        found = strict.loads(text)
        if set(found) == {"error", "message"} and found["error"] in get_args(ErrorKind):
            message = _CONTROL.sub("", str(found["message"]))[:MESSAGE_LENGTH]
            return replace(about, error=found["error"], message=message), None
    return about, text


def _record(text: str, wanted: Mapping[str, str]) -> Record:
    """The record, validated; ValueError if it is none, or is not what was asked for."""
    record = Record.from_json(text)
    for field, value in wanted.items():
        if (got := getattr(record, field)) != value:
            raise ValueError(f"it says {field}: {got!r}, but the run was of {value!r}")
    return record


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _problems(error: Exception) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
