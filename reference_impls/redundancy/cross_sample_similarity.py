"""Cross-sample similarity: how much of a data set repeats other items of the same data set.

Items are given as embeddings, and two items are duplicates when the cosine of their embeddings exceeds 1 - epsilon
(abbas-2023-semdedup, section 3, arXiv 2303.09540). Duplicates of duplicates form groups: the connected components of
the graph that joins every pair of duplicates. Of each group one item would do, so the measure is the share of items
that could go, (N - groups) / (N - 1): 0 when no two items are alike, 1 when all are. It is an upper bound of what
`techniques.semantic_deduplication` removes, which keeps both ends of a chain whose ends are not alike.

Cosines are computed in float32 or wider, whatever the dtype of the embeddings, and rows are scaled before their norm is
taken, so that it neither overflows nor vanishes. All pairs are visited in tiles of block x block, so memory does not
grow with the square of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reference_impls.contract import Redundancy, check_range, check_tensor
from reference_impls.contract.precision import near_one, widened, without_autocast

BLOCK = 1024
"""Rows and columns of a tile of similarities: 4 MiB in float32."""


def unit(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """Rows of `embeddings` (N, D) scaled to length 1, in float32 or wider.

    Raises: TypeError, ValueError for anything else than a finite floating point matrix, and for a row of zeros, which
    has no direction and so no cosine with anything.
    """
    check_tensor(name, embeddings, "N D")
    if embeddings.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got shape {tuple(embeddings.shape)}")
    embeddings = near_one(widened(embeddings), 1)
    length = embeddings.norm(dim=1, keepdim=True)  # (N, 1)
    if zero := (length == 0).flatten().nonzero().flatten().tolist():
        raise ValueError(
            f"{name}: {len(zero)} of {len(embeddings)} rows are zero, the first is row {zero[0]}; a zero vector has no "
            "cosine with anything, so leave such items out or embed them in another way"
        )
    return embeddings / length


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (N, M) of unit vectors a: (N, D) with b: (M, D), cut at 1, which rounding may exceed."""
    with without_autocast(a):
        return (a @ b.T).clamp_(max=1)


def check_epsilon(epsilon: float, dtype: torch.dtype) -> None:
    """Raise ValueError unless epsilon lies in [0, 1], and is 0 or larger than the rounding of cosines of this dtype."""
    check_range("epsilon", epsilon, 0, 1)
    least = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    if 0 < epsilon < least:
        wider = ", or embeddings in float64" if dtype != torch.float64 else ""
        raise ValueError(
            f"epsilon must be 0 or at least {least:.2g} for {dtype} embeddings, got {epsilon:g}: cosines are no more "
            f"exact than that; take a larger epsilon{wider}"
        )


def clusters(labels: Tensor | None, n: int) -> list[Tensor]:
    """Indices of the items of each cluster, ascending; one cluster of all `n` items when `labels` is None.

    Labels are any integers; a negative one is a cluster as any other.
    Raises: TypeError, ValueError unless `labels` is (N,) integers with one label per item.
    """
    if labels is None:
        return [torch.arange(n)] if n else []
    check_tensor("labels", labels, "N", floating=False)
    if len(labels) != n or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        got = f"labels {tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels must hold one integer per item: {n} items, {got}")
    _, inverse, sizes = labels.cpu().unique(return_inverse=True, return_counts=True)
    return list(inverse.argsort(stable=True).split(sizes.tolist()))


def earlier_similarities(z: Tensor, block: int = BLOCK) -> Iterator[tuple[int, int, Tensor]]:
    """Cosines of every item with the items before it, tile by tile.

    z: (N, D) unit vectors. Yields (i, j, tile): `tile[a, b]` is the cosine of item i + a and item j + b, or minus
    infinity where j + b does not come before i + a.
    """
    for i in range(0, len(z), block):
        for j in range(0, i + 1, block):
            tile = cosines(z[i : i + block], z[j : j + block])  # (<= block, <= block)
            if i == j:
                tile.masked_fill_(torch.ones_like(tile, dtype=torch.bool).triu_(), -torch.inf)
            yield i, j, tile


def earlier_similarities_macs(n: int, dimension: int, block: int = BLOCK) -> int:
    """Multiply-accumulates of `earlier_similarities` over n items: about n^2 D / 2, and n^2 D when n <= block."""
    ends = [min(i + block, n) for i in range(0, n, block)]
    return dimension * sum((end - start) * end for start, end in zip(range(0, n, block), ends, strict=True))


def row_maxima(tiles: Iterable[tuple[int, int, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Highest value (N,) of each row of a matrix, and its column (N,), the first of equal ones; like: (N, D).

    tiles: (i, j, tile), the part of the matrix that begins at row i and column j. Minus infinity for an empty row.
    """
    best = like.new_full((len(like),), -torch.inf)
    column = torch.zeros(len(like), dtype=torch.long, device=like.device)
    for i, j, tile in tiles:
        value, where = tile.max(dim=1)
        rows = slice(i, i + len(tile))
        closer = value > best[rows]
        best[rows] = torch.where(closer, value, best[rows])
        column[rows] = torch.where(closer, where + j, column[rows])
    return best, column


def nearest(queries: Tensor, references: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Cosine (Q,) and index (Q,) of the reference closest to each query; queries (Q, D), references (R, D), R >= 1."""
    queries, references = unit(queries, "queries"), unit(references, "references")
    if not len(references):
        raise ValueError("references is empty, so nothing is nearest")
    tiles = (
        (i, j, cosines(queries[i : i + block], references[j : j + block]))
        for i in range(0, len(queries), block)
        for j in range(0, len(references), block)
    )
    return row_maxima(tiles, queries)


def nearest_other(embeddings: Tensor, block: int = BLOCK) -> Tensor:
    """Highest cosine (N,) of each item with any other item; embeddings (N, D). Minus infinity for a single item."""
    z = unit(embeddings)
    below = earlier_similarities(z, block)
    return row_maxima((part for i, j, tile in below for part in ((i, j, tile), (j, i, tile.T))), z)[0]


def exact_groups(items: Sequence[Hashable] | Tensor) -> Tensor:
    """(N,) index of the first item that equals each item: by hash, or row by row for a tensor (N, ...)."""
    if isinstance(items, Tensor):
        rows = items.detach().cpu().reshape(len(items), math.prod(items.shape[1:])).contiguous()
        items = [row.numpy().tobytes() for row in rows.view(torch.uint8)]  # numpy knows no bfloat16
    first: dict[Hashable, int] = {}
    return torch.tensor([first.setdefault(item, i) for i, item in enumerate(items)], dtype=torch.long)


@torch.no_grad()
def near_groups(embeddings: Tensor, epsilon: float, labels: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """(N,) lowest index in the group of each item, where chains of cosines above 1 - epsilon make a group.

    embeddings: (N, D), normalised here. With `labels` (N,), pairs are only sought inside a cluster.
    """
    z = unit(embeddings)
    check_epsilon(epsilon, embeddings.dtype)
    root = torch.arange(len(z))
    for members in clusters(labels, len(z)):
        for i, j, tile in earlier_similarities(z[members.to(z.device)], block):
            later, earlier = (tile > 1 - epsilon).nonzero(as_tuple=True)
            _join(root, members[later.cpu() + i], members[earlier.cpu() + j])
    return root


def _join(root: Tensor, a: Tensor, b: Tensor) -> None:
    """Unite the groups of a[k] and b[k] for all k at once; `root` (N,) holds the lowest index of each group."""
    while True:
        high, low = torch.maximum(root[a], root[b]), torch.minimum(root[a], root[b])
        apart = high != low
        if not apart.any():
            return
        a, b, high, low = a[apart], b[apart], high[apart], low[apart]
        root.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(root, root[root]):
            root.copy_(root[root])


def removable_share(groups: Tensor) -> float:
    """(N - number of groups) / (N - 1) of group labels (N,); 0 for fewer than two items."""
    n = len(groups)
    return (n - len(groups.unique())) / (n - 1) if n > 1 else 0.0


def duplicates(embeddings: Tensor, epsilon: float, labels: Tensor | None = None, block: int = BLOCK) -> Redundancy:
    """Share of the items that could go because another one, or a chain of others, is within epsilon of them.

    `where` splits it into `exact` (equal embeddings, bit for bit) and `near` (the rest).
    """
    groups = near_groups(embeddings, epsilon, labels, block)
    value = removable_share(groups)
    exact = min(removable_share(exact_groups(embeddings)), value)
    measure = f"share of items in a chain of cosines above {1 - epsilon:g}"
    return Redundancy(value, measure, {"exact": exact, "near": value - exact})


def leaked_share(closest: Tensor, threshold: float) -> float:
    """Share of the items of one set with a twin in another: closest (N,), similarity of each to its nearest item there.

    0 for no items. The null, two sets that have nothing in common, is 0; a share p of planted twins measures p.
    """
    check_range("threshold", threshold, 0, 1, low_open=True)
    return (closest >= threshold).double().mean().item() if len(closest) else 0.0


def effective_number(embeddings: Tensor) -> float:
    """How many distinct items N rows amount to: exp of the entropy of the eigenvalues of the cosine Gram / N.

    In [1, N]. The Vendi score with cosines as similarity. embeddings: (N, D), rows that are not zero.
    """
    z = unit(embeddings)
    small = cosines(z, z) if z.shape[0] <= z.shape[1] else z.T @ z  # both have the same eigenvalues that are not zero
    share = (torch.linalg.eigvalsh(small.double()) / len(z)).clamp(min=0)
    share = share[share > 1e-12]
    return float((-(share * share.log()).sum()).exp())


def batch_similarity(embeddings: Tensor) -> float:
    """(N - effective number) / (N - 1) of the items of a batch, in [0, 1]; 0 for a single one."""
    n = len(embeddings)
    return min(max((n - effective_number(embeddings)) / (n - 1), 0.0), 1.0) if n > 1 else 0.0


def cache_hits(embeddings: Tensor, tau: float) -> Tensor:
    """(N,) the item whose stored result each item of a stream could take, or -1 where it is computed and stored.

    An item hits when its cosine with a stored one, of those before it, is at least 1 - tau; the closest is taken.
    Raises: as `unit`; ValueError for tau outside [0, 2].
    """
    check_range("tau", tau, 0, 2)
    z = unit(embeddings)
    found = torch.full((len(z),), -1, dtype=torch.long)
    stored: list[int] = []
    for i in range(len(z)):
        if stored:
            best, where = (z[stored] @ z[i]).max(0)
            if best.item() >= 1 - tau - 4 * torch.finfo(z.dtype).eps:
                found[i] = stored[int(where)]
                continue
        stored.append(i)
    return found
