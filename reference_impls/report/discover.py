"""What a model is made of, from one run: its blocks, its tokens, and whether these see the ones after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.report.batches import Batch
from reference_impls.report.engine import Block
from reference_impls.report.watch import Watch, short


def blocks_of(model: nn.Module, batch: Batch) -> tuple[list[Block], dict[str, Any]]:
    """The blocks of a model in the order in which they run, and what else one run shows.

    A block stands in a list of modules, has modules inside, runs once, and gives the shape that it is given: maps (B,
    C, H, W) or tokens (B, N, C). Of blocks inside of one another the outermost counts. The facts are `tokens`, the
    number of tokens of each block, and `causal`.
    """
    names = {
        f"{name}.{child}" if name else child: module
        for name, parent in model.named_modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for child, module in parent.named_children()
        if any(True for _ in module.children())
    }
    seen: dict[str, list[Any]] = {name: [] for name in names}
    facts: dict[str, Any] = {"tokens": {}, "causal": False}

    def look(name: str, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        gives = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(given, Tensor) and isinstance(gives, Tensor) and given.dtype == gives.dtype:
            seen[name].append((given.shape, gives.shape))
        else:
            seen[name].append(None)

    def after(func: Any, args: Any, out: Any, module: str) -> Any:
        if short(func) == "_softmax" and out.ndim in (3, 4) and out.shape[-1] == out.shape[-2] > 2:
            facts["causal"] |= not bool(out.triu(1).any())
        return out

    def editor(call: Any) -> Any:
        if call.site.type == "attention":
            mask = call.named.get("attn_mask")
            facts["causal"] |= bool(call.named.get("is_causal")) or _hides_later(mask)
        return call.run()

    handles = [
        module.register_forward_hook(lambda m, a, k, o, name=name: look(name, a, k, o), with_kwargs=True)
        for name, module in names.items()
    ]
    watch = Watch(model, editor, after=after)
    try:
        with watch.forward(batch.items):
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name, calls in seen.items() if len(calls) == 1 and _same(calls[0], batch.items)]
    lists = {
        n for n in found if isinstance(names[n], nn.Sequential) and sum(o.rpartition(".")[0] == n for o in found) > 1
    }
    found = [n for n in found if n not in lists]  # a list of blocks is no block, its members are
    outermost = [n for n in found if not any(n.startswith(f"{other}.") for other in found if other != n)]
    order = {site.module: i for i, site in reversed(list(enumerate(watch.log.sites.values())))}
    blocks: list[Block] = []
    for name in outermost:
        inside = [s for s in watch.log.sites.values() if s.module == name or s.module.startswith(f"{name}.")]
        if not inside:
            continue
        shape = seen[name][0][0]
        chain, _, last = name.rpartition(".")
        macs = sum(s.macs for s in inside) / batch.items
        blocks.append(
            Block(name, names[name], macs, chain, int(last) if last.isdigit() else len(blocks), len(shape) == 3)
        )
        if len(shape) == 3:
            facts["tokens"][name] = shape[1]
    blocks.sort(key=lambda b: min(order[s] for s in order if s == b.name or s.startswith(f"{b.name}.")))
    return blocks, facts


def _hides_later(mask: Any) -> bool:
    """Whether a mask of attention (..., N, N) hides every later token."""
    if not isinstance(mask, Tensor) or mask.ndim < 2 or not mask.shape[-1] == mask.shape[-2] > 2:
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    hidden = ~mask if mask.dtype == torch.bool else mask.float() <= -1e4
    return bool(hidden[later].all())


def _same(shapes: tuple[torch.Size, torch.Size] | None, items: int) -> bool:
    if shapes is None or shapes[0] != shapes[1] or len(shapes[0]) not in (3, 4):
        return False
    return shapes[0][0] == items and shapes[0][1] > 1
