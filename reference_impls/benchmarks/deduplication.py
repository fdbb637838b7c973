"""Deduplication: what a technique takes out of a corpus, what it misses, and what that does to a model.

Two corpora of mails: the natural one, and one without duplicates into which copies of six kinds are planted. A spam
filter is trained on what is left. A technique sends a `Method` for each setting; the controls are the same for all: as
much removed at random, and only texts that are equal. A fifth of the originals is kept to test with, drawn before
anything is removed, so copies of test mails stand among the mails to train on, as leaks do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.data_selection import (
    FEATURES,
    HIDDEN,
    RECIPE,
    TWO_FOLDERS,
    embedding_macs,
    embeddings,
    perceptron,
)
from reference_impls.contract import generator
from reference_impls.data.planted import DISTINCT, KINDS, distinct, plant
from reference_impls.data.text import legible_mails, normalised
from reference_impls.redundancy.cross_sample_similarity import exact_groups
from reference_impls.study import BASELINE, TECHNIQUE, Context, Plan, Scenario, Study, contenders, measured, table
from reference_impls.study.training import predict, seeded, train
from reference_impls.techniques.minhash_deduplication import MinHashDeduplication

ID = "deduplication"
task = partial(Scenario, benchmark=ID)
RANDOM, EQUAL = "random removal", "equal texts only"
WHAT_GOES = "Share of the mails, or of their text, that goes, in the first split."
OF_THE_PLANTED = (
    " Of the planted copies, those of test mails for a method that compares with these and the others for any other, "
    "the share found, by kind. Precision is the share of what went that was planted or has a copy."
)
OF_COPIES = (
    "A planted copy is found when it, or its original to train on, goes: for passages, at least half of it.",
    "Copies of test mails stand among those to train on, which flatters accuracy: see `accuracy on unseen`.",
)
OF_TWINS = (
    "Natural twins of test mails stand among those to train on, which flatters the accuracy of what keeps them.",
)
WITHIN, ACROSS = "in the training set", "with the test set"


@dataclass(frozen=True, kw_only=True)
class CorpusPlan(Plan):
    needs: tuple[str, ...] = ("spam-assassin", "minilm")
    folders: Mapping[str, int] | None = None
    """As in `legible_mails`."""
    originals: int | None = None
    """Mails without duplicates, at most, into which some are planted; None: the mails as they are."""
    rate: float = 0.4
    """Share of planted copies."""


class Planted(NamedTuple):
    """Copies that were planted among the mails to train on."""

    copy: npt.NDArray[np.int64]
    """(P,) index of the copy in the training set"""
    original: npt.NDArray[np.int64]
    """(P,) index of what it copies, in the training or the test set"""
    leak: npt.NDArray[np.bool_]
    """(P,) whether that is the test set"""
    kind: npt.NDArray[np.int64]
    """(P,) position in `KINDS`"""


@dataclass(frozen=True)
class Corpus:
    """Mails to train and to test a spam filter with."""

    texts: list[str]
    y: Tensor
    """(N,) 1 for spam"""
    test: list[str]
    y_test: Tensor
    """(M,)"""
    planted: Planted | None
    embed: Callable[[], tuple[Tensor, Tensor]]
    """MiniLM embeddings (N, D) and (M, D) of the mails to train and to test with, from the cache"""

    @cached_property
    def tf_idf(self) -> TfidfVectorizer:
        """The features, of all mails to train on, so that every variant has the same ones."""
        return TfidfVectorizer(max_features=FEATURES, sublinear_tf=True, dtype=np.float32).fit(self.texts)

    def features(self, texts: Sequence[str]) -> Tensor:
        """TF-IDF (N, FEATURES) of texts."""
        return torch.from_numpy(self.tf_idf.transform(texts).toarray()).to(self.y.device)

    @cached_property
    def x(self) -> Tensor:
        """(N, FEATURES) of the mails to train on."""
        return self.features(self.texts)

    @cached_property
    def x_test(self) -> Tensor:
        """(M, FEATURES)"""
        return self.features(self.test)


class Left(NamedTuple):
    """What a technique leaves of the mails to train on."""

    share: npt.NDArray[np.float64]
    """(N,) part of each mail that goes: 0 or 1 where whole mails go"""
    texts: list[str] | None = None
    """(N,) what is left of each mail, where passages go"""


@dataclass(frozen=True)
class Method:
    """One setting of a technique: `leave(corpus, seed)` says what it leaves of the mails to train on."""

    setting: str
    leave: Callable[[Corpus, int], Left]
    pairs: str = WITHIN
    """Where the twins are that it looks for."""
    macs_elsewhere: Callable[[Corpus, int], int] = lambda corpus, seed: 0
    """MACs outside torch, which the counter cannot see."""
    embeds: bool = False
    """Whether it needs embeddings."""


def whole(removed: npt.ArrayLike, size: int) -> Left:
    """Mails of these indices go, of so many."""
    return Left(np.isin(np.arange(size), removed).astype(float))


def corpora(plan: CorpusPlan, context: Context) -> Callable[[int], Corpus]:
    """The corpus of a seed, which draws the test mails."""
    mails = legible_mails(plan.folders)
    texts, copies, spam = [mail.text for mail in mails], None, {mail.text: mail.spam for mail in mails}
    labels = [mail.spam for mail in mails]
    if plan.originals is not None:
        alone = distinct(texts, len(texts))  # in order, so that the first ones are of one class
        drawn = torch.randperm(len(alone), generator=generator(3000))[: plan.originals]
        copies = plant([alone[i] for i in drawn.tolist()], plan.rate)
        texts = copies.texts
        labels = [spam[text] for text in texts[: copies.first]]
        labels += [labels[i] for i in copies.original.tolist()]
    first, y = copies.first if copies else len(texts), torch.tensor(labels).long().to(context.device)

    def corpus(seed: int) -> Corpus:
        order = torch.randperm(first, generator=generator(2000 + seed))  # another order than that of the planting
        test, training = order[: first // 5], torch.cat([order[first // 5 :], torch.arange(first, len(texts))])
        planted = None
        if copies:
            place = torch.empty(len(texts), dtype=torch.long)
            place[training], place[test] = torch.arange(len(training)), torch.arange(len(test))
            leak = torch.isin(copies.original, test)
            parts = (place[first:], place[copies.original], leak, copies.kind)
            planted = Planted(*(part.numpy() for part in parts))
        one, two = ([texts[i] for i in part.tolist()] for part in (training, test))

        def embed() -> tuple[Tensor, Tensor]:
            z = embeddings(texts, context)  # of all of them, so that every seed finds them in the cache
            return z[training], z[test]

        return Corpus(one, y[training], two, y[test], planted, embed)

    return corpus


def fit(corpus: Corpus, leave: Callable[[Corpus, int], Left], seed: int) -> tuple[nn.Module, Left]:
    """A spam filter trained on what is left, always for as many epochs; and what that is."""
    left = leave(corpus, seed)
    x = corpus.x if left.texts is None else corpus.features(left.texts)
    kept = torch.from_numpy(np.flatnonzero(left.share < 1)).to(x.device)
    model = seeded(seed, lambda: perceptron(x.shape[1])).to(x.device)
    return train(model, x[kept], corpus.y[kept], RECIPE, seed=seed), left


def equal_texts(corpus: Corpus, seed: int) -> Left:
    """Mails go whose text occurred before, letter case and punctuation aside."""
    first = exact_groups([normalised(text) for text in corpus.texts]).numpy()
    return whole(np.flatnonzero(first != np.arange(len(first))), len(first))


def at_random(corpus: Corpus, seed: int, size: int) -> Left:
    """So many mails go, drawn at random."""
    drawn = torch.randperm(len(corpus.texts), generator=generator(1000 + seed))[:size]
    return whole(drawn.numpy(), len(corpus.texts))


def found(corpus: Corpus, left: Left, pairs: str) -> list[float | None]:
    """Of the planted copies whose original stands where the method looks: share found of each kind, and of all.

    A copy is found when at least half of it goes, or in its place of its original to train on. Then precision: the
    share of the mails that went, by half or more, which are planted copies or originals of some.
    """
    planted, gone = corpus.planted, left.share >= 0.5
    if planted is None:
        return []
    sought = planted.leak if pairs == ACROSS else ~planted.leak
    hit = gone[planted.copy]
    hit |= ~planted.leak & gone[np.where(planted.leak, 0, planted.original)]
    kinds = [hit[sought & (planted.kind == kind)] for kind in range(len(KINDS))]
    rightly = np.union1d(planted.copy, planted.original[~planted.leak])
    precision = float(np.isin(np.flatnonzero(gone), rightly).mean()) if gone.any() else None
    return [*(float(of.mean()) if len(of) else None for of in kinds), float(hit[sought].mean()), precision]


def compare(study: Study[CorpusPlan], sent: Mapping[str, Sequence[Method]], notes: Sequence[str] = ()) -> Record:
    """Every method on one corpus: accuracy of the filter over the seeds, and what was found in the first of them."""
    plan, corpus_of = study.plan, corpora(study.plan, study.context)
    joint, every = study.owner == ID, [(name, one) for name, those in sent.items() for one in those]
    first, lines, unseen = corpus_of(plan.seeds[0]), [], dict[tuple[str, str], list[float | None]]()

    def add(series: str, setting: str | None, leave: Callable[[Corpus, int], Left], corpus: Corpus, seed: int) -> Left:
        model, left = fit(corpus, leave, seed)
        right = (predict(model, corpus.x_test).argmax(1) == corpus.y_test).double()
        knobs = {"setting": setting} if setting else {}
        study.add(series, knobs, score=float(right.mean()))
        fresh = np.ones(len(right), bool)
        if corpus.planted is not None:
            fresh[corpus.planted.original[corpus.planted.leak]] = False
        unseen.setdefault((series, setting or ""), []).append(
            float(right[torch.from_numpy(fresh)].mean()) if fresh.any() else None
        )
        if corpus is first:
            kept, share = int((left.share < 1).sum()), None if series == BASELINE else float(left.share.mean())
            study.add(series, knobs, partial(fit, corpus, leave, seed), samples=kept, redundancy=share)
        return left

    for seed in plan.seeds:
        corpus = first if seed == plan.seeds[0] else corpus_of(seed)
        add(BASELINE, None, lambda corpus, seed: whole([], len(corpus.texts)), corpus, seed)
        add(EQUAL, "equal text", equal_texts, corpus, seed)
        for name, one in every:
            left = add(name if joint else TECHNIQUE, one.setting, one.leave, corpus, seed)
            size = round(float(left.share.sum()))
            add(RANDOM, one.setting, partial(at_random, size=size), corpus, seed)
            if corpus is first:
                lines.append([name, one.setting, float(left.share.mean()), *found(corpus, left, one.pairs)])
        study.progress("training on splits", plan.seeds.index(seed) + 1, len(plan.seeds))
    study.measure()
    for name, one in every:
        variant = study.variant(name if joint else TECHNIQUE, setting=one.setting)
        variant.cost = study.cost(variant.series, **variant.knobs).plus(one.macs_elsewhere(first, plan.seeds[0]))
    study.prepare("training", "training the filter: the unit itself", held="shared")
    prepare(study, first, sent, joint)
    equal = found(first, equal_texts(first, 0), WITHIN)
    lines.insert(0, [EQUAL, "equal text", float(equal_texts(first, 0).share.mean()), *equal])
    columns: tuple[str, ...] = ("technique", "setting", "share removed")
    if first.planted is not None:
        columns += (*KINDS, "all kinds", "precision")
    technique, n = MinHashDeduplication(), len(first.texts)
    about = f"{n:,} mails of the SpamAssassin corpus to train on, {len(first.test):,} to test with"
    if first.planted is not None:
        about += f"; originals share less than {DISTINCT:.0%} of their three-word shingles with any other mail, and "
        about += (
            f"{len(first.planted.copy):,} copies are planted, {int(first.planted.leak.sum()):,} of them of test mails"
        )
    shuffled = [" ".join(words) for words in shuffled_words(first.texts)]
    null = {"words dealt out at random": technique.measure(shuffled).value}
    parameters = sum(p.numel() for p in perceptron(first.x.shape[1]).parameters())
    rows = [
        [series, setting, None if None in right else float(np.mean(right))]
        for (series, setting), right in unseen.items()
    ]
    unplanted = table(
        "Accuracy on test mails without a planted copy, mean over the splits.", ("variant", "setting", "accuracy"), rows
    )
    return study.record(
        data=about,
        model=f"perceptron of {HIDDEN} hidden units on {first.x.shape[1]:,} TF-IDF features",
        unit=f"deduplicating {n:,} mails and training once ({RECIPE.epochs} epochs)",
        work="training",
        grows={"epochs": RECIPE.epochs, "parameters of the filter": parameters},
        knobs=("setting",),
        metric="accuracy on the test mails",
        controls={
            RANDOM: "As many mails go, drawn at random; for passages, as many as hold that share of the text.",
            EQUAL: "Only mails go whose text occurred before, letter case and punctuation aside.",
        },
        redundancy=measured([technique.measure(first.texts)], null),
        notes=(
            "The text of a mail is its subject and body (`data.text`).",
            "Every variant trains for the same number of epochs, so fewer mails mean fewer steps.",
            *(OF_COPIES if first.planted else OF_TWINS),
            *notes,
        ),
        tables={
            "what goes": table(WHAT_GOES + (OF_THE_PLANTED if first.planted else ""), columns, lines),
            **({"accuracy on unseen": unplanted} if first.planted else {}),
        },
    )  # fmt: skip


def prepare(study: Study[CorpusPlan], corpus: Corpus, sent: Mapping[str, Sequence[Method]], joint: bool) -> None:
    """Tell the study what embedding costs those that need it."""
    for name, methods in sent.items():
        whose = name if joint else None
        if any(one.embeds for one in methods):
            what = f"embedding {len(corpus.texts):,} mails with MiniLM (estimated from 16)"
            study.prepare("embedding", what, embedding_macs(corpus.texts), technique=whose)
        if clustering := max(one.macs_elsewhere(corpus, study.plan.seeds[0]) for one in methods):
            study.prepare("clustering", "clustering the mails", clustering, held="counted", technique=whose)


def shuffled_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of all texts in random order, as many for each as it has."""
    words = [word for text in texts for word in text.split()]
    order = iter(torch.randperm(len(words), generator=generator(0)).tolist())
    return [[words[next(order)] for _ in text.split()] for text in texts]


def meet(study: Study[CorpusPlan]) -> Record:
    """All techniques that send methods, in one interleaved run."""
    return compare(study, contenders(ID, study.scenario.name))


FIRST_MAILS = {"easy-ham-1": 1000, "spam-1": 500}
"""Mails on which all techniques meet: with all of them the suffixes of `exact-substring-deduplication` take minutes."""
NATURAL: dict[str, Any] = {
    "full": CorpusPlan(seeds=(0, 1, 2)),
    "smoke": CorpusPlan(repetitions=3, folders=TWO_FOLDERS),
}
PLANTED: dict[str, Any] = {
    "full": CorpusPlan(seeds=(0, 1, 2), originals=600),
    "smoke": CorpusPlan(repetitions=3, folders=TWO_FOLDERS, originals=90),
}
SCENARIOS = (
    task(
        "planted-copies",
        "Copies of six kinds planted in mails that have none, and four ways to find them",
        meet,
        **PLANTED,
    ),
    task(
        "natural-mails",
        "A spam filter trained on deduplicated mails, deduplicated in four ways",
        meet,
        full=CorpusPlan(seeds=(0, 1, 2), folders=FIRST_MAILS),
        smoke=NATURAL["smoke"],
    ),
)
