"""Removal of train-test duplicates beyond the checks: texts, sides, a judge, and the order of the data."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.techniques.train_test_deduplication import TrainTestDeduplication, TwoSets, leaks

PARTED = TrainTestDeduplication()
D, QUERIES = 32, 256


def scores(sets: TwoSets, queries: Tensor) -> Tensor:
    """Highest product (2, Q) of each query (Q, D) with any item of either set."""
    sides = [
        torch.stack([items[i] for i in range(len(items))]) if len(items) else None for items in (sets.train, sets.test)
    ]
    best = [torch.zeros_like(queries[:, 0]) if side is None else (queries @ side.T).amax(1) for side in sides]
    return torch.stack([one.to(queries.dtype) for one in best])


class TrainTestDeduplicationCases(Cases):
    """Vectors of two sets: with near copies across them, all the same, or at right angles."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = generator(seed)
        rows = torch.linalg.qr(torch.randn(D, D, generator=draws))[0]
        train, test = rows[:20], rows[20:]
        if kind == "typical":
            noise = torch.randn(6, D, generator=draws) * torch.linspace(0, 0.3, 6)[:, None]
            test = torch.cat([train[:6] + noise, test[6:]])
        elif kind == "redundant":
            train, test = rows[:1].repeat(20, 1), rows[:1].repeat(12, 1)
        train, test = train.to(device), test.to(device)
        target = TwoSets(train, test, train, test, macs_per_item=QUERIES * D)
        return Case(target, torch.randn(QUERIES, D, generator=draws).to(device), scores)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for offset in range(3):
            target = self.build("typical", seed + offset, device).target
            for threshold in (0.5, 0.9, 0.99):
                found = leaks(target.test, target.train, threshold, block=7)
                cosine = F.normalize(target.test, dim=1) @ F.normalize(target.train, dim=1).T
                twins = [i for i, row in enumerate(cosine.tolist()) if max(row) >= threshold]
                yield Expectation(f"leaks from {threshold}", found.item.new_tensor(twins), found.item)
        train = torch.tensor([[1.0, 0.0], [0.6, 0.8]], device=device)  # cosines of (4, 3) with them: 0.8 and 0.96
        found = leaks(torch.tensor([[4.0, 3.0], [0.0, -1.0]], device=device), train, 0.95)
        yield Expectation("the leak", found.item.new_tensor([0]), found.item)
        yield Expectation("its twin", found.twin.new_tensor([1]), found.twin)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        target = self.build("typical", seed, device).target
        for side in ("test", "train"):
            with PARTED.apply(target, leave_out=side) as handle:
                left, trace = handle.target, handle.trace
            total = torch.tensor(len(left.train) + len(left.test) + len(trace["item"]))
            yield Expectation("items of both sets", torch.tensor(len(target.train) + len(target.test)), total)
            again = leaks(left.test_features, left.train_features, 0.9)
            yield Expectation("leaks left", torch.tensor(0), torch.tensor(len(again.item)))

    def invalid(self, device: str) -> Iterable[Invalid]:
        rows = torch.eye(4, device=device)

        def applied(what: str, says: str, features: Tensor) -> Invalid:
            return Invalid(what, lambda: PARTED.apply(TwoSets([0] * 4, [0] * 4, rows, features)), says)

        yield applied("fewer features", "one feature per item", rows[:3])
        yield applied("integer embeddings", "floating", rows.long())
        yield applied("embeddings of zeros", "zero", rows - rows)
        yield applied("infinite embeddings", "finite", rows * torch.inf)
        yield Invalid("a list", lambda: PARTED.apply([1, 2]), "training and a test set")


CASES = TrainTestDeduplicationCases()


def text(seed: int) -> str:
    random = Random(seed)
    return " ".join(f"w{random.randrange(10**6)}" for _ in range(50))


def texts() -> TwoSets:
    train, test = [text(n) for n in range(8)], [text(n + 100) for n in range(4)]
    test[1], test[3] = train[5].upper(), train[2] + " one word more"
    return TwoSets(train, test, train, test)


def test_texts_are_compared_by_their_shingles():
    pytest.importorskip("rensa", reason="the extra `dedup` is not installed")
    handle = PARTED.apply(texts(), threshold=0.8)
    assert (handle.trace["item"].tolist(), handle.trace["twin"].tolist()) == ([1, 3], [5, 2])
    assert [len(side) for side in (handle.target.train, handle.target.test)] == [8, 2]
    other = PARTED.apply(texts(), threshold=0.8, leave_out="train")
    assert (other.trace["item"].tolist(), other.trace["twin"].tolist()) == ([2, 5], [3, 1])
    assert list(other.target.train) == other.target.train_features == [text(n) for n in (0, 1, 3, 4, 6, 7)]


def test_a_judge_acquits():
    target = CASES.build("typical", 0, "cpu").target
    every = PARTED.apply(target, threshold=0.8).trace["item"]
    equal = PARTED.apply(target, threshold=0.8, judge=torch.equal).trace["item"]
    assert equal.tolist() == [0]
    assert set(equal.tolist()) < set(every.tolist())


def test_the_order_of_the_training_set_decides_nothing():
    target = CASES.build("typical", 1, "cpu").target
    order = torch.randperm(len(target.train), generator=generator(3))
    one, other = leaks(target.test, target.train, 0.9), leaks(target.test, target.train[order], 0.9)
    assert torch.equal(one.item, other.item)
    assert torch.equal(one.twin, order[other.twin])


def test_an_empty_set_has_no_leaks():
    for train, test in ((torch.zeros(0, 3), torch.eye(3)), (torch.eye(3), torch.zeros(0, 3))):
        assert not len(leaks(test, train, 0.5).item)
