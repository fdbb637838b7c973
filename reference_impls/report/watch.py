"""Sees every operator that a model runs, by whatever way it is called, and lets its products be computed otherwise.

Work is seen where torch dispatches it, so functional calls, fused attention and other people's modules need no
adapter. What multiplies matrices is a *site*: an operator with a formula for its MACs, named by the module in which it
runs and by its turn there. An editor may compute a site from other operands; everything after it then runs on that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reference_impls.accounting.count import Tally, count, operator_macs, running_modules
from reference_impls.contract import tensors

SiteType = Literal["conv", "linear", "matmul", "attention", "recurrent", "other"]
TYPES: dict[str, tuple[SiteType, str]] = {
    "convolution": ("conv", "input"),
    "_convolution": ("conv", "input"),
    "addmm": ("linear", "mat1"),
    "_addmm_activation": ("linear", "mat1"),
    "mm": ("linear", "self"),
    "linear": ("linear", "input"),
    "bmm": ("matmul", "self"),
    "baddbmm": ("matmul", "batch1"),
    "_scaled_dot_product_flash_attention_for_cpu": ("attention", "query"),
    "_scaled_dot_product_flash_attention": ("attention", "query"),
    "_scaled_dot_product_efficient_attention": ("attention", "query"),
    "_scaled_dot_product_cudnn_attention": ("attention", "query"),
    "mkldnn_rnn_layer": ("recurrent", "input"),
    "_cudnn_rnn": ("recurrent", "input"),
}
"""Operator -> its type, and the argument that holds the data."""
WEIGHTS = {"addmm": "mat2", "_addmm_activation": "mat2", "mm": "mat2", "linear": "weight", "convolution": "weight"}


@dataclass
class Site:
    """One operator with a formula, at one place of the model; sums over a run."""

    name: str
    type: SiteType
    operator: str
    module: str
    macs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    calls: int = 0


@dataclass
class Call:
    """One call of a site."""

    site: Site
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    """Items in the batch that runs."""
    clock: Callable[[], float] = float
    changed: dict[str, Any] = field(default_factory=dict)
    """Operands that an edit puts in the place of the call's own."""

    @cached_property
    def named(self) -> dict[str, Any]:
        """The call's own arguments by their names in the operator's schema."""
        names = (argument.name for argument in self.func._schema.arguments)
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    @cached_property
    def argument(self) -> str:
        """Name of the argument that holds the data."""
        return TYPES[short(self.func)][1]

    @property
    def x(self) -> Tensor:
        """The data that is multiplied: (B, C, *size) of a convolution, (rows, C) of a product with weights."""
        return self.operand(self.argument)

    def operand(self, name: str) -> Tensor:
        """An operand by its name, as it stands now."""
        found: Tensor = self.changed[name] if name in self.changed else self.named[name]
        return found

    @cached_property
    def weight(self) -> Tensor | None:
        """(C', C / groups, *kernel) of a convolution, (C, C') of a product with weights; None if there is none."""
        name = WEIGHTS.get(short(self.func).removeprefix("_"))
        found = self.named.get(name) if name else None
        return found if isinstance(found, Tensor) else None

    def rows(self, x: Tensor | None = None) -> Tensor | None:
        """The data of each item as rows (B, N, C): positions of a map, tokens, or one vector; None if unknown."""
        x = self.x if x is None else x
        if self.site.type == "conv":
            return x.flatten(2).transpose(1, 2) if len(x) == self.batch else None
        if x.ndim == 2:  # what does not follow from the items, such as a table of positions, has rows of its own
            return x.reshape(self.batch, -1, x.shape[1]) if len(x) % self.batch == 0 else None
        return x if x.ndim == 3 and len(x) == self.batch else None

    def sliding(self, name: str) -> tuple[int, int]:
        """Stride, padding or dilation of a convolution of maps, down and across."""
        found = tuple(self.named[name])
        return (found[0], found[-1])

    def cost(self, out: Any) -> float:
        """MACs of the dense call for one item, given a result of its shape."""
        return (operator_macs(self.func, self.args, self.kwargs, out) or 0) / self.batch

    def run(self) -> Any:
        """The operator, with what was changed."""
        if not self.changed:
            start = self.clock()
            out = self.func(*self.args, **self.kwargs)
            self.site.seconds += self.clock() - start
            return out
        positional = [a.name for a in self.func._schema.arguments][: len(self.args)]
        args = tuple(self.changed.get(name, value) for name, value in zip(positional, self.args, strict=True))
        kwargs = {**self.kwargs, **{k: v for k, v in self.changed.items() if k not in positional}}
        return self.func(*args, **kwargs)


Editor = Callable[[Call], Any]
"""Computes a site."""
After = Callable[[Any, tuple[Any, ...], Any, str], Any]
"""Takes (function, operands, result, name of the module) of an operator that is no product; gives the result to use."""


@dataclass
class Log:
    """What a run did."""

    sites: dict[str, Site] = field(default_factory=dict)
    other_seconds: float = 0.0
    """In operators without a formula."""
    uncounted: dict[str, int] = field(default_factory=dict)


class Watch(TorchDispatchMode):
    """Inside it, every product of `model` is a site. One forward pass is one `with watch.forward(batch):`."""

    def __init__(
        self, model: nn.Module, editor: Editor | None = None, *, after: After | None = None, timed: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log, self.editor, self.after, self.timed = Log(), editor, after, timed
        self.batch = 1
        self._model = model
        self._weights = {t.untyped_storage().data_ptr() for t in model.parameters()}
        self._running: list[str] = []
        self._turn: dict[str, int] = {}

    @contextmanager
    def forward(self, batch: int) -> Iterator[None]:
        """A forward pass of `batch` items."""
        self.batch, self._turn = batch, {}
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # fused layers hide their products
        try:
            with torch.no_grad(), running_modules(self._model) as self._running, self:
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if func.namespace != "aten" or short(func) not in TYPES:
            return self._other(func, args, kwargs)
        call = Call(self._site(func, args, kwargs), func, args, kwargs, self.batch, self._clock)
        out = call.run() if self.editor is None else self.editor(call)
        site = call.site
        site.calls += 1
        site.macs += operator_macs(func, args, kwargs, out) or 0
        site.bytes += sum(t.numel() * t.element_size() for t in tensors([list(args), out]))
        return out

    def _other(self, func: Any, args: Any, kwargs: Any) -> Any:
        start = self._clock()
        out = func(*args, **kwargs)
        self.log.other_seconds += self._clock() - start
        macs = operator_macs(func, args, kwargs, out) if func.namespace == "aten" else None
        if macs:
            site = self._site(func, args, kwargs)
            site.macs, site.calls = site.macs + macs, site.calls + 1
        if self.after is not None and not func.is_view:
            return self.after(func, args, out, self._running[-1] if self._running else "")
        return out

    def _site(self, func: Any, args: Any, kwargs: Any) -> Site:
        name = self._running[-1] if self._running else ""
        turn = self._turn[name] = self._turn.get(name, 0) + 1
        key = f"{name or '(model)'}#{turn}" if turn > 1 else name or "(model)"
        if key not in self.log.sites:
            self.log.sites[key] = Site(key, self._type(func, args, kwargs), str(func), name)
        return self.log.sites[key]

    def _type(self, func: Any, args: Any, kwargs: Any) -> SiteType:
        if short(func) not in TYPES:
            return "other"
        kind = TYPES[short(func)][0]
        if kind == "linear":
            named = Call(Site("", kind, "", ""), func, args, kwargs, 1)
            stored = named.weight is not None and named.weight.untyped_storage().data_ptr() in self._weights
            return "linear" if stored else "matmul"
        return kind

    def _clock(self) -> float:
        if not self.timed:
            return 0.0
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


@cache
def _is_composite(func: Any) -> bool:
    """Whether torch runs the operator as others, which are then seen."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def short(func: Any) -> str:
    """`aten.addmm.default` -> `addmm`."""
    name: str = func._schema.name.split("::")[1]
    return name


def counted(model: nn.Module, run: Callable[[], object]) -> Tally:
    """MACs and bytes of a run, by the counter that everything in the atlas is counted with."""
    with torch.no_grad(), count(model) as tally:
        run()
    return tally
