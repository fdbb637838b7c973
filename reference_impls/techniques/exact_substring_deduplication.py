"""Exact substring deduplication: every passage of k characters that occurs before is cut out.

Paper
    lee-2022-deduplicating: Lee, Ippolito, Nystrom, Zhang, Eck, Callison-Burch, Carlini, "Deduplicating Training Data
    Makes Language Models Better", ACL 2022, arXiv 2107.06499. ExactSubstr, section 4.1.

Idea
    Otherwise different documents quote one another, carry one licence, end with one footer. Join all documents, sort
    the suffixes, and a passage of k characters that repeats begins suffixes that stand side by side. Nothing beyond k
    characters of a suffix decides that, so the sort stops there: runs of 1, 2, 4, ... characters are named, a run of
    2 l by the names of its halves, as prefix doubling builds a suffix array (Manber and Myers 1993, doi
    10.1137/0222058). A run that occurs once cannot begin a longer one that repeats, so few positions are left soon.

What is cut are the characters of later occurrences, less those that any first occurrence needs. So each passage that
was cut still stands in the corpus, whole, also where occurrences overlap. The published tool cuts every occurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import check_range, warn_no_effect
from reference_impls.contract.knobs import Integer
from reference_impls.redundancy.exact_repetition import repeated_share
from reference_impls.techniques.minhash_deduplication import TextDataset, texts_of

Ints = npt.NDArray[np.int64]
LENGTH = 100


class Joined(NamedTuple):
    """Documents joined into one sequence."""

    codes: npt.NDArray[np.uint32]
    """(S,) code points"""
    offsets: Ints
    """(N + 1,) where each document begins"""

    def document(self, position: Ints) -> Ints:
        """The document of each position."""
        return np.searchsorted(self.offsets, position, side="right") - 1


class Cuts(NamedTuple):
    """What is cut out of N documents."""

    document: Ints
    """(C,) document of each cut, ascending"""
    start: Ints
    """(C,) first character of the cut in its document"""
    end: Ints
    """(C,) one beyond its last character"""
    twin: Ints
    """(N,) the document in which most of what is cut stands first; itself where nothing is cut"""
    share: npt.NDArray[np.float64]
    """(N,) part of the characters that is cut"""

    def apply(self, texts: Sequence[str]) -> list[str]:
        """The texts without what is cut."""
        left = list(texts)
        for i, start, end in zip(*(part[::-1].tolist() for part in self[:3]), strict=True):
            left[i] = left[i][:start] + left[i][end:]  # from the back, so that earlier places stay where they are
        return left


def joined(texts: Sequence[str]) -> Joined:
    """The code points of all texts, and where each begins."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return Joined(codes, np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64))


def repeated(corpus: Joined, length: int) -> tuple[Ints, Ints]:
    """Positions (P,), ascending, whose next `length` characters occur again, and the name (P,) of these characters.

    Passages lie inside one document. Equal passages have equal names.
    """
    position = np.arange(len(corpus.codes))
    room = np.repeat(corpus.offsets[1:], np.diff(corpus.offsets)) - position
    names, run = corpus.codes.astype(np.int64), 0
    position, found = _named(position, names)
    while True:
        run = run + min(run, length - run) or 1
        if run == length or not len(position):
            return position, found
        names.fill(-1)
        names[position] = found
        step = min(run, length - run)
        position = position[room[position] >= run + step]
        second = names[position + step]
        position, second = position[second >= 0], second[second >= 0]
        position, found = _named(position, names[position] * (int(names.max(initial=0)) + 1) + second)


def _named(position: Ints, key: Ints) -> tuple[Ints, Ints]:
    """The positions whose key occurs again, and small numbers that name their keys."""
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    again = count[inverse] > 1
    return position[again], inverse[again]


def covered(starts: Ints, length: int, size: int) -> npt.NDArray[np.bool_]:
    """(size,) whether a position lies in a passage of `length` that begins at one of `starts`."""
    steps = np.bincount(starts, minlength=size + 1)[: size + 1].astype(np.int64)
    steps -= np.bincount(starts + length, minlength=size + 1)[: size + 1]
    return np.cumsum(steps)[:size] > 0


def find_cuts(texts: Sequence[str], length: int = LENGTH, references: int = 0) -> Cuts:
    """What repeats, at `length` characters or more (lee-2022-deduplicating, section 4.1).

    references: with some, so many texts at the front stay whole, and only passages that stand in them are cut.
    Raises: ValueError for a length below 1.
    """
    check_range("length", length, 1, integer=True)
    corpus, n = joined(texts), len(texts)
    size, border = len(corpus.codes), corpus.offsets[references]
    position, name = repeated(corpus, length)
    first = np.full(int(name.max(initial=-1)) + 1, size)
    np.minimum.at(first, name, position)
    first = first[name]  # (P,) where the passage at each position stands first
    later = first != position
    if references:
        later &= (first < border) & (position >= border)
    cut = covered(position[later], length, size) & ~covered(first[later], length, size)
    points = np.union1d(np.flatnonzero(np.diff(cut)) + 1, corpus.offsets)  # between two nothing changes
    begins, ends = (side[cut[points[:-1]]] for side in (points[:-1], points[1:]))
    document = corpus.document(begins)
    shift = corpus.offsets[document]
    gone = np.bincount(document, weights=ends - begins, minlength=n)
    share = gone / np.maximum(np.diff(corpus.offsets), 1)
    return Cuts(document, begins - shift, ends - shift, _twins(corpus, position[later], first[later], gone), share)


def _twins(corpus: Joined, position: Ints, first: Ints, gone: npt.NDArray[np.float64]) -> Ints:
    """(N,) the document with most of the first occurrences of each one's passages, the earliest of equal ones."""
    n = len(gone)
    twin = np.arange(n)
    pair, count = np.unique(corpus.document(position) * n + corpus.document(first), return_counts=True)
    best = pair[np.lexsort((-pair, count))]  # the last of a document has most passages
    twin[best // max(n, 1)] = best % max(n, 1)
    return np.where(gone > 0, twin, np.arange(n))


class ExactSubstringDeduplication(Technique):
    """Cuts passages that occurred before out of the texts of a data set."""

    id = "exact-substring-deduplication"
    execution = "real"
    knobs: ClassVar = {
        "length": Integer(100, low=1, optional=True, about="characters from which on a passage counts as repeated")
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"length": None}, off=True),
            *(Setting(f"length={k}", {"length": k}, adaptive=True) for k in (400, LENGTH, 50)),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Characters that are cut at a length of 100, as a share of those beyond the longest text."""
        texts = texts_of(self.id, target)
        cuts = find_cuts(texts)
        share = repeated_share(int((cuts.end - cuts.start).sum()), [len(text) for text in texts])
        return Redundancy(share, f"share of characters in repeated passages of {LENGTH}")

    def attach(self, target: Any, length: int | None) -> Handle:
        """Cut the texts of a data set; `handle.target` is a `TextDataset` of what is left, in the same order.

        An item stays even where nothing is left of it. The trace holds the `Cuts`.
        Raises: UnsupportedHost for a target that is neither texts nor has any.
        """
        texts = texts_of(self.id, target)
        cuts = find_cuts([] if length is None else texts, length or LENGTH)
        if not len(cuts.start):
            at = "length is None" if length is None else f"no passage of {length} characters repeats"
            warn_no_effect(self.id, at)
        left = TextDataset(cuts.apply(texts), macs_per_character=getattr(target, "macs_per_character", 0))
        trace = {name: torch.from_numpy(part) for name, part in cuts._asdict().items()}
        return Handle(left, trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Characters cut x MACs per character (0 where the target does not say): sorting multiplies no matrices."""
        return int((trace["end"] - trace["start"]).sum()) * int(getattr(target, "macs_per_character", 0))
