"""What an entry lacks to be stable: the same rules for the check and for the views."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, EXPERIMENTS, NOTEBOOK, PAPER, RESULT, TEST
from tools.knowledge import load
from tools.knowledge.completeness import due, gaps, needs


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
        "a paper that introduces it", "a claim", EXPERIMENTS, TEST, NOTEBOOK, f"SCENARIOS in {EXPERIMENTS}",
        f"CASES in {TEST}", "a measured result", "a null case", "a saving", "its own code", "`status: stable`",
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
    ],
)
def test_one_thing_taken_away_is_one_gap_and_one_finding(atlas: Path, file: str, old: str, new: str, what: str) -> None:
    base.replace(atlas, file, old, new)
    knowledge = load(atlas)
    (missing,) = gaps(knowledge, knowledge.entries["token-merging"])
    assert missing.what == what
    assert [(f.code, f.message) for f in knowledge.findings] == [(missing.code, missing.message)]


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
