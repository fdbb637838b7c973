"""Experiments of attention downsampling: specimens for the battery, and small networks on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.experiments.efficient_nets import (
    coarse_scores_are_means,
    map_specimen,
    randomised,
    scores,
    tiny_attention,
    without_gradients,
)
from reference_impls.experiments.harness import fork_seed
from reference_impls.experiments.stride_attention import energy_share
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling
from reference_impls.techniques.stride_attention import Coarseness, attend_coarsely

TECHNIQUE = AttentionDownsampling()

# --------------------------------------------------------------------------------------------------------------------
# Specimens


class AttentionDownsamplingSpecimens(Specimens):
    """Attention on constant maps, on chessboards, and on what is in between (`efficient_nets.map_specimen`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        return map_specimen(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = map_specimen("typical", seed, device)
        with TECHNIQUE.apply(specimen.host, factor=2, threshold=0.5) as handle:
            without_gradients(handle.host, specimen.inputs)
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = sum(energy_share(one.double().tolist(), 2) >= 0.5 for one in specimen.inputs)
        yield Quantity("maps with fewer queries", torch.tensor(by_hand), torch.tensor(chosen))
        yield from queries_one_by_one(seed, device)

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        yield from coarse_scores_are_means(2, 1, seed, device)
        specimen = map_specimen("redundant", seed, device)
        attention, flat = specimen.host, specimen.inputs
        with torch.no_grad():
            yield Quantity("result on constant maps", attention(flat), attend_coarsely(attention, flat, Coarseness(2)))
        with fork_seed(seed):
            attention = randomised(tiny_attention()).double().eval().to(device)
            x = torch.randn(2, 12, 8, 8, dtype=torch.float64).to(device)
        with torch.no_grad():
            yield Quantity(
                "a weight for each key", torch.ones(2, 2, 64).to(x), scores(attention, x).softmax(-1).sum(-1)
            )

    def invalid(self, device: str) -> Iterable[Invalid]:
        specimen = map_specimen("typical", 0, device)
        host, x = specimen.host, specimen.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        down = AttentionDown(12, 24, (8, 8)).to(device)
        yield Invalid("half a factor", lambda: TECHNIQUE.apply(host, factor=1.5), "factor must be an integer")
        yield Invalid("factor 0", lambda: TECHNIQUE.apply(host, factor=0), "factor must be an integer")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(host, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(host, x), "not finite")
        yield Invalid("queries subsampled already", lambda: TECHNIQUE.apply(down), "`MapAttention` of stride 1")


def queries_one_by_one(seed: int, device: str) -> Iterable[Quantity]:
    """What `AttentionDown` gives for each query, and the same with one query after the other over all keys."""
    with fork_seed(seed):
        down = randomised(AttentionDown(12, 10, (6, 6), heads=2, key_dim=4, ratio=2)).double().eval().to(device)
        x = torch.randn(1, 12, 6, 6, dtype=torch.float64).to(device)
    with torch.no_grad():
        queries, values = down.q(x), down.v(x)
        mixed = torch.zeros_like(down.v_local(values))
        q, k, v = (y[0].unflatten(0, (2, -1)) for y in (queries, down.k(x), values))  # (heads, channels, h, w) each
        for head in range(2):
            table = down.bias.table[head].unflatten(0, (6, 6))
            for i in range(3):
                for j in range(3):
                    distance = table[[[abs(2 * i - a)] for a in range(6)], [[abs(2 * j - b) for b in range(6)]]]
                    score = torch.einsum("c,chw->hw", q[head, :, i, j], k[head]) / 2 + distance
                    weights = score.flatten().softmax(0).unflatten(0, (6, 6))
                    mixed[0, 8 * head : 8 * head + 8, i, j] = (v[head] * weights).sum((1, 2))
        yield Quantity("queries over all keys", down.proj(down.act(mixed + down.v_local(values))), down(x))


SPECIMENS = AttentionDownsamplingSpecimens()
SCENARIOS = ()
