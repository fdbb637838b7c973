"""Where everything of the atlas lies, relative to its root, with forward slashes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

AXES: Final = "taxonomy/axes.yml"
HARD_CASES: Final = "taxonomy/hard_cases.yml"
OPEN_PROBLEMS: Final = "taxonomy/open_problems.yml"
PRINCIPLES: Final = "taxonomy/principles.yml"
ENTRIES: Final = "taxonomy/techniques"
PAPERS: Final = "papers"
TECHNIQUES: Final = "reference_impls/techniques"
EXPERIMENTS: Final = "reference_impls/experiments"
SHARED: Final = ("reference_impls/layers/*.py", "reference_impls/accounting/closed_form.py")
"""Code that is a step of many techniques."""
BENCHMARKS: Final = "reference_impls/benchmarks"
RESULTS: Final = "reference_impls/results"
NOTEBOOKS: Final = "notebooks"
GUIDES: Final = frozenset({"redundancy_report"})
"""Notebooks that belong to no entry."""
TESTS: Final = "tests/techniques"
INVARIANTS: Final = "tests/test_invariants*.py"
"""Files in which invariants of drafts are tried on numbers, each by a test of the draft's name."""

INSTALLED: Final = Path(__file__).resolve().parents[1] / "atlas"
"""Root of the atlas inside an installed package; in a clone there is no such folder."""


def code_root(root: Path) -> Path:
    """The folder in which `reference_impls` lies: the root, but for an installed atlas, which has it beside itself."""
    return INSTALLED.parents[1] if root == INSTALLED else root


def located(root: Path, file: str) -> Path:
    """Where a file of the atlas at `root` lies, from its name relative to a clone."""
    return (code_root(root) if file.startswith("reference_impls/") else root) / file


def module_name(entry_id: str) -> str:
    """`token-merging` -> `token_merging`."""
    return entry_id.replace("-", "_")
