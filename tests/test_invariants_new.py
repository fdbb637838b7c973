"""Invariants of drafts, tried on their formulas: what an entry states holds, and a sentence that tempts does not.

One function per draft, named after it. Its docstring is the tempting sentence; the last assertions of the function are
the counterexample. No implementation is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tools.knowledge import load

ROOT = Path(__file__).parents[1]
Array = npt.NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def attend(q: Array, k: Array, v: Array, allowed: npt.NDArray[np.bool_] | None = None) -> Array:
    z = q @ k.T if allowed is None else np.where(allowed, q @ k.T, -np.inf)
    return np.asarray(softmax(z) @ v)


def causal(n: int) -> npt.NDArray[np.bool_]:
    return np.asarray(np.tri(n, dtype=bool))


def rotation(position: float, d: int = 4) -> Array:
    """The rotary matrix of a position, for pairs of channels."""
    full = np.zeros((d, d))
    for pair in range(d // 2):
        a = position / 10 ** (pair / 2)
        full[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = [
            [math.cos(a), -math.sin(a)],
            [math.sin(a), math.cos(a)],
        ]
    return full


def same(a: npt.ArrayLike, b: npt.ArrayLike) -> bool:
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-9))


# --- attention and its cache


def test_trained_block_sparse_attention() -> None:
    """The mean key of a block bounds the scores of its keys, and all blocks chosen give full attention in any form."""
    r, n, size = rng(), 12, 3
    q, k, v = r.normal(size=(3, n, 4))
    means = k.reshape(n // size, size, 4).mean(1)
    assert same(q @ means.T, (q @ k.T).reshape(n, n // size, size).mean(2))
    blocks = np.arange(n) // size
    chosen = causal(n) & (blocks[None] <= blocks[:, None])
    assert same(attend(q, k, v, chosen), attend(q, k, v, causal(n)))
    later = k.copy()
    later[-1] += 5
    assert same(attend(q, later, v, chosen)[:-1], attend(q, k, v, chosen)[:-1])

    assert ((q @ k.T).reshape(n, -1, size).max(2) > q @ means.T).any()
    full = attend(q, k, v, causal(n))
    window = attend(q, k, v, causal(n) & ~np.tri(n, k=-3, dtype=bool))
    assert same(1.0 * full + 0.0 * window, full)
    assert not same(0.7 * full + 0.3 * window, full)


def test_sparse_prefill_attention() -> None:
    """A threshold on the estimated share is a bound of the share of attention that is kept."""
    r, size, stride, n = rng(1), 8, 4, 32
    i, j = np.indices((size, size))
    sampled = (i + j) % stride == stride - 1
    assert (sampled.sum(0) == size // stride).all()
    assert (sampled.sum(1) == size // stride).all()

    q, k, v = r.normal(size=(3, n, 4))
    q *= 2
    weights = softmax(np.where(causal(n), q @ k.T, -np.inf))
    last, blocks = weights[-1], np.arange(n) // size
    keep = (blocks == 0) | (blocks == blocks[-1])
    m = last[keep].sum()
    sparse, left_out = last[keep] @ v[keep] / m, last[~keep] @ v[~keep] / (1 - m)
    assert same(last @ v - sparse, (1 - m) * (left_out - sparse))

    mass = np.exp(np.where(causal(n), q @ k.T, -np.inf)).reshape(n // size, size, n // size, size).transpose(0, 2, 1, 3)
    estimate = np.where(sampled, mass, 0).sum((2, 3))[-1]
    order = np.argsort(-estimate)
    shares = np.cumsum(estimate[order]) / estimate.sum()
    chosen = order[: int(np.searchsorted(shares, 0.8)) + 1]
    kept = weights[-size:][:, np.isin(blocks, chosen)].sum(1)
    assert kept.min() < 0.8


def test_cross_layer_kv_sharing() -> None:
    """The mean of two states keeps their lengths."""
    r = rng(2)
    a, b = r.normal(size=(2, 6))
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    e, f = a / lengths[0], b / lengths[1]

    def merged(e: Array, f: Array, t: float = 0.5) -> Array:
        angle = np.arccos(e @ f)
        return np.asarray((np.sin((1 - t) * angle) * e + np.sin(t * angle) * f) / np.sin(angle))

    middle = merged(e, f)
    assert same(np.linalg.norm(middle), 1)
    assert same(middle @ e, middle @ f)
    assert same(np.linalg.norm(lengths[0] * middle), lengths[0])
    turn = np.kron(np.eye(3), rotation(2.0, 2))
    assert same(turn @ middle, merged(turn @ e, turn @ f))

    assert same(np.linalg.norm((e + f) / 2), np.cos(np.arccos(e @ f) / 2))
    assert np.linalg.norm((e + f) / 2) < 0.95


def test_diffusion_language_kv_reuse() -> None:
    """Keys and values of tokens that were decoded long ago do not change any more."""
    r = rng(3)
    x, n = r.normal(size=(5, 4)), 5
    wq, wk, wv = r.normal(size=(3, 4, 4)) / 2

    def second_layer_keys(x: Array, allowed: npt.NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
        first = x @ wk
        h = x + attend(x @ wq, first, x @ wv, allowed)
        return first, h @ wk

    decoded = x.copy()
    decoded[-1] = r.normal(size=4)
    (first, second), (first_now, second_now) = second_layer_keys(x), second_layer_keys(decoded)
    assert same(first[:-1], first_now[:-1])
    assert same(second_layer_keys(x, causal(n))[1][:-1], second_layer_keys(decoded, causal(n))[1][:-1])

    assert not np.isclose(second[:-1], second_now[:-1]).all(1).any()


def test_saliency_aware_cache_quantisation() -> None:
    """Even attention over all visible tokens gives every token the same salience."""
    n = 8
    seen = n - np.arange(n)
    weights = np.where(causal(n), np.linspace(0.01, 0.1, n)[None], 0)
    assert same(weights.sum(0) / seen, np.linspace(0.01, 0.1, n))
    assert not same(weights.sum(0), np.linspace(0.01, 0.1, n))
    values = rng(4).normal(size=(n, 16))
    step = (values.max(1) - values.min(1)) / (2**4 - 1)
    codes = np.round((values - values.min(1)[:, None]) / step[:, None])
    restored = codes * step[:, None] + values.min(1)[:, None]
    assert (np.abs(restored - values).max(1) <= step / 2 + 1e-12).all()

    even = softmax(np.where(causal(n), 0.0, -np.inf))
    salience = even.sum(0) / seen
    assert salience[0] > 2 * salience[-1]


def test_head_wise_cache_budgets() -> None:
    """Every head keeps at least the attention that it would keep with equal budgets."""
    a = softmax(np.stack([rng(5).normal(size=12) * 4, rng(6).normal(size=12) * 0.2, rng(7).normal(size=12)]))
    budget = 4
    pooled = np.sort(a.ravel())[::-1][budget * len(a) - 1]
    adaptive = np.where(a >= pooled, a, 0)
    equal = np.sort(a, 1)[:, ::-1][:, :budget]
    assert (adaptive > 0).sum() == budget * len(a)
    assert adaptive.sum() > equal.sum()
    same_heads = np.repeat(a[:1], 3, 0)
    cut = np.sort(same_heads.ravel())[::-1][budget * 3 - 1]
    assert ((same_heads >= cut).sum(1) == budget).all()

    assert (adaptive.sum(1) < equal.sum(1)).any()


def test_reconstruction_based_eviction() -> None:
    """A pair with a score below a bound moves no later output by more than the bound allows."""
    r = rng(8)
    k, v, repeated = r.normal(size=(10, 4)), r.normal(size=(10, 4)), r.normal(size=(20, 4))
    repeated -= np.outer(repeated @ k[0], k[0]) / (k[0] @ k[0]) + 3 * k[0]
    score = softmax(repeated @ k.T).max(0)
    order = np.argsort(-score)
    assert set(order[:3]) <= set(order[:7])
    assert order[-1] == 0
    assert score[0] < 1e-3

    question = 3 * k[0]
    evicted = np.arange(10) != 0
    weight = softmax(question @ k.T)[0]
    change = attend(question[None], k[evicted], v[evicted]) - attend(question[None], k, v)
    assert weight > 0.9
    assert np.abs(change).max() > 0.1


def test_streaming_video_cache() -> None:
    """To drop one of two equal tokens changes no output."""
    cap, target, n = 12, 6, 4
    cache = most = 0
    for _ in range(50):
        for _ in range(n):
            cache += 1
            most = max(most, cache)
            if cache == cap:
                cache = target
    assert most == cap
    r = rng(9)
    q, k, v = r.normal(size=(1, 4)), r.normal(size=(5, 4)), r.normal(size=(5, 4))
    k[4], v[4] = k[3], v[3]
    full, z = attend(q, k, v), (q @ k[:4].T)[0]
    z[3] += math.log(2)
    assert same(softmax(z) @ v[:4], full[0])

    assert not same(attend(q, k[:4], v[:4]), full)


def test_low_bit_attention() -> None:
    """The mean may be taken out of queries or values just as it is out of keys."""
    r, d = rng(10), 8
    q, k, v = r.normal(size=(5, d)), r.normal(size=(7, d)) + 6, r.normal(size=(7, d))
    assert same(attend(q, k - k.mean(0), v), attend(q, k, v))
    centred = k - k.mean(0)
    dq, dk = np.abs(q).max() / 127, np.abs(centred).max() / 127
    assert dk < np.abs(k).max() / 127 / 2
    off = np.abs(dq * np.round(q / dq) @ (dk * np.round(centred / dk)).T - q @ centred.T)
    bound = dq / 2 * np.abs(centred).sum(1)[None] + dk / 2 * np.abs(q).sum(1)[:, None] + d * dq * dk / 4
    assert (off <= bound).all()
    noise = r.uniform(-0.1, 0.1, size=7)
    ratio = softmax((q @ k.T)[0] + noise) / softmax((q @ k.T)[0])
    assert (np.abs(np.log(ratio)) <= 0.2).all()

    assert not same(attend(q - q.mean(0), k, v), attend(q, k, v))
    assert not same(attend(q, k, v - v.mean(0)), attend(q, k, v))


def test_attention_map_reuse() -> None:
    """Layers with equal query and key weights can share attention exactly."""
    r = rng(11)
    x, y = r.normal(size=(2, 6, 4))
    wq, wk, wv = r.normal(size=(3, 4, 4))
    weights = softmax(x @ wq @ (x @ wk).T)
    assert same(weights.sum(1), 1)
    reused = weights @ (y @ wv)
    assert same(weights @ ((2 * y + x) @ wv), 2 * reused + weights @ (x @ wv))
    assert same(weights @ (x @ wv), attend(x @ wq, x @ wk, x @ wv))

    h = x + weights @ (x @ wv)
    assert not same(weights @ (h @ wv), attend(h @ wq, h @ wk, h @ wv))


def test_latent_key_value_attention() -> None:
    """The mapping of queries into the latent space works with rotary positions on the latent keys too."""
    r, heads, d, d_c = rng(12), 3, 4, 3
    c, up = r.normal(size=(6, d_c)), r.normal(size=(heads, d, d_c))
    q = r.normal(size=(heads, d))
    keys = np.einsum("hdc,tc->thd", up, c)
    assert same(np.einsum("hd,thd->ht", q, keys), np.einsum("hdc,hd->hc", up, q) @ c.T)
    assert np.linalg.matrix_rank(keys.reshape(6, -1)) <= d_c

    def mapped(query_at: float, key_at: float) -> Array:
        return np.asarray((rotation(query_at) @ q[0]) @ rotation(key_at) @ up[0])

    assert same(mapped(5, 2), (rotation(3) @ q[0]) @ up[0])

    assert not same(mapped(5, 2), mapped(5, 4))


def test_position_independent_cache_reuse() -> None:
    """Equal text has equal keys and values in every layer, once they are rotated to their place."""
    r = rng(13)
    before, text = r.normal(size=(3, 4)), r.normal(size=(4, 4))
    wq, wk, wv = r.normal(size=(3, 4, 4)) / 2

    def layers(x: Array, start: int) -> tuple[Array, Array]:
        turns = np.stack([rotation(start + t) for t in range(len(x))])
        k = np.einsum("tij,tj->ti", turns, x @ wk)
        q = np.einsum("tij,tj->ti", turns, x @ wq)
        h = x + attend(q, k, x @ wv, causal(len(x)))
        return k, np.einsum("tij,tj->ti", turns, h @ wk)

    alone, together = layers(text, 0), layers(np.concatenate([before, text]), 0)
    assert same(alone[0] @ rotation(3).T, together[0][3:])
    assert same(layers(np.concatenate([text, before]), 0)[1][:4], alone[1])

    assert not same(alone[1] @ rotation(3).T, together[1][3:])


# --- trajectories


def spent(confidences: Sequence[float], thoughts: Sequence[int], trial: int, threshold: float) -> tuple[int, int]:
    """Index of the exit (the number of points if none) and tokens spent: thoughts, trials and an answer at the end."""
    tokens = 0
    for index, (confidence, length) in enumerate(zip(confidences, thoughts, strict=False)):
        tokens += length + trial
        if confidence > threshold:
            return index, tokens
    return len(confidences), tokens + thoughts[-1] + trial


def test_reasoning_early_exit() -> None:
    """The model never writes more tokens with early exit than without."""
    confidences, thoughts = (0.4, 0.9, 0.6), (50, 40, 30, 20)
    exits = [spent(confidences, thoughts, 5, t)[0] for t in np.linspace(0, 1, 21)]
    assert exits == sorted(exits)
    assert exits[0] == 0
    assert exits[-1] == len(confidences)
    assert spent(confidences, thoughts, 5, 0.8) == (1, 50 + 40 + 2 * 5)
    p = np.array([0.9, 0.5, 0.8])
    assert p.min() <= p.prod() ** (1 / 3) <= p.max()

    assert spent(confidences, thoughts, 5, 1)[1] > sum(thoughts) + 5


def test_adaptive_self_consistency() -> None:
    """A rule at 95 % gives another answer than the full budget in at most 5 % of the questions."""

    def stays(a: int, b: int) -> float:
        """P(x > 1/2) for Beta(a + 1, b + 1): the binomial tail."""
        n = a + b + 1
        return float(sum(Fraction(math.comb(n, i), 2**n) for i in range(a + 1)))

    assert stays(3, 3) == 0.5
    assert stays(5, 0) == 1 - 2**-6
    budget, chance = 41, 0.52
    table = {(a, b): stays(max(a, b), min(a, b)) for a in range(budget + 1) for b in range(budget + 1 - a)}

    def run(stop: Callable[[int, int], bool]) -> float:
        """The probability that the rule names another answer than the majority of the budget."""
        alive, differ = {(0, 0): 1.0}, 0.0
        for n in range(budget):
            following: dict[tuple[int, int], float] = {}
            for (a, b), weight in alive.items():
                if n and stop(a, b):
                    left = budget - n
                    need = budget // 2 + 1 - a
                    wins = sum(
                        math.comb(left, i) * chance**i * (1 - chance) ** (left - i)
                        for i in range(max(0, need), left + 1)
                    )
                    differ += weight * ((1 - wins) if a > b else wins)
                else:
                    following[a + 1, b] = following.get((a + 1, b), 0) + weight * chance
                    following[a, b + 1] = following.get((a, b + 1), 0) + weight * (1 - chance)
            alive = following
        return differ

    assert run(lambda a, b: abs(a - b) > budget - a - b) < 1e-9

    assert run(lambda a, b: table[a, b] > 0.95) > 0.05


def test_few_step_sampling() -> None:
    """The state at a time does not depend on the times that were visited before."""
    times = np.linspace(0.98, 0.0, 65)
    bar = np.cos(times * np.pi / 2) ** 2

    def sample(points: Array, start: float, every: int) -> float:
        x, visited = start, [*range(0, 64, every), 64]
        for t, s in pairwise(visited):
            likely = softmax(-((x - np.sqrt(bar[t]) * points) ** 2) / (2 * (1 - bar[t])))
            clean = likely @ points
            noise = (x - np.sqrt(bar[t]) * clean) / np.sqrt(1 - bar[t])
            x = float(np.sqrt(bar[s]) * clean + np.sqrt(1 - bar[s]) * noise)
        return x

    one, two = np.array([0.7]), np.array([-1.0, 1.0])
    assert all(same(sample(one, start, every), 0.7) for start in (-1.0, 0.3) for every in (1, 8, 64))
    assert sample(two, 0.1, 4) == sample(two, 0.1, 4)
    fine = sample(two, 0.1, 1)
    off = [abs(sample(two, 0.1, every) - fine) for every in (2, 16, 64)]
    assert off[0] < off[1] < off[2]

    assert off[2] > 0.1


def test_mixed_resolution_sampling() -> None:
    """A noisy image that is averaged to a lower resolution is a noisy image of the same level."""
    noise, f = rng(14).normal(size=(400, 400)), 4
    pooled = noise.reshape(100, f, 100, f).mean((1, 3))
    assert abs(pooled.std() * f - 1) < 0.02
    enlarged = np.kron(noise[:100, :100], np.ones((f, f)))
    assert abs(enlarged.std() - 1) < 0.02
    assert np.corrcoef(enlarged[:, :-1].ravel(), enlarged[:, 1:].ravel())[0, 1] > 0.7

    assert pooled.std() < 0.5


# --- tokens of inputs and batches


def test_padding_removal() -> None:
    """The mean of the losses over the rows of a batch is the same, padded or packed."""
    r = rng(15)
    sequences = [r.normal(size=(n, 4)) for n in (2, 5, 3)]
    w, positions = r.normal(size=(4, 4)), r.normal(size=(5, 4))
    alone = [attend((x + positions[: len(x)]) @ w, x + positions[: len(x)], x) for x in sequences]
    packed = np.concatenate([x + positions[: len(x)] for x in sequences])
    owner = np.repeat(np.arange(3), [len(x) for x in sequences])
    inside = owner[:, None] == owner[None]
    values = np.concatenate(sequences)
    assert same(attend(packed @ w, packed, values, inside), np.concatenate(alone))
    assert not same(attend(packed @ w, packed, values), np.concatenate(alone))
    run_on = values + np.concatenate([positions, positions])[:10]
    assert not same(attend(run_on @ w, run_on, values, inside), np.concatenate(alone))
    losses = [(y**2).sum(1) for y in alone]
    assert same(np.concatenate(losses).sum(), sum(x.sum() for x in losses))

    rows = [np.concatenate(losses[:2]), losses[2]]
    assert not same(np.mean([x.mean() for x in rows]), np.mean([x.mean() for x in losses]))


def test_shared_prefix_training() -> None:
    """Positions may run on from one answer to the next, and a loss on the prompt counts once."""
    torch.manual_seed(0)
    p, lengths = 3, (2, 4)
    prompt, answers = torch.randn(p, 4, dtype=torch.float64), [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
    table = torch.randn(12, 4, dtype=torch.float64)
    w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def layer(x: torch.Tensor, places: Sequence[int], allowed: torch.Tensor) -> torch.Tensor:
        x = x + table[list(places)]
        for _ in range(2):
            x = x + (x @ w @ x.T).masked_fill(~allowed, -torch.inf).softmax(-1) @ x @ w
        return x

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, w, retain_graph=True)[0]

    apart = [
        layer(torch.cat([prompt, a]), range(p + len(a)), torch.ones(p + len(a), p + len(a)).tril().bool())
        for a in answers
    ]
    owner = torch.tensor([-1] * p + [0] * lengths[0] + [1] * lengths[1])
    n = len(owner)
    allowed = torch.ones(n, n).tril().bool() & ((owner[None] == -1) | (owner[None] == owner[:, None]))
    places = [*range(p), *range(p, p + lengths[0]), *range(p, p + lengths[1])]
    packed = torch.cat([prompt, *answers])
    shared = layer(packed, places, allowed)
    assert torch.allclose(shared[p:], torch.cat([x[p:] for x in apart]))
    assert torch.allclose(
        gradient(shared[p:].square().sum()), gradient(torch.cat([x[p:] for x in apart]).square().sum())
    )
    both = gradient(torch.cat(apart).square().sum())
    assert torch.allclose(gradient(shared[p:].square().sum() + 2 * shared[:p].square().sum()), both)

    assert not torch.allclose(gradient(shared.square().sum()), both)
    assert not torch.allclose(layer(packed, range(n), allowed)[p:], shared[p:])


def quadtree(entropy: Sequence[Array], thresholds: Sequence[float]) -> list[tuple[int, int, int]]:
    """Patches as (scale, row, column); `entropy[s]` belongs to scale s, from the coarsest to the finest."""
    kept: list[tuple[int, int, int]] = []
    waiting = [(0, i, j) for i, j in np.ndindex(entropy[0].shape)]
    while waiting:
        s, i, j = waiting.pop()
        if s == len(entropy) - 1 or entropy[s][i, j] < thresholds[s]:
            kept.append((s, i, j))
        else:
            waiting += [(s + 1, 2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)]
    return kept


def test_content_adaptive_patches() -> None:
    """Every patch that is kept is homogeneous."""
    entropy = [rng(16).uniform(size=(2**s, 2**s)) for s in (1, 2, 3)]
    counts = []
    for t in np.linspace(0, 1.01, 30):
        patches = quadtree(entropy, (t, t))
        covered = np.zeros((8, 8), int)
        for s, i, j in patches:
            side = 2 ** (2 - s)
            covered[i * side : (i + 1) * side, j * side : (j + 1) * side] += 1
        assert (covered == 1).all()
        counts.append(len(patches))
        assert all(entropy[s][i, j] < t for s, i, j in patches if s < 2)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 64
    assert counts[-1] == 4

    assert any(entropy[s][i, j] > 0.3 for s, i, j in quadtree(entropy, (0.3, 0.3)))


def test_entropy_byte_patching() -> None:
    """A threshold that is a quantile of the text cuts a prefix as it cuts the text."""
    entropy = np.concatenate([rng(17).uniform(size=40), rng(18).uniform(1, 2, size=40)])

    def borders(h: Array, threshold: float) -> list[int]:
        return [int(i) for i in np.flatnonzero(h > threshold)]

    assert borders(entropy[:40], 0.7) == [b for b in borders(entropy, 0.7) if b < 40]
    assert set(borders(entropy, 0.9)) <= set(borders(entropy, 0.7))
    assert len(borders(entropy, -1.0)) == len(entropy)

    prefix = borders(entropy[:40], float(np.quantile(entropy[:40], 0.7)))
    assert prefix != [b for b in borders(entropy, float(np.quantile(entropy, 0.7))) if b < 40]


# --- activations


def test_thresholded_activation_sparsity() -> None:
    """A batch leaves as many columns unread as one token does."""
    r, batch = rng(19), 4
    x, w = r.normal(size=(batch, 4000)), r.normal(size=(8, 4000))
    t = float(np.quantile(np.abs(x), 0.5))
    small = np.abs(x[0]) <= t
    error = w @ x[0] - w[:, ~small] @ x[0, ~small]
    assert same(error, w[:, small] @ x[0, small])
    assert np.linalg.norm(error) <= t * np.linalg.norm(w[:, small], axis=0).sum()
    gate = x[0]
    assert (np.maximum(gate, 0) == 0).mean() > 0.4
    assert (gate / (1 + np.exp(-gate)) == 0).mean() == 0
    unread = (np.abs(x) <= t).all(0).mean()
    assert abs(unread - 0.5**batch) < 0.02

    assert unread < 0.5 / 2


def test_prototype_lookup_product() -> None:
    """The tree sends every piece to its nearest prototype."""
    prototypes = np.array([[[0.0, 0.0], [1.0, 4.0]], [[-1.0, 2.0], [2.0, 0.0]]])
    splits = prototypes[:, :, 0].mean(1)
    b = rng(20).normal(size=(2, 2, 5))
    table = np.einsum("ckp,cpj->ckj", prototypes, b)

    def codes(row: Array) -> list[int]:
        return [int(row[c, 0] > splits[c]) for c in range(2)]

    exact = np.stack([prototypes[0, 1], prototypes[1, 0]])
    assert same(sum(table[c, k] for c, k in enumerate(codes(exact))), np.einsum("cp,cpj->j", exact, b))
    row = np.array([[0.2, 3.9], [1.9, 0.1]])
    rest = np.stack([row[c] - prototypes[c, k] for c, k in enumerate(codes(row))])
    looked_up = sum(table[c, k] for c, k in enumerate(codes(row)))
    assert same(np.einsum("cp,cpj->j", row, b) - looked_up, np.einsum("cp,cpj->j", rest, b))

    nearest = [int(np.argmin(((prototypes[c] - row[c]) ** 2).sum(1))) for c in range(2)]
    assert codes(row) != nearest


def test_historical_embeddings() -> None:
    """With weights that stand still one sweep over all parts makes the store exact."""
    r, n, depth = rng(21), 12, 3
    neighbours = r.uniform(size=(n, n)) < 0.4
    x, w = r.normal(size=(n, 3)), r.normal(size=(depth, 3, 3))
    exact = [x]
    for layer in range(depth):
        exact.append(np.tanh((exact[-1] + neighbours @ exact[-1] / n) @ w[layer]))

    store = [x, *(np.zeros_like(x) for _ in range(depth))]
    off = []
    for _ in range(depth):
        for part in (range(6), range(6, n)):
            inside = np.isin(np.arange(n), part)
            h = x
            for layer in range(depth):
                seen = np.where(inside[:, None], h, store[layer])
                h = np.tanh((seen + neighbours @ seen / n) @ w[layer])
                store[layer + 1] = np.where(inside[:, None], h, store[layer + 1])
        off.append(max(np.abs(a - b).max() for a, b in zip(store, exact, strict=True)))
    assert off[-1] < 1e-12

    assert off[0] > 1e-3


# --- gradients


def test_selective_token_loss() -> None:
    """A token that is not selected gets no gradient."""
    torch.manual_seed(1)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    w, vocabulary = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    z = (x @ w @ x.T).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf)
    logits = (x + z.softmax(-1) @ x) @ vocabulary
    logits.retain_grad()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3, 4]), reduction="none")
    reference = torch.tensor([0.5, 0.1, 2.0, 0.3], dtype=torch.float64)
    chosen = (loss - reference).topk(2).indices
    assert set(chosen.tolist()) == set((loss - (reference + 7)).topk(2).indices.tolist())
    loss[[1, 3]].mean().backward()
    assert logits.grad is not None
    assert x.grad is not None
    assert (logits.grad[[0, 2]] == 0).all()

    assert x.grad[[0, 2]].abs().max() > 1e-3


def test_softmax_gradient_skipping() -> None:
    """A block that holds the label of a token is never left out."""
    r, threshold = rng(22), 2.0**-12
    z = r.normal(size=(4, 64)) * 3
    label = z.argmax(1)
    z[0, label[0]] += 40
    gradient = softmax(z)
    gradient[np.arange(4), label] -= 1
    assert same(gradient.sum(1), 0)
    blocks = np.abs(gradient).reshape(4, 8, 8).max(2) >= threshold
    kept = np.where(np.repeat(blocks, 8, 1), gradient, 0)
    assert np.abs(kept - gradient).max() < threshold
    holds = blocks[np.arange(4), label // 8]
    assert (softmax(z)[np.arange(4), label][~holds] > 1 - threshold).all()
    assert (np.abs(kept.sum(1)) > 0).any()

    assert not holds.all()


def test_low_rank_gradient_compression() -> None:
    """One power iteration gives the best approximation of its rank."""
    r, rank = rng(23), 2
    workers = r.normal(size=(3, 8, 6))
    mean, start = workers.mean(0), r.normal(size=(6, rank))
    left = np.linalg.qr(np.mean([m @ start for m in workers], 0))[0]
    right = np.mean([m.T @ left for m in workers], 0)
    result = left @ right.T
    assert same(result, left @ left.T @ mean)
    assert same(left.T @ (mean - result), 0)
    assert np.linalg.norm(result) <= np.linalg.norm(mean)
    assert same(np.mean([m - result for m in workers], 0), mean - result)
    thin = r.normal(size=(8, rank)) @ r.normal(size=(rank, 6))
    left = np.linalg.qr(thin @ start)[0]
    assert same(left @ left.T @ thin, thin)

    best = np.sqrt((np.linalg.svd(mean)[1][rank:] ** 2).sum())
    assert np.linalg.norm(mean - result) > 1.01 * best


def adam(gradients: Sequence[Array]) -> Array:
    """The last step of Adam without bias correction."""
    m, v = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    return np.asarray(m / (np.sqrt(v) + 1e-12))


def test_low_rank_gradient_projection() -> None:
    """With all vectors kept, training with Adam is unchanged."""
    gradients = list(rng(24).normal(size=(3, 5, 4)))
    basis = np.linalg.svd(gradients[0])[0]
    assert same(basis @ (basis.T @ gradients[-1]), gradients[-1])
    thin = basis[:, :2]
    step = thin @ adam([thin.T @ g for g in gradients])
    assert same(thin @ thin.T @ step, step)

    assert not same(basis @ adam([basis.T @ g for g in gradients]), adam(gradients))


def test_lazily_aggregated_gradients() -> None:
    """A worker that does not send may as well be left out of the sum."""
    scale, centre = np.array([1.0, 0.5, 0.0]), np.array([2.0, -1.0, 0.0])
    constant = np.array([0.0, 0.0, 0.3])

    def gradient(x: float) -> Array:
        return np.asarray(scale * (x - centre) + constant)

    best = float((scale @ centre - constant.sum()) / scale.sum())
    rate, xi = 0.3, 0.5

    def descend(xi: float, drop: bool = False) -> tuple[float, npt.NDArray[np.int_]]:
        x, previous, last, sent = 0.0, 0.0, gradient(0.0), np.ones(3, int)
        for _ in range(200):
            now = gradient(x)
            limit = np.sqrt(xi) * abs(x - previous) / (rate * 3)
            sends = np.abs(now - last) > limit
            last = np.where(sends, now, last)
            assert abs(last.sum() - now.sum()) <= (~sends).sum() * limit + 1e-12
            sent = sent + sends
            x, previous = x - rate * float((last * sends).sum() if drop else last.sum()), x
        return x, sent

    lazy, sent = descend(xi)
    assert abs(lazy - best) < 1e-6
    assert sent[2] == 1
    assert sent.sum() < descend(0.0)[1].sum()

    assert abs(descend(xi, drop=True)[0] - best) > 1e-2


def test_differential_gradient_compression() -> None:
    """What was sent adds up to the sum of all gradients, as with error feedback."""
    r, n, k = rng(25), 9, 2

    def top(x: Array) -> Array:
        return np.where(np.isin(np.arange(n), np.argsort(-np.abs(x))[:k]), x, 0)

    gradient, estimate, off, sent = r.normal(size=n), np.zeros(n), [], np.zeros(n)
    for _ in range(math.ceil(n / k)):
        off.append(((gradient - estimate) ** 2).sum())
        message = top(gradient - estimate)
        estimate, sent = estimate + message, sent + message
    assert all(b <= (1 - k / n) * a for a, b in pairwise(off))
    assert same(estimate, gradient)
    assert same(sent, estimate)
    residual, fed = np.zeros(n), np.zeros(n)
    for _ in range(5):
        message = top(residual + gradient)
        residual, fed = residual + gradient - message, fed + message
    assert same(fed + residual, 5 * gradient)

    assert not same(sent, math.ceil(n / k) * gradient)


def test_infrequent_synchronisation() -> None:
    """With one local step it is synchronous training, whatever the inner optimiser."""
    r, rate = rng(26), 0.1
    start, targets = r.normal(size=4), 4 * r.normal(size=(3, 4))
    local = [start - rate * (start - t) for t in targets]
    assert same(np.mean(local, 0), start - rate * np.mean([start - t for t in targets], 0))

    def train(target: Array, steps: int) -> Array:
        x = start
        for _ in range(steps):
            x = x - rate * (x - target)
        return x

    assert same(np.mean([train(targets[0], 5) for _ in range(3)], 0), train(targets[0], 5))

    steps = [adam([start - t]) for t in targets]
    assert not same(np.mean(steps, 0), adam([np.mean([start - t for t in targets], 0)]))


# --- data


def test_reward_variance_prompt_selection() -> None:
    """To leave out groups of equal rewards does not change the update."""
    r = rng(27)
    rewards = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], float)
    score = r.normal(size=(4, 4, 5))
    spread = rewards.std(1, keepdims=True)
    advantage = (rewards - rewards.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    groups = np.einsum("gi,gid->gd", advantage, score)
    useful = (spread > 0).ravel()
    assert same(groups[~useful], 0)
    assert same(groups.sum(0), groups[useful].sum(0))
    rate = 0.4
    expected = np.zeros(5)
    for kept in np.ndindex(2, 2, 2, 2):
        chance = np.prod([1 - rate if one else rate for one in kept])
        expected += chance * (np.array(kept)[:, None] * groups / (1 - rate)).sum(0)
    assert same(expected, groups.sum(0))

    assert not same(groups[useful].mean(0), groups.mean(0))


def test_model_based_quality_filtering() -> None:
    """A threshold that keeps a share of the documents keeps that share of the tokens."""
    r = rng(28)
    length = r.integers(10, 1000, size=400)
    score = np.log(length) + r.normal(size=400)
    score[1] = score[0]

    def kept(share: float, s: Array) -> set[int]:
        return {int(i) for i in np.flatnonzero(s >= np.quantile(s, 1 - share, method="lower"))}

    assert kept(0.1, score) <= kept(0.4, score)
    assert kept(0.3, score) == kept(0.3, np.exp(score))
    assert all((0 in kept(s, score)) == (1 in kept(s, score)) for s in np.linspace(0.05, 1, 20))

    chosen = kept(0.2, score)
    assert abs(len(chosen) / 400 - 0.2) < 0.01
    assert length[list(chosen)].sum() / length.sum() > 0.25


def test_domain_reweighting() -> None:
    """A constant added to all losses changes no weight."""
    k, rate, floor = 4, 1.0, 0.05

    def update(weights: Array, excess: Array) -> Array:
        grown = weights * np.exp(rate * np.maximum(excess, 0))
        return np.asarray((1 - floor) * grown / grown.sum() + floor / k)

    uniform, excess = np.full(k, 1 / k), np.array([0.1, 0.4, 0.2, 0.9])
    weights = update(update(uniform, excess), excess)
    assert same(weights.sum(), 1)
    assert weights.min() >= floor / k
    assert same(update(uniform, np.full(k, 0.3)), uniform)
    assert same(update(uniform, excess + 2), update(uniform, excess))

    assert not same(update(uniform, excess - 0.3), update(uniform, excess))


def test_decoupled_dataset_distillation() -> None:
    """Images whose statistics agree with the stored ones have the distribution of the data."""
    r = rng(29)
    data = r.normal(size=(500, 3))
    mean, variance = data.mean(0), data.var(0)

    def loss(x: Array) -> float:
        return float(((x.mean(0) - mean) ** 2).sum() + ((x.var(0) - variance) ** 2).sum())

    assert loss(data) == 0
    batch = r.normal(size=(8, 3))
    assert same(loss(batch[r.permutation(8)]), loss(batch))
    assert same(loss(np.concatenate([batch, batch])), loss(batch))
    running = np.zeros(3)
    for start in range(0, 500, 50):
        running = 0.9 * running + 0.1 * data[start : start + 50].mean(0)
    assert not same(running, mean)

    two_points = np.stack([mean - np.sqrt(variance), mean + np.sqrt(variance)])
    assert loss(two_points) < 1e-12
    fourth = (((two_points - mean) / np.sqrt(variance)) ** 4).mean(), (((data - mean) / np.sqrt(variance)) ** 4).mean()
    assert fourth[0] < 0.5 * fourth[1]


def test_test_time_sample_selection() -> None:
    """With both tests open it is plain entropy minimisation."""
    p = softmax(rng(30).normal(size=(50, 5)) * 2)
    entropy = -(p * np.log(p)).sum(1)

    def weights(limit: float, apart: float) -> Array:
        average, found = np.zeros(5), []
        for one, h in zip(p, entropy, strict=True):
            size = np.linalg.norm(average)
            close = abs(one @ average) / (np.linalg.norm(one) * size) if size else 0.0
            used = h < limit and close < apart
            found.append(math.exp(limit - h) if used else 0.0)
            if used:
                average = 0.9 * average + 0.1 * one if size else one
        return np.array(found)

    assert (weights(0.0, 2.0) == 0).all()
    everything = weights(math.log(5) + 1e-9, 2.0)
    assert (everything > 0).all()
    some = weights(0.4 * math.log(5), 0.9)
    assert 0 < (some > 0).sum() < 50
    assert (some[some > 0] > 1).all()

    assert everything.std() > 0.1


def test_gradient_diverse_rehearsal() -> None:
    """The least sum of cosines is reached by gradients that are orthogonal to each other."""
    g = rng(31).normal(size=(6, 10))
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    assert same((unit @ unit.T).sum(), np.linalg.norm(unit.sum(0)) ** 2)
    scaled = g * rng(32).uniform(0.1, 9, size=(6, 1))
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    assert same(scaled @ scaled.T, unit @ unit.T)
    assert same((unit @ unit[2]).max() + 1, 2)

    def total(x: Array) -> float:
        return float((x @ x.T).sum())

    assert total(np.array([[1.0, 0.0], [-1.0, 0.0]])) == 0
    assert total(np.eye(2)) == 2


def test_frequency_control_by_reward() -> None:
    """A frequency for the mean number of proposals makes every image take the same time."""
    draws = rng(33)
    w, u, v, target = 4.0, 1.0, 0.05, 2.0
    n = draws.integers(0, 60, 500).astype(float)
    first = 4.0  # the frequency of the first stage

    def taken(f: npt.ArrayLike) -> Array:
        return np.asarray(w / first + (u + v * n) / np.asarray(f))

    second = (u + v * n) / (target - w / first)
    assert same(taken(second), target)
    assert same(second.mean(), (u + v * n.mean()) / (target - w / first))
    low, high = 0.5 * second.min(), np.median(second)
    held = taken(second.clip(low, high))
    assert same(held[second <= high], target)
    assert (held[second > high] > target).all()

    one = taken(np.full_like(n, second.mean()))
    assert same(one.std(), v * n.std() / second.mean())
    assert one.std() > 0.1


def test_every_function_is_named_after_a_draft() -> None:
    entries = load(ROOT, check=False).entries
    here = [name for name in globals() if name.startswith("test_") and "function" not in name]
    assert [name for name in here if entries[name.removeprefix("test_").replace("_", "-")].invariant is None] == []
