"""Experiments on SparCL, in the benchmark of continual learning.

- `der-digits`, `er-digits`: all three savings over DER++ and over ER on digits, and the same without what chooses well.
- `der-fashion`: over DER++ on Fashion-MNIST.

Their tables hold the paper's own settings by the closed form: the operations of ResNet-18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import continual_learning as benchmark
from reference_impls.benchmarks.continual_learning import ContinualPlan
from reference_impls.benchmarks.sparse_training import Way
from reference_impls.contract import Handle
from reference_impls.hosts.continual import DRAWS
from reference_impls.hosts.training import Training, layers
from reference_impls.layers.conv import conv_norm_act
from reference_impls.models.residual_cnn import Block
from reference_impls.study import TECHNIQUE, Study, table
from reference_impls.techniques.sparcl import SparCLTechnique

SPARCL = SparCLTechnique()
STATIC, MAGNITUDE, RANDOM = "static masks", "by magnitude", "random removal"
GRADIENTS = {0.75: 0.8, 0.9: 0.92}
"""Sparsity of the gradients beside that of the weights: 0.80 stands in the authors' script, 0.92 is ours."""


def whole(training: Any, seed: int, **knobs: Any) -> Handle:
    """SparCL, its draws following from the seed."""
    fixed = {"removed": 0.3, "removals": 2, "refresh": 5, "inter": 0.02, "intra": 0.02, "seed": seed}
    return SPARCL.apply(training, **{**fixed, "gradient_sparsity": GRADIENTS[knobs["sparsity"]], **knobs})


def run_sparcl(study: Study[ContinualPlan]) -> Record:
    """Accuracy of the three savings together, with the controls."""
    plan, ways = study.plan, list[Way]()
    for sparsity in plan.values:
        knobs = {"sparsity": sparsity}
        one = partial(whole, **knobs, interval=plan.interval)
        ways.append(Way(TECHNIQUE, knobs, one))
        ways.append(Way(STATIC, knobs, partial(one, inter=0.0, intra=0.0)))
        ways.append(Way(MAGNITUDE, knobs, partial(one, weight_importance="magnitude")))
        ways.append(Way(RANDOM, knobs, partial(one, easiness="random")))
        ways += benchmark.equal_cost(plan, knobs, one)
    return benchmark.compare(
        study,
        SPARCL,
        ways,
        knobs=("sparsity",),
        controls={
            STATIC: "The masks of the weights never move; all else is SparCL.",
            MAGNITUDE: "Weights are kept by magnitude alone, as by the first published scripts; all else is SparCL.",
            RANDOM: "As many examples go out at the same epochs, drawn at random; all else is SparCL.",
            **benchmark.EQUAL_COST,
        },
        null=lambda training: {"labels at random": SPARCL.measure(benchmark.labels_at_random(training)).value},
        notes=(
            "Masks of elements save no MACs on dense kernels, data removal does; the rest stands in the table.",
            "30 % of each task's examples go out, in two parts.",
            "The network measured for its weights and gradients is the one before training.",
        ),
        tables=paper_settings,
    )


# --------------------------------------------------------------------------------------------------------------------
# The paper's settings, by the closed form


def resnet_18(classes: int) -> nn.Sequential:
    """ResNet-18 for small pictures: a 3x3 stem without stride, eight blocks of 64 to 512 channels, a classifier."""
    stages = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    blocks = [Block(i if n == 0 else o, o, stride if n == 0 else 1) for i, o, stride in stages for n in range(2)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    return nn.Sequential(conv_norm_act(3, 64, 3, act=nn.ReLU), *blocks, head)


def operations(
    work: Mapping[str, tuple[int, bool]], presented: float, draws: int, density: float = 1.0, updated: float = 1.0
) -> tuple[float, float]:
    """Floating point operations of training, by the paper's convention and with rehearsal's backward passes.

    work: MACs of each layer for one example, and whether it is sparse. presented: presentations of current examples.
    """
    convention = exact = 0.0
    for macs, sparse in work.values():
        d, u = (density, updated) if sparse else (1.0, 1.0)
        convention += 2 * macs * presented * (2 * d + u + draws * d)
        exact += 2 * macs * presented * (1 + draws) * (2 * d + u)
    return convention, exact


def paper_settings() -> dict[str, Table]:
    """Operations of the paper's trainings of ResNet-18, beside what was published of them."""
    rows: list[list[Any]] = []
    kept = (5 * 1 + 5 * 0.925 + 5 * 0.85 + 5 * 0.775 + 30 * 0.7) / 50  # of the script for 0.75, of the data
    for data, size, classes, presented, published in (
        ("Split CIFAR-10", 32, 10, 50_000 * 50, {"ER": 11.1e15, "SparCL-ER 0.75": 2.0e15}),
        ("Split Tiny-ImageNet", 64, 200, 100_000 * 100, {"DER++": 22.1e16, "SparCL-DER++ 0.75": 4.0e16}),
    ):
        one = Training(resnet_18(classes), torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long))
        work = {n: (layer.macs, "body" in n) for n, layer in layers(one).items()}
        for method, draws in (("ER", DRAWS["er"]), ("DER++", DRAWS["der++"])):
            for name, part, d, u in ((method, 1.0, 1.0, 1.0), (f"SparCL-{method} 0.75", kept, 0.25, 0.2)):
                if name in published:
                    rows.append(
                        [f"{name} on {data}", *operations(work, presented * part, draws, d, u), published[name]]
                    )
    about = (
        "Floating point operations of training ResNet-18 by the paper's convention, with the backward passes of "
        "rehearsed examples added, and as published (wang-2022-sparcl#c6, #c8): 3x3 convolutions inside blocks sparse, "
        "removal as in the authors' script for 0.75."
    )
    return {"paper settings": table(about, ("setting", "convention", "with rehearsal's backward", "published"), rows)}


SCENARIOS = (
    benchmark.task(
        "der-digits",
        "SparCL over DER++ on digits, two classes at a time",
        run_sparcl,
        full=replace(benchmark.FULL, values=(0.75, 0.9)),
        smoke=replace(benchmark.SMOKE, values=(0.75,)),
    ),
    benchmark.task(
        "er-digits",
        "SparCL over ER on digits, two classes at a time",
        run_sparcl,
        full=replace(benchmark.FULL, rehearsal="er", values=(0.75,)),
        smoke=replace(benchmark.SMOKE, rehearsal="er", values=(0.75,)),
    ),
    benchmark.task(
        "der-fashion",
        "SparCL over DER++ on Fashion-MNIST, two classes at a time",
        run_sparcl,
        full=replace(benchmark.FULL, data="fashion-mnist", needs=("fashion-mnist",), seeds=(0, 1, 2), values=(0.75,)),
        smoke=replace(benchmark.SMOKE, values=(0.9,)),
    ),
)
