"""Low precision: what a classifier loses when its layers run on an in-memory array with converters of few bits.

One small CNN on digits, MNIST and Fashion-MNIST, trained with 4-bit weights and activations, either digitally (the
*conventional* network) or through a converter. Its first convolution and its last layer stay digital and in floating
point. The baseline is the conventional network on an array fine enough to lose next to nothing: one bit of activation
a cycle, one bit of weight a column, converters of 12 bits. What coarser arrays save beside it are columns, cycles and
bits of conversions. MACs count the products in the array's cells and the shifting and adding of codes, as simulated
here; a digital machine would do without all of it (control `digital integers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count, uncounted
from reference_impls.accounting.record import Measured, Record
from reference_impls.contract import Handle, generator
from reference_impls.data.splits import TITLES, Labelled, Part, Split, split
from reference_impls.layers.arrays import Array
from reference_impls.layers.conv import conv_norm_act
from reference_impls.layers.norm import recalibrate
from reference_impls.layers.pim import NO_RESCALING, Rescaling
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.study import BASELINE, Plan, Scenario, Study, forward, measured, training
from reference_impls.techniques.pim_qat import PIMQAT

ID = "low-precision"
task = partial(Scenario, benchmark=ID)
QAT = PIMQAT()
COARSE = Array("bit-serial", dac_bits=4, group=144, weights="tanh")
"""The array of the experiments: all four bits of an activation in one cycle, 144 rows; its converter varies."""
FINE = replace(COARSE, dac_bits=1, adc_bits=12)
FLOAT: Mapping[str, object] = {"precision": "float"}
INTEGERS, DEPLOYED, RECALIBRATED = "digital integers", "conventional network", "conventional and recalibrated"
CONTROLS = {
    INTEGERS: "The conventional network on 4-bit integers without an array: what a digital machine computes.",
    DEPLOYED: "The conventional network, trained without the converter, on the array as it is.",
    RECALIBRATED: "The same with its batch norms estimated again on the array.",
}


@dataclass(frozen=True, kw_only=True)
class NetPlan(Plan):
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: Labelled
    train: int
    held: int
    epochs: int
    test: int | None = None
    timed: int = 32
    bits: tuple[int, ...] = (3, 4, 5, 6)
    """Of the converter."""
    momentum: bool = False
    """Trained by gradient descent with momentum, in the place of AdamW."""

    @property
    def recipe(self) -> training.Recipe:
        if self.momentum:
            return training.MomentumRecipe(self.epochs, 5e-2, 64, 4e-5)
        return training.Recipe(self.epochs, 5e-3, 64, 1e-4)


_digits = partial(NetPlan, data="digits", train=1237, held=200)
DIGITS = (_digits(epochs=20), _digits(repetitions=3, seeds=(0,), epochs=3, timed=16, bits=(5,)))
"""Plans, full and smoke, for `task`."""
THREE = (replace(DIGITS[0], seeds=(0, 1, 2)), DIGITS[1])
"""The same with three of the seeds, where many arrays are tried."""
SHORT = (replace(THREE[0], epochs=8), DIGITS[1])
"""The same for networks in floating point, which need fewer epochs."""
MOMENTUM = (replace(THREE[0], bits=(3, 5), momentum=True), replace(DIGITS[1], momentum=True))
"""The same by gradient descent with momentum."""
_big = partial(NetPlan, train=6000, held=500, epochs=8, test=2000, seeds=(0, 1, 2), bits=(4, 5, 6))
MNIST = (_big(data="mnist", train=3000, epochs=4, bits=(4, 5), needs=("mnist",)), DIGITS[1])
FASHION = (_big(data="fashion-mnist", needs=("fashion-mnist",)), DIGITS[1])


def images_of(plan: NetPlan, seed: int) -> Split:
    """The images of one seed, in [0, 1]."""
    return split(plan.data, plan.train, plan.held, plan.test, seed=seed)


def network(size: int, width: int = 16, classes: int = 10) -> nn.Sequential:
    """A CNN for grey images of `size` x `size`, in plain layers: (B, 1, size, size) -> (B, classes).

    Four 3x3 convolutions, each with batch norm and ReLU, the third of stride 2, and a linear layer on the means. Images
    of more than 16 pixels are halved by the first convolution.
    """
    a, b = width, 2 * width
    norm_act = partial(conv_norm_act, act=nn.ReLU)
    stages = (norm_act(1, a, 3, 2 if size > 16 else 1), norm_act(a, a, 3), norm_act(a, b, 3, 2), norm_act(b, b, 3))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, classes))


def on_array(model: nn.Module, array: Array, rescaling: Rescaling = NO_RESCALING) -> Handle:
    """The model's inner convolutions on an array, activations clipped to [0, 1]."""
    return QAT.apply(model, **vars(array), rescaling=rescaling)


def trained(
    plan: NetPlan, part: Part, seed: int, array: Array = COARSE, rescaling: Rescaling = NO_RESCALING
) -> nn.Module:
    """A network trained through an array, `COARSE` with its ideal converter being the conventional one; from the cache
    where the same was trained before. It is a plain one: put it on an array to run it.
    """
    how = {"array": array, "rescaling": rescaling}
    return trained_with(plan, part, seed, how, lambda model: on_array(model, array, rescaling))


def trained_with(
    plan: NetPlan,
    part: Part,
    seed: int,
    how: Mapping[str, object] = FLOAT,
    attach: Callable[[nn.Module], Handle] = Handle,
) -> nn.Module:
    """A network trained with a technique attached, in floating point by default; from the cache where one was trained
    `how` this is. The technique is gone when it comes back.
    """

    def fit(model: nn.Module) -> nn.Module:
        with attach(model):
            return training.train(model, part.x, part.y, plan.recipe, seed=seed)

    spec = {"recipe": plan.recipe, **how, "seed": seed, "images": (plan.train, plan.held)}
    return training.trained(f"low-precision-{plan.data}", spec, partial(build, part, seed), fit)


def build(part: Part, seed: int) -> nn.Sequential:
    """The network for these images, with the random weights of the seed."""
    return training.seeded(seed, lambda: network(part.x.shape[-1]))


def trained_macs(plan: NetPlan, part: Part, array: Array = COARSE) -> int:
    """MACs of that training, as simulated."""

    def made() -> nn.Module:
        model = build(part, 0)
        on_array(model, array)
        return model

    return training.training_macs(made, part.x, part.y, plan.recipe)


@dataclass
class Deployed:
    """A copy of a network on an array, or with another technique attached."""

    model: nn.Module
    handle: Handle

    def accuracy(self, part: Part, seed: int = 0) -> float:
        """Of images, the noise of the converters following from the seed."""
        with training.fork_seed(seed):
            return training.accuracy(self.model, *part)

    def conversions(self, x: Tensor) -> int:
        """For one image of x (N, ...), over all layers."""
        with uncounted():
            forward(self.model, x[:1])()
        return sum(seen.conversions for seen in self.handle.trace["layers"].values())


def deployed(model: nn.Module, array: Array, calibrated: Tensor | None = None, seed: int = 0) -> Deployed:
    """A copy of the network on an array, its batch norms estimated again there on `calibrated` (N, ...) if given."""
    ours = copy_sharing_weights(model)
    handle = on_array(ours, array)
    if calibrated is not None:
        with training.fork_seed(seed):
            recalibrate(ours, calibrated)
    return Deployed(ours, handle)


def attached(model: nn.Module, attach: Callable[[nn.Module], Handle] = Handle) -> Deployed:
    """A copy of the network with a technique attached, or as it is."""
    ours = copy_sharing_weights(model)
    return Deployed(ours, attach(ours))


# --------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Fold:
    """What one seed gave: its images, and the conventional network."""

    seed: int
    parts: Split
    network: nn.Module


def folds(study: Study[NetPlan]) -> list[Fold]:
    """Train the conventional networks, and add them to the study on the fine array and on integers."""
    plan, found = study.plan, []
    for number, seed in enumerate(plan.seeds):
        study.progress("training", number, len(plan.seeds))
        parts = images_of(plan, seed)
        found.append(Fold(seed, parts, trained(plan, parts.train, seed)))
        add(study, found[-1], BASELINE, {}, deployed(found[-1].network, FINE))
    return found


def float_folds(study: Study[NetPlan]) -> list[Fold]:
    """Train networks in floating point, one for each seed."""
    plan, found = study.plan, []
    for number, seed in enumerate(plan.seeds):
        study.progress("training", number, len(plan.seeds))
        parts = images_of(plan, seed)
        found.append(Fold(seed, parts, trained_with(plan, parts.train, seed)))
    return found


def add(study: Study[NetPlan], fold: Fold, series: str, knobs: Knobs, on: Deployed) -> None:
    """Add a network of a fold to the study; that of the first seed is counted and timed."""
    timed = fold.parts.test.x[: study.plan.timed]
    call = forward(on.model, timed) if fold.seed == study.plan.seeds[0] else None
    study.add(series, knobs, call, units=len(timed), score=on.accuracy(fold.parts.test, fold.seed))


def add_integers(study: Study[NetPlan], found: Sequence[Fold], knobs: Knobs) -> None:
    """Add the control `INTEGERS`; knobs: those that its one point has to say."""
    for fold in found:
        add(study, fold, INTEGERS, knobs, deployed(fold.network, COARSE))


def macs_of(on: Deployed, x: Tensor) -> int:
    """MACs of one image of x (N, ...) as simulated."""
    with count() as tally:
        forward(on.model, x[:1])()
    return tally.macs


def report(
    study: Study[NetPlan],
    found: Sequence[Fold],
    controls: Mapping[str, str],
    redundancy: Measured | None = None,
    *,
    digital: str = "first and last layer digital",
    shared: str = "training the conventional network with 4-bit weights and activations",
    **said: Any,
) -> Record:
    """The record of what was added.

    controls: what each series is. redundancy: the technique's own measure, `unused` by default. digital: which layers
    are. shared: the training that the baseline needs too. said: what `Study.record` takes else.
    """
    plan, parts = study.plan, found[0].parts
    parameters = sum(p.numel() for p in found[0].network.parameters())
    study.measure()
    study.prepare("training", shared, held="shared")
    return study.record(
        metric="accuracy",
        data=f"{TITLES[plan.data]}, {plan.train:,} images to train on, {len(parts.held.x):,} held out, "
        f"{len(parts.test.x):,} to test",
        model=f"a CNN of four convolutions and a linear layer, {parameters:,} parameters; {digital}",
        unit="one image",
        controls=controls,
        redundancy=redundancy or unused(found),
        **said,
    )


def unused(found: Sequence[Fold]) -> Measured:
    """The measure of PIM quantisation on the conventional networks: the range of a converter that the data leave."""
    x = found[0].parts.test.x[:128]
    noise = torch.rand(x.shape, generator=generator(0))
    null = network(x.shape[-1]).eval()  # equal weights and images reach the full scale, and nothing is left
    with torch.no_grad():
        for layer in null.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(1)
                layer.padding = (0, 0)
    return measured(
        [QAT.measure(fold.network, x) for fold in found],
        {
            "noise as images": QAT.measure(found[0].network, noise).value,
            "equal weights on white images, without padding": QAT.measure(null, torch.ones(1, 1, 28, 28)).value,
        },
    )


Knobs = Mapping[str, bool | int | float | str]
