"""Experiments of attention downsampling: cases for the conformance checks, and small networks on Fashion-MNIST.

- `fill-queries`: networks trained with 64 queries and 64 keys, run with fewer of either.
- `fill-downsampling`: ways to halve a map, each trained for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Control, Point, Record
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.experiments.efficient_nets import (
    FASHION,
    FILL,
    GRID,
    HEADS,
    KEY_DIM,
    WIDTHS,
    coarse_scores_are_means,
    costs_of,
    described,
    filled,
    fitted,
    full_scores,
    hidden_patches,
    key,
    map_case,
    map_network,
    measured,
    paired_difference,
    scores,
    seeds,
    some_images,
    sweep,
    tiny_attention,
    unit,
    without_gradients,
)
from reference_impls.experiments.harness import Context, Scenario, fork_seed, record
from reference_impls.experiments.stride_attention import ABOUT, energy_share, networks
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.conv import Downsample
from reference_impls.layers.layout import Size
from reference_impls.layers.weights import randomise_parameters
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling, DualPathDownsample
from reference_impls.techniques.stride_attention import (
    Coarseness,
    attend_coarsely,
    cell_means,
    coarse_handle,
    full_attentions,
    strided,
)

TECHNIQUE = AttentionDownsampling()

# --------------------------------------------------------------------------------------------------------------------
# Cases


class AttentionDownsamplingCases(Cases):
    """Attention on constant maps, on chessboards, and on what is in between (`efficient_nets.map_case`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        return map_case(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = map_case("typical", seed, device)
        with TECHNIQUE.apply(case.target, factor=2, threshold=0.5) as handle:
            without_gradients(handle.target, case.inputs)
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = sum(energy_share(one.double().tolist(), 2) >= 0.5 for one in case.inputs)
        yield Expectation("maps with fewer queries", torch.tensor(by_hand), torch.tensor(chosen))
        yield from queries_one_by_one(seed, device)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        yield from coarse_scores_are_means(2, 1, seed, device)
        case = map_case("redundant", seed, device)
        attention, flat = case.target, case.inputs
        with torch.no_grad():
            yield Expectation(
                "result on constant maps", attention(flat), attend_coarsely(attention, flat, Coarseness(2))
            )
        with fork_seed(seed):
            attention = randomise_parameters(tiny_attention()).double().eval().to(device)
            x = torch.randn(2, 12, 8, 8, dtype=torch.float64).to(device)
        with torch.no_grad():
            yield Expectation(
                "a weight for each key", torch.ones(2, 2, 64).to(x), full_scores(attention, x).softmax(-1).sum(-1)
            )

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = map_case("typical", 0, device)
        target, x = case.target, case.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        down = AttentionDown(12, 24, (8, 8)).to(device)
        yield Invalid("half a factor", lambda: TECHNIQUE.apply(target, factor=1.5), "factor must be an integer")
        yield Invalid("factor 0", lambda: TECHNIQUE.apply(target, factor=0), "factor must be an integer")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(target, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(target, x), "not finite")
        yield Invalid("queries subsampled already", lambda: TECHNIQUE.apply(down), "`MapAttention` of stride 1")


def queries_one_by_one(seed: int, device: str) -> Iterable[Expectation]:
    """What `AttentionDown` gives for each query, and the same with one query after the other over all keys."""
    with fork_seed(seed):
        down = (
            randomise_parameters(AttentionDown(12, 10, (6, 6), heads=2, key_dim=4, ratio=2)).double().eval().to(device)
        )
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
        yield Expectation("queries over all keys", down.proj(down.act(mixed + down.v_local(values))), down(x))


CASES = AttentionDownsamplingCases()

# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: fewer queries, or fewer keys


def coarse(queries: int, keys: int) -> Callable[[nn.Module], object]:
    """Attaches coarser queries or keys to the attention of a model, for good; local values at full resolution."""
    how = Coarseness(queries, keys, 1)
    return lambda model: coarse_handle(model, full_attentions(TECHNIQUE.id, model), how, None)


def run_queries(ctx: Context) -> Record:
    """How well networks trained with all queries and keys fill in patches, against how many are left of each."""
    models = networks(ctx, "stride 1")
    factors, tokens = (2, 4, 8), math.prod(GRID)
    attach: dict[str, Callable[[nn.Module], object]] = {"dense": lambda model: None}
    for f in factors:
        attach |= {f"queries {f}": partial(TECHNIQUE.apply, factor=f)}
        attach |= {f"keys {f}": coarse(1, f), f"both {f}": coarse(f, f)}
    twins, values = sweep(ctx, models, attach)
    x = some_images(ctx)
    costs = costs_of(ctx, twins, hidden_patches(x))
    redundancy, extra = measured(models, TECHNIQUE, x)

    def points(what: str) -> tuple[Point, ...]:
        left = {f: math.prod(strided(GRID, f)) for f in factors}
        return tuple(
            costs[f"{what} {f}"].point(
                {"factor": f}, filled(values[f"{what} {f}"]), samples=left[f], redundancy=1 - left[f] / tokens
            )
            for f in factors
        )

    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-queries",
        title="Attention trained with 64 queries and run with 16, 4 or 1: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model=ABOUT,
        unit=unit(ctx),
        knobs=("factor",),
        baseline=costs["dense"].arm(filled(values["dense"]), samples=tokens),
        points=points("queries"),
        controls=[
            Control(name="fewer keys", about="As many keys and values left, of all queries.", points=points("keys")),
            Control(
                name="fewer queries and keys",
                about="Both, as in stride attention with local values at full resolution.",
                points=points("both"),
            ),
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Training knew nothing of it: the technique is applied to the finished networks.",
            "extra.measured_* holds a row (mean over the networks, and its 95 % interval) for each of measured_places.",
            "extra.paired_queries_* is what fewer queries give minus what fewer keys give, seed by seed.",
        ),
        extra=extra
        | {f"paired_queries_{f}": paired_difference(values[f"queries {f}"], values[f"keys {f}"]) for f in factors},
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: what halves the map


class AllQueries(AttentionDown):
    """`AttentionDown` with a query at every position, whose results are averaged over cells of 2 x 2."""

    def __init__(self, channels: int, out: int, size: Size, heads: int, key_dim: int) -> None:
        super().__init__(channels, out, size, heads, key_dim)
        self.q.local.stride = (1, 1)
        self.bias = PositionBias(heads, size)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        queries = self.q.proj(self.q.local(x) + x)
        mixed = cell_means(attend(self, queries, self.k(x), values, self.bias((x.shape[2], x.shape[3]))), 2)
        return self.proj(self.act(mixed + self.v_local(values)))


class FewKeys(AttentionDown):
    """`AttentionDown` whose keys, and the values that are attended to, are averaged over cells of 2 x 2 too."""

    def __init__(self, channels: int, out: int, size: Size, heads: int, key_dim: int) -> None:
        super().__init__(channels, out, size, heads, key_dim)
        self.bias = PositionBias(heads, strided(size, 2))

    def forward(self, x: Tensor) -> Tensor:
        values, keys = self.v(x), self.k(cell_means(x, 2))
        bias = self.bias((keys.shape[2], keys.shape[3]))
        mixed = attend(self, self.q(x), keys, cell_means(values, 2), bias)
        return self.proj(self.act(mixed + self.v_local(values)))


def attend(down: AttentionDown, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """What the queries gather: maps of queries and of keys and values, -> (B, values, height and width of queries)."""
    q, k, v = (y.flatten(2).unflatten(1, (down.heads, -1)) for y in (queries, keys, values))
    scores = q.transpose(2, 3) @ k * down.key_dim**-0.5 + bias
    return (v @ scores.softmax(-1).transpose(2, 3)).flatten(1, 2).unflatten(2, queries.shape[2:])


def downsampling(kind: type[AttentionDown] | None) -> nn.Module:
    """What halves the map of the small network: a strided convolution, alone or with attention beside it."""
    if kind is None:
        return Downsample(*WIDTHS)
    both = DualPathDownsample(*WIDTHS, GRID, HEADS, KEY_DIM)
    both.attn = kind(*WIDTHS, GRID, HEADS, KEY_DIM)
    return both


DOWNSAMPLINGS: dict[str, type[AttentionDown] | None] = {
    "all queries": AllQueries,
    "fewer queries": AttentionDown,
    "fewer queries and keys": FewKeys,
    "convolution alone": None,
}


def downsampled(ctx: Context, kind: str) -> list[nn.Module]:
    """The network with this downsampling and no other mixer, trained once for each seed."""
    return fitted(
        ctx, FILL, f"down-{key(kind)}", lambda: map_network(FILL, lambda: None, downsampling(DOWNSAMPLINGS[kind]))
    )


def run_downsampling(ctx: Context) -> Record:
    """How well networks fill in patches that differ in what halves their map, each trained for itself."""
    models = {kind: downsampled(ctx, kind) for kind in DOWNSAMPLINGS}
    values = {kind: scores(ctx, FILL, f"down-{key(kind)}", trained) for kind, trained in models.items()}
    qualities = {kind: filled(found) for kind, found in values.items()}
    x = some_images(ctx)
    costs = costs_of(ctx, {kind: trained[-1] for kind, trained in models.items()}, hidden_patches(x))
    redundancy, _ = measured(networks(ctx, "stride 1"), TECHNIQUE, x)
    abouts = {
        "fewer queries and keys": "16 queries look at the means of 16 cells; local values are those of the technique.",
        "convolution alone": "No attention beside the convolution of stride 2.",
    }
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-downsampling",
        title="From 8 x 8 to 4 x 4 by attention, at equal training: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model="a small EfficientFormerV2 without other mixers: 2 blocks of 32 channels on 8 x 8, 1 of 64 on 4 x 4",
        unit=unit(ctx),
        knobs=("factor",),
        baseline=costs["all queries"].arm(qualities["all queries"], samples=64),
        points=[costs["fewer queries"].point({"factor": 2}, qualities["fewer queries"], samples=16, redundancy=0.75)],
        controls=[
            Control(name=kind, about=about, points=(costs[kind].point({"down": kind}, qualities[kind]),))
            for kind, about in abouts.items()
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "The baseline has a query at each of 64 positions and averages the results of 4; it has the same weights.",
            "Every network is trained from the start, by the same recipe and in the same order.",
            "Redundancy is that of the networks of `fill-queries`.",
            "extra.paired_* is the difference to the baseline with the same seed: mean, and 95 % interval.",
        ),
        extra={
            f"paired_{key(kind)}": paired_difference(values[kind], values["all queries"])
            for kind in list(DOWNSAMPLINGS)[1:]
        },
    )


SCENARIOS = (
    Scenario("fill-queries", "Small EfficientFormerV2 that fills in patches: queries", run_queries, FASHION),
    Scenario("fill-downsampling", "The same, trained with other ways to halve the map", run_downsampling, FASHION),
)
