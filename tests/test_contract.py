"""Every registered technique on the conformance checks: one test a check, on every device that exists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from reference_impls.contract import conformance, registry
from reference_impls.experiments import harness

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
IDS = registry.ids()


def examined() -> Iterator[tuple[str, conformance.Check]]:
    """Every technique with every check that it does not waive. One that cannot be loaded must not hide the others."""
    for name in IDS:
        try:
            checks = conformance.checks_for(registry.load(name))
        except Exception:
            checks = conformance.CHECKS  # each of them fails, and says why
        yield from ((name, check) for check in checks)


EXAMINED = list(examined())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "check"), EXAMINED, ids=[f"{name}-{check.name}" for name, check in EXAMINED])
def test_contract(name: str, check: conformance.Check, device: str) -> None:
    check.run(registry.load(name), harness.experiment(name).CASES, device)


@pytest.mark.parametrize("name", IDS)
def test_no_check_is_left_out_in_silence(name: str) -> None:
    technique = registry.load(name)
    assert sum(examined == name for examined, _ in EXAMINED) == 15 - len(technique.waivers)
    assert all(len(reason.split()) >= 4 for reason in technique.waivers.values()), "a waiver needs a reason"


def test_there_are_techniques() -> None:
    assert len(IDS) >= 4
