"""A picture of each kind of page, in both schemes and at two widths, kept in `build/screens/` to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, without_search

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
SCREENS = ROOT / "build" / "screens"
PAGES = {
    "map": "index.html?layer=saving&place=spatial_similarity,tokens",
    "explorer": "techniques/index.html?adaptation=training_free",
    "cards": "techniques/index.html?view=cards&status=stable",
    "entry": "techniques/token-merging.html",
    "entry-measured": "techniques/token-merging.html#measured-trade-off",
    "draft": "techniques/visual-token-dropping.html",
    "benchmark": "benchmarks/token-reduction.html",
    "compare": "compare.html?entries=token-merging,confidence-early-exit",
    "claims": "claims.html?verdict=contradicted",
    "results": "results.html?verdict=contradicted",
    "machines": "machines.html",
    "methods": "evidence.html",
    "source": "sources/token-merging.html",
    "numbers": "numbers/token-merging.html",
    "axis": "axes/relation.html",
    "relations": "relations.html",
    "paper": "papers/bolya-2023-token.html",
    "papers": "papers/index.html?year=2023",
    "learn": "learn.html",
    "decide": "decide.html?data_kind=Image",
    "new": "new.html",
    "report": "report.html",
    "open-problems": "open-problems.html",
    "notebook": "notebooks/token-merging.html",
}
PHONE, DESK = {"width": 360, "height": 800}, {"width": 1280, "height": 900}


def test_a_picture_of_each_kind_of_page(chromium: Any, address: str, site: Path) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    for old in SCREENS.glob("*.png"):
        old.unlink()
    shown = {name: page for name, page in PAGES.items() if (site / page.partition("?")[0].partition("#")[0]).is_file()}
    assert set(PAGES) - set(shown) <= {"notebook"}, "a notebook whose run is not cached has no page"
    context = chromium.new_context(color_scheme="light")
    without_search(context)
    tab = context.new_page()
    for name, page in shown.items():
        tab.set_viewport_size(DESK)
        tab.goto(f"{address}/{page}", wait_until="load")
        tab.wait_for_selector("html.js")
        for scheme, own in (("light", "default"), ("dark", "slate")):
            tab.evaluate(f"document.body.setAttribute('data-md-color-scheme', '{own}')")
            for width, size in (("phone", PHONE), ("desk", DESK)):
                tab.set_viewport_size(size)
                tab.screenshot(path=SCREENS / f"{name}-{width}-{scheme}.png", animations="disabled")
    context.close()
    assert len(list(SCREENS.glob("*.png"))) == 4 * len(shown)
