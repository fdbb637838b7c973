"""The six perspectives on the variation of inference time: small runs on real frames. What is counted is asserted, and
what is timed only where arithmetic holds of any times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reference_impls.accounting.record import Record
from reference_impls.study import scenarios
from tools import runner

BENCHMARK = "time-variation"
SAME_WORK = ("arrival", "runtime", "neighbours")
"""Perspectives on what surrounds a network of fixed work."""


def rows(record: Record, table: str, **wanted: str) -> list[dict[str, Any]]:
    """The rows of a table in which columns have these values."""
    return [row for row in record.tables[table].records() if all(row[name] == value for name, value in wanted.items())]


def check_same_work(record: Record) -> None:
    assert {point.macs for point in record.points} == {record.baseline.macs}
    assert record.redundancy.value == 0
    lossy = {point.knobs["condition"] for point in record.points if point.quality.value < 1}
    assert lossy <= {"JPEG"}, "what surrounds the network changes no result"


def check_scenes(record: Record) -> None:
    assert record.redundancy.null == {"one frame again": 0}
    assert record.redundancy.where["changing scenes"] > record.redundancy.where["one scene"]
    assert record.redundancy.where["merged tokens on changing scenes"] > 0
    by_macs = {row["predictor"]: row["accuracy on held-out frames"] for row in rows(record, "prediction", cost="MACs")}
    assert max(by_macs, key=lambda name: by_macs[name]) == "proposals"
    assert by_macs["shuffled proposals"] < by_macs["proposals"] - 0.3, "the counts explain it, not the fit"


def check_structure(record: Record) -> None:
    spreads = {row["condition"]: row["coefficient of variation"] for row in rows(record, "spread", cost="MACs")}
    assert spreads["one stage"] == 0
    assert min(spreads["two stages"], spreads["raw points"]) > 0.1


def check_whole_system(record: Record) -> None:
    """In simulated time, which replays the latencies, whatever they were."""
    simulated = {row["policy"]: row for row in rows(record, "fusion", time="simulated")}
    assert simulated["every frame in its turn"]["frames fused"] == 1
    for name in ("coordinated", "coordinated, within the deadline"):
        assert simulated[name]["wasted results"] == 0
    real = {row["policy"]: row for row in rows(record, "fusion", time="real")}
    assert real["every frame in its turn"]["frames fused"] == 1
    assert {row["branch"] for row in rows(record, "branches")} == {"detector", "segmentation", "lanes"}


@pytest.mark.parametrize("name", scenarios(BENCHMARK))
def test_a_perspective(name: str, asset: Callable[[str], Path]) -> None:
    scenario = scenarios(BENCHMARK)[name]
    for needed in scenario.smoke.needs:
        asset(needed)
    outcome = runner.run(BENCHMARK, scenario=name, seconds=300, preloaded=True)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    record = outcome.record
    assert record.technique is None
    check = {"scenes": check_scenes, "structure": check_structure, "end-to-end": check_whole_system}
    check.get(name, check_same_work)(record)
    assert (name in check) != (name in SAME_WORK), "every perspective is checked"
    if name != "end-to-end":
        check_shares(record)


def check_shares(record: Record) -> None:
    """Shares of stages add up to 1, and so do those of the causes."""
    for condition in {row["condition"] for row in rows(record, "stages")}:
        shares = [row["share of the variance"] for row in rows(record, "stages", condition=condition)]
        assert sum(share for share in shares if share is not None) == pytest.approx(1)
        (causes,) = rows(record, "causes", condition=condition)
        found = [value for key, value in causes.items() if key != "condition"]
        assert None in found or sum(found) == pytest.approx(1)
