"""Invariants of drafts, tried on numbers before there is code.

A test has the name of its entry. On the bare formula it shows a case in which a plausible but wrong sentence fails,
most often the one that stood in the entry before, and that the entry's sentence holds there. `redundancy check` asks
that every draft with an invariant either has its test here or says in `invariant_untested` why it cannot have one yet.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from tools.knowledge.paths import ENTRIES, module_name

torch.set_num_threads(1)
Array = npt.NDArray[np.float64]


def test_every_test_belongs_to_an_entry() -> None:
    known = {module_name(file.stem) for file in (Path(__file__).parents[1] / ENTRIES).glob("*.yml")}
    written = re.findall(r"^def test_(\w+)\(", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(written) == len(set(written))
    assert set(written) - known == {"every_test_belongs_to_an_entry"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def equal(a: npt.ArrayLike, b: npt.ArrayLike) -> bool:
    """Whether two arrays are equal up to the rounding of double precision."""
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-9, atol=1e-9)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, seen: npt.ArrayLike = True) -> Array:
    """Softmax attention of queries (n, d) over keys and values (m, d), where `seen` broadcasts to (n, m)."""
    return softmax(np.where(seen, q @ k.T / np.sqrt(k.shape[-1]), -np.inf)) @ v


def causal(n: int) -> npt.NDArray[np.bool_]:
    return np.tri(n, dtype=bool)


def valid(x: Array, w: Array) -> Array:
    return np.correlate(x, w, "valid")


def padded(x: Array, w: Array) -> Array:
    """A convolution (of odd kernel) with zero padding, which keeps the length."""
    return valid(np.pad(x, len(w) // 2), w)


def top(scores: npt.ArrayLike, k: int) -> set[int]:
    """The places of the k largest scores."""
    return set(np.argsort(-np.asarray(scores), kind="stable")[:k].tolist())


def halting(scores: Sequence[float], *, take_rest: bool = True) -> list[float]:
    """Weights of adaptive computation time at epsilon 0.01; the last step takes the remainder, or its own score."""
    weights: list[float] = []
    for n, score in enumerate(scores, start=1):
        stops = sum(weights) + score >= 0.99
        weights.append(1 - sum(weights) if stops or (take_rest and n == len(scores)) else score)
        if stops:
            break
    return weights


def decoder_macs(n: int, d: int, inner: int, heads: int, kv_heads: int) -> int:
    """MACs of a gated decoder layer on n tokens with full attention, matrix by matrix."""
    kv = d * kv_heads // heads
    matrices = [(d, d), (d, kv), (d, kv), (d, d), (d, inner), (d, inner), (inner, d)]
    return n * sum(a * b for a, b in matrices) + 2 * n * n * d


def greedy(gain: Callable[[list[int]], float], items: Iterable[int], budget: int) -> list[int]:
    chosen: list[int] = []
    rest = list(items)
    for _ in range(budget):
        chosen.append(max((i for i in rest if i not in chosen), key=lambda i: gain([*chosen, i])))
    return chosen


# --- images and streams


def test_activation_motion_compensation() -> None:
    frame, w, stride = rng().normal(size=64), rng(1).normal(size=5), 2

    def prefix(x: Array) -> Array:
        return relu(valid(x, w))[::stride]

    for shift, exact in ((4, True), (3, False)):
        moved = np.roll(frame, shift)
        error = min(np.abs(np.roll(frame, m) - moved).sum() for m in range(-4, 5))
        assert (moved != frame).any()
        assert not error > 0, "with a threshold of 0 a changed frame is no key frame if it only moved"
        assert error > -1
        below, above = np.roll(prefix(frame), shift // stride), np.roll(prefix(frame), -(-shift // stride))
        assert equal(((below + above) / 2)[4:-4], prefix(moved)[4:-4]) is exact


def test_channel_wise_temporal_reuse() -> None:
    frames, weights = rng().normal(size=(6, 4)), rng(1).normal(size=(2, 4, 4))

    def network(x: Array) -> Array:
        return relu(weights[1] @ relu(weights[0] @ x))

    stored, outputs = [np.zeros(4), np.zeros(4)], []
    for x in frames:  # every channel is reused: a layer gives what it computed at the last frame
        for n, w in enumerate(weights):
            x, stored[n] = stored[n], relu(w @ x)
        outputs.append(x)
    assert not all(equal(out, network(frames[0])) for out in outputs[1:]), "not the features of the first frame"
    assert equal(outputs[0], np.zeros(4))
    assert equal(outputs[2:], [network(x) for x in frames[:-2]]), "one frame of lag per layer"


def test_clockwork_execution() -> None:
    frames, weights = rng().normal(size=(7, 4)), rng(1).normal(size=(3, 4, 4))

    def network(x: Array) -> Array:
        for w in weights:
            x = relu(w @ x)
        return x

    def run(pipelined: bool) -> list[Array]:
        stored, outputs = [np.zeros(4)] * 3, []
        for x in frames:  # every clock fires at each frame
            inputs = [x, *stored[:-1]]
            for n, w in enumerate(weights):
                stored[n] = relu(w @ (inputs[n] if pipelined or n == 0 else stored[n - 1]))
            outputs.append(stored[-1])
        return outputs

    assert equal(run(pipelined=False), [network(x) for x in frames])
    assert not equal(run(pipelined=True), [network(x) for x in frames])
    assert equal(run(pipelined=True)[2:], [network(x) for x in frames[:-2]])


def test_compressed_domain_recognition() -> None:
    r, n = rng(), 12
    intra, places = r.integers(0, 256, n), np.arange(n)
    vectors, residuals = r.integers(-2, 3, (3, n)), r.integers(-9, 10, (3, n)) * 20

    def agrees(decode: Callable[[Array], Array]) -> bool:
        frame, traced, total = intra, places, np.zeros(n, int)
        for t, d in zip(vectors, residuals, strict=True):
            source = np.clip(places - t, 0, n - 1)
            frame, traced, total = decode(frame[source] + d), traced[source], d + total[source]
        return bool((frame == intra[traced] + total).all())

    assert agrees(lambda x: x)
    assert not agrees(lambda x: np.clip(x, 0, 255)), "a decoder clips, which accumulated residuals do not"


def test_cross_frame_block_reuse() -> None:
    frame, w, stride = rng().normal(size=64), rng(1).normal(size=5), 2

    def layer(x: Array) -> Array:
        return valid(x, w)[::stride]

    for shift, exact in ((stride, True), (1, False)):  # every block is equal, bit for bit, to one that moved
        copied = np.roll(layer(frame), shift // stride)
        assert equal(copied[4:-4], layer(np.roll(frame, shift))[4:-4]) is exact
    halves = np.where(np.arange(64) < 32, np.roll(frame, 2), np.roll(frame, -2))  # blocks moved by different vectors
    copied = np.where(np.arange(30) < 16, np.roll(layer(frame), 1), np.roll(layer(frame), -1))
    assert not equal(copied[4:-4], layer(halves)[4:-4])
    tile, halo, size = 8, 2, 64
    tiles = (size // tile) ** 2
    assert tiles * tile**2 == size**2, "all tiles computed cost what the dense map costs"
    assert tiles * (tile + 2 * halo) ** 2 > size**2


def test_frame_difference_filtering() -> None:
    stream = "ABB"

    def processed(back: int | None) -> list[int]:
        """Frames that are processed with the last processed frame, or the one `back` frames earlier, as reference."""
        done = [0]
        for t in range(1, len(stream)):
            reference = done[-1] if back is None else max(0, t - back)
            if stream[t] != stream[reference]:
                done.append(t)
        return done

    assert processed(back=2) == [0, 1, 2], "the repeated B is processed again"
    assert processed(back=None) == [0, 1]


def test_frame_exiting() -> None:
    def order(frames: int) -> list[int]:
        found = [round((frames - 1) / 2), 0, frames - 1]
        for level in range(2, 8):
            found += [round(n * (frames - 1) / 2**level) for n in range(2**level + 1)]
        return list(dict.fromkeys(found))

    def even(frames: int, k: int) -> bool:
        return len(set(np.diff(sorted(order(frames)[: 2**k + 1])))) == 1

    assert all(even(17, k) for k in (1, 2, 3, 4))
    assert even(10, 1) is False
    assert even(13, 2)
    assert not even(13, 3), "12 is no multiple of 8"
    features = rng().normal(size=(5, 3))
    assert equal(features.max(0), features[[3, 1, 4, 0, 2]].max(0))
    assert not equal(features[-1] + features.max(0), features[2] + features[[3, 1, 4, 0, 2]].max(0))


def test_gated_residual_convolution() -> None:
    frames, w, bias = rng().normal(size=(60, 16)), rng(1).normal(size=3), 0.7

    def run(gates: Sequence[bool], keep_input: bool) -> Array:
        stored, out = frames[0], padded(frames[0], w) + bias
        for x, opened in zip(frames[1:], gates, strict=True):
            out = out + padded(x - stored, w) if opened else out
            stored = stored if keep_input and not opened else x
        return out

    dense = padded(frames[-1], w) + bias
    assert equal(run([True] * 59, keep_input=False), dense)
    once_closed = [t != 30 for t in range(59)]
    assert not equal(run(once_closed, keep_input=False), dense), "what a closed gate left out stays missing"
    assert equal(run(once_closed, keep_input=True), dense)


def test_key_frame_feature_propagation() -> None:
    features, frames, interval = rng().normal(size=12), 10, 4

    def warp(flow: float) -> Array:
        return np.interp(np.arange(12) + flow, np.arange(12), features)

    assert equal(warp(0), features)
    assert equal(warp(2)[:-2], features[2:])
    assert not equal(warp(1.5)[:-2], features[1:-1])
    runs = sum(t % interval == 0 for t in range(frames))
    assert runs == math.ceil(frames / interval) != frames // interval


def test_run_length_tokenization() -> None:
    clip = np.array([[1, 5, 7], [1, 5, 8], [1, 6, 8], [1, 6, 8]])  # time by place

    def runs(tau: float) -> list[list[int]]:
        """Run lengths at each place."""
        found: list[list[int]] = [[1] for _ in clip[0]]
        for before, after in itertools.pairwise(clip):
            for place, repeated in enumerate(abs(after - before) <= tau):
                if repeated:
                    found[place][-1] += 1
                else:
                    found[place].append(1)
        return found

    assert all(sum(lengths) == len(clip) for tau in (-1, 0, 1) for lengths in runs(tau))
    assert runs(0)[0] == [4]
    assert all(lengths == [1] * 4 for lengths in runs(-1))
    tokens = rng().normal(size=(12, 4))
    for one, same in ((np.zeros(4), True), (rng(1).normal(size=4), False)):
        assert equal(tokens + one, tokens) is same, "only a zero embedding of length 1 leaves the transformer's input"
    q, k, v = rng(2).normal(size=(3, 5, 4))
    clips = np.array([0, 0, 1, 1, 1])
    alone = np.concatenate([attention(q[c], k[c], v[c]) for c in (clips == 0, clips == 1)])
    assert equal(attention(q, k, v, clips[:, None] == clips), alone)
    assert not equal(attention(q, k, v), alone)


def test_temporal_shift() -> None:
    frames, w = rng().normal(size=(5, 4)), rng(1).normal(size=(2, 4, 4))
    past, future = slice(0, 1), slice(1, 2)

    def offline(x: Array, look_ahead: bool) -> Array:
        for layer in w:
            moved = x.copy()
            moved[:, past] = np.vstack([np.zeros((1, 1)), x[:-1, past]])
            if look_ahead:
                moved[:, future] = np.vstack([x[1:, future], np.zeros((1, 1))])
            x = relu(moved @ layer)
        return x

    stored, outputs = [np.zeros(1), np.zeros(1)], []
    for x in frames:
        for n, layer in enumerate(w):
            moved = np.concatenate([stored[n], x[1:]])
            stored[n] = x[past]
            x = relu(moved @ layer)
        outputs.append(x)
    assert equal(outputs, offline(frames, look_ahead=False))
    assert not equal(outputs, offline(frames, look_ahead=True))


def test_temporal_token_gating() -> None:
    r, n, d = rng(), 6, 3
    A, V, changed = r.normal(size=(n, n)), r.normal(size=(n, d)), [1, 4]
    A2, V2 = A.copy(), V.copy()
    A2[:, changed] += r.normal(size=(n, 2))
    V2[changed] += r.normal(size=(2, d))
    dA, dV = (A2 - A)[:, changed], (V2 - V)[changed]
    assert equal(A @ V + A2[:, changed] @ dV + dA @ V[changed], A2 @ V2)
    assert not equal(A @ V + A[:, changed] @ dV + dA @ V[changed], A2 @ V2), "old with old loses a product of changes"
    assert not (np.zeros(n) > 0).any(), "on a static clip no token passes even a threshold of 0"


def test_video_token_merging() -> None:
    r = rng()
    frames = r.normal(size=(8, 16, 32)) + 5 * r.normal(size=32)  # independent noise around a common mean

    def static(x: Array, tau: float = 0.8) -> int:
        return int(((unit(x[1:]) * unit(x[:-1])).sum(-1).min(0) > tau).sum())

    assert static(frames) == 16, "raw cosines call every place of noise static"
    assert static(frames - frames.mean((0, 1))) == 0
    assert static(np.repeat(frames[:1], 8, axis=0) - frames.mean((0, 1))) == 16


# --- convolutions


def test_activation_zero_skipping() -> None:
    r = rng()
    x, w, filters = r.integers(0, 4, 20) * r.integers(0, 2, 20), r.integers(-3, 4, (2, 3)), 2
    outputs, products = np.zeros((filters, 18), int), 0
    for place in np.flatnonzero(x):
        for offset in range(3):
            if 0 <= place - offset < 18:
                outputs[:, place - offset] += w[:, offset] * x[place]
                products += filters
    assert (outputs == [valid(x, one) for one in w]).all()
    uses = valid(np.pad(np.ones(18, int), 2), np.ones(3, int))
    assert products == filters * int(uses[x != 0].sum())
    assert products != filters * np.count_nonzero(x), "an activation meets several windows"


def test_block_sparse_convolution() -> None:
    x, w, biases = rng().normal(size=24), rng(1).normal(size=(2, 3)), (0.5, -0.2)
    dense = padded(relu(padded(x, w[0]) + biases[0]), w[1]) + biases[1]

    def tiled(active: Iterable[int], base: Array, zero_outside: bool) -> Array:
        out, spread = base.copy(), np.pad(x, 2)
        for start in active:
            inner = relu(valid(spread[start : start + 12], w[0]) + biases[0])
            if zero_outside:
                places = np.arange(start - 1, start + 9)
                inner = np.where((places >= 0) & (places < 24), inner, 0)
            out[start : start + 8] = valid(inner, w[1]) + biases[1]
        return out

    assert not equal(tiled((0, 8, 16), x, zero_outside=False), dense), "inner layers of the dense unit pad with zeros"
    assert equal(tiled((0, 8, 16), x, zero_outside=True), dense)
    some = tiled((8,), x, zero_outside=True)
    assert equal(some[8:16], dense[8:16])
    assert (some[:8] == x[:8]).all()


def test_channel_gating() -> None:
    r = rng()
    base, rest, w_base, w_rest = r.normal(size=(4, 50))

    def gated(threshold: float, rest: Array) -> tuple[Array, int]:
        opened = w_base * base > threshold
        return np.where(opened, w_base * base + w_rest * rest, w_base * base), int(opened.sum())

    out, opened = gated(-np.inf, rest)
    assert opened == 50
    assert equal(out, w_base * base + w_rest * rest)
    out, opened = gated(0.3, rest)
    assert 0 < opened < 50
    same = out == gated(0.3, rest + 1)[0]
    assert same.sum() == 50 - opened, "exactly the closed positions do not see the rest"


def test_differential_convolution() -> None:
    r = rng()

    def run(x: npt.NDArray[np.int64], w: npt.NDArray[np.int64], stride: int) -> tuple[list[int], int]:
        """Outputs, and how many windows had a difference that is not 0, the first one among them."""
        windows = [x[n : n + len(w)] for n in range(0, len(x) - len(w) + 1, stride)]
        outputs, worked = [int(w @ windows[0])], 1
        for before, after in itertools.pairwise(windows):
            outputs.append(outputs[-1] + int(w @ (after - before)))
            worked += bool((after != before).any())
        return outputs, worked

    x, w = r.integers(-99, 99, 30), r.integers(-9, 9, 5)
    for stride in (1, 2, 3):
        assert run(x, w, stride)[0] == valid(x, w)[::stride].tolist()
    assert run(np.full(30, 7), w, 1)[1] == 1
    assert run(np.pad(np.full(30, 7), 2), w, 1)[1] > 1, "zero padding makes the windows at the border differ"


def test_dynamic_channel_pruning() -> None:
    r = rng()
    maps, gate, bias = r.normal(size=(5, 8)), np.array([1.5, 0, 0.5, 0, 1]), r.uniform(0.1, 1, (5, 1))
    assert (relu(gate[:, None] * (maps + bias))[gate == 0] == 0).all()
    assert not (relu(gate[:, None] * maps + bias)[gate == 0] == 0).all(), "a bias outside the gate survives it"
    kept_in, kept_out = np.array([2, 4, 8]), np.array([2, 4, 8])  # of 8 channels, over three inputs
    assert (kept_in * kept_out).mean() != kept_in.mean() * kept_out.mean(), "densities that vary together"
    assert (np.array([4, 4, 4]) * kept_out).mean() == 4 * kept_out.mean()


def test_early_activation_termination() -> None:
    r = rng()

    def stops(x: Array, w: Array, bias: float, from_positive: bool) -> bool:
        """Whether the sum is given up: at any negative partial sum, or only from the last positive weight on."""
        order = np.argsort(w < 0, kind="stable")
        sums = bias + np.cumsum((w * x)[order])
        start = int((w >= 0).sum()) - 1 if from_positive else 0
        return bool((sums[max(start, 0) :] < 0).any())

    wrong = {True: 0, False: 0}
    for _ in range(500):
        x, w, bias = r.uniform(size=6), r.normal(size=6), -0.3
        for rule in wrong:
            wrong[rule] += stops(x, w, bias, rule) and bias + w @ x > 0
    assert wrong[False] > 0, "with a negative bias an early partial sum may be negative although the output is not"
    assert wrong[True] == 0


def test_effectual_bit_computing() -> None:
    def booth(x: int) -> list[int]:
        bits = [0, *(x >> n & 1 for n in range(9))]
        return [low - high for low, high in itertools.pairwise(bits)]

    def non_adjacent(x: int) -> list[int]:
        digits = []
        while x:
            digits.append(2 - x % 4 if x % 2 else 0)
            x = (x - digits[-1]) // 2
        return digits

    for x in range(256):
        for recode in (booth, non_adjacent):
            assert sum(digit << n for n, digit in enumerate(recode(x))) == x
        assert np.count_nonzero(non_adjacent(x)) <= x.bit_count()
    assert np.count_nonzero(booth(0b1010101)) > (0b1010101).bit_count()
    assert not any(non_adjacent(0))


def test_event_driven_sparse_convolution() -> None:
    w, length = rng().normal(size=3), 10

    def dense(x: Array, active: npt.NDArray[np.bool_]) -> Array:
        return np.where(active, padded(np.where(active, x, 0), w), 0)

    def run(take_off: bool) -> bool:
        r = rng(1)
        x, active, z = np.zeros(length), np.zeros(length, bool), np.zeros(length)
        for _ in range(60):
            site, before = int(r.integers(length)), x.copy()
            x[site], active[site] = (0.0, False) if active[site] else (r.normal(), True)
            for p in range(max(0, site - 1), min(length, site + 2)):
                if active[site] or take_off:
                    z[p] += w[site - p + 1] * (x - before)[site]
            z[site] = padded(x, w)[site] if active[site] else 0  # newly active sites are computed in full
            z = np.where(active, z, 0)
        return equal(z, dense(x, active))

    assert run(take_off=True)
    assert not run(take_off=False), "what an inactive site gave must be taken off its neighbours"


def test_frequency_curriculum_training() -> None:
    size = 16

    def crop(x: Array, b: int) -> tuple[Array, Array]:
        """The cropped signal, and what padding its spectrum with zeros gives back."""
        spectrum, start = np.fft.fftshift(np.fft.fft(x)), size // 2 - b // 2
        cut = spectrum[start : start + b]
        back = np.fft.ifft(np.fft.ifftshift(np.pad(cut, (start, size - start - b))))
        return np.fft.ifft(np.fft.ifftshift(cut)) * b / size, back

    def wave(frequency: int) -> Array:
        return np.cos(2 * np.pi * frequency * np.arange(size) / size + 0.3)

    image = rng().normal(size=size)
    assert equal(crop(image, size)[0], image)
    for b, frequency, whole in ((9, 4, True), (8, 3, True), (8, 4, False)):
        small, back = crop(wave(frequency), b)
        assert equal(back, wave(frequency)) is whole
        assert equal(small.imag, np.zeros(b)) is whole, "an even crop splits the pair of its highest frequency"


def test_frequency_domain_input() -> None:
    n, k = np.meshgrid(np.arange(8), np.arange(8))
    C = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos(np.pi * (2 * n + 1) * k / 16)
    block = rng().normal(size=(8, 8))
    assert equal((C @ block @ C.T) ** 2 @ np.ones(8) @ np.ones(8), (block**2).sum())
    assert equal(C.T @ (C @ block @ C.T) @ C, block)
    x, w, mean, bias = rng(1).normal(size=4) + 3, rng(2).normal(size=4), 3.0, 0.5
    kept = np.array([True, True, False, True])
    dropped = w[kept] @ (x[kept] - mean) + bias
    assert equal(w @ np.where(kept, x - mean, 0) + bias, dropped), "whatever the bias"
    assert not equal(w @ (np.where(kept, x, 0) - mean) + bias, dropped), "zero before normalisation is not zero after"


def test_glance_and_focus() -> None:
    confidence, most = [0.3, 0.9, 0.6, 0.95], 4

    def steps(thresholds: Sequence[float]) -> int:
        return next(t for t in range(1, most + 1) if confidence[t - 1] >= thresholds[t - 1] or t == most)

    assert steps([0.0] * most) == 1
    all_steps = steps([1.1] * most)
    assert all_steps == most
    assert all_steps - 1 != most, "the glance is one of the T steps, so T - 1 crops are left"
    assert all(steps([a] * most) <= steps([b] * most) for a, b in itertools.pairwise(np.linspace(0, 1.1, 12)))


def test_learned_point_downsampling() -> None:
    r, count = rng(), 12
    points, scores, order = r.normal(size=(count, 3)), r.uniform(size=count), r.permutation(count)

    def farthest(points: Array) -> set[int]:
        chosen = [0]
        while len(chosen) < 4:
            chosen.append(int(np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(1).argmax()))
        return set(chosen)

    assert {int(order[n]) for n in top(scores[order], 4)} == top(scores, 4)
    assert {int(order[n]) for n in farthest(points[order])} != farthest(points), "it starts at whichever comes first"
    assert top(scores, count) == set(range(count))


def test_neuron_vector_reuse() -> None:
    r, rows, length, filters, parts = rng(), 64, 12, 5, 3
    X, W = r.normal(size=(rows, length)), r.normal(size=(length, filters))
    X[40:] = X[:24]
    out, bound, multiplied, additions = np.zeros((rows, filters)), np.zeros(rows), 0, 0
    for x, w in zip(np.split(X, parts, 1), np.split(W, parts, 0), strict=True):
        names = [tuple(row > 0) for row in x @ rng(1).normal(size=(4, 3))]
        for name in set(names):
            members = [n for n in range(rows) if names[n] == name]
            centroid = x[members].mean(0)
            out[members] += centroid @ w
            bound[members] += np.linalg.norm(w, 2) * np.linalg.norm(x[members] - centroid, axis=1)
            multiplied += 1
        additions += rows * filters
    error = np.linalg.norm(out - X @ W, axis=1)
    assert (error <= bound + 1e-12).all()
    assert not (error <= bound / 3).all()
    assert equal(out[40:], out[:24])
    assert multiplied < parts * rows
    assert additions == rows * filters * parts == rows * length * filters // 4, "1 / L of the dense MACs, here L = 4"


def test_octave_convolution() -> None:
    r = rng()
    hh, lh, hl, ll = r.normal(size=(4, 3))

    def octave(high: Array, low: Array) -> tuple[Array, Array]:
        up = np.repeat(padded(low, lh), 2)
        return padded(high, hh) + up, padded(low, ll) + padded(high.reshape(-1, 2).mean(1), hl)

    high, low = octave(np.full(16, 2.0), np.full(8, 3.0))
    joined = 2 * hh.sum() + 3 * lh.sum(), 3 * ll.sum() + 2 * hl.sum()
    assert equal(high[2:-2], np.full(12, joined[0]))
    assert not equal(high, np.full(16, joined[0])), "not at the padded border"
    assert equal(low[1:-1], np.full(6, joined[1]))
    a = 0.25
    assert equal((1 - a) ** 2 + a**2 / 4 + 2 * a * (1 - a) / 4, 1 - 0.75 * a * (2 - a))


def test_output_sparsity_prediction() -> None:
    y = rng().normal(size=200)
    lost = []
    for bits in (1, 2, 4, 8, 52):
        predicted = y + rng(1).uniform(-1, 1, 200) * 2.0**-bits
        lost.append(int(((y > 0) & ~(predicted > 0)).sum()))
    assert lost[-1] == 0 < lost[0]
    marked = y + rng(1).uniform(-1, 1, 200) / 2 > 0
    assert (np.where(marked, y, 0) < 0).any(), "a marked output may be negative, so the rectifier is still needed"
    assert equal(np.where(y > 0, y, 0), relu(y)), "with a full-precision predictor it is not"


def test_perforated_convolution() -> None:
    dense = padded(np.ones(12), np.array([1.0, 2.0, 4.0]))

    def perforated(sampled: Sequence[int]) -> Array:
        return np.array([dense[min(sampled, key=lambda s: abs(s - p))] for p in range(12)])

    inner = slice(1, -1)
    assert not equal(perforated([0, 6, 11])[inner], dense[inner]), "interior positions copy from the padded border"
    assert equal(perforated([1, 6, 10])[inner], dense[inner])
    assert equal(perforated(range(12)), dense)


def test_shared_aggregation() -> None:
    neighbours = [{0, 1, 2}, {0, 1, 3}, {0, 1, 2, 3}, {4, 5}]
    h = rng().integers(-9, 9, 8)

    def additions(sets: Sequence[set[int]]) -> int:
        return sum(len(one) - 1 for one in sets)

    pair, times = Counter(p for one in neighbours for p in itertools.combinations(sorted(one), 2)).most_common(1)[0]
    assert (pair, times) == ((0, 1), 3)
    merged = [one - set(pair) | {6} if set(pair) <= one else one for one in neighbours]
    h[6] = h[pair[0]] + h[pair[1]]
    assert [sum(h[list(one)]) for one in merged] == [sum(h[list(one)]) for one in neighbours]
    assert additions(merged) + 1 == additions(neighbours) - (times - 1)
    points, w = rng(1).normal(size=(5, 3)), rng(2).normal(size=(3, 4))
    for bias, exact in ((0.0, True), (0.5, False)):
        delayed = (points @ w + bias).max(0) - (points[0] @ w + bias)
        assert equal(((points - points[0]) @ w + bias).max(0), delayed) is exact


def test_spatially_adaptive_computation_time() -> None:
    weights = halting([0.3, 0.3, 0.9])
    assert equal(sum(weights), 1)
    assert not equal(sum(halting([0.1, 0.1, 0.1], take_rest=False)), 1)
    x, w = rng().normal(size=8), rng(1).normal(size=3)
    active = np.array([1, 1, 0, 0, 1, 1, 0, 1], bool)

    def sparse() -> Array:
        out = x.copy()
        for p in np.flatnonzero(active):
            out[p] = x[p] + w @ np.pad(x, 1)[p : p + 3]
        return out

    def masked(inside: Array) -> Array:
        return np.where(active, x + padded(inside, w), x)

    assert equal(masked(x), sparse())
    assert not equal(masked(x * active), sparse()), "halted neighbours keep their last value, not zero"


def test_spatially_gated_convolution() -> None:
    x, (w1, w3) = rng().normal(size=12), rng(1).normal(size=(2,))
    w2, bias = rng(2).normal(size=3), 0.4
    mask = np.isin(np.arange(12), (3, 4, 8))
    dense = x + mask * (w3 * padded(relu(w1 * x + bias), w2))

    def gathered(first: npt.NDArray[np.bool_]) -> Array:
        hidden = np.zeros(12)
        hidden[first] = relu(w1 * x[first] + bias)
        return np.where(mask, x + w3 * padded(hidden, w2), x)

    assert not equal(gathered(mask), dense)
    assert equal(gathered(np.convolve(mask, np.ones(3), "same") > 0), dense)


def test_submanifold_sparse_convolution() -> None:
    r, w = rng(), rng(1).normal(size=3)
    active = np.sort(r.permutation(20)[:7])
    grid = np.zeros(20)
    grid[active] = r.normal(size=7)
    row = {int(p): n for n, p in enumerate(active)}
    rulebook = [(o, row[p + o], n) for p, n in row.items() for o in (-1, 0, 1) if p + o in row]
    out = np.zeros(7)
    for offset, source, target in rulebook:
        out[target] += w[offset + 1] * grid[active][source]
    assert equal(out, padded(grid, w)[active])
    assert not equal(padded(grid, w), padded(grid, w) * (grid != 0)), "it is not the dense convolution"
    assert len(rulebook) < 3 * 7


def test_weight_repetition_reuse() -> None:
    r = rng()
    w, x = r.integers(-2, 3, 24), r.integers(0, 99, 24)
    levels = [value for value in np.unique(w) if value]
    assert sum(int(value) * int(x[w == value].sum()) for value in levels) == w @ x
    assert len(levels) == 4 < len(np.unique(w)), "zero needs no multiplication"


# --- tokens, attention and caches


def test_attention_sink_cache() -> None:
    r, sinks, window = rng(), 2, 4
    q, k, v = r.normal(size=(3, 12, 5))

    def kept(t: int) -> list[int]:
        """Places in the cache when token t (from 0) attends, itself among them."""
        return [*range(min(sinks, t + 1)), *range(max(sinks, t + 1 - window), t + 1)]

    for t in range(12):
        assert len(kept(t)) == min(t + 1, sinks + window)
        assert kept(t)[: min(sinks, t + 1)] == [*range(min(sinks, t + 1))]
        out = attention(q[t : t + 1], k[kept(t)], v[kept(t)])
        assert equal(out, attention(q[t : t + 1], k[: t + 1], v[: t + 1])) is (t < sinks + window)
        overwritten = np.where(np.isin(np.arange(12), kept(t))[:, None], v, 1e9)
        assert equal(out, attention(q[t : t + 1], k[kept(t)], overwritten[kept(t)]))
    assert kept(11) != [*range(6)], "positions must be those within the cache, not those of the text"


def test_attention_token_pruning() -> None:
    r = rng()
    q, k, v = r.normal(size=(3, 6, 4))
    fused = np.zeros((1, 4))  # the weighted sum of no tokens
    out = attention(q, k, v)
    assert not equal(attention(q, np.vstack([k, fused]), np.vstack([v, fused])), out), "an empty fused token is seen"
    order = np.array([0, 3, 1, 4, 2, 5])
    assert equal(attention(q[order], k[order], v[order])[0], out[0])
    scores, order = softmax(q[:1] @ k[1:].T)[0], r.permutation(5)
    assert {int(order[i]) for i in top(scores[order], 2)} == top(scores, 2)
    tied = np.array([1.0, 1, 0, 0, 0])
    assert {int([1, 0, 2, 3, 4][i]) for i in top(tied[[1, 0, 2, 3, 4]], 1)} != top(tied, 1)
    n, share = 10, 0.7
    assert math.ceil(share * (n - 1)) == 7 != int(share * (n - 1))


def test_clustered_attention() -> None:
    r = rng()
    q, k, v = np.repeat(r.normal(size=(3, 4)), 2, axis=0), r.normal(size=(8, 4)), np.eye(8)
    full = attention(q, k, v)

    def simple(groups: Sequence[int]) -> Array:
        names = np.array(groups)
        return attention(np.array([q[names == name].mean(0) for name in groups]), k, v)

    def improved(groups: Sequence[int], count: int) -> Array:
        rows = simple(groups)
        for row, query in zip(rows, q, strict=True):
            best = sorted(top(row, count))
            row[best] = row[best].sum() * softmax(query @ k[best].T / 2)
        return rows

    equal_queries, joined = [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1]  # the third of three groups stays empty
    assert equal(simple(equal_queries), full)
    assert not equal(simple(joined), full), "as many groups as distinct queries are not enough"
    assert equal(improved([0] * 6, 8), full)
    for count in range(1, 9):
        rows, plain = improved(joined, count), simple(joined)
        assert equal(rows.sum(1), np.ones(6))
        assert (abs(rows - full).sum(1) <= abs(plain - full).sum(1) + 1e-12).all()
    n, d = 64, 8
    exact_part = n * n * d + n * n * d  # with k = N: the scores of all keys, and their values
    assert exact_part == 2 * n * n * d
    assert n * n * d != exact_part, "N k d alone counts one of the two products"


def test_dynamic_token_pooling() -> None:
    r = rng()
    h, ends = r.normal(size=(8, 3)), np.array([0, 0, 1, 0, 1, 0, 0, 1], bool)

    def pooled(h: Array, ends: npt.NDArray[np.bool_], shift: int) -> Array:
        segment = np.concatenate([[0], np.cumsum(ends)[:-1]])
        means = np.array([h[segment == n].mean(0) for n in range(segment.max() + 1)])
        before = segment - shift
        return np.where(before[:, None] >= 0, means[np.maximum(before, 0)], 0) + h

    changed = h.copy()
    changed[4] += 1
    assert equal(pooled(h, ends, 1)[:4], pooled(changed, ends, 1)[:4])
    assert not equal(pooled(h, ends, 0)[:4], pooled(changed, ends, 0)[:4]), "without the shift the past sees the future"
    assert equal(pooled(h, np.ones(8, bool), 1)[1:], h[:-1] + h[1:])


def test_gist_tokens() -> None:
    r, n, m, later = rng(), 4, 2, 3
    x, weights, places = r.normal(size=(n + m + later, 6)), r.normal(size=(2, 3, 6, 6)), np.arange(n + m + later)
    x = x + np.sin(places[:, None] * np.arange(1, 7))
    masked = causal(n + m + later)
    masked[n + m :, :n] = False

    def run(x: Array, seen: npt.NDArray[np.bool_], gists: Array | None = None) -> tuple[Array, list[Array]]:
        """The outputs, and the states of the gist tokens before each layer; or with these states given."""
        states = []
        for n_layer, (wq, wk, wv) in enumerate(weights):
            if gists is not None:
                x = np.vstack([x[:n], gists[n_layer], x[n + m :]])
            states.append(x[n : n + m])
            x = x + attention(x @ wq, x @ wk, x @ wv, seen)
        return x[n + m :], states

    out, gists = run(x, masked)
    other = np.vstack([x[:n] + 1, x[n:]])
    assert equal(run(other, masked, np.array(gists))[0], out)
    assert not equal(run(other, causal(len(x)), np.array(gists))[0], run(x, causal(len(x)), np.array(gists))[0])
    served = x[n + m :]
    for (wq, wk, wv), gist in zip(weights, gists, strict=True):
        rows = np.vstack([gist, served])
        served = served + attention(served @ wq, rows @ wk, rows @ wv, causal(m + later)[m:])
    assert equal(served, out)


def test_heavy_hitter_eviction() -> None:
    k, v = np.array([[1.0, 0], [0, 1.0]]), np.array([[1.0], [2.0]])
    now, later = np.array([[1000.0, 0]]), np.array([[0, 1000.0]])
    assert equal(attention(now, k, v), attention(now, k[:1], v[:1]))
    assert not equal(attention(later, k, v), attention(later, k[:1], v[:1])), "a later query may weigh the evicted key"


def test_kv_cache_coding() -> None:
    x = rng().normal(size=(40, 6)).astype(np.float32)
    assert not (x[0] + (x - x[0]) == x).all(), "the difference itself is rounded"
    assert np.allclose(x[0] + (x - x[0]), x, atol=1e-6)
    step = 0.1
    codes = np.round((x - x[0]) / step)
    assert (abs(x[0] + codes * step - x) <= step / 2 + 1e-6).all()
    assert not (abs(x[0] + np.floor((x - x[0]) / step) * step - x) <= step / 2 + 1e-6).all()
    same = np.repeat(x[:1], 9, axis=0)
    assert not np.round((same - same[0]) / step).any()


def test_kv_cache_merging() -> None:
    r = rng()
    q, k, v = r.normal(size=(1, 4)), r.normal(size=(5, 4)), r.normal(size=(5, 3))
    k[1] = k[0]
    weights, rest = softmax(q @ k.T / 2)[0], [1, 2, 3, 4]
    full, evicted = attention(q, k, v)[0], attention(q, k[rest], v[rest])[0]
    assert not equal(full - evicted, weights[0] * v[0]), "the other weights are renormalised"
    assert equal(evicted, (full - weights[0] * v[0]) / (1 - weights[0]))
    added = v.copy()
    added[1] += v[0]
    merged = attention(q, k[rest], added[rest])[0]
    assert not equal(merged, full)
    assert equal(merged, full / (1 - weights[0]))
    mean = v.copy()
    mean[1] = (v[0] + v[1]) / 2
    logits = q @ k[rest].T / 2
    assert not equal(softmax(logits)[0] @ mean[rest], full)
    logits[0, 0] += np.log(2)
    assert equal(softmax(logits)[0] @ mean[rest], full)


def test_kv_cache_quantisation() -> None:
    group = np.linspace(0, 10, 1001)

    scale = 10 / 15
    assert (abs(np.round(group / scale) * scale - group) <= scale / 2 + 1e-12).all()
    rounded = float(np.float16(scale))
    assert not (abs(np.round(group / scale) * rounded - group) <= scale / 2 + 1e-12).all(), "a scale in 16 bits"
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.zeros(4) / 0.0).all(), "a constant group has scale 0"
    assert equal(np.round(np.zeros(4) / 1.0) * 1.0 + 3, np.full(4, 3.0))
    on_grid = 2 + scale * np.arange(16)
    assert equal(np.round((on_grid - 2) / scale) * scale + 2, on_grid)


def test_layer_removal_by_block_influence() -> None:
    x = rng().normal(size=(7, 5))

    def influence(before: Array, after: Array) -> float:
        return 1 - float((unit(before) * unit(after)).sum(-1).mean())

    assert equal(influence(x, x), 0)
    assert equal(influence(x, 3 * x), 0), "influence 0 does not prove that a layer is the identity"
    assert not equal(x, 3 * x)
    y = rng(1).normal(size=(7, 5))
    assert equal(influence(4 * x, y), influence(x, y))
    assert not equal(influence(-4 * x, y), influence(x, y)), "only a positive factor leaves it"
    assert equal(influence(x, -x), 2)


def test_layerwise_token_dropping() -> None:
    r = rng()
    x, weights = r.normal(size=(6, 4)), r.normal(size=(4, 4, 4))

    def run(subsets: Sequence[Sequence[int]]) -> list[Array]:
        """The tokens before each layer; layers 0 and 3 are full."""
        state, seen = x, []
        for w, subset in zip(weights, (range(6), *subsets, range(6)), strict=True):
            seen.append(state)
            rows = list(subset)
            state = state.copy()
            state[rows] += attention(state[rows], state[rows], state[rows] @ w)
        return seen

    once, anew = run([[0, 2, 3]] * 2), run([[0, 2, 3], [1, 4, 5]])
    assert (once[3][[1, 4, 5]] == once[1][[1, 4, 5]]).all()
    assert not (anew[3][[1, 4, 5]] == anew[1][[1, 4, 5]]).all(), "a set that is drawn anew skips no token throughout"
    assert not equal(run([range(6)] * 2)[3], once[3])
    full, k, n, layers = 7, 32, 128, 12  # token dropping: the first 6 of 12 layers and the last see all tokens
    macs = [k * k if 6 <= layer < 11 else n * n for layer in range(layers)]
    assert sum(macs) == full * n * n + (layers - full) * k * k != 2 * n * n + (layers - 2) * k * k


def test_learned_threshold_token_pruning() -> None:
    r = rng()
    x, wk, bias = r.normal(size=(6, 4)), r.normal(size=(4, 4)), r.normal(size=4)
    kept = np.array([1, 1, 0, 1, 0, 1], bool)

    def class_output(x: Array, seen: npt.ArrayLike = True) -> Array:
        return attention(x[:1], x @ wk + bias, x, seen)[0]

    removed = class_output(x[kept])
    assert not equal(class_output(x * kept[:, None]), removed), "a zeroed token stays in the softmax"
    assert equal(class_output(x * kept[:, None], kept), removed)
    scores, threshold = np.array([0.1, 0.3, 0.2]), 0.2
    soft = 1 / (1 + np.exp(-(scores - threshold) / 1e-3))
    assert np.allclose(soft[:2], [0, 1])
    assert soft[2] == 0.5, "a score at the threshold is never decided"


def test_learned_token_pooling() -> None:
    same, maps = np.tile(rng().normal(size=4), (9, 1)), softmax(rng(1).normal(size=(2, 9)))
    assert equal((np.ones(9) @ same) / 9, same[0])
    assert not equal(maps @ same / 9, same[:2]), "maps of a softmax sum to one already"
    assert equal(maps @ same, same[:2])
    x, order = rng(2).normal(size=(9, 4)), rng(3).permutation(9)
    assert equal(maps[:, order] @ x[order], maps @ x)
    assert not equal(maps @ x[order], maps @ x)


def test_learned_token_sparsification() -> None:
    r = rng()
    x, keep = r.normal(size=(6, 4)), np.array([1, 0, 1, 1, 0, 1], bool)
    influence = np.eye(6, dtype=bool) | keep
    gathered = attention(x[keep], x[keep], x[keep])
    assert equal(attention(x, x, x, influence)[keep], gathered)
    zeroed = x * keep[:, None]
    assert not equal(attention(zeroed, zeroed, zeroed)[keep], gathered)
    assert equal(attention(x, x, x, np.eye(6, dtype=bool) | True), attention(x, x, x))


def test_lsh_attention() -> None:
    r = rng()
    q, v = r.normal(size=(8, 4)), r.normal(size=(8, 3))
    k, alone = unit(q), np.arange(8)[:, None] == 0
    others = causal(8) & (~np.eye(8, dtype=bool) | alone)

    def hashed(buckets: npt.NDArray[np.int64]) -> Array:
        out = np.empty((8, 3))
        for i in range(8):
            pairs = [j for j in range(i) if buckets[i] == buckets[j]] or [i]
            out[i] = softmax(q[i] @ k[pairs].T / 2) @ v[pairs]
        return out

    one_bucket = hashed(np.zeros(8, int))
    assert not equal(one_bucket, attention(q, k, v, causal(8))), "no token attends to itself unless it is alone"
    assert equal(one_bucket, attention(q, k, v, others))
    directions = r.normal(size=(3, 4, 2))
    rounds = [np.argmax(np.hstack([k @ d, -k @ d]), 1) for d in directions]
    found = [b[:, None] == b for b in rounds]
    unions = [np.any(found[: n + 1], axis=0).sum() for n in range(3)]
    assert unions == sorted(unions)
    assert unions[0] < 64


def test_mixture_of_depths() -> None:
    x = rng().normal(size=(6, 3))

    def chosen(weights: npt.ArrayLike, capacity: int) -> npt.NDArray[np.bool_]:
        weights, rest = np.asarray(weights), len(x) - capacity
        return weights > (np.sort(weights)[rest - 1] if rest else -np.inf)

    assert chosen(np.ones(6), 6).all()
    distinct = chosen([0.1, 0.5, -0.2, 0.9, 0.3, 0.0], 2)
    assert distinct.sum() == 2
    assert chosen([0.5, 0.5, 0.5, 0.1, 0.2, 0.3], 2).sum() != 2, "equal weights at the border: fewer than C"
    assert (np.where(distinct[:, None], x + 1, x)[~distinct] == x[~distinct]).all()
    d, inner, heads, kv = 576, 1536, 9, 3
    formula = 2 * 32 * d * d * (heads + kv) // heads + 2 * 32 * 32 * d + 3 * 32 * d * inner
    assert decoder_macs(32, d, inner, heads, kv) == formula
    assert 4 * 32 * d * d + 2 * 32 * 32 * d + 2 * 32 * d * inner != formula, "no gate, and as many heads of keys"


def test_observation_window_selection() -> None:
    votes = np.array([9, 1, 1, 6, 6, 6, 1, 5, 1.0])
    pooled = valid(np.pad(votes, 1), np.ones(3) / 3)
    assert top(pooled, 3) == {3, 4, 5}
    assert top(votes, 3) != top(pooled, 3), "a lone vote loses against a cluster"
    prompt, capacity, window = 9, 4, 2
    kept = [*sorted(top(pooled[: prompt - window], capacity - window)), *range(prompt - window, prompt)]
    assert len(kept) == capacity
    assert len(top(pooled[:1], capacity)) < capacity, "a shorter prompt does not fill the cache"


def test_prefix_cache_sharing() -> None:
    r, n, p = rng(), 9, 5
    q, k, v = r.normal(size=(3, n, 4))
    alone = attention(q[p:], k, v, causal(n)[p:])
    assert equal(alone, attention(q, k, v, causal(n))[p:])
    changed = np.vstack([v[:1] + 1, v[1:]])
    assert not equal(attention(q[p:], k, changed, causal(n)[p:]), alone)
    pairs = sum(t + 1 for t in range(p, n))  # queries after the match, each over all keys up to its own
    causal_count, full_count = (lambda m: m * (m + 1) // 2), (lambda m: m * m)
    assert pairs == causal_count(n) - causal_count(p)
    assert (n - p) * n != full_count(n) - full_count(p), "without the causal mask c(n) - c(p) counts too much"
    one, other = "abXY", "cdXY"
    assert one[2:] == other[2:], "tokens of its own do not name a page"
    assert {one[:2], one[:4]}.isdisjoint({other[:2], other[:4]}), "with everything before it they share nothing"


def test_prompt_token_pruning() -> None:
    r = rng()
    x, (wq, wk, wv) = r.normal(size=(6, 4)), r.normal(size=(3, 4, 4))
    first = x + attention(x @ wq, x @ wk, x @ wv, causal(6))
    visible = [0, 2, 4]  # token 3 was pruned after the first layer, and so was 1, which never returned

    def second(rows: Array, token: int, seen: Sequence[int]) -> Array:
        return rows[token] + attention(rows[token : token + 1] @ wq, rows[seen] @ wk, rows[seen] @ wv)[0]

    stored = first[3].copy()
    resumed = second(np.vstack([first[:3], stored, first[4:]]), 3, [0, 2, 3])
    assert equal(resumed, second(first, 3, [j for j in (*visible, 3) if j <= 3]))
    assert not equal(resumed, second(first, 3, [0, 1, 2, 3])), "never pruned, it would have seen token 1 as well"


def test_pruning_merging_hybrid() -> None:
    sizes = np.ones(8)
    sizes[1] += sizes[0]  # token 0 is merged into 1
    after_merging = sizes[1:]
    dropped, kept = after_merging[[0, 3]], np.delete(after_merging, [0, 3])
    assert len(kept) == 8 - 1 - 2
    assert kept.sum() == 8 - dropped.sum() != 8 - len(dropped), "a dropped token may stand for several"


def test_query_aware_page_selection() -> None:
    r = rng()
    q, pages = r.normal(size=4), r.normal(size=(6, 3, 4))
    bounds = np.maximum(q * pages.min(1), q * pages.max(1)).sum(-1)
    assert (bounds >= (pages @ q).max(1)).all()
    assert not ((q * pages.max(1)).sum(-1) >= (pages @ q).max(1)).all(), "the maximum alone is no bound"
    single = pages[:, :1]
    assert equal(np.maximum(q * single.min(1), q * single.max(1)).sum(-1), (single @ q)[:, 0])
    bounds[5] = bounds.min() - 1  # the page being filled
    chosen = {5} | top(bounds[:5], 2)
    assert chosen != top(bounds, 3), "the page being filled comes without a rank"
    assert len(chosen) == 3


def test_split_computing_exits() -> None:
    confidence = np.array([[0.9, 0.2, 0.6], [0.5, 0.7, 0.8]])  # exits by inputs; the first lies on the device

    def answered(threshold: float, split: int) -> list[str]:
        return ["device" if (confidence[:split, n] >= threshold).any() else "server" for n in range(3)]

    assert answered(np.inf, 1) == ["server"] * 3
    shares = [answered(t, 1).count("device") for t in np.linspace(0, 1, 11)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) < len(shares), "the share does not grow with every fall of the threshold"
    assert answered(0.0, 0) == ["server"] * 3, "without an exit on the device nobody answers when the server is away"


def test_token_halting() -> None:
    states = rng().normal(size=(4, 3))  # of the class token after each block

    def output(scores: Sequence[float]) -> Array:
        weights = halting([*scores, 1.0])
        return np.array(weights) @ states[: len(weights)]

    assert not equal(output([0.2, 0.2, 0.2]), states[-1]), "no score reaches one, and yet the output is a mean"
    assert equal(output([0, 0, 0]), states[-1])
    assert equal(sum(halting([0.2, 0.5, 0.6, 1])), 1)
    x, active = rng(1).normal(size=(5, 3)), np.array([1, 0, 1, 1, 0], bool)
    gathered = attention(x[active], x[active], x[active])
    assert equal(attention(x, x, x, active)[active], gathered)
    assert not equal(attention(x * active[:, None], x * active[:, None], x)[active], gathered)


def test_token_level_early_exit() -> None:
    confidence = {"deep": [0.2, 0.95, 0.99], "shallow": [0.2, 0.5, 0.99]}  # of token 2, by what token 1 left
    first = [0.6, 0.9, 0.99]

    def leaves(scores: Sequence[float], threshold: float) -> int:
        return next(n for n, c in enumerate(scores, start=1) if c >= threshold or n == len(scores))

    def second(threshold: float) -> int:
        return leaves(confidence["deep" if leaves(first, threshold) > 1 else "shallow"], threshold)

    thresholds = np.linspace(0, 1, 21)
    for scores in (first, *confidence.values()):
        exits = [leaves(scores, t) for t in thresholds]
        assert exits == sorted(exits)
    exits = [second(t) for t in thresholds]
    assert exits != sorted(exits), "at a lower threshold token 1 leaves earlier, and token 2 then leaves later"


def test_token_wise_feature_caching() -> None:
    interval, steps, r = 4, 13, rng()
    ages, oldest = np.zeros(10, int), 0
    for step in range(steps):
        recomputed = np.arange(10) if step % interval == 0 else r.permutation(10)[:3]
        ages = np.where(np.isin(np.arange(10), recomputed), 0, ages + 1)
        oldest = max(oldest, int(ages.max()))
    assert oldest == interval - 1
    cached = [n for n in range(10) if n not in recomputed]
    assert sorted([*recomputed, *cached]) == [*range(10)]
    only_partial = np.zeros(10, int)
    for _ in range(steps):
        only_partial = np.where(np.isin(np.arange(10), (0, 1, 2)), 0, only_partial + 1)
    assert only_partial.max() >= interval, "without full steps nothing bounds the age"


def test_visual_token_dropping() -> None:
    image, scores = np.array([1, 2, 4, 5, 6]), np.array([0.1, 0.5, 0.3, 0.2, 0.4])
    ranked = [int(image[n]) for n in np.argsort(-scores)[:3]]
    kept = [p for p in range(8) if p not in image or p in ranked]
    assert [p for p in kept if p in image] == sorted(ranked) != ranked, "gathered in their order, not by rank"
    assert {0, 3, 7} <= set(kept)
    n, dropped, layers, cut = 700, 400, 24, 2

    def macs(m: int) -> int:
        return decoder_macs(m, 576, 1536, 9, 3)

    executed = sum(macs(n if layer < cut else n - dropped) for layer in range(layers))
    assert executed == cut * macs(n) + (layers - cut) * macs(n - dropped)
    assert executed != layers * (cut / layers * macs(n) + (1 - cut / layers) * macs(n) * (n - dropped) / n)


def test_word_vector_elimination() -> None:
    masses, tokens = [9.2, 5.1, 6.4, 2.0], 12

    def kept(configuration: Iterable[int]) -> list[int]:
        counts, left = [], tokens
        for wanted in configuration:
            left = min(left, wanted)
            counts.append(left)
        return counts

    learned = [math.ceil(m) for m in masses]
    assert kept(learned) != learned, "learned masses may rise, the number of vectors cannot"
    running = list(itertools.accumulate(learned, min))
    assert kept(running) == running == [10, 6, 6, 2]
    significance = np.array([0.01, 0.5, 0.2, 0.9, 0.3])  # the class vector comes first, with the least attention
    assert 0 not in top(significance, 3)
    assert {0} | {n + 1 for n in top(significance[1:], 2)} == {0, 1, 3}


# --- depth, requests and recurrent steps


def test_adaptive_computation_time() -> None:
    assert not equal(sum(halting([0.2, 0.2, 0.2], take_rest=False)), 1), "the limit ends it before the sum is one"
    assert equal(sum(halting([0.2, 0.2, 0.2])), 1)
    assert halting([1.0, 0.4]) == [1.0]
    low, r = rng(1).uniform(0, 0.3, size=(50, 12)), rng()
    assert all(len(halting(h + r.uniform(0, 0.5, 12))) <= len(halting(h)) for h in low)
    one_up = low[0] * np.where(np.arange(12) == 3, 1.2, 0.5)
    assert len(halting(one_up)) > len(halting(low[0])), "one higher score among lower ones may take more steps"


def test_adaptive_frame_selection() -> None:
    r, frames = rng(), 12
    scores, order = r.uniform(size=frames), r.permutation(frames)

    def covered(scores: Array) -> set[int]:
        def value(s: list[int]) -> float:
            return sum(scores[s]) + 0.3 * min((abs(a - b) for a, b in itertools.combinations(s, 2)), default=0)

        return set(greedy(value, range(frames), 3))

    assert {int(order[i]) for i in top(scores[order], 3)} == top(scores, 3)
    assert {int(order[i]) for i in covered(scores[order])} != covered(scores), "coverage of the time line uses time"
    features = r.normal(size=(frames, 4))
    assert equal(features[sorted(top(scores, frames))].mean(0), features.mean(0))


def test_adaptive_step_caching() -> None:
    def computed(estimates: Array, threshold: float) -> list[int]:
        done, total = [0], 0.0
        for step in range(1, len(estimates)):
            total += estimates[step]
            if total >= threshold or step == len(estimates) - 1:
                done.append(step)
                total = 0.0
        return done

    changes = rng().uniform(0, 0.2, 20)
    fitted = 3 * changes - 0.2  # a fitted polynomial may be negative
    assert len(computed(fitted, 0)) < 20, "a negative estimate is below a threshold of 0"
    clipped = np.maximum(fitted, 0)
    assert computed(clipped, 0) == [*range(20)]
    for estimates in (clipped, fitted, *rng(1).normal(size=(20, 30))):
        counts = [len(computed(estimates, t)) for t in np.linspace(0.01, 2, 41)]
        assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_approximate_diffusion_caching() -> None:
    steps, thresholds = 10, {2: 0.5, 4: 0.7, 8: 0.9}

    def sample(prompt: float, state: float, left: int) -> float:
        for _ in range(left):
            state = 0.8 * state + prompt
        return state

    def skipped(similarity: float, stored: Iterable[int]) -> int:
        return max((k for k in stored if similarity >= thresholds[k]), default=0)

    states = {k: sample(1.0, 3.0, k) for k in thresholds}
    assert skipped(0.4, thresholds) == 0
    assert skipped(1.0, thresholds) == 8
    assert skipped(1.0, {2, 4}) == 4, "a state that was evicted cannot be skipped to"
    k = skipped(1.0, thresholds)
    assert equal(sample(1.0, states[k], steps - k), sample(1.0, 3.0, steps))
    assert not equal(sample(1.2, states[k], steps - k), sample(1.2, 3.0, steps))


def test_contextual_sparsity() -> None:
    r = rng()
    x, w1, w2 = r.normal(size=6), r.normal(size=(20, 6)), r.normal(size=(4, 20))
    for activation, exact in ((relu, True), (lambda z: z / (1 + np.exp(-z)), False)):
        hidden = activation(w1 @ x)
        positive = int((w1 @ x > 0).sum())
        s = sorted(top(abs(hidden), positive))
        assert equal(w2[:, s] @ activation(w1[s] @ x), w2 @ hidden) is exact
        assert len(w1[s]) == len(w2[:, s].T) == positive < 20


def test_cross_step_differential_computing() -> None:
    r = rng()
    inputs, w = np.cumsum(r.normal(size=(6, 5)), axis=0), r.normal(size=(4, 5))
    corrections = [w @ (b - a) for a, b in itertools.pairwise(inputs)]
    assert not equal(sum(corrections), w @ inputs[-1]), "the first output is no correction"
    assert equal(w @ inputs[0] + sum(corrections), w @ inputs[-1])
    a, b = r.normal(size=(2, 200))
    passed = np.where(a > 0, b - a, 0)
    agree = (a > 0) == (b > 0)
    assert equal(passed[agree], (relu(b) - relu(a))[agree])
    assert not equal(passed, relu(b) - relu(a))


def test_diffusion_block_caching() -> None:
    table = rng().integers(0, 2, (8, 5))

    def run(table: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Executed layers, and the age of the oldest value that was used."""
        executed, oldest, stored = 0, 0, np.full(table.shape[1], -1)
        for step, row in enumerate(table):
            stored = np.where(row, step, stored)
            executed += int(row.sum())
            if (stored < 0).any():
                raise LookupError("nothing is stored yet")
            oldest = max(oldest, int((step - stored).max()))
        return executed, oldest

    assert not table[0].all()
    with pytest.raises(LookupError):
        run(table)
    table[0] = 1
    gaps = [len(run) for column in table.T for run in "".join(map(str, column)).split("1")]
    assert run(table) == (int(table.sum()), max(gaps))


def test_diffusion_step_caching() -> None:
    def full(steps: int, interval: int, start: int) -> int:
        return sum((t - start) % interval == 0 for t in range(steps))

    assert all(full(t, n, 0) == math.ceil(t / n) for t in range(1, 30) for n in range(1, 9))
    assert full(10, 4, 3) != math.ceil(10 / 4), "only if the first step is a full one"


def test_feature_forecasting() -> None:
    interval, t, k = 4, 20, 3

    def forecast(feature: Callable[[float], float], order: int, sign: int = 1) -> float:
        values = [feature(t + i * interval) for i in range(3)]
        differences = [values[0], sign * (values[1] - values[0]), values[2] - 2 * values[1] + values[0]]
        return sum(differences[i] / (math.factorial(i) * interval**i) * (-k) ** i for i in range(order + 1))

    def linear(t: float) -> float:
        return 2 * t + 21

    assert forecast(linear, 1) == linear(t - k) == 55
    assert forecast(linear, 1, sign=-1) == 67, "newer minus older has the wrong sign"
    assert forecast(linear, 0) == linear(t)
    assert forecast(lambda t: t * t, 2) != (t - k) ** 2, "differences are no derivatives"


def test_fuzzy_neuron_memoisation() -> None:
    twins = np.array([3.0, 0.0, -2.0])

    def computed(threshold: float, guarded: bool, steps: int = 4) -> list[int]:
        counts, last, total = [3], twins, np.zeros(3)
        for _ in range(steps - 1):  # the input does not change
            with np.errstate(invalid="ignore"):
                change = abs(twins - last) / abs(twins)
            total += np.nan_to_num(change) if guarded else change
            anew = ~(total <= threshold)
            counts.append(int(anew.sum()))
            total = np.where(anew, 0, total)
        return counts

    assert computed(-0.1, guarded=True) == [3] * 4
    assert computed(0.0, guarded=False) == [3, 1, 1, 1], "a twin whose output is 0 has change 0 / 0"
    assert computed(0.0, guarded=True) == [3, 0, 0, 0]


def test_gated_layer_skipping() -> None:
    r = rng()
    x, same, wider = r.normal(size=4), r.normal(size=(4, 4)), r.normal(size=(6, 4))
    last, head = r.normal(size=(6, 6)), r.normal(size=(3, 6))

    def network(gates: Sequence[int]) -> Array:
        y = x + gates[0] * relu(same @ x)
        y = relu(wider @ y)  # changes the shape, so it has no gate
        return head @ (y + gates[1] * relu(last @ y))

    with pytest.raises(ValueError):
        head @ x  # the stem followed by the head
    assert equal(network([0, 0]), head @ relu(wider @ x))
    assert not equal(network([1, 1]), network([0, 0]))


def test_grammar_compressed_sequences() -> None:
    def learn(text: str) -> list[tuple[str, str]]:
        rules, names = [], iter("XYZ")
        while (best := Counter(map("".join, itertools.pairwise(text))).most_common(1)[0])[1] > 1:
            rules.append((next(names), best[0]))
            text = text.replace(best[0], rules[-1][0])
        return rules

    rules = learn("abcabdab")

    def rewrite(text: str) -> str:
        for name, pair in rules:
            text = text.replace(pair, name)
        return text

    def expand(text: str) -> str:
        for name, pair in reversed(rules):
            text = text.replace(name, pair)
        return text

    assert rules[0] == ("X", "ab")
    assert rewrite("xaby") == "xXy", "no pair of it repeats, and yet a learned rule matches"
    assert rewrite("bacd") == "bacd"
    assert all(expand(rewrite(text)) == text for text in ("abcabdab", "xaby", "bacd"))


def test_input_adaptive_bit_width() -> None:
    w = rng().uniform(0, 1, 2000)

    def codes(bits: int, source: Array, cut: Callable[[Array], Array]) -> Array:
        return cut(source * 2**bits)

    assert (codes(4, w, np.floor) == codes(4, codes(8, w, np.floor) / 256, np.floor)).all()
    assert not (codes(4, w, np.round) == codes(4, codes(8, w, np.round) / 256, np.round)).all(), "rounded twice"


def test_input_adaptive_cascade() -> None:
    confidence, costs = rng().uniform(size=(200, 3)), np.array([1, 4, 20])

    def answers(thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
        accepted = confidence >= np.array(thresholds)
        accepted[:, -1] = True
        return accepted.argmax(1)

    assert (answers([2, 2, 2]) == 2).all()
    assert (answers([0, 0, 0]) == 0).all()
    shares = [(answers([t, 0.5, 0]) == 0).mean() for t in np.linspace(1, 0, 6)]
    assert shares == sorted(shares)
    second = [(answers([t, 0.5, 0]) == 1).mean() for t in np.linspace(1, 0, 6)]
    assert second != sorted(second), "the share of a later model falls when an earlier threshold does"
    found = answers([0.8, 0.5, 0])
    reached = [(found >= m).mean() for m in range(3)]
    assert equal(np.cumsum(costs)[found].mean(), costs @ reached)
    assert not equal(costs[found].mean(), costs @ reached), "work of the models asked before counts too"


def test_learned_exit_gate() -> None:
    certainty, correct = np.array([0.3, 0.6, 0.8]), np.array([0.0, 1, 1])

    def exits(threshold: float) -> int:
        return next(n for n in range(3) if certainty[n] >= threshold or n == 2)

    found = [exits(t) for t in np.linspace(1.1, 0, 12)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 2
    assert ((certainty - correct) ** 2).sum() > 0 == ((correct - correct) ** 2).sum()
    target = 1 - np.tanh(abs(np.array([0.1, 1.0]) - np.array([0.4, 1.0])))
    assert not equal(((target - [0, 1]) ** 2).sum(), 0), "for regression it is not the correctness that is met"


def test_learned_text_jumping() -> None:
    text, jumps = "abcdefgh", iter([1, 3, 0])

    def read(jumps: Iterable[int]) -> str:
        seen, place = "", 0
        for jump in jumps:
            seen += text[place]
            place += jump
            if jump == 0 or place >= len(text):
                break
        return seen

    assert read(itertools.repeat(0)) == "a", "jumps of 0 end reading: not every word is seen"
    assert read(itertools.repeat(1)) == text
    seen = read(jumps)
    assert seen == "abe"
    assert len(seen) + sum(letter not in seen for letter in text) == len(text)


def test_multi_scale_anytime_network() -> None:
    samples, exits, q = 400, 4, 0.3
    shares = np.array([(1 - q) ** k * q for k in range(exits)])
    assert shares.sum() < 1, "without the factor z they do not sum to one"
    shares /= shares.sum()
    costs = np.array([1, 2, 4, 8])

    def mean_cost(confidence: Array) -> float:
        left, total = np.arange(samples), 0.0
        for k in range(exits):
            wanted = len(left) if k == exits - 1 else round(shares[k] * samples)
            threshold = -1.0 if wanted >= len(left) else np.sort(confidence[left, k])[::-1][wanted]
            gone = confidence[left, k] > threshold
            total += costs[k] * gone.sum()
            left = left[~gone]
        return total / samples

    assert abs(mean_cost(rng().uniform(size=(samples, exits))) - shares @ costs) <= costs.sum() / samples
    assert abs(mean_cost(np.ones((samples, exits))) - shares @ costs) > costs.sum() / samples, "ties move together"


def test_precision_gating() -> None:
    r = rng()
    x, w = r.integers(0, 256, 50), r.integers(-7, 8, 50)
    high, low = x >> 4, x & 15
    assert 16 * (w @ high) + w @ low == w @ x
    assert w @ high + w @ low != w @ x, "the high bits count at their place value"

    def step(z: float, alpha: float = 5.0, threshold: float = 0.3) -> float:
        return 1 / (1 + math.exp(-alpha * (z - threshold)))

    z, sigma = 0.5, step(0.5)
    slope = (step(z + 1e-6) - step(z - 1e-6)) / 2e-6
    assert np.isclose(slope, 5.0 * sigma * (1 - sigma))
    assert not np.isclose(slope, 5.0 * sigma * (1 - 1 / (1 + math.exp(-(z - 0.3))))), "the same argument in both"


def test_prompt_compression() -> None:
    prompt, protected = ["ask", "the", "cat", "the", "dog", "now"], {0, 5}

    def surprise(word: str, before: Sequence[str]) -> float:
        return 0.0 if word in before else 1.0

    kept: list[int] = []
    for n, word in enumerate(prompt):
        if n in protected or surprise(word, [prompt[i] for i in kept]) > 0:
            kept.append(n)
    assert [prompt[n] for n in kept] == ["ask", "the", "cat", "dog", "now"]
    unconditional = [w for n, w in enumerate(prompt) if surprise(w, prompt[:n] + prompt[n + 1 :]) > 0]
    assert "the" not in unconditional, "scored without what was kept, both copies go"
    assert kept == sorted(kept)
    assert len(protected) > 1, "a budget of one token cannot be met"


def test_quantised_input_reuse() -> None:
    r, w, levels = rng(), rng(1).normal(size=(4, 6)), 0.5
    inputs = np.cumsum(0.2 * r.normal(size=(12, 6)), axis=0)

    def code(x: Array) -> Array:
        return np.round(x / levels) * levels

    exact, drifting, columns = w @ code(inputs[0]), w @ code(inputs[0]), 0
    for before, after in itertools.pairwise(inputs):
        changed = code(after) != code(before)
        exact = exact + w[:, changed] @ (code(after) - code(before))[changed]
        drifting = drifting + w[:, changed] @ (after - before)[changed]
        columns += int(changed.sum())
    assert equal(exact, w @ code(inputs[-1]))
    assert not equal(drifting, w @ code(inputs[-1])), "differences of inputs instead of codes do not add up"
    assert 0 < columns < 11 * 6


def test_recurrent_delta_network() -> None:
    r, threshold = rng(), 0.1
    w, u, inputs = 1.5 * r.normal(size=(6, 6)) / np.sqrt(6), r.normal(size=(6, 3)), r.normal(size=(40, 3))

    def run(threshold: float) -> tuple[Array, float]:
        """The states, and the widest gap between a value and what was sent of it."""
        h, sent_h, sent_x, product, gap, states = np.zeros(6), np.zeros(6), np.zeros(3), np.zeros(6), 0.0, []
        for x in inputs:
            for value, sent, matrix in ((x, sent_x, u), (h, sent_h, w)):
                change = np.where(abs(value - sent) > threshold, value - sent, 0)
                sent += change
                product = product + matrix @ change
                gap = max(gap, abs(value - sent).max())
            h = np.tanh(product)
            states.append(h)
        return np.array(states), gap

    exact = np.zeros((len(inputs) + 1, 6))
    for n, x in enumerate(inputs):
        exact[n + 1] = np.tanh(u @ x + w @ exact[n])
    states, gap = run(threshold)
    assert gap <= threshold
    assert abs(states - exact[1:]).max() > threshold, "the state is fed back, so its error has no such bound"
    assert equal(run(0.0)[0], exact[1:])


def test_recurrent_update_skipping() -> None:
    def gaps(increment: float, steps: int = 60) -> tuple[set[int], float]:
        """Steps between updates, and the highest accumulated probability."""
        u, done, highest = 1.0, [], 0.0
        for step in range(steps):
            highest = max(highest, u)
            if u > 0.5:
                done.append(step)
                u = increment
            else:
                u += min(increment, 1 - u)
        return set(np.diff(done).tolist()), highest

    for increment in (0.1, 0.2, 0.25, 0.3, 0.8):
        assert gaps(increment) == ({math.floor(0.5 / increment + 1e-9) + 1}, 1.0)
    assert gaps(0.25)[0] != {math.ceil(0.5 / 0.25)}, "one half itself is rounded down"
    assert gaps(0.0)[0] == set(), "without an increment there is no further update"


def test_semantic_caching() -> None:
    def runs(stream: str, capacity: int) -> tuple[int, list[bool]]:
        store: list[str] = []
        hits = []
        for request in stream:
            hits.append(request in store)
            if not hits[-1]:
                store = [*store, request][-capacity:]
        return len(stream) - sum(hits), hits

    assert runs("abcd", 9) == (4, [False] * 4)
    assert runs("aba", 9)[1][-1]
    assert not runs("abca", 2)[1][-1], "the first of two identical requests may have been evicted"
    count, hits = runs("aabab", 9)
    assert count == hits.count(False)


# --- training and its data


def test_batch_deduplication() -> None:
    r = rng()
    rows, errors = np.array([3, 1, 3, 3, 2]), r.integers(-9, 9, 5)
    distinct, index = np.unique(rows, return_inverse=True)
    assert (distinct[index] ** 2 == rows**2).all()
    summed, overwritten = np.zeros(3, int), np.zeros(3, int)
    np.add.at(summed, index, errors)
    overwritten[index] = errors
    wanted = [errors[rows == value].sum() for value in distinct]
    assert summed.tolist() == wanted != overwritten.tolist(), "the gradient of a value is the sum over its rows"
    assert len(np.unique(np.arange(5))) == 5


def test_compressed_activation_training() -> None:
    r, step = rng(), 0.5
    x, error = r.uniform(-1, 1, 6), r.normal(size=6)
    low, share = np.floor(x / step), x / step - np.floor(x / step)

    def mean(function: Callable[[Array], float]) -> float:
        """Over all outcomes of rounding up or down, each with its probability."""
        total = 0.0
        for ups in itertools.product((0, 1), repeat=6):
            weight = np.prod(np.where(ups, share, 1 - share))
            total += weight * function((low + ups) * step)
        return total

    assert equal(mean(lambda saved: saved @ error), x @ error)
    assert not equal(np.round(x / step) * step @ error, x @ error), "rounding to the nearest is biased"
    assert not equal(mean(lambda saved: saved**2 @ error), x**2 @ error), "and so is what is not linear in it"
    variance = mean(lambda saved: (saved @ error - x @ error) ** 2)
    assert variance <= (error**2 * step**2 / 4).sum()
    assert max(abs((low + 1) * step - x).max(), abs(low * step - x).max()) < step
    bits, group, values = 2, 256, 1024
    assert (values * bits + values / group * 2 * 16) / (values * 32) == bits / 32 + 2 * 16 / (32 * group)


def test_coverage_centric_selection() -> None:
    def budgets(sizes: Sequence[int], budget: int, smallest_first: bool) -> dict[int, int]:
        order, given = sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=not smallest_first), {}
        for n, stratum in enumerate(order):
            given[stratum] = min(sizes[stratum], (budget - sum(given.values())) // (len(order) - n))
        return given

    r = rng()
    for _ in range(300):
        sizes = r.integers(0, 30, 6).tolist()
        budget = int(r.integers(0, sum(sizes) + 1))
        given = budgets(sizes, budget, smallest_first=True)
        assert sum(given.values()) == budget
        left = [given[n] for n in range(6) if given[n] < sizes[n]]
        assert max(left, default=0) - min(left, default=0) <= 1
    assert sum(budgets([1, 10, 10], 9, smallest_first=False).values()) < 9, "what small strata cannot use is lost"


def test_curriculum_learning() -> None:
    r = rng()
    difficulty = r.permutation(20)
    allowed = [set(np.flatnonzero(difficulty < t)) for t in (5, 9, 20)]
    assert all(a <= b for a, b in itertools.pairwise(allowed))
    losses, thresholds = np.array([[0.2, 0.8], [0.9, 0.5]]), (0.5, 0.6)  # by step and sample
    chosen = [set(np.flatnonzero(row < t)) for row, t in zip(losses, thresholds, strict=True)]
    assert not chosen[0] <= chosen[1], "the threshold rises, and yet sample 0 leaves the set"
    for row, t, one in zip(losses, thresholds, chosen, strict=True):
        best = min(itertools.product((0, 1), repeat=2), key=lambda v: np.dot(v, row) - t * sum(v))
        assert set(np.flatnonzero(best)) == one, "the set of losses below the threshold minimises the objective"


def test_data_echoing() -> None:
    def echoed(factor: int, buffer: int) -> list[int]:
        repeated = [item for item in range(12) for _ in range(factor)]
        r = rng()
        return [int(i) for n in range(0, len(repeated), buffer) for i in r.permutation(repeated[n : n + buffer])]

    assert echoed(1, 1) == [*range(12)]
    assert echoed(1, 6) != [*range(12)], "a shuffle buffer alone changes the sequence"
    assert set(Counter(echoed(3, 6)).values()) == {3}


def test_data_sieving() -> None:
    total, removed, exchanged = 20, 7, 2

    def active_ever(queue: bool) -> int:
        r = rng()
        active, out = list(range(removed, total)), list(range(removed))
        seen = set(active)
        for _ in range(math.ceil(removed / exchanged)):
            back = out[:exchanged] if queue else [int(i) for i in r.choice(out, exchanged, replace=False)]
            gone = [int(i) for i in r.choice(active, exchanged, replace=False)]
            active = [i for i in active if i not in gone] + back
            out = [i for i in out if i not in back] + gone
            seen |= set(active)
            assert len(active) == total - removed
            assert sorted(active + out) == [*range(total)]
        return len(seen)

    assert active_ever(queue=True) == total
    assert active_ever(queue=False) < total, "a random choice may leave one out for long"


def test_dataset_condensation() -> None:
    r = rng()
    x, labels, theta = r.normal(size=(8, 3)), r.integers(0, 2, 8), r.normal(size=(2, 3))

    def gradient(rows: Array, y: npt.NDArray[np.int64]) -> Array:
        return (softmax(rows @ theta.T) - np.eye(2)[y]).T @ rows / len(rows)

    def distance(a: Array, b: Array) -> float:
        return float((1 - (unit(a) * unit(b)).sum(-1)).sum())

    real, synthetic = gradient(x, labels), gradient(x.copy(), labels)
    assert equal(distance(synthetic, real), 0)
    assert distance(synthetic, gradient(x[:4], labels[:4])) > 1e-3, "a drawn batch is not the whole class"
    other = r.normal(size=(2, 3))
    assert equal(distance(5 * real, other), distance(real, other))
    assert not equal(distance(-5 * real, other), distance(real, other))


def test_distribution_matching() -> None:
    x, w = rng().normal(size=(8, 3)), rng(1).normal(size=(3, 5))

    def loss(real: Array, synthetic: Array) -> float:
        return float(((relu(real @ w).mean(0) - relu(synthetic @ w).mean(0)) ** 2).sum())

    assert equal(loss(x, x[::-1]), 0)
    assert equal(loss(x, np.vstack([x, x])), 0)
    assert loss(x[:4], x) > 1e-3, "a drawn batch is not the whole class"
    assert loss(x * [1, -1, 1], x) > 1e-3, "nor is another augmentation the same"


def test_dynamic_data_removal() -> None:
    examples, epochs, removed, after = 30, 10, 4, (3, 6)
    presented, left = 0, examples
    for epoch in range(1, epochs + 1):
        presented += left
        left -= removed * (epoch in after)
    assert left == examples - len(after) * removed
    assert presented == examples * epochs - removed * sum(epochs - e for e in after)
    assert presented != examples * epochs - removed * sum(epochs - e + 1 for e in after)


def test_dynamic_gradient_masking() -> None:
    r, weights, density, masked = rng(), 1000, 0.25, 0.8
    active = r.permutation(weights)[: int(density * weights)]
    importance = r.uniform(size=weights)
    kept = active[np.argsort(-importance[active])[: round((1 - masked) * weights)]]
    assert len(kept) / weights == pytest.approx(1 - masked)
    assert round((1 - masked) * len(active)) / weights == pytest.approx(0.05), "a share of the active ones is 0.05"
    assert set(kept) < set(active)
    mask = np.isin(np.arange(weights), kept)
    for masks_update in (False, True):
        w, velocity = np.ones(weights), np.ones(weights)
        for _ in range(3):
            velocity = 0.9 * velocity + mask * r.normal(size=weights)
            w = w - 0.1 * velocity * (mask if masks_update else 1)
        assert (w[~mask] == 1).all() == masks_update, "momentum moves a weight whose gradient alone is masked"


def test_dynamic_sparse_training() -> None:
    def first_update(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
        w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
        optimiser = make([w])
        for step in range(4):
            w.grad = torch.tensor([0.5, 0.3], dtype=torch.float64)
            if step < 3:
                optimiser.step()
        with torch.no_grad():  # position 1 is new: weight zero, cleared state
            w[1] = 0
            for value in optimiser.state[w].values():
                if value is not None and value.dim():
                    value[1] = 0
        optimiser.step()
        return w[1].item()

    assert first_update(lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=0.1)) == pytest.approx(-0.1 * 0.3)
    assert first_update(lambda w: torch.optim.Adam(w, 0.1)) != pytest.approx(-0.1 * 0.3)
    assert first_update(lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, nesterov=True)) != pytest.approx(-0.1 * 0.3)


def test_el2n_pruning() -> None:
    r = rng()
    x, w = r.normal(size=5), r.normal(size=(3, 5))
    error = softmax(w @ x) - np.eye(3)[1]
    gradient = np.outer(error, x)
    el2n = np.linalg.norm(error)
    assert equal(np.linalg.norm(gradient), el2n * np.linalg.norm(x))
    with_bias = np.concatenate([gradient.ravel(), error])
    assert not equal(np.linalg.norm(with_bias), el2n * np.linalg.norm(x))
    assert equal(np.linalg.norm(with_bias), el2n * np.linalg.norm([*x, 1]))
    sure = softmax(np.array([1000.0, 0, 0]))
    assert equal(np.linalg.norm(sure - np.eye(3)[0]), 0)
    assert equal(np.linalg.norm(sure - np.eye(3)[1]), np.sqrt(2))


def test_exact_substring_deduplication() -> None:
    k = 4

    def places(text: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for n in range(len(text) - k + 1):
            found.setdefault(text[n : n + k], []).append(n)
        return {passage: at for passage, at in found.items() if len(at) > 1}

    def cut(text: str, spare_first: bool) -> str:
        covered = {n + i for at in places(text).values() for n in at[1:] for i in range(k)}
        first = {at[0] + i for at in places(text).values() for i in range(k)}
        return "".join(c for n, c in enumerate(text) if n not in covered or (spare_first and n in first))

    def lost(text: str, spare_first: bool) -> bool:
        return any(passage not in cut(text, spare_first) for passage in places(text))

    assert cut("cdcedbddfcfcfc", spare_first=False) == "cdcedbddfc"
    assert lost("cdcedbddfcfcfc", spare_first=False), "the second fcfc overlaps the first"
    r = rng()
    texts = ["".join(r.choice(list("abcd"), 20)) for _ in range(1500)]
    assert any(lost(text, spare_first=False) for text in texts)
    assert not any(lost(text, spare_first=True) for text in texts)


def test_forgetting_event_selection() -> None:
    histories = {"always": [1, 1, 1, 1], "never": [0, 0, 0, 0], "twice": [1, 0, 1, 0], "learnt": [0, 0, 1, 1]}
    forgotten = {name: int((np.diff(h) < 0).sum()) for name, h in histories.items()}
    assert forgotten == {"always": 0, "never": 0, "twice": 2, "learnt": 0}
    assert sum(b != a for a, b in itertools.pairwise(histories["learnt"])) == 1, "learning is no forgetting"
    counts = {name: n if any(histories[name]) else math.inf for name, n in forgotten.items()}
    assert max(counts, key=lambda name: counts[name]) == "never" != max(forgotten, key=lambda name: forgotten[name])


def test_frozen_feature_caching() -> None:
    batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    prefix = nn.BatchNorm1d(4)
    other = torch.cat([batch[:1], batch[1:] + 1])
    prefix.train()
    assert not torch.equal(prefix(batch)[0], prefix(other)[0]), "in training mode a feature depends on its batch"
    prefix.eval()
    assert torch.equal(prefix(batch)[0], prefix(other)[0])
    epochs, macs, frozen = 5, np.array([4, 3, 2, 1]), 2
    active = 3 * macs[frozen:].sum() - macs[frozen]  # the first active block needs no gradient of its input
    plain = epochs * (macs.sum() + 2 * macs[frozen:].sum() - macs[frozen])
    assert plain - (macs[:frozen].sum() + epochs * active) == (epochs - 1) * macs[:frozen].sum()


def test_gradient_matching_coreset() -> None:
    r = rng()
    g = r.normal(size=(9, 3))
    near = ((g[:, None] - g[None]) ** 2).sum(-1)

    def value(s: Sequence[int]) -> float:
        return float(near.max() * 9 - near[:, list(s)].min(1).sum())

    best = max(value(s) for s in itertools.combinations(range(9), 3))
    chosen = greedy(value, range(9), 3)
    assert value(chosen) >= (1 - 1 / math.e) * best
    weights = np.bincount(near[:, chosen].argmin(1), minlength=3)
    assert weights.sum() == 9
    assert equal(np.ones(9) @ g, g.sum(0))

    def pursue(matrix: Array, penalty: float) -> tuple[list[float], list[float]]:
        """Errors, and penalised objectives, with ever more columns."""
        target, errors, objectives = matrix.sum(1), [], []
        for n in range(1, matrix.shape[1] + 1):
            a = matrix[:, :n]
            w = np.linalg.solve(a.T @ a + penalty * np.eye(n), a.T @ target)
            errors.append(float(((target - a @ w) ** 2).sum()))
            objectives.append(errors[-1] + penalty * float(w @ w))
        return errors, objectives

    def falls(values: Sequence[float]) -> bool:
        return all(b <= a + 1e-9 for a, b in itertools.pairwise(values))

    trials = [pursue(r.normal(size=(3, 5)), 2.0) for _ in range(200)]
    assert all(falls(objectives) for _, objectives in trials)
    assert not all(falls(errors) for errors, _ in trials), "with a penalty the error itself may grow"


def test_gradient_quantisation() -> None:
    r, s = rng(), 2
    v = r.normal(size=5)
    norm = np.linalg.norm(v)
    low = np.floor(abs(v) / norm * s)
    share = abs(v) / norm * s - low
    mean = norm * np.sign(v) * (low + share) / s
    assert equal(mean, v)
    assert not equal(norm * np.sign(v) * np.round(abs(v) / norm * s) / s, v), "the nearest level is biased"
    variance = (norm / s) ** 2 * (share * (1 - share)).sum()
    assert variance <= min(len(v) / s**2, np.sqrt(len(v)) / s) * norm**2
    sent, residual, total = np.zeros(5), np.zeros(5), np.zeros(5)
    for gradient in r.normal(size=(30, 5)):
        total += gradient
        message = abs(residual + gradient).mean() * np.sign(residual + gradient)  # one bit per value
        residual = residual + gradient - message
        sent += message
    assert equal(sent + residual, total)
    assert not equal(sent, total)


def test_gradient_sparsification() -> None:
    r, rate, momentum = rng(), 0.1, 0.9
    gradients = r.normal(size=(20, 6))

    def train(share: float, factor_masking: bool, momentum: float) -> tuple[Array, Array]:
        """The weights, and the sum of what was sent and of the residual."""
        w, velocity, residual, sent = np.zeros((4, 6))
        for g in gradients:
            velocity = momentum * velocity + g
            residual = residual + velocity
            mask = np.isin(np.arange(6), list(top(abs(residual), round(share * 6))))
            w, sent, residual = w - rate * residual * mask, sent + residual * mask, residual * ~mask
            velocity = velocity * ~mask if factor_masking else velocity
        return w, sent + residual

    def plain(momentum: float) -> Array:
        w, velocity = np.zeros((2, 6))
        for g in gradients:
            velocity = momentum * velocity + g
            w = w - rate * velocity
        return w

    with_masking = train(1.0, True, momentum)[0]
    assert not equal(with_masking, plain(momentum)), "at share 1 factor masking clears all momentum in every step"
    assert equal(with_masking, plain(0.0))
    assert equal(train(1.0, False, momentum)[0], plain(momentum))
    assert equal(train(0.3, True, 0.0)[1], gradients.sum(0))


def test_importance_resampling() -> None:
    weights, r = np.array([1.0, 2.0, 5.0]), rng()
    wanted: dict[tuple[int, ...], float] = {}
    for i, j in itertools.permutations(range(3), 2):
        chance = weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        wanted[tuple(sorted((i, j)))] = wanted.get(tuple(sorted((i, j))), 0) + chance
    noise = r.gumbel(size=(20_000, 3))

    def deviation(keys: Array) -> float:
        drawn = Counter(tuple(sorted(row)) for row in np.argsort(-keys, axis=1)[:, :2].tolist())
        return max(abs(drawn[pair] / 20_000 - wanted[pair]) for pair in wanted)

    spread = 4 * math.sqrt(0.25 / 20_000)
    assert deviation(np.log(weights) + noise) < spread
    assert deviation(weights + noise) > spread, "the noise belongs to the logarithm"
    assert top(np.log(weights), 2) == {1, 2}


def test_importance_sampling() -> None:
    r, n = rng(), 6
    g = r.normal(size=(n, 4))

    def moments(p: Array) -> tuple[Array, float]:
        scaled = g / (n * p)[:, None]
        mean = p @ scaled
        return mean, float(p @ ((scaled - mean) ** 2).sum(1))

    norms = np.linalg.norm(g, axis=1)
    best = moments(norms / norms.sum())
    assert equal(best[0], g.mean(0))
    for p in r.dirichlet(np.ones(n), 200):
        assert equal(moments(p)[0], g.mean(0))
        assert moments(p)[1] >= best[1]
    assert moments(norms**2 / (norms**2).sum())[1] > best[1]
    assert len(set(rng(2).integers(0, n, n))) < n, "with replacement an epoch leaves examples out, shuffling does not"


def test_inference_time_variation() -> None:
    base = np.array(list(itertools.product((1.0, 2, 4), (3.0, 8), (0.0, 5))))  # two stages and a delay, independent
    stages, delay = base[:, :2], base[:, 2:]
    total = stages.sum(1)

    def with_total(stages: Array, total: Array) -> Array:
        return np.array([np.cov(s, total, bias=True)[0, 1] for s in stages.T])

    assert equal(with_total(stages, total).sum() / total.var(), 1)
    assert with_total(stages[:, :1], total).sum() / total.var() < 0.9, "a gap shows"
    delayed = stages + np.hstack([delay, np.zeros_like(delay)])
    change = with_total(delayed, delayed.sum(1)) - with_total(stages, total)
    assert equal(change, [delay.var(), 0])
    shares = with_total(delayed, delayed.sum(1)) / delayed.sum(1).var()
    assert not equal(shares[1], with_total(stages, total)[1] / total.var()), "the share of the other stage does fall"


def test_infobatch() -> None:
    losses, gradients, r = np.array([0.1, 0.4, 0.2, 2.0]), rng().normal(size=(4, 3)), 0.3
    low = np.flatnonzero(losses < losses.mean())

    def expected(rescale: bool) -> tuple[Array, float]:
        mean, weight_sum = np.zeros(3), 0.0
        for kept in itertools.product((0, 1), repeat=len(low)):
            chance = math.prod(1 - r if one else r for one in kept)
            weights = np.ones(4)
            weights[low] = np.array(kept) / ((1 - r) if rescale else 1)
            mean, weight_sum = mean + chance * weights @ gradients, weight_sum + chance * weights.sum()
        return mean, weight_sum

    assert equal(expected(rescale=True)[0], gradients.sum(0))
    assert equal(expected(rescale=True)[1], 4)
    assert not equal(expected(rescale=False)[0], gradients.sum(0))
    assert 3 not in low


def test_k_center_coreset() -> None:
    r = rng()
    z = r.normal(size=(9, 2))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)

    def radius(s: Sequence[int]) -> float:
        return float(apart[:, list(s)].min(1).max())

    chosen = [0]
    while len(chosen) < 3:
        chosen.append(int(apart[:, chosen].min(1).argmax()))
    best = min(radius(s) for s in itertools.combinations(range(9), 3))
    assert best < radius(chosen) <= 2 * best
    for similarity, promised in ((apart.max() - apart, True), (-apart, False)):

        def value(s: Sequence[int], similarity: Array = similarity) -> float:
            return float(similarity[:, list(s)].max(1).sum())

        best = max(value(s) for s in itertools.combinations(range(9), 3))
        reached = value(greedy(value, range(9), 3)) >= (1 - 1 / math.e) * best
        assert reached is promised, "the bound needs similarities that are not negative"


def test_layer_freezing() -> None:
    def moved(leaves_optimiser: bool) -> bool:
        frozen, active = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimiser = torch.optim.SGD([frozen, active], 0.1, momentum=0.9, weight_decay=0.1)
        for step in range(4):
            frozen.grad = torch.ones(3) if step < 2 else (None if leaves_optimiser else torch.zeros(3))
            active.grad = torch.ones(3)
            before = frozen.detach().clone()
            optimiser.step()
        return not torch.equal(before, frozen)

    assert moved(leaves_optimiser=False), "a gradient of zero still meets momentum and weight decay"
    assert not moved(leaves_optimiser=True)
    f = [5, 4, 3, 2]

    def step_macs(n: int) -> int:
        return sum(f) + 2 * sum(f[n:]) - f[n]

    assert step_macs(0) == 3 * sum(f) - f[0]
    backward = [sum(f[n:]) + sum(f[n + 1 :]) for n in range(4)]  # weights, and inputs but for the first active block
    assert [step_macs(n) for n in range(4)] == [sum(f) + one for one in backward]


def test_minhash_deduplication() -> None:
    r, words, hashes, rows = rng(), 60, 400, 5
    a = set(range(40))
    documents = [a, set(a), set(range(5, 45)), set(range(40, 60)), set(range(20, 60))]

    def signatures(order: Array) -> list[npt.NDArray[np.int64]]:
        return [order[:, sorted(d)].min(1) for d in documents]

    order = np.array([r.permutation(words) for _ in range(hashes)])
    made = signatures(order)
    for i, j in itertools.combinations(range(5), 2):
        exact = len(documents[i] & documents[j]) / len(documents[i] | documents[j])
        error = math.sqrt(exact * (1 - exact) / hashes)
        assert abs((made[i] == made[j]).mean() - exact) <= 3 * error + 1e-12
    assert (made[0] == made[1]).all()

    def survivors(candidates: Iterable[int], order: Array) -> list[int]:
        made, kept = signatures(order), []
        for n in candidates:
            bands = [(made[n] == made[m]).reshape(-1, rows).all(1).any() for m in kept]
            kept += [] if any(bands) else [n]
        return kept

    few = order[:20]
    once = survivors(range(5), few)
    assert survivors(once, few) == once
    others = (np.array([r.permutation(words) for _ in range(20)]) for _ in range(40))
    assert any(survivors(once, other) != once for other in others), "new permutations may find more"


def test_patch_dropout() -> None:
    r, n, masking = rng(), 10, 0.7
    order = r.permutation(n)
    kept, hidden = order[: math.floor((1 - masking + 1e-9) * n)], order[3:]
    assert sorted([*kept, *hidden]) == [*range(n)]
    patches = r.normal(size=(n, 4))
    assert equal(patches[order][np.argsort(order)], patches)
    assert not equal(patches[order][order], patches), "the permutation itself does not restore the order"
    changed = patches.copy()
    changed[hidden] += 1
    assert equal(changed[kept], patches[kept])


def test_progressive_resizing() -> None:
    def macs(size: int) -> int:
        """Of three convolutions (3 x 3, padding 1), each of stride 2."""
        total = 0
        for _ in range(3):
            size = (size + 1) // 2
            total += size * size
        return total

    for size, exact in ((16, True), (24, True), (18, False), (13, False)):
        assert equal(macs(size) / macs(32), (size / 32) ** 2) is exact


def test_reducible_loss_selection() -> None:
    losses, stored = rng().uniform(size=(2, 12))
    assert top(losses - (stored + 7), 4) == top(losses - stored, 4)
    assert top(losses - 3 * stored, 4) != top(losses - stored, 4)
    assert top(losses - 0, 4) == top(losses - 5, 4) == top(losses, 4)
    assert top(losses - stored, 12) == set(range(12))


def test_region_wise_dynamic_quantisation() -> None:
    maps = np.array([[0.0, 0.0], [-1.0, 1.0], [0.3, 0.4]])
    means = abs(maps).mean(1)
    assert (means > -0.1).all()
    assert not (means > 0).all(), "at threshold 0 a region of zeros has the low width"
    assert not maps[~(means > 0)].any(), "whose values are exact at either"
    assert not (abs(maps.mean(1)) > 0)[1], "the mean of signed values would miss a sensitive region"
    step = 2 / 15
    assert (abs(np.round(maps / step) * step - maps) <= step / 2 + 1e-12).all()
    assert abs(np.clip(np.round(np.array([5.0]) / step), -8, 7) * step - 5.0) > step / 2, "outside the range it clips"


def test_selective_backprop() -> None:
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def after_a_step(selection: bool | None) -> torch.Tensor:
        """Running mean after a selection pass in training or evaluation mode, or none, and a step on all samples."""
        norm = nn.BatchNorm1d(4)
        if selection is not None:
            norm.train(selection)(batch)
        norm.train()(batch)
        return norm.running_mean

    assert not torch.equal(after_a_step(True), after_a_step(None)), "the selection pass moves the statistics"
    assert torch.equal(after_a_step(False), after_a_step(None))
    losses, share = rng().uniform(size=10), 0.5
    assert len(top(losses, round(share * 10))) == 5
    assert 10 * 1 + 5 * 3 == 10 * (1 + 3 * share) < 10 * 3


def test_similarity_reuse_in_training() -> None:
    r = rng()
    rows, errors, W = np.repeat(r.normal(size=(3, 4)), 2, axis=0), r.normal(size=(6, 2)), r.normal(size=(4, 2))
    G = np.repeat(np.eye(3), 2, axis=0)
    D = G.T @ G
    C = np.linalg.solve(D, G.T @ rows)
    summed = G.T @ errors
    assert equal(C.T @ summed, rows.T @ errors)
    shared = G @ np.linalg.solve(D, summed @ W.T)
    assert not equal(shared, errors @ W.T), "the gradient of the input needs equal errors too"
    alike = G @ r.normal(size=(3, 2))
    assert equal(G @ np.linalg.solve(D, G.T @ alike @ W.T), alike @ W.T)
    n, k, m, h, clusters = 64, 16, 8, 4, 16
    executed = n * k * h + 3 * clusters * k * m
    assert executed == (h / m + 3 * clusters / n) * n * k * m != 3 * (h / m + clusters / n) * n * k * m


def test_sparsified_backpropagation() -> None:
    r = rng()
    x, errors = r.normal(size=4), np.array([0.5, 0, -2, 0, 0])

    def gradient(k: int) -> Array:
        kept = np.isin(np.arange(5), list(top(abs(errors), k)))
        return np.outer(errors * kept, x)

    assert equal(gradient(5), np.outer(errors, x))
    rows = [int(gradient(k).any(1).sum()) for k in range(6)]
    assert rows == [0, 1, 2, 2, 2, 2], "fewer than k rows where the output gradient has zeros"
    batch = r.normal(size=(3, 5))
    unified = sorted(top(abs(batch).sum(0), 2))
    inputs = r.normal(size=(3, 4))
    assert equal(batch[:, unified].T @ inputs, (batch.T @ inputs)[unified])


def test_task_aware_dynamic_masking() -> None:
    magnitude, buffers = np.array([0.1, 0.5, 0.9]), np.array([[0.2, 0.1, 0.3], [0.0, 0.3, 0.1]])

    def order(beta: float, buffer: Array) -> list[int]:
        return np.argsort(magnitude + beta * buffer).tolist()

    assert order(0, buffers[0]) == [0, 1, 2]
    assert order(0.1, buffers[0]) == order(0.1, buffers[1]), "a positive factor need not change the order"
    assert not equal(magnitude + 0.1 * buffers[0], magnitude + 0.1 * buffers[1])
    assert order(5, buffers[0]) != order(5, buffers[1])


def test_trajectory_matching() -> None:
    start, target = rng().normal(size=(2, 6))

    def loss(student: Array, start: Array, target: Array) -> float:
        return float(((student - target) ** 2).sum() / ((start - target) ** 2).sum())

    with np.errstate(invalid="ignore"):
        assert np.isnan(np.float64(0) / np.sum((start - start) ** 2)), "no steps and m = 0: 0 / 0"
    assert loss(start, start, target) == 1, "no inner steps, m > 0"
    assert loss(target, start, target) == 0
    student = start + 0.3 * (target - start)
    assert equal(loss(7 * student, 7 * start, 7 * target), loss(student, start, target))
    assert not equal(loss(7 * student, start, target), loss(student, start, target))


# --- numbers and weights


def test_activation_quantisation() -> None:
    r, bits = rng(), 8
    x, w = r.normal(size=(5, 6)), r.normal(size=(6, 4))
    step = abs(x).max() / (2 ** (bits - 1) - 1)
    assert (abs(np.round(x / step) * step - x) <= step / 2 + 1e-12).all()
    clipped = np.clip(np.round(2 * x / step), -127, 127) * step
    assert not (abs(clipped - 2 * x) <= step / 2 + 1e-12).all(), "only inside the range"
    codes, weight_codes = np.round(x / step).astype(int), np.round(w / 0.01).astype(int)
    assert equal(codes @ weight_codes * step * 0.01, (codes * step) @ (weight_codes * 0.01))
    s = abs(x).max(0) ** 0.5 / abs(w).max(1) ** 0.5
    assert equal((x / s) @ (s[:, None] * w), x @ w)
    assert not equal((x / s) @ w, x @ w)


def test_all_in_one_pruning() -> None:
    def densities(mask: Array, counts: Sequence[int]) -> list[int]:
        thresholds = [np.sort(mask)[-count - 1] for count in counts]
        return [int((mask > t).sum()) for t in thresholds]

    counts, soft = (16, 9, 4), rng().uniform(size=25)
    assert densities(soft, counts) == [*counts]
    assert densities(np.round(3 * soft), counts) != [*counts], "equal values stay or go together"
    kept = [set(np.flatnonzero(soft >= np.sort(soft)[-count])) for count in counts]
    assert kept[2] < kept[1] < kept[0]


def test_bit_serial_precision() -> None:
    r = rng()
    w, x, bits = r.integers(-9, 9, 30), r.integers(-128, 128, 30), 8
    planes = [(x.astype(np.int8).view(np.uint8) >> n) & 1 for n in range(bits)]

    def serial(signs: Sequence[int]) -> int:
        return int(sum(sign * 2**n * (w @ plane) for n, (sign, plane) in enumerate(zip(signs, planes, strict=True))))

    assert serial([1] * 8) != w @ x, "the top bit of a signed value counts as negative"
    assert serial([1] * 7 + [-1]) == w @ x


def test_pim_qat() -> None:
    r, rows, full = rng(), 8, 8 * 15 * 7
    x, w = r.integers(0, 16, 20), r.integers(-7, 8, 20)
    groups = [slice(n, n + rows) for n in range(0, 20, rows)]
    sums = [int(w[g] @ x[g]) for g in groups]
    assert len(groups) == 3 != 20 / rows
    assert sum(sums) == w @ x
    step = full / (2**5 - 1)
    converted = sum(round(s / step) * step for s in sums)
    assert abs(converted - w @ x) <= len(groups) * step / 2
    assert any(abs(round(s / step) * step - s) > 0 for s in sums)


def test_stereo_occupancy_voxels() -> None:
    r = rng()
    fine = r.uniform(size=(8, 8, 8)) < 0.02

    def coarser(grid: npt.NDArray[np.bool_], rule: Callable[[Array], Array]) -> npt.NDArray[np.bool_]:
        half = grid.shape[0] // 2
        cells = grid.reshape(half, 2, half, 2, half, 2).transpose(0, 2, 4, 1, 3, 5).reshape(half, half, half, 8)
        return rule(cells) > 0

    def ancestors(rule: Callable[[Array], Array]) -> bool:
        level = coarser(fine, rule)
        return bool(np.repeat(np.repeat(np.repeat(level, 2, 0), 2, 1), 2, 2)[fine].all())

    assert ancestors(lambda cells: cells.any(-1))
    assert not ancestors(lambda cells: cells.mean(-1) - 0.3), "a mean below its threshold hides an occupied cell"
    kept = int(coarser(fine, lambda cells: cells.any(-1)).sum())
    assert 0 < 8 * kept < 512


def test_adversarial_patch_region_removal() -> None:
    marks = (rng().uniform(size=(12, 12)) < 0.1).astype(int)
    integral = np.pad(marks.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    for i, j in itertools.product(range(9), repeat=2):
        direct = marks[i : i + 4, j : j + 4].sum()
        assert integral[i + 4, j + 4] - integral[i, j + 4] - integral[i + 4, j] + integral[i, j] == direct
    x, filled, w = rng(1).normal(size=30), slice(12, 15), rng(2).normal(size=(2, 3))
    other = x.copy()
    other[filled] = 0

    def network(x: Array) -> Array:
        return padded(np.tanh(padded(x, w[0])), w[1])

    changed = np.flatnonzero(network(x) != network(other))
    assert [*changed] == [*range(filled.start - 2, filled.stop + 2)], "a halo one position smaller would miss some"
