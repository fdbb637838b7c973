"""Records are read like the YAML files: strictly, with a finding at its line, and never an exception."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reference_impls import strict
from reference_impls.accounting.record import Record
from tests import knowledge_fixture as base
from tests.knowledge_fixture import PAPER, RESULT
from tests.site_fixture import record
from tools.cli import main
from tools.export import api
from tools.knowledge import load
from tools.knowledge.references import resolved


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    data = json.loads(record().to_json())
    change(data)
    return json.dumps(data, indent=1)


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the value at a dotted path."""

    def change(data: Any) -> None:
        *way, last = path.split(".")
        for key in way:
            data = data[int(key)] if isinstance(data, list) else data[key]
        data[last] = value

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "a count of 400 digits": (at("baseline.macs", 10**400), "E115", '"macs"'),
    "bytes of 19 digits": (at("points.0.bytes", 10**19), "E115", '"bytes"'),
    "a number without end": (at("redundancy.value", float("inf")), "E115", "Infinity"),
    "a number without a value": (at("redundancy.value", float("nan")), "E115", "NaN"),
    "a quality of 1e308": (at("baseline.quality.value", 1e308), "E115", "1e+308"),
    "a command to the terminal": (at("title", "\x1b]0;OWNED\x07\x1b[2J"), "E106", '"title"'),
    "a NUL": (at("data", "a\0b"), "E106", '"data"'),
    "a line break": (at("notes", ["one\ntwo"]), "E205", "one"),
    "a count in quotes": (at("baseline.macs", "12"), "E203", '"12"'),
    "a count with a point": (at("baseline.macs", 10.0), "E203", "10.0"),
    "a flag for a number": (at("baseline.macs", True), "E203", "true"),
    "a day of none": (at("date", "9999-99-99"), "E211", "9999"),
    "other digits": (at("date", "٢٠٢٦-١١-٢٢"), "E205", '"date"'),
    "crossed percentiles": (at("baseline.wall_ms.p10", 1e9), "E205", '"wall_ms"'),
    "a time of nothing": (at("baseline.wall_ms.p10", 0), "E205", '"p10"'),
    "a crossed interval": (at("redundancy.high", 0.0), "E205", '"redundancy"'),
    "an old version": (at("schema_version", 1), "E205", '"schema_version"'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_a_finding_at_its_line(name: str, atlas: Path) -> None:
    change, code, says = DAMAGES[name]
    text = damaged(change)
    base.put(atlas, RESULT, text)
    found = [f for f in load(atlas).findings if f.file == RESULT]
    assert [f.code for f in found] == [code], found
    if name != "a crossed interval":
        assert says in text.split("\n")[found[0].line - 1]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('{"title": "a",\n "title": "b"}', "E108", "second time"),
        ("[" * 10**5, "E115", "nested more than"),
        ('{"a": "\\ud800"}', "E115", "surrogate"),
        ("", "E115", "not JSON"),
        ("{} {}", "E115", "not JSON"),
        (b"\xff", "E102", "UTF-8"),
    ],
)
def test_what_is_no_json_or_not_clearly_so_is_a_finding(text: str | bytes, code: str, says: str, atlas: Path) -> None:
    base.put(atlas, RESULT, text)
    (found,) = (f for f in load(atlas).findings if f.file == RESULT)
    assert (found.code, says in found.message) == (code, True), found
    with pytest.raises(ValueError):
        Record.from_json(text)


@pytest.mark.parametrize("make", ["pipe", "link to a device", "folder", "circle"])
@pytest.mark.parametrize(
    "file", [RESULT, PAPER, base.ENTRY, base.MODULE, base.NOTEBOOK, base.TEST, "taxonomy/axes.yml"]
)
def test_what_is_no_file_stops_nothing(make: str, file: str, atlas: Path) -> None:
    path = atlas / file
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path), "link to a device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir, "circle": lambda: path.symlink_to(path),
    }[make]()  # fmt: skip
    assert load(atlas).findings
    result = CliRunner().invoke(main, ["--root", str(atlas), "gaps"])
    assert isinstance(result.exception, SystemExit | None), result.exception


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("baseline.quality.value / points[r=4].quality.value", {"baseline": 1e17, "points.0": 5e-324}),
        ("1 - baseline.quality.value / points[r=4].quality.value", {"baseline": 1e17, "points.0": 5e-324}),
    ],
)
def test_a_computed_value_without_end_is_a_finding_and_stops_nothing(
    field: str, changes: dict[str, float], atlas: Path
) -> None:
    data = json.loads(record().to_json())
    for path, value in changes.items():
        at(f"{path}.quality", {"metric": "accuracy", "value": value})(data)
    base.put(atlas, RESULT, json.dumps(data))
    base.replace(atlas, PAPER, "baseline.wall_ms.median / points[r=4].wall_ms.median", field)
    found = load(atlas).findings
    assert "E503" in {f.code for f in found}
    for arguments in (["show", "token-merging", "--json"], ["show", "token-merging"], ["export", "json"]):
        result = CliRunner().invoke(main, ["--root", str(atlas), *arguments])
        assert result.exit_code == 0, result.exception


@pytest.mark.parametrize("extreme", [10**18, 1e18, -1e18, 5e-324, 0.0])
def test_the_most_extreme_records_that_are_allowed_reach_every_page(extreme: float, atlas: Path) -> None:
    from tools.site.model import gather
    from tools.site.pages import pages

    data = json.loads(record().to_json())
    for variant in (data["baseline"], *data["points"]):
        variant["quality"] = {"metric": "accuracy", "value": float(extreme)}
        if isinstance(extreme, int):
            variant |= {"macs": extreme, "bytes": extreme}
            variant["wall_ms"] = dict.fromkeys(("p10", "median", "p90", "p99"), 1e12) | {"n": 15}
    base.put(atlas, RESULT, json.dumps(data))
    knowledge = load(atlas)
    assert not [f for f in knowledge.findings if f.file == RESULT]
    assert api.files(knowledge)
    assert pages(resolved(knowledge), gather(knowledge, {}))
    shown = CliRunner().invoke(main, ["--root", str(atlas), "show", "token-merging"])
    assert shown.exit_code == 0, shown.exception


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": {"b": 1, "b": 2}}', "twice"),
        ("[" * 61 + "]" * 61, "nested"),
        ('"' + "[" * 99 + '"', ""),
        ("1e400", "larger"),
        ("1" * 30, "larger"),
        ("-1000000000000000001", "larger"),
        ("1000000000000000000", ""),
        ("NaN", "no number"),
        (b'"\xc3"', "UTF-8"),
    ],
)
def test_strict_json(text: str | bytes, why: str) -> None:
    if not why:
        assert strict.loads(text) == json.loads(text)
        return
    with pytest.raises(strict.NotJson, match=why):
        strict.loads(text)


def test_the_place_of_a_number_is_told() -> None:
    with pytest.raises(strict.NotJson) as caught:
        strict.loads('{"a": "1e999",\n "b": [1, 1e999]}')
    assert (caught.value.line, caught.value.column) in {(2, 11), (1, 8)}
