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

from ..numbers import number
from .markup import Html, escape

FONT = 13
TICK = 0.58 * 0.88 * FONT
"""Width of a character of a tick, at most."""
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


@dataclass(frozen=True)
class Frame:
    """The size of a plot, and what its axes leave of it."""

    width: int = 360
    height: int = 280
    left: int = 62
    right: int = 14
    top: int = 30
    bottom: int = 46

    @property
    def floor(self) -> int:
        """Where the horizontal axis is."""
        return self.height - self.bottom

    @property
    def end(self) -> int:
        """Where the horizontal axis ends."""
        return self.width - self.right


PANEL, WIDE = Frame(), Frame(width=760, height=440)


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


def time_unit(milliseconds: float) -> tuple[float, str]:
    """Divisor (in ms) and unit for times whose largest is given in milliseconds."""
    if milliseconds >= 60_000:
        return 60_000.0, "min"
    if milliseconds >= 1000:
        return 1000.0, "s"
    return (1.0, "ms") if milliseconds >= 1 else (1e-3, "µs")


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


def trade_off(
    series: Sequence[Series], x: Axis, y: Axis, *, title: str, description: str, name: str, frame: Frame = PANEL
) -> Html:
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
    sx = make_scale(xs, frame.left, frame.end, positive=x.positive)
    sy = make_scale(ys, frame.floor, frame.top, positive=False, shares=shares)
    parts = _axes(frame, sx, sy, x, y)
    above = (0.0, 0.0, 4 + 0.6 * FONT * len(y.label), 17.0)  # the label of the axis
    labels = Labels(frame, [above, *(_around(sx(m.x), sy(m.y), 5) for m in marks)])
    drawn, named, knobs = [], [], []
    seen: Counter[Kind] = Counter()
    for one in series:
        seen[one.kind] += 1
        style, shape = _style(one.kind, seen[one.kind])
        points = [(sx(m.x), sy(m.y)) for m in one.marks]
        drawn.append(f'<g class="series {style}">')
        if one.kind == "baseline":
            drawn.append(f'<line class="guide" x1="{frame.left}" x2="{frame.end}" y1="{points[0][1]:.1f}" '
                         f'y2="{points[0][1]:.1f}"/>')  # fmt: skip
        if one.joined and len(points) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            drawn.append(f'<polyline class="path" points="{path}"/>')
        whiskers = ""
        for mark, (px, py) in zip(one.marks, points, strict=True):
            if mark.y_interval:
                low, high = (sy(min(max(v, sy.low), sy.high)) for v in mark.y_interval)
                whiskers += f"M{px:.1f} {low:.1f}V{high:.1f}"
            if mark.x_interval:
                whiskers += f"M{sx(mark.x_interval[0]):.1f} {py:.1f}H{sx(mark.x_interval[1]):.1f}"
        drawn += [f'<path class="whisker" d="{whiskers}"/>'] if whiskers else []
        for mark, (px, py) in zip(one.marks, points, strict=True):
            drawn.append(_shape(shape, px, py, title=mark.tooltip))
        drawn.append("</g>")
        named.append((points, one.name, style))
        if one.kind == "technique":
            knobs += [(p, m.label, style) for p, m in zip(points, one.marks, strict=True) if m.label]
    parts += drawn
    for points, text, style in named:
        parts += labels.place(reversed(points), text, f"name {style}")
    for point, text, style in knobs:
        parts += labels.place([point], text, f"knob {style}")
    return _svg(frame.width, frame.height, parts, title=title, description=description, name=name)


def _svg(
    width: int, height: int, parts: Iterable[str], *, title: str, description: str, name: str, role: str = "img"
) -> Html:
    """`role` is "group" where links inside can be reached."""
    return Html(
        f'<svg class="atlas-figure" viewBox="0 0 {width} {height}" role="{role}" '
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
            f'<text class="tick" text-anchor="end" x="{gutter - 8}" y="{y + 11}">{escape(shown)}</text>'
            f'<rect class="bar {style}" x="{gutter}" y="{y}" width="{max(1.5, scale(value) - gutter):.1f}" '
            f'height="{row - 9}" rx="2"/>'
            f'<text class="value" x="{scale(value) + 6:.1f}" y="{y + 11}">{number(value)}</text>'
        )
    return _svg(width, height, parts, title=title, description=text, name=name)


@dataclass
class Labels:
    """Places labels where they cover neither marks nor each other."""

    frame: Frame
    taken: list[Box]

    def place(self, points: Iterable[tuple[float, float]], text: str, style: str) -> list[str]:
        """The label beside the first of `points` that has room for it, or nothing."""
        width, height = (0.62 if style.startswith("name") else 0.5) * FONT * len(text), FONT
        for x, y in points:
            for dx, dy, anchor in OFFSETS:
                left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
                box = (left, y + dy - height * 0.8, left + width, y + dy + height * 0.2)
                inside = box[0] >= self.frame.left + 2 and box[2] <= self.frame.width - 2
                inside = inside and box[1] >= 2 and box[3] <= self.frame.floor - 2
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


def _axes(frame: Frame, sx: Scale, sy: Scale, x: Axis, y: Axis) -> list[str]:
    """Grid, ticks and axis labels."""
    bottom = frame.floor
    parts = []
    for axis, scale, draw in ((x, sx, _x_ticks), (y, sy, _y_ticks)):
        texts = _tick_texts([t / axis.divisor for t in scale.ticks])
        parts += draw(frame, [(scale(t), text) for t, text in zip(scale.ticks, texts, strict=True)])
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{frame.end}" y1="{bottom}" y2="{bottom}"/>')
    log = " (log scale)" if sx.log else ""
    parts.append(f'<text class="label" text-anchor="middle" x="{(frame.left + frame.end) / 2}" y="{frame.height - 8}">'
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


def _x_ticks(frame: Frame, ticks: Sequence[tuple[float, str]]) -> list[str]:
    bottom = frame.floor
    lines = "".join(f"M{at:.1f} {frame.top}V{bottom}" for at, _ in ticks)
    inside = [(min(at, frame.width - 2 - TICK * len(text) / 2), text) for at, text in ticks]
    texts = "".join(f'<text x="{at:.1f}" y="{bottom + 17}">{text}</text>' for at, text in _apart(inside))
    return [f'<path class="grid" d="{lines}"/><g class="tick" text-anchor="middle">{texts}</g>']


def _y_ticks(frame: Frame, ticks: Sequence[tuple[float, str]]) -> list[str]:
    lines = "".join(f"M{frame.left} {at:.1f}H{frame.end}" for at, _ in ticks)
    texts = "".join(f'<text x="{frame.left - 7}" y="{at + 4:.1f}">{text}</text>' for at, text in ticks)
    return [f'<path class="grid" d="{lines}"/><g class="tick" text-anchor="end">{texts}</g>']


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks whose texts, centred on them, stand clear of the one before."""
    kept: list[tuple[float, str]] = []
    for at, text in ticks:
        if not kept or at - kept[-1][0] >= TICK * (len(text) + len(kept[-1][1])) / 2 + 4:
            kept.append((at, text))
    return kept


def _shape(shape: str, x: float, y: float, r: float = 4.6, *, title: str = "") -> str:
    arm = f"{r + 1 - 1.9:.1f}"
    outline: dict[str, Callable[[], str]] = {
        "circle": lambda: f'circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
        "square": lambda: f'rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
        "triangle": lambda: f'path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}z"',
        "diamond": lambda: (
            f'path d="M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}l{-r - 1.5} {-r - 1.5}z"'
        ),
        "cross": lambda: (  # with an area: marks are filled
            f'path d="M{x - 1.9:.1f} {y - r - 1:.1f}h3.8v{arm}h{arm}v3.8h-{arm}v{arm}h-3.8v-{arm}h-{arm}v-3.8h{arm}z"'
        ),
    }
    drawn = outline[shape]()
    return f"<{drawn}><title>{escape(title)}</title></{drawn.split()[0]}>" if title else f"<{drawn}/>"


def _style(kind: Kind, index: int) -> tuple[str, str]:
    """Class and shape of the marks of a series; `index` counts the series of a kind from 1."""
    if kind == "baseline":
        return kind, "diamond"
    if kind == "technique":
        return f"{kind}-{min(index, 4)}", "circle"
    colour = 1 + (index - 1) % 3 if kind == "rival" else min(index, 3)  # with the shapes, 12 rivals that differ
    return f"{kind}-{colour}", SHAPES[1 + (index - 1) % 4]


def swatch(kind: Kind, index: int = 1) -> Html:
    """The mark of a series on its own, for the caption's key. `index` counts the series of a kind from 1."""
    style, shape = _style(kind, index)
    return Html(f'<svg class="atlas-figure swatch" viewBox="0 0 16 16" aria-hidden="true">'
                f'<g class="series {style}">{_shape(shape, 8, 8)}</g></svg>')  # fmt: skip


# --- all techniques of a benchmark in one figure ----------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What one technique, or one control, measured on one task."""

    name: str
    number: int | None
    """Of the technique among those of the figure, which gives it its colour and shape; None for a control."""
    where: str
    """Address that it leads to; empty for a control."""
    group: int
    """Its task."""
    marks: Sequence[Mark]
    joined: bool = True


def overview(
    curves: Sequence[Curve], x: Axis, y: Axis, *, title: str, description: str, name: str, groups: Iterable[int]
) -> Html:
    """Curves of several techniques with the front of those that nothing beats: over all tasks, and over each alone,
    which a script shows on request. `name` prefixes the ids inside the figure.
    """
    marks = [mark for curve in curves for mark in curve.marks]
    sx = make_scale([m.x for m in marks] + [100.0], WIDE.left, WIDE.end, positive=x.positive)
    sy = make_scale([m.y for m in marks] + [100.0], WIDE.floor, WIDE.top, positive=False)
    parts = _axes(WIDE, sx, sy, x, y)
    parts.append(
        f'<g class="series baseline"><path class="guide" d="M{WIDE.left} {sy(100):.1f}H{WIDE.end}"/>'
        f"{_shape('diamond', sx(100), sy(100), title='baseline')}</g>"
    )
    own = [c for c in curves if c.number is not None]
    fronts = [("all", own), *((str(g), [c for c in own if c.group == g]) for g in groups)]
    for group, members in fronts:
        if front := _front([m for c in members for m in c.marks]):
            steps = "".join(f"H{sx(m.x):.1f}V{sy(m.y):.1f}" for m in front[1:])
            style = "front" if group == "all" else "front hidden"
            path = f"M{sx(front[0].x):.1f} {sy(front[0].y):.1f}{steps}H{WIDE.end}"
            parts.append(f'<path class="{style}" data-front="{group}" d="{path}"/>')
    for curve in sorted(curves, key=lambda c: c.number is not None):
        style, shape = curve_style(curve.number)
        points = [(sx(m.x), sy(m.y)) for m in curve.marks]
        drawn = ""
        if curve.joined and len(points) > 1:
            drawn = f'<polyline class="path" points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}"/>'
        size = 4.6 if curve.number is not None else 3.4
        for mark, (px, py) in zip(curve.marks, points, strict=True):
            drawn += _shape(shape, px, py, size, title=f"{curve.name}: {mark.tooltip}")
        if curve.where:
            drawn = f'<a href="{escape(curve.where)}" aria-label="{escape(curve.name)}">{drawn}</a>'
        parts.append(f'<g class="series {style}" data-group="{curve.group}">{drawn}</g>')
    return _svg(WIDE.width, WIDE.height, parts, title=title, description=description, name=name, role="group")


def _front(marks: Sequence[Mark]) -> list[Mark]:
    """Marks that no other beats in both: less cost, and more quality."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return front


def curve_style(number_: int | None) -> tuple[str, str]:
    """Class and shape of the marks of a curve: four colours, then the next shape."""
    if number_ is None:
        return "control-3", "circle"
    return f"technique-{1 + number_ % 4}", SHAPES[(number_ // 4) % len(SHAPES)]


def curve_swatch(number_: int | None) -> Html:
    """The mark of a curve on its own, for the key."""
    style, shape = curve_style(number_)
    return Html(
        f'<svg class="atlas-figure swatch" viewBox="0 0 16 16" aria-hidden="true">'
        f'<g class="series {style}">{_shape(shape, 8, 8)}</g></svg>'
    )
