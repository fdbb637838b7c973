"""The reader, the schema, the cross checks, the verdicts and the schemas for editors."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reference_impls.accounting.record import Record
from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, EXPERIMENTS, MODULE, NOTEBOOK, PAPER, RESULT, TEST
from tests.site_fixture import record
from tools.cli import main
from tools.knowledge import Finding, editor, find_root, load
from tools.knowledge.base import Knowledge
from tools.knowledge.claims import FieldAbsent, FieldError, judge, parse_field
from tools.knowledge.codes import CODES, FAMILIES
from tools.knowledge.findings import counted, did_you_mean, finding, nearest, render
from tools.knowledge.reader import MAX_BYTES, Document, parse_yaml, read_json, read_yaml
from tools.knowledge.schema import Claim, Quantity
from tools.knowledge.source import scenarios
from tools.knowledge.text import text_problems
from tools.site.relations import edges

ROOT = Path(__file__).parents[1]
CODE = "code:\n  - {url: https://github.com/facebookresearch/ToMe, official: true, licence: CC-BY-NC-4.0}\n"


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


def parsed(text: str) -> Document:
    document = Document("x.yml")
    parse_yaml(text, document)
    return document


def codes(document: Document | Knowledge) -> list[str]:
    return [f.code for f in document.findings]


def found(root: Path) -> list[tuple[str, str, int]]:
    """Code, file and line of every finding."""
    return [(f.code, f.file, f.line) for f in load(root).findings]


# --- the reader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("True", "True"),
        ("NULL", "NULL"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("0777", "0777"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12", 12),
        ("-3", -3),
        ("+4", 4),
        ("0", 0),
        ("00", "00"),
        ("1e-3", 1e-3),
        ("1.5", 1.5),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("1.5E+3", 1500.0),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000),
        ("2210.09460", 2210.0946),
        (".", "."),
        ("-", ["x"]),
        ('"no"', "no"),
        ("'12'", "12"),
        ("|\n  12\n", "12\n"),
    ],
)
def test_scalars_hold_no_surprise(text: str, value: Any) -> None:
    document = parsed("a: [x]" if value == ["x"] else f"a: {text}\n")
    assert document.findings == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_every_value_and_key_has_its_place() -> None:
    document = parsed("a: 1\nlist:\n  - x\n  - {k: 'v', n: [2,\n      3]}\nlong: >-\n  text\n")
    assert document.data == {"a": 1, "list": ["x", {"k": "v", "n": [2, 3]}], "long": "text"}
    at = {path: (p.line, p.column) for path, p in document.places.values.items()}
    assert at[("list", 0)] == (3, 5)
    assert at[("list", 1, "k")] == (4, 9)
    assert at[("list", 1, "n", 1)] == (5, 7)
    assert (document.places.keys[("list", 1, "n")].line, document.places.keys[("list", 1, "n")].column) == (4, 14)
    assert at[("long",)] == (6, 7)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("a: 1\nb: 2\na: 3\n", "E108", (3, 1)),
        ("x: {a: 1, a: 2}\n", "E108", (1, 11)),
        ("a: &b 1\n", "E109", (1, 4)),
        ("a: 1\nb: *c\n", "E109", (2, 4)),
        ("<<: {a: 1}\n", "E109", (1, 1)),
        ("a: !!python/object:os.system x\n", "E110", (1, 4)),
        ("a: !mine [1]\n", "E110", (1, 4)),
        ("%YAML 1.1\n---\na: no\n", "E110", (1, 1)),
        ("a: 1\n---\nb: 2\n", "E111", (2, 1)),
        ("[" * 5000, "E112", (1, 41)),
        ("- " * 5000 + "x", "E112", (1, 81)),
        ("? [a, b]\n: c\n", "E113", (1, 3)),
        ("? {a: {b: [c]}}\n: c\nd: e\n", "E113", (1, 3)),
        ("# nothing\n", "E114", (1, 1)),
        ("", "E114", (1, 1)),
        ("a: b: c\n", "E107", (1, 5)),
        ("a: [1, 2\nb: 3\n", "E107", (2, 2)),
        ('cost: "N \\times C"\n', "E106", (1, 7)),
        ('cost: "\\q"\n', "E107", (1, 8)),
    ],
)
def test_refused_yaml(text: str, code: str, place: tuple[int, int]) -> None:
    document = parsed(text)
    assert codes(document) == [code]
    assert (document.findings[0].line, document.findings[0].column) == place


def test_aliases_cannot_blow_up() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
    document = parsed(bomb)
    assert set(codes(document)) == {"E109"}
    assert document.data["i"] == [None] * 9


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        (b"\xef\xbb\xbfa: 1\n", "E103", (1, 1)),
        (b"a: 1\nb: M\xfcller\n", "E102", (2, 5)),
        ("a: é\nb: \xff".encode("utf-16"), "E102", (1, 1)),
        (b"a: 1\n\tb: 2\n", "E105", (2, 1)),
        (b"a: 1\nb: x\x00y\n", "E106", (2, 5)),
        ("a: 1\u20282\n".encode(), "E106", (1, 5)),
        (b"x" * (MAX_BYTES + 1), "E104", (1, 1)),
    ],
)
def test_refused_bytes(tmp_path: Path, content: bytes, code: str, place: tuple[int, int]) -> None:
    (tmp_path / "x.yml").write_bytes(content)
    document = read_yaml(tmp_path / "x.yml", "x.yml")
    assert [(f.code, (f.line, f.column)) for f in document.findings] == [(code, place)]


def test_what_is_no_file_is_a_finding(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yml"):
        document = read_yaml(path, "x.yml")
        assert codes(document) == ["E101"]
        assert not document.readable


@pytest.mark.parametrize("text", ['{"a": 1,}', '{"a": 1} x', "[" * 100_000, "", '{"a": NaN'])
def test_refused_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert codes(read_json(tmp_path / "x.json", "x.json")) == ["E115"]


def test_windows_line_ends_are_fine() -> None:
    document = parsed("a: 1\r\nb:\r\n  - x\r\n")
    assert document.data == {"a": 1, "b": ["x"]}
    assert document.places.values[("b", 0)].line == 3


# --- findings


def test_a_finding_in_its_three_forms() -> None:
    one = finding("E207", "a,b.yml", 'no "x": 100%\nreally', line=3, column=5, path="axes.relation", hint="y")
    assert one.text() == 'a,b.yml:3:5: E207 axes.relation: no "x": 100%\nreally\n    hint: y'
    assert one.github() == (
        '::error file=a%2Cb.yml,line=3,col=5,title=E207::axes.relation: no "x": 100%25%0Areally (hint: y)'
    )
    (back,) = json.loads(render([one], "json"))
    assert Finding(**back) == one
    assert finding("W601", "a", "b").github().startswith("::warning ")
    assert render([], "json") == "[]"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("temporal_similarty", 'did you mean "temporal_similarity"?'),
        ("temporal-similarity", 'did you mean "temporal_similarity"?'),
        ("temporal", 'did you mean "temporal_similarity"?'),
        ("zzz", "there are: irrelevance, temporal_similarity"),
        ("spatial_similarity", "there are: irrelevance, temporal_similarity"),
        ("relevant", "there are: irrelevance, temporal_similarity"),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["temporal_similarity", "irrelevance"]) == hint


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("delta-convolutoin", "delta-convolution"),
        ("delta_convolution", "delta-convolution"),
        ("deltaconvolution", "delta-convolution"),
        ("Delta convolution", "delta-convolution"),
        ("“token-merging”", "token-merging"),
        ("dilated-convolution", None),
        ("token-routing", None),
        ("stochastic-merging", None),
        ("summary", None),
    ],
)
def test_a_name_is_suggested_only_where_it_is_near(word: str, near: str | None) -> None:
    assert nearest(word, ["delta-convolution", "token-merging", "token-dropping"]) == near


def test_one_is_no_plural() -> None:
    assert [counted(n, "finding") for n in (0, 1, 1000)] == ["0 findings", "1 finding", "1,000 findings"]
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("year: 2023", "year: 02023", 'must be a whole number, is "02023"', "leading zeros or separators: 2023"),
        ("year: 2023", "year: '2023'", 'must be a whole number, is "2023"', "write it without quotes"),
        ("value: 1.3,", "value: '1,300.5',", "must be a number", "separators: 1300.5"),
        ("- id: c2", "- id: c02", "does not have the form", 'write "c2"'),
        ("on: 2026-11-22", "on: 2026/11/2", "does not have the form", 'write "2026-11-02"'),
        ("key: bolya", "key: Bolya", "does not have the form", 'write "bolya-2023-token"'),
        ("c2\n    technique: token-m", "c2\n    technique: Token_m", "does not have the form", 'write "token-merging"'),
        ('"2210.09461"', "“2210.09461”", "curly quotes", 'write straight ones, or none: "2210.09461"'),
        ('"Token Merging: Your ViT But Faster"', "“Token: Your ViT”", "not YAML", "“ and ” are no quotes of YAML"),
        ("year: 2023", "<<<<<<< HEAD\nyear: 2023\n=======\nyear: 2024\n>>>>>>> x", "a merge that is not finished",
         "delete the lines that begin with <<<<<<<"),
        ("venue: ICLR 2023", 'venue: "  "', "is blank", "leave the key out"),
        ('"2210.09461"', '"2213.09461"', "there is no month 13", "arxiv.org/abs/"),
    ],
)  # fmt: skip
def test_a_finding_says_its_cause_and_its_cure(atlas: Path, old: str, new: str, message: str, hint: str) -> None:
    base.replace(atlas, PAPER, old, new)
    (said,) = [f for f in load(atlas).findings if f.file == PAPER]
    assert message in said.message
    assert hint in said.hint


@pytest.mark.parametrize(
    "text",
    [
        "title: “Memo” Functions and Machine Learning",
        "title: A “Memo”",
        "title: >-\n  “Why Should I Trust You?”",
        "title: '“Look”'",
        "title: Rock ’n’ roll",
        "title: ’Tis it’",
        "title: „Memo“ Funktionen",
    ],
)
def test_curly_quotes_inside_a_text_are_welcome(atlas: Path, text: str) -> None:
    base.replace(atlas, PAPER, 'title: "Token Merging: Your ViT But Faster"', text)
    assert found(atlas) == []


@pytest.mark.parametrize(
    ("arxiv", "code"),
    [
        ("0704.0001", None), ("1412.1234", None), ("1501.00001", None), ("hep-th/9108001", None), ("cs/0703001", None),
        ("math.GT/0309136", None), ("0703.0001", "E211"), ("cs/0704001", "E211"), ("1412.12345", "E205"),
        ("2012.1234", "E205"), ("9912.00001", "E211"), ("cs/9913001", "E205"), ("hep-th/9107000", "E205"),
    ],
)  # fmt: skip
def test_ids_of_arxiv(atlas: Path, arxiv: str, code: str | None) -> None:
    base.replace(atlas, PAPER, '"2210.09461"', f'"{arxiv}"')
    assert [c for c, file, _ in found(atlas) if file == PAPER] == ([code] if code else [])


@pytest.mark.parametrize("kind", ["variant-of", "generalises", "supersedes"])
def test_two_directed_relations_make_no_circle(atlas: Path, kind: str) -> None:
    base.replace(atlas, ENTRY, "type: composes-with", f"type: {kind}")
    assert found(atlas) == []
    relation = f"relations:\n  - {{type: {kind}, target: token-merging, note: N.}}\n"
    base.put(atlas, DRAFT, base.FILES[DRAFT] + relation)
    findings = load(atlas).findings
    assert [(f.code, f.file, f.path) for f in findings] == [
        ("E313", DRAFT, "relations[0].target"), ("E313", ENTRY, "relations[0].target"),
    ]  # fmt: skip
    assert all("token-merging > token-dropping" in f.hint and "other way round" in f.hint for f in findings)


def test_analogues_have_no_order(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "type: composes-with", "type: analogue-of")
    base.put(atlas, DRAFT, base.FILES[DRAFT] + "relations:\n  - {type: analogue-of, target: token-merging, note: N.}\n")
    assert found(atlas) == []
    (edge,) = edges(load(atlas).entries)
    assert edge.type == "analogue-of"
    assert {edge.source, edge.target} == {"token-merging", "token-dropping"}


def test_what_replaces_an_entry_is_not_superseded_by_it(atlas: Path) -> None:
    base.put(atlas, DRAFT, base.FILES[DRAFT].replace("status: draft", "status: deprecated\nreplaced_by: token-merging"))
    base.replace(atlas, ENTRY, "type: composes-with", "type: supersedes")
    assert found(atlas) == []
    base.put(atlas, ENTRY, base.FILES[ENTRY])
    relation = "relations:\n  - {type: supersedes, target: token-merging, note: N.}\n"
    base.put(atlas, DRAFT, (atlas / DRAFT).read_text() + relation)
    assert [(c, f) for c, f, _ in found(atlas)] == [("E313", DRAFT)] * 2


def test_systems_are_not_composed_of_each_other(atlas: Path) -> None:
    for name, part in (("one", "two"), ("two", "one")):
        text = (
            base.FILES[DRAFT].replace("id: token-dropping", f"id: {name}").replace("Token dropping", f"System {name}")
        )
        base.put(
            atlas, f"taxonomy/techniques/{name}.yml", text.replace("technique\n", "system\n") + f"parts: [{part}]\n"
        )
    assert [c for c, _, _ in found(atlas)] == ["E313", "E313"]


@pytest.mark.parametrize("name", ["Token_Merging.yml", "token-merge.yml", "token merging.yml"])
def test_a_file_that_was_renamed_is_one_finding_that_says_how_to_call_it(atlas: Path, name: str) -> None:
    (atlas / ENTRY).rename((atlas / ENTRY).with_name(name))
    (said,) = load(atlas).findings
    assert (said.code, said.hint) == ("E209", "call the file token-merging.yml: ids are never renamed")


def test_a_paper_that_stands_twice_in_an_entry_is_one_finding(atlas: Path) -> None:
    link = "  - {key: bolya-2023-token, role: analyses}\n"
    base.replace(atlas, DRAFT, link, link * 2)
    assert found(atlas) == [("E311", DRAFT, 17)]


def test_a_paper_whose_file_was_renamed_is_one_finding(atlas: Path) -> None:
    (atlas / PAPER).rename((atlas / PAPER).with_name("bolya-token-merging.yml"))
    (said,) = load(atlas).findings
    assert (said.code, said.hint) == ("E209", "call the file bolya-2023-token.yml: keys are never renamed")


def test_every_code_is_explained_and_every_explained_code_is_used() -> None:
    sources = [p for p in (ROOT / "tools/knowledge").glob("*.py") if p.name != "codes.py"]
    used = {code for p in sources for code in re.findall(r'"([EW]\d{3})"', p.read_text(encoding="utf-8"))}
    assert used == set(CODES)
    for code in CODES.values():
        assert code.code[:2] in FAMILIES
        assert code.wrong != code.right
        assert code.text().startswith(f"{code.code}: {code.title}")


# --- loading


def test_the_small_atlas_is_without_findings(atlas: Path) -> None:
    knowledge = load(atlas)
    assert [str(f) for f in knowledge.findings] == []
    assert list(knowledge.entries) == ["token-dropping", "token-merging"]
    assert list(knowledge.papers) == ["bolya-2023-token"]
    assert [r.scenario for r in knowledge.results["token-merging"]] == ["photos"]
    source = knowledge.sources["token-merging"]
    assert (source.execution, source.stateful, source.class_name) == ("real", False, "TokenMerging")
    assert source.waivers == {"undo": "Nothing is changed, so nothing is undone."}
    assert source.definitions["TokenMerging.apply"].line == 18
    entry = knowledge.entries["token-merging"]
    assert entry.axes["relation"].primary == "spatial_similarity"
    assert entry.axes["relation"].root[1:] == ("irrelevance",)
    assert entry.model_dump(mode="json")["axes"]["scope"] == "core"
    assert entry.added == "2026-11-22"
    assert knowledge.papers["bolya-2023-token"].claims[0].locator.table == "4"
    assert [(p.key, c.id, j.verdict) for p, c, j in knowledge.claims("token-merging")] == [
        ("bolya-2023-token", "c1", "reproduced"),
        ("bolya-2023-token", "c2", "not attempted"),
    ]
    assert [e.id for e in knowledge.entries_of("bolya-2023-token")] == ["token-dropping", "token-merging"]


def test_an_implementation_may_be_a_folder(atlas: Path) -> None:
    text = (atlas / MODULE).read_text()
    (atlas / MODULE).unlink()
    head, _, tail = text.partition("\n\nclass ")
    base.put(atlas, "reference_impls/techniques/token_merging/__init__.py", head)
    base.put(atlas, "reference_impls/techniques/token_merging/driver.py", f"class {tail}")
    knowledge = load(atlas)
    assert [str(f) for f in knowledge.findings] == []
    assert knowledge.sources["token-merging"].definitions["match"].file.endswith("__init__.py")
    assert knowledge.sources["token-merging"].file.endswith("driver.py")


def test_the_root_is_found(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATLAS_ROOT", raising=False)
    assert find_root(atlas / "papers") == atlas
    monkeypatch.setenv("ATLAS_ROOT", str(atlas))
    assert find_root() == atlas
    monkeypatch.setenv("ATLAS_ROOT", str(atlas / "papers"))
    with pytest.raises(FileNotFoundError, match="ATLAS_ROOT"):
        find_root()


def test_loading_needs_no_torch_and_no_numpy(atlas: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tools.knowledge import load, editor, codes\n"
        "knowledge = load(Path(sys.argv[1])); editor.schemas(knowledge.axes)\n"
        "print(len(knowledge.entries), sorted({'torch', 'numpy'} & set(sys.modules)))"
    ).replace("load, editor, codes", "load\nfrom tools.knowledge import editor, codes")
    output = subprocess.run(
        [sys.executable, "-c", program, str(atlas)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout == "2 []\n"


def test_the_axes_of_the_atlas() -> None:
    knowledge = load(ROOT)
    axes = knowledge.axes
    assert [f for f in knowledge.findings if f.file == "taxonomy/axes.yml"] == []
    assert {name: len(axis.terms) for name, axis in axes.axes.items()} == {
        "data_kind": 11,
        "location": 11,
        "granularity": 11,
        "relation": 9,
        "detection_time": 3,
        "detection_mechanism": 18,
        "exploitation": 15,
        "stage": 4,
        "objective": 11,
        "support": 8,
        "adaptation": 4,
        "guarantee": 4,
        "scope": 2,
    }
    assert "inspired by Chen et al. (2023)" in " ".join(axes.about.split())
    assert {a for step in axes.decision_card for a in step.axes} == set(axes.axes)
    for axis in axes.axes.values():
        for text in (*axis.tie_breaks, *axis.rulings):
            for term in re.findall(r"`([a-z_]+)`", text):
                assert any(term in other.terms for other in axes.axes.values()), term


# --- damage: schema and vocabulary


@pytest.mark.parametrize(
    ("file", "old", "new", "code", "offset", "hint"),
    [
        (ENTRY, "summary:", "sumary:", "E201", 0, 'did you mean "summary"?'),
        (ENTRY, "kind: technique\n", "", "E202", None, "for example kind"),
        (ENTRY, "status: stable", "status: done", "E204", 0, ""),
        (ENTRY, "added: 2026-11-22", "added: 22/11/2026", "E205", 0, "for example added"),
        (ENTRY, "name: Token merging", "name:", "E203", 0, "give it a value"),
        (ENTRY, "name: Token merging", "name: 12", "E203", 0, 'write it in quotes: "12"'),
        (ENTRY, "aliases: [ToMe]", "aliases: ToMe", "E203", 0, "start each item"),
        (ENTRY, "function: match", "function: no good", "E205", 0, ""),
        (ENTRY, "role: introduces", "role: introduced", "E204", 0, 'did you mean "introduces"?'),
        (ENTRY, "  relation: [spatial_similarity, irrelevance]", "  relation: {}", "E203", 0, ""),
        (ENTRY, "irrelevance]", "irelevance]", "E207", 0, 'did you mean "irrelevance"?'),
        (ENTRY, "irrelevance]", "spatial_similarity]", "E208", 0, ""),
        (ENTRY, "stage: inference", "stage: [inference, training]", "E208", 0, "keep the term"),
        (ENTRY, "  relation:", "  relations:", "E206", 0, 'did you mean "relation"?'),
        (ENTRY, "id: token-merging", "id: token-mergin", "E209", 0, ""),
        (PAPER, 'arxiv: "2210.09461"', "arxiv: 2210.09461", "E203", 0, 'write it in quotes: "2210.09461"'),
        (PAPER, 'ids: {arxiv: "2210.09461"}', "ids: {}", "E205", 0, ""),
        (PAPER, "key: bolya-2023-token", "key: bolya-2022-token", "E209", 0, ""),
        (PAPER, "year: 2023", "year: 2022", "W602", 0, ""),
        (PAPER, "locator: {section: abstract}", "locator: {}", "E205", 0, ""),
        (PAPER, "locator: {section: abstract}", "locator: {section: 4.1}", "E203", 0, 'write it in quotes: "4.1"'),
        (PAPER, "      tolerance: 0.1\n", "", "E202", -4, ""),
        (PAPER, "tolerance: 0.1", "tolerance: -1", "E205", 0, ""),
        (PAPER, "differs: [data]", "differs: [dates]", "E204", 0, ""),
        (PAPER, "value: 1.3,", 'value: 1.3, printed: "1.31",', "E205", 0, ""),
        (PAPER, "https://github.com", "javascript:alert", "E205", 0, ""),
        (ENTRY, "[Few tokens.]", "['<script>alert(1)</script>']", "E210", 0, ""),
        (ENTRY, "[Few tokens.]", "['[x](java&#115;cript:alert(1))']", "E210", 0, ""),
        (ENTRY, "[Few tokens.]", "['![x](https://example.org/x.png)']", "E210", 0, ""),
        (ENTRY, "[Few tokens.]", "[Costs $5.]", "W603", 0, ""),
        (ENTRY, "dropping none.", "dropping none", "W601", 0, ""),
        (ENTRY, "/entry.schema", "/paper.schema", "W604", 0, ""),
        (PAPER, "Needs no training.", "Needs no training '[unverified]'.", "E506", 0, ""),
    ],
)
def test_a_wrong_value_is_found_where_it_stands(
    atlas: Path, file: str, old: str, new: str, code: str, offset: int | None, hint: str
) -> None:
    line = base.replace(atlas, file, old, new)
    findings = [f for f in load(atlas).findings if f.code == code and f.file == file]
    assert len(findings) == 1, [str(f) for f in load(atlas).findings]
    assert findings[0].line == (1 if offset is None else line + offset) or offset is None
    assert findings[0].hint.startswith(hint)


def test_the_column_is_that_of_the_value_or_of_the_key(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "irrelevance]", "irelevance]")
    base.replace(atlas, ENTRY, "note: Each", "nte: Each")
    assert [(f.code, f.line, f.column, f.path) for f in load(atlas).findings if f.code != "E202"] == [
        ("E201", 36, 51, "relations[0].nte")
    ]
    base.replace(atlas, ENTRY, "nte: Each", "note: Each")
    assert [(f.code, f.line, f.column, f.path) for f in load(atlas).findings] == [("E207", 12, 34, "axes.relation[1]")]


def test_all_findings_of_all_files_come_at_once(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "status: stable", "status: done")
    base.replace(atlas, ENTRY, "added: 2026-11-22", "added: today")
    base.replace(atlas, ENTRY, "{type: composes-with, target", "{type: likes, targt")
    base.replace(atlas, PAPER, "year: 2023", "year: 2022")
    base.put(atlas, "papers/broken-2020-a.yml", "key: [")
    base.put(atlas, "papers/broken-2020-b.yml", b"\xff\xfe")
    assert found(atlas) == [
        ("W602", PAPER, 6),
        ("E107", "papers/broken-2020-a.yml", 1),
        ("E102", "papers/broken-2020-b.yml", 1),
        ("E204", ENTRY, 6),
        ("E205", ENTRY, 7),
        ("E202", ENTRY, 36),
        ("E204", ENTRY, 36),
        ("E201", ENTRY, 36),
    ]


def test_a_broken_file_calls_forth_no_findings_in_others(atlas: Path) -> None:
    for file in (ENTRY, PAPER, "taxonomy/axes.yml", RESULT):
        text = (atlas / file).read_text(encoding="utf-8")
        base.put(atlas, file, "a: [")
        assert [(f.code, f.file) for f in load(atlas).findings] == [("E115" if file == RESULT else "E107", file)]
        base.put(atlas, file, text)
    assert found(atlas) == []


def test_an_empty_folder_is_no_crash(tmp_path: Path) -> None:
    assert found(tmp_path) == [("E101", "taxonomy/axes.yml", 1)]


# --- damage: links, both ways


@pytest.mark.parametrize(
    ("file", "old", "new", "code"),
    [
        (ENTRY, "key: bolya-2023-token", "key: bolya-2023-tokn", "E301"),
        (
            PAPER,
            "technique: token-merging\n    kind: definition",
            "technique: tokenmerging\n    kind: definition",
            "E302",
        ),
        (ENTRY, "target: token-dropping", "target: token-droping", "E303"),
        (ENTRY, "target: token-dropping", "target: token-merging", "E303"),
        (ENTRY, "token_merging:TokenMerging", "tome:TokenMerging", "E304"),
        (ENTRY, "token_merging:TokenMerging", "token_merging:ToMe", "E305"),
        (ENTRY, "implementation: reference_impls.techniques.token_merging:TokenMerging\n", "", "E304"),
        (MODULE, 'id = "token-merging"', 'id = "tome"', "E306"),
        (ENTRY, "function: match", "function: mach", "E307"),
        (DRAFT, "key: bolya-2023-token", "key: other-2023-paper", "E301"),
        (
            PAPER,
            "technique: token-merging\n    kind: definition",
            "technique: token-dropping\n    kind: definition",
            None,
        ),
        (RESULT, '"scenario": "photos"', '"scenario": "digits"', "E310"),
        (RESULT, '"technique": "token-merging"', '"technique": "token-dropping"', "E310"),
        (RESULT, '"budget": "full"', '"budget": "smoke"', "E504"),
        (EXPERIMENTS, '"photos"', '"digits"', "E310"),
        (PAPER, "scenario: photos", "scenario: photo", "E501"),
        (PAPER, "field: baseline", "field: basline", "E503"),
        (PAPER, "points[r=4]", "points[r=5]", "E503"),
        (PAPER, "      unit: times\n", "", "E509"),
        (PAPER, "      differs: [data]\n", "", "E509"),
        (PAPER, "points[r=4].wall_ms.median", "with.[r=4]", "E502"),
        (PAPER, "    quantity: {metric: throughput, value: 1.3, unit: times}\n", "", "E505"),
        (PAPER, CODE, "code: []\n", "E507"),
        (PAPER, "id: c2", "id: c1", "E311"),
        (DRAFT, "name: Token dropping", "name: ToMe", "E311"),
        (ENTRY, "status: stable", "status: stable\nreplaced_by: token-dropping", "E405"),
        (ENTRY, "limits: [Dense outputs need unmerging.]\n", "", "E401"),
        (ENTRY, "  guarantee: empirical\n", "", "E403"),
        (DRAFT, "  stage: both\n", "", "E403"),
        (ENTRY, "role: introduces", "role: applies", "E404"),
        (MODULE, '    execution = "real"\n', "", "E701"),
        (MODULE, 'execution = "real"', "execution = choose()", "E701"),
        (MODULE, 'execution = "real"', 'execution = "fast"', "E702"),
        (MODULE, '"undo":', "3:", "E702"),
        (MODULE, "arXiv 2210.09461", "arXiv", "E703"),
        (MODULE, "def match(x):", "def match(x:", "E704"),
        (MODULE, "TokenMerging(Technique)", "TokenMerging(object)", "E705"),
        (NOTEBOOK, "import reference_impls", "from tools.knowledge import load", "E802"),
        (NOTEBOOK, "import reference_impls", "%matplotlib inline", "E803"),
        (RESULT, '"Agreement, not accuracy."', '"<b>Agreement</b>"', "E210"),
    ],
)
def test_a_broken_link_is_found(atlas: Path, file: str, old: str, new: str, code: str | None) -> None:
    base.replace(atlas, file, old, new)
    findings = load(atlas).findings
    if code is None:
        assert findings == []
    else:
        assert [f.code for f in findings if f.code == code] == [code], [str(f) for f in findings]
        assert all(f.hint or f.code in ("E303", "E311", "E310", "E503", "E704") for f in findings if f.code == code)


@pytest.mark.parametrize("file", [NOTEBOOK, TEST, EXPERIMENTS, RESULT])
def test_a_stable_entry_needs_its_files(atlas: Path, file: str) -> None:
    (atlas / file).unlink()
    assert ("E402", ENTRY, 37) in found(atlas)


@pytest.mark.parametrize("file", [NOTEBOOK, TEST, EXPERIMENTS, MODULE])
def test_code_without_an_entry_is_found(atlas: Path, file: str) -> None:
    stray = file.replace("token_merging", "tokenmerging")
    shutil.copy(atlas / file, atlas / stray)
    findings = load(atlas).findings
    assert [(f.code, f.file) for f in findings] == [("E309", stray)]
    assert findings[0].hint == f'did you mean "token-merging"? Then call the file {Path(file).name}'


def test_helpers_in_the_rooms_are_no_strays(atlas: Path) -> None:
    base.put(atlas, "reference_impls/experiments/shared.py", "def train(): ...\n")
    base.put(atlas, "reference_impls/techniques/__init__.py", "")
    base.put(atlas, "tests/techniques/conftest.py", "")
    assert found(atlas) == []


def test_a_result_without_an_entry_is_found(atlas: Path) -> None:
    base.put(atlas, "reference_impls/results/tome/photos.json", record(technique="tome").to_json())
    assert [f.code for f in load(atlas).findings] == ["E309"]


def test_a_claim_needs_its_entry_to_name_the_paper(atlas: Path) -> None:
    text = base.FILES[PAPER].replace("bolya-2023-token", "bolya-2023-second").replace("2210.09461", "2210.09462")
    base.put(atlas, "papers/bolya-2023-second.yml", text)
    assert [(f.code, f.path) for f in load(atlas).findings] == [
        ("E308", "claims[0].technique"),
        ("E308", "claims[1].technique"),
    ]


def test_identifiers_of_papers_are_unique(atlas: Path) -> None:
    text = base.FILES[PAPER].partition("claims:")[0].replace("bolya-2023-token", "bolya-2023-second")
    base.put(atlas, "papers/bolya-2023-second.yml", text)
    assert [(f.code, f.file, f.path) for f in load(atlas).findings] == [("E311", PAPER, "ids.arxiv")]


def test_replacements_must_end(atlas: Path) -> None:
    base.replace(atlas, DRAFT, "status: draft", "status: deprecated\nreplaced_by: token-merging")
    assert found(atlas) == []
    base.replace(atlas, ENTRY, "status: stable", "status: deprecated\nreplaced_by: token-dropping")
    assert [f.code for f in load(atlas).findings] == ["E312", "E312"]


def test_files_that_do_not_belong_are_found(atlas: Path) -> None:
    base.put(atlas, "papers/bolya.yaml", "x")
    base.put(atlas, "reference_impls/results/photos.json", "{}")
    base.put(atlas, "papers/.hidden", "x")
    assert [f.code for f in load(atlas).findings] == ["E212", "E212"]


def test_a_record_measured_on_a_gpu_says_so_in_its_name(atlas: Path) -> None:
    base.put(atlas, RESULT.replace(".json", ".cuda.json"), record(device="cuda:0").to_json())
    knowledge = load(atlas)
    assert knowledge.findings == []
    assert [r.device for r in knowledge.results["token-merging"]] == ["cpu", "cuda:0"]
    base.put(atlas, RESULT.replace(".json", ".cuda.json"), record().to_json())
    assert [(f.code, f.path) for f in load(atlas).findings] == [("E310", "device")]


def test_a_bad_record_is_placed(atlas: Path) -> None:
    line = base.replace(atlas, RESULT, '"cores": 2', '"cores": "two"')
    (only,) = [f for f in load(atlas).findings if f.code == "E203"]
    assert (only.file, only.line, only.path) == (RESULT, line, "machine.cores")


def test_scenarios_are_read_wherever_they_are_made() -> None:
    outside = 'SCENARIOS = (Scenario("a", run=f), harness.Scenario(name="b"), Scenario(NAME))\n'
    inside = 'def more():\n    return Scenario("c")\nSCENARIOS = (Scenario("a"), more())\n'
    assert scenarios(outside, ast.parse(outside)) == {"a", "b"}
    assert scenarios(inside, ast.parse(inside)) == {"a", "c"}


# --- prose


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "$a < b$",
        "`<b>`",
        "``x `<b>` y``",
        "<https://example.org>",
        "[x](https://e.org)",
        "[x](../y.md#z)",
        "a & b",
        "data: none",
        "```\n<b>\n```",
        r"cost \$5",
        "[x](mailto:a@b.c)",
    ],
)
def test_good_prose(text: str) -> None:
    assert list(text_problems(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "<b>",
        "</p",
        "<!-- x -->",
        "<?x",
        "\\`<img src=x>\\`",
        "`\n\n<script>\n\n`",
        "[x](JavaScript:alert(1))",
        "[x]( javascript:a)",
        "[x]: javascript:a",
        "<javascript:a>",
        "[x](data:text/html,a)",
        "[x](jav&#x61;script:a)",
        "[x](java\\script:a)",
        "$<b>$",
    ],
)
def test_bad_prose(text: str) -> None:
    assert "E210" in {problem.code for problem in text_problems(text)}


# --- claims


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("baseline.macs", 4e9),
        ("points[r=8].quality.value", 0.8),
        ("baseline.wall_ms.median / points[r=8].wall_ms.median", 100 / 60),
        ("points[r=8].quality.value - baseline.quality.value", -0.1),
        ("controls[name=random merging].points[r=4].quality.value", 0.7),
        ("redundancy.null[white noise]", 0.12),
        ("redundancy.where[block 0]", 0.9),
    ],
)
def test_fields(field: str, value: float) -> None:
    assert parse_field(field).value(record()) == pytest.approx(value)


@pytest.mark.parametrize(
    "field",
    [
        "",
        "points[0].macs",
        "points[-1].macs",
        "a..b",
        "a[",
        "a[r=]",
        "a / b / c",
        "a/b",
        "a +  b",
        ".a",
        "1",
        "a - ",
    ],
)
def test_bad_fields(field: str) -> None:
    with pytest.raises(FieldError):
        parse_field(field)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("points[r=9].macs", "there are: r=4; r=8"),
        ("points[r=true].macs", "no point with r=true"),
        ("points.macs", "no field"),
        ("baseline.quality", "is no number"),
        ("baseline.samples", "is absent"),
        ("baseline.qualty.value", 'did you mean "quality"'),
        ("baseline[r=1].macs", "no list"),
        ("points[name=x].macs", "no point"),
        ("controls[about=Partners drawn at random.].points[r=4].knobs.q", 'no "q"'),
    ],
)
def test_fields_that_are_not_there(field: str, says: str) -> None:
    with pytest.raises(FieldAbsent, match=re.escape(says)):
        parse_field(field).value(record())


def test_a_ratio_to_nothing_is_no_number() -> None:
    none = record(baseline={**record().baseline.model_dump(), "samples": 0})
    with pytest.raises(FieldAbsent, match="is 0"):
        parse_field("points[r=4].macs / baseline.samples").value(none)


SPEED_UP = "baseline.wall_ms.median / points[r=4].wall_ms.median"  # 1.25
LOSS = "points[r=8].quality.value - baseline.quality.value"  # -0.1


def test_a_plain_number_falls_short_only_where_the_check_says_what_no_effect_is() -> None:
    check = {"scenario": "photos", "field": "baseline.macs", "target": 5e9, "tolerance": 1e8, "better": "higher"}
    assert judge(_claim(check=check), [record()]).verdict == "contradicted"
    assert judge(_claim(check=check | {"neutral": 0}), [record()]).verdict == "partly"
    assert judge(_claim(check=check | {"neutral": 4.5e9}), [record()]).verdict == "contradicted"


def test_where_task_data_and_model_differ_the_reason_says_so() -> None:
    check = {"scenario": "photos", "field": SPEED_UP, "target": 1.3, "tolerance": 0.1, "better": "higher"}
    for differs, verdict in (
        (["task", "data"], "reproduced"),
        (["task", "data", "model"], "same effect in another setting"),
    ):
        judgement = judge(_claim(check=check | {"differs": differs}), [record()])
        assert judgement.verdict == verdict
        assert judgement.attempted
    assert "task, data and model are others than the paper's" in judgement.because


def test_both_sides_have_the_unit_of_the_check() -> None:
    check = {"scenario": "photos", "field": LOSS, "target": -10, "tolerance": 0.5, "unit": "percentage points"}
    judgement = judge(_claim(check=check), [record()])
    assert (judgement.verdict, judgement.value) == ("reproduced", pytest.approx(-10))
    assert "we measure -10 percentage points, the target is -10 ± 0.5" in judgement.because
    saved = check | {
        "field": "1 - points[r=4].macs / baseline.macs",
        "target": 30,
        "unit": "percent",
        "better": "higher",
    }
    assert judge(_claim(check=saved), [record()]).verdict == "partly", "a share of 0 is no effect"


@pytest.mark.parametrize(
    ("value", "printed", "text"),
    [
        (68.27, None, "68.27"),
        (0.4, "0.40", "0.40"),
        (33792, None, "33792"),
        (-2.11, None, "-2.11"),
        (1e-7, None, "0.0000001"),
    ],
)
def test_a_number_of_a_paper_keeps_its_digits(value: float, printed: str | None, text: str) -> None:
    assert Quantity(metric="m", value=float(value), unit="percent", printed=printed).text == text


def test_no_verdict_without_a_check_or_a_result() -> None:
    check = {"scenario": "photos", "field": SPEED_UP, "target": 1, "tolerance": 0}
    assert judge(_claim(), [record()]).verdict == "not attempted"
    assert judge(_claim(check=check), [record("other")]).verdict == "not attempted"


def _claim(**more: Any) -> Claim:
    fields = {
        "id": "c1",
        "technique": "token-merging",
        "kind": "speedup",
        "statement": "Fast.",
        "locator": {"table": 4},
    }
    return Claim.model_validate(fields | more)


# --- schemas for editors


def test_the_schemas_are_fresh() -> None:
    stale = editor.stale(ROOT, load(ROOT, check=False).axes)
    assert stale == [], "run `redundancy schema` and commit what it writes"


def test_stale_schemas_are_written(tmp_path: Path) -> None:
    axes = load(ROOT, check=False).axes
    assert set(editor.write(tmp_path, axes)) == set(editor.schemas(axes))
    assert editor.write(tmp_path, axes) == []


def test_every_field_has_a_description_and_an_example() -> None:
    for model in editor.MODELS.values():
        schema = model.model_json_schema(by_alias=True)
        for name, part in {"": schema, **schema.get("$defs", {})}.items():
            for key, field in part.get("properties", {}).items():
                assert field.get("description"), f"{name}.{key}"
                assert field.get("examples"), f"{name}.{key}"


@pytest.mark.parametrize("kind", ["entry", "paper", "axes", "record"])
def test_another_validator_agrees_on_good_files(atlas: Path, kind: str) -> None:
    files = {"entry": [ENTRY, DRAFT], "paper": [PAPER], "axes": ["taxonomy/axes.yml"], "record": [RESULT]}[kind]
    for file in files:
        assert _independent(kind, _plain(atlas / file)) == [], file


@pytest.mark.parametrize(
    ("kind", "file", "old", "new"),
    [
        ("entry", ENTRY, "irrelevance]", "irelevance]"),
        ("entry", ENTRY, "stage: inference", "stage: [inference, training]"),
        ("entry", ENTRY, "  relation:", "  relations:"),
        ("entry", ENTRY, "summary:", "sumary:"),
        ("entry", ENTRY, "status: stable", "status: done"),
        ("paper", PAPER, 'arxiv: "2210.09461"', "arxiv: 2210.09461"),
        ("paper", PAPER, "technique: token-merging\n    kind: definition", "kind: definition"),
        ("axes", "taxonomy/axes.yml", "about: >-", "abut: >-"),
    ],
)
def test_another_validator_agrees_on_bad_files(atlas: Path, kind: str, file: str, old: str, new: str) -> None:
    base.replace(atlas, file, old, new)
    assert _independent(kind, _plain(atlas / file)) != []
    assert any(f.file == file for f in load(atlas).findings)


def _plain(path: Path) -> Any:
    return read_yaml(path, path.name).data


def _independent(kind: str, data: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / editor.FOLDER / f"{kind}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(data)]


def test_a_record_survives_its_own_json() -> None:
    assert Record.model_validate_json(record().to_json()) == record()


# --- knobs

KNOBS = """    knobs: ClassVar = {
        "r": Integer(8, low=0, optional=True, listed=True, about="tokens merged per block"),
        "threshold": Number(None, low=-1, high=1, optional=True, about="least cosine"),
        "share": Number(0.5, low=0, high=1, low_open=True, about="a share"),
        "local": Choice("full", options=("full", "coarse"), about="where"),
        "proportional": Switch(True, about="weigh"),
        "table": Given(None, about="a table"),
    }
"""


def knobs_of(root: Path) -> list[tuple[object, ...]]:
    return [(k.name, k.kind, k.default, k.takes) for k in load(root).sources["token-merging"].knobs]


def test_knobs_are_read_without_importing(atlas: Path) -> None:
    base.replace(atlas, MODULE, '    execution = "real"\n', f'    execution = "real"\n{KNOBS}')
    assert load(atlas).findings == []
    assert knobs_of(atlas) == [
        ("r", "integer", 8, "at least 0, or a list with one for each part, or None"),
        ("threshold", "number", None, "-1 to 1, or None"),
        ("share", "number", 0.5, "above 0, at most 1"),
        ("local", "choice", "full", "full or coarse"),
        ("proportional", "switch", True, ""),
        ("table", "given", None, ""),
    ]
    shown = CliRunner().invoke(main, ["--root", str(atlas), "show", "token-merging"]).stdout
    assert "threshold" in shown
    assert "least cosine" in shown
    as_json = CliRunner().invoke(main, ["--root", str(atlas), "show", "token-merging", "--json"]).stdout
    assert json.loads(as_json)["knobs"][3] == {
        "name": "local", "kind": "choice", "default": "full", "takes": "full or coarse", "about": "where",
    }  # fmt: skip


def test_knobs_are_inherited(atlas: Path) -> None:
    base.put(atlas, "reference_impls/techniques/token_dropping.py", f"class ShapeTechnique(Technique):\n{KNOBS}")
    old = "from reference_impls.contract import Technique"
    base.replace(atlas, MODULE, old, "from reference_impls.techniques.token_dropping import ShapeTechnique")
    base.replace(atlas, MODULE, "class TokenMerging(Technique)", "class TokenMerging(ShapeTechnique)")
    assert [name for name, *_ in knobs_of(atlas)] == ["r", "threshold", "share", "local", "proportional", "table"]


def test_knobs_of_another_class_are_taken_over_and_changed(atlas: Path) -> None:
    base.put(atlas, "reference_impls/techniques/token_dropping.py", f"class ShapeTechnique(Technique):\n{KNOBS}")
    old = "from reference_impls.contract import Technique"
    base.replace(atlas, MODULE, old, f"{old}\nfrom reference_impls.techniques.token_dropping import ShapeTechnique")
    own = '        **ShapeTechnique.knobs,\n        "share": Number(0.25, low=0, high=1, about="less"),\n'
    base.replace(
        atlas, MODULE, '    execution = "real"\n', f'    execution = "real"\n    knobs: ClassVar = {{\n{own}    }}\n'
    )
    assert [name for name, *_ in knobs_of(atlas)] == ["r", "threshold", "share", "local", "proportional", "table"]
    assert knobs_of(atlas)[2] == ("share", "number", 0.25, "0 to 1")


def test_a_knob_that_is_no_literal_is_found(atlas: Path) -> None:
    text = '    execution = "real"\n    knobs: ClassVar = {\n        "r": Integer(default(), about="r"),\n    }\n'
    line = base.replace(atlas, MODULE, '    execution = "real"\n', text)
    (found,) = load(atlas).findings
    assert (found.code, found.file, found.line, found.path) == ("E701", MODULE, line + 2, "TokenMerging.knobs")
    assert "the knob r" in found.message


def test_a_step_may_be_code_that_techniques_share(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "function: match}", "function: Stem.forward}")
    assert [f.code for f in load(atlas).findings] == ["E307"]
    base.put(atlas, "reference_impls/layers/conv.py", "class Stem:\n    def forward(self, x):\n        return x\n")
    known = load(atlas)
    assert known.findings == []
    assert known.sources["token-merging"].definitions["Stem.forward"].file == "reference_impls/layers/conv.py"
