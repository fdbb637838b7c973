"""Tiny models of the families that people apply techniques to, with random weights; seconds for all of them.

    case = VISION["ViT"]()                # skips the test where the library, or this version of it, lacks the family
    case.run(case.model, case.inputs)     # the model's main output, of the shape that readers of it expect

`VISION` are transformers over patches or tokens, `ENCODERS` text encoders, `CNNS` convolutional networks on video.
Every parameter is random, scales and biases included: one that is left at 0 or 1 could hide a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.models.vit import VisionTransformer
from tests.other_models import timm_network, torchvision, transformers_class

SIDE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 32, 3, 4
"""Of vision transformers: 4 x 4 patches."""
HUGGING_FACE: Mapping[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 64,
}  # fmt: skip
ON_IMAGES: Mapping[str, Any] = HUGGING_FACE | {"image_size": SIDE, "patch_size": PATCH}
TIMM: Mapping[str, Any] = {
    "img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5,
}  # fmt: skip
VOCABULARY, TEXTS, TOKENS = 60, 4, 12


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode, inputs for it, and how it is run: `run(model, inputs)` is its main output."""

    model: nn.Module
    inputs: Any
    run: Callable[[Any, Any], Tensor]
    """Also runs a copy of the model."""


Build = Callable[[], Case]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and of the size that it has after training, in evaluation mode; in place."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            is_buffer = not isinstance(p, nn.Parameter)
            if name.endswith("running_mean"):
                p.normal_(std=0.2, generator=draws)
            elif name.endswith("running_var"):
                p.uniform_(0.7, 1.5, generator=draws)
            elif is_buffer or not p.is_floating_point():
                continue
            elif p.ndim < 2 and name.endswith("bias"):
                p.normal_(std=0.2, generator=draws)
            elif p.ndim < 2:
                p.uniform_(0.5, 1.5, generator=draws)  # scales of norms and of layers
            elif "embed" in name or "token" in name or "bias" in name or name.endswith("pos"):
                p.normal_(std=0.2, generator=draws)
            else:
                p.normal_(std=p[0].numel() ** -0.5, generator=draws)
    return model.eval()


def images(number: int = 2, side: int = SIDE, seed: int = 1) -> Tensor:
    """Images (B, 3, H, W) whose patches come in pairs of neighbours that are nearly the same."""
    draws = torch.Generator().manual_seed(seed)
    rows = side // PATCH
    patches = torch.randn(number, 3, rows, PATCH, rows // 2, 1, PATCH, generator=draws).expand(
        -1, -1, -1, -1, -1, 2, -1
    )
    pairs = patches.reshape(number, 3, side, side)
    return pairs + 0.05 * torch.randn(pairs.shape, generator=draws)


def equal_tokens(case: Case, dim: int = 1) -> Case:
    """The case on tokens that are the same in pairs: images of equal patches, or equal neighbours along `dim`.

    Position embeddings and relative position tables become 0, in place.
    """
    with torch.no_grad():
        for name, parameter in case.model.named_parameters():
            if re.search("pos(?!t)", name):
                parameter.zero_()
    inputs = case.inputs
    if inputs.ndim == 3:
        return Case(case.model, inputs.index_select(dim, torch.arange(inputs.shape[dim]) // 2 * 2), case.run)
    patches = inputs.unflatten(3, (-1, 2, PATCH))  # (B, 3, H, pairs, 2, PATCH)
    return Case(case.model, patches[..., :1, :].expand_as(patches).flatten(3), case.run)


def _states(model: Any, inputs: Any) -> Tensor:
    return model(inputs).last_hidden_state


def _logits(model: Any, inputs: Any) -> Tensor:
    return model(inputs).logits


def _output(model: Any, inputs: Any) -> Tensor:
    return model(inputs)


# --------------------------------------------------------------------------------------------------------------------
# Vision transformers


def hugging_face(name: str, run: Callable[[Any, Any], Tensor] = _states, **options: Any) -> Case:
    """A vision model of transformers by the name of its class; `options` change its configuration."""
    kind = transformers_class(name)
    return Case(randomised(kind(kind.config_class(**ON_IMAGES | options))), images(), run)


def vit_mae() -> Case:
    """The masked autoencoder's encoder. Which patches it masks follows from `noise`, not from a generator."""
    noise = torch.linspace(0, 1, (SIDE // PATCH) ** 2).flip(0).repeat(2, 1)
    return hugging_face("ViTMAEModel", lambda model, x: model(x, noise=noise).last_hidden_state, mask_ratio=0.25)


def clip() -> Case:
    """Both towers of CLIP: two chains of blocks in one model, of which the text tower is causal."""
    text = HUGGING_FACE | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS}
    kind = transformers_class("CLIPModel")
    config = kind.config_class(text_config=text, vision_config=dict(ON_IMAGES), projection_dim=WIDTH)
    ids = torch.arange(2 * TOKENS).view(2, TOKENS) % VOCABULARY

    def run(model: Any, x: Tensor) -> Tensor:
        return model(input_ids=ids, pixel_values=x).logits_per_image

    return Case(randomised(kind(config)), images(), run)


def sam() -> Case:
    """The image encoder of SAM, whose blocks work in windows on a map."""
    kind = transformers_class("SamModel")
    sizes = {"mlp_ratio": 2.0, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1]}
    vision = ON_IMAGES | sizes
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": PATCH, "mask_input_channels": 4}
    config = kind.config_class(vision_config=vision, mask_decoder_config=decoder, prompt_encoder_config=prompt)
    model = randomised(kind(config))
    return Case(model.vision_encoder, images(), lambda model, x: model(x)[0])


def swin() -> Case:
    kind = transformers_class("SwinModel")
    sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}
    return Case(randomised(kind(kind.config_class(image_size=SIDE, **sizes))), images(), _states)


def in_timm(name: str, **options: Any) -> Case:
    """A vision transformer of timm by its name; an option of None leaves out what `TIMM` says."""
    settled = {key: value for key, value in (TIMM | options).items() if value is not None}
    return Case(randomised(timm_network(name, **settled)), images(), _output)


def timm_swin() -> Case:
    sizes = {"patch_size": 4, "window_size": 4, "embed_dim": 24, "depth": None, "depths": (2, 2), "num_heads": (2, 4)}
    return in_timm("swin_tiny_patch4_window7_224", **sizes)


def torchvision_vit() -> Case:
    kind = torchvision().models.VisionTransformer
    sizes = {"num_layers": DEPTH, "num_heads": HEADS, "hidden_dim": WIDTH, "mlp_dim": 64, "num_classes": 5}
    return Case(randomised(kind(SIDE, PATCH, **sizes)), images(), _output)


def torchvision_swin() -> Case:
    kind = torchvision().models.swin_transformer.SwinTransformer
    return Case(randomised(kind([4, 4], 16, [2, 2], [2, 4], [2, 2], num_classes=5)), images(), _output)


def torch_encoder(norm_first: bool, batch_first: bool, layers: int = DEPTH) -> Case:
    """`nn.TransformerEncoder` on tokens (B, N, D), or (N, B, D) if not `batch_first`."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=batch_first, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    tokens = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, dim=1)
    tokens = tokens + 0.05 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
    return Case(randomised(model), tokens if batch_first else tokens.transpose(0, 1), _output)


class TwoViews(nn.Module):
    """Two vision transformers whose outputs are added: two chains of blocks in one model."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x.flip(-1))


def our_vit(seed: int = 0) -> Case:
    model = VisionTransformer(image_size=SIDE, patch_size=PATCH, dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=5)
    return Case(randomised(model, seed), images(), _output)


def two_chains() -> Case:
    return Case(TwoViews(our_vit().model, our_vit(1).model).eval(), images(), _output)


VISION: dict[str, Build] = {
    "ViT": partial(hugging_face, "ViTModel"),
    "ViT classifier": partial(hugging_face, "ViTForImageClassification", _logits, num_labels=5),
    "DeiT": partial(hugging_face, "DeiTModel"),
    "DINOv2": partial(hugging_face, "Dinov2Model", mlp_ratio=2),
    "DINOv2 with SwiGLU": partial(hugging_face, "Dinov2Model", use_swiglu_ffn=True),
    "DINOv2 with registers": partial(hugging_face, "Dinov2WithRegistersModel", mlp_ratio=2, num_register_tokens=4),
    "DINOv3": partial(hugging_face, "DINOv3ViTModel", num_register_tokens=4),
    "BEiT": partial(hugging_face, "BeitModel", use_relative_position_bias=True),
    "BEiT with shared positions": partial(hugging_face, "BeitModel", use_shared_relative_position_bias=True),
    "ViT-MAE": vit_mae,
    "CLIP vision tower": partial(hugging_face, "CLIPVisionModel"),
    "CLIP": clip,
    "SigLIP vision tower": partial(hugging_face, "SiglipVisionModel"),
    "SAM": sam,
    "Swin": swin,
    "timm ViT": partial(in_timm, "vit_tiny_patch16_224"),
    "timm ViT with query and key norms": partial(in_timm, "vit_tiny_patch16_224", qk_norm=True),
    "timm ViT with layer scale": partial(in_timm, "deit3_small_patch16_224"),
    "timm ViT with registers": partial(in_timm, "vit_small_patch14_reg4_dinov2"),
    "timm ViT with registers, no class token": partial(in_timm, "vit_medium_patch16_reg4_gap_256"),
    "timm ViT of CLIP": partial(in_timm, "vit_base_patch16_clip_224"),
    "timm ViT of SigLIP": partial(in_timm, "vit_base_patch16_siglip_224"),
    "timm ViT with parallel blocks": partial(in_timm, "vit_small_patch16_18x2_224"),
    "timm ViT, norms behind": partial(in_timm, "vit_relpos_medium_patch16_rpn_224"),
    "timm ViT with relative positions": partial(in_timm, "vit_relpos_small_patch16_224"),
    "timm DeiT, distilled": partial(in_timm, "deit_tiny_distilled_patch16_224"),
    "timm BEiT": partial(in_timm, "beit_base_patch16_224"),
    "timm EVA": partial(in_timm, "eva_giant_patch14_224"),
    "timm EVA-02": partial(in_timm, "eva02_tiny_patch14_224"),
    "timm DINOv3": partial(in_timm, "vit_small_patch16_dinov3"),
    "timm CaiT": partial(in_timm, "cait_xxs24_224"),
    "timm XCiT": partial(in_timm, "xcit_nano_12_p16_224"),
    "timm ConViT": partial(in_timm, "convit_tiny"),
    "timm Swin": timm_swin,
    "torchvision ViT": torchvision_vit,
    "torchvision Swin": torchvision_swin,
    "nn.TransformerEncoder": partial(torch_encoder, norm_first=True, batch_first=True),
    "nn.TransformerEncoder, batch second": partial(torch_encoder, norm_first=True, batch_first=False),
    "nn.TransformerEncoder, norms behind": partial(torch_encoder, norm_first=False, batch_first=True),
    "our ViT": our_vit,
    "two ViTs in one model": two_chains,
}

# --------------------------------------------------------------------------------------------------------------------
# Text encoders


def text_inputs() -> dict[str, Tensor]:
    """Texts of several lengths: {"ids": (B, N), "real": (B, N)}, with padding id 1 at the end."""
    draws = torch.Generator().manual_seed(1)
    real = torch.arange(TOKENS) < torch.tensor([12, 7, 9, 3]).unsqueeze(1)
    return {"ids": torch.randint(2, VOCABULARY, (TEXTS, TOKENS), generator=draws).where(real, 1), "real": real}


def encoder(name: str, **options: Any) -> Case:
    """A text encoder of transformers by the name of its class."""
    kind = transformers_class(name)
    sizes = HUGGING_FACE | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS + 4, "pad_token_id": 1}
    config = kind.config_class(**sizes | options)
    return Case(randomised(kind(config)), text_inputs(), _encode)


def _encode(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model(input_ids=inputs["ids"], attention_mask=inputs["real"].long()).last_hidden_state


ENCODERS: dict[str, Build] = {
    "BERT": partial(encoder, "BertModel"),
    "RoBERTa": partial(encoder, "RobertaModel"),
    "DistilBERT": partial(encoder, "DistilBertModel", dim=WIDTH, hidden_dim=64, n_layers=DEPTH, n_heads=HEADS),
    "ELECTRA": partial(encoder, "ElectraModel", embedding_size=16),
    "MPNet": partial(encoder, "MPNetModel"),
    "ModernBERT": partial(
        encoder, "ModernBertModel", global_attn_every_n_layers=2, local_attention=4, bos_token_id=0, eos_token_id=0,
        cls_token_id=0, sep_token_id=0, reference_compile=False,
    ),
    "ALBERT": partial(encoder, "AlbertModel", embedding_size=16),
    "XLM-RoBERTa": partial(encoder, "XLMRobertaModel"),
    "CamemBERT": partial(encoder, "CamembertModel"),
    "DeBERTa": partial(encoder, "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DeBERTa-v2": partial(encoder, "DebertaV2Model", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "MobileBERT": partial(encoder, "MobileBertModel", embedding_size=16, intra_bottleneck_size=16),
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------
# Convolutional networks for a camera


def video(frames: int = 2, side: int = 64, seed: int = 1) -> Tensor:
    """A square that moves over a still background: (frames, 3, H, W)."""
    draws = torch.Generator().manual_seed(seed)
    clip = torch.randn(1, 3, side, side, generator=draws).repeat(frames, 1, 1, 1)
    square = torch.randn(3, 8, 8, generator=draws)
    for t in range(frames):
        clip[t, :, 16 : 16 + 8, 16 + 4 * t : 24 + 4 * t] = square
    return clip


def frame_by_frame(model: Any, clip: Tensor) -> Tensor:
    """The outputs for all frames (F, ...), one after the other."""
    return torch.cat([model(frame) for frame in clip.split(1)])


def of_torchvision(name: str) -> Case:
    with torch.random.fork_rng():
        model = getattr(torchvision().models, name)(weights=None, num_classes=5)
    return Case(randomised(model), video(), frame_by_frame)


CNNS: dict[str, Build] = {
    "torchvision squeezenet1_1": partial(of_torchvision, "squeezenet1_1"),
    "torchvision mobilenet_v3_small": partial(of_torchvision, "mobilenet_v3_small"),
}
"""Two of those that `test_delta_networks.py` builds."""
