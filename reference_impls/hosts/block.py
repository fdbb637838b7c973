"""One block of a transformer, in the terms that techniques need, and how adapters find such blocks in a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_AS_IS = nn.Identity()


class Block(ABC):
    """One pre-norm transformer block, `x + attention(x)` followed by `x + mlp(x)`, of a model that stays as it is.

    `module` is the model's own block, `original(x)` computes it as it was when this view was made. `prefix` is the
    number of leading tokens that stand for no place in the datum (class, distillation and register tokens).
    """

    def __init__(self, name: str, module: nn.Module, prefix: int) -> None:
        self.name, self.module, self.prefix = name, module, prefix
        self.original: Callable[[Tensor], Tensor] = module.forward

    @abstractmethod
    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, d), of the tokens x: (B, N, D) in front of the first norm."""

    @abstractmethod
    def project(self, y: Tensor) -> Tensor:
        """What the attention branch adds to the residual, from the heads' joint output y: (B, N, H d) -> (B, N, D)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP branch adds to the residual, its norm included: (B, N, D) -> (B, N, D)."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """Number of attention heads H."""

    @property
    def scale(self) -> float:
        """Factor of the attention logits: d ** -0.5, where the model does not say another."""
        return float((self.width // self.heads) ** -0.5)

    @property
    @abstractmethod
    def attention_linears(self) -> list[nn.Linear]:
        """Linear layers of the attention branch, the output projection last."""

    @property
    @abstractmethod
    def mlp_linears(self) -> list[nn.Linear]:
        """Linear layers of the MLP branch."""

    @property
    def width(self) -> int:
        """H d, the joint width of all heads."""
        return self.attention_linears[-1].in_features

    def through(self, y: Tensor, *parts: str) -> Tensor:
        """What becomes of y in those of the named parts that the model's own block has, one after the other."""
        for part in parts:
            y = getattr(self.module, part, _AS_IS)(y)
        return y

    def attention(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The attention branch by the fused kernel, and its keys: (B, N, D) -> (B, N, D), (B, H, N, d).

        `bias`, broadcastable to (B, H, N, N), is added to the attention logits.
        """
        q, k, v = self.qkv(x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)  # (B, H, N, d)
        return self.project(y.transpose(1, 2).flatten(2)), k

    def attention_macs(self, tokens: int) -> int:
        """Closed form of the attention branch's MACs for one datum of `tokens` tokens (logits, then values)."""
        return tokens * _weights(self.attention_linears) + 2 * tokens * tokens * self.width

    def mlp_macs(self, tokens: int) -> int:
        """Closed form of the MLP branch's MACs for one datum of `tokens` tokens."""
        return tokens * _weights(self.mlp_linears)

    def replace(self, forward: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """Let `forward(x)` compute the block from now on; returns the function that undoes it.

        Replacements nest: undo them in the reverse order. What else the model passes to its block must be None or
        False (no attention mask, no attention output), else the block raises NotImplementedError.
        """
        attributes = vars(self.module)
        before = {"forward": attributes["forward"]} if "forward" in attributes else {}

        def replaced(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if any(a is not None and a is not False for a in (*args, *kwargs.values())):
                raise NotImplementedError(
                    f"{self.name} was given more than its tokens (such as a mask): {kwargs or args}"
                )
            return forward(x)

        attributes["forward"] = replaced

        def undo() -> None:
            del attributes["forward"]
            attributes.update(before)

        return undo


def _weights(layers: list[nn.Linear]) -> int:
    return sum(layer.in_features * layer.out_features for layer in layers)


def linears(module: nn.Module) -> list[nn.Linear]:
    """Every linear layer inside `module`."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def chains(model: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every list of modules in `model` whose members all satisfy `fits`, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and all(map(fits, module)):
            yield name, list(module)
