"""Figures of the site: trade-off plots as SVG that follows the theme.

Colours are CSS variables of `assets/atlas.css` and `currentColor`, so one file reads well in the light and the dark
scheme and in print. A figure carries a title, a description and a tooltip on every mark; the page adds a data table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from .markup import Html, escape

WIDTH, HEIGHT = 360, 280
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 30, 46
FONT = 13
LOG_FROM = 20
"""An axis is logarithmic when its largest value is more than this many times its smallest."""

Kind = Literal["baseline", "technique", "rival", "control"]
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """One measured configuration: a position, its intervals, and words for the label and the tooltip."""

    x: float
    y: float
    label: str = ""
    tooltip: str = ""
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Marks drawn alike; `joined` connects them in the order given."""

    name: str
    kind: Kind
    marks: Sequence[Mark]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis shows. Values are divided by `divisor` on the tick labels only."""

    label: str
    divisor: float = 1.0
    positive: bool = False
    """The quantity cannot be negative: the axis may start at zero, or be logarithmic."""


@dataclass
class Scale:
    """Maps values to positions and knows its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return self.start + (self.end - self.start) * (value - low) / (high - low)


SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def prefix(largest: float) -> tuple[float, str]:
    """Divisor and SI prefix for a set of values whose largest is given: 1.7e9 -> (1e9, "G")."""
    return next(((divisor, name) for divisor, name in SI if abs(largest) >= divisor), (1.0, ""))


def time_unit(milliseconds: float) -> tuple[float, str]:
    """Divisor (in ms) and unit for times whose largest is given in milliseconds."""
    if milliseconds >= 60_000:
        return 60_000.0, "min"
    if milliseconds >= 1000:
        return 1000.0, "s"
    return (1.0, "ms") if milliseconds >= 1 else (1e-3, "µs")


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent where people would not write one."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 6:
        rounded = round(value, digits - 1 - magnitude)
        text = f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace(",", "\u202f").replace("-", "\u2212")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', chr(0x2212))}·10{superscript}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A count with an SI prefix: (1.7e9, "MACs") -> "1.7 GMACs"."""
    divisor, name = prefix(value)
    return f"{number(value / divisor, digits)}\u00a0{name}{unit}"


def duration(milliseconds: float, digits: int = 3) -> str:
    """A time for people: 0.4 -> "400 µs", 12.04 -> "12 ms", 1500 -> "1.5 s"."""
    divisor, unit = time_unit(milliseconds)
    return f"{number(milliseconds / divisor, digits)}\u00a0{unit}"


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (steps of 1, 2, 2.5 or 5 times a power of ten) that cover [low, high], ends included."""
    if not high > low:
        raise ValueError(f"an axis needs low < high, got {low!r} and {high!r}")
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5 a decade (powers of ten alone over three decades and more), within [low, high]."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    return [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001]


def make_scale(values: Sequence[float], start: float, end: float, *, positive: bool, shares: bool = False) -> Scale:
    """A scale over `values`: logarithmic over wide positive ranges, else linear, from zero unless they are close.

    `shares`: what it shows lies in [0, 1], and no tick is outside.
    """
    low, high = min(values), max(values)
    if positive and low > 0 and high > LOG_FROM * low:
        low, high = low / 1.25, high * 1.25
        return Scale(low, high, start, end, log=True, ticks=log_ticks(low, high))
    if low == high:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    margin = 0.08 * (high - low)
    from_zero = positive and low < 0.6 * high
    ticks = nice_ticks(0.0 if from_zero else low - margin, high + (0.02 * high if from_zero else margin))
    if positive:
        ticks = [t for t in ticks if t >= 0]
    if shares:
        ticks = [t for t in ticks if 0 <= t <= 1]
    return Scale(ticks[0], ticks[-1], start, end, log=False, ticks=ticks)


def trade_off(series: Sequence[Series], x: Axis, y: Axis, *, title: str, description: str, name: str) -> Html:
    """A plot of quality (y) against cost (x), as an `<svg>` element.

    Series of kind `baseline` are marked by a diamond and a guide line, `rival` by other shapes, `control` by dashed
    lines and hollow marks. `name` prefixes the ids inside the figure and must be unique on the page.
    Raises ValueError without any mark.
    """
    marks = [mark for s in series for mark in s.marks]
    if not marks:
        raise ValueError(f"figure {name!r} has no mark to draw")
    xs = [v for m in marks for v in (m.x, *(m.x_interval or ()))]
    ys = _within([m.y for m in marks], [v for m in marks for v in m.y_interval or ()])
    shares = all(0 <= m.y <= 1 for m in marks)
    if shares:
        ys = [min(max(v, 0.0), 1.0) for v in ys]
    sx = make_scale(xs, LEFT, WIDTH - RIGHT, positive=x.positive)
    sy = make_scale(ys, HEIGHT - BOTTOM, TOP, positive=False, shares=shares)
    parts = _frame(sx, sy, x, y)
    labels = Labels([_around(sx(m.x), sy(m.y), 5) for m in marks])
    drawn, named, knobs = [], [], []
    seen: Counter[Kind] = Counter()
    for one in series:
        seen[one.kind] += 1
        style, shape = _style(one.kind, seen[one.kind])
        points = [(sx(m.x), sy(m.y)) for m in one.marks]
        drawn.append(f'<g class="series {style}">')
        if one.kind == "baseline":
            drawn.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{points[0][1]:.1f}" '
                         f'y2="{points[0][1]:.1f}"/>')  # fmt: skip
        if one.joined and len(points) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            drawn.append(f'<polyline class="path" points="{path}"/>')
        for mark, (px, py) in zip(one.marks, points, strict=True):
            drawn.append("<g>" + (f"<title>{escape(mark.tooltip)}</title>" if mark.tooltip else ""))
            if mark.y_interval:
                low, high = (min(max(v, sy.low), sy.high) for v in mark.y_interval)
                drawn.append(_whisker(px, sy(low), px, sy(high)))
            if mark.x_interval:
                drawn.append(_whisker(sx(mark.x_interval[0]), py, sx(mark.x_interval[1]), py))
            drawn.append(_shape(shape, px, py) + "</g>")
        drawn.append("</g>")
        named.append((points, one.name, style))
        if one.kind == "technique":
            knobs += [(p, m.label, style) for p, m in zip(points, one.marks, strict=True) if m.label]
    parts += drawn
    for points, text, style in named:
        parts += labels.place(reversed(points), text, f"name {style}")
    for point, text, style in knobs:
        parts += labels.place([point], text, f"knob {style}")
    return _svg(WIDTH, HEIGHT, parts, title=title, description=description, name=name)


def _svg(width: int, height: int, parts: Iterable[str], *, title: str, description: str, name: str) -> Html:
    return Html(
        f'<svg class="atlas-figure" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" font-size="{FONT}">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def bars(values: Sequence[tuple[str, float, bool]], *, title: str, name: str) -> Html:
    """Horizontal bars over [0, 1]; each value is (label, value, is it a null control)."""
    row, gutter = 22, 168
    height = row * len(values) + 26
    width = 500
    scale = Scale(0.0, 1.0, gutter, width - 46, log=False)
    text = ", ".join(f"{label} {number(value)}" for label, value, _ in values)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="0" y2="{height - 20}"/>'
            f'<text class="tick" text-anchor="middle" x="{scale(tick):.1f}" y="{height - 5}">{number(tick)}</text>'
        )
    for i, (label, value, null) in enumerate(values):
        y = i * row + 4
        style = "control-1" if null else "technique-1"
        shown = label if len(label) <= 24 else label[:23] + "…"
        parts.append(
            f'<g class="bar {style}"><title>{escape(label)}: {number(value)}</title>'
            f'<text class="tick" text-anchor="end" x="{gutter - 8}" y="{y + 11}">{escape(shown)}</text>'
            f'<rect x="{gutter}" y="{y}" width="{max(1.5, scale(value) - gutter):.1f}" height="{row - 9}" rx="2"/>'
            f'<text class="value" x="{scale(value) + 6:.1f}" y="{y + 11}">{number(value)}</text></g>'
        )
    return _svg(width, height, parts, title=title, description=text, name=name)


@dataclass
class Labels:
    """Places labels where they cover neither marks nor each other."""

    taken: list[Box]

    def place(self, points: Iterable[tuple[float, float]], text: str, style: str) -> list[str]:
        """The label beside the first of `points` that has room for it, or nothing."""
        width, height = (0.62 if style.startswith("name") else 0.5) * FONT * len(text), FONT
        for x, y in points:
            for dx, dy, anchor in OFFSETS:
                left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
                box = (left, y + dy - height * 0.8, left + width, y + dy + height * 0.2)
                inside = box[0] >= LEFT + 2 and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM - 2
                if inside and not any(_overlap(box, other) for other in self.taken):
                    self.taken.append(box)
                    return [(f'<text class="{style}" text-anchor="{anchor}" x="{x + dx:.1f}" y="{y + dy:.1f}">'
                            f"{escape(text)}</text>")]  # fmt: skip
        return []


OFFSETS = (
    (9, 4.5, "start"), (0, -9, "middle"), (0, 18, "middle"), (-9, 4.5, "end"),
    (7, -8, "start"), (7, 16, "start"), (-7, -8, "end"), (-7, 16, "end"),
)  # fmt: skip


def _within(values: list[float], ends: list[float]) -> list[float]:
    """Values and the ends of their intervals, these no further out than the values are apart.

    An interval over two seeds can be ten times as long as everything that the figure is about; it is cut at the frame,
    and the table holds it.
    """
    low, high = min(values), max(values)
    reach = (high - low) or max((abs(end - low) for end in ends), default=0.0)
    return values + [min(max(end, low - reach), high + reach) for end in ends]


def _around(x: float, y: float, r: float) -> Box:
    return (x - r, y - r, x + r, y + r)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _frame(sx: Scale, sy: Scale, x: Axis, y: Axis) -> list[str]:
    """Grid, ticks and axis labels."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for axis, scale, draw in ((x, sx, _x_tick), (y, sy, _y_tick)):
        texts = _tick_texts([t / axis.divisor for t in scale.ticks])
        parts += [draw(scale(t), text) for t, text in zip(scale.ticks, texts, strict=True)]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    log = " (log scale)" if sx.log else ""
    parts.append(f'<text class="label" text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">'
                 f"{escape(x.label + log)}</text>")  # fmt: skip
    parts.append(f'<text class="label" x="4" y="14">{escape(y.label)}</text>')
    return parts


def _tick_texts(values: list[float]) -> list[str]:
    """Labels of ticks with as many digits as tell neighbours apart."""
    for digits in range(2, 8):
        texts = [number(v, digits) for v in values]
        if all(a != b for a, b in pairwise(texts)):
            exact = all(abs(float(f"{v:.{digits - 1}e}") - v) <= 1e-9 * max(1.0, abs(v)) for v in values)
            if exact or digits >= 5:
                return texts
    return [number(v, 8) for v in values]


def _x_tick(at: float, text: str) -> str:
    bottom = HEIGHT - BOTTOM
    return (f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{bottom + 17}">{text}</text>')  # fmt: skip


def _y_tick(at: float, text: str) -> str:
    return (f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{LEFT - 7}" y="{at + 4:.1f}">{text}</text>')  # fmt: skip


def _whisker(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="whisker" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _shape(shape: str, x: float, y: float, r: float = 4.6) -> str:
    outline: dict[str, Callable[[], str]] = {
        "circle": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        "square": lambda: f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        "triangle": lambda: f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}z"/>',
        "diamond": lambda: (
            f'<path d="M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}l{-r - 1.5} {-r - 1.5}z"/>'
        ),
        "cross": lambda: f'<path d="M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"/>',
    }
    return outline[shape]()


def _style(kind: Kind, index: int) -> tuple[str, str]:
    """Class and shape of the marks of a series; `index` counts the series of a kind from 1."""
    if kind == "baseline":
        return kind, "diamond"
    shape = "circle" if kind == "technique" else SHAPES[1 + (index - 1) % 4]
    return f"{kind}-{min(index, 4 if kind == 'technique' else 3)}", shape


def swatch(kind: Kind, index: int = 1) -> Html:
    """The mark of a series on its own, for the caption's key. `index` counts the series of a kind from 1."""
    style, shape = _style(kind, index)
    return Html(f'<svg class="atlas-figure swatch" viewBox="0 0 16 16" aria-hidden="true">'
                f'<g class="series {style}">{_shape(shape, 8, 8)}</g></svg>')  # fmt: skip
