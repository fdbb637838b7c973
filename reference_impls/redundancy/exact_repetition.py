"""Exact repetition: content that an equality test finds again.

Of n items with d distinct ones, one of each would do: the measure is 1 - d / n of the items, or (n - d) / (n - 1) where
0 and 1 are to be reached. A subsample that holds a share f of a data set keeps both items of a pair with probability
f^2 only, so exact repetition is looked for among all items by their hashes, and near pairs that were counted in a
subsample are scaled by 1 / f^2.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from reference_impls.contract import Redundancy, check_range
from reference_impls.redundancy.inputs import measurable


def exact_repetition(items: Iterable[Hashable]) -> Redundancy:
    """Share of the items that equal an item before them, (n - d) / (n - 1), by their hashes. 0 for fewer than two."""
    seen = list(items)
    repeated = len(seen) - len(set(seen))
    value = repeated / (len(seen) - 1) if len(seen) > 1 else 0.0
    return Redundancy(value, "share of items that equal one before them", {"repeated": float(repeated)})


def scaled_pairs(pairs: int, sampled: int, items: int) -> tuple[float, float, float]:
    """Pairs in a data set of `items`, from those among `sampled` of them: (estimate, low, high), a Poisson interval.

    Each pair of the whole is in the sample with probability n (n - 1) / (N (N - 1)), about f^2.
    Raises: ValueError for a sample of fewer than two items, or larger than the data set.
    """
    check_range("sampled", sampled, 2, items, integer=True)
    check_range("pairs", pairs, 0, integer=True)
    scale = items * (items - 1) / (sampled * (sampled - 1))
    # Of a Poisson count k: chi-square quantiles in the approximation of Wilson and Hilferty, exact to 1 % beyond k = 0.
    low = pairs * (1 - 1 / (9 * pairs) - 1.96 / (3 * math.sqrt(pairs))) ** 3 if pairs else 0.0
    high = (pairs + 1) * (1 - 1 / (9 * (pairs + 1)) + 1.96 / (3 * math.sqrt(pairs + 1))) ** 3
    return pairs * scale, max(low, 0.0) * scale, high * scale


def repeated_rows(rows: Tensor) -> Tensor:
    """Share of the rows (B, N, D) of each datum that equal, bit for bit, a row before them: (B,) in [0, 1]."""
    measurable("rows", rows, "B N D")
    if rows.shape[1] < 2:
        return torch.zeros(len(rows), dtype=torch.float64)
    distinct = torch.tensor([len(datum.unique(dim=0)) for datum in rows], dtype=torch.float64)
    return (rows.shape[1] - distinct) / (rows.shape[1] - 1)


def repeated_share(repeated: int, lengths: Sequence[int]) -> float:
    """Positions of sequences that repeat others, as a share of those beyond the longest sequence, in [0, 1].

    1 where all sequences equal the longest; 0 where no run occurs twice, as among random ones (the null).
    """
    return min(repeated / max(sum(lengths) - max(lengths, default=0), 1), 1.0)


def repeated_segments(sequences: Sequence[Sequence[int]], length: int) -> Redundancy:
    """`repeated_share` of the positions that lie in a run of `length` items which occurred before, in any of them.

    Raises: ValueError for a length below 1.
    """
    check_range("length", length, 1, integer=True)
    seen: set[tuple[int, ...]] = set()
    covered = 0
    for sequence in sequences:
        again = [False] * len(sequence)
        for start in range(len(sequence) - length + 1):
            run = tuple(sequence[start : start + length])
            if run in seen:
                again[start : start + length] = [True] * length
            seen.add(run)
        covered += sum(again)
    share = repeated_share(covered, [len(sequence) for sequence in sequences])
    return Redundancy(share, f"share of positions in a repeated run of {length}")
