"""Experiments and benchmarks found by name; no list is kept anywhere.

An experiment module `experiments/<id>.py` offers `SCENARIOS`, a tuple of `Scenario`; the first one's small run needs no
asset beyond those that `make serve` fetches. What several techniques are measured in together stands in
`benchmarks/<family>.py`, whose own `SCENARIOS` run every technique that takes part (`contenders`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from reference_impls.contract.registry import module_name, nearest
from reference_impls.study.plan import Scenario

EXPERIMENTS, BENCHMARKS = "reference_impls.experiments", "reference_impls.benchmarks"


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
