"""Measuring every technique again, and the generated atlas."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from reference_impls.accounting.record import Record
from tools import bench
from tools.cli import main
from tools.knowledge.reader import read_yaml
from tools.runner import Outcome

RECORD = {
    "technique": "made-up", "scenario": "good", "title": "Made up", "budget": "full", "data": "none",
    "unit": "one image", "knobs": ["r"], "seeds": [0], "versions": {"torch": "2"}, "command": "-", "date": "2026-11-22",
    "redundancy": {"measure": "none", "value": 0.0},
    "machine": {"cpu": "any", "cores": 1, "threads": 1, "memory_gb": 1.0},
}  # fmt: skip
ARM = {
    "macs": 1, "bytes": 1, "quality": {"metric": "accuracy", "value": 0.5},
    "wall_ms": {"median": 1.0, "p10": 1.0, "p90": 1.0, "p99": 1.0, "n": 15},
}  # fmt: skip


def a_record(**changes: str) -> Record:
    return Record.model_validate(RECORD | {"baseline": ARM, "points": [ARM | {"knobs": {"r": 1}}]} | changes)


@pytest.fixture
def techniques(monkeypatch: pytest.MonkeyPatch) -> None:
    """One technique with a scenario that works and one that fails, and one that cannot be imported."""

    def scenarios(technique: str, **_: object) -> dict[str, str]:
        if technique == "broken":
            raise RuntimeError("cannot be imported")
        return {"bad": "Bad", "good": "Good"}

    def run(technique: str, *, scenario: str, device: str, **_: object) -> Outcome:
        if scenario == "bad":
            return Outcome(error="timeout", message="did not finish")
        return Outcome(record=a_record(technique=technique, scenario=scenario, device=device))

    monkeypatch.setattr(bench.runner, "scenarios", scenarios)
    monkeypatch.setattr(bench.runner, "run", run)


@pytest.mark.usefixtures("techniques")
def test_every_scenario_is_run_and_failures_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "made-up").mkdir()
    (tmp_path / "made-up" / "bad.json").write_text("an earlier record")
    results = list(bench.run_all(["broken", "made-up"], True, folder=tmp_path))
    assert [(r.technique, r.scenario, r.outcome.error) for r in results] == [
        ("broken", "", "import"),
        ("made-up", "bad", "timeout"),
        ("made-up", "good", None),
    ]
    assert results[-1].file == tmp_path / "made-up" / "good.json"
    assert Record.model_validate_json(results[-1].file.read_text()) == a_record()
    assert (tmp_path / "made-up" / "bad.json").read_text() == "an earlier record"
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["bad.json", "good.json"]


@pytest.mark.usefixtures("techniques")
def test_nothing_is_saved_unasked_and_devices_do_not_overwrite_each_other(tmp_path: Path) -> None:
    assert [r.file for r in bench.run_all(["made-up"], False, folder=tmp_path)] == [None, None]
    assert not list(tmp_path.iterdir())
    assert [r.file for r in bench.run_all(["made-up"], True, folder=tmp_path, device="cuda:0")][1] == (
        tmp_path / "made-up" / "good.cuda.json"
    )


@pytest.mark.usefixtures("techniques")
def test_scenarios_are_chosen_by_name_and_others_are_told(tmp_path: Path) -> None:
    assert [r.scenario for r in bench.run_all(["made-up"], False, folder=tmp_path, only=["good", "none"])] == ["good"]
    for arguments, code, says in (
        (["--scenario", "none"], 1, "no scenario is called none"),
        (["--address", "here:1"], 2, "--address is for --engine ray"),
        (["--engine", "ray", "--address", "nowhere"], 1, "'nowhere' is no address of a cluster; write host:port"),
    ):
        done = CliRunner().invoke(main, ["bench", "token-merging", *arguments])
        assert (done.exit_code, says in done.output) == (code, True), done.output


def test_the_generated_atlas_is_as_large_as_asked_and_consistent(tmp_path: Path) -> None:
    bench.generate(tmp_path, 25, 60)
    entries = [read_yaml(p, p.name).data for p in (tmp_path / "taxonomy" / "techniques").glob("*.yml")]
    papers = {p.stem: read_yaml(p, p.name).data for p in (tmp_path / "papers").glob("*.yml")}
    assert len(entries) == len({entry["id"] for entry in entries}) == 25
    assert sorted(link["key"] for entry in entries for link in entry["papers"]) == sorted(papers)
    assert len({paper["ids"]["arxiv"] for paper in papers.values()}) == 60
    assert sum("relations" in entry for entry in entries) == 24
    for entry in entries:
        for link in entry["papers"]:
            assert {claim["technique"] for claim in papers[link["key"]]["claims"]} <= {entry["id"]}


def test_an_atlas_without_entries_cannot_be_varied(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no entry to vary"):
        bench.generate(tmp_path / "new", 3, 3, root=tmp_path)


def test_the_check_of_a_generated_atlas_finds_nothing() -> None:
    cost = bench.check_cost(entries=30, papers=70, repetitions=1)
    assert (cost.entries, cost.papers, cost.findings) == (30, 70, ())
    assert len(cost.seconds) == 1
    assert cost.peak_mb > 1


def test_the_site_of_a_filled_up_atlas_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    count = "import sys; from pathlib import Path; from tools.knowledge import load; root = Path(sys.argv[1])\n"
    count += "from tools.site import build; assert Path(build.__file__).is_relative_to(root), build.__file__\n"
    count += 'known = load(root); assert not [f for f in known.findings if f.severity == "error"], known.findings[:3]\n'
    count += '(root / "site").mkdir(); [(root / "site" / f"{i}.html").touch() for i in known.entries]'
    monkeypatch.setattr(bench, "SITE", count)
    there, papers = (len(list((bench.ROOT / name).glob("*.yml"))) for name in ("taxonomy/techniques", "papers"))
    cost = bench.site_cost(there + 20, papers)
    assert cost.entries == cost.pages == there + 20
    assert cost.papers == papers + 20, "each has one at least"
    monkeypatch.setattr(bench, "site_cost", lambda entries, papers, root: cost)
    result = CliRunner().invoke(main, ["--root", str(bench.ROOT), "bench", "--corpus", "9x9", "--site"])
    assert result.exit_code == 0, result.output
    assert f"{there + 20:,}" in result.output
    assert CliRunner().invoke(main, ["--root", str(bench.ROOT), "bench", "--site"]).exit_code == 2
