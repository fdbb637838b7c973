"""The built site, as a reader uses it: with a mouse, a keyboard, a phone, in the dark, from a server and from disk."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.export.bibtex import bibliography
from tools.knowledge import load
from tools.site import relations

from .conftest import Visit, without_search

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
ROOT = Path(__file__).parents[2]

THEME_FAULTS = {"landmark-unique"}
"""Rules of axe that the theme itself breaks (unnamed navigation around each copy button), as of 9.8.1."""
SAMPLE = 40
PHONE, DESK = {"width": 360, "height": 800}, {"width": 1280, "height": 900}
AT_REST = "*, *::before, *::after { transition: none !important; animation: none !important }"


@pytest.fixture(scope="module")
def known() -> Any:
    return load(ROOT)


@pytest.fixture(scope="module")
def entry(known: Any) -> Any:
    """An entry with results, aliases and an implementation."""
    found = [e for e in known.entries.values() if e.status == "stable" and e.aliases and known.results.get(e.id)]
    assert found, "the atlas has an entry with everything"
    return min(found, key=lambda e: e.id)


@pytest.fixture(scope="module")
def kinds(known: Any, entry: Any, site: Path) -> list[str]:
    """A page of each kind: those that are alone of their kind, and from each folder its index and one more."""
    draft = next(e for e in known.entries.values() if e.status == "draft" and e.relations and e.invariant)
    typical = [f"techniques/{entry.id}.html", f"papers/{entry.papers[0].key}.html", "axes/relation.html"]
    every = _pages(site)
    pages = [page for page in every if "/" not in page or page.endswith("/index.html")]
    for folder in sorted({page.partition("/")[0] for page in every if "/" in page}):
        pages.append(next(page for page in [*typical, *every] if page.startswith(f"{folder}/") and page not in pages))
    return [*pages, f"techniques/{draft.id}.html"]


def _pages(site: Path) -> list[str]:
    """Every page, but for the theme's own, and for reports, which are whole by themselves."""
    found = (p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.name != "404.html")
    return sorted(page for page in found if not page.startswith("reports/"))


def test_a_cell_of_the_map_leads_to_its_entries(visit: Any, entry: Any) -> None:
    tab = visit.open("index.html")
    name = entry.name
    cell = tab.locator(f".atlas-map a[aria-label*='{name}']")
    shown = int(cell.inner_text().split()[0])
    cell.focus()
    tab.keyboard.press("Enter")
    panel = tab.locator("[data-atlas-place]")
    assert name in panel.inner_text()
    panel.get_by_role("link", name="Show in the table").click()
    tab.wait_for_url("**/techniques/index.html?*")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    assert rows.count() == shown
    assert name in " ".join(rows.all_inner_texts())
    rows.filter(has_text=name).get_by_role("link", name=name, exact=True).click()
    tab.wait_for_url(f"**/techniques/{entry.id}.html")
    assert tab.locator("h1").inner_text().startswith(name)


def test_empty_cells_say_that_they_are_unexplored(visit: Any) -> None:
    cell = visit.open("index.html").locator(".atlas-map .cell.empty").first
    assert "unexplored" in cell.inner_text()
    assert "unexplored" in cell.get_attribute("title")
    cell.click()
    assert "No entry yet" in cell.page.locator("[data-atlas-place]").inner_text()


def test_terms_carry_their_definition_and_lead_to_their_axis(visit: Any, known: Any, entry: Any) -> None:
    tab = visit.open(f"techniques/{entry.id}.html")
    primary = entry.axes["relation"].primary
    term = known.axes["relation"].terms[primary]
    abbreviation = tab.locator(".atlas-axes abbr", has_text=term.name).first
    assert abbreviation.get_attribute("title").split()[0] == term.definition.split()[0].strip("`*")
    abbreviation.click()
    tab.wait_for_url(f"**/axes/relation.html#{primary.replace('_', '-')}")
    assert tab.locator(f"#{primary.replace('_', '-')}").is_visible()


def test_search_finds_an_alias(visit: Any, entry: Any) -> None:
    visit.tab.context.unroute_all()
    tab = visit.open("about.html")
    tab.keyboard.press("/")
    tab.keyboard.type(entry.aliases[0])
    result = tab.locator(".md-search-result__item", has_text=entry.name).first
    result.wait_for(state="visible", timeout=15_000)
    result.locator("a").first.click()
    tab.wait_for_url(f"**/techniques/{entry.id}.html*")


def test_the_citation_is_copied(visit: Any, entry: Any) -> None:
    tab = visit.open(f"techniques/{entry.id}.html")
    if visit.home.startswith("http"):
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = tab.get_by_role("button", name="Copy the BibTeX records")
    button.click()
    tab.wait_for_function("[...document.querySelectorAll('[data-atlas-copy]')].some(b => b.textContent === 'Copied')")
    if visit.home.startswith("http"):
        assert entry.papers[0].key in tab.evaluate("navigator.clipboard.readText()")


def test_the_table_filters_by_word_and_term_and_remembers_it(visit: Any, known: Any, entry: Any) -> None:
    tab = visit.open("techniques/index.html")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    assert rows.count() == len(known.entries)
    tab.get_by_label("Name, alias or word").fill(entry.aliases[0])
    assert entry.name in " ".join(rows.all_inner_texts())
    assert f"{rows.count()} of" in tab.locator("[data-atlas-count]").inner_text()
    tab.get_by_role("button", name="Clear the filter").click()
    primary = entry.axes["relation"].primary
    expected = sum(1 for e in known.entries.values() if "relation" in e.axes and e.axes["relation"].primary == primary)
    tab.get_by_label("Relation").select_option(primary)
    assert rows.count() == expected
    if visit.home.startswith("http"):
        tab.reload()
        assert rows.count() == expected


def test_papers_are_filtered_by_year_kind_and_what_is_missing(visit: Any, known: Any) -> None:
    tab = visit.open("papers/index.html")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    papers = known.papers.values()
    assert rows.count() == len(papers)
    for label, value, wanted in (
        ("Kind", "analysis", [p for p in papers if p.kind == "analysis"]),
        ("Not confirmed", "identifier", [p for p in papers if "identifier" in p.unconfirmed]),
        ("Year", "2023", [p for p in papers if p.year == 2023]),
    ):
        if wanted:
            tab.get_by_label(label, exact=True).select_option(value)
            assert rows.count() == len(wanted)
            assert f"{len(wanted)} of {len(papers)} papers" in tab.locator("[data-atlas-count]").inner_text()
            tab.get_by_role("button", name="Clear the filter").click()
    tab.get_by_label("Title, author or venue").fill("bolya")
    assert "Token Merging" in " ".join(rows.all_inner_texts())


def test_an_entry_of_the_figure_shows_its_own_relations(visit: Any, known: Any) -> None:
    tab = visit.open("relations.html")
    found = relations.edges(known.entries)
    one = max(known.entries, key=lambda i: sum(i in (e.source, e.target) for e in found))
    own = [e for e in found if one in (e.source, e.target)]
    assert tab.locator("svg.atlas-graph [data-node]").count() == len(known.entries)
    assert tab.locator("svg.atlas-graph [data-ends]").count() == len(found)
    node = tab.locator(f"[data-node='{one}']")
    node.focus()
    assert tab.locator("svg.atlas-graph.chosen .edge.on").count() == len(own)
    near = {end for e in own for end in (e.source, e.target)}
    assert tab.locator("svg.atlas-graph .node.on").count() == len(near)
    type_ = own[0].type
    key = tab.locator(f"[data-atlas-edges='{type_}']")
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert tab.locator("svg.atlas-graph.chosen").count() == 0
    drawn = sum(e.type != type_ for e in found)
    assert tab.locator("svg.atlas-graph .edge:not(.hidden)").count() == drawn
    node.click()
    tab.wait_for_url(f"**/techniques/{one}.html")


def test_the_table_is_whole_without_javascript(chromium: Any, site: Path, known: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site.as_uri()}/techniques/index.html")
    assert tab.locator("table.atlas-index tbody tr:visible").count() == len(known.entries)
    assert not tab.locator("[data-atlas-filter]").is_visible()
    context.close()


def test_dark_mode_changes_the_figures(visit: Any, entry: Any) -> None:
    tab = visit.open(f"techniques/{entry.id}.html")
    colours = (
        "[...document.querySelectorAll('svg.atlas-figure :is(text.tick, .series.technique-1 circle)')]"
        ".slice(0, 40).map(e => getComputedStyle(e).fill).sort()"
    )
    light = tab.evaluate(colours)
    tab.locator("label[title='Switch to the dark scheme']").click()
    tab.wait_for_selector("body[data-md-color-scheme=slate]")
    dark = tab.evaluate(colours)
    assert len(light) == len(dark) > 5
    assert not set(light) & set(dark)


def test_a_step_of_the_algorithm_opens_the_source_at_its_function(visit: Any, entry: Any) -> None:
    tab = visit.open(f"techniques/{entry.id}.html")
    step = tab.locator("ol a[href*='#src']").first
    name, target = step.inner_text().split(".")[-1], step.get_attribute("href").rpartition("/")[2]
    step.click()
    tab.wait_for_url(f"**/sources/{target}")
    line = tab.locator("#" + target.partition("#")[2])
    line.wait_for(state="visible", timeout=5000)
    assert name in line.inner_text() or "@" in line.inner_text()


def test_ticked_entries_give_one_file_of_bibtex(visit: Any, known: Any) -> None:
    tab = visit.open("techniques/index.html")
    button = tab.locator("[data-atlas-take='bib']")
    assert button.is_disabled()
    chosen = sorted(known.entries.values(), key=lambda e: e.name)[:2]
    for one in chosen:
        tab.get_by_label(f"Tick {one.name}", exact=True).check()
    assert button.inner_text().endswith("(2)")
    with tab.expect_download() as download:
        button.click()
    papers = sorted({link.key for one in chosen for link in one.papers})
    assert download.value.suggested_filename == "atlas.bib"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text == bibliography(known.papers[key] for key in papers)


def test_wide_tables_and_claims_are_cards_on_a_phone(visit: Any, entry: Any) -> None:
    visit.tab.set_viewport_size(PHONE)
    for page in (f"techniques/{entry.id}.html", f"numbers/{entry.id}.html"):
        tables = visit.open(page).locator("table.atlas-cardlike")
        assert tables.count() > 0
        assert visit.tab.locator("table.atlas-relations:not(.atlas-cardlike)").count() == 0
        for box in tables.locator("xpath=..").all():
            assert box.evaluate("e => e.scrollWidth <= e.clientWidth"), "nothing is off screen"
        cell = tables.first.locator("td:not(:empty)").last
        assert cell.evaluate("e => getComputedStyle(e, '::before').content").startswith(
            f'"{cell.get_attribute("data-label")}'
        )


def test_cost_models_fit_a_phone_and_a_desk(chromium: Any, address: str, known: Any) -> None:
    wrong = []
    modelled = [e.id for e in known.entries.values() if e.cost_model]
    for size in (PHONE, DESK):
        context = chromium.new_context(viewport=size, java_script_enabled=True)
        without_search(context)
        tab = context.new_page()
        for id_ in modelled if size == PHONE else modelled[::8]:
            tab.goto(f"{address}/techniques/{id_}.html", wait_until="domcontentloaded")
            wide = "e => Math.max(...[e, ...e.querySelectorAll('math')].map(m => m.getBoundingClientRect().right))"
            if tab.locator(".atlas-cost").evaluate(wide) > size["width"]:
                wrong.append((id_, size["width"]))
            assert tab.locator(".atlas-where dt").count() == len(known.entries[id_].symbols), id_
        context.close()
    assert not wrong


def test_labels_of_figures_stand_clear_of_each_other(chromium: Any, address: str, known: Any, site: Path) -> None:
    script = (Path(__file__).parent / "figures.js").read_text(encoding="utf-8")
    pages = [f"techniques/{e.id}.html" for e in known.entries.values() if e.status == "stable"]
    pages += ["relations.html", *(page for page in _pages(site) if page.startswith("notebooks/"))]
    context = chromium.new_context(viewport=DESK)
    without_search(context)
    tab = context.new_page()
    wrong = {}
    for page in pages:
        tab.goto(f"{address}/{page}", wait_until="domcontentloaded")
        tab.evaluate("document.querySelectorAll('.atlas-off').forEach(part => part.classList.remove('atlas-off'))")
        if found := tab.evaluate(script.partition("*/")[2].strip()):
            wrong[page] = found[:6]
    context.close()
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)


def test_an_entry_is_printed_on_at_most_twelve_pages_and_nothing_is_cut(
    chromium: Any, address: str, known: Any
) -> None:
    largest = max(known.results, key=lambda id_: len(known.results_of(id_)))
    context = chromium.new_context(viewport={"width": 700, "height": 1000})
    without_search(context)
    tab = context.new_page()
    tab.goto(f"{address}/techniques/{largest}.html")
    tab.wait_for_selector("html.js")
    printed = tab.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= 12
    tab.emulate_media(media="print")
    for page in (f"techniques/{largest}.html", "index.html", "techniques/index.html"):
        tab.goto(f"{address}/{page}")
        tab.wait_for_selector("html.js")
        cut = tab.evaluate(
            "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > 701).length"
        )
        assert cut == 0, page
    context.close()


def test_a_site_without_an_address_has_no_map_of_its_addresses(site: Path) -> None:
    assert list(site.glob("sitemap*")) == []


def test_pages_are_small(site: Path) -> None:
    """In HTML, in elements, and as a server that compresses sends them, without the search."""
    shared = [
        *site.glob("assets/**/*.min.css"),
        *site.glob("assets/atlas.*"),
        *site.glob("assets/javascripts/bundle.*.js"),
    ]
    common = sum(len(gzip.compress(path.read_bytes())) for path in shared)
    wrong = {}
    for page in _pages(site):
        html = (site / page).read_bytes()
        sent = (common + len(gzip.compress(html))) / 1000
        found = (
            {"kB sent": sent}
            if sent > (600 if page.startswith(("notebooks/", "techniques/index", "benchmarks/", "claims")) else 400)
            else {}
        )
        if page.startswith("techniques/") and not page.endswith("/index.html"):
            found |= {"kB": len(html) / 1000} if len(html) > 250_000 else {}
            elements = len(re.findall(rb"<[a-zA-Z]", html))
            found |= {"elements": elements} if elements > 4000 else {}
        if found:
            wrong[page] = found
    assert not wrong, json.dumps(wrong, indent=1)


# --- every page


def test_kinds_of_pages(kinds: list[str], site: Path) -> None:
    folders = {Path(page).parent for page in _pages(site)}
    assert folders == {Path(page).parent for page in kinds}
    assert {"index.html", "relations.html", "evidence.html", "techniques/index.html"} < set(kinds)


@pytest.mark.parametrize("which", ["sample", pytest.param("all", marks=pytest.mark.every_page)])
@pytest.mark.timeout(3600)
def test_pages_fit_a_phone_and_put_up_no_barrier(
    chromium: Any, address: str, kinds: list[str], site: Path, which: str
) -> None:
    """Each page is opened once: nothing went wrong, nothing is wider than a phone, and axe finds no barrier."""
    others = [page for page in _pages(site) if page not in kinds]
    if which == "sample":
        others = random.Random(0).sample(others, min(SAMPLE, len(others)))
    with _tab(chromium, "light") as tab:
        visit = Visit(tab, address)
        wrong = {page: found for page in [*kinds, *others] if (found := _look_at(visit, page))}
    assert not wrong, json.dumps(wrong, indent=1)


def test_pages_in_the_dark(chromium: Any, address: str, entry: Any) -> None:
    with _tab(chromium, "dark") as tab:
        visit = Visit(tab, address)
        pages = ["index.html", f"techniques/{entry.id}.html", "relations.html"]
        wrong = {page: found for page in pages if (found := _look_at(visit, page))}
    assert not wrong, json.dumps(wrong, indent=1)


def test_pages_from_disk(chromium: Any, site: Path, kinds: list[str]) -> None:
    with _tab(chromium, "light") as tab:
        visit = Visit(tab, site.as_uri())
        for page in kinds:
            assert visit.open(page).evaluate("document.documentElement.scrollWidth") == 360, page
            assert visit.faults == [], page


def test_the_map_scrolls_in_its_own_box(visit: Any) -> None:
    visit.tab.set_viewport_size(PHONE)
    box = visit.open("index.html").locator(".atlas-map-box")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    head = box.locator("tbody th").first
    before = head.bounding_box()["x"]
    box.evaluate("e => e.scrollTo(300, 0)")
    assert head.bounding_box()["x"] == pytest.approx(before, abs=20), "its first column stays"


@contextmanager
def _tab(chromium: Any, scheme: str) -> Iterator[Any]:
    """A tab of the width of a phone."""
    context = chromium.new_context(viewport=PHONE, color_scheme=scheme)
    without_search(context)
    yield context.new_page()
    context.close()


def _look_at(visit: Visit, page: str) -> list[str]:
    """What is wrong with a page."""
    from axe_playwright_python.sync_playwright import Axe

    tables = ("techniques/index.html", "papers/index.html", "claims.html", "results.html")
    few = "?text=merging" if page in tables else ""  # axe looks at every row
    visit.faults.clear()
    tab = visit.open(f"{page}{few}")
    width = tab.evaluate("document.documentElement.scrollWidth")
    tab.set_viewport_size(DESK)
    tab.add_style_tag(content=AT_REST)
    found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    tab.set_viewport_size(PHONE)
    wrong = [*visit.faults, *([f"{width} pixels wide on a phone of 360"] if width != 360 else [])]
    for violation in found:
        if violation["id"] not in THEME_FAULTS:
            wrong += [f"{violation['id']}: {node['html'][:160]}" for node in violation["nodes"][:3]]
    return wrong
