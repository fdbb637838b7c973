"""Runs scenarios in this process; `redundancy run` does it in a guarded one (`__main__`)."""

from __future__ import annotations

from typing import Any

import torch

from reference_impls.accounting.record import Record
from reference_impls.contract.registry import nearest
from reference_impls.data import assets
from reference_impls.study.plan import Context, Scenario
from reference_impls.study.registry import scenarios
from reference_impls.study.study import Study


def measure(owner: str, scenario: Scenario, context: Context) -> Record:
    """Measure a scenario for the technique, or the benchmark, `owner`, with the context's threads.

    Raises: MissingAsset before any work when an asset is not in the cache.
    """
    for name in scenario.plan(context.budget).needs:
        assets.path(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(context.threads)
    try:
        study: Study[Any] = Study(owner, scenario, context)
        return scenario.run(study)
    finally:
        torch.set_num_threads(threads)


def run(owner: str, scenario: str | None = None, context: Context | None = None) -> Record:
    """Run a scenario of a technique or a benchmark, the first one by default, in this process.

    Raises: LookupError with the nearest name for an unknown owner or scenario; MissingAsset.
    """
    found = scenarios(owner)
    name = scenario or next(iter(found))
    if name not in found:
        raise LookupError(f"{owner} has no scenario {name!r}{nearest(name, list(found))}")
    return measure(owner, found[name], context or Context())
