"""The figures of a report as SVG: curves, the heat map of layers, and bars beside their null controls.

Colours are the variables of the page's style, so that they follow its scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reference_impls.report.result import Finding, Layer

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 190, 40, 34, 20


def curve(finding: Finding, budget: str, limit: float) -> str:
    """Saving against what the outputs lose, the budget as a line, the best point filled."""
    points = [(p.macs_saved.value, _loss(p, budget), p) for p in finding.curve]
    drawn = [(x, y, p) for x, y, p in points if y is not None]
    if not drawn:
        return ""
    most = max(limit * 2, max(y for _, y, _ in drawn), 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        left = LEFT + (WIDTH - LEFT - 10) * min(max(x, 0.0), 1.0)
        return left, TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(y, 0.0), most) / most)

    parts = [_axis(most, budget)]
    _, line = at(0, limit)
    parts.append(f'<path class="budget" d="M{LEFT} {line:.1f}H{WIDTH - 10}"/>')
    ordered = sorted(drawn, key=lambda one: one[0])
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(x, y) for x, y, _ in ordered))
    parts.append(f'<polyline class="path" points="{path}"/>')
    for x, y, point in drawn:
        px, py = at(x, y)
        setting = ", ".join(f"{k} = {v}" for k, v in point.setting.items())
        told = escape(f"{setting}: saves {x:.1%}, {budget} {y:.3g} (n = {point.n})")
        style = "best" if point is finding.at_budget else "kept" if point.within_budget else "lost"
        parts.append(f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{told}</title></circle>')
    said = escape(f"{finding.title}: saving against {budget}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _loss(point: object, budget: str) -> float | None:
    value = getattr(point, budget)
    if value is None:
        return None
    return max(-value.value, 0.0) if budget == "metric" else float(value.value)


def _axis(most: float, budget: str) -> str:
    floor = HEIGHT - BOTTOM
    ticks = "".join(
        f'<text x="{LEFT + (WIDTH - LEFT - 10) * s:.0f}" y="{floor + 14}" text-anchor="middle">{100 * s:.0f} %</text>'
        for s in (0, 0.25, 0.5, 0.75)
    )
    ticks += f'<text x="{WIDTH - 2}" y="{floor + 14}" text-anchor="end">100 %</text>'
    ticks += "".join(
        f'<text x="{LEFT - 4}" y="{TOP + (floor - TOP) * (1 - s) + 4:.0f}" text-anchor="end">{most * s:.2g}</text>'
        for s in (0, 0.5, 1)
    )
    return (
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - 10}"/>{ticks}'
        f'<text class="name" x="4" y="12">{escape(budget)}</text>'
        f'<text class="name" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">saved</text>'
    )


CELL, NAME, HEAD, SLANT = 16, 190, 130, 70


def heat(layers: Sequence[Layer], findings: Sequence[Finding], most: int = 60) -> str:
    """Layers by axes: how redundant each layer is, darker for more; the values are tooltips."""
    columns = [f for f in findings if f.layers]
    cells = {(one.layer, f.axis): one for f in columns for one in f.layers}
    order = dict.fromkeys([*(layer.name for layer in layers), *(one.layer for f in columns for one in f.layers)])
    rows = [name for name in order if any((name, f.axis) in cells for f in columns)]
    if not rows:
        return ""
    left_out = max(len(rows) - most, 0)
    if left_out:  # the ends and an even choice between
        step = (len(rows) - 1) / (most - 1)
        rows = [rows[round(i * step)] for i in range(most)]
    width, height = NAME + CELL * 2 * len(columns) + SLANT, HEAD + CELL * len(rows) + 8
    parts = []
    for i, finding in enumerate(columns):
        x = NAME + CELL * 2 * i + CELL
        turn = f"rotate(-55 {x} {HEAD - 6})"
        parts.append(f'<text x="{x}" y="{HEAD - 6}" transform="{turn}">{escape(finding.axis)}</text>')
    for j, name in enumerate(rows):
        y = HEAD + CELL * j
        shown = name if len(name) <= 28 else f"…{name[-27:]}"
        parts.append(f'<text x="{NAME - 6}" y="{y + 12}" text-anchor="end">{escape(shown)}</text>')
        for i, finding in enumerate(columns):
            if (one := cells.get((name, finding.axis))) is None:
                continue
            null = f", null {max(one.null.values()):.2f}" if one.null else ""
            saved = "" if one.saved is None else f", saves {one.saved:.0%} of it at the budget"
            told = escape(f"{name}, {finding.axis}: {one.value:.2f}{null}{saved}")
            parts.append(
                f'<rect x="{NAME + CELL * 2 * i}" y="{y}" width="{CELL * 2 - 2}" height="{CELL - 2}" class="heat" '
                f'fill-opacity="{max(one.value, 0.03):.2f}"><title>{told}</title></rect>'
            )
    note = f"; {left_out} layers between are left out" if left_out else ""
    return (
        f'<svg class="wide" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="Redundancy of layers by axis{note}">{"".join(parts)}</svg>'
    )


def bars(finding: Finding) -> str:
    """The measure and its null controls over [0, 1]."""
    rows = [("this model, these data", finding.value, "value")]
    rows += [(name, value, "null") for name, value in finding.null.items()]
    parts = []
    for i, (name, value, style) in enumerate(rows):
        y, end = 4 + 20 * i, 150 + 130 * min(max(value.value, 0.0), 1.0)
        parts.append(
            f'<text x="144" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{style}" x="150" y="{y}" width="{max(end - 150, 1):.1f}" height="13"/>'
            f'<text x="{end + 4:.1f}" y="{y + 11}">{value.value:.2f}</text>'
        )
    said = escape(f"{finding.title} beside its null controls")
    return f'<svg viewBox="0 0 320 {8 + 20 * len(rows)}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
