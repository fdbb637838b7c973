"""What the experiments share: seeds, training, intervals, counted and timed arms, and the result record.

An experiment module `experiments/<id>.py` offers

- `CASES`, an instance of `contract.Cases`, on which the conformance checks examine the technique, and
- `SCENARIOS`, a tuple of `Scenario`; the first one's smoke run needs no asset beyond those `make serve` fetches.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Arm, Control, Machine, Measured, Point, Quality, Record, WallTime
from reference_impls.accounting.timing import repeat, wall_time
from reference_impls.contract import registry
from reference_impls.data import assets

Budget = Literal["smoke", "full"]
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # Student's t, 1 to 10 degrees of freedom


@dataclass(frozen=True)
class Context:
    """How an experiment is to be run."""

    budget: Budget = "smoke"
    device: str = "cpu"
    threads: int = 1
    progress: Callable[[str, int, int], None] = lambda label, done, total: None

    @property
    def smoke(self) -> bool:
        return self.budget == "smoke"


@dataclass(frozen=True)
class Scenario:
    """One experiment on named data."""

    name: str
    title: str
    run: Callable[[Context], Record]
    assets: Mapping[Budget, Sequence[str]] = field(default_factory=dict)

    def __call__(self, ctx: Context) -> Record:
        """Run with the context's threads; `MissingAsset` before any work when an asset is not in the cache."""
        for name in self.assets.get(ctx.budget, ()):
            assets.path(name)
        threads = torch.get_num_threads()
        torch.set_num_threads(ctx.threads)
        try:
            return self.run(ctx)
        finally:
            torch.set_num_threads(threads)


def experiment(technique_id: str) -> ModuleType:
    """The experiment module of a technique, with its `CASES` and `SCENARIOS`."""
    return registry.load_module(technique_id, package=__name__.rpartition(".")[0])


def scenarios(technique_id: str) -> dict[str, Scenario]:
    """The scenarios of a technique by name, in the order of its module."""
    return {s.name: s for s in experiment(technique_id).SCENARIOS}


# --------------------------------------------------------------------------------------------------------------------
# Seeds and intervals


@contextmanager
def fork_seed(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and `random` inside the block; the global generators continue afterwards as if untouched."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 libraries draw from the global one
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def over_seeds(metric: str, values: Sequence[float], *, higher_is_better: bool = True) -> Quality:
    """Mean over seeds with its 95 % t interval (no interval for a single seed)."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Quality(metric=metric, value=mean, higher_is_better=higher_is_better)
    half = T_975[min(n - 2, len(T_975) - 1)] * float(np.std(values, ddof=1)) / n**0.5
    return Quality(metric=metric, value=mean, low=mean - half, high=mean + half, n=n, higher_is_better=higher_is_better)


def over_items(metric: str, values: Iterable[float], *, higher_is_better: bool = True, seed: int = 0) -> Quality:
    """Mean over data items with its 95 % bootstrap interval (1,000 resamples)."""
    items = np.asarray(list(values), dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(items), (1000, len(items)))
    mean = float(items.mean())
    low, high = np.percentile(items[draws].mean(1), [2.5, 97.5])
    return Quality(
        metric=metric,
        value=mean,
        low=min(float(low), mean),
        high=max(float(high), mean),
        n=len(items),
        higher_is_better=higher_is_better,
    )


# --------------------------------------------------------------------------------------------------------------------
# Training


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    seed: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Train in place with AdamW, a linear warm-up and a cosine schedule; returns the model in eval mode.

    x: (N, ...) inputs; y: (N,) targets. `loss(outputs, targets)` may take the outputs of several exits. Every random
    choice follows from `seed`, so a second call with an equal model gives equal weights.
    """
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(x) // batch_size)
    schedule = None
    if steps > 2:  # fewer leave no room for a schedule
        warm_up = max(0.1, 2 / steps)  # one step of warm-up at least: OneCycleLR divides by its length
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps, pct_start=warm_up)
    model.train()
    with fork_seed(seed):
        for epoch in range(epochs):
            for batch in torch.randperm(len(x), generator=order).split(batch_size):
                inputs = x[batch] if augment is None else augment(x[batch], order)
                optimiser.zero_grad(set_to_none=True)
                loss(model(inputs), y[batch]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                if schedule is not None:
                    schedule.step()
            progress(epoch + 1, epochs)
    return model.eval()


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 256) -> Tensor:
    """Outputs of `model` on x: (N, ...), batch by batch."""
    return torch.cat([model(part) for part in x.split(batch_size)])


def trained(
    name: str, spec: Mapping[str, Any], build: Callable[[], nn.Module], train: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A trained model, from the cache if the same `spec` was trained before.

    `spec` holds every choice that the weights follow from (architecture, data, epochs, seed); together with the torch
    version it names the checkpoint.
    """
    model = build()
    model.load_state_dict(cached(name, spec, lambda: train(build()).state_dict(), folder="checkpoints"))
    return model.eval()


def cached(name: str, spec: Mapping[str, Any], compute: Callable[[], Any], folder: str = "computed") -> Any:
    """What `compute` returns, a tensor or a mapping of tensors; from the cache if the same `spec` was computed before.

    `spec` holds every choice that the result follows from; together with the torch version it names the file.
    """
    key = hashlib.sha256(json.dumps([name, spec, torch.__version__], sort_keys=True, default=str).encode()).hexdigest()
    file = assets.cache_folder() / folder / f"{name}-{key[:16]}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(compute(), part)
        part.replace(file)
    return torch.load(file, weights_only=True)


# --------------------------------------------------------------------------------------------------------------------
# Arms and records


@dataclass(frozen=True)
class Cost:
    """What one unit of work cost: counted once, timed interleaved with the other arms."""

    macs: int
    bytes: int
    wall_ms: WallTime
    uncounted: tuple[str, ...]
    samples: tuple[float, ...]
    """The repetitions behind `wall_ms`; round i of all arms measured together, as `timing.speed_up` wants them."""

    def arm(self, quality: Quality, **more: Any) -> Arm:
        return Arm(**self._fields(), quality=quality, **more)

    def point(self, knobs: Mapping[str, Any], quality: Quality, **more: Any) -> Point:
        return Point(**self._fields(), knobs=dict(knobs), quality=quality, **more)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("macs", "bytes", "wall_ms", "uncounted")}


def measure_arms(
    arms: Mapping[str, Callable[[], object]], *, units: int = 1, repetitions: int = 15, threads: int = 1
) -> dict[str, Cost]:
    """Count and time every arm; all figures are per unit of work, of which one call does `units`.

    An arm is counted in one call of its own and timed in `repetitions` rounds that interleave all arms.
    """
    tallies = {}
    for label, arm in arms.items():
        with count() as tally:
            arm()
        tallies[label] = tally
    calls = repeat(arms, repetitions=repetitions, threads=threads)
    times = {label: [sample / units for sample in samples] for label, samples in calls.items()}
    return {
        label: Cost(
            macs=round(tally.macs / units),
            bytes=round(tally.bytes / units),
            wall_ms=wall_time(times[label]),
            uncounted=tuple(sorted(tally.uncounted)),
            samples=tuple(times[label]),
        )
        for label, tally in tallies.items()
    }


def record(
    ctx: Context,
    *,
    technique: str,
    scenario: str,
    title: str,
    data: str,
    unit: str,
    knobs: Sequence[str],
    baseline: Arm,
    points: Sequence[Point],
    redundancy: Measured,
    seeds: Sequence[int],
    model: str | None = None,
    controls: Sequence[Control] = (),
    notes: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """The result record, with the machine, the versions, the command and the day filled in."""
    return Record(
        technique=technique,
        scenario=scenario,
        title=title,
        budget=ctx.budget,
        data=data,
        model=model,
        unit=unit,
        knobs=tuple(knobs),
        baseline=baseline,
        points=tuple(points),
        controls=tuple(controls),
        redundancy=redundancy,
        seeds=tuple(seeds),
        device=ctx.device,
        machine=machine(ctx),
        versions=versions(),
        command=f"redundancy run {technique} --scenario {scenario} --budget {ctx.budget} --device {ctx.device}",
        date=datetime.date.today().isoformat(),
        notes=tuple(notes),
        extra=dict(extra or {}),
    )


def machine(ctx: Context) -> Machine:
    """This machine."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return Machine(
        cpu=cpu,
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        threads=ctx.threads,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.device(ctx.device).type == "cuda" else None,
    )


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that results depend on, and the commit of the atlas."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    found["scikit-learn"] = metadata.version("scikit-learn")
    try:
        found["commit"] = _git("rev-parse", "--short=12", "HEAD")
        # A run that saves its records changes them, so they do not make the source another one.
        if _git("status", "--porcelain", "--", ":/", ":(top,exclude)reference_impls/results"):
            found["commit"] += "-dirty"
    except (OSError, subprocess.CalledProcessError):
        found["commit"] = f"release {_release()}"
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _release() -> str:
    try:
        return metadata.version("redundancy-atlas")
    except metadata.PackageNotFoundError:
        return "unknown"
