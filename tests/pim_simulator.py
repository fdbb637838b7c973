"""An independent simulator of in-memory arrays in numpy integers: no torch, no floating point, nothing vectorised.

It is written from the definitions alone, to hold the layers to: a partial sum s of full scale F becomes the integer
nearest to s L / F, a tie the even one; what codes count is added up in Python's integers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def half_even(numerator: int, denominator: int) -> int:
    """The integer nearest to a quotient; of two that are as near, the even one."""
    below, rest = divmod(numerator, denominator)
    if 2 * rest == denominator:
        return below + below % 2
    return below + (2 * rest > denominator)


def column_of(weight: int, scheme: str, column: int, bits: int) -> int:
    """What a column holds of a weight."""
    if scheme == "native":
        return weight
    if scheme == "differential":
        return max(weight, 0) if column == 0 else max(-weight, 0)
    return (weight >> column) & 1  # two's complement, modulo 2^bits


def codes(
    x: Integers,
    w: Integers,
    scheme: str,
    b: int,
    m: int,
    n: int,
    *,
    bits: int = 4,
    activation_bits: int = 4,
    included: bool = False,
) -> tuple[dict[tuple[int, int, int], Integers], Fraction]:
    """The code of every conversion of x (M, K) with w (O, K): (lowest bit, group, column) -> (M, O); and F / L."""
    columns = {"native": 1, "differential": 2, "bit-serial": bits}[scheme]
    levels = 2 ** (b - 1 if included and scheme == "native" else b) - 1
    full = n * (2**m - 1) * (1 if scheme == "bit-serial" else 2 ** (bits - 1) - 1)
    found = {}
    for low in range(0, activation_bits, m):
        for group, first in enumerate(range(0, x.shape[1], n)):
            for column in range(columns):
                code = np.zeros((len(x), len(w)), dtype=np.int64)
                for i, row in enumerate(x[:, first : first + n]):
                    for o, weights in enumerate(w[:, first : first + n]):
                        total = sum(
                            int(a) // 2**low % 2**m * column_of(int(v), scheme, column, bits)
                            for a, v in zip(row, weights, strict=True)
                        )
                        code[i, o] = half_even(total * levels, full)
                found[low, group, column] = code
    return found, Fraction(full, levels)


def product(x: Integers, w: Integers, scheme: str, b: int, m: int, n: int, *, bits: int = 4, **how: Any) -> Integers:
    """The codes added up, (M, O): F / L times this stands for x w^T."""
    found, _ = codes(x, w, scheme, b, m, n, bits=bits, **how)
    total = np.zeros((len(x), len(w)), dtype=np.int64)
    for (low, _, column), code in found.items():
        negative = column == bits - 1 if scheme == "bit-serial" else column == 1
        total += (-1) ** negative * 2**low * (2**column if scheme == "bit-serial" else 1) * code
    return total


def windows(
    x: Integers, kernel: tuple[int, int], stride: int, padding: int, dilation: int, fill: int = 0
) -> tuple[Integers, tuple[int, int]]:
    """The windows of one image (C, H, W), a row each: (H' W', C h w); and (H', W')."""
    channels, height, width = x.shape
    padded = np.full((channels, height + 2 * padding, width + 2 * padding), fill, dtype=np.int64)
    padded[:, padding : padding + height, padding : padding + width] = x
    size = tuple(
        (side - dilation * (k - 1) - 1) // stride + 1 for side, k in zip(padded.shape[1:], kernel, strict=True)
    )
    rows = [
        [
            padded[c, i * stride + di * dilation, j * stride + dj * dilation]
            for c in range(channels)
            for di in range(kernel[0])
            for dj in range(kernel[1])
        ]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return np.array(rows, dtype=np.int64), (size[0], size[1])
