"""SemDeDup: leave out training items whose embedding almost equals that of an item kept.

Papers
    abbas-2023-semdedup: Abbas, Tirumala, Simig, Ganguli, Morcos, "SemDeDup: Data-efficient learning at web-scale
    through semantic deduplication", arXiv 2303.09540. The rule is section 3 with Algorithm A7; which one of two
    duplicates is kept is section 6.3.

Idea
    Two items of a data set whose embeddings point the same way teach a model almost the same, so one of them would do.
    Looking at all pairs costs N^2, so the data set is first cut into clusters by k-means, and pairs are only compared
    inside a cluster: N^2 / k. In each cluster the items are put in an order, by default the least typical first (the
    lowest cosine with the centroid); an item goes when its highest cosine with an item before it exceeds 1 - epsilon.

    "An item before it" may itself be removed. So every removed item has a twin within epsilon, but twins can form a
    chain a - b - c in which only a is kept although a and c are not alike. `representatives` follows such chains.

Embeddings and cluster labels are inputs: any encoder and any k-means can make them. Without labels all pairs are
compared. Every step works in tiles, so a large cluster never needs its full matrix of similarities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, check_tensor, warn_no_effect
from reference_impls.contract.knobs import Choice, Given, Integer, Number
from reference_impls.contract.precision import near_one, widened
from reference_impls.redundancy import cross_sample_similarity as pairs
from reference_impls.redundancy.cross_sample_similarity import BLOCK, clusters

Keep = Literal["hard", "easy", "random"]
EPSILON = 0.05


class Selection(NamedTuple):
    """What deduplication decided; indices into the data set, `kept` and `removed` ascending."""

    kept: Tensor
    """(K,) items that stay."""
    removed: Tensor
    """(R,) items that go."""
    twin: Tensor
    """(R,) for each removed item, the item before it in its cluster's order that it is closest to."""
    similarity: Tensor
    """(R,) cosine of the removed item and its twin, above 1 - epsilon."""


def cluster_order(
    z: Tensor, keep: Keep = "hard", generator: torch.Generator | None = None, centroid: Tensor | None = None
) -> Tensor:
    """Order (n,) in which the items of one cluster are looked at; the earlier one of two duplicates is kept.

    z: (n, D) unit vectors; centroid: (D,), their mean if None. `hard` starts with the lowest cosine with the centroid,
    `easy` with the highest, `random` with any (abbas-2023-semdedup, section 6.3). Equal cosines stay in the order of
    the data set for `hard`; `easy` is the same order backwards, as in the official code.
    """
    if keep == "random":
        return torch.randperm(len(z), generator=generator).to(z.device)
    centroid = near_one(widened(z.mean(0) if centroid is None else centroid), 0)
    distance = 1 - F.cosine_similarity(z, centroid.unsqueeze(0))  # (n,) row by row: a product rounds equal rows apart
    hard = distance.argsort(descending=True, stable=True)
    return hard.flip(0) if keep == "easy" else hard


def closest_earlier(z: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Highest cosine (n,) with an item before it, and that item's position (n,); the first item gets minus infinity.

    z: (n, D) unit vectors in order. This is the column maximum of the strictly upper triangle of the similarity matrix
    (abbas-2023-semdedup, Algorithm A7), taken tile by tile. Of equally close items the first one is the twin.
    """
    return pairs.row_maxima(pairs.earlier_similarities(z, block), z)


@torch.no_grad()
def semdedup(
    embeddings: Tensor,
    epsilon: float,
    labels: Tensor | None = None,
    keep: Keep = "hard",
    seed: int = 0,
    block: int = BLOCK,
    centroids: Tensor | None = None,
) -> Selection:
    """Select the items to keep (abbas-2023-semdedup, section 3 and Algorithm A7).

    Args:
        embeddings: (N, D) floating point, scaled to length 1 here, in float32 or wider; a row of zeros is refused.
        epsilon: an item goes when its cosine with an item before it exceeds 1 - epsilon; 0 removes nothing. Below about
            1e-6 (float64: 1e-15) not even equal items are found reliably, so such epsilons are refused.
        labels: (N,) integer cluster of each item; None compares all pairs.
        keep, seed: which one of two duplicates is kept; see `cluster_order`.
        block: side of a tile of similarities.
        centroids: (K, D) of the clusters, the row of each being its label, as k-means returned them; None takes the
            mean of a cluster's unit vectors.

    Raises: ValueError, TypeError for bad shapes, dtypes, knobs or values.
    """
    check_range("block", block, 1, integer=True)
    if keep not in ("hard", "easy", "random"):
        raise ValueError(f"keep must be 'hard', 'easy' or 'random', got {keep!r}")
    z = pairs.unit(embeddings)
    pairs.check_epsilon(epsilon, embeddings.dtype)
    if centroids is not None:
        check_tensor("centroids", centroids, f"K {z.shape[1]}")
    generator = torch.Generator().manual_seed(seed)
    similarity = z.new_full((len(z),), -torch.inf)
    twin = torch.arange(len(z), device=z.device)
    for members in clusters(labels, len(z)):
        members = members.to(z.device)
        centroid = None if centroids is None else _centroid(centroids, labels, members).to(z)
        members = members[cluster_order(z[members], keep, generator, centroid)]
        similarity[members], position = closest_earlier(z[members], block)
        twin[members] = members[position]
    goes = similarity > 1 - epsilon  # (N,)
    removed = goes.nonzero().flatten()
    return Selection((~goes).nonzero().flatten(), removed, twin[removed], similarity[removed])


def _centroid(centroids: Tensor, labels: Tensor | None, members: Tensor) -> Tensor:
    """The row (D,) of `centroids` (K, D) that belongs to the cluster of these items."""
    if labels is None:
        raise ValueError("centroids need the labels of the items: the row of a cluster is its label")
    label = int(labels[members[0].item()])
    if not 0 <= label < len(centroids):
        raise ValueError(f"centroids must have a row for every label, got {len(centroids)} rows and the label {label}")
    return centroids[label]


def representatives(selection: Selection) -> Tensor:
    """(N,) the kept item that stands for each item: itself if kept, else the end of its chain of twins."""
    stands = torch.arange(len(selection.kept) + len(selection.removed), device=selection.kept.device)
    stands[selection.removed] = selection.twin
    while not torch.equal(stands, stands[stands]):
        stands = stands[stands]
    return stands


def macs(sizes: Sequence[int], dimension: int, block: int = BLOCK) -> int:
    """Multiply-accumulates of `semdedup` over clusters of these sizes: those of `earlier_similarities`.

    Scaling to length 1, the centroid's mean and the cosines with it are element-wise over N D, not counted.
    """
    return sum(pairs.earlier_similarities_macs(n, dimension, block) for n in sizes)


def check_one_each(items: Sized, embeddings: Tensor) -> None:
    """Raise TypeError or ValueError unless there are as many embeddings (N, D) as items."""
    check_tensor("embeddings", embeddings, "N D", finite=False)
    if len(items) != len(embeddings):
        raise ValueError(f"there must be one embedding per item: {len(items)} items, {len(embeddings)} embeddings")


class EmbeddedDataset(Dataset[Any]):
    """A map-style data set with one embedding per item: what `SemanticDeduplication` works on."""

    def __init__(self, items: Any, embeddings: Tensor, labels: Tensor | None = None, macs_per_item: int = 0) -> None:
        """Join a map-style data set or sequence with its embeddings (N, D) and, if wanted, cluster labels (N,).

        `macs_per_item` is what the caller's training spends on one item over all its epochs, in
        multiply-accumulates; `SemanticDeduplication.saving` counts it for each removed item.
        """
        check_one_each(items, embeddings)
        self.items, self.embeddings, self.labels, self.macs_per_item = items, embeddings, labels, macs_per_item

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class SemanticDeduplication(Technique):
    """Semantic deduplication (SemDeDup) of a data set before training on it."""

    id = "semantic-deduplication"
    execution = "real"
    exploits: ClassVar = {"near-items": {"epsilon": "epsilon"}, "repeated-items": {"epsilon": "epsilon"}}
    knobs: ClassVar = {
        "epsilon": Number(
            0.05, low=0, high=1, about="an item goes when its cosine with an item before it exceeds 1 - epsilon"
        ),
        "embeddings": Given(None, about="(N, D), a row for each item; None: the target's own"),
        "labels": Given(None, about="(N,) cluster of each item, an integer; None: the target's own, or one cluster"),
        "centroids": Given(None, about="(K, D), the row of a cluster is its label; None: the mean of its unit vectors"),
        "keep": Choice(
            "hard",
            options=("hard", "easy", "random"),
            about="which of two duplicates stays: the one far from the centroid, the one near it, or any",
        ),
        "seed": Integer(0, low=0, about="of the order, for keep='random'"),
        "block": Integer(1024, low=1, about="side of a tile of similarities; moves memory, not the result"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"epsilon": 0.0}, off=True),
            *(Setting(f"epsilon={e:g}", {"epsilon": e}, adaptive=True) for e in (0.01, EPSILON, 0.2)),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of items that could go at epsilon 0.05: see `redundancy.cross_sample_similarity.duplicates`."""
        embeddings, labels = self._inputs_of(target)
        return pairs.duplicates(embeddings, EPSILON, labels)

    def attach(
        self,
        target: Any,
        epsilon: float,
        embeddings: Tensor | None,
        labels: Tensor | None,
        centroids: Tensor | None,
        keep: Keep,
        seed: int,
        block: int,
    ) -> Handle:
        """Deduplicate a data set; `handle.target` is a `torch.utils.data.Subset` of it, in the same order.

        The trace holds the `Selection` and the sizes of the clusters.

        Raises: UnsupportedHost for a target without a length, items or embeddings; ValueError, TypeError for
        embeddings, labels or centroids that do not fit it.
        """
        embeddings, labels = self._inputs_of(target, embeddings, labels)
        selection = semdedup(embeddings, epsilon, labels, keep, seed, block, centroids)
        if not len(selection.removed):
            warn_no_effect(self.id, f"no two items of a cluster have a cosine above {1 - epsilon:g}")
        sizes = [len(members) for members in clusters(labels, len(target))]
        shape = {"cluster_sizes": sizes, "dimension": embeddings.shape[1], "block": block}
        trace = {**selection._asdict(), **shape}
        return Handle(Subset(target, selection.kept.tolist()), trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Removed items x MACs per item, less the similarities: R c - sum over clusters of about n^2 D.

        c is the target's `macs_per_item` (0 when it does not say). Embedding and clustering happen before `apply`
        and are not in it.
        """
        overhead = macs(trace["cluster_sizes"], trace["dimension"], trace["block"])
        return len(trace["removed"]) * getattr(target, "macs_per_item", 0) - overhead

    def _inputs_of(
        self, target: Any, embeddings: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        embeddings = getattr(target, "embeddings", None) if embeddings is None else embeddings
        labels = getattr(target, "labels", None) if labels is None else labels
        if not (hasattr(target, "__len__") and hasattr(target, "__getitem__")) or embeddings is None:
            raise UnsupportedHost(
                self.id, target, "a map-style data set (__len__ and __getitem__) with embeddings, as in EmbeddedDataset"
            )
        check_one_each(target, embeddings)
        return embeddings, labels
