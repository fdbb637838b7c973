"""Experiments and benchmarks found by name, and run in this process; no list is kept anywhere.

An experiment module `experiments/<id>.py` offers `SCENARIOS`, a tuple of `Scenario`; the first one's small run needs no
asset beyond those that `make serve` fetches. What several techniques are measured in together stands in
`benchmarks/<family>.py`, whose own `SCENARIOS` run every technique that takes part (`contenders`). `redundancy run`
runs them in a guarded process (`reference_impls.__main__`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from reference_impls.accounting.preparation import listening
from reference_impls.accounting.record import Record
from reference_impls.contract.registry import module_name, nearest
from reference_impls.data import assets
from reference_impls.study.plan import Context, Scenario
from reference_impls.study.study import Study

EXPERIMENTS, BENCHMARKS = "reference_impls.experiments", "reference_impls.benchmarks"


def experiment(owner: str, package: str = EXPERIMENTS) -> ModuleType:
    """The experiment module of a technique, or the module of a benchmark. Raises LookupError with the nearest name."""
    homes = (BENCHMARKS, package) if package == EXPERIMENTS else (package,)
    known, name = {name: home for home in homes for name in modules(home)}, module_name(owner)
    if name not in known:
        there = nearest(owner, [one.replace("_", "-") for one in known])
        raise LookupError(f"there is no experiment or benchmark {owner!r}{there}")
    return importlib.import_module(f"{known[name]}.{name}")


def modules(package: str) -> list[str]:
    """Names of the modules of a package, sorted; imports none of them."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def scenarios(owner: str, package: str = EXPERIMENTS) -> dict[str, Scenario]:
    """The scenarios of a technique or a benchmark by name, in the order of its module. Raises as `experiment`."""
    return {s.name: s for s in experiment(owner, package).SCENARIOS}


def run(owner: str, scenario: str | None = None, context: Context | None = None) -> Record:
    """Run a scenario of a technique or a benchmark, the first one by default, in this process.

    Raises: LookupError with the nearest name for an unknown owner or scenario; MissingAsset.
    """
    found = scenarios(owner)
    name = scenario or next(iter(found))
    if name not in found:
        raise LookupError(f"{owner} has no scenario {name!r}{nearest(name, list(found))}")
    return measure(owner, found[name], context or Context())


def measure(owner: str, scenario: Scenario, context: Context) -> Record:
    """Measure a scenario for the technique, or the benchmark, `owner`, with the context's threads.

    Raises: MissingAsset before any work when an asset is not in the cache.
    """
    for name in scenario.plan(context.budget).needs:
        assets.path(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(context.threads)
    try:
        with listening():
            return scenario.run(Study[Any](owner, scenario, context))
    finally:
        torch.set_num_threads(threads)


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
