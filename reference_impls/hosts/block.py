"""One block of a transformer, in the terms that techniques need, and how adapters find such blocks in a model."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.count import uncounted
from reference_impls.contract import UnsupportedHost, generator
from reference_impls.contract.replacement import original_forward, replaced_by

_AS_IS = nn.Identity()
HARMLESS = {"num_items_in_batch", "output_hidden_states", "return_dict", "use_cache"}
"""Keyword arguments that models hand down to blocks, which do nothing with them."""
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a rebuilt block from the model's own, relative to the largest magnitude; 1e-4 otherwise."""


@dataclass(frozen=True)
class Positions:
    """What the attention of a block knows of the places of its tokens, where that does not stand in the tokens."""

    bias: Tensor | None = None
    """Added to the attention logits: (1 or B, H, N, N)."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines, (1 or B, N, d) each, for every token (1 and 0 for a token without a place)."""

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
            cos, sin = (x.expand(anchor.shape[0], -1, -1) for x in rotary)
            index = anchor.unsqueeze(-1).expand(-1, -1, cos.shape[-1])
            rotary = cos.gather(1, index), sin.gather(1, index)
        return Positions(bias, rotary)


NOWHERE = Positions()


class Block(ABC):
    """One transformer block, attention and then an MLP, of a model that stays as it is.

    `module` is the model's own block. `prefix` is the number of leading tokens that stand for no place in the datum
    (class, distillation and register tokens). `index` counts the blocks of one chain, of which `last` is the last;
    `chain` counts the blocks of the chains before it.

    A subclass knows one family's structure: which `PARTS` of the block it calls as they are, which `TENSORS` it reads
    itself, and in which order. `check` holds it to that.
    """

    PARTS: ClassVar[tuple[str, ...]]
    """Paths of submodules that are called as they are; a block need not have all of them."""
    TENSORS: ClassVar[tuple[str, ...]] = ()
    """Paths of parameters and buffers that are read outside of their module."""
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()
    """Paths of dropouts of the attention that `dropout` stands for."""
    TOKENS: ClassVar[str] = "hidden_states"
    """Name of the block's first argument."""
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
        self.in_tuple = False
        """The block returns its tokens as a tuple of one."""

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
        """Queries, keys and values, each (B, H, N, d), of the tokens x: (B, N, D) in front of the block."""

    @abstractmethod
    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens behind the attention branch, from those in front of it and the heads' joint output y: (B, N, H d)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """Tokens behind the MLP branch, from those in front of it: (B, N, D) -> (B, N, D)."""

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

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The tokens, and what else of use there is, among the arguments that the model gives its block.

        Raises: NotImplementedError for anything that the rebuilt block would ignore, such as a mask.
        """
        given = dict(kwargs)
        x, *others = args if args else (given.pop(self.TOKENS), *args)
        wanted = {name: value for name, value in given.items() if self.takes(name)}
        unknown = [repr(name) for name, value in given.items() if name not in HARMLESS | {*wanted} and _says(value)]
        unknown += [type(value).__name__ for value in others if _says(value)]
        unknown += [name for name, module in self.bypassed() if not _quiet(module)]
        if unknown:
            raise NotImplementedError(
                f"{self.name} was given or asked for more than its tokens, which reduced tokens cannot serve (a mask, "
                f"attention maps, a hook inside attention): {', '.join(unknown)}"
            )
        return x, wanted

    def written(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> tuple[Any, Mapping[str, Any]]:
        """The same arguments with tokens x."""
        x = x if self.batch_first else x.transpose(0, 1)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, self.TOKENS: x})

    def returned(self, x: Tensor) -> Any:
        """Tokens as the block returns them."""
        return (x,) if self.in_tuple else x

    def tokens(self, returned: Any) -> Tensor:
        """The tokens (B, N, D) in what the block returns."""
        x = returned[0] if isinstance(returned, tuple) else returned
        return x if self.batch_first else x.transpose(0, 1)

    def attention(self, x: Tensor, bias: Tensor | None = None, positions: Positions = NOWHERE) -> tuple[Tensor, Tensor]:
        """Tokens behind attention by the fused kernel, and its keys: (B, N, D) -> (B, N, D), (B, H, N, d).

        `bias`, broadcastable to (B, H, N, N), is added to the attention logits, beside that of the positions.
        """
        q, k, v = self.qkv(x)
        if positions.rotary is not None:
            q, k = (self.rotated(y, *positions.rotary) for y in (q, k))
        if positions.bias is not None:
            bias = positions.bias if bias is None else bias + positions.bias
        dropout = self.dropout if self.module.training else 0.0
        bias = bias if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.mixed(x, y.transpose(1, 2).flatten(2)), k

    def rotated(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (B, H, N, d) turned by their positions, halves of a head as real and imaginary parts."""
        a, b = y.chunk(2, -1)
        return y * cos.unsqueeze(1) + torch.cat((-b, a), -1) * sin.unsqueeze(1)

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

    def check(self) -> str | None:
        """What of the block this view leaves out or computes otherwise; None if nothing.

        Every parameter, buffer, hook and dropout must belong to a part or be known, and on a few random tokens, or on
        the grid of a position table, the view must give what the block gives.
        """
        bypassed = dict(self.bypassed())
        if (why := self.unfit()) is not None:
            return why
        for path, module in [("", self.module), *bypassed.items()]:
            for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
                if (full := f"{path}.{name}".lstrip(".")) not in self.TENSORS:
                    return f"nothing that its adapter would leave out, but {self.name} has {full!r}"
            if path and not _quiet(module):
                return f"no hook inside attention, but {self.name} has one on {path!r}"
            if "drop" in type(module).__name__.lower() and path not in self.LEFT_OUT and _active(module):
                return f"no dropout that its adapter would leave out, but {self.name} has {path!r}"
        return self._difference()

    @torch.no_grad()
    def _difference(self) -> str | None:
        parameter = next(self.module.parameters())
        if parameter.device.type == "meta":
            return None
        shape = (1, self.grid() or max(4, self.prefix + 2), self.input_width)
        x = torch.randn(shape, generator=generator(0)).to(parameter)
        given = self.example(x)
        with quietly(self.module):
            try:
                # Some blocks have another path for batches without gradients, which hides what the parts compute.
                expected = original_forward(self.module)(x if self.batch_first else x.transpose(0, 1), **given)
            except Exception as error:
                return f"blocks of tokens (B, N, D), but {self.name} cannot take them: {error}"
            self.in_tuple, expected = isinstance(expected, tuple), self.tokens(expected)
            y, _ = self.attention(x, positions=self.positions(x.shape[1], given))
            actual = self.mlp(y)
        limit = TOLERANCE.get(x.dtype, 1e-4) * expected.abs().max()
        if actual.shape == expected.shape and bool((actual - expected).abs().max() <= limit):
            return None
        return f"blocks that compute what their parts say, but {self.name} ({type(self.module).__name__}) differs"

    def example(self, x: Tensor) -> dict[str, Any]:
        """What else the model would give its block with tokens x: (1, N, D), by name."""
        return {}


def _at(module: Any, names: list[str]) -> Any:
    for name in names:
        module = module._modules[name]
    return module


def _has(module: nn.Module, path: str) -> bool:
    part: Any = module
    for name in path.split("."):
        part = getattr(part, name, None)
    return isinstance(part, nn.Module)


def _says(value: Any) -> bool:
    """Whether an argument changes what the block computes: no None, False, or mask that hides nothing."""
    if not isinstance(value, Tensor):
        return value is not None and value is not False
    hides_nothing = value.all() if value.dtype == torch.bool else (value == 0).all()
    if torch.compiler.is_exporting():  # Hugging Face makes a mask for every graph
        torch._assert_async(hides_nothing, "tokens merge, so a mask must hide nothing")
        return False
    return not bool(hides_nothing)


def _active(module: nn.Module) -> bool:
    return any(isinstance(p := getattr(module, name, 0.0), float) and p > 0 for name in ("p", "drop_prob"))


def _quiet(module: nn.Module) -> bool:
    """Nothing listens to the module, or only what Hugging Face leaves behind once attention maps were asked for."""
    attributes = vars(module)
    if "forward" in attributes or getattr(attributes.get("config"), "output_attentions", False) or replaced_by(module):
        return False
    hooks = (attributes[name] for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
    alien = (getattr(hook, "__name__", "") != "output_capturing_hook" for some in hooks for hook in some.values())
    return not any(alien)


@contextmanager
def quietly(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and deaf, so that a trial run is nobody's business."""
    modules, names = list(module.modules()), ("_forward_hooks", "_forward_pre_hooks")
    before = [(m, m.training, {name: vars(m)[name] for name in names}) for m in modules]
    try:
        for m in modules:
            m.training = False
            vars(m).update({name: OrderedDict() for name in names})
        with uncounted(), torch.autocast(next(module.parameters()).device.type, enabled=False):
            yield
    finally:
        for m, training, hooks in before:
            m.training = training
            vars(m).update(hooks)


def weights(*modules: nn.Module) -> int:
    """Number of weights of all linear layers in the modules: their MACs for a token."""
    layers = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in layers)


def chains(model: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every list of modules in `model` whose members all satisfy `fits`, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and all(map(fits, module)):
            yield name, list(module)


def checked(technique: str, model: nn.Module, blocks: list[Block]) -> list[Block]:
    """The blocks, if each is what its adapter takes it for. UnsupportedHost, which names the part, otherwise."""
    if len({id(block.module) for block in blocks}) < len(blocks):
        raise UnsupportedHost(technique, model, "blocks that run once each, but some are used again")
    for block in blocks:
        if others := set(replaced_by(block.module)) - {technique}:
            raise UnsupportedHost(technique, model, f"blocks that no other technique replaces ({', '.join(others)})")
        if (why := block.check()) is not None:
            raise UnsupportedHost(technique, model, why)
    return blocks


LEADING = (
    *("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token", "reg_token"),
    *("register_tokens", "storage_tokens"),
)
"""Parameters that hold tokens in front of those of the datum."""


def leading_tokens(model: nn.Module, chain: str) -> int | None:
    """How many leading tokens stand for no place, by the parameters of whoever owns the chain of blocks of that name.

    None where a parameter looks like such a token, but has a name that nobody knows: then only the user can tell.
    """
    path = chain
    while path:
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
        if hasattr(owner, "num_prefix_tokens"):
            return int(owner.num_prefix_tokens)
        own = [(name, p) for name, p in owner.named_parameters() if not f"{path}.{name}".lstrip(".").startswith(chain)]
        known = [p for name, p in own if name.rpartition(".")[2] in LEADING]
        if known:
            return sum(p.shape[-2] if p.ndim > 1 else 1 for p in known)
        place = re.compile(r"pos|mask|probe|latent|query")
        if any(p.ndim == 3 and len(p) == 1 and "." not in name and not place.search(name) for name, p in own):
            return None
    return 0
