"""The index of the site's search, and the files that put our own search into the place of the theme's.

An index is made of documents: what readers look for by a name (entries, terms, papers, symbols) and the prose of the
pages as a list of words. Provenance, tables of numbers and code are in no document. How documents are ranked is said in
`assets/search.js`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify

from ..knowledge.schema import Entry, Paper, Statement
from .model import Atlas
from .notebooks import Notebook
from .parts import anchor, plain, short_authors, short_title

INDEX = "search/search_index.json"
WORKER = Path(__file__).parent / "assets" / "search.js"
LANGUAGE = {"lang": ["en"], "separator": r"[\s\-_/]+", "pipeline": [], "fields": {}}
"""What the theme highlights the words of a query by."""
TOP, HIGH, MIDDLE, LOW = 12, 10, 8, 6
"""Weights of documents in tenths: what runs, other entries and terms, papers, all else."""
COMMON = frozenset(
    "a about after all also an and any are as at be been before both but by can do does each for from has have how if "  # noqa: SIM905
    "in into is it its may more most no not of on one only or other our out over same so such than that the their them "
    "then there these they this to under up used was what when where which while who whose will with".split()
)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)
FENCED = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#{1,3}) +(.+?)(?: +\{ ?#([\w-]+) ?\})?$", re.MULTILINE)
INCLUDED = re.compile(r'^--8<-- "([\w./-]+)"$', re.MULTILINE)


def documents(atlas: Atlas) -> list[dict[str, Any]]:
    """Every document: `location`, `title`, `text` (the excerpt), `names` and `keys` (equal to a query: first), `words`
    (the rest of the prose, each once) and `weight`. All texts are plain."""
    found = [_entry(atlas, one) for one in atlas.entries]
    found += _terms(atlas)
    found += [_paper(atlas, one) for one in atlas.papers]
    found += [_notebook(atlas, one) for one in atlas.material.notebooks.values()]
    for page, what, statements in (
        ("principles.html", "Principle", atlas.knowledge.principles.statements),
        ("open-problems.html", "Open problem", atlas.knowledge.open_problems.statements),
    ):
        found += [_statement(page, what, one) for one in statements]
    found += _guides(atlas)
    return found


def index(atlas: Atlas) -> str:
    """The index as the theme reads it."""
    return json.dumps({"config": LANGUAGE, "docs": documents(atlas)}, ensure_ascii=False, separators=(",", ":"))


def install(site: Path, text: str) -> None:
    """Write the index into a built site, and our search over the theme's worker, which takes the same messages."""
    (site / INDEX).parent.mkdir(exist_ok=True)
    (site / INDEX).write_text(text, encoding="utf-8")
    (site / INDEX).with_suffix(".js").write_text(f"var __index = {text}", encoding="utf-8")
    for worker in (site / "assets" / "javascripts" / "workers").glob("search.*.js"):
        worker.write_text(WORKER.read_text(encoding="utf-8"), encoding="utf-8")


def words(*texts: str, without: str = "") -> str:
    """The words of Markdown, each once and in order: no formula, no code block, no number, no word of `without`."""
    known = set(_split(without)) | COMMON
    found = (word for text in texts for word in _split(MATH.sub(" ", FENCED.sub(" ", text))))
    return " ".join(sorted({word for word in found if word not in known and not word.isdigit() and len(word) > 1}))


def _split(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower().replace("_", " "))


def _document(
    location: str, title: str, text: str, *, names: Iterable[str] = (), keys: Iterable[str] = (),
    prose: Iterable[str] = (), weight: int = LOW,
) -> dict[str, Any]:  # fmt: skip
    text = plain(text)
    names = [name for name in dict.fromkeys(names) if name.lower() != title.lower()]
    whole = {
        "location": location, "title": title, "text": text, "names": names, "keys": list(dict.fromkeys(keys)),
        "words": words(*prose, without=" ".join([title, text, *names])), "weight": weight,
    }  # fmt: skip
    return {name: value for name, value in whole.items() if value}


def _entry(atlas: Atlas, one: Entry) -> dict[str, Any]:
    source = atlas.knowledge.sources.get(one.id) if one.implementation else None
    own = source.definitions.items() if source else ()
    symbols = [name for name, where in own if source and where.file in source.files and name[0] != "_"]
    prose = [one.definition or "", *(step.step for step in one.algorithm), one.invariant or "", *one.when_to_use]
    prose += [*one.when_not_to_use, *one.limits, *one.deviations]
    prose += [atlas.term(axis, term) for axis, terms in one.axes.items() for term in terms]
    by = [atlas.knowledge.papers[p.key] for p in one.papers if p.key in atlas.knowledge.papers]
    prose += [f"{paper.ids.arxiv or ''} {short_authors(paper)} {paper.year or ''}" for paper in by]
    return _document(
        f"techniques/{one.id}.html", one.name, one.summary, names=one.aliases,
        keys=[one.id, *(s for s in symbols if "._" not in s)], prose=prose,
        weight=TOP if one.status == "stable" else HIGH,
    )  # fmt: skip


def _terms(atlas: Atlas) -> Iterator[dict[str, Any]]:
    for name, axis in atlas.knowledge.axes.axes.items():
        page = f"axes/{name}.html"
        yield _document(page, axis.name, axis.question, names=[f"axis {name}"], prose=[axis.definition], weight=HIGH)
        for key, term in axis.terms.items():
            yield _document(
                f"{page}#{anchor(key)}", term.name, f"{axis.name}: {term.definition}", names=[key], weight=HIGH,
                prose=filter(None, (term.question, term.tie_break)),
            )  # fmt: skip


def _paper(atlas: Atlas, one: Paper) -> dict[str, Any]:
    authors = f"{short_authors(one)} {one.year or ''}".strip()
    ids = [one.key, one.ids.arxiv, one.ids.doi]
    prose = [claim.statement for claim in one.claims]
    prose += [" ".join(author.family for author in one.authors), one.venue or ""]
    return _document(
        f"papers/{one.key}.html", one.title, f"{authors}. {one.summary}" if authors else one.summary,
        names=[short_title(one).removesuffix("…"), *([authors] if authors else [])], keys=filter(None, ids),
        prose=prose, weight=MIDDLE,
    )  # fmt: skip


def _notebook(atlas: Atlas, one: Notebook) -> dict[str, Any]:
    prose = [str(cell["source"]) for cell in one.cells if cell["cell_type"] == "markdown"]
    entry = atlas.knowledge.entries.get(one.id)
    about = f"Executed notebook. {entry.summary}" if entry else "Executed notebook."
    return _document(f"notebooks/{one.id}.html", f"Notebook: {one.title}", about, keys=[one.path], prose=prose)


def _statement(page: str, what: str, one: Statement) -> dict[str, Any]:
    return _document(f"{page}#{one.id}", f"{what}: {one.title}", one.statement, names=[one.title])


def _guides(atlas: Atlas) -> Iterator[dict[str, Any]]:
    """Sections of the hand-written pages."""
    for path, markdown in atlas.material.guides.items():
        text = INCLUDED.sub(lambda m: (atlas.knowledge.root / m[1]).read_text(encoding="utf-8"), markdown)
        text = FENCED.sub(" ", re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
        heads = list(HEADING.finditer(text))
        title, seen = plain(heads[0][2]) if heads else path, set[str]()
        for head, after in zip(heads, [*heads[1:], None], strict=True):
            body = re.sub(r"<[^>]+>|\{[^}]*\}|\]\([^)]*\)|^\|.*$|[\[#]", " ",
                          text[head.end() : after.start() if after else None], flags=re.MULTILINE)  # fmt: skip
            named = plain(head[2])
            place = head[3] or slugify(named, "-")
            first = re.split(r"\n\s*\n", body.strip())[0]
            where = f"#{place}" if head is not heads[0] and place not in seen else ""
            seen.add(place)
            yield _document(
                path.removesuffix(".md") + ".html" + where, named if head is heads[0] else f"{title}: {named}", first,
                names=[named], prose=[body],
            )  # fmt: skip
