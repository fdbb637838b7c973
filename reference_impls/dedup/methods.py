"""Methods of deduplication: a sketch of each block of rows by itself, then one decision from all sketches.

A sketch is a mapping of arrays with a row for each row of the block, or with `sizes` that cut them into rows. It
depends on the rows alone, so it does not matter where, and in which blocks, it was made.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from reference_impls.contract import check_range
from reference_impls.dedup.sources import Block, DedupError
from reference_impls.techniques import minhash_deduplication as minhash
from reference_impls.techniques.exact_substring_deduplication import LENGTH, find_cuts
from reference_impls.techniques.semantic_deduplication import semdedup
from reference_impls.techniques.train_test_deduplication import leaks

Sketch = Mapping[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to tasks, wherever and in whatever order; `map` does it here."""
PART = 20_000
"""Rows of a task of comparing, about."""
ALL_PAIRS = 20_000
"""Items up to which all pairs of embeddings are compared; beyond, those of a cluster of about 1,000."""
MAX_TOKENS = 128


@dataclass(frozen=True)
class Options:
    """What is asked for. `encoder`: for `semantic`, texts or images -> (N, D), or "module:name" of such a function."""

    method: str = "minhash"
    threshold: float | None = None
    """Jaccard index or cosine from which on a row goes; None: that of the method"""
    words: int = minhash.WORDS
    permutations: int = minhash.PERMUTATIONS
    length: int = LENGTH
    join: str = "greedy"
    stays: str = "first"
    seed: int = 0
    encoder: Any = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DedupError(f"the method must be {', '.join(METHODS)}, got {self.method!r}")
        for name, choices in (("join", ("greedy", "components")), ("stays", ("first", "longest"))):
            if getattr(self, name) not in choices:
                raise DedupError(f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")
        if self.threshold is not None:
            if self.own.threshold is None:
                raise DedupError(f"the method {self.method} takes no threshold: {self.own.about}")
            check_range("threshold", self.threshold, 0, 1, low_open=True)
        for name in ("words", "permutations", "length"):
            check_range(name, getattr(self, name), 1, integer=True)

    @property
    def own(self) -> type[Method]:
        """The class of the method."""
        return METHODS[self.method]

    @property
    def least(self) -> float:
        """The threshold, or the method's own; 1 where it has none."""
        return self.threshold or self.own.threshold or 1.0

    def told(self) -> dict[str, Any]:
        """The options as JSON has them."""
        encoder = (
            self.encoder if isinstance(self.encoder, str | None) else getattr(self.encoder, "__qualname__", "given")
        )
        return {**asdict(self), "threshold": self.least, "encoder": encoder}


class Decisions(NamedTuple):
    """For each of N rows, references first, whether it stays."""

    twin: Ints
    """(N,) the row in whose favour it goes, or in which its passages stand; itself where it stays"""
    similarity: npt.NDArray[np.float64]
    """(N,) with the twin; for passages, the part of the row that stands elsewhere"""
    gone: npt.NDArray[np.bool_]
    """(N,)"""
    changed: Mapping[int, str]
    """Row -> its text without the passages that are cut"""


class Method(ABC):
    """A way of finding what repeats."""

    about: ClassVar[str]
    threshold: ClassVar[float | None]
    images: ClassVar[bool] = False
    """Whether it works on images too"""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def sketch(self, values: Sequence[Any]) -> Sketch:
        """What is kept of a block of rows: texts, or images (H, W, 3)."""

    @abstractmethod
    def decide(
        self, sketches: Sequence[Sketch], references: int, progress: Progress, spread: Spread = map
    ) -> Decisions:
        """What goes. With references, so many rows at the front are compared with, and nothing else is.

        spread: how parts that can be decided alone are worked on; the result is the same for any.
        """


def stacked(sketches: Sequence[Sketch], name: str) -> npt.NDArray[Any]:
    """One array of all sketches, filled block by block, so that no second copy of all is held."""
    parts = [sketch[name] for sketch in sketches[:1]]
    length = sum(
        len(sketch[name]) if "sizes" not in sketch or name == "sizes" else _length(sketch, name) for sketch in sketches
    )
    whole = np.empty((length, *parts[0].shape[1:]), parts[0].dtype) if parts else np.empty(0, np.int64)
    start = 0
    for sketch in sketches:
        part = sketch[name]
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _length(sketch: Sketch, name: str) -> int:
    sizes = sketch["sizes"]
    return len(sizes) if name == "keys" else int(sizes.sum())


def packed(method: Method, block: Block) -> bytes:
    """The sketch of a block and its rows' names, as the bytes of an .npz."""
    lengths = [len(value) if isinstance(value, str) else 0 for value in block.values]
    told = json.dumps([block.ids, block.numbers, lengths, block.bad]).encode()
    sketch = method.sketch(block.values) if block.values else {}
    raw = io.BytesIO()
    np.savez(raw, allow_pickle=False, told=np.frombuffer(told, np.uint8), **sketch)
    return raw.getvalue()


class Exact(Method):
    """Equal rows, by a 128-bit hash."""

    about = "rows are equal, or they are not"
    threshold = None
    images = True

    def sketch(self, values: Sequence[Any]) -> Sketch:
        import xxhash

        raw = [
            value.encode("utf-8", "surrogatepass")
            if isinstance(value, str)
            else bytes(str(value.shape), "ascii") + value.tobytes()
            for value in values
        ]
        digests = b"".join(xxhash.xxh3_128_digest(one) for one in raw)
        empty = [isinstance(value, str) and not value.strip() for value in values]
        return {"digest": np.frombuffer(digests, "V16"), "empty": np.array(empty, bool)}

    def decide(
        self, sketches: Sequence[Sketch], references: int, progress: Progress, spread: Spread = map
    ) -> Decisions:
        digest, empty = stacked(sketches, "digest"), stacked(sketches, "empty")
        own = np.arange(len(digest))
        _, first, inverse = np.unique(digest, return_index=True, return_inverse=True)
        twin = np.where(empty, own, first[inverse])
        if references:
            twin = np.where((own >= references) & (twin < references), twin, own)
        return Decisions(twin, np.ones(len(own)), twin != own, {})


class MinHash(Method):
    """Texts that share most of their runs of words."""

    about = "texts share most of their runs of words"
    threshold = minhash.THRESHOLD

    def sketch(self, values: Sequence[Any]) -> Sketch:
        o = self.options
        sets = minhash.shingled(values, o.words)
        bands, rows = minhash.banding(o.least, o.permutations)
        keys = minhash.band_keys(minhash.signatures(sets, o.permutations, o.seed), bands, rows)
        return {"sizes": sets.sizes, "hashes": sets.hashes, "keys": keys}

    def decide(
        self, sketches: Sequence[Sketch], references: int, progress: Progress, spread: Spread = map
    ) -> Decisions:
        o, sizes = self.options, stacked(sketches, "sizes")
        if references and o.join != "greedy":
            raise DedupError("join must be greedy where rows are compared with those of another input")
        found = minhash.buckets(stacked(sketches, "keys"), sizes > 0)
        shares = np.diff(found.offsets) > 0
        sets = chosen(sketches, sizes, shares)

        def parts() -> Iterator[Part]:
            for rows in minhash.apart(found, PART):
                front = int(np.searchsorted(rows, references))
                if references and not front:
                    continue  # nothing to compare with
                yield Part(rows, sets.only(rows), found.only(rows), o.least, o.join, o.stays, front)

        twin, alike, done, total = np.arange(len(sizes)), np.ones(len(sizes)), 0, int(shares.sum())
        progress("comparing candidates", 0, total)
        for rows, its, similarity in spread(compare, parts()):
            twin[rows], alike[rows] = its, similarity
            progress("comparing candidates", done := done + len(rows), total)
        progress("comparing candidates", total, total)
        return Decisions(twin, alike, twin != np.arange(len(twin)), {})


class Part(NamedTuple):
    """Rows that share buckets with one another and with no others, and what is asked of them."""

    rows: Ints
    """(K,) ascending"""
    sets: minhash.Shingles
    buckets: minhash.Buckets
    threshold: float
    join: Any
    stays: Any
    references: int
    """So many of the rows at the front"""


def compare(part: Part) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """The rows, the row for which each goes or itself, and their similarity: (K,) each."""
    twin, similarity = minhash.compared(*part[1:])
    return part.rows, part.rows[twin], similarity


def chosen(sketches: Sequence[Sketch], sizes: Ints, among: npt.NDArray[np.bool_]) -> minhash.Shingles:
    """The shingles of the rows (N,) that are `among`; the others have none, so that they need no memory."""
    offsets = np.concatenate([[0], np.cumsum(np.where(among, sizes, 0))]).astype(np.int64)
    hashes, first = np.empty(offsets[-1], np.uint64), 0
    for sketch in sketches:
        own = sketch["sizes"]
        last = first + len(own)
        hashes[offsets[first] : offsets[last]] = sketch["hashes"][np.repeat(among[first:last], own)]
        first = last
    return minhash.Shingles(hashes, offsets)


class Substring(Method):
    """Passages of texts that stood before."""

    about = "passages of --length characters that stood before are cut"
    threshold = None

    def sketch(self, values: Sequence[Any]) -> Sketch:
        texts = [value.encode("utf-8", "surrogatepass") for value in values]
        return {
            "sizes": np.array([len(text) for text in texts], np.int64),
            "hashes": np.frombuffer(b"".join(texts), np.uint8),
        }

    def decide(
        self, sketches: Sequence[Sketch], references: int, progress: Progress, spread: Spread = map
    ) -> Decisions:
        ends, raw = np.cumsum(stacked(sketches, "sizes")).tolist(), stacked(sketches, "hashes").tobytes()
        starts = [0, *ends[:-1]]
        texts = [raw[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends, strict=True)]
        del raw
        cuts = find_cuts(texts, self.options.length, references)
        left = cuts.apply(texts)
        changed = {i: left[i] for i in np.unique(cuts.document).tolist()}
        gone = np.zeros(len(texts), bool)
        gone[[i for i, text in changed.items() if not minhash.WORD.search(text)]] = True
        return Decisions(cuts.twin, cuts.share, gone, {i: text for i, text in changed.items() if not gone[i]})


class Semantic(Method):
    """Rows whose embeddings point the same way."""

    about = "embeddings point the same way"
    threshold = 0.95
    images = True

    def sketch(self, values: Sequence[Any]) -> Sketch:
        encoder = encoder_of(self.options.encoder)
        if self.options.encoder is None and not all(isinstance(value, str) for value in values):
            raise DedupError("the default encoder reads texts; name one of images by --encoder module:function")
        legible = [isinstance(value, str) and not value.strip() for value in values]
        z = torch.as_tensor(
            np.asarray(encoder(["-" if e else v for e, v in zip(legible, values, strict=True)])), dtype=torch.float32
        )
        if z.ndim != 2 or len(z) != len(values):
            raise DedupError(f"the encoder must give (N, D) for {len(values)} rows, got {tuple(z.shape)}")
        return {"z": z.numpy(), "empty": np.array(legible, bool)}

    def decide(
        self, sketches: Sequence[Sketch], references: int, progress: Progress, spread: Spread = map
    ) -> Decisions:
        z, empty = torch.from_numpy(stacked(sketches, "z")), torch.from_numpy(stacked(sketches, "empty"))
        rows = (~empty).nonzero().flatten()
        if references:
            items, others = rows[rows >= references], rows[rows < references]
            found = leaks(z[items], z[others], self.options.least)
            item, twin, alike = items[found.item], others[found.twin], found.similarity
        else:
            labels = clustered(z[rows], self.options.seed) if len(rows) > ALL_PAIRS else None
            chosen = semdedup(z[rows], max(1 - self.options.least, 1e-6), labels)
            item, twin, alike = rows[chosen.removed], rows[chosen.twin], chosen.similarity
        return removed(len(z), item.numpy(), twin.numpy(), alike.double().numpy())


def removed(n: int, index: Ints, twin: Ints, similarity: npt.NDArray[np.float64]) -> Decisions:
    """Decisions on n rows of which these go."""
    every, alike, gone = np.arange(n), np.ones(n), np.zeros(n, bool)
    every[index], alike[index], gone[index] = twin, similarity, True
    return Decisions(every, alike, gone, {})


def clustered(z: torch.Tensor, seed: int) -> torch.Tensor:
    """Labels (N,) of clusters of about 1,000 rows, by scikit-learn's k-means on batches."""
    from sklearn.cluster import MiniBatchKMeans

    unit = torch.nn.functional.normalize(z, dim=1).numpy()
    fitted = MiniBatchKMeans(max(2, math.ceil(len(z) / 1000)), n_init=1, random_state=seed, batch_size=4096).fit(unit)
    return torch.from_numpy(fitted.labels_).long()


@cache
def _minilm() -> Callable[[Sequence[str]], Any]:
    from reference_impls.models.minilm import embed, load_minilm

    model, tokenizer = load_minilm()
    return lambda texts: embed(model, tokenizer, list(texts), max_tokens=MAX_TOKENS).numpy()


def encoder_of(named: Any) -> Callable[[Sequence[Any]], Any]:
    """The encoder: MiniLM for None, a function, or what "module:name" names. Raises: DedupError."""
    import importlib

    if named is None:
        return _minilm()
    if callable(named):
        return named  # type: ignore[no-any-return]
    module, _, name = str(named).partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DedupError(f"the encoder {named!r} is none: {error}; name it module:function") from None
    if not callable(found):
        raise DedupError(f"the encoder {named!r} cannot be called")
    return found  # type: ignore[no-any-return]


METHODS: dict[str, type[Method]] = {"exact": Exact, "minhash": MinHash, "substring": Substring, "semantic": Semantic}


def check_images(options: Options, kinds: Iterable[type]) -> None:
    """Raise DedupError where a method of texts is asked to work on images."""
    if any(kind is not str for kind in kinds) and not options.own.images:
        able = ", ".join(name for name, one in METHODS.items() if one.images)
        raise DedupError(f"the method {options.method} compares words, and these are images; take one of {able}")
