"""Incremental inference beyond the checks: bit equality, halos, other people's operators, and counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, UnsupportedHost, generator
from reference_impls.hosts.operators import Axis
from reference_impls.models.yolov3_tiny import yolov3_tiny
from reference_impls.study import seeded
from reference_impls.techniques.incremental_region_inference import (
    IncrementalRegionInference,
    aligned,
    changed_box,
    grouped,
    incremental,
)

TECHNIQUE = IncrementalRegionInference()


class SmallDetector(nn.Module):
    """The shape of YOLOv3-tiny in small: every operator that it has, at a few channels, with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1))
        self.deep = nn.Sequential(
            *(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=2, dilation=2), nn.ReLU()),
            *(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(2, 1), nn.Conv2d(16, 8, 1)),
        )
        self.fine = nn.Conv2d(16, 4, 3, padding=1)
        self.coarse = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.stem(x)
        deep = self.deep(middle)
        return self.coarse(deep), self.fine(torch.cat((F.interpolate(deep, scale_factor=2), middle), 1))


class Joined(nn.Module):
    """Both heads of a detector as one tensor (B, n)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head.flatten(1) for head in self.model(x)], 1)


def dyadic(model: nn.Module) -> nn.Module:
    """Weights that are multiples of 1 / 16: sums of their products are exact in double precision, in any order."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 64).round() / 16)
    return model.double().eval()


def with_windows(frame: Tensor, crops: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """A frame (1, C, H, W) with each crop at its place: (K, C, H, W)."""
    out = frame.repeat(len(places), 1, 1, 1)
    for one, crop, (y, x) in zip(out, crops, places, strict=True):
        one[:, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
    return out


class IncrementalCases(Cases):
    """A small detector on a frame with variants: of one window each, copies, and frames with nothing in common."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = generator(seed)
        frames = torch.rand(4, 3, 64, 64, generator=draws)
        if kind == "redundant":
            frames = frames[:1].repeat(4, 1, 1, 1)
        elif kind == "typical":
            crops = torch.rand(3, 3, 9, 12, generator=draws)
            frames = torch.cat((frames[:1], with_windows(frames[:1], crops, [(0, 0), (30, 21), (55, 52)])))
        model = seeded(seed, lambda: Joined(SmallDetector())).eval()
        return Case(model.to(device), frames.to(device), lambda target, x: target(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for axis, size in (
            (Axis(3, 1, 1, 1, 1), 9),
            (Axis(3, 2, 1, 1, 1), 9),
            (Axis(2, 2), 8),
            (Axis(3, 1, 2, 2, 2), 9),
        ):
            for low, high in ((0, 1), (4, 6), (size - 1, size)):
                outputs = axis.size_out(size)
                taps = range(0, axis.dilation * axis.kernel, axis.dilation)
                read = [{o * axis.stride - axis.padding + t for t in taps} for o in range(outputs)]
                hit = [o for o in range(outputs) if read[o] & set(range(low, high))]
                first, end = axis.reached(low, high, outputs)
                inside = all(first <= o < end for o in hit)
                tight = axis.dilation > 1 or not hit or (first, end) == (hit[0], hit[-1] + 1)
                yield Expectation(
                    f"{axis} reached from {low} to {high}", torch.tensor(True), torch.tensor(inside and tight)
                )
        yield Expectation("3 x 3 reaches one to each side", torch.tensor([3, 7]),
                          torch.tensor(Axis(3, 1, 1, 1, 1).reached(4, 6, 9)))  # fmt: skip
        yield Expectation("2 x 2 pooling halves", torch.tensor([1, 3]), torch.tensor(Axis(2, 2).reached(3, 6, 4)))
        frames = torch.zeros(2, 3, 8, 9)
        frames[1, 2, 3:5, 2:9] = 1
        yield Expectation("box of a change", torch.tensor([3, 2, 5, 9]), torch.tensor(changed_box(*frames)))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        with TECHNIQUE.apply(case.target) as handle, torch.no_grad():
            yield Expectation("results of a batch", case.target(case.inputs), handle.target(case.inputs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        handle, bad = TECHNIQUE.apply(case.target), case.inputs.clone()
        bad[1, 0, 0, 0] = torch.nan
        reference = handle.target.reference(case.inputs[:1])
        yield Invalid("frames of rank 3", lambda: handle.target(case.inputs[0]), "shape")
        yield Invalid("a pixel that is not finite", lambda: handle.target(bad), "not finite")
        yield Invalid("one frame to measure", lambda: TECHNIQUE.measure(case.target, case.inputs[:1]), "at least one")
        yield Invalid(
            "a crop beyond the border", lambda: reference.replaced(bad[:1, :, :9, :9] * 0, [(60, 0)]), "lie in"
        )
        yield Invalid("two references", lambda: handle.target.reference(case.inputs[:2]), "(1, C, H, W)")


CASES = IncrementalCases()
PLACES = [(0, 0), (17, 40), (54, 55), (31, 0)]


@pytest.mark.parametrize("size", [(10, 9), (1, 1), (33, 24)])
def test_variants_equal_full_passes_bit_for_bit_in_double_precision(size: tuple[int, int]) -> None:
    model = dyadic(seeded(0, SmallDetector))
    frame = (torch.rand(1, 3, 64, 64, generator=generator(1)).double() * 256).round() / 256
    crops = (torch.rand(4, 3, *size, generator=generator(2)).double() * 256).round() / 256
    places = [(min(y, 64 - size[0]), min(x, 64 - size[1])) for y, x in PLACES]
    found = incremental(model).reference(frame).replaced(crops, places)
    with torch.no_grad():
        assert all(map(torch.equal, found, model(with_windows(frame, crops, places))))


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_halo_one_position_short_breaks_the_equality(monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    model, frame = dyadic(seeded(0, SmallDetector)), torch.rand(1, 3, 64, 64, generator=generator(1)).double()
    network, crops = incremental(model), torch.zeros(1, 3, 10, 9, dtype=torch.float64)
    whole = Axis.reached

    def short(axis: Axis, low: int, high: int, outputs: int) -> tuple[int, int]:
        first, end = whole(axis, low, high, outputs)
        cut = int(axis.kernel > 1 and end - first > 2)
        return (first + cut, end) if side == "before" else (first, end - cut)

    monkeypatch.setattr(Axis, "reached", short)
    found = network.reference(frame).replaced(crops, [(20, 30)])
    with torch.no_grad():
        expected = model(with_windows(frame, crops, [(20, 30)]))
    assert not any(map(torch.equal, found, expected))


class Squeezed(nn.Module):
    """Operators with and without a rule: norms, a gate of the global average, residuals, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.pool, self.up = nn.AvgPool2d(2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        x = x + self.depthwise(x)
        x = self.pool(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        x = self.up(x)
        return {"map": x, "class": self.head(x.mean((2, 3)))}


def test_operators_without_a_rule_run_as_a_whole_and_stay_exact() -> None:
    model = seeded(3, Squeezed).double().eval()
    frame, crops = (torch.rand(1, 3, s, s, generator=generator(s)).double() for s in (32, 7))
    with torch.no_grad():
        found = incremental(model).reference(frame).replaced(crops, [(11, 5)])
        expected = model(with_windows(frame, crops, [(11, 5)]))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_windows_are_batched_and_counted() -> None:
    model = seeded(0, SmallDetector).eval()
    frame, crops = torch.rand(1, 3, 96, 96, generator=generator(0)), torch.zeros(3, 3, 8, 8)
    reference = incremental(model).reference(frame)
    with count() as tally:
        reference.replaced(crops, [(8, 8), (40, 16), (64, 80)])
    closed = sum(layer["macs_per_position"] * layer["computed"] for layer in reference.layers.values())
    with count() as dense, torch.no_grad():
        model(frame)
    assert tally.macs == closed < 0.35 * 3 * dense.macs
    first = next(iter(reference.layers.values()))
    assert first["computed"] == 3 * 10 * 10  # 8 + 2 positions of halo
    assert tally.by_operator["aten.convolution.default"] == tally.macs


def test_real_weights_differ_only_by_the_order_in_which_the_library_sums(asset) -> None:
    """In double precision the detector's own weights leave about 1e-15 of the largest value, and not zero.

    torch multiplies matrices there, and the order of their sums follows from how many columns they have, so a
    convolution of a window is not, bit for bit, a window of the convolution. No halo can change that; where sums are
    exact in any order (`dyadic`) both are equal.
    """
    asset("yolov3-tiny")
    model, frame = yolov3_tiny().double(), torch.rand(1, 3, 96, 128, generator=generator(0)).double()
    crops = torch.zeros(1, 3, 24, 24, dtype=torch.float64)
    found = incremental(model).reference(frame).replaced(crops, [(40, 56)])
    with torch.no_grad():
        expected = model(with_windows(frame, crops, [(40, 56)]))
    gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    assert gap <= 1e-14
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        windows = [torch.rand(1, w.shape[1], 12, 16, generator=generator(1)).double() for w in weights]
        alike = [
            torch.equal(F.conv2d(x[..., :n, :n], w), F.conv2d(x, w)[..., : n + 1 - w.shape[2], : n + 1 - w.shape[2]])
            for x, w in zip(windows, weights, strict=True)
            for n in (3, 4, 7)
        ]
    assert gap == 0 or not all(alike), "what differs is a convolution of the library, run alone"


def test_variants_run_in_groups_of_about_one_size_and_stay_exact() -> None:
    wide, small = [(9, 9), (9, 9)], [(2, 3), (4, 4)]
    assert grouped([wide, small, wide, small], [1000, 1000]) == [[1, 3], [0, 2]]
    assert grouped([wide, [(9, 8), (9, 9)]], [1000, 1000]) == [[0, 1]], "weights read anew would cost more"
    assert grouped([wide], [1000, 1000]) == [[0]]
    model = dyadic(seeded(0, SmallDetector))
    frame = (torch.rand(1, 3, 96, 96, generator=generator(1)).double() * 256).round() / 256
    places = [(0, 0), (40, 40), (87, 88), (30, 0), (41, 43)]
    crops = torch.zeros(5, 3, 9, 8, dtype=torch.float64)
    reference = incremental(model).reference(frame)
    extents = [reference.extents.of(place, (9, 8)) for place in places]
    groups = grouped(extents, [layer["macs_per_position"] for layer in reference.layers.values()])
    assert sorted(k for group in groups for k in group) == [0, 1, 2, 3, 4]
    with torch.no_grad():
        assert all(map(torch.equal, reference.replaced(crops, places), model(with_windows(frame, crops, places))))


def test_what_a_window_reaches_is_planned_as_it_is_computed() -> None:
    reference = incremental(seeded(0, SmallDetector).eval()).reference(torch.rand(1, 3, 96, 96))
    for place in ((0, 0), (37, 50), (88, 3)):
        before = {name: layer["computed"] for name, layer in reference.layers.items()}
        reference.replaced(torch.zeros(1, 3, 8, 8), [place])
        computed = [layer["computed"] - before[name] for name, layer in reference.layers.items()]
        assert computed == [h * w for h, w in reference.extents.of(place, (8, 8))]


def test_rectangles_of_one_size_hold_those_given_and_stay_on_the_map() -> None:
    places, size = aligned([[(0, 3), (7, 8)], [(1, 2), (6, 9)]], (8, 9))
    assert (places, size) == (((0, 1), (5, 6)), (3, 3))


class Noisy(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


def test_models_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(UnsupportedHost, match="eval mode"):
        incremental(SmallDetector())
    with pytest.raises(UnsupportedHost, match="random numbers"):
        incremental(Noisy(3, 4, 3).eval())


def test_eight_windows_of_the_real_detector_take_a_tenth_of_eight_passes(asset) -> None:
    asset("yolov3-tiny")
    model, frame = yolov3_tiny(), torch.rand(1, 3, 768, 768, generator=generator(0))
    reference = incremental(model).reference(frame)
    places = [(int(y), int(x)) for y, x in torch.randint(0, 736, (8, 2), generator=generator(1))]
    crops = torch.full((8, 3, 32, 32), 0.5)
    with count() as tally:
        found = reference.replaced(crops, places)
    assert tally.macs <= 0.2 * 8 * 9_483_485_184
    with torch.no_grad():
        one = model(with_windows(frame, crops[:1], places[:1]))
    for a, b in zip(found, one, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=0, atol=1e-4)
