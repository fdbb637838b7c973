"""The way out of the theme: Zensical builds the same pages from the materialised ones, and what they do works there.

What it does not take over is our own search (`tools/site/search.py`), in whose place it puts its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tools.knowledge import load
from tools.site import build

from .conftest import ROOT, Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as Zensical builds it."""
    folder = build.materialise(ROOT, tmp_path_factory.mktemp("exit") / "pages", run=False, progress=lambda _: None)
    command = [str(Path(sys.executable).parent / "zensical"), "build"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


@pytest.fixture
def there(chromium: Any, other: Path) -> Iterator[Visit]:
    """A visit to that site. Afterwards: nothing went wrong."""
    with build.server(other, range(1)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(15_000)
        visit = Visit(context.new_page(), f"http://127.0.0.1:{http.server_address[1]}")
        yield visit
        context.close()
        http.shutdown()
    assert visit.faults == []


class Headings(HTMLParser):
    """(level, anchor, text) of the headings of the article of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[list[str]] = []
        self.inside, self.level, self.link = False, "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside |= tag == "article"
        if self.inside and tag in ("h1", "h2", "h3", "h4"):
            self.level = tag
            self.found.append([tag, values.get("id", ""), ""])
        self.link |= tag == "a" and "headerlink" in values.get("class", "")

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "article"
        self.level = "" if tag == self.level else self.level
        self.link &= tag != "a"

    def handle_data(self, data: str) -> None:
        if self.level and not self.link:
            self.found[-1][2] = " ".join(f"{self.found[-1][2]}{data}".split())


def _pages(site: Path) -> dict[str, Path]:
    found = {page.relative_to(site).as_posix(): page for page in site.rglob("*.html")}
    return {name: page for name, page in found.items() if name != "404.html"}


def test_the_pages_and_their_headings_are_the_same(site: Path, other: Path) -> None:
    ours, theirs = _pages(site), _pages(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 700
    wrong = {}
    for name in ours:
        a, b = (Headings(pages[name].read_text(encoding="utf-8")).found for pages in (ours, theirs))
        if a != b:
            wrong[name] = [pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]][:3] or [len(a), len(b)]
    assert not wrong


def test_the_explorer_works_there(there: Visit) -> None:
    known = load(ROOT, check=False)
    tab = there.open("techniques/index.html")
    rows = tab.locator("table.atlas-index tbody tr:visible")
    assert rows.count() == len(known.entries)
    tab.get_by_role("button", name="Runs here").click()
    assert rows.count() == sum(entry.status == "stable" for entry in known.entries.values())
    assert "status=stable" in tab.url
    for name in ("Token merging", "Early exit by confidence"):
        tab.get_by_label(f"Tick {name}", exact=True).check()
    tab.locator("[data-atlas-take=compare]").click()
    tab.wait_for_url("**/compare.html?*")
    assert tab.locator(".atlas-comparison thead a").all_inner_texts() == ["Early exit by confidence", "Token merging"]


def test_the_map_works_there(there: Visit) -> None:
    tab = there.open("index.html")
    tab.locator(".atlas-map .cell.empty").first.click()
    assert "No entry yet" in tab.locator("[data-atlas-place]").inner_text()
