"""Token merging in other people's vision transformers: what each family has beside attention and MLP.

`tests/test_families.py` holds the families that most people try, `tests/test_matrix.py` the modes in which they run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from reference_impls.accounting.count import count
from reference_impls.contract import Handle, UnsupportedHost
from reference_impls.hosts import transformer_blocks
from reference_impls.hosts.block import Positions
from reference_impls.techniques.token_merging import Merging, TokenMerging
from tests.families import ON_IMAGES, PATCH, VISION, WIDTH, Case, hugging_face, images, randomised
from tests.other_models import transformers_class
from tests.support import assert_close, generator

TOME, EXACT = TokenMerging(), 1e-5


@contextmanager
def applied(model: nn.Module, **knobs: Any) -> Iterator[Handle]:
    with TOME.apply(model, **knobs) as handle, torch.no_grad():
        yield handle


@contextmanager
def rebuilt(model: nn.Module) -> Iterator[None]:
    """Every block runs as its adapter sees it, and nothing merges."""
    blocks = transformer_blocks(TOME.id, model)
    merging = Merging(blocks, [1] * len(blocks), match=lambda metric, r, prefix: None)
    try:
        yield
    finally:
        merging.undo()


def run(case: Case) -> Tensor:
    with torch.no_grad():
        return case.run(case.model, case.inputs)


# --- positions of merged tokens


@pytest.mark.parametrize("heads", [1, 4])
def test_merged_tokens_attend_as_all_that_they_stand_for(heads: int) -> None:
    """Attention to n tokens is that to N of which those of a group are equal, seen from the place of the anchor."""
    draws = generator(3)
    q, k, v = (torch.randn(2, 4, 7, 8, generator=draws) for _ in range(3))
    bias, group = (
        torch.randn(2, heads, 7, 7, generator=draws),
        torch.tensor([[0, 1, 1, 2, 0, 2, 1], [2, 2, 0, 0, 1, 2, 2]]),
    )
    anchor = torch.tensor([[4, 1, 3], [3, 4, 5]])
    spread = [y.gather(2, anchor[:, None, :, None].expand(-1, 4, -1, 8)) for y in (q, k, v)]
    q, k, v = spread[0], *(y.gather(2, group[:, None, :, None].expand(-1, 4, -1, 8)) for y in spread[1:])
    rows = bias.gather(2, anchor[:, None, :, None].expand(-1, heads, -1, 7))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=rows)
    merged = Positions(bias).of(anchor, group, sizes=True).bias
    assert_close(F.scaled_dot_product_attention(q, *spread[1:], attn_mask=merged), expected, EXACT)
    alone = Positions(bias).of(anchor, group, sizes=False).bias
    assert torch.equal(alone, rows.gather(3, anchor[:, None, None, :].expand(-1, heads, 3, -1)))


def test_a_merged_token_keeps_the_place_of_its_anchor() -> None:
    angles = torch.randn(1, 1, 5, 4, generator=generator(4))
    anchor, group = torch.tensor([[0, 3], [2, 4]]), torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 1]])
    cos, sin = Positions(rotary=(angles.cos(), angles.sin())).of(anchor, group, sizes=True).rotary
    assert torch.equal(cos, angles.cos()[0, :, anchor].transpose(0, 1))
    assert torch.equal(sin, angles.sin()[0, :, anchor].transpose(0, 1))


# --- Hugging Face


def logits(model: Any, x: Tensor, **options: Any) -> Tensor:
    return model(x, **options).logits


def states(model: Any, x: Tensor, **options: Any) -> Tensor:
    return model(x, **options).last_hidden_state


def wide(model: Any, x: Tensor, **options: Any) -> Tensor:
    """On images of another grid than the model is made for, 4 x 6 patches."""
    return states(model, torch.cat((x, x.flip(-1)[..., : 2 * PATCH]), -1), **options)


def feature_maps(model: Any, x: Tensor) -> Tensor:
    return torch.cat(model(x).feature_maps, 1)


def depth(model: Any, x: Tensor) -> Tensor:
    return model(x).predicted_depth


def depth_anything() -> Case:
    kind, small = transformers_class("DepthAnythingForDepthEstimation"), {"neck_hidden_sizes": [8, 8]}
    backbone = transformers_class("Dinov2Config")(**ON_IMAGES, out_indices=[1, 3], reshape_hidden_states=False)
    small |= {"fusion_hidden_size": 8, "reassemble_factors": [2, 1], "head_hidden_size": 8}
    config = kind.config_class(backbone_config=backbone, reassemble_hidden_size=WIDTH, patch_size=PATCH, **small)
    return Case(randomised(kind(config)), images(), depth)


def siglip2() -> Case:
    def on_patches(model: Any, x: Tensor) -> Tensor:
        patches = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        sizes, mask = torch.tensor([[4, 4]] * len(x)), torch.ones(len(x), 16, dtype=torch.long)
        return states(model, patches, pixel_attention_mask=mask, spatial_shapes=sizes)

    return hugging_face("Siglip2VisionModel", on_patches, num_patches=16)


OWN, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
EAGER = {"attn_implementation": "eager"}
MASKED = {"bool_masked_pos": (torch.arange(16) % 3 == 0).repeat(2, 1)}
DECODER = {
    "mask_ratio": 0.25,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
}
NECK = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "reassemble_factors": [4, 2, 1, 0.5]}
HUGGING_FACE: Mapping[str, tuple[int, Callable[[], Case]]] = {  # number of leading tokens, and the model
    "ViT, another grid": (1, partial(hugging_face, "ViTModel", partial(wide, interpolate_pos_encoding=True))),
    "ViT, eager": (1, partial(hugging_face, "ViTModel", **EAGER)),
    "ViT on masked patches": (
        1,
        partial(
            hugging_face,
            "ViTForMaskedImageModeling",
            lambda model, x: model(x, **MASKED).reconstruction,
            encoder_stride=PATCH,
        ),
    ),
    "ViT-MSN": (1, partial(hugging_face, "ViTMSNModel")),
    "I-JEPA": (0, partial(hugging_face, "IJepaModel")),
    "DINOv2 as a backbone": (1, partial(hugging_face, "Dinov2Backbone", feature_maps, out_indices=[1, 3])),
    "DINOv3 with a gated MLP": (5, partial(hugging_face, "DINOv3ViTModel", use_gated_mlp=True, num_register_tokens=4)),
    "DINOv3, another grid": (3, partial(hugging_face, "DINOv3ViTModel", wide, num_register_tokens=2)),
    "BEiT with both biases": (1, partial(hugging_face, "BeitModel", **OWN, **SHARED)),
    "BEiT, eager": (1, partial(hugging_face, "BeitModel", **OWN, **SHARED, **EAGER)),
    "BEiT without layer scale": (1, partial(hugging_face, "BeitModel", layer_scale_init_value=0.0)),
    "BEiT, another grid": (1, partial(hugging_face, "BeitModel", wide, **OWN)),
    "BEiT, bias interpolated": (
        1,
        partial(hugging_face, "BeitModel", partial(states, interpolate_pos_encoding=True), **OWN),
    ),
    "BEiT on masked patches": (
        1,
        partial(hugging_face, "BeitModel", partial(states, **MASKED), use_mask_token=True, **OWN),
    ),
    "BEiT as a backbone": (1, partial(hugging_face, "BeitBackbone", feature_maps, out_indices=[1, 2], **OWN)),
    "Data2Vec": (1, partial(hugging_face, "Data2VecVisionModel", **OWN)),
    "Data2Vec with shared biases": (1, partial(hugging_face, "Data2VecVisionModel", **SHARED)),
    "ViT-MAE with its decoder": (
        1,
        partial(
            hugging_face,
            "ViTMAEForPreTraining",
            lambda model, x: logits(model, x, noise=torch.arange(16.0).repeat(2, 1)),
            **DECODER,
        ),
    ),
    "CLIP, eager": (1, partial(hugging_face, "CLIPVisionModel", **EAGER)),
    "SigLIP, pooled": (0, partial(hugging_face, "SiglipVisionModel", lambda model, x: model(x).pooler_output)),
    "SigLIP 2": (0, siglip2),
    "DPT": (
        1,
        partial(
            hugging_face, "DPTForDepthEstimation", depth, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], **NECK
        ),
    ),
    "Depth Anything": (1, depth_anything),
    "AST": (
        2,
        partial(
            hugging_face,
            "ASTModel",
            lambda model, x: states(model, x[:, 0]),
            max_length=32,
            num_mel_bins=32,
            frequency_stride=PATCH,
            time_stride=PATCH,
        ),
    ),
}


@pytest.mark.transformers
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_hugging_face_model_is_exact_and_its_saving_is_counted(name: str) -> None:
    prefix, build = HUGGING_FACE[name]
    case = build()
    dense = run(case)
    with rebuilt(case.model):
        assert_close(run(case), dense, EXACT)
    with applied(case.model, r=2) as handle:
        with count() as merging:
            merged = run(case)
        tokens, group = handle.trace["tokens"], handle.trace["group"]
    assert all(before - after == 2 for before, after in tokens)
    assert merged.shape == dense.shape
    assert not torch.equal(merged, dense)
    leading = group[:, :prefix].clone()
    assert leading.tolist() == [list(range(prefix))] * len(group)
    assert not torch.isin(group[:, prefix:], leading).any()
    with count() as plain:
        assert torch.equal(run(case), dense)
    assert plain.macs - merging.macs == TOME.saving(case.model, case.inputs, handle.trace)


NOISY = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
NOISY_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "ViTModel": NOISY,
    "Dinov2Model": NOISY | {"drop_path_rate": 0.4},
    "BeitModel": NOISY | OWN | {"drop_path_rate": 0.4},
    "DINOv3ViTModel": {"attention_dropout": 0.3, "drop_path_rate": 0.4},
    "CLIPVisionModel": {"attention_dropout": 0.3},
    "SiglipVisionModel": {"attention_dropout": 0.3},
}


@pytest.mark.transformers
@pytest.mark.parametrize("name", NOISY_FAMILIES)
def test_training_drops_what_the_model_drops(name: str) -> None:
    case = hugging_face(name, **NOISY_FAMILIES[name])
    evaluated = run(case)
    case.model.train()

    def draw() -> Tensor:
        torch.manual_seed(5)
        return run(case)

    dropped = draw()
    assert not torch.equal(dropped, evaluated)
    with rebuilt(case.model):
        assert_close(draw(), dropped, EXACT)


@pytest.mark.transformers
@pytest.mark.parametrize("name", ["ViT classifier", "BEiT", "CLIP vision tower", "DINOv3"])
def test_outputs_keep_their_types_and_shapes(name: str) -> None:
    case = VISION[name]()
    for options in ({"return_dict": False}, {"output_hidden_states": True}):
        with torch.no_grad():
            dense = case.model(case.inputs, **options)
        with applied(case.model, r=2):
            merged = case.model(case.inputs, **options)
        assert type(merged) is type(dense)
        (leaves, kinds), (merged_leaves, merged_kinds) = tree_flatten(dense), tree_flatten(merged)
        assert kinds == merged_kinds
        assert [(one.shape, one.dtype) for one in merged_leaves] == [(one.shape, one.dtype) for one in leaves]


@pytest.mark.transformers
def test_attention_maps_are_refused_where_they_are_asked_for() -> None:
    """By the configuration: at `apply`. By the call: in the run."""
    case = hugging_face("ViTModel", output_attentions=True, **EAGER)
    for attempt in (lambda: TOME.apply(case.model, r=2), lambda: TOME.measure(case.model, case.inputs)):
        with pytest.raises(UnsupportedHost, match="output_attentions"):
            attempt()
    case = hugging_face("CLIPVisionModel", **EAGER)
    with applied(case.model, r=2), pytest.raises(NotImplementedError, match="output_attentions"):
        case.model(case.inputs, output_attentions=True)


@pytest.mark.transformers
def test_masks_are_refused_rather_than_ignored() -> None:
    case = siglip2()
    patches, sizes = torch.randn(2, 16, 3 * PATCH**2), torch.tensor([[3, 4]] * 2)
    mask = torch.arange(16).repeat(2, 1).lt(12).long()
    with applied(case.model, r=2), pytest.raises(NotImplementedError, match=r"block 0.*attention_mask"):
        case.model(patches, pixel_attention_mask=mask, spatial_shapes=sizes)


@pytest.mark.transformers
def test_a_mask_is_told_from_a_bias() -> None:
    """BEiT gives its blocks the bias that they share as if it were a mask."""
    case = hugging_face("BeitModel", **SHARED)
    if "attention_mask" not in inspect.signature(case.model.forward).parameters:
        pytest.skip("this version of BEiT takes no mask")
    with applied(case.model, r=2):
        merged = run(case)
        mask = torch.ones(2, 17, dtype=torch.long)
        assert_close(case.model(case.inputs, attention_mask=mask).last_hidden_state, merged, EXACT)
    case.model.set_attn_implementation("eager")
    mask[:, 9:] = 0
    with applied(case.model, r=2), pytest.raises(NotImplementedError, match=r"block 0.*attention_mask"):
        case.model(case.inputs, attention_mask=mask)


@pytest.mark.transformers
def test_a_tower_of_a_larger_model_is_merged_in_its_place() -> None:
    """CLIP as a whole is refused, for its text is read under masks; its vision tower is not."""
    case = VISION["CLIP"]()
    dense = run(case)
    with rebuilt(case.model.vision_model):
        assert_close(run(case), dense, EXACT)
    with applied(case.model.vision_model, r=2):
        assert not torch.equal(run(case), dense)
    assert torch.equal(run(case), dense)


@pytest.mark.transformers
def test_tokens_with_unknown_places_are_asked_for() -> None:
    model = hugging_face("YolosModel", image_size=[32, 32], num_detection_tokens=4).model
    with pytest.raises(UnsupportedHost, match="prefix="):
        TOME.apply(model, r=2)
    with applied(model, r=2, prefix=1) as handle:
        assert handle.target is model


@pytest.mark.transformers
@pytest.mark.parametrize("build", [VISION["DINOv2"], HUGGING_FACE["BEiT with both biases"][1]])
def test_a_fixed_r_can_be_exported(build: Callable[[], Case]) -> None:
    case = build()
    with applied(case.model, r=2):
        expected = run(case)
        graph = torch.export.export(Main(case), (case.inputs,)).module()
    assert_close(graph(case.inputs), expected, EXACT)


class Main(nn.Module):
    """A model whose output is its case's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.run = case.model, case.run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.model, x)


# --- look-alikes of Hugging Face's layers: exact or refused


class Attention(nn.Module):
    """Attention as Hugging Face lays it out, with what a variant adds to logits, weights and heads."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.num_heads, self.variant, self.dropout = 4, variant, 0.0
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale = 0.2 if variant == "another scale" else (WIDTH // 4) ** -0.5
        if variant == "a bias of queries":
            self.q_bias = nn.Parameter(torch.randn(WIDTH))
        if variant == "norms of queries":
            self.q_norm = nn.LayerNorm(WIDTH // 4)
        if variant == "a sink":
            self.sink = nn.Parameter(torch.randn(4, 1, 1))
        if variant == "talking heads":
            self.talk = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        parts = (layer(hidden_states) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.unflatten(2, (4, -1)).transpose(1, 2) for y in parts)
        places = torch.arange(q.shape[2], dtype=q.dtype)
        if self.variant == "a bias of queries":
            q = q + self.q_bias.view(4, 1, -1)
        if self.variant == "norms of queries":
            q = self.q_norm(q)
        if self.variant == "rotary positions of its own":
            q, k = (y * (places[:, None] * 0.1 + 1) for y in (q, k))
        logits = q @ k.transpose(2, 3) * self.scale
        if self.variant == "a bias by distance":
            logits = logits - (places[:, None] - places).abs()
        if self.variant == "causal":
            logits = logits.masked_fill(places[:, None] < places, -1e9)
        if self.variant == "windows":
            logits = logits.masked_fill(places[:, None] // 2 != places // 2, -1e9)
        if self.variant == "a sink":
            logits = torch.cat((logits, self.sink.expand(len(q), -1, q.shape[2], 1)), -1)
        weights = logits.sigmoid() if self.variant == "sigmoid" else logits.softmax(-1)
        if self.variant == "talking heads":
            weights = self.talk(weights.transpose(1, 3)).transpose(1, 3)
        y = (weights[..., : q.shape[2]] @ v).transpose(1, 2).flatten(2)
        return self.out_proj(y * hidden_states.sigmoid() if self.variant == "a gate" else y)


class Layer(nn.Module):
    """A layer as Hugging Face lays it out, around that attention."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn, self.variant = Attention(variant), variant
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        if variant == "layer scale":
            self.lambda_1, self.lambda_2 = (nn.Parameter(torch.rand(WIDTH)) for _ in range(2))
        if variant == "a scale by another name":
            self.gamma = nn.Parameter(torch.rand(WIDTH))
        if variant == "a table of positions":
            self.table = nn.Parameter(torch.randn(1, 9, WIDTH))
        if variant == "a third norm":
            self.layer_norm3 = nn.LayerNorm(WIDTH)
        if variant == "convolution between tokens":
            self.mlp = nn.Sequential(nn.Conv1d(9, 9, 3, padding=1), nn.GELU())

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = hidden_states
        if self.variant == "parallel":
            return x + self.self_attn(y := self.layer_norm1(x)) + self.mlp(self.layer_norm2(x)) + 0 * y
        if self.variant == "norms behind":
            x = self.layer_norm1(x + self.self_attn(x))
            return self.layer_norm2(x + self.mlp(x))
        if self.variant == "a table of positions":
            x = x + self.table[:, : x.shape[1]]
        y = self.self_attn(self.layer_norm1(x))
        y = self.layer_norm3(y) if self.variant == "a third norm" else y
        y = self.gamma * y if self.variant == "a scale by another name" else y
        y = self.lambda_1 * y if self.variant == "layer scale" else y
        x = (x if self.variant != "a shortcut that is scaled" else 0.5 * x) + y
        y = self.mlp(self.layer_norm2(x))
        x = x + (self.lambda_2 * y if self.variant == "layer scale" else y)
        x = x - x.mean(1, keepdim=True) if self.variant == "centred over tokens" else x
        return {"more than tokens": (x, x.sum()), "a list": [x], "a tuple": (x, None)}.get(self.variant, x)


LOOK_ALIKES = {  # what the refusal names; None: exact
    "plain": None,
    "layer scale": None,
    "another scale": None,
    "a tuple": None,
    "a bias of queries": "q_bias",
    "norms of queries": "q_norm",
    "a sink": "sink",
    "talking heads": "talk",
    "rotary positions of its own": "block 0",
    "a bias by distance": "block 0",
    "causal": "block 0",
    "windows": "block 0",
    "sigmoid": "block 0",
    "a gate": "block 0",
    "a scale by another name": "gamma",
    "a table of positions": "table",
    "a third norm": "layer_norm3",
    "convolution between tokens": "block 0",
    "parallel": "block 0",
    "norms behind": "block 0",
    "a shortcut that is scaled": "block 0",
    "centred over tokens": "block 0",
    "more than tokens": "block 0",
    "a list": "block 0",
}


class Tower(nn.Module):
    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant, self.layers = variant, nn.ModuleList(Layer(variant) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = y if isinstance(y, Tensor) else y[0]
        return x


@pytest.mark.parametrize("variant", LOOK_ALIKES)
def test_look_alikes_are_exact_or_refused(variant: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = randomised(Tower(variant)), torch.randn(2, 9, WIDTH)
    case = Case(model, x, lambda model, x: model(x))
    dense = run(case)
    if (names := LOOK_ALIKES[variant]) is None:
        with rebuilt(model):
            assert_close(run(case), dense, EXACT)
        with applied(model, r=2) as handle:
            assert run(case).shape == dense.shape
            assert handle.trace["tokens"] == ((9, 7), (7, 5))
    else:
        for attempt in (lambda: TOME.apply(model, r=2), lambda: TOME.measure(model, x)):
            with pytest.raises(UnsupportedHost, match=names):
                attempt()
    assert torch.equal(run(case), dense)
