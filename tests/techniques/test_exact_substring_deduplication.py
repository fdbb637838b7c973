"""Exact substring deduplication beyond the checks: overlaps, borders, references, and brute force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.techniques.exact_substring_deduplication import (
    ExactSubstringDeduplication,
    find_cuts,
    joined,
    repeated,
)
from reference_impls.techniques.minhash_deduplication import TextDataset

SUBSTRING = ExactSubstringDeduplication()
WIDTH = 8


def letters(random: Random, length: int) -> str:
    return "".join(chr(97 + random.randrange(26)) for _ in range(length))


def characters(corpus: TextDataset, weights: Tensor) -> Tensor:
    """Sum (D,) over all characters of weights (32, D), a product for each text: 32 D MACs a character."""
    total = torch.zeros(weights.shape[1], dtype=weights.dtype, device=weights.device)
    for text in corpus.texts:
        if text:
            codes = torch.tensor([ord(c) % 32 for c in text], device=weights.device)
            total = total + (torch.eye(32, dtype=weights.dtype, device=weights.device)[codes] @ weights).sum(0).to(
                total
            )
    return total


class ExactSubstringDeduplicationCases(Cases):
    """Texts of drawn letters: with quotations of one another, copies of one, or with nothing in common."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        random = Random(seed)
        texts = [letters(random, 500) for _ in range(30)]
        if kind == "typical":
            texts = [text + texts[i // 2][: 20 * i] for i, text in enumerate(texts)]
        elif kind == "redundant":
            texts = texts[:1] * 30
        target = TextDataset(texts, macs_per_character=32 * WIDTH)
        weights = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(seed)).to(device)
        return Case(target, weights, characters)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for n in range(60):
            random = Random(seed + n)
            texts = ["".join(random.choice("abc") for _ in range(random.randrange(16))) for _ in range(3)]
            for length in (1, 2, 3, 5):
                left = find_cuts(texts, length).apply(texts)
                yield Expectation(f"{texts} at {length}", coded(brute_force(texts, length)), coded(left))
        for texts, length, by_hand in (
            (["abcdef", "xxabcdyy"], 4, ["abcdef", "xxyy"]),
            (["abcab"], 3, ["abcab"]),  # no passage of three repeats
            (["cdcedbddfcfcfc"], 4, ["cdcedbddfcfc"]),  # two overlapping ones: the first stays whole
            (["ab", "ab"], 3, ["ab", "ab"]),  # nor does one over a border
        ):
            yield Expectation(str(texts), coded(by_hand), coded(find_cuts(texts, length).apply(texts)))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        texts = self.build("typical", seed, device).target.texts
        cuts = find_cuts(texts)
        left = cuts.apply(texts)
        total = sum(map(len, texts)) - int((cuts.end - cuts.start).sum())
        yield Expectation("characters", torch.tensor(total), torch.tensor(sum(map(len, left))))
        passages = [texts[i][start : start + 100] for i, start, _ in zip(*cuts[:3], strict=True)]
        found = torch.tensor([any(passage in text for text in left) for passage in passages])
        yield Expectation("passages that still stand somewhere", torch.ones_like(found), found)

    def invalid(self, device: str) -> Iterable[Invalid]:
        yield Invalid("numbers for texts", lambda: SUBSTRING.apply([1, 2]), "strings")
        yield Invalid("bytes for texts", lambda: SUBSTRING.apply([b"a"]), "strings")
        yield Invalid("no characters", lambda: find_cuts(["a"], 0), "length")


def coded(texts: list[str]) -> Tensor:
    return torch.tensor([ord(c) for c in "\n".join(texts)])


def brute_force(texts: list[str], length: int) -> list[str]:
    """Every character of a later occurrence goes unless a first occurrence needs it, place by place."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, text in enumerate(texts):
        for start in range(len(text) - length + 1):
            places.setdefault(text[start : start + length], []).append((i, start))
    need, gone = set[tuple[int, int]](), set[tuple[int, int]]()
    for (i, first), *others in (those for those in places.values() if len(those) > 1):
        need |= {(i, k) for k in range(first, first + length)}
        gone |= {(j, k) for j, start in others for k in range(start, start + length)}
    return ["".join(c for k, c in enumerate(text) if (i, k) not in gone - need) for i, text in enumerate(texts)]


CASES = ExactSubstringDeduplicationCases()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab\U0001f600", max_size=14), max_size=4), st.integers(1, 6))
def test_it_equals_brute_force_and_every_passage_still_stands(texts: list[str], length: int):
    left = find_cuts(texts, length).apply(texts)
    assert left == brute_force(texts, length)
    passages = Counter(text[i : i + length] for text in texts for i in range(len(text) - length + 1))
    for passage in (passage for passage, count in passages.items() if count > 1):
        assert any(passage in text for text in left)


def test_positions_whose_passage_repeats_are_those_of_a_dictionary():
    for seed in range(200):
        random = Random(seed)
        texts = ["".join(random.choice("ab") for _ in range(random.randrange(20))) for _ in range(3)]
        corpus, length = joined(texts), random.randrange(1, 9)
        places: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            for start in range(len(text) - length + 1):
                places.setdefault(text[start : start + length], []).append(int(corpus.offsets[i]) + start)
        position, name = repeated(corpus, length)
        assert position.tolist() == sorted(p for those in places.values() if len(those) > 1 for p in those)
        assert len(set(name.tolist())) == sum(len(those) > 1 for those in places.values())


def test_a_second_run_cuts_only_what_formed_at_the_cuts():
    random = Random(4)
    texts = [letters(random, 400) for _ in range(10)]
    texts += [texts[i] + letters(random, 100) for i in range(10)]
    left = find_cuts(texts, 50).apply(texts)
    assert left[10:] == [text[400:] for text in texts[10:]]
    assert not len(find_cuts(left, 50).start)


def test_references_stay_whole_and_twins_name_where_a_passage_stands():
    quote = letters(Random(1), 120)
    cuts = find_cuts([quote, "one " + quote, "two", quote + quote], 100, references=1)
    assert cuts.apply([quote, "one " + quote, "two", quote + quote]) == [quote, "one ", "two", ""]
    assert cuts.twin.tolist() == [0, 0, 2, 0]
    assert cuts.share.tolist() == pytest.approx([0, 120 / 124, 0, 1])


def test_nothing_at_all_and_empty_texts():
    for texts in ([], [""], ["", "a", ""]):
        assert find_cuts(texts, 2).apply(texts) == texts
