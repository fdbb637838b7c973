"""Experiments of early exit by confidence, entropy and patience, all of them in the benchmark of early exit.

- `digits-cnn`, `fashion-cnn`: a residual CNN trained together with its four exits.
- `mails-minilm`: a frozen MiniLM with off-ramps on the SpamAssassin mails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import early_exit as benchmark
from reference_impls.benchmarks.early_exit import DIGITS, FASHION, MAILS, Method, Trained
from reference_impls.study import Study, paired, table
from reference_impls.techniques.confidence_early_exit import ConfidenceEarlyExit, Rule, calibrate, exit_decisions

EARLY_EXIT = ConfidenceEarlyExit()
BUDGETS, DELTA = (0.005, 0.01, 0.02), 0.05
THRESHOLDS: Mapping[Rule, Sequence[float]] = {
    "confidence": (0.999, 0.99, 0.97, 0.9, 0.8, 0.6, 0.0),
    "entropy": (0.01, 0.05, 0.1, 0.3, 0.6, 1.0),
    "patience": (2, 1),
}
MAIL_THRESHOLDS: Mapping[Rule, Sequence[float]] = {
    "confidence": (0.999, 0.99, 0.9, 0.6, 0.0),
    "entropy": (0.05, 0.2, 0.4),
    "patience": (3, 2, 1),
}


def ours(rule: Rule, threshold: float) -> Method:
    """The technique with a rule and its threshold."""
    return Method(
        rule,
        {"threshold": threshold, "rule": rule},
        decide=lambda logits: exit_decisions(logits, rule, threshold),
        runner=lambda network: EARLY_EXIT.apply(network, rule=rule, threshold=threshold).target,
    )


def run(study: Study[Any], make: Callable[[Study[Any]], Trained], thresholds: Mapping[Rule, Sequence[float]]) -> Record:
    """Sweep the three rules, and calibrate each."""
    on = make(study)
    methods = [ours(rule, threshold) for rule, swept in thresholds.items() for threshold in swept]
    return benchmark.report(
        study,
        on,
        methods,
        alone=[ours("confidence", threshold) for threshold in (0.99, 0.9, 0.6)],
        typical=ours("confidence", 0.9),
        tables={"calibration": calibrations(on, list(thresholds))},
        extra={"gain of patience over confidence": gain_of_patience(on, methods)},
    )


def calibrations(on: Trained, rules: Sequence[Rule]) -> Table:
    """Each rule calibrated on held-out data to each budget, with and without a certificate, and tried on test data."""
    rows: list[list[Any]] = []
    for rule, budget, delta in ((r, b, d) for r in rules for b in BUDGETS for d in (None, DELTA)):
        try:
            found = [calibrate(fold.held, fold.y_held, rule, budget, delta=delta) for fold in on.folds]
        except ValueError:  # too few held-out samples to certify this budget
            continue
        lefts = [exit_decisions(fold.test, rule, c.threshold) for fold, c in zip(on.folds, found, strict=True)]
        last, kept = on.accuracies_at(-1), on.accuracies(lefts)
        threshold, held = np.mean([(c.threshold, c.loss) for c in found], axis=0).tolist()
        within = sum(a - b <= budget for a, b in zip(last, kept, strict=True))
        share = on.macs(lefts) / on.network.costs().plain
        rows.append([rule, budget, delta is not None, threshold, held, paired(last, kept), within, share])
    return table(
        "Thresholds calibrated on held-out data to a budget of loss, tried on test data. Losses are against the last "
        "exit of the same network; MACs are a share of the plain network's; certified: at 95 %.",
        ("rule", "budget", "certified", "threshold", "held-out loss", "test loss", "seeds within", "MACs"),
        rows,
    )


def gain_of_patience(on: Trained, methods: Sequence[Method]) -> float:
    """Mean accuracy of the patience rule minus that of the confidence rule at as many MACs, interpolated."""

    def point(method: Method) -> tuple[int, float]:
        lefts = on.lefts(method)
        return round(on.macs(lefts)), float(np.mean(on.accuracies(lefts)))

    curve = np.array(sorted(point(method) for method in methods if method.name == "confidence")).T  # MACs, accuracies
    patient = [point(method) for method in methods if method.name == "patience"]
    return float(np.mean([accuracy - np.interp(macs, *curve) for macs, accuracy in patient]))


CNN = partial(run, make=benchmark.cnn, thresholds=THRESHOLDS)
RAMPS = partial(run, make=benchmark.mails, thresholds=MAIL_THRESHOLDS)
SCENARIOS = (
    benchmark.task("digits-cnn", "Residual CNN on 8 x 8 digits", CNN, *DIGITS),
    benchmark.task("fashion-cnn", "Residual CNN on Fashion-MNIST", CNN, *FASHION),
    benchmark.task("mails-minilm", "MiniLM with off-ramps on the SpamAssassin mails", RAMPS, *MAILS),
)
