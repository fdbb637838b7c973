"""Experiments on semantic deduplication: the conformance checks' cases, real mails, and duplicates planted in them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.data import assets
from reference_impls.data.text import Mail, mails
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    cached,
    fork_seed,
    measure_arms,
    over_items,
    over_seeds,
    predict,
    record,
    train,
)
from reference_impls.models.minilm import embed, load_minilm
from reference_impls.redundancy.cross_sample_similarity import (
    duplicates,
    earlier_similarities,
    exact_groups,
    near_groups,
    nearest,
)
from reference_impls.techniques.semantic_deduplication import (
    EPSILON,
    EmbeddedDataset,
    Keep,
    Selection,
    SemanticDeduplication,
    representatives,
    semdedup,
)

# --------------------------------------------------------------------------------------------------------------------
# Cases


def best_match(items: EmbeddedDataset, queries: Tensor) -> Tensor:
    """Highest product (Q,) of each query (Q, D) with any item (D,) of the data set: what copies do not change."""
    rows = torch.stack([items[i] for i in range(len(items))])  # (N, D)
    return (queries @ rows.T).amax(1)


def brute_force(embeddings: Tensor, epsilon: float, labels: Tensor | None, keep: Keep) -> Tensor:
    """(N,) whether each item is kept, pair by pair, for keep "hard" or "easy"."""
    z = torch.nn.functional.normalize(embeddings, dim=1)
    labels = torch.zeros(len(z), dtype=torch.long) if labels is None else labels
    kept = torch.ones(len(z), dtype=torch.bool)
    for label in set(labels.tolist()):
        members = [i for i in range(len(z)) if labels[i] == label]
        centroid = z[members].mean(0)
        members.sort(key=lambda i: float(z[i] @ centroid), reverse=keep == "easy")
        for position, i in enumerate(members):
            kept[i] = not any(float(z[i] @ z[j]) > 1 - epsilon for j in members[:position])
    return kept


class SemanticDeduplicationCases(Cases):
    """Vectors whose duplicates are known: random with near copies, copies of one vector, or orthogonal vectors."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        generator = torch.Generator().manual_seed(seed)
        n, dimension, queries = 48, 48, 256
        labels = None
        if kind == "typical":
            originals = torch.randn(n // 2, dimension, generator=generator)
            noise = torch.randn(n // 2, dimension, generator=generator) * torch.linspace(0, 0.8, n // 2)[:, None]
            rows = torch.cat([originals, originals + noise])
            labels = (torch.arange(n) % 2).to(device)
        elif kind == "redundant":
            rows = torch.randn(1, dimension, generator=generator).repeat(n, 1)
        else:
            rows = torch.linalg.qr(torch.randn(dimension, n, generator=generator))[0].T.contiguous()
        rows = rows.to(device)
        target = EmbeddedDataset(rows, rows, labels, macs_per_item=queries * dimension)
        return Case(target, torch.randn(queries, dimension, generator=generator).to(device), best_match)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for offset in range(3):
            target = self.build("typical", seed + offset, device).target
            keeps: tuple[Keep, ...] = ("hard", "easy")
            for keep in keeps:
                for epsilon in (0.01, 0.1, 0.5):
                    kept = torch.zeros(len(target), dtype=torch.bool)
                    kept[semdedup(target.embeddings, epsilon, target.labels, keep, block=7).kept.cpu()] = True
                    labels = None if target.labels is None else target.labels.cpu()
                    expected = brute_force(target.embeddings.cpu(), epsilon, labels, keep)
                    yield Expectation(f"kept at epsilon={epsilon}, keep={keep!r}", expected, kept)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        target = self.build("typical", seed, device).target
        every = torch.arange(len(target), device=device)
        for epsilon in (0.0, 0.05, 0.5):
            chosen = semdedup(target.embeddings, epsilon, target.labels)
            yield Expectation("items kept or removed", every, torch.cat([chosen.kept, chosen.removed]).sort().values)
            stands = representatives(chosen)
            yield Expectation("items that stand for themselves", chosen.kept, (stands == every).nonzero().flatten())
            yield Expectation("cluster of the item that stands for each", target.labels, target.labels[stands])

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique = SemanticDeduplication()
        rows = torch.eye(4, device=device)

        def applied(embeddings: Tensor = rows, **knobs: object) -> Invalid:
            what = ", ".join(f"{name}={value!r}" for name, value in knobs.items()) or f"{embeddings!r}"
            says = next(iter(knobs), "embeddings")
            return Invalid(what, lambda: technique.apply([0] * 4, embeddings=embeddings, **knobs), says)

        yield applied(epsilon=1.5)
        yield applied(epsilon=-0.1)
        yield applied(epsilon=float("nan"))
        yield applied(epsilon="0.1")
        yield applied(keep="best")
        yield applied(block=0)
        yield applied(labels=torch.zeros(3, dtype=torch.long, device=device))
        yield applied(labels=torch.zeros(4, device=device))
        yield applied(rows * torch.inf)
        yield applied(rows[:, 0])
        yield applied(rows.long())
        yield applied(rows - rows)
        yield applied(rows[:3])
        yield Invalid("no embeddings", lambda: technique.apply([0] * 4), "embeddings")


CASES = SemanticDeduplicationCases()


# --------------------------------------------------------------------------------------------------------------------
# Mails, their embeddings and their clusters

MAX_TOKENS = 128
"""Tokens of a mail that are embedded; all-MiniLM-L6-v2 was trained on texts of this length (its model card)."""
MAILS_PER_CLUSTER = 100
K_MEANS_ITERATIONS = 10
"""At most; clusters need only hold near neighbours together, not converge."""
SMOKE_FOLDERS = {"easy-ham-2": 200, "spam-1": 200}
"""Mails of the smoke runs: the first ones of two folders, since a sample spread over all would part the twins."""


class Embedded(NamedTuple):
    """Mails with their embeddings (N, D), unit vectors."""

    mails: list[Mail]
    z: Tensor


def embedded_mails(ctx: Context) -> Embedded:
    """The mails that hold at least one letter or digit: of the whole corpus, or of the smoke folders."""
    chosen = [mail for mail in mails() if normalised(mail.text)]
    if ctx.smoke:
        chosen = [m for f, n in SMOKE_FOLDERS.items() for m in [mail for mail in chosen if mail.source == f][:n]]
    return Embedded(chosen, embeddings([mail.text for mail in chosen], ctx).to(ctx.device))


def embeddings(texts: Sequence[str], ctx: Context) -> Tensor:
    """MiniLM embeddings (N, D) of the texts, on the CPU and cached. Equal texts have equal embeddings, bit for bit."""
    distinct = list(dict.fromkeys(texts))

    def compute() -> Tensor:
        model, tokenizer = load_minilm()
        return embed(model.to(ctx.device), tokenizer, distinct, max_tokens=MAX_TOKENS, progress=ctx.progress)

    digest = hashlib.sha256("\0".join(distinct).encode()).hexdigest()
    z = cached("minilm-embeddings", {"texts": digest, "max_tokens": MAX_TOKENS, "device": ctx.device}, compute)
    position = {text: i for i, text in enumerate(distinct)}
    return z[[position[text] for text in texts]]


def normalised(text: str) -> str:
    """Lower-case letters and digits of a text, each run of anything else made one space."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def k_means(z: Tensor, seed: int, threads: int) -> tuple[Tensor, int]:
    """Cluster labels (N,) from scikit-learn's k-means, and the multiply-accumulates of its distances.

    z: (N, D) unit vectors. Distances of all items to all k centroids are computed once an iteration and once at the
    end, N k D each; the counter cannot see them, because scikit-learn computes outside torch.
    """
    k = max(1, len(z) // MAILS_PER_CLUSTER)
    with threadpool_limits(threads):
        fitted = KMeans(k, n_init=1, max_iter=K_MEANS_ITERATIONS, random_state=seed).fit(z.cpu().numpy())
    labels = torch.from_numpy(fitted.labels_).long().to(z.device)
    return labels, (fitted.n_iter_ + 1) * k * z.numel()


def with_k_means(cost: Cost, macs: int) -> Cost:
    """The cost of an arm with the MACs of its k-means, which the counter cannot see, added."""
    return dataclasses.replace(cost, macs=cost.macs + macs)


def duplicate_counts(mails: Sequence[Mail]) -> dict[str, float]:
    """Mails that repeat an earlier one exactly, under four definitions of what a mail is."""
    folder = assets.path("spam-assassin")
    definitions: dict[str, Callable[[Mail], object]] = {
        "file": lambda mail: (folder / mail.source / mail.file).read_bytes(),
        "subject_and_body": lambda mail: mail.text,
        "body": lambda mail: mail.text.partition("\n")[2],
        "normalised_text": lambda mail: normalised(mail.text),
    }
    counts = {}
    for name, content in definitions.items():
        groups = exact_groups([content(mail) for mail in mails])
        counts[f"exact_duplicates_by_{name}"] = float(len(groups) - len(groups.unique()))
    return counts


def measured_redundancy(data: Embedded) -> Measured:
    """Removable share of the mails at epsilon 0.05, all pairs compared; by kind of duplicate and by folder."""
    whole = duplicates(data.z, EPSILON)
    where = dict(whole.where)
    for source in dict.fromkeys(mail.source for mail in data.mails):
        inside = torch.tensor([mail.source == source for mail in data.mails], device=data.z.device)
        where[f"folder {source}"] = duplicates(data.z[inside], EPSILON).value
    generator = torch.Generator().manual_seed(0)
    columns = [column[torch.randperm(len(column), generator=generator)] for column in data.z.cpu().T]
    shuffled = torch.stack(columns, 1).to(data.z.device)
    null = {"each dimension shuffled over the mails": duplicates(shuffled, EPSILON).value}
    return Measured(measure=whole.measure, value=whole.value, where=where, null=null)


# --------------------------------------------------------------------------------------------------------------------
# Scenario 1: training on deduplicated mails

SWEEP = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4)
LEAK = 0.1
"""A test mail counts as seen when its cosine with a training mail is above 1 - LEAK."""
FEATURES = 4096
HIDDEN = 32
EPOCHS = 5
NOTES = (
    (
        "The text of a mail is its subject and body as `data.text` defines it; mails without a letter or digit are "
        "left out. The first 128 tokens of the text are embedded."
    ),
    "A duplicate is a mail whose cosine with an earlier mail of its cluster is above 1 - epsilon.",
    (
        "MACs hold those of k-means by its closed form (N k D an iteration), because scikit-learn computes "
        "outside torch; bytes do not. The embedding, made once for all arms, is in neither MACs nor wall-clock: "
        "see `extra.embedding_macs`, estimated from 16 mails."
    ),
    (
        "The embedding costs more than all of this small classifier's training, so here it never pays. It pays before "
        "a training whose saving exceeds one forward pass of the encoder over all items."
    ),
    "Every arm trains for the same number of epochs, so fewer mails mean fewer steps.",
    (
        "Duplicates fall on both sides of a random split; `extra.accuracy_unseen` leaves out the test mails that have "
        "a near-duplicate (cosine above 0.9) among the training mails."
    ),
)


class Split(NamedTuple):
    """One random split, four fifths for training. Features are TF-IDF of words; they know nothing of the embeddings."""

    z: Tensor  # (N, D) embeddings of the training mails
    texts: list[str]
    x: Tensor  # (N, FEATURES)
    y: Tensor  # (N,) 1 for spam
    x_test: Tensor
    y_test: Tensor
    seen: Tensor  # (M,) whether a near-duplicate of the test mail is among the training mails


def split(data: Embedded, seed: int) -> Split:
    """Split before anything is removed; the vocabulary is that of all training mails, so every arm has the same one."""
    order = torch.randperm(len(data.mails), generator=torch.Generator().manual_seed(seed))
    test, training = order.tensor_split([len(order) // 5])
    texts = [[data.mails[i].text for i in part] for part in (training, test)]
    y, y_test = (torch.tensor([data.mails[i].spam for i in part]).long().to(data.z.device) for part in (training, test))
    tf_idf = TfidfVectorizer(max_features=FEATURES, sublinear_tf=True, dtype=np.float32).fit(texts[0])
    x, x_test = (torch.from_numpy(tf_idf.transform(part).toarray()).to(data.z.device) for part in texts)
    seen = nearest(data.z[test], data.z[training])[0] > 1 - LEAK
    return Split(data.z[training], texts[0], x, y, x_test, y_test, seen)


def fit(part: Split, chosen: Tensor, seed: int) -> nn.Module:
    """A perceptron trained on the chosen mails, for the same number of epochs whatever their number."""
    with fork_seed(seed):
        model = nn.Sequential(nn.Linear(part.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)).to(part.x.device)
    return train(model, part.x[chosen], part.y[chosen], epochs=EPOCHS, seed=seed, lr=0.01, weight_decay=0)


def accuracies(model: nn.Module, part: Split) -> tuple[float, float]:
    """Share of right answers on all test mails, and on those without a near-duplicate among the training mails."""
    right = (predict(model, part.x_test).argmax(1) == part.y_test).double()
    return float(right.mean()), float(right[~part.seen].mean())


def deduplicated(part: Split, epsilon: float, seed: int, threads: int, keep: Keep = "hard") -> Selection:
    return semdedup(part.z, epsilon, k_means(part.z, seed, threads)[0], keep, seed)


def without_exact(part: Split) -> Tensor:
    """Training mails less those whose normalised text occurred before."""
    return exact_groups([normalised(text) for text in part.texts]).unique().to(part.x.device)


def random_subset(part: Split, size: int, seed: int) -> Tensor:
    return torch.randperm(len(part.x), generator=torch.Generator().manual_seed(1000 + seed))[:size].to(part.x.device)


def mails_dedup(ctx: Context) -> Record:
    """Train a spam filter on deduplicated mails, and on as many mails left at random."""
    data = embedded_mails(ctx)
    sweep, seeds = (SWEEP[1::2], (0, 1)) if ctx.smoke else (SWEEP, (0, 1, 2, 3, 4))
    keeps: tuple[Keep, ...] = ("easy", "random")
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    facts: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in sweep])
    leaked = []
    for seed in seeds:
        part = split(data, seed)
        leaked.append(_mean(part.seen))
        every = torch.arange(len(part.x), device=part.x.device)
        scores["all"].append(accuracies(fit(part, every, seed), part))
        scores["exact"].append(accuracies(fit(part, without_exact(part), seed), part))
        labels, _ = k_means(part.z, seed, ctx.threads)
        for i, epsilon in enumerate(sweep):
            chosen = semdedup(part.z, epsilon, labels)
            scores[f"semdedup {epsilon}"].append(accuracies(fit(part, chosen.kept, seed), part))
            at_random = random_subset(part, len(chosen.kept), seed)
            scores[f"random {epsilon}"].append(accuracies(fit(part, at_random, seed), part))
            everywhere = semdedup(part.z, epsilon)
            stands = representatives(chosen)[chosen.removed]
            to_kept = (part.z[chosen.removed] * part.z[stands]).sum(1)
            facts["kept_share"][i].append(len(chosen.kept) / len(every))
            facts["deduplication_efficiency"][i].append(len(chosen.removed) / max(1, len(everywhere.removed)))
            facts["chained_share"][i].append(_mean(to_kept <= 1 - epsilon))
            facts["other_label_share"][i].append(_mean(part.y[chosen.removed] != part.y[chosen.twin]))
        for keep in keeps:
            chosen = semdedup(part.z, sweep[1], labels, keep, seed)
            scores[f"keep {keep}"].append(accuracies(fit(part, chosen.kept, seed), part))
        ctx.progress("training on splits", seed + 1, len(seeds))

    part = split(data, 0)
    every = torch.arange(len(part.x), device=part.x.device)
    arms: dict[str, Callable[[], object]] = {
        "all": lambda: fit(part, every, 0),
        "exact": lambda: fit(part, without_exact(part), 0),
    }
    sizes = {}
    for epsilon in sweep:
        sizes[epsilon] = len(deduplicated(part, epsilon, 0, ctx.threads).kept)
        arms[f"semdedup {epsilon}"] = partial(_deduplicate_and_fit, part, epsilon, ctx.threads)
        arms[f"random {epsilon}"] = partial(_sample_and_fit, part, sizes[epsilon])
    for keep in keeps:
        arms[f"keep {keep}"] = partial(_deduplicate_and_fit, part, sweep[1], ctx.threads, keep)
    costs = measure_arms(arms, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    _, k_means_macs = k_means(part.z, 0, ctx.threads)
    for arm in costs:
        if arm.startswith(("semdedup", "keep")):
            costs[arm] = with_k_means(costs[arm], k_means_macs)

    def quality(arm: str) -> Quality:
        return over_seeds("accuracy on all test mails", [on_all for on_all, _ in scores[arm]])

    def points(arm: str) -> list[Point]:
        return [
            costs[f"{arm} {e}"].point(
                {"epsilon": e}, quality(f"{arm} {e}"), samples=sizes[e], redundancy=1 - sizes[e] / len(every)
            )
            for e in sweep
        ]

    gains = [_paired(scores[f"semdedup {e}"], scores[f"random {e}"]) for e in sweep]
    exact_kept = len(without_exact(part))
    return record(
        ctx,
        technique=SemanticDeduplication.id,
        scenario="mails-dedup",
        title=f"A spam filter trained on {len(every):,} mails, deduplicated",
        data=f"{len(data.mails):,} mails of the SpamAssassin corpus ({_folders(data.mails)}), a fifth for testing",
        model=f"perceptron of {HIDDEN} hidden units on {part.x.shape[1]:,} TF-IDF features; MiniLM-L6-v2 embeddings",
        unit=f"clustering, matching and training once on {len(every):,} mails ({EPOCHS} epochs)",
        knobs=("epsilon",),
        baseline=costs["all"].arm(quality("all"), samples=len(every)),
        points=points("semdedup"),
        controls=[
            Control(
                name="random removal",
                about="As many mails are removed, drawn at random.",
                points=tuple(points("random")),
            ),
            Control(
                name="exact duplicates only",
                about="Only mails whose text occurred before, letter case and punctuation aside, are removed.",
                points=(
                    costs["exact"].point(
                        {"epsilon": 0.0}, quality("exact"), samples=exact_kept, redundancy=1 - exact_kept / len(every)
                    ),
                ),
            ),
            Control(
                name="another copy kept",
                about="Of two duplicates the one nearest to the centroid (easy) or a random one is kept.",
                points=tuple(
                    costs[f"keep {keep}"].point({"epsilon": sweep[1], "keep": keep}, quality(f"keep {keep}"))
                    for keep in keeps
                ),
            ),
        ],
        redundancy=measured_redundancy(data),
        seeds=seeds,
        notes=NOTES,
        extra={
            "epsilon": sweep,
            **{name: tuple(float(np.mean(v)) for v in values) for name, values in facts.items()},
            "accuracy_unseen": tuple(_unseen(scores[f"semdedup {e}"]) for e in sweep),
            "accuracy_unseen_random": tuple(_unseen(scores[f"random {e}"]) for e in sweep),
            "accuracy_unseen_all": _unseen(scores["all"]),
            "accuracy_unseen_exact": _unseen(scores["exact"]),
            "gain_over_random": tuple(gain.value for gain in gains),
            "gain_over_random_low": tuple(gain.low for gain in gains if gain.low is not None),
            "gain_over_random_high": tuple(gain.high for gain in gains if gain.high is not None),
            "leaked_test_share": float(np.mean(leaked)),
            **duplicate_counts(data.mails),
            "near_duplicates": tuple(
                float(len(data.z) - len(near_groups(data.z, epsilon).unique())) for epsilon in sweep
            ),
            **nearest_histogram(data.z),
            **overhead(data, part, ctx),
        },
    )


def nearest_histogram(z: Tensor) -> dict[str, tuple[float, ...]]:
    """How close the nearest other mail is: counts of the highest cosine in 50 bins over [0, 1]."""
    best = z.new_full((len(z),), -torch.inf)
    for i, j, tile in earlier_similarities(z):
        rows, columns = slice(i, i + len(tile)), slice(j, j + tile.shape[1])
        best[rows] = torch.maximum(best[rows], tile.amax(1))
        best[columns] = torch.maximum(best[columns], tile.amax(0))
    counts, edges = np.histogram(best.cpu().numpy(), bins=50, range=(0, 1))
    return {
        "nearest_cosine_edges": tuple(edges.tolist()),
        "nearest_cosine_counts": tuple(counts.astype(float).tolist()),
    }


def overhead(data: Embedded, part: Split, ctx: Context) -> dict[str, float]:
    """Multiply-accumulates that no arm holds (embedding, k-means), and those of matching and of the whole training."""
    model, tokenizer = load_minilm()
    sample = [data.mails[i].text for i in range(0, len(data.mails), len(data.mails) // 16)][:16]
    with count() as tally:
        embed(model, tokenizer, sample, max_tokens=MAX_TOKENS, batch_size=1)
    labels, k_means_macs = k_means(part.z, 0, ctx.threads)
    with count() as matching:
        semdedup(part.z, EPSILON, labels)
    with count() as training:
        fit(part, torch.arange(len(part.x), device=part.x.device), 0)
    return {
        "embedding_macs": float(round(tally.macs / len(sample) * len(part.x))),
        "k_means_macs": float(k_means_macs),
        "matching_macs": float(matching.macs),
        "training_macs": float(training.macs),
    }


def _deduplicate_and_fit(part: Split, epsilon: float, threads: int, keep: Keep = "hard") -> nn.Module:
    return fit(part, deduplicated(part, epsilon, 0, threads, keep).kept, 0)


def _sample_and_fit(part: Split, size: int) -> nn.Module:
    return fit(part, random_subset(part, size, 0), 0)


def _paired(with_: Sequence[tuple[float, float]], without: Sequence[tuple[float, float]]) -> Quality:
    return over_seeds("gain", [a - b for (a, _), (b, _) in zip(with_, without, strict=True)])


def _unseen(scores: Sequence[tuple[float, float]]) -> float:
    return float(np.mean([on_unseen for _, on_unseen in scores]))


def _mean(condition: Tensor) -> float:
    return float(condition.double().mean()) if len(condition) else 0.0


def _folders(mails: Sequence[Mail]) -> str:
    return ", ".join(f"{source} {n:,}" for source, n in Counter(mail.source for mail in mails).items())


# --------------------------------------------------------------------------------------------------------------------
# Scenario 2: duplicates planted in mails that have none

PLANTED_SWEEP = (1e-4, 0.01, 0.05, 0.1, 0.2, 0.3)
RATES = (0.1, 0.2, 0.4)
PLANTED_NOTES = (
    "The baseline compares all pairs at epsilon 0.05; the points compare inside k-means clusters only.",
    (
        "A planted duplicate is found when the same kept item stands for it and for its original. Natural duplicates "
        "are kept out beforehand by the words that mails share, so precision (found / removed) counts as an error any "
        "mail that resembles another one in meaning only."
    ),
    "Only the first 128 tokens are embedded: what was changed behind them cannot be seen.",
    (
        "The interval of the quality is over the planted duplicates. Cost does not depend on epsilon; its MACs "
        "hold those of k-means by closed form."
    ),
)
DISTINCT = 0.2
"""Originals share less than this part (Jaccard) of their three-word shingles with any other mail."""
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
    """The text as a reply quotes it, every twelve words behind a mark."""
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


def distinct_originals(mails: Sequence[Mail], size: int) -> list[str]:
    """Texts of the first `size` mails that resemble no other mail, by their words and not by their embeddings.

    They have at least 40 words and three sentences, and share less than `DISTINCT` of their three-word shingles
    (Jaccard) with every other mail.
    """
    shingles = CountVectorizer(ngram_range=(3, 3), binary=True, dtype=np.float32)
    x = shingles.fit_transform([normalised(mail.text) for mail in mails])
    sizes = np.asarray(x.sum(1)).ravel()
    alone = np.zeros(len(mails), dtype=bool)
    for start in range(0, len(mails), 500):
        common = (x[start : start + 500] @ x.T).tocoo()
        rows, columns = common.row + start, common.col
        jaccard = common.data / (sizes[rows] + sizes[columns] - common.data)
        jaccard[rows == columns] = 0
        highest = np.zeros(len(mails))
        np.maximum.at(highest, rows, jaccard)
        alone[start : start + 500] = highest[start : start + 500] < DISTINCT
    long = [len(mail.text.split()) >= 40 and len(re.findall(r"[.!?]\s", mail.text)) >= 3 for mail in mails]
    return [mail.text for mail, one, two in zip(mails, alone, long, strict=True) if one and two][:size]


class Planted(NamedTuple):
    """Originals with planted duplicates behind them: `original[i]` is the original of planted item `first + i`."""

    z: Tensor
    first: int
    original: Tensor  # (P,)
    kind: Tensor  # (P,) position in KINDS


def plant(originals: Sequence[str], rates: Sequence[float], ctx: Context) -> dict[float, Planted]:
    """For each rate, add one duplicate to as many originals as make that share of the whole, the kinds in turn."""
    numbers = {rate: round(rate * len(originals) / (1 - rate)) for rate in rates}
    chosen = torch.randperm(len(originals), generator=torch.Generator().manual_seed(0))[: max(numbers.values())]
    kind = torch.arange(len(chosen)) % len(KINDS)
    changes = list(KINDS.values())
    copies = [changes[k](originals[i], Random(i)) for i, k in zip(chosen.tolist(), kind.tolist(), strict=True)]
    z = embeddings([*originals, *copies], ctx).to(ctx.device)
    first = len(originals)
    return {rate: Planted(z[: first + n], first, chosen[:n], kind[:n]) for rate, n in numbers.items()}


def found(planted: Planted, chosen: Selection) -> Tensor:
    """(P,) whether the same kept item stands for the planted duplicate and for its original."""
    stands = representatives(chosen).cpu()
    return stands[planted.original] == stands[planted.first :]


def planted_duplicates(ctx: Context) -> Record:
    """Plant duplicates of known kinds at known rates in mails without any, and look for them."""
    data = embedded_mails(ctx)
    originals = distinct_originals(data.mails, 90 if ctx.smoke else 1200)
    rates = RATES[-1:] if ctx.smoke else RATES
    sets = plant(originals, rates, ctx)
    main = sets[rates[-1]]
    metric = "share of the planted duplicates found"

    clustered = {rate: k_means(planted.z, 0, ctx.threads) for rate, planted in sets.items()}
    arms: dict[str, Callable[[], object]] = {"all pairs": partial(semdedup, main.z, EPSILON)}
    for rate, planted in sets.items():
        arms[f"{rate}"] = partial(_cluster_and_match, planted.z, EPSILON, ctx.threads)
    costs = measure_arms(arms, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    costs.update({f"{rate}": with_k_means(costs[f"{rate}"], clustered[rate][1]) for rate in rates})

    points, precision, removed_share, by_kind = [], [], [], []
    for rate in reversed(rates):
        for epsilon in PLANTED_SWEEP if rate == rates[-1] else (EPSILON,):
            chosen = semdedup(sets[rate].z, epsilon, clustered[rate][0])
            hit = found(sets[rate], chosen)
            removed = len(chosen.removed) / len(sets[rate].z)
            knobs = {"epsilon": epsilon, "rate": rate}
            quality = over_items(metric, hit.float().tolist())
            points.append(costs[f"{rate}"].point(knobs, quality, samples=len(chosen.kept), redundancy=removed))
            removed_share.append(removed)
            precision.append(int(hit.sum()) / max(1, len(chosen.removed)))
            if rate == rates[-1]:
                by_kind.append(tuple(_mean(hit[main.kind == k]) for k in range(len(KINDS))))
    shuffled = main._replace(z=main.z[torch.randperm(len(main.z), generator=torch.Generator().manual_seed(1))])
    strangers = semdedup(shuffled.z, EPSILON, k_means(shuffled.z, 0, ctx.threads)[0])
    everything = found(main, semdedup(main.z, EPSILON))
    measure = duplicates(main.z, EPSILON)
    before = duplicates(main.z[: main.first], EPSILON)
    return record(
        ctx,
        technique=SemanticDeduplication.id,
        scenario="planted-duplicates",
        title=f"Duplicates of {len(KINDS)} kinds planted in {main.first:,} mails that have none",
        data=f"{main.first:,} mails of the SpamAssassin corpus that share less than {DISTINCT:.0%} of their three-word "
        f"shingles with any other mail; at the highest rate {len(main.kind):,} duplicates planted",
        model="embeddings by all-MiniLM-L6-v2",
        unit=f"clustering and matching {len(main.z):,} mails",
        knobs=("epsilon", "rate"),
        baseline=costs["all pairs"].arm(over_items(metric, everything.float().tolist()), samples=len(main.z)),
        points=points,
        controls=[
            Control(
                name="embeddings of other mails",
                about="The same embeddings, dealt out to the mails at random.",
                points=(
                    costs[f"{rates[-1]}"].point(
                        {"epsilon": EPSILON, "rate": rates[-1]},
                        over_items(metric, found(shuffled, strangers).float().tolist()),
                        samples=len(strangers.kept),
                        redundancy=len(strangers.removed) / len(main.z),
                    ),
                ),
            )
        ],
        redundancy=Measured(
            measure=measure.measure,
            value=measure.value,
            where=dict(measure.where),
            null={"before planting": before.value},
        ),
        seeds=(0,),
        notes=PLANTED_NOTES,
        extra={
            "kinds": ", ".join(KINDS),
            "epsilon": PLANTED_SWEEP,
            "recall_by_kind": tuple(by_kind),
            "precision": tuple(precision),
            "removed_share": tuple(removed_share),
            "planted_share": tuple(len(sets[rate].kind) / len(sets[rate].z) for rate in reversed(rates)),
        },
    )


def _cluster_and_match(z: Tensor, epsilon: float, threads: int) -> Selection:
    return semdedup(z, epsilon, k_means(z, 0, threads)[0])


SCENARIOS = (
    Scenario(
        "mails-dedup",
        "A spam filter trained on deduplicated mails",
        mails_dedup,
        assets={"smoke": ("minilm", "spam-assassin"), "full": ("minilm", "spam-assassin")},
    ),
    Scenario(
        "planted-duplicates",
        "Planted duplicates found again",
        planted_duplicates,
        assets={"smoke": ("minilm", "spam-assassin"), "full": ("minilm", "spam-assassin")},
    ),
)
