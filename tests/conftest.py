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
from tests.environment import torchvision_on_cpu  # noqa: F401 - lets torchvision, timm and transformers import
from tools import times

ROOT = Path(__file__).parents[1]
GUESSES = {"browser": 120.0, "prose": 30.0, "tests/test_contributing.py::test_the_walk": 40.0,
           "tests/test_notebooks.py": 12.0, "tests/test_experiments.py::test_smoke": 6.0}  # fmt: skip
"""Seconds of the longest groups and tests, where none are known yet; the beginning of a test's name is enough."""
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

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.seconds:
            everything = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
            times.save(ROOT, self.seconds, anew=everything and not session.config.option.keyword)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cells of the matrix (`test_matrix.py`) are exact, close and refused."""
    reports = [
        one for reports in terminalreporter.stats.values() for one in reports if getattr(one, "when", "") == "call"
    ]
    found = [value for one in reports for name, value in one.user_properties if name == "matrix"]
    if found:
        counts = ", ".join(f"{found.count(outcome)} {outcome}" for outcome in ("exact", "close", "refused"))
        share = found.count("refused") / len(found)
        terminalreporter.write_line(f"matrix of techniques and models: {len(found)} cells, {counts} ({share:.0%})")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers report to the process that started them
        config.pluginmanager.register(Times())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with the longest tests and groups, so that they end together; the rest keeps its order."""
    if not hasattr(config, "workerinput"):
        return
    known = times.load(ROOT)
    sums: dict[str, float] = defaultdict(float)
    for item in items:
        sums[_unit(item)] += known.get(_name(item.nodeid), 0.0)
    for unit in sums:
        sums[unit] = sums[unit] or max((s for name, s in GUESSES.items() if unit.startswith(name)), default=0.0)
    items.sort(key=lambda item: -sums[_unit(item)] if sums[_unit(item)] >= LONG_S else 0.0)


def _unit(item: pytest.Item) -> str:
    """What a worker takes on as a whole: the group of a test, or the test."""
    group = item.get_closest_marker("xdist_group")
    return str(group.args[0]) if group else _name(item.nodeid)


def _name(nodeid: str) -> str:
    """The test without the group that xdist appends to its name."""
    return re.sub(r"@[\w-]+$", "", nodeid)
