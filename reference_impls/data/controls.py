"""Images without the redundancy of natural ones, made from them: what experiments compare with.

- `white_noise` keeps the mean and the variance of each image and channel. Its pixels are independent.
- `phase_scrambled` keeps the whole power spectrum, so every correlation between neighbouring pixels, and moves the
  phases, so no edges, objects or flat regions are left. What differs from it is due to structure, not to smoothness.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impls.contract import check_tensor


def white_noise(images: Tensor, seed: int = 0) -> Tensor:
    """Independent normal pixels with the mean and the variance of each channel: (B, C, H, W) -> (B, C, H, W)."""
    check_tensor("images", images, "B C H W")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    return images.mean((2, 3), keepdim=True) + images.std((2, 3), keepdim=True, correction=0) * noise


def phase_scrambled(images: Tensor, seed: int = 0) -> Tensor:
    """The same power spectrum with random phases: (B, C, H, W) -> (B, C, H, W).

    The phases of a white noise image are added to those of all channels, so channels stay correlated as they were.
    """
    check_tensor("images", images, "B C H W")
    shape = (len(images), 1, *images.shape[2:])
    noise = torch.fft.fft2(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(images))
    turn = noise / noise.abs()  # of a real image, so the product is the spectrum of a real image again
    turn[..., 0, 0] = 1  # the mean stays
    return torch.fft.ifft2(torch.fft.fft2(images) * turn).real
