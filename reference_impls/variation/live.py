"""Branches in processes of their own on real frames, and the fusion of what they deliver: `fusion.run` in real time.

This process is the camera and hands out the work, by the same policies as in simulated time. Each branch sees all
frames in shared memory, is told numbers, and answers with what it took. A branch that dies is told of, and time limits
end what would hang; what was delivered until then stays.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import shared_memory
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_impls.variation.fusion import Arrival, Outcome, Policy, chosen, synchronise

Make = Callable[[], Callable[[Tensor], object]]
"""Builds a branch in its process; a function of a module, so that it can be sent there."""


class BranchDied(RuntimeError):
    """A branch that ended before it was ready to begin."""


@dataclass(frozen=True)
class Live:
    """What came of a stream in real time; all times in milliseconds."""

    outcome: Outcome
    latencies: Mapping[str, Mapping[int, float]]
    """Branch -> frame -> how long it took in its process."""
    died: Mapping[str, str]
    """Branch -> how it ended; empty where all lived."""
    unfinished: Mapping[str, int]
    """Branch -> the frame that it had not finished at the time limit, at which it was ended."""


@dataclass
class _Branch:
    process: Any
    pipe: Connection
    busy: int | None = None
    taken: list[int] = field(default_factory=list)


class Branches:
    """Processes that each run one branch on frames (T, 3, H, W) in [0, 1]; use as a context manager.

    Raises: BranchDied that names a branch that could not begin within `patience` seconds.
    """

    def __init__(self, makes: Mapping[str, Make], frames: Tensor, *, patience: float = 120) -> None:
        self._makes, self._frames, self._patience = dict(makes), frames, patience
        self._branches: dict[str, _Branch] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Branches:
        pixels = (self._frames * 255).round().byte().contiguous().numpy()
        memory = shared_memory.SharedMemory(create=True, size=pixels.nbytes)
        self._stack.callback(memory.unlink)
        self._stack.callback(memory.close)
        np.ndarray(pixels.shape, np.uint8, memory.buf)[:] = pixels
        self._stack.callback(self._stop)
        context = multiprocessing.get_context("spawn")
        for name, make in self._makes.items():
            here, there = context.Pipe()
            process = context.Process(target=_branch, args=(there, make, memory.name, pixels.shape), daemon=True)
            process.start()
            there.close()
            self._branches[name] = _Branch(process, here)
        try:
            for name, branch in self._branches.items():
                if (failed := _begun(branch, self._patience)) is not None:
                    raise BranchDied(f"the branch {name!r} did not begin: {failed}")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        for branch in self._branches.values():
            branch.process.kill()
            branch.process.join()
            branch.pipe.close()

    def run(
        self,
        *,
        period: float,
        policy: Policy,
        deadline: float = float("inf"),
        predicted: Mapping[str, Sequence[float]] | None = None,
        slop: float = 0,
        patience: float = 30,
    ) -> Live:
        """Send the frames, one each `period`, and fuse what the branches deliver; as `fusion.run`, in milliseconds.

        patience: seconds after the last frame in which branches may finish.
        """
        number, began = len(self._frames), time.perf_counter() * 1000
        for branch in self._branches.values():
            branch.taken = []
        arrivals: list[Arrival] = []
        latencies: dict[str, dict[int, float]] = {name: {} for name in self._branches}
        died = {name for name, b in self._branches.items() if not b.process.is_alive()}
        end = number * period + patience * 1000
        while True:
            now = time.perf_counter() * 1000 - began
            living = {name: b for name, b in self._branches.items() if name not in died}
            sensed = min(number, int(now / period) + 1)
            for name, n in chosen(
                {name: (b.busy is None, b.taken) for name, b in living.items()}, sensed, now,
                period=period, policy=policy, deadline=deadline, predicted=predicted or {},
            ):  # fmt: skip
                branch = living[name]
                branch.taken.append(n)
                branch.busy = n
                try:
                    branch.pipe.send(n)
                except OSError:
                    died.add(name)
            if now >= end or not living or (sensed == number and all(b.busy is None for b in living.values())):
                break
            next_frame = (sensed * period if sensed < number else end) - now
            for pipe in wait([b.pipe for name, b in living.items() if name not in died], max(next_frame, 0) / 1000):
                name, branch = next((name, b) for name, b in living.items() if b.pipe is pipe)
                try:
                    n, took = branch.pipe.recv()
                except (EOFError, OSError):
                    died.add(name)
                    continue
                branch.busy = None
                latencies[name][n] = took
                arrivals.append(Arrival(time.perf_counter() * 1000 - began, name, n * period))
        unfinished = {n: b.busy for n, b in self._branches.items() if b.busy is not None and n not in died}
        for name in unfinished:  # a late answer would be taken for one of the next stream
            self._branches[name].process.kill()
        fused, _ = synchronise(arrivals, list(self._branches), slop=slop, queue=max(number, 1))
        outcome = Outcome(number, tuple(fused), {name: tuple(sorted(took)) for name, took in latencies.items()})
        return Live(outcome, latencies, {name: _ending(self._branches[name].process) for name in died}, unfinished)


def _begun(branch: _Branch, patience: float) -> str | None:
    """Wait until a branch is ready; why it is not, if it is not."""
    try:
        if branch.pipe.poll(patience):
            branch.pipe.recv()
            return None
    except (EOFError, OSError):
        return _ending(branch.process)
    return f"it was not ready after {patience:g} s"


def _ending(process: Any) -> str:
    """How a process ended that has closed its pipe; on a busy machine it may take a while to be gone."""
    process.join(60)
    return "it still runs" if process.exitcode is None else f"it ended with exit code {process.exitcode}"


def _branch(pipe: Connection, make: Make, memory_name: str, shape: tuple[int, ...]) -> None:
    """In the process of a branch."""
    torch.set_num_threads(1)
    memory = shared_memory.SharedMemory(memory_name)
    frames: np.ndarray[Any, Any] = np.ndarray(shape, np.uint8, memory.buf)
    call = make()
    with torch.no_grad():
        call(_frame(frames, 0))  # what is slow only the first time is no part of a latency
        pipe.send("ready")
        for n in _numbers(pipe):
            begin = time.perf_counter()
            call(_frame(frames, n))
            pipe.send((n, (time.perf_counter() - begin) * 1000))


def _frame(frames: np.ndarray[Any, Any], n: int) -> Tensor:
    return torch.from_numpy(frames[n : n + 1].copy()).float() / 255


def _numbers(pipe: Connection) -> Iterator[int]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return
