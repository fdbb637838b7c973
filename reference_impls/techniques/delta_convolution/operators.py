"""What single operators mean to the lowering: functions of channels, and their arguments in one form."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from reference_impls.hosts.graph import Operation, Value, aten
from reference_impls.techniques.delta_convolution.feature_maps import Shape
from reference_impls.techniques.delta_convolution.layers import applied
from reference_impls.techniques.delta_convolution.layout import CHANNEL, Layout
from reference_impls.techniques.delta_convolution.stages import Function

SOFTMAXES = (aten._softmax.default, aten._log_softmax.default)
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)


def channel_function(operation: Operation, layout: Layout) -> tuple[Function, list[str], list[int]] | None:
    """A function over channels alone as one of (..., C), with dimensions and channel sizes of its result."""
    sizes, dims, args = list(layout.channels.shape), list(layout.dims), operation.args
    if operation.func is aten.native_layer_norm.default:
        _, normalised, weight, bias, eps = args
        if dims[-len(normalised) :] != [CHANNEL] * len(normalised):
            return None

        def norm(rows: Tensor) -> Tensor:
            return F.layer_norm(rows.unflatten(-1, sizes), normalised, weight, bias, eps).flatten(-len(sizes))

        return norm, dims, sizes
    if operation.func not in (*SOFTMAXES, *REDUCTIONS) or operation.kwargs:
        return None
    reduces, given = operation.func in REDUCTIONS, args[1]
    over = [d % len(dims) for d in ([given] if isinstance(given, int) else given or ())]
    if not over or any(dims[d] != CHANNEL for d in over):
        return None
    axes = [sum(d == CHANNEL for d in dims[:i]) - len(sizes) for i in over]
    kept = [n for axis, n in enumerate(sizes, -len(sizes)) if not reduces or axis not in axes]
    if reduces:
        keeps = len(args) > 2 and args[2]
        dims = ["" if i in over else d for i, d in enumerate(dims) if keeps or i not in over]

    def function(rows: Tensor) -> Tensor:
        values = rows.unflatten(-1, sizes)
        values = operation.func(values, axes) if reduces else operation.func(values, axes[0], *args[2:])
        return values.flatten(-len(kept)) if kept else values.unsqueeze(-1)

    return function, dims, kept


def position(dim: str) -> str:
    """The letters of a dimension of positions; none for one of channels."""
    return "" if dim == CHANNEL else dim


def function_of(operation: Operation, places: Sequence[int]) -> Function:
    """An element-wise operator as a function of the arguments that stand at these places."""
    if operation.func is aten._to_copy.default:
        dtype = operation.outputs[0].dtype
        return lambda x: x.to(dtype)
    return applied(operation.func, operation.args, operation.kwargs, places)


def shape_of(value: Value) -> Shape:
    """The positions of a value (B, C, H, W)."""
    batch, _, height, width = value.shape
    return Shape(batch, height, width)
