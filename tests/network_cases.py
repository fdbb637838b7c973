"""Cases of both EfficientFormers: a small network on plain images, on smooth ones, and on noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.accounting.closed_form import Footprint, closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.over_resolution import coarsen, coarsest
from reference_impls.study import forward, seeded
from reference_impls.techniques.efficientformer.skeleton import ResolutionTechnique, TwoHeads, smaller_sizes
from tests.support import parameters

SIDE = 128


class NetworkCases(Cases):
    """`build` makes a network for images of 128 pixels."""

    def __init__(self, technique: ResolutionTechnique, build: Callable[[], TwoHeads]) -> None:
        self.technique, self.make = technique, build

    def target(self, seed: int) -> TwoHeads:
        """The network with random weights, in evaluation mode."""
        return seeded(seed, lambda: randomise_parameters(self.make())).eval()

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        images = torch.randn(2, 3, SIDE, SIDE, generator=generator(seed))
        if kind == "redundant":
            images = images[:, :, :1, :1].expand_as(images).clone()
        elif kind == "typical":
            images = F.interpolate(images[:, :, :4, :4], size=(SIDE, SIDE), mode="bilinear")
        return Case(self.target(seed).to(device), images.to(device), lambda network, x: network(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        def found(images: Tensor, tolerance: float) -> Tensor:
            return torch.tensor(coarsest(images.to(device), smaller_sizes((SIDE, SIDE)), tolerance))

        draws = generator(seed)
        for cells in (4, 16, 64):
            images = torch.randn(2, 3, cells, cells, generator=draws, dtype=torch.float64)
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
            for tolerance in (0.02, 0.2):
                side = brute_force_side(images, tolerance)
                yield Expectation(f"size for {cells} cells", torch.tensor((side, side)), found(images, tolerance))
        board = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 * 2.0 - 1  # the finest detail that there is
        for name, image, side in (("plain images", torch.ones_like(board), 32), ("a chessboard", board, SIDE)):
            yield Expectation(f"size for {name}", torch.tensor((side, side)), found(image.expand(1, 3, -1, -1), 0.02))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        plain = self.build("redundant", seed, device).inputs
        yield Expectation("the colour of plain images", plain[..., :64, :64], coarsen(plain, (64, 64)))
        fused = self.technique.apply(case.target).target
        logits = forward(case.target, case.inputs)()
        yield Expectation("logits of the fused network", logits, forward(fused, case.inputs)())

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        net, x = case.target, case.inputs
        bad = x.clone()
        bad[0, 1, 5, 5] = torch.nan
        training = self.target(0).train()
        coarse = self.technique.apply(net, tolerance=0.1).target
        yield Invalid("an image of rank 3", forward(net, x[0]), "must have shape (B, 3, H, W)")
        yield Invalid("one channel", forward(net, x[:, :1]), "must have shape (B, 3, H, W)")
        yield Invalid("integer images", forward(net, x.long()), "floating point")
        yield Invalid("a side of 48", forward(net, x[..., :48, :48]), "multiple of 32")
        yield Invalid("NaN where detail is measured", forward(coarse, bad), "not finite")
        yield Invalid("a network that trains", lambda: self.technique.apply(training), "in evaluation mode")


def check_counts(version: ModuleType, variant: str, both: int, one: int, deployed: int, macs: int) -> None:
    """Parameters with both heads, with one and for deployment, and MACs at 224 pixels, of a published network."""
    with torch.device("meta"):
        network = version.build(variant).eval()
        with count() as tally:
            logits = forward(network, torch.empty(1, 3, 224, 224))()
        assert parameters(version.build(variant, distillation=False)) == one
        assert parameters(network.fuse()) == deployed
    assert logits.shape == (1, 1000)
    assert tally.macs == macs
    assert closed_form(network, (3, 224, 224)) == Footprint(both, macs)
    assert parameters(network) == both


def brute_force_side(images: Tensor, tolerance: float) -> int:
    """The side that `coarsest` finds for square images of 128 pixels, image by image and channel by channel."""

    def enough(image: Tensor, side: int) -> bool:
        small = F.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)
        back = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear")[0]
        lost = sum(float((a - b).pow(2).sum()) for a, b in zip(image, back, strict=True))
        total = sum(float((a - a.mean()).pow(2).sum()) for a in image)
        return lost <= tolerance * total

    return next((side for side in (32, 64, 96) if all(enough(image, side) for image in images)), SIDE)
