"""The battery passes a good technique and catches each kind of damage with the check that is meant for it."""

from __future__ import annotations

import pytest
import torch

from reference_impls.contract import Handle, Redundancy, Setting, battery
from reference_impls.contract.example import RowSharing, RowSharingSpecimens


def failures(technique: RowSharing, specimens: RowSharingSpecimens | None = None) -> set[str]:
    report = battery.examine(technique, specimens or RowSharingSpecimens())
    assert len(report.passed) + len(report.failed) + len(report.waived) == len(battery.CHECKS)
    return set(report.failed)


def test_the_example_passes_every_check() -> None:
    report = battery.examine(RowSharing(), RowSharingSpecimens())
    report.raise_for_failures()
    assert len(report.passed) == len(battery.CHECKS) == 15


def test_failures_are_raised_with_their_reasons() -> None:
    class Broken(RowSharing):
        def settings(self) -> list[Setting]:
            return super().settings()[:1]

    report = battery.examine(Broken(), RowSharingSpecimens())
    with pytest.raises(battery.CheckFailed, match="at least 2 are needed"):
        report.raise_for_failures()


def damaged_forward(change):
    """A RowSharing whose patched forward is passed through `change(forward, host)`."""

    class Damaged(RowSharing):
        def apply(self, host, **knobs):
            handle = super().apply(host, **knobs)
            if isinstance(host, torch.nn.Linear):
                host.forward = change(host.forward, host)
            return handle

    return Damaged()


class WrongSaving(RowSharing):
    def saving(self, host, inputs, trace):
        return super().saving(host, inputs, trace) + 1


class BlindMeasure(RowSharing):
    def measure(self, host, inputs):
        super().measure(host, inputs)
        return Redundancy(0.5, "always a half")


class SaysSimulated(RowSharing):
    execution = "simulated"


class NoUndo(RowSharing):
    def apply(self, host, **knobs):
        handle = super().apply(host, **knobs)
        return Handle(host, trace=lambda: handle.trace)


class MovesGenerator(RowSharing):
    def measure(self, host, inputs):
        torch.rand(1)
        return super().measure(host, inputs)


class AcceptsAnything(RowSharing):
    def apply(self, host, share=True):
        return super().apply(host, share=bool(share)) if isinstance(host, torch.nn.Linear) else Handle(host)


class LeavesOutNull(RowSharing):
    """Computes only half of the rows, redundant or not, and repeats them."""

    def apply(self, host, *, share=True):
        handle, dense = super().apply(host, share=share), type(host).forward

        def forward(x):
            half = len(x) // 2
            handle.trace.update(rows=len(x), distinct=half if share else len(x))
            return dense(host, x[:half]).repeat(2, 1) if share else dense(host, x)

        host.forward = forward
        return handle


class RemembersLastBatch(RowSharing):
    def apply(self, host, **knobs):
        handle = super().apply(host, **knobs)
        inner, last = host.forward, []

        def forward(x):
            last.append(x.sum())
            return inner(x) + (last[-2] if len(last) > 1 and knobs["share"] else 0)

        host.forward = forward
        return handle


@pytest.mark.parametrize(
    ("technique", "caught_by"),
    [
        (WrongSaving(), "operations-match-closed-form"),
        (BlindMeasure(), "measure-finds-redundancy"),
        (BlindMeasure(), "measure-finds-nothing-in-null"),
        (SaysSimulated(), "execution-is-as-declared"),
        (LeavesOutNull(), "execution-is-as-declared"),
        (NoUndo(), "undo-restores"),
        (MovesGenerator(), "seeds-are-respected"),
        (AcceptsAnything(), "bad-values-are-refused"),
        (RemembersLastBatch(), "no-drift"),
        (damaged_forward(lambda f, host: lambda x: f(x) + 1e-3), "off-equals-baseline"),
        (damaged_forward(lambda f, host: lambda x: f(x.mul_(1.0).add_(1e-3))), "inputs-are-not-mutated"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_damage_is_caught(technique: RowSharing, caught_by: str) -> None:
    assert caught_by in failures(technique)


def test_a_waiver_is_counted_and_must_name_a_check() -> None:
    class Waives(WrongSaving):
        waivers = {"operations-match-closed-form": "the example shows a waiver"}  # noqa: RUF012

    assert "operations-match-closed-form" not in failures(Waives())

    class WaivesNothing(RowSharing):
        waivers = {"no-such-check": "a typo"}  # noqa: RUF012

    with pytest.raises(battery.CheckFailed, match="no-such-check"):
        battery.checks_for(WaivesNothing())


def test_selection_and_conservation_are_compared() -> None:
    class WrongSelection(RowSharingSpecimens):
        def selection(self, seed, device):
            for quantity in super().selection(seed, device):
                yield type(quantity)(quantity.name, quantity.before, quantity.after + 1)

        def conserved(self, seed, device):
            return []

    assert failures(RowSharing(), WrongSelection()) == {
        "selection-equals-brute-force",
        "nothing-lost-or-counted-twice",
    }
