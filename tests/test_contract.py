"""Every registered technique on the conformance checks: one test a check, on every device that exists."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from reference_impls.contract import Cases, conformance, registry
from tools.knowledge.completeness import REASON_WORDS
from tools.site.entry import snippet

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
IDS = registry.ids()
IN_WORK: set[tuple[str, str]] = set()
"""Technique and check that are known to fail and are being mended; empty at the end."""


def cases_of(name: str) -> Cases:
    """The cases in the technique's own test file."""
    return importlib.import_module(f"test_{registry.module_name(name)}").CASES


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
@pytest.mark.parametrize(
    ("name", "check"),
    # one worker for a technique: what the cases count and compute is kept in its process
    [pytest.param(n, c, id=f"{n}-{c.name}", marks=pytest.mark.xdist_group(n)) for n, c in EXAMINED],
)
def test_contract(name: str, check: conformance.Check, device: str, request: pytest.FixtureRequest) -> None:
    if (name, check.name) in IN_WORK:
        request.applymarker(pytest.mark.xfail(strict=True, reason="in work"))
    check.run(registry.load(name), cases_of(name), device)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in IDS])
def test_the_lines_on_the_page_run(name: str) -> None:
    case = cases_of(name).build("typical", 0, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        active = next(s for s in registry.load(name).settings() if not s.off)  # defaults are for targets of full size
        lines = snippet(name).replace("apply(target)", "apply(target, **knobs)")
        exec(lines, {"target": case.target, "inputs": case.inputs, "knobs": active.knobs})


@pytest.mark.parametrize("name", IDS)
def test_a_waiver_has_a_reason(name: str) -> None:
    assert all(len(reason.split()) >= REASON_WORDS for reason in registry.load(name).waivers.values())
