"""One block of a transformer, in the terms that techniques need, and how adapters find such blocks in a model."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract.replacement import own_forward, replaced_by
from reference_impls.hosts.tokens import ReducedTokens

_AS_IS = nn.Identity()
HARMLESS = {"num_items_in_batch", "output_hidden_states", "return_dict", "use_cache"}
"""Keyword arguments that models hand down to blocks, which do nothing with them."""


@dataclass(frozen=True)
class Positions:
    """What the attention of a block knows of the places of its tokens, where that does not stand in the tokens."""

    bias: Tensor | None = None
    """Added to the attention logits: (1 or B, H, N, N)."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines, (1 or B, 1 or H, N, d) each, for every token (1 and 0 for a token without a place)."""

    def of(self, anchor: Tensor, group: Tensor, sizes: bool) -> Positions:
        """The positions of n tokens that stand for N, each at the place of its anchor.

        anchor: (B, n) the token that each one grew from. group: (B, N) the token that stands for each. With `sizes`, a
        token's weight is that of all it stands for: logsumexp of their biases, which is log s where these are equal.
        """
        bias, rotary = self.bias, self.rotary
        if bias is not None:
            B, n, H = anchor.shape[0], anchor.shape[1], bias.shape[1]
            bias = bias.expand(B, -1, -1, -1).float()
            bias = bias.gather(2, anchor[:, None, :, None].expand(-1, H, -1, bias.shape[3]))  # (B, H, n, N)
            index = group[:, None, None, :].expand(-1, H, n, -1)
            if sizes:
                top = bias.amax(-1, keepdim=True)
                sums = torch.zeros_like(bias[..., :n]).scatter_add(3, index, (bias - top).exp())
                bias = sums.log() + top
            else:
                bias = bias.gather(3, anchor[:, None, None, :].expand(-1, H, n, -1))
        if rotary is not None:
            cos, sin = (x.expand(anchor.shape[0], -1, -1, -1) for x in rotary)
            index = anchor[:, None, :, None].expand(-1, cos.shape[1], -1, cos.shape[3])
            rotary = cos.gather(2, index), sin.gather(2, index)
        return Positions(bias, rotary)


NOWHERE = Positions()

Norms = Literal["before", "behind", "after"]
"""Where the norm of a branch stands: x + branch(norm(x)), x + norm(branch(x)) or norm(x + branch(x))."""


class Block(ABC):
    """One transformer block, attention and then an MLP, of a model that stays as it is.

    `module` is the model's own block. `prefix` is the number of leading tokens that stand for no place in the datum
    (class, distillation and register tokens). `index` counts the blocks of one chain, of which `last` is the last;
    `chain` counts the blocks of the chains before it.

    A subclass knows one family's structure: which `PARTS` of the block it calls as they are, which `TENSORS` it reads
    itself, and in which order. `hosts.trial` holds it to that.
    """

    PARTS: ClassVar[tuple[str, ...]]
    """Paths of submodules that are called as they are; a block need not have all of them."""
    TENSORS: ClassVar[tuple[str, ...]] = ()
    """Paths of parameters and buffers that are read outside of their module."""
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()
    """Paths of dropouts of the attention that `dropout` stands for."""
    TOKENS: ClassVar[str] = "hidden_states"
    """Name of the block's first argument."""
    HIDES: ClassVar[bool] = False
    """The value of a mask of booleans that hides."""
    NORMS: ClassVar[tuple[Norms, ...]] = ("before",)
    """Where the norms of such blocks may stand; the trial finds out where they do."""
    batch_first = True

    def __init__(self, module: nn.Module, prefix: int, chain: int, index: int, last: bool) -> None:
        self.module, self.prefix, self.chain, self.index, self.last = module, prefix, chain, index, last
        self.name = f"block {chain + index}"
        self._parts = {path: path.split(".") for path in self.PARTS if _has(module, path)}
        self._through: dict[tuple[str, ...], list[list[str]]] = {}
        self._inner = {
            path: path.split(".")
            for path, _ in module.named_modules()
            if path and not any(path == part or path.startswith(f"{part}.") for part in self._parts)
        }
        self._tensors = {path: path.split(".") for path in self.TENSORS if isinstance(_get(module, path), Tensor)}
        self.norms: Norms = self.NORMS[0]
        self.beside: tuple[None, ...] | None = None
        """What the block returns after its tokens; None if it returns no tuple."""
        inputs = list(inspect.signature(own_forward(module)).parameters.values())[1:]  # the tokens first
        self._positional = [one.name for one in inputs if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
        self.required = [one.name for one in inputs if one.default is one.empty and one.name in self._positional]

    def of(self, module: nn.Module) -> Self:
        """The same view of a copy or replica of the block."""
        if module is self.module:
            return self
        other = copy.copy(self)
        other.module = module
        return other

    # What a family defines --------------------------------------------------------------------------------------------

    @abstractmethod
    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, d), of the tokens x: (B, N, D) before the block."""

    @abstractmethod
    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens after the attention branch, from those before it and the heads' joint output y: (B, N, H d)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """Tokens after the MLP branch, from those before it: (B, N, D) -> (B, N, D)."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """Number of attention heads H."""

    @property
    @abstractmethod
    def width(self) -> int:
        """H d, the joint width of all heads."""

    @property
    @abstractmethod
    def attention_weights(self) -> int:
        """MACs of the attention's linear layers for a token."""

    @property
    def mlp_weights(self) -> int:
        """MACs of the MLP's linear layers for a token."""
        return weights(self.part("mlp"))

    @property
    def scale(self) -> float:
        """Factor of the attention logits: d ** -0.5, where the model does not say another."""
        return float((self.width // self.heads) ** -0.5)

    @property
    def dropout(self) -> float:
        """Share of attention weights that training drops."""
        return 0.0

    @property
    def input_width(self) -> int:
        """D, the width of the tokens."""
        return self.part(self.PARTS[0]).normalized_shape[0]

    def positions(self, tokens: int, given: Mapping[str, Any]) -> Positions:
        """Of `tokens` tokens, from the block's own tables and from what the model gave it."""
        return NOWHERE

    def grid(self) -> int | None:
        """Number of tokens that the block's own position table is made for; None: any number will do."""
        return None

    def takes(self, name: str) -> bool:
        """Whether `positions` uses the argument of this name that the model gives its block."""
        return False

    def unfit(self) -> str | None:
        """What keeps this view from being right for reasons that its parts do not show."""
        attention = getattr(self.module, "attn", None)  # some, without windows, have a table for a `window_size`
        window = getattr(attention if hasattr(attention, "shift_size") else self.module, "window_size", 0)
        if any(window) if isinstance(window, tuple | list) else window:
            return f"attention among all tokens, but {self.name} attends within windows (window_size {window})"
        return None

    # What techniques use ----------------------------------------------------------------------------------------------

    def part(self, path: str) -> Any:
        """The submodule at a path, or the identity if the block has none."""
        names = self._parts.get(path)
        return _AS_IS if names is None else _at(self.module, names)

    def through(self, y: Tensor, *parts: str) -> Tensor:
        """What becomes of y in the parts of these paths that the block has, one after the other."""
        if (there := self._through.get(parts)) is None:
            there = self._through[parts] = [self._parts[path] for path in parts if path in self._parts]
        for names in there:
            y = _at(self.module, names)(y)
        return y

    def tensor(self, path: str) -> Tensor | None:
        """The parameter or buffer at a path, None if the block has none."""
        names = self._tensors.get(path)
        return None if names is None else getattr(_at(self.module, names[:-1]), names[-1])

    def in_front(self, x: Tensor, norm: str) -> Tensor:
        """What a branch with the norm of this path is given."""
        return self.through(x, norm) if self.norms == "before" else x

    def joined(self, x: Tensor, y: Tensor, norm: str, *parts: str) -> Tensor:
        """The tokens after a branch of output y, which goes on through these parts, and around it."""
        if self.norms == "before":
            return x + self.through(y, *parts)
        if self.norms == "behind":
            return x + self.through(y, norm, *parts)
        return self.through(x + self.through(y, *parts), norm)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The tokens, and what else of use there is, among the arguments that the model gives its block.

        Raises: NotImplementedError for anything that the rebuilt block would ignore, such as a mask.
        """
        given = dict(kwargs)
        x, *others = args or (given.pop(self.TOKENS),)
        given |= zip(self._positional, others, strict=False)
        wanted = {name: value for name, value in given.items() if self.takes(name)}
        ignored = {name: value for name, value in given.items() if name not in HARMLESS | {*wanted}}
        unknown = [repr(name) for name, value in ignored.items() if _says(value, self.HIDES)]
        unknown += [type(value).__name__ for value in others[len(self._positional) :] if _says(value, self.HIDES)]
        unknown += [name for name, module in self.bypassed() if not quiet(module)]
        if unknown:
            raise NotImplementedError(
                f"{self.name} was given or asked for more than its tokens, which reduced tokens cannot serve (a mask, "
                f"attention maps, a hook inside attention): {', '.join(unknown)}"
            )
        if not isinstance(x, ReducedTokens) and (x.is_nested or x.ndim != 3):
            shape = "nested, so some are padding" if x.is_nested else f"of shape {tuple(x.shape)}"
            raise NotImplementedError(f"{self.name} was given tokens that are {shape}; merging needs (B, N, D)")
        return x, wanted

    def written(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> tuple[Any, Mapping[str, Any]]:
        """The same arguments with tokens x."""
        x = x if self.batch_first else x.transpose(0, 1)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, self.TOKENS: x})

    def returned(self, x: Tensor) -> Any:
        """Tokens as the block returns them."""
        return x if self.beside is None else (x, *self.beside)

    def tokens(self, returned: Any) -> Tensor:
        """The tokens (B, N, D) in what the block returns."""
        x = first_of(returned)
        return x if self.batch_first else x.transpose(0, 1)

    def attention(self, x: Tensor, bias: Tensor | None = None, positions: Positions = NOWHERE) -> tuple[Tensor, Tensor]:
        """Tokens after attention by the fused kernel, and its keys: (B, N, D) -> (B, N, D), (B, H, N, d).

        `bias`, broadcastable to (B, H, N, N), is added to the attention logits, beside that of the positions.
        """
        q, k, v = self.qkv(x)
        y, k = self.attended(q, k, v, bias, positions)
        return self.mixed(x, y), k

    def attended(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, positions: Positions = NOWHERE
    ) -> tuple[Tensor, Tensor]:
        """The heads' joint output (B, N, H d) and the keys that logits were made of, from what `qkv` gives."""
        if positions.rotary is not None:
            q, k = (self.rotated(y, *positions.rotary) for y in (q, k))
        if positions.bias is not None:
            bias = positions.bias if bias is None else bias + positions.bias
        dropout = self.dropout if self.module.training else 0.0
        bias = bias if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return y.transpose(1, 2).flatten(2), k

    def keys(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The keys (B, H, N, d) that logits are made of, when the model gives its block these arguments."""
        given, extra = self.read(args, kwargs)
        x = given if self.batch_first else given.transpose(0, 1)
        _, k, _ = self.qkv(x)
        rotary = self.positions(x.shape[1], extra).rotary
        return k if rotary is None else self.rotated(k, *rotary)

    def rotated(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (B, H, N, d) turned by their positions, halves of a head as real and imaginary parts."""
        a, b = y.chunk(2, -1)
        return (y * cos + torch.cat((-b, a), -1) * sin).to(y.dtype)

    def attention_macs(self, tokens: int) -> int:
        """Closed form of the attention branch's MACs for one datum of `tokens` tokens (logits, then values)."""
        return tokens * self.attention_weights + 2 * tokens * tokens * self.width

    def mlp_macs(self, tokens: int) -> int:
        """Closed form of the MLP branch's MACs for one datum of `tokens` tokens."""
        return tokens * self.mlp_weights

    # Held to the model's own block ------------------------------------------------------------------------------------

    def bypassed(self) -> Iterator[tuple[str, nn.Module]]:
        """Submodules whose own forward does not run, by path: what the view computes itself."""
        for path, names in self._inner.items():
            yield path, _at(self.module, names)

    def example(self, x: Tensor) -> dict[str, Any]:
        """What else the model would give its block with tokens x: (1, N, D), by name."""
        return {}

    def accepts(self, name: str) -> bool:
        """Whether the model's block has an argument of this name."""
        return name in self._positional


def first_of(returned: Any) -> Any:
    return returned[0] if isinstance(returned, tuple) and returned else returned


def _at(module: Any, names: list[str]) -> Any:
    for name in names:
        module = module._modules[name]
    return module


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _has(module: nn.Module, path: str) -> bool:
    return isinstance(_get(module, path), nn.Module)


def _says(value: Any, hides: bool = False) -> bool:
    """Whether an argument changes what the block computes: no None, False, or mask that hides nothing.

    `hides`: the value of a mask of booleans that hides.
    """
    if not isinstance(value, Tensor):
        return value is not None and value is not False
    return not hides_nothing((value != hides).all() if value.dtype == torch.bool else (value == 0).all())


def hides_nothing(condition: Tensor) -> bool:
    """Whether a mask hides nothing, which the condition says. An exported graph, for which Hugging Face always makes a
    mask, checks it when it runs."""
    if torch.compiler.is_exporting():
        torch._assert_async(condition, "tokens merge, so a mask must hide nothing")
        return True
    return bool(condition)


def quiet(module: nn.Module) -> bool:
    """Nothing listens to the module, or only what Hugging Face leaves once attention maps were asked for."""
    attributes = vars(module)
    if "forward" in attributes or getattr(attributes.get("config"), "output_attentions", False) or replaced_by(module):
        return False
    hooks = (attributes[name] for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
    alien = (getattr(hook, "__name__", "") != "output_capturing_hook" for some in hooks for hook in some.values())
    return not any(alien)


def weights(*modules: nn.Module) -> int:
    """Number of weights of all linear layers in the modules: their MACs for a token."""
    layers = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in layers)
