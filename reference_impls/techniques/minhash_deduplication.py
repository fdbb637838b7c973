"""MinHash deduplication: documents that share most of their word sequences, found from short sketches.

Papers
    broder-1997-resemblance: Broder, "On the resemblance and containment of documents", SEQUENCES 1997,
    doi 10.1109/SEQUEN.1997.666900. Resemblance, shingles and minima of permutations.
    lee-2022-deduplicating: Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499.
    NearDup: shingles of words, bands, candidates checked before one goes.

Idea
    A document is the set of its shingles, runs of five words. The share of equal minima over k random permutations of
    all shingles estimates the Jaccard index of two sets. The k minima are cut into B bands of R; documents that agree
    in a whole band share a bucket, with probability 1 - (1 - J^R)^B, so nobody compares all pairs. What shares a bucket
    is a candidate only: its exact Jaccard index decides. Documents are looked at in order, and one goes if a document
    that stays is as similar as the threshold asks: every removal is verified, and its twin is still there.

The signatures are computed by rensa; everything else stands here. Shingles are 64-bit hashes (words by xxhash), so two
different ones are taken for one with a probability of about n^2 / 2^65 among n.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Subset

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.redundancy.cross_sample_similarity import removable_share

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
S = TypeVar("S", float, npt.NDArray[np.float64])
Join = Literal["greedy", "components"]
Stays = Literal["first", "longest"]
THRESHOLD, WORDS, PERMUTATIONS = 0.8, 5, 128
RECALL = 0.995
"""Share of the pairs at the threshold itself that the bands must make candidates."""
WORD = re.compile(r"[^\W_]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Shingles(NamedTuple):
    """The shingle sets of N documents, one after the other."""

    hashes: Hashes
    """(T,) 64-bit shingles; those of a document are distinct and ascending"""
    offsets: Ints
    """(N + 1,) where each document begins; one without a letter or digit has none"""

    def of(self, i: int) -> Hashes:
        """The shingles of document i."""
        return self.hashes[self.offsets[i] : self.offsets[i + 1]]

    @property
    def sizes(self) -> Ints:
        """(N,) distinct shingles of each document."""
        return np.diff(self.offsets)

    def only(self, documents: Ints) -> Shingles:
        """Those of the documents (K,) alone, which are numbered anew."""
        offsets = np.concatenate([[0], np.cumsum(self.sizes[documents])]).astype(np.int64)
        return Shingles(np.concatenate([self.of(i) for i in documents.tolist()]), offsets)


class Buckets(NamedTuple):
    """Buckets that two of N documents or more share, by document."""

    offsets: Ints
    """(N + 1,) where those of each document begin"""
    bucket: Ints
    """(M,) numbers from 0 on"""

    def of(self, i: int) -> Ints:
        """The buckets of document i."""
        return self.bucket[self.offsets[i] : self.offsets[i + 1]]

    def only(self, documents: Ints) -> Buckets:
        """Those of the documents (K,) alone, which are numbered anew, as are the buckets."""
        own = [self.of(i) for i in documents.tolist()]
        _, bucket = np.unique(np.concatenate(own), return_inverse=True)
        return Buckets(np.concatenate([[0], np.cumsum([len(of) for of in own])]).astype(np.int64), bucket)


class Removal(NamedTuple):
    """What goes; indices into the data set, `kept` and `removed` ascending."""

    kept: Ints
    """(K,)"""
    removed: Ints
    """(R,)"""
    twin: Ints
    """(R,) for each removed item, the one that stays in its place"""
    similarity: npt.NDArray[np.float64]
    """(R,) of the removed item and its twin"""


def shingled(texts: Iterable[str], words: int = WORDS) -> Shingles:
    """Runs of `words` words, letter case and punctuation aside; a shorter document is one shingle.

    Raises: ValueError for fewer than one word; TypeError for what is no text.
    """
    import xxhash

    check_range("words", words, 1, integer=True)
    vocabulary: dict[str, int] = {}
    tokens, lengths = list[int](), list[int]()
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts must be strings, got {type(text).__name__} at {n}")
        found = WORD.findall(text.lower())
        found += [""] * (words - len(found) if found else 0)
        tokens += [vocabulary.setdefault(word, len(vocabulary)) for word in found]
        lengths.append(len(found))
    known = np.fromiter(
        (xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in vocabulary),
        np.uint64,
        len(vocabulary),
    )
    ends, starts = np.cumsum(lengths, dtype=np.int64), np.asarray(lengths, np.int64)
    count = np.maximum(starts - words + 1, 0)  # shingles of each document, repeated ones too
    document = np.repeat(np.arange(len(lengths)), count)
    first = np.arange(len(document)) + np.repeat(ends - starts - np.cumsum(count) + count, count)
    hashes, word = np.zeros(len(document), np.uint64), known[np.asarray(tokens, np.int64)]
    for position in range(words):
        hashes = mixed(hashes * MULTIPLIER + word[first + position])
    order = np.lexsort((hashes, document))
    hashes, document = hashes[order], document[order]
    new = np.ones(len(hashes), dtype=bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (document[1:] != document[:-1])
    sizes = np.bincount(document[new], minlength=len(lengths))
    return Shingles(hashes[new], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def mixed(x: Hashes) -> Hashes:
    """A bijection of 64-bit numbers in which every bit depends on every other (Stafford's thirteenth)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Jaccard index of two sets (A,), (B,), distinct and ascending; 0 where one is empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common) if common else 0.0


def signatures(sets: Shingles, permutations: int = PERMUTATIONS, seed: int = 0) -> npt.NDArray[np.uint32]:
    """MinHash signatures (N, k) of the shingle sets, by rensa (broder-1997-resemblance, section 4)."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(sets.hashes, sets.offsets, permutations, seed)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(sets.sizes), permutations)


def found_share(similarity: S, bands: int, rows: int) -> S:
    """Probability that two sets of this Jaccard index, or of each of several, share a bucket: 1 - (1 - J^R)^B."""
    return 1 - (1 - similarity**rows) ** bands


def banding(threshold: float, permutations: int = PERMUTATIONS, recall: float = RECALL) -> tuple[int, int]:
    """Bands B and their rows R, as long as `recall` of the pairs at the threshold allow: fewest false candidates."""
    check_range("threshold", threshold, 0, 1, low_open=True)
    fits = (r for r in range(permutations, 0, -1) if found_share(threshold, permutations // r, r) >= recall)
    rows = next(fits, 1)
    return permutations // rows, rows


def band_keys(signature: npt.NDArray[np.uint32], bands: int, rows: int) -> Hashes:
    """The bucket (N, B) of each document in each band, from signatures (N, k)."""
    keys = np.zeros((len(signature), bands), np.uint64)
    cut = signature[:, : bands * rows].reshape(len(signature), bands, rows).astype(np.uint64)
    for row in range(rows):
        keys = mixed(keys * MULTIPLIER + cut[:, :, row] + np.uint64(1))
    return keys


def buckets(keys: Hashes, among: npt.NDArray[np.bool_]) -> Buckets:
    """Buckets that hold two documents or more, from keys (N, B); among: (N,) whether a document takes part."""
    takes = np.flatnonzero(among)
    items, numbers, known = list[Ints](), list[Ints](), 0
    for band in range(keys.shape[1]):
        _, inverse, sizes = np.unique(keys[takes, band], return_inverse=True, return_counts=True)
        number = np.cumsum(sizes > 1) - 1  # of those that are shared
        shared = sizes[inverse] > 1
        items.append(takes[shared])
        numbers.append(number[inverse[shared]] + known)
        known += int((sizes > 1).sum())
    item, bucket = np.concatenate(items), np.concatenate(numbers)
    order = np.argsort(item, kind="stable")
    return Buckets(np.searchsorted(item[order], np.arange(len(keys) + 1)), bucket[order])


def apart(found: Buckets, size: int) -> Iterator[Ints]:
    """Documents that share buckets, directly or through others, in parts that have no bucket in common.

    Each part is ascending, and holds about `size` documents or one connected component: what goes of it follows from
    it alone. Documents that share no bucket are in none.
    """
    item = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    label, before = np.arange(len(found.offsets) - 1), np.empty(0, np.int64)
    while not np.array_equal(label, before):  # the least document of a bucket, of its buckets, and so on
        before = label.copy()
        least = np.full(int(found.bucket.max(initial=-1)) + 1, len(label))
        np.minimum.at(least, found.bucket, label[item])
        np.minimum.at(label, item, least[found.bucket])
        np.minimum.at(label, before, label)
        label = label[label]
    takes = np.flatnonzero(np.diff(found.offsets))
    order = takes[np.argsort(label[takes], kind="stable")]
    begins = np.flatnonzero(np.diff(label[order], prepend=-1))  # of each component
    cuts = [0]
    for begin in begins.tolist():
        if begin - cuts[-1] >= size:
            cuts.append(begin)
    for start, end in pairwise([*cuts, len(order)]):
        if end > start:
            yield np.sort(order[start:end])


def remove(
    sets: Shingles,
    keys: Hashes,
    threshold: float,
    *,
    join: Join = "greedy",
    stays: Stays = "first",
    references: int = 0,
) -> Removal:
    """Decide what goes, candidate by candidate.

    Args:
        sets, keys: shingles and buckets (N, B) of the documents.
        threshold: a candidate is a twin from this exact Jaccard index on.
        join: `greedy` lets a document go only for a twin that stays. `components` joins twins of twins, and keeps one
            of each connected component, whose ends may be unlike: then a similarity may lie below the threshold.
        stays: which one does, the first in order or the one with most shingles.
        references: so many documents at the front are only compared with: they stay, and only they can be twins.
    Raises: ValueError for a threshold outside (0, 1], or a join that does not know references.
    """
    twin, similarity = compared(sets, buckets(keys, sets.sizes > 0), threshold, join, stays, references)
    gone = twin != np.arange(len(twin))
    return Removal(np.flatnonzero(~gone), np.flatnonzero(gone), twin[gone], similarity[gone])


def compared(
    sets: Shingles, found: Buckets, threshold: float, join: Join = "greedy", stays: Stays = "first", references: int = 0
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """For each document the one for which it goes (N,), itself where it stays, and their similarity (N,).

    What `remove` decides, for all documents or for a part of them (`apart`). Args and errors as there.
    """
    check_range("threshold", threshold, 0, 1, low_open=True)
    if references and join != "greedy":
        raise ValueError("join must be 'greedy' where documents are compared with references")
    sizes, n = sets.sizes, len(sets.sizes)
    twin, similarity = np.arange(n), np.ones(n)
    order = np.arange(n) if stays == "first" else np.lexsort((np.arange(n), -sizes))
    order = np.concatenate([np.arange(references), order[order >= references]])
    rank = np.argsort(order)
    inside: dict[int, list[int]] = {}
    root = list(range(n))

    def end(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for i in order.tolist():
        own = found.of(i).tolist()
        if not own:
            continue
        best, nearest, tried = 0.0, i, set[int]()
        for j in () if i < references else (j for b in own for j in inside.get(b, ())):
            if j in tried or (join == "components" and end(j) == end(i)):
                continue
            tried.add(j)
            if min(sizes[i], sizes[j]) < threshold * max(sizes[i], sizes[j]):
                continue  # the Jaccard index cannot be higher than the ratio of the sizes
            alike = jaccard(sets.of(i), sets.of(j))
            if alike >= threshold and join == "components":
                low, high = sorted((end(i), end(j)), key=lambda k: int(rank[k]))
                root[high] = low
            if alike >= threshold and (alike, -rank[j]) > (best, -rank[nearest]):
                best, nearest = alike, j
        if nearest != i:
            twin[i], similarity[i] = nearest, best
        if i < references or (not references and (join == "components" or nearest == i)):
            for b in own:
                inside.setdefault(b, []).append(i)
    if join == "components":
        twin = np.array([end(i) for i in range(n)], np.int64)
        similarity = np.array([1.0 if t == i else jaccard(sets.of(i), sets.of(int(t))) for i, t in enumerate(twin)])
    return twin, similarity


def minhash_dedup(
    texts: Sequence[str],
    threshold: float = THRESHOLD,
    *,
    words: int = WORDS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    join: Join = "greedy",
    stays: Stays = "first",
    references: int = 0,
) -> Removal:
    """Near-duplicates of the texts, from shingles to what goes. Knobs and errors as those of the functions above."""
    sets = shingled(texts, words)
    keys = band_keys(signatures(sets, permutations, seed), *banding(threshold, permutations))
    return remove(sets, keys, threshold, join=join, stays=stays, references=references)


class TextDataset(Dataset[Any]):
    """A map-style data set with a text for each item: what `MinHashDeduplication` works on."""

    def __init__(
        self, texts: Sequence[str], items: Any = None, macs_per_item: int = 0, macs_per_character: int = 0
    ) -> None:
        """Join a map-style data set or sequence with the texts of its items; without one, the texts are the items.

        `macs_per_item` and `macs_per_character` are what the caller's training spends on an item, and on a character
        of a text, over all its epochs, in multiply-accumulates; the `saving` of a technique counts what it removes.
        """
        self.texts, self.items = texts, texts if items is None else items
        self.macs_per_item, self.macs_per_character = macs_per_item, macs_per_character
        if len(self.items) != len(texts):
            raise ValueError(f"there must be one text per item: {len(self.items)} items, {len(texts)} texts")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def texts_of(technique: str, target: Any) -> Sequence[str]:
    """The texts of a `TextDataset`, or the target itself where it is a sequence of strings.

    Raises: UnsupportedHost for anything else.
    """
    texts = getattr(target, "texts", target)
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UnsupportedHost(technique, target, "a sequence of strings, or a data set with `texts` as in TextDataset")
    return texts


class MinHashDeduplication(Technique):
    """Removes near-duplicate documents of a data set before training on it."""

    id = "minhash-deduplication"
    execution = "real"
    exploits: ClassVar = {"near-items": {}, "repeated-items": {}}
    knobs: ClassVar = {
        "threshold": Number(
            0.8, low=0, high=1, low_open=True, optional=True, about="Jaccard index from which on a document goes"
        ),
        "words": Integer(5, low=1, about="words of a shingle"),
        "permutations": Integer(128, low=1, high=4096, about="minima of a signature"),
        "seed": Integer(0, low=0, about="of the permutations"),
        "join": Choice(
            "greedy",
            options=("greedy", "components"),
            about="a document goes for a twin that stays, or all but one of each connected component go",
        ),
        "stays": Choice("first", options=("first", "longest"), about="which of two twins stays"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"threshold": None}, off=True),
            *(Setting(f"threshold={t:g}", {"threshold": t}, adaptive=True) for t in (0.95, THRESHOLD, 0.5)),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of the documents beyond the first that go at a Jaccard index of 0.8: R / (N - 1)."""
        texts = texts_of(self.id, target)
        found, group = minhash_dedup(texts), torch.arange(len(texts))
        group[torch.from_numpy(found.removed)] = torch.from_numpy(found.twin)  # which stays itself
        return Redundancy(removable_share(group), f"share of documents with a twin, Jaccard {THRESHOLD:g} or more")

    def attach(self, target: Any, threshold: float | None, **knobs: Any) -> Handle:
        """Deduplicate a data set; `handle.target` is a `torch.utils.data.Subset` of it, in the same order.

        The trace holds the `Removal`. Raises: UnsupportedHost for a target that is neither texts nor has any.
        """
        texts = texts_of(self.id, target)
        every, none = np.arange(len(texts)), np.arange(0)
        removal = Removal(every, none, none, none / 1.0)
        if threshold is not None:
            removal = minhash_dedup(texts, threshold, **knobs)
        if not len(removal.removed):
            at = "threshold is None" if threshold is None else f"no two documents have a Jaccard index of {threshold:g}"
            warn_no_effect(self.id, at)
        trace = {name: torch.from_numpy(part) for name, part in removal._asdict().items()}
        return Handle(Subset(target, removal.kept.tolist()), trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Removed documents x MACs per item (0 where the target does not say): hashing multiplies no matrices."""
        return len(trace["removed"]) * int(getattr(target, "macs_per_item", 0))
