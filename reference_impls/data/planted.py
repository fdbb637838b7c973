"""Duplicates planted in texts that have none: what a search for duplicates must find is known exactly.

originals = distinct([mail.text for mail in mails()], 1200)
planted = plant(originals, rate=0.4)
planted.found(stands)  # for each planted duplicate, whether a search found it
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from reference_impls.contract import check_range, generator
from reference_impls.data.text import normalised

DISTINCT = 0.2
"""Originals share less than this part (Jaccard) of their three-word shingles with any other text."""
FOOTER = (
    "_______________________________________________ This message was sent to the members of the list. To change your "
    "settings or to leave the list, visit the page of the list or write to its owner. Archives are open to all."
)


def one_sentence_less(text: str, random: Random) -> str:
    """The text without one of its sentences."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    del sentences[random.randrange(len(sentences))]
    return " ".join(sentences)


def fewer_words(text: str, random: Random) -> str:
    """The text without a tenth of its words."""
    words = text.split(" ")
    gone = set(random.sample(range(len(words)), max(1, len(words) // 10)))
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def quoted(text: str, random: Random) -> str:
    """The text as a reply quotes it, every twelve words after a mark."""
    words = text.split()
    lines = [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    return "Somebody wrote: " + " ".join(f"> {line}" for line in lines)


KINDS: dict[str, Callable[[str, Random], str]] = {
    "exact copy": lambda text, random: text,
    "capital letters": lambda text, random: text.upper(),
    "footer added": lambda text, random: f"{text} {FOOTER}",
    "one sentence less": one_sentence_less,
    "a tenth of the words less": fewer_words,
    "quoted in a reply": quoted,
}


class Planted(NamedTuple):
    """Originals with planted duplicates after them: item `first + i` is a duplicate of item `original[i]`."""

    texts: list[str]
    """The originals, then the duplicates."""
    first: int
    """Number of originals."""
    original: Tensor
    """(P,)"""
    kind: Tensor
    """(P,) position in `KINDS`"""

    def found(self, stands: Tensor) -> Tensor:
        """(P,) whether the same item stands for the planted duplicate and for its original; `stands` (N,), by item."""
        stands = stands.cpu()
        return stands[self.original] == stands[self.first :]


def distinct(texts: Sequence[str], size: int) -> list[str]:
    """The first `size` texts of at least 40 words and three sentences that resemble no other one, by `DISTINCT`."""
    shingles = CountVectorizer(ngram_range=(3, 3), binary=True, dtype=np.float32)
    x = shingles.fit_transform([normalised(text) for text in texts])
    sizes = np.asarray(x.sum(1)).ravel()
    alone = np.ones(len(texts), dtype=bool)
    for start in range(0, len(texts), 500):
        common = (x[start : start + 500] @ x.T).tocoo()
        rows, columns = common.row + start, common.col
        jaccard = common.data / (sizes[rows] + sizes[columns] - common.data)
        alone[rows[(jaccard >= DISTINCT) & (rows != columns)]] = False
    long = [len(text.split()) >= 40 and len(re.findall(r"[.!?]\s", text)) >= 3 for text in texts]
    return [text for text, one, two in zip(texts, alone, long, strict=True) if one and two][:size]


def plant(originals: Sequence[str], rate: float) -> Planted:
    """Add one duplicate to as many originals as make the share `rate` of the whole, at most a half, the kinds in turn.

    The texts of a lower rate are the first ones of a higher rate.
    """
    check_range("rate", rate, 0, 0.5)
    number = round(rate * len(originals) / (1 - rate))
    chosen = torch.randperm(len(originals), generator=generator(0))[:number]
    kind = torch.arange(len(chosen)) % len(KINDS)
    changes = list(KINDS.values())
    copies = [changes[k](originals[i], Random(i)) for i, k in zip(chosen.tolist(), kind.tolist(), strict=True)]
    return Planted([*originals, *copies], len(originals), chosen, kind)


def generated(texts: Sequence[str], size: int, seed: int = 0, share: float = 0.3) -> Iterator[tuple[str, int | None]]:
    """So many documents of real sentences, and of what earlier document each is a planted copy, if of any.

    A document is four to eight of the distinct sentences of five words or more in `texts`, drawn at random. About a
    `share` of the documents are copies of one of the last thousand such, the kinds in turn.
    """
    sentences = list(
        dict.fromkeys(s for t in texts for s in re.split(r"(?<=[.!?])\s+", t) if 5 <= len(s.split()) <= 60)
    )
    random, recent, kinds, planted = Random(seed), deque[tuple[int, str]](maxlen=1000), list(KINDS.values()), 0
    for number in range(size):
        if recent and random.random() < share:
            original, text = recent[random.randrange(len(recent))]
            yield kinds[planted % len(kinds)](text, random), original
            planted += 1
        else:
            text = " ".join(random.choices(sentences, k=random.randint(4, 8)))
            recent.append((number, text))
            yield text, None
