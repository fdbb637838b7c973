"""Cells that a reader can turn: drawn as wide as a phone and a desk, turned by hand and by keys, in both themes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from reference_impls import show

PAGE = """<!doctype html><style>
[data-md-color-scheme=default] { color: #111; --atlas-technique-1: #0072b2; }
[data-md-color-scheme=slate] { color: #eee; background: #111; --atlas-technique-1: #56b4e9; }
</style><body data-md-color-scheme="default" style="margin:8px">%s</body>"""
DRAWN = """() => {
  const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
  const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  let filled = 0, blue = 0, hash = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 100) { filled++; blue = Math.max(blue, data[i + 2]); hash = (hash * 31 + i + data[i]) | 0; }
  }
  return {filled, blue, hash};
}"""


@pytest.fixture(params=[360, 1280])
def page(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """A page with nothing but two layers of cells, without a network."""
    cells = np.zeros((8, 8, 8))
    cells[2:4, 3:6, 1:5] = 1
    context = chromium.new_context(viewport={"width": request.param, "height": 640}, offline=True)
    page = context.new_page()
    page.set_content(PAGE % show.Turnable({"found": cells, "truth": np.roll(cells, 2, 0)}).html())
    page.wait_for_function(f"({DRAWN})().filled > 100")
    yield page
    context.close()


def test_cells_turn_in_both_themes(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    first = page.evaluate(DRAWN)
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 20)
    page.mouse.up()
    dragged = page.evaluate(DRAWN)
    assert dragged["hash"] != first["hash"]
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    assert page.evaluate(DRAWN) == dragged  # let go
    page.locator(".atlas-turnable").focus()
    page.keyboard.press("ArrowLeft")
    by_key = page.evaluate(DRAWN)
    assert by_key["hash"] != dragged["hash"]
    page.evaluate("document.body.dataset.mdColorScheme = 'slate'")
    page.wait_for_function(f"({DRAWN})().blue > {by_key['blue']}")
    assert "found" in page.locator(".atlas-turnable").get_attribute("aria-label")
