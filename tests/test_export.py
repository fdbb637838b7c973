"""What leaves the atlas: the documents and their schemas, the tables, BibTeX, CSL-JSON, the citation file."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import latexcodec  # noqa: F401
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pybtex.database import parse_string

from tests import knowledge_fixture, site_fixture
from tools.cli import main
from tools.export import api, bibtex, csl, tables
from tools.export.venue import sort, venue_of
from tools.knowledge import Knowledge, load
from tools.knowledge.schema import Author, Paper

ROOT = Path(__file__).parents[1]
STAMP = api.Stamp("2026-11-22T00:00:00Z")


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load(ROOT, check=False)


@pytest.fixture(scope="module")
def files(known: Knowledge) -> dict[str, str]:
    return api.files(known)


@pytest.fixture(scope="module")
def parsed(files: dict[str, str]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in files.items() if name.endswith(".json")}


def paper(**changes: Any) -> Paper:
    return Paper.model_validate(site_fixture.PAPER.model_dump() | changes)


# --- documents and schemas


def test_every_document_keeps_its_published_schema(parsed: dict[str, Any]) -> None:
    for name in api.DOCUMENTS:
        schema = parsed[f"schema/{name}.schema.json"]
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(parsed[f"{name}.json"])


def test_an_independent_command_agrees(known: Knowledge, tmp_path: Path) -> None:
    made = api.files(site_fixture.knowledge(site_fixture.record()), STAMP)
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def check(name: str) -> int:
        command = ["check_jsonschema", "--schemafile", str(tmp_path / f"schema/{name}.schema.json")]
        return subprocess.run([sys.executable, "-m", *command, str(tmp_path / f"{name}.json")], check=False).returncode

    assert check("atlas") == 0
    whole = json.loads(made["atlas.json"])
    whole["papers"][0]["title"] = None
    (tmp_path / "atlas.json").write_text(json.dumps(whole), encoding="utf-8")
    assert check("atlas") == 1


def nulls(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in nulls(item, f"{path}/{key}")]
    if isinstance(value, list):
        return [found for n, item in enumerate(value) for found in nulls(item, f"{path}/{n}")]
    return [path] if value is None else []


def test_nothing_is_null_and_no_schema_allows_it(parsed: dict[str, Any]) -> None:
    for name, document in parsed.items():
        assert nulls(document) == [], name
        assert '"type": "null"' not in json.dumps(document), name


def optional(schema: dict[str, Any]) -> set[str]:
    """`Model.field` for every field that a document may leave out."""
    objects = {schema.get("title", ""): schema, **schema.get("$defs", {})}
    return {
        f"{name}.{field}"
        for name, one in objects.items()
        for field in one.get("properties", {})
        if field not in one.get("required", [])
    }


def test_only_what_may_be_absent_is_optional(parsed: dict[str, Any]) -> None:
    found = optional(parsed["schema/atlas.schema.json"])
    assert {"Everything.commit", "EntryOut.definition", "PaperOut.year", "ClaimOut.measured", "Author.given"} <= found
    promised = (
        "EntryOut.id EntryOut.aliases EntryOut.relations PaperOut.authors PaperOut.ids PaperOut.kind ClaimOut.verdict "
    )
    promised += "ClaimOut.locator ResultOut.with Node.page Edge.target"
    assert not set(promised.split()) & found


@pytest.mark.parametrize("name", ["entries", "papers", "claims", "results", "graph", "axes"])
def test_taking_a_promised_field_away_breaks_the_schema(parsed: dict[str, Any], name: str) -> None:
    validator = jsonschema.Draft202012Validator(parsed[f"schema/{name}.schema.json"])
    document = parsed[f"{name}.json"]
    for field in validator.schema["required"]:
        assert not validator.is_valid({key: value for key, value in document.items() if key != field})
        assert not validator.is_valid(document | {field: None})
    assert not validator.is_valid(document | {"surprise": 1})


def test_everything_is_there_and_every_id_leads_somewhere(known: Knowledge, parsed: dict[str, Any]) -> None:
    whole = parsed["atlas.json"]
    ids = {name: [one["id" if name != "papers" else "key"] for one in whole[name]] for name in
           ("entries", "papers", "claims", "results")}  # fmt: skip
    assert all(len(set(one)) == len(one) for one in ids.values())
    assert ids["entries"] == list(known.entries)
    assert ids["papers"] == list(known.papers)
    assert len(ids["claims"]) == sum(len(p.claims) for p in known.papers.values()) > 0
    assert len(ids["results"]) == len(known.records) > 0
    for entry in whole["entries"]:
        assert set(entry["claims"]) <= set(ids["claims"])
        assert set(entry["results"]) <= set(ids["results"])
        assert all(isinstance(terms, list) and terms for terms in entry["axes"].values())
    nodes = [node["id"] for node in whole["nodes"]]
    assert len(set(nodes)) == len(nodes) == len(ids["entries"]) + len(ids["papers"]) + len(ids["claims"])
    assert all(edge["source"] in nodes and edge["target"] in nodes for edge in whole["edges"])
    assert sum(edge["type"] == "claims" for edge in whole["edges"]) == len(ids["claims"])
    relations = sum(len(e.relations) + len(e.parts) for e in known.entries.values())
    own = [e for e in whole["edges"] if e["source"].startswith("entry:") and e["type"] != "replaced-by"]
    assert len(own) == relations
    for one in (*whole["entries"], *whole["papers"], *whole["results"]):
        assert (ROOT / one["file"]).is_file()


def test_the_verdict_of_a_claim_is_the_one_of_the_site(known: Knowledge, parsed: dict[str, Any]) -> None:
    by_id = {claim["id"]: claim for claim in parsed["claims.json"]["claims"]}
    for one in known.papers.values():
        for claim in one.claims:
            judged, out = known.judge(claim), by_id[f"{one.key}#{claim.id}"]
            assert (out["verdict"], out["because"], out.get("measured")) == (
                judged.verdict,
                judged.because,
                judged.value,
            )


def test_the_single_documents_are_parts_of_the_whole(parsed: dict[str, Any]) -> None:
    whole = parsed["atlas.json"]
    for name in ("entries", "papers", "claims", "results", "axes", "hard_cases"):
        assert parsed[f"{name}.json"][name] == whole[name]
    assert [parsed["graph.json"][name] for name in ("nodes", "edges")] == [whole["nodes"], whole["edges"]]
    for name in ("open_problems", "principles"):
        assert parsed[f"{name}.json"]["statements"] == whole[name]


def test_the_index_lists_every_file(files: dict[str, str], parsed: dict[str, Any]) -> None:
    index = parsed["index.json"]
    listed = {one["path"] for one in index["files"]} | {one["schema"] for one in index["files"] if "schema" in one}
    assert listed | {"index.json", "schema/index.schema.json"} == set(files)
    counted = {one["path"]: one.get("count") for one in index["files"]}
    assert counted["entries.json"] == counted["csv/entries.csv"] == index["counts"]["entries"]
    assert counted["papers.bib"] == counted["papers.csl.json"] == index["counts"]["papers"]


def test_two_processes_export_the_same_bytes(tmp_path: Path) -> None:
    trees = []
    for seed in ("1", "4242"):
        folder = tmp_path / seed
        command = [sys.executable, "-m", "tools.cli", "export", "json", "--out", str(folder)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": "UTC" if seed == "1" else "Asia/Tokyo"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        trees.append({p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]
    entries = sum(name.startswith("bib/") for name in trees[0])
    assert len(trees[0]) == 2 * len(api.DOCUMENTS) + len(tables.TABLES) + 3 + entries
    assert entries == len(list((ROOT / "taxonomy/techniques").glob("*.yml")))


def test_the_time_is_that_of_the_commit_and_the_commit_is_named_only_where_it_holds(tmp_path: Path) -> None:
    knowledge_fixture.write(tmp_path)
    assert api.stamp(load(tmp_path)) == api.Stamp("2026-11-22T00:00:00Z"), "no repository: the newest date in the data"

    def git(*arguments: str) -> str:
        who = {
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@b.c",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@b.c",
        }
        at = {"GIT_COMMITTER_DATE": "2026-11-23T01:00:00+09:00", "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(
            ["git", *arguments], cwd=tmp_path, env=os.environ | who | at, check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "All")
    assert api.stamp(load(tmp_path)) == api.Stamp("2026-11-22T16:00:00Z", git("rev-parse", "HEAD"))
    knowledge_fixture.replace(tmp_path, knowledge_fixture.DRAFT, "little attention", "no attention")
    assert api.stamp(load(tmp_path)) == api.Stamp("2026-11-22T16:00:00Z")
    inner = knowledge_fixture.write(tmp_path / "inner")
    assert api.stamp(load(inner)) == api.Stamp("2026-11-22T00:00:00Z"), "the repository around it is another one"


# --- tables


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_tables_have_a_row_for_everything(known: Knowledge, files: dict[str, str]) -> None:
    rows = {name: read_csv(files[f"csv/{name}.csv"]) for name in tables.TABLES}
    assert [row["id"] for row in rows["entries"]] == list(known.entries)
    assert [row["key"] for row in rows["papers"]] == list(known.papers)
    variants = sum(1 + len(r.points) + sum(len(c.points) for c in r.controls) for r in known.records)
    assert len(rows["results"]) == variants
    terms = [t for one in (*known.entries.values(), *known.papers.values()) for ts in one.axes.values() for t in ts]
    assert [row["term"] for row in rows["classification"]] == terms
    for entry in known.entries.values():
        steps = [r["text"] for r in rows["entry_texts"] if r["entry"] == entry.id and r["field"] == "algorithm"]
        assert [tables.text(step) for step in steps] == [s.step for s in entry.algorithm]


def test_the_data_package_describes_every_column(files: dict[str, str], parsed: dict[str, Any]) -> None:
    for resource in parsed["csv/datapackage.json"]["resources"]:
        rows = read_csv(files[f"csv/{resource['path']}"])
        fields = resource["schema"]["fields"]
        header = files[f"csv/{resource['path']}"].split("\r\n", 1)[0].split(",")
        assert [field["name"] for field in fields] == header
        assert all(field["description"] for field in fields)
        for row in rows:
            for field in fields:
                value = row[field["name"]]
                if value and field["type"] in ("integer", "number"):
                    assert repr({"integer": int, "number": float}[field["type"]](value)) == value
                if value and field["type"] == "boolean":
                    assert value in ("true", "false")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
        ("＝1", "'＝1"), ("'=1", "''=1"), ("'tis", "'tis"), ("a=b", "a=b"), ("", ""), (-2.5, "-2.5"), (3, "3"),
        (True, "true"), (None, ""),
    ],
)  # fmt: skip
def test_a_text_that_looks_like_a_formula_is_guarded_and_a_number_is_not(value: Any, written: str) -> None:
    assert tables.cell(value) == written


@given(st.text())
@example("''=x")
@example("'\n")
def test_a_guarded_text_is_read_back(text: str) -> None:
    written = tables.cell(text)
    assert tables.text(written) == text
    assert not written.startswith(tuple("=+-@\t\r\n＝＋－＠"))


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, max_size=3
    )
)
def test_any_text_survives_a_table(names: list[str]) -> None:
    rows = [
        tables.TermRow(axis="a", position=n, term="t", name=name, definition=name) for n, name in enumerate(names, 1)
    ]
    found = read_csv(tables.to_csv("terms", rows))
    assert [tables.text(row["definition"]) for row in found] == names


# --- BibTeX and CSL-JSON


COMMANDS = {
    r"\textbackslash{}": "\ue000", r"\textbraceleft{}": "\ue001", r"\textbraceright{}": "\ue002",
    r"\textasciitilde{}": "\ue003", r"\textasciicircum{}": "^", r"\textless{}": "<", r"\textgreater{}": ">",
    r"\textbar{}": "|", r"\textasciigrave{}": "\ue004",
}  # fmt: skip
BACK = {"\ue000": "\\", "\ue001": "{", "\ue002": "}", "\ue003": "~", "\ue004": "`"}


def decoded(piece: str) -> str:
    if piece == "{}":
        return "\ue005"
    if re.match(r"\{\\[^&%$#_]", piece):
        return codecs.decode(piece, "ulatex")
    return re.sub(r"\\([&%$#_])", r"\1", piece.replace("~", "\u00a0"))


RAISED = {f"{{\\textsuperscript{{{n}}}}}": char for n, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}


def plain(latex: str) -> str:
    """LaTeX as text, by an independent decoder where it knows the command."""
    latex = re.sub(r"\{\\ensuremath\{(\\\w+)\}\}", lambda math: codecs.decode(f"${math[1]}$", "ulatex"), latex)
    for command, char in {**RAISED, r"{\u{\d{a}}}": "ặ", r"{\d{a}}": "ạ"}.items():  # which the decoder does not know
        latex = latex.replace(command, char)
    for command, char in COMMANDS.items():
        latex = latex.replace(command, char)
    # The decoder joins what it reads, so it is given one command at a time.
    pieces = re.split(r"(\{\\[^{}&%$#_]+(?:\{[^{}]*\})?\}|\\[&%$#_]|\{\})", latex)
    text = "".join(decoded(piece) for piece in pieces)
    for ligature, char in (("---", "—"), ("--", "–"), ("``", "“"), ("''", "”"), ("`", "‘")):
        text = text.replace(ligature, char)
    text = re.sub(r"[{}\ue005]", "", text)
    return "".join(BACK.get(char, char) for char in text)


def same(text: str) -> str:
    """What a typesetter keeps of a text: one space for white space, and one apostrophe."""
    return unicodedata.normalize("NFC", " ".join(text.split())).replace("’", "'")


def read_bibtex(one: Paper) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return parse_string(bibtex.bibtex(one), "bibtex").entries[one.key]


NASTY = "".join(map(chr, range(32, 127))) + "éüñçåøŁßœĐþćőǧạ–—‘’“” \u00a0αβ→中文🙂"


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from(NASTY), min_size=1, max_size=30).filter(str.strip))
@example("{")
@example("}{ unbalanced")
@example("a -- b --- c `` d '' e ?` f")
@example("100% & $k$-NN_# ^~\\ C{V}PR <b>|x|</b> @misc{x, title={y}}")
@example("Æsop’s “Ångström” – Łódź, Müller & Ŝ, Đặng")
def test_any_title_reads_back_from_bibtex(title: str) -> None:
    found = read_bibtex(paper(title=title))
    assert same(plain(found.fields["title"])) == same(title)


NAME = st.text(st.sampled_from("abcXYZéüØ -'.,&{}$%and"), min_size=1, max_size=14).filter(lambda s: s.strip(" ,."))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NAME, st.none() | NAME), min_size=1, max_size=3), st.booleans())
@example([("van den Oord", "Aäron"), ("Qwen Team", None), ("others", None), ("Barnes and Noble", None)], True)
@example([("Smith, Jr.", "A. and B.")], False)
def test_any_names_read_back_from_bibtex(names: list[tuple[str, str | None]], et_al: bool) -> None:
    authors = [Author(family=family, given=given) for family, given in names]
    found = read_bibtex(paper(authors=[a.model_dump() for a in authors], et_al=et_al)).persons["author"]
    assert len(found) == len(names) + et_al
    for person, author in zip(found, authors, strict=False):
        family = [*person.prelast_names, *person.last_names]
        given = [*person.first_names, *person.middle_names]
        assert not person.lineage_names
        assert same(plain(" ".join(family))) == same(author.family)
        assert same(plain(" ".join(given))) == same(author.given or "")
    if et_al:
        assert str(found[-1]) == "others"


def test_all_papers_read_back_from_bibtex(known: Knowledge) -> None:
    text = bibtex.bibliography(known.papers.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parse_string(text, "bibtex").entries
    assert list(found) == list(known.papers)
    for key, one in known.papers.items():
        fields = found[key].fields
        assert same(plain(fields["title"])) == same(one.title), key
        assert fields.get("year") == (str(one.year) if one.year else None), key
        assert len(found[key].persons.get("author", ())) == len(one.authors) + (one.et_al and bool(one.authors)), key
        assert fields.get("eprint") == one.ids.arxiv, key
        venue = next((fields[name] for name in ("journal", "booktitle", "howpublished") if name in fields), "")
        written = same(plain(venue))
        assert written == same(venue_of(one) or ""), key
        assert str(one.year) not in written.split(), key
        if one.venue and one.year:
            kept = one.venue.replace(str(one.year), "")
            assert written.replace(" ", "") == kept.replace(" ", ""), key


def test_all_references_and_the_oddest_are_set_by_latex(known: Knowledge, tmp_path: Path) -> None:
    """pdfLaTeX with a plain article and no package stops at the first thing that it cannot set."""
    if not (shutil.which("pdflatex") and shutil.which("bibtex")):
        if os.environ.get("ATLAS_REQUIRE_LATEX") == "1":
            pytest.fail("pdflatex and bibtex are not there: install texlive-latex-recommended", pytrace=False)
        pytest.skip("pdflatex and bibtex are not there")
    signs = sorted({*bibtex.LETTERS, *bibtex.MATHS, *"−²₂ⁿ", *NASTY, *"ẽễąĐşșḍȷ̈ưǖ中文🙂ﬁℝ𝑘"} - {" ", "\u00a0"})
    odd = [
        paper(
            key=f"odd-2020-{n}",
            title=f"A {sign} x{sign} {sign}{sign} end",
            authors=[{"family": f"A{sign}b"}],
            claims=[],
        )
        for n, sign in enumerate(sign for sign in signs if sign.strip())
    ]
    (tmp_path / "papers.bib").write_text(bibtex.bibliography([*known.papers.values(), *odd]), encoding="utf-8")
    document = "\\documentclass{article}\\begin{document}\\nocite{*}\\bibliographystyle{plain}\\bibliography{papers}"
    (tmp_path / "a.tex").write_text(document + "\n\\end{document}\n")
    latex = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "a.tex"]
    for command in (latex, ["bibtex", "a"], latex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        log = (tmp_path / "a.log").read_text(encoding="utf-8", errors="replace")
        faults = re.findall(
            r"^(?:!.*\n.*|Missing character.*|.*Warning--(?!empty author).*)", log + done.stdout, re.MULTILINE
        )
        assert (done.returncode, faults) == (0, []), done.stdout[-500:]
    assert (tmp_path / "a.bbl").read_text(encoding="utf-8").count("\\bibitem") == len(known.papers) + len(odd)


@pytest.mark.parametrize(
    ("venue", "year", "kept"),
    [
        ("ICLR 2023", 2023, "ICLR"),
        ("ICCV 2023 Workshops", 2023, "ICCV Workshops"),
        ("2023 IEEE Conference on X", 2023, "IEEE Conference on X"),
        ("Proceedings (2023)", 2023, "Proceedings"),
        ("DAC '23", 2023, "DAC"),
        ("Nature 218, 2023", 2023, "Nature 218"),
        ("CVPR2023", 2023, "CVPR"),
        ("ICLR 2023", 2024, "ICLR 2023"),
        ("Journal of X 2023(4), 12020-12023", 2023, "Journal of X 2023(4), 12020-12023"),
        ("2023", 2023, "2023"),
        ("ICLR", None, "ICLR"),
        (None, 2023, None),
    ],
)
def test_the_year_is_said_once(venue: str | None, year: int | None, kept: str | None) -> None:
    assert venue_of(paper(venue=venue, year=year)) == kept


def test_a_group_is_not_taken_apart() -> None:
    group = paper(authors=[{"family": "The Mosaic ML Team"}, {"family": "van den Oord", "given": "Aäron"}])
    assert csl.csl(group)["author"] == [{"literal": "The Mosaic ML Team"}, {"family": "van den Oord", "given": "Aäron"}]
    assert 'author = {{The Mosaic ML Team} and van den Oord, A{\\"{a}}ron}' in bibtex.bibtex(group)


def test_a_file_says_what_latex_lacks_and_holds_a_paper_once() -> None:
    one = paper(title="Đ 中", authors=[{"family": "Kąt", "given": "A."}])
    text = bibtex.bibliography([one, one])
    assert text.count(f"{{{one.key},") == 1
    assert text.count("@preamble") == 3
    assert bibtex.bibliography([paper()]).startswith("@")
    assert "@preamble" not in bibtex.bibliography([paper()])


def test_fields_that_are_not_confirmed_are_not_written() -> None:
    given = {
        "key": "unknown-2020-word",
        "title": "A & <b>",
        "summary": "S.",
        "verified": {"source": "s", "on": "2026-11-22"},
    }
    bare = Paper.model_validate(given)
    assert bibtex.bibtex(bare) == (
        "@misc{unknown-2020-word,\n  title = {{A \\& \\textless{}b\\textgreater{}}},\n  key = {unknown-2020-word},\n}\n"
    )
    assert csl.csl(bare) == {"id": bare.key, "type": "article", "title": bare.title}


def test_addresses_stay_as_they_are_but_cannot_break_the_record() -> None:
    odd = paper(ids={"doi": "10.1002/(SICI)1<1::AID-S>3.0.CO;2-2{", "url": "https://x.org/a_b?c=1%20&d={e}#f"})
    fields = read_bibtex(odd).fields
    assert fields["doi"] == "10.1002/(SICI)1<1::AID-S>3.0.CO;2-2%7B"
    assert fields["url"] == "https://x.org/a_b?c=1%20&d=%7Be%7D#f"


@pytest.mark.parametrize(
    ("venue", "expected"),
    [
        (None, "preprint"),
        ("arXiv", "preprint"),
        ("CVPR 2023", "proceedings"),
        ("ACM Computing Surveys 55(10)", "article"),
        ("TMLR 2024", "article"),
        ("IEEE TPAMI", "article"),
        ("Proceedings of the IEEE 109(10)", "article"),
        ("Proceedings of the IEEE/CVF Conference on Computer Vision", "proceedings"),
        ("Findings of ACL 2021", "proceedings"),
        ("Pattern Recognition", "article"),
        ("GitHub pull request", "web"),
    ],
)
def test_the_sort_of_a_publication_follows_from_its_venue(venue: str | None, expected: str) -> None:
    assert sort(paper(venue=venue)) == expected


def rendered(items: list[dict[str, Any]]) -> list[str]:
    """The items as another program's processor sets them."""
    from citeproc import Citation, CitationItem, CitationStylesBibliography, CitationStylesStyle, formatter
    from citeproc.source.json import CiteProcJSON

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the processor's own style
        source = CiteProcJSON(items)
        style = CitationStylesStyle("harvard-cite-them-right", validate=False)
        made = CitationStylesBibliography(style, source, formatter.plain)
        for item in items:
            made.register(Citation([CitationItem(item["id"])]))
        return [str(one) for one in made.bibliography()]


def test_all_papers_are_set_by_a_csl_processor(known: Knowledge) -> None:
    items = json.loads(csl.bibliography(known.papers.values()))
    assert [item["id"] for item in items] == list(known.papers)
    for item, text in zip(items, rendered(items), strict=True):
        one = known.papers[item["id"]]
        words = re.findall(r"\w{4,}", one.title)
        assert [word for word in words if word.lower() not in text.lower()] == [], text
        assert not one.year or str(one.year) in text
        assert not one.authors or one.authors[0].family in text


def test_nasty_papers_are_set_by_a_csl_processor() -> None:
    odd = [
        paper(key="unknown-2020-one", title="100 % & $k$-NN {C}VPR <b>", authors=[], year=None, venue=None, claims=[]),
        paper(
            key="van-den-oord-2018-two", authors=[{"family": "van den Oord", "given": "Aäron"}], et_al=True, claims=[]
        ),
    ]
    texts = rendered([csl.csl(one) for one in odd])
    assert "NN {C}VPR" in texts[0]
    assert "van den Oord" in texts[1]
    assert csl.csl(odd[1])["author"][-1] == {"literal": "others"}


# --- the citation file, the command


def test_the_citation_file_is_valid() -> None:
    command = ["check_jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff"]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)


def export(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["--root", str(ROOT), "export", *arguments])
    assert done.exit_code == code, done.output
    return (done.stdout_bytes if code == 0 else done.stderr_bytes).decode()


def test_the_command_prints_what_the_site_publishes(files: dict[str, str], known: Knowledge, tmp_path: Path) -> None:
    assert export("json") == files["atlas.json"]
    assert export("csv", "claims") == files["csv/claims.csv"]
    assert export("csl") == files["papers.csl.json"]
    export("bibtex", "--out", str(tmp_path / "deep/papers.bib"))
    assert (tmp_path / "deep/papers.bib").read_text(encoding="utf-8") == files["papers.bib"]
    keys = [link.key for link in known.entries["token-merging"].papers]
    own = export("bibtex", "token-merging")
    assert own == files["bib/token-merging.bib"]
    assert list(parse_string(own, "bibtex").entries) == keys
    several = ("token-merging", "ToMe", "confidence-early-exit")
    keys = list(dict.fromkeys([*keys, *(link.key for link in known.entries["confidence-early-exit"].papers)]))
    assert list(parse_string(export("bibtex", *several), "bibtex").entries) == keys
    assert "did you mean" in export("csv", "claim", code=2)
    assert "name a table" in export("csv", code=2)


def test_exporting_needs_no_torch() -> None:
    code = "import sys, tools.export.api, tools.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
