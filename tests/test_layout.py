"""The canonical layout: no data changed, no comment lost, and nothing left to do the second time."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import knowledge_fixture as base
from tests.test_fuzz import documents
from tools.cli import main
from tools.knowledge import load
from tools.knowledge.layout import WIDTH, Refused, append, dump, files, layout, look
from tools.knowledge.reader import Document, parse_yaml, read_yaml

ROOT = Path(__file__).parents[1]
AXES = load(ROOT, check=False).axes
FILES = sorted(
    p.relative_to(ROOT).as_posix() for folder in ("taxonomy", "papers") for p in (ROOT / folder).rglob("*.yml")
)
ENTRY, PAPER = "taxonomy/techniques/x.yml", "papers/x.yml"


def read(text: str) -> Any:
    document = Document("x.yml")
    parse_yaml(text, document)
    assert [f for f in document.findings if f.code.startswith("E1")] == []
    return document.data


def events(text: str, loader: Any) -> list[Any]:
    wanted = (yaml.NodeEvent, yaml.CollectionEndEvent)
    return [
        (type(e).__name__, getattr(e, "value", None)) for e in yaml.parse(text, Loader=loader) if isinstance(e, wanted)
    ]


def laid_out(text: str, file: str = "mkdocs.yml") -> str:
    """The layout of a text, with everything that must hold of it."""
    result = layout(text, file, AXES)
    assert repr(ordered(read(result))) == repr(ordered(read(text)))
    assert layout(result, file, AXES) == result, "the second time changes something"
    assert events(result, yaml.Loader) == events(result, yaml.CLoader), "another parser reads something else"
    return result


def ordered(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: ordered(data[key]) for key in sorted(data)}
    return [ordered(item) for item in data] if isinstance(data, list) else data


# --- examples


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_the_atlas_is_in_the_layout(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert laid_out(text, file) == text, f"run `redundancy fmt {file}`"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: 1\r\nb: [x]\r\n", "a: 1\nb: [x]\n"),
        ("---\na: 1\n...\n", "a: 1\n"),
        ("a:   1   # one\n", "a: 1  # one\n"),
        ("a: {b: 1,c: 2 , }\n", "a: {b: 1, c: 2}\n"),
        ("a: [x,\n    y]\n", "a: [x, y]\n"),
        ("a: {b: }\nc:\n", "a: {b: null}\nc:\n"),
        ("a:\n- 1\n-   2\n", "a:\n  - 1\n  - 2\n"),
        ("a:\n    b:\n        c: 1\n", "a:\n  b:\n    c: 1\n"),
        ("{a: 1, b: {c: 2}}\n", "a: 1\nb: {c: 2}\n"),
        ("a: {q: What is X?}\n", 'a: {q: "What is X?"}\n'),
        ("a: What is X?\n", "a: What is X?\n"),
        ("? a\n: 1\n", "a: 1\n"),
        ("- - a\n", None),
        ("a:\n  - - 1\n    - 2\n  -\n    - 3\n", "a:\n  - - 1\n    - 2\n  - - 3\n"),
        ("a: [-, b]\n", "a: [-, b]\n"),
        ("a: one\n   two\n\n   three\n", "a: one\n  two\n\n  three\n"),
        ("a: 'one\n  two'\n", "a: one two\n"),
        ("a: |\n    x\n      y\n\n\nb: 1\n", "a: |\n  x\n    y\n\nb: 1\n"),
        ("a: |+\n    x\n\n\nb: 1\n", "a: |+\n  x\n\n\nb: 1\n"),
        ("a: |2-\n    x\n  y\n", "a: |2-\n    x\n  y\n"),
        ("a: >-   # why\n      x\n      y\n", "a: >-  # why\n  x\n  y\n"),
        ("a: 1\n\n\n\nb: 2\n\n", "a: 1\n\nb: 2\n"),
        ("a: {}\nb: []\n", "a: {}\nb: []\n"),
        ("a: \"x\"\nb: 'y'\n", "a: \"x\"\nb: 'y'\n"),
    ],
)
def test_small_things(text: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(Refused, match="E203"):
            layout(text, "x.yml", AXES)
    else:
        assert laid_out(text) == wanted


def test_comments_stay_with_what_they_are_about() -> None:
    text = """\
# yaml-language-server: $schema=x
# Licence.

# about the name
name: X  # a name

# about the id
id: x
axes:  # all of them
  # why
  scope: core
  # the end of the axes
papers:
  # the first
  - key: a-2020-b  # why this one
    # its role
    role: introduces
# the end
"""
    wanted = """\
# yaml-language-server: $schema=x
# Licence.

# about the id
id: x

# about the name
name: X  # a name
axes:  # all of them
  # why
  scope: core
  # the end of the axes
papers:
  # the first
  - key: a-2020-b  # why this one
    # its role
    role: introduces
# the end
"""
    assert laid_out(text, ENTRY) == wanted


def test_comments_inside_brackets_make_a_block_of_them() -> None:
    text = "a: [  # why\n  x, # first\n  # then\n  {b: 1, # one\n   c: 2}\n  # last\n  ]\nd: 1\n"
    wanted = """\
a:  # why
  - x  # first
  # then
  - b: 1  # one
    c: 2
  # last
d: 1
"""
    assert laid_out(text) == wanted


def test_keys_come_in_the_order_of_the_schema_and_of_the_axes() -> None:
    text = """\
papers:
  - {role: introduces, key: a-2020-b}
nonsense: 1
axes: {scope: core, stage: both, relation: [irrelevance]}
kind: technique
id: x
"""
    wanted = """\
id: x
kind: technique
axes: {relation: [irrelevance], stage: both, scope: core}
papers:
  - {key: a-2020-b, role: introduces}
nonsense: 1
"""
    assert laid_out(text, ENTRY) == wanted
    assert laid_out("claims:\n  - {kind: negative, id: c1}\nkey: k\n", PAPER) == (
        "key: k\nclaims:\n  - {id: c1, kind: negative}\n"
    )
    axes = "axes:\n  b:\n    terms: {z: {definition: Z, name: z}, a: {}}\n    name: b\n  a: {}\nabout: x\n"
    assert laid_out(axes, "taxonomy/axes.yml") == (
        "about: x\naxes:\n  b:\n    name: b\n    terms: {z: {name: z, definition: Z}, a: {}}\n  a: {}\n"
    )


def test_long_lines_are_folded() -> None:
    words = " ".join(f"word{n}" for n in range(40))
    for text in (f"a: {words}\n", f'a: "{words}"\n', f"a:\n  - {words}\n", f"a: >-\n  {words}\n", f"a: x\n  {words}\n"):
        result = laid_out(text)
        assert max(map(len, result.split("\n"))) <= WIDTH
        assert len(result.split("\n")) > 3
    address = f"a: https://example.org/{'x' * 130}\n"
    assert laid_out(address) == address
    wide = "a: {" + ", ".join(f"k{n}: {n}" for n in range(30)) + "}\n"
    assert laid_out(wide).startswith("a:\n  k0: 0\n  k1: 1\n")


def test_breaks_of_prose_stay_up_to_the_line_that_is_too_long() -> None:
    long = "x" * 60
    text = f"a: >-\n  short\n  lines\n  {long} {long}\n  and more\n\n  next\n  one\n"
    assert laid_out(text) == f"a: >-\n  short\n  lines\n  {long}\n  {long} and more\n\n  next\n  one\n"


@pytest.mark.parametrize(
    "text", ["a: [\n", "a: 1\na: 2\n", "a: &x 1\n", "a: !t 1\n", "# nothing\n", "a: 1\n---\nb: 2\n"]
)
def test_what_the_reader_refuses_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        layout(text, ENTRY, AXES)
    assert all(f.code.startswith("E1") and f.file == ENTRY for f in refused.value.findings)


def test_files_are_looked_at_and_those_with_findings_left_alone(tmp_path: Path) -> None:
    root = base.write(tmp_path / "atlas")
    good = layout(base.FILES[base.PAPER], base.PAPER, AXES)
    base.put(root, base.PAPER, "\ufeff" + good.replace("\n", "\r\n"))
    base.put(root, base.DRAFT, "id: [\n")
    assert files(root) == ["papers/bolya-2023-token.yml", "taxonomy/axes.yml", base.DRAFT, base.ENTRY]
    found = {laid.file: laid for laid in look(root, files(root), AXES)}
    assert found[base.PAPER].text == good, "a byte order mark and line ends of Windows are mended"
    assert [f.code for f in found[base.DRAFT].findings] == ["E107"]
    assert found[base.DRAFT].text is None
    assert files(root, [root / "papers"]) == [base.PAPER]
    with pytest.raises(FileNotFoundError):
        files(root, [root / "paper"])
    with pytest.raises(ValueError, match="no YAML file of"):
        files(root, [root / base.MODULE])


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    root = base.write(tmp_path / "atlas")
    base.put(root, base.DRAFT, "id: [\n")
    base.replace(root, base.ENTRY, "name: Token merging", "name:   Token merging")

    def fmt(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["--root", str(root), "fmt", *arguments])
        return result.exit_code, result.output

    before = {file: (root / file).read_bytes() for file in files(root)}
    code, said = fmt("--check")
    assert code == 1
    assert base.ENTRY in said
    assert f"{base.DRAFT}:2:1: E107" in said
    assert {file: (root / file).read_bytes() for file in files(root)} == before
    assert fmt()[0] == 1, "one file was refused"
    assert (root / base.DRAFT).read_bytes() == before[base.DRAFT]
    assert (root / base.ENTRY).read_bytes() != before[base.ENTRY]
    (root / base.DRAFT).unlink()
    assert fmt("--check")[0] == 0
    good = (root / base.PAPER).read_bytes()
    base.put(root, base.PAPER, b"\xef\xbb\xbf" + good)
    code, said = fmt("--check", str(root / base.PAPER))
    assert code == 1
    assert said.endswith(f"{base.PAPER}\n1 file, 1 not in the layout; run `redundancy fmt`\n")
    assert fmt()[0] == 0
    assert (root / base.PAPER).read_bytes() == good
    assert fmt(str(root / "nowhere.yml"))[0] == 2


# --- properties

words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff\ufffe\uffff"))
texts = st.one_of(
    words,
    st.lists(st.sampled_from(["a", "word", "#", "x:", ": ", "-", "?", "{", "]", "'", '"', "\\", "  ", "\n", "\n\n", "|",
                              "1", "null", "no", "https://x.org/?q=1", "longer" * 12, "é"]), max_size=40).map(" ".join),
    st.sampled_from(["", " ", "\n", "\n\n", "a\n", " a", "a ", "a\n\n", "-", "?", ":", "- a", "1e3", "0x1F"]),
)  # fmt: skip
data = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), texts),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(words.filter(bool), v, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(
    st.sampled_from(["id", "key", "axes", "claims", "papers", "name", "title", "z"]), data, min_size=1
)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Data as YAML in some style of PyYAML's, with comments in places where they change nothing; and the comments."""
    text = yaml.safe_dump(
        draw(mappings),
        default_flow_style=draw(st.sampled_from([None, True, False])),
        default_style=draw(st.sampled_from([None, None, "'", '"', "|", ">"])),
        indent=draw(st.integers(2, 6)),
        width=draw(st.sampled_from([20, 80, 1000])),
        allow_unicode=draw(st.booleans()),
        sort_keys=False,
    )
    text = re.sub("!!(?:str|int|float|null|bool|binary) ", "", text)
    document = Document("x.yml")
    parse_yaml(text, document)
    assume(not document.findings and isinstance(document.data, dict))
    chance, lines, comments = random.Random(draw(st.integers(0, 2**32))), text.split("\n"), []
    for n in range(draw(st.integers(0, 6))):
        comment, at = f"# note {n}.", chance.randrange(len(lines))
        changed = [*lines]
        if chance.random() < 0.5:
            changed[at] += f"  {comment}"
        else:
            changed[at:at] = [" " * chance.randrange(6) + comment]
        changed[at:at] = [""] * (chance.random() < 0.2)
        again = Document("x.yml")
        parse_yaml("\n".join(changed), again)
        if not again.findings and repr(again.data) == repr(document.data):
            lines = changed
            comments.append(comment)
    return "\n".join(lines), comments


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def check_written(case: tuple[str, list[str]], file: str) -> None:
    text, comments = case
    result = laid_out(text, file)
    for comment in comments:
        assert result.count(comment) == text.count(comment) == 1


@settings(max_examples=150, derandomize=True, **COMMON)
@given(case=written(), file=st.sampled_from([ENTRY, PAPER, "taxonomy/axes.yml", "mkdocs.yml"]))
def test_layout_changes_no_data_and_loses_no_comment(case: tuple[str, list[str]], file: str) -> None:
    check_written(case, file)


@pytest.mark.slow
@settings(max_examples=600, **COMMON)
@given(case=written(), file=st.sampled_from([ENTRY, PAPER]))
def test_layout_of_thousands_of_texts(case: tuple[str, list[str]], file: str) -> None:
    check_written(case, file)


def check_any(file: str, content: bytes, folder: Path) -> None:
    path = folder / "any.yml"
    path.write_bytes(content)
    document = read_yaml(path, file)
    faults = {f.code for f in document.findings if f.code.startswith("E1")}
    if "E102" in faults:
        return  # no text
    text = content.decode("utf-8").removeprefix("\ufeff")
    if faults - {"E103", "E116"} or not isinstance(document.data, dict):
        with pytest.raises(Refused):
            layout(text, file, AXES)
    else:
        laid_out(text, file)


@pytest.mark.parametrize(
    "content",
    [
        b"a: 1\r\nb: 2\r\n",
        b"\xef\xbb\xbfa: |\r\n  x\r\n\r\nb: 'c\r\n  d'\r\n",
        b"a: 1\n<<<<<<< x: 2\n",
        b"a:\tb\n",
        b"a: b\rc: d\n",
    ],
    ids=["Windows", "Windows with a byte order mark", "an unfinished merge", "a tab", "a lone carriage return"],
)
def test_what_fmt_mends_is_laid_out_and_what_the_reader_refuses_is_not(content: bytes, tmp_path: Path) -> None:
    check_any(ENTRY, content, tmp_path)


@settings(max_examples=150, derandomize=True, **COMMON)
@given(document=documents)
def test_any_text_is_laid_out_or_refused(document: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    check_any(*document, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=600, **COMMON)
@given(document=documents)
def test_thousands_of_texts_are_laid_out_or_refused(
    document: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_any(*document, tmp_path_factory.getbasetemp())


# --- writing


@settings(max_examples=150, derandomize=True, **COMMON)
@given(content=mappings)
def test_what_is_dumped_is_read_back(content: dict[str, Any]) -> None:
    text = dump(content, PAPER, AXES, notes=["a note"])
    assert read(text) == content
    assert repr(ordered(read(text))) == repr(ordered(content))
    assert laid_out(text, PAPER) == text
    assert text.startswith("# yaml-language-server: $schema=../tools/knowledge/schemas/paper.schema.json\n")
    assert text.endswith("\n# a note\n")


@pytest.mark.parametrize("value", ["a\tb", "\x00", "a\rb", float("inf"), float("nan"), 10**400])
def test_what_no_file_may_hold_is_not_dumped(value: Any) -> None:
    with pytest.raises(ValueError):
        dump({"a": value}, PAPER, AXES)


def test_dumped_files_look_like_those_written_by_hand() -> None:
    content = {
        "key": "bolya-2023-token",
        "title": "Token Merging: Your ViT But Faster",
        "authors": [{"family": "Bolya", "given": "Daniel"}],
        "year": 2023,
        "ids": {"arxiv": "2210.09461"},
        "summary": "Merges the most similar tokens of a vision transformer in every block by a light matching on the "
        "attention keys.",
        "verified": {"source": "arXiv listing", "on": "2026-11-22"},
    }
    assert dump(content, "papers/bolya-2023-token.yml", AXES) == """\
# yaml-language-server: $schema=../tools/knowledge/schemas/paper.schema.json
key: bolya-2023-token
title: "Token Merging: Your ViT But Faster"
authors:
  - {family: Bolya, given: Daniel}
year: 2023
ids: {arxiv: "2210.09461"}
summary: >-
  Merges the most similar tokens of a vision transformer in every block by a light matching on the attention keys.
verified: {source: arXiv listing, on: "2026-11-22"}
"""  # fmt: skip


def test_a_claim_is_added_at_the_end_of_the_list() -> None:
    text = base.FILES[base.PAPER].replace("claims:", "# what it says\nclaims:")
    claim = {"id": "c3", "technique": "token-merging", "kind": "negative", "statement": "No.", "locator": {"page": 3}}
    result = append(text, base.PAPER, "claims", claim, AXES)
    assert read(result)["claims"] == [*read(text)["claims"], claim]
    assert result.startswith(layout(text, base.PAPER, AXES))
    assert "# what it says\nclaims:" in result
    for empty in ("key: k\n", "key: k\nclaims: []\n"):
        assert read(append(empty, base.PAPER, "claims", claim, AXES))["claims"] == [claim]
    with pytest.raises(TypeError):
        append("claims: none\n", base.PAPER, "claims", claim, AXES)
