"""Experiments on semantic deduplication, in the benchmark of data selection.

- `mails-dedup`: a spam filter trained on deduplicated mails, with as many removed at random as the control.
- `planted-duplicates`: duplicates of known kinds, planted in mails that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import data_selection as benchmark
from reference_impls.benchmarks.data_selection import (
    MAX_TOKENS,
    RANDOM,
    TWO_FOLDERS,
    Attempts,
    Embedded,
    MailPlan,
    MailSplit,
    Method,
    chosen_mails,
    embedding_macs,
    embeddings,
    halves,
    k_means,
)
from reference_impls.contract import generator
from reference_impls.data import assets
from reference_impls.data.planted import DISTINCT, KINDS, distinct, plant
from reference_impls.data.text import Mail, normalised
from reference_impls.redundancy.cross_sample_similarity import duplicates, exact_groups, near_groups, nearest_other
from reference_impls.study import BASELINE, TECHNIQUE, Study, measured, over_items, table
from reference_impls.techniques.semantic_deduplication import (
    EPSILON,
    Keep,
    Selection,
    SemanticDeduplication,
    representatives,
    semdedup,
)

# --------------------------------------------------------------------------------------------------------------------
# A spam filter trained on deduplicated mails


def deduplicated(z: Tensor, epsilon: float, seed: int = 0, keep: Keep = "hard") -> Selection:
    """Cluster and match embeddings (N, D)."""
    return semdedup(z, epsilon, k_means(z, seed)[0], keep, seed)


def select(part: MailSplit, seed: int, epsilon: float, keep: Keep = "hard") -> Tensor:
    """The training mails that stay."""
    return deduplicated(part.train.z, epsilon, seed, keep).kept


def k_means_macs(part: MailSplit, seed: int) -> int:
    """MACs of clustering, by closed form."""
    return k_means(part.train.z, seed)[1]


METHODS = (
    Method(TECHNIQUE, select, macs_elsewhere=k_means_macs),
    Method(
        "another copy kept",
        select,
        "Of two duplicates the one nearest to the centroid (easy) or a random one is kept.",
        knobs=({"epsilon": EPSILON, "keep": "easy"}, {"epsilon": EPSILON, "keep": "random"}),
        macs_elsewhere=k_means_macs,
    ),
)


def what_goes(data: Embedded, seed: int, epsilon: float) -> list[float]:
    """Of the training mails: share kept, share of all pairs' removals found inside clusters (deduplication efficiency),
    share of the removed whose kept copy is farther than epsilon, and share whose twin has another label."""
    part, _ = halves(data, seed)
    chosen, everywhere = deduplicated(part.z, epsilon, seed), semdedup(part.z, epsilon)
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


def duplicate_counts(mails: Sequence[Mail]) -> list[tuple[str, int]]:
    """Mails that repeat an earlier one exactly, under four definitions of what a mail is."""
    folder = assets.path("spam-assassin")
    definitions: dict[str, Callable[[Mail], bytes | str]] = {
        "file": lambda mail: (folder / mail.source / mail.file).read_bytes(),
        "subject and body": lambda mail: mail.text,
        "body": lambda mail: mail.text.partition("\n")[2],
        "normalised text": lambda mail: normalised(mail.text),
    }
    groups = {name: exact_groups([content(mail) for mail in mails]) for name, content in definitions.items()}
    return [(name, len(found) - len(found.unique())) for name, found in groups.items()]


def tables(study: Study[MailPlan], data: Embedded, attempts: Attempts) -> dict[str, Table]:
    """What goes at each epsilon, how alike the mails are, and what each part of the work costs."""
    rows = []
    for epsilon in study.plan.values:
        facts = np.mean([what_goes(data, seed, epsilon) for seed in study.plan.seeds], 0).tolist()
        unseen = [attempts.unseen(series, epsilon) for series in (TECHNIQUE, RANDOM)]
        rows.append([epsilon, *facts, *unseen, len(data.z) - len(near_groups(data.z, epsilon).unique())])
    counts, edges = np.histogram(nearest_other(data.z).cpu().numpy(), bins=50, range=(0, 1))
    part, _ = halves(data, 0)
    labels, clustering = k_means(part.z, 0)
    with count() as matching:
        semdedup(part.z, EPSILON, labels)
    macs = {"training": study.cost(BASELINE).macs, "matching": matching.macs, "k-means": clustering}
    macs["embedding"] = round(embedding_macs(data.mails) / len(data.mails) * len(part.mails))
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
            "Mails that repeat an earlier one, by what is compared.",
            ("compared", "mails"),
            duplicate_counts(data.mails),
        ),
        "nearest mail": table(
            "Highest cosine of each mail with another one.",
            ("from", "to", "mails"),
            list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)),
        ),
        "MACs of the parts": table(
            "Training is that of all mails; the embedding, made once, is in no variant.",
            ("part", "MACs"),
            list(macs.items()),
        ),
    }  # fmt: skip


NOTES = (
    "A duplicate is a mail whose cosine with an earlier mail of its cluster is above 1 - epsilon.",
    "MACs, unlike bytes, hold those of k-means, by closed form (N k D an iteration): it computes outside torch.",
    "The embedding, made once for all variants, is in neither MACs nor wall-clock: see the table “MACs of the parts”.",
    "The embedding (estimated from 16 mails) costs more than all of this small training, so here it never pays.",
    "It pays before a training whose saving exceeds one forward pass of the encoder over all items.",
)

# --------------------------------------------------------------------------------------------------------------------
# Duplicates planted in mails that have none


@dataclass(frozen=True, kw_only=True)
class PlantedPlan(MailPlan):
    originals: int
    """At most."""
    rates: tuple[float, ...]
    """Shares of duplicates, the highest first: only there is epsilon swept."""
    values: tuple[float, ...] = (1e-4, 0.01, 0.05, 0.1, 0.2, 0.3)


def planted_duplicates(study: Study[PlantedPlan]) -> Record:
    """Plant duplicates of known kinds at known rates in mails without any, and look for them."""
    plan = study.plan
    originals = distinct([mail.text for mail in chosen_mails(plan)], plan.originals)
    sets = {rate: plant(originals, rate) for rate in plan.rates}
    top = plan.rates[0]
    most = sets[top]
    whole = embeddings(most.texts, study.context)
    z = {rate: whole[: len(planted.texts)] for rate, planted in sets.items()}
    strangers = whole[torch.randperm(len(whole), generator=generator(1))]

    everything = most.found(representatives(semdedup(whole, EPSILON)))
    call = partial(semdedup, whole, EPSILON)
    study.add(BASELINE, {}, call, quality=over_items(everything.float().tolist()), samples=len(whole))

    def add(series: str, rate: float, epsilon: float, items: Tensor) -> tuple[Tensor, Selection]:
        chosen = deduplicated(items, epsilon)
        hit = sets[rate].found(representatives(chosen))
        study.add(
            series,
            {"epsilon": epsilon, "rate": rate},
            partial(deduplicated, items, epsilon) if (series, epsilon) == (TECHNIQUE, EPSILON) else None,
            quality=over_items(hit.float().tolist()),
            samples=len(chosen.kept),
            redundancy=len(chosen.removed) / len(items),
        )
        return hit, chosen

    by_kind, removed = [], []
    for rate in plan.rates:
        for epsilon in plan.values if rate == top else (EPSILON,):
            hit, chosen = add(TECHNIQUE, rate, epsilon, z[rate])
            gone = len(chosen.removed)
            removed.append([epsilon, rate, int(hit.sum()) / max(1, gone), gone / len(z[rate])])
            if rate == top:
                by_kind.append([epsilon, *(share(hit[most.kind == kind]) for kind in range(len(KINDS)))])
    add("embeddings of other mails", top, EPSILON, strangers)
    study.measure()
    costs = {r: study.cost(TECHNIQUE, epsilon=EPSILON, rate=r).plus(k_means(z[r], 0)[1]) for r in plan.rates}
    for series in (TECHNIQUE, "embeddings of other mails"):
        for variant in study.series(series):
            variant.cost = costs[variant.knobs["rate"]]
    before = duplicates(whole[: most.first], EPSILON).value
    return study.record(
        data=f"{most.first:,} mails of the SpamAssassin corpus that share less than {DISTINCT:.0%} of their three-word "
        f"shingles with any other mail; at the highest rate {len(most.kind):,} duplicates planted",
        model="embeddings by all-MiniLM-L6-v2",
        unit=f"clustering and matching {len(whole):,} mails",
        knobs=("epsilon", "rate"),
        metric="share of the planted duplicates found",
        controls={"embeddings of other mails": "The same embeddings, dealt out to the mails at random."},
        redundancy=measured([duplicates(whole, EPSILON)], {"before planting": before}),
        notes=(
            f"The baseline compares all pairs at epsilon {EPSILON}; the points compare inside k-means clusters only.",
            "A planted duplicate is found when the same kept item stands for it and for its original.",
            "Natural duplicates are kept out beforehand by the words that mails share.",
            "So precision (found / removed) counts a mail as an error that resembles another one in meaning only.",
            f"Only the first {MAX_TOKENS} tokens are embedded: what was changed behind them cannot be seen.",
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
            "planted": table(
                "Share of the mails that was planted at each rate.",
                ("rate", "share"),
                [[rate, len(planted.kind) / len(planted.texts)] for rate, planted in sets.items()],
            ),
        },
    )


MAILS = partial(
    benchmark.training,
    technique=SemanticDeduplication(),
    knob="epsilon",
    methods=METHODS,
    tables=tables,
    notes=NOTES,
)
SCENARIOS = (
    benchmark.task(
        "mails-dedup",
        "A spam filter trained on deduplicated mails",
        MAILS,
        full=MailPlan(seeds=(0, 1, 2, 3, 4), values=(0.01, 0.05, 0.1, 0.2, 0.3, 0.4)),
        smoke=MailPlan(repetitions=3, seeds=(0, 1), folders=TWO_FOLDERS, values=(0.05, 0.2, 0.4)),
    ),
    benchmark.task(
        "planted-duplicates",
        "Duplicates of six kinds planted in mails that have none",
        planted_duplicates,
        full=PlantedPlan(originals=1200, rates=(0.4, 0.2, 0.1)),
        smoke=PlantedPlan(repetitions=3, folders=TWO_FOLDERS, originals=90, rates=(0.4,)),
    ),
)
