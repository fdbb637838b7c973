"""The page of an entry, answer first, and the page of its notebook."""

from __future__ import annotations

from tools.export.bibtex import bibliography
from tools.knowledge.completeness import gaps
from tools.knowledge.schema import Entry, Statement
from tools.knowledge.source import Source
from tools.site import evidence
from tools.site.markup import Html, heading
from tools.site.model import Atlas, Page, Result
from tools.site.notebooks import Notebook, render
from tools.site.parts import ROLES, STATUS, View, plain

KINDS = {
    "technique": "Technique: removes a redundancy",
    "system": "System: composes techniques",
    "study": "Study: measures and removes nothing",
}
BOOST = {"stable": 5, "draft": 2, "deprecated": 1}
"""Weight in the search: what runs comes first."""
INVERSE = {
    "generalises": "is generalised by", "variant-of": "has the variant", "composes-with": "composes with",
    "conflicts-with": "conflicts with", "supersedes": "is superseded by",
}  # fmt: skip
"""A relation, read from its target."""
EXECUTION = {"real": "fewer MACs are executed", "simulated": "everything is computed, the result is masked"}


def page(atlas: Atlas, entry: Entry) -> Page:
    """The page of one entry."""
    known, results = atlas.knowledge, atlas.results(entry.id)
    source = known.sources.get(entry.id) if entry.implementation else None
    papers = [(known.papers[p.key], ROLES[p.role]) for p in entry.papers if p.key in known.papers]
    return View(atlas, f"techniques/{entry.id}.md", entry.id).page(
        "entry.md", entry.name, f"taxonomy/techniques/{entry.id}.yml", section=STATUS[entry.status],
        meta={"description": entry.summary, "search": {"boost": BOOST[entry.status]}},
        entry=entry, module=source, results=results, evidence=evidence, redundancies=_redundancies(results),
        names=_names(entry), tiles=_tiles(atlas, entry, source), claims=known.claims(entry.id), place=_place,
        hard_cases=[case for case in known.hard_cases if entry.id in case.entries],
        knobs=getattr(source, "knobs", ()), adapters=atlas.material.hosts.get(entry.id, ()),
        texts=atlas.material.texts, notebook=atlas.material.notebooks.get(entry.id), relations=_relations(atlas, entry),
        statements=_statements(atlas, entry), papers=papers, bibliography=bibliography(p for p, _ in papers),
        missing=[f"`{n.what}`: {n.hint}" for n in gaps(known, entry)] if entry.status == "draft" else [],
    )  # fmt: skip


def notebook_page(atlas: Atlas, notebook: Notebook) -> Page:
    """An executed notebook as a page."""
    view = View(atlas, f"notebooks/{notebook.id}.md")
    # The first heading stays the first thing on the page; the note follows it.
    text = render(notebook)
    title, _, rest = text.partition("\n") if text.startswith("# ") else (heading(notebook.title), "", text)
    meta = {"title": f"Notebook: {notebook.title}", "search": {"boost": 0.7}}
    return view.page(
        "notebook.md", notebook.title, notebook.path, meta=meta, notebook=notebook, heading=Html(title), rest=Html(rest)
    )


def _names(entry: Entry) -> str:
    """Other names, the kind where it is no technique, and whether it is a founding document."""
    lines = [f"Also known as {', '.join(entry.aliases)}."] if entry.aliases else []
    lines += [f"{KINDS[entry.kind]}."] if entry.kind != "technique" else []
    lines += ["One of the founding documents."] if entry.founding else []
    return " ".join(lines)


def _tiles(atlas: Atlas, entry: Entry, source: Source | None) -> list[tuple[str, str, str, str]]:
    """(what, value, class, explanation) of the strip."""
    tiles = [(what, value, "", more) for what, value, more in evidence.headline(atlas.records(entry.id))]
    if "adaptation" in entry.axes:
        primary = entry.axes["adaptation"].primary
        term = atlas.knowledge.axes["adaptation"].terms.get(primary)
        tiles.append(
            ("Training needed", atlas.term("adaptation", primary), "words", plain(term.definition) if term else "")
        )
    if source and source.execution:
        tiles.append(("Execution", source.execution.capitalize(), "words", EXECUTION[source.execution]))
    return tiles


def _redundancies(results: list[Result]) -> list[Result]:
    """The first result of each measured redundancy."""
    distinct = {r.record.redundancy.model_dump_json(): r for r in reversed(results)}
    return list(reversed(distinct.values()))


def _place(name: str, source: Source | None) -> str:
    """Anchor of a function in the source below, if it is there."""
    where = source.definitions.get(name) if source else None
    return f"src{source.files.index(where.file)}-{where.line}" if source and where else ""


def _relations(atlas: Atlas, entry: Entry) -> list[tuple[str, Entry, str]]:
    """Relations from both sides, with their notes: what this entry says of others, and what others say of it."""
    known = atlas.knowledge.entries
    rows = [(r.type.replace("-", " "), r.target, r.note) for r in entry.relations]
    rows += [("has the part", part, "") for part in entry.parts]
    rows += [(INVERSE[r.type], one.id, r.note) for one in known.values() for r in one.relations if r.target == entry.id]
    rows += [("is a part of", one.id, "") for one in known.values() if entry.id in one.parts]
    return [(how, known[id_], note) for how, id_, note in rows if id_ in known]


def _statements(atlas: Atlas, entry: Entry) -> list[tuple[str, str, Statement]]:
    """(page, kind, statement) of principles and open problems that rest on this entry, its claims or its results."""
    claims = {f"{paper.key}#{claim.id}" for paper, claim, _ in atlas.knowledge.claims(entry.id)}
    return [
        (page_, what, one)
        for page_, what, statements in (
            ("principles.md", "Principle", atlas.knowledge.principles),
            ("open-problems.md", "Open problem", atlas.knowledge.open_problems),
        )
        for one in statements.statements
        if any(
            s.entry == entry.id or s.claim in claims or (s.result or "").startswith(f"{entry.id}/") for s in one.support
        )
    ]
