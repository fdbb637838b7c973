"""Token merging beyond the checks: the algorithm's own properties, and the models that it runs on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reference_impls.accounting.count import count
from reference_impls.benchmarks.token_reduction import RANDOM_DROPPING, RANDOM_MERGING, attached, chance_match
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.hosts import transformer_blocks
from reference_impls.models.vit import VisionTransformer, small_vit, vit_small_patch16_224
from reference_impls.redundancy.spatial_similarity import best_match, spatial_similarity
from reference_impls.study import forward, seeded
from reference_impls.techniques import token_merging as technique
from reference_impls.techniques.token_merging import bipartite_soft_matching, matching_macs, merge, tokens_left

TOME = technique.TokenMerging()
DIM, HEADS, PATCHES = 32, 2, 16

# --- Cases: tiny ViTs whose patches are random, all equal, or mutually orthogonal to the keys


def tiny_vit(seed: int) -> VisionTransformer:
    """Three blocks on images of 16 patches of 4 x 4 pixels."""
    size = {"image_size": 16, "patch_size": 4, "in_channels": 1, "num_classes": 10}
    return seeded(seed, lambda: small_vit(**size, dim=DIM, depth=3, num_heads=HEADS, mlp_ratio=2.0))


def orthogonal_vit(seed: int) -> VisionTransformer:
    """A tiny ViT in which the keys of 16 one-hot patches are mutually orthogonal (slightly opposed) in every block.

    Patch i has its one lit pixel at place i, embedding and keys copy the pixels, positions are zero, and all branches
    but the last block's add nothing, so the tokens reach every block as they are.
    """
    model = tiny_vit(seed)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.copy_(torch.eye(DIM, PATCHES).view_as(model.patch_embed.proj.weight))
        model.patch_embed.proj.bias.zero_()
        for block in model.blocks:
            block.attn.qkv.weight[DIM : 2 * DIM] = torch.eye(DIM // HEADS, DIM).repeat(HEADS, 1)
        for block in model.blocks[:-1]:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
    return model


class TokenMergingCases(Cases):
    """Tiny ViTs on images of 16 patches: random, of equal patches without positions, or of one-hot patches."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        model = orthogonal_vit(seed) if kind == "null" else tiny_vit(seed)
        patches = torch.rand(3, PATCHES, PATCHES, generator=generator(seed))  # (B, N, pixels of a patch)
        if kind == "redundant":
            patches = patches[:, :1].expand(-1, PATCHES, -1)
            nn.init.zeros_(model.pos_embed)
        elif kind == "null":
            patches = torch.eye(PATCHES).expand(3, -1, -1)
        x = patches.unflatten(2, (1, 4, 4)).unflatten(1, (4, 4))  # (B, 4, 4, 1, 4, 4)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(3, 1, 16, 16)
        return Case(model.to(device), x.to(device), run=lambda model, x: model(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        draws = generator(seed)
        for tokens, prefix in product((5, 8, 9, 17), (0, 1, 2, 3)):
            metric = torch.randn(3, tokens, 5, generator=draws).to(device)
            for r in (1, tokens // 4 + 1, tokens):
                kept, groups = zip(*(brute_force(m.tolist(), r, prefix) for m in metric), strict=True)
                match = bipartite_soft_matching(metric, r, prefix=prefix)
                of = f"of {tokens} tokens at r={r}, prefix {prefix}"
                yield Expectation(f"order {of}", torch.tensor(kept, device=device), match.kept)
                yield Expectation(f"groups {of}", torch.tensor(groups, device=device), match.group)
        x = torch.eye(6, device=device).unsqueeze(0)
        x[0, 2], x[0, 4] = x[0, 3], x[0, 1] + 0.5 * x[0, 3]  # 2 equals 3, 4 is nearest to 1
        for r, by_hand in ((1, [[1, 2, 3, 3, 0, 4]]), (2, [[0, 1, 2, 2, 1, 3]])):  # 4 stays as the closer one of A
            groups = torch.tensor(by_hand, device=device)
            yield Expectation(f"the most similar pairs at r={r}", groups, bipartite_soft_matching(x, r).group)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        draws = generator(seed)
        x = torch.randn(2, 11, 4, generator=draws, dtype=torch.float64).to(device)
        size = torch.randint(1, 9, (2, 11), generator=draws).to(x)
        match = bipartite_soft_matching(x, 4, prefix=1)
        merged, merged_size = merge(x, size, match)
        yield Expectation("patches", size.sum(1), merged_size.sum(1))
        yield Expectation("weighted sum", (x * size[..., None]).sum(1), (merged * merged_size[..., None]).sum(1))
        yield Expectation("class token", x[:, 0], merged[:, 0])

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        bad = case.inputs.clone()
        bad[0, 0, 0, 0] = torch.nan
        keys = torch.randn(2, 9, 4, device=device)

        def run_on_nan() -> None:
            with TOME.apply(case.target, r=2) as handle:
                run(handle.target, bad)

        yield Invalid("keys of rank 2", lambda: bipartite_soft_matching(keys[0], 2), "metric must have shape (B, N, C)")
        yield Invalid("integer keys", lambda: bipartite_soft_matching(keys.long(), 2), "floating point")
        yield Invalid("inputs with NaN", run_on_nan, "not finite")
        yield Invalid("too short a schedule", lambda: TOME.apply(case.target, r=[1, 2]), "each of the 3 blocks")
        yield Invalid("neither r nor threshold", lambda: TOME.apply(case.target, r=None), "needs a threshold")
        for other in (nn.Conv2d(1, 1, 1), nn.TransformerEncoderLayer(8, 2), nn.Sequential(), object(), None):
            yield Invalid(type(other).__name__, partial(TOME.apply, other, r=2), "needs a transformer whose blocks")


def brute_force(metric: list[list[float]], r: int, prefix: int) -> tuple[list[int], list[int]]:
    """One datum by plain loops over the official rule: positions of the tokens that stay, in their new order, and for
    each token the index of its group among them.

    Tokens at even positions form A, the others B. A class token (position 0) never merges, nothing merges into a
    distillation token (position 1), and at most half of the others merge. What is left of A comes first, by position
    where there is a class token and else by falling cosine, then all of B; protected tokens come before all.
    """

    def cosine(u: list[float], v: list[float]) -> float:
        dot, norms = sum(map(float.__mul__, u, v)), [sum(map(float.__mul__, w, w)) ** 0.5 for w in (u, v)]
        return dot / (norms[0] * norms[1])

    tokens = range(len(metric))
    a = [i for i in tokens if i % 2 == 0 and i >= prefix]
    b = [j for j in tokens if j % 2 == 1 and j >= prefix]
    edges = sorted((max((cosine(metric[i], metric[j]), j, i) for j in b) for i in a), reverse=True) if b else []
    into = {i: j for _, j, i in edges[: min(r, (len(metric) - prefix) // 2)]}
    left = [i for _, _, i in edges if i not in into] if b else a
    kept = [*range(prefix), *(sorted(left) if prefix else left), *b]
    return kept, [kept.index(into.get(i, i)) for i in tokens]


CASES = TokenMergingCases()


@pytest.fixture
def draws() -> torch.Generator:
    return generator(0)


def run(model: nn.Module, x: Tensor) -> Tensor:
    return forward(model, x)()


# --- Matching


def test_nothing_merges_at_r_0_or_without_a_partner(draws: torch.Generator) -> None:
    metric = torch.randn(2, 10, 4, generator=draws)
    assert bipartite_soft_matching(metric, 0) is None
    assert bipartite_soft_matching(metric, 3, prefix=9) is None


def test_threshold_merges_what_the_datum_with_the_fewest_similar_pairs_allows() -> None:
    batch = torch.eye(6)[torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 3, 4]])]  # 3 pairs of equals, and 1
    assert bipartite_soft_matching(batch[:1], threshold=0.99).source.shape == (1, 3)
    assert bipartite_soft_matching(batch, threshold=0.99).source.shape == (2, 1)
    assert bipartite_soft_matching(batch[:1], 2, threshold=0.99).source.shape == (1, 2)
    assert bipartite_soft_matching(torch.eye(6)[None], threshold=0.01) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_any_scale_choose_the_same_pairs(dtype: torch.dtype, draws: torch.Generator) -> None:
    metric = torch.randn(4, 40, 16, generator=draws).to(dtype)
    expected = bipartite_soft_matching(metric.float(), 9, prefix=1)
    with torch.autocast("cpu", torch.bfloat16):
        matches = [bipartite_soft_matching(metric * scale, 9, prefix=1) for scale in (1, 2.0**-10, 2.0**10)]
    matches += [bipartite_soft_matching(metric.float() * scale, 9, prefix=1) for scale in (1e-30, 1e30)]
    for match in matches:
        assert torch.equal(match.order, expected.order)
        assert torch.equal(match.target, expected.target)


# --- Merging


def test_merge_is_the_size_weighted_mean_and_conserves_sum_and_size(draws: torch.Generator) -> None:
    x = torch.randn(3, 15, 8, generator=draws, dtype=torch.float64)
    size = torch.randint(1, 6, (3, 15), generator=draws).double()
    match = bipartite_soft_matching(x, 6, prefix=1)
    merged, merged_size = merge(x, size, match)
    member = F.one_hot(match.group, 9).double()  # (B, N, groups)
    sums = torch.einsum("bng,bn,bnd->bgd", member, size, x)
    torch.testing.assert_close(merged_size, torch.einsum("bng,bn->bg", member, size), rtol=0, atol=0)
    torch.testing.assert_close(merged, sums / merged_size[..., None], rtol=1e-12, atol=1e-12)


def test_tokens_that_take_no_part_stay_equal_bit_for_bit(draws: torch.Generator) -> None:
    x = torch.randn(2, 13, 4, generator=draws)
    size = torch.full((2, 13), 3.0)
    match = bipartite_soft_matching(x, 3, prefix=1)
    merged, merged_size = merge(x, size, match)
    alone = merged_size == 3.0
    assert alone.sum() >= 2 * (10 - 3)
    assert bool(alone[:, 0].all())
    assert torch.equal(merged[alone], technique.rows(x, match.kept)[alone])


def test_exact_duplicates_merge_and_unmerge_without_loss(draws: torch.Generator) -> None:
    x = torch.randn(2, 5, 7, generator=draws)[:, [0, 1, 1, 2, 2, 3, 3, 1, 1]]
    match = bipartite_soft_matching(x, 4, prefix=1)
    merged, size = merge(x, torch.ones(2, 9), match)
    assert size.shape == (2, 5)
    assert torch.equal(technique.unmerge(merged, match), x)


def test_proportional_attention_equals_attention_over_the_duplicates(draws: torch.Generator) -> None:
    model = tiny_vit(0).double()
    block = transformer_blocks("token-merging", model)[1]
    few = torch.randn(1, 4, 32, generator=draws, dtype=torch.float64)
    sizes = torch.tensor([[1, 5, 2, 3]])
    many = few[:, torch.repeat_interleave(torch.arange(4), sizes[0])]
    with torch.no_grad():
        dense, _ = block.attention(many)
        proportional, _ = block.attention(few, sizes.double().log()[:, None, None])
        plain, _ = block.attention(few)
    of_first = torch.tensor([0, 1, 6, 8])  # the first copy of each token
    torch.testing.assert_close(proportional, dense[:, of_first], rtol=1e-12, atol=1e-12)
    assert (plain - dense[:, of_first]).abs().max() > 1e-3


# --- The whole of a transformer, against plain loops


def by_loops(blocks: nn.Sequential, x: Tensor, r: int, prefix: int) -> tuple[Tensor, list[float], list[int]]:
    """One datum x: (N, D) through blocks that merge by the official rule: tokens, sizes, and each patch's token."""
    tokens, sizes, group = list(x), [1.0] * len(x), list(range(len(x)))
    for block in blocks:
        n, heads = len(tokens), block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(torch.stack(tokens))).reshape(n, 3, heads, -1).permute(1, 2, 0, 3)
        mixed = []
        for i in range(n):
            logits = [
                [q[h, i] @ k[h, j] * block.attn.scale + math.log(sizes[j]) for j in range(n)] for h in range(heads)
            ]
            weights = [torch.stack(row).softmax(0) for row in logits]
            mixed.append(torch.cat([sum(w[j] * v[h, j] for j in range(n)) for h, w in enumerate(weights)]))
        tokens = [t + block.attn.proj(m) for t, m in zip(tokens, mixed, strict=True)]
        kept, into = brute_force(k.mean(0).tolist(), r, prefix)
        members = [[i for i in range(n) if into[i] == g] for g in range(len(kept))]
        tokens = [sum(sizes[i] * tokens[i] for i in some) / sum(sizes[i] for i in some) for some in members]
        sizes = [sum(sizes[i] for i in some) for some in members]
        group = [into[g] for g in group]
        tokens = [t + block.mlp(block.norm2(t)) for t in tokens]
    return torch.stack(tokens), sizes, group


@torch.no_grad()
@pytest.mark.parametrize("prefix", range(4))
@pytest.mark.parametrize("r", [1, 2, 3, 20])
def test_a_transformer_makes_the_official_decisions(prefix: int, r: int, draws: torch.Generator) -> None:
    blocks = tiny_vit(0).blocks.double()
    x = torch.randn(2, 9, DIM, generator=draws, dtype=torch.float64)
    with TOME.apply(blocks, r=r, prefix=prefix) as handle:
        whole = blocks(x)
        trace = handle.trace
    for image, got, groups in zip(x, whole, trace["group"], strict=True):
        tokens, _, group = by_loops(blocks, image, r, prefix)
        assert groups.tolist() == group
        torch.testing.assert_close(got, tokens[group], rtol=1e-10, atol=1e-12)


def test_options_keep_the_order_and_split_behind_the_prefix(draws: torch.Generator) -> None:
    metric = torch.randn(2, 10, 4, generator=draws)
    kept = bipartite_soft_matching(metric, 3, prefix=1, keep_order=True).kept
    assert torch.equal(kept, kept.sort(1).values)
    after = bipartite_soft_matching(metric, 3, prefix=1, split_behind_prefix=True)
    alone = bipartite_soft_matching(metric[:, 1:], 3)
    assert torch.equal(after.source, alone.source + 1)
    assert torch.equal(after.group[:, 1:] == after.group[:, -1:], alone.group == alone.group[:, -1:])
    case = CASES.build("typical", 0, "cpu")
    with TOME.apply(case.target, r=4, keep_order=True, split_behind_prefix=True) as handle, count() as merged:
        run(case.target, case.inputs)
    with count() as dense:
        run(case.target, case.inputs)
    assert dense.macs - merged.macs == TOME.saving(case.target, case.inputs, handle.trace)


# --- In other people's hands


class Logits(nn.Module):
    """Checkpoints each block, as training with little memory does."""

    def __init__(self, model: VisionTransformer, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.embed(x)
        for block in self.model.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.model.forward_head(self.model.norm(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_give_the_same_gradients(reentrant: bool) -> None:
    case = CASES.build("typical", 0, "cpu")
    gradients = []
    for model in (case.target, Logits(case.target, reentrant)):
        case.target.zero_grad()
        with TOME.apply(case.target, r=3):
            model(case.inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in case.target.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@torch.no_grad()
def test_readers_between_blocks_see_every_token() -> None:
    case, seen = CASES.build("typical", 0, "cpu"), []
    for block in case.target.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append((args[0] + 0, output + 0)))
    with TOME.apply(case.target, r=4) as handle:
        case.target(case.inputs)
        group = handle.trace["group"]
    assert [tuple(t.shape) for pair in seen for t in pair] == [(3, 17, DIM)] * 6
    for (_, output), (given, _) in itertools.pairwise(seen):
        assert torch.equal(output, given)
    last = seen[-1][1]
    assert all(torch.equal(t[g == i], t[g == i][:1].expand_as(t[g == i])) for t, g in zip(last, group) for i in g)  # noqa: B905


def test_tokens_changed_between_blocks_are_refused() -> None:
    blocks = tiny_vit(0).blocks
    stack = nn.Sequential(blocks[0], nn.Dropout(0.0), blocks[1])
    with TOME.apply(blocks, r=2), pytest.raises(NotImplementedError, match="something between the blocks"):
        stack(torch.zeros(1, 9, DIM))


@torch.no_grad()
def test_graphs_of_a_fixed_r_are_right_for_other_data_and_batches() -> None:
    case, other = (CASES.build("typical", seed, "cpu").inputs for seed in (0, 1))
    case = CASES.build("typical", 0, "cpu")
    x, other = case.inputs[:2], torch.cat([case.inputs, other])
    batch = torch.export.Dim("batch", min=2, max=64)
    with TOME.apply(case.target, r=3):
        expected = case.target(other)
        exported = torch.export.export(case.target, (x,), dynamic_shapes={"x": {0: batch}})
        torch.testing.assert_close(exported.module()(other), expected)
        torch._dynamo.reset()
        compiled = torch.compile(case.target, backend="eager", fullgraph=True)  # no graph break
        torch.testing.assert_close(compiled(other), expected)
        traced = torch.jit.trace(case.target, x[:1], check_trace=False)
        torch.testing.assert_close(traced(other), expected)
    with TOME.apply(case.target, r=None, threshold=0.5):
        for capture in (torch.export.export, partial(torch.jit.trace, check_trace=False)):
            with pytest.raises(NotImplementedError, match="with a fixed r"):
                capture(case.target, (x,))


@torch.no_grad()
def test_onnx_runs_the_merged_model(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    case, other = (CASES.build("typical", seed, "cpu") for seed in (0, 1))
    with TOME.apply(case.target, r=3):
        torch.onnx.export(case.target, (case.inputs,), tmp_path / "vit.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "vit.onnx")
        (got,) = session.run(None, {session.get_inputs()[0].name: other.inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), case.target(other.inputs), rtol=1e-4, atol=1e-5)


def test_degenerate_batches() -> None:
    blocks = tiny_vit(0).blocks
    for shape in ((1, 1, DIM), (0, 9, DIM), (2, 2, DIM), (2, 3, DIM)):
        x = torch.ones(shape)
        with TOME.apply(blocks, r=2, prefix=1):
            assert run(blocks, x).shape == shape
    with TOME.apply(blocks, r=2):  # equal tokens, of which none is a direction
        assert bool(run(blocks, torch.zeros(1, 5, DIM)).isfinite().all())
    assert bipartite_soft_matching(torch.zeros(1, 4, 3), 1).target.shape == (1, 1)


# --- On a transformer


def test_equal_patches_merge_without_changing_the_result_only_with_proportional_attention() -> None:
    case = CASES.build("redundant", 3, "cpu")
    target, x = case.target.double(), case.inputs.double()
    plain = run(target, x)
    with TOME.apply(target, r=None, threshold=0.99) as handle:
        torch.testing.assert_close(run(target, x), plain, rtol=1e-12, atol=1e-12)
        assert handle.trace["tokens"] == ((17, 9), (9, 5), (5, 3))
    with TOME.apply(target, r=8, proportional=False):
        assert (run(target, x) - plain).abs().max() > 1e-6


def test_dissimilar_tokens_are_left_alone_bit_for_bit() -> None:
    case = CASES.build("null", 0, "cpu")
    plain = run(case.target, case.inputs)
    with TOME.apply(case.target, r=None, threshold=0.5) as handle:
        assert torch.equal(run(case.target, case.inputs), plain)
        assert handle.trace["tokens"] == ((17, 17),) * 3


@pytest.mark.parametrize(("r", "left"), [(3, (14, 11, 8)), ([0, 5, 2], (17, 12, 10)), (100, (9, 5, 3))])
def test_schedules_and_the_groups_they_leave(r: int | list[int], left: tuple[int, ...]) -> None:
    case = CASES.build("typical", 0, "cpu")
    with TOME.apply(case.target, r=r) as handle:
        run(case.target, case.inputs)
        assert tuple(after for _, after in handle.trace["tokens"]) == left
        assert handle.trace["group"].unique().tolist() == list(range(left[-1]))
    if isinstance(r, int):
        assert tuple(tokens_left(17, r, 3)) == left


def test_tokens_come_back_for_dense_outputs() -> None:
    case = CASES.build("typical", 0, "cpu")
    with torch.no_grad(), TOME.apply(case.target, r=4) as handle:
        features = case.target.forward_features(case.inputs)
        group = handle.trace["group"]
    assert features.shape == (3, 1 + PATCHES, 32)
    for tokens, index in zip(features, group, strict=True):
        for g in index.unique():
            same = tokens[index == g]
            assert torch.equal(same, same[:1].expand_as(same))


def test_the_macs_of_vit_small_fall_by_the_closed_form() -> None:
    """The published shape, ViT-S/16 at r=13, without running it: the sum of the terms in the docstring of `saving`."""
    with torch.device("meta"):
        model, d, hidden = vit_small_patch16_224(), 384, 1536
    left = tokens_left(197, 13, 12)
    before = [197, *left[:-1]]
    trace = {"batch": 2, "tokens": tuple(zip(before, left, strict=True)), "matched": (True,) * 12}
    trace |= {"prefix": None, "split_behind_prefix": False}
    terms = 0
    for n, m in trace["tokens"]:
        terms += 4 * (197 - n) * d**2 + 2 * (197**2 - n**2) * d + 2 * (197 - m) * d * hidden
        terms -= matching_macs(n, 1, 64)
    assert left[-1] == 41
    assert TOME.saving(model, torch.empty(0), trace) == 2 * terms
    dense = 12 * (4 * 197 * d**2 + 2 * 197**2 * d + 2 * 197 * d * hidden) + 196 * 768 * d + d * 1000
    assert dense / (dense - terms) == pytest.approx(1.70, abs=0.005)


# --- Controls of the experiments


@pytest.mark.parametrize("control", [RANDOM_MERGING, RANDOM_DROPPING])
def test_controls_lose_as_many_tokens(control) -> None:
    case = CASES.build("typical", 0, "cpu")
    with count() as by_chance:
        run(attached(case.target, control, 4), case.inputs)
    with TOME.apply(case.target, r=4) as handle, count() as merged:
        run(case.target, case.inputs)
    matching = 3 * sum(matching_macs(n, 1, 16) for n, _ in handle.trace["tokens"])
    assert merged.macs - matching == by_chance.macs


def test_chance_pairs_are_pairs_of_a_and_b(draws: torch.Generator) -> None:
    match = chance_match(draws)(torch.zeros(5, 17, 4), 6, 1)
    assert bool((match.source % 2 == 1).all())
    assert match.kept.shape == (5, 11)
    assert bool((match.kept.gather(1, match.target) % 2 == 0).all())


# --- The measure


def test_best_match_agrees_with_brute_force(draws: torch.Generator) -> None:
    x = torch.randn(2, 6, 4, generator=draws)
    best = best_match(x)
    for b in range(2):
        for i in range(6):
            others = [F.cosine_similarity(x[b, i], x[b, j], dim=0) for j in range(6) if j != i]
            assert best[b, i] == pytest.approx(max(others).item(), abs=1e-6)


def test_the_measure_at_its_ends(draws: torch.Generator) -> None:
    same = torch.randn(1, 1, 5, generator=draws).expand(1, 7, 5)
    orthogonal = torch.eye(5)[None]
    apart = torch.stack([torch.ones(5), -torch.ones(5)])[None]
    for centred in (False, True):
        assert spatial_similarity(same, centred=centred).item() == pytest.approx(1)
        assert spatial_similarity(orthogonal, centred=centred).item() == pytest.approx(0, abs=1e-6)
        assert spatial_similarity(apart, centred=centred).item() == 0
    assert spatial_similarity(torch.zeros(1, 3, 4)).item() == 1
    assert spatial_similarity(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])).item() == 0
    assert spatial_similarity(torch.ones(2, 1, 4)).tolist() == [0, 0]


def test_centring_removes_a_common_mean(draws: torch.Generator) -> None:
    x = torch.randn(4, 64, 32, generator=draws) + 10
    assert spatial_similarity(x).min() > 0.98
    assert spatial_similarity(x, centred=True).max() < 0.6


# --- Hugging Face hosts, small and random, without any download


# A small configuration, initialised widely so that tokens differ.
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24, "patch_size": 4}
SMALL |= {"initializer_range": 0.3}
HUGGING_FACE = {  # arguments of its configuration, and its number of leading tokens
    "ViTModel": (SMALL | {"intermediate_size": 48}, 1),
    "ViTForImageClassification": (SMALL | {"intermediate_size": 48, "attn_implementation": "eager"}, 1),
    "DeiTModel": (SMALL | {"intermediate_size": 48}, 2),
    "Dinov2Model": (SMALL | {"mlp_ratio": 2}, 1),
    "Dinov2Model with SwiGLU": (SMALL | {"use_swiglu_ffn": True}, 1),
    "Dinov2WithRegistersModel": (SMALL | {"mlp_ratio": 2, "num_register_tokens": 4}, 5),
}


@pytest.mark.transformers
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_hosts(name: str, draws: torch.Generator) -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name.split()[0])
    config, prefix = HUGGING_FACE[name]
    model = seeded(0, lambda: kind(kind.config_class(**config))).eval()
    x = torch.randn(2, 3, 24, 24, generator=draws)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = run(model, x)[0]
    with TOME.apply(model, r=None, threshold=1.0):  # nothing is that similar: the adapter's own attention runs densely
        torch.testing.assert_close(run(model, x)[0], plain, rtol=1e-4, atol=1e-5)
    with count() as dense:
        run(model, x)[0]
    with TOME.apply(model, r=[4, 0, 6]) as handle:
        with count() as merged:
            got = run(model, x)[0]
        assert got.shape == plain.shape
        assert not torch.equal(got, plain)
        n = 36 + prefix
        assert handle.trace["tokens"] == ((n, n - 4), (n - 4, n - 4), (n - 4, n - 10))
        assert handle.trace["group"][:, :prefix].tolist() == [list(range(prefix))] * 2
        assert dense.macs - merged.macs == TOME.saving(model, x, handle.trace)
    assert torch.equal(run(model, x)[0], plain)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert 0 < TOME.measure(model, x).value < 1


def test_a_mask_is_refused_rather_than_ignored() -> None:
    model = tiny_vit(0)
    with TOME.apply(model, r=2), pytest.raises(NotImplementedError, match="block 0"):
        model.blocks[0](torch.zeros(1, 3, 32), torch.ones(3, 3))
