"""Whether a module still computes what a technique takes it for: both are run once, on a few random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reference_impls.contract import UnsupportedHost
from reference_impls.contract.replacement import original_forward
from reference_impls.hosts.trial import quietly

M = TypeVar("M", bound=nn.Module)


def refuse_look_alikes(
    technique: str,
    target: object,
    kind: type[M],
    modules: Mapping[str, M],
    rebuilt: Callable[[M, Tensor], Tensor],
    probe: Callable[[M], Tensor],
) -> None:
    """Raise UnsupportedHost unless `rebuilt(module, x)` is what each module computes on `x = probe(module)`.

    In evaluation mode, without gradients, hooks, autocast or counted MACs, and below other techniques. A module on the
    meta device cannot be run and is taken for what it looks like.
    """
    for name, module in modules.items():
        like = next(module.parameters())
        if like.is_meta:
            continue
        with torch.no_grad(), quietly(module):
            x = probe(module).to(like)
            expected, actual = original_forward(module)(x), rebuilt(module, x)
        if not _close(expected, actual):
            needs = f"modules that compute what a plain {kind.__name__} does, but {name or 'this one'} does not"
            raise UnsupportedHost(technique, target, needs)


def _close(expected: Any, actual: Tensor) -> bool:
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        return False
    error = (expected.double() - actual.double()).abs().max()
    return bool(error <= 64 * torch.finfo(actual.dtype).eps * expected.double().abs().max())
