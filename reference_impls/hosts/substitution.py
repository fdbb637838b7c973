"""Modules of a network that run something cheaper in their own place, for all data of a batch or for chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from reference_impls.contract.replacement import refuse_capture, replace

M = TypeVar("M", bound=nn.Module)


Choose = Callable[[Any, Tensor], Tensor]
"""`chosen(module, x)` tells of each datum of a batch x (B, ...) whether it takes the substitute: (B,) bool."""


class Substitution(Generic[M]):
    """Runs `cheap(module, x)` in the place of each module's forward, until `undo()`. The modules stay where they are.

    `chosen`: for which data of a batch; None: for all. Both ways give outputs of the same shape.
    """

    def __init__(
        self,
        technique: str,
        modules: Mapping[str, M],
        cheap: Callable[[Any, Tensor], Tensor],
        chosen: Choose | None = None,
    ) -> None:
        self._runs: dict[str, tuple[torch.Size, int]] = {}
        self._undo = [
            replace(module, partial(_either, cheap, chosen, self._runs, name), technique)
            for name, module in modules.items()
        ]

    def undo(self) -> None:
        """Give the modules back the forward that they had."""
        for undo in self._undo:
            undo()

    def trace(self) -> dict[str, Any]:
        """Of the last run, `substituted`: of each module the shape of its input, and for how many data of the batch."""
        return {"substituted": dict(self._runs)}


def _either(
    cheap: Callable[[Any, Tensor], Tensor],
    chosen: Choose | None,
    runs: dict[str, tuple[torch.Size, int]],
    name: str,
    module: nn.Module,
    dense: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """The substitute for the chosen data of x, what the module computed before for the others."""
    if chosen is None:
        runs[name] = (x.shape, len(x))
        return cheap(module, x)
    refuse_capture("which data take the substitute depends on them", "without a threshold")
    takes = chosen(module, x)
    number = int(takes.sum())
    runs[name] = (x.shape, number)
    if number == 0:
        return dense(x)
    if number == len(x):
        return cheap(module, x)
    substitute, y = cheap(module, x[takes]), dense(x[~takes])
    out = substitute.new_empty(len(x), *substitute.shape[1:])
    out[takes], out[~takes] = substitute, y
    return out


def saved(modules: Mapping[str, M], trace: Mapping[str, Any], saving: Callable[[M, torch.Size], int]) -> int:
    """Sum over the modules in the trace of a `Substitution`; `saving(module, input's shape)` is that of a datum."""
    runs = trace.get("substituted", {})
    return sum(number * saving(modules[name], shape) for name, (shape, number) in runs.items())


def modules_of(network: object, kind: type[M], eligible: Callable[[M], bool] = lambda module: True) -> dict[str, M]:
    """The eligible modules of a kind in a network, the network itself included, by name and in order."""
    modules = network.named_modules() if isinstance(network, nn.Module) else ()
    return {name: module for name, module in modules if isinstance(module, kind) and eligible(module)}


def inputs_of(modules: Mapping[str, M], network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """What reaches each module when the network runs on `inputs`, without gradients."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
