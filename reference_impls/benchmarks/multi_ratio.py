"""Several pruning ratios of one network: what sharing the weights costs, and how level latency stays over frequencies.

One task: the convolutional network of `sparse_training` on grey pictures, trained for all ratios at once. Two questions
are asked of it. `curves`: accuracy and cost of every ratio, beside other ways to have so many ratios. `levels`: latency
over levels of frequency, with the ratio mapped to the level and without.

Levels are emulated by a duty cycle: after each block the process idles until the block's share of the time is the
level's share of the highest frequency. So all of the latency follows the clock, which flatters a device whose memory
does not; the fitted model of latency says what a part that does not follow would leave.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Interval, Record, Table
from reference_impls.accounting.timing import repeat
from reference_impls.benchmarks.sparse_training import network
from reference_impls.contract import Redundancy, Technique
from reference_impls.contract.errors import check_range
from reference_impls.data.splits import TITLES, Labelled, Split, split, standardised
from reference_impls.layers.norm import recalibrate
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, forward, measured, table
from reference_impls.study.intervals import over_rounds
from reference_impls.study.training import Recipe, accuracy, seeded, train, trained, training_macs
from reference_impls.techniques.all_in_one_pruning import governed, ladder, stored
from reference_impls.techniques.dvfs_ratio_mapping import Ladder, Latency, calibrate, chosen, variation
from reference_impls.techniques.shared_weight_multi_ratio_pruning import (
    Granularity,
    Jointly,
    SharedNetwork,
    load,
    summed_loss,
)

ID = "multi-ratio"
task = partial(Scenario, benchmark=ID)
POST_HOC, RECALIBRATED, ONE_NORM = "masked afterwards", "masked afterwards, recalibrated", "one batch norm"
MAGNITUDE, DISTILLED, SEPARATE = "magnitude mask", "with distillation", "a network for each ratio"
CONTROLS = {
    POST_HOC: "The dense network, trained alone, masked by magnitude when it is done.",
    RECALIBRATED: "The same with its batch norms estimated again for each ratio.",
    ONE_NORM: "Trained jointly with one batch norm for all ratios.",
    MAGNITUDE: "Trained jointly with the masks of the largest weights at each step, without a soft mask.",
    DISTILLED: "As the technique, and each pruned ratio learns from what the least pruned one says too.",
    SEPARATE: "Each ratio is trained by itself with a soft mask, and stored by itself.",
}
UNSWITCHED, BY_MACS, SMALLEST = "unswitched", "mapped by MACs", "the most pruned at every level"
LEVEL_CONTROLS = {
    UNSWITCHED: "The least pruned network runs at every level.",
    BY_MACS: "The ratio is chosen as if latency were in proportion to the MACs, without a measurement.",
    SMALLEST: "The most pruned network runs at every level.",
}


@dataclass(frozen=True, kw_only=True)
class RatioPlan(Plan):
    data: Labelled = "digits"
    train: int = 800
    test: int = 360
    side: int = 8
    width: int = 16
    epochs: int = 12
    batch_size: int = 50
    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    granularity: Granularity = "channel"
    timed: int = 32
    """Pictures in a timed call."""
    levels: tuple[float, ...] = ()
    """Frequencies, as shares of the highest."""
    calibrated: tuple[float, ...] = (1.0, 0.5)
    """Frequencies at which latency is measured to fit its model."""

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, 5e-3, self.batch_size, 1e-3)


FULL = RatioPlan(seeds=(0, 1, 2))
SMOKE = RatioPlan(seeds=(0,), repetitions=2, train=160, test=100, epochs=6, batch_size=20, width=8, timed=8)


def pictures(plan: RatioPlan, seed: int) -> Split:
    """Pictures of `side` x `side` pixels to train on, drawn by the seed, and to test."""
    whole = split(plan.data, plan.train, 0, plan.test, seed=seed)
    return standardised(whole.mapped(lambda x: F.adaptive_avg_pool2d(x, plan.side)))


def shared(
    plan: RatioPlan, data: Split, seed: int, ratios: Sequence[float], *, distilled: float = 0.0, **knobs: Any
) -> SharedNetwork:
    """A network trained for some ratios jointly, from the cache where it was trained before; not finished yet."""

    def build() -> Jointly:
        made = seeded(seed, partial(network, plan.width))
        return Jointly(SharedNetwork(made, ratios, plan.granularity, **knobs))

    def fit(model: Jointly) -> nn.Module:
        loss = partial(summed_loss, distilled=distilled)
        return train(model, data.train.x, data.train.y, plan.recipe, seed=seed, loss=loss)

    sizes = {"data": plan.data, "train": plan.train, "side": plan.side, "width": plan.width, "recipe": plan.recipe}
    how = {"ratios": ratios, "granularity": plan.granularity, "distilled": distilled, "seed": seed, **knobs}
    return trained("multi-ratio", {**sizes, **how}, build, fit).shared


def masked_afterwards(plan: RatioPlan, dense: SharedNetwork, calibrated: Tensor | None = None) -> list[nn.Module]:
    """Sub-models of a dense network by magnitude; batch norms are estimated again on `calibrated` (N, ...) if given."""
    models = list(_sub_models(SharedNetwork(dense.plain, plan.ratios, plan.granularity, score="magnitude")))
    if calibrated is not None:
        for model in models:
            recalibrate(model, calibrated)
    return models


def _sub_models(one: SharedNetwork) -> list[nn.Module]:
    one.finish()
    return [one.sub_model(ratio) for ratio in one.ratios]


def dense_network(plan: RatioPlan, data: Split, seed: int) -> SharedNetwork:
    """The network trained by itself, unpruned."""
    return shared(plan, data, seed, (0.0,), score="magnitude")


def ways(plan: RatioPlan, data: Split, seed: int) -> dict[str, Callable[[], list[nn.Module]]]:
    """Series -> what makes its network of each ratio."""
    jointly = partial(shared, plan, data, seed, plan.ratios)
    dense = partial(dense_network, plan, data, seed)
    return {
        TECHNIQUE: lambda: _sub_models(jointly()),
        POST_HOC: lambda: masked_afterwards(plan, dense()),
        RECALIBRATED: lambda: masked_afterwards(plan, dense(), data.train.x),
        ONE_NORM: lambda: _sub_models(jointly(norms="one")),
        MAGNITUDE: lambda: _sub_models(jointly(score="magnitude")),
        DISTILLED: lambda: _sub_models(jointly(distilled=1.0)),
        SEPARATE: lambda: separate(plan, data, seed),
    }


def separate(plan: RatioPlan, data: Split, seed: int) -> list[nn.Module]:
    """A network trained by itself for each ratio."""
    return [_sub_models(shared(plan, data, seed, (ratio,)))[0] for ratio in plan.ratios]


def moved(plan: RatioPlan, data: Split, seed: int) -> list[float]:
    """For each ratio, the share of the kept groups that were not kept when training began."""
    after = shared(plan, data, seed, plan.ratios)
    before = SharedNetwork(seeded(seed, partial(network, plan.width)), plan.ratios, plan.granularity)
    found = []
    for k in range(len(plan.ratios)):
        then, now = (torch.cat([gate.detach() > 0 for gate in one.gates(k)]) for one in (before, after))
        found.append(float((now & ~then).sum() / now.sum()))
    return found


def curves(study: Study[RatioPlan], technique: Technique, notes: Sequence[str] = ()) -> Record:
    """Accuracy and cost of every ratio, beside other ways to have them."""
    plan, found, shares = study.plan, list[Redundancy](), list[list[float]]()
    for n, seed in enumerate(plan.seeds):
        data = pictures(plan, seed)
        x = data.test.x[: plan.timed]

        def add(series: str, knobs: Mapping[str, Any], model: nn.Module, first: bool = n == 0) -> None:
            call = forward(model, x) if first else None  # noqa: B023
            study.add(series, knobs, call, units=len(x), score=accuracy(model, *data.test))  # noqa: B023

        dense = dense_network(plan, data, seed)
        add(BASELINE, {}, dense.finish().sub_model(0.0))
        for i, (series, make) in enumerate(ways(plan, data, seed).items()):
            study.progress("ways to have all ratios", n * 7 + i, 7 * len(plan.seeds))
            for ratio, model in zip(plan.ratios, make(), strict=True):
                add(series, {"ratio": ratio}, model)
        found.append(technique.measure(shared(plan, data, seed, plan.ratios).finish(), x))
        shares.append(moved(plan, data, seed))
    study.measure()
    data = pictures(plan, plan.seeds[0])
    _say(study, data)
    study.prepare("calibration", "estimating batch norms again, which a control does", held="shared")
    untrained = SharedNetwork(seeded(0, partial(network, plan.width)), plan.ratios, plan.granularity).finish()
    rows = [[ratio, *one] for ratio, one in zip(plan.ratios, zip(*shares, strict=True), strict=True)]
    columns = ("ratio", *(f"seed {seed}" for seed in plan.seeds))
    return study.record(
        **_said(study, data),
        unit="one picture",
        knobs=("ratio",),
        metric="accuracy on the test pictures",
        controls=CONTROLS,
        redundancy=measured(found, {"before training": technique.measure(untrained, None).value}),
        tables={
            "moved": table("Share of the kept groups that were not kept when training began.", columns, rows),
            "storage": storage(plan, data, plan.seeds[0]),
        },
        notes=notes,
    )


def _said(study: Study[RatioPlan], data: Split) -> dict[str, str]:
    plan = study.plan
    return {
        "data": f"{plan.train:,} pictures of {TITLES[plan.data]}, {plan.side} x {plan.side} pixels, and "
        f"{len(data.test.x):,} to test",
        "model": f"six 3x3 convolutions of {plan.width} to {4 * plan.width} channels, batch norm, a linear classifier",
    }


def _say(study: Study[RatioPlan], data: Split) -> None:
    plan = study.plan
    build = lambda: Jointly(SharedNetwork(network(plan.width), plan.ratios, plan.granularity))  # noqa: E731
    macs = training_macs(build, *data.train, plan.recipe, loss=summed_loss)
    study.prepare("training", f"training {len(plan.ratios)} ratios jointly", macs, held="excluded")


def storage(plan: RatioPlan, data: Split, seed: int) -> Table:
    """Table of bytes: of one network, of the shared one in training and in use, of a network for each ratio."""
    training = shared(plan, data, seed, plan.ratios)
    apart = separate(plan, data, seed)
    whole = stored([training.plain])
    in_training = stored([training])
    finished = training.finish()
    with tempfile.TemporaryDirectory() as folder:
        finished.save(Path(folder) / "all.pt")
        for i, model in enumerate(apart):
            torch.save(model.state_dict(), Path(folder) / f"{i}.pt")
        files = [(Path(folder) / name).stat().st_size for name in ("all.pt", *(f"{i}.pt" for i in range(len(apart))))]
    rows = [
        ["one network", whole, None],
        ["shared, with its soft mask", in_training, None],
        ["shared, finished", stored([finished, *(finished.sub_model(r) for r in plan.ratios)]), files[0]],
        [SEPARATE, stored(apart), sum(files[1:])],
    ]
    about = "Bytes of weights, masks, batch norms: each storage in memory once, and files."
    return table(about, ("what", "bytes", "bytes on disk"), rows)


# --------------------------------------------------------------------------------------------------------------------
# Levels of frequency


def slowed(model: nn.Module, share: float) -> Callable[[Tensor], Tensor]:
    """The blocks of a network in a duty cycle: of all time, a share in (0, 1] is spent on work, the rest idle."""
    check_range("share", share, 0, 1, low_open=True)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        start, busy = time.perf_counter(), 0.0
        for block in model.children():
            began = time.perf_counter()
            x = block(x)
            busy += time.perf_counter() - began
            if share < 1:
                _wait(start + busy / share)
        return x

    return run


def _wait(until: float) -> None:
    """Idle without giving the core away: a sleep lasts longer than asked, on a busy machine by milliseconds."""
    while time.perf_counter() < until:
        pass


def times(steps: Ladder, x: Tensor, levels: Sequence[float], repetitions: int) -> dict[float, list[float]]:
    """Frequency -> median milliseconds of each network at it, all in the same interleaved rounds."""
    calls = {f"{k} {level}": partial(slowed(m, level), x) for level in levels for k, m in enumerate(steps)}
    taken = repeat(calls, repetitions=repetitions)
    return {level: [float(np.median(taken[f"{k} {level}"])) for k in range(len(steps))] for level in levels}


def levels(study: Study[RatioPlan], technique: Technique, *, apart: bool = False) -> Record:
    """Latency over levels of frequency, and accuracy, with the ratio mapped to the level.

    apart: with separately trained networks as a further control.
    """
    plan, scores, rivals, found = study.plan, list[list[float]](), list[list[float]](), list[Redundancy]()
    data = {seed: pictures(plan, seed) for seed in plan.seeds}
    x = data[plan.seeds[0]].test.x[: plan.timed]
    nets: list[SharedNetwork] = []
    for n, (seed, part) in enumerate(data.items()):
        study.progress("networks", n, len(data))
        nets.append(shared(plan, part, seed, plan.ratios).finish())
        steps = ladder(nets[-1], x.shape[1:])
        scores.append([accuracy(one, *part.test) for one in steps])
        if apart:
            rivals.append([accuracy(one, *part.test) for one in separate(plan, part, seed)])
        found.append(technique.measure(nets[-1] if technique.id == "all-in-one-pruning" else steps, x))
    steps = ladder(nets[0], x.shape[1:])
    study.progress("latency", 0, 1)
    rounds = max(3, plan.repetitions // 4)
    profile = calibrate(times(steps, x, plan.calibrated, rounds))
    by_macs = [Latency(float(macs)) for macs in steps.macs]
    picks = {
        TECHNIQUE: [chosen(profile, level, profile[0].at(1)) for level in plan.levels],
        UNSWITCHED: [0] * len(plan.levels),
    }
    if not apart:
        picks[BY_MACS] = [chosen(by_macs, level, by_macs[0].at(1)) for level in plan.levels]
        picks[SMALLEST] = [len(steps) - 1] * len(plan.levels)
    study.add(BASELINE, {}, partial(slowed(steps[0], 1.0), x), units=len(x), score=[one[0] for one in scores])
    for series, ks in picks.items():
        for level, k in zip(plan.levels, ks, strict=True):
            call = partial(slowed(steps[k], level), x)
            study.add(series, {"frequency": level}, call, units=len(x), score=[one[k] for one in scores])
    study.measure()
    if apart:
        for level, k in zip(plan.levels, picks[TECHNIQUE], strict=True):
            cost = study.cost(TECHNIQUE, frequency=level)  # networks of the same layers
            study.add(SEPARATE, {"frequency": level}, score=[one[k] for one in rivals], cost=cost)
    _say(study, data[plan.seeds[0]])
    macs = 2 * rounds * sum(steps.macs) * len(x)
    study.prepare("calibration", "measuring the latency of each ratio at two levels", macs, held="excluded")
    about = (
        "Coefficient of variation of the latencies of the levels, the largest over the smallest less 1, and their mean "
        "in ms, each latency the median over rounds; intervals by drawing rounds again."
    )
    spread = [[series, *_spread(study, plan, series)] for series in picks]
    chose = [[level, *(plan.ratios[ks[i]] for ks in picks.values())] for i, level in enumerate(plan.levels)]
    tables = {
        "variation": table(about, ("series", "variation", "spread", "ms"), spread),
        "ratios": table("The ratio that runs at each level.", ("frequency", *picks), chose),
    }
    if apart:
        tables["switching"] = switching(plan, nets[0], x)
        tables["storage"] = storage(plan, data[plan.seeds[0]], plan.seeds[0])
    else:
        tables["latency model"] = latency_model(plan, steps, profile, x, rounds)
    controls = {
        name: text for name, text in {**LEVEL_CONTROLS, **CONTROLS}.items() if name in (*picks, *[SEPARATE] * apart)
    }
    return study.record(
        **_said(study, data[plan.seeds[0]]),
        unit="one picture",
        knobs=("frequency",),
        given=("frequency",),
        metric="accuracy on the test pictures",
        controls=controls,
        redundancy=measured(found, {"one ratio alone": technique.measure(*_alone(technique, nets[0], x)).value}),
        tables=tables,
        notes=(
            "Levels are emulated by a duty cycle at one true frequency: all of the latency follows the emulated clock.",
            "Latency is measured on the sub-models of the first seed; accuracy is of every seed, with the same ratios.",
        ),
    )


def latency_model(plan: RatioPlan, steps: Ladder, profile: Sequence[Latency], x: Tensor, rounds: int) -> Table:
    """Table of the fitted latencies, and what they say for the lowest level beside what is measured there."""
    least = min(plan.levels)
    again = times(steps, x, (least,), rounds)[least]
    rows = [[r, *one, one.at(least), ms] for r, one, ms in zip(plan.ratios, profile, again, strict=True)]
    about = (
        "Fitted milliseconds of a call that follow the clock and that do not, and what they make at the level "
        f"{least:g} beside what was measured there."
    )
    return table(about, ("ratio", "scaled", "fixed", "predicted", "measured"), rows)


def _alone(technique: Technique, net: SharedNetwork, x: Tensor) -> tuple[Any, Tensor]:
    one = SharedNetwork(net.plain, (0.0,), net.granularity, score="magnitude").finish()
    return (one if technique.id == "all-in-one-pruning" else ladder(one, x.shape[1:])), x


def _spread(study: Study[RatioPlan], plan: RatioPlan, series: str) -> list[Interval]:
    rounds = np.array([study.cost(series, frequency=level).samples for level in plan.levels])  # (levels, rounds)
    draws = np.random.default_rng(0).integers(0, rounds.shape[1], (1000, rounds.shape[1]))
    resampled = np.median(rounds[:, draws], axis=2).T  # (1000, levels)
    found = []
    for what in (variation, lambda ms: float(ms.max() / ms.min() - 1), lambda ms: float(ms.mean())):
        value = what(np.median(rounds, axis=1))
        low, high = np.percentile([what(one) for one in resampled], [2.5, 97.5]).tolist()
        found.append(Interval(value=value, low=min(low, value), high=max(high, value), n=rounds.shape[1]))
    return found


def switching(plan: RatioPlan, net: SharedNetwork, x: Tensor) -> Table:
    """Table of milliseconds of a switch, with the first run after it beside a run without a switch."""
    governor = governed(net, x.shape[1:])
    ends = (1.0, min(plan.levels))
    with torch.no_grad():
        first = governor(x)

    def switch(to: float) -> None:
        governor.frequency = to

    def to_and_fro() -> None:
        for end in (ends[1], ends[0]):
            switch(end)

    @torch.no_grad()
    def switched_run() -> None:
        switch(ends[1])
        switch(ends[0])
        governor(x)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "all.pt"
        net.save(file)
        build = partial(network, plan.width)

        calls: dict[str, Callable[[], object]] = {
            "two switches": to_and_fro,
            "a run": lambda: forward(governor, x)(),
            "two switches and a run": switched_run,
            "loading a file of all ratios": lambda: load(file, build(), plan.granularity).sub_model(0.0),
        }
        taken = repeat(calls, repetitions=plan.repetitions)
    with torch.no_grad():
        equal = bool(torch.equal(first, governor(x)))
    rows = [[name, over_rounds(ms)] for name, ms in taken.items()]
    rows.append(["outputs after all switches equal those before, bit for bit", float(equal)])
    return table("Milliseconds, medians over rounds with their intervals.", ("what", "ms"), rows)


DIGITS = (FULL, SMOKE)
"""Plans, full and smoke, for `task`."""
WIDE = (
    RatioPlan(
        seeds=(0, 1, 2), repetitions=200, data="fashion-mnist", needs=("fashion-mnist",), train=800, test=2000,
        side=14, width=32, epochs=3, ratios=(0.0, 0.25, 0.375, 0.5, 0.75), timed=16, levels=(1.0, 0.8, 0.6, 0.45, 0.3),
    ),
    replace(SMOKE, levels=(1.0, 0.5), repetitions=3),
)  # fmt: skip
"""The same for levels of frequency: in small on digits."""
