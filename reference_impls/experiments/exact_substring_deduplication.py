"""The experiment of exact substring deduplication, in the benchmark of deduplication.

- `planted-sweep`: copies of six kinds planted in mails, against the length from which on a passage counts.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from reference_impls.benchmarks import deduplication as benchmark
from reference_impls.benchmarks.deduplication import Corpus, Left, Method
from reference_impls.data.text import normalised
from reference_impls.techniques.exact_substring_deduplication import LENGTH, ExactSubstringDeduplication, find_cuts


def method(length: int) -> Method:
    """Passages of so many characters that stood before are cut; a mail goes when no word of it is left."""

    def leave(corpus: Corpus, seed: int) -> Left:
        cuts = find_cuts(corpus.texts, length)
        left = cuts.apply(corpus.texts)
        empty = np.array([not normalised(text) for text in left])
        return Left(np.where(empty, 1.0, np.minimum(cuts.share, 1 - 1e-9)), left)

    return Method(f"passages of {length} characters", leave)


LENGTHS = tuple(map(method, (400, 200, 100, 50)))
NOTES = (
    "Mails of which a passage goes are trained on without it; their features are made anew.",
    "The share removed is that of the text, mail by mail.",
)
SWEEP = partial(benchmark.compare, sent={ExactSubstringDeduplication.id: LENGTHS}, notes=NOTES)
SCENARIOS = (
    benchmark.task("planted-sweep", "Planted copies against the length of a passage", SWEEP, **benchmark.PLANTED),
)
CONTENDERS = dict.fromkeys(("deduplication/planted-copies", "deduplication/natural-mails"), (method(LENGTH),))
