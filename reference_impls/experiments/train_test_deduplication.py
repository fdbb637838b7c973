"""Experiments of the removal of train-test duplicates.

- `planted-sweep`: copies of test mails stand among the mails to train on; which of them are found, by the words they
  share and by embeddings, and what accuracy is left.
- `mails-leaks`: the same for twins that the natural mails have in a test set drawn at random.
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks import deduplication as benchmark
from reference_impls.benchmarks.deduplication import Corpus, Left, Method, whole
from reference_impls.techniques.train_test_deduplication import TrainTestDeduplication, leaks


def by_words(threshold: float) -> Method:
    """Mails to train on go that share this much with a test mail, by the Jaccard index of their shingles."""

    def leave(corpus: Corpus, seed: int) -> Left:
        return whole(leaks(corpus.texts, corpus.test, threshold).item.numpy(), len(corpus.texts))

    return Method(f"Jaccard {threshold:g} with a test mail", leave, benchmark.ACROSS)


def by_meaning(threshold: float) -> Method:
    """Mails to train on go whose embedding has this cosine with that of a test mail."""

    def leave(corpus: Corpus, seed: int) -> Left:
        found = leaks(*corpus.embed(), threshold).item
        return whole(found.cpu().numpy(), len(corpus.texts))

    return Method(f"cosine {threshold:g} with a test mail", leave, benchmark.ACROSS, embeds=True)


METHODS = (*map(by_words, (0.95, 0.8, 0.5)), *map(by_meaning, (0.99, 0.95, 0.9)))
NOTES = ("Test mails stay; what goes are the mails to train on that are twins of a test mail.",)
SWEEP = partial(benchmark.compare, sent={TrainTestDeduplication.id: METHODS}, notes=NOTES)
SCENARIOS = (
    benchmark.task("planted-sweep", "Copies of test mails among those to train on", SWEEP, **benchmark.PLANTED),
    benchmark.task("mails-leaks", "Natural mails whose twins stand in the test set", SWEEP, **benchmark.NATURAL),
)
CONTENDERS = dict.fromkeys(("deduplication/planted-copies", "deduplication/natural-mails"), (by_words(0.8),))
