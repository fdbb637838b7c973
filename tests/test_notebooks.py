"""Every notebook runs in the smoke budget, as the site runs it (a cached run of the same sources counts)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reference_impls.contract import registry
from reference_impls.data import assets
from tools.knowledge import load
from tools.knowledge.completeness import notebook_faults
from tools.knowledge.notebook import notebook_findings
from tools.site import notebooks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", notebooks.sources(ROOT))
def test_notebook_runs(name: str, asset: Callable[[str], Path]) -> None:
    for needed in assets.smoke():
        asset(needed)
    notebook = notebooks.executed(ROOT, only=[name])[name]
    kinds = {output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])}
    assert notebook_faults(kinds) == []


def test_every_technique_has_a_notebook_without_outputs() -> None:
    entries = load(ROOT, check=False).entries
    others = set(notebooks.sources(ROOT)) - set(registry.ids())
    assert set(notebooks.sources(ROOT)) >= set(registry.ids())
    assert {entries[id_].kind for id_ in others} <= {"study"}
    for path in notebooks.sources(ROOT).values():
        assert list(notebook_findings(path.read_text(encoding="utf-8"), path.name)) == []
