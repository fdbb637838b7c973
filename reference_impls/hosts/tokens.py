"""Tokens that stand for more tokens than they are, and look whole to whoever else reads them.

A technique that goes on with n < N tokens hands them from block to block as `ReducedTokens`. They carry what the next
block must know, so nothing is kept on an object that threads, recomputed activations or copies would share. Any other
reader (a norm, a hook, a head that wants the features of each patch) sees N tokens: each has the value of the one that
stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Reduction(Protocol):
    """What tokens carry: at least, which one stands for each of the whole ones."""

    @property
    def group(self) -> Tensor | None:
        """(B, N) index among the n reduced tokens; None while they are all there."""


class ReducedTokens(Tensor):
    """Tokens (B, n, D) that act as the (B, N, D) that they stand for, or (N, B, D) if not `batch_first`."""

    reduction: Reduction
    batch_first: bool

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _OF_ANY_SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        first = args[0] if args else None
        if function in _ROW_BY_ROW and isinstance(first, ReducedTokens):
            return _like(first, function(_rows_of(first), *args[1:], **kwargs))
        name = getattr(function, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs:
            raise NotImplementedError(f"{name} on tokens between two blocks: they are merged and cannot be written to")
        return function(*tree_map(_whole, args), **tree_map(_whole, kwargs))


_OF_ANY_SHAPE = {
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
    Tensor.grad.__get__,  # type: ignore[attr-defined]
    Tensor.grad.__set__,  # type: ignore[attr-defined]
    Tensor.grad_fn.__get__,  # type: ignore[attr-defined]
    Tensor.is_leaf.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad_,
    Tensor.retain_grad,
    torch.autograd.backward,
}
_ROW_BY_ROW = {Tensor.detach, Tensor.clone, Tensor.contiguous, Tensor.to, Tensor.cpu, Tensor.cuda}
"""What other libraries do to tokens on their way: activation checkpointing detaches, device maps move."""


def reduced(x: Tensor, reduction: Reduction, batch_first: bool = True) -> Tensor:
    """Tokens x: (B, n, D) that carry their reduction. A graph that is being captured gets whole ones that carry x."""
    if _captured(x):
        spread = whole(x, reduction, batch_first)
        spread = spread.clone() if spread is x else spread
        spread._carried = x, reduction  # type: ignore[attr-defined]
        return spread
    marked = x.as_subclass(ReducedTokens)
    marked.reduction, marked.batch_first = reduction, batch_first
    return marked


def carried(x: Tensor, batch_first: bool = True) -> tuple[Tensor, Any]:
    """The tokens (B, n, D) in x, and their reduction; None if x is what any other module gave."""
    if isinstance(x, ReducedTokens):
        return _rows_of(x), x.reduction
    given = getattr(x, "_carried", None)
    return given if given is not None else (x if batch_first else x.transpose(0, 1), None)


def whole(x: Tensor, reduction: Reduction, batch_first: bool = True) -> Tensor:
    """The whole tokens (B, N, D) that x: (B, n, D) stand for, or (N, B, D) if not `batch_first`."""
    group = reduction.group
    x = x if group is None else rows(x, group.to(x.device))
    return x if batch_first else x.transpose(0, 1)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for x: (B, N, D) and index: (B, M) -> (B, M, D), copied row by row."""
    if x.shape[0] > 1 or torch.jit.is_tracing():
        index = index + torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)


def _captured(x: Tensor) -> bool:
    """Whether x is no ordinary tensor, so that none of a class of ours can be made of it."""
    return torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _rows_of(x: ReducedTokens) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor)


def _like(marked: ReducedTokens, x: Tensor) -> Tensor:
    return reduced(x, marked.reduction, marked.batch_first)


def _whole(value: Any) -> Any:
    if not isinstance(value, ReducedTokens):
        return value
    return whole(_rows_of(value), value.reduction, value.batch_first)
