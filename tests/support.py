"""What tests of techniques and models share.

    generator(seed)                          a random generator
    noise(2, 3, 64, 64)                      white noise of that shape in double precision, the same on every call
    parameters(network)                      how many numbers a network learns
    total(parts)                             the sum of a network's closed forms
    assert_close(actual, expected, 1e-10)    the largest error, relative to the largest magnitude expected
    timm_network("efficientformer_l1")       timm's network as an oracle; skips the test where timm is not installed

Assets come from the fixture `asset` (`conftest.py`), cases of a technique from its own test file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, TypeVar
from unittest.mock import MagicMock

import pytest
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


def timm_network(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights, in evaluation mode."""
    return _timm().create_model(name, **options).eval()


def _timm() -> Any:
    """timm, which imports torchvision for its data loaders: where that is absent, mocks stand in during the import."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        for module in [m for m in sys.modules if m.partition(".")[0] == "timm"]:
            del sys.modules[module]  # what the failed import left behind
    torchvision = MagicMock()
    torchvision.ops.misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    parts = ("datasets", "ops", "ops.misc", "transforms", "transforms.functional")
    mocks = {"torchvision": torchvision} | {f"torchvision.{part}": attrgetter(part)(torchvision) for part in parts}
    with pytest.MonkeyPatch.context() as patch:
        for module, mock in mocks.items():
            patch.setitem(sys.modules, module, mock)
        return pytest.importorskip("timm", exc_type=ImportError)
