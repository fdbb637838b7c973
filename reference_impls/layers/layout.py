"""Feature maps (B, C, H, W) and tokens (B, N, C), N = H * W, and the ways between them."""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, closed_form

Size = tuple[int, int]
"""Height and width of a feature map."""


class Flatten(nn.Module):
    """The change of layout: (B, C, H, W) -> (B, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToMap(nn.Module):
    """Back: tokens (B, H * W, C) as a feature map (B, C, H, W) of `size`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return as_map(x, self.size)


def as_map(x: Tensor, size: Size) -> Tensor:
    """Tokens (B, H * W, C) of a feature map of `size` = (H, W) -> (B, C, H, W); a feature map is returned as it is."""
    return x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, size)


def as_tokens(x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) -> (B, H * W, C); tokens are returned as they are."""
    return x if x.ndim == 3 else x.flatten(2).transpose(1, 2)


closed_form.register(Flatten, lambda _, shape: Footprint(shape=(shape[1] * shape[2], shape[0])))
