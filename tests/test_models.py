"""The base networks against torch's own layers, other implementations and known answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.data import images
from reference_impls.models import mtcnn
from reference_impls.models.efficientnet_lite import EfficientNetLite0, efficientnet_lite0, normalise
from reference_impls.models.lanes import Lanes
from reference_impls.models.minilm import Layer, MiniLM, embed, from_bert, load_minilm, mean_pool, pad, tokenise
from reference_impls.models.timm import timm_network
from reference_impls.models.vit import (
    Block,
    SaliencyViT,
    VisionTransformer,
    imagenet_normalise,
    resize_pos_embed,
    saliency_vit_s14,
    vit_small_patch16_224,
)
from tests.support import parameters


def scattered(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with every parameter random: one that is 0 or 1 could hide a mistake."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def as_torch_layer(block: nn.Module, heads: int, norm_first: bool) -> nn.TransformerEncoderLayer:
    """torch's encoder layer with the weights of a block of ours."""
    dim, eps = block.norm1.normalized_shape[0], block.norm1.eps
    hidden = block.mlp.fc1.out_features
    layer = nn.TransformerEncoderLayer(
        dim, heads, hidden, 0.0, "gelu", layer_norm_eps=eps, batch_first=True, norm_first=norm_first
    ).eval()
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
        "self_attn.out_proj": "attn.proj",
    }
    ours = block.state_dict()
    state = {f"{theirs}.{kind}": ours[f"{our}.{kind}"] for theirs, our in names.items() for kind in ("weight", "bias")}
    state |= {f"self_attn.in_proj_{kind}": ours[f"attn.qkv.{kind}"] for kind in ("weight", "bias")}
    layer.load_state_dict(state)
    return layer


# --- vision transformers ---------------------------------------------------------------------------------------------


def test_vit_small_has_the_parameters_of_timms() -> None:
    model = vit_small_patch16_224()
    assert parameters(model) == 22_050_664
    names = set(model.state_dict())
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias", "head.weight"} < names
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = {f"blocks.{i}.{part}.{kind}" for i in range(12) for part in parts for kind in ("weight", "bias")}
    assert {name for name in names if name.startswith("blocks")} == blocks


def test_a_block_equals_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    block = scattered(Block(32, 4, 4.0, None, 1e-6))
    x = torch.randn(3, 7, 32)
    layer = as_torch_layer(block, 4, norm_first=True)
    torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-5)


def test_layer_scale_weighs_the_branches() -> None:
    torch.manual_seed(0)
    block = scattered(Block(32, 4, 4.0, 0.5, 1e-6))
    x = torch.randn(2, 5, 32)
    attended = x + block.attn(block.norm1(x)) * block.ls1.gamma
    expected = attended + block.mlp(block.norm2(attended)) * block.ls2.gamma
    torch.testing.assert_close(block(x), expected)
    for scale in (block.ls1, block.ls2):
        nn.init.zeros_(scale.gamma)
    assert torch.equal(block(x), x)


def test_a_vit_equals_its_parts() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=5, dim=16, depth=2, num_heads=2)
    scattered(model)
    x = torch.randn(3, 1, 8, 8)
    patches = torch.stack([x[:, :, i : i + 4, j : j + 4].flatten(1) for i in (0, 4) for j in (0, 4)], dim=1)  # B N 16
    tokens = patches @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias
    tokens = torch.cat([model.cls_token.expand(3, 1, 16), tokens], dim=1) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(model(x), model.head(model.norm(tokens)[:, 0]))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 12), (1, 8, 8)])
def test_a_vit_refuses_images_of_another_shape(shape: tuple[int, ...]) -> None:
    model = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=5, dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 8, 8\), got"):
        model(torch.zeros(shape))


def test_a_vit_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="image_size 225 must be a multiple of patch_size 16"):
        VisionTransformer(image_size=225)
    with pytest.raises(ValueError, match="dim 384 must be a multiple of num_heads 5"):
        VisionTransformer(num_heads=5)


def test_positions_are_resized_as_planes() -> None:
    grid = torch.arange(9.0).reshape(1, 9, 1)
    assert torch.equal(resize_pos_embed(grid, 3), grid)
    constant = torch.full((1, 25, 2), 3.0)
    torch.testing.assert_close(resize_pos_embed(constant, 2), torch.full((1, 4, 2), 3.0))
    with pytest.raises(ValueError, match="square number of positions, got 8"):
        resize_pos_embed(torch.zeros(1, 8, 2), 2)


def test_the_saliency_network_refuses_tokens_that_are_not_all_there() -> None:
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, 257, D\), got \(1, 200, 384\)"):
        SaliencyViT().decode(torch.zeros(1, 200, 384))


def a_disc() -> Tensor:
    """An orange disc on blue-green ground (1, 3, 224, 224): an input that needs no file."""
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    disc = ((y - 90) ** 2 + (x - 130) ** 2 < 45**2).float()
    return torch.stack([0.2 + 0.7 * disc, 0.5 - 0.3 * disc, 0.3 + 0 * disc])[None]


@torch.no_grad()
def test_the_saliency_network_equals_the_onnx_graph(asset) -> None:
    asset("saliency-vit-s14")
    model = saliency_vit_s14()
    assert parameters(model) == 23_858_433
    saliency = model(imagenet_normalise(a_disc()))
    # Computed once with onnxruntime 1.32.0 on the graph itself, at every 56th pixel from the 28th on.
    golden = torch.tensor(
        [
            [0.2863602042, 0.2899951339, 0.2882410586, 0.2783562839],
            [0.2976665199, 0.4779048562, 0.9817123413, 0.2901111245],
            [0.2878566980, 0.2856832147, 0.3389033079, 0.2810374796],
            [0.2792547941, 0.2827345133, 0.2810311913, 0.2742654383],
        ]
    )
    torch.testing.assert_close(saliency[0, 0, 28::56, 28::56], golden, atol=2e-5, rtol=0)
    assert float(saliency.mean()) == pytest.approx(0.3909256, abs=1e-5)


# --- convolutional networks ------------------------------------------------------------------------------------------


def test_efficientnet_lite0_has_the_published_parameters() -> None:
    assert parameters(EfficientNetLite0()) == 4_652_008


@torch.no_grad()
def test_efficientnet_lite0_can_be_traced() -> None:
    torch.manual_seed(0)
    model = EfficientNetLite0().eval()
    x = torch.randn(1, 3, 64, 96)
    assert model.forward_features(x).shape == (1, 1280, 2, 3)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_padding_at_stride_2_is_tensorflows() -> None:
    """TensorFlow's "same" centres the windows so that the odd pixel of padding comes last."""
    model = EfficientNetLite0()
    strided = [m for m in model.modules() if isinstance(m, nn.Sequential) and hasattr(m, "pad")]
    assert [(tuple(m.pad.padding), m.conv.kernel_size[0]) for m in strided] == [
        ((0, 1, 0, 1), 3),
        ((0, 1, 0, 1), 3),
        ((1, 2, 1, 2), 5),
        ((0, 1, 0, 1), 3),
        ((1, 2, 1, 2), 5),
    ]
    with torch.no_grad():
        assert all(m(torch.zeros(1, m.conv.in_channels, 8, 8)).shape[-2:] == (4, 4) for m in strided)


@torch.no_grad()
def test_efficientnet_lite0_knows_photos(asset) -> None:
    folder = asset("opencv-doc")
    asset("efficientnet-lite0")
    classes = (folder / "dnn" / "classification_classes_ILSVRC2012.txt").read_text().splitlines()
    expected = {"baboon": "baboon", "orange": "orange", "apple": "Granny Smith", "squirrel_cls": "fox squirrel"}
    model = efficientnet_lite0()
    for photo, name in expected.items():
        pixels = torch.from_numpy(np.array(Image.open(folder / f"{photo}.jpg").convert("RGB")))
        x = images.resized(pixels.permute(2, 0, 1)[None].float() / 255, 224)
        probabilities = model(normalise(x)).softmax(dim=1)
        assert classes[int(probabilities.argmax())].startswith(name)
        assert float(probabilities.max()) > 0.6


# --- MiniLM ----------------------------------------------------------------------------------------------------------


def test_minilm_has_its_parameters() -> None:
    with torch.device("meta"):
        assert parameters(MiniLM()) == 22_565_376


def test_a_layer_of_bert_equals_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    layer = scattered(Layer(32, 4, 64))
    x = torch.randn(3, 7, 32)
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])
    theirs = as_torch_layer(layer, 4, norm_first=False)(x, src_key_padding_mask=~real)
    ours = layer(x, real[:, None, None, :])
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_minilm_equals_the_bert_of_transformers() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 16, "hidden_size": 32, "num_hidden_layers": 3}
    config = transformers.BertConfig(**sizes, num_attention_heads=4, intermediate_size=64)
    theirs = scattered(transformers.BertModel(config, add_pooling_layer=False))
    ours = MiniLM(vocabulary=50, positions=16, dim=32, depth=3, num_heads=4, hidden=64).eval()
    ours.load_state_dict(from_bert(theirs.state_dict()))
    ids, real = pad([[1, 2, 3, 4, 5], [6, 7], [8]])
    expected = theirs(ids, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, real)[real], expected[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = scattered(MiniLM(vocabulary=50, positions=16, dim=32, depth=2, num_heads=4, hidden=64))
    ids, real = pad([[1, 2, 3, 4, 5], [6, 7]])
    together = mean_pool(model(ids, real), real)
    alone = torch.cat([mean_pool(model(pad([i])[0])) for i in ([1, 2, 3, 4, 5], [6, 7])])
    torch.testing.assert_close(together, alone)
    assert pad([[1, 2], [3, 4]])[1] is None
    with pytest.raises(ValueError, match="ids hold 17 tokens; the model has positions for 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_sentences_of_one_meaning_are_near(asset) -> None:
    asset("minilm")
    model, tokenizer = load_minilm()
    texts = ["A cat sits on the mat.", "Stock markets fell sharply.", "A kitten rests on a rug.", "", "word " * 900]
    vectors = embed(model, tokenizer, texts, batch_size=2)
    assert vectors.shape == (5, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    cosines = vectors @ vectors.T
    assert float(cosines[0, 2]) > 0.5
    assert float(cosines[0, 1]) < 0.2
    one_by_one = torch.cat([embed(model, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(vectors, one_by_one, atol=1e-5, rtol=0)
    ids = tokenise(tokenizer, texts, max_tokens=10)
    assert [len(i) for i in ids] == [9, 7, 9, 2, 10]
    assert all(i[0] == 101 and i[-1] == 102 for i in ids)


def test_no_network_of_timm_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert timm_network("efficientformer_l1") is None


# --- a cascade of detectors ------------------------------------------------------------------------------------------


def brute_force_nms(boxes: Tensor, overlap: float) -> list[int]:
    def intersection_over_union(n: int, m: int) -> float:
        (a, b, c, d), (e, f, g, h) = boxes[n, :4].tolist(), boxes[m, :4].tolist()
        common = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
        return common / ((c - a) * (d - b) + (g - e) * (h - f) - common)

    kept: list[int] = []
    for n in boxes[:, 4].argsort(descending=True).tolist():
        if all(intersection_over_union(n, m) <= overlap for m in kept):
            kept.append(n)
    return kept


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_of_boxes_that_overlap_the_best_is_kept(overlap: float) -> None:
    draws = torch.Generator().manual_seed(1)
    low = torch.rand(60, 2, generator=draws) * 50
    boxes = torch.cat([low, low + 5 + torch.rand(60, 2, generator=draws) * 40, torch.rand(60, 1, generator=draws)], 1)
    assert mtcnn.nms(boxes, overlap).tolist() == brute_force_nms(boxes, overlap)
    assert mtcnn.nms(boxes[:0], overlap).tolist() == []


def test_mtcnn_finds_the_face_that_the_official_code_finds(asset: Callable[[str], None]) -> None:
    asset("mtcnn")
    model = mtcnn.pretrained()
    assert [parameters(net) for net in (model.pnet, model.rnet, model.onet)] == [6632, 100178, 386470]
    with torch.no_grad():
        found = model(images.photo("astronaut"))
    assert (found.proposed, found.kept) == (153, 9)
    torch.testing.assert_close(
        found.boxes, torch.tensor([[181.0514, 62.1561, 267.7473, 172.0502, 1.0]]), atol=1e-3, rtol=0
    )


def test_the_lane_finder_sees_a_line_and_its_work_follows_the_points() -> None:
    image = torch.zeros(1, 3, 80, 100)
    image[..., 60:, :] = 1  # an edge 20 pixels below the upper end of the lower half
    found = Lanes()(image)
    assert found.shape == (1, 4, 3)
    angle, distance, votes = found[0, 0].tolist()
    assert (angle, votes) == (pytest.approx(math.pi / 2), 100)
    assert distance in (19, 20)
    finder, costs = Lanes(directions=30), []
    for picture in (image, torch.zeros_like(image)):
        with count() as tally:
            finder(picture)
        costs.append((tally.macs, len(finder.points(picture))))
    (busy, points), (blank, none) = costs
    assert (points, none) == (200, 0)
    assert busy - blank == 2 * points * 30
    with pytest.raises(ValueError, match="one picture"):
        finder(image[0])


def test_the_work_of_mtcnn_is_affine_in_its_windows() -> None:
    model = mtcnn.MTCNN(thresholds=(0.5, 0.45, 0.5)).eval()
    rows = []
    for seed in range(4):
        torch.manual_seed(seed)
        for net in (model.pnet, model.rnet):
            nn.init.normal_(net.score.weight, std=0.3)
        with torch.no_grad(), count(model) as tally:
            found = model(torch.rand(1, 3, 60, 80))
        rows.append((found.proposed, found.kept, tally.macs))
    bases = {macs - 1_530_768 * n - 12_907_392 * m for n, m, macs in rows}
    assert len(bases) == 1
    assert len({(n, m) for n, m, _ in rows}) > 1
    with pytest.raises(ValueError, match="one picture"):
        model(torch.rand(2, 3, 60, 80))
    with torch.no_grad():
        assert len(model(torch.rand(1, 3, 8, 8)).boxes) == 0, "smaller than the smallest face"
