"""Modules of a network that run something cheaper in their own place, for all data of a batch or for chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Substitution(Generic[M]):
    """Runs `cheap(module, x)` in the place of each module's forward, until `undo()`. The modules stay where they are.

    `chosen(module, x)` tells of each datum of a batch x (B, ...) whether it takes the substitute: (B,) bool; None: all.
    Both give outputs of the same shape.
    """

    def __init__(
        self,
        modules: Mapping[str, M],
        cheap: Callable[[M, Tensor], Tensor],
        chosen: Callable[[M, Tensor], Tensor] | None = None,
    ) -> None:
        self.modules, self.cheap, self.chosen = modules, cheap, chosen
        self._runs: dict[str, tuple[torch.Size, int]] = {}
        self._own = {name: vars(module).get("forward") for name, module in modules.items()}  # another technique's
        for name, module in modules.items():
            module.forward = lambda x, name=name, dense=module.forward: self._forward(name, dense, x)

    def undo(self) -> None:
        """Give the modules back the forward that they had."""
        for name, module in self.modules.items():
            del module.forward
            if (own := self._own[name]) is not None:
                module.forward = own

    def trace(self) -> dict[str, Any]:
        """Of the last run, `substituted`: of each module the shape of its input, and for how many data of the batch."""
        return {"substituted": dict(self._runs)}

    def _forward(self, name: str, dense: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        module = self.modules[name]
        chosen = torch.ones(len(x), dtype=torch.bool) if self.chosen is None else self.chosen(module, x)
        number = int(chosen.sum())
        self._runs[name] = (x.shape, number)
        if number == 0:
            return dense(x)
        if number == len(x):
            return self.cheap(module, x)
        cheap, y = self.cheap(module, x[chosen]), dense(x[~chosen])
        out = cheap.new_empty(len(x), *cheap.shape[1:])
        out[chosen], out[~chosen] = cheap, y
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
