"""A small drawing of an entry from its classification: why its data are redundant, where, and what is done about it.

Each term has a glyph of 64 by 48 units, made of a few shapes. Colours come from the theme, and the alternative text
says the same in words.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..knowledge.schema import Terms
from .markup import Html, escape
from .model import Atlas

Shape = tuple[str, str]
"""(what it is to the eye, path): `main` is what stays or matters, `also` what is like it, `gone` what is saved, `line`
what joins them."""
AXES = (("relation", "why"), ("location", "where"), ("exploitation", "what is done"))
WIDTH, HEIGHT, GLYPH = 336, 78, 64


def _box(x: float, y: float, w: float, h: float | None = None) -> str:
    return f"M{x:g} {y:g}h{w:g}v{w if h is None else h:g}h{-w:g}z"


def _boxes(*corners: tuple[float, float], size: float = 10) -> str:
    return "".join(_box(x, y, size) for x, y in corners)


def _dots(*centres: tuple[float, float], r: float = 3) -> str:
    return "".join(f"M{x - r:g} {y:g}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0" for x, y in centres)


def _arrow(x: float, y: float, dx: float) -> str:
    """A horizontal arrow from a point."""
    back = 4 if dx > 0 else -4
    return f"M{x:g} {y:g}h{dx:g}m{-back:g} -4l{back:g} 4l{-back:g} 4"


def _grid(main: frozenset[int] | None = None) -> tuple[str, str]:
    """A grid of 5 by 3: the cells that matter, and the others."""
    cells = [(2 + 12 * (n % 5), 7 + 12 * (n // 5)) for n in range(15)]
    inside = main if main is not None else frozenset(range(15))
    return _boxes(*(cells[n] for n in sorted(inside))), _boxes(*(c for n, c in enumerate(cells) if n not in inside))


_OBJECT = frozenset((6, 7, 11, 12))
_ROW = [(2 + 12 * n, 19) for n in range(5)]
GLYPHS: Mapping[str, Mapping[str, tuple[Shape, ...]]] = {
    "relation": {
        "exact_repetition": (
            ("main", _boxes((3, 17), (25, 17), (47, 17), size=14)),
            ("line", "M19 22h4m-4 4h4m18 -4h4m-4 4h4"),
        ),
        "temporal_similarity": (
            ("also", _box(4, 6, 34, 24)),
            ("also", _box(13, 12, 34, 24)),
            ("also", _box(22, 18, 34, 24)),
            ("main", _dots((48, 33), r=5)),
        ),
        "spatial_similarity": (("main", _grid(_OBJECT)[0]), ("also", _grid(_OBJECT)[1])),
        "cross_sample_similarity": (
            ("main", _dots((12, 14), (19, 18), (13, 22))),
            ("also", _dots((44, 28), (51, 32), (45, 37), (37, 32))),
            ("gone", _dots((14, 18), r=11) + _dots((44, 32), r=14)),
        ),
        "cross_step_similarity": (
            ("main", _box(6, 12, 10, 24)),
            ("also", _box(21, 13, 10, 23) + _box(36, 12, 10, 24)),
            ("line", _arrow(4, 42, 54)),
        ),
        "irrelevance": (("main", _grid(_OBJECT)[0]), ("gone", _grid(_OBJECT)[1])),
        "sufficiency": (
            ("line", "M6 6v36h54M6 40C14 16 20 13 32 12"),
            ("gone", "M32 12h28"),
            ("main", _dots((32, 12), r=4)),
        ),
        "over_resolution": (
            (
                "main",
                "".join(
                    _boxes((x, y), (x + 6, y), (x, y + 6), (x + 6, y + 6), size=5) for x in (8, 34) for y in (10, 24)
                ),
            ),
            (
                "also",
                "".join(
                    _boxes((x, y), (x + 6, y), (x, y + 6), (x + 6, y + 6), size=5) for x in (21, 47) for y in (10, 24)
                ),
            ),
        ),
        "over_precision": (
            ("main", "".join(_box(3 + 7.5 * n, 17, 6, 14) for n in range(4))),
            ("gone", "".join(_box(33 + 7.5 * n, 17, 6, 14) for n in range(4))),
        ),
    },
    "location": {
        "dataset": (("also", _box(18, 6, 36, 24)), ("also", _box(13, 12, 36, 24)), ("main", _box(8, 18, 36, 24))),
        "input_pipeline": (
            ("also", _dots((14, 8), (26, 8), (38, 8), (50, 8))),
            ("main", "M6 15h52l-20 16v11h-12v-11z"),
        ),
        "input_sample": (
            ("also", _box(10, 7, 44, 34)),
            ("main", "M12 39l14 -18l9 11l6 -7l11 14z" + _dots((43, 15), r=3.5)),
        ),
        "input_stream": (
            ("also", _box(2, 15, 16) + _box(21, 15, 16)),
            ("main", _box(40, 15, 16)),
            ("line", _arrow(2, 40, 56)),
        ),
        "request_population": (
            ("also", _dots((8, 10), (8, 24), (8, 38), r=4)),
            ("line", "M14 10l20 11M14 24h20M14 38l20 -11"),
            ("main", _box(38, 13, 22)),
        ),
        "activations": (
            ("also", "M6 16l12 -9v26l-12 9z"),
            ("also", "M20 16l12 -9v26l-12 9z"),
            ("main", "M34 16l12 -9v26l-12 9z"),
            ("line", _arrow(50, 24, 11)),
        ),
        "tokens": (("main", _boxes(*_ROW[:1], *_ROW[2:3])), ("also", _boxes(*_ROW[1:2], *_ROW[3:]))),
        "kv_cache": (
            ("main", "".join(_box(10, 6 + 10 * n, 20, 7) for n in range(4))),
            ("also", "".join(_box(34, 6 + 10 * n, 20, 7) for n in range(4))),
        ),
        "trajectory": (
            ("also", "".join(_box(8 + 14 * n, 8, 7, 32) for n in range(4))),
            ("line", "M2 24h60"),
            ("main", _dots((11.5, 24), (25.5, 24), (39.5, 24), (53.5, 24))),
        ),
        "gradients": (
            ("also", _box(8, 8, 8, 22) + _box(28, 8, 8, 22) + _box(48, 8, 8, 22)),
            ("line", _arrow(58, 39, -52)),
            ("main", _dots((52, 19), (32, 19), (12, 19), r=3)),
        ),
        "parameters": (
            ("line", "M12 12L52 10M12 12L52 24M12 12L52 38M12 36L52 10M12 36L52 24M12 36L52 38"),
            ("also", _dots((12, 12), (12, 36), r=4)),
            ("main", _dots((52, 10), (52, 24), (52, 38), r=4)),
        ),
    },
    "exploitation": {
        "skip": (
            ("main", _boxes((4, 24), (48, 24), size=12)),
            ("gone", _box(26, 24, 12)),
            ("line", "M12 20C20 2 44 2 52 19m-5 -3l5 3l2 -6"),
        ),
        "drop": (("main", _boxes(_ROW[0], _ROW[2], _ROW[3])), ("gone", _boxes(_ROW[1], _ROW[4]))),
        "reuse": (
            ("main", _box(8, 18, 14)),
            ("also", _box(42, 18, 14)),
            ("line", "M17 14C24 2 40 2 48 14m-6 -1l6 1l0 -7"),
        ),
        "propagate": (
            ("main", _box(4, 8, 18)),
            ("gone", _box(36, 16, 18)),
            ("also", _box(42, 22, 18)),
            ("line", _arrow(24, 24, 11)),
        ),
        "merge": (
            ("also", _boxes((6, 7), (6, 29), size=12)),
            ("line", "M20 13C30 13 30 24 40 24M20 35C30 35 30 24 40 24"),
            ("main", _box(42, 16, 16)),
        ),
        "cache_share": (
            ("main", "M20 22c0 -6 24 -6 24 0v16c0 6 -24 6 -24 0z"),
            ("also", _dots((8, 10), (32, 7), (56, 10), r=4)),
            ("line", "M12 13l9 6M32 11v5M52 13l-9 6"),
        ),
        "early_exit": (
            ("main", _box(6, 10, 8, 22) + _box(20, 10, 8, 22)),
            ("gone", _box(34, 10, 8, 22) + _box(48, 10, 8, 22)),
            ("line", "M24 34v8h30m-4 -4l4 4l-4 4"),
        ),
        "rescale": (("gone", _box(4, 7, 34)), ("main", _box(44, 25, 16)), ("line", "M38 7L60 25M38 41h6")),
        "quantise": (
            ("gone", "M4 40C24 38 36 10 60 8"),
            ("main", "M4 40h14v-8h12v-10h12v-8h16v2h-14v8h-12v10h-12v8h-16z"),
        ),
        "reweight": (
            ("main", _box(6, 8, 9, 32) + _box(34, 16, 9, 24)),
            ("also", _box(20, 28, 9, 12) + _box(48, 34, 9, 6)),
        ),
        "select": (
            ("main", _dots((12, 14), (34, 32), (52, 14), r=4)),
            ("gone", _dots((32, 10), (14, 34), (52, 36), r=4)),
        ),
        "condense": (
            ("also", _dots((8, 10), (18, 18), (8, 26), (18, 36), (26, 10), (26, 28))),
            ("line", _arrow(30, 24, 10)),
            ("main", _dots((52, 24), r=8)),
        ),
        "compress_store": (("main", _box(24, 16, 16)), ("line", _arrow(4, 24, 17) + _arrow(60, 24, -17))),
        "freeze": (
            ("also", _dots((32, 24), r=19)),
            ("line", "M32 8v32M18 16l28 16M46 16l-28 16M28 11l4 4l4 -4M28 37l4 -4l4 4"),
        ),
        "regroup": (
            ("main", _boxes((2, 8), (14, 20), (2, 32), size=9) + _boxes((42, 8), (53, 8), (42, 19), size=9)),
            ("also", _boxes((14, 8), (2, 20), (14, 32), size=9) + _boxes((53, 19), (42, 30), (53, 30), size=9)),
            ("line", _arrow(27, 24, 11)),
        ),
    },
}
"""Axis -> term -> shapes."""


def pictogram(atlas: Atlas, axes: Mapping[str, Terms]) -> Html | None:
    """The drawing; None where the three axes are not all classified."""
    if any(axis not in axes for axis, _ in AXES):
        return None
    parts, told = [], []
    for number, (axis, asked) in enumerate(AXES):
        term = axes[axis].primary
        name = atlas.term(axis, term)
        left = number * (WIDTH + GLYPH / 2) / 3
        drawn = "".join(f'<path class="{what}" d="{path}"/>' for what, path in GLYPHS[axis].get(term, ()))
        parts.append(
            f'<g transform="translate({left + 8:.0f} 2)">{drawn}</g>'
            f'<text x="{left + 40:.0f}" y="62" text-anchor="middle">{escape(name)}</text>'
            f'<text class="label" x="{left + 40:.0f}" y="74" text-anchor="middle">{asked}</text>'
        )
        told.append(f"{asked}: {name.lower()}")
    return Html(
        f'<svg class="atlas-pictogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape("; ".join(told).capitalize())}" font-size="10">{"".join(parts)}</svg>'
    )
