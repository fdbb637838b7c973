"""Null controls: the same model on data without their redundancy, and the same data in a model that learnt nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from reference_impls.contract import generator
from reference_impls.report.batches import Batch
from reference_impls.report.sample import Sample

ORDER = "shuffled frames"
"""Frames of all clips in another order. What is left rests on the scene, such as a background that stands still, and
not on the order; it is redundancy all the same, so a finding's excess does not count it."""
WEIGHTS = "re-initialised weights"
"""Not drawn anew, but put in random places of each tensor: the same numbers, and nothing learnt."""


def of(sample: Sample, seed: int) -> Mapping[str, Sample]:
    """Name of each control of the data -> the sample without what it takes away."""
    x = sample.batches[0].main
    changes: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {}
    if not x.is_floating_point():
        changes = {"shuffled tokens": _shuffled_tokens, "random tokens": _random_tokens}
    elif x.ndim == 4:
        changes = {"shuffled pixels": _shuffled_pixels, "white noise": _noise}
        if sample.clips:
            changes = {"shuffled pixels": _shuffled_frames, "white noise": _noise}
    else:
        changes = {"white noise": _noise}
    found = {ORDER: _mixed(sample, generator(seed))} if sample.clips else {}
    for name, change in changes.items():
        draws = generator(seed)
        found[name] = replace(sample, batches=tuple(_changed(b, change, draws) for b in sample.batches))
    return found


def _mixed(sample: Sample, draws: torch.Generator) -> Sample:
    """Clips whose frames are those of all clips of their size in another order."""
    places = [(b, i) for b, batch in enumerate(sample.batches) for i in range(batch.items)]
    mains = [batch.main.clone() for batch in sample.batches]
    for shape in {main.shape[1:] for main in mains}:
        here = [(b, i) for b, i in places if mains[b].shape[1:] == shape]
        order = torch.randperm(len(here), generator=draws).tolist()
        frames = [sample.batches[b].main[i] for b, i in here]
        for (b, i), n in zip(here, order, strict=True):
            mains[b][i] = frames[n]
    return replace(sample, batches=tuple(b.with_main(x) for b, x in zip(sample.batches, mains, strict=True)))


def _changed(batch: Batch, change: Callable[[Tensor, torch.Generator], Tensor], draws: torch.Generator) -> Batch:
    x = batch.main
    moved = change(x, draws)
    mask = batch.mask
    if mask is not None and mask.shape == x.shape:  # padding stays padding
        moved = torch.where(mask, moved, x)
    return batch.with_main(moved)


def _noise(x: Tensor, draws: torch.Generator) -> Tensor:
    """Independent numbers of each item's and channel's mean and deviation."""
    axes = tuple(range(2, x.ndim)) or (1,)
    noise = torch.randn(x.shape, generator=draws).to(x)
    return x.mean(axes, keepdim=True) + noise * x.std(axes, keepdim=True, correction=0)


def _shuffled_pixels(x: Tensor, draws: torch.Generator) -> Tensor:
    order = torch.randperm(x[0, 0].numel(), generator=draws).to(x.device)
    return x.flatten(2)[..., order].view_as(x)


def _shuffled_frames(x: Tensor, draws: torch.Generator) -> Tensor:
    """Each frame's pixels in an order of its own, so that nothing stays where it was; a clip is too short to mix."""
    return torch.cat([_shuffled_pixels(frame[None], draws) for frame in x])


def _shuffled_tokens(x: Tensor, draws: torch.Generator) -> Tensor:
    order = torch.randperm(x.shape[-1], generator=draws).to(x.device)
    return x[..., order]


def _random_tokens(x: Tensor, draws: torch.Generator) -> Tensor:
    """Tokens drawn from those of the batch, one for each place on its own."""
    flat = x.flatten()
    return flat[torch.randint(len(flat), (len(flat),), generator=draws).to(x.device)].view_as(x)


@contextmanager
def without_learning(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, each weight tensor of the model has its numbers in random places; at the end, in their own again.

    In place, so that no second model is held; what one tensor needs is all the memory that it takes.
    """
    weights: list[Tensor] = [p for p in dict.fromkeys(model.parameters()) if p.numel() > 1]
    done: list[Tensor] = []
    try:
        with torch.no_grad():
            for i, weight in enumerate(weights):
                done.append(weight)
                weight.copy_(weight.flatten()[_order(weight, seed + i)].view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for i, weight in enumerate(done):
                back = torch.empty_like(weight).flatten()
                back[_order(weight, seed + i)] = weight.flatten()
                weight.copy_(back.view_as(weight))


def _order(weight: Tensor, seed: int) -> Tensor:
    return torch.randperm(weight.numel(), generator=generator(seed)).to(weight.device)
