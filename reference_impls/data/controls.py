"""Images without the redundancy of natural ones, made from them: what experiments compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impls.contract import check_tensor, generator


def white_noise(images: Tensor, seed: int = 0) -> Tensor:
    """Independent normal pixels with the mean and the variance of each channel: (B, C, H, W) -> (B, C, H, W)."""
    check_tensor("images", images, "B C H W")
    noise = torch.randn(images.shape, generator=generator(seed)).to(images)
    return images.mean((2, 3), keepdim=True) + images.std((2, 3), keepdim=True, correction=0) * noise


def uniform_noise(images: Tensor, seed: int = 0) -> Tensor:
    """Independent pixels, uniform in [0, 1], of the shape of the images."""
    return torch.rand(images.shape, generator=generator(seed)).to(images)


def shuffled_pixels(images: Tensor, seed: int = 0) -> Tensor:
    """The pixels of each image in another order, the same for all images and channels: (B, C, H, W)."""
    check_tensor("images", images, "B C H W")
    order = torch.randperm(images[0, 0].numel(), generator=generator(seed)).to(images.device)
    return images.flatten(2)[..., order].view_as(images)


def phase_scrambled(images: Tensor, seed: int = 0) -> Tensor:
    """The same power spectrum with random phases: (B, C, H, W) -> (B, C, H, W).

    Every correlation between neighbouring pixels stays, but no edges, objects or flat regions are left: what differs
    from it is due to structure, not to smoothness. The phases of a white noise image are added to those of all
    channels, so channels stay correlated as they were.
    """
    check_tensor("images", images, "B C H W")
    shape = (len(images), 1, *images.shape[2:])
    noise = torch.fft.fft2(torch.randn(shape, generator=generator(seed)).to(images))
    turn = noise / noise.abs()  # of a real image, so the product is the spectrum of a real image again
    turn[..., 0, 0] = 1  # the mean stays
    scrambled: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * turn).real
    return scrambled
