"""Reports that the site shows, and what their suggestions then achieved: `python -m tools.report.examples [NAME...]`.

Each example is a model and data by the names of functions, so that the process that applies a technique builds both
again and knows nothing of what was predicted. Models with untrained weights are told for their time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.data import images, text, video
from reference_impls.models import efficientnet_lite, minilm, smollm2, vit
from reference_impls.models.mobilenet_v2 import MobileNetV2
from reference_impls.models.residual_cnn import residual_cnn
from reference_impls.models.yolov3_tiny import stretched, yolov3_tiny
from reference_impls.report import report
from reference_impls.report.achieve import Target
from reference_impls.report.result import Kind
from reference_impls.report.verify import verify
from reference_impls.study import training

from ..knowledge import load
from .ranking import rank, untrained

ROOT = Path(__file__).parents[2]
HOME = ROOT / "reference_impls" / "report" / "measured"
HERE = f"{__package__}.examples"
"""This module, which is `__main__` as a program."""
PHOTOS, FRAMES, MAILS = 32, 48, 96


@dataclass(frozen=True)
class Example:
    """A model on data, by the names of functions of this module."""

    model: str
    data: str
    kind: Kind
    budget: Mapping[str, float] = field(default_factory=lambda: {"flips": 0.01})
    answer: str | None = None
    items: int = 32

    def target(self) -> Target:
        """Where another process finds both."""
        answer = f"{HERE}:{self.answer}" if self.answer else None
        return Target(model=f"{HERE}:{self.model}", data=f"{HERE}:{self.data}", answer=answer)


ERROR = {"error": 0.05}
EXAMPLES: Mapping[str, Example] = {
    "saliency-photos": Example("saliency", "photos", "image", {"flips": 0.05}, answer="salient"),
    "dinov2-photos": Example("dinov2", "photos", "image", {"error": 0.2}),
    "efficientnet-photos": Example("efficientnet", "repeated_photos", "image", items=PHOTOS + PHOTOS // 4),
    "efficientnet-vtest": Example("efficientnet", "vtest", "video", items=FRAMES),
    "efficientnet-tree": Example("efficientnet", "tree", "video", items=FRAMES),
    "yolov3-tiny-vtest": Example("yolo", "vtest_wide", "video", {"error": 0.1}, items=16),
    "yolov3-tiny-tree": Example("yolo", "tree_wide", "video", {"error": 0.1}, items=16),
    "mobilenet-vtest": Example("mobilenet", "vtest", "video", {"error": 0.1}, items=FRAMES),
    "vit-digits": Example("digits_vit", "digits", "image", {"flips": 0.02}, items=128),
    "cnn-digits": Example("digits_cnn", "digits", "image", {"flips": 0.02}, items=128),
    "minilm-mails": Example("language", "mails", "text", ERROR, items=MAILS),
    "smollm2-mails": Example("generator", "mails_to_go_on", "text", {"flips": 0.05}),
}


# --- models -----------------------------------------------------------------------------------------------------------


def saliency() -> nn.Module:
    """The pretrained saliency ViT-S/14."""
    return vit.saliency_vit_s14()


def salient(y: Tensor) -> Tensor:
    """The decisions that its map holds: salient or not, in each of 16 x 16 places."""
    return (nn.functional.adaptive_avg_pool2d(y, 16) > 0.5).long().flatten(1)


def dinov2() -> nn.Module:
    """Its backbone as Hugging Face's Dinov2Model."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14)
    model: Any = Dinov2Model(config)
    ours, state = vit.saliency_vit_s14().backbone.state_dict(), {}
    state["embeddings.cls_token"] = ours["cls_token"]
    state["embeddings.position_embeddings"] = ours["pos_embed"]
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    for kind in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{kind}"] = ours[f"patch_embed.proj.{kind}"]
        state[f"layernorm.{kind}"] = ours[f"norm.{kind}"]
    for i in range(12):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        state |= {f"{layer}.layer_scale{j}.lambda1": ours[f"{block}.ls{j}.gamma"] for j in (1, 2)}
        for kind in ("weight", "bias"):
            for role, part in zip("qkv", ours[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{layer}.attention.{role}_proj.{kind}"] = part
            state[f"{layer}.attention.o_proj.{kind}"] = ours[f"{block}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{layer}.{name}.{kind}"] = ours[f"{block}.{name}.{kind}"]
    model.load_state_dict(state)
    return model.eval()  # type: ignore[no-any-return]


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its authors' weights."""
    return efficientnet_lite.efficientnet_lite0()


def mobilenet() -> nn.Module:
    """MobileNetV2 with random weights: what it would save of time."""
    return training.seeded(0, lambda: MobileNetV2(num_classes=1000)).eval()


def yolo() -> nn.Module:
    """YOLOv3-tiny with its authors' weights."""
    return yolov3_tiny()


def digits_vit() -> nn.Module:
    """A small ViT, trained on digits."""
    architecture: dict[str, Any] = {"image_size": 8, "patch_size": 1, "in_channels": 1, "num_classes": 10}
    architecture |= {"dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
    return _on_digits(lambda: vit.small_vit(**architecture))


def digits_cnn() -> nn.Module:
    """A small residual CNN of four stages, trained on digits."""
    return _on_digits(lambda: residual_cnn(8))


def language() -> nn.Module:
    """MiniLM with its authors' weights."""
    return minilm.load_minilm()[0]


def generator() -> nn.Module:
    """SmolLM2-135M with its authors' weights, at 4 bits."""
    return smollm2.load_smollm2()[0]


def _on_digits(build: Callable[[], nn.Module]) -> nn.Module:
    model, (x, y, _, _) = training.seeded(0, build), images.digits()
    training.train(model, x, y, training.Recipe(12, 3e-3, 32), seed=0)
    return model.eval()


# --- data -------------------------------------------------------------------------------------------------------------


@cache
def _crops() -> Tensor:
    """Squares of 224 pixels from the photos, at places that are drawn once."""
    _, squares = images.photos(512)
    draws = torch.Generator().manual_seed(0)
    places = torch.randint(0, 512 - 224 + 1, (PHOTOS, 2), generator=draws).tolist()
    return torch.stack([squares[i % len(squares)][:, a : a + 224, b : b + 224] for i, (a, b) in enumerate(places)])


def photos() -> Iterator[Tensor]:
    """Crops of photos, as the ViT takes them."""
    yield from vit.imagenet_normalise(_crops()).split(8)


def repeated_photos() -> Iterator[Tensor]:
    """Crops of photos of which every fourth comes again, as EfficientNet takes them."""
    x = efficientnet_lite.normalise(_crops())
    yield from torch.cat([x, x[::4]]).split(8)


def vtest() -> Iterator[Tensor]:
    """A street before a fixed camera, in clips of 8 frames."""
    yield from efficientnet_lite.normalise(video.clip("vtest", FRAMES, 224)).split(8)


def tree() -> Iterator[Tensor]:
    """A tree before a camera that moves, in clips of 8 frames."""
    yield from efficientnet_lite.normalise(video.clip("tree", FRAMES, 224)).split(8)


def vtest_wide() -> Iterator[Tensor]:
    """The street at half its size, as the detector takes it."""
    half = (stretched(nn.functional.avg_pool2d(frame[None], 2)) for frame in video.clip("vtest", 24))
    yield from torch.cat(list(half)).split(8)


def tree_wide() -> Iterator[Tensor]:
    """The tree as the detector takes it."""
    yield from torch.cat([stretched(frame[None]) for frame in video.clip("tree", 24)]).split(8)


def digits() -> Iterator[tuple[Tensor, Tensor]]:
    """Digits to test with, and what they are."""
    _, _, x, y = images.digits()
    yield from zip(x.split(8), y.split(8), strict=True)


def mails() -> Iterator[dict[str, Tensor]]:
    """Mails as token ids, batches of equal length."""
    _, tokenizer = minilm.load_minilm()
    found = [mail.text for mail in text.legible_mails()[:MAILS]]
    yield from _padded(minilm.tokenise(tokenizer, found, 64))


def mails_to_go_on() -> Iterator[dict[str, Tensor]]:
    """Mails as token ids, 64 of each, for a model that tells the next token."""
    _, tokenizer = smollm2.load_smollm2()
    found = [mail.text for mail in text.legible_mails()[:MAILS]]
    yield from _padded([one.ids[:64] for one in tokenizer.encode_batch(found)])


def _padded(ids: list[list[int]]) -> Iterator[dict[str, Tensor]]:
    """Batches of 8, and which of their tokens are real."""
    for start in range(0, len(ids), 8):
        padded, real = minilm.pad(ids[start : start + 8])
        yield {"ids": padded, "real": torch.ones_like(padded, dtype=torch.bool) if real is None else real}


# --- the program ------------------------------------------------------------------------------------------------------


def measure(name: str) -> None:
    """Measure, predict, apply and save one example."""
    example, module = EXAMPLES[name], sys.modules[__name__]
    model, loader = getattr(module, example.model)(), getattr(module, example.data)()
    answer = getattr(module, example.answer) if example.answer else None
    result = report(
        model, loader, kind=example.kind, budget=example.budget, items=example.items, answer=answer,
        data_name=example.data.replace("_", " "),
    )  # fmt: skip
    folder = result.save(HOME / name)
    (folder / "report.txt").unlink()
    print(f"{name}\n{result.table}", flush=True)
    try:
        techniques = untrained(rank(result, load(ROOT, check=False)))
        print(verify(result, example.target(), folder, techniques=techniques).table, flush=True)
    except ValueError as error:
        print(error, flush=True)


def main() -> int:
    names = sys.argv[1:] or list(EXAMPLES)
    if unknown := [name for name in names if name not in EXAMPLES]:
        print(f"there is no example {unknown[0]!r}; there are: {', '.join(EXAMPLES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names:
        measure(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
