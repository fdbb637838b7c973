"""Whatever a file holds, and whatever is typed, comes to a finding or a message, never to an exception.

Documents, records among them, come in four sorts: good files with nodes replaced, moved or left out; good texts with
characters changed; text that looks like YAML; and bytes. Arguments, knobs and interruptions stand in `fuzz_command.py`
and `fuzz_knobs.py`. `make test` tries a few of each, the same ones every time; `make fuzz` (ATLAS_FUZZ=1) 10,000
documents, argument lists and sets of knobs, 300 processes and 200 interruptions; ATLAS_FUZZ=0.1 a tenth of these.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impls import guard
from tests import fuzz_command, fuzz_knobs
from tests import knowledge_fixture as base
from tests.site_fixture import record
from tools.cli import main
from tools.export import api
from tools.knowledge import load
from tools.knowledge.claims import FieldAbsent, FieldError, parse_field
from tools.knowledge.codes import CODES
from tools.knowledge.findings import render
from tools.knowledge.reader import MAX_DIGITS, read_yaml
from tools.knowledge.references import resolved

LONG = float(os.environ.get("ATLAS_FUZZ", "0"))
SEED = int(os.environ.get("ATLAS_SEED", "0"))


def count(bounded: int, long: int) -> int:
    """How many are tried: a few in `make test`, as many as are asked for in `make fuzz`."""
    return max(1, round(long * LONG)) if LONG else bounded


GOOD = {
    base.ENTRY: base.FILES[base.ENTRY], base.PAPER: base.FILES[base.PAPER], base.RESULT: record().to_json(),
}  # fmt: skip
AXES = (base.ROOT / "taxonomy/axes.yml").read_text(encoding="utf-8")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["no", "1:30", "0777", "2024-01-02", "<b>", "[x](javascript:1)", "$", "points[r=", "../..", "token-merging"]
    ),
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=8
)
yamlish = st.lists(
    st.sampled_from(
        [
            "a",
            "key",
            ": ",
            ":",
            "- ",
            "-",
            "\n",
            "\n  ",
            "\n    ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "&x ",
            "*x",
            "!t ",
            "!!int ",
            "<<",
            "? ",
            "|",
            ">-",
            "'",
            '"',
            "\\",
            "#",
            "%",
            "---\n",
            "...\n",
            "\t",
            "\r",
            "\x00",
            "\ufeff",
            "\u2028",
            "é",
            "1",
            "1e9",
            "null",
            "true",
            "@",
            "`",
            "id: ",
        ]
    ),
    max_size=60,
).map("".join)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good file with a few of its nodes replaced, left out, doubled or renamed, written as YAML again."""
    file = draw(st.sampled_from(sorted(GOOD)))
    data = yaml.safe_load(GOOD[file])
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 4))):
        data = _mutate(data, chance, draw)
    dump: Callable[[Any], str] = draw(st.sampled_from([_flow, _block, _json]))
    return file, dump(data).encode("utf-8", "surrogatepass")


def _flow(data: Any) -> str:
    return str(yaml.safe_dump(data, default_flow_style=True, allow_unicode=True))


def _block(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False))


def _json(data: Any) -> str:
    return json.dumps(data, default=str)


def _mutate(data: Any, chance: random.Random, draw: st.DrawFn) -> Any:
    """Change one place somewhere below `data`."""
    if not isinstance(data, (dict, list)) or not data or chance.random() < 0.1:
        return draw(values)
    at = chance.choice(sorted(data, key=str) if isinstance(data, dict) else range(len(data)))
    act = chance.random()
    if act < 0.6:
        data[at] = _mutate(data[at], chance, draw)
    elif act < 0.75:
        del data[at]
    elif act < 0.9 and isinstance(data, dict):
        data[draw(st.text(max_size=8)) or f"{at}s"] = data[at]
    elif isinstance(data, list):
        data.append(data[at])
    else:
        data[at] = [data[at]]
    return data


@st.composite
def scratched(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good text with a few pieces cut out, doubled or replaced."""
    file = draw(st.sampled_from([*sorted(GOOD), "taxonomy/axes.yml"]))
    text = GOOD.get(file, AXES[:4000])
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = text[:start] + draw(st.one_of(yamlish, st.text(max_size=5), st.just(text[start:end] * 2))) + text[end:]
    return file, text.encode("utf-8", "surrogatepass")


documents = st.one_of(
    mutated(),
    scratched(),
    st.tuples(st.sampled_from(sorted(GOOD)), yamlish.map(str.encode)),
    st.tuples(st.sampled_from(sorted(GOOD)), st.binary(max_size=200)),
)


def check(root: Path, file: str, content: bytes) -> None:
    """`content` in the place of a good file: only findings, each with a known code at a place that the file has."""
    base.put(root, file, content)
    try:
        findings = load(root).findings
        lines = content.decode("utf-8", "replace").split("\n")
        for finding in findings:
            assert finding.code in CODES
            assert finding.line >= 1
            assert finding.column >= 1
            if finding.file == file:
                assert finding.line <= len(lines)
                assert finding.column <= len(lines[finding.line - 1]) + 1
        assert len(json.loads(render(findings, "json"))) == len(findings)
        assert len(render(findings, "github").split("\n")) == max(len(findings), 1)
        if not findings:
            assert api.files(load(root, check=False))
    finally:
        base.put(root, file, GOOD.get(file, AXES))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base.write(tmp_path_factory.mktemp("fuzz") / "atlas")


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=count(200, 10_000), derandomize=True, **COMMON)
@given(document=documents)
def test_any_document_gives_findings_only(atlas: Path, document: tuple[str, bytes]) -> None:
    check(atlas, *document)


@settings(max_examples=count(40, 2_000), derandomize=True, **COMMON)
@given(data=st.data())
def test_any_record_is_refused_or_reaches_every_page(atlas: Path, data: st.DataObject) -> None:
    """A record with a few of its numbers and texts changed: a finding, or everything that shows it works."""
    from tools.site.model import gather
    from tools.site.pages import pages

    content = json.loads(GOOD[base.RESULT])
    leaves = list(_leaves(content))
    for holder, key in data.draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=4, unique_by=str)):
        holder[key] = data.draw(numbers if isinstance(holder[key], (int, float)) else st.text(max_size=20) | numbers)
    base.put(atlas, base.RESULT, json.dumps(content).encode("utf-8", "surrogatepass"))
    try:
        knowledge = load(atlas)
        if not [f for f in knowledge.findings if f.severity == "error"]:
            assert api.files(knowledge)
            assert pages(resolved(knowledge), gather(knowledge, {}))
        shown = CliRunner().invoke(main, ["--root", str(atlas), "show", "token-merging"])
        assert shown.exit_code == 0, shown.exception
    finally:
        base.put(atlas, base.RESULT, GOOD[base.RESULT])


numbers = (
    st.sampled_from([0, 1, 10**18, 10**18 + 1, 10**400, 1e-9, 1e12, 5e-324, -1e18, 1.0000000000000002, 1e308])
    | st.floats()
)


def _leaves(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a number or a text: what holds it, and its key."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, (dict, list)):
            yield from _leaves(value)
        else:
            yield data, key


def test_any_arguments_give_an_answer_or_a_message(tmp_path: Path) -> None:
    assert list(fuzz_command.called(count(150, 10_000), SEED, tmp_path / "called")) == []


def test_any_surroundings_give_an_answer_or_a_message(tmp_path: Path) -> None:
    assert list(fuzz_command.as_processes(count(6, 300), SEED, tmp_path / "processes")) == []


@pytest.mark.skipif(not guard.AVAILABLE, reason="keepers need Linux")
def test_any_interruption_leaves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    assert list(fuzz_command.interrupted(count(3, 200), SEED, tmp_path / "interrupted")) == []


@pytest.mark.parametrize("half", [0, 1])
def test_any_knobs_are_taken_or_refused(half: int) -> None:
    assert list(fuzz_knobs.tried(count(250, 5_000), 2 * SEED + half)) == []


@settings(max_examples=200, derandomize=True, **COMMON)
@given(data=values)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """JSON is YAML: what JSON says, the reader says too, unless it refuses the file."""
    path = tmp_path_factory.getbasetemp() / "x.yml"
    path.write_text(json.dumps({"data": data}, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    document = read_yaml(path, "x.yml")
    if not document.findings:
        assert repr(document.data) == repr(_read_as({"data": data}))


def _read_as(data: Any) -> Any:
    """Numbers that JSON writes without a finite value, or with very many digits, are texts to the reader."""
    if isinstance(data, dict):
        return {k: _read_as(v) for k, v in data.items()}
    if isinstance(data, list):
        return [_read_as(v) for v in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), -float("inf"))):
        return json.dumps(data)
    if isinstance(data, int) and len(str(data)) > MAX_DIGITS:
        return str(data)
    return data


@settings(max_examples=300, derandomize=True, **COMMON)
@given(
    text=st.lists(
        st.sampled_from(["points", "[r=13]", "[", "]", ".", "value", " / ", " - ", "=", ",", "0", "baseline", " "])
    ).map("".join)
)
def test_any_field_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(FieldError, FieldAbsent):
        assert isinstance(parse_field(text).value(record()), float)
