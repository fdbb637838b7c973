"""What reports took on one machine, as `tools.report.cost` records it."""

from __future__ import annotations

from collections.abc import Mapping

from reference_impls.accounting.record import Count, Finite, Machine, Model, Text


class Cost(Model):
    """What the report of one model took."""

    model: Text
    parameters: Count
    macs: Count
    """Of an item."""
    items: Count
    seconds: Finite
    extra_mb: Finite | None
    """Peak of memory above that before; None where the system does not tell."""
    findings: Count


class Costs(Model):
    """What reports took on one machine."""

    machine: Machine
    versions: Mapping[Text, Text]
    costs: Mapping[Text, Cost]
