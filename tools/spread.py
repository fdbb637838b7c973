"""Experiments spread over the nodes of a Ray cluster: `redundancy bench --engine ray`.

Every experiment measures time, so each has a node to itself: it asks for more than half of the cores of the largest
node, and nodes that have no more than that take none. Ray chooses the nodes, and runs again what a lost one was at.
A scenario is the smallest unit: its intervals and paired gains come from all of its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from reference_impls.cluster import connect, told

from .runner import Outcome

RETRIES = 3
"""Times that an experiment is run again after its node or its process was lost."""
Unit = tuple[str, str]
"""A technique, or a benchmark, and its scenario"""


def spread(
    measure: Callable[..., Outcome], units: Sequence[Unit], address: str | None
) -> Iterator[tuple[Unit, Outcome]]:
    """Each unit and its outcome as they end: what `measure(technique, scenario=...)` gives, and the node.

    Raises: ClusterError for an address that does not answer.
    """
    ray = connect(address)
    task = ray.remote(_measured).options(num_cpus=_alone(ray), max_retries=RETRIES, scheduling_strategy="SPREAD")
    waiting = {task.remote(measure, *unit): unit for unit in units}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            unit = waiting.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = Outcome(error="crash", message=f"the cluster could not run it: {told(error)}")
            yield unit, outcome
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def _alone(ray: Any) -> float:
    """Cores that an experiment asks for, so that no node has those of two."""
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return float(min(one for one in cores if one > max(cores) / 2))


def _measured(measure: Callable[..., Outcome], technique: str, scenario: str) -> Outcome:
    """On a node: the outcome, whose record says which one."""
    import platform

    import ray

    outcome = measure(technique, scenario=scenario)
    if outcome.record is None:
        return outcome
    name = f"{platform.node()} ({ray.get_runtime_context().get_node_id()[:8]})"
    machine = outcome.record.machine.model_copy(update={"node": name})
    record = outcome.record.model_copy(update={"machine": machine})
    return replace(outcome, record=record)
