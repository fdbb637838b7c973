"""The built site and a headless Chromium.

All workers of a test run share one site.

Without a Chromium (see `chromium.py`) these tests are skipped and say so; with ATLAS_REQUIRE_BROWSER=1 they fail.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock

from tools.site import build

from .chromium import ADVICE, launch

ROOT = Path(__file__).parents[2]
NO_INDEX = '{"config": {"lang": ["en"], "separator": " ", "pipeline": [], "fields": {}}, "docs": []}'
"""In the place of the search index, for which the theme otherwise keeps a processor busy on each page."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the repository, built strictly, with its links checked; notebooks only where their run is cached."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "site.lock"):
        if not (folder / "site").exists():
            build.build(ROOT, site_dir=folder / "site", run=False, progress=lambda _: None)
    return folder / "site"


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The site on a local server."""
    with build.server(site, range(1)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            _without(f"no Chromium: {ADVICE}")
        yield browser
        browser.close()


def _without(why: str) -> NoReturn:
    if os.environ.get("ATLAS_REQUIRE_BROWSER") == "1":
        pytest.fail(why)
    pytest.skip(why)


@dataclass
class Visit:
    """A tab, and what went wrong in it: console errors, exceptions, requests to another host."""

    tab: Any
    home: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tab.on("console", lambda m: self.faults.append(f"console: {m.text}") if m.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.faults.append(f"page: {error}"))
        self.tab.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.home, "data:", "blob:", "about:")):
            self.faults.append(f"request: {url}")

    def open(self, page: str) -> Any:
        """Go to a page of the site, and wait until its scripts have run."""
        self.tab.goto(f"{self.home}/{page}", wait_until="load")
        self.tab.wait_for_selector("html.js")
        return self.tab


@pytest.fixture(params=["http", "file"])
def home(request: pytest.FixtureRequest, site: Path) -> str:
    """Where the site is: on a server, or on disk."""
    return str(request.getfixturevalue("address")) if request.param == "http" else site.as_uri()


def without_search(context: Any) -> None:
    """Let the pages of a context find an empty search index; `unroute_all` brings the real one back."""
    context.route("**/search/search_index.json", lambda route: route.fulfill(body=NO_INDEX))
    context.route("**/search/search_index.js", lambda route: route.fulfill(body=f"var __index = {NO_INDEX}"))


@pytest.fixture
def visit(chromium: Any, home: str) -> Iterator[Visit]:
    """A visit to the site, from a server and from disk. Afterwards: nothing went wrong."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(15_000)
    without_search(context)
    visit = Visit(context.new_page(), home)
    yield visit
    context.close()
    assert visit.faults == []
