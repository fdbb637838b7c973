"""What every measure of feature maps, tokens or frames asks of its inputs."""

from __future__ import annotations

from torch import Tensor

from reference_impls.contract.errors import check_tensor
from reference_impls.contract.precision import widened


def finite(x: Tensor) -> bool:
    """Whether all values are finite: told by one sum, which no others than finite values can have finite."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def checked(name: str, x: Tensor, shape: str) -> Tensor:
    """`x` as `check_tensor` leaves it, with its errors, in one pass over the values."""
    check_tensor(name, x, shape, finite=False)
    return x if finite(x) else check_tensor(name, x, shape)


def deviations(x: Tensor) -> Tensor:
    """Standard deviation of the values of each datum, (B, ...) -> (B,), divided by n; two plain passes."""
    flat = x.flatten(1)
    return (flat - flat.mean(1, keepdim=True)).square_().mean(1).sqrt_()


def measurable(name: str, x: Tensor, shape: str) -> Tensor:
    """`x` in float32 or wider, if it has the rank that `shape` names, is finite, and each datum (row) holds a value.

    Raises: TypeError or ValueError that says what is wrong, as `check_tensor`.
    """
    checked(name, x, shape)
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} must hold values, got shape {tuple(x.shape)}")
    return widened(x)


def mean_share(shares: Tensor) -> float:
    """The mean of a measure over the data of a batch (B,). Raises ValueError for an empty batch."""
    if not len(shares):
        raise ValueError("there is nothing to measure: the batch is empty, at least one input is needed")
    return shares.mean().item()
