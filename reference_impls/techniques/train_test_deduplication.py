"""Removal of train-test duplicates: no test item has a twin among what the model was trained on.

Papers
    barz-2020-train: Barz, Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates", arXiv 1902.00423. The
    nearest training image of each test image in a feature space; a person judges the close pairs.
    lee-2022-deduplicating: Lee et al., arXiv 2107.06499. The same between training and validation documents.

Idea
    An item that stands in both sets is answered by heart. For each test item the nearest training item is sought; a
    pair at the threshold or above is a suspect, and a stricter judge may acquit it: a person, or a comparison of the
    items themselves. What is left out is the test item, and the training set stays; or, where the test set is given,
    every training item that is a twin of a test item.

Items are given as embeddings, compared by cosine, or as texts, compared by the exact Jaccard index of their shingles
among the candidates that MinHash finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, warn_no_effect
from reference_impls.contract.knobs import Choice, Given, Number
from reference_impls.redundancy.cross_sample_similarity import BLOCK, leaked_share, nearest
from reference_impls.techniques.minhash_deduplication import minhash_dedup

Side = Literal["test", "train"]
Judge = Callable[[Any, Any], bool]
THRESHOLD = 0.9


class Leaks(NamedTuple):
    """Items of one set that have a twin in the other."""

    item: Tensor
    """(L,) ascending"""
    twin: Tensor
    """(L,) the nearest item of the other set"""
    similarity: Tensor
    """(L,) of the two, from the threshold on"""


def leaks(items: Tensor | Sequence[str], others: Tensor | Sequence[str], threshold: float, block: int = BLOCK) -> Leaks:
    """The items with a twin among the others: (N, D) and (M, D) embeddings, or texts and texts.

    Raises: TypeError, ValueError for embeddings that do not fit, and a threshold outside (0, 1].
    """
    check_range("threshold", threshold, 0, 1, low_open=True)
    if isinstance(items, Tensor) and isinstance(others, Tensor):
        if not len(items) or not len(others):
            none = torch.zeros(0, dtype=torch.long, device=items.device)
            return Leaks(none, none, items.new_zeros(0))
        similarity, twin = nearest(items, others, block)
        item = (similarity >= threshold).nonzero().flatten()
        return Leaks(item, twin[item], similarity[item])
    found = minhash_dedup([*others, *items], threshold, references=len(others))
    item, twin, alike = map(torch.from_numpy, (found.removed - len(others), found.twin, found.similarity))
    return Leaks(item, twin, alike)


def judged(found: Leaks, items: Sequence[Any], others: Sequence[Any], judge: Judge) -> Leaks:
    """The pairs of which `judge(item, twin)` says that they are one."""
    pairs = zip(found.item.tolist(), found.twin.tolist(), strict=True)
    guilty = torch.tensor([bool(judge(items[i], others[j])) for i, j in pairs], dtype=torch.bool).to(found.item.device)
    return Leaks(*(part[guilty] for part in found))


@dataclass(frozen=True)
class TwoSets:
    """A training and a test set, both map-style, with what their items are compared by."""

    train: Any
    test: Any
    train_features: Any
    """(N, D) embeddings, or N texts"""
    test_features: Any
    """(M, D), or M texts"""
    macs_per_item: int = 0
    """What the caller spends on an item, of either set, in multiply-accumulates"""

    def __post_init__(self) -> None:
        for side in ("train", "test"):
            items, features = len(getattr(self, side)), len(getattr(self, f"{side}_features"))
            if items != features:
                raise ValueError(f"there must be one feature per item: {items} items, {features} features to {side}")


class TrainTestDeduplication(Technique):
    """Leaves out what a test set has in common with the training set."""

    id = "train-test-deduplication"
    execution = "real"
    knobs: ClassVar = {
        "threshold": Number(
            0.9,
            low=0,
            high=1,
            low_open=True,
            optional=True,
            about="cosine, or Jaccard index, from which on two are twins",
        ),
        "leave_out": Choice("test", options=("test", "train"), about="the set that loses its twins"),
        "judge": Given(
            None,
            form="function",
            about="`judge(item, twin)`, whether a pair is one indeed; None: the threshold decides",
        ),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"threshold": None}, off=True),
            *(Setting(f"threshold={t:g}", {"threshold": t}, adaptive=True) for t in (0.99, THRESHOLD, 0.5)),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of the test items with a twin among the training items, at a threshold of 0.9."""
        target = self._sets(target)
        found = leaks(target.test_features, target.train_features, THRESHOLD)
        closest = torch.zeros(len(target.test)).index_put((found.item.cpu(),), found.similarity.float().cpu())
        share = leaked_share(closest, THRESHOLD)
        return Redundancy(share, f"share of test items with a twin to train on, {THRESHOLD:g} or more")

    def attach(self, target: Any, threshold: float | None, leave_out: Side, judge: Judge | None) -> Handle:
        """Part the sets; `handle.target` is the target with a `torch.utils.data.Subset` of one of them.

        The trace holds the `Leaks` and the set that lost them. Raises: UnsupportedHost for a target without two sets.
        """
        target = self._sets(target)
        other: Side = "train" if leave_out == "test" else "test"
        items, features = getattr(target, leave_out), getattr(target, f"{leave_out}_features")
        none = torch.zeros(0, dtype=torch.long)
        found = Leaks(none, none, torch.zeros(0))
        if threshold is not None:
            found = leaks(features, getattr(target, f"{other}_features"), threshold)
        if judge is not None:
            found = judged(found, items, getattr(target, other), judge)
        if not len(found.item):
            warn_no_effect(
                self.id, "threshold is None" if threshold is None else f"no item has a twin at {threshold:g}"
            )
        gone = set(found.item.tolist())
        kept = [i for i in range(len(items)) if i not in gone]
        left = features[kept] if isinstance(features, Tensor) else [features[i] for i in kept]
        sides = {side: (getattr(target, side), getattr(target, f"{side}_features")) for side in ("train", "test")}
        sides[leave_out] = (Subset(items, kept), left)
        (train, a), (test, b) = sides["train"], sides["test"]
        trace = {**found._asdict(), "left_out": leave_out, "compared": threshold is not None}
        return Handle(TwoSets(train, test, a, b, target.macs_per_item), trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Items left out x MACs per item, less N M D for the cosines of embeddings; texts are compared without any."""
        features = target.train_features
        compared = len(features) * target.test_features.numel() if isinstance(features, Tensor) else 0
        return len(trace["item"]) * int(target.macs_per_item) - compared * bool(trace["compared"])

    def _sets(self, target: Any) -> Any:
        if not isinstance(target, TwoSets):
            raise UnsupportedHost(self.id, target, "a training and a test set with their features, as in TwoSets")
        return target
