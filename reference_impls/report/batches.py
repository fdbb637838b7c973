"""What a loader gives, read as batches that a model can be called with.

A loader gives batches or single items, alone, with labels, or as dicts of arguments; of videos it gives clips. What a
dict calls a label is never an argument of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import tensors
from reference_impls.report.result import Kind

LABELS = ("labels", "label", "targets", "target", "y")
SINGLE_RANK = {"image": 3, "video": 4, "text": 1, "tokens": 2}
"""Rank of a single item of each kind: (C, H, W), (T, C, H, W), (N,) indices, (N, D) vectors."""
UNREADABLE = (
    "tell with inputs=... how it becomes what the model is called with: a tensor, a tuple of arguments, or a dict"
)


@dataclass(frozen=True)
class Batch:
    """What one call of the model is given."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    items: int
    labels: Tensor | None = None
    clip: int | None = None
    """Number of the clip whose frames, in the order of time, are the items; None where they have no order."""

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return list(tensors([*self.args, *self.kwargs.values()]))

    @property
    def main(self) -> Tensor:
        """The first tensor of floating point numbers, else the first tensor, masks aside: what the controls act on."""
        kept = [value for name, value in self.kwargs.items() if "mask" not in name and "position" not in name]
        found = [t for t in tensors([*self.args, *kept]) if t.dtype != torch.bool] or self.tensors
        return next((t for t in found if t.is_floating_point()), found[0])

    @property
    def mask(self) -> Tensor | None:
        """(B, N) true at real tokens, where the batch says which are padding: `attention_mask`, or booleans (B, N)."""
        mask, main = self.kwargs.get("attention_mask"), self.main
        if mask is None and not main.is_floating_point():
            given = (v for v in self.kwargs.values() if isinstance(v, Tensor) and v.dtype == torch.bool)
            mask = next((v for v in given if v.shape == main.shape), None)
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""

        def deep(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, args=tuple(map(deep, self.args)), kwargs={k: deep(v) for k, v in self.kwargs.items()})

    def with_main(self, x: Tensor) -> Batch:
        """The same batch with another main tensor."""
        main = self.main
        return self.mapped(lambda value: x if value is main else value)

    def part(self, some: slice) -> Batch:
        """Some of the items."""
        size = self.items
        found = self.mapped(lambda v: v[some] if v.ndim and len(v) == size else v)
        labels = None if self.labels is None else self.labels[some]
        return replace(found, labels=labels, items=len(range(*some.indices(size))))

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    def shapes(self) -> Iterator[str]:
        """Each tensor with its name, shape and dtype."""
        named = [*((f"input {i + 1}", a) for i, a in enumerate(self.args)), *self.kwargs.items()]
        for name, value in named:
            if isinstance(value, Tensor):
                yield f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def iterable(loader: Any) -> Iterable[Any]:
    """What a loader gives, one thing after the other. Raises: TypeError for what cannot be iterated."""
    if isinstance(loader, Tensor | Mapping | str | bytes):
        return [loader]
    if isinstance(loader, Iterable):
        return loader
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):  # a map-style data set without __iter__
        return (loader[i] for i in range(len(loader)))
    raise TypeError(
        f"the loader must be iterable, got {type(loader).__name__}: give a DataLoader, a data set or a list"
    )


def read(given: Any, kind: Kind, inputs: Callable[[Any], Any] | None = None) -> Iterator[Batch]:
    """What one thing from a loader is, as batches: usually one; of ragged texts, and of several clips, one each.

    Raises: TypeError, ValueError for what cannot be told; the message says how to tell it.
    """
    if inputs is not None:
        given = inputs(given)
        if isinstance(given, tuple):
            yield from _batched(Batch(given, {}, 1), kind)
            return
    if isinstance(given, Mapping):
        kwargs = dict(given)
        label = next((kwargs.pop(name) for name in LABELS if name in kwargs), None)
        labels = torch.as_tensor(label) if _is_numbers(label) or isinstance(label, int) else None
        kwargs = {name: torch.as_tensor(v) if _is_numbers(v) else v for name, v in kwargs.items()}
        yield from _batched(Batch((), kwargs, 1, labels), kind)
    elif isinstance(given, list | tuple) and given and all(isinstance(t, Tensor) for t in given):
        yield from _of_tensors(list(given), kind)
    elif isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], int) and _is_numbers(given[0]):
        yield from _batched(Batch((torch.as_tensor(given[0]),), {}, 1, torch.as_tensor(given[1])), kind)
    elif _is_numbers(given):
        yield from _batched(Batch((torch.as_tensor(given),), {}, 1), kind)
    else:
        what = "texts" if isinstance(given, str) or _strings(given) else type(given).__name__
        raise TypeError(f"the loader gives {what}, which no model can be called with as they are: {UNREADABLE}")


def _of_tensors(given: list[Tensor], kind: Kind) -> Iterator[Batch]:
    """A batch with its labels, the frames of a clip, several clips, ragged items, or several arguments."""
    first, rank = given[0], SINGLE_RANK[kind]
    labelled = len(given) == 2 and not given[1].is_floating_point() and given[1].ndim <= max(first.ndim - 1, 1)
    if labelled and (kind != "text" or given[1].ndim == 0 or first.ndim == 2):
        yield from _batched(Batch((first,), {}, 1, given[1]), kind)
    elif first.ndim == rank - 1 and kind == "video":  # frames, perhaps of changing size
        start = 0
        for end in range(1, len(given) + 1):
            if end == len(given) or given[end].shape != given[start].shape:
                yield from _batched(Batch((torch.stack(given[start:end]),), {}, 1), kind)
                start = end
    elif len(given) > 1 and first.ndim == rank and all(t.ndim == rank for t in given):
        for one in given:
            yield from _batched(Batch((one,), {}, 1), kind)
    else:
        yield from _batched(Batch(tuple(given), {}, 1), kind)


def _batched(one: Batch, kind: Kind) -> Iterator[Batch]:
    """With the axis of the batch in front; a batch of clips is one clip after the other."""
    found = one.tensors
    if not found:
        raise TypeError(f"the loader gives nothing with a tensor in it: {UNREADABLE}")
    if not any(t.numel() for t in found):
        return
    main, rank = one.main, SINGLE_RANK[kind]
    if kind == "text" and main.is_floating_point():
        rank = 2
    if kind == "video":
        clips = main if main.ndim == rank + 1 else main[None]
        if clips.ndim != rank + 1:
            raise ValueError(
                f"kind='video' takes clips (T, C, H, W) or (B, T, C, H, W), got {tuple(main.shape)}: stack the frames "
                "of a clip, or take kind='image' where they have no order"
            )
        for clip in clips:
            kept = one.labels is not None and one.labels.ndim > 0 and len(one.labels) == len(clip) and main.ndim == rank
            yield replace(one.with_main(clip), items=len(clip), labels=one.labels if kept else None)
        return
    if main.ndim == rank:
        labels = None if one.labels is None else one.labels.reshape(1, *one.labels.shape)
        one = replace(one.mapped(lambda v: v[None]), labels=labels)
    size = len(one.main)
    labels = one.labels if one.labels is not None and one.labels.ndim and len(one.labels) == size else None
    yield replace(one, items=size, labels=labels)


def collated(singles: list[Batch]) -> list[Batch]:
    """Single items as one batch where their shapes agree, else as they are."""
    shapes = {tuple(tuple(t.shape) for t in b.tensors) for b in singles}
    if len(shapes) != 1 or len(singles) < 2:
        return singles
    first = singles[0]

    def join(values: list[Any]) -> Any:
        return torch.cat(values) if isinstance(values[0], Tensor) else values[0]

    labels = [b.labels for b in singles if b.labels is not None]
    args = tuple(join([b.args[i] for b in singles]) for i in range(len(first.args)))
    kwargs = {k: join([b.kwargs[k] for b in singles]) for k in first.kwargs}
    return [Batch(args, kwargs, len(singles), torch.cat(labels) if len(labels) == len(singles) else None)]


def _is_numbers(value: Any) -> bool:
    if isinstance(value, Tensor) or (hasattr(value, "__array__") and getattr(value, "ndim", 1) is not None):
        return True
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float | list) and not _strings(value)


def _strings(value: Any) -> bool:
    return isinstance(value, Sequence) and any(isinstance(v, str) or _strings(v) for v in value[:1])
