"""MinHash deduplication beyond the checks: the estimate, the S-curve, joins, and datasketch beside it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_impls.benchmarks.deduplication import ACROSS, WITHIN, Corpus, Planted, found, whole
from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning, generator
from reference_impls.data.planted import KINDS, generated
from reference_impls.experiments import minhash_deduplication as experiment
from reference_impls.study import Context
from reference_impls.study.registry import measure
from reference_impls.techniques import minhash_deduplication as technique
from reference_impls.techniques.minhash_deduplication import MinHashDeduplication, TextDataset, minhash_dedup, shingled

pytest.importorskip("rensa", reason="the extra `dedup` is not installed")
MINHASH = MinHashDeduplication()


def sentence(random: Random, words: int = 60) -> str:
    """Words drawn from so many that no run of five repeats by chance."""
    return " ".join(f"w{random.randrange(10**6)}" for _ in range(words))


def changed(text: str, random: Random, share: float) -> str:
    """The text with a share of its last words drawn anew."""
    words = text.split()
    new = round(share * len(words))
    return " ".join([*words[: len(words) - new], *sentence(random, new).split()]) if new else text


def best_match(items: TextDataset, queries: Tensor) -> Tensor:
    """Highest product (Q,) of each query (Q, D) with any item (D,)."""
    return (queries @ torch.stack([items[i] for i in range(len(items))]).T).amax(1)


class MinHashDeduplicationCases(Cases):
    """Documents whose likeness is known: with changed ends, copies of one, or of words of their own."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        random, draws, n, dimension, queries = Random(seed), generator(seed), 48, 16, 32
        texts = [sentence(random) for _ in range(n)]
        if kind == "typical":
            texts = [t for i, text in enumerate(texts[: n // 2]) for t in (text, changed(text, random, i / n))]
        elif kind == "redundant":
            texts = texts[:1] * n
        rows = torch.randn(n, dimension, generator=draws).to(device)
        target = TextDataset(texts, rows, macs_per_item=queries * dimension)
        return Case(target, torch.randn(queries, dimension, generator=draws).to(device), best_match)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for offset in range(3):
            texts = self.build("typical", seed + offset, device).target.texts
            for threshold in (0.5, 0.8, 0.95):
                found = minhash_dedup(texts, threshold)
                yield Expectation(
                    f"removed from {threshold}", brute_force(texts, threshold), marked(found.removed, texts)
                )
        # Sets {a b, b c, c d}, {a b, b c, c e}, {a b, b f, f g}: Jaccard 2/4 of the first two, 1/5 of the others.
        texts = ["a b c d", "a b c e", "a b f g"]
        for threshold, by_hand in ((0.5, [1]), (0.51, []), (0.2, [1, 2])):
            found = minhash_dedup(texts, threshold, words=2, permutations=1024)
            yield Expectation(
                f"three texts from {threshold}", torch.tensor(by_hand).long(), torch.tensor(found.removed)
            )

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        texts = self.build("typical", seed, device).target.texts
        for join in ("greedy", "components"):
            found = minhash_dedup(texts, 0.5, join=join)
            both = np.sort(np.concatenate([found.kept, found.removed]))
            yield Expectation("items kept or removed", torch.arange(len(texts)), torch.from_numpy(both))
            stays = np.isin(found.twin, found.kept)
            yield Expectation("twins that stay", torch.ones(len(stays), dtype=torch.bool), torch.from_numpy(stays))

    def invalid(self, device: str) -> Iterable[Invalid]:
        yield Invalid("numbers for texts", lambda: MINHASH.apply([1, 2]), "strings")
        yield Invalid("one string", lambda: MINHASH.apply("a text"), "strings")
        yield Invalid("fewer items", lambda: TextDataset(["a"], [1, 2]), "one text per item")
        yield Invalid(
            "components and references", lambda: minhash_dedup(["a"], join="components", references=1), "join"
        )


def marked(index: np.ndarray, texts: list[str]) -> Tensor:
    return torch.from_numpy(np.isin(np.arange(len(texts)), index))


def words_of(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def brute_force(texts: list[str], threshold: float) -> Tensor:
    """(N,) whether each text goes, compared with every one that stays before it."""
    sets, kept, gone = [words_of(text) for text in texts], list[int](), list[bool]()
    for i, one in enumerate(sets):
        gone.append(any(len(one & sets[j]) >= threshold * len(one | sets[j]) for j in kept))
        kept += [] if gone[-1] else [i]
    return torch.tensor(gone)


CASES = MinHashDeduplicationCases()


def pairs_of_similarity(numbers: Iterable[int], shared: int = 200) -> list[tuple[str, str, float]]:
    """For each number, two documents of single words that share 200, and have so many of their own each."""
    made = []
    for n in numbers:
        common, one, other = (sentence(Random(7 * n + k), size) for k, size in enumerate((shared, n, n)))
        made.append((f"{common} {one}", f"{common} {other}", shared / (shared + 2 * n)))
    return made


def test_the_share_of_equal_minima_estimates_the_jaccard_index_within_three_standard_errors():
    permutations = 1024
    for one, other, similarity in pairs_of_similarity((0, 10, 25, 60, 150, 900)):
        sets = shingled([one, other], words=1)
        assert technique.jaccard(sets.of(0), sets.of(1)) == pytest.approx(similarity, abs=0.01)
        signature = technique.signatures(sets, permutations)
        exact = technique.jaccard(sets.of(0), sets.of(1))
        error = 3 * (exact * (1 - exact) / permutations) ** 0.5
        assert abs(float((signature[0] == signature[1]).mean()) - exact) <= error + 1e-9


def test_candidates_follow_the_s_curve():
    bands, rows, seeds = 21, 6, range(300)
    for one, other, _ in pairs_of_similarity((50, 80, 120)):
        sets = shingled([one, other], words=1)
        exact = technique.jaccard(sets.of(0), sets.of(1))
        keys = [technique.band_keys(technique.signatures(sets, 128, seed), bands, rows) for seed in seeds]
        found = float(np.mean([(one == other).any() for one, other in keys]))
        due = technique.found_share(exact, bands, rows)
        assert abs(found - due) <= 3.5 * (due * (1 - due) / len(seeds)) ** 0.5 + 0.02


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_are_as_long_as_the_recall_at_the_threshold_allows(threshold: float):
    bands, rows = technique.banding(threshold)
    assert bands * rows <= 128
    assert technique.found_share(threshold, bands, rows) >= technique.RECALL
    longer = rows + 1
    assert longer > 128 or technique.found_share(threshold, 128 // longer, longer) < technique.RECALL


def test_greedy_keeps_both_ends_of_a_chain_and_components_one():
    base = sentence(Random(0), 100).split()
    chain = [" ".join(base[i : i + 60]) for i in (0, 15, 30)]  # neighbours share 41 of 71 shingles, the ends 26 of 86
    greedy, joined = (minhash_dedup(chain, 0.5, join=join) for join in ("greedy", "components"))
    assert greedy.removed.tolist() == [1]
    assert joined.removed.tolist() == [1, 2]
    assert joined.similarity.tolist() == pytest.approx([41 / 71, 26 / 86])


def test_the_longest_stays_where_it_is_asked_to():
    text = sentence(Random(1), 80)
    texts = [" ".join(text.split()[:70]), text]
    assert minhash_dedup(texts, 0.8).removed.tolist() == [1]
    assert minhash_dedup(texts, 0.8, stays="longest").removed.tolist() == [0]


def test_references_stay_and_only_they_are_twins():
    texts = [sentence(Random(n)) for n in range(3)]
    found = minhash_dedup([texts[0], texts[0], texts[1], texts[1], texts[0]], 0.8, references=2)
    assert (found.removed.tolist(), found.twin.tolist()) == ([4], [0])


def test_texts_without_words_and_short_ones_are_kept_or_compared_whole():
    found = minhash_dedup(["", "...", "", "two words", "Two, words!", "two other"], 0.8)
    assert (found.removed.tolist(), found.twin.tolist()) == ([4], [3])
    assert len(minhash_dedup([], 0.8).kept) == 0


def test_its_own_output_loses_nothing_more():
    texts = CASES.build("typical", 3, "cpu").target.texts
    with MINHASH.apply(texts, threshold=0.5) as handle:
        again = list(handle.target)
    assert len(again) < len(texts)
    with pytest.warns(NoEffectWarning, match="no two documents"):
        MINHASH.apply(again, threshold=0.5)


def test_generated_documents_say_which_of_them_are_copies():
    texts = [". ".join(sentence(Random(50 * n + k), 12).capitalize() for k in range(6)) + ". End." for n in range(60)]
    documents = list(generated(texts, 600, seed=1))
    assert documents == list(generated(texts, 600, seed=1))
    copies = [(n, original) for n, (_, original) in enumerate(documents) if original is not None]
    assert 0.25 < len(copies) / 600 < 0.35
    assert all(original < n and documents[original][1] is None for n, original in copies)
    exact = [documents[n][0] == documents[original][0] for n, original in copies]
    assert exact == [n % len(KINDS) == 0 for n in range(len(copies))]
    removed = set(minhash_dedup([text for text, _ in documents], 0.8).removed.tolist())
    assert {n for (n, _), same in zip(copies, exact, strict=True) if same} <= removed <= {n for n, _ in copies}


def test_a_copy_is_found_when_it_or_its_original_goes():
    planted = Planted(np.array([4, 5, 6]), np.array([0, 1, 0]), np.array([False, False, True]), np.array([0, 1, 0]))
    corpus = Corpus(
        [""] * 7, torch.zeros(7), [""], torch.zeros(1), planted, lambda: (torch.zeros(7, 1), torch.zeros(1, 1))
    )
    kinds = [None] * 4
    assert found(corpus, whole([0, 3], 7), WITHIN) == [
        1.0,
        0.0,
        *kinds,
        0.5,
        0.5,
    ]  # the original of 4 goes, and a stranger
    assert found(corpus, whole([4, 5, 6], 7), WITHIN) == [1.0, 1.0, *kinds, 1.0, 1.0]
    assert found(corpus, whole([4], 7), ACROSS) == [0.0, None, *kinds, 0.0, 1.0]  # only 6 copies a test mail
    assert found(corpus, whole([], 7), ACROSS) == [0.0, None, *kinds, 0.0, None]


def test_datasketch_with_the_same_bands_makes_the_same_pairs_candidates():
    datasketch = pytest.importorskip("datasketch")
    random = Random(5)
    texts = [sentence(random) for _ in range(150)]
    texts += [changed(text, random, share) for text in texts for share in (0.0, 0.05, 0.1)]
    bands, rows = technique.banding(0.8)
    index = datasketch.MinHashLSH(num_perm=128, params=(bands, rows))
    sketches = [datasketch.MinHash(128) for _ in texts]
    for i, (sketch, text) in enumerate(zip(sketches, texts, strict=True)):
        sketch.update_batch([" ".join(shingle).encode() for shingle in words_of(text)])
        index.insert(i, sketch)
    sets, keys = shingled(texts), None
    keys = technique.band_keys(technique.signatures(sets), bands, rows)
    for i, sketch in enumerate(sketches):
        alike = {j for j in range(len(texts)) if technique.jaccard(sets.of(i), sets.of(j)) >= 0.85}
        ours = set(np.flatnonzero((keys == keys[i]).any(1)).tolist())
        assert alike <= ours
        assert alike <= set(index.query(sketch))


def test_buckets_that_have_no_document_in_common_fall_apart():
    keys = np.array(
        [[1, 1], [1, 2], [3, 2], [4, 4], [4, 5], [6, 6], [0, 0]], np.uint64
    )  # 0-1-2 by a chain, 3-4, 5 alone
    found = technique.buckets(keys, np.arange(7) < 6)
    for size, parts in ((1, [[0, 1, 2], [3, 4]]), (3, [[0, 1, 2], [3, 4]]), (4, [[0, 1, 2, 3, 4]])):
        assert [part.tolist() for part in technique.apart(found, size)] == parts
    long = np.stack([np.arange(2000) // 2, (np.arange(2000) + 1) // 2], 1).astype(np.uint64)  # one chain of them all
    assert [len(part) for part in technique.apart(technique.buckets(long, np.full(2000, True)), 10)] == [2000]
    assert list(technique.apart(technique.buckets(keys[:0], np.zeros(0, bool)), 5)) == []


def test_the_scale_is_measured_from_size_to_size(asset: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    asset("spam-assassin")

    def here(file: Path, out: Path, method: str) -> experiment.Ran:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            experiment.one_run(str(file), str(out), method)
        return experiment.Ran(*json.loads(said.getvalue()))

    monkeypatch.setattr(experiment, "alone", here)
    scenario = next(one for one in experiment.SCENARIOS if one.name == "scale")
    record = measure(MINHASH.id, replace(scenario, smoke=replace(scenario.smoke, sizes=(100, 200, 400))), Context())
    runs = record.tables["runs"].records()
    assert [(row["method"], row["documents"]) for row in runs] == [
        ("minhash", 100), ("exact", 100), ("minhash", 200), ("exact", 200), ("minhash", 400),
    ]  # fmt: skip
    assert all(
        row["recall"] == 1 and 0 < row["sketching"] < row["seconds"] for row in runs if row["method"] == "minhash"
    )
    assert all(row["recall"] < 0.5 for row in runs if row["method"] == "exact")
    assert [row["to"] for row in record.tables["growth"].records()] == [200, 400, 200]
    line = [["minhash", 10, 1, 2.0, 1, 1, 1.5, 1.0, 0, 1, 1], ["minhash", 100, 1, 20.0, 1, 1, 3.5, 1.0, 0, 1, 1]]
    assert experiment.growth(line, experiment.RUNS) == [["minhash", 10, 100, 2e5, pytest.approx(2e6 / 90), 1.0, 0.5]]
