"""What a model really computes from a frame: a graph of ATen operators without side effects, recorded while it runs.

The model runs once, on a real frame. What torch dispatches below autograd, autocast and functionalisation is recorded,
so operations in place, aliases, hooks, parametrisations, casts and fused layers are in the graph as what they do.
Whatever does not depend on the frame is not in it: its value is. What cannot be recorded faithfully is refused by name:
random numbers, decisions that depend on values, state that outlives the call, and hooks that only look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reference_impls.accounting.count import operator_macs, running_modules
from reference_impls.contract import tensors

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten._convolution.default)
NORMS = {  # operators of a batch norm -> the positions of "training" (None: never) and of eps among their arguments
    aten.native_batch_norm.default: (5, 7),
    aten.cudnn_batch_norm.default: (5, 7),
    aten.miopen_batch_norm.default: (5, 7),
    aten._native_batch_norm_legit_no_training.default: (None, 6),
}
VIEWS_AS_RESHAPES = (aten.view.default, aten._unsafe_view.default)
BY_VALUE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
READERS = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__)
NOT_BY_VALUE = "a model that decides nothing by the values of a frame"
UNRECORDABLE = (aten.as_strided.default, aten.set_.source_Storage)

WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks of `torch.nn.utils` that return nothing and set the weights of their module."""


class Unaccounted(Exception):
    """Something in the model that a rebuilt network cannot account for; the message says what, and where it stands."""


class Value:
    """A tensor that depends on the frame."""

    def __init__(self, like: Tensor) -> None:
        self.shape, self.stride, self.dtype = tuple(like.shape), like.stride(), like.dtype
        self.readers: list[Operation] = []
        self.returned = False
        """It is part of the model's result."""

    @property
    def only_reader(self) -> Operation | None:
        """The operation that reads it, if there is just one and nothing else does."""
        return self.readers[0] if len(self.readers) == 1 and not self.returned else None


@dataclass(eq=False)
class Operation:
    """One call of an operator; among its arguments stand values, and constants as they are."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    where: str
    """The path of the module that it runs in."""
    macs: int
    as_recorded: bool = False
    """Its inputs must lie in memory as they did: some operators take no other order, or give others' results."""

    @property
    def name(self) -> str:
        """The operator's own name, such as "relu"."""
        return str(self.func._schema.name.split("::")[1])

    def inputs(self) -> list[Value]:
        """The values that it reads."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def __call__(self, known: dict[Value, Tensor]) -> Sequence[Tensor | None]:
        """Its outputs, from the tensors of its inputs."""
        if self.as_recorded:
            known = {value: _as_recorded(known[value], value) for value in self.inputs()}
        args, kwargs = _filled(self.args, known), {name: _filled(a, known) for name, a in self.kwargs.items()}
        out = self.func(*args, **kwargs)
        return (out,) if isinstance(out, Tensor) else out


@dataclass
class Graph:
    """Operations in order, from the frame to the result."""

    frame: Value
    operations: list[Operation]
    result: Any
    """What the model returns, its tensors replaced by values."""
    constant_macs: int
    """Multiply-accumulates of what does not depend on the frame, such as the weights of a `weight_norm`."""

    def __post_init__(self) -> None:
        returned = [leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, Value)]
        self.frame.readers, self.frame.returned = [], self.frame in returned
        last: dict[Value, Operation] = {}
        for operation in self.operations:
            for value in operation.outputs:
                if value is not None:
                    value.readers, value.returned = [], value in returned
                    last[value] = operation
            for value in dict.fromkeys(operation.inputs()):
                value.readers.append(operation)
                last[value] = operation
        self.finished: dict[Operation, list[Value]] = {operation: [] for operation in self.operations}
        for value, operation in last.items():
            if value not in returned:
                self.finished[operation].append(value)

    def run(self, frame: Tensor, watch: Collection[Value] = ()) -> tuple[Any, dict[Value, Tensor]]:
        """The result for a frame, and the tensors of the values in `watch`."""
        known = {self.frame: frame}
        for operation in self.operations:
            for value, tensor in zip(operation.outputs, operation(known), strict=True):
                if value is not None and tensor is not None:
                    known[value] = tensor
            for value in self.finished[operation]:
                if value not in watch:
                    known.pop(value, None)
        if isinstance(self.result, Value) and self.result is not self.frame:
            return known[self.result], known
        return pytree.tree_map(lambda leaf: _own(_filled(leaf, known), leaf, frame), self.result), known


def _own(tensor: Any, leaf: Any, frame: Tensor) -> Any:
    """A tensor of the result, which shares memory neither with the frame nor with the model."""
    if not isinstance(tensor, Tensor):
        return tensor
    shared = isinstance(leaf, Tensor) or tensor.untyped_storage().data_ptr() == frame.untyped_storage().data_ptr()
    return tensor.clone() if shared else tensor


def _filled(argument: Any, known: dict[Value, Tensor]) -> Any:
    if isinstance(argument, Value):
        return known[argument]
    if isinstance(argument, list | tuple):
        return [_filled(item, known) for item in argument]
    return argument


def _as_recorded(tensor: Tensor, value: Value) -> Tensor:
    if tensor.stride() == value.stride:
        return tensor
    if 0 in value.stride:  # repeated in place of a copy
        return tensor.contiguous()
    return torch.empty_strided(value.shape, value.stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


@dataclass
class Recording:
    """One run of a model: what it did, and the tensors that it made."""

    graph: Graph
    result: Any
    tensors: dict[Value, Tensor]


@torch.no_grad()
def record(model: nn.Module, frame: Tensor) -> Recording:
    """Run `model` on a frame (B, C, H, W).

    Raises: Unaccounted; and whatever the model raises.
    """
    own = frame.clone()  # the model may write to it
    with running_modules(model) as running, _observed_hooks(model):
        recorder = _Recorder(own, running)
        with recorder, _NoReading(recorder):
            result = torch.func.functionalize(model, remove="mutations")(own)

    def kept(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return recorder.values.get(id(leaf), leaf)
        if leaf is None or isinstance(leaf, bool | int | float | str):
            return leaf
        raise Unaccounted(f"results made of tensors in dicts, lists and tuples; it returns a {type(leaf).__name__}")

    graph = Graph(recorder.frame, recorder.operations, pytree.tree_map(kept, result), recorder.constant_macs)
    made = {recorder.values[id(t)]: t for t in recorder.alive if id(t) in recorder.values}
    return Recording(graph, result, made)


class _Recorder(TorchDispatchMode):
    def __init__(self, frame: Tensor, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frame, self.running = Value(frame), running
        self.values = {id(frame): self.frame}
        self.alive = [frame]  # so that no other tensor takes the id of one that is gone
        self.made: set[int] = set()
        self.operations: list[Operation] = []
        self.constant_macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        depends = any(id(t) in self.values for t in tensors((args, kwargs)))
        if reason := _reason(func, args, depends):
            raise Unaccounted(f"{reason}: {self._at(func)}")
        out = func(*args, **kwargs)
        results = list(tensors(out))
        self.alive += results
        self.made.update(id(t) for t in results)
        macs = operator_macs(func, args, kwargs, out) or 0
        if not depends:
            self.constant_macs += macs
            return out
        if not results:
            raise Unaccounted(f"{NOT_BY_VALUE}: {self._at(func)}")
        parts = (out,) if isinstance(out, Tensor) else tuple(out)
        outputs = tuple(Value(part) if isinstance(part, Tensor) else None for part in parts)
        self.values.update({id(part): v for part, v in zip(parts, outputs, strict=True) if v is not None})
        func = aten.reshape.default if func in VIEWS_AS_RESHAPES else func
        args, kwargs = pytree.tree_map(lambda leaf: self.values.get(id(leaf), leaf), (args, kwargs))
        where = self.running[-1] if self.running else ""
        self.operations.append(Operation(func, args, kwargs, outputs, where, macs))
        return out

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator in place: functionalisation leaves those to what the call did not make."""
        if func is aten.copy_.default and self.values.get(id(args[0])) is self.frame:
            return args[0]  # the model overwrites its frame, which is a copy
        if func is aten.as_strided_.default and _same_places(*args):
            return args[0]  # pooling does so to a single position
        if any(id(t) in self.values for t in tensors((args, kwargs))) or id(args[0]) not in self.made:
            raise Unaccounted(
                f"a model that writes to nothing but new tensors, and does so as torch can tell: {self._at(func)}"
            )
        return func(*args, **kwargs)

    def _at(self, func: Any) -> str:
        return self.place(str(func._schema.name))

    def place(self, name: str) -> str:
        """A name, and the module that is running."""
        where = self.running[-1] if self.running else ""
        return f"{name} in {where!r}" if where else name


class _NoReading(TorchFunctionMode):
    """While the model runs, refuse what takes the values of a tensor that depends on the frame out of torch."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READERS and torch._is_functional_tensor(args[0]):
            raise Unaccounted(f"{NOT_BY_VALUE}: {self.recorder.place(func.__name__)}")
        return func(*args, **(kwargs or {}))


def _reason(func: Any, args: Any, depends: bool) -> str | None:
    """What a model must do without, if this operator cannot be recorded."""
    if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args):
        return "a model without random numbers"
    if not depends:
        return None
    if func in NORMS and args[NORMS[func][0] or 0] is True and args[3] is not None:
        return "batch norms in eval mode"
    if func in UNRECORDABLE:
        return "operators for which it does not matter how tensors lie in memory"
    return NOT_BY_VALUE if any(tag in func.tags for tag in BY_VALUE) else None


def _draws(func: Any, args: Any) -> bool:
    """Whether an operator that may draw random numbers does: attention draws none where its dropout is 0."""
    given = {a.name: a.default_value for a in func._schema.arguments}
    given.update(zip(given, args, strict=False))
    return given.get("dropout_p", 1.0) != 0


def _same_places(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> bool:
    """Whether new strides leave every element where it is."""
    moved = any(a != b for a, b, n in zip(x.stride(), stride, size, strict=False) if n > 1)
    return tuple(size) == x.shape and not moved and offset in (None, x.storage_offset())


@contextmanager
def _observed_hooks(model: nn.Module) -> Iterator[None]:
    """While the model runs, refuse hooks that return nothing: they look at what a rebuilt network does not compute."""
    replaced = []
    for name, module in model.named_modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if not isinstance(hook, WEIGHT_HOOKS):
                    replaced.append((hooks, key, hook))
                    hooks[key] = _Observed(hook, name)
    try:
        yield
    finally:
        for hooks, key, hook in replaced:
            hooks[key] = hook


class _Observed:
    def __init__(self, hook: Any, name: str) -> None:
        self.hook, self.name = hook, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.hook(*args, **kwargs)
        if result is None:
            raise Unaccounted(f"hooks that return what they change; one of {self.name or 'the model'!r} only looks")
        return result


# --------------------------------------------------------------------------------------------------------------------
# Batch norms into convolutions


def fold_norms(graph: Graph) -> Graph:
    """The graph with each batch norm that is the only reader of a convolution folded into its weights."""
    folded: dict[Operation, Operation | None] = {}
    for operation in graph.operations:
        norm = operation.outputs[0].only_reader if operation.func in CONVOLUTIONS else None
        if norm is not None and is_eval_norm(norm) and (weights := _folded(operation, norm)):
            args = (operation.args[0], *weights, *operation.args[3:])
            folded[operation] = None
            folded[norm] = replace(operation, args=args, outputs=norm.outputs[:1], kwargs=operation.kwargs)
    operations = [folded.get(operation, operation) for operation in graph.operations]
    return Graph(graph.frame, [_channels_last(o) for o in operations if o], graph.result, graph.constant_macs)


def is_eval_norm(operation: Operation) -> bool:
    """Whether it is a batch norm with constant statistics."""
    if operation.func not in NORMS:
        return False
    training = NORMS[operation.func][0]
    constants = all(a is None or isinstance(a, Tensor) for a in operation.args[1:5])
    return constants and operation.args[3] is not None and not (training and operation.args[training])


def norm_parts(norm: Operation) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]:
    """Weight, bias, mean, variance and eps of a batch norm in eval mode."""
    weight, bias, mean, variance = norm.args[1:5]
    return weight, bias, mean, variance, norm.args[NORMS[norm.func][1]]


def _folded(convolution: Operation, norm: Operation) -> tuple[Tensor, Tensor] | None:
    weight, bias = convolution.args[1:3]
    transposed, groups = convolution.args[6], convolution.args[8]
    scale, shift, mean, variance, eps = norm_parts(norm)
    same = norm.outputs[0].dtype == convolution.outputs[0].dtype and norm.args[0] is convolution.outputs[0]
    if not isinstance(weight, Tensor) or isinstance(bias, Value) or (transposed and groups > 1) or not same:
        return None
    wide = torch.promote_types(weight.dtype, torch.float32)
    w, b, m, v, s, t = (None if p is None else p.to(wide) for p in (weight, bias, mean, variance, scale, shift))
    fused = fuse_conv_bn_weights(w, b, m, v, eps, s, t, transposed)
    return fused[0].detach().to(weight.dtype), fused[1].detach().to(weight.dtype)


def _channels_last(operation: Operation) -> Operation:
    weight = operation.args[1] if operation.func in CONVOLUTIONS else None
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        return operation
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return replace(operation, args=(operation.args[0], weight, *operation.args[2:]))
