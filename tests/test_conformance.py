"""The conformance checks pass a good technique and catch each kind of damage with the check that is meant for it."""

from __future__ import annotations

import warnings

import pytest
import torch

from reference_impls.contract import Handle, Redundancy, Setting, UnsupportedHost, conformance, replacement
from reference_impls.contract.example import RowSharing, RowSharingCases
from reference_impls.contract.replacement import replace, replaced_by


def failures(technique: RowSharing, cases: RowSharingCases | None = None) -> set[str]:
    report = conformance.check_technique(technique, cases or RowSharingCases())
    assert len(report.passed) + len(report.failed) + len(report.waived) == len(conformance.CHECKS)
    return set(report.failed)


def test_the_example_passes_every_check() -> None:
    report = conformance.check_technique(RowSharing(), RowSharingCases())
    report.raise_for_failures()
    assert len(report.passed) == len(conformance.CHECKS) == 21


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


class AnswersInFloat32(RowSharing):
    """Gives float32 whatever the precision of the layer and its rows."""

    def attach(self, target, share):
        handle, inner = super().attach(target, share), target.forward
        target.forward = lambda x: inner(x).float()
        return handle


class RunsOutOfRange(RowSharing):
    """Adds up squares in the rows' own dtype; the sums overflow in float16 only, and tell which rows count as equal."""

    def attach(self, target, share):
        handle, dense = super().attach(target, share), type(target).forward

        def forward(x):
            size = (1000 * x).square().sum(1)
            rows = x[size.isfinite()].unique(dim=0)
            handle.trace.update(rows=len(x), distinct=len(rows) if share else len(x))
            return dense(target, x)

        target.forward = forward
        return handle


class FailsInTheRun(RowSharing):
    def attach(self, target, share):
        handle, inner = super().attach(target, share), target.forward

        def forward(x):
            if x.dtype == torch.bfloat16:
                raise RuntimeError("not implemented for 'BFloat16'")
            return inner(x)

        target.forward = forward
        return handle


class Refuses(RowSharing):
    """Says at once what it needs, measuring and applying alike."""

    needs = "a layer of float32 parameters"

    def measure(self, target, inputs):
        self._check(target)
        return super().measure(target, inputs)

    def attach(self, target, share):
        self._check(target)
        return super().attach(target, share)

    def _check(self, target):
        if getattr(getattr(target, "weight", None), "dtype", None) == torch.bfloat16:
            raise UnsupportedHost(self.id, target, self.needs)


class RefusesInTheRun(RowSharing):
    def attach(self, target, share):
        handle, inner = super().attach(target, share), target.forward

        def forward(x):
            if x.dtype == torch.bfloat16:
                raise UnsupportedHost(self.id, target, "a layer of float32 parameters")
            return inner(x)

        target.forward = forward
        return handle


class RefusesWithoutReason(Refuses):
    needs = "another layer"


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
        (AnswersInFloat32(), "low-precision-keeps-decisions"),
        (RunsOutOfRange(), "low-precision-keeps-decisions"),
        (FailsInTheRun(), "low-precision-keeps-decisions"),
        (RefusesInTheRun(), "low-precision-keeps-decisions"),
        (RefusesWithoutReason(), "low-precision-keeps-decisions"),
        (damaged_forward(lambda f, target: lambda x: f(x) + 1e-3), "off-equals-baseline"),
        (damaged_forward(lambda f, target: lambda x: f(x.mul_(1.0).add_(1e-3))), "inputs-are-not-mutated"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_damage_is_caught(technique: RowSharing, caught_by: str) -> None:
    assert caught_by in failures(technique)


def test_a_refusal_that_says_what_is_needed_is_right() -> None:
    assert "low-precision-keeps-decisions" not in failures(Refuses())


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
