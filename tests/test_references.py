"""Numbers in prose by reference to records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import knowledge_fixture as base
from tests.site_fixture import record
from tools.cli import main
from tools.knowledge import Knowledge, load
from tools.knowledge.references import ABSENT, bare_numbers, formatted, number, parse, problems, resolve, resolved

QUALITY = "photos: points[r=4].quality.value"
LIMIT = "limits: [Dense outputs need unmerging.]"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return load(base.write(tmp_path_factory.mktemp("atlas")), check=False)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.844, "%", "84.4 %"),
        (0.844, "%0", "84 %"),
        (0.73, "saved0", "27 %"),
        (0.024, "points", "+2.4 points"),
        (-0.024, "points", "-2.4 points"),
        (0.024, "plain points", "2.4 points"),
        (0.2, "plain points0", "20 points"),
        (-0.01, "-.3", "0.010"),
        (1.628, "x", "1.63×"),
        (1.628, "x1", "1.6×"),
        (4_598_882_304, "G", "4.60 G"),
        (12_289_928, "M1", "12.3 M"),
        (12_289_928, "", "12,289,928"),
        (0.012345, "", "0.0123"),
        (121.84, "ms", "121.8 ms"),
        (0.7341, ".2", "0.73"),
    ],
)
def test_formats(value: float, form: str, text: str) -> None:
    assert formatted(value, form) == text


def test_a_reference_is_replaced_by_its_number(known: Knowledge) -> None:
    text = f"It keeps {{{{{QUALITY} | %}}}} of {{{{token-merging/photos: baseline.quality.value\n | .2}}}}."
    assert resolve(text, known, "token-merging") == "It keeps 90.0 % of 0.90."
    assert resolve("{{photos: baseline.macs | G}} MACs", known, known.entries["token-merging"]) == "4.00 G MACs"
    assert resolve("{{token-merging/photos: baseline.macs}}", known) == "4,000,000,000"
    assert resolve("no reference", known) == "no reference"


def test_code_and_formulas_are_left_alone(known: Knowledge) -> None:
    for text in (f"`{{{{{QUALITY}}}}}`", "$x^{{a}}$ and $${{b}}$$"):
        assert resolve(text, known, "token-merging") == text
        assert list(problems(text, known, "token-merging")) == []


@pytest.mark.parametrize(
    ("inner", "entry", "says", "hint"),
    [
        ("photo: redundancy.value", "token-merging", 'no result of a scenario "photo"', 'did you mean "photos"?'),
        ("token-mergin/photos: redundancy.value", None, 'no entry or benchmark "token-mergin"', "token-merging"),
        ("photos: redundancy.value", None, "does not say whose", "entry-id/scenario"),
        ("photos: redundancy.valu", "token-merging", 'did you mean "value"?', ""),
        ("photos: points[0].macs", "token-merging", "is a position", "for example"),
        ("photos: redundancy.value | %%", "token-merging", 'no format "%%"', "there are"),
        ("photos: redundancy.value | .", "token-merging", 'no format "."', "there are"),
        ("photos", "token-merging", 'cannot read "photos"', "write {{scenario: field}}"),
        ("Photos: redundancy.value", "token-merging", "cannot read", "write"),
    ],
)
def test_a_reference_that_leads_nowhere_is_said(
    known: Knowledge, inner: str, entry: str | None, says: str, hint: str
) -> None:
    text = f"It is {{{{{inner}}}}}."
    ((written, problem),) = problems(text, known, entry)
    assert written == f"{{{{{inner}}}}}"
    assert says in str(problem)
    assert hint in problem.hint
    assert resolve(text, known, entry) == f"It is {ABSENT}."


def test_a_record_that_cannot_be_read_is_no_second_finding(tmp_path: Path) -> None:
    root = base.write(tmp_path)
    base.replace(root, base.ENTRY, LIMIT, f"limits: ['Keeps {{{{{QUALITY}}}}}.']")
    base.replace(root, base.RESULT, '"budget": "full"', '"budget": "huge"')
    found = load(root)
    assert {f.file for f in found.findings} == {base.RESULT}
    assert number(parse(QUALITY), found, "token-merging") is None


def test_texts_of_all_kinds_are_resolved(tmp_path: Path) -> None:
    root = base.write(tmp_path)
    note = "better: higher\n      note: 'Ours: {{photos: baseline.quality.value | %0}}.'"
    base.replace(root, base.PAPER, "better: higher", note)
    base.replace(root, base.ENTRY, LIMIT, f"limits: ['Keeps {{{{{QUALITY} | %0}}}}.']")
    known = load(root)
    assert [str(f) for f in known.findings] == []
    said = resolved(known)
    assert said.entries["token-merging"].limits == ("Keeps 90 %.",)
    check = said.papers["bolya-2023-token"].claims[0].check
    assert check is not None
    assert check.note == "Ours: 90 %."
    assert said.entries["token-dropping"] is known.entries["token-dropping"]
    assert known.entries["token-merging"].limits[0].startswith("Keeps {{")
    shown = CliRunner().invoke(main, ["--root", str(root), "show", "token-merging"])
    assert "- Keeps 90 %." in shown.stdout
    exported = CliRunner().invoke(main, ["--root", str(root), "export", "json"])
    assert json.loads(exported.stdout)["entries"][1]["limits"] == ["Keeps 90 %."]
    table = CliRunner().invoke(main, ["--root", str(root), "export", "csv", "entry_texts"])
    assert "Keeps 90 %." in table.stdout


def test_check_says_where_a_reference_leads_nowhere(tmp_path: Path) -> None:
    root = base.write(tmp_path)
    line = base.replace(root, base.ENTRY, LIMIT, "limits:\n  - >-\n    It keeps\n    {{photo: redundancy.value}}.")
    (found,) = load(root).findings
    assert (found.code, found.file, found.line, found.column) == ("E508", base.ENTRY, line + 3, 5)
    assert 'did you mean "photos"?' in found.hint


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("It loses 0.05 of 84.4 % and is 1.6 times as fast, or 2.1×.", ["0.05", "84.4 %", "1.6", "2.1×"]),
        ("It loses 3 points.", ["3"]),
        ("An interval (95 %: 0.31 to 0.4).", ["0.31", "0.4"]),
        ("On 8 x 8 digits, 5 seeds, MobileNetV2 x1.4, $0.5$, `0.5`, 1e-12.", []),
        ("At a threshold of 0.995, 10 % of the pixels.", []),
        ("The paper says 84.4 % (bolya-2023-token). We find 80 %.", ["80 %"]),
        ("{{photos: baseline.quality.value | %}} of it.", []),
    ],
)
def test_numbers_that_look_measured(text: str, bare: list[str]) -> None:
    found = bare_numbers(text, knobs={0.995, 0.1}, papers={"bolya-2023-token"})
    assert [n.replace("×", "") for n in found] == [n.replace("×", "") for n in bare]


def test_check_asks_for_the_record_of_a_measured_number(tmp_path: Path) -> None:
    root = base.write(tmp_path)
    base.put(root, base.RESULT, record().to_json())
    base.replace(root, base.ENTRY, LIMIT, "limits: [It loses 12.5 % at best., 'Half of it, with r = 4.']")
    (found,) = load(root).findings
    assert (found.code, found.severity, found.path) == ("W605", "warning", "limits[0]")
    assert "12.5 %" in found.message
    base.replace(root, base.ENTRY, "status: stable", "status: draft")
    assert "W605" not in {f.code for f in load(root).findings}
