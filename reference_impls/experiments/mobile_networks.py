"""What the experiments of both EfficientFormers share.

- Cases for the conformance checks.
- `resolution`: a small network, trained, then run on fewer pixels; against cropping, and weights that saw one size.
- `latency`: whole networks beside MobileNetV2 on one thread, as torch runs them and compiled.
"""

from __future__ import annotations

import copy
import importlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.accounting.timing import repeat, speed_up, wall_time
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.data import images
from reference_impls.experiments.harness import (
    Context,
    Cost,
    fork_seed,
    measure_arms,
    over_items,
    over_seeds,
    predict,
    record,
    train,
    trained,
)
from reference_impls.layers.norm import recalibrate
from reference_impls.layers.weights import randomise_parameters
from reference_impls.models.mobilenet_v2 import MobileNetV2
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import coarsen, coarsest
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.efficientformer.skeleton import ResolutionTechnique, TwoHeads, smaller_sizes


class NetworkCases(Cases):
    """A small network on images without detail, of noise, and of coarse noise."""

    def __init__(self, technique: ResolutionTechnique, build: Callable[[], TwoHeads], side: int) -> None:
        self.technique, self.make, self.side = technique, build, side

    def target(self, seed: int) -> TwoHeads:
        """The network with random weights, in evaluation mode."""
        with fork_seed(seed):
            return randomise_parameters(self.make()).eval()

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, self.side, self.side, generator=generator)
        if kind == "redundant":
            images = images[:, :, :1, :1].expand_as(images).clone()
        elif kind == "typical":
            images = nn.functional.interpolate(images[:, :, : self.side // 2, : self.side // 2], size=(self.side,) * 2)
        return Case(self.target(seed).to(device), images.to(device), run)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        generator = torch.Generator().manual_seed(seed)
        for cells in (4, 16, 64):
            images = torch.randn(2, 3, cells, cells, generator=generator, dtype=torch.float64).to(device)
            images = nn.functional.interpolate(images, size=(128, 128), mode="bilinear")
            for tolerance in (0.02, 0.2):
                truth, found = by_hand(images, tolerance), coarsest(images, smaller_sizes((128, 128)), tolerance)
                yield Expectation(f"size for {cells} cells", torch.tensor(truth), torch.tensor(found[0]))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        plain = self.build("redundant", seed, device).inputs
        yield Expectation("the colour of plain images", plain[..., :64, :64], coarsen(plain, (64, 64)))
        fused = self.technique.apply(case.target).target
        yield Expectation("logits of the fused network", run(case.target, case.inputs), run(fused, case.inputs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        net, x = case.target, case.inputs
        bad = x.clone()
        bad[0, 1, 5, 5] = torch.nan
        apply: Callable[..., Any] = self.technique.apply
        yield Invalid("an image of rank 3", lambda: run(net, x[0]), "must have shape (B, 3, H, W)")
        yield Invalid("one channel", lambda: run(net, x[:, :1]), "must have shape (B, 3, H, W)")
        yield Invalid("integer images", lambda: run(net, x.long()), "floating point")
        yield Invalid("a side of 48", lambda: run(net, x[..., :48, :48]), "multiple of 32")
        yield Invalid("NaN where detail is measured", lambda: run(apply(net, tolerance=0.1).target, bad), "not finite")
        yield Invalid("no pixel", lambda: apply(net, scale=0.0), "scale must be")
        yield Invalid("a tolerance above 1", lambda: apply(net, tolerance=2.0), "tolerance must be")
        yield Invalid("fuse by name", lambda: apply(net, fuse="yes"), "True or False")
        training = self.target(0).train()
        yield Invalid("a network that trains", lambda: apply(training), "in evaluation mode")


@torch.no_grad()
def run(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (B, classes) of images (B, 3, H, W)."""
    return network(images)


def by_hand(images: Tensor, tolerance: float) -> int:
    """The side that `coarsest` finds for square images of 128 pixels, image by image and channel by channel."""
    for side in (32, 64, 96):
        enough = True
        for image in images:
            back = nn.functional.interpolate(
                nn.functional.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True),
                size=(128, 128),
                mode="bilinear",
            )[0]
            lost = sum(float((a - b).pow(2).sum()) for a, b in zip(image, back, strict=True))
            total = sum(float((a - a.mean()).pow(2).sum()) for a in image)
            enough = enough and lost <= tolerance * total
        if enough:
            return side
    return 128


# --------------------------------------------------------------------------------------------------------------------
# A small trained network on fewer pixels


def enlarged(x: Tensor, side: int) -> Tensor:
    """Grey images (B, 1, H, W) resized to `side` pixels and spread to about [-1, 1]."""
    return nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False) * 2 - 1


def cropped(x: Tensor, side: int) -> Tensor:
    """The central squares of images: (B, C, side, side)."""
    cut = (x.shape[2] - side) // 2
    return x[..., cut : cut + side, cut : cut + side]


def resolution(
    ctx: Context,
    technique: ResolutionTechnique,
    build: Callable[[int], TwoHeads],
    name: str,
    *,
    scenario: str,
    title: str,
    split: images.Split,
    data: str,
    side: int,
    epochs: int,
    seeds: Sequence[int],
) -> Record:
    """Accuracy, MACs and time of a trained network that sees its images at `side` pixels or at fewer.

    `build(side)` makes the network for one channel and 10 classes. It is trained on images of random size, each batch
    at another; the baseline is the same network trained and run at the full size. Controls at the same number of
    pixels: batch norms estimated anew for that size, images cropped instead of shrunk, and the baseline's weights on
    the smaller images.
    """
    x_train, y_train, x_test, y_test = split
    sides = range(32, side, 32)
    x = enlarged(x_test, side).to(ctx.device)
    accuracy: dict[str, list[float]] = {}

    def any_size(x: Tensor, generator: torch.Generator) -> Tensor:
        return coarsen(x, smaller_sizes((side, side))[int(torch.randint(len(sides) + 1, (), generator=generator))])

    def fit(seed: int, *, sizes: bool) -> nn.Module:
        spec = {"side": side, "images": len(x_train), "epochs": epochs, "seed": seed, "config": build(side).config}
        learn = partial(train, epochs=epochs, seed=seed, batch_size=64, augment=any_size if sizes else None)
        with fork_seed(seed):
            network = trained(
                f"{name}-resolution",
                spec | {"sizes": sizes},
                partial(build, side),
                lambda network: learn(network, enlarged(x_train, side), y_train),
            )
        return network.to(ctx.device)

    def anew(network: nn.Module, size: int) -> nn.Module:
        fresh = copy.deepcopy(network)
        recalibrate(fresh, coarsen(enlarged(x_train[:512], side).to(ctx.device), (size, size)))
        return fresh

    for n, seed in enumerate(seeds):
        network, single = fit(seed, sizes=True), fit(seed, sizes=False)
        handles = {f"one size, {s}": technique.apply(single, scale=s / side) for s in (side, *sides)}
        handles |= {f"seen at {s}": technique.apply(network, scale=s / side) for s in (side, *sides)}
        handles |= {f"anew at {s}": technique.apply(anew(network, s), scale=s / side) for s in (side, *sides)}
        handles |= {f"one size, anew at {s}": technique.apply(anew(single, s), scale=s / side) for s in sides}
        handles["fitted"] = technique.apply(network, tolerance=0.02)
        arms: dict[str, Callable[[Tensor], Tensor]] = {label: handle.target for label, handle in handles.items()}
        arms |= {f"cropped to {s}": _on_crops(handles[f"seen at {side}"].target, s) for s in sides}
        for label, arm in arms.items():
            hits = predict(arm, x).argmax(1).cpu() == y_test
            accuracy.setdefault(label, []).append(hits.float().mean().item())
        ctx.progress("trained", n + 1, len(seeds))

    batch = x[:32]
    costs = measure_arms(
        {label: partial(run, arm, batch) for label, arm in arms.items()},
        units=len(batch),
        repetitions=3 if ctx.smoke else 15,
        threads=ctx.threads,
    )

    def point(label: str, seen: int, tolerance: float = 0.0) -> Point:
        knobs = {"scale": 1.0 if tolerance else round(seen / side, 3), "tolerance": tolerance}
        quality = over_seeds("accuracy", accuracy[label])
        return costs[label].point(knobs, quality, samples=seen**2, redundancy=1 - (seen / side) ** 2)

    run(handles["fitted"].target, batch)
    fitted_side = handles["fitted"].trace["size"][0]
    measured = technique.measure(network, batch)
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(0))
    shuffled = batch.flatten(2)[..., order.to(batch.device)].view_as(batch)
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    each = over_items(measured.measure, neighbour_similarity(batch).tolist())
    falling = tuple(reversed(sides))
    return record(
        ctx,
        technique=technique.id,
        scenario=scenario,
        title=title,
        data=data,
        model=f"{name}, {sum(p.numel() for p in network.parameters()):,} parameters, trained at 32 to {side} pixels",
        unit="one image, in a batch of 32",
        knobs=("scale", "tolerance"),
        baseline=costs[f"one size, {side}"].arm(over_seeds("accuracy", accuracy[f"one size, {side}"]), samples=side**2),
        points=[
            *(point(f"seen at {s}", s) for s in (side, *falling)),
            point("fitted", fitted_side, 0.02),
        ],
        controls=[
            Control(
                name="batch norm anew",
                about="The same weights, with batch norm estimated anew on 512 training images of the size seen.",
                points=tuple(point(f"anew at {s}", s) for s in (side, *falling)),
            ),
            Control(
                name="cropped",
                about="As many pixels, cut out of the middle of the image at its own resolution instead.",
                points=tuple(point(f"cropped to {s}", s) for s in falling),
            ),
            Control(
                name="trained at one size",
                about="The baseline's weights, which saw one size only, on fewer pixels.",
                points=tuple(point(f"one size, {s}", s) for s in falling),
            ),
            Control(
                name="trained at one size, batch norm anew",
                about="Those weights, with batch norm estimated anew on training images of the smaller size.",
                points=tuple(point(f"one size, anew at {s}", s) for s in falling),
            ),
        ],
        redundancy=Measured(
            measure=measured.measure,
            value=each.value,
            low=each.low,
            high=each.high,
            where=dict(measured.where),
            null={
                "pixels in random order": neighbour_similarity(shuffled).mean().item(),
                "white noise": neighbour_similarity(noise).mean().item(),
            },
        ),
        seeds=seeds,
        notes=(
            f"The images were enlarged: all but 0.02 of their variance fits into a side of {fitted_side} pixels.",
            "Each batch of the training is of another size, and all sizes share the statistics of batch norm.",
            "Layer scale starts at 0.1 instead of 1e-5, for the training is short.",
        ),
        extra={"side": tuple(map(float, (*sides, side))), "fitted_side": float(fitted_side)},
    )


def digits_resolution(
    ctx: Context, technique: ResolutionTechnique, build: Callable[[int], TwoHeads], name: str
) -> Record:
    """`resolution` on handwritten digits of 8 pixels, enlarged to 64."""
    x_train, y_train, x, y = images.digits()
    n, m = (400, 120) if ctx.smoke else (len(x_train), len(x))
    return resolution(
        ctx,
        technique,
        build,
        name,
        scenario="digits-resolution",
        title=f"{name} on digits, seen at fewer pixels",
        split=(x_train[:n], y_train[:n], x[:m], y[:m]),
        data=f"digits of scikit-learn, enlarged to 64 pixels: {n:,} to train, {m} to test",
        side=64,
        epochs=2 if ctx.smoke else 12,
        seeds=(0,) if ctx.smoke else (0, 1, 2),
    )


def fashion_resolution(
    ctx: Context, technique: ResolutionTechnique, build: Callable[[int], TwoHeads], name: str
) -> Record:
    """`resolution` on images of clothes of 28 pixels, enlarged to 96."""
    x_train, y_train, x, y = images.fashion_mnist()
    n, m = (640, 200) if ctx.smoke else (6000, 2000)
    return resolution(
        ctx,
        technique,
        build,
        name,
        scenario="fashion-resolution",
        title=f"{name} on images of clothes, seen at fewer pixels",
        split=(x_train[:n], y_train[:n], x[:m], y[:m]),
        data=f"Fashion-MNIST, enlarged to 96 pixels: {n:,} to train, {m:,} to test",
        side=96,
        epochs=1 if ctx.smoke else 8,
        seeds=(0,) if ctx.smoke else (0, 1, 2),
    )


def _on_crops(network: Callable[[Tensor], Tensor], side: int) -> Callable[[Tensor], Tensor]:
    return lambda x: network(cropped(x, side))


# --------------------------------------------------------------------------------------------------------------------
# Whole networks and the clock

FORMS = {
    "eager": "batch norm folded, weights channels last, run by torch operator by operator",
    "compiled": "batch norm folded, by torch.compile with frozen weights (inductor, C++)",
}

PHONE = (
    "These ratios are of this CPU and this compiler. That such networks are as fast as MobileNetV2 was said of a "
    "phone and its compiler, an iPhone 12 and CoreML; without a device and a compiler it says nothing."
)


@dataclass(frozen=True)
class Candidate:
    """A network to be timed: built with random weights, with a `fuse()` that makes its form for deployment."""

    label: str
    build: Callable[[], nn.Module]


MOBILENETS = (
    Candidate("MobileNetV2 x1.0", partial(MobileNetV2, 1.0)),
    Candidate("MobileNetV2 x1.4", partial(MobileNetV2, 1.4)),
)


def latency(
    ctx: Context,
    technique: ResolutionTechnique,
    own: Sequence[Candidate],
    others: Sequence[Candidate],
    baseline: Candidate,
    timm: Mapping[str, str],
    *,
    scenario: str,
    title: str,
) -> Record:
    """Parameters, MACs and wall-clock of whole networks on one photo, all arms in one interleaved run.

    `timm`: label of a network of `own` -> name of the same network in timm, timed beside it where timm is installed;
    the ratio of the two comes from further rounds of them alone.
    """
    side = 64 if ctx.smoke else 224
    _, photos = images.photos(side)
    x = imagenet_normalise(photos[:1]).to(ctx.device)
    forms = ["eager"] if ctx.smoke or not any(map(shutil.which, ("g++", "clang++"))) else list(FORMS)
    arms: dict[tuple[str, str], Callable[[], Tensor]] = {}
    parameters: dict[str, float] = {}

    def add(label: str, network: nn.Module) -> None:
        network.requires_grad_(False).to(ctx.device)
        parameters[label] = sum(p.numel() for p in network.parameters()) / 1e6
        if "compiled" in forms:
            arms[label, "compiled"] = partial(run, compiled(copy.deepcopy(network), x), x)
        last = torch.channels_last
        arms[label, "eager"] = partial(run, network.to(memory_format=last), x.contiguous(memory_format=last))

    candidates = {c.label: c for c in (baseline, *own, *others)}
    for n, candidate in enumerate(candidates.values()):
        with fork_seed(0):
            add(candidate.label, candidate.build().eval().fuse())
        ctx.progress("built", n + 1, len(candidates))
    theirs = {}
    for label, name in timm.items():
        if "compiled" in forms and (network := timm_network(name)) is not None:
            theirs[label] = f"timm's {name}"
            add(theirs[label], network)
    costs = timed(arms, repetitions=3 if ctx.smoke else 31, threads=ctx.threads)
    best = forms[-1]

    def points(label: str) -> list[Point]:
        return [
            cost.point({"model": label, "form": form}, quality(label))
            for (name, form), cost in costs.items()
            if name == label
        ]

    def quality(label: str) -> Quality:
        return Quality(metric="parameters in millions", value=parameters[label], higher_is_better=False)

    extra: dict[str, Any] = {}
    for (label, form), cost in costs.items():
        for mobile in MOBILENETS:
            if (mobile.label, form) in costs and label not in (mobile.label, *theirs.values()):
                ratio = speed_up(cost.samples, costs[mobile.label, form].samples)
                extra[f"time of {label} over {mobile.label}, {form}"] = (ratio.ratio, ratio.low, ratio.high)
    for label, name in theirs.items():
        pair = {who: arms[who, best] for who in (label, name)}  # alone and for longer, for they differ by little
        times = repeat(pair, repetitions=101, threads=ctx.threads)
        ratio = speed_up(times[label], times[name])
        extra[f"time of {label} over {name}, {best}"] = (ratio.ratio, ratio.low, ratio.high)
    photo = over_items("likeness of neighbouring pixels", neighbour_similarity(photos).tolist())
    noise = torch.rand(photos.shape, generator=torch.Generator().manual_seed(0))
    return record(
        ctx,
        technique=technique.id,
        scenario=scenario,
        title=title,
        data=f"one photo of scikit-image, {side} x {side} pixels",
        model="networks with random weights: the time and the MACs are those of trained ones",
        unit="one image",
        knobs=("model", "form"),
        baseline=costs[baseline.label, best].arm(quality(baseline.label)),
        points=[point for candidate in own for point in points(candidate.label)],
        controls=[
            Control(
                name=label,
                about="The same network as timm builds it, with two heads and batch norm, which the compiler folds."
                if label in theirs.values()
                else "Another network for phones, in the same interleaved run.",
                points=tuple(points(label)),
            )
            for label in [c.label for c in (baseline, *others)] + list(theirs.values())
        ],
        redundancy=Measured(
            measure=photo.metric,
            value=photo.value,
            low=photo.low,
            high=photo.high,
            null={"white noise": neighbour_similarity(noise).mean().item()},
        ),
        seeds=(0,),
        notes=(
            f"The baseline is {baseline.label}, {best}. " + "; ".join(f"{f}: {FORMS[f]}" for f in forms) + ".",
            PHONE,
            "The quality is the exact number of parameters of the form for deployment; accuracy is not measured.",
            "extra holds ratios of time: median over paired rounds and the ends of its 95 % interval.",
        ),
        extra=extra,
    )


def timed(
    arms: Mapping[tuple[str, str], Callable[[], object]], *, repetitions: int, threads: int
) -> dict[tuple[str, str], Cost]:
    """Cost of each arm (network, form). The counter does not see into compiled code, so it counts the eager form."""
    import torch._dynamo  # slow to import, and needed here only

    eager = {label: arm for (label, form), arm in arms.items() if form == "eager"}
    counted = measure_arms(eager, repetitions=1, threads=threads)
    labels = {", ".join(key): key for key in arms}
    with torch._dynamo.config.patch(error_on_recompile=True):  # nothing is compiled while the clock runs
        times = repeat({name: arms[key] for name, key in labels.items()}, repetitions=repetitions, threads=threads)
    return {
        key: replace(counted[key[0]], wall_ms=wall_time(times[name]), samples=tuple(times[name]))
        for name, key in labels.items()
    }


def compiled(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The network by torch.compile with constant weights, compiled for the shape of `x`."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True, compile_threads=1), torch.no_grad():
        network(x)  # timm's networks keep what they look up, and would be compiled again for it
        function = torch.compile(network)
        function(x)
    return function


def timm_network(name: str, **options: Any) -> nn.Module | None:
    """A network of timm with random weights, in evaluation mode; None where timm is not installed.

    timm imports torchvision for its data loaders, which are not needed here: where torchvision is absent, mocks stand
    in for it during the import.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        torchvision = MagicMock()
        torchvision.ops.misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
        parts = ("datasets", "ops", "ops.misc", "transforms", "transforms.functional")
        mocks = {"torchvision": torchvision} | {f"torchvision.{p}": attrgetter(p)(torchvision) for p in parts}
        for module in [m for m in sys.modules if m.partition(".")[0] == "timm"]:
            del sys.modules[module]  # what the failed import left behind
        sys.modules.update(mocks)
        try:
            timm = importlib.import_module("timm")
        except ImportError:
            return None
        finally:
            for module in mocks:
                del sys.modules[module]
    return timm.create_model(name, **options).eval()
