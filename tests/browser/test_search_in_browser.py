"""The search of the site: the right page stands among the first three results."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.knowledge import Knowledge, load
from tools.site import search

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load(ROOT, check=False)


@pytest.fixture(scope="module")
def ask(chromium: Any, site: Path) -> Iterator[Any]:
    """Locations of the first results of a query, without their anchors."""
    tab = chromium.new_page()
    tab.add_script_tag(content=search.WORKER.read_text(encoding="utf-8"))
    tab.evaluate("index => { window.asked = atlasSearch(index) }", json.loads((site / search.INDEX).read_text("utf-8")))

    def first(query: str, most: int = 3) -> list[str]:
        found = tab.evaluate("query => asked(query).items.map(([one]) => one.location)", query)
        return [location.partition("#")[0] for location in found[:most]]

    yield first
    tab.close()


def misspelt(text: str, draw: random.Random) -> str:
    """One letter dropped, doubled, or swapped with the next."""
    at = draw.choice([i for i in range(1, len(text) - 1) if text[i : i + 2].isalpha() and text[i] != text[i + 1]])
    kind = draw.choice(["dropped", "doubled", "swapped"])
    middle = {"dropped": "", "doubled": 2 * text[at], "swapped": text[at + 1] + text[at]}[kind]
    return text[:at] + middle + text[at + 1 + (kind == "swapped") :]


def queries(known: Knowledge, seed: int) -> dict[str, str]:
    """Query -> page that it should lead to: aliases, terms, misspellings, arXiv ids and symbols."""
    draw = random.Random(seed)
    entries, papers = known.entries.values(), known.papers.values()
    running = {alias: f"techniques/{e.id}.html" for e in entries if e.status == "stable" for alias in e.aliases}
    terms = {t.name: f"axes/{axis}.html" for axis, one in known.axes.axes.items() for t in one.terms.values()}
    titles = {name: f"techniques/{e.id}.html" for e in entries for name in (e.name, *e.aliases)}
    titles |= {p.title: f"papers/{p.key}.html" for p in papers}
    titles = {
        name: page for name, page in titles.items() if re.search("[A-Za-z]{4}", name)
    }  # others are too short to err in
    arxiv = {p.ids.arxiv: f"papers/{p.key}.html" for p in papers if p.ids.arxiv}
    symbols = {
        name: f"techniques/{id_}.html"
        for id_, source in known.sources.items()
        for name, where in source.definitions.items()
        if where.file in source.files and name.isidentifier() and len(name) > 5 and not name.startswith("_")
    }

    def some(of: dict[str, str], count: int) -> dict[str, str]:
        return {name: of[name] for name in draw.sample(sorted(of), count)}

    wrong = {misspelt(name, draw): page for name, page in some(titles, 10).items()}
    return running | some(terms, 20) | wrong | some(arxiv, 10) | some(symbols, 10)


@pytest.mark.parametrize("seed", range(3))
def test_what_readers_look_for_is_among_the_first_three(ask: Any, known: Knowledge, seed: int) -> None:
    asked = queries(known, seed)
    assert len(asked) >= 60
    missed = {query: (page, found) for query, page in asked.items() if page not in (found := ask(query))}
    assert len(missed) <= len(asked) // 20, missed


def test_american_and_british_spellings_find_the_same(ask: Any) -> None:
    for british, american in (
        ("quantisation", "quantization"), ("neighbouring", "neighboring"), ("colour", "color"), ("labelled", "labeled"),
        ("activation quantisation", "activation quantization"), ("modelling", "modeling"),
    ):  # fmt: skip
        assert ask(british, 5) == ask(american, 5) != []


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("BranchyNet", "techniques/confidence-early-exit.html"),
        ("branchy net", "techniques/confidence-early-exit.html"),
        ("bipartite soft matching", "techniques/token-merging.html"),
        ("bipartite_soft_matching", "techniques/token-merging.html"),
        ("TokenMerging.measure", "techniques/token-merging.html"),
        ("training free", "axes/adaptation.html"),
        ("arXiv:2210.09461v3", "papers/bolya-2023-token.html"),
        ("https://arxiv.org/abs/2210.09461", "papers/bolya-2023-token.html"),
        ("bolya 2023", "papers/bolya-2023-token.html"),
        ("tokn mergign", "techniques/token-merging.html"),
        ("tOKEN   merg", "techniques/token-merging.html"),
    ],
)
def test_names_are_found_as_people_write_them(ask: Any, query: str, page: str) -> None:
    assert page in ask(query)


def test_the_index_is_small_and_holds_no_provenance(site: Path) -> None:
    text = (site / search.INDEX).read_text(encoding="utf-8")
    assert len(text.encode()) <= 3_600 * len(load(ROOT, check=False).entries)  # 500 KB for the first 139
    assert (site / search.INDEX).with_suffix(".js").read_text(encoding="utf-8") == f"var __index = {text}"
    for record in load(ROOT, check=False).records:
        assert record.machine.cpu not in text
        assert record.command not in text
    for document in json.loads(text)["docs"]:
        assert (site / document["location"].partition("#")[0]).is_file(), document["location"]
        if anchor := document["location"].partition("#")[2]:
            page = (site / document["location"].partition("#")[0]).read_text(encoding="utf-8")
            assert f'id="{anchor}"' in page, document["location"]


def test_nothing_and_odd_input_find_nothing(ask: Any) -> None:
    for query in ("", " ", "?!", "zzzzqqqqxxxx", "<script>", "*" * 500):
        assert ask(query) == [] or query == "<script>"
