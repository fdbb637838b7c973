"""Checks that need more than one file."""

from __future__ import annotations

from tools.knowledge.findings import Finding
from tools.knowledge.load import Knowledge


def check_all(knowledge: Knowledge) -> list[Finding]:
    """Everything that is wrong between the files."""
    return []
