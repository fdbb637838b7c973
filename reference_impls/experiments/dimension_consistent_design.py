"""Experiments of dimension-consistent design: specimens for the battery, and small networks on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.experiments.efficient_nets import CHANNELS, chessboards, randomised, without_gradients
from reference_impls.experiments.harness import fork_seed
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.dimension_consistent_design import (
    DimensionConsistentDesign,
    Flatten,
    TokenAttention,
    TokenBlock,
    neighbourhood_mean,
    pooled_values,
    to_map,
)

TECHNIQUE = DimensionConsistentDesign()

# --------------------------------------------------------------------------------------------------------------------
# Specimens


def tiny_attention() -> TokenAttention:
    """Attention of two heads on 12 channels and 6 x 6 tokens."""
    return TokenAttention(CHANNELS, (6, 6), heads=2, key_dim=4, ratio=2)


class DimensionConsistentSpecimens(Specimens):
    """Token attention on equal tokens (redundant) or a chessboard of two (null); typical: three blocks on a smooth map,
    on noise, and on something in between.
    """

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        generator = torch.Generator().manual_seed(seed)
        with fork_seed(seed):
            if kind == "typical":
                blocks = [TokenBlock(CHANNELS, tiny_attention(), 24, layer_scale=1.0) for _ in range(3)]
                host = randomised(nn.Sequential(Flatten(), *blocks))
                noise = torch.randn(3, CHANNELS, 6, 6, generator=generator)
                smooth = nn.functional.interpolate(noise[..., :2, :2], size=6, mode="bilinear")
                inputs = torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
            else:
                host = nn.Sequential(Flatten(), tiny_attention())
                inputs = chessboards(3, CHANNELS, (6, 6), generator)
                inputs = inputs if kind == "null" else inputs[..., :1, :1].expand(-1, -1, 6, 6).contiguous()
        return Specimen(host.eval().to(device), inputs.to(device), run=without_gradients)

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = self.build("typical", seed, device)
        x = specimen.inputs
        with torch.no_grad():
            tokens = specimen.host[1].norm1(specimen.host[0](x))
        by_hand = torch.tensor([neighbour_cosine(one.double().tolist(), (6, 6)) for one in tokens])
        yield Quantity("similarity of neighbours", by_hand, neighbour_similarity(to_map(tokens, (6, 6))).cpu())
        with TECHNIQUE.apply(specimen.host, pooled=1, threshold=0.5) as handle:
            without_gradients(handle.host, x)
            _, chosen = handle.trace["substituted"]["1.token_mixer"]
        yield Quantity("data that pool", (by_hand >= 0.5).sum(), torch.tensor(chosen))

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        with fork_seed(seed):
            attention = randomised(nn.Sequential(tiny_attention())).double().eval().to(device)[0]
            x = torch.randn(2, 36, CHANNELS, dtype=torch.float64).to(device)
        equal = x[:, :1].expand_as(x)
        with torch.no_grad():
            yield Quantity("result on equal tokens", attention(equal), pooled_values(attention, equal))
            yield Quantity(
                "means by hand", means_of_neighbours(to_map(x, (6, 6))), neighbourhood_mean(to_map(x, (6, 6)))
            )
            yield Quantity("layout there and back", x, Flatten()(to_map(x, (6, 6))))

    def invalid(self, device: str) -> Iterable[Invalid]:
        specimen = self.build("typical", 0, device)
        host, x = specimen.host, specimen.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        yield Invalid("half a block", lambda: TECHNIQUE.apply(host, pooled=1.5), "pooled must be an integer")
        yield Invalid("fewer than no block", lambda: TECHNIQUE.apply(host, pooled=-1), "pooled must be an integer")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(host, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(host, x), "not finite")
        yield Invalid("tokens without a grid", lambda: neighbour_similarity(x[0]), "must have shape (B, C, H, W)")
        yield Invalid("a network on maps", lambda: TECHNIQUE.apply(nn.Conv2d(1, 1, 1)), "`TokenAttention`")


def neighbour_cosine(tokens: list[list[float]], size: tuple[int, int]) -> float:
    """`neighbour_similarity` of one datum by plain loops over its tokens (N, C)."""
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    centred = [[x - m for x, m in zip(token, mean, strict=True)] for token in tokens]
    cosines = []
    for i in range(size[0]):
        for j in range(size[1]):
            near = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            around = [centred[a * size[1] + b] for a, b in near if 0 <= a < size[0] and 0 <= b < size[1]]
            total = [sum(column) for column in zip(*around, strict=True)]
            token = centred[i * size[1] + j]
            dot = sum(map(float.__mul__, token, total))
            cosines.append(dot / (sum(x * x for x in token) * sum(x * x for x in total)) ** 0.5)
    return max(sum(cosines) / len(cosines), 0.0)


def means_of_neighbours(x: Tensor) -> Tensor:
    """The mean of the 3x3 window inside the map around each position, by plain loops: (B, C, H, W)."""
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[..., i, j] = x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return out


SPECIMENS = DimensionConsistentSpecimens()
SCENARIOS = ()
