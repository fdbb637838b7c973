"""Data selection: what a classifier loses when it is trained on a part of the data.

One task: a spam filter, trained on the mails that a technique keeps of the training set. A technique sends a `Method`
for each way of its own, which sees the mails' embeddings and labels and none of the filter's features. Accuracy is
told twice, since duplicates fall on both sides of a random split: on all test mails, and on the unseen ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.preparation import prepares
from reference_impls.accounting.record import Measured, Record, Table
from reference_impls.contract import Redundancy, Technique, generator
from reference_impls.data.text import Mail, legible_mails, normalised
from reference_impls.models.minilm import embed, load_minilm
from reference_impls.redundancy.cross_sample_similarity import exact_groups, nearest
from reference_impls.study import BASELINE, TECHNIQUE, Context, Plan, Scenario, Study, measured
from reference_impls.study.training import Recipe, cached, predict, seeded, train
from reference_impls.techniques.semantic_deduplication import EmbeddedDataset

ID = "data-selection"
task = partial(Scenario, benchmark=ID)

# --------------------------------------------------------------------------------------------------------------------
# Mails, their embeddings and their clusters

MAX_TOKENS = 128
"""Tokens of a mail that are embedded; all-MiniLM-L6-v2 was trained on texts of this length (its model card)."""
MAILS_PER_CLUSTER = 100
K_MEANS_ITERATIONS = 10
"""At most; clusters need only hold near neighbours together, not converge."""
TWO_FOLDERS = {"easy-ham-2": 200, "spam-1": 200}
"""Mails of the smoke runs: the first ones of two folders, since a sample spread over all would part the duplicates."""


@dataclass(frozen=True, kw_only=True)
class MailPlan(Plan):
    needs: tuple[str, ...] = ("minilm", "spam-assassin")
    folders: Mapping[str, int] | None = None
    """As in `legible_mails`."""
    values: tuple[float, ...] = ()
    """Of the knob that is swept."""


class Embedded(NamedTuple):
    """Mails with their embeddings and classes."""

    mails: list[Mail]
    z: Tensor
    """(N, D) unit vectors"""
    y: Tensor
    """(N,) 1 for spam"""

    def rows(self, index: Tensor) -> Embedded:
        """The mails of these indices."""
        return Embedded([self.mails[i] for i in index.tolist()], self.z[index], self.y[index])


def embedded_mails(folders: Mapping[str, int] | None, context: Context) -> Embedded:
    """The mails that can be read, of the folders or all, with their embeddings and classes."""
    mails = legible_mails(folders)
    y = torch.tensor([mail.spam for mail in mails]).long().to(context.device)
    return Embedded(mails, embeddings([mail.text for mail in mails], context), y)


@prepares("embedding")
def embeddings(texts: Sequence[str], context: Context) -> Tensor:
    """MiniLM embeddings (N, D) of the texts, from the cache. Equal texts have equal embeddings, bit for bit."""
    distinct = list(dict.fromkeys(texts))

    def compute() -> Tensor:
        model, tokenizer = load_minilm()
        return embed(model.to(context.device), tokenizer, distinct, max_tokens=MAX_TOKENS, progress=context.progress)

    digest = hashlib.sha256("\0".join(distinct).encode()).hexdigest()
    spec = {"texts": digest, "max_tokens": MAX_TOKENS, "device": context.device}
    z: Tensor = cached("minilm-embeddings", spec, compute)
    position = {text: i for i, text in enumerate(distinct)}
    return z[[position[text] for text in texts]].to(context.device)


def embedding_macs(texts: Sequence[str]) -> int:
    """MACs of embedding the texts, estimated from 16 of them."""
    model, tokenizer = load_minilm()
    sample = texts[:: max(1, len(texts) // 16)][:16]
    with count() as tally:
        embed(model, tokenizer, sample, max_tokens=MAX_TOKENS, batch_size=1)
    return round(tally.macs / len(sample) * len(texts))


@prepares("clustering")
def k_means(z: Tensor, seed: int) -> tuple[Tensor, int]:
    """Cluster labels (N,) from scikit-learn's k-means, and the multiply-accumulates of its distances.

    z: (N, D) unit vectors. Distances of all items to all k centroids are computed once an iteration and once at the
    end, N k D each; the counter cannot see them, because scikit-learn computes outside torch.
    """
    k = max(1, len(z) // MAILS_PER_CLUSTER)
    with threadpool_limits(torch.get_num_threads()):
        fitted = KMeans(k, n_init=1, max_iter=K_MEANS_ITERATIONS, random_state=seed).fit(z.cpu().numpy())
    labels = torch.from_numpy(fitted.labels_).long().to(z.device)
    return labels, (fitted.n_iter_ + 1) * k * z.numel()


def redundancy_of(technique: Technique, data: Embedded) -> Measured:
    """The technique's measure of the mails, of each folder, and with each dimension shuffled over the mails."""

    def found(z: Tensor) -> Redundancy:
        return technique.measure(EmbeddedDataset(range(len(z)), z), None)

    whole, draws, sources = found(data.z), generator(0), np.array([mail.source for mail in data.mails])
    where = {f"folder {name}": found(data.z[sources == name]).value for name in dict.fromkeys(sources.tolist())}
    columns = [column[torch.randperm(len(column), generator=draws)] for column in data.z.cpu().T]
    null = {"each dimension shuffled over the mails": found(torch.stack(columns, 1).to(data.z)).value}
    return measured([replace(whole, where={**whole.where, **where})], null)


# --------------------------------------------------------------------------------------------------------------------
# A spam filter trained on a part of the mails

FEATURES, HIDDEN = 4096, 32
RECIPE = Recipe(epochs=5, lr=0.01, weight_decay=0)
LEAK = 0.1
"""A test mail counts as seen when its cosine with a training mail is above 1 - LEAK."""
RANDOM, EXACT = "random removal", "exact duplicates only"


class MailSplit(NamedTuple):
    """One random split, four fifths for training."""

    train: Embedded
    """What a technique sees."""
    x: Tensor
    """(N, FEATURES) TF-IDF of the words of the training mails"""
    x_test: Tensor
    """(M, FEATURES)"""
    y_test: Tensor
    """(M,) 1 for spam"""
    seen: Tensor
    """(M,) whether a near-duplicate of the test mail is among the training mails"""


@dataclass(frozen=True)
class Method:
    """A way of selecting mails: `select(part, seed, **knobs)` gives the indices (K,) of those that are kept."""

    name: str
    select: Callable[..., Tensor]
    about: str = ""
    """What differs from the technique, for a control."""
    knobs: tuple[Mapping[str, Any], ...] = ()
    """To try; without any, the plan's values of the knob that is swept."""
    macs_elsewhere: Callable[[MailSplit, int], int] = lambda part, seed: 0
    """MACs of one selection outside torch, which the counter cannot see."""


def halves(data: Embedded, seed: int) -> tuple[Embedded, Embedded]:
    """Mails to train and to test with, drawn before anything is removed."""
    order = torch.randperm(len(data.mails), generator=generator(seed))
    return data.rows(order[len(order) // 5 :]), data.rows(order[: len(order) // 5])


def mail_split(data: Embedded, seed: int) -> MailSplit:
    """A split with features. The vocabulary is that of all training mails, so every variant has the same one."""
    training, test = halves(data, seed)
    texts = [[mail.text for mail in part.mails] for part in (training, test)]
    tf_idf = TfidfVectorizer(max_features=FEATURES, sublinear_tf=True, dtype=np.float32).fit(texts[0])
    x, x_test = (torch.from_numpy(tf_idf.transform(part).toarray()).to(data.z.device) for part in texts)
    return MailSplit(training, x, x_test, test.y, nearest(test.z, training.z)[0] > 1 - LEAK)


def perceptron(features: int) -> nn.Module:
    """The filter, untrained."""
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def fit(part: MailSplit, select: Callable[..., Tensor], seed: int) -> tuple[nn.Module, Tensor]:
    """A perceptron trained on the mails of `select(part, seed)`, always for as many epochs; and which these are."""
    kept = select(part, seed)
    model = seeded(seed, lambda: perceptron(part.x.shape[1]))
    return train(model.to(part.x.device), part.x[kept], part.train.y[kept], RECIPE, seed=seed), kept


def without_exact(part: MailSplit, seed: int) -> Tensor:
    """Training mails less those whose normalised text occurred before."""
    return torch.unique(exact_groups([normalised(mail.text) for mail in part.train.mails])).to(part.x.device)


def random_subset(part: MailSplit, seed: int, size: int) -> Tensor:
    """As many training mails drawn at random."""
    return torch.randperm(len(part.x), generator=generator(1000 + seed))[:size].to(part.x.device)


Unseen = Mapping[tuple[Any, ...], Sequence[float]]
"""For each series and its knobs, accuracy on the unseen test mails, split by split."""
Tables = Callable[[Study[MailPlan], Embedded, Unseen], Mapping[str, Table]]
"""A technique's own tables."""


def training(
    study: Study[MailPlan], technique: Technique, methods: Sequence[Method], tables: Tables, notes: Sequence[str]
) -> Record:
    """Accuracy of a spam filter against the knob that switches the technique off; costs are the first split's."""
    plan, unseen, seen = study.plan, defaultdict[tuple[Any, ...], list[float]](list), []
    data = embedded_mails(plan.folders, study.context)
    every = torch.arange(len(data.mails) - len(data.mails) // 5, device=study.device)
    (knob,) = off = technique.settings()[0].knobs
    first = mail_split(data, plan.seeds[0])

    def add(part: MailSplit, seed: int, series: str, knobs: Mapping[str, Any], select: Callable[..., Tensor]) -> int:
        """Train once on a selection; returns its size."""
        model, kept = fit(part, select, seed)
        right = (predict(model, part.x_test).argmax(1) == part.y_test).double()
        unseen[series, *knobs.values()].append(float(right[~part.seen].mean()))
        study.add(series, knobs, score=float(right.mean()))
        if part is first:
            share = None if series == BASELINE else 1 - len(kept) / len(part.x)
            study.add(series, knobs, partial(fit, part, select, seed), samples=len(kept), redundancy=share)
        return len(kept)

    texts = [mail.text for mail in data.mails]
    embedding = round(embedding_macs(texts) / len(data.mails) * len(every))
    study.prepare("embedding", f"embedding {len(every):,} mails with MiniLM (estimated from 16)", embedding)
    study.prepare("training", "training the filter: the unit itself", held="shared")
    for seed in plan.seeds:
        part = first if seed == plan.seeds[0] else mail_split(data, seed)
        seen.append(float(part.seen.double().mean()))
        add(part, seed, BASELINE, {}, lambda part, seed: every)
        add(part, seed, EXACT, off, without_exact)
        for method in methods:
            for knobs in method.knobs or [{knob: value} for value in plan.values]:
                size = add(part, seed, method.name, knobs, partial(method.select, **knobs))
                if method.name == TECHNIQUE:
                    add(part, seed, RANDOM, knobs, partial(random_subset, size=size))
        study.progress("training on splits", len(seen), len(plan.seeds))
    study.measure()
    parameters = sum(p.numel() for p in perceptron(first.x.shape[1]).parameters())
    for method in methods:
        macs = method.macs_elsewhere(first, plan.seeds[0])
        if method.name == TECHNIQUE:
            with count() as selecting:
                method.select(first, plan.seeds[0], **study.series(TECHNIQUE)[-1].knobs)
            study.prepare("clustering", "clustering and matching the mails", selecting.macs + macs, held="counted")
        for variant in study.series(method.name):
            variant.cost = study.cost(method.name, **variant.knobs).plus(macs)
    folders = Counter(mail.source for mail in data.mails)
    return study.record(
        data=f"{len(data.mails):,} mails of the SpamAssassin corpus "
        f"({', '.join(f'{source} {n:,}' for source, n in folders.items())}), a fifth for testing",
        model=f"perceptron of {HIDDEN} hidden units on {first.x.shape[1]:,} TF-IDF features; MiniLM-L6-v2 embeddings",
        unit=f"selecting among {len(every):,} mails and training once ({RECIPE.epochs} epochs)",
        work="training",
        grows={"epochs": RECIPE.epochs, "parameters of the filter": parameters},
        knobs=(knob,),
        metric="accuracy on all test mails",
        controls={
            RANDOM: "As many mails are removed, drawn at random.",
            EXACT: "Only mails whose text occurred before, letter case and punctuation aside, are removed.",
            **{method.name: method.about for method in methods if method.name != TECHNIQUE},
        },
        redundancy=redundancy_of(technique, data),
        notes=(
            "The text of a mail is its subject and body (`data.text`); mails without a letter or digit are left out.",
            f"The first {MAX_TOKENS} tokens of a mail are embedded.",
            "Every variant trains for the same number of epochs, so fewer mails mean fewer steps.",
            "Duplicates fall on both sides of a random split.",
            f"Unseen are the test mails without a near-duplicate (cosine above {1 - LEAK:g}) among the training mails.",
            *notes,
        ),
        tables=tables(study, data, unseen),
        extra={
            "accuracy on unseen, all mails": float(np.mean(unseen[BASELINE,])),
            "accuracy on unseen, exact duplicates removed": float(np.mean(unseen[EXACT, *off.values()])),
            "share of test mails seen in training": float(np.mean(seen)),
        },
    )
