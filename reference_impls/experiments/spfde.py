"""Experiments on SpFDE, in the benchmark of sparse training.

- `spfde-digits`: masks, freezing and sieving, alone and together, and the same without any of the three insights.
- `spfde-grid`: at equal operations freezing alone, sieving alone, both, and the four schemes of freezing; and how
  structure and outputs of the layers settle over the epochs.
- `spfde-fashion`: masks alone and all three, on Fashion-MNIST.

Its tables hold the paper's own setting by the closed form: the operations of ResNet-32 of twice the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import sparse_training as benchmark
from reference_impls.benchmarks.sparse_training import TrainingPlan, Way
from reference_impls.contract import Handle, generator
from reference_impls.data.splits import Split
from reference_impls.hosts.training import Training, ledger
from reference_impls.layers.conv import conv_norm_act
from reference_impls.models.residual_cnn import Block
from reference_impls.study import TECHNIQUE, Study, table
from reference_impls.techniques.data_sieving import DataSieving
from reference_impls.techniques.dynamic_sparse_training import DynamicSparseTraining, sparse_layers
from reference_impls.techniques.layer_freezing import SCHEMES, Freezing, Scheme, solve
from reference_impls.techniques.spfde import SpFDETechnique, soft_density, target_density

SPFDE = SpFDETechnique()
SPARSITY = 0.9
BLIND = "without the three insights"
WITHOUT = {
    BLIND: "Masks that never move, blocks that freeze in a random order, examples exchanged at random.",
    **benchmark.EQUAL_COST,
}
NOTES = (
    "Masks of elements save no MACs on dense kernels; what they would save stands in the table.",
    "The network measured for its weights is the one before training.",
)


def whole(training: Training, seed: int, **knobs: Any) -> Handle:
    """SpFDE, its draws following from the seed."""
    return SPFDE.apply(training, seed=seed, **knobs)


def blind(training: Training, seed: int, sparsity: float, saving: float, removed: float) -> Handle:
    """The same savings by masks that never move, freezing in a random order, and an exchange at random."""
    base = target_density(training, sparsity)
    timeline = solve(training, saving, trace=base) if saving else ((),) * training.epochs
    new = torch.randperm(len(list(training.model.children())) - 1, generator=generator(seed)).tolist()
    still = tuple(tuple(new[i] for i in one) for one in timeline)
    sieved = DataSieving().apply(training, removed=removed, interval=1, easiness="random", seed=seed)
    masked = DynamicSparseTraining().apply(sieved.target, sparsity=sparsity, method="static", seed=seed)
    target = masked.target.plus(lambda model, optimiser: Freezing(model.children(), optimiser, still))
    return Handle(target, trace=lambda: {**masked.trace, **sieved.trace, "frozen": list(still)})


def run_spfde(study: Study[TrainingPlan]) -> Record:
    """Accuracy of the three savings, alone and together."""
    plan, ways = study.plan, list[Way]()
    (sparsity,) = plan.values
    for saving, removed in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.2, 0.2), (0.25, 0.25)):
        knobs = {"sparsity": sparsity, "saving": saving, "removed": removed}
        ways.append(Way(TECHNIQUE, knobs, partial(whole, **knobs)))
        if removed:
            ways.append(Way(BLIND, knobs, partial(blind, **knobs)))
            ways += benchmark.equal_cost(plan, knobs, (1 - sparsity) * (1 - saving) * (1 - removed))
    return benchmark.compare(
        study,
        SPFDE,
        ways,
        knobs=("sparsity", "saving", "removed"),
        controls=WITHOUT,
        null=lambda training: {"labels at random": SPFDE.measure(benchmark.labels_at_random(training)).value},
        notes=NOTES,
        tables=paper_setting,
    )


def run_grid(study: Study[TrainingPlan]) -> Record:
    """At each share of the sparse training's operations: freezing alone, sieving alone, both; four schemes at one."""
    plan, ways = study.plan, list[Way]()

    def add(saving: float, removed: float, scheme: Scheme = "single-shot") -> None:
        knobs = {"saving": saving, "removed": removed, "scheme": scheme}
        ways.append(Way(TECHNIQUE, knobs, partial(whole, sparsity=SPARSITY, **knobs)))

    add(0.0, 0.0)
    for share in plan.values:
        half = 1 - (1 - share) ** 0.5
        add(share, 0.0)
        add(0.0, share)
        add(half, half)
    for scheme in SCHEMES[1:]:
        add(plan.values[0], 0.0, scheme)
    seed = plan.seeds[0]

    def settling(data: Mapping[int, Split]) -> dict[str, Table]:
        training = benchmark.dense(plan, seed, data[seed])
        handle = DynamicSparseTraining().apply(training, sparsity=SPARSITY, method="em&s", seed=seed)
        return benchmark.settling(handle.target, data[seed].test.x, list(sparse_layers(training.model)))

    return benchmark.compare(
        study,
        SPFDE,
        ways,
        knobs=("saving", "removed", "scheme"),
        controls={},
        null=lambda training: {"labels at random": SPFDE.measure(benchmark.labels_at_random(training)).value},
        notes=(
            f"All are sparse at {SPARSITY:g}. Shares are of the sparse training's operations, by the convention.",
            "Both: freezing and sieving each save the same share, and together what either alone saves above.",
            "How layers settle is of the first seed's training with masks alone.",
        ),
        tables=settling,
    )


def run_fashion(study: Study[TrainingPlan]) -> Record:
    """Masks alone, and all three, with the controls."""
    plan, ways = study.plan, list[Way]()
    (sparsity,) = plan.values
    for saving, removed in ((0.0, 0.0), (0.2, 0.2)):
        knobs = {"sparsity": sparsity, "saving": saving, "removed": removed}
        ways.append(Way(TECHNIQUE, knobs, partial(whole, **knobs)))
        if removed:
            ways.append(Way(BLIND, knobs, partial(blind, **knobs)))
            ways += benchmark.equal_cost(plan, knobs, (1 - sparsity) * (1 - saving) * (1 - removed))
    return benchmark.compare(
        study,
        SPFDE,
        ways,
        knobs=("sparsity", "saving", "removed"),
        controls=WITHOUT,
        null=lambda training: {"labels at random": SPFDE.measure(benchmark.labels_at_random(training)).value},
        notes=NOTES,
    )


# --------------------------------------------------------------------------------------------------------------------
# The paper's setting, by the closed form


def resnet_32(width: int = 32) -> nn.Sequential:
    """ResNet-32 for 32 x 32 pixels and 100 classes, of twice the usual width: a stem, fifteen blocks, a classifier."""
    stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
    blocks = [Block(i if n == 0 else o, o, stride if n == 0 else 1) for i, o, stride in stages for n in range(5)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100))
    return nn.Sequential(conv_norm_act(3, width, 3, act=nn.ReLU), *blocks, head)


def paper_setting(data: Mapping[int, Split]) -> dict[str, Table]:
    """Operations of training it for 160 epochs of 50,000 pictures, as the paper counts, of several settings."""
    training = Training(resnet_32(), torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), epochs=160)
    rows: list[list[Any]] = []
    sizes = {"examples": [50_000] * 160}
    dense = ledger(training, sizes).convention_flops
    rows.append(["dense", dense, 1.0])
    for name, density in (("SET or RigL", target_density), ("MEST with the soft bound", soft_density)):
        flops = ledger(training, {**density(training, 0.9), **sizes}).convention_flops
        rows.append([name, flops, flops / dense])
    base, soft = target_density(training, 0.9), soft_density(training, 0.9)
    for share in (0.2, 0.25):
        still = solve(training, share, interval=5, trace={**base, **sizes})
        examples = [round(50_000 * (1 - share))] * 160
        flops = ledger(training, {**soft, "frozen": still, "examples": examples}).convention_flops
        rows.append([f"SpFDE {share:.2f} and {share:.2f}", flops, flops / dense])
    about = (
        "Floating point operations of training ResNet-32 of twice the width on CIFAR-100 for 160 epochs, by the "
        "papers' convention, sparse ones at 90 %: first layer and classifier dense, the soft bound as in MEST's README."
    )
    return {"paper setting": table(about, ("setting", "operations", "share"), rows)}


SCENARIOS = (
    benchmark.task(
        "spfde-digits",
        "A small network trained by masks, freezing and sieving on digits",
        run_spfde,
        full=replace(benchmark.FULL, values=(0.9,)),
        smoke=replace(benchmark.SMOKE, train=96, epochs=10, values=(0.9,)),
    ),
    benchmark.task(
        "spfde-grid",
        "Freezing and sieving of a sparse training on digits at equal operations",
        run_grid,
        full=replace(benchmark.FULL, values=(0.2, 0.35), epochs=12, seeds=(0, 1, 2)),
        smoke=replace(benchmark.SMOKE, train=96, epochs=10, values=(0.2,), seeds=(0,)),
    ),
    benchmark.task(
        "spfde-fashion",
        "A small network trained by masks, freezing and sieving on Fashion-MNIST",
        run_fashion,
        full=replace(
            benchmark.FULL,
            data="fashion-mnist",
            needs=("fashion-mnist",),
            train=600,
            test=2000,
            epochs=8,
            values=(0.9,),
        ),
        smoke=replace(benchmark.SMOKE, train=96, epochs=10, values=(0.9,), seeds=(0,)),
    ),
)
