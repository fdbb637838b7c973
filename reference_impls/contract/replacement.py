"""The one way in which a technique replaces what a module of somebody's model computes.

    undo = replace(module, compute, "my-technique")      # compute(module, below, *inputs) -> what the module returns

`below(*inputs)` is what the module computed before. Replacements of a module form a stack; each can be taken out in any
order. The stack stands on the module itself, whose class becomes a subclass of its own, so that `copy.deepcopy`,
`torch.optim.swa_utils.AveragedModel`, pickle and the replicas of data parallelism get a stack that works on their own
weights. For that, `compute` keeps no module: it is given the one that runs. A `compute` that cannot be pickled
(a lambda) makes the model one that cannot be pickled either.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import nn

_STACK = "_replacements"


@dataclass(eq=False)
class _Replacement:
    compute: Callable[..., Any]
    technique: str


def replace(module: nn.Module, compute: Callable[..., Any], technique: str) -> Callable[[], None]:
    """Let `compute(module, below, *args, **kwargs)` stand for the module's forward; returns what undoes it.

    `technique` is the id of the technique that does it (`replaced_by` tells). The undo may come in any order with
    others, and does nothing the second time.
    """
    attributes = vars(module)
    if _STACK not in attributes:
        below = attributes.pop("forward", None)  # another library's, put on the instance
        attributes[_STACK] = [] if below is None else [_Replacement(partial(_instead, below), "")]
        kind: Any = type(module)
        module.__class__ = _replaceable(kind)
    attributes[_STACK].append(own := _Replacement(compute, technique))

    def undo() -> None:
        stack = attributes.get(_STACK, ())
        if own not in stack:
            return
        stack.remove(own)
        if not any(one.technique for one in stack):
            _restore(module)

    return undo


def replaced_by(module: nn.Module) -> tuple[str, ...]:
    """Ids of the techniques that replace what the module itself computes, the outermost last."""
    return tuple(one.technique for one in vars(module).get(_STACK, ()) if one.technique)


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """What the module computes below all techniques."""
    stack = vars(module).get(_STACK)
    if stack is None:
        return module.forward
    return partial(_run, module, sum(not one.technique for one in stack) - 1)


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that the module's class defines, below all techniques: `own_forward(module)(module, *inputs)`."""
    kinds: Any = type(module).__mro__
    own = next(kind for kind in kinds if "_unreplaced" not in vars(kind) and "forward" in vars(kind))
    return cast(Callable[..., Any], own.forward)


def refuse_capture(why: str, how: str) -> None:
    """Raise NotImplementedError while a graph is captured that holds no decisions (`torch.export`, `torch.jit.trace`).

    `why` says what depends on the data, `how` the way to apply the technique that can be captured.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise NotImplementedError(f"{why}, so the run cannot be captured as a graph: apply the technique {how}")


def _instead(below: Callable[..., Any], module: nn.Module, nothing: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    return below(*args, **kw)


def _restore(module: nn.Module) -> None:
    for one in vars(module).pop(_STACK):
        vars(module).setdefault("forward", one.compute.args[0])
    if "_unreplaced" in vars(type(module)):  # else another library has put a class of its own on top
        module.__class__ = vars(type(module))["_unreplaced"]


def _run(module: nn.Module, depth: int, *args: Any, **kwargs: Any) -> Any:
    """What the lowest `depth + 1` replacements make of a call."""
    if depth < 0:
        return own_forward(module)(module, *args, **kwargs)
    return vars(module)[_STACK][depth].compute(module, partial(_run, module, depth - 1), *args, **kwargs)


@cache
def _replaceable(kind: Any) -> Any:
    """The subclass of `kind` that runs the stack of its instance. It keeps the name, which other libraries look at."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _run(self, len(vars(self).get(_STACK, ())) - 1, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        parts: Any = kind.__reduce_ex__(self, max(protocol, 2))
        function, arguments, *rest = parts
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            raise TypeError(
                f"a {kind.__name__} cannot be copied or pickled while {', '.join(replaced_by(self))} applies"
            )
        return _new, (kind, *arguments[1:]), *rest

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), names | {"forward": forward, "__reduce_ex__": reduce, "_unreplaced": kind})


def _new(kind: Any, *args: Any) -> Any:
    kind = _replaceable(kind)
    return kind.__new__(kind, *args)
