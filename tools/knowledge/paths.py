"""Where everything of the atlas lies, relative to its root, with forward slashes."""

from __future__ import annotations

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
TESTS: Final = "tests/techniques"


def module_name(entry_id: str) -> str:
    """`token-merging` -> `token_merging`."""
    return entry_id.replace("-", "_")
