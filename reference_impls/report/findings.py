"""From a measure and simulated runs to a finding: its interval beside its nulls, its curve, its ceilings."""

from __future__ import annotations

from collections.abc import Sequence

from reference_impls.report import controls
from reference_impls.report.axes.base import Axis, Outcome, Values
from reference_impls.report.calibration import overhead_seconds, time_saved
from reference_impls.report.curves import best, interval, point, search, units_of
from reference_impls.report.engine import View
from reference_impls.report.measuring import Measured, Observed
from reference_impls.report.progress import Clock, Saved
from reference_impls.report.result import AtLayer, Budget, Calibration, CurvePoint, Finding, Interval
from reference_impls.report.sample import Sample
from reference_impls.report.suggestions import suggestions

RATE = 20e9
"""MACs in a second that are assumed where the sample of a curve is chosen: it must not follow from a clock, or two runs
with one seed would differ."""
LEAST = 8
"""Items that a point of a curve is measured on, at least."""


class Measuring:
    """The findings of a report, one after the other."""

    def __init__(
        self,
        view: View,
        budget: Budget,
        measured: Measured,
        calibration: Calibration,
        seed: int,
        clock: Clock,
        seconds: float,
        saved: Saved | None = None,
    ) -> None:
        self.view, self.budget, self.measured, self.calibration = view, budget, measured, calibration
        self.seed, self.clock, self.seconds, self.saved = seed, clock, seconds, saved
        self.findings: list[Finding] = []
        self.failed: dict[str, str] = {}
        """Axis -> why its simulation failed on this model."""
        self.axes: dict[str, Axis] = {}
        self.whole: Sample = view.sample
        self.part: Sample = view.sample

    def expected(self, axes: Sequence[Axis]) -> float:
        """Items that the curves of these axes will take; settles how many each point sees."""
        simulated = [axis for axis in axes if not axis.free]
        per_axis = self.seconds / max(len(simulated), 1)
        items = int(per_axis / (1.75 * (self.view.total / RATE + 2e-3)))
        self.whole = self.view.sample.first(max(items, 2 * LEAST))
        self.part = self.view.sample.first(max(self.whole.items // 4, LEAST))
        return len(simulated) * (3 * self.part.items + self.whole.items)

    def add(self, axis: Axis, observed: Observed) -> None:
        """Measure one axis."""
        self.axes[axis.id] = axis
        if axis.id not in observed.values:
            return
        kept = self.saved.get(axis.id) if self.saved else None
        try:
            found = kept or self._finding(axis, observed)
        except Exception as error:  # whatever somebody's model makes of it
            self.failed[axis.id] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return
        self.findings.append(found)
        if self.saved and kept is None:
            self.saved.put(found)

    def _finding(self, axis: Axis, observed: Observed) -> Finding:
        view, values, sample = self.view, observed.values[axis.id], observed.samples[axis.id]
        value = self._interval(values, sample)
        controlled = observed.controlled or sample
        nulls = {name: self._interval(v, controlled) for name, v in observed.nulls.get(axis.id, {}).items()}
        of_data = [n for name, n in nulls.items() if name not in (controls.WEIGHTS, controls.ORDER)]
        low = value.value if value.low is None else value.low
        curve, outcomes = self._curve(axis)
        chosen = best(curve)
        at = curve[chosen] if chosen is not None else None
        outcome = outcomes[chosen] if chosen is not None else None
        return Finding(
            axis=axis.id,
            title=axis.title,
            relation=axis.relation,
            location=axis.location,
            granularity=axis.granularity,
            saves=axis.saves,
            measure=axis.measure,
            source=axis.source,
            value=value,
            null=nulls,
            excess=value.value - max(n.value for n in of_data) if of_data else None,
            separable=all(low > (n.value if n.high is None else n.high) for n in of_data) if of_data else None,
            layers=self._layers(axis, observed, outcome),
            curve=tuple(curve),
            best=chosen,
            ceiling_macs=at.macs_saved.value if at else 0.0,
            ceiling_time=(at.time_saved if at else 0.0) if axis.saves == "inference" else None,
            suggestions=suggestions(axis.id, axis.location, at.setting if at else None, view),
            notes=tuple(axis.notes(view)),
        )

    def _interval(self, values: Values, sample: Sample) -> Interval:
        units = units_of(sample) if len(values.items) == sample.items else None
        return interval(values.items, units, self.seed)

    def _curve(self, axis: Axis) -> tuple[list[CurvePoint], list[Outcome]]:
        """Points from the gentlest setting on, and their outcomes; the best one is confirmed on the larger sample."""
        view, settings = self.view, axis.settings(self.view)
        outcomes: dict[int, Outcome] = {}
        self.clock.say(f"{axis.id}: curve")

        def measure(index: int, sample: Sample) -> CurvePoint:
            outcome = outcomes[index] = axis.outcome(view, settings[index], sample, self.clock.tick)
            return point(outcome, sample, self.budget, self.seed, self.time_of(axis, outcome))

        if axis.free or len(settings) < 2:
            found = {i: measure(i, view.sample) for i in range(len(settings))}
        else:
            found = search(settings, lambda i: measure(i, self.part))
            if self.part.items < self.whole.items:
                self._confirm(found, lambda i: measure(i, self.whole))
        order = sorted(found)
        return [found[i] for i in order], [outcomes[i] for i in order]

    def _confirm(self, found: dict[int, CurvePoint], measure: object) -> None:
        """Measure the best point again on the larger sample; where it does not keep the budget, gentler ones."""
        tried: set[int] = set()
        while True:
            order = sorted(found)
            at = best([found[i] for i in order])
            if at is None or order[at] in tried or len(tried) == 3:
                return
            tried.add(order[at])
            found[order[at]] = measure(order[at])  # type: ignore[operator]

    def time_of(self, axis: Axis, outcome: Outcome) -> float | None:
        """Share of the time of an item that a saving becomes at best."""
        if axis.saves != "inference":
            return None
        view = self.view
        overhead = overhead_seconds(self.calibration, outcome.overhead) / (self.measured.ms / 1e3)
        macs = {name: view.per_item(name) for name in view.sites}
        return time_saved(outcome.sites, macs, self.measured.shares, outcome.shrinks, overhead, gain=self.measured.gain)

    def _layers(self, axis: Axis, observed: Observed, outcome: Outcome | None) -> tuple[AtLayer, ...]:
        nulls, found = observed.nulls.get(axis.id, {}), []
        for name, value in observed.values[axis.id].layers.items():
            saved = None
            if outcome is not None:
                inside = [
                    s for s in self.view.sites.values() if name in (s.name, s.module) or s.module.startswith(f"{name}.")
                ]
                macs = sum(self.view.per_item(s.name) for s in inside)
                if macs:
                    saved = min(sum(outcome.sites.get(s.name, 0.0) for s in inside) / macs, 1.0)
            null = {control: v.layers[name] for control, v in nulls.items() if name in v.layers}
            found.append(AtLayer(layer=name, value=value, null=null, saved=saved))
        return tuple(found)
