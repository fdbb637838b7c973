"""Small grey images, padded to 32 x 32 pixels, and patches of 4 x 4 pixels of them that are hidden at random.

Images of 28 x 28 pixels are padded with zeros, not enlarged: interpolated pixels would be redundant by construction.
(Digits of 8 x 8 pixels are enlarged, so nothing is to be read from what is measured on them.)
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import generator
from reference_impls.data import images
from reference_impls.data.splits import Labelled, Split, split


def padded(x: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) in [0, 1] -> padded to 32 x 32, with about the mean 0 and the deviation 1.

    Those of fewer than 28 pixels are first enlarged to 28.
    """
    if x.shape[-1] < 28:
        x = F.interpolate(x, size=(28, 28), mode="bilinear")
    margin = (32 - x.shape[-1]) // 2
    return (F.pad(x, (margin,) * 4) - 0.286) / 0.353


@cache
def padded_split(data: Labelled, train: int, test: int) -> Split:
    """The first images of each part, (N, 1, 32, 32)."""
    return split(data, train, test=test).mapped(padded)


def photo_crops(number: int) -> Tensor:
    """Grey crops of natural photos, prepared like the images: (number, 1, 32, 32)."""
    _, photos = images.photos(256)
    crops = photos.mean(1, keepdim=True).unfold(2, 32, 32).unfold(3, 32, 32)  # (7, 1, 8, 8, 32, 32)
    crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return padded(crops[torch.randperm(len(crops), generator=generator(0))[:number]])


def mask(x: Tensor, draws: torch.Generator, share: float = 0.5) -> Tensor:
    """Images (B, 1, 32, 32) with patches hidden at random, and which pixels are: (B, 2, 32, 32)."""
    hidden = (torch.rand(len(x), 1, 8, 8, generator=draws) < share).to(x)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([x * (1 - hidden), hidden], 1)


def masked(x: Tensor) -> Tensor:
    """`mask`, always the same patches."""
    return mask(x, generator(0))


def unmasked(x: Tensor) -> Tensor:
    """Images (B, 1, 32, 32) with no patch hidden, as `mask` gives them: (B, 2, 32, 32)."""
    return mask(x, generator(0), share=0)
