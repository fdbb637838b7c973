"""The site's pages, figures, notebooks and link check, without a browser and without mkdocs."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import threading
import urllib.request
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from markdown import Markdown

from reference_impls import show
from reference_impls.accounting.record import Record
from tests import attack
from tests import knowledge_fixture as base
from tests import site_fixture as fixture
from tools import jupyter, numbers
from tools.cli import main
from tools.export.bibtex import bibtex
from tools.knowledge import Knowledge, load
from tools.knowledge.schema import Paper, Statements
from tools.knowledge.verdicts import MEANINGS
from tools.site import build, evidence, figures, guides, home, links, markup, notebooks, relations
from tools.site.figures import Axis, Mark, Series
from tools.site.model import Atlas, Material, Result, gather, of_entry
from tools.site.pages import navigation, pages

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


# --- numbers and figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.7e9, "1.70·10⁹"),
        (0.912, "0.912"),
        (12.04, "12"),
        (1234, "1,230"),
        (-0.5, "−0.5"),
        (3e-7, "3.00·10⁻⁷"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, text: str) -> None:
    assert numbers.number(value) == text


def test_quantities_and_durations_choose_their_unit() -> None:
    assert numbers.quantity(1.7e9, "MACs") == "1.7\u00a0GMACs"
    assert numbers.quantity(950, "B") == "950\u00a0B"
    assert [figures.duration(ms) for ms in (0.4, 12.04, 1500, 120_000)] == [
        "400\u00a0µs",
        "12\u00a0ms",
        "1.5\u00a0s",
        "2\u00a0min",
    ]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_even_and_cover_the_values(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # too close to tell apart
    ticks = figures.nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    step = ticks[1] - ticks[0]
    assert all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in pairwise(ticks))
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step


def test_an_axis_over_a_wide_positive_range_is_logarithmic() -> None:
    assert figures.make_scale([1, 1000], 0, 100, positive=True).log
    assert not figures.make_scale([1, 10], 0, 100, positive=True).log
    assert not figures.make_scale([0, 1000], 0, 100, positive=True).log
    assert figures.make_scale([1, 10], 0, 100, positive=True).low == 0, "a linear axis of costs starts at zero"
    accuracies = figures.make_scale([0.02, 1.0], 0, 100, positive=False, shares=True)
    assert (accuracies.low, accuracies.high) == (0, 1), "no accuracy is below 0 or above 1"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e12), st.floats(-1e3, 1e3)), min_size=1, max_size=12))
def test_a_figure_of_any_points_is_well_formed_and_inside_its_frame(points: list[tuple[float, float]]) -> None:
    marks = [Mark(x, y, f"r = {i}", f"point <{i}>") for i, (x, y) in enumerate(points)]
    series = [
        Series("dense & co", "baseline", marks[:1]),
        Series("ours", "technique", marks),
        Series("random", "control", marks),
    ]
    svg = figures.trade_off(
        series, Axis("MACs", positive=True), Axis("accuracy"), title="a < b", description="d", name="f"
    )
    tree = ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))
    assert tree.find(f"{SVG}title").text == "a < b"
    circles = tree.findall(f".//{SVG}circle")
    assert len(circles) == len(points)
    size = figures.PANEL
    assert all(0 <= float(c.get("cx")) <= size.width and 0 <= float(c.get("cy")) <= size.height for c in circles)
    assert not re.search(r"#[0-9a-f]{3,6}\b", svg), "colours come from the theme"


def test_labels_cover_neither_marks_nor_each_other() -> None:
    marks = [Mark(1 + i / 10, 0.9 - i / 1000, f"r = {i}") for i in range(12)]
    labels = figures.Labels(figures.PANEL, [])
    boxes = [labels.place([(60 + 8 * i, 100 + i)], m.label, "knob") for i, m in enumerate(marks)]
    assert 0 < sum(map(bool, boxes)) == len(labels.taken)
    assert not any(figures._overlap(a, b) for i, a in enumerate(labels.taken) for b in labels.taken[i + 1 :])


def test_a_huge_interval_is_cut_at_the_frame_and_does_not_flatten_the_figure() -> None:
    assert figures._within([0.9, 0.95], [0.1, 0.94]) == pytest.approx([0.9, 0.95, 0.85, 0.94])
    assert figures._within([0.9], [0.8, 1.0]) == pytest.approx([0.9, 0.8, 1.0])
    marks = [Mark(1, 0.9, y_interval=(-5, 5)), Mark(2, 0.95, y_interval=(0.94, 0.96))]
    svg = figures.trade_off([Series("a", "technique", marks)], Axis("x"), Axis("y"), title="", description="", name="f")
    (drawn,) = re.findall(r'class="whisker" d="([^"]*)"', svg)
    ends = [float(y) for y in re.findall(r"M[\d.-]+ ([\d.-]+)|V([\d.-]+)", drawn) for y in y if y]
    assert len(ends) == 4
    assert all(figures.PANEL.top <= y <= figures.PANEL.floor for y in ends)


def test_a_figure_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no mark"):
        figures.trade_off([], Axis("x"), Axis("y"), title="", description="", name="f")


# --- markup


def test_math_becomes_mathml_and_code_stays() -> None:
    html = markup.with_math("the cost $a_1 * b_2 < c$, `$x$`, 5$ and 6$, ```\n$y$\n```")
    assert html.count("<math ") == 1
    assert "`$x$`" in html
    assert "5$ and 6$" in html
    assert "*" not in re.sub(r"```.*", "", html, flags=re.DOTALL), "nothing that Markdown would read as emphasis"
    assert ET.fromstring(re.search(r"<math .*</math>", html)[0]) is not None


def test_a_prime_stands_beside_its_letter() -> None:
    assert "<mi>D′</mi>" in markup.math("2 N D D'")
    assert "<msup>" in markup.math("D^2")


def test_words_set_upright_are_one_identifier() -> None:
    assert "<mi>MACs</mi>" in markup.math(r"\mathrm{MACs}")


@pytest.mark.parametrize("latex", [r"\frac{1}{2", r"\left( x", "x^", r"\nosuchcommand x", r"\begin{matrix} a"])
def test_latex_that_cannot_be_read_is_named(latex: str) -> None:
    with pytest.raises(markup.MathError) as error:
        markup.math(latex)
    assert repr(latex) in str(error.value)


def test_foreign_html_keeps_its_table_and_loses_the_rest() -> None:
    dirty = '<style>td{}</style><table border=1 onclick="x()"><tr><td><a href="http://x">1</a><script>y()</script></table><b>open'
    assert markup.clean_html(dirty) == "<table><tr><td>1</td></tr></table><b>open</b>"


def test_links_are_relative_and_end_in_html() -> None:
    assert markup.href("techniques/a.md", "axes/relation.md", "merge") == "../axes/relation.html#merge"
    assert markup.href("index.md", "techniques/index.md") == "techniques/index.html"
    assert markup.href("a.md", "a.md", "x") == "#x"


NASTY = "abc &<>\"'\\`*_{}[]()#+-.!|~^$:=\n\t \x02\x03\ue000\ue001é∑"


@pytest.fixture(scope="module")
def page_reader() -> Any:
    """The Markdown of the pages, as mkdocs.yml configures it."""
    names, settings_of = [], {}
    for extension in yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["markdown_extensions"]:
        name, options = next(iter(extension.items())) if isinstance(extension, dict) else (extension, {})
        names.append(name)
        settings_of[name] = options
    return Markdown(extensions=names, extension_configs=settings_of)


class Seen(HTMLParser):
    """Text and elements of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_backticks_alone_make_code_of_plain_text() -> None:
    assert markup.with_code("`a_b` of extra.c_* is <i>") == "<code>a&#95;b</code> of extra.c&#95;&#42; is &lt;i&gt;"
    assert markup.with_code("one ` alone, &#96;b&#96;") == markup.escape("one ` alone, &#96;b&#96;")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from(NASTY), min_size=1, max_size=40))
@example("--8<-- 'CITATION.cff'")
@example("{: onclick=x }")
@example("&lt;b&gt; &#60; <!-- x -->")
def test_plain_text_passes_the_markdown_of_a_page_as_it_is(page_reader: Any, text: str) -> None:
    kept = "".join(markup.CONTROL.sub("", text).split())
    assume(kept)
    line = markup.escape(" ".join(text.split()))
    for source, shown in (
        (f"<p>{markup.escape(text)}</p>", kept),
        (f'- x <b title="{markup.escape(text)}">{line}</b>', f"x{kept}"),
        (markup.heading(text, 2, "here"), f"{kept}#"),  # the link to the section
    ):
        seen = Seen(page_reader.reset().convert(source))
        assert {tag for tag, _ in seen.tags} <= {"p", "ul", "li", "b", "h2", "a"}
        assert "".join(seen.text.split()) == shown


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*attack.PAYLOADS, *NASTY, "](", "<a href=", "javascript:", "```", "$x$"]), max_size=8))
def test_any_prose_is_made_of_known_elements_and_passes_the_page_unchanged(page_reader: Any, pieces: list[str]) -> None:
    text = "".join(pieces)
    for read, allowed in ((markup.prose, markup.PROSE_TAGS), (markup.paragraph, markup.PROSE_INLINE)):
        try:
            html = str(read(text))
        except markup.MathError:
            continue
        seen = Seen(html)
        for tag, attributes in seen.tags:
            if tag == "a":
                assert attributes == ("href", "rel")
            elif tag in markup.MATH_TAGS:
                assert set(attributes) <= markup.MATH_ATTRIBUTES | {"alttext"}
            elif tag == "div":
                assert attributes in (("class",), ("class", "tabindex"))
            else:
                assert tag in allowed
                assert attributes == ()
        assert all(re.match(r"https?://|mailto:", unescape(a)) for a in re.findall(r'href="([^"]*)"', html))
        through = Seen(page_reader.reset().convert(f"<div>{html}</div>"))
        assert through.tags[1:] == seen.tags
        assert through.text.split() == seen.text.split()


def test_prose_keeps_what_is_markdown() -> None:
    html = markup.prose(r"A *b* **c** `d_e` [f](https://g.org/h_i). \$5, $x^2$." + "\n\n- one\n- two\n\n$$y$$\n")
    for part in (
        "<em>b</em>",
        "<strong>c</strong>",
        "<code>d&#95;e</code>",
        '<a href="https://g.org/h&#95;i" rel="noopener">',
    ):
        assert part in html
    assert "&#36;5" in html
    assert html.count("<li>") == 2
    assert html.count("<math") == 2
    assert "<p><div" not in html
    assert markup.paragraph("- a\n- b") == "- a - b"


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("https://a.org/x?y#z", True), ("http://a.org", True), ("mailto:a@b.org", True), ("HTTPS://a.org", True),
        ("javascript:x", False), ("java\tscript:x", False), (" javascript:x", False), ("data:text/html,x", False),
        ("//a.org", False), ("/a", False), ("a.md", False), ("https:a", False), ("http://[", False), ("", False),
    ],
)  # fmt: skip
def test_only_pages_of_the_web_and_mailboxes_are_linked(address: str, fine: bool) -> None:
    assert (markup.safe(address) is not None) is fine
    assert ("<a " in markup.external(address, "x")) is fine


# --- evidence


def test_the_headline_takes_the_cheapest_point_of_small_loss() -> None:
    rows = {what: (value, small) for what, value, small in evidence.headline([fixture.record()])}
    assert rows["MACs saved"][0] == "25\u00a0%"
    assert rows["Wall-clock at these settings"][0] == "1.2×"
    assert "one thread" in rows["Wall-clock at these settings"][1]
    assert rows["Redundancy measured"][0] == "0.87"
    assert "0.12" in rows["Redundancy measured"][1]


def test_the_headline_names_what_the_best_control_saves() -> None:
    assert evidence.headline([fixture.record()])[0][2].endswith("Best control: none")
    point = fixture.variant(1_000_000_000, 0.9, 30.0, knobs={"r": 4})
    good = fixture.record(controls=[{"name": "one exit", "about": "Cut.", "points": [point]}])
    assert evidence.headline([good])[0][2].endswith("Best control: 75\u00a0% (one exit)")


def test_a_technique_that_only_loses_says_none() -> None:
    bad = fixture.record(points=[fixture.variant(3_000_000_000, 0.5, 120.0, knobs={"r": 4})])
    assert evidence.headline([bad])[0][1] == "none"
    both = dict((w, (v, s)) for w, v, s in evidence.headline([fixture.record(), bad]))  # noqa: C402
    assert "none in 1 of 2 scenarios" in both["MACs saved"][1]


def test_a_slowdown_is_called_slower() -> None:
    slow = fixture.record(points=[fixture.variant(3_000_000_000, 0.9, 200.0, knobs={"r": 4})])
    assert evidence.headline([slow])[1][1:2] == ("0.5×",)
    assert evidence.headline([slow])[1][2].startswith("slower")


def block(record: Record) -> str:
    result = Result(record, "token-merging")
    return evidence.block(result) + evidence.numbers(result)


def test_the_headline_tells_how_predictable_the_cost_of_an_item_is() -> None:
    def items(p50: float, p99: float) -> dict[str, float]:
        return {"n": 100, "macs_p50": p50, "macs_p99": p99, "ms_p50": p50 / 1e8, "ms_p99": p99 / 1e8}

    base = fixture.variant(4_000_000_000, 0.9, 100.0, items=items(4e9, 4e9))
    point = fixture.variant(3_000_000_000, 0.9, 80.0, knobs={"r": 4}, items=items(3e9, 3.4e9))
    spreading = fixture.record(baseline=base, points=[point])
    (cell,) = [row for row in evidence.headline([spreading]) if row[0] == "P99 - P50"]
    assert cell[1] == "10\u00a0%"
    assert "of the baseline 0\u00a0%; in time 4\u00a0ms, of the baseline 0\u00a0µs" in cell[2]
    assert not [row for row in evidence.headline([fixture.record()]) if row[0] == "P99 - P50"]


def test_every_number_of_a_figure_is_in_its_table() -> None:
    html = block(fixture.record())
    assert html.count('<svg class="atlas-figure"') == 2
    table = html[html.index("<table") :]
    for text in ("4,000,000,000", "75.0\u00a0%", "1.25×", "Control: random merging", "0.89 to 0.91"):
        assert text in table, text
    assert "Gain" not in table
    assert "ratios of the median times" in table


def test_a_speed_up_of_paired_rounds_stands_with_its_interval_and_gains_with_theirs() -> None:
    more = {
        "speed_up": {"value": 1.3, "low": 1.2, "high": 1.4, "n": 15},
        "gain": {"baseline": {"value": -0.02, "n": 3}},
    }
    record = fixture.record(points=[fixture.variant(3_000_000_000, 0.9, 80.0, knobs={"r": 4}, **more)])
    html = block(record)
    assert "<td>1.30×<small>1.20 to 1.40, paired</small></td>" in html
    assert "−0.02 over baseline" in html
    assert "medians over paired rounds where marked" in html
    what, value, small = evidence.headline([record])[1]
    assert (what, value) == ("Wall-clock at these settings", "1.3×")
    assert small.endswith("paired rounds, 95 % interval 1.2 to 1.4")
    assert evidence.headline([record, fixture.record()])[1][2].endswith(
        "paired rounds in 1 of 2 settings, else ratio of medians"
    )


def test_tables_of_a_record_are_shown_with_intervals_and_what_they_are() -> None:
    rows = [["block <0>", {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}, True], ["all", 2, None]]
    table = {"about": "By & by.", "columns": ["where", "share", "kept"], "rows": rows}
    html = block(fixture.record(tables={"parts": table}))
    shown = html[html.index("Further numbers: parts") :]
    assert "<caption>By &amp; by.</caption>" in shown
    assert '<th scope="row">block &lt;0&gt;</th>' in shown
    assert "<td>0.5 (0.4 to 0.6)</td>" in shown
    assert "<td>yes</td>" in shown


def joint() -> Record:
    """Token merging and token dropping on the same model, in one run."""
    points = [
        fixture.variant(3_000_000_000, 0.9, 80.0, knobs={"r": 4}, technique="token-merging"),
        fixture.variant(1_000_000_000, 0.9, 50.0, knobs={"r": 8}, technique="token-dropping"),
    ]
    return fixture.record("meeting", technique=None, benchmark="token-reduction", points=points)


def test_where_techniques_meet_each_is_shown_beside_its_rivals() -> None:
    result = of_entry(joint(), "token-merging")
    assert result.anchor == "token-reduction-meeting"
    assert evidence.headline([result.record])[0][1] == "25\u00a0%", "what it saves itself, not its rival"
    html = re.sub(r">\s+<", "><", evidence.block(result) + evidence.numbers(result))
    assert "Technique</th><td>r = 4</td>" in html
    assert "Rival: token dropping</th><td>r = 8</td>" in html
    assert html.count('<g class="series rival-1">') == 3, "in both panels and in the key"


def test_a_joint_record_stands_on_the_page_of_every_technique_in_it(known: Knowledge) -> None:
    fields = {"id": "they-meet", "title": "T", "statement": "S.", "support": [{"result": "token-reduction/meeting"}]}
    met = replace(
        known,
        meetings={"token-reduction": [joint()]},
        benchmarks=frozenset({"token-reduction"}),
        principles=Statements.model_validate({"about": "A.", "statements": [fields]}),
    )
    found = {p.path: p.markdown for p in pages(met)}
    for id_, rival in (("token-merging", "token dropping"), ("token-dropping", "token merging")):
        assert "{#token-reduction-meeting}" in found[f"techniques/{id_}.md"]
        assert f"Rival: {rival}" in found[f"techniques/{id_}.md"]
        assert f"Rival: {rival}" in found[f"numbers/{id_}.md"]
        assert 'href="../principles.html#they-meet"' in found[f"techniques/{id_}.md"]
    assert '<a href="techniques/token-merging.html#token-reduction-meeting">' in found["principles.md"]


def test_a_sweep_over_two_knobs_is_one_line_per_rule() -> None:
    points = [
        fixture.variant(10**9 * (3 - i), 0.9, 50.0, knobs={"t": i / 10, "rule": rule})
        for rule in ("a", "b")
        for i in (0, 1)
    ]
    series = evidence._series(Result(fixture.record(knobs=["t", "rule"], points=points), "token-merging"))
    assert [(name, len(marks), joined) for name, kind, marks, joined in series if kind == "technique"] == [
        ("a", 2, True),
        ("b", 2, True),
    ]


# --- pages


SOURCE = '''"""A module."""
from reference_impls.hosts.vit import blocks
def other(): pass

def match(x):
    return "</code>"

class TokenMerging:
    execution = "real"
    waivers = {"no-drift": "it carries no state"}
    def apply(self): pass
'''


@pytest.fixture
def known(tmp_path: Path) -> Knowledge:
    for name, text in {"techniques/token_merging.py": SOURCE, "hosts/vit.py": '"""Plain ViTs.\n\nMore."""'}.items():
        path = tmp_path / "reference_impls" / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    return fixture.knowledge(fixture.record(), root=tmp_path)


@pytest.fixture
def material(known: Knowledge) -> Material:
    stream = {"output_type": "stream", "name": "stdout"}
    cells = (
        {"cell_type": "markdown", "source": "# The notebook\n\nAn $x$."},
        {"cell_type": "code", "source": "print(1)", "outputs": [stream | {"text": "a\n\n"}, stream | {"text": "<b>"}]},
    )
    notebook = notebooks.Notebook("token-merging", "notebooks/token_merging.py", cells, 3.2)
    return gather(known, {"token-merging": notebook})


@pytest.fixture
def texts(known: Knowledge, material: Material) -> dict[str, str]:
    return {p.path: p.markdown for p in pages(known, material)}


def test_pages_are_a_pure_function_with_unique_paths(known: Knowledge, material: Material) -> None:
    first, second = pages(known, material), pages(known, material)
    assert first == second
    assert len({p.path for p in first}) == len(first)
    assert {p.path for p in first} >= {
        "index.md",
        "techniques/index.md",
        "techniques/token-merging.md",
        "techniques/token-dropping.md",
        "axes/relation.md",
        "axes/index.md",
        "papers/index.md",
        "papers/bolya-2023-token.md",
        "notebooks/token-merging.md",
    }
    listed = re.findall(r"[\w/-]+\.md", str(navigation(first)))
    assert {p.path for p in first if not p.path.startswith(("numbers/", "sources/"))} <= set(listed), (
        "every page is in the navigation"
    )


def test_the_entry_answers_first_and_shows_everything(texts: dict[str, str]) -> None:
    text = texts["techniques/token-merging.md"]
    order = [
        "# Token merging",
        '<p class="atlas-lead">Average the most similar',
        "ToMe",
        "atlas-actions",
        "atlas-strip",
        "## When to use it",
        "## When not to",
        "## Definition",
        "atlas-picture",
        "## Algorithm",
        "## Cost model",
        "## Measured trade-off",
        "## Measured redundancy",
        "## What the papers say",
        "## What an implementation must hold",
        "## Classification",
        "## Limits",
        "## How ours departs",
        "## Checks",
        "## Implementation",
        "notebooks/token&#95;merging.py</a>",
        "## Relations",
        "## What it bears on",
        "## Papers and citation",
        "@inproceedings",
        "taxonomy/techniques/token-merging.yml",
    ]
    assert [part for part in order if part not in text] == []
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)
    assert 'href="../sources/token-merging.html#src0-5"' in text
    assert 'id="src0-5"' in texts["sources/token-merging.md"]
    actions = text[text.index("atlas-actions") :].partition("</p>")[0]
    assert re.findall(r'href="([^"]+)">([^<]+)<', actions) == [
        ("#implementation", "Run"), ("../notebooks/token-merging.html", "Notebook"),
        ("../notebooks/token-merging.ipynb", ".ipynb"), ("../sources/token-merging.html", "Source"),
        ("#papers-and-citation", "Cite"), ("#edit", "Edit"),
    ]  # fmt: skip
    provenance = text[: text.index("Measured 2026")].rpartition("<details")[2]
    assert "<summary>Data, model and machine" in provenance, "provenance is folded"
    assert "</details>" not in provenance
    hover = re.search(r'<abbr title="(About [^"]+)"', text)[1]
    assert unescape(hover) == 'About <spatial_similarity> & "more".', "definitions on hover"
    assert "it carries no state" in text
    assert "Plain ViTs." in text
    assert "redundancy run token-merging" in text
    assert "A CPU" in text
    assert "2026-11-22" in text


def test_paper_numbers_and_ours_stand_in_separate_columns(texts: dict[str, str]) -> None:
    text = texts["techniques/token-merging.md"]
    claims = " ".join(text[text.index("## What the papers say") : text.index("## What an implementation")].split())
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', claims)
    assert heads == ["Claim, in our words", "Where", "In the paper", "Measured here", "Verdict"]
    row = re.findall(r"<td[^>]*> ?(.*?)</td>", claims[claims.index("Twice as fast") :])
    assert "section 5.1, table 4" in row[0]
    assert row[1].startswith("2 times")
    assert row[2].startswith("1.25")
    assert "2 ± 0.2 times or more" in row[2]
    assert "partly" in row[3]


def test_terms_named_in_a_ruling_lead_to_their_definitions(texts: dict[str, str]) -> None:
    text = texts["axes/relation.md"]
    assert '<a href="#irrelevance">irrelevance</a>' in text
    assert '<a href="exploitation.html#drop">drop</a>' in text
    assert "<code>neither</code>" in text


def test_relations_are_read_from_both_ends(known: Knowledge) -> None:
    system = fixture.entry(id="both", name="Both", aliases=[], kind="system", parts=["token-merging"], relations=[])
    general = [{"type": "generalises", "target": "token-dropping", "note": "It *merges* into nothing."}]
    wide = fixture.entry(id="reduction", name="Reduction", aliases=[], relations=general)
    grown = replace(known, entries=known.entries | {"both": system, "reduction": wide})
    found = {p.path: p.markdown for p in pages(grown)}
    assert 'composes with</span> <a href="token-dropping.html">' in found["techniques/token-merging.md"]
    assert 'is a part of</span> <a href="both.html">' in found["techniques/token-merging.md"]
    assert 'has the part</span> <a href="token-merging.html">' in found["techniques/both.md"]
    dropping = found["techniques/token-dropping.md"]
    assert 'composes with</span> <a href="token-merging.html">' in dropping
    assert 'is generalised by</span> <a href="reduction.html">' in dropping
    assert "It <em>merges</em> into nothing." in dropping
    page = found["relations.md"]
    assert page.count('class="edge composes-with" data-ends') == 1
    assert page.count('class="edge generalises" data-ends="reduction token-dropping"') == 1
    assert page.count('class="edge has-part" data-ends="both token-merging"') == 1
    assert re.findall(r"^## (.*) \{", page, re.MULTILINE) == ["Generalises", "Has the part", "Composes with"]


@pytest.fixture(scope="module")
def real() -> Atlas:
    return Atlas(load(ROOT, check=False), Material())


def test_the_figure_of_relations_holds_everything_and_follows_the_theme(real: Atlas) -> None:
    found = relations.edges(real.knowledge.entries)
    svg = relations.figure(real, found)
    assert svg == relations.figure(real, found), "the layout is deterministic"
    tree = ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))
    nodes = [a.get("data-node") for a in tree.iter(f"{SVG}a") if a.get("data-node")]
    assert sorted(nodes) == sorted(real.knowledge.entries)
    ends = [g.get("data-ends") for g in tree.iter(f"{SVG}g") if g.get("data-ends")]
    assert sorted(ends) == sorted(f"{e.source} {e.target}" for e in found)
    assert not re.search(r"(?<!&)#[0-9a-f]{3,6}\b", svg), "colours come from the theme"
    spots = [(t.get("x"), t.get("y")) for t in tree.iter(f"{SVG}text")]
    assert len(set(spots)) == len(spots), "no label stands on another"
    columns: dict[str, list[float]] = {}
    for x, y in spots:
        columns.setdefault("left" if float(x) < relations.WIDTH / 2 else "right", []).append(float(y))
    assert all(b - a >= relations.ROW - 1e-6 for ys in columns.values() for a, b in pairwise(sorted(ys)))
    heights = [max(ys) for ys in columns.values()]
    assert min(heights) > 0.7 * max(heights), "the sides are balanced"


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("pqrstu"), st.integers(1, 7), min_size=1),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30),
)
def test_the_layout_places_every_entry_once_for_any_graph(sizes: dict[str, int], pairs: list[tuple[int, int]]) -> None:
    groups = {name: [f"{name}{n}" for n in range(size)] for name, size in sizes.items()}
    ids = [i for some in groups.values() for i in some]
    made = relations.layout(groups, [(ids[a % len(ids)], ids[b % len(ids)]) for a, b in pairs])
    assert sorted(made.places) == sorted(ids)
    assert len(set(made.places.values())) == len(ids)
    for name, some in groups.items():
        side, top = next((side, y) for heading, side, y in made.headings if heading == name)
        rows = sorted(made.places[i] for i in some)
        assert rows == [(side, pytest.approx(top + (n + 1) * relations.ROW)) for n in range(len(some))]


def test_statements_name_what_they_rest_on_and_whose_reading_it_is(texts: dict[str, str]) -> None:
    problems, rules = (re.sub("(?<!\n)\n(?!\n)", " ", texts[name]) for name in ("open-problems.md", "principles.md"))
    for text in (problems, rules, texts["hard-cases.md"]):
        assert "The project's own reading." in text
    assert "## Nobody knows when to merge {#when-to-merge}" in problems
    assert "No measure says <em>beforehand</em>" in problems
    assert (
        'Twice as fast. (<a href="papers/bolya-2023-token.html#c1">Bolya et al. 2023</a>, section 5.1, table 4; '
        in problems
    )
    assert '<span class="atlas-verdict partly">' in problems
    assert '<a href="techniques/token-merging.html#photos">A ViT on photos</a> (Token merging, 2026-11-22)' in rules
    entry = texts["techniques/token-merging.md"]
    for link in (
        "principles.html#detection-is-cheap",
        "open-problems.html#when-to-merge",
        "hard-cases.html#merging-tokens",
    ):
        assert f'href="../{link}"' in entry


def test_a_hard_case_shows_the_ruling_and_what_else_fits(texts: dict[str, str]) -> None:
    text = texts["hard-cases.md"]
    assert '<div class="atlas-case" id="merging-tokens">' in text
    ruled = text[text.index("atlas-ruled") :]
    assert ruled.index("Spatial similarity") < ruled.index("also fits") < ruled.index("Irrelevance")
    assert "<em>number that is ranked</em>" in text
    assert 'Decides <a href="techniques/token-merging.html">Token merging</a>' in text


def test_papers_count_what_is_confirmed_and_each_says_what_is_not(known: Knowledge) -> None:
    bare = {"key": "unknown-2020-word", "title": "A $title$", "kind": "analysis", "summary": "S.", "axes": {}}
    bare |= {"verified": {"source": "a list", "on": "2026-11-22"}}
    part = {"key": "liu-2021-part", "title": "Part", "authors": [{"family": "Liu"}], "et_al": True, "year": 2021}
    papers = {p.key: p for p in (fixture.PAPER, *(Paper.model_validate(bare | more) for more in ({}, part)))}
    found = {p.path: p.markdown for p in pages(replace(known, papers=papers))}
    index = found["papers/index.md"]
    counts = "<b>1</b> with all authors, <b>2</b> with the year, <b>1</b> with the venue, <b>1</b> with an identifier"
    assert counts in index
    assert "<b>2</b> claims in <b>1</b> of them" in index
    assert re.search(r'<tr data-year="2021" data-kind="analysis" data-missing="authors venue identifier"', index)
    assert re.search(r'<tr data-year="2023" data-kind="method"[^>]* data-relation="spatial&#95;similarity"', index)
    for name in ("year", "relation", "kind", "missing"):
        assert f'<select id="f-{name}"' in index
    text = found["papers/unknown-2020-word.md"]
    for what in ("all authors", "the year", "the venue", "an identifier"):
        assert f"{what} not confirmed" in text
    assert "# A &#36;title&#36;" in text
    assert "Liu and others" in found["papers/liu-2021-part.md"]
    paper = found["papers/bolya-2023-token.md"]
    assert "not confirmed" not in paper
    assert "The paper introduces it." in paper
    assert "Place of this paper in the taxonomy" in paper
    sections = {p.title: p.section for p in pages(replace(known, papers=papers)) if p.path.startswith("papers/")}
    assert sections == {"Papers": "", "Token Merging": "2023", "Part": "2021", "A $title$": "Year not confirmed"}


def test_the_home_page_shows_what_runs_and_counts_the_drafts(texts: dict[str, str]) -> None:
    text = texts["index.md"]
    cards = text[text.index("## Entries that run") :]
    assert cards.count("<li ") == 1
    assert "1 more entry is a draft" in cards
    assert "<b>2</b> entries" in text
    assert 'class="draft" data-relation' in texts["techniques/index.md"]


def test_the_navigation_takes_titles_as_html_and_groups_many_pages(known: Knowledge) -> None:
    named = known.entries["token-dropping"].model_copy(update={"name": "A <b> & c"})
    text = str(navigation(pages(replace(known, entries=known.entries | {"token-dropping": named}))))
    assert "{'A &lt;b&gt; &amp; c': 'techniques/token-dropping.md'}" in text
    assert text.index("Runs here") < text.index("techniques/token-merging.md") < text.index("Draft")
    assert "'2023': [{" in text


def test_claims_that_nobody_tried_have_no_columns_for_it(known: Knowledge) -> None:
    claims = [c for c in fixture.PAPER.claims if c.check is None]
    untried = fixture.PAPER.model_copy(update={"claims": tuple(claims)})
    text = {p.path: p.markdown for p in pages(replace(known, papers={untried.key: untried}))}[
        "papers/bolya-2023-token.md"
    ]
    assert "none was tried here yet" in text
    assert "Measured here" not in text


def test_the_data_lie_beside_the_pages(known: Knowledge, tmp_path: Path) -> None:
    build.write(pages(known), build.data(known), ROOT, tmp_path)
    index = json.loads((tmp_path / "docs/api/v1/index.json").read_text(encoding="utf-8"))
    assert all((tmp_path / "docs/api/v1" / one["path"]).is_file() for one in index["files"])
    for target in re.findall(r"\((api/v1/[^)]+)\)", (ROOT / "tools/site/docs/api.md").read_text(encoding="utf-8")):
        assert (tmp_path / "docs" / target).is_file(), target


def test_the_examples_of_the_data_page_run(known: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write(pages(known), build.data(known), ROOT, tmp_path)
    page = (ROOT / "tools/site/docs/api.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path / "docs")
    lines: list[str] = []
    monkeypatch.setattr("builtins.print", lambda line: lines.append(line))
    exec(re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1], {"__name__": "example"})
    assert lines == ["token-merging/photos: 50% of the MACs, accuracy 0.8"]
    shell = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(shell) == 2
    if shutil.which("jq"):
        monkeypatch.chdir(tmp_path / "docs/api/v1")
        answers = [subprocess.run(["sh", "-c", s], capture_output=True, text=True, check=True).stdout for s in shell]
        assert answers == ["", "entry:token-dropping\n"]


def test_a_draft_says_that_nothing_was_measured(texts: dict[str, str]) -> None:
    text = texts["techniques/token-dropping.md"]
    assert "nothing on this page was measured here" in text
    assert "## Measured trade-off" not in text


def test_a_draft_says_what_it_lacks(texts: dict[str, str]) -> None:
    text = texts["techniques/token-dropping.md"]
    assert '<a href="#what-is-missing">' in text
    missing = text.partition("## What is missing\n")[2].partition("<p class")[0]
    assert "<li><code>axis stage</code>: What stage? One of: training, inference</li>" in missing
    assert "<li><code>notebooks/token&#95;dropping.py</code>: " in missing
    assert "What is missing" not in texts["techniques/token-merging.md"]


def test_the_map_links_its_cells_and_marks_the_empty_ones(texts: dict[str, str]) -> None:
    text = texts["index.md"]
    assert text.count('class="cell empty"') == 3 * 2 - 2
    assert 'href="techniques/index.html?relation=spatial_similarity&amp;location=tokens"' in text
    assert "1 papers" not in re.sub(r"<[^>]+>", "", text)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 9, 40])
def test_the_colour_scale_never_falls_and_uses_its_range(most: int) -> None:
    steps = [home.heat(n, most) for n in range(1, most + 1)]
    assert steps == sorted(steps)
    assert steps[0] == 1
    assert steps[-1] == min(4, most)


def test_a_notebook_page_keeps_its_heading_first(texts: dict[str, str]) -> None:
    text = texts["notebooks/token-merging.md"]
    assert re.search(r"---\n\n# The notebook\n", text)
    assert "&lt;b&gt;" in text
    assert "a&#10;&#10;&lt;b&gt;" in text, "streams are joined, and no blank line ends the block"


def test_bibtex_reads_back_with_an_independent_parser() -> None:
    from pybtex.database import parse_string

    found = parse_string(bibtex(fixture.PAPER), "bibtex").entries["bolya-2023-token"]
    assert found.type == "inproceedings"
    assert [p.last_names for p in found.persons["author"]] == [["Bolya"], [r"M{\"{u}}ller"], ["{Dai}"]]
    assert found.fields["title"] == r"{Token Merging: Your ViT \& \textless{}More\textgreater{}}"
    assert bibtex(fixture.PAPER).isascii()


# --- notebooks


NOTEBOOK = """# %% [markdown]
# # A notebook
# %%
import os, matplotlib.pyplot as plt
from reference_impls.shared import VALUE
print(VALUE, os.environ["OMP_NUM_THREADS"])
# %%
plt.plot([1, 2]); plt.title("a title"); plt.show()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "notebooks/a_note.py": NOTEBOOK,
        "reference_impls/__init__.py": "",
        "reference_impls/shared.py": "VALUE = 41\n",
        "reference_impls/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_notebook_runs_once_and_again_only_when_something_it_reaches_changed(root: Path) -> None:
    lines: list[str] = []
    first = notebooks.executed(root, progress=lines.append)["a-note"]
    assert [line.split(":")[1].split()[0] for line in lines] == ["running", "done"]
    html = notebooks.render(first)
    assert "41 1" in html
    assert "a title" in html
    assert "var(--atlas-technique-1)" in html
    assert "currentColor" in html
    assert "%config" not in html
    assert "#123456" not in html
    assert notebooks.executed(root, run=False) == {"a-note": first}, "from the cache"

    path = root / "notebooks" / "a_note.py"
    key = notebooks.key(root, "a-note", path)
    (root / "reference_impls" / "other.py").write_text("X = 1\n", encoding="utf-8")
    assert notebooks.key(root, "a-note", path) == key, "a module that it does not reach"
    (root / "reference_impls" / "shared.py").write_text(
        '"""What is shared."""\n\nVALUE = 41  # of it\n', encoding="utf-8"
    )
    assert notebooks.key(root, "a-note", path) == key, "only comments and docstrings differ"
    (root / "reference_impls" / "shared.py").write_text("VALUE = 42\n", encoding="utf-8")
    assert notebooks.key(root, "a-note", path) != key
    assert notebooks.executed(root, run=False) == {}


def test_a_damaged_cache_is_run_again_never_shown(root: Path) -> None:
    path = root / "notebooks" / "a_note.py"
    file = notebooks._cache_file(root, "a-note", path)
    file.parent.mkdir(parents=True)
    file.write_text('{"cells": [', encoding="utf-8")
    assert notebooks.cached(root, "a-note", path) is None


def test_a_failing_notebook_names_the_cell_and_the_error(root: Path) -> None:
    (root / "notebooks" / "a_note.py").write_text("# %%\nx = 1\n# %%\nprint('before')\nx / 0\n", encoding="utf-8")
    with pytest.raises(notebooks.NotebookError, match=r"a_note\.py, cell 2 \(print\('before'\)\)") as error:
        notebooks.executed(root, progress=lambda _: None)
    assert "ZeroDivisionError" in str(error.value)
    assert not list((root / notebooks.CACHE).glob("*")), "nothing is cached"


def test_a_missing_asset_is_said_in_one_line(root: Path) -> None:
    code = "# %%\nclass MissingAsset(Exception): pass\nraise MissingAsset('run: redundancy assets get clips')\n"
    (root / "notebooks" / "a_note.py").write_text(code, encoding="utf-8")
    with pytest.raises(notebooks.NotebookError) as error:
        notebooks.executed(root, progress=lambda _: None)
    assert str(error.value) == "notebooks/a_note.py needs an asset that is not here: run: redundancy assets get clips"


def test_every_notebook_is_plain_percent_script_without_outputs() -> None:
    for path in notebooks.sources(ROOT).values():
        text = path.read_text(encoding="utf-8")
        assert text.startswith(("# %%", "# ---")), path
        assert re.search(r"^# # \S", text, re.MULTILINE), f"{path} has no title"


# --- the built site


def test_the_link_check_finds_every_fault(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="x">A</h1><p id="x"></p><a href="b.html#y">ok</a><a href="b.html#z">anchor</a><a href="c.html">page</a>'
        '<a href="https://elsewhere.org">fine</a><img src="https://elsewhere.org/i.png"><script src="s.js"></script>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<p id="y"></p><a href="a.html?q=1#x">ok</a>', encoding="utf-8")
    (tmp_path / "s.css").write_text(
        "a { background: url('https://elsewhere.org/x.png') } b { background: url(data:x) }", encoding="utf-8"
    )
    assert links.check(tmp_path) == [
        "a.html: the id 'x' occurs twice",
        "a.html: b.html#z names an anchor that is not on b.html",
        "a.html: c.html leads nowhere",
        "a.html: loads https://elsewhere.org/i.png from another host",
        "a.html: s.js leads nowhere",
        "s.css: loads https://elsewhere.org/x.png from another host",
    ]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (base.NOTEBOOK, "# %%\nx = (\n", f"{base.NOTEBOOK}:2:5: E704 not Python"),
        (base.NOTEBOOK, "# %% [markdown]\n# # T\nx = 1\n", f"{base.NOTEBOOK}:3:1: E804 code under a markdown cell"),
        (base.NOTEBOOK, "<<<<<<< a\n# %%\n=======\n>>>>>>> b\n", f"{base.NOTEBOOK}:1:1: E117 a merge"),
        ("reference_impls/broken.py", "def f(:\n", "reference_impls/broken.py:1:7: not Python"),
    ],
)
def test_what_is_no_python_is_said_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, says: str
) -> None:
    root = base.write(tmp_path / "atlas")
    base.put(root, base.NOTEBOOK, base.FILES[base.NOTEBOOK] + "from reference_impls import broken\n")
    base.put(root, file, text)
    monkeypatch.setattr(build, "say", lambda line: None)
    for command in ("build", "materialise"):
        result = CliRunner().invoke(main, ["--root", str(root), "site", command])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert says in result.stderr


def test_the_server_takes_the_next_free_port_and_serves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello", encoding="utf-8")
    with build.server(tmp_path, range(1)) as first:
        port = first.server_address[1]
        with pytest.raises(build.SiteError, match="no free port"):
            build.server(tmp_path, range(port, port + 1))
        threading.Thread(target=first.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=10) as answer:
            assert answer.read() == b"hello"
        first.shutdown()


def test_the_guide_shows_every_family_with_its_versions(real: Atlas) -> None:
    atlas = Atlas(real.knowledge, gather(real.knowledge, {}))
    (page,) = guides.pages(atlas)
    assert guides.FAMILIES not in page.markdown
    for technique, families in atlas.material.families.techniques.items():
        table = page.markdown.partition(f"### {real.knowledge.entries[technique].name}")[2].partition("</table>")[0]
        assert [row.count("<tr>") for row in table.split("<tbody>")] == [1, len(families)]
        for one in families:
            assert f'<th scope="row">{markup.escape(one.family)}</th>' in table
            assert one.status == "exact" or f"refused: {markup.escape(one.because)}" in table
    assert guides.pages(Atlas(real.knowledge, Material())) == []


def test_the_strip_names_every_measure_that_its_range_is_over() -> None:
    record = fixture.record()
    other = record.model_copy(update={"redundancy": record.redundancy.model_copy(update={"measure": "another"})})
    *_, (what, _, about) = evidence.headline([record, other], study=True)
    assert what == "Redundancy measured"
    assert about.startswith(f"another or {record.redundancy.measure}; ")


def test_the_page_on_numbers_tells_every_verdict_and_how_many_there_are(real: Atlas) -> None:
    known = real.knowledge
    (page,) = guides.verdicts(Atlas(known, gather(known, {})))
    assert guides.VERDICTS not in page.markdown
    assert guides.SPREAD not in page.markdown
    assert "saves" in page.markdown.partition("fig-spread-added")[2]
    table = page.markdown.partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [re.findall(r"<t[hd][^>]*>\s*(.*?)\s*</t[hd]>", row) for row in table.split("</tr>") if "<tr" in row]
    assert [re.sub("<[^>]+>", "", word) for word, *_ in cells] == list(MEANINGS)
    assert sum(int(count) for _, count, _ in cells) == sum(len(paper.claims) for paper in known.papers.values())
    style = (ROOT / "tools/site/docs/assets/atlas.css").read_text(encoding="utf-8")
    assert all(f".atlas-verdict.{word.replace(' ', '-')}" in style for word in MEANINGS)
    assert guides.verdicts(Atlas(known, Material())) == []


@pytest.mark.parametrize("name", ["apply", "contract"])
def test_the_code_of_the_guides_runs(name: str) -> None:
    text = (ROOT / "tools" / "site" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), f"{name}.md", "exec"), {"__name__": f"guide_{name}"})


def test_the_filter_and_copy_script_stays_small() -> None:
    assert len((ROOT / "tools/site/docs/assets/atlas.js").read_text(encoding="utf-8").splitlines()) < 180


def test_long_drawing_code_is_folded_and_other_code_is_not() -> None:
    drawing = "figure, axis = plt.subplots()\n" + "axis.plot([1, 2])\n" * 12
    assert "<details><summary>Code of the figure, 13 lines" in notebooks._code(drawing)
    assert "<details>" not in notebooks._code("x = 1\n" * 13)
    assert "<details>" not in notebooks._code("plt.show()")
    imports = "from a import b\nimport matplotlib.pyplot as plt\n" + "x = 1\n" * 12 + "plt.style.use(x)"
    assert "<details>" not in notebooks._code(imports), "imports are no drawing"


# --- cost models


def words_of(html: str) -> list[str]:
    """The lines of a cost model, each formula as its LaTeX."""
    shown = re.sub(r'<math[^>]* alttext="([^"]*)".*?</math>', lambda m: f"[{unescape(m[1])}]", html)
    return [unescape(line) for line in re.findall(r"<p>(.*?)</p>", shown)]


def test_a_cost_model_has_a_line_for_each_clause_and_breaks_in_front_of_signs() -> None:
    html = markup.cost_model(
        r"\sum_{l} \left[ 4 n_l D^2 + (K + V) \right] \quad\text{instead of}\quad L N_\text{x}, \qquad n_l = N - r"
        r" \;\to\; c \text{ (a, b)}"
    )
    assert words_of(html) == [
        r"[\sum_{l} [ 4 n_l D^2] [{}+ (K + V) ]]", r"instead of [L N_\text{x},]", "[n_l] [{}= N] [{}- r]",
        "→ [c] (a, b)",
    ]  # fmt: skip
    assert html.count("<math ") == html.count('display="inline" displaystyle="true"') == 7


def test_no_piece_of_a_cost_model_is_wide_and_none_is_lost(real: Atlas) -> None:
    for entry in real.knowledge.entries.values():
        if not entry.cost_model:
            continue
        lines = words_of(markup.cost_model(entry.cost_model))
        pieces = [piece for line in lines for piece in re.findall(r"\[(.*?)\](?= |$)", line)]
        assert max(len(re.sub(r"\\[A-Za-z]+|[{}_^\s]", "", piece)) for piece in pieces) <= 40, entry.id
        kept, whole = (
            sorted(re.sub(r"\\[A-Za-z]+|[^A-Za-z0-9+=]", "", text)) for text in ("".join(lines), entry.cost_model)
        )
        assert kept == whole, entry.id


SYMBOL = re.compile(
    r"\\(?:bar|hat|mathcal)\s*\{?\s*[A-Za-z]\}?|\\(?:alpha|gamma|delta|eta|theta|kappa|lambda|rho|tau|phi)|[A-Za-z]"
)
NO_SYMBOL = re.compile(
    r"\\(?:text|mathrm)\{[^}]*\}|\\(?!(?:bar|hat|mathcal|alpha|gamma|delta|eta|theta|kappa|rho|tau))[A-Za-z]+"
)


def test_every_letter_of_a_cost_model_is_explained(real: Atlas) -> None:
    """In the list of symbols or in the cost model itself, as by `q = \\text{share of samples}`; not indices."""
    explained = [entry for entry in real.knowledge.entries.values() if entry.symbols]
    assert len(explained) > 100
    for entry in explained:
        assert entry.cost_model, entry.id
        definitions = re.split(r"[,;]", re.split(r",\s*\\(?:;|q?quad)", entry.cost_model, maxsplit=1)[-1])
        told = [
            *entry.symbols,
            *re.findall(r"\$(.*?)\$", str(entry.symbols.values())),
            *(one.partition("=")[0] for one in definitions if "=" in one),
        ]
        formula = re.sub(r"_(?:\{[^}]*\}|\\[A-Za-z]+(?:\{[^}]*\})?|.)", " ", entry.cost_model)
        known, used = (set(SYMBOL.findall(NO_SYMBOL.sub(" ", text))) for text in (" ".join(told), formula))
        assert used - known - {"O", "e"} == set(), entry.id


# --- the same in, the same out


def test_two_sites_are_compared_but_for_measured_times(tmp_path: Path) -> None:
    page = '<p>a</p>\n<section class="atlas-timed"><div>{}</div></section><p>{}</p>'
    for name, time, word in (("one", "3 ms", "x"), ("two", "4 ms", "x"), ("three", "3 ms", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.html").write_text(page.format(time, word), encoding="utf-8")
    assert build.differences(tmp_path / "one", tmp_path / "two") == []
    (found,) = build.differences(tmp_path / "one", tmp_path / "three")
    assert found.startswith("a.html, line 2: ")
    (tmp_path / "two" / "b.json").write_text("{}", encoding="utf-8")
    assert build.differences(tmp_path / "one", tmp_path / "two") == ["b.json: only in the second"]


def test_measured_times_are_marked_and_no_figure_with_them_stands_elsewhere() -> None:
    stream = {"output_type": "stream", "name": "stdout", "text": "3 ms"}
    figure = {"output_type": "display_data", "data": {"image/svg+xml": "<svg width='9pt'><path d='M0 0'/></svg>"}}
    cells = (
        {"cell_type": "markdown", "source": "# A\n\n## B"},
        {"cell_type": "code", "source": "x", "metadata": {"tags": ["timed"]}, "outputs": [stream, figure]},
        {"cell_type": "code", "source": "y", "metadata": {}, "outputs": [stream]},
    )
    notebook = notebooks.Notebook("a", "notebooks/a.py", cells, 1.0)
    html = notebooks.render(notebook)
    assert html.count("atlas-timed") == 1
    assert html.index("Times measured in this run") < html.index("3 ms")
    assert notebooks.first_figure(notebook, 10_000) is None
    untagged = replace(notebook, cells=(cells[0], cells[1] | {"metadata": {}}))
    svg, title = notebooks.first_figure(untagged, 10_000)
    assert "<svg" in svg
    assert title == "B"
    assert notebooks.first_figure(untagged, 10) is None


def test_every_notebook_seeds_its_random_numbers_first() -> None:
    for path in notebooks.sources(ROOT).values():
        cells = re.split(r"^# %%.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        first = next(cell for cell in cells if re.search(r"^(import|from) ", cell, re.MULTILINE))
        assert re.search(r"^show\.style\(\)$", first, re.MULTILINE), f"{path.name}: show.style() seeds, call it first"


def test_notebooks_for_jupyter_are_always_the_same_and_run_the_same_code() -> None:
    for path in notebooks.sources(ROOT).values():
        text = jupyter.as_ipynb(path)
        assert text == jupyter.as_ipynb(path)
        node = json.loads(text)
        code = ["".join(cell["source"]) for cell in node["cells"] if cell["cell_type"] == "code"]
        assert code
        assert all(part in path.read_text(encoding="utf-8") for part in code)


def test_bibtex_of_single_papers_is_a_script(known: Knowledge) -> None:
    script = build.data(known)[build.BIBLIOGRAPHY]
    records = json.loads(script.removeprefix("window.atlasBibliography = ").removesuffix(";\n"))
    assert records == {paper.key: bibtex(paper) for paper in known.papers.values()}


def test_a_notebook_without_a_display_says_so_and_draws_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with plt.rc_context():
        plt.switch_backend("agg")
        drawn = []
        for _ in range(2):
            show.style()
            drawn.append((random.random(), torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert "figures are not shown" in capsys.readouterr().err


def test_labels_beside_points_stand_apart() -> None:
    with plt.rc_context():
        figure, axis = plt.subplots()
        axis.set(xlim=(0, 1), ylim=(0, 1))
        show.annotate_apart(axis, [(f"network {i}", (0.5 + i / 100, 0.5)) for i in range(5)])
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in axis.texts]
        plt.close(figure)
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
