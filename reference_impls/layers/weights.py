"""Weights of networks: the published initialisation, weights as after training, copies that share them."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def initialise_small(*layers: nn.Linear | nn.Conv2d) -> None:
    """The initialisation of the vision transformers: a truncated normal of deviation 0.02, biases 0."""
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def randomise_parameters(network: M) -> M:
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


def copy_sharing_weights(model: M) -> M:
    """A copy that shares the weights, so that each variant of a measurement has its own forward, none its own cache."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})
