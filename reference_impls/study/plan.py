"""What is to be measured: scenarios, and a plan for either budget.

An experiment module `experiments/<id>.py` offers `SCENARIOS`, a tuple of `Scenario`; the first one's small run needs no
asset beyond those that `make serve` fetches. What several techniques are measured in together stands in
`benchmarks/<family>.py`, whose `SCENARIOS` run every technique that takes part (`contenders`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch

from reference_impls.contract.registry import module_name, nearest
from reference_impls.data import assets

if TYPE_CHECKING:
    from reference_impls.accounting.record import Record
    from reference_impls.study.study import Study

Budget = Literal["smoke", "full"]
EXPERIMENTS, BENCHMARKS = "reference_impls.experiments", "reference_impls.benchmarks"


@dataclass(frozen=True)
class Plan:
    """How much is done in one budget. A scenario or a benchmark adds its own sizes in a subclass."""

    repetitions: int = 15
    """Interleaved rounds of the timing."""
    seeds: tuple[int, ...] = (0,)
    needs: tuple[str, ...] = ()
    """Assets that must be in the cache."""


@dataclass(frozen=True)
class Context:
    """How an experiment is to be run."""

    budget: Budget = "smoke"
    device: str = "cpu"
    threads: int = 1
    progress: Callable[[str, int, int], None] = lambda label, done, total: None


@dataclass(frozen=True)
class Scenario:
    """One experiment on named data."""

    name: str
    title: str
    run: Callable[[Study[Any]], Record]
    full: Plan
    smoke: Plan
    benchmark: str | None = None
    """Id of the benchmark that it belongs to."""

    def plan(self, budget: Budget) -> Plan:
        """The plan of a budget."""
        return self.smoke if budget == "smoke" else self.full

    def __call__(self, owner: str, context: Context) -> Record:
        """Measure it for the technique, or the benchmark, `owner`.

        Raises: MissingAsset before any work when an asset is not in the cache.
        """
        from reference_impls.study.study import Study

        for name in self.plan(context.budget).needs:
            assets.path(name)
        threads = torch.get_num_threads()
        torch.set_num_threads(context.threads)
        try:
            return self.run(Study(owner, self, context))
        finally:
            torch.set_num_threads(threads)


def experiment(owner: str, package: str = EXPERIMENTS) -> ModuleType:
    """The experiment module of a technique, or the module of a benchmark. Raises LookupError with the nearest name."""
    homes = {package: modules(package)} if package != EXPERIMENTS else {p: modules(p) for p in (package, BENCHMARKS)}
    for home, names in homes.items():
        if module_name(owner) in names:
            return importlib.import_module(f"{home}.{module_name(owner)}")
    known = [name.replace("_", "-") for names in homes.values() for name in names]
    raise LookupError(f"there is no experiment or benchmark {owner!r}{nearest(owner, known)}")


def modules(package: str) -> list[str]:
    """Names of the modules of a package, sorted; imports none of them."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def scenarios(owner: str) -> dict[str, Scenario]:
    """The scenarios of a technique or a benchmark by name, in the order of its module."""
    return {s.name: s for s in experiment(owner).SCENARIOS}


def contenders(benchmark: str, task: str) -> dict[str, Sequence[Any]]:
    """Technique -> what its experiment sends to a task of a benchmark, `CONTENDERS["benchmark/task"]`.

    Experiments that do not name the benchmark's module are not imported.
    """
    found = {}
    module = f"{BENCHMARKS}.{module_name(benchmark)}"
    for folder in importlib.import_module(EXPERIMENTS).__path__:
        for file in sorted(Path(folder).glob("[a-z]*.py")):
            if module in file.read_text(encoding="utf-8"):
                sent = getattr(importlib.import_module(f"{EXPERIMENTS}.{file.stem}"), "CONTENDERS", {})
                if f"{benchmark}/{task}" in sent:
                    found[file.stem.replace("_", "-")] = sent[f"{benchmark}/{task}"]
    return found


def run(owner: str, scenario: str | None = None, context: Context | None = None) -> Record:
    """Run a scenario of a technique or a benchmark, the first one by default, in this process.

    Raises: LookupError with the nearest name for an unknown owner or scenario; MissingAsset.
    """
    found = scenarios(owner)
    name = scenario or next(iter(found))
    if name not in found:
        raise LookupError(f"{owner} has no scenario {name!r}{nearest(name, list(found))}")
    return found[name](owner, context or Context())
