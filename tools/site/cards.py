"""Pictures that other sites show beside a link to a page: one for each entry, one for all other pages.

Drawn here with the fonts that matplotlib brings, so that no other host is asked. Only a site with an address needs
them.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

from ..headlines import in_short
from .model import Atlas
from .parts import STATUS

SIZE = (1200, 630)
EDGE, WIDE = 80, 1040
INK, PAPER, QUIET, ACCENT = "#12303f", "#ffffff", "#b4c9d3", "#2fb3a9"
FOLDER = "assets/cards"
DEFAULT = "atlas"
"""Name of the card of pages that have none of their own."""


def write(atlas: Atlas, site: Path) -> int:
    """Write every card into a built site; how many there are."""
    folder = site / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    told = "An executable survey of data redundancy in deep learning"
    count = f"{len(atlas.entries)} entries, {len(atlas.knowledge.records)} measured results"
    cards = {DEFAULT: card("Redundancy Atlas", told, count)}
    for entry in atlas.entries:
        place = [
            atlas.term(a, entry.axes[a].primary) for a in ("relation", "location", "exploitation") if a in entry.axes
        ]
        saved = [f"MACs saved: {what}" for what, _ in in_short(atlas.knowledge, entry.id)[:1]]
        cards[entry.id] = card(entry.name, entry.summary, " · ".join([*place, *(saved or [STATUS[entry.status]])]))
    for name, picture in cards.items():
        (folder / f"{name}.png").write_bytes(picture)
    return len(cards)


def card(title: str, told: str, foot: str) -> bytes:
    """A PNG of 1200 by 630 pixels; texts that are too long are cut."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", SIZE, INK)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 16, SIZE[1]), fill=ACCENT)
    draw.text((EDGE, 64), "Redundancy Atlas", font=_font(28, bold=True), fill=ACCENT)
    y = 132
    for text, font, colour, most, step in (
        (title, _font(64, bold=True), PAPER, 2, 78),
        (told, _font(36), QUIET, 4, 50),
    ):
        for line in _lines(text, font, most):
            draw.text((EDGE, y), line, font=font, fill=colour)
            y += step
        y += 22
    draw.line((EDGE, 540, EDGE + WIDE, 540), fill=QUIET, width=1)
    draw.text((EDGE, 560), _lines(foot, _font(26), 1)[0], font=_font(26), fill=PAPER)
    data = io.BytesIO()
    picture.quantize(32, method=Image.Quantize.FASTOCTREE).save(data, "PNG")
    return data.getvalue()


def _lines(text: str, font: Any, most: int) -> list[str]:
    """A text in at most so many lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= WIDE or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += " …"
            break
    return lines


@cache
def _font(size: int, *, bold: bool = False) -> Any:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
