"""What `make times` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import times

SECONDS = {
    "tests/test_contract.py::test_contract[small-net-exact-cpu]": 1.0,
    "tests/test_contract.py::test_contract[small-net-v2-exact-cpu]": 2.0,
    "tests/test_experiments.py::test_smoke_run[small-net]": 4.0,
    "tests/test_notebooks.py::test_notebook_runs[small-net-v2]": 8.0,
    "tests/techniques/test_small_net.py::test_x[v2-a]": 16.0,
    "tests/test_site.py::test_y": 32.0,
}


def test_costs_go_to_the_technique_of_a_test() -> None:
    costs = times.by_technique(SECONDS, ["small-net", "small-net-v2", "other"])
    assert costs == {
        "small-net": {"tests": 17.0, "smoke run": 4.0, "notebook": 0.0},
        "small-net-v2": {"tests": 2.0, "smoke run": 0.0, "notebook": 8.0},
    }
    lines = times.report(SECONDS, ["small-net", "small-net-v2"]).splitlines()
    assert lines[0] == "10 slowest of 6 tests (63 s in all)"
    assert lines[1].split() == ["32.0", "s", "tests/test_site.py::test_y"]
    assert lines[-2].split() == ["small-net", "21.0", "17.0", "4.0", "0.0"]


def test_runs_add_up_and_a_damaged_file_is_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert times.load(tmp_path) == {}
    assert times.main(tmp_path / "reference_impls") == 1
    assert "run `make test`" in capsys.readouterr().err
    times.save(tmp_path, {"a": 1.23456, "b": 2})
    times.save(tmp_path, {"b": 3})
    assert times.load(tmp_path) == {"a": 1.235, "b": 3}
    times.save(tmp_path, {"c": 4}, anew=True)
    assert times.load(tmp_path) == {"c": 4}
    (tmp_path / times.FILE).write_text("[1")
    assert times.load(tmp_path) == {}
