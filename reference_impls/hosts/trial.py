"""Whether the view of a block computes what the model's own block does: tried once, when a technique is applied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reference_impls.accounting.count import uncounted
from reference_impls.contract import generator
from reference_impls.contract.replacement import original_forward
from reference_impls.hosts.block import NOWHERE, Block, first_of, quiet

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a rebuilt block from the model's own, relative to the largest magnitude; 1e-4 otherwise."""


def check(view: Block, compared: dict[object, Block] | None = None) -> str | None:
    """What of the block this view leaves out or computes otherwise; None if nothing.

    Every parameter, buffer, hook and dropout must belong to a part or be known, and on a few random tokens, or on
    the grid of a position table, the view must give what the block gives. That grid costs a run of the block, so of
    blocks that are built alike, the first is compared; `compared` keeps them by how they are built.
    """
    bypassed = dict(view.bypassed())
    if (why := view.unfit()) is not None:
        return why
    for path, module in [("", view.module), *bypassed.items()]:
        for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            if (full := f"{path}.{name}".lstrip(".")) not in view.TENSORS:
                return f"nothing that its adapter would leave out, but {view.name} has {full!r}"
        if path and not quiet(module):
            return f"no hook inside attention, but {view.name} has one on {path!r}"
        if "drop" in type(module).__name__.lower() and path not in view.LEFT_OUT and _active(module):
            return f"no dropout that its adapter would leave out, but {view.name} has {path!r}"
    if compared is None or view.grid() is None:
        return _difference(view)
    like = compared.setdefault(_structure(view.module), view)
    if like is view:
        return _difference(view)
    view.norms, view.beside = like.norms, like.beside
    return None


@torch.no_grad()
def _difference(view: Block) -> str | None:
    parameter = next(view.module.parameters())
    if parameter.device.type == "meta":
        return None
    shape = (1, view.grid() or max(4, view.prefix + 2), view.input_width)
    x = torch.randn(shape, generator=generator(0)).to(parameter)
    # What the view computes itself is compared as in training, unless attention dropout would make it random.
    own = [] if view.dropout else [view.module, *(module for _, module in view.bypassed())]
    with quietly(view.module, own):
        given = dict.fromkeys(view.required) | view.example(x)
        return functional_call(_Trial(view), _drawn(view.module), (x, given))


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
        y = first_of(expected)
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


def _active(module: nn.Module) -> bool:
    return any(isinstance(p := getattr(module, name, 0.0), float) and p > 0 for name in ("p", "drop_prob"))


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
