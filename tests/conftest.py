"""Fixtures that every test may use, the order of the tests, and their times."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reference_impls.data import assets
from tools import times

ROOT = Path(__file__).parents[1]
LONG = ("tests/test_contributing.py::test_the_walk", "tests/test_notebooks.py", "tests/test_experiments.py::test_smoke")
"""Where no time is known yet, these tests go first."""
LONG_S = 2.0

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset("name")` is the folder of an asset; without it the test is skipped (fails if ATLAS_REQUIRE_ASSETS=1)."""

    def folder(name: str) -> Path:
        try:
            return assets.path(name)
        except assets.MissingAsset as missing:
            if os.environ.get("ATLAS_REQUIRE_ASSETS") == "1":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))

    return folder


class Times:
    """Writes how long each test took, for `make times` and the order of the next run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[_name(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        if self.seconds:
            times.save(ROOT, self.seconds)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers report to the process that started them
        config.pluginmanager.register(Times())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with the longest tests, so that they end together; the others keep their order."""
    if hasattr(config, "workerinput"):
        known = times.load(ROOT)
        order = {id(item): known.get(_name(item.nodeid), LONG_S * item.nodeid.startswith(LONG)) for item in items}
        items.sort(key=lambda item: -order[id(item)] if order[id(item)] >= LONG_S else 0)


def _name(nodeid: str) -> str:
    """The test without the group that xdist appends to its name."""
    return re.sub(r"@\w+$", "", nodeid)
