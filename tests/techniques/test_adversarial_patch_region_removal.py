"""The defence beyond the checks: proposals, verification, recovery, and real patches on the real detector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.benchmarks.detection_stream import attack
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.data import video
from reference_impls.layers.boxes import Detections, matched, nothing, suppressed
from reference_impls.models.yolov3_tiny import detections, yolov3_tiny
from reference_impls.techniques.adversarial_patch_region_removal import (
    AdversarialPatchRegionRemoval,
    calibrated,
    fill,
    important,
    local_maxima,
    proposed,
    unstable,
    window_sums,
)

DEFENCE = AdversarialPatchRegionRemoval()
SMALL = {"window": 8, "least": 0.02, "share": 0.002}


class SpotDetector(nn.Module):
    """Finds red squares, and is blind to those that have much green in the neighbourhood: a flaw to attack."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Conv2d(4, 1, 21, padding=10)
        with torch.no_grad():
            self.shallow[0].weight.zero_().view(4, 3)[0, 0] = 1
            self.shallow[0].weight.view(4, 3)[1, 1] = 5
            self.shallow[0].bias.zero_()
            self.head.weight.zero_()[0, 0, 9:12, 9:12] = 20 / 9
            self.head.weight[0, 1] = -0.15
            self.head.bias.fill_(-10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shallow(x))

    def decode(self, raw: Tensor, threshold: float = 0.5) -> list[Detections]:
        found = []
        for scores in raw.float().sigmoid():
            y, x = (scores[0] >= threshold).nonzero().unbind(1)
            boxes = torch.stack((2 * x - 5, 2 * y - 5, 2 * x + 6, 2 * y + 6), 1).float()
            found.append(suppressed(Detections(boxes, scores[0, y, x], torch.zeros(len(y), dtype=torch.long)), 0.1))
        return found


def scene(side: int = 64, patch: tuple[int, int] | None = (20, 34)) -> Tensor:
    """A red square on dark noise, and a bright green patch beside it: (1, 3, side, side)."""
    frame = 0.01 * torch.rand(1, 3, side, side, generator=generator(0))
    frame[0, 0, 18:26, 18:26] = 1
    if patch:
        y, x = patch
        frame[0, :, y : y + 8, x : x + 8] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    return frame


class DefenceCases(Cases):
    """A detector with a flaw, on a scene with a patch, a frame of nothing but a patch, and noise."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frame = scene()
        if kind == "redundant":
            frame = torch.zeros(1, 3, 64, 64)
            frame[0, 1, 20:28, 34:42] = 1
        elif kind == "null":
            frame = torch.rand(1, 3, 192, 192, generator=generator(seed))
        return Case(SpotDetector().eval().to(device), frame.to(device), lambda target, x: target(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        marks = torch.randint(0, 4, (9, 12), generator=generator(seed), dtype=torch.int32)
        brute = torch.stack([torch.stack([marks[y : y + 3, x : x + 3].sum() for x in range(10)]) for y in range(7)])
        yield Expectation("window sums, by brute force", brute, window_sums(marks, 3).long())
        sums = torch.tensor([[1, 9, 2, 0, 7], [0, 3, 0, 0, 8], [0, 0, 5, 0, 0]])
        found = torch.tensor([place for _, place in local_maxima(sums, 2, 5, 9)])
        yield Expectation("maxima that do not overlap, by hand", torch.tensor([[0, 1], [1, 4], [2, 2]]), found)
        activations = torch.arange(70.0).view(2, 5, 7)
        expected = (activations >= 42).sum(0).int()  # of 0, 7, ... 63 the quantile 0.7 is 42
        yield Expectation("important neurons, by hand", expected, important(activations, 0.3))
        activations = SpotDetector().shallow(scene())
        best = proposed(activations, scene(), 0.002, 8, 0.02, 1)
        yield Expectation("the patch is proposed", torch.tensor([[20, 34]]), torch.tensor(best))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        with DEFENCE.apply(case.target, **SMALL) as handle, torch.no_grad():
            result, frame = handle.target(case.inputs), case.inputs.clone()
            for y, x in handle.target.confirmed:
                frame[..., y : y + 8, x : x + 8] = 0.5
            yield Expectation("the result is that of the filled frame", case.target(frame), result)
            reference = handle.target.network.reference(case.inputs)
            both = handle.target.filled(reference, case.inputs, [(20, 34), (40, 4)])
            frame[..., 40:48, 4:12] = 0.5
            yield Expectation("two windows at once", case.target(frame), both)

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        bad = case.inputs.clone()
        bad[0, 0, 0, 0] = torch.nan
        network = DEFENCE.apply(case.target).target
        yield Invalid("a frame that is not finite", lambda: network(bad), "not finite")
        yield Invalid("two frames", lambda: network(bad.repeat(2, 1, 1, 1)), "(1, C, H, W)")
        yield Invalid("no detector", lambda: DEFENCE.apply(nn.Conv2d(3, 4, 3).eval()), "decode")
        yield Invalid("a wide margin", lambda: DEFENCE.apply(case.target, margin=0.6), "margin must be below")


CASES = DefenceCases()


def box(*values: float, score: float = 0.9) -> Detections:
    return Detections(torch.tensor([values]), torch.tensor([score]), torch.zeros(1, dtype=torch.long))


def test_the_hidden_square_is_found_again_and_nothing_else_is_filled() -> None:
    detector, clean, attacked = SpotDetector().eval(), scene(patch=None), scene()
    with torch.no_grad():
        truth, blind = (detector.decode(detector(x))[0] for x in (clean, attacked))
    assert (len(truth.scores), len(blind.scores)) == (1, 0)
    defence = DEFENCE.apply(detector, **SMALL).target
    found = detector.decode(defence(attacked))[0]
    assert matched(found, truth).tolist() == [0]
    assert defence.confirmed == [(20, 34)]
    with torch.no_grad():
        assert torch.equal(defence(clean), detector(clean))
    assert defence.confirmed == []


def test_a_patch_that_moves_is_found_where_it_went() -> None:
    detector = SpotDetector().eval()
    activations = [detector.shallow(scene(patch=place)) for place in ((20, 34), (24, 40))]
    places = [proposed(a, scene(), 0.002, 8, 0.02, 1)[0] for a in activations]
    assert places == [(20, 34), (24, 40)]


def test_frames_smaller_than_a_window_have_no_proposals() -> None:
    assert proposed(torch.rand(1, 4, 8, 8), torch.rand(1, 3, 16, 16), 0.01, 24, 0.0, 8) == []


def test_what_counts_as_unstable() -> None:
    region = torch.tensor([50.0, 50, 60, 60])
    assert unstable(nothing(), box(0, 0, 10, 20), region, 0.5, 0.2) == 1
    assert unstable(box(0, 0, 10, 20), nothing(), region, 0.5, 0.2) == 1
    assert unstable(box(45, 45, 65, 85), nothing(), region, 0.5, 0.2) == 0, "the window hides it"
    assert unstable(box(0, 0, 10, 20, score=0.4), box(0, 0, 10, 20), region, 0.5, 0.2) == 0, "it hardly moved"
    assert unstable(nothing(), nothing(), region, 0.5, 0.2) == 0


def test_inpainting_meets_all_four_sides() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40) + torch.linspace(0, 1, 40)[:, None]
    inside = fill(ramp, (10, 15), (8, 12), "inpaint")
    torch.testing.assert_close(inside, ramp[:, :, 10:18, 15:27], atol=1e-6, rtol=0)
    assert fill(ramp, (0, 0), (8, 8), "inpaint").isfinite().all()


def test_the_threshold_keeps_to_its_budget() -> None:
    defence = DEFENCE.apply(SpotDetector().eval(), window=8).target
    frames = [torch.rand(1, 3, 64, 64, generator=generator(n)) for n in range(10)]
    for budget in (0.2, 1.0, 2.0):
        least = calibrated(defence.network, frames, defence.knobs, budget)
        tried = DEFENCE.apply(SpotDetector().eval(), window=8, least=least).target
        found = 0
        for frame in frames:
            tried(frame)
            found += len(tried.proposals)
        assert found <= round(budget * len(frames))


def attacked(wearer: int, size: int, frame: int = 0) -> tuple[Tensor, Tensor, attack.Patch]:
    patch = next(p for p in attack.stored() if (p.wearer, p.size) == (wearer, size))
    clean = video.clip(attack.CLIP, 1, start=patch.start + frame)
    return clean, attack.pasted(clean, patch.pixels, patch.places[frame]), patch


def test_a_stored_patch_hides_its_wearer_and_its_controls_do_not(asset) -> None:
    for name in ("yolov3-tiny", "opencv-doc"):
        asset(name)
    model = yolov3_tiny()
    clean, worn, patch = attacked(5, 24)
    others = [attack.pasted(clean, one.pixels, patch.places[0]) for one in patch.controls().values()]
    with torch.no_grad():
        truth, found, *controls = (detections(model(x))[0] for x in (clean, worn, *others))
    assert (matched(truth, found) < 0).sum() == 1
    assert all((matched(truth, one) >= 0).all() for one in controls)
    defence = DEFENCE.apply(model, fill="inpaint").target
    defended = detections(defence(worn))[0]
    assert (matched(truth, defended) >= 0).all()
    (y, x), (py, px) = defence.confirmed[0], patch.places[0]
    assert max(abs(y - py), abs(x - px)) <= 12


@pytest.mark.slow
def test_a_patch_is_derived_anew(asset) -> None:
    for name in ("yolov3-tiny", "opencv-doc"):
        asset(name)
    model = yolov3_tiny().requires_grad_(False)
    again = attack.optimised(model, attack.wearers(model, 1)[0], 0, 24, steps=40)
    clean, grey = video.clip(attack.CLIP, 1, start=again.start), again.controls()["grey"]
    with torch.no_grad():
        wearer, worn, control = (
            detections(model(x))[0].of(torch.tensor([0]))
            for x in (clean, *(attack.pasted(clean, one.pixels, one.places[0]) for one in (again, grey)))
        )
    assert matched(control, wearer).tolist() == [0]
    assert matched(worn, wearer).tolist() == [-1], "somebody else is now the surest"


def test_windows_filled_at_once_are_verified_alone_only_where_that_changes_something() -> None:
    """A patch is still found; but where a window hides who the patch hid, nothing changes, and it is not."""
    knobs = SMALL | {"least": 0.0, "windows": 8}
    for frame, alone, at_once in ((scene(), 1, 1), (scene(patch=None), 1, 1), (scene(96), 1, 0)):
        found = []
        for jointly in (False, True):
            detector = SpotDetector().eval()
            defence = DEFENCE.apply(detector, **knobs, jointly=jointly).target
            defence._together_cheaper = lambda reference, places: True
            found.append(len(detector.decode(defence(frame))[0].scores))
        assert found == [alone, at_once]
