"""Leads to the folder `tools` of this clone, whose name outside is `redundancy_atlas`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2])]
