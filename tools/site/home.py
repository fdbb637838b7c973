"""The home page: what the atlas is, the map relation x location, and every entry as a card."""

from __future__ import annotations

from collections import Counter

from tools.knowledge.schema import Entry
from tools.site.markup import escape, front_matter, href, link
from tools.site.pages import Atlas, Page

HERE = "index.md"
ROWS, COLUMNS = "relation", "location"
DOORS = (
    ("about.md", "What counts as redundancy"),
    ("apply.md", "Use it on your own model"),
    ("evidence.md", "How the numbers are made"),
)


def page(atlas: Atlas) -> Page:
    """The home page."""
    title = "Redundancy Atlas"
    text = front_matter(title=title, hide=["navigation", "toc"], search={"boost": 0.5})
    return Page(HERE, title, f"{text}{_hero(atlas)}\n\n## Where redundancy lives, and why\n\n{_map(atlas)}\n\n"
                f"## Entries that run\n\n{_cards(atlas)}\n", "taxonomy/axes.yml")  # fmt: skip


def _hero(atlas: Atlas) -> str:
    knowledge = atlas.knowledge
    claims = sum(len(p.claims) for p in knowledge.papers.values())
    records = sum(len(atlas.records(e)) for e in knowledge.entries)
    running = sum(1 for e in knowledge.entries.values() if e.implementation)
    facts = [
        (len(knowledge.entries), "entry", "entries"),
        (running, "implementation that runs", "implementations that run"),
        (records, "measured result", "measured results"),
        (len(knowledge.papers), "paper", "papers"),
        (claims, "claim with its place", "claims with their place"),
    ]
    return (
        '<div class="atlas-hero"><h1>An executable survey of data redundancy in deep learning</h1>'
        "<p>Networks spend much of their work on data that repeat, resemble each other, do not matter, or were decided "
        "long ago. The atlas says what each kind of redundancy is, <b>measures</b> it, <b>runs</b> the techniques that "
        "exploit it, and gives <b>every number its source</b>: a place in a paper, or a machine, a date and a "
        f"command.</p><p>{' · '.join(link(HERE, path, text) for path, text in DOORS)}</p>"
        '<p class="atlas-facts">'
        + "".join(f"<span><b>{n}</b> {one if n == 1 else many}</span>" for n, one, many in facts if n)
        + "</p></div>"
    )


def _map(atlas: Atlas) -> str:
    axes = atlas.knowledge.axes
    rows, columns = axes[ROWS], axes[COLUMNS]
    inside: dict[tuple[str, str], list[Entry]] = {}
    for entry in atlas.entries:
        if ROWS in entry.axes and COLUMNS in entry.axes:
            inside.setdefault((entry.axes[ROWS].primary, entry.axes[COLUMNS].primary), []).append(entry)
    most = max(map(len, inside.values()), default=1)
    head = "".join(f'<th scope="col">{_term_link(axes, COLUMNS, term)}</th>' for term in columns.terms)
    body = []
    for row, term in rows.terms.items():
        cells = "".join(
            f"<td>{_cell(term.name, columns.terms[c].name, row, c, inside.get((row, c), []), most)}</td>"
            for c in columns.terms
        )
        body.append(f'<tr><th scope="row">{_term_link(axes, ROWS, row)}</th>{cells}</tr>')
    total = Counter(bool(inside.get((r, c))) for r in rows.terms for c in columns.terms)
    corner = f"{link(HERE, f'axes/{ROWS}.md', 'why ↓')} {link(HERE, f'axes/{COLUMNS}.md', 'where →')}"
    return (
        "<p>Rows say <b>why</b> something is redundant, columns <b>where</b> it is when it is removed. "
        f"{total[True]} of {sum(total.values())} cells have entries; the others are areas yet to explore. "
        "An entry counts once, by its main term on each axis; the small number says how many of them run here.</p>"
        '<div class="atlas-map-box" tabindex="0" role="region" aria-label="Map of relation and location">'
        f'<table class="atlas-map"><thead><tr><th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{_legend(most)}"
    )


def _cell(row_name: str, column_name: str, row: str, column: str, entries: list[Entry], most: int) -> str:
    if not entries:
        title = escape(f"{row_name}, {column_name}: unexplored, no entry yet")
        inside = '<span aria-hidden="true">·</span><span class="atlas-visually-hidden">unexplored</span>'
        return f'<span class="cell empty" title="{title}">{inside}</span>'
    target = href(HERE, "techniques/index.md") + f"?{ROWS}={row}&amp;{COLUMNS}={column}"
    names = ", ".join(e.name for e in entries)
    running = sum(e.status == "stable" for e in entries)
    small = names if len(entries) == 1 and len(names) <= 22 else ""
    if running and len(entries) > 1:
        small = f"{running} running"
    label = f"<small>{escape(small)}</small>" if small else ""
    count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}" + (
        f", {running} running" if running else ""
    )
    spoken = escape(f"{row_name}, {column_name}: {count}: {names}")
    return (
        f'<a class="cell heat-{heat(len(entries), most)}{" runs" if running else ""}" href="{target}" '
        f'title="{escape(names)}" aria-label="{spoken}">{len(entries)}{label}</a>'
    )


def heat(count: int, most: int) -> int:
    """Step of the colour scale, 1 to 4, for `count` entries where the fullest cell has `most`."""
    if most <= 4:
        return count
    return min(4, 1 + (4 * (count - 1)) // most)


def _legend(most: int) -> str:
    steps: dict[int, list[int]] = {}
    for count in range(1, most + 1):
        steps.setdefault(heat(count, most), []).append(count)
    keys = "".join(
        f'<span><i class="key heat-{step}"></i>{c[0]}{f"–{c[-1]}" if len(c) > 1 else ""} '
        f"{'entry' if c == [1] else 'entries'}</span>"
        for step, c in steps.items()
    )
    return f'<p class="atlas-legend"><span><i class="key empty"></i>unexplored</span>{keys}</p>'


def _term_link(axes: object, axis: str, term: str) -> str:
    known = axes[axis].terms[term]  # type: ignore[index]
    return link(HERE, f"axes/{axis}.md", escape(known.name), anchor=anchor(term), title=plain(known.definition))


def anchor(term: str) -> str:
    """The anchor of a term on its axis' page."""
    return term.replace("_", "-")


def plain(markdown: str) -> str:
    """Markdown as plain text for a tooltip."""
    return " ".join(markdown.replace("`", "").replace("*", "").replace("$", "").split())


def _cards(atlas: Atlas) -> str:
    """The entries that run as cards; the drafts are counted, and stand in the table of techniques."""
    shown = [e for e in atlas.entries if e.status == "stable"]
    drafts = sum(e.status == "draft" for e in atlas.entries)
    cards = f'<ul class="atlas-cards">{"".join(card(atlas, HERE, e) for e in shown)}</ul>'
    if not drafts:
        return cards
    table = link(HERE, "techniques/index.md", f"All {len(atlas.entries)} entries")
    one = "1 more entry is a draft" if drafts == 1 else f"{drafts} more are drafts"
    return (
        f"{cards}\n\n<p>{one}, defined and classified, with papers, steps and a testable invariant, that wait for "
        f"their implementation. {table} · {link(HERE, 'relations.md', 'How they hang together')}</p>"
    )


def card(atlas: Atlas, here: str, entry: Entry, note: str = "") -> str:
    """An entry as a card, linked from the page at `here`."""
    chips = [
        atlas.term(axis, entry.axes[axis].primary) for axis in (ROWS, COLUMNS, "exploitation") if axis in entry.axes
    ]
    marks = "".join(f'<span class="atlas-chip">{escape(c)}</span>' for c in chips)
    if entry.status != "stable":
        marks += f'<span class="atlas-chip {entry.status}">{entry.status}</span>'
    more = f'<p class="atlas-note">{escape(note)}</p>' if note else ""
    return (
        f'<li class="{entry.status}"><h3>{link(here, f"techniques/{entry.id}.md", escape(entry.name))}</h3>'
        f"<p data-search-exclude>{escape(entry.summary)}</p>{more}"
        f'<p class="atlas-chips">{marks}</p></li>'
    )
