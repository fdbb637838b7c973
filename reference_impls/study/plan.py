"""Plans and scenarios: what is to be measured, and how much of it in either budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from reference_impls.accounting.record import Record

Budget = Literal["smoke", "full"]


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
    run: Callable[[Any], Record]
    """Measures it, given its `Study`."""
    full: Plan
    smoke: Plan
    benchmark: str | None = None
    """Id of the benchmark that it belongs to."""

    def plan(self, budget: Budget) -> Plan:
        """The plan of a budget."""
        return self.smoke if budget == "smoke" else self.full
