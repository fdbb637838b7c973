"""Pictograms, equations beside lines of code, pages by result and by machine, and cards of links."""

from __future__ import annotations

import io
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from tests import knowledge_fixture as base
from tests import site_fixture as fixture
from tools.knowledge import Knowledge, load
from tools.knowledge.schema import Terms
from tools.site import annotated, cards, equations, figures, learn, model, pictogram, results
from tools.site.model import Atlas, Change, Material
from tools.site.pages import pages

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def real() -> Atlas:
    return Atlas(load(ROOT, check=False), Material())


# --- pictograms


def test_every_term_has_a_glyph_and_no_two_are_alike(real: Atlas) -> None:
    for axis, _ in pictogram.AXES:
        glyphs = pictogram.GLYPHS[axis]
        assert set(glyphs) == set(real.knowledge.axes[axis].terms)
        assert len(set(glyphs.values())) == len(glyphs)
        for shapes in glyphs.values():
            assert {what for what, _ in shapes} <= {"main", "also", "gone", "line"}


def test_a_pictogram_says_the_same_in_words_and_takes_its_colours_from_the_theme(real: Atlas) -> None:
    svg = pictogram.pictogram(real, real.knowledge.entries["token-merging"].axes)
    assert svg is not None
    tree = ET.fromstring(str(svg))
    assert tree.get("role") == "img"
    assert tree.get("aria-label") == "Why: spatial similarity; where: tokens; what is done: merge"
    assert not re.search(r"(?<!&)#[0-9a-f]{3,6}\b|fill=|style=", svg)
    numbers = [float(n) for d in re.findall(r' d="([^"]+)"', svg) for n in re.findall(r"(?<=M)-?[\d.]+", d)]
    assert 0 <= min(numbers) <= max(numbers) <= pictogram.GLYPH
    assert pictogram.pictogram(real, {"relation": Terms.model_validate(["irrelevance"])}) is None


# --- equations


@pytest.mark.parametrize(
    ("line", "latex"),
    [
        ("alpha = a * (b + c) ** 2", r"\alpha = a \cdot (b + c)^{2}"),
        ("y = (q @ k.mT / math.sqrt(d)).softmax(-1)", r"y = \text{softmax}(\frac{q \, k^{\top}}{\sqrt{d}})"),
        ("return a / (b / c)", r"\text{cost} = \frac{a}{b / c}"),
        ("return a - (b - c)", r"\text{cost} = a - (b - c)"),
        ("x = x - lr * g_t", r"x \leftarrow x - \text{lr} \cdot g_{\text{t}}"),
        ("x *= self.keep_rate + 1e-9", r"x \leftarrow x \cdot (\text{keep rate} + 10^{-9})"),
        ("e = -(p * p.log()).sum(dim=-1)", r"e = -\sum p \cdot \log(p)"),
        ("s = sum(w * x for x in xs)", r"s = \sum_{x \in \text{xs}} w \cdot x"),
        ("m = max(len(a) - 1, 1)", r"m = \max(|a| - 1, 1)"),
        ("low = (at + b).clamp(0, n - 1)", r"\text{low} = \min(\max(\text{at} + b, 0), n - 1)"),
        ("keep = scores[:, None] > 1 - tau", r"\text{keep} = [\text{scores} > 1 - \tau]"),
        ("x2 = x1 * float(b) + c[i]", r"x_{2} = x_{1} \cdot b + c_{i}"),
    ],
)
def test_a_line_that_computes_has_its_equation(line: str, latex: str) -> None:
    found = equations.equations(f"def cost():\n    {line}\n")
    assert unescape(re.search(r'alttext="([^"]*)"', found[2])[1]) == latex


@pytest.mark.parametrize(
    "line",
    [
        "a = b + c", "a = f'{b + c * d}'", "a = self.norm(b + c * d)", "a = [b * c + d]", "a = Bounds(b * c + d)",
        "a = torch.where(b > c, d * e, f)", "a = b[1:2] * c + d", "a = b.quantile(c * d + e, interpolation=f)",
        "a = b // c * d", "a = x1[i] * b + c", "a = " + " + ".join(f"name_{i}" for i in range(30)),
    ],
)  # fmt: skip
def test_other_lines_have_none(line: str) -> None:
    assert equations.equations(f"def f():\n    {line}\n") == {}


def test_an_equation_stands_beside_its_line() -> None:
    text = "def f(x):\n    # Why.\n    y = x * x + 1\n    z = 3\n    return y * z - 1\n"
    found = annotated.parts(text)
    assert [(part.note, len(part.equations), part.lines) for part in found] == [
        ("", 0, (1,)), ("Why.", 1, (3, 4)), ("", 1, (5,)),
    ]  # fmt: skip
    first, second = (said for said, _ in list(annotated.rendered(text, "a"))[1:])
    assert first.index("Why.") < first.index("<math ")
    assert "<math " in second


def test_lines_of_every_implementation_are_kept_in_order(real: Atlas) -> None:
    shown = 0
    for source in real.knowledge.sources.values():
        for file in source.files:
            text = (ROOT / file).read_text(encoding="utf-8")
            found = annotated.parts(text)
            lines = [n for part in found for n in part.lines]
            assert lines == sorted(set(lines)), file
            shown += sum(len(part.equations) for part in found)
    assert shown > 40


# --- results and machines


@pytest.fixture
def known() -> Knowledge:
    other = fixture.record(
        "noise", machine={"cpu": "Another", "cores": 1, "threads": 1, "memory_gb": 8.0}, date="2026-11-20"
    )
    return fixture.knowledge(fixture.record(), other)


def test_results_name_the_claims_that_were_held_against_them(known: Knowledge) -> None:
    atlas = Atlas(known, Material())
    found = results.rows(atlas)
    assert [row.record.scenario for row in found] == ["photos", "noise"], "newest first"
    assert [[claim.id for _, claim, _ in row.tried] for row in found] == [["c1"], []]
    text = {page.path: page.markdown for page in pages(known)}["results.md"]
    rows = re.findall(r"<tr data-.*?</tr>", text, re.DOTALL)
    assert len(rows) == 2
    assert 'data-verdict="partly"' in rows[0]
    assert 'href="papers/bolya-2023-token.html#c1"' in rows[0]
    assert 'href="techniques/token-merging.html#photos"' in rows[0]
    assert 'data-verdict="none"' in rows[1]
    assert "25\u00a0%" in rows[0]


def test_every_claim_that_we_tried_stands_at_one_result(real: Atlas) -> None:
    tried = [claim for row in results.rows(real) for _, claim, _ in row.tried]
    judged = [real.knowledge.judge(claim) for paper in real.papers for claim in paper.claims]
    assert len(tried) == sum(one.record is not None for one in judged) > 20


def test_machines_name_what_was_measured_on_each(known: Knowledge) -> None:
    text = {page.path: page.markdown for page in pages(known)}["machines.md"]
    assert re.findall(r"^## (.*?) \{#(.*)\}", text, re.MULTILINE) == [
        ("A CPU, 2 cores, 23 GiB", "a-cpu-2-cores-23-gib"), ("Another, 1 core, 8 GiB", "another-1-core-8-gib"),
    ]  # fmt: skip
    assert text.count(">1 result</a>") == 2
    assert 'href="results.html?machine=another-1-core-8-gib"' in text


# --- cards


def test_cards_are_pictures_that_hold_any_text(known: Knowledge, tmp_path: Path) -> None:
    entry = known.entries["token-merging"].model_copy(update={"name": "Word " * 40, "summary": "x" * 400})
    atlas = Atlas(replace(known, entries=known.entries | {entry.id: entry}), Material())
    assert cards.write(atlas, tmp_path) == len(known.entries) + 1
    for file in (tmp_path / cards.FOLDER).iterdir():
        assert Image.open(io.BytesIO(file.read_bytes())).size == cards.SIZE
    assert cards.card("a", "b", "c") == cards.card("a", "b", "c")


# --- the glossary


def test_the_glossary_holds_every_term_and_every_word_once(known: Knowledge) -> None:
    text = {page.path: page.markdown for page in pages(known)}["glossary.md"]
    terms = sum(len(axis.terms) for axis in known.axes.axes.values())
    words = [word for word, (_, there) in learn.WORDS.items() if there != learn.BENCHMARKS]
    assert text.count("<dt>") == terms + len(words)
    letters = re.findall(r"^## (.) ", text, re.MULTILINE)
    assert letters == sorted(set(letters))
    assert '<a href="axes/relation.html#irrelevance">Irrelevance</a>' in text


# --- what is new


def test_news_tell_what_git_says_of_the_files(known: Knowledge) -> None:
    entry, paper = "taxonomy/techniques/token-merging.yml", "papers/bolya-2023-token.yml"
    changes = (
        *2 * [Change("2026-11-30", "M", entry)], Change("2026-11-30", "D", "papers/gone.yml"),
        Change("2026-11-23", "M", paper), Change("2026-11-23", "A", paper), Change("2026-11-22", "M", entry),
    )  # fmt: skip
    text = {page.path: page.markdown for page in pages(known, Material(changes=changes))}["new.md"]
    days = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    said = {day[:10]: re.findall(r"<p>(.*?): ", day) for day in days}
    assert said == {
        "2026-11-30": ["Changed"], "2026-11-23": ["Papers added"], "2026-11-22": ["Added", "Measured"],
        "2026-11-20": ["Measured"],
    }  # fmt: skip
    assert days[0].count("token-merging.html") == 1


def test_the_history_is_that_of_the_files_of_the_knowledge(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        name = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    assert model._changes(tmp_path) == ()
    git("init", "--quiet")
    assert model._changes(tmp_path) == (), "no commit yet"
    for text in ("a", "b"):
        base.put(tmp_path, "papers/x.yml", text)
        base.put(tmp_path, "other/y.yml", text)
        git("add", ".")
        git("commit", "--quiet", "--message", text, "--date", f"2026-11-2{len(text)}T00:00:00")
    assert [(one.what, one.path) for one in model._changes(tmp_path)] == [("M", "papers/x.yml"), ("A", "papers/x.yml")]


def test_twelve_rivals_have_marks_that_differ_and_can_be_seen() -> None:
    marks = [figures.swatch("rival", index) for index in range(1, 13)]
    assert len(set(marks)) == 12
    assert all(re.search(r'<rect|<path d="[^"]*z"', mark) for mark in marks), (
        "marks are filled, so a line shows nothing"
    )
