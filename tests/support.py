"""What tests of techniques and models share.

    generator(seed)                          a random generator
    noise(2, 3, 64, 64)                      white noise of that shape in double precision, the same on every call
    parameters(network)                      how many numbers a network learns
    total(parts)                             the sum of a network's closed forms
    assert_close(actual, expected, 1e-10)    the largest error, relative to the largest magnitude expected

Assets come from the fixture `asset` (`conftest.py`), cases of a technique from its own test file, other people's models
from `tests/other_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

C = TypeVar("C")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def total(parts: Mapping[str, C]) -> C:
    """The sum of what each part costs: closed forms that can be added."""
    first, *others = parts.values()
    return sum(others, first)  # type: ignore[call-overload,no-any-return]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """No element is off by more than `tolerance` of the largest magnitude expected."""
    assert actual.shape == expected.shape
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, f"off by {error:.1e} of the largest magnitude, allowed are {tolerance:.1e}"
