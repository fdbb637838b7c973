"""What the experiments of both EfficientFormers share: specimens for the battery, and networks timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.experiments.harness import fork_seed
from reference_impls.redundancy.over_resolution import coarsen, coarsest
from reference_impls.techniques.efficientformer.skeleton import ResolutionTechnique, TwoHeads, smaller_sizes


def scatter(network: nn.Module) -> nn.Module:
    """Give a network that was just built statistics, scales and biases as after training, in place.

    At initialisation the branches are scaled by 1e-5 and the biases are 0, so that what a branch does hardly shows.
    """
    with torch.no_grad():
        for name, x in network.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                x.normal_(std=0.3)
            elif name.endswith("gamma"):
                x.uniform_(0.2, 0.4)
            elif name.endswith("bn.weight") or ("norm" in name and name.endswith("weight")):
                x.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "table")):
                x.normal_(std=0.3)
            elif x.is_floating_point():
                x.normal_(std=x[0].numel() ** -0.5)
    return network


class NetworkSpecimens(Specimens):
    """A small network on images without detail, of noise, and of coarse noise."""

    def __init__(self, technique: ResolutionTechnique, build: Callable[[], TwoHeads], side: int) -> None:
        self.technique, self.make, self.side = technique, build, side

    def host(self, seed: int) -> TwoHeads:
        """The network with random weights, in evaluation mode."""
        with fork_seed(seed):
            return scatter(self.make()).eval()

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, self.side, self.side, generator=generator)
        if kind == "redundant":
            images = images[:, :, :1, :1].expand_as(images).clone()
        elif kind == "typical":
            images = nn.functional.interpolate(images[:, :, : self.side // 2, : self.side // 2], size=(self.side,) * 2)
        return Specimen(self.host(seed).to(device), images.to(device), run)

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        generator = torch.Generator().manual_seed(seed)
        for cells in (4, 16, 64):
            images = torch.randn(2, 3, cells, cells, generator=generator, dtype=torch.float64).to(device)
            images = nn.functional.interpolate(images, size=(128, 128), mode="bilinear")
            for tolerance in (0.02, 0.2):
                truth, found = by_hand(images, tolerance), coarsest(images, smaller_sizes((128, 128)), tolerance)
                yield Quantity(f"size for {cells} cells", torch.tensor(truth), torch.tensor(found[0]))

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = self.build("typical", seed, device)
        plain = self.build("redundant", seed, device).inputs
        yield Quantity("the colour of plain images", plain[..., :64, :64], coarsen(plain, (64, 64)))
        fused = self.technique.apply(specimen.host).host
        yield Quantity("logits of the fused network", run(specimen.host, specimen.inputs), run(fused, specimen.inputs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        specimen = self.build("typical", 0, device)
        net, x = specimen.host, specimen.inputs
        bad = x.clone()
        bad[0, 1, 5, 5] = torch.nan
        apply: Callable[..., Any] = self.technique.apply
        yield Invalid("an image of rank 3", lambda: run(net, x[0]), "must have shape (B, 3, H, W)")
        yield Invalid("one channel", lambda: run(net, x[:, :1]), "must have shape (B, 3, H, W)")
        yield Invalid("integer images", lambda: run(net, x.long()), "floating point")
        yield Invalid("a side of 48", lambda: run(net, x[..., :48, :48]), "multiple of 32")
        yield Invalid("NaN where detail is measured", lambda: run(apply(net, tolerance=0.1).host, bad), "not finite")
        yield Invalid("no pixel", lambda: apply(net, scale=0.0), "scale must be")
        yield Invalid("a tolerance above 1", lambda: apply(net, tolerance=2.0), "tolerance must be")
        yield Invalid("fuse by name", lambda: apply(net, fuse="yes"), "True or False")
        training = self.host(0).train()
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
