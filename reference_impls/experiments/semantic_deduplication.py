"""Experiments on semantic deduplication, in the benchmark of data selection.

- `mails-dedup`: a spam filter trained on deduplicated mails, with as many removed at random as the control.
- `planted-duplicates`: duplicates of known kinds, planted in mails that have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import data_selection as benchmark
from reference_impls.benchmarks.deduplication import Corpus, Left, Method, whole
from reference_impls.contract import generator
from reference_impls.data.planted import DISTINCT, KINDS, distinct, plant
from reference_impls.data.text import exact_copies, legible_mails
from reference_impls.redundancy.cross_sample_similarity import duplicates, near_groups, nearest_other
from reference_impls.study import BASELINE, TECHNIQUE, Study, measured, over_items, table
from reference_impls.techniques import semantic_deduplication as technique
from reference_impls.techniques.semantic_deduplication import EPSILON, representatives, semdedup

# --------------------------------------------------------------------------------------------------------------------
# A spam filter trained on deduplicated mails


def deduplicated(z: Tensor, epsilon: float, keep: technique.Keep = "hard", seed: int = 0) -> technique.Selection:
    """Cluster and match embeddings (N, D)."""
    return semdedup(z, epsilon, benchmark.k_means(z, seed)[0], keep, seed)


OURS = benchmark.Method(
    TECHNIQUE,
    lambda part, seed, **knobs: deduplicated(part.train.z, seed=seed, **knobs).kept,
    macs_elsewhere=lambda part, seed: benchmark.k_means(part.train.z, seed)[1],
)
ANOTHER_COPY = replace(
    OURS,
    name="another copy kept",
    about="Of two duplicates the one nearest to the centroid (easy) or a random one is kept.",
    knobs=({"epsilon": EPSILON, "keep": "easy"}, {"epsilon": EPSILON, "keep": "random"}),
)


def what_goes(data: benchmark.Embedded, seed: int, epsilon: float) -> list[float]:
    """Of the training mails: share kept, share of all pairs' removals found inside clusters (deduplication efficiency),
    share of the removed whose kept copy is farther than epsilon, and share whose twin has another label."""
    part, _ = benchmark.halves(data, seed)
    chosen, everywhere = deduplicated(part.z, epsilon, seed=seed), semdedup(part.z, epsilon)
    to_kept = (part.z[chosen.removed] * part.z[representatives(chosen)[chosen.removed]]).sum(1)
    return [
        len(chosen.kept) / len(part.z),
        len(chosen.removed) / max(1, len(everywhere.removed)),
        share(to_kept <= 1 - epsilon),
        share(part.y[chosen.removed] != part.y[chosen.twin]),
    ]


def share(condition: Tensor) -> float:
    """Share of a condition (N,) that is true; 0 of none."""
    return float(condition.double().mean()) if len(condition) else 0.0


def tables(study: Study[benchmark.MailPlan], data: benchmark.Embedded, unseen: benchmark.Unseen) -> dict[str, Table]:
    """What goes at each epsilon, how alike the mails are, and what each part of the work costs."""
    rows = []
    for epsilon in study.plan.values:
        facts = np.mean([what_goes(data, seed, epsilon) for seed in study.plan.seeds], 0).tolist()
        right = [float(np.mean(unseen[series, epsilon])) for series in (TECHNIQUE, benchmark.RANDOM)]
        rows.append([epsilon, *facts, *right, len(data.z) - len(near_groups(data.z, epsilon).unique())])
    counts, edges = (part.tolist() for part in np.histogram(nearest_other(data.z).cpu().numpy(), 50, (0, 1)))
    histogram = list(zip(edges[:-1], edges[1:], counts, strict=True))
    copies, part = list(exact_copies(data.mails).items()), benchmark.halves(data, 0)[0]
    labels, clustering = benchmark.k_means(part.z, 0)
    with count() as matching:
        semdedup(part.z, EPSILON, labels)
    return {
        "by epsilon": table(
            "Of the training mails: share kept, efficiency, share removed only through a chain, share whose kept copy "
            "has another label; accuracy on test mails without a near-duplicate in training; near-duplicates in the "
            "whole corpus.",
            ("epsilon", "kept share", "deduplication efficiency", "chained share", "other-label share",
             "accuracy on unseen", "accuracy on unseen, random removal", "near-duplicates"),
            rows,
        ),
        "exact duplicates": table(
            "Mails that repeat an earlier one, by what is compared.", ("compared", "mails"), copies
        ),
        "nearest mail": table("Highest cosine of each mail with another one.", ("from", "to", "mails"), histogram),
        "MACs of the parts": table(
            "Training is that of all mails, matching at the technique's own epsilon.",
            ("part", "MACs"),
            [("training", study.cost(BASELINE).macs), ("matching", matching.macs), ("k-means", clustering)],
        ),
    }  # fmt: skip


NOTES = (
    "A duplicate is a mail whose cosine with an earlier mail of its cluster is above 1 - epsilon.",
    "MACs, unlike bytes, hold those of k-means, by closed form (N k D an iteration): it computes outside torch.",
    "The embedding, made once for all variants, is in neither their MACs nor their wall-clock.",
)

# --------------------------------------------------------------------------------------------------------------------
# Duplicates planted in mails that have none

STRANGERS = "embeddings of other mails"


@dataclass(frozen=True, kw_only=True)
class PlantedPlan(benchmark.MailPlan):
    originals: int
    """At most."""
    rates: tuple[float, ...]
    """Shares of duplicates, the highest first: only there is epsilon swept."""
    values: tuple[float, ...] = (1e-4, 0.01, 0.05, 0.1, 0.2, 0.3)


def planted_duplicates(study: Study[PlantedPlan]) -> Record:
    """Plant duplicates of known kinds at known rates in mails without any, and look for them."""
    plan = study.plan
    originals = distinct([mail.text for mail in legible_mails(plan.folders)], plan.originals)
    sets, top = {rate: plant(originals, rate) for rate in plan.rates}, plan.rates[0]
    most = sets[top]
    whole = benchmark.embeddings(most.texts, study.context)
    z = {rate: whole[: len(planted.texts)] for rate, planted in sets.items()}
    quality = over_items(most.found(representatives(semdedup(whole, EPSILON))).float().tolist())
    study.add(BASELINE, {}, partial(semdedup, whole, EPSILON), quality=quality, samples=len(whole))
    by_kind, removed = [], []

    def add(series: str, rate: float, epsilon: float, items: Tensor) -> None:
        chosen = deduplicated(items, epsilon)
        hit, gone = sets[rate].found(representatives(chosen)), len(chosen.removed)
        study.add(
            series,
            {"epsilon": epsilon, "rate": rate},
            partial(deduplicated, items, epsilon) if (series, epsilon) == (TECHNIQUE, EPSILON) else None,
            quality=over_items(hit.float().tolist()),
            samples=len(chosen.kept),
            redundancy=gone / len(items),
        )
        if series == TECHNIQUE:
            removed.append([epsilon, rate, int(hit.sum()) / max(1, gone), gone / len(items)])
            if rate == top:
                by_kind.append([epsilon, *(share(hit[most.kind == kind]) for kind in range(len(KINDS)))])

    for rate in plan.rates:
        for epsilon in plan.values if rate == top else (EPSILON,):
            add(TECHNIQUE, rate, epsilon, z[rate])
    add(STRANGERS, top, EPSILON, whole[torch.randperm(len(whole), generator=generator(1))])
    study.measure()
    costs = {r: study.cost(TECHNIQUE, epsilon=EPSILON, rate=r).plus(benchmark.k_means(z[r], 0)[1]) for r in plan.rates}
    for variant in (*study.series(TECHNIQUE), *study.series(STRANGERS)):
        variant.cost = costs[variant.knobs["rate"]]
    before = duplicates(whole[: most.first], EPSILON).value
    study.prepare(
        "embedding",
        f"embedding {len(whole):,} mails with MiniLM (estimated from 16), for all pairs as for clusters",
        benchmark.embedding_macs(most.texts),
        held="shared",
    )
    clustering = benchmark.k_means(z[top], 0)[1]
    study.prepare("clustering", "clustering the mails at the highest rate", clustering, held="counted")
    shares = [[rate, len(planted.kind) / len(planted.texts)] for rate, planted in sets.items()]
    return study.record(
        data=f"{most.first:,} mails of the SpamAssassin corpus that share less than {DISTINCT:.0%} of their three-word "
        f"shingles with any other mail; at the highest rate {len(most.kind):,} duplicates planted",
        model="embeddings by all-MiniLM-L6-v2",
        unit=f"clustering and matching {len(whole):,} mails",
        work="selection",
        knobs=("epsilon", "rate"),
        given=("rate",),
        metric="share of the planted duplicates found",
        controls={STRANGERS: "The same embeddings, dealt out to the mails at random."},
        other_input=(STRANGERS,),
        redundancy=measured([duplicates(whole, EPSILON)], {"before planting": before}),
        notes=(
            f"The baseline compares all pairs at epsilon {EPSILON}; the points compare inside k-means clusters only.",
            "A planted duplicate is found when the same kept item stands for it and for its original.",
            "Natural duplicates are kept out beforehand by the words that mails share.",
            "So precision (found / removed) counts a mail as an error that resembles another one in meaning only.",
            f"Only the first {benchmark.MAX_TOKENS} tokens are embedded: what was changed after them cannot be seen.",
            "The interval of the quality is over the planted duplicates.",
            "Cost does not depend on epsilon; its MACs hold those of k-means by closed form.",
        ),
        tables={
            "recall by kind": table(
                f"Share of the planted duplicates found, by kind, at a rate of {top}.", ("epsilon", *KINDS), by_kind
            ),
            "removed": table(
                "Share of the removed that was planted (precision), and share removed of all.",
                ("epsilon", "rate", "precision", "removed share"),
                removed,
            ),
            "planted": table("Share of the mails that was planted at each rate.", ("rate", "share"), shares),
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# Beside techniques that compare words


def left_of(corpus: Corpus, seed: int) -> Left:
    """Mails go whose embedding almost equals that of another one of their cluster."""
    removed = deduplicated(corpus.embed()[0], EPSILON, seed=seed).removed
    return whole(removed.cpu().numpy(), len(corpus.texts))


def clustering_macs(corpus: Corpus, seed: int) -> int:
    """MACs of the k-means."""
    return benchmark.k_means(corpus.embed()[0], seed)[1]


BY_MEANING = Method(f"cosine {1 - EPSILON:g}", left_of, macs_elsewhere=clustering_macs, embeds=True)
CONTENDERS = dict.fromkeys(("deduplication/planted-copies", "deduplication/natural-mails"), (BY_MEANING,))

SEMDEDUP, METHODS = technique.SemanticDeduplication(), (OURS, ANOTHER_COPY)
TRAINING = partial(benchmark.training, technique=SEMDEDUP, methods=METHODS, tables=tables, notes=NOTES)
SCENARIOS = (
    benchmark.task(
        "mails-dedup",
        "A spam filter trained on deduplicated mails",
        TRAINING,
        full=benchmark.MailPlan(seeds=(0, 1, 2, 3, 4), values=(0.01, 0.05, 0.1, 0.2, 0.3, 0.4)),
        smoke=benchmark.MailPlan(repetitions=3, folders=benchmark.TWO_FOLDERS, seeds=(0, 1), values=(0.05, 0.2, 0.4)),
    ),
    benchmark.task(
        "planted-duplicates",
        "Duplicates of six kinds planted in mails that have none",
        planted_duplicates,
        full=PlantedPlan(originals=1200, rates=(0.4, 0.2, 0.1)),
        smoke=PlantedPlan(repetitions=3, folders=benchmark.TWO_FOLDERS, originals=90, rates=(0.4,)),
    ),
)
