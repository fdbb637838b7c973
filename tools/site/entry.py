"""The page of an entry, answer first, and the page of its notebook."""

from __future__ import annotations

from tools.export.bibtex import bibliography
from tools.knowledge.completeness import gaps
from tools.knowledge.schema import Entry
from tools.knowledge.source import Source
from tools.site import evidence
from tools.site.catalogue import ROLES, STATUS, classification, linked, listed
from tools.site.home import plain
from tools.site.markup import (
    bullets,
    code,
    copyable,
    display_math,
    escape,
    front_matter,
    heading,
    link,
    paragraph,
    prose,
    table,
)  # fmt: skip
from tools.site.notebooks import Notebook, render
from tools.site.pages import Atlas, Page
from tools.site.papers import claims_table, short_reference

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


def page(atlas: Atlas, entry: Entry) -> Page:
    """The page of one entry."""
    here = f"techniques/{entry.id}.md"
    module = atlas.knowledge.sources.get(entry.id) if entry.implementation else None
    parts = [
        front_matter(title=entry.name, description=entry.summary, search={"boost": BOOST[entry.status]}),
        heading(entry.name),
        f'<p class="atlas-lead">{escape(entry.summary)}</p>',
        _names(atlas, here, entry),
        _strip(atlas, entry, module),
        _when(entry),
        *_evidence(atlas, entry),
        *_claims(atlas, here, entry),
        *_definition(atlas, here, entry, module),
        "## Classification",
        classification(atlas, here, entry.axes, "Place of this entry in the taxonomy"),
        *_rulings(atlas, here, entry),
        *_limits(entry, module),
        *_implementation(atlas, here, entry, module),
        *_relations(atlas, here, entry),
        *_statements(atlas, here, entry),
        *_papers(atlas, here, entry),
        *_missing(atlas, entry),
        (
            f'<p class="atlas-note">Edit this entry: <code>taxonomy/techniques/{entry.id}.yml</code> · '
            f"added {entry.added}</p>"
        ),
    ]
    text = "\n\n".join(p for p in parts if p) + "\n"
    return Page(here, entry.name, text, f"taxonomy/techniques/{entry.id}.yml", STATUS[entry.status])


def notebook_page(atlas: Atlas, notebook: Notebook) -> Page:
    """An executed notebook as a page."""
    here = f"notebooks/{notebook.id}.md"
    entry = atlas.knowledge.entries.get(notebook.id)
    back = f"The notebook of {link(here, f'techniques/{notebook.id}.md', escape(entry.name))}. " if entry else ""
    # The first heading stays the first thing on the page; the note follows it.
    text = render(notebook)
    title, _, rest = text.partition("\n") if text.startswith("# ") else (heading(notebook.title), "", text)
    note = (
        f'<p class="atlas-note">{back}Executed from <code>{escape(notebook.path)}</code> in the smoke budget, in '
        f"{notebook.seconds:.0f} seconds; open it with Jupyter through jupytext, or run it as a script.</p>"
    )
    meta = front_matter(title=f"Notebook: {notebook.title}", search={"boost": 0.7})
    return Page(here, notebook.title, f"{meta}{title}\n\n{note}\n\n{rest}", notebook.path)


def _names(atlas: Atlas, here: str, entry: Entry) -> str:
    line = []
    if entry.aliases:
        line.append(f"Also known as {escape(', '.join(entry.aliases))}.")
    if entry.kind != "technique":
        line.append(f"{KINDS[entry.kind]}.")
    if entry.founding:
        line.append("One of the founding documents.")
    text = f'<p class="atlas-note">{" ".join(line)}</p>' if line else ""
    if entry.status == "draft":
        state = "Its implementation is under way" if entry.implementation else "There is no implementation yet"
        measured = "" if atlas.records(entry.id) else ": nothing on this page was measured here"
        missing = (
            '. <a href="#what-is-missing">What is missing</a> stands below' if gaps(atlas.knowledge, entry) else ""
        )
        text += (
            f'<p class="atlas-banner draft"><b>Draft.</b> Defined and classified, with its papers. '
            f"{state}{measured}{missing}.</p>"
        )
    elif entry.status == "deprecated":
        new = atlas.knowledge.entries.get(entry.replaced_by or "")
        instead = f" Use {link(here, f'techniques/{new.id}.md', escape(new.name))} instead." if new else ""
        text += f'<p class="atlas-banner deprecated"><b>Deprecated.</b> Kept for those who look for it.{instead}</p>'
    return text


def _strip(atlas: Atlas, entry: Entry, module: Source | None) -> str:
    tiles = [(what, value, "", small) for what, value, small in evidence.headline(atlas.records(entry.id))]
    if "adaptation" in entry.axes:
        term = atlas.knowledge.axes["adaptation"].terms.get(entry.axes["adaptation"].primary)
        small = escape(plain(term.definition)) if term else ""
        needed = escape(atlas.term("adaptation", entry.axes["adaptation"].primary))
        tiles.append(("Training needed", needed, "words", small))
    if module and (execution := module.execution):
        meaning = {
            "real": "fewer MACs are executed", "simulated": "everything is computed, the result is masked",
        }[execution]  # fmt: skip
        tiles.append(("Execution", execution.capitalize(), "words", meaning))
    if not tiles:
        return ""
    shown = (
        f'<div><dt>{escape(what)}</dt><dd class="{css}">{value}<small>{more}</small></dd></div>'
        for what, value, css, more in tiles
    )
    return f'<dl class="atlas-strip">{"".join(shown)}</dl>'


def _when(entry: Entry) -> str:
    if not (entry.when_to_use or entry.when_not_to_use):
        return ""
    parts = ['<div class="atlas-when" markdown>']
    if entry.when_to_use:
        parts += ["<div markdown>", "## When to use it", bullets(entry.when_to_use), "</div>"]
    if entry.when_not_to_use:
        parts += ["<div markdown>", "## When not to", bullets(entry.when_not_to_use), "</div>"]
    return "\n\n".join([*parts, "</div>"])


def _evidence(atlas: Atlas, entry: Entry) -> list[str]:
    records = atlas.records(entry.id)
    if not records:
        return []
    parts = ["## Measured trade-off"]
    for record in records:
        parts += [
            heading(record.title, 3, evidence.anchor(record)),
            evidence.figure_block(record, f"fig-{evidence.anchor(record)}"),
            evidence.provenance(record),
        ]
    parts.append("## Measured redundancy")
    distinct = {record.redundancy.model_dump_json(): record for record in reversed(records)}  # the first record of each
    for record in reversed(distinct.values()):
        if len(distinct) > 1:
            parts.append(heading(record.title, 3, f"redundancy-{evidence.anchor(record)}"))
        parts.append(evidence.redundancy_block(record, f"redundancy-fig-{evidence.anchor(record)}"))
    return parts


def _claims(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    claims = atlas.knowledge.claims(entry.id)
    if not claims:
        return []
    return ["## What the papers say, and what we found", claims_table(atlas, here, claims)]


def _definition(atlas: Atlas, here: str, entry: Entry, module: Source | None) -> list[str]:
    parts = []
    if entry.definition:
        parts += ["## Definition", linked(atlas, here, prose(entry.definition))]
    if entry.algorithm:
        steps = [paragraph(step.step) + _function(step.function, module) for step in entry.algorithm]
        parts += ["## Algorithm", listed(steps, "ol")]
    if entry.invariant:
        said = linked(atlas, here, paragraph(entry.invariant))
        parts += ["## What an implementation must hold", f'<p class="atlas-invariant">{said}</p>']
    if entry.cost_model:
        parts += ["## Cost model", display_math(entry.cost_model)]
    return parts


def _function(name: str | None, module: Source | None) -> str:
    if not name:
        return ""
    place = module.definitions.get(name) if module else None
    if module is None or place is None:
        return f" <code>{escape(name)}</code>"
    return f' <a href="#src{module.files.index(place.file)}-{place.line}"><code>{escape(name)}</code></a>'


def _rulings(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    cases = [case for case in atlas.knowledge.hard_cases if entry.id in case.entries]
    if not cases:
        return []
    found = ", ".join(link(here, "hard-cases.md", escape(atlas.axis_name(case.axis)), anchor=case.id) for case in cases)
    return [f"<p>Its place was decided as a hard case: {found}.</p>"]


def _limits(entry: Entry, module: Source | None) -> list[str]:
    parts = []
    if entry.limits:
        parts += ["## Limits", bullets(entry.limits)]
    if entry.deviations:
        parts += ["## How ours departs from the paper", bullets(entry.deviations)]
    waivers = module.waivers if module else {}
    if waivers:
        items = "".join(f"<dt><code>{escape(k)}</code></dt><dd>{escape(v)}</dd>" for k, v in waivers.items())
        parts += [
            "## Checks that do not apply",
            f'<p>Waived, with the reason:</p><dl class="atlas-waivers">{items}</dl>',
        ]
    return parts


def _implementation(atlas: Atlas, here: str, entry: Entry, module: Source | None) -> list[str]:
    parts = []
    if module:
        adapters = atlas.material.hosts.get(entry.id, ())
        hosts = "".join(f"<li><code>{escape(h.path)}</code>: {escape(h.about)}</li>" for h in adapters)
        parts += [
            "## Implementation",
            (f"<p>Adapters to the models of others:</p><ul>{hosts}</ul>\n\n" if hosts else "")
            + copyable(f"redundancy run {entry.id} --budget smoke", "the command"),
            *(_source(file, atlas.material.texts.get(file, ""), f"src{i}") for i, file in enumerate(module.files)),
        ]
    if notebook := atlas.material.notebooks.get(entry.id):
        target = f"notebooks/{entry.id}.md"
        how = f"<code>{escape(notebook.path)}</code>: runs as a script, or in Jupyter through jupytext."
        parts.append(
            f"<p>{link(here, target, 'The notebook with its outputs', css='md-button')}</p>"
            f'<p class="atlas-note">{how}</p>'
        )
    return parts


def _source(path: str, text: str, prefix: str) -> str:
    if not text.strip():
        return ""
    summary = f"<summary><code>{escape(path)}</code>, {len(text.splitlines())} lines</summary>"
    return f'<details class="atlas-source" data-search-exclude>{summary}{code(text, line_prefix=prefix)}</details>'


def _relations(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    """Relations from both sides: what this entry says of others, and what others say of it."""
    known = atlas.knowledge.entries

    def other(id_: str) -> str:
        mark = "" if known[id_].status == "stable" else f" <small>({known[id_].status})</small>"
        return link(here, f"techniques/{id_}.md", escape(known[id_].name)) + mark

    rows = [(r.type.replace("-", " "), r.target, r.note) for r in entry.relations]
    rows += [("has the part", part, "") for part in entry.parts]
    rows += [(INVERSE[r.type], one.id, r.note) for one in known.values() for r in one.relations if r.target == entry.id]
    rows += [("is a part of", one.id, "") for one in known.values() if entry.id in one.parts]
    shown = [
        [f'<span class="atlas-relation">{how}</span> {other(id_)}', linked(atlas, here, paragraph(note))]
        for how, id_, note in rows
        if id_ in known
    ]
    if not shown:
        return []
    more = f"<p>{link(here, 'relations.md', 'All relations in one figure')}</p>"
    return ["## Relations", table(["This entry", "Why, or when"], shown, css="atlas-relations"), more]


def _statements(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    """Principles and open problems that rest on this entry, its claims or its results."""
    claims = {f"{paper.key}#{claim.id}" for paper, claim, _ in atlas.knowledge.claims(entry.id)}
    items = []
    for page_, what, statements in (
        ("principles.md", "Principle", atlas.knowledge.principles),
        ("open-problems.md", "Open problem", atlas.knowledge.open_problems),
    ):
        for one in statements.statements:
            if any(
                s.entry == entry.id or s.claim in claims or (s.result or "").startswith(f"{entry.id}/")
                for s in one.support
            ):
                items.append(f"{what}: {link(here, page_, escape(one.title), anchor=one.id)}")
    return ["## What it bears on", listed(items)] if items else []


def _missing(atlas: Atlas, entry: Entry) -> list[str]:
    """What a draft still needs to become stable."""
    missing = gaps(atlas.knowledge, entry) if entry.status == "draft" else ()
    return ["## What is missing", bullets(f"`{need.what}`: {need.hint}" for need in missing)] if missing else []


def _papers(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    known = [(atlas.knowledge.papers[p.key], p.role) for p in entry.papers if p.key in atlas.knowledge.papers]
    if not known:
        return []
    items = listed(
        f"{link(here, f'papers/{p.key}.md', escape(p.title))} ({escape(short_reference(p))}) {ROLES[role]}"
        for p, role in known
    )
    return ["## Papers and citation", items, copyable(bibliography(p for p, _ in known), "the BibTeX records")]
