"""Experiments of stride attention: specimens for the battery, and small networks on Fashion-MNIST."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch

from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.experiments.efficient_nets import (
    CHANNELS,
    coarse_scores_are_means,
    map_specimen,
    without_gradients,
)
from reference_impls.experiments.harness import fork_seed
from reference_impls.redundancy.over_resolution import coarsen, over_resolution
from reference_impls.techniques.stride_attention import Coarseness, MapAttention, StrideAttention, attend_coarsely

TECHNIQUE = StrideAttention()

# --------------------------------------------------------------------------------------------------------------------
# Specimens


class StrideAttentionSpecimens(Specimens):
    """Attention on constant maps, on chessboards, and on what is in between (`efficient_nets.map_specimen`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        return map_specimen(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = map_specimen("typical", seed, device)
        x = specimen.inputs
        with TECHNIQUE.apply(specimen.host, stride=2, threshold=0.5) as handle:
            without_gradients(handle.host, x)
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = [energy_share(one.double().tolist(), 2) for one in x]
        yield Quantity("share below half resolution", torch.tensor(by_hand), over_resolution(x.double()).float().cpu())
        yield Quantity("maps coarsened", torch.tensor(sum(s >= 0.5 for s in by_hand)), torch.tensor(chosen))

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        yield from coarse_scores_are_means(2, 2, seed, device)
        with fork_seed(seed):
            x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=device)
        yield Quantity("mean of a map", x.mean((2, 3)), coarsen(x, 2).mean((2, 3)))
        specimen = map_specimen("redundant", seed, device)
        attention, flat = specimen.host, specimen.inputs
        with torch.no_grad():
            coarse = attend_coarsely(attention, flat, Coarseness(2, 2, 1))
            yield Quantity("result on constant maps", attention(flat), coarse)

    def invalid(self, device: str) -> Iterable[Invalid]:
        host = map_specimen("typical", 0, device).host
        x = map_specimen("typical", 0, device).inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        strided = MapAttention(CHANNELS, (8, 8), 2, 4, 2, stride=2).to(device)
        yield Invalid("half a stride", lambda: TECHNIQUE.apply(host, stride=1.5), "stride must be an integer")
        yield Invalid("stride 0", lambda: TECHNIQUE.apply(host, stride=0), "stride must be an integer")
        yield Invalid("another place of local values", lambda: TECHNIQUE.apply(host, local="none"), "local must be")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(host, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(host, x), "not finite")
        yield Invalid("a vector", lambda: over_resolution(x[0, 0, 0]), "must have shape (B, C, H, W)")
        yield Invalid("attention that strides already", lambda: TECHNIQUE.apply(strided), "`MapAttention` of stride 1")
        yield Invalid("local values coarser than keys", lambda: Coarseness(2, 1, 2), "local values are computed")


def energy_share(maps: list[list[list[float]]], factor: int) -> float:
    """`over_resolution` of one datum (C, H, W) by plain sums: its Fourier coefficients one after the other."""
    height, width = len(maps[0]), len(maps[0][0])
    below = total = kept = 0.0

    def weight(frequency: int, size: int) -> float:
        frequency, limit = min(frequency, size - frequency), size / factor / 2
        return 1.0 if frequency < limit else 0.5 if frequency == limit else 0.0

    for v in range(height):
        for u in range(width):
            if u == v == 0:
                continue
            energy = 0.0
            for channel in maps:
                turns = (
                    (2 * math.pi * (v * i / height + u * j / width), channel[i][j])
                    for i in range(height)
                    for j in range(width)
                )
                real, imaginary = map(sum, zip(*((x * math.cos(t), x * math.sin(t)) for t, x in turns), strict=True))
                energy += real**2 + imaginary**2
            share = weight(v, height) * weight(u, width)
            below, total, kept = below + share * energy, total + energy, kept + share
    white = kept / (height * width - 1)
    return min(max((below / total - white) / (1 - white), 0.0), 1.0)


SPECIMENS = StrideAttentionSpecimens()
SCENARIOS = ()
