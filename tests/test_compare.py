"""The techniques of a benchmark side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reference_impls.accounting.record import Interval, Record
from reference_impls.accounting.saving import best_control, best_point, macs_saved, speed_up
from tests import knowledge_fixture as base
from tests.site_fixture import record, variant
from tools.cli import main
from tools.compare import compare
from tools.knowledge import load

BENCHMARK = "token-reduction"
JOINT = f"reference_impls/results/{BENCHMARK}/meeting.json"


def joint(**changes: object) -> Record:
    """Two techniques in one run: merging saves 25 % at no loss, dropping nothing at a small loss."""
    paired = {"value": 1.3, "low": 1.2, "high": 1.4, "n": 21}
    points = [
        variant(3_000_000_000, 0.9, 80.0, knobs={"r": 4}, technique="token-merging", speed_up=paired),
        variant(2_000_000_000, 0.8, 60.0, knobs={"r": 8}, technique="token-dropping"),
    ]
    fields = {"scenario": "meeting", "technique": None, "benchmark": BENCHMARK, "points": points, **changes}
    return record(**fields)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    root = base.write(tmp_path)
    base.put(root, base.RESULT, record(benchmark=BENCHMARK).to_json())
    base.put(root, JOINT, joint().to_json())
    base.put(root, "reference_impls/benchmarks/token_reduction.py", "")
    return root


def redundancy(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--root", str(root), *arguments])


def test_arithmetic_on_a_record() -> None:
    one = record()
    best = best_point(one)
    assert best is not None
    assert (best.knobs, macs_saved(one, best)) == ({"r": 4}, 0.25)
    assert speed_up(one, best) == Interval(value=1.25)
    assert best_control(one) is None
    allowed = best_control(one, 0.3)
    assert allowed is not None
    assert (allowed[0].name, allowed[1].knobs) == ("random merging", {"r": 4})
    assert best_point(joint(), technique="token-dropping") is None
    assert best_point(joint(), 0.2, "token-dropping") is not None


def test_a_joint_record_belongs_to_each_technique_that_it_names(atlas: Path) -> None:
    known = load(atlas)
    assert [str(f) for f in known.findings] == []
    assert known.benchmarks == {BENCHMARK}
    assert list(known.meetings) == [BENCHMARK]
    assert [r.scenario for r in known.results_of("token-merging")] == ["photos", "meeting"]
    assert [r.scenario for r in known.results_of("token-dropping")] == ["meeting"]
    assert known.result("token-dropping", "meeting") == known.result(BENCHMARK, "meeting")
    assert [r.scenario for r in known.results["token-merging"]] == ["photos"]


def test_what_is_comparable_is_one_group(atlas: Path) -> None:
    base.put(atlas, base.RESULT, record(benchmark=BENCHMARK, model="another").to_json())
    base.put(atlas, JOINT, joint(data="A", controls=[]).to_json())
    first, second = compare(load(atlas), BENCHMARK).groups
    assert [(row.technique, row.best is None, row.controls) for row in first.rows] == [
        ("token-merging", False, 0),
        ("token-dropping", True, 0),
    ]
    assert [row.technique for row in second.rows] == ["token-merging"]
    best = first.rows[0].best
    assert best is not None
    assert (best.paired, best.speed_up.low) == (True, 1.2)


def test_the_table_says_what_is_not_there(atlas: Path) -> None:
    result = redundancy(atlas, "compare", BENCHMARK)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith(("token-merging", "token-dropping"))]
    merging, dropping, alone = lines
    assert "25.0 %" in merging
    assert "1.3 (1.2 to 1.4) x  none of 1" in merging
    assert dropping.split()[2:4] == ["none", "none"]
    assert "1.25 x, unpaired" in alone
    assert "–" not in result.stdout


def test_untrained_models_have_no_quality(atlas: Path) -> None:
    base.put(atlas, JOINT, joint(model="ViT with random weights").to_json())
    row = next(line for line in redundancy(atlas, "compare", BENCHMARK).stdout.splitlines() if "meeting" in line)
    assert "random weights" in row
    assert "0.9" not in row


def test_as_json(atlas: Path) -> None:
    found = json.loads(redundancy(atlas, "compare", BENCHMARK, "--json").stdout)
    assert (found["benchmark"], found["allowed_loss"]) == (BENCHMARK, 0.01)
    (group,) = found["groups"]
    assert group["metric"] == "accuracy"
    assert group["rows"][0]["best"]["speed_up"] == {"value": 1.3, "low": 1.2, "high": 1.4, "n": 21}
    assert group["rows"][1]["best"] is None


def test_a_joint_record_is_exported_with_the_page_of_its_first_technique(atlas: Path) -> None:
    results = json.loads(redundancy(atlas, "export", "json").stdout)["results"]
    assert {r["id"]: r["page"] for r in results} == {
        "token-merging/photos": "techniques/token-merging.html#photos",
        f"{BENCHMARK}/meeting": f"techniques/token-merging.html#{BENCHMARK}-meeting",
    }


def test_an_unknown_benchmark_is_wrong_usage(atlas: Path) -> None:
    result = redundancy(atlas, "compare", "token-reductoin")
    assert result.exit_code == 2
    assert 'did you mean "token-reduction"?' in result.stderr


def test_a_benchmark_without_a_record_is_known_by_its_module(atlas: Path) -> None:
    base.put(atlas, "reference_impls/benchmarks/__init__.py", "")
    base.put(atlas, "reference_impls/benchmarks/early_exit.py", 'SCENARIOS = (Scenario("meet"),)\n')
    base.put(atlas, "reference_impls/benchmarks/video_stream/__init__.py", "")
    known = load(atlas)
    assert [str(f) for f in known.findings] == []
    assert known.benchmarks == {BENCHMARK, "early-exit", "video-stream"}
    assert redundancy(atlas, "compare", "early-exit").stdout.endswith("no record yet\n")
    base.put(
        atlas, "reference_impls/results/early-exit/met.json", joint(benchmark="early-exit", scenario="met").to_json()
    )
    (found,) = load(atlas).findings
    assert (found.code, found.message) == (
        "E310",
        'reference_impls/benchmarks/early_exit.py defines no scenario "met"',
    )


def test_a_folder_of_results_belongs_to_an_entry_or_a_benchmark(atlas: Path) -> None:
    base.put(
        atlas, "reference_impls/results/token-reductoin/meeting.json", joint(benchmark="token-reductoin").to_json()
    )
    found = load(atlas).findings
    assert {f.code for f in found} == {"E309"}
    assert all('did you mean "token-reduction"?' in f.hint for f in found)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"technique": "token-dropping"', '"technique": "token-droping"', "points[1].technique"),
        (f'"benchmark": "{BENCHMARK}"', '"benchmark": "another"', "benchmark"),
    ],
)
def test_what_a_joint_record_names_must_exist(atlas: Path, old: str, new: str, path: str) -> None:
    base.replace(atlas, JOINT, old, new)
    found = load(atlas).findings
    assert path in {f.path for f in found}
    assert {f.code for f in found} <= {"E309", "E310"}


def test_an_old_record_is_refused_with_what_to_do(atlas: Path) -> None:
    base.replace(atlas, base.RESULT, '"schema_version": 2', '"schema_version": 1')
    (found, *_) = (f for f in load(atlas).findings if f.file == base.RESULT)
    assert "a record of version 1, the atlas reads version 2" in found.message
