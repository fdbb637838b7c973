"""What strangers write never comes alive: a site whose every text attacks, built unchecked, in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests import attack, site_fixture
from tools.knowledge import Knowledge
from tools.site import build, links, search
from tools.site.model import Atlas, gather
from tools.site.pages import pages

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("prose")]
ROOT = Path(__file__).parents[2]

AUDIT = """() => {
  const found = [];
  const say = (what, element) => found.push(`${what}: ${element.outerHTML?.slice(0, 200) ?? element.textContent}`);
  if (window.__pwned) found.push("a script ran");
  for (const element of document.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      if (name.startsWith("on")) say("handler", element);
      if (["href", "src", "action", "formaction", "data", "xlink:href", "srcdoc", "poster", "ping"].includes(name)) {
        const address = new URL(value, location.href);
        const fine = name === "href" ? ["http:", "https:", "mailto:", location.protocol] : [location.protocol];
        const icon = element.localName === "link" && address.protocol === "data:";
        if (!icon && !fine.includes(address.protocol)) say(address.protocol, element);
        if (name !== "href" && address.host !== location.host) say("another host", element);
      }
    }
  }
  const article = document.querySelector("article");
  for (const element of article.querySelectorAll("*")) {
    if (element.hasAttribute("style")) say("style", element);
    if (element.localName === "a" && element.id === "" && !element.hasAttribute("href")) say("anchor", element);
  }
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_COMMENT);
  while (walker.nextNode()) say("comment", walker.currentNode);
  const names = new Set([...article.querySelectorAll(":not(nav, nav *)")].map((element) => element.localName));
  const count = (selector) => document.querySelectorAll(selector).length;
  const foreign = [...article.querySelectorAll("script")].length;
  const frame = ["iframe", "object", "embed", "base", "meta", "style", "img", "script"].map((s) => [s, count(s)]);
  return { found, foreign, names: [...names].sort(), frame: Object.fromEntries(frame) };
}"""
"""What is wrong on a page, the elements of its article, and how many there are of those that the theme has."""

ELEMENTS = set(
    "a abbr b blockquote br button caption circle code datalist dd desc details div dl dt em figcaption figure "  # noqa: SIM905
    "form g h1 h2 h3 hr i input label li line math mfrac mi mn mo mrow mspace mstyle msub msup mtable mtd mtext "
    "mtr ol option p path polygon polyline pre rect section select small span strong sub summary sup svg table "
    "tbody td template text th thead title tr ul".split()
)
"""All that our own pages are made of."""


def made(known: Knowledge, folder: Path) -> Path:
    """A site of the knowledge, through the same Markdown as the real one, with no check before it."""
    build.write(pages(known, gather(known, {})), build.data(known), ROOT, folder)
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(folder / "mkdocs.yml"),
    ]
    done = subprocess.run(
        command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    search.install(folder / "site", search.index(Atlas(known, gather(known, {}))))
    return folder / "site"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A site that is attacked, and one that is not."""
    folder = tmp_path_factory.mktemp("prose")
    return (
        made(attack.knowledge(folder / "root"), folder / "attacked"),
        made(site_fixture.knowledge(site_fixture.record()), folder / "plain"),
    )


def test_every_text_is_attacked(tmp_path: Path) -> None:
    known = attack.knowledge(tmp_path)
    whole = [*known.entries.values(), *known.papers.values(), *known.hard_cases, known.principles, known.axes]
    whole += [record for records in known.results.values() for record in records]
    texts = [text for one in whole for text in strings(one.model_dump())]
    attacks = [text for text in texts if attack.WORD in text]
    assert len(attacks) > 800
    assert all(any(payload in text for text in attacks) for payload in attack.PAYLOADS)
    left = {text for text in texts if " " in text and attack.WORD not in text}
    assert left <= {"not attempted", attack.RUN}, "texts with a space are free texts: none is left alone"


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, list | tuple) else []


def test_the_attacked_site_is_whole_and_pulls_in_no_file(sites: tuple[Path, Path]) -> None:
    attacked, _ = sites
    assert links.check(attacked) == []
    wanted = (ROOT / attack.FILE).read_text(encoding="utf-8").splitlines()[0]
    html = {p: p.read_text(encoding="utf-8") for p in attacked.rglob("*.html")}
    assert len(html) > 40
    assert [str(p) for p, text in html.items() if wanted in text] == []


class _Text(HTMLParser):
    """The text of an article."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_was_written_is_shown_as_it_was_written(sites: tuple[Path, Path]) -> None:
    page = _Text()
    page.feed((sites[0] / "papers" / "attack-2020-4.html").read_text(encoding="utf-8"))
    shown = " ".join(page.text.split())
    assert "<script>window.__pwned=1</script>" in shown
    assert f'--8<-- "{attack.FILE}"' in shown
    assert '{: onclick="window.__pwned=1"' in shown


def test_no_text_comes_alive_in_a_browser(chromium: Any, sites: tuple[Path, Path]) -> None:
    attacked, plain = sites
    context = chromium.new_context()
    tab = context.new_page()
    faults: list[str] = []
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
    tab.on("dialog", lambda dialog: (faults.append("dialog"), dialog.dismiss()))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto((plain / "index.html").as_uri())
    tab.wait_for_selector("html.js")
    usual = tab.evaluate(AUDIT)
    assert usual["found"] == []
    wrong: dict[str, Any] = {}
    for page in sorted(attacked.rglob("*.html")):
        if page.name == "404.html" or (page.parent == attacked and (ROOT / f"tools/site/docs/{page.stem}.md").exists()):
            continue  # of the theme, or written by hand
        tab.goto(page.as_uri())
        tab.wait_for_selector("html.js")
        seen = tab.evaluate(AUDIT)
        unknown = set(seen["names"]) - ELEMENTS
        own = {"script": 1} if page.name in ("compare.html", "decide.html") else {}  # with the data of entries
        frame = {k: v for k, v in seen["frame"].items() if v != usual["frame"][k] + own.get(k, 0)}
        if seen["found"] or seen["foreign"] or unknown or frame:
            wrong[page.name] = [seen["found"][:3], seen["foreign"], sorted(unknown), frame]
    context.close()
    assert not wrong, json.dumps(wrong, indent=1)
    assert faults == []


def test_no_text_comes_alive_in_the_search(chromium: Any, sites: tuple[Path, Path]) -> None:
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto((sites[0] / "index.html").as_uri())
    tab.wait_for_selector("html.js")
    tab.keyboard.press("/")
    tab.keyboard.type(attack.WORD)
    tab.locator(".md-search-result__item").first.wait_for(state="visible", timeout=15_000)
    tab.wait_for_timeout(500)
    assert tab.locator(".md-search-result__item").count() > 5
    assert "<script>" in tab.locator(".md-search-result").inner_text()
    assert tab.evaluate(AUDIT)["found"] == []
    assert tab.locator(".md-search-result :is(script, img, iframe, form, b)").count() == 0
    context.close()
