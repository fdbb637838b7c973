"""What an entry lacks to be stable: the same rules for the check and for the views."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reference_impls.accounting.record import Record
from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, EXPERIMENTS, NOTEBOOK, PAPER, RESULT, TEST
from tests.site_fixture import record, variant
from tools.cli import main
from tools.knowledge import load
from tools.knowledge.completeness import PLACEHOLDER, due, gaps, needs, notebook_faults, record_faults
from tools.knowledge.latex import unexplained


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


def test_a_stable_entry_without_findings_lacks_nothing(atlas: Path) -> None:
    knowledge = load(atlas)
    entry = knowledge.entries["token-merging"]
    assert gaps(knowledge, entry) == ()
    wanted = [need.what for need in needs(knowledge, entry)]
    assert wanted[:13] == [f"axis {name}" for name in knowledge.axes]
    assert wanted[13:] == [
        "definition", "algorithm", "cost_model", "when_to_use", "when_not_to_use", "limits", "implementation",
        "symbols", "a paper that introduces it", "a claim", EXPERIMENTS, TEST, NOTEBOOK, f"SCENARIOS in {EXPERIMENTS}",
        f"CASES in {TEST}", f"a heading in {NOTEBOOK}",
        "a measured result", "a null case", "a saving", "its own code", "`status: stable`",
    ]  # fmt: skip
    assert all(need.hint and need.message for need in needs(knowledge, entry))


def test_a_draft_lacks_what_the_check_would_ask_of_it_when_stable(atlas: Path) -> None:
    knowledge = load(atlas)
    draft = knowledge.entries["token-dropping"]
    missing = gaps(knowledge, draft)
    assert due(knowledge, draft) == ()
    assert {need.status for need in missing} == {"stable"}
    base.replace(atlas, DRAFT, "status: draft", "status: stable")
    found = [(f.code, f.message) for f in load(atlas).findings if f.file == DRAFT]
    assert missing[-1].what == "`status: stable`"
    assert sorted(found) == sorted((need.code, need.message) for need in missing[:-1])
    assert len(missing) == 21


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        (ENTRY, "limits: [Dense outputs need unmerging.]\n", "", "limits"),
        (ENTRY, "  guarantee: empirical\n", "", "axis guarantee"),
        (ENTRY, "  stage: inference\n", "", "axis stage"),
        (ENTRY, "role: introduces", "role: applies", "a paper that introduces it"),
        (ENTRY, "symbols: {N: tokens, r: tokens merged, C: channels}\n", "symbols: {C: channels}\n", "symbols: N, r"),
    ],
)
def test_one_thing_taken_away_is_one_gap_and_one_finding(atlas: Path, file: str, old: str, new: str, what: str) -> None:
    base.replace(atlas, file, old, new)
    knowledge = load(atlas)
    (missing,) = gaps(knowledge, knowledge.entries["token-merging"])
    assert missing.what == what
    assert [(f.code, f.message) for f in knowledge.findings] == [(missing.code, missing.message)]


@pytest.mark.parametrize(
    ("formula", "symbols", "missing"),
    [
        (r"4 n_l D^2 \quad\text{instead of}\quad 4 N D^2", ["n_l", "N"], ["D"]),
        (r"c(n) + h_{exit}, \quad c(n) = n D", ["n", "D", "h_{exit}"], []),
        (r"\rho\, c_{prefix} + O(n)", ["c_{prefix}"], [r"\rho", "n"]),
        (r"q_e c, \qquad q_e = \text{share at stage } e", ["c", "e"], []),
    ],
)
def test_every_letter_of_a_cost_model_is_explained(formula: str, symbols: list[str], missing: list[str]) -> None:
    assert unexplained(formula, symbols) == missing


@pytest.mark.parametrize("file", [NOTEBOOK, TEST, EXPERIMENTS])
def test_a_missing_file_is_a_gap(atlas: Path, file: str) -> None:
    (atlas / file).unlink()
    knowledge = load(atlas)
    assert [need.what for need in gaps(knowledge, knowledge.entries["token-merging"])] == [file]


def test_results_and_claims_are_gaps(atlas: Path) -> None:
    (atlas / RESULT).unlink()
    base.put(atlas, PAPER, base.FILES[PAPER].partition("claims:")[0])
    knowledge = load(atlas)
    entry = knowledge.entries["token-merging"]
    assert [need.what for need in gaps(knowledge, entry)] == ["a claim", "a measured result"]
    base.put(atlas, PAPER, "key: [")  # who knows what it claims
    knowledge = load(atlas)
    assert [need.what for need in gaps(knowledge, entry)] == ["a measured result"]


def test_a_study_needs_neither_code_nor_every_axis(atlas: Path) -> None:
    base.replace(atlas, DRAFT, "kind: technique", "kind: study")
    knowledge = load(atlas)
    study = knowledge.entries["token-dropping"]
    assert [need.what for need in gaps(knowledge, study)] == [
        "axis data_kind",
        "axis objective",
        "definition",
        "limits",
        "`status: stable`",
    ]


def test_the_name_of_the_file_decides_which_files_are_missing(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "id: token-merging", "id: token-mergin")
    assert [f.code for f in load(atlas).findings] == ["E209"]


# --- what a record must show, and what it need not


def on_or_off(**changes: object) -> Record:
    """The record of a technique that is either on or off: a sweep of one point."""
    on = variant(3_000_000_000, 0.9, 80.0, knobs={"on": True})
    return record(knobs=["on"], points=[on], controls=[], **changes)


def test_a_technique_may_be_either_on_or_off(atlas: Path) -> None:
    one = on_or_off()
    assert record_faults(one) == []
    base.put(atlas, RESULT, one.to_json())
    base.replace(atlas, PAPER, "points[r=4]", "points[on=true]")
    knowledge = load(atlas)
    assert knowledge.findings == []
    assert gaps(knowledge, knowledge.entries["token-merging"]) == ()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"redundancy": {"measure": "m", "value": 0.5}}, "a null case"),
        ({"points": [variant(4_000_000_000, 0.9, 80.0, knobs={"on": True})]}, "a saving"),
    ],
)
def test_the_rules_of_records_are_those_of_the_entry(atlas: Path, changes: dict[str, object], fault: str) -> None:
    one = Record.model_validate(on_or_off().model_dump() | changes)
    assert record_faults(one) == [fault]
    base.put(atlas, RESULT, one.to_json())
    base.replace(atlas, PAPER, "points[r=4]", "points[on=true]")
    knowledge = load(atlas)
    (missing,) = gaps(knowledge, knowledge.entries["token-merging"])
    assert missing.what == fault
    assert [(f.code, f.message) for f in knowledge.findings] == [(missing.code, missing.message)]
    base.put(atlas, RESULT.replace("photos", "others"), record("others").to_json())
    base.replace(atlas, EXPERIMENTS, "SCENARIOS = (", 'SCENARIOS = (Scenario("others", "O", run=None), ')
    assert load(atlas).findings == [], "one record that shows it is enough"


def test_an_executed_notebook_shows_a_figure() -> None:
    assert notebook_faults({"stream", "display_data"}) == []
    assert notebook_faults({"stream"}) == ["a figure"]


# --- the commands say the same


def redundancy(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--root", str(root), *arguments])


def test_gaps_of_a_draft_name_the_stand_ins_and_the_status(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "status: stable", "status: draft")
    said = redundancy(atlas, "gaps", "token-merging").stdout
    assert "`status: stable`" in said
    assert f"write it in {ENTRY}" in said
    assert "its own code" not in said
    for file in (EXPERIMENTS, TEST):
        base.put(atlas, file, f"# {PLACEHOLDER}\n{base.FILES[file]}")
    said = redundancy(atlas, "gaps", "token-merging").stdout
    assert f"in {EXPERIMENTS}, {TEST}; delete" in said
    refused = redundancy(atlas, "bench", "token-merging", "--save")
    assert refused.exit_code == 2
    assert f"in {EXPERIMENTS}, {TEST}; delete" in refused.stderr


def test_gaps_know_the_numbers_that_only_a_stable_entry_must_not_type(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "status: stable", "status: draft")
    base.replace(atlas, ENTRY, "limits: [Dense outputs need unmerging.]", "limits: [It keeps 84.4 % of it.]")
    assert load(atlas).findings == []
    assert "the source of 84.4 % in limits" in redundancy(atlas, "gaps", "token-merging").stdout
    base.replace(atlas, ENTRY, "status: draft", "status: stable")
    (said,) = load(atlas).findings
    assert (said.code, said.path) == ("W605", "limits[0]")


def test_gaps_show_findings_in_the_files_of_the_entry(atlas: Path) -> None:
    base.put(atlas, NOTEBOOK, base.FILES[NOTEBOOK] + "x = (\n")
    said = redundancy(atlas, "gaps", "token-merging").stdout
    assert "nothing is missing" in said
    assert f"1 finding in its files:\n{NOTEBOOK}:6:5: E704" in said
    assert "finding" not in redundancy(atlas, "gaps", "token-dropping").stdout
