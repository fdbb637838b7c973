"""Chains of blocks in a model, and how many of their tokens stand for no place in the datum."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import Tensor, nn


def chains(model: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every list of modules in `model` whose members all satisfy `fits`, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and all(map(fits, module)):
            yield name, list(module)


LEADING = (
    *("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token", "reg_token"),
    *("register_tokens", "storage_tokens"),
)
"""Parameters that hold tokens before those of the datum."""


def leading_tokens(model: nn.Module, chain: str) -> int | None:
    """How many leading tokens stand for no place, by the parameters of whoever owns the chain of blocks of that name.

    The owner is the nearest that has such parameters, or that makes tokens of patches. None where a parameter looks
    like such a token, but has a name that nobody knows: then only the user can tell.
    """
    path = chain
    while path:
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
        if hasattr(owner, "num_prefix_tokens"):
            return int(owner.num_prefix_tokens)
        inside = chain.removeprefix(f"{path}.") + "."
        own = [(name, p) for name, p in owner.named_parameters() if not name.startswith(inside)]
        if any(_looks_leading(name, p) for name, p in own):
            return None
        known = [p for name, p in own if name.rpartition(".")[2] in LEADING]
        if known:
            return sum(p.shape[-2] if p.ndim > 1 else 1 for p in known)
        if any("patch" in name for name, _ in own):
            return 0
    return 0


def _looks_leading(name: str, parameter: Tensor) -> bool:
    _, _, last = name.rpartition(".")
    if last in LEADING or re.search("pos|mask|probe|latent|query", last):
        return False
    if parameter.ndim == 3 and len(parameter) == 1:
        return "." not in name or "token" in last
    return parameter.ndim in (1, 2) and bool(re.search("token|cls", last)) and parameter.numel() == parameter.shape[-1]
