"""Experiments of MinHash deduplication, in the benchmark of deduplication.

- `planted-sweep`: copies of six kinds planted in mails, against the threshold.
- `mails-candidates`: signatures and candidates of all mails, beside rensa alone and datasketch alone; and how many of
  the pairs that are alike become candidates.
- `scale`: corpora of up to a million generated documents, from file to file in a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet
from sklearn.feature_extraction.text import CountVectorizer

from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import deduplication as benchmark
from reference_impls.benchmarks.deduplication import Corpus, Left, Method, whole
from reference_impls.data.planted import generated
from reference_impls.data.text import legible_mails, normalised
from reference_impls.dedup import Options, Source, run
from reference_impls.study import BASELINE, TECHNIQUE, Cost, Plan, Study, measured, over_items, table
from reference_impls.techniques import minhash_deduplication as technique
from reference_impls.techniques.minhash_deduplication import THRESHOLD, WORDS, MinHashDeduplication, minhash_dedup


def method(threshold: float, join: technique.Join = "greedy") -> Method:
    """Mails with a twin of this Jaccard index go."""

    def leave(corpus: Corpus, seed: int) -> Left:
        removed = minhash_dedup(corpus.texts, threshold, seed=seed, join=join).removed
        return whole(removed, len(corpus.texts))

    return Method(f"Jaccard {threshold:g}" + (", components" if join == "components" else ""), leave)


# --------------------------------------------------------------------------------------------------------------------
# Signatures and candidates, beside the libraries


@dataclass(frozen=True, kw_only=True)
class CandidatesPlan(Plan):
    needs: tuple[str, ...] = ("spam-assassin",)
    folders: Mapping[str, int] | None = None
    thresholds: tuple[float, ...] = (0.5, 0.8, 0.9)


def all_pairs(texts: Sequence[str], least: float) -> tuple[Any, Any, Any]:
    """Every pair (i < j) of texts with a Jaccard index of five-word shingles of at least `least`, and that index."""
    shingles = CountVectorizer(ngram_range=(WORDS, WORDS), binary=True, dtype=np.float32, token_pattern=r"\S+")
    x = shingles.fit_transform([normalised(text) for text in texts])
    sizes, found = np.asarray(x.sum(1)).ravel(), []
    for start in range(0, len(texts), 500):
        common = (x[start : start + 500] @ x.T).tocoo()
        i, j = common.row + start, common.col
        alike = common.data / (sizes[i] + sizes[j] - common.data)
        chosen = (alike >= least) & (i < j)
        found.append((i[chosen], j[chosen], alike[chosen]))
    i, j, alike = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, alike


def ours(sets: technique.Shingles, threshold: float) -> Any:
    """Buckets that documents share, from their shingles."""
    keys = technique.band_keys(technique.signatures(sets), *technique.banding(threshold))
    return technique.buckets(keys, sets.sizes > 0)


def rensa_alone(shingles: Sequence[Sequence[str]], threshold: float) -> Any:
    """Which documents share a bucket with an earlier one, by rensa from signatures to buckets."""
    from rensa import RMinHash, RMinHashLSH

    bands, rows = technique.banding(threshold)
    index = RMinHashLSH(threshold, bands * rows, bands)
    matrix = RMinHash.digest_matrix_from_token_sets(shingles, bands * rows, 0)
    return index.insert_matrix_and_query_duplicate_flags(matrix)


def datasketch_alone(shingles: Sequence[Sequence[bytes]], threshold: float) -> Any:
    """Candidates of every document by datasketch, its bulk signatures included."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=128, params=technique.banding(threshold))
    found = []
    for n, sketch in enumerate(MinHash.bulk(shingles, num_perm=128)):
        found.append(index.query(sketch))
        index.insert(n, sketch)
    return found


def candidates(study: Study[CandidatesPlan]) -> Record:
    """Time of signatures and candidates on one thread, and the share of the pairs that are alike among these."""
    plan = study.plan
    texts = [mail.text for mail in legible_mails(plan.folders)]
    sets, (i, j, alike) = technique.shingled(texts), all_pairs(texts, min(plan.thresholds))
    strings = [ngrams(text) for text in texts]
    raw = [[shingle.encode() for shingle in document] for document in strings]

    def share(hit: Any) -> Interval:
        return over_items(hit.astype(float).tolist()) if len(hit) else Interval(value=1.0)

    def recalled(keys: Any, threshold: float) -> Any:
        chosen = alike >= threshold
        return (keys[i[chosen]] == keys[j[chosen]]).any(1)

    study.add(BASELINE, {}, partial(rensa_alone, strings, THRESHOLD), quality=Interval(value=1.0), samples=len(texts))
    study.add(
        "datasketch alone",
        {"threshold": THRESHOLD},
        partial(datasketch_alone, raw, THRESHOLD),
        quality=Interval(value=1.0),
    )
    lines = []
    for threshold in plan.thresholds:
        keys = technique.band_keys(technique.signatures(sets), *technique.banding(threshold))
        removal = technique.remove(sets, keys, threshold)
        first, second = (word_sets(texts, part) for part in (removal.removed, removal.twin))
        false = sum(len(a & b) < threshold * len(a | b) for a, b in zip(first, second, strict=True))
        found = recalled(keys, threshold)
        study.add(
            TECHNIQUE,
            {"threshold": threshold},
            partial(ours, sets, threshold),
            quality=share(found),
            redundancy=len(removal.removed) / len(texts),
        )
        lines.append(
            [threshold, *technique.banding(threshold), len(found), int(found.sum()), len(removal.removed), false]
        )
    study.measure()
    found = MinHashDeduplication()
    null = {"words dealt out at random": found.measure([" ".join(w) for w in benchmark.shuffled_words(texts)]).value}
    edges = np.linspace(0.5, 1, 11)
    bands, rows = technique.banding(THRESHOLD)
    keys = technique.band_keys(technique.signatures(sets), bands, rows)
    hit = (keys[i] == keys[j]).any(1)
    curve = []
    for low, high in pairwise(edges):
        inside = (alike >= low) & ((alike < high) | (high == 1))
        due = [technique.found_share(float(one), bands, rows) for one in alike[inside]]
        curve.append([float(low), float(high), int(inside.sum()), int(hit[inside].sum()), float(sum(due))])
    return study.record(
        data=f"{len(texts):,} mails of the SpamAssassin corpus, {len(sets.hashes):,} five-word shingles",
        unit=f"signatures and candidates of {len(texts):,} mails whose shingles are there",
        work="selection",
        knobs=("threshold",),
        metric="share of the pairs at the threshold or above that become candidates",
        controls={"datasketch alone": "Signatures and candidates of datasketch, with the same bands."},
        redundancy=measured([found.measure(texts)], null),
        notes=(
            "The baseline is rensa alone, from the shingles as strings; its quality is not measured.",
            "Ours takes the shingles as 64-bit hashes: making them from the texts is in neither.",
            "All pairs were compared exactly, as sets of shingles, to know which are alike.",
            "False removals are removed mails whose twin, compared as strings, is less alike than the threshold.",
        ),
        tables={
            "recall": table(
                "Of the pairs at the threshold or above, those that became candidates; what goes, and wrongly so.",
                ("threshold", "bands", "rows", "pairs", "candidates", "removed", "false removals"),
                lines,
            ),
            "s-curve": table(
                f"Pairs by their Jaccard index: candidates with {bands} bands of {rows}, and how many are due.",
                ("from", "to", "pairs", "candidates", "due"),
                curve,
            ),
        },
    )  # fmt: skip


def word_sets(texts: Sequence[str], index: Any) -> list[set[str]]:
    """The five-word shingles of the texts of these indices, as strings."""
    return [set(ngrams(texts[k])) for k in index.tolist()]


# --------------------------------------------------------------------------------------------------------------------
# Up to a million documents, from file to file


@dataclass(frozen=True, kw_only=True)
class ScalePlan(Plan):
    sizes: tuple[int, ...]
    needs: tuple[str, ...] = ("spam-assassin",)
    folders: Mapping[str, int] | None = None


class Ran(NamedTuple):
    """One run of `redundancy dedup` in a process of its own."""

    seconds: float
    sketching: float
    """Seconds until the last block was sketched"""
    deciding: float
    """Seconds from there until everything was decided; the rest is writing"""
    peak: float
    """Resident memory at most, in GB"""
    idle: float
    """Resident memory before it began, in GB"""
    removed: float
    """Share of the rows"""


def one_run(file: str, out: str, method: str) -> None:
    """Deduplicate a file into a folder in this process, and print what it took."""
    idle, began, told = psutil.Process().memory_info().rss, time.perf_counter(), dict[str, float]()

    def progress(label: str, done: int, total: int) -> None:
        told[label.split()[0]] = time.perf_counter() - began

    removed = run(Source(Path(file)), Path(out), Options(method), progress=progress)["share of rows removed"]
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    deciding = told.get("comparing", told["sketching"]) - told["sketching"]
    print(json.dumps([seconds, told["sketching"], deciding, peak / 1e9, idle / 1e9, removed]))


def alone(file: Path, out: Path, method: str) -> Ran:
    """The same in a fresh process."""
    code = f"import sys; from {__name__} import one_run; one_run(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(file), str(out), method]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return Ran(*json.loads(done.stdout))


def written(file: Path, documents: Iterable[tuple[str, int | None]], every: int) -> dict[int, float]:
    """Write documents as JSONL; of every so many-th that is a copy, its Jaccard index with its original."""
    recent, alike = deque[str](maxlen=4000), dict[int, float]()
    with file.open("w", encoding="utf-8") as out:
        for number, (text, original) in enumerate(documents):
            out.write(json.dumps({"text": text}) + "\n")
            recent.append(text)
            if original is not None and number % every == 0 and number - original < len(recent):
                first, second = set(ngrams(recent[original - number - 1])), set(ngrams(text))
                alike[number] = len(first & second) / len(first | second)
    return alike


def constants(texts: Sequence[str]) -> list[list[Any]]:
    """What a document of these comes to, from which the needs of more of them follow."""
    sets, (bands, rows) = technique.shingled(texts), technique.banding(THRESHOLD)
    keys = technique.band_keys(technique.signatures(sets), bands, rows)
    offsets, _ = technique.buckets(keys, sets.sizes > 0)
    return [
        ["bytes of text", sum(len(text.encode()) for text in texts) / len(texts)],
        ["shingles", float(sets.sizes.mean())],
        ["bytes of shingles", 8 * float(sets.sizes.mean())],
        ["bands", bands],
        ["rows of a band", rows],
        ["share in a bucket with others", float((np.diff(offsets) > 0).mean())],
    ]


def growth(lines: Sequence[Sequence[Any]], names: Sequence[str]) -> list[list[Any]]:
    """From each size to the next of the same method: what a million documents more take, and how that grows."""
    rows, found = [dict(zip(names, line, strict=True)) for line in lines], []
    for method in dict.fromkeys(row["method"] for row in rows):
        for one, two in pairwise([row for row in rows if row["method"] == method]):
            more, times = two["documents"] - one["documents"], two["documents"] / one["documents"]
            each = [1e6 * (two[name] - one[name]) / more for name in ("seconds", "peak GB")]
            memory = (two["peak GB"] - two["idle GB"]) / max(one["peak GB"] - one["idle GB"], 1e-9)
            ratios = [two["seconds"] / one["seconds"] / times, memory / times]
            found.append([method, one["documents"], two["documents"], *each, *ratios])
    return found


RUNS = ("method", "documents", "MB", "seconds", "sketching", "deciding", "peak GB", "idle GB", "copies", "recall",
        "recall of 0.9")  # fmt: skip


def scale(study: Study[ScalePlan]) -> Record:
    """Time, peak memory, and what is found of the planted copies, against the number of documents."""
    plan, lines = study.plan, list[list[Any]]()
    texts = [mail.text for mail in legible_mails(plan.folders)]
    with tempfile.TemporaryDirectory() as folder:
        for size in plan.sizes:
            file = Path(folder, f"{size}.jsonl")
            alike = written(file, generated(texts, size), every=max(1, size // 10_000))
            megabytes = file.stat().st_size / 1e6
            for method in ("minhash", "exact") if size < plan.sizes[-1] else ("minhash",):
                out = Path(folder, f"{method}-{size}")
                ran = alone(file, out, method)
                study.progress(method, size, plan.sizes[-1])
                decision = pyarrow.parquet.read_table(out / "result.parquet")["decision"].to_pylist()
                hits = {
                    t: [float(decision[n] == "removed") for n, one in alike.items() if one >= t] for t in (0.8, 0.9)
                }
                recall = [over_items(hit) if hit else Interval(value=1.0) for hit in hits.values()]
                first = method == "exact" and size == plan.sizes[0]
                series = TECHNIQUE if method == "minhash" else BASELINE if first else "equal texts only"
                cost = Cost(0, round(1e6 * megabytes / size), (), (1000 * ran.seconds / size,))
                knobs = {} if first else {"documents": size}
                study.add(series, knobs, cost=cost, quality=recall[0], redundancy=ran.removed)
                lines.append([method, size, megabytes, *ran[:5], len(hits[0.8]), *(one.value for one in recall)])
            file.unlink()
    few = [text for text, _ in generated(texts, min(plan.sizes[0], 2000))]
    found = MinHashDeduplication().measure(few)
    return study.record(
        data="documents of four to eight sentences of SpamAssassin mails, drawn with seed 0; about 30 % "
        "are copies, of six kinds (`data.planted.generated`)",
        unit="one document, from a JSONL file to the table of what goes",
        work="selection",
        knobs=("documents",),
        given=("documents",),
        metric="share of the planted copies with a Jaccard index of 0.8 or more that go",
        controls={"equal texts only": "The method `exact`: equal texts go, by a hash. Not run at the largest size."},
        redundancy=measured([found], {"no copies planted": unplanted(texts)}),
        notes=(
            "Each run has a process of its own, on as many threads as there are cores; peak is its resident memory.",
            "The copies that are judged are drawn evenly, about 10,000 of each size at most.",
            "The baseline is the exact hash at the smallest size.",
        ),
        tables={
            "runs": table(
                "Seconds, those of sketching and deciding among them, and peak memory of each run; idle is what the "
                "process held before.",
                RUNS,
                lines,
            ),
            "growth": table(
                "What a million documents more take, from one size to the next; and how much faster than the documents "
                "seconds grow, and memory above idle: 1 is linear growth.",
                ("method", "from", "to", "seconds", "peak GB", "time growth", "memory growth"),
                growth(lines, RUNS),
            ),
            "a document": table(
                f"What one of the first {len(few):,} documents comes to on average.", ("what", "value"), constants(few)
            ),
        },
    )  # fmt: skip


def ngrams(text: str) -> list[str]:
    """The five-word shingles of a text, as strings."""
    words = normalised(text).split()
    return [" ".join(words[k : k + WORDS]) for k in range(max(len(words) - WORDS + 1, 1))]


def unplanted(texts: Sequence[str]) -> float:
    """The measure of generated documents without copies."""
    return MinHashDeduplication().measure([text for text, _ in generated(texts, 2000, share=0)]).value


SWEEP: Callable[..., Record] = partial(
    benchmark.compare,
    sent={MinHashDeduplication.id: (*map(method, (0.95, 0.8, 0.65, 0.5)), method(0.5, "components"))},
)
SCENARIOS = (
    benchmark.task(
        "planted-sweep", "Planted copies against the Jaccard index that is asked for", SWEEP, **benchmark.PLANTED
    ),
    benchmark.task(
        "mails-candidates",
        "Signatures and candidates of all mails, beside rensa and datasketch alone",
        candidates,
        full=CandidatesPlan(),
        smoke=CandidatesPlan(repetitions=3, folders=benchmark.TWO_FOLDERS),
    ),
    benchmark.task(
        "scale",
        "Up to a million generated documents, from file to file",
        scale,
        full=ScalePlan(sizes=(10_000, 100_000, 1_000_000)),
        smoke=ScalePlan(sizes=(500, 1_000, 2_000), folders=benchmark.TWO_FOLDERS),
    ),
)
CONTENDERS = dict.fromkeys(("deduplication/planted-copies", "deduplication/natural-mails"), (method(THRESHOLD),))
