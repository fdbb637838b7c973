"""Fusion of streams by approximate time, and what a pipeline of branches delivers to it, in simulated time.

Branches (detector, segmentation, lanes) take the same frames and finish each at its own time; the fusion waits for the
slowest. What arrives is put together when stamps lie within a `slop`: the rule of approximate-time synchronisation
that robotics middleware uses. Time here is a number, so every result is exact and repeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Policy = Literal["every", "latest", "deadline", "coordinated"]
"""Which frames a branch takes up once it is free; see `run`."""


@dataclass(frozen=True, order=True)
class Arrival:
    """A message of a stream: when it arrives, and when what it tells of was sensed."""

    time: float
    stream: str
    stamp: float


@dataclass(frozen=True)
class Fused:
    """One message of each stream, put together."""

    time: float
    """When the last of them arrived."""
    stamps: Mapping[str, float]

    @property
    def delay(self) -> float:
        """From the oldest sensing to the fusion."""
        return self.time - min(self.stamps.values())

    @property
    def skew(self) -> float:
        return max(self.stamps.values()) - min(self.stamps.values())


def synchronise(
    arrivals: Iterable[Arrival], streams: Sequence[str], *, slop: float, queue: int = 10
) -> tuple[list[Fused], list[Arrival]]:
    """Sets of one message a stream whose stamps differ by at most `slop`, and the messages that came into none.

    A message that arrives fires the set nearest to its stamp, if there is one among the messages that wait; a message
    serves once. `queue`: messages that wait in each stream; one more drops the oldest stamp. slop 0 asks for equal
    stamps.
    Raises: ValueError for fewer than two streams, a message of another stream or without finite times, or a negative
    slop.
    """
    if len(set(streams)) != len(streams) or len(streams) < 2:
        raise ValueError(f"fusion puts two or more different streams together, got {list(streams)}")
    if not slop >= 0 or queue < 1:
        raise ValueError(f"slop must not be negative and the queue hold at least one, got {slop} and {queue}")
    waiting: dict[str, list[Arrival]] = {stream: [] for stream in streams}
    fused: list[Fused] = []
    dropped: list[Arrival] = []
    messages = list(arrivals)
    for arrival in messages:
        if arrival.stream not in waiting:
            raise ValueError(f"a message of {arrival.stream!r}, which is none of {', '.join(streams)}")
        if not (math.isfinite(arrival.time) and math.isfinite(arrival.stamp)):
            raise ValueError(f"a message needs finite times, got {arrival}")
    for arrival in sorted(messages):
        own = waiting[arrival.stream]
        own.append(arrival)
        if len(own) > queue:
            oldest = min(own, key=lambda message: message.stamp)
            own.remove(oldest)
            dropped.append(oldest)
        if (chosen := _nearest(arrival, waiting, slop)) is None:
            continue
        for message in chosen:
            waiting[message.stream].remove(message)
        fused.append(Fused(arrival.time, {message.stream: message.stamp for message in chosen}))
    dropped += (message for left in waiting.values() for message in left)
    return fused, sorted(dropped)


def _nearest(arrival: Arrival, waiting: Mapping[str, list[Arrival]], slop: float) -> tuple[Arrival, ...] | None:
    if arrival not in waiting[arrival.stream]:  # it was itself the oldest of a full queue
        return None
    candidates = (
        [arrival]
        if stream == arrival.stream
        else [message for message in messages if abs(message.stamp - arrival.stamp) <= slop]
        for stream, messages in waiting.items()
    )
    sets = (
        chosen for chosen in product(*candidates) if max(m.stamp for m in chosen) - min(m.stamp for m in chosen) <= slop
    )
    return min(sets, key=lambda chosen: (sum(abs(m.stamp - arrival.stamp) for m in chosen), chosen), default=None)


# --- branches in simulated time


@dataclass(frozen=True)
class Outcome:
    """What a pipeline of branches and its fusion did with a stream of frames."""

    frames: int
    fused: tuple[Fused, ...]
    computed: Mapping[str, tuple[int, ...]]
    """The frames that each branch computed."""

    @property
    def drop_ratio(self) -> float:
        """Share of the frames that no fused set holds."""
        return 1 - len(self.fused) / self.frames

    @property
    def wasted(self) -> int:
        """Results of branches that came into no fused set: work that could have been left out."""
        return sum(map(len, self.computed.values())) - len(self.fused) * len(self.computed)

    @property
    def wasted_share(self) -> float:
        """`wasted`, of all results; 0 where there are none."""
        return self.wasted / max(sum(map(len, self.computed.values())), 1)


def run(
    times: Mapping[str, Sequence[float]],
    *,
    period: float,
    policy: Policy = "every",
    deadline: float = math.inf,
    predicted: Mapping[str, Sequence[float]] | None = None,
    slop: float = 0,
    queue: int = 10,
) -> Outcome:
    """Branches that each have a processor of their own take frames of a camera; the fusion takes their results.

    times: how long each branch takes for each frame, one a frame. period: from frame to frame.
    policy: `every` frame in its turn; the `latest` once the branch is free, older ones skipped; the oldest that is no
    older than the `deadline`; or `coordinated`: the newest once all branches are free, so that all compute the same
    frames. predicted: with the last, a frame that is predicted to miss the deadline in any branch is taken by none.
    Raises: ValueError for series of different lengths, predictions of other branches, times or a period that are not
    finite and positive, or a deadline that is no number.
    """
    if len({len(series) for series in times.values()}) != 1 or not all(map(len, times.values())):
        raise ValueError("every branch needs one time for each of the frames, and there must be a frame")
    if not all(math.isfinite(t) and t > 0 for series in times.values() for t in series):
        raise ValueError("times of branches must be finite and positive")
    if not (period > 0 and math.isfinite(period)):
        raise ValueError(f"the period must be positive and finite, got {period}")
    if math.isnan(deadline):
        raise ValueError("the deadline must be a number, got nan")
    for branch, series in (predicted or {}).items():
        if branch not in times or len(series) != len(times[branch]):
            raise ValueError(
                f"a prediction of {len(series)} times of {branch!r}: give one a frame, of a branch that runs"
            )
    frames = len(next(iter(times.values())))
    sensed = [n * period for n in range(frames)]
    if policy == "coordinated":
        common = list(_together(times, sensed, deadline, predicted or {}))
        taken = dict.fromkeys(times, common)
    else:
        taken = {branch: list(_alone(series, sensed, policy, deadline)) for branch, series in times.items()}
    arrivals = [
        Arrival(begin + times[branch][n], branch, sensed[n]) for branch, own in taken.items() for n, begin in own
    ]
    fused, _ = synchronise(arrivals, list(times), slop=slop, queue=queue)
    return Outcome(frames, tuple(fused), {branch: tuple(n for n, _ in own) for branch, own in taken.items()})


def _alone(
    series: Sequence[float], sensed: Sequence[float], policy: Policy, deadline: float
) -> Iterator[tuple[int, float]]:
    """The frames that a branch takes by itself, and when it begins each."""
    free, n = 0.0, 0
    while n < len(series):
        begin = max(free, sensed[n])
        if policy == "latest":
            while n + 1 < len(series) and sensed[n + 1] <= begin:
                n += 1
        elif policy == "deadline" and begin - sensed[n] > deadline:
            n += 1
            continue
        yield n, begin
        free, n = begin + series[n], n + 1


def chosen(
    branches: Mapping[str, tuple[bool, Sequence[int]]],
    sensed: int,
    now: float,
    *,
    period: float,
    policy: Policy,
    deadline: float = math.inf,
    predicted: Mapping[str, Sequence[float]] | None = None,
) -> list[tuple[str, int]]:
    """The frames that branches take up at the moment `now`, by the policies of `run`: (branch, frame).

    branches: whether each is free, and the frames that it has taken so far. sensed: frames that there are by now.
    """
    if policy == "coordinated":
        newest = sensed - 1
        last = max((taken[-1] for _, taken in branches.values() if taken), default=-1)
        late = any(now + series[newest] - newest * period > deadline for series in (predicted or {}).values())
        free = all(free for free, _ in branches.values())
        return [(name, newest) for name in branches] if free and newest > last and not late else []
    found = []
    for name, (free, taken) in branches.items():
        waiting = range(taken[-1] + 1 if taken else 0, sensed)
        if policy == "latest":
            waiting = waiting[-1:]
        elif policy == "deadline":
            waiting = range(max(waiting.start, math.ceil((now - deadline) / period)), sensed)
        if free and waiting:
            found.append((name, waiting[0]))
    return found


def _together(
    times: Mapping[str, Sequence[float]],
    sensed: Sequence[float],
    deadline: float,
    predicted: Mapping[str, Sequence[float]],
) -> Iterator[tuple[int, float]]:
    """The frames that all branches take, and when they begin each."""
    free, n = 0.0, 0
    while n < len(sensed):
        begin = max(free, sensed[n])
        while n + 1 < len(sensed) and sensed[n + 1] <= begin:
            n += 1
        if any(begin + series[n] - sensed[n] > deadline for series in predicted.values()):
            n += 1
            continue
        yield n, begin
        free, n = begin + max(series[n] for series in times.values()), n + 1
