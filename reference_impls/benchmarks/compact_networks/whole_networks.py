"""Whole networks of the EfficientFormer family.

- `resolution`: a small network, trained, then run at lower resolution; against cropping, and weights that saw one size.
- `latency`: networks of full size beside MobileNetV2 on one thread, as torch runs them and compiled.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Interval, Measured, Record, Table
from reference_impls.accounting.timing import repeat, speed_up
from reference_impls.data import images
from reference_impls.data.controls import shuffled_pixels, uniform_noise, white_noise
from reference_impls.data.splits import TITLES, Labelled, split
from reference_impls.layers.norm import recalibrate
from reference_impls.models.mobilenet_v2 import MobileNetV2
from reference_impls.models.timm import timm_network
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import coarsen
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import BASELINE, TECHNIQUE, Cost, Plan, Recipe, Study, measure_calls, measured, table
from reference_impls.study.intervals import over_items
from reference_impls.study.training import accuracy, fork_seed, forward, seeded, train, trained
from reference_impls.techniques.efficientformer.skeleton import ResolutionTechnique, TwoHeads, smaller_sizes

# --------------------------------------------------------------------------------------------------------------------
# A small trained network at lower resolution

RECALIBRATED, CROPPED = "batch norm recalibrated", "cropped"
ONE_SIZE, ONE_SIZE_RECALIBRATED = "trained at one size", "trained at one size, batch norm recalibrated"
CONTROLS = {
    RECALIBRATED: "The same weights, with batch norm recalibrated on 512 training images of the size seen.",
    CROPPED: "As many pixels, cut out of the middle of the image at its own resolution instead.",
    ONE_SIZE: "The baseline's weights, which saw one size only, at lower resolution.",
    ONE_SIZE_RECALIBRATED: "Those weights, with batch norm recalibrated on training images of the smaller size.",
}
TOLERANCE = 0.02
"""Share of their variance that images may lose where the technique chooses the size."""


@dataclass(frozen=True, kw_only=True)
class ResolutionPlan(Plan):
    data: Labelled
    side: int
    """Pixels that the images are enlarged to."""
    recipe: Recipe
    train: int | None = None
    test: int | None = None


DIGITS = {
    "smoke": ResolutionPlan(
        repetitions=3, data="digits", side=64, recipe=Recipe(2, batch_size=64), train=400, test=120
    ),
    "full": ResolutionPlan(seeds=(0, 1, 2), data="digits", side=64, recipe=Recipe(12, batch_size=64)),
}
FASHION = {
    "smoke": ResolutionPlan(
        repetitions=3, needs=("fashion-mnist",), data="fashion-mnist", side=96, recipe=Recipe(1, batch_size=64),
        train=640, test=200,
    ),
    "full": ResolutionPlan(
        seeds=(0, 1, 2), needs=("fashion-mnist",), data="fashion-mnist", side=96, recipe=Recipe(8, batch_size=64),
        train=6000, test=2000,
    ),
}  # fmt: skip


def cropped(x: Tensor, side: int) -> Tensor:
    """The central squares of images: (B, C, side, side)."""
    cut = (x.shape[2] - side) // 2
    return x[..., cut : cut + side, cut : cut + side]


def resolution(
    study: Study[ResolutionPlan], technique: ResolutionTechnique, build: Callable[[int], TwoHeads], name: str
) -> Record:
    """Accuracy, MACs and time of a trained network that sees its images at `side` pixels or at fewer.

    `build(side)` makes the network for one channel and 10 classes. It is trained on images of random size, each batch
    at another; the baseline is the same network trained and run at the full size.
    """
    plan, side = study.plan, study.plan.side
    falling = tuple(range(side, 0, -32))
    parts = split(plan.data, plan.train, test=plan.test).mapped(
        lambda x: F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False) * 2 - 1
    )
    test, batch = parts.test.to(study.device), parts.test.x[:32].to(study.device)

    def fitted(seed: int, augment: Callable[[Tensor, torch.Generator], Tensor] | None) -> TwoHeads:
        """The network trained with a seed, on images of its full size or on what `augment` makes of them."""
        spec = {"side": side, "images": len(parts.train.x), "recipe": plan.recipe, "seed": seed}
        spec |= {"config": build(side).config, "sizes": augment is not None}

        def fit(network: TwoHeads) -> TwoHeads:
            return train(network, *parts.train, plan.recipe, seed=seed, augment=augment)

        with fork_seed(seed):
            return trained(f"{name}-resolution", spec, partial(build, side), fit).to(study.device)

    def at(network: nn.Module, size: int, *, anew: bool = False) -> Any:
        if anew:
            network = copy.deepcopy(network)
            recalibrate(network, coarsen(parts.train.x[:512].to(study.device), (size, size)))
        return technique.apply(network, scale=size / side).target

    def add(series: str, size: int, call: Callable[[Tensor], Tensor], **knobs: float) -> None:
        study.add(
            series,
            {} if series == BASELINE else {"scale": round(size / side, 3), "tolerance": 0.0} | knobs,
            forward(call, batch),
            units=len(batch),
            score=accuracy(call, *test),
            samples=size**2,
            redundancy=None if series == BASELINE else 1 - (size / side) ** 2,
        )

    for done, seed in enumerate(plan.seeds):
        network, single = fitted(seed, any_size), fitted(seed, None)
        add(BASELINE, side, at(single, side))
        for size in falling:
            add(TECHNIQUE, size, at(network, size))
            add(RECALIBRATED, size, at(network, size, anew=True))
        whole, adaptive = at(network, side), technique.apply(network, tolerance=TOLERANCE)
        forward(adaptive.target, batch)()
        chosen = adaptive.trace["size"][0]
        add(TECHNIQUE, chosen, adaptive.target, scale=1.0, tolerance=TOLERANCE)
        for size in falling[1:]:
            add(CROPPED, size, lambda x, whole=whole, size=size: whole(cropped(x, size)))  # type: ignore[misc]
            add(ONE_SIZE, size, at(single, size))
            add(ONE_SIZE_RECALIBRATED, size, at(single, size, anew=True))
        study.progress("trained", done + 1, len(plan.seeds))
    study.measure()
    nulls = {"pixels in random order": shuffled_pixels(batch), "white noise": white_noise(batch)}
    study.prepare("training", "training the network, in as many steps at one size as at several", held="shared")
    study.prepare("calibration", "recalibrating the batch norms of two controls", held="shared")
    return study.record(
        data=f"{TITLES[plan.data]}, enlarged to {side} pixels: {len(parts.train.x):,} to train, "
        f"{len(test.x):,} to test",
        model=f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters, trained at 32 to {side} pixels",
        unit="one image, in a batch of 32",
        knobs=("scale", "tolerance"),
        metric="accuracy",
        controls=CONTROLS,
        redundancy=measured(
            [technique.measure(network, image[None]) for image in batch],
            {null: neighbour_similarity(x).mean().item() for null, x in nulls.items()},
            interval=over_items,
        ),
        notes=(
            f"The images were enlarged: all but {TOLERANCE} of their variance fits into a side of {chosen} pixels.",
            "Each batch of the training is of another size, and all sizes share the statistics of batch norm.",
            "Layer scale starts at 0.1 instead of 1e-5, for the training is short.",
        ),
        extra={"fitted side": float(chosen)},
    )


def any_size(x: Tensor, draws: torch.Generator) -> Tensor:
    """A batch of square images at a size drawn at random."""
    sizes = smaller_sizes((x.shape[-2], x.shape[-1]))
    return coarsen(x, sizes[int(torch.randint(len(sizes), (), generator=draws))])


# --------------------------------------------------------------------------------------------------------------------
# Latency of networks of full size

Networks = Mapping[str, Callable[[], nn.Module]]
"""Name -> what builds a network with random weights, whose `fuse()` makes its form for deployment."""
MOBILENETS: Networks = {"MobileNetV2 x1.0": partial(MobileNetV2, 1.0), "MobileNetV2 x1.4": partial(MobileNetV2, 1.4)}
FORMS = {
    "compiled": "batch norm folded, by torch.compile with frozen weights (inductor, C++)",
    "eager": "batch norm folded, weights channels last, run by torch operator by operator",
}


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(Plan):
    own: tuple[str, ...]
    """Networks of the technique."""
    side: int = 224
    compile: bool = True
    pairs: int = 101
    """Rounds of a network beside timm's alone, for the two differ by little."""


def full_size(own: Networks) -> dict[str, LatencyPlan]:
    """The plans of both budgets for the networks of a technique."""
    full = LatencyPlan(repetitions=31, own=tuple(own))
    return {"full": full, "smoke": replace(full, repetitions=3, own=full.own[:1], side=64, compile=False)}


Calls = dict[tuple[str, str], Callable[[], object]]
"""Network and form -> its call."""


def latency(
    study: Study[LatencyPlan], own: Networks, others: Networks, baseline: str, timm: Mapping[str, str]
) -> Record:
    """Parameters, MACs and wall-clock of whole networks on one photo, all variants in one interleaved run.

    `baseline`: one of `MOBILENETS`. `timm`: network of `own` -> name of the same one in timm, timed beside it where
    timm is installed; the ratio of the two comes from further rounds of them alone.
    """
    plan = study.plan
    _, photos = images.photos(plan.side)
    x = imagenet_normalise(photos[:1]).to(study.device)
    compiles = plan.compile and any(map(shutil.which, ("g++", "clang++")))
    calls: Calls = {}
    parameters: dict[str, float] = {}

    def add(name: str, network: nn.Module) -> None:
        network.requires_grad_(False).to(study.device)
        parameters[name] = sum(p.numel() for p in network.parameters()) / 1e6
        if compiles:
            calls[name, "compiled"] = forward(compiled(copy.deepcopy(network), x), x)
        last = torch.channels_last
        calls[name, "eager"] = forward(network.to(memory_format=last), x.contiguous(memory_format=last))

    rivals = {baseline: MOBILENETS[baseline], **MOBILENETS, **others}
    for name, build in (rivals | {name: own[name] for name in plan.own}).items():
        add(name, seeded(0, build).eval().fuse())  # type: ignore[operator]
        study.progress("built", len(parameters), len(rivals) + len(plan.own))
    theirs, missing = {}, []
    for name, known_as in timm.items() if compiles else ():
        if (network := timm_network(known_as)) is None:
            missing.append(known_as)
        else:
            theirs[name] = f"timm's {known_as}"
            add(theirs[name], network)
    costs = timed(calls, repetitions=plan.repetitions, threads=study.context.threads)
    forms = [form for form in FORMS if (baseline, form) in costs]
    study.add(BASELINE, quality=Interval(value=parameters[baseline]), cost=costs[baseline, forms[0]])
    for (name, form), cost in costs.items():
        series = TECHNIQUE if name in plan.own else name
        study.add(series, {"model": name, "form": form}, quality=Interval(value=parameters[name]), cost=cost)
    phones = dict.fromkeys(rivals, "Another network for phones, in the same interleaved run.")
    about = "The same network as timm builds it, with two heads and batch norm, which the compiler folds."
    noise = neighbour_similarity(uniform_noise(photos)).mean().item()
    return study.record(
        data=f"one photo of scikit-image, {plan.side} x {plan.side} pixels",
        model="networks with random weights: the time and the MACs are those of trained ones",
        unit="one image",
        knobs=("model", "form"),
        metric="parameters in millions",
        higher_is_better=False,
        controls=phones | dict.fromkeys(theirs.values(), about),
        redundancy=Measured(
            **dict(over_items(neighbour_similarity(photos).tolist())),
            measure="likeness of neighbouring pixels",
            null={"white noise": noise},
        ),
        notes=(
            f"The baseline is {baseline}, {forms[0]}. {'; '.join(f'{f}: {FORMS[f]}' for f in reversed(forms))}.",
            (
                "These ratios are of this CPU and this compiler. That such networks are as fast as MobileNetV2 was "
                "said of a phone and its compiler, an iPhone 12 and CoreML; without a device and a compiler it says "
                "nothing."
            ),
            "The quality is the exact number of parameters of the form for deployment; accuracy is not measured.",
            *(f"Not timed, for timm or what it imports is not installed: timm's {name}." for name in missing),
        ),
        tables={"time ratios": _ratios(study, calls, costs, theirs, forms[0])},
    )


def _ratios(
    study: Study[LatencyPlan], calls: Calls, costs: Mapping[tuple[str, str], Cost], theirs: Mapping[str, str], best: str
) -> Table:
    """Time of every network over each MobileNetV2's, and over that of the same network of timm."""
    rows = [
        [name, mobile, form, costs[mobile, form].speed_up_over(cost)]
        for (name, form), cost in costs.items()
        for mobile in MOBILENETS
        if (mobile, form) in costs and name not in (mobile, *theirs.values())
    ]
    for name, other in theirs.items():
        pair = {who: calls[who, best] for who in (name, other)}
        times = repeat(pair, repetitions=study.plan.pairs, threads=study.context.threads)
        rows.append([name, other, best, speed_up(times[name], times[other])])
    about = "Time of a network over that of another in the same form: median over paired rounds."
    return table(about, ("network", "over", "form", "ratio"), rows)


def timed(calls: Calls, *, repetitions: int, threads: int) -> dict[tuple[str, str], Cost]:
    """Cost of each network and form. The counter does not see into compiled code, so it counts the eager form."""
    import torch._dynamo  # slow to import, and needed here only

    eager = {name: call for (name, form), call in calls.items() if form == "eager"}
    counted = measure_calls(eager, units=dict.fromkeys(eager, 1), repetitions=1, threads=threads)
    numbered = {str(number): key for number, key in enumerate(calls)}
    with torch._dynamo.config.patch(error_on_recompile=True):  # nothing is compiled while the clock runs
        times = repeat({n: calls[key] for n, key in numbered.items()}, repetitions=repetitions, threads=threads)
    return {key: replace(counted[key[0]], samples=tuple(times[number])) for number, key in numbered.items()}


def compiled(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The network by torch.compile with constant weights, compiled for the shape of `x`."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True, compile_threads=1), torch.no_grad():
        network(x)  # timm's networks keep what they look up, and would be compiled again for it
        function: Callable[[Tensor], Tensor] = torch.compile(network)
        function(x)
    return function
