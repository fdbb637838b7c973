"""Exact counts of the MACs and bytes of whatever runs inside a block.

    with count() as tally:
        model(x)
    tally.macs, tally.bytes, tally.uncounted

MACs are multiply-accumulates: one multiplication with the addition that follows it. They are counted from
the shapes of the operators that torch really dispatches, as dense kernels execute them: a padded zero, a zero of the
data or a masked (causal) attention score counts like any other number, since the kernel may not know that it is zero.
A technique saves MACs only by dispatching smaller ones.

Convolutions, matrix products, scaled-dot-product attention, the fused encoder layer and attention of
`nn.TransformerEncoderLayer` and `nn.MultiheadAttention` in eval mode, recurrent layers, and the backward passes of all
these have a formula (`FORMULAS`). `torch.utils.flop_counter` has none for attention on the CPU and for the two fused
operators (torch 2.13), and reports 0 for them without a word. Here every other operator that computes with floating
point numbers (additions, norms, softmax, sorting, ...) is listed in `Tally.uncounted`, and in `Tally.bytes`.

Bytes are those of the operands read plus the results written by each executed operator, whatever the caches do:

- a tensor holds as many bytes as it has distinct elements: an expanded dimension counts once, and a tensor never holds
  more than its storage;
- the same tensor given twice to an operator is read once;
- a result that shares the storage of an operand is a view: nothing is written;
- an operator in place reads and writes its operand, except where it overwrites all of it (`copy_`, `fill_`, ...);
- gathers (`index`, `embedding`, ...) read as many elements as they return, and scatters in place (`index_put_`, ...)
  write as many as they are given, each plus the indices;
- allocation alone (`empty`) is free, and a fused operator reads its operands and writes its results only.

Only what torch runs eagerly is seen: not compiled graphs, nor numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

OUTSIDE = "(outside)"
"""The key of `Tally.by_module` for what runs outside any forward pass of the model, such as the backward pass."""


@dataclass
class Tally:
    """What ran inside `count()`; it grows while the block runs."""

    macs: int = 0
    """Multiply-accumulates."""
    bytes: int = 0
    """Bytes of operands read and results written (defined in the module's docstring)."""
    by_operator: Counter[str] = field(default_factory=Counter)
    """Operator, such as `aten.mm.default` -> its MACs."""
    by_module: Counter[str] = field(default_factory=Counter)
    """With `count(model)`: module name -> MACs that ran in it and in none of its children; `""` is the model."""
    uncounted: Counter[str] = field(default_factory=Counter)
    """Operators that computed with floating point numbers but have no formula -> number of calls."""


@contextmanager
def count(model: nn.Module | None = None) -> Iterator[Tally]:
    """Count the MACs and bytes of everything that torch runs inside the block.

    Args:
        model: also attribute the MACs to the modules of this model, in `Tally.by_module`.
    """
    tally = Tally()
    with nullcontext() if model is None else running_modules(model) as running, _Counting(tally, running):
        yield tally


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules of `model` that are running in this thread, outermost first; kept up to date inside."""
    names, running, thread = {module: name for name, module in model.named_modules()}, list[str](), get_ident()

    def enter(module: nn.Module, inputs: Any) -> None:
        if module in names and get_ident() == thread:
            running.append(names[module])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in names and running and get_ident() == thread:
            running.pop()

    # Hooks on the modules themselves would switch off the fused path of nn.TransformerEncoderLayer.
    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


_PAUSED: ContextVar[bool] = ContextVar("_PAUSED", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave what runs inside the block out of every count: the trial runs by which `apply` checks itself."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


def operator_macs(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int | None:
    """MACs of one call of an operator with this result; None if it has no formula, or the formula cannot tell."""
    formula = FORMULAS.get(_operator(func)) if func.namespace == "aten" else None
    return formula(_by_name(func, args, kwargs), out) if formula else None


# Formulas: (arguments by their name in the operator's schema, result) -> MACs, or None if they cannot be told.
Formula = Callable[[dict[str, Any], Any], int | None]
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def _matrix_product(left: str, right: str) -> Formula:
    """(..., M, K) x (..., K, N) -> (..., M, N); vectors as in `torch.matmul`.

    A sparse left operand multiplies its stored elements only.
    """

    def macs(arg: dict[str, Any], _: Any) -> int | None:
        a, b = arg[left], arg[right]
        known = b.layout is torch.strided and a.layout in (torch.strided, *_SPARSE)
        stored = a._nnz() if a.layout in _SPARSE else a.numel()
        return stored * (b.shape[-1] if b.ndim > 1 else 1) if known else None

    return macs


def _convolution(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """x (N, C, *size), weight (C_out, C/groups, *kernel), or (C, C_out/groups, *kernel) when transposed.

    Every weight meets each output position once; in a transposed convolution, each input position.
    """
    positions = (x if transposed else out).shape
    return positions[0] * math.prod(positions[2:]) * weight.numel()


def _convolution_forward(arg: dict[str, Any], out: Tensor) -> int:
    return _convolution(arg["input"], arg["weight"], out, arg["transposed"])


def _convolution_backward(arg: dict[str, Any], _: Any) -> int:
    """The gradients of the input and of the weight cost one forward pass each, where they are asked for."""
    forward = _convolution(arg["input"], arg["weight"], arg["grad_output"], arg["transposed"])
    return forward * (int(arg["output_mask"][0]) + int(arg["output_mask"][1]))


def _attention(query_key: int, value: int, *, packed: tuple[str, ...] = ()) -> Formula:
    """Attention of query (B, H, N, E) over key (B, H_kv, M, E) and value (B, H_kv, M, E_v).

    A product Q K^T costs B H N M E, a product with V costs B H N M E_v. The formula adds `query_key` of the first kind
    and `value` of the second: 1 and 1 forward; 3 (the scores again, dQ, dK) and 2 (dV, dP) in the backward pass of a
    fused kernel. H counts the heads of the query (grouped queries share keys, not products). Causal or masked scores
    count like the others. With `packed` the layout is (B, N, H, E), and these arguments hold the bounds of packed
    sequences, if there are any.
    """

    def macs(arg: dict[str, Any], _: Any) -> int:
        q, k, v = arg["query"], arg["key"], arg["value"]
        length, heads = (1, 2) if packed else (2, 1)
        bounds = [b for name in packed if (b := arg.get(name)) is not None]
        if len(bounds) == 2:  # packed: batch 1, sequences one after the other
            n, m = (b.diff().tolist() for b in bounds)
            scores = sum(i * j for i, j in zip(n, m, strict=True)) * q.shape[-2]
        else:
            scores = q.shape[0] * q.shape[heads] * q.shape[length] * k.shape[length]
        return int(scores * (query_key * q.shape[-1] + value * v.shape[-1]))

    return macs


def _multi_head_attention(query: Tensor, key: Tensor, width: int) -> int:
    """Self- or cross-attention of width D: projections N D^2 + 2 M D^2 + N D^2, scores and mix 2 B N M D.

    Nested operands project their real tokens but attend over the padded length, as torch's CPU kernel does.
    """
    projections = (query.numel() + key.numel()) // width * 2 * width**2
    return projections + 2 * query.size(0) * _length(query) * _length(key) * width


def _length(x: Tensor) -> int:
    """Length N of x (B, N, D), the longest one if x is nested."""
    return max((t.shape[0] for t in x.unbind()), default=0) if x.is_nested else int(x.shape[1])


def _fused_encoder_layer(arg: dict[str, Any], _: Any) -> int:
    x, width = arg["src"], arg["embed_dim"]
    feed_forward: int = arg["ffn_weight_1"].numel() + arg["ffn_weight_2"].numel()
    return _multi_head_attention(x, x, width) + int(x.numel() // width * feed_forward)


def _recurrent(steps: Tensor, weights: Sequence[Tensor], passes: int = 1) -> int:
    """Every matrix of a recurrent layer meets each step of each sequence once, forward."""
    return passes * math.prod(steps.shape[:-1]) * sum(w.numel() for w in weights if w.ndim == 2)


def _cudnn_recurrent(arg: dict[str, Any], _: Any) -> int:
    backward_of_weights = "output_mask" in arg and arg["output_mask"][3]
    return _recurrent(arg["input"], arg["weight"], passes=1 + int(backward_of_weights))


_FLASH_BOUNDS = ("cum_seq_q", "cum_seq_k")
_EFFICIENT_BOUNDS = ("cu_seqlens_q", "cu_seqlens_k")

_PRODUCTS = {
    ("self", "mat2"): "mm bmm _int_mm _scaled_mm",
    ("mat1", "mat2"): "addmm addmm_ _addmm_activation _sparse_addmm",
    ("batch1", "batch2"): "baddbmm baddbmm_ addbmm addbmm_",
    ("self", "vec"): "mv",
    ("mat", "vec"): "addmv addmv_",
    ("self", "tensor"): "dot",
    ("self", "other"): "vdot",
}
_ATTENTION = (
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
_FORMULAS: tuple[tuple[str, Formula], ...] = (
    ("convolution _convolution convolution_overrideable", _convolution_forward),
    ("mkldnn_convolution cudnn_convolution", lambda a, out: _convolution(a["self"], a["weight"], out, False)),
    ("cudnn_convolution_transpose", lambda a, out: _convolution(a["self"], a["weight"], out, True)),
    ("convolution_backward convolution_backward_overrideable", _convolution_backward),
    *((operators, _matrix_product(*operands)) for operands, operators in _PRODUCTS.items()),
    ("addr addr_", lambda a, _: a["vec1"].numel() * a["vec2"].numel()),
    ("linear", lambda a, _: a["input"].numel() // a["weight"].shape[-1] * a["weight"].numel()),
    (f"{_ATTENTION} _scaled_dot_product_attention_math_for_mps", _attention(1, 1)),
    (_ATTENTION.replace(" ", "_backward ") + "_backward", _attention(3, 2)),
    ("_flash_attention_forward", _attention(1, 1, packed=_FLASH_BOUNDS)),
    ("_efficient_attention_forward", _attention(1, 1, packed=_EFFICIENT_BOUNDS)),
    ("_flash_attention_backward", _attention(3, 2, packed=_FLASH_BOUNDS)),
    ("_efficient_attention_backward", _attention(3, 2, packed=_EFFICIENT_BOUNDS)),
    ("_native_multi_head_attention", lambda a, _: _multi_head_attention(a["query"], a["key"], a["embed_dim"])),
    ("_transformer_encoder_layer_fwd", _fused_encoder_layer),
    ("mkldnn_rnn_layer", lambda a, _: _recurrent(a["input"], (a["weight0"], a["weight1"]))),
    ("mkldnn_rnn_layer_backward", lambda a, _: _recurrent(a["input"], (a["weight1"], a["weight2"]), passes=2)),
    ("_cudnn_rnn _cudnn_rnn_backward", _cudnn_recurrent),
)
FORMULAS = {operator: formula for operators, formula in _FORMULAS for operator in operators.split()}
"""Operators of the `aten` namespace with a formula. Composite operators (`conv2d`, `einsum`, `matmul`, ...) need none:
they are counted by what they decompose into, so nothing is counted twice."""


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


CREATION = _operators(
    "arange bernoulli_ exponential_ eye eye_ fill fill_ full full_like linspace log_normal_ logspace new_full new_ones "
    "new_zeros normal_ ones ones_like rand rand_like randint randint_like randn randn_like random_ randperm "
    "scalar_tensor tril_indices triu_indices uniform_ zero zero_ zeros zeros_like"
)
"""Operators that write constants or random numbers: they read nothing."""

ALLOCATION = _operators(
    "_efficientzerotensor empty empty_like empty_permuted empty_quantized empty_strided is_same_size new_empty "
    "new_empty_strided resize_ set_ size stride sym_numel sym_size sym_storage_offset sym_stride"
)
"""Operators that allocate, or look at shapes: they touch no element."""

GATHER = _operators("_unsafe_index embedding gather index index_select masked_select take")
"""Operators that read only as many elements of their first operand as they return."""

SCATTER = dict.fromkeys(("index_add_", "index_copy_", "put_"), "source") | dict.fromkeys(
    ("scatter_", "scatter_add_", "scatter_reduce_"), "index"
)
"""Operators that write, in place, only as many elements as the named argument has. `index_put_` does too."""

OVERWRITE = _operators("copy_ index_copy_ index_put_ _index_put_impl_ put_ scatter_")
"""Operators in place that do not read what they write over, unless they reduce or accumulate."""

_MOVED = _operators(
    "_local_scalar_dense _nested_from_padded _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned "
    "_nested_tensor_from_tensor_list _pack_padded_sequence _to_dense _to_sparse bernoulli cat clone "
    "constant_pad_nd copy dequantize diag_embed diagonal_scatter embedding_dense flip im2col index_fill "
    "index_fill_ index_put masked_fill masked_fill_ masked_scatter masked_scatter_ native_channel_shuffle "
    "pixel_shuffle pixel_unshuffle put reflection_pad1d reflection_pad2d reflection_pad3d repeat "
    "replication_pad1d replication_pad2d replication_pad3d roll rot90 scatter select_scatter slice_scatter stack "
    "to_mkldnn to_padded_tensor tril tril_ triu triu_ unsafe_split unsafe_split_with_sizes upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d where"
)
MOVEMENT = CREATION | ALLOCATION | GATHER | OVERWRITE | _MOVED
"""Operators whose results hold nothing but elements of their operands (verbatim, or converted to another type),
constants and random numbers; so do the copying forms of views, whose names end in `_copy`."""


def _is_arithmetic(operator: str, arg: dict[str, Any], tensors: Iterable[Tensor]) -> bool:
    """Whether an operator without a formula computes with floating point numbers.

    It does when an operand or a result is floating point, complex or quantised, and it is not in `MOVEMENT`; a scatter
    with `reduce` or `accumulate` is arithmetic.
    """
    moves = (operator in MOVEMENT or operator.endswith("_copy")) and not _accumulates(arg)
    return not moves and any(t.is_floating_point() or t.is_complex() or t.is_quantized for t in tensors)


def _accumulates(arg: dict[str, Any]) -> bool:
    return bool(arg.get("accumulate") or arg.get("reduce"))


class _Counting(TorchDispatchMode):
    def __init__(self, tally: Tally, running: list[str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally, self.running = tally, running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _PAUSED.get():
            return func(*args, **kwargs)
        operands = {id(t): t for t in (*_tensors(args), *_tensors(tuple(kwargs.values())))}
        if _is_composite(func) and not any(t.is_nested for t in operands.values()):  # nested ones have other kernels
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        out = func(*args, **kwargs)
        if not func.is_view and torch.Tag.inplace_view not in func.tags:
            self._add(func, args, kwargs, operands, out)
        return out

    def _add(self, func: Any, args: Any, kwargs: dict[str, Any], operands: dict[int, Tensor], out: Any) -> None:
        tally, name, operator, arg = self.tally, str(func), _operator(func), _by_name(func, args, kwargs)
        results = {id(t): t for t in _tensors(out)}
        written = _written(func, arg)
        known = {_storage(t) for t in operands.values()}
        if results and not written and all(_storage(t) in known for t in results.values()):  # a view
            return
        tally.bytes += _bytes_moved(operator, arg, operands, results, written)
        macs = operator_macs(func, args, kwargs, out)
        if macs is not None:
            tally.macs += macs
            tally.by_operator[name] += macs
            if self.running is not None:
                tally.by_module[self.running[-1] if self.running else OUTSIDE] += macs
        elif _is_arithmetic(operator, arg, (operands | results).values()):
            tally.uncounted[name] += 1


def _bytes_moved(
    operator: str,
    arg: dict[str, Any],
    operands: dict[int, Tensor],
    results: dict[int, Tensor],
    written: dict[int, tuple[Tensor, bool]],
) -> int:
    """Bytes that one operator read and wrote; `written` maps the operands it writes to (operand, is an `out=`)."""
    if operator in ALLOCATION:
        return 0
    reads = {} if operator in CREATION else {key: _bytes(t) for key, t in operands.items()}
    known = {_storage(t) for t in operands.values()}
    writes = sum(_bytes(t) for t in results.values() if _storage(t) not in known)
    if operator in GATHER:
        source = next(iter(operands))
        reads[source] = min(reads[source], writes)
    for key, (t, is_out) in written.items():
        touched = min(_bytes(t), _touched(operator, arg, t) * t.element_size())
        writes += touched
        if is_out or operator in CREATION or (operator in OVERWRITE and not _accumulates(arg)):
            reads.pop(key, None)
        else:
            reads[key] = touched
    return writes + sum(reads.values())


def _touched(operator: str, arg: dict[str, Any], x: Tensor) -> int:
    """How many elements of `x` an operator writes in place."""
    if operator in SCATTER:
        return int(arg[SCATTER[operator]].numel())
    if operator not in ("index_put_", "_index_put_impl_"):
        return x.numel()
    places: tuple[int, ...] = ()
    indexed, axis = 1, 0
    for index in arg["indices"]:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        axes = index.ndim if mask else 1
        if index is not None:
            shape = (int(index.count_nonzero()),) if mask else index.shape
            places = torch.broadcast_shapes(places, shape)
            indexed *= math.prod(x.shape[axis : axis + axes])
        axis += axes
    return math.prod(places) * (x.numel() // indexed) if indexed else 0


def _bytes(t: Tensor) -> int:
    """Bytes of the distinct elements of `t`."""
    if t.layout in _SPARSE:
        return sum(part.numel() * part.element_size() for part in _parts(t))
    if t.layout is not torch.strided or t.is_nested:
        return t.numel() * t.element_size()
    distinct = math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride != 0)
    return min(distinct * t.element_size() if t.numel() else 0, t.untyped_storage().nbytes())


def _parts(t: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that a sparse one is made of."""
    if t.layout is torch.sparse_coo:
        return t._indices(), t._values()
    if t.layout is torch.sparse_csr:
        return t.crow_indices(), t.col_indices(), t.values()
    return t.ccol_indices(), t.row_indices(), t.values()


def _storage(t: Tensor) -> int:
    """What two tensors have in common when one is a view of the other."""
    return t.untyped_storage()._cdata if t.layout is torch.strided and not t.is_nested else id(t)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an operator's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


@cache
def _is_composite(func: Any) -> bool:
    """Whether torch runs the operator as a composition of others, which inference mode leaves to the dispatcher.

    Its own C++ composition is followed: `func.decompose()` may take one in Python that uses other kernels.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _operator(func: Any) -> str:
    name: str = func._schema.name.split("::")[1]
    return name


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the operator's schema; those left at their default are absent."""
    return {**dict(zip(_names(func), args, strict=False)), **kwargs}


@cache
def _names(func: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)


def _written(func: Any, arg: dict[str, Any]) -> dict[int, tuple[Tensor, bool]]:
    """Each operand that the operator writes to, by its id, and whether it is an `out=` argument."""
    return {id(t): (t, is_out) for name, is_out in _mutable(func) for t in _tensors(arg.get(name))}


@cache
def _mutable(func: Any) -> tuple[tuple[str, bool], ...]:
    written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return tuple((a.name, a.is_out) for a in written)
