"""Batch normalisation of a finished network: folded into the convolutions before it, or estimated again."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from reference_impls.accounting.preparation import prepares
from reference_impls.layers.conv import ConvNorm


def fold_batch_norm(network: nn.Module) -> None:
    """Put one convolution in the place of every `ConvNorm`, and of every convolution and batch norm that follow each
    other in an `nn.Sequential`, in place. The network must be in evaluation mode.
    """
    for name, child in network.named_children():
        if isinstance(child, ConvNorm):
            setattr(network, name, folded(child.conv, child.bn))
        else:
            fold_batch_norm(child)
    if isinstance(network, nn.Sequential):
        for (name, conv), (after, norm) in pairwise(list(network.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(network, name, folded(conv, norm))
                delattr(network, after)


def normalises_by_batch(network: nn.Module) -> bool:
    """Whether a batch norm in the network takes its statistics from the batch: which data are in it matters then."""
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution for both, computed in float32 or wider, of the dtype of `conv`."""
    dtype = conv.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if wide != dtype:
        conv, norm = copy.deepcopy(conv).to(wide), copy.deepcopy(norm).to(wide)
    return nn.utils.fuse_conv_bn_eval(conv, norm).to(dtype)


@prepares("calibration")
@torch.no_grad()
def recalibrate(network: nn.Module, x: Tensor, batch_size: int = 256) -> None:
    """Estimate the statistics of every batch norm again, as the mean over batches of x (N, ...); in place.

    Narrowed layers, or images of another size, give other sums than those of training, whose statistics are wrong then.
    Raises ValueError for empty x.
    """
    if not len(x):
        raise ValueError("x is empty: there is nothing to estimate the statistics of batch norms from")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way to say: the plain mean over all batches
    network.train()
    # Batches of equal weight: a small remainder would count as much as a whole batch.
    for part in x.tensor_split(max(1, round(len(x) / batch_size))):
        network(part)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
