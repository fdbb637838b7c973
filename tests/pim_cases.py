"""Cases of techniques on in-memory arrays: small networks whose partial sums are known."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Case
from reference_impls.layers.arrays import Array
from reference_impls.layers.pim import PIMConv2d, Rescaling
from tests import pim_simulator as simulator

Kind = Literal["typical", "redundant", "null"]


def network(kind: Kind, seed: int, device: str, inner: nn.Module | None = None) -> Case:
    """Three convolutions (the middle one can go on an array) and a linear layer, on 3 images of 2 x 6 x 6.

    redundant: the images are 0, so that every partial sum is. null: images and weights are equal everywhere, so that
    each reaches the full scale.
    """
    draws = torch.Generator().manual_seed(seed)
    target = nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.ReLU(), inner or nn.Conv2d(4, 4, 3, bias=kind == "typical"), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in target.parameters():
            if kind == "null":
                parameter.fill_(0.5)
            else:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draws))
    x = torch.rand(3, 2, 6, 6, generator=draws)
    x = {"typical": x, "redundant": torch.zeros_like(x), "null": torch.ones_like(x)}[kind]
    return Case(target.to(device).eval().requires_grad_(False), x.to(device), lambda model, inputs: model(inputs))


def on_array(kind: Kind, seed: int, device: str, array: Array, rescaling: Rescaling) -> Case:
    """The same with the middle convolution on an array already."""
    inner = PIMConv2d(4, 4, 3, bias=kind == "typical", array=array, rescaling=rescaling, span=None)
    return network(kind, seed, device, inner)


def simulated(x: Tensor, w: Tensor, array: Array) -> Tensor:
    """Integers that `array.scale` makes the products of codes x (M, K) and w (O, K), in the simulator: (M, O)."""
    found = simulator.product(
        x.numpy(), w.numpy(), array.scheme, array.adc_bits or 0, array.dac_bits, array.group, bits=array.weight_bits,
        activation_bits=array.activation_bits, included=array.sign_bit == "included",
    )  # fmt: skip
    return torch.from_numpy(found)
