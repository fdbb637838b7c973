"""`redundancy new`: what it asks, what it writes, and that it writes all of it or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, PAPER
from tools.cli import main
from tools.knowledge import load
from tools.knowledge.completeness import PLACEHOLDER, gaps
from tools.knowledge.layout import layout
from tools.knowledge.reader import read_yaml
from tools.scaffold import ask, commands, drafts, issue, lookup

ROOT = Path(__file__).parents[1]
AXES = load(ROOT, check=False).axes
TERMS = {
    "scope": "core",
    "relation": "exact_repetition",
    "location": "activations",
    "granularity": "vector",
    "exploitation": "regroup",
    "stage": "inference",
}
TERM_OPTIONS = [word for axis, term in TERMS.items() for word in ("--axis", f"{axis}={term}")]
SUMMARY = "Computes a layer once for all rows of a batch that are alike."
PAPER_OPTIONS = [
    "--doi", "10.1038/218019a0", "--title", '"Memo" Functions and Machine Learning', "--author", "Michie, Donald",
    "--year", "1968", "--venue", "Nature 218, 19-22", "--source", "first page of the article", *TERM_OPTIONS,
    "--summary", "Keeps a table of results beside a function.",
]  # fmt: skip
CODE = [
    "reference_impls/techniques/row_sharing.py", "reference_impls/experiments/row_sharing.py",
    "tests/techniques/test_row_sharing.py", "notebooks/row_sharing.py",
]  # fmt: skip


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits at a terminal."""
    monkeypatch.setattr(ask, "on_a_terminal", lambda: True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "ARXIV", "http://127.0.0.1:9/oai")
    monkeypatch.setattr(lookup, "DOI", "http://127.0.0.1:9")


def new(root: Path, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["--root", str(root), "new", *arguments], input=stdin)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def findings(root: Path) -> list[str]:
    return [str(f) for f in load(root).findings]


def technique(root: Path, *more: str, name: str = "Row sharing", paper: str = "bolya-2023-token") -> Result:
    return new(
        root, "technique", "--name", name, "--summary", SUMMARY, "--paper", paper, *TERM_OPTIONS, *more,
    )  # fmt: skip


# --- papers


def test_a_paper_from_options_is_written_in_the_layout_and_has_no_finding(atlas: Path) -> None:
    result = new(atlas, "paper", "--offline", *PAPER_OPTIONS)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("wrote papers/michie-1968-memo.yml\n")
    text = (atlas / "papers/michie-1968-memo.yml").read_text()
    assert (
        text
        == f"""\
# yaml-language-server: $schema=../tools/knowledge/schemas/paper.schema.json
key: michie-1968-memo
title: '"Memo" Functions and Machine Learning'
authors:
  - {{family: Michie, given: Donald}}
year: 1968
venue: Nature 218, 19-22
ids: {{doi: 10.1038/218019a0}}
axes:
  location: activations
  granularity: vector
  relation: exact_repetition
  exploitation: regroup
  stage: inference
  scope: core
summary: Keeps a table of results beside a function.
verified: {{source: first page of the article, on: "{commands.today()}"}}
"""
    )
    assert layout(text, "papers/michie-1968-memo.yml", AXES) == text
    assert findings(atlas) == []


def test_without_a_terminal_everything_that_is_missing_is_said_at_once(atlas: Path) -> None:
    before = files(atlas)
    result = new(atlas, "paper", "--arxiv", "2401.00001")
    assert result.exit_code == 2
    assert "nothing was looked up: 127.0.0.1:9 cannot be reached" in result.stderr
    for option in ("KEY", "--title", "--summary", "--source", "--axis scope=...", "--axis stage=..."):
        assert option in result.stderr
    result = new(atlas, "technique")
    assert result.exit_code == 2
    for option in ("ID", "--name", "--summary", "--paper", "--axis relation=..."):
        assert option in result.stderr
    result = new(atlas, "claim", "bolya-2023-token")
    assert result.exit_code == 2
    for option in ("--technique", "--kind", "--statement", "--section or --table"):
        assert option in result.stderr
    assert files(atlas) == before


def test_a_survey_needs_no_axes_and_like_takes_those_of_an_entry(atlas: Path) -> None:
    plain = [
        "--offline",
        "--arxiv",
        "2401.00001v3",
        "--title",
        "On Rows",
        "--source",
        "s",
        "--summary",
        "Reviews rows.",
    ]
    assert new(atlas, "paper", "rows-2024-survey", "--kind", "survey", *plain).exit_code == 0
    survey = load(atlas).papers["rows-2024-survey"]
    assert (survey.kind, survey.axes, survey.ids.arxiv, survey.authors, survey.year) == (
        "survey", {}, "2401.00001", (), None,
    )  # fmt: skip
    like = ["--like", "token-dropping", "--axis", "relation=irrelevance,sufficiency", "--url", "https://example.org/x"]
    options = [*like, "--title", "X", "--source", "s", "--summary", "Drops."]
    assert new(atlas, "paper", "rows-2025-x", *options).exit_code == 0
    paper = load(atlas).papers["rows-2025-x"]
    assert list(paper.axes["relation"]) == ["irrelevance", "sufficiency"]
    assert paper.axes["exploitation"].primary == "drop"
    assert findings(atlas) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--arxiv", "https://arxiv.org/abs/2210.09461v2"], "2210.09461 is papers/bolya-2023-token.yml already"),
        (["bolya-2023-token"], "papers/bolya-2023-token.yml is there already"),
        (["Bolya2023"], "a key is family name"),
        (["--axis", "scope"], "--axis takes axis=term"),
        (["--axis", "relation=spatial"], 'did you mean "spatial_similarity"?'),
        (["--axis", "relations=irrelevance"], 'did you mean "relation"?'),
        (["--axis", "stage=training,inference"], "it takes one term only"),
        (["--axis", "relation=irrelevance,irrelevance"], "stands there twice"),
        (["--axis", "scope=core", "--axis", "scope=core"], "is given twice"),
        (["--like", "token-droping"], 'did you mean "token-dropping"?'),
        (["--summary", "Costs <b>nothing</b>."], "raw HTML"),
    ],
)
def test_wrong_options_are_explained(atlas: Path, options: list[str], says: str) -> None:
    before = files(atlas)
    result = new(atlas, "paper", "--offline", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert files(atlas) == before


@pytest.mark.parametrize(
    ("family", "title", "key"),
    [
        ("Müller", "On the Way: Tokens", "muller-2020-way"),
        ("van den Oord", "A 3D-Convolution", "van-den-oord-2020-3d"),
        ("O'Neil", "What is in it", "o-neil-2020-None"),
        ("李", "Tokens", None),
        ("Bolya", "$\\ell_1$ Norms", "bolya-2020-ell1"),
    ],
)
def test_keys_follow_from_name_year_and_title(family: str, title: str, key: str | None) -> None:
    made = drafts.paper_key(family, 2020, title)
    assert made == (None if key is None or "None" in key else key)


# --- look-ups


ARXIV_RECORD = """<?xml version="1.0"?>
<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><GetRecord><record><metadata>
<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>2303.00001</id><created>2023-03-01</created><updated>2024-01-01</updated>
<authors><author><keyname>van Berg</keyname><forenames>Jan</forenames></author>
<author><keyname>Smith</keyname><forenames>A. B.</forenames><suffix>Jr</suffix></author></authors>
<title>Rows &amp; Columns:
  Sharing Both</title><comments>Accepted at ICLR 2024</comments><abstract>We do things.</abstract></arXiv>
</metadata></record></GetRecord></OAI-PMH>"""
NO_RECORD = """<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/">
<error code="idDoesNotExist">Nothing matches</error></OAI-PMH>"""
DOI_RECORD = {
    "DOI": "10.1000/ROWS.1",
    "title": "Sharing <i>Rows</i> &amp; More",
    "author": [{"given": "Ann", "family": "Lee"}, {"literal": "The Row Team"}, {"given": "nobody"}],
    "issued": {"date-parts": [[2019, 4, 1]]},
    "container-title": "Journal of Rows",
    "volume": "7",
    "issue": "2",
    "page": "1-9",
}


@contextlib.contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def says(content: str | bytes, status: int = 200, asked: list[str] | None = None) -> Callable[[Any], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if asked is not None:
            asked.append(f"{handler.path} {handler.headers['Accept']}")
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(content.encode() if isinstance(content, str) else content)

    return answer


def test_a_paper_is_filled_in_from_arxiv(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with server(says(ARXIV_RECORD, asked=asked)) as address:
        monkeypatch.setattr(lookup, "ARXIV", f"{address}/oai")
        result = new(atlas, "paper", "--arxiv", "arXiv:2303.00001v2", "--summary", "Shares rows.", *TERM_OPTIONS)
    assert result.exit_code == 0, result.output
    assert asked[0].startswith("/oai?verb=GetRecord&metadataPrefix=arXiv&identifier=oai%3AarXiv.org%3A2303.00001 ")
    assert "it also says: Accepted at ICLR 2024" in result.stderr
    paper = load(atlas).papers["van-berg-2023-rows"]
    assert paper.title == "Rows & Columns: Sharing Both"
    assert [(a.family, a.given) for a in paper.authors] == [("van Berg", "Jan"), ("Smith Jr", "A. B.")]
    assert (paper.year, paper.venue, paper.verified.source) == (2023, "arXiv", "arXiv record")
    assert findings(atlas) == []


def test_the_year_of_a_preprint_is_not_taken_for_that_of_a_later_publication(
    atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["paper", "--arxiv", "2303.00001", "--venue", "ICLR 2024", "--summary", "Shares.", *TERM_OPTIONS]
    with server(says(ARXIV_RECORD)) as address:
        monkeypatch.setattr(lookup, "ARXIV", address)
        result = new(atlas, *options)
        assert result.exit_code == 2
        assert "missing: KEY (or --author and --year" in result.stderr
        assert new(atlas, *options, "--year", "2024").exit_code == 0
    assert (load(atlas).papers["van-berg-2024-rows"].year, findings(atlas)) == (2024, [])


def test_where_the_doi_says_nothing_arxiv_is_asked(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(says(ARXIV_RECORD)) as address:
        monkeypatch.setattr(lookup, "ARXIV", address)
        both = ["--arxiv", "2303.00001", "--doi", "10.1000/x", "--summary", "Shares.", *TERM_OPTIONS]
        result = new(atlas, "paper", *both)
    assert result.exit_code == 0, result.output
    assert "nothing was looked up: 127.0.0.1:9" in result.stderr
    assert load(atlas).papers["van-berg-2023-rows"].ids.doi == "10.1000/x"


def test_a_paper_is_filled_in_from_its_doi_and_options_win(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with server(says(json.dumps(DOI_RECORD), asked=asked)) as address:
        monkeypatch.setattr(lookup, "DOI", address)
        result = new(
            atlas, "paper", "--doi", "https://doi.org/10.1000/rows.1", "--summary", "Shares.", "--year", "2020",
            *TERM_OPTIONS,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked == ["/10.1000/rows.1 application/vnd.citationstyles.csl+json"]
    paper = load(atlas).papers["lee-2020-sharing"]
    assert paper.title == "Sharing Rows & More"
    assert [(a.family, a.given) for a in paper.authors] == [("Lee", "Ann"), ("The Row Team", None)]
    assert (paper.year, paper.venue) == (2020, "Journal of Rows 7(2), 1-9")
    assert findings(atlas) == []


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (NO_RECORD, 200, "arXiv has no record of 2303.00001: Nothing matches"),
        (ARXIV_RECORD.replace("2303.00001", "2303.00002"), 200, "answers with another paper"),
        ("<html>", 200, "something else than XML"),
        ("", 404, "there is no such record"),
        ("", 503, "status 503"),
        (b"x" * (lookup.MAX_BYTES + 1), 200, "answers with more than"),
    ],
)
def test_what_arxiv_may_answer_instead(content: str | bytes, status: int, reason: str) -> None:
    with server(says(content, status)) as address, pytest.raises(lookup.LookupFailed, match=reason):
        lookup.arxiv("2303.00001", base=address)


@pytest.mark.parametrize("content", ["no json", "[]", "{}", json.dumps(DOI_RECORD | {"DOI": "10.1000/other"})])
def test_what_a_registry_may_answer_instead(content: str) -> None:
    with server(says(content)) as address, pytest.raises(lookup.LookupFailed):
        lookup.doi("10.1000/rows.1", base=address)


def test_what_a_registry_leaves_out_stays_out() -> None:
    with server(
        says(json.dumps({"DOI": "10.1000/x", "title": [], "author": "Lee", "issued": {"date-parts": [[None]]}}))
    ) as a:
        assert lookup.doi("10.1000/x", base=a) == lookup.Found(source="record of the DOI")


def test_a_registry_that_hangs_is_given_up() -> None:
    with (
        server(lambda handler: time.sleep(1)) as address,
        pytest.raises(lookup.LookupFailed, match="cannot be reached"),
    ):
        lookup.doi("10.1000/x", base=address, seconds=0.1)


def test_a_failed_lookup_is_told_and_the_options_are_used(atlas: Path) -> None:
    result = new(atlas, "paper", *PAPER_OPTIONS)
    assert result.exit_code == 0, result.output
    assert "nothing was looked up: 127.0.0.1:9 cannot be reached" in result.stderr
    assert (atlas / "papers/michie-1968-memo.yml").is_file()


# --- techniques


def test_a_draft_without_code_is_one_file(atlas: Path) -> None:
    before = files(atlas)
    more = [
        "--no-code", "--alias", "memo rows", "--definition", "Rows with $x_i = x_j$: one is computed.", "--step",
        "Find the rows.", "--step", "Compute them.", "--invariant", "With distinct rows nothing changes.",
    ]  # fmt: skip
    result = technique(atlas, *more)
    assert result.exit_code == 0, result.output
    assert set(files(atlas)) - set(before) == {"taxonomy/techniques/row-sharing.yml"}
    entry = load(atlas).entries["row-sharing"]
    assert (entry.status, entry.implementation, entry.aliases) == ("draft", None, ("memo rows",))
    assert [step.step for step in entry.algorithm] == ["Find the rows.", "Compute them."]
    assert entry.papers[0].role == "introduces"
    assert findings(atlas) == []


def test_a_draft_with_code_has_no_finding_and_says_that_the_code_is_a_stand_in(atlas: Path) -> None:
    before = files(atlas)
    result = technique(atlas, "row-sharing")
    assert result.exit_code == 0, result.output
    added = set(files(atlas)) - set(before)
    assert added == {"taxonomy/techniques/row-sharing.yml", *CODE}
    assert all(f"wrote {file}\n" in result.stdout for file in added)
    assert findings(atlas) == []
    knowledge = load(atlas)
    assert knowledge.sources["row-sharing"].class_name == "RowSharing"
    missing = {need.what: need for need in gaps(knowledge, knowledge.entries["row-sharing"])}
    assert missing["its own code"].code == "E406"
    for file in CODE:
        assert PLACEHOLDER in (atlas / file).read_text()
        assert file in missing["its own code"].message
    base.replace(atlas, "taxonomy/techniques/row-sharing.yml", "status: draft", "status: stable")
    assert "E406" in {f.code for f in load(atlas).findings}
    for file in CODE:
        base.put(atlas, file, (atlas / file).read_text().replace(PLACEHOLDER, "Done"))
    assert "E406" not in {f.code for f in load(atlas).findings}


def test_a_technique_starts_with_the_classification_of_its_paper(atlas: Path) -> None:
    result = new(
        atlas, "technique", "row-sharing", "--name", "Row sharing", "--summary", SUMMARY, "--no-code", "--paper",
        "2210.09461", "--paper", "bolya-2023-token=extends", "--axis", "relation=exact_repetition",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "E311" in result.stdout  # the same paper twice
    result = new(
        atlas, "technique", "row-sharing", "--name", "Row sharing", "--summary", SUMMARY, "--no-code", "--paper",
        "2210.09461", "--axis", "relation=exact_repetition",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    entry = load(atlas).entries["row-sharing"]
    assert {axis: terms.primary for axis, terms in entry.axes.items()} == {
        "location": "tokens", "granularity": "token", "relation": "exact_repetition", "exploitation": "merge",
        "stage": "inference", "scope": "core",
    }  # fmt: skip


def test_systems_and_studies_have_no_code(atlas: Path) -> None:
    assert technique(atlas, "--kind", "study", name="A study of rows").exit_code == 0
    assert technique(atlas, "--kind", "system", "--part", "token-merging", name="A whole").exit_code == 0
    assert load(atlas).entries["a-whole"].parts == ("token-merging",)
    assert findings(atlas) == []
    assert "--code: only a technique" in technique(atlas, "--kind", "study", "--code", name="Another one").stderr
    assert (
        'did you mean "token-merging"?'
        in technique(atlas, "--kind", "system", "--part", "token-mergin", name="B").stderr
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["token-merging"], "there is an entry token-merging already"),
        (["token-mergin"], "did you mean token-merging"),
        (["rows", "--alias", "TOME"], "did you mean ToMe (token-merging)"),
        (["Rows"], "an id is lower-case words"),
        (["3d-rows"], "cannot be the name of a Python module"),
        (["import"], "cannot be the name of a Python module"),
        (["r" * 61], "at most 60 characters"),
        (["rows", "--paper", "bolya-2023-tokn"], 'did you mean "bolya-2023-token"?'),
        (["rows", "--paper", "bolya-2023-token=invents"], "is no role"),
        (["rows", "--summary", "no sentence"], "a capital letter first"),
        (["rows", "--summary", f"{'X' * 170}."], "at most 160"),
        (["rows", "--definition", "<script>"], "raw HTML"),
    ],
)
def test_a_technique_that_cannot_be_is_explained(atlas: Path, arguments: list[str], says: str) -> None:
    before = files(atlas)
    result = technique(atlas, *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert files(atlas) == before


def test_a_similar_name_may_be_another_technique(atlas: Path) -> None:
    result = technique(atlas, "token-mergin", "--distinct", "--no-code")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("taken", CODE)
def test_nothing_is_overwritten_and_nothing_half_written(atlas: Path, taken: str) -> None:
    base.put(atlas, taken, "# mine\n")
    before = files(atlas)
    result = technique(atlas, "row-sharing")
    assert result.exit_code == 1
    assert "nothing was written" in result.stderr
    assert files(atlas) == before


def test_what_the_check_would_refuse_is_not_written(atlas: Path) -> None:
    before = files(atlas)
    result = technique(atlas, "rows", "--alias", "ToMe", "--distinct")
    assert result.exit_code == 1
    assert "E311" in result.stdout
    assert "nothing was written" in result.stderr
    assert files(atlas) == before


def test_an_interrupted_command_leaves_nothing(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(atlas)

    def interrupted(knowledge: Any) -> None:
        assert (atlas / CODE[0]).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(drafts, "_nothing_new", interrupted)
    assert technique(atlas, "row-sharing").exit_code != 0
    claim = ["--kind", "negative", "--statement", "No.", "--page", "3", "--technique", "token-merging"]
    assert new(atlas, "claim", "bolya-2023-token", *claim).exit_code != 0
    assert files(atlas) == before


def test_findings_that_were_there_before_do_not_stand_in_the_way(atlas: Path) -> None:
    base.replace(atlas, DRAFT, "exploitation: drop", "exploitation: dorp")
    assert technique(atlas, "--no-code").exit_code == 0


@pytest.mark.parametrize("entry_id", ["a", "row-sharing", "x" * 60, "-".join(["ab"] * 20), "handle"])
def test_the_code_is_formatted_whatever_the_names(tmp_path: Path, entry_id: str) -> None:
    papers = list(load(ROOT, check=False).papers.values())
    for n, name in enumerate(("A", 'The "é" of \\ alpha ' + "y" * 60)):
        for file, text in drafts.code_texts(entry_id, name, papers).items():
            base.put(tmp_path / str(n), file, text)
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, "--config", ROOT / "pyproject.toml", tmp_path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_result_of_the_stand_in_is_saved(atlas: Path) -> None:
    assert technique(atlas, "row-sharing").exit_code == 0
    result = CliRunner().invoke(main, ["--root", str(atlas), "bench", "row-sharing", "--save"])
    assert result.exit_code == 2
    assert "no result is saved of the stand-in" in result.stderr
    assert all(file in result.stderr for file in CODE)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "Row sharing",
        "a: b",
        "- x",
        "<b>x</b>",
        "$x",
        "x\ny",
        "\t",
        "no",
        "1.0",
        "ToMe",
        "'\"",
        "#",
        "{a",
        "[unverified]",
        "Über",
    ]
)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=texts, alias=texts, definition=texts, step=texts, code=st.booleans())
def test_whatever_is_typed_a_draft_is_good_or_nothing_is_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, alias: str, definition: str, step: str, code: bool
) -> None:
    root = base.write(tmp_path_factory.mktemp("typed") / "atlas")
    before = files(root)
    options = ["--alias", alias, "--definition", definition, "--step", step, *([] if code else ["--no-code"])]
    result = technique(root, "row-sharing", *options, name=name)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 0:
        assert findings(root) == []
        file = "taxonomy/techniques/row-sharing.yml"
        assert layout((root / file).read_text(), file, AXES) == (root / file).read_text()
        assert all(compile((root / code_file).read_text(), code_file, "exec") for code_file in CODE if code)
    else:
        assert files(root) == before
        assert result.stderr


# --- an implementation for a draft


def test_an_implementation_is_begun_for_a_draft(atlas: Path) -> None:
    base.put(atlas, DRAFT, base.FILES[DRAFT].replace("kind: technique", "kind: technique  # it drops"))
    result = new(atlas, "implementation", "token-dropping")
    assert result.exit_code == 0, result.output
    text = (atlas / DRAFT).read_text()
    assert text.endswith("implementation: reference_impls.techniques.token_dropping:TokenDropping\n")
    assert "kind: technique  # it drops\n" in text
    assert findings(atlas) == []
    assert "has an implementation" in new(atlas, "implementation", "token-dropping").stderr
    assert "has an implementation" in new(atlas, "implementation", "token-merging").stderr
    assert 'did you mean "token-merging"?' in new(atlas, "implementation", "token-mergin").stderr


def test_an_implementation_that_cannot_be_begun_changes_nothing(atlas: Path) -> None:
    base.put(atlas, "notebooks/token_dropping.py", "# %%\n")
    before = files(atlas)
    assert new(atlas, "implementation", "token-dropping").exit_code == 1
    assert files(atlas) == before


# --- claims


def test_a_claim_is_added_with_the_next_id(atlas: Path) -> None:
    base.put(atlas, PAPER, base.FILES[PAPER].replace("claims:", "# what it says\nclaims:"))
    before = (atlas / PAPER).read_text()
    result = new(
        atlas, "claim", "bolya-2023-token", "--technique", "token-merging", "--kind", "accuracy", "--statement",
        "Accuracy falls by 2.11 points.", "--metric", "top-1", "--value", "-2.11", "--unit", "percentage points",
        "--dataset", "ImageNet-1k", "--batch", "32", "--section", "4.1", "--table", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "added bolya-2023-token#c3 to papers/bolya-2023-token.yml\n"
    text = (atlas / PAPER).read_text()
    assert text == layout(before, PAPER, AXES) + (
        "  - id: c3\n    technique: token-merging\n    kind: accuracy\n    statement: Accuracy falls by 2.11 points.\n"
        "    quantity: {metric: top-1, value: -2.11, unit: percentage points}\n"
        '    setting: {dataset: ImageNet-1k, batch: "32"}\n    locator: {section: "4.1", table: "3"}\n'
    )
    assert findings(atlas) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bolya-2023-tokn"], 'did you mean "bolya-2023-token"?'),
        (["bolya-2023-token", "--technique", "token-mergin"], 'did you mean "token-merging"?'),
        (["bolya-2023-token", "--technique", "other"], "does not name this paper; add `- {key: bolya-2023-token"),
        (["bolya-2023-token", "--technique", "token-merging", "--kind", "speedup"], "--metric, --value, --unit"),
        (["bolya-2023-token", "--statement", "Said [unverified]."], "marked [unverified]"),
    ],
)
def test_a_claim_that_cannot_be_is_explained(atlas: Path, arguments: list[str], says: str) -> None:
    base.put(atlas, "papers/other-2020-x.yml", base.FILES[PAPER].partition("claims:")[0]
             .replace("bolya-2023-token", "other-2020-x").replace("2210.09461", "2210.00001"))  # fmt: skip
    base.put(atlas, "taxonomy/techniques/other.yml", base.FILES[DRAFT].replace("token-dropping", "other")
             .replace("Token dropping", "Other").replace("bolya-2023-token", "other-2020-x"))  # fmt: skip
    before = files(atlas)
    result = new(atlas, "claim", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert files(atlas) == before


def test_a_file_that_is_no_yaml_is_not_touched(atlas: Path) -> None:
    base.replace(atlas, PAPER, "venue: ICLR 2023", "venue: ICLR 2023\nvenue: twice")
    before = files(atlas)
    options = ["--technique", "token-merging", "--kind", "negative", "--statement", "No.", "--page", "3"]
    result = new(atlas, "claim", "bolya-2023-token", *options)
    assert result.exit_code in (1, 2)
    assert files(atlas) == before


# --- on a terminal


@pytest.mark.usefixtures("terminal")
def test_the_decision_card_is_asked_step_by_step(atlas: Path) -> None:
    base.put(atlas, "papers/michie-1968-memo.yml", base.FILES[PAPER].partition("claims:")[0]
             .replace("bolya-2023-token", "michie-1968-memo").replace("2210.09461", "2210.00001")
             .replace("2023", "1968").partition("axes:")[0] + "kind: survey\nsummary: X.\n"
             "verified: {source: s, on: 2026-11-22}\n")  # fmt: skip
    answers = [
        "Row sharing",  # name
        "",  # id: the one that follows from the name
        "",  # kind
        "michie-1986-memo", "michie-1968-memo",  # paper, mistyped first
        "",  # other name
        "?", "core",  # scope, after its explanation
        "vector",  # granularity
        "999", "activations", "",  # location, a wrong number first; data kind left out
        "1, 3",  # relation
        "", "",  # detection mechanism and time
        "Regroup", "",  # exploitation by its name as readers see it; support
        "training, inference", "inference", "", "",  # stage, two terms first; adaptation, guarantee
        "",  # objective
        "rows are shared", SUMMARY,  # summary, no sentence first
        "",  # definition
        "Find the rows.", "",  # steps
        "",  # invariant
        "n",  # no code
    ]  # fmt: skip
    result = new(atlas, "technique", stdin="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    entry = load(atlas).entries["row-sharing"]
    assert {axis: list(terms) for axis, terms in entry.axes.items()} == {
        "location": ["activations"], "granularity": ["vector"], "relation": ["exact_repetition", "spatial_similarity"],
        "exploitation": ["regroup"], "stage": ["inference"], "scope": ["core"],
    }  # fmt: skip
    assert findings(atlas) == []
    shown = result.output
    for step in AXES.decision_card[:8]:
        assert " ".join(step.ask.split()) in shown
    assert shown.count("it takes one term only") == 1
    assert "'999' is no term of it" in shown
    assert "The saving depends on the values of the data" in shown, "`?` explains the terms"
    assert "a capital letter first" in shown
    assert 'did you mean "michie-1968-memo"?' in shown


@pytest.mark.usefixtures("terminal")
def test_a_similar_entry_is_shown_before_anything_else_is_asked(atlas: Path) -> None:
    before = files(atlas)
    result = new(atlas, "technique", stdin="Token mergings\n\nn\n")
    assert result.exit_code == 2
    assert "see `redundancy show token-merging`" in result.output
    assert files(atlas) == before


@pytest.mark.usefixtures("terminal")
def test_a_claim_is_asked_for(atlas: Path) -> None:
    answers = ["token-merging", "speedup", "It is faster.", "throughput", "twice", "2", "times", "table", "5"]
    result = new(atlas, "claim", "bolya-2023-token", stdin="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    claim = load(atlas).papers["bolya-2023-token"].claims[-1]
    assert (claim.id, claim.kind, claim.quantity and claim.quantity.value, claim.locator.table) == (
        "c3",
        "speedup",
        2,
        "5",
    )
    assert findings(atlas) == []


@pytest.mark.usefixtures("terminal")
def test_a_paper_is_asked_for(atlas: Path) -> None:
    answers = [
        "", "10.1000/x",  # no arXiv id, but a DOI
        "Rows", "Lee, Ann", "The Row Team", "",  # title, authors
        "19", "2019", "", "",  # year, mistyped first; venue, kind
        "Lee2019", "",  # key: another form, then the one that follows
        *TERMS_ON_THE_CARD, "Shares.", "the article",
    ]  # fmt: skip
    result = new(atlas, "paper", stdin="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    paper = load(atlas).papers["lee-2019-rows"]
    assert [(a.family, a.given) for a in paper.authors] == [("Lee", "Ann"), ("The Row Team", None)]
    assert (paper.year, paper.venue, paper.ids.doi) == (2019, None, "10.1000/x")
    assert findings(atlas) == []


TERMS_ON_THE_CARD = [TERMS[axis] for axis in ("scope", "granularity", "location", "relation", "exploitation", "stage")]


def test_a_real_terminal_is_asked_and_an_end_of_input_writes_nothing(atlas: Path) -> None:
    before = files(atlas)
    shown, code = on_a_pty(["new", "technique"], atlas, ["Row sharing\n", "\x04"])
    assert "Name" in shown
    assert "[row-sharing]" in shown
    assert code == 1
    assert files(atlas) == before


def on_a_pty(arguments: list[str], root: Path, typed: list[str]) -> tuple[str, int]:
    """Run the command on a pseudo-terminal, typing one line after each prompt."""
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "--root", str(root), *arguments],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, close_fds=True,
    )  # fmt: skip
    os.close(terminal)
    shown, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([controller], [], [], 0.2)
        if ready:
            try:
                shown += os.read(controller, 4096).decode(errors="replace")
            except OSError:
                break
        elif typed and shown.rstrip(" ").endswith(":"):
            os.write(controller, typed.pop(0).encode())
        elif child.poll() is not None:
            break
    os.close(controller)
    return shown, child.wait(timeout=30)


# --- the issue form


def test_the_issue_form_offers_the_terms_of_the_axes() -> None:
    text = (ROOT / issue.FILE).read_text(encoding="utf-8")
    assert text == issue.form(AXES), "run `redundancy schema` and commit what it writes"
    body = read_yaml(ROOT / issue.FILE, issue.FILE).data["body"]
    dropdowns = {part["id"]: part for part in body if part["type"] == "dropdown"}
    assert set(dropdowns) == set(AXES)
    for name, part in dropdowns.items():
        offered = [option.rpartition("(")[2].removesuffix(")") for option in part["attributes"]["options"]]
        assert offered == list(AXES[name].terms)
        assert part["attributes"]["multiple"] == (AXES[name].choice == "multi")
        assert part["validations"]["required"] == (name in TERMS)
    labels = [part["attributes"]["label"] for part in body if part["type"] != "markdown"]
    assert len(labels) == len(set(labels))


def answered(**more: str) -> str:
    """What GitHub makes of a filled-in form."""
    answers = {
        "name": "Row sharing",
        "aliases": "memo rows, shared rows",
        "summary": SUMMARY,
        "papers": "- arXiv:2210.09461v2",
        **{axis: f"{AXES[axis].terms[term].name} ({term})" for axis, term in TERMS.items()},
        "data_kind": "Image (image), Text (text)",
        "definition": "### Not a section\n\nRows with $x_i = x_j$.",
        "algorithm": "1. Find the rows.\n2. Compute them.",
    } | more
    body = read_yaml(ROOT / issue.FILE, issue.FILE).data["body"]
    return "\n\n".join(
        f"### {part['attributes']['label']}\n\n{answers.get(part['id'], '_No response_')}"
        for part in body
        if part["type"] != "markdown"
    )


@pytest.mark.parametrize("line_ends", ["\n", "\r\n"])
def test_the_answers_of_the_form_become_a_draft(atlas: Path, tmp_path: Path, line_ends: str) -> None:
    file = tmp_path / "issue.md"
    file.write_bytes(answered().replace("\n", line_ends).encode())
    result = new(atlas, "technique", "--from-issue", str(file), "--no-code")
    assert result.exit_code == 0, result.output
    entry = load(atlas).entries["row-sharing"]
    assert entry.aliases == ("memo rows", "shared rows")
    assert list(entry.axes["data_kind"]) == ["image", "text"]
    assert {axis: entry.axes[axis].primary for axis in TERMS} == TERMS
    assert entry.definition == "### Not a section\n\nRows with $x_i = x_j$."
    assert [step.step for step in entry.algorithm] == ["Find the rows.", "Compute them."]
    assert [(link.key, link.role) for link in entry.papers] == [("bolya-2023-token", "introduces")]
    assert findings(atlas) == []


def test_options_win_over_the_form(atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "issue.md").write_text(answered())
    options = ["other-rows", "--from-issue", str(tmp_path / "issue.md"), "--no-code", "--name", "Other rows"]
    assert new(atlas, "technique", *options).exit_code == 0
    assert load(atlas).entries["other-rows"].name == "Other rows"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no answer to the form"),
        ("Dear all,\n### Nome\nRow sharing", "no answer to the form"),
        (answered(papers="2401.99999"), "there is no paper '2401.99999'"),
        (answered(papers="_No response_"), "missing: --paper"),
        (answered(relation="Something (something)"), "'something' is no term of it"),
        (answered(definition="<img src=x onerror=alert(1)>"), "raw HTML"),
        (answered(name="ToMe"), "did you mean ToMe (token-merging)"),
    ],
)
def test_answers_that_will_not_do_are_explained(atlas: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "issue.md").write_text(text)
    before = files(atlas)
    result = new(atlas, "technique", "--from-issue", str(tmp_path / "issue.md"))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert files(atlas) == before
