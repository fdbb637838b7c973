"""Whatever a file holds, reading and checking it gives findings, never an exception.

Documents come in four sorts: good files with nodes replaced, moved or left out; good texts with characters changed;
text that looks like YAML; and bytes. The quick test tries a few hundred, the slow one thousands.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import knowledge_fixture as base
from tests.site_fixture import record
from tools.knowledge import load
from tools.knowledge.claims import FieldAbsent, FieldError, parse_field
from tools.knowledge.codes import CODES
from tools.knowledge.findings import render
from tools.knowledge.reader import MAX_DIGITS, read_yaml

GOOD = {base.ENTRY: base.FILES[base.ENTRY], base.PAPER: base.FILES[base.PAPER]}
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
    finally:
        base.put(root, file, GOOD.get(file, AXES))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base.write(tmp_path_factory.mktemp("fuzz") / "atlas")


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=200, derandomize=True, **COMMON)
@given(document=documents)
def test_any_document_gives_findings_only(atlas: Path, document: tuple[str, bytes]) -> None:
    check(atlas, *document)


@pytest.mark.slow
@settings(max_examples=2500, **COMMON)
@given(document=documents)
def test_thousands_of_documents_give_findings_only(atlas: Path, document: tuple[str, bytes]) -> None:
    check(atlas, *document)


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
