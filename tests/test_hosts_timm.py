"""Token merging in the vision transformers of timm, torchvision and torch: layouts of their blocks, and look-alikes.

`tests/test_families.py` holds the families that most people try, `tests/test_matrix.py` the modes in which they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import UnsupportedHost
from reference_impls.hosts.chains import chains
from tests.families import DEPTH, HEADS, SIDE, TIMM, VISION, WIDTH, Case, images, in_timm, randomised, torch_encoder
from tests.other_models import timm, timm_network
from tests.support import assert_close, generator
from tests.test_hosts_transformers import EXACT, TOME, applied, rebuilt, run


def output(model: Any, x: Tensor) -> Tensor:
    return model(x)


def of_class(module: str, name: str, sizes: Mapping[str, Any] = TIMM, **options: Any) -> Case:
    """A network of timm by its class, for options that no registered name takes."""
    timm()
    kind = getattr(import_module(f"timm.models.{module}"), name)
    return Case(randomised(kind(**sizes, **options)), images(side=sizes["img_size"]), output)


def with_blocks(name: str, **options: Any) -> Case:
    """A timm ViT with another class of blocks."""
    timm()
    kind = getattr(import_module("timm.models.vision_transformer"), name)
    return in_timm("vit_tiny_patch16_224", block_fn=kind, **options)


def layers() -> Case:
    """Layers of torch's encoder one after the other, in a container of the user's own."""
    model = nn.Sequential(*(nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True) for _ in range(DEPTH)))
    return Case(randomised(model), torch.randn(2, 17, WIDTH, generator=generator()), output)


def other_size(name: str, side: int, **options: Any) -> Case:
    """A network of timm whose sizes are not those of `TIMM`."""
    return Case(randomised(timm_network(name, num_classes=5, **options)), images(side=side), output)


ROTARY = {"use_rot_pos_emb": True}
VIT = "vit_tiny_patch16_224"
EXACTLY: Mapping[str, tuple[int, Callable[[], Case]]] = {  # number of leading tokens, and the model
    "norms of heads and hidden units": (1, partial(in_timm, VIT, scale_attn_norm=True, scale_mlp_norm=True)),
    "mean of patches, a norm after": (1, partial(in_timm, VIT, global_pool="avg", fc_norm=True)),
    "no class token": (0, partial(in_timm, VIT, class_token=False, global_pool="avg")),
    "any image size": (1, partial(in_timm, VIT, dynamic_img_size=True)),
    "norms behind attention and MLP": (1, partial(with_blocks, "ResPostBlock", init_values=1e-5)),
    "a table of positions": (0, partial(in_timm, "vit_relpos_small_patch16_224", rel_pos_type="bias")),
    "a table of positions, class token": (1, partial(in_timm, "vit_relpos_base_patch16_cls_224", rel_pos_type="bias")),
    "an MLP of positions, class token": (1, partial(in_timm, "vit_relpos_base_patch16_clsgap_224")),
    "an MLP of positions as in Swin": (0, partial(in_timm, "vit_relpos_base_patch16_224", rel_pos_type="mlp_swin")),
    "shared positions": (0, partial(in_timm, "vit_srelpos_small_patch16_224")),
    "BEiT with shared positions": (1, partial(of_class, "beit", "Beit", use_shared_rel_pos_bias=True)),
    "BEiT with both": (1, partial(of_class, "beit", "Beit", use_shared_rel_pos_bias=True, use_rel_pos_bias=True)),
    "BEiT with SwiGLU": (1, partial(of_class, "beit", "Beit", swiglu_mlp=True, scale_mlp=True, init_values=0.1)),
    "EVA, norms behind": (1, partial(of_class, "eva", "Eva", use_post_norm=True, **ROTARY)),
    "EVA-02, all norms": (
        1,
        partial(
            of_class, "eva", "Eva", qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, **ROTARY
        ),
    ),
    "EVA, fewer keys than queries": (
        1,
        partial(of_class, "eva", "Eva", qkv_fused=False, attn_type="rope", num_kv_heads=2, qk_norm=True, **ROTARY),
    ),
    "rotary by axis": (1, partial(in_timm, "vit_small_patch16_rope_224")),
    "rotary by block and head": (1, partial(in_timm, "vit_small_patch16_rope_mixed_224")),
    "AIMv2": (0, partial(in_timm, "aimv2_large_patch14_224")),
    "NaFlex": (4, partial(in_timm, "naflexvit_base_patch16_gap", img_size=None)),
    "PiT, several stages": (
        1,
        partial(other_size, "pit_ti_224", 64, img_size=64, base_dims=(8, 8, 8), heads=(2, 4, 8), depth=(2, 2, 2)),
    ),
    "layers of torch": (0, layers),
    "torch, norms behind, batch second": (0, partial(torch_encoder, norm_first=False, batch_first=False)),
}


@pytest.mark.parametrize("name", EXACTLY)
def test_a_layout_is_exact_and_its_saving_is_counted(name: str) -> None:
    prefix, build = EXACTLY[name]
    case = build()
    dense = run(case)
    with rebuilt(case.model):
        assert_close(run(case), dense, EXACT)
    with applied(case.model, r=2) as handle:
        with count() as merging:
            merged = run(case)
        tokens, group = handle.trace["tokens"], handle.trace["group"]
    assert tokens[0][0] - tokens[0][1] == 2
    assert merged.shape == dense.shape
    assert not torch.equal(merged, dense)
    leading = group[:, :prefix].clone()
    assert leading.tolist() == [list(range(prefix))] * len(group)
    assert not torch.isin(group[:, prefix:], leading).any()
    with count() as plain:
        assert torch.equal(run(case), dense)
    assert plain.macs - merging.macs == TOME.saving(case.model, case.inputs, handle.trace)
    assert 0 < TOME.measure(case.model, case.inputs).value <= 1


MIXER = {"img_size": SIDE, "patch_size": 8, "num_blocks": 2, "embed_dim": WIDTH}
VOLO = {"img_size": 64, "layers": (1,) * 4, "embed_dims": (16, 32, 32, 32), "num_heads": (2, 4, 4, 4)}
REFUSED: Mapping[str, tuple[str, Callable[[], Case]]] = {  # what the refusal names, and the model
    "attention beside MLP": ("ParallelScalingBlock", partial(with_blocks, "ParallelScalingBlock")),
    "both, of differences": ("DiffParallelScalingBlock", partial(with_blocks, "DiffParallelScalingBlock")),
    "several attentions side by side": ("ParallelThingsBlock", partial(with_blocks, "ParallelThingsBlock")),
    "differences of attention": ("attn.lambda_q1", partial(in_timm, VIT, attn_layer="diff")),
    "SAM": ("within windows", partial(in_timm, "samvit_base_patch16", window_size=2, global_attn_indexes=(1,))),
    "SAM without windows": ("attn.rel_pos_h", partial(in_timm, "samvit_base_patch16", window_size=0)),
    "MLP-Mixer": ("MixerBlock", partial(of_class, "mlp_mixer", "MlpMixer", MIXER)),
    "VOLO": ("cannot take them", partial(of_class, "volo", "VOLO", VOLO)),
    "TNT": ("whose blocks", partial(other_size, "tnt_s_legacy_patch16_224", 64, img_size=64, depth=2)),
    "CrossViT": ("prefix=", partial(other_size, "crossvit_tiny_240", 240, embed_dim=(24, 48))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused_by_name(name: str) -> None:
    names, build = REFUSED[name]
    case = build()
    for attempt in (lambda: TOME.apply(case.model, r=2), lambda: TOME.measure(case.model, case.inputs)):
        with pytest.raises(UnsupportedHost, match=names):
            attempt()


# --- training, and what else timm's models can be told

NOISE = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.4}
NOISY: Mapping[str, Callable[[], Case]] = {
    "ViT": partial(in_timm, VIT, pos_drop_rate=0.1, patch_drop_rate=0.25, **NOISE),
    "BEiT": partial(in_timm, "beit_base_patch16_224", **NOISE),
    "EVA-02": partial(in_timm, "eva02_tiny_patch14_224", patch_drop_rate=0.25, **NOISE),
    "rotary by block and head": partial(in_timm, "vit_small_patch16_rope_mixed_224", patch_drop_rate=0.25, **NOISE),
    "relative positions": partial(in_timm, "vit_relpos_small_patch16_224", **NOISE),
}


@pytest.mark.parametrize("name", NOISY)
def test_training_drops_what_the_model_drops(name: str) -> None:
    case = NOISY[name]()
    evaluated = run(case)
    case.model.train()

    def draw() -> Tensor:
        torch.manual_seed(5)
        return run(case)

    with torch.random.fork_rng():
        dropped = draw()
        assert not torch.equal(dropped, evaluated)
        with rebuilt(case.model):
            assert_close(draw(), dropped, EXACT)
        with applied(case.model, r=2):
            assert draw().shape == dropped.shape


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [
        ("nn.TransformerEncoder", ("self_attn.dropout", "dropout.p", "dropout1.p", "dropout2.p")),
        ("nn.TransformerEncoder, batch second", ("self_attn.dropout", "dropout.p", "dropout1.p", "dropout2.p")),
        ("nn.TransformerEncoder, norms behind", ("self_attn.dropout", "dropout.p", "dropout1.p", "dropout2.p")),
        ("torchvision ViT", ("self_attention.dropout", "dropout.p", "mlp.2.p", "mlp.4.p")),
    ],
)
def test_every_dropout_around_torchs_attention_is_there(name: str, dropouts: Sequence[str]) -> None:
    """One that drops everything leaves nothing to chance, whose order depends on how tensors lie in memory."""
    case = VISION[name]()
    blocks = [module for _, some in chains(case.model, _has_attention) for module in some]
    assert len(blocks) == DEPTH
    case.model.train()
    outputs = []
    for everything in dropouts:
        for block in blocks:
            for path in dropouts:
                owner, _, attribute = path.rpartition(".")
                setattr(block.get_submodule(owner), attribute, float(path == everything))
        outputs.append(run(case))
        with rebuilt(case.model):
            assert_close(run(case), outputs[-1], EXACT)
    assert not any(torch.equal(one, other) for one, other in combinations(outputs, 2)) or name.endswith("ViT")


def _has_attention(module: nn.Module) -> bool:
    return any(isinstance(child, nn.MultiheadAttention) for child in module.children())


def test_a_single_drop_path_stands_behind_both_branches() -> None:
    """As in blocks of older versions of timm."""
    case = in_timm(VIT, drop_path_rate=0.6)
    for block in case.model.blocks:
        block.drop_path = block.drop_path2
        for name in ("drop_path1", "drop_path2"):
            delattr(block, name)
        block.forward = partial(_older_forward, block)
    case.model.train()

    def draw() -> Tensor:
        torch.manual_seed(1)
        return run(case)

    with torch.random.fork_rng():
        dropped = draw()
        with rebuilt(case.model):
            assert_close(draw(), dropped, EXACT)


def _older_forward(block: Any, x: Tensor) -> Tensor:
    x = x + block.drop_path(block.attn(block.norm1(x)))
    return x + block.drop_path(block.mlp(block.norm2(x)))


@pytest.mark.parametrize("name", ["timm ViT", "timm BEiT", "timm EVA-02", "timm ViT with relative positions"])
def test_attention_without_the_fused_kernel_is_the_same(name: str) -> None:
    case = VISION[name]()
    for block in case.model.blocks:
        block.attn.fused_attn = False
    dense = run(case)
    with rebuilt(case.model):
        assert_close(run(case), dense, EXACT)


@pytest.mark.parametrize("name", ["timm ViT", "timm BEiT", "timm EVA-02", "timm ViT with relative positions"])
def test_intermediate_features_keep_their_shapes(name: str) -> None:
    case = VISION[name]()
    read = partial(case.model.forward_intermediates, case.inputs, output_fmt="NCHW")
    with torch.no_grad():
        dense, maps = read()
    with applied(case.model, r=[2, 0, 3]):
        merged, merged_maps = read()
        stopped = read(indices=[0], stop_early=True, intermediates_only=True)
    assert merged.shape == dense.shape
    assert [y.shape for y in merged_maps] == [y.shape for y in maps] == [(2, WIDTH, 4, 4)] * DEPTH
    assert torch.equal(stopped[0], merged_maps[0])


def test_a_backbone_of_features_keeps_their_shapes() -> None:
    model = timm_network(VIT, img_size=SIDE, patch_size=8, embed_dim=WIDTH, depth=3, num_heads=4, features_only=True)
    with torch.no_grad():
        dense = model(images())
    with applied(model, r=2):
        merged = model(images())
    assert [y.shape for y in merged] == [y.shape for y in dense]


@pytest.mark.parametrize(  # the reentrant kind takes no arguments by name, which timm gives the blocks of others
    ("name", "reentrant"), [("timm ViT", True), ("timm ViT", False), ("timm BEiT", False), ("timm EVA-02", False)]
)
def test_activation_checkpointing_gives_the_same_gradients(
    name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = VISION[name]()
    manipulate = import_module("timm.models._manipulate")
    monkeypatch.setattr(manipulate, "use_reentrant_ckpt", lambda: reentrant)
    inputs = case.inputs.requires_grad_()

    def gradients() -> list[Tensor]:
        loss = case.model(inputs).square().sum()
        return list(torch.autograd.grad(loss, [inputs, *case.model.parameters()], allow_unused=True))

    with TOME.apply(case.model, r=2):
        plain = gradients()
        case.model.set_grad_checkpointing(True)
        if reentrant:  # which fills .grad, and knows no autograd.grad
            case.model(inputs).square().sum().backward()
            recomputed = [inputs.grad, *(p.grad for p in case.model.parameters())]
        else:
            recomputed = gradients()
    for actual, expected in zip(recomputed, plain, strict=True):
        if expected is not None and expected.any():
            assert_close(actual, expected, EXACT)


@pytest.mark.parametrize("name", ["timm BEiT", "timm EVA-02"])
def test_a_fixed_r_can_be_exported(name: str) -> None:
    case = VISION[name]()
    with applied(case.model, r=2):
        merged = run(case)
        program = torch.export.export(case.model, (case.inputs,))
    assert_close(program.module()(case.inputs), merged, EXACT)


def test_replicas_of_data_parallelism_merge_by_their_own_weights() -> None:
    case = VISION["timm BEiT"]()
    other = VISION["timm BEiT"]().model
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    with applied(case.model, r=2):
        replica = _replica(case.model, dict(other.named_parameters()))
        actual = case.run(replica, case.inputs)
    with applied(other, r=2):
        assert_close(actual, case.run(other, case.inputs), EXACT)


def _replica(module: nn.Module, weights: Mapping[str, Tensor], path: str = "") -> Any:
    """What `nn.DataParallel` makes of a module on another device, which has these weights there."""
    replica = module._replicate_for_data_parallel()
    for name in module._parameters:
        setattr(replica, name, weights.get(f"{path}{name}"))
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else _replica(child, weights, f"{path}{name}.")
    return replica


# --- torch's encoder


@pytest.mark.parametrize("norm_first", [True, False])
def test_masks_and_padding_are_refused_rather_than_ignored(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, norm_first=norm_first)
    model, x = (
        randomised(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)),
        torch.randn(2, 6, WIDTH),
    )
    padding = torch.arange(6) >= torch.tensor([[6], [4]])
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    with applied(model, r=1):
        for options in ({"src_key_padding_mask": padding}, {"mask": causal}, {"mask": causal, "is_causal": True}):
            with pytest.raises(NotImplementedError, match="block 0"):
                model(x, **options)
        with pytest.raises(NotImplementedError, match="of shape"):
            model(x[0])
        nothing = {"mask": torch.zeros(6, 6), "src_key_padding_mask": torch.zeros(2, 6, dtype=torch.bool)}
        assert torch.equal(model(x, **nothing), model(x))
        assert torch.equal(model.layers[0](x, None, nothing["src_key_padding_mask"]), model.layers[0](x))
        with pytest.raises(NotImplementedError, match="src_key_padding_mask"):
            model.layers[0](x, src_key_padding_mask=padding)


class Gated(nn.TransformerEncoderLayer):
    """Its fused path, of evaluation without gradients, overlooks what it does to attention."""

    def _sa_block(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 0.5 * super()._sa_block(x, *args, **kwargs)


class Scaled(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y, weights = super().forward(*args, **kwargs)
        return 2 * y, weights


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda layer: setattr(layer, "__class__", Gated), "Gated"),
        (lambda layer: setattr(layer.self_attn, "__class__", Scaled), "Scaled"),
        (lambda layer: setattr(layer, "self_attn", _attention(add_bias_kv=True)), "self_attn.bias_k"),
        (lambda layer: setattr(layer, "self_attn", _attention(add_zero_attn=True)), "block 0"),
        (lambda layer: setattr(layer, "self_attn", _attention(kdim=WIDTH, vdim=16)), "self_attn.q_proj_weight"),
        (lambda layer: layer.self_attn.out_proj.register_forward_hook(print), "self_attn.out_proj"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer.self_attn.out_proj), "out_proj.parametrizations"),
    ],
)
def test_changed_layers_of_torch_are_refused(change: Callable[[Any], object], names: str) -> None:
    case = torch_encoder(norm_first=True, batch_first=True)
    for layer in case.model.layers:
        change(layer)
    for attempt in (lambda: TOME.apply(case.model, r=2), lambda: TOME.measure(case.model, case.inputs)):
        with pytest.raises(UnsupportedHost, match=names):
            attempt()


def _attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)


class ClipBlock(nn.Module):
    """The block of CLIP: tokens come first, and a mask may be its own."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn, self.attn_mask = nn.MultiheadAttention(WIDTH, HEADS), mask
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


def test_clips_own_block_merges_and_a_causal_one_is_refused() -> None:
    model = randomised(nn.Sequential(ClipBlock(), ClipBlock()))
    case = Case(model, torch.randn(9, 2, WIDTH, generator=generator()), output)
    dense = run(case)
    with rebuilt(model):
        assert_close(run(case), dense, EXACT)
    with applied(model, r=2) as handle:
        assert run(case).shape == dense.shape
        assert handle.trace["tokens"] == ((9, 7), (7, 5))
    causal = nn.Sequential(*(ClipBlock(nn.Transformer.generate_square_subsequent_mask(9)) for _ in range(2)))
    with pytest.raises(UnsupportedHost, match="block 0"):
        TOME.apply(causal, r=2)


# --- chains and leading tokens


class Tower(nn.Module):
    """Blocks after a token of the user's own."""

    def __init__(self, token: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_parameter(token, nn.Parameter(torch.randn(shape)))
        self.token, self.blocks = token, nn.Sequential(*(Block("plain") for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        token = getattr(self, self.token).view(1, -1, WIDTH).expand(len(x), -1, -1)
        return self.blocks(torch.cat((token, x), 1))


@pytest.mark.parametrize(
    ("token", "shape", "known"),
    [
        ("cls_token", (1, 1, WIDTH), 1),
        ("class_embedding", (WIDTH,), 1),
        ("register_tokens", (1, 3, WIDTH), 3),
        ("summary", (1, 2, WIDTH), None),
        ("my_token", (WIDTH,), None),
        ("cls_emb", (1, WIDTH), None),
    ],
)
def test_leading_tokens_are_known_or_asked_for(token: str, shape: tuple[int, ...], known: int | None) -> None:
    model, x = randomised(Tower(token, shape)), torch.randn(2, 8, WIDTH, generator=generator())
    number = torch.Size(shape).numel() // WIDTH
    knobs: Any = {} if known is not None else {"prefix": number}
    if known is None:
        with pytest.raises(UnsupportedHost, match="prefix="):
            TOME.apply(model, r=2)
    with applied(model, r=2, **knobs) as handle:
        assert model(x).shape == (2, 8 + number, WIDTH)
        assert handle.trace["group"][:, :number].tolist() == [list(range(number))] * 2


# --- look-alikes


class Attention(nn.Module):
    """Attention as timm lays it out, with what a variant changes."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant, self.num_heads, d = variant, HEADS, WIDTH // HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        if variant == "another scale":
            self.scale = 0.2
        if variant in ("biases", "biases used twice", "a bias without its value"):
            self.q_bias = nn.Parameter(torch.randn(WIDTH))
        if variant == "biases":
            self.v_bias = nn.Parameter(torch.randn(WIDTH))
        if variant == "a learnt scale":
            self.scale = nn.Parameter(torch.ones(HEADS, 1, 1))
        if variant == "a table that begins at zero":
            self.table = nn.Parameter(torch.zeros(HEADS, 9, 9))
        if variant == "a buffer of distances":
            self.register_buffer("slopes", torch.ones(HEADS, 1, 1), persistent=False)
        if variant == "norms of all heads":
            self.q_norm, self.k_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        if variant == "norms of each head":
            self.q_norm, self.k_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        if variant == "one pair of keys and values":
            self.qkv = nn.Linear(WIDTH, WIDTH + 2 * d)
        if variant == "a linear gate of another form":
            self.gate = nn.Linear(WIDTH, WIDTH)
        if variant == "talking heads":
            self.talk = nn.Parameter(torch.eye(HEADS))

    def forward(self, x: Tensor) -> Tensor:
        v, qkv, places = self.variant, self.qkv(x), torch.arange(x.shape[1], dtype=x.dtype)
        if v == "biases":
            qkv = qkv + torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        if v in ("biases used twice", "a bias without its value"):
            qkv = qkv + torch.cat((self.q_bias, self.q_bias * 0, self.q_bias * float(v == "biases used twice")))
        if v == "one pair of keys and values":
            q, key, value = qkv.split((WIDTH, WIDTH // HEADS, WIDTH // HEADS), -1)
            q, k, u = (y.unflatten(2, (-1, WIDTH // HEADS)).transpose(1, 2) for y in (q, key, value))
        elif v == "heads before q, k and v":
            q, k, u = qkv.unflatten(2, (HEADS, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            q, k, u = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if v == "norms of all heads":
            q, k = (n(y.transpose(1, 2).flatten(2)).view(*y.shape) for n, y in ((self.q_norm, q), (self.k_norm, k)))
        if v == "norms of each head":
            q, k = self.q_norm(q), self.k_norm(k)
        if v == "cosines":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scale = {"another scale": 0.2, "a scale that it does not tell": 0.2, "no scale": 1.0}.get(
            v, (WIDTH // HEADS) ** -0.5
        )
        logits = q @ k.transpose(2, 3) * scale
        if v == "a learnt scale":
            logits = logits * self.scale
        if v == "a table that begins at zero":
            logits = logits + self.table[:, : x.shape[1], : x.shape[1]]
        if v == "a buffer of distances":
            logits = logits - self.slopes * (places[:, None] - places).abs()
        if v == "causal":
            logits = logits.masked_fill(places[:, None] < places, -torch.inf)
        if v == "every token but itself":
            logits = logits.masked_fill(torch.eye(x.shape[1], dtype=torch.bool), -torch.inf)
        weights = logits.relu().square() if v == "no softmax" else logits.softmax(-1)
        if v == "dropout of weights as a function":
            weights = F.dropout(weights, 0.2, self.training)
        if v == "talking heads":
            weights = torch.einsum("bhnm,hg->bgnm", weights, self.talk)
        y = (weights @ u).transpose(1, 2).flatten(2)
        y = y * (1 + self.gate(x).tanh()) if v == "a linear gate of another form" else y
        return self.proj(y + x if v == "a shortcut inside" else y)


class Shifted(nn.Linear):
    """Mixes each token with the one before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.5 * (x + x.roll(1, 1)))


class Mean(nn.Linear):
    """Mixes each token with their mean, whatever their order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean(1, keepdim=True)


class TokenNorm(nn.LayerNorm):
    """Normalises over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(1, keepdim=True))


class Block(nn.Module):
    """A block as timm lays it out, around that attention."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant, self.attn = variant, Attention(variant)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        if variant == "layer scale that begins at zero":
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(2))
        if variant == "a gate that begins at zero":
            self.alpha = nn.Parameter(torch.zeros(()))
        if variant == "convolution of positions":
            self.peg = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        if variant == "a third norm":
            self.norm3 = nn.LayerNorm(WIDTH)
        if variant == "dropout by another name":
            self.noise_drop = nn.Dropout(0.3)
        parts = {"an MLP that shifts": ("mlp", Shifted), "an MLP that averages": ("mlp", Mean)}
        parts |= {"a projection that averages": ("proj", Mean)}
        if variant in parts:
            name, kind = parts[variant]
            setattr(self if name == "mlp" else self.attn, name, kind(WIDTH, WIDTH))
        if variant == "a norm over tokens":
            self.norm1 = TokenNorm(WIDTH)

    def forward(self, x: Tensor) -> Any:
        v = self.variant
        if v == "norms behind":
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))
        if v == "norms behind sums":
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        if v == "attention beside MLP":
            return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))
        if v == "MLP before attention":
            x = x + self.mlp(self.norm2(x))
            return x + self.attn(self.norm1(x))
        if v == "one norm for both":
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm1(x))
        if v == "places added":
            x = x + torch.arange(x.shape[1], dtype=x.dtype).sin()[:, None]
        if v == "convolution of positions":
            x = x + self.peg(x.transpose(1, 2)).transpose(1, 2)
        y = self.attn(self.norm1(x))
        y = self.gamma_1 * y if v == "layer scale that begins at zero" else y
        y = self.alpha * y if v == "a gate that begins at zero" else y
        y = self.norm3(y) if v == "a third norm" else y
        y = F.dropout(y, 0.3, self.training) if v == "dropout as a function" else y
        y = self.noise_drop(y) if v == "dropout by another name" else y
        y = torch.cat((y[:, :1], y[:, 1:] * 0), 1) if v == "only the class token attends" else y
        x = 0.5 * x + y if v == "half a shortcut" else x + y
        y = self.mlp(self.norm2(x))
        y = self.gamma_2 * y if v == "layer scale that begins at zero" else y
        return (x + y, y) if v == "attention beside its tokens" else x + y


LOOK_ALIKES: Mapping[str, str | None] = {  # what the refusal names; None: exact
    **dict.fromkeys(("plain", "another scale", "biases", "norms of each head"), None),
    **dict.fromkeys(("layer scale that begins at zero", "norms behind", "norms behind sums"), None),
    "biases used twice": "block 0",
    "a bias without its value": "block 0",
    "a learnt scale": "attn.scale",
    "a table that begins at zero": "attn.table",
    "a buffer of distances": "attn.slopes",
    "talking heads": "attn.talk",
    "a gate that begins at zero": "alpha",
    "convolution of positions": "peg",
    "a third norm": "norm3",
    "dropout by another name": "noise_drop",
    **dict.fromkeys(
        (
            *("norms of all heads", "one pair of keys and values", "heads before q, k and v", "cosines", "causal"),
            *("a scale that it does not tell", "no scale", "every token but itself", "no softmax"),
            *("a linear gate of another form", "a shortcut inside", "attention beside MLP", "MLP before attention"),
            *("one norm for both", "places added", "half a shortcut", "only the class token attends"),
            *("attention beside its tokens", "an MLP that shifts", "an MLP that averages"),
            *("a projection that averages", "a norm over tokens"),
            *("dropout as a function", "dropout of weights as a function"),
        ),
        "block 0",
    ),
}


@pytest.mark.parametrize("variant", LOOK_ALIKES)
def test_look_alikes_are_exact_or_refused(variant: str) -> None:
    model, x = nn.Sequential(Block(variant), Block(variant)), torch.randn(2, 9, WIDTH, generator=generator())
    if "begins at zero" not in variant:
        randomised(model)
    case = Case(model.eval(), x, output)
    if (names := LOOK_ALIKES[variant]) is None:
        dense = run(case)
        with rebuilt(model):
            assert_close(run(case), dense, EXACT)
        with applied(model, r=2) as handle:
            assert run(case).shape == dense.shape
            assert handle.trace["tokens"] == ((9, 7), (7, 5))
        assert torch.equal(run(case), dense)
    else:
        for attempt in (lambda: TOME.apply(model, r=2), lambda: TOME.measure(model, x)):
            with pytest.raises(UnsupportedHost, match=names):
                attempt()
