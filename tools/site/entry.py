"""The page of an entry, answer first, and the page of its notebook."""

from __future__ import annotations

from html import escape

from tools.export.bibtex import bibtex
from tools.knowledge.completeness import gaps
from tools.knowledge.schema import Entry
from tools.knowledge.source import Source
from tools.site import evidence
from tools.site.catalogue import claims_table, short_reference
from tools.site.home import anchor, plain
from tools.site.markup import bullets, code, copyable, front_matter, link, math, paragraph, table, with_math
from tools.site.notebooks import Notebook, render
from tools.site.pages import Atlas, Page

KINDS = {
    "technique": "Technique: removes a redundancy",
    "system": "System: composes techniques",
    "study": "Study: measures and removes nothing",
}
ROLES = {
    "introduces": "introduces it", "ancestor": "an ancestor", "extends": "extends it",
    "analyses": "analyses it", "applies": "applies it",
}  # fmt: skip


def page(atlas: Atlas, entry: Entry) -> Page:
    """The page of one entry."""
    here = f"techniques/{entry.id}.md"
    module = atlas.knowledge.sources.get(entry.id) if entry.implementation else None
    parts = [
        front_matter(title=entry.name, description=entry.summary, search={"boost": 3}),
        f"# {entry.name}",
        f'<p class="atlas-lead">{escape(entry.summary)}</p>',
        _names(atlas, here, entry),
        _strip(atlas, entry, module),
        _when(entry),
        *_evidence(atlas, entry),
        *_claims(atlas, here, entry),
        *_definition(entry, module),
        "## Classification\n\n" + _classification(atlas, here, entry),
        *_limits(entry, module),
        *_implementation(atlas, here, entry, module),
        *_relations(atlas, here, entry),
        *_papers(atlas, here, entry),
        *_missing(atlas, entry),
        (
            f'<p class="atlas-note">Edit this entry: <code>taxonomy/techniques/{entry.id}.yml</code> · '
            f"added {entry.added}</p>"
        ),
    ]
    return Page(here, entry.name, "\n\n".join(p for p in parts if p) + "\n", f"taxonomy/techniques/{entry.id}.yml")


def notebook_page(atlas: Atlas, notebook: Notebook) -> Page:
    """An executed notebook as a page."""
    here = f"notebooks/{notebook.id}.md"
    entry = atlas.knowledge.entries.get(notebook.id)
    back = f"The notebook of {link(here, f'techniques/{notebook.id}.md', escape(entry.name))}. " if entry else ""
    # The first heading stays the first thing on the page; the note follows it.
    text = render(notebook)
    title, _, rest = text.partition("\n") if text.startswith("# ") else (f"# {notebook.title}", "", text)
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
        state = "Its implementation is under way" if entry.implementation else "This entry has no implementation yet"
        measured = "" if atlas.records(entry.id) else ": nothing on this page was measured here"
        missing = " [What is missing](#what-is-missing) stands below." if gaps(atlas.knowledge, entry) else ""
        text += f'\n\n!!! note "Draft"\n    {state}{measured}.{missing}'
    elif entry.status == "deprecated":
        new = atlas.knowledge.entries.get(entry.replaced_by or "")
        instead = f" Use {link(here, f'techniques/{new.id}.md', escape(new.name))} instead." if new else ""
        text += f'\n\n!!! warning "Deprecated"\n    Kept for those who look for it.{instead}'
    return text


def _strip(atlas: Atlas, entry: Entry, module: Source | None) -> str:
    tiles = [(what, value, "", small) for what, value, small in evidence.headline(atlas.records(entry.id))]
    if "adaptation" in entry.axes:
        term = atlas.knowledge.axes["adaptation"].terms.get(entry.axes["adaptation"].primary)
        small = escape(plain(term.definition)) if term else ""
        tiles.append(("Training needed", atlas.term("adaptation", entry.axes["adaptation"].primary), "words", small))
    if module and (execution := module.execution):
        meaning = {
            "real": "fewer operations are executed", "simulated": "everything is computed, the result is masked",
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
            f"### {record.title} {{#{record.scenario}}}",
            evidence.figure_block(record, f"fig-{record.scenario}"),
            evidence.provenance(record),
        ]
    parts.append("## Measured redundancy")
    distinct = {record.redundancy.model_dump_json(): record for record in reversed(records)}  # the first record of each
    for record in reversed(distinct.values()):
        if len(distinct) > 1:
            parts.append(f"### {record.title} {{#redundancy-{record.scenario}}}")
        parts.append(evidence.redundancy_block(record, f"redundancy-fig-{record.scenario}"))
    return parts


def _claims(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    claims = atlas.knowledge.claims(entry.id)
    if not claims:
        return []
    return ["## What the papers say, and what we found", claims_table(atlas, here, claims)]


def _definition(entry: Entry, module: Source | None) -> list[str]:
    parts = []
    if entry.definition:
        parts += ["## Definition", with_math(entry.definition.strip())]
    if entry.algorithm:
        parts += [
            "## Algorithm",
            "\n".join(
                f"{i}. {paragraph(s.step)}{_function(s.function, module)}" for i, s in enumerate(entry.algorithm, 1)
            ),
        ]
    if entry.cost_model:
        parts += [
            "## Cost model",
            f'<div class="atlas-math">{math(entry.cost_model.strip().strip("$"), display=True)}</div>',
        ]
    return parts


def _function(name: str | None, module: Source | None) -> str:
    if not name:
        return ""
    place = module.definitions.get(name) if module else None
    if module is None or place is None:
        return f" <code>{escape(name)}</code>"
    return f' <a href="#src{module.files.index(place.file)}-{place.line}"><code>{escape(name)}</code></a>'


def _classification(atlas: Atlas, here: str, entry: Entry) -> str:
    rows = []
    for name, one in atlas.knowledge.axes.axes.items():
        if name not in entry.axes:
            continue
        terms = []
        for term in entry.axes[name]:
            known = one.terms.get(term)
            label = (
                f'<abbr title="{escape(plain(known.definition))}">{escape(known.name)}</abbr>'
                if known
                else escape(term)
            )
            terms.append(link(here, f"axes/{name}.md", label, anchor=anchor(term)))
        more = f" <small>also {', '.join(terms[1:])}</small>" if terms[1:] else ""
        rows.append([link(here, f"axes/{name}.md", escape(one.name)), terms[0] + more, escape(plain(one.question))])
    return table(
        ["Axis", "Term", "The question"], rows, css="atlas-axes", caption="Place of this entry in the taxonomy"
    )


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
            f'<p>Waived in the battery of checks, with the reason:</p><dl class="atlas-waivers">{items}</dl>',
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
    known = atlas.knowledge.entries
    items = []
    for relation in entry.relations:
        if relation.target in known:
            name = link(here, f"techniques/{relation.target}.md", escape(known[relation.target].name))
            items.append(f"{relation.type.replace('-', ' ')} {name}: {paragraph(relation.note)}")
    for other in atlas.entries:
        name = link(here, f"techniques/{other.id}.md", escape(other.name))
        for relation in other.relations:
            if relation.target == entry.id:
                items.append(f"{name} {relation.type.replace('-', ' ')} this: {paragraph(relation.note)}")
    if entry.parts:
        names = ", ".join(link(here, f"techniques/{p}.md", escape(known[p].name)) for p in entry.parts if p in known)
        items.append(f"composed of {names}")
    return ["## Relations", "\n".join(f"- {item}" for item in items)] if items else []


def _missing(atlas: Atlas, entry: Entry) -> list[str]:
    """What a draft still needs to become stable."""
    missing = gaps(atlas.knowledge, entry) if entry.status == "draft" else ()
    return ["## What is missing", bullets(f"`{need.what}`: {need.hint}" for need in missing)] if missing else []


def _papers(atlas: Atlas, here: str, entry: Entry) -> list[str]:
    known = [(atlas.knowledge.papers[p.key], p.role) for p in entry.papers if p.key in atlas.knowledge.papers]
    if not known:
        return []
    items = "\n".join(
        f"- {link(here, f'papers/{p.key}.md', escape(p.title))} ({escape(short_reference(p))}): {ROLES[role]}"
        for p, role in known
    )
    return ["## Papers and citation", items, copyable("\n".join(bibtex(p) for p, _ in known), "the BibTeX records")]
