"""Leads to the folder `reference_impls` of this clone."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[3] / "reference_impls")]
