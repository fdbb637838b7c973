"""The page of an entry, answer first, and the page of its notebook."""

from __future__ import annotations

from functools import partial

from ..export.bibtex import bibliography
from ..knowledge.completeness import gaps
from ..knowledge.schema import Entry, Statement
from ..knowledge.source import Knob, Source
from . import annotated, evidence
from .markup import Html, cost_model, external, heading, math, with_code
from .model import Atlas, Page, Result
from .notebooks import Notebook, first_figure, render
from .parts import ROLES, STATUS, View, plain
from .pictogram import pictogram

KINDS = {
    "technique": "Technique: removes a redundancy",
    "system": "System: composes techniques",
    "study": "Study: measures and removes nothing",
}
INVERSE = {
    "generalises": "is generalised by", "variant-of": "has the variant", "analogue-of": "is an analogue of",
    "composes-with": "composes with", "conflicts-with": "conflicts with", "supersedes": "is superseded by",
}  # fmt: skip
"""A relation, read from its target."""
EXECUTION = {"real": "fewer MACs are executed", "simulated": "everything is computed, the result is masked"}


PICTURE_BYTES = 40_000
"""A figure of the notebook that is larger (photos) does not stand on the page of the entry."""


def page(atlas: Atlas, entry: Entry) -> Page:
    """The page of one entry."""
    known, results = atlas.knowledge, atlas.results(entry.id)
    source = known.sources.get(entry.id) if entry.implementation else None
    papers = [(known.papers[p.key], ROLES[p.role]) for p in entry.papers if p.key in known.papers]
    view = View(atlas, f"techniques/{entry.id}.md")
    return view.page(
        "entry.md", entry.name, f"taxonomy/techniques/{entry.id}.yml", section=_section(atlas, entry),
        meta={"description": entry.summary, "card": entry.id},
        entry=entry, module=source, results=results, evidence=evidence, redundancies=_redundancies(results),
        names=_names(entry), tiles=_tiles(atlas, entry, source, results), claims=known.claims(entry.id),
        pictogram=pictogram(atlas, entry.axes),
        actions=_actions(view, entry, source), picture=_picture(atlas, entry, results),
        function=partial(_function, view), cost=cost_model(entry.cost_model or ""),
        symbols=[(math(symbol), meaning) for symbol, meaning in entry.symbols.items()],
        hard_cases=[case for case in known.hard_cases if entry.id in case.entries],
        knobs=[_knob(one) for one in source.knobs] if source else [], adapters=atlas.material.hosts.get(entry.id, ()),
        notebook=atlas.material.notebooks.get(entry.id), relations=_relations(view, entry),
        statements=_statements(atlas, entry), papers=papers, bibliography=bibliography(p for p, _ in papers),
        checks=atlas.material.checks if source else {}, snippet=snippet(entry.id),
        own_data="location" in entry.axes and entry.axes["location"].primary in ("dataset", "input_pipeline"),
        missing=[f"`{n.what}`: {n.hint}" for n in gaps(known, entry)] if entry.status == "draft" else [],
    )  # fmt: skip


def _section(atlas: Atlas, entry: Entry) -> str:
    """Where the navigation has an entry. Drafts are many: by why their data are redundant."""
    name = STATUS[entry.status]
    if entry.status == "draft" and "relation" in entry.axes:
        return f"{name}: {atlas.term('relation', entry.axes['relation'].primary).lower()}"
    return name


def snippet(id_: str) -> str:
    """The lines that measure and apply an implementation; tests run them on its own cases."""
    return (
        "from reference_impls.contract.registry import load\n\n"
        f'technique = load("{id_}")\n'
        "print(technique.measure(target, inputs))  # how redundant these inputs are for it\n"
        "with technique.apply(target) as handle:\n"
        "    ...  # use handle.target in the place of target; it is restored at the end"
    )


def notebook_page(atlas: Atlas, notebook: Notebook) -> Page:
    """An executed notebook as a page."""
    view = View(atlas, f"notebooks/{notebook.id}.md")
    # The first heading stays the first thing on the page; the note follows it.
    text = render(notebook)
    title, _, rest = text.partition("\n") if text.startswith("# ") else (heading(notebook.title), "", text)
    meta = {"title": f"Notebook: {notebook.title}"}
    return view.page(
        "notebook.md", notebook.title, notebook.path, meta=meta, notebook=notebook, heading=Html(title),
        rest=Html(rest), home=atlas.material.home,
    )  # fmt: skip


def _names(entry: Entry) -> str:
    """Other names, the kind where it is no technique, and whether it is a founding document."""
    lines = [f"Also known as {', '.join(entry.aliases)}."] if entry.aliases else []
    lines += [f"{KINDS[entry.kind]}."] if entry.kind != "technique" else []
    lines += ["One of the founding documents."] if entry.founding else []
    return " ".join(lines)


def _tiles(atlas: Atlas, entry: Entry, source: Source | None, results: list[Result]) -> list[tuple[str, str, str, str]]:
    """(what, value, class, explanation) of the strip."""
    found = evidence.headline([r.record for r in results], study=entry.kind == "study")
    tiles = [(what, value, "", more) for what, value, more in found]
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


def source_page(atlas: Atlas, entry: Entry) -> Page:
    """The source of an entry's implementation, each line with an anchor."""
    view = View(atlas, f"sources/{entry.id}.md")
    source = atlas.knowledge.sources[entry.id]
    files = [(number, file, atlas.material.texts.get(file, "")) for number, file in enumerate(source.files)]
    return view.page(
        "source.md", f"Source of {entry.name}", source.file, meta={"hide": ["navigation", "toc"]}, entry=entry,
        files=[one for one in files if one[2].strip()], annotated=annotated.rendered,
    )  # fmt: skip


def numbers_page(atlas: Atlas, entry: Entry) -> Page:
    """The numbers of an entry's figures as tables."""
    view = View(atlas, f"numbers/{entry.id}.md")
    return view.page(
        "numbers.md", f"Numbers of {entry.name}", f"reference_impls/results/{entry.id}",
        meta={"hide": ["navigation"]}, entry=entry, results=atlas.results(entry.id), evidence=evidence,
    )  # fmt: skip


def _actions(view: View, entry: Entry, source: Source | None) -> list[Html]:
    """What readers do with an entry: run it, open its notebook and its source, cite it, edit it."""
    file = f"taxonomy/techniques/{entry.id}.yml"
    there, home = entry.id in view.atlas.material.notebooks, view.atlas.material.home
    listed = [
        Html('<a href="#implementation">Run</a>') if source else None,
        view.link(f"notebooks/{entry.id}.md", "Notebook") if there else None,
        view.link(f"notebooks/{entry.id}.ipynb", ".ipynb") if there else None,
        external(home.colab(entry.id), "Colab") if there and home else None,
        view.link(f"sources/{entry.id}.md", "Source") if source else None,
        Html('<a href="#papers-and-citation">Cite</a>') if entry.papers else None,
        external(home.edit(file), "Edit") if home else Html('<a href="#edit">Edit</a>'),
    ]
    return [one for one in listed if one]


def _picture(atlas: Atlas, entry: Entry, results: list[Result]) -> tuple[Html, str] | None:
    """(figure, caption) of what the technique does: the first of its notebook, else its first trade-off."""
    if (notebook := atlas.material.notebooks.get(entry.id)) and (found := first_figure(notebook, PICTURE_BYTES)):
        return found
    if results:
        return evidence.first_panel(results[0], "picture"), results[0].record.title
    return None


def _function(view: View, name: str | None, source: Source | None) -> Html:
    """Name of a function with a link to it in the source, if it is there."""
    shown = Html("<code>{}</code>").format(name) if name else Html()
    where = source.definitions.get(name or "") if source else None
    if source is None or where is None or where.file not in source.files:
        return shown  # code that techniques share stands on no page
    return view.link(f"sources/{source.id}.md", shown, anchor=f"src{source.files.index(where.file)}-{where.line}")


def _knob(one: Knob) -> tuple[Html, str, Html, Html]:
    """(name, values that it takes, default, meaning) of a knob."""
    shown = Html("<code>{}</code>")
    takes = ": ".join(filter(None, (one.kind, one.takes)))
    return shown.format(one.name), takes, shown.format(one.default), with_code(one.about)


def _relations(view: View, entry: Entry) -> list[tuple[Html, Html]]:
    """Relations from both sides, with their notes: what this entry says of others, and what others say of it."""
    known = view.atlas.knowledge.entries
    rows = [(r.type.replace("-", " "), r.target, r.note) for r in entry.relations]
    rows += [("has the part", part, "") for part in entry.parts]
    rows += [(INVERSE[r.type], one.id, r.note) for one in known.values() for r in one.relations if r.target == entry.id]
    rows += [("is a part of", one.id, "") for one in known.values() if entry.id in one.parts]
    status = {"stable": ""} | {s: Html(" <small>({})</small>").format(s) for s in ("draft", "deprecated")}
    shown = Html('<span class="atlas-relation">{}</span> {}{}')
    return [
        (shown.format(how, view.of_entry(id_), status[known[id_].status]), view.linked(note))
        for how, id_, note in rows
        if id_ in known
    ]


def _statements(atlas: Atlas, entry: Entry) -> list[tuple[str, str, Statement]]:
    """(page, kind, statement) of principles and open problems that rest on this entry, its claims or its results."""
    claims = {f"{paper.key}#{claim.id}" for paper, claim, _ in atlas.knowledge.claims(entry.id)}
    records = atlas.knowledge.results_of(entry.id)
    results = {f"{owner}/{record.scenario}" for record in records for owner in (entry.id, record.owner)}
    return [
        (page_, what, one)
        for page_, what, statements in (
            ("principles.md", "Principle", atlas.knowledge.principles),
            ("open-problems.md", "Open problem", atlas.knowledge.open_problems),
        )
        for one in statements.statements
        if any(s.entry == entry.id or s.claim in claims or s.result in results for s in one.support)
    ]
