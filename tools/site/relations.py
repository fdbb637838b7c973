"""The page of relations: every entry in two columns, grouped by why its data are redundant, and a curve for each
relation; and all relations as tables.

The layout is deterministic: the relations of the taxonomy keep their order, the sides are balanced, and within a group
entries move until their curves are short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

from ..knowledge.schema import Entry
from .markup import Html, escape, href
from .model import Atlas, Page
from .parts import View, anchor

HERE = "relations.md"
AXIS = "relation"
TYPES = {
    "generalises": ("generalises", True), "variant-of": ("is a variant of", True),
    "supersedes": ("supersedes", True), "has-part": ("has the part", True),
    "analogue-of": ("is an analogue of", False), "composes-with": ("composes with", False),
    "conflicts-with": ("conflicts with", False),
}  # fmt: skip
"""Type of edge -> how it reads, and whether it has a direction."""
WIDTH, ROW, GAP, TOP = 1000, 17, 15, 8
LEFT, RIGHT = 345, 655
"""Where the dots of the two columns are; labels stand outside of them, curves between them."""
SWEEPS = 40


@dataclass(frozen=True)
class Edge:
    """A relation between two entries that exist."""

    source: str
    type: str
    target: str
    note: str = ""


@dataclass
class Layout:
    """Where everything stands."""

    places: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Entry -> side (0 left, 1 right) and height."""
    headings: list[tuple[str, int, float]] = field(default_factory=list)
    """Group, side and height of its heading."""
    height: float = 0.0


def edges(entries: Mapping[str, Entry]) -> list[Edge]:
    """Every relation between entries, parts included; one that both sides state stands once."""
    found: list[Edge] = []
    seen: set[tuple[str, str, str]] = set()
    for entry in entries.values():
        stated = [(r.type, r.target, r.note) for r in entry.relations] + [("has-part", p, "") for p in entry.parts]
        for type_, target, note in stated:
            first, second = (entry.id, target) if TYPES[type_][1] else sorted((entry.id, target))
            key = (type_, first, second)
            if target in entries and target != entry.id and key not in seen:
                seen.add(key)
                found.append(Edge(entry.id, type_, target, note))
    return found


def layout(groups: Mapping[str, Sequence[str]], links: Iterable[tuple[str, str]]) -> Layout:
    """Place groups on two sides, and the entries of each group one below the other."""
    ends: dict[str, list[str]] = {}
    for a, b in links:
        ends.setdefault(a, []).append(b)
        ends.setdefault(b, []).append(a)
    sides = _sides(groups)
    rows = {name: _families(ids, ends) for name, ids in groups.items()}
    placed = _place(rows, sides)
    for _ in range(SWEEPS):
        moved = [_settle(ids, placed.places, ends) for ids in rows.values()]
        if not any(moved):
            break
    return placed


def _sides(groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The most even split of the groups; the first group is on the left."""
    names = list(groups)
    cost = {name: len(groups[name]) + (GAP + ROW) / ROW for name in names}

    def unevenness(split: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return abs(sum(cost[n] * (1 - 2 * side) for n, side in zip(names, split, strict=True))), split

    splits: list[tuple[int, ...]] = [(0, *rest) for rest in product((0, 1), repeat=max(0, len(names) - 1))]
    best = min((unevenness(split) for split in splits), default=(0.0, ()))
    return dict(zip(names, best[1], strict=False))


def _families(ids: Sequence[str], ends: Mapping[str, Sequence[str]]) -> list[str]:
    """Entries so that related ones follow each other: large families first, each from its best connected entry."""
    inside = {i: sorted({e for e in ends.get(i, ()) if e in set(ids)}) for i in ids}
    by_links = sorted(ids, key=lambda i: (-len(inside[i]), i))
    families: list[list[str]] = []
    seen: set[str] = set()
    for start in by_links:
        family, todo = [], [start]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                family.append(at)
                todo += sorted(inside[at], key=lambda i: (len(inside[i]), i), reverse=True)
        families.append(family)
    return [i for family in sorted(families, key=lambda f: (-len(f), f[:1])) for i in family]


def _place(rows: Mapping[str, Sequence[str]], sides: Mapping[str, int]) -> Layout:
    made, at = Layout(), [float(TOP), float(TOP)]
    for name, ids in rows.items():
        side = sides[name]
        made.headings.append((name, side, at[side] + ROW / 2))
        for n, id_ in enumerate(ids, 1):
            made.places[id_] = (side, at[side] + ROW / 2 + n * ROW)
        at[side] += (len(ids) + 1) * ROW + GAP
    made.height = max(at)
    return made


def _settle(ids: list[str], places: dict[str, tuple[int, float]], ends: Mapping[str, Sequence[str]]) -> bool:
    """Swap neighbours of a group where that shortens their curves; whether anything moved."""

    def length(*some: str) -> float:
        return sum(abs(places[i][1] - places[e][1]) for i in some for e in ends.get(i, ()))

    moved = False
    for n, (a, b) in enumerate(list(pairwise(range(len(ids))))):
        first, second = ids[a], ids[b]
        before = length(first, second)
        places[first], places[second] = places[second], places[first]
        if length(first, second) < before - 1e-6:
            ids[n], ids[n + 1] = second, first
            moved = True
        else:
            places[first], places[second] = places[second], places[first]
    return moved


def page(atlas: Atlas) -> Page:
    """The figure and the tables."""
    found = edges(atlas.knowledge.entries)
    counts = Counter(e.type for e in found)
    view = View(atlas, HERE)
    return view.page(
        "relations.md", "Relations", "taxonomy/techniques",
        meta={"description": "How techniques relate", "hide": ["navigation", "toc"]},
        edges=found, related=len({end for edge in found for end in (edge.source, edge.target)}),
        types={t: (reads, directed, counts[t]) for t, (reads, directed) in TYPES.items() if counts[t]},
        rows=lambda type_: [
            (view.of_entry(e.source), view.of_entry(e.target), view.linked(e.note)) for e in found if e.type == type_
        ],
        figure=figure(atlas, found), arrow=Html(_arrow(26, 6, 1)),
        mark=lambda kind: Html(_dot(kind, 6, 6)),
    )  # fmt: skip


def figure(atlas: Atlas, found: Sequence[Edge]) -> Html:
    """All entries and the curves between them as SVG that follows the theme."""
    groups = _groups(atlas)
    made = layout(groups, [(e.source, e.target) for e in found])
    known = atlas.knowledge.entries
    counts = Counter(e.type for e in found)
    counted = ", ".join(f"{counts[type_]} of type {type_}" for type_ in TYPES if counts[type_])
    order = list(TYPES)[::-1]
    parts = [
        (
            f'<svg class="atlas-figure atlas-graph" viewBox="0 0 {WIDTH} {made.height:.0f}" role="group" '
            'aria-labelledby="graph-title graph-desc" font-size="11.5">'
        ),
        '<title id="graph-title">Relations between entries</title>',
        (
            f'<desc id="graph-desc">{len(known)} entries in two columns, grouped by relation; curves between them: '
            f"{counted}. The tables below list every one.</desc>"
        ),
        '<g class="edges">',
        *(_curve(e, made, known) for e in sorted(found, key=lambda e: order.index(e.type))),
        "</g>",
        *(_heading(atlas, name, side, y) for name, side, y in made.headings),
        *(_node(known[id_], *place) for id_, place in sorted(made.places.items(), key=lambda item: item[1])),
        "</svg>",
    ]
    return Html("".join(parts))


def _groups(atlas: Atlas) -> dict[str, list[str]]:
    """Entries by their main term on the axis, in its order; those without one last."""
    terms = atlas.knowledge.axes[AXIS].terms if AXIS in atlas.knowledge.axes else {}
    groups: dict[str, list[str]] = {term: [] for term in (*terms, "")}
    for entry in atlas.entries:
        term = entry.axes[AXIS].primary if AXIS in entry.axes else ""
        groups[term if term in groups else ""].append(entry.id)
    return {term: ids for term, ids in groups.items() if ids}


def _curve(edge: Edge, made: Layout, known: Mapping[str, Entry]) -> str:
    (side1, y1), (side2, y2) = made.places[edge.source], made.places[edge.target]
    x1, x2 = (LEFT, RIGHT)[side1], (LEFT, RIGHT)[side2]
    reads, directed = TYPES[edge.type]
    inwards = (1, -1)
    end = x2 + inwards[side2] * (10 if directed else 5)
    start = x1 + inwards[side1] * 5
    if side1 == side2:
        reach = min(176.0, 12 + 1.5 * abs(y2 - y1) ** 0.78) * inwards[side1]
        c1, c2 = start + reach, end + reach
    else:
        reach = 0.5 * (RIGHT - LEFT)
        c1, c2 = start + inwards[side1] * reach, end + inwards[side2] * reach
    arrow = _arrow(end, y2, -inwards[side2]) if directed else ""
    title = f"{known[edge.source].name} {reads} {known[edge.target].name}"
    return (
        f'<g class="edge {edge.type}" data-ends="{edge.source} {edge.target}"><title>{escape(title)}</title>'
        f'<path d="M{start:.0f} {y1:.1f}C{c1:.0f} {y1:.1f} {c2:.0f} {y2:.1f} {end:.0f} {y2:.1f}"/>{arrow}</g>'
    )


def _arrow(x: float, y: float, towards: int) -> str:
    return f'<path class="head" d="M{x:.0f} {y - 3:.1f}l{6 * towards} 3l{-6 * towards} 3z"/>'


def _heading(atlas: Atlas, name: str, side: int, y: float) -> str:
    x, align = (LEFT - 12, "end") if side == 0 else (RIGHT + 12, "start")
    if not name:
        return f'<text class="group" x="{x}" y="{y + 4:.1f}" text-anchor="{align}">Not classified</text>'
    target = href(HERE, f"axes/{AXIS}.md", anchor(name))
    return (
        f'<a href="{target}"><text class="group" x="{x}" y="{y + 4:.1f}" text-anchor="{align}">'
        f"{escape(atlas.term(AXIS, name))}</text></a>"
    )


def _node(entry: Entry, side: int, y: float) -> str:
    x, (label, align) = (LEFT, RIGHT)[side], ((-9, "end"), (9, "start"))[side]
    shown = entry.name if len(entry.name) <= 52 else f"{entry.name[:51]}…"
    return (
        f'<a class="node {entry.status}" data-node="{entry.id}" href="{href(HERE, f"techniques/{entry.id}.md")}">'
        f"<title>{escape(entry.name)}: {escape(entry.summary)}</title>{_dot(entry.kind, x, y)}"
        f'<text x="{x + label}" y="{y + 4:.1f}" text-anchor="{align}">{escape(shown)}</text></a>'
    )


def _dot(kind: str, x: float, y: float) -> str:
    if kind == "system":
        return f'<rect x="{x - 4}" y="{y - 4:.1f}" width="8" height="8"/>'
    if kind == "study":
        return f'<path d="M{x} {y - 5:.1f}l5 8.5h-10z"/>'
    return f'<circle cx="{x}" cy="{y:.1f}" r="3.6"/>'
