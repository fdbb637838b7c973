"""Random sets of knobs: a technique takes them, or refuses them with a message; nothing else may come of them."""

from __future__ import annotations

import decimal
import fractions
import importlib
import random
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from reference_impls.contract import Case, registry

REFUSALS = (TypeError, ValueError)
"""What a technique may raise for knobs or a target that it does not take; UnsupportedHost is a TypeError."""


def odd() -> list[Any]:
    """Values that somebody may give to a knob, by mistake or not."""
    return [
        None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 10**30, -(10**30), 2**31, 2**63, 0.0, -0.0, 0.5, 1.0, -1.5,
        1e-300, 1e300, float("nan"), float("inf"), -float("inf"), "", "x", "1", "none", b"x", [], [1], [0, 0], ["x"],
        [None], (), (1, 2), (0,), (10**30, 3), {}, {"size": "x"}, {"size": float("nan"), "latency": 1.0}, {1: 2},
        set(), frozenset({1}), range(3), 1j, fractions.Fraction(1, 2), decimal.Decimal("0.5"), np.float64(0.5),
        np.float32("nan"), np.int64(2), np.array([1, 2]), np.array(1.0), np.bool_(True), torch.tensor([1, 2]),
        torch.tensor(1.0), torch.tensor([]), torch.zeros(2, 3), torch.full((4, 4), float("nan")), object(), int, len,
        slice(3), memoryview(b"x"),
    ]  # fmt: skip


@cache
def _case(name: str, kind: str) -> Case:
    cases = importlib.import_module(f"test_{registry.module_name(name)}").CASES
    case: Case = cases.build(kind, 0, "cpu")
    return case


def tried(count: int, seed: int, *, run_every: int = 10) -> Iterator[str]:
    """What went wrong with each of so many random sets of knobs; every `run_every`th that is taken is run, too."""
    chance, ids = random.Random(seed), registry.ids()
    taken = 0
    for number in range(count):
        name = ids[number % len(ids)]
        technique = registry.load(name)
        case = _case(name, chance.choice(["typical", "redundant", "null"]))
        knobs = dict(chance.choice(technique.settings()).knobs)
        changed = chance.sample(sorted(technique.knobs), k=min(len(technique.knobs), chance.choice([1, 1, 1, 2, 3])))
        knobs |= {knob: chance.choice(odd()) for knob in changed}
        if chance.random() < 0.02:
            knobs[chance.choice(["", "no_such_knob", "self", "target"])] = 1
        what = f"{name}.apply(..., {', '.join(f'{k}={v!r}' for k, v in knobs.items())})"
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            try:
                handle = technique.apply(case.target, **knobs)
            except REFUSALS as error:
                if any(
                    value is len for value in knobs.values()
                ):  # a function that was given says in its own words what it cannot do
                    continue
                if problem := unclear(error, list(knobs)):
                    yield f"{what}: {problem}: {type(error).__name__}: {error}"
                continue
            except Exception as error:
                yield f"{what}: {type(error).__name__}: {error}"
                continue
            taken += 1
            try:
                with handle:
                    if taken % run_every == 0:
                        case.run(handle.target, case.inputs)
            except REFUSALS:
                continue
            except Exception as error:
                yield f"{what}, then run: {type(error).__name__}: {error}"


def unclear(error: Exception, knobs: list[str]) -> str:
    """What is wrong with a message: it must be one of ours, which name the knob or the target."""
    text = str(error)
    ours = ("must", "cannot be applied", "has no knob", "needs", "there is", "there are", "at least", "at most", "not ")
    if not text:
        return "no message"
    foreign = (
        "not supported between",
        "ambiguous",
        "object is not",
        "expected a",
        "unsupported operand",
        "has no len",
        "MKL",
    )
    if any(sign in text for sign in foreign) or not any(sign in text for sign in (*ours, *knobs)):
        return "a message of somebody else"
    return ""
