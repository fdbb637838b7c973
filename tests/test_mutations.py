"""Mutation test of the validator: good files are damaged in one way each, and each damage is found where it is.

A row damages one file of the small atlas of `knowledge_fixture`, and says which codes are then found at which lines: on
the line of the text that was put in, or on the line of another text. Nothing else may be found, anywhere.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, EXPERIMENTS, MODULE, NOTEBOOK, PAPER, RESULT, TEST
from tools.knowledge import load
from tools.knowledge.codes import CODES

HARD_CASES, OPEN_PROBLEMS = "taxonomy/hard_cases.yml", "taxonomy/open_problems.yml"
NEXT_YEAR = datetime.date.today().year + 2
MODELINE = "# yaml-language-server: $schema=../../tools/knowledge/schemas/entry.schema.json\n"
GOOD = {
    "tests/test_invariants.py": "def test_another_entry():\n    pass\n",
    HARD_CASES: """# yaml-language-server: $schema=../tools/knowledge/schemas/hard_cases.schema.json
cases:
  - id: dropping-or-merging
    case: Dropped tokens that are fused into one.
    entries: [token-dropping]
    papers: [bolya-2023-token]
    axis: relation
    terms: [irrelevance, spatial_similarity]
    ruling: Irrelevance, since the rank decides.
""",
    OPEN_PROBLEMS: """# yaml-language-server: $schema=../tools/knowledge/schemas/statements.schema.json
about: The project's own reading.
statements:
  - id: stacking
    title: Savings that stack
    statement: Nobody knows how savings of several kinds combine.
    support:
      - {entry: token-merging}
      - {paper: bolya-2023-token}
      - {claim: "bolya-2023-token#c1"}
      - {result: token-merging/photos}
""",
    "taxonomy/techniques/token-pruning.yml": f"""{MODELINE}id: token-pruning
kind: technique
name: Token pruning
status: draft
added: 2026-11-22
axes:
  location: tokens
  granularity: token
  relation: irrelevance
  exploitation: drop
  stage: inference
  scope: core
summary: Drops tokens by rank.
papers:
  - {{key: bolya-2023-token, role: analyses}}
relations:
  - {{type: generalises, target: token-dropping, note: Any rank will do.}}
""",
}
PRUNING = "taxonomy/techniques/token-pruning.yml"


@dataclass(frozen=True)
class Damage:
    """`old`, which stands once in `file`, becomes `new`; then `codes` are found on the line of `at`."""

    kind: str
    file: str
    old: str
    new: str
    codes: str
    at: str = ""
    """A text on the line of the findings; `new` itself by default."""
    also: dict[str, str] = field(default_factory=dict)
    """Findings in other files: file -> code."""


def damage(kind: str, file: str, old: str, new: str, codes: str, at: str = "", **also: str) -> Damage:
    return Damage(kind, file, old, new, codes, at, also)


DAMAGES = [
    # syntax and encoding
    damage("tab indentation", ENTRY, "  location: tokens", "\tlocation: tokens", "E105"),
    damage("tab inside a line", PAPER, "year: 2023", "year:\t2023", "E105"),
    damage("control character", PAPER, "similar tokens of", "similar\x07tokens of", "E106"),
    damage("invisible line break", PAPER, "similar tokens of", "similar\u2028tokens of", "E106"),
    damage("escape in double quotes", ENTRY, "cost_model: N^2 C \\to", 'cost_model: "N \\t C" #', "E106"),
    damage("unquoted colon", PAPER, 'title: "Token Merging: Your ViT But Faster"', "title: Token: Your: ViT", "E107"),
    damage("unclosed bracket", ENTRY, "aliases: [ToMe]", "aliases: [ToMe", "E107", at="status: stable"),
    damage("unclosed quote", DRAFT, "name: Token dropping", 'name: "Token dropping', "E107"),
    damage("wrong indentation", DRAFT, "  relation: irrelevance", "   relation: irrelevance", "E107"),
    damage("duplicate key", DRAFT, "kind: technique", "kind: technique\nstatus: draft", "E108",
           at="status: draft\nadded"),
    damage("duplicate key in a mapping", PAPER, "{family: Bolya, given: Daniel}", "{family: B, family: C}", "E108"),
    damage("anchor", DRAFT, "summary: Leaves", "summary: &s Leaves", "E109"),
    damage("alias", DRAFT, "summary: Leaves out the tokens that get little attention.", "summary: *s", "E109"),
    damage("merge key", PAPER, "  - {family: Bolya, given: Daniel}", "  - {<<: {family: B}, given: D}", "E109"),
    damage("python tag", PAPER, "year: 2023", "year: !!python/object:os.system 2023", "E110"),
    damage("directive", DRAFT, "# yaml-language-server: ", "%YAML 1.1\n---\n# ", "E110 W604", at="%YAML"),
    damage("second document", DRAFT, "summary: Leaves", "---\nsummary: Leaves", "E111 E202 E202", at=""),
    damage("nested too deep", PAPER, "year: 2023", "year: " + "[" * 60 + "]" * 60, "E112"),
    damage("list as a key", PAPER, "year: 2023", "? [year]\n: 2023", "E113", at="? [year]"),
    damage("unfinished merge", DRAFT, "status: draft\n", "<<<<<<< HEAD\nstatus: draft\n=======\nstatus: stable\n"
           ">>>>>>> mine\n", "E117", at="<<<<<<<"),
    damage("end of an unfinished merge", DRAFT, "status: draft\n", "status: draft\n>>>>>>> mine\n", "E117", at=">>>>"),
    damage("middle of an unfinished merge", DRAFT, "status: draft\n", "status: draft\n=======\n", "E117", at="====="),
    damage("curly quotes", PAPER, '"2210.09461"', "“2210.09461”", "E118"),
    damage("curly quotes around a colon", PAPER, '"Token Merging: Your ViT But Faster"', "“Token Merging: Your ViT”",
           "E107"),
    damage("curly quotes around a comma", ENTRY, "aliases: [ToMe]", "aliases: [“ToMe, merging”]", "E118 E118"),
    damage("curly quotes around a key", DRAFT, "name: Token", "“name”: Token", "E118 E202", at=""),
    # schema and vocabulary
    damage("leading zero", PAPER, "year: 2023", "year: 02023", "E203"),
    damage("thousands apart", PAPER, "target: 1.3", "target: 1,300", "E203"),
    damage("leading zero in an id", PAPER, "- id: c2", "- id: c02", "E205"),
    damage("blank name", DRAFT, "name: Token dropping", 'name: "  "', "E205"),
    damage("empty name", DRAFT, "name: Token dropping", 'name: ""', "E205"),
    damage("blank alias", ENTRY, "aliases: [ToMe]", 'aliases: [ToMe, " "]', "E205"),
    damage("blank locator", PAPER, "locator: {section: abstract}", 'locator: {section: "\u00a0"}', "E205"),
    damage("alias twice", ENTRY, "aliases: [ToMe]", "aliases: [ToMe, tome]", "E215"),
    damage("name as an alias", ENTRY, "aliases: [ToMe]", "aliases: [ToMe, Token merging]", "E311"),
    damage("day of one digit", DRAFT, "added: 2026-11-22", "added: 2026/1/2", "E205"),
    damage("reason twice", ENTRY, "when_to_use: [Many tokens are alike.]",
           "when_to_use:\n  - Many tokens are alike.\n  - Few are.\n  - Many  tokens are alike.", "E215",
           at="  - Many  tokens"),
    damage("author twice", PAPER, "  - {family: Bolya, given: Daniel}\n",
           "  - {family: Bolya, given: Daniel}\n  - {given: Daniel, family: Bolya}\n", "E215", at="  - {given: Dan"),
    damage("entry twice in a hard case", HARD_CASES, "entries: [token-dropping]",
           "entries: [token-dropping, token-dropping]", "E215"),
    damage("arXiv id of month 13", PAPER, '"2210.09461"', '"2213.09461"', "E205"),
    damage("arXiv id of month 0", PAPER, '"2210.09461"', '"2200.09461"', "E205"),
    damage("old arXiv id of month 0", PAPER, '"2210.09461"', '"cs/0000001"', "E205"),
    damage("arXiv id to come", PAPER, '"2210.09461"', f'"{NEXT_YEAR % 100}01.09461"', "E211"),
    damage("arXiv id before arXiv", PAPER, '"2210.09461"', '"cs/9007001"', "E211"),
    damage("new arXiv id in the old time", PAPER, '"2210.09461"', '"0601.0946"', "E211"),
    damage("arXiv id of too few digits", PAPER, '"2210.09461"', '"2210.0946"', "E205"),
    damage("arXiv id of number 0", PAPER, '"2210.09461"', '"2210.00000"', "E205"),
    damage("day before the atlas", DRAFT, "added: 2026-11-22", "added: 1926-11-22", "E211"),
    damage("day of reading before the atlas", PAPER, "on: 2026-11-22", "on: 0001-01-01", "E211"),
    damage("year before there were computers", PAPER, "year: 2023", "year: 1923", "E211 W602"),
    damage("day of a record that is none", RESULT, '"date": "2026-11-22"', '"date": "2026-13-45"', "E211"),
    damage("typing error in a key", DRAFT, "summary: Leaves", "sumary: Leaves", "E201 E202", at=""),
    damage("key at the wrong depth", PAPER, "locator: {table: 4, file: README.md}", "table: 4", "E201 E202"),
    damage("unit missing", PAPER, "value: 1.3, unit: times}", "value: 1.3}", "E202"),
    damage("locator missing", PAPER, "    locator: {section: abstract}\n", "", "E202", at="  - id: c2"),
    damage("locator empty", PAPER, "locator: {section: abstract}", "locator: {}", "E205"),
    damage("text for a number", PAPER, "value: 1.3,", "value: about 1.3,", "E203"),
    damage("number for a text", PAPER, 'arxiv: "2210.09461"', "arxiv: 2210.09461", "E203"),
    damage("text for a list", ENTRY, "when_to_use: [Many tokens are alike.]", "when_to_use: Many are alike.", "E203"),
    damage("list for a text", DRAFT, "name: Token dropping", "name: [Token, dropping]", "E203"),
    damage("text for a yes or no", PAPER, "official: true", 'official: "true"', "E203"),
    damage("empty value", DRAFT, "name: Token dropping", "name:", "E203"),
    damage("swapped types", PAPER, "year: 2023\nvenue: ICLR 2023", "year: ICLR 2023\nvenue: 2023", "E203 E203", at=""),
    damage("status that is none", DRAFT, "status: draft", "status: done", "E204"),
    damage("kind of claim that is none", PAPER, "kind: speedup", "kind: speed", "E204"),
    damage("role that is none", DRAFT, "role: analyses", "role: inspires", "E204"),
    damage("relation that is none", ENTRY, "type: composes-with", "type: composes_with", "E204"),
    damage("day in another form", DRAFT, "added: 2026-11-22", "added: 22.11.2026", "E205"),
    damage("day that is not on the calendar", DRAFT, "added: 2026-11-22", "added: 2026-02-30", "E205"),
    damage("malformed DOI", PAPER, 'ids: {arxiv: "2210.09461"}', 'ids: {arxiv: "2210.09461", doi: "10.1/x y"}', "E205"),
    damage("DOI as an address", PAPER, 'arxiv: "2210.09461"', 'doi: "https://doi.org/10.1145/3564663"', "E205"),
    damage("malformed arXiv id", PAPER, '"2210.09461"', '"2210.9461v"', "E205"),
    damage("address without scheme", PAPER, "url: https://github.com", "url: github.com", "E205"),
    damage("summary too long", DRAFT, "Leaves out the tokens", "Leaves out " + "very " * 30 + "many tokens", "E205"),
    damage("year before computers", PAPER, "year: 2023", "year: 203", "E205"),
    damage("tolerance below zero", PAPER, "tolerance: 0.1", "tolerance: -0.1", "E205"),
    damage("claim id of another form", PAPER, "- id: c2", "- id: claim2", "E205"),
    damage("look-alike letter in an id", DRAFT, "id: token-dropping", "id: t\u043eken-dropping", "E205 E213"),
    damage("look-alike letter in a key", PAPER, "{table: 4,", "{t\u0430ble: 4,", "E201"),
    damage("look-alike letter in a name", DRAFT, "name: Token dropping", "name: T\u043eken dropping", "E213"),
    damage("invisible letter in a title", PAPER, "Your ViT", "Your V\u200biT", "E213"),
    damage("axis that is none", DRAFT, "  relation: irrelevance", "  relations: irrelevance", "E206 E403", at=""),
    damage("term that is none", DRAFT, "relation: irrelevance", "relation: irrelevant", "E207"),
    damage("term of another axis", ENTRY, "location: tokens", "location: token", "E207"),
    damage("two terms where one fits", ENTRY, "stage: inference", "stage: [inference, training]", "E208"),
    damage("term twice", ENTRY, "data_kind: [image, video]", "data_kind: [image, image]", "E208"),
    damage("term that is none, in a paper", PAPER, "exploitation: merge", "exploitation: merging", "E207"),
    damage("raw HTML", ENTRY, "In each block", "<b>In</b> each block", "E210"),
    damage("script", ENTRY, "In each block", "<script>alert(1)</script> In each", "E210"),
    damage("image with a handler", PAPER, "Needs no training.", "'<img src=x onerror=alert(1)>'", "E210"),
    damage("javascript link", PAPER, "Needs no training.", "'See [it](javascript:alert(1)).'", "E210"),
    damage("javascript link, written in entities", PAPER, "Needs no", "'[x](java&#115;cript:alert(1))' #", "E210"),
    damage("data link", PAPER, "Needs no training.", "'See [it](data:text/html,x).'", "E210"),
    damage("image from elsewhere", PAPER, "Needs no", "'![x](https://example.org/x.png)' #", "E210"),
    damage("year to come", PAPER, "year: 2023", f"year: {NEXT_YEAR}", "E211 W602"),
    damage("day to come", PAPER, "on: 2026-11-22", f"on: {NEXT_YEAR}-01-01", "E211"),
    damage("unknown command in a formula", ENTRY, "where $s < t$", "where $\\Norm{s} < t$", "E214"),
    damage("braces of a formula", ENTRY, "cost_model: N^2 C", "cost_model: N^{2 C", "E214"),
    # links between files
    damage("dangling paper", DRAFT, "key: bolya-2023-token", "key: bolya-2023-tokens", "E301"),
    damage("dangling entry of a claim", PAPER, "- id: c2\n    technique: token-merging",
           "- id: c2\n    technique: tome", "E302", at="technique: tome"),
    damage("dangling relation", ENTRY, "target: token-dropping", "target: token-droping", "E303"),
    damage("relation to itself", ENTRY, "target: token-dropping", "target: token-merging", "E303"),
    damage("module of another name", ENTRY, "techniques.token_merging:TokenMerging", "techniques.tome:ToMe", "E304"),
    damage("class that is not there", ENTRY, "token_merging:TokenMerging", "token_merging:Tokenmerging", "E305"),
    damage("id of another entry in the class", MODULE, 'id = "token-merging"', 'id = "tome"', "E306"),
    damage("function that is not there", ENTRY, "function: match}", "function: mtach}", "E307"),
    damage("alias that is taken", DRAFT, "name: Token dropping", "name: Token dropping\naliases: [tome]", "", at="",
           **{ENTRY: "E311"}),
    damage("claim id twice", PAPER, "- id: c2", "- id: c1", "E311",
           at="- id: c1\n    technique: token-merging\n    kind: definition"),
    damage("replaced by itself", DRAFT, "status: draft", "status: deprecated\nreplaced_by: token-dropping", "E303",
           at="replaced_by"),
    damage("entries that generalise each other", DRAFT, "papers:", "relations:\n  - {type: generalises, target: "
           "token-pruning, note: N.}\npapers:", "E313", at="target: token-pruning", **{PRUNING: "E313"}),
    damage("variant of what it generalises", PRUNING, "relations:\n", "relations:\n  - {type: variant-of, target: "
           "token-dropping, note: N.}\n", "E313 E313", at=""),
    damage("the same said from both sides", DRAFT, "papers:", "relations:\n  - {type: variant-of, target: "
           "token-pruning, note: N.}\npapers:", "", at=""),
    damage("hard case of no entry", HARD_CASES, "[token-dropping]", "[token-droping]", "E314"),
    damage("hard case of no term", HARD_CASES, "[irrelevance,", "[irrelevant,", "E207"),
    damage("statement without support", OPEN_PROBLEMS, "#c1", "#c9", "E314"),
    damage("support of two kinds", OPEN_PROBLEMS, "{entry: token-merging}", "{entry: token-merging, paper: a-2020-b}",
           "E205"),
    damage("support from no result", OPEN_PROBLEMS, "token-merging/photos", "token-merging/photo", "E314"),
    # completeness
    damage("stable without limits", ENTRY, "limits: [Dense outputs need unmerging.]\n", "", "E401",
           at="status: stable"),
    damage("stable without an axis", ENTRY, "  guarantee: empirical\n", "", "E403", at="axes:"),
    damage("stable without the paper that introduces it", ENTRY, "role: introduces", "role: extends", "E404",
           at="papers:"),
    damage("replacement of what is in use", DRAFT, "status: draft", "status: draft\nreplaced_by: token-pruning", "E405",
           at="replaced_by"),
    damage("invariant that nobody tried", DRAFT, "papers:", "invariant: Nothing changes.\npapers:", "E407",
           at="invariant:"),
    damage("reason without an invariant", DRAFT, "papers:", "invariant_untested: It needs data.\npapers:", "E407",
           at="invariant_untested:"),
    damage("reason beside a test", ENTRY, "limits:", "invariant: Nothing changes.\ninvariant_untested: So.\nlimits:",
           "E407", at="invariant_untested:"),
    # claims and numbers
    damage("check of no scenario", PAPER, "scenario: photos", "scenario: fotos", "E501"),
    damage("check that cannot be read", PAPER, "field: baseline.wall_ms.median /", "field: baseline..median /", "E502"),
    damage("check of no number", PAPER, "points[r=4].wall_ms", "points[r=5].wall_ms", "E503"),
    damage("speed-up without a number", PAPER, "    quantity: {metric: throughput, value: 1.3, unit: times}\n", "",
           "E505", at="  - id: c1"),
    damage("unverified statement", PAPER, "Needs no training.", "Needs no training [unverified].", "E506"),
    damage("file of no repository", PAPER, "code:\n  - {url: https://github.com/facebookresearch/ToMe, official: true, "
           "licence: CC-BY-NC-4.0}\n", "", "E507", at="file: README.md"),
    # style
    damage("summary that is no sentence", DRAFT, "summary: Leaves", "summary: leaves", "W601"),
    damage("year of the key", PAPER, "year: 2023", "year: 2022", "W602"),
    damage("formula that is not closed", ENTRY, "where $s < t$", "where $s < t", "W603", at="where $s < t and"),
    damage("no modeline", DRAFT, "# yaml-language-server: ", "# ", "W604"),
    # code and notebooks
    damage("execution that is none", MODULE, 'execution = "real"', 'execution = "fast"', "E702"),
    damage("execution that is no literal", MODULE, 'execution = "real"', "execution = str()", "E701"),
    damage("class on no contract", MODULE, "class TokenMerging(Technique)", "class TokenMerging(object)", "E705"),
    damage("code under a markdown cell", NOTEBOOK, "# %%\nimport", "import", "E804", at="import"),
    damage("code under a markdown cell, indented", NOTEBOOK, "\n# %%\nimport", "if True:\n    import", "E804",
           at="if True"),
    damage("marker without its space", NOTEBOOK, "# %% [markdown]", "# %%[markdown]", "E801"),
    damage("marker without its brackets", NOTEBOOK, "# %% [markdown]", "# %% markdown", "E801"),
    damage("notebook that is no Python", NOTEBOOK, "import reference_impls", "import reference_impls\nx = (1,", "E704",
           at="x = (1,"),
    damage("notebook that cannot be run", NOTEBOOK, "import reference_impls", "x = 1\nreturn x", "E704",
           at="return x"),
    damage("unfinished merge in a notebook", NOTEBOOK, "import reference_impls",
           "<<<<<<< HEAD\nimport a\n=======\nimport b\n>>>>>>> mine", "E117", at="<<<<<<<"),
    damage("unfinished merge in a test", TEST, "CASES = None", "<<<<<<< HEAD\nCASES = 1\n=======\nCASES = 2\n>>>>>>> m",
           "E117", at="<<<<<<<"),
    damage("test that is no Python", TEST, "CASES = None", "CASES = None None", "E704"),
    damage("test without cases", TEST, "CASES = None", "C = None", "", **{ENTRY: "E402"}),
    damage("experiments without scenarios", EXPERIMENTS, "SCENARIOS = (", "OTHERS = (", "", **{ENTRY: "E402"}),
    damage("stand-in", EXPERIMENTS, "from reference", "# TO DO (redundancy new)\nfrom reference", "",
           **{ENTRY: "E406"}),
    damage("waiver without a reason", MODULE, '"Nothing is changed, "\n                       "so nothing is undone."',
           '"No need."', "E702", at="waivers"),
    damage("notebook with the tools", NOTEBOOK, "import reference_impls", "import tools.cli", "E802"),
    damage("notebook with a magic", NOTEBOOK, "import reference_impls", "%matplotlib inline", "E803"),
]  # fmt: skip


def whole(file: str, change: Callable[[bytes], bytes], code: str, line: int = 1) -> tuple[str, str, str, int, Callable]:
    return (f"{Path(file).stem} {code}", file, code, line, change)


WHOLE = [
    whole(PAPER, lambda text: b"\xef\xbb\xbf" + text, "E103"),
    whole(PAPER, lambda text: text.replace(b"\n", b"\r\n"), "E116"),
    whole(PAPER, lambda text: text.replace(b"Daniel", b"D\xe4niel"), "E102", line=5),
    whole(PAPER, lambda text: text + b"# padding " * 100_000, "E104"),
    whole(HARD_CASES, lambda text: b"# nothing yet\n", "E114"),
    whole(RESULT, lambda text: text.replace(b"{", b"{,", 1), "E115"),
    whole(RESULT, lambda text: text.replace(b'"budget": "full"', b'"budget": "smoke"'), "E504", line=6),
]
MISPLACED = [
    ("papers/notes.txt", "E212"),
    ("reference_impls/techniques/lost.py", "E309"),
    ("notebooks/lost.py", "E309"),
    ("tests/techniques/test_lost.py", "E309"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = base.write(tmp_path_factory.mktemp("good") / "atlas")
    for file, text in GOOD.items():
        base.put(root, file, text)
    return root


@pytest.fixture
def atlas(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "atlas"))


def found(root: Path) -> list[tuple[str, str, int]]:
    return sorted((f.file, f.code, f.line) for f in load(root).findings)


def test_the_undamaged_atlas_has_no_finding(good: Path) -> None:
    assert load(good).findings == []


@pytest.mark.parametrize("row", DAMAGES, ids=lambda row: row.kind)
def test_damage_is_found_at_its_line(row: Damage, atlas: Path) -> None:
    base.replace(atlas, row.file, row.old, row.new)
    text = (atlas / row.file).read_text(encoding="utf-8")
    got = found(atlas)
    assert sorted(code for file, code, _ in got if file == row.file) == sorted(row.codes.split())
    assert {file: code for file, code, _ in got if file != row.file} == row.also
    if at := row.at or (row.new if len(row.codes.split()) == 1 else ""):
        assert {line for file, _, line in got if file == row.file} == {text[: text.index(at)].count("\n") + 1}


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row[0])
def test_damage_to_a_whole_file_is_found(row: tuple[str, str, str, int, Callable[[bytes], bytes]], atlas: Path) -> None:
    _, file, code, line, change = row
    path = atlas / file
    path.write_bytes(change(path.read_bytes()))
    assert (file, code, line) in found(atlas)


@pytest.mark.parametrize(("file", "code"), MISPLACED)
def test_a_file_that_belongs_nowhere_is_found(file: str, code: str, atlas: Path) -> None:
    base.put(atlas, file, "x = 1\n")
    assert ("E212" if code == "E212" else "E309") in {c for f, c, _ in found(atlas) if f == file}


def test_a_file_that_is_missing_is_missed(atlas: Path) -> None:
    for file in (NOTEBOOK, TEST, EXPERIMENTS):
        (atlas / file).unlink()
    (atlas / PAPER).unlink()
    codes = [code for _, code, _ in found(atlas)]
    assert codes.count("E402") == 3
    assert codes.count("E301") == 3
    assert codes.count("E314") == 3


def test_at_least_sixty_kinds_of_damage_are_done_and_every_family_is_met() -> None:
    kinds = {row.kind for row in DAMAGES} | {row[0] for row in WHOLE} | {f"{file} {code}" for file, code in MISPLACED}
    assert len(kinds) == len(DAMAGES) + len(WHOLE) + len(MISPLACED) >= 60
    caught = {code for row in DAMAGES for code in (*row.codes.split(), *row.also.values())}
    caught |= {row[2] for row in WHOLE} | {code for _, code in MISPLACED}
    assert caught <= set(CODES)
    assert {code[:2] for code in caught} == {"E1", "E2", "E3", "E4", "E5", "W6", "E7", "E8"}
