"""Over-precision: how many bits of the values are needed.

Values are rounded to b bits, uniform and symmetric, with the largest magnitude of a tensor or of each channel as the
range: q = round(x / D) D with D = max|x| / (2^(b-1) - 1). The signal to quantisation noise ratio is
SQNR = 10 log10(sum x^2 / sum (x - q)^2) dB; the *effective bits* are the fewest at which it reaches a target. Values
that lie on a grid of b bits are rounded to themselves, so they never ask for more than b.

The *effectual* bits of an integer are the ones among its digits, which is what bit-serial hardware works on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impls.contract import check_range
from reference_impls.contract.precision import widened
from reference_impls.redundancy.inputs import measurable

WIDEST = 16
"""Most bits that are tried."""
SQNR = 30.0
"""Target in dB: noise of about 3 % of the signal's amplitude."""


def quantised(x: Tensor, bits: int, channel: int | None = None) -> Tensor:
    """x (B, ...) rounded to `bits` bits with a range for each datum, or for each channel of it along axis `channel`.

    The same shape and dtype. A slice of zeros stays. Raises: ValueError for fewer than 2 bits.
    """
    check_range("bits", bits, 2, 32, integer=True)
    wide = widened(x)
    axes = [i for i in range(1, x.ndim) if i != (channel % x.ndim if channel is not None else None)]
    largest = wide.abs().amax(axes, keepdim=True) if axes else wide.abs()
    step = (largest / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(wide.dtype).tiny)
    return (wide / step).round_().mul_(step).to(x.dtype)


def noise_ratio(x: Tensor, rounded: Tensor) -> Tensor:
    """SQNR in dB of each datum (B, ...): (B,); infinite without noise."""
    x, rounded = widened(x).flatten(1), widened(rounded).flatten(1)
    scale = x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    signal, noise = ((part / scale).square().sum(1).double() for part in (x, x - rounded))
    # What float32 itself rounds is no noise of the grid.
    noise = torch.where(noise <= 1e-12 * signal, torch.zeros_like(noise), noise)
    return 10 * (signal / noise).log10().nan_to_num(nan=torch.inf)


def effective_bits(x: Tensor, target: float = SQNR, channel: int | None = None) -> Tensor:
    """The fewest bits at which the SQNR of each datum x (B, ...) reaches `target` dB: (B,) int64 in [2, `WIDEST`].

    `WIDEST` where no number of bits reaches it. Raises: ValueError for values that are not finite, or empty data.
    """
    names = "B " + " ".join(f"d{i}" for i in range(1, x.ndim))
    measurable("x", x, names)
    found = torch.full((len(x),), WIDEST, dtype=torch.long)
    left = torch.ones(len(x), dtype=torch.bool)
    for bits in range(2, WIDEST):
        enough = (noise_ratio(x, quantised(x, bits, channel)) >= target).cpu() & left
        found[enough] = bits
        left &= ~enough
        if not left.any():
            break
    return found


def over_precision(x: Tensor, target: float = SQNR, channel: int | None = None, given: int = 32) -> Tensor:
    """1 - effective bits / given bits of each datum: (B,) in [0, 1]."""
    return (1 - effective_bits(x, target, channel).double() / given).clamp(min=0)


def effectual_bits(x: Tensor, bits: int = 8) -> Tensor:
    """Mean number of ones in the digits of |x| at `bits` bits, over the values of each datum: (B,) in [0, bits - 1].

    Raises: ValueError for fewer than 2 bits.
    """
    check_range("bits", bits, 2, 16, integer=True)
    wide = widened(x).flatten(1)
    step = (wide.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(wide.dtype).tiny)
    digits = (wide / step).round().abs().long()
    return torch.stack([(digits >> i) & 1 for i in range(bits - 1)]).sum(0).double().mean(1)


def value_entropy(x: Tensor, bits: int = 8) -> Tensor:
    """Entropy in bits of the values of each datum at `bits` bits, and so what coding could reach: (B,) in [0, bits]."""
    rounded = widened(quantised(x, bits)).flatten(1)
    found = []
    for datum in rounded:
        share = datum.unique(return_counts=True)[1].double() / max(datum.numel(), 1)
        found.append(-(share * share.log2()).sum())
    return torch.stack(found).clamp(min=0) if found else rounded.new_zeros(0, dtype=torch.float64)
