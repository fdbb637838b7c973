"""Semantic deduplication beyond the checks: known duplicates, chains, ties, tiles, and its measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from random import Random
from typing import Literal

import pytest
import torch
from torch import Tensor

from reference_impls.benchmarks.data_selection import k_means
from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning, generator
from reference_impls.data.planted import FOOTER, KINDS, Planted, distinct, plant
from reference_impls.data.text import normalised
from reference_impls.redundancy import cross_sample_similarity as measure
from reference_impls.redundancy.cross_sample_similarity import duplicates, exact_groups, near_groups, nearest, unit
from reference_impls.techniques import semantic_deduplication as technique
from reference_impls.techniques.semantic_deduplication import EmbeddedDataset, representatives, semdedup

SEMDEDUP = technique.SemanticDeduplication()

# --------------------------------------------------------------------------------------------------------------------
# Cases: vectors whose duplicates are known


def best_match(items: EmbeddedDataset, queries: Tensor) -> Tensor:
    """Highest product (Q,) of each query (Q, D) with any item (D,) of the data set: what copies do not change."""
    rows = torch.stack([items[i] for i in range(len(items))])  # (N, D)
    return (queries @ rows.T).amax(1)


class SemanticDeduplicationCases(Cases):
    """Vectors whose duplicates are known: random with near copies, copies of one vector, or orthogonal vectors."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = generator(seed)
        n, dimension, queries = 48, 48, 256
        labels = None
        if kind == "typical":
            originals = torch.randn(n // 2, dimension, generator=draws)
            noise = torch.randn(n // 2, dimension, generator=draws) * torch.linspace(0, 0.8, n // 2)[:, None]
            rows = torch.cat([originals, originals + noise])
            labels = (torch.arange(n) % 2).to(device)
        elif kind == "redundant":
            rows = torch.randn(1, dimension, generator=draws).repeat(n, 1)
        else:
            rows = torch.linalg.qr(torch.randn(dimension, n, generator=draws))[0].T.contiguous()
        rows = rows.to(device)
        target = EmbeddedDataset(rows, rows, labels, macs_per_item=queries * dimension)
        return Case(target, torch.randn(queries, dimension, generator=draws).to(device), best_match)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        keeps: tuple[technique.Keep, ...] = ("hard", "easy")
        for offset in range(3):
            target = self.build("typical", seed + offset, device).target
            for keep in keeps:
                for epsilon in (0.01, 0.1, 0.5):
                    kept = torch.zeros(len(target), dtype=torch.bool)
                    kept[semdedup(target.embeddings, epsilon, target.labels, keep, block=7).kept.cpu()] = True
                    labels = None if target.labels is None else target.labels.cpu()
                    expected = brute_force(target.embeddings.cpu(), epsilon, labels, keep)
                    yield Expectation(f"kept at epsilon={epsilon}, keep={keep!r}", expected, kept)
        # Cosines: 0.8 of items 0 and 1, 0.6 of 1 and 2, 0 of 0 and 2. From the centroid (1.8, 1.6) / 3, the order is
        # 2, 0, 1 for hard and 1, 0, 2 for easy.
        rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], device=device)
        for keep, epsilon, by_hand in (("hard", 0.3, [0, 2]), ("easy", 0.3, [1, 2]), ("easy", 0.5, [1])):
            kept = semdedup(rows, epsilon, keep=keep).kept
            yield Expectation(f"three items at epsilon={epsilon}, keep={keep!r}", kept.new_tensor(by_hand), kept)

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
        rows = torch.eye(4, device=device)

        def applied(what: str, embeddings: Tensor | None = rows, **labels: Tensor) -> Invalid:
            says = next(iter(labels), "embedding")
            return Invalid(what, lambda: SEMDEDUP.apply([0] * 4, embeddings=embeddings, **labels), says)

        yield applied("no embeddings", None)
        yield applied("embeddings of fewer items", rows[:3])
        yield applied("embeddings of rank 1", rows[:, 0])
        yield applied("integer embeddings", rows.long())
        yield applied("infinite embeddings", rows * torch.inf)
        yield applied("embeddings of zeros", rows - rows)
        yield applied("labels of fewer items", labels=torch.zeros(3, dtype=torch.long, device=device))
        yield applied("labels that are no integers", labels=torch.zeros(4, device=device))


def brute_force(embeddings: Tensor, epsilon: float, labels: Tensor | None, keep: technique.Keep) -> Tensor:
    """(N,) whether each item is kept, pair by pair, for keep "hard" or "easy"."""
    z = torch.nn.functional.normalize(embeddings, dim=1)
    labels = torch.zeros(len(z), dtype=torch.long) if labels is None else labels
    kept = torch.ones(len(z), dtype=torch.bool)
    for label in set(labels.tolist()):
        members = [i for i in range(len(z)) if labels[i] == label]
        centroid = z[members].mean(0)
        members.sort(key=lambda i: float(z[i] @ centroid))
        members = members[::-1] if keep == "easy" else members
        for position, i in enumerate(members):
            kept[i] = not any(float(z[i] @ z[j]) > 1 - epsilon for j in members[:position])
    return kept


CASES = SemanticDeduplicationCases()

# --------------------------------------------------------------------------------------------------------------------
# The algorithm


def gaussian(n: int, dimension: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dimension, generator=generator(seed), dtype=torch.float64)


def with_near_copies(originals: int, copies: int, cosine: float, seed: int = 0) -> Tensor:
    """Embeddings of orthogonal originals, each followed by copies of exactly this cosine with it."""
    basis = torch.linalg.qr(gaussian(2 * originals, 2 * originals, seed))[0]
    original, other = basis[:originals], basis[originals:]
    near = cosine * original + (1 - cosine**2) ** 0.5 * other
    return torch.stack([original, *[near] * copies], 1).flatten(0, 1)  # (originals * (1 + copies), D)


def test_planted_exact_duplicates_are_found_exactly():
    originals = gaussian(30, 64)
    copies = torch.tensor([0, 7, 7, 7, 12, 29])
    selection = semdedup(torch.cat([originals, originals[copies]]), epsilon=1e-6)
    assert len(selection.removed) == len(copies)
    groups = torch.cat([torch.arange(30), copies])
    assert groups[selection.kept].sort().values.tolist() == list(range(30))
    assert groups[selection.removed].tolist() == groups[selection.twin].tolist()


@pytest.mark.parametrize(("epsilon", "removed"), [(0.0, 0), (0.09, 0), (0.11, 8)])
def test_near_duplicates_go_when_epsilon_passes_their_distance(epsilon: float, removed: int):
    rows = with_near_copies(8, 1, cosine=0.9)
    assert len(semdedup(rows, epsilon).removed) == removed


def test_duplicates_in_different_clusters_are_not_compared():
    rows = with_near_copies(8, 1, cosine=0.999)
    apart = torch.arange(16) % 2
    assert len(semdedup(rows, 0.05).removed) == 8
    assert len(semdedup(rows, 0.05, labels=apart).removed) == 0


def test_cluster_labels_may_be_any_integers_and_a_cluster_of_one_is_kept():
    rows = torch.cat([gaussian(1, 8), gaussian(1, 8, seed=1).expand(3, 8)])
    selection = semdedup(rows, 0.05, labels=torch.tensor([-7, 900, 900, 900]))
    assert selection.kept.tolist()[0] == 0
    assert len(selection.kept) == 2


def test_an_empty_data_set_stays_empty():
    selection = semdedup(torch.empty(0, 8), 0.05)
    assert [len(part) for part in selection] == [0, 0, 0, 0]
    assert representatives(selection).tolist() == []
    assert duplicates(torch.empty(0, 8), 0.05).value == 0


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_deduplicating_twice_changes_nothing_when_no_duplicates_remain(keep: str):
    rows = torch.cat([gaussian(40, 16), gaussian(40, 16)[:20] + 0.02 * gaussian(20, 16, seed=1)])
    first = semdedup(rows, 0.05, keep=keep)
    assert 0 < len(first.removed) <= 20
    assert len(semdedup(rows[first.kept], 0.05, keep=keep).removed) == 0


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
@pytest.mark.parametrize("epsilon", [0.01, 0.2, 0.5, 1.0])
def test_every_removed_item_has_an_earlier_twin_within_epsilon(keep: str, epsilon: float):
    rows = torch.cat([gaussian(60, 6), gaussian(60, 6) + 0.1 * gaussian(60, 6, seed=1)])
    labels = torch.arange(120) % 5
    selection = semdedup(rows, epsilon, labels, keep=keep)
    z = unit(rows)
    assert len(selection.removed) > 0
    assert torch.equal(labels[selection.removed], labels[selection.twin])
    torch.testing.assert_close((z[selection.removed] * z[selection.twin]).sum(1), selection.similarity)
    assert bool((selection.similarity > 1 - epsilon).all())


def test_a_chain_keeps_one_item_though_its_ends_are_not_alike():
    angles = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    side = torch.tensor([[0.0, -1.0]] * 6, dtype=torch.float64)  # pulls the centroid, so the order is 3, 2, 1, 0
    rows = torch.cat([rows, side])
    epsilon = 1 - 0.95  # cos 0.3 = 0.955, cos 0.6 = 0.825
    selection = semdedup(rows, epsilon)
    assert selection.removed.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert selection.twin.tolist() == [1, 2, 3, 4, 4, 4, 4, 4]
    assert representatives(selection).tolist() == [3] * 4 + [4] * 6
    assert unit(rows)[3] @ unit(rows)[0] < 1 - epsilon
    assert near_groups(rows, epsilon).tolist() == [0] * 4 + [4] * 6


@pytest.mark.parametrize("block", [1, 2, 7, 16, 1000])
def test_tiles_do_not_change_the_result(block: int):
    rows = torch.cat([gaussian(25, 8), gaussian(25, 8) + 0.05 * gaussian(25, 8, seed=1)])
    whole, tiled = semdedup(rows, 0.1), semdedup(rows, 0.1, block=block)
    assert torch.equal(whole.kept, tiled.kept)
    assert torch.equal(whole.twin, tiled.twin)
    assert torch.equal(near_groups(rows, 0.1), near_groups(rows, 0.1, block=block))
    tiles = list(measure.earlier_similarities(unit(rows), block))
    assert all(max(tile.shape) <= block for _, _, tile in tiles)
    assert sum(int(tile.isfinite().sum()) for _, _, tile in tiles) == 50 * 49 // 2


def test_of_equal_items_the_first_in_the_data_set_is_kept_and_the_last_when_the_order_is_reversed():
    rows = torch.eye(4).repeat(3, 1)  # the centroid is equally far from all
    assert semdedup(rows, 0.5).kept.tolist() == [0, 1, 2, 3]
    assert semdedup(rows, 0.5).twin.tolist() == [0, 1, 2, 3] * 2
    assert semdedup(rows, 0.5, keep="easy").kept.tolist() == [8, 9, 10, 11]
    labels = torch.arange(12) % 4
    for keep in ("hard", "easy"):
        expected = brute_force(rows, 0.5, labels, keep).nonzero().flatten()
        assert torch.equal(semdedup(rows, 0.5, labels, keep).kept, expected)


@pytest.mark.parametrize("dimension", [3, 100, 384])
def test_copies_keep_the_order_of_the_data_set_in_single_precision(dimension: int):
    groups = torch.randint(40, (150,), generator=generator(1))
    rows = gaussian(40, dimension).float()[groups]
    places = {group: [i for i in range(150) if groups[i] == group] for group in set(groups.tolist())}
    assert semdedup(rows, 1e-5).kept.tolist() == sorted(indices[0] for indices in places.values())
    assert semdedup(rows, 1e-5, keep="easy").kept.tolist() == sorted(indices[-1] for indices in places.values())


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_items_are_ordered_by_the_centroids_that_k_means_returned(keep: technique.Keep):
    rows = torch.cat([gaussian(30, 4), gaussian(30, 4) + 0.2 * gaussian(30, 4, seed=1)])
    labels, centroids = torch.arange(60) % 3, gaussian(3, 4, seed=2)
    z, expected = unit(rows), []
    for label in range(3):
        cosine = {i: float(z[i] @ centroids[label] / centroids[label].norm()) for i in range(label, 60, 3)}
        members = sorted(cosine, key=lambda i: cosine[i])[:: -1 if keep == "easy" else 1]
        earlier = [[float(z[i] @ z[j]) for j in members[:position]] for position, i in enumerate(members)]
        expected += [i for i, cosines in zip(members, earlier, strict=True) if max(cosines, default=0) <= 0.9]
    selection = semdedup(rows, 0.1, labels, keep, centroids=centroids)
    assert selection.kept.tolist() == sorted(expected)
    assert not torch.equal(selection.kept, semdedup(rows, 0.1, labels, keep).kept)
    handle = SEMDEDUP.apply(range(60), embeddings=rows, labels=labels, centroids=centroids, keep=keep, epsilon=0.1)
    assert list(handle.target) == sorted(expected)


def test_centroids_that_do_not_fit_are_named():
    rows, labels = torch.eye(3), torch.tensor([0, 1, 5])
    for centroids, of_items, says in (
        (torch.ones(6, 3), None, "labels"),
        (torch.ones(5, 3), labels, "label 5"),
        (torch.ones(6, 2), labels, "centroids must have shape"),
        (torch.full((6, 3), torch.nan), labels, "centroids holds values that are not finite"),
    ):
        with pytest.raises(ValueError, match=says):
            semdedup(rows, 0.1, of_items, centroids=centroids)


def test_closest_earlier_equals_the_upper_triangle_of_algorithm_a7():
    z = unit(gaussian(40, 10))
    triangle = (z @ z.T).triu(1)
    triangle[torch.ones_like(triangle, dtype=torch.bool).tril()] = -torch.inf
    value, index = triangle.max(dim=0)
    best, twin = technique.closest_earlier(z, block=16)
    torch.testing.assert_close(best, value)
    assert torch.equal(twin[1:], index[1:])


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.6])
def test_groups_equal_a_search_through_the_graph_and_bound_what_is_removed(epsilon: float):
    rows = gaussian(50, 4)
    z = unit(rows)
    paths = torch.linalg.matrix_power((z @ z.T > 1 - epsilon).double(), 49)  # of at most 49 steps, from each to each
    groups = near_groups(rows, epsilon, block=8)
    assert torch.equal(groups, (paths > 0).int().argmax(1))
    spare = 50 - len(groups.unique())
    assert 0 < len(semdedup(rows, epsilon).removed) <= spare
    assert measure.removable_share(groups) == spare / 49


def test_the_exact_count_equals_the_count_of_hashes():
    texts = [f"mail {i % 17}" for i in range(60)] + ["mail", "mail "]
    distinct = len({hashlib.sha256(text.encode()).digest() for text in texts})
    assert len(exact_groups(texts).unique()) == distinct
    rows = gaussian(17, 5)[torch.arange(60) % 17]
    assert len(exact_groups(rows).unique()) == 17
    assert duplicates(rows, 0.0).where["exact"] == 0  # epsilon 0 joins nothing, whatever is equal
    measured = duplicates(rows, 1e-6)
    assert measured.value == measured.where["exact"] == 43 / 59


def test_nearest_equals_brute_force():
    queries, references = gaussian(9, 6), gaussian(31, 6, seed=1)
    best, index = nearest(queries, references, block=4)
    value, where = (unit(queries) @ unit(references).T).max(1)
    torch.testing.assert_close(best, value)
    assert torch.equal(index, where)


def test_scale_of_the_embeddings_does_not_matter():
    rows = torch.cat([gaussian(20, 8), gaussian(20, 8) + 0.05 * gaussian(20, 8, seed=1)])
    scaled = rows * torch.linspace(0.01, 100, 40, dtype=torch.float64)[:, None]
    assert 0 < len(semdedup(rows, 0.01).removed) <= 20
    assert torch.equal(semdedup(rows, 0.01).kept, semdedup(scaled, 0.01).kept)


def test_a_row_without_a_direction_is_named():
    with pytest.raises(ValueError, match="row 1"):
        semdedup(torch.tensor([[1.0, 0], [0, 0]]), 0.1)


# --------------------------------------------------------------------------------------------------------------------
# Precision, scale, and data sets with little in them

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def twice(n: int = 100, dimension: int = 256) -> Tensor:
    """`n` vectors that have nothing to do with one another, each twice: (2 n, D), float32."""
    return gaussian(n, dimension).float().repeat(2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-4, 1e-3, 0.05])
def test_copies_are_found_in_every_precision_even_where_1_minus_epsilon_rounds_to_1(dtype: torch.dtype, epsilon: float):
    rows = twice().to(dtype)
    selection = semdedup(rows, epsilon)
    assert len(selection.removed) == 100
    assert (selection.removed % 100).tolist() == (selection.twin % 100).tolist()
    assert duplicates(rows, epsilon).where == {"exact": 100 / 199, "near": 0}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(semdedup(rows, epsilon).kept, selection.kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.3])
def test_half_precision_selects_what_float32_does_on_the_same_values(dtype: torch.dtype, keep: str, epsilon: float):
    rows = torch.cat([gaussian(60, 6), gaussian(60, 6) + 0.1 * gaussian(60, 6, seed=1)]).to(dtype)
    labels = torch.arange(120) % 3
    for one, other in zip(semdedup(rows, epsilon, labels, keep), semdedup(rows.float(), epsilon, labels, keep),
                          strict=True):  # fmt: skip
        assert torch.equal(one, other)
    assert torch.equal(near_groups(rows, epsilon, labels), near_groups(rows.float(), epsilon, labels))
    half, single = (SEMDEDUP.measure(EmbeddedDataset(range(120), z, labels)) for z in (rows, rows.float()))
    assert half == single


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float16, 10_000.0), (torch.float16, 1e-6), (torch.bfloat16, 1e30), (torch.float32, 1e20),
     (torch.float32, 1e-30), (torch.float32, 1e-41), (torch.float64, 1e200), (torch.float64, 1e-200)],
)  # fmt: skip
def test_norms_neither_overflow_nor_vanish(dtype: torch.dtype, scale: float):
    rows = (twice().double() * scale).to(dtype)
    assert len(semdedup(rows, 0.05).removed) == 100
    assert duplicates(rows, 0.05).value == 100 / 199
    mixed = torch.cat([twice().double()[:100], rows[100:].double()]).to(dtype)  # the copies are `scale` times as long
    assert len(semdedup(mixed, 0.05).removed) == 100


@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.bfloat16, 9.5e-7), (torch.float32, 9.5e-7), (torch.float64, 1e-15)]
)
def test_epsilons_that_rounding_hides_are_refused(dtype: torch.dtype, least: float):
    rows = twice(4).to(dtype)
    for call in (semdedup, duplicates):
        with pytest.raises(ValueError, match="epsilon must be 0 or at least") as refusal:
            call(rows, least / 2)
        assert ("float64" in str(refusal.value).rpartition("than that")[2]) == (dtype != torch.float64)
        call(rows, 0.0)
        call(rows, 2 * least)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_equal_bit_for_bit_in_every_dtype(dtype: torch.dtype):
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0], [-0.0, 2.0]], dtype=dtype)
    assert exact_groups(rows).tolist() == [0, 0, 2, 3]
    assert exact_groups(rows[:, 0]).tolist() == [0, 0, 2, 3]
    assert exact_groups(rows[:0]).tolist() == []
    assert exact_groups(rows[:, None, ::2].requires_grad_(True)).tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_data_set_and_a_single_item_lose_nothing(dtype: torch.dtype):
    for n in (0, 1):
        target = EmbeddedDataset(list(range(n)), torch.ones(n, 3, dtype=dtype))
        assert SEMDEDUP.measure(target).value == 0
        with pytest.warns(NoEffectWarning):
            handle = SEMDEDUP.apply(target)
        assert list(handle.target) == list(range(n))
        assert SEMDEDUP.saving(target, None, handle.trace) == -3 * n  # the tile of the only item


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_values_that_are_not_finite_are_named_in_every_dtype(dtype: torch.dtype):
    rows = torch.eye(4, dtype=dtype)
    for bad, says in ((0.0, "row 2"), (torch.nan, "not finite"), (torch.inf, "not finite")):
        wrong = rows.index_fill(0, torch.tensor(2), bad)
        for call in (SEMDEDUP.apply, SEMDEDUP.measure):
            with pytest.raises(ValueError, match=says):
                call(EmbeddedDataset(range(4), wrong))


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(4), torch.zeros(4, dtype=torch.bool), torch.zeros(3, dtype=torch.long), torch.zeros(4, 1).long(),
     torch.zeros(4, dtype=torch.complex64), [0, 0, 0, 0]],
    ids=["floats", "bools", "too few", "a column", "complex", "a list"],
)  # fmt: skip
def test_labels_that_are_not_one_integer_an_item_are_named(labels: Tensor):
    for call in (SEMDEDUP.apply, SEMDEDUP.measure):
        with pytest.raises((TypeError, ValueError), match="labels must"):
            call(EmbeddedDataset(range(4), torch.eye(4), labels))


def test_labels_of_any_integer_dtype_make_the_same_clusters():
    rows = twice(8)
    expected = semdedup(rows, 0.05, torch.arange(16) % 2 - 1)
    assert len(expected.removed) == 8
    for dtype in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(semdedup(rows, 0.05, (torch.arange(16) % 2 - 1).to(dtype)).kept, expected.kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-30])
def test_centroids_of_any_dtype_and_scale_order_a_cluster_alike(dtype: torch.dtype, scale: float):
    rows, labels = gaussian(60, 6).float(), torch.arange(60) % 2
    rows = torch.cat([rows, rows + 0.05 * gaussian(60, 6, seed=1).float()])
    centroids = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]])
    expected = semdedup(rows, 0.05, labels.repeat(2), centroids=centroids)
    assert len(expected.removed) > 0
    if dtype != torch.float16 or scale == 1:
        scaled = (centroids * scale).to(dtype)
        assert torch.equal(semdedup(rows, 0.05, labels.repeat(2), centroids=scaled).kept, expected.kept)


def test_embeddings_that_require_grad_leave_no_graph():
    rows = twice(8).requires_grad_(True)
    selection = semdedup(rows, 0.05)
    assert len(selection.removed) == 8
    assert not selection.similarity.requires_grad
    assert duplicates(rows, 0.05).value == 8 / 15


@pytest.mark.parametrize("embeddings", [torch.tensor(1.0), torch.ones(3, 0), [[1.0], [1.0], [1.0]]])
def test_embeddings_that_are_no_matrix_of_values_are_named(embeddings: Tensor):
    with pytest.raises((TypeError, ValueError), match="embeddings must"):
        SEMDEDUP.apply(range(3), embeddings=embeddings)


def test_knobs_are_checked_without_the_class_too():
    for knobs in ({"epsilon": 1.5}, {"epsilon": 0.1, "keep": "best"}, {"epsilon": 0.1, "block": 0}):
        with pytest.raises(ValueError, match=list(knobs)[-1]):
            semdedup(torch.eye(3), **knobs)


def test_the_subset_keeps_items_and_their_order():
    words = ["a", "b", "a2", "c"]
    rows = torch.eye(3)[[0, 1, 0, 2]]
    handle = SEMDEDUP.apply(words, embeddings=rows, epsilon=0.01)
    assert list(handle.target) == ["a", "b", "c"]
    assert handle.trace["twin"].tolist() == [0]
    with pytest.warns(NoEffectWarning, match="no two items"):
        SEMDEDUP.apply(words[:2], embeddings=rows[:2], epsilon=0.01)


# --------------------------------------------------------------------------------------------------------------------
# Clusters, and planted duplicates


def test_planted_changes_change_what_they_say():
    text = "One two three four five. Six seven eight! Nine ten eleven twelve thirteen? Fourteen fifteen."
    changed = {kind: change(text, Random(0)) for kind, change in KINDS.items()}
    words = text.split()
    assert changed["exact copy"] == text
    assert normalised(changed["capital letters"]) == normalised(text)
    assert changed["footer added"] == f"{text} {FOOTER}"
    assert changed["one sentence less"] in {
        " ".join(kept) for kept in (words[5:], words[:5] + words[8:], words[:8] + words[13:], words[:13])
    }
    assert len(changed["a tenth of the words less"].split()) == len(words) - 1
    assert [word for word in changed["quoted in a reply"].split() if word != ">"][2:] == words


def test_originals_share_few_shingles_and_are_long_enough():
    def sentences(words: str, seed: int) -> str:
        shuffled = Random(seed).sample(words.split(), 48)
        return ". ".join(" ".join(shuffled[i : i + 12]) for i in range(0, 48, 12)) + ". "

    vocabulary = " ".join(f"word{i}" for i in range(400))
    texts = [sentences(vocabulary, seed) for seed in range(6)]
    near_copy = texts[2].replace("word1", "other", 1)
    every = [*texts, near_copy, "Too short. For this. Really."]
    chosen = distinct(every, 100)
    assert chosen == [texts[0], texts[1], texts[3], texts[4], texts[5]]
    assert distinct(every, 2) == chosen[:2]


def test_a_rate_of_duplicates_is_planted_and_a_lower_rate_plants_the_first_of_them():
    originals = [f"One two {i}. Three four five. Six seven." for i in range(12)]
    few, many = plant(originals, 0.2), plant(originals, 0.4)
    assert (len(few.texts), len(many.texts)) == (15, 20)
    assert many.texts[:15] == few.texts
    assert len(set(many.original.tolist())) == 8
    assert many.texts[12] == originals[many.original[0]]  # the first kind is an exact copy
    with pytest.raises(ValueError, match="rate"):
        plant(originals, 0.6)


def test_a_planted_duplicate_is_found_when_one_item_stands_for_both():
    z = torch.eye(4)[[0, 1, 2, 0, 3]]  # items 3 and 4 are planted for originals 0 and 1
    planted = Planted([""] * 5, 3, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long))
    assert planted.found(representatives(semdedup(z, 0.05))).tolist() == [True, False]


def test_k_means_parts_what_lies_apart_and_counts_its_distances():
    centres = torch.eye(4)[:3]
    z = unit(centres.repeat_interleave(100, 0) + 0.01 * gaussian(300, 4).float())
    labels, macs = k_means(z, seed=0)
    assert sorted(torch.bincount(labels).tolist()) == [100, 100, 100]
    assert macs % (3 * z.numel()) == 0


def test_the_nearest_other_item_is_never_the_item_itself():
    rows = with_near_copies(6, 1, cosine=0.91)
    for block in (5, 1024):
        torch.testing.assert_close(measure.nearest_other(rows, block), torch.full((12,), 0.91, dtype=torch.float64))
