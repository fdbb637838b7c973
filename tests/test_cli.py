"""The command as a user meets it: output, exit codes, suggestions, and no torch where none is needed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from reference_impls.accounting.record import Record
from tools import runner
from tools.cli import main
from tools.knowledge.schema import Verdict

ROOT = Path(__file__).parents[1]
LIST_KEYS = {
    "id", "kind", "name", "status", "scope", "relation", "location", "granularity", "exploitation", "stage",
    "execution", "implementation",
}  # fmt: skip


def redundancy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--root", str(ROOT), *arguments])


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def process(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def test_list_gives_every_entry_with_its_terms() -> None:
    rows = json_of(redundancy("list", "--json"))
    assert {"token-merging", "semantic-deduplication"} <= {row["id"] for row in rows}
    assert all(row.keys() >= LIST_KEYS for row in rows)
    merging = next(row for row in rows if row["id"] == "token-merging")
    assert (merging["relation"], merging["location"], merging["exploitation"]) == (
        "spatial_similarity",
        "tokens",
        "merge",
    )
    assert merging["execution"] == "real"
    assert merging["implementation"] == "reference_impls.techniques.token_merging:TokenMerging"


def test_list_is_narrowed_by_terms() -> None:
    found = json_of(
        redundancy("list", "--where", "relation=spatial_similarity", "--where", "stage=inference", "--json")
    )
    assert "token-merging" in {row["id"] for row in found}
    assert "semantic-deduplication" not in {row["id"] for row in found}
    assert "token-merging" in redundancy("list", "--where", "status=stable").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "--where", "relation=spacial_similarity"), 'did you mean "spatial_similarity"?'),
        (("list", "--where", "relaton=merge"), 'did you mean "relation"?'),
        (("list", "--where", "relation"), "axis=term"),
        (("show", "token-mergin"), 'did you mean "token-merging"?'),
        (("run", "token-mergin"), 'did you mean "token-merging"?'),
        (("explain", "E10l"), "did you mean"),
        (("check", "no/such/folder"), "no file or folder"),
        (("assets", "get", "minilmm"), 'did you mean "minilm"?'),
        (("run", "token-merging", "--budget", "half"), "half"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_suggestion(arguments: tuple[str, ...], says: str) -> None:
    result = redundancy(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_show_tells_value_scenario_reason_and_note_beside_a_verdict() -> None:
    shown = redundancy("show", "stride-attention").stdout
    claims = shown.partition("Claims, and what we found")[2].partition("Knobs")[0]
    assert re.search(r"^- \[partly: [\d.]+ times in s0-latency\] In a network", claims, re.MULTILINE)
    assert re.search(r"^  The effect is there, but smaller: .*95 % interval", claims, re.MULTILINE)
    assert re.search(r"^  Ours is S0, not a network of L1's size", claims, re.MULTILINE)
    assert "{{" not in claims, "numbers of the notes are resolved"
    assert re.search(r"^- \[not attempted\] Making only keys", claims, re.MULTILINE)
    (told,) = [c for c in json_of(redundancy("show", "stride-attention", "--json"))["claims"] if c["id"] == "c41"]
    assert told["interval"][0] < told["measured"] < told["interval"][1]
    assert set(told["controls"]) == {"mixer none", "mixer depthwise 3x3"}


def test_show_by_id_and_by_alias() -> None:
    shown = json_of(redundancy("show", "token-merging", "--json"))
    assert shown["papers"][0]["key"] == "bolya-2023-token"
    assert {claim["verdict"] for claim in shown["claims"]} <= set(get_args(Verdict))
    assert all(claim["locator"] for claim in shown["claims"])
    assert {record["scenario"] for record in shown["results"]} >= {"digits-vit", "vit-small-latency"}
    assert json_of(redundancy("show", "tome", "--json"))["id"] == "token-merging"
    text = redundancy("show", "token-merging").stdout
    assert "lacks to be stable" not in redundancy("show", "deadline-aware-fusion").stdout, "its numbers are references"
    assert "When not to" in text
    assert "spatial_similarity" in text


@pytest.mark.parametrize("arguments", [("list", "--json"), ("show", "token-merging", "--json"), ("check",)])
def test_answers_without_torch(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
from click.testing import CliRunner
from tools.cli import main
from tools.knowledge.schema import Verdict
result = CliRunner().invoke(main, {list(arguments)!r})
assert result.exit_code == 0, result.output
heavy = {{"torch", "numpy", "mkdocs", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_explain_shows_wrong_and_right() -> None:
    text = redundancy("explain", "e101").stdout
    assert "Wrong:" in text
    assert "Right:" in text


def damaged_copy(folder: Path) -> Path:
    for name in ("taxonomy", "papers", "notebooks", "tests/techniques", "reference_impls/techniques",
                 "reference_impls/experiments", "reference_impls/results"):  # fmt: skip
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    entry = folder / "taxonomy/techniques/token-merging.yml"
    entry.write_text(entry.read_text().replace("exploitation: merge", "exploitation: merg"))
    (folder / "papers" / "broken.yml").write_text("key: [unclosed\n")
    return folder


def test_check_reports_all_findings_in_every_form(tmp_path: Path) -> None:
    root = damaged_copy(tmp_path)
    result = CliRunner().invoke(main, ["--root", str(root), "check"])
    assert result.exit_code == 1
    assert "papers/broken.yml:" in result.stdout
    assert 'did you mean "merge"?' in result.stdout
    findings = json.loads(CliRunner().invoke(main, ["--root", str(root), "check", "--format", "json"]).stdout)
    assert {f["file"] for f in findings} >= {"papers/broken.yml", "taxonomy/techniques/token-merging.yml"}
    assert all(f["line"] >= 1 and f["column"] >= 1 and f["code"] and f["message"] for f in findings)
    github = CliRunner().invoke(main, ["--root", str(root), "check", "--format", "github"]).stdout.splitlines()
    assert len(github) == len(findings)
    assert all(line.startswith(("::error file=", "::warning file=")) for line in github)
    only = CliRunner().invoke(main, ["--root", str(root), "check", str(root / "papers"), "--format", "json"])
    assert {f["file"].split("/")[0] for f in json.loads(only.stdout)} == {"papers"}
    rows = CliRunner().invoke(main, ["--root", str(root), "list", "--json"])
    assert "semantic-deduplication" in {row["id"] for row in json.loads(rows.stdout)}, (
        "a broken file hides another entry"
    )


def test_the_knowledge_has_no_findings() -> None:
    result = redundancy("check")
    assert result.exit_code == 0, result.stdout


def fake_run(outcome: runner.Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", lambda *args, **kwargs: outcome)


def test_run_prints_the_record_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    file = next((ROOT / "reference_impls/results/token-merging").glob("*.json"))
    record = Record.model_validate_json(file.read_text())
    fake_run(runner.Outcome(record), monkeypatch)
    printed = json_of(redundancy("run", "token-merging", "--json"))
    assert Record.model_validate(printed) == record
    assert {
        "technique",
        "scenario",
        "budget",
        "knobs",
        "baseline",
        "points",
        "redundancy",
        "seeds",
        "machine",
        "versions",
    } <= (printed.keys())
    assert printed["baseline"].keys() >= {"macs", "bytes", "quality", "wall_ms"}
    assert record.title in redundancy("run", "token-merging").stdout


def test_a_failed_run_ends_with_1_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "the asset 'minilm' is not in the cache; run `redundancy assets get minilm`"
    fake_run(runner.Outcome(error="missing-asset", message=message), monkeypatch)
    result = redundancy("run", "token-merging", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "redundancy assets get minilm" in result.stderr


def test_assets_list() -> None:
    rows = json_of(redundancy("assets", "list", "--json"))
    assert {"name", "state", "licence", "smoke", "download"} <= rows[0].keys()
    assert sum(row["download"] for row in rows if row["smoke"]) < 200e6


def test_as_a_program() -> None:
    done = process("list", "--json")
    assert json.loads(done.stdout)
    assert "redundancy" in process("--version").stdout
    assert "No such command" in process("lst", code=2).stderr
