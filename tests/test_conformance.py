"""The conformance checks pass a good technique and catch each kind of damage with the check that is meant for it."""

from __future__ import annotations

import warnings

import pytest
import torch

from reference_impls.contract import Handle, Redundancy, Setting, conformance, replacement
from reference_impls.contract.example import RowSharing, RowSharingCases
from reference_impls.contract.replacement import replace, replaced_by


def failures(technique: RowSharing, cases: RowSharingCases | None = None) -> set[str]:
    report = conformance.check_technique(technique, cases or RowSharingCases())
    assert len(report.passed) + len(report.failed) + len(report.waived) == len(conformance.CHECKS)
    return set(report.failed)


def test_the_example_passes_every_check() -> None:
    report = conformance.check_technique(RowSharing(), RowSharingCases())
    report.raise_for_failures()
    assert len(report.passed) == len(conformance.CHECKS) == 18


def test_failures_are_raised_with_their_reasons() -> None:
    class Broken(RowSharing):
        def settings(self) -> list[Setting]:
            return super().settings()[:1]

    report = conformance.check_technique(Broken(), RowSharingCases())
    with pytest.raises(conformance.CheckFailed, match="at least 2 are needed"):
        report.raise_for_failures()


def damaged_forward(change):
    """A RowSharing whose patched forward is passed through `change(forward, host)`."""

    class Damaged(RowSharing):
        def apply(self, target, /, **knobs):
            handle = super().apply(target, **knobs)
            if isinstance(target, torch.nn.Linear):
                target.forward = change(target.forward, target)
            return handle

    return Damaged()


class WrongSaving(RowSharing):
    def saving(self, target, inputs, trace):
        return super().saving(target, inputs, trace) + 1


class BlindMeasure(RowSharing):
    def measure(self, target, inputs):
        super().measure(target, inputs)
        return Redundancy(0.5, "always a half")


class SaysSimulated(RowSharing):
    execution = "simulated"


class NoUndo(RowSharing):
    def apply(self, target, /, **knobs):
        handle = super().apply(target, **knobs)
        return Handle(target, trace=lambda: handle.trace)


class MovesGenerator(RowSharing):
    def measure(self, target, inputs):
        torch.rand(1)
        return super().measure(target, inputs)


class AcceptsAnything(RowSharing):
    def apply(self, target, share=True):
        return super().apply(target, share=bool(share)) if isinstance(target, torch.nn.Linear) else Handle(target)


class LeavesOutNull(RowSharing):
    """Computes only half of the rows, redundant or not, and repeats them."""

    def apply(self, target, *, share=True):
        handle, dense = super().apply(target, share=share), torch.nn.Linear.forward

        def forward(x):
            half = len(x) // 2
            handle.trace.update(rows=len(x), distinct=half if share else len(x))
            return dense(target, x[:half]).repeat(2, 1) if share else dense(target, x)

        target.forward = forward
        return handle


class RemembersLastBatch(RowSharing):
    def apply(self, target, /, **knobs):
        handle = super().apply(target, **knobs)
        inner, last = target.forward, []

        def forward(x):
            last.append(x.sum())
            return inner(x) + (last[-2] if len(last) > 1 and knobs["share"] else 0)

        target.forward = forward
        return handle


class UndoesTooMuch(RowSharing):
    def attach(self, target, share):
        handle = super().attach(target, share)
        replace(target, lambda layer, below, x: below(x) + share, self.id)

        def undo():
            while replaced_by(target):
                vars(target)[replacement._STACK].pop()

        return Handle(target, undo=undo, trace=lambda: handle.trace)


class CannotTrain(RowSharing):
    """Rows pass through a search for equal ones, which has no gradient of its own; detached, it has none at all."""

    trains = True

    def attach(self, target, share):
        handle, inner = super().attach(target, share), target.forward
        target.forward = lambda x: inner(x).detach() + 0 * target.bias
        return handle


class SilentWhenOff(RowSharing):
    def apply(self, target, /, **knobs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().apply(target, **knobs)


@pytest.mark.parametrize(
    ("technique", "caught_by"),
    [
        (WrongSaving(), "macs-match-closed-form"),
        (BlindMeasure(), "measure-finds-redundancy"),
        (BlindMeasure(), "measure-finds-nothing-in-null"),
        (SaysSimulated(), "execution-is-as-declared"),
        (LeavesOutNull(), "execution-is-as-declared"),
        (NoUndo(), "undo-restores"),
        (MovesGenerator(), "seeds-are-respected"),
        (AcceptsAnything(), "bad-values-are-refused"),
        (RemembersLastBatch(), "no-drift"),
        (UndoesTooMuch(), "handles-nest"),
        (CannotTrain(), "gradients-flow"),
        (SilentWhenOff(), "off-warns"),
        (damaged_forward(lambda f, target: lambda x: f(x) + 1e-3), "off-equals-baseline"),
        (damaged_forward(lambda f, target: lambda x: f(x.mul_(1.0).add_(1e-3))), "inputs-are-not-mutated"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_damage_is_caught(technique: RowSharing, caught_by: str) -> None:
    assert caught_by in failures(technique)


def test_a_waiver_is_counted_and_must_name_a_check() -> None:
    class Waives(WrongSaving):
        waivers = {"macs-match-closed-form": "the example shows a waiver"}  # noqa: RUF012

    assert "macs-match-closed-form" not in failures(Waives())

    class WaivesNothing(RowSharing):
        waivers = {"no-such-check": "a typo"}  # noqa: RUF012

    with pytest.raises(conformance.CheckFailed, match="no-such-check"):
        conformance.checks_for(WaivesNothing())


def test_selection_and_conservation_are_compared() -> None:
    class WrongSelection(RowSharingCases):
        def selection(self, seed, device):
            for quantity in super().selection(seed, device):
                yield type(quantity)(quantity.name, quantity.expected, quantity.actual + 1)

        def conserved(self, seed, device):
            return []

    assert failures(RowSharing(), WrongSelection()) == {
        "selection-equals-brute-force",
        "nothing-lost-or-counted-twice",
    }
