"""What a model gives: the numbers whose error is told, and the decisions whose flips are counted.

The error of an item is |y - y'| / |y| over its output, of large ones over `ENTRIES` entries drawn at random, which is
an unbiased sample of both squared lengths. A decision is the class with the largest logit: of the item, of each token,
of each position. Where an output has no classes, an item's decision is its nearest other item of the sample by cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reference_impls.contract import generator, tensors
from reference_impls.contract.precision import widened
from reference_impls.report.batches import Batch

ENTRIES = 16_384
"""Numbers of an output that are kept of each item."""
PADDING = -1
"""The decision of a token that only fills a batch up."""
Decision = Literal["own", "class", "token", "position", "neighbour"]
FEATURES = ("pooler_output", "last_hidden_state", "image_embeds", "text_embeds")


@dataclass
class Outputs:
    """What a model gave for a sample, reduced to what is compared."""

    values: list[Tensor] = field(default_factory=list)
    """(B, n) of each batch, float32 on the CPU."""
    answers: list[Tensor] = field(default_factory=list)
    """(B, ...) integers of each batch; vectors where the decision is the nearest neighbour."""

    def add(self, values: Tensor, answers: Tensor) -> None:
        """One batch more."""
        self.values.append(values)
        self.answers.append(answers)


class Reading:
    """How the output of a model is read, settled on its first one."""

    def __init__(self, first: Any, items: int, answer: Callable[[Any], Tensor] | None) -> None:
        """first: an output of `items` items. Raises: TypeError, ValueError for one without numbers of each item."""
        self.answer = answer
        self.main, self.name = _main(first)
        picked = self.pick(first)
        if not picked:
            raise TypeError(
                f"the model returns {type(first).__name__} without a tensor of floating point numbers: wrap it so that "
                "it returns what is decided on"
            )
        wrong = [tuple(t.shape) for t in picked if not t.ndim or len(t) % items]
        if wrong:
            raise ValueError(
                f"the model was given {items} items and returns {wrong[0]}: the first axis of its outputs must be that "
                "of the batch"
            )
        self.decision: Decision = "own" if answer else _decision(first, picked)
        self._index: dict[int, Tensor] = {}
        if answer is not None:
            found = answer(first)
            if not isinstance(found, Tensor) or not found.ndim or len(found) != items or found.is_floating_point():
                raise TypeError(f"answer(output) must give integers (B, ...), one row for each of {items} items")

    def pick(self, output: Any) -> list[Tensor]:
        """The tensors that are compared."""
        chosen = output if self.main is None else _get(output, self.main)
        return [t for t in _flat(chosen) if t.is_floating_point()]

    def __call__(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The numbers (B, n) and the decisions (B, ...) of a batch; of padding the numbers are 0 and decisions -1."""
        items, mask = batch.items, batch.mask
        picked = self.pick(output)
        parts, chosen, start = list[Tensor](), self._entries(sum(t.numel() for t in picked) // items), 0
        for t in picked:
            flat = t.detach().reshape(items, -1)
            width = flat.shape[1]
            places = torch.arange(width, device=t.device)
            if chosen is not None:
                places = (chosen[(chosen >= start) & (chosen < start + width)] - start).to(t.device)
                flat = flat[:, places]
            if mask is not None and t.shape[:2] == mask.shape:
                flat = flat * mask.to(t.device)[:, places // (width // mask.shape[1])].to(flat.dtype)
            parts.append(widened(flat))
            start += width
        first = picked[0]
        if mask is not None and self.decision == "neighbour" and first.shape[:2] == mask.shape:
            first = first * mask.to(first)[(..., *[None] * (first.ndim - 2))]
        answers = self._answers(output, first, items)
        if mask is not None and self.decision == "token" and answers.shape == mask.shape:
            answers = answers.masked_fill(~mask.cpu(), PADDING)
        return torch.cat(parts, 1).float().cpu(), answers

    def _entries(self, width: int) -> Tensor | None:
        """Which numbers of a large output are kept, ascending; None for all."""
        if width <= ENTRIES:
            return None
        if width not in self._index:
            self._index[width] = torch.randperm(width, generator=generator(0))[:ENTRIES].sort().values
        return self._index[width]

    def _answers(self, output: Any, first: Tensor, items: int) -> Tensor:
        if self.answer is not None:
            return self.answer(output).detach().cpu().reshape(items, -1)
        if self.decision == "neighbour":
            vectors = widened(first.detach())
            while vectors.ndim > 2:
                vectors = vectors.mean(1) if vectors.ndim == 3 else vectors.flatten(2).mean(2)
            return vectors.float().cpu()
        axis = 1 if self.decision == "position" else -1
        return first.detach().argmax(axis).cpu().reshape(items, -1)

    @property
    def about(self) -> str:
        """What a flip is a change of."""
        return {
            "own": "what `answer` says",
            "class": "the class of each item",
            "token": "the class of each token",
            "position": "the class at each position",
            "neighbour": "the nearest other item of the sample",
        }[self.decision]


def errors(dense: Outputs, other: Outputs) -> Tensor:
    """Relative error (items,) of `other` to `dense`, whose batches are the first ones."""
    found = []
    for y, z in zip(dense.values, other.values, strict=False):
        scale = y.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        found.append(((z - y).norm(dim=1) / scale).nan_to_num(nan=1e6, posinf=1e6).clamp(max=1e6))
    return torch.cat(found)


def flips(dense: Outputs, other: Outputs, decision: Decision) -> Tensor | None:
    """Share of each item's decisions that changed, (items,); None where neighbours of fewer than three are asked."""
    pairs = list(zip(dense.answers, other.answers, strict=False))
    if decision != "neighbour":
        return torch.cat([_changed(a, b, decision) for a, b in pairs])
    if sum(len(a) for a in dense.answers) < 3:
        return None
    bank = torch.nn.functional.normalize(torch.cat(dense.answers), dim=1)
    moved = torch.nn.functional.normalize(torch.cat([b for _, b in pairs]).nan_to_num(), dim=1)
    own = torch.arange(len(moved))
    before, after = bank[: len(moved)] @ bank.T, moved @ bank.T
    before[own, own] = after[own, own] = -torch.inf
    return (before.argmax(1) != after.argmax(1)).float()


def _changed(a: Tensor, b: Tensor, decision: Decision) -> Tensor:
    """Share of decisions of each item that differ, (B,); those of padding do not count."""
    if decision != "token":
        return (a != b).float().mean(1)
    real = a != PADDING
    return ((a != b) & real).float().sum(1) / real.float().sum(1).clamp(min=1)


def correct(outputs: Outputs, labels: list[Tensor | None]) -> Tensor | None:
    """1 for each item whose decision is its label, (items,); None where labels or classes are missing."""
    found = []
    for answers, label in zip(outputs.answers, labels, strict=False):
        if label is None or answers.is_floating_point() or answers.shape[0] != label.shape[0]:
            return None
        label = label.reshape(len(label), -1).cpu()
        if label.shape[1] != answers.shape[1]:
            return None
        found.append((answers == label).float().mean(1))
    return torch.cat(found) if found else None


def _main(first: Any) -> tuple[str | int | None, str]:
    if isinstance(first, Mapping):
        for name in ("logits", "out", *FEATURES):
            if isinstance(first.get(name), Tensor):
                return name, name
        return None, "all outputs"
    if isinstance(first, tuple) and hasattr(first, "logits"):
        return "logits", "logits"
    return None, "output" if isinstance(first, Tensor) else "all outputs"


def _get(output: Any, name: str | int) -> Any:
    return getattr(output, str(name)) if hasattr(output, str(name)) else output[name]


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor | Mapping | list | tuple):
        return list(tensors(value))
    return [t for t in vars(value).values() if isinstance(t, Tensor)] if hasattr(value, "__dict__") else []


def _decision(first: Any, picked: list[Tensor]) -> Decision:
    main, _ = _main(first)
    if main in FEATURES:
        return "neighbour"
    rank = picked[0].ndim
    if rank >= 4:
        return "position" if picked[0].shape[1] > 1 else "neighbour"
    if picked[0].shape[-1] < 2:
        return "neighbour"
    return {2: "class", 3: "token"}.get(rank, "neighbour")  # type: ignore[return-value]
