"""What readers come for, each task in at most four clicks, and what the tables and figures then show."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reference_impls.accounting.saving import macs_saved
from tools import headlines
from tools.knowledge import Knowledge, load
from tools.site import comparison
from tools.site.model import Atlas, Material

from .conftest import without_search

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("readers")]
ROOT = Path(__file__).parents[2]
MOST = 4
"""Clicks that a task may take."""


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load(ROOT, check=False)


class Reader:
    """Counts the clicks, choices and keys with which a task is done."""

    def __init__(self, visit: Any) -> None:
        self.visit, self.tab, self.clicks = visit, visit.tab, 0

    def open(self, page: str) -> Any:
        return self.visit.open(page)

    def click(self, locator: Any) -> None:
        locator.click()
        self.clicks += 1

    def choose(self, label: str, value: str) -> None:
        self.tab.get_by_label(label, exact=True).select_option(value)
        self.clicks += 1

    @property
    def rows(self) -> Any:
        return self.tab.locator("table.atlas-index tbody tr:visible")


@pytest.fixture
def reader(visit: Any) -> Any:
    one = Reader(visit)
    yield one
    assert one.clicks <= MOST


# --- ten tasks --------------------------------------------------------------------------------------------------------


def test_find_training_free_video_techniques_with_real_savings(reader: Reader, known: Knowledge) -> None:
    tab = reader.open("techniques/index.html")
    reader.click(tab.get_by_role("button", name="Training-free"))
    reader.click(tab.get_by_role("button", name="Real savings"))
    reader.choose("Data kind", "video")
    wanted = {
        e.name
        for e in known.entries.values()
        if "training_free" in e.axes.get("adaptation", ())
        and "video" in e.axes.get("data_kind", ())
        and (source := known.sources.get(e.id))
        and source.execution == "real"
        and any(share > 0 for one, _ in headlines.of_entry(known, e.id) for best in one.bests for share in best.saved)
    }
    assert {row.locator("th a").inner_text() for row in reader.rows.all()} == wanted
    assert wanted


def test_compare_two(reader: Reader, known: Knowledge) -> None:
    tab = reader.open("techniques/index.html")
    first, second = known.entries["token-merging"], known.entries["confidence-early-exit"]
    for one in (first, second):
        reader.click(tab.get_by_label(f"Tick {one.name}", exact=True))
    reader.click(tab.locator("[data-atlas-take=compare]"))
    tab.wait_for_url("**/compare.html?*")
    heads = tab.locator(".atlas-comparison thead a")
    heads.first.wait_for()
    assert set(heads.all_inner_texts()) == {first.name, second.name}
    assert {first.id, second.id} == set(tab.url.partition("entries=")[2].split("%2C"))
    line = tab.locator(".atlas-comparison tr", has=tab.get_by_role("rowheader", name="Exploitation"))
    assert "differs" in line.get_attribute("class")


def test_see_the_claimed_and_the_measured_number_of_one(reader: Reader, known: Knowledge) -> None:
    tab = reader.open("claims.html")
    reader.click(tab.get_by_role("button", name="Contradicted"))
    judged = [known.judge(c).verdict for p in known.papers.values() for c in p.claims]
    assert reader.rows.count() == judged.count("contradicted")
    cells = reader.rows.first.locator("td").all_inner_texts()
    assert all(any(sign.isdigit() for sign in cell) for cell in cells[1:3]), "its number beside ours"


def test_find_what_is_unexplored(reader: Reader) -> None:
    tab = reader.open("index.html")
    reader.click(tab.locator(".atlas-map .cell.empty").first)
    panel = tab.locator("[data-atlas-place]")
    assert "No entry yet" in panel.inner_text()
    assert panel.get_by_role("link", name="Propose an entry").is_visible()


def test_cite_three(reader: Reader) -> None:
    tab = reader.open("papers/index.html")
    for row in reader.rows.all()[:3]:
        reader.click(row.get_by_role("checkbox"))
    with tab.expect_download() as download:
        reader.click(tab.locator("[data-atlas-take=bib]"))
    assert Path(download.value.path()).read_text(encoding="utf-8").count("@") >= 3


def test_copy_the_code_that_runs_one(reader: Reader) -> None:
    tab = reader.open("techniques/token-merging.html")
    reader.click(tab.get_by_role("link", name="Run", exact=True))
    button = tab.get_by_role("button", name="Copy the Python lines")
    reader.click(button)
    tab.wait_for_function("[...document.querySelectorAll('[data-atlas-copy]')].some(b => b.textContent === 'Copied')")
    assert 'load("token-merging")' in button.locator("xpath=..").locator("pre").inner_text()


def test_search_by_an_alias(reader: Reader, known: Knowledge) -> None:
    reader.tab.context.unroute_all()
    tab = reader.open("index.html")
    reader.click(tab.locator("label[for=__search]").first if not tab.locator(".md-search__input").is_visible()
                 else tab.locator(".md-search__input"))  # fmt: skip
    tab.keyboard.type("ToMe")
    found = tab.locator(".md-search-result__item", has_text=known.entries["token-merging"].name).first
    found.wait_for(state="visible", timeout=20_000)
    reader.click(found.locator("a").first)
    tab.wait_for_url("**/techniques/token-merging.html*")


def test_by_keyboard_alone(reader: Reader, known: Knowledge) -> None:
    tab = reader.open("index.html")
    cell = tab.locator(".atlas-map a.cell").first
    cell.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.dataset.row") == cell.get_attribute("data-row")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.closest('[data-atlas-place]') !== null"), "the panel has the focus"


def test_what_fits_my_case(reader: Reader, known: Knowledge) -> None:
    tab = reader.open("decide.html")
    reader.choose("What are your data?", "Image")
    reader.choose("May the model be trained again?", "Training-free")
    names = tab.locator(".atlas-decided li > a").all_inner_texts()
    fitting = {
        e.name
        for e in known.entries.values()
        if {"image", "any"} & set(e.axes.get("data_kind", ())) and "training_free" in e.axes.get("adaptation", ())
    }
    assert names
    assert set(names) <= fitting


def test_print_a_benchmark(reader: Reader) -> None:
    tab = reader.open("benchmarks/token-reduction.html")
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 700, "height": 1000})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 700


# --- the explorer -----------------------------------------------------------------------------------------------------


def test_live_counts_equal_brute_force(visit: Any, known: Knowledge) -> None:
    tab = visit.open("techniques/index.html?exploitation=skip")
    draws = random.Random(0)
    for axis in draws.sample(["location", "stage", "data_kind", "adaptation", "granularity", "guarantee"], 4):
        counted = tab.evaluate(
            f"[...document.querySelector('select[name={axis}]').options].filter(o => o.value)"
            ".map(o => [o.value, Number(/\\((\\d+)\\)$/.exec(o.textContent)[1])])"
        )
        for term, count in counted:
            has: Callable[[Any], bool] = (
                (lambda e, t=term: "location" in e.axes and e.axes["location"].primary == t)
                if axis == "location"
                else (lambda e, t=term, a=axis: a in e.axes and t in e.axes[a])
            )
            skips = [e for e in known.entries.values() if "skip" in e.axes.get("exploitation", ())]
            assert count == sum(map(has, skips)), term


def test_columns_sort_and_the_address_remembers_it(visit: Any) -> None:
    tab = visit.open("techniques/index.html")
    head = tab.get_by_role("columnheader", name="MACs saved")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = tab.evaluate(
        "[...document.querySelectorAll('table.atlas-index tbody tr')].map(r => r.querySelector('td.num').dataset.value)"
    )
    numbers = [float(v) for v in values if v]
    assert numbers == sorted(numbers, reverse=True)
    assert values[: len(numbers)] == [v for v in values if v], "what has none comes last"
    if visit.home.startswith("http"):
        assert "sort=" in tab.url
        tab.reload()
        assert head.get_attribute("aria-sort") == "descending"


def test_two_thousand_rows_are_filtered_and_counted(chromium: Any, address: str, site: Path) -> None:
    html = (site / "techniques" / "index.html").read_text(encoding="utf-8")
    head, _, rest = html.partition("<tbody>")
    rows, _, foot = rest.partition("</tbody>")
    each = rows.count("<tr")
    context = chromium.new_context()
    without_search(context)
    tab = context.new_page()
    many = f"{head}<tbody>{rows * (2000 // each + 1)}</tbody>{foot}"
    tab.route("**/techniques/index.html", lambda route: route.fulfill(body=many, content_type="text/html"))
    tab.goto(f"{address}/techniques/index.html", wait_until="load")
    spent = tab.evaluate(
        """() => {
          const field = document.querySelector("#f-text");
          field.value = "merging";
          const begin = performance.now();
          field.dispatchEvent(new Event("input", { bubbles: true }));
          return performance.now() - begin;
        }"""
    )
    print(f"2,000 rows were filtered in {spent:.0f} ms")
    total = each * (2000 // each + 1)
    shown = tab.locator("table.atlas-index tbody tr:visible").count()
    assert tab.locator("[data-atlas-count]").inner_text() == f"{shown} of {total} entries"
    assert shown % (2000 // each + 1) == 0
    assert 0 < shown < total
    context.close()


def test_cards_and_csv(visit: Any, known: Knowledge) -> None:
    tab = visit.open("techniques/index.html")
    tab.get_by_role("button", name="Cards").click()
    assert "atlas-as-cards" in tab.locator("table.atlas-index").get_attribute("class")
    names = sorted(known.entries.values(), key=lambda e: e.name)[:2]
    for one in names:
        tab.get_by_label(f"Tick {one.name}", exact=True).check()
    with tab.expect_download() as download:
        tab.locator("[data-atlas-take=csv]").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert {row["id"] for row in rows} == {one.id for one in names}
    assert rows[0]["relation"] == known.entries[rows[0]["id"]].axes["relation"].primary


def test_injected_texts_stay_texts_in_the_comparison(known: Knowledge) -> None:
    script = comparison.script(Atlas(known, Material()))
    data = json.loads(script.removeprefix("window.atlasComparison = ").removesuffix(";\n"))
    assert set(data["entries"]) == set(known.entries)
    assert "</script" not in script.lower()


def test_going_back_finds_the_table_as_it_was_left(visit: Any, known: Knowledge) -> None:
    if not visit.home.startswith("http"):
        return  # browsers keep no state in the address of a file
    tab = visit.open("techniques/index.html")
    tab.get_by_role("button", name="Runs here").click()
    tab.get_by_label("Name, alias or word").fill("merging")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    left, address = rows.all_inner_texts(), tab.url
    rows.first.locator("th a").click()
    tab.wait_for_url("**/techniques/*.html")
    tab.go_back()
    tab.wait_for_url(address)
    assert rows.all_inner_texts() == left
    tab.go_forward()
    tab.wait_for_url("**/techniques/*.html")
    assert tab.locator("h1").count() == 1


def test_scenarios_of_an_entry_stand_one_at_a_time_and_links_open_theirs(visit: Any, known: Knowledge) -> None:
    found = Atlas(known, Material()).results("token-merging")
    anchors = [one.anchor for one in found]
    tab = visit.open("techniques/token-merging.html")
    tabs = tab.locator("[data-atlas-scenarios] button")
    assert tabs.count() == len(anchors) > 2

    def shown() -> list[str]:
        return [anchor for anchor in anchors if tab.locator(f"[id='{anchor}']").is_visible()]

    assert shown() == anchors[:1]
    tabs.nth(1).click()
    assert shown() == anchors[1:2]
    assert tabs.nth(1).get_attribute("aria-pressed") == "true"
    tab = visit.open(f"techniques/token-merging.html?x#{anchors[2]}")
    assert shown() == anchors[2:3]
    assert tab.locator(f"[id='{anchors[2]}']").evaluate("e => e.getBoundingClientRect().top < innerHeight")
    tab.evaluate(f"location.hash = '{anchors[0]}'")
    tab.wait_for_function(f"!document.getElementById('{anchors[0]}').matches('.atlas-off')")
    tab.emulate_media(media="print")
    assert shown() == anchors, "paper holds all of them"


def test_an_entry_is_drawn_and_its_equations_stand_beside_their_lines(visit: Any) -> None:
    tab = visit.open("techniques/token-merging.html")
    drawing = tab.get_by_role("img", name="Why: spatial similarity; where: tokens; what is done: merge")
    assert drawing.is_visible()
    tab = visit.open("sources/token-merging.html")
    line = tab.locator(".atlas-beside .said math").first
    code = line.locator("xpath=ancestor::div[contains(@class, 'said')]/following-sibling::pre[1]")
    tops = [one.evaluate("e => Math.round(e.getBoundingClientRect().top)") for one in (line, code)]
    assert abs(tops[0] - tops[1]) < 40


def test_results_are_filtered_by_what_they_contradict(visit: Any, known: Knowledge) -> None:
    tab = visit.open("results.html")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    assert rows.count() == len(known.records)
    tab.get_by_role("button", name="Contradicts a claim").click()
    judged = [known.judge(claim) for paper in known.papers.values() for claim in paper.claims]
    assert rows.count() == len({id(j.record) for j in judged if j.verdict == "contradicted"})
    rows.first.locator("td").last.locator("a").click()
    tab.wait_for_url("**/machines.html#*")


# --- benchmarks and the map -------------------------------------------------------------------------------------------


def test_a_benchmark_shows_one_cost_and_one_task_at_a_time(visit: Any) -> None:
    tab = visit.open("benchmarks/token-reduction.html")
    assert tab.locator("figure.atlas-overview:visible").count() == 1
    tab.get_by_role("button", name="Wall-clock").click()
    assert tab.locator("figure.atlas-overview:visible").get_attribute("id") == "cost-time"
    drawn = tab.locator("#cost-time .series[data-group]:not(.hidden)").count()
    tab.get_by_label("Task", exact=True).select_option("0")
    assert 0 < tab.locator("#cost-time .series[data-group]:not(.hidden)").count() < drawn
    assert tab.locator("#cost-time [data-front]:not(.hidden)").get_attribute("data-front") == "0"


def test_a_curve_leads_to_its_technique(visit: Any) -> None:
    tab = visit.open("benchmarks/token-reduction.html")
    tab.locator("#cost-macs a[aria-label='Token merging'] circle").first.click()
    tab.wait_for_url("**/techniques/token-merging.html")


def test_the_ranking_is_that_of_the_records(visit: Any, known: Knowledge) -> None:
    tab = visit.open("benchmarks/early-exit.html")
    shown = [
        float(v) for v in tab.locator("#loss-2 tbody td:nth-child(5)").evaluate_all("c => c.map(e => e.dataset.value)")
    ]
    records = [r for r in known.records if r.benchmark == "early-exit"]
    best = [
        max((macs_saved(r, p) for p in r.points
             if p.quality.value >= 0.99 * r.baseline.quality.value and p.macs < r.baseline.macs), default=-1)
        for r in records
    ]  # fmt: skip
    assert sorted(shown) == pytest.approx(sorted(best))


def test_layers_colour_the_map_and_go_into_a_file(visit: Any) -> None:
    tab = visit.open("index.html")
    tab.get_by_label("Colour by").select_option("running")
    with tab.expect_download() as download:
        tab.locator("[data-atlas-export=json]").click()
    told = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert told["layer"] == "running"
    assert tab.locator(".atlas-map a.cell").first.get_attribute("aria-label").endswith("entries that run here")
    first = tab.locator(".atlas-map [data-row]").first
    place = next(p for p in told["places"] if p["relation"] == first.get_attribute("data-row")
                 and p["location"] == first.get_attribute("data-column"))  # fmt: skip
    assert place["value"] == int(first.get_attribute("data-running"))
    if visit.home.startswith("http"):
        assert "layer=running" in tab.url
    with tab.expect_download() as drawing:
        tab.locator("[data-atlas-export=svg]").click()
    assert Path(drawing.value.path()).read_text(encoding="utf-8").count("<rect") == len(told["places"])
