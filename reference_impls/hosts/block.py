"""One block of a transformer, in the terms that techniques need, and how adapters find such blocks in a model."""

from __future__ import annotations

import copy
import inspect
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from reference_impls.accounting.count import uncounted
from reference_impls.contract import UnsupportedHost, generator
from reference_impls.contract.replacement import original_forward, own_forward, replaced_by
from reference_impls.hosts.tokens import ReducedTokens

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
    HIDES: ClassVar[bool] = False
    """The value of a mask of booleans that hides."""
    NORMS: ClassVar[tuple[Norms, ...]] = ("before",)
    """Where the norms of such blocks may stand; `check` finds out where they do."""
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
        """What the block returns behind its tokens; None if it returns no tuple."""
        inputs = list(inspect.signature(own_forward(module)).parameters.values())[1:]  # the tokens first
        self._positional = [one.name for one in inputs if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
        self._required = [one.name for one in inputs if one.default is one.empty and one.name in self._positional]

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
        """The tokens behind a branch of output y, which goes on through these parts, and around it."""
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
        unknown += [name for name, module in self.bypassed() if not _quiet(module)]
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
        x = _first(returned)
        return x if self.batch_first else x.transpose(0, 1)

    def attention(self, x: Tensor, bias: Tensor | None = None, positions: Positions = NOWHERE) -> tuple[Tensor, Tensor]:
        """Tokens behind attention by the fused kernel, and its keys: (B, N, D) -> (B, N, D), (B, H, N, d).

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

    def check(self, compared: dict[object, Self] | None = None) -> str | None:
        """What of the block this view leaves out or computes otherwise; None if nothing.

        Every parameter, buffer, hook and dropout must belong to a part or be known, and on a few random tokens, or on
        the grid of a position table, the view must give what the block gives. That grid costs a run of the block, so of
        blocks that are built alike, the first is compared; `compared` keeps them by how they are built.
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
        if compared is None or self.grid() is None:
            return self._difference()
        like = compared.setdefault(_structure(self.module), self)
        if like is self:
            return self._difference()
        self.norms, self.beside = like.norms, like.beside
        return None

    @torch.no_grad()
    def _difference(self) -> str | None:
        parameter = next(self.module.parameters())
        if parameter.device.type == "meta":
            return None
        shape = (1, self.grid() or max(4, self.prefix + 2), self.input_width)
        x = torch.randn(shape, generator=generator(0)).to(parameter)
        # What the view computes itself is compared as in training, unless attention dropout would make it random.
        own = [] if self.dropout else [self.module, *(module for _, module in self.bypassed())]
        with quietly(self.module, own):
            given = dict.fromkeys(self._required) | self.example(x)
            return functional_call(_Trial(self), _drawn(self.module), (x, given))

    def example(self, x: Tensor) -> dict[str, Any]:
        """What else the model would give its block with tokens x: (1, N, D), by name."""
        return {}

    def accepts(self, name: str) -> bool:
        """Whether the model's block has an argument of this name."""
        return name in self._positional


class _Trial(nn.Module):
    """Runs a block and its view on the same tokens."""

    def __init__(self, view: Block) -> None:
        super().__init__()
        self.view, self.block = view, view.module

    def forward(self, x: Tensor, given: dict[str, Any]) -> str | None:
        """How the view differs from the block on tokens x: (1, N, D), which the model would give with `given`."""
        view, block = self.view, f"{self.view.name} ({type(self.block).__name__})"
        try:
            expected = original_forward(self.block)(x if view.batch_first else x.transpose(0, 1), **given)
        except Exception as error:
            return f"blocks of tokens (B, N, D), but {block} cannot take them: {error}"
        view.beside = expected[1:] if isinstance(expected, tuple) else None
        y = _first(expected)
        if any(one is not None for one in view.beside or ()) or not isinstance(y, Tensor) or y.numel() != x.numel():
            return f"blocks that return as many tokens as they get and nothing else, but {block} does not"
        expected = view.tokens(expected)
        limit = TOLERANCE.get(x.dtype, 1e-4) * expected.abs().max()
        # In two parts and in another order: whatever mixes tokens elsewhere than in attention gives something else.
        order = torch.arange(x.shape[1], device=x.device)
        order = torch.cat((order[::2], order[1::2]))
        few = min(8, len(order) // 2)
        why: object = "the results differ"
        for norms in view.NORMS:
            view.norms = norms
            try:
                actual = self._rebuilt(x, given, order, few)
            except (RuntimeError, ValueError, AttributeError, TypeError) as error:
                why = error
                continue
            if actual.shape == (x.shape[0], few, x.shape[2]) and bool(
                (actual - expected[:, order[:few]]).abs().max() <= limit
            ):
                return None
        return (
            f"blocks that compute what their parts say, but {block} computes something else, or does in training: {why}"
        )

    def _rebuilt(self, x: Tensor, given: dict[str, Any], order: Tensor, few: int) -> Tensor:
        """The first `few` tokens in the new order, by the view."""
        view, positions = self.view, self.view.positions(x.shape[1], given)
        if positions != NOWHERE:
            positions = positions.of(order[None], order.argsort()[None], False)
        x = x[:, order]
        q, k, v = (torch.cat(y, 2) for y in zip(view.qkv(x[:, :few]), view.qkv(x[:, few:]), strict=True))
        y, _ = view.attended(q, k, v, positions=positions)
        return view.mlp(view.mixed(x[:, :few], y[:, :few]))


def _drawn(module: nn.Module) -> dict[str, Tensor]:
    """Random values for the parameters of a block in which a 0 or 1 could hide what it computes: scales, biases, gates,
    and tables or weights that begin at zero. By their name in a trial."""
    draws, drawn = generator(0), {}
    for name, p in module.named_parameters():
        if not p.is_floating_point() or p.numel() == 0:
            continue
        if p.ndim < 2:
            drawn[f"block.{name}"] = (0.5 + torch.rand(p.shape, generator=draws)).to(p)
        elif p[(0,) * p.ndim] == 0 and not p.any():
            drawn[f"block.{name}"] = (torch.randn(p.shape, generator=draws) * p.shape[-1] ** -0.5).to(p)
    return drawn


def _structure(module: nn.Module) -> object:
    """The same for modules whose forwards differ in nothing but the values of parameters and buffers."""

    def told(value: Any) -> object:
        plain = value is None or isinstance(value, bool | int | float | str | tuple | list | torch.dtype | torch.Size)
        return repr(value) if plain else id(value)

    own = vars(nn.Module()).keys()
    return tuple(
        (path, type(m), *((name, told(value)) for name, value in vars(m).items() if name not in own))
        for path, m in module.named_modules()
    ), tuple((name, p.shape, p.dtype) for name, p in (*module.named_parameters(), *module.named_buffers()))


def _first(returned: Any) -> Any:
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
def quietly(module: nn.Module, in_training: Collection[nn.Module] = ()) -> Iterator[None]:
    """The module in evaluation mode but for those named, and deaf, so that a trial run is nobody's business,
    without the fused layers of torch, which overlook what a subclass of theirs computes."""
    modules, names = list(module.modules()), ("_forward_hooks", "_forward_pre_hooks")
    before = [(m, m.training, {name: vars(m)[name] for name in names}) for m in modules]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for m in modules:
            m.training = any(m is one for one in in_training)
            vars(m).update({name: OrderedDict() for name in names})
        with uncounted(), torch.autocast(next(module.parameters()).device.type, enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
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
    if any(getattr(getattr(module, "config", None), "output_attentions", False) for module in model.modules()):
        raise UnsupportedHost(technique, model, "not to be asked for attention maps (config.output_attentions)")
    compared: dict[object, Block] = {}
    for block in blocks:
        if others := set(replaced_by(block.module)) - {technique}:
            raise UnsupportedHost(technique, model, f"blocks that no other technique replaces ({', '.join(others)})")
        if (why := block.check(compared)) is not None:
            raise UnsupportedHost(technique, model, why)
    return blocks


LEADING = (
    *("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token", "reg_token"),
    *("register_tokens", "storage_tokens"),
)
"""Parameters that hold tokens in front of those of the datum."""


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
