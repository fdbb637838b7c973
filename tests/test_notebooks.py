"""Every notebook runs in the smoke budget, as the site runs it (a cached run of the same sources counts)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reference_impls import show
from reference_impls.contract import registry
from reference_impls.data import assets
from tools.knowledge import load
from tools.knowledge.completeness import notebook_faults
from tools.knowledge.notebook import notebook_findings
from tools.knowledge.paths import GUIDES
from tools.site import notebooks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", notebooks.sources(ROOT))
def test_notebook_runs(name: str, asset: Callable[[str], Path]) -> None:
    for needed in assets.smoke():
        asset(needed)
    notebook = notebooks.executed(ROOT, only=[name])[name]
    kinds = {output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])}
    assert notebook_faults(kinds) == []


def test_every_stable_technique_has_a_notebook_without_outputs() -> None:
    entries = load(ROOT, check=False).entries
    named = set(notebooks.sources(ROOT))
    assert named >= {id_ for id_ in registry.ids() if entries[id_].status == "stable"}
    guides = {name.replace("_", "-") for name in GUIDES}
    assert {entries[id_].kind for id_ in named - set(registry.ids()) - guides} <= {"study"}
    for path in notebooks.sources(ROOT).values():
        assert list(notebook_findings(path.read_text(encoding="utf-8"), path.name)) == []


def test_what_can_be_turned_keeps_its_script_and_foreign_html_none() -> None:
    cells = np.zeros((4, 4, 4))
    cells[1, 2, 3] = cells[0, 0, 0] = 1
    bundle = show.Turnable({"found <b>": cells, "truth": cells})._repr_mimebundle_()
    html = notebooks._output({"output_type": "display_data", "data": bundle}, "nb")
    assert '"cells":[[0,0,0],[1,2,3]]' in html
    assert "found &lt;b&gt;" in html
    assert "<script>" in html
    assert "http" not in html
    bundle.pop(show.TURNABLE)
    assert "script" not in notebooks._output({"output_type": "display_data", "data": bundle}, "nb")
    assert bundle["text/plain"] == "found <b>: 2 cells, truth: 2 cells"


def test_drawings_follow_one_another_and_one_stands_still_in_print() -> None:
    book = show.Flipbook(["<rect/>", "<circle/>", "<path/>"], (40, 20), 'what "they" show', seconds=0.5, still=1)
    html = notebooks._output({"output_type": "display_data", "data": book._repr_mimebundle_()}, "nb")
    assert [html.count(f"animation-delay:{delay}s") for delay in ("0", "0.5", "1")] == [1, 1, 1]
    assert '<g data-still style="animation-delay:0.5s"><circle/></g>' in html
    assert "@media print,(prefers-reduced-motion:reduce)" in html
    assert 'aria-label="what &quot;they&quot; show"' in html
    assert 'viewBox="0 0 40 20"' in html
    assert "script" not in html
    assert len(html) < 1000
