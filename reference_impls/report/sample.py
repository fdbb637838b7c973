"""The sample that a report measures: the first items of a loader, and a hash of each of the others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from reference_impls.report.batches import Batch, collated, iterable, read
from reference_impls.report.result import Kind

LARGEST_SAMPLE = 256 << 20
"""Bytes of inputs that are kept."""
HASHING_S, HASHING_ITEMS = 20.0, 200_000
"""Longest time, and most items, for reading a loader to its end."""
BATCH = 8
"""Most items of a batch, so that activations of a few layers fit into the caches and a sample has several batches."""
CLIPS = 8
"""Clips that a sample of a video is made of, where there are so many."""
FRAMES = 8
"""Frames of a clip, at least, where it has so many."""


@dataclass(frozen=True)
class Sample:
    """The batches of a report, and the hashes of all items of the loader."""

    batches: tuple[Batch, ...]
    kind: Kind
    hashes: tuple[bytes, ...] = ()
    """One for each item that the loader gave, up to where reading ended."""
    ended: bool = True
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> int:
        """Items in the batches."""
        return sum(batch.items for batch in self.batches)

    @property
    def clips(self) -> int:
        """Clips that the batches are."""
        return len({batch.clip for batch in self.batches if batch.clip is not None})

    @property
    def labelled(self) -> bool:
        """Whether every batch has labels."""
        return all(batch.labels is not None for batch in self.batches)

    def first(self, items: int) -> Sample:
        """The first batches, with at least so many items; clips and batches stay whole."""
        some: list[Batch] = []
        for batch in self.batches:
            if sum(b.items for b in some) >= items:
                break
            some.append(batch)
        return replace(self, batches=tuple(some))


def batch_size(kind: Kind, items: int) -> int:
    """Items in one call of the model, at most; a clip is one call."""
    return items if kind == "video" else min(BATCH, max(items // 4, 1))


def draw(
    model: nn.Module,
    loader: Iterable[Any],
    kind: Kind,
    items: int,
    inputs: Callable[[Any], Any] | None = None,
) -> Sample:
    """The sample: `items` images, frames or texts, some of them in each call, on the model's device.

    Raises: TypeError, ValueError for a loader that gives nothing, or things that no model can be called with.
    """
    device, dtype = _where(model)
    batch = batch_size(kind, items)
    kept, singles, hashes, notes = list[Batch](), list[Batch](), list[bytes](), list[str]()
    held, began, ended, room = 0, time.monotonic(), True, items
    for given in iterable(loader):
        for one in read(given, kind, inputs):
            hashes += _hashed(one)
            if room <= 0:
                continue
            length = min(room, max(FRAMES, items // CLIPS)) if kind == "video" else room
            one = one.part(slice(0, length)) if one.items > length else one
            room -= one.items
            held += sum(t.numel() * t.element_size() for t in one.tensors)
            if held > LARGEST_SAMPLE and room > 0:
                notes.append(f"the sample ends at {items - room} items: more would take above 256 MiB")
                room = 0
            one = _moved(one, device, dtype)
            if kind == "video":
                kept.append(replace(one, clip=len(kept)))
            elif one.items == 1 and batch > 1:
                if singles and _shapes(singles[0]) != _shapes(one):
                    kept, singles = kept + collated(singles), []
                singles.append(one)
                if len(singles) == batch:
                    kept, singles = kept + collated(singles), []
            else:
                kept += [one.part(slice(i, i + batch)) for i in range(0, one.items, batch)]
        if room <= 0 and (time.monotonic() - began > HASHING_S or len(hashes) >= HASHING_ITEMS):
            ended = False
            notes.append(f"exact repetition was looked for among the first {len(hashes)} items, not to the end")
            break
    kept += collated(singles)
    if not kept:
        raise ValueError(
            "the loader gave nothing: a generator that was read before is empty, so give a fresh one, or a list"
        )
    return Sample(tuple(kept), kind, tuple(hashes), ended, tuple(notes))


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in batch.tensors]


def _where(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    parameters = list(model.parameters())
    device = next((p.device for p in parameters), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError("the model is on the meta device, so it has no weights to run with: load them first")
    return device, next((p.dtype for p in parameters if p.is_floating_point()), None)


def _moved(batch: Batch, device: torch.device, dtype: torch.dtype | None) -> Batch:
    return batch.mapped(lambda v: v.detach().to(device, dtype if dtype and v.is_floating_point() else v.dtype))


def _hashed(batch: Batch) -> Iterable[bytes]:
    """A hash of each item's tensors: their shapes, dtypes and bytes."""
    found = [t.detach().cpu() for t in batch.tensors if t.ndim and len(t) == batch.items]
    for i in range(batch.items):
        digest = hashlib.blake2b(digest_size=16)
        for t in found:
            item = t[i].contiguous()
            digest.update(f"{tuple(item.shape)}{item.dtype}".encode())
            digest.update(item.reshape(-1).view(torch.uint8).numpy().tobytes() if item.numel() else b"")
        yield digest.digest()
