"""Adapter to vision transformers of Hugging Face transformers: ViT, DeiT, DINOv2, DINOv3, BEiT, CLIP, SigLIP and kin.

It goes by structure, so it neither imports `transformers` nor depends on a class name. Attention is laid out as
`attention.{q,k,v,o}_proj` (transformers 5), as `attention.attention.{query,key,value}` with `attention.output.dense`
(transformers 4), or as `self_attn.{q,k,v,out}_proj` (CLIP, SigLIP). Around it stand two norms, and perhaps layer scales
as modules (DINO) or as parameters (BEiT). Positions that attention adds itself are followed: relative position bias of
a block or of all blocks (BEiT, Data2Vec), rotary positions (DINOv3). The attention is computed by torch's fused kernel,
whatever `attn_implementation` the model was loaded with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import generator
from reference_impls.hosts.block import NOWHERE, Block, Positions, hides_nothing, weights

_LAYOUTS = (
    ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
)
_BEFORE = ("layernorm_before", "norm1", "layer_norm1")
_AFTER = ("layernorm_after", "norm2", "layer_norm2")
"""Norms before attention and of the MLP."""
_DROPOUTS = ("attention_dropout", "dropout_prob", "dropout")
"""Names of attention dropout, a share or a module; the first that is there counts."""
_TABLES = ("relative_position_bias", "attention.attention.relative_position_bias")
_HIDDEN = -1e4
"""Logits are masked by adding less than this, in every dtype."""
_GRID = (2, 3)
"""Patches (height, width) on which a block with a table of relative positions is tried out."""


class HuggingFaceBlock(Block):
    """A layer of a Hugging Face vision transformer."""

    PARTS = (
        *(*_BEFORE, *_AFTER, *_LAYOUTS[0], *_LAYOUTS[1], *_LAYOUTS[2], *_TABLES),
        *("attention.output.dropout", "layer_scale1", "mlp", "intermediate", "output.dense", "output.dropout"),
        *("layer_scale2", "dropout", "drop_path"),
    )
    TENSORS = ("lambda_1", "lambda_2")
    LEFT_OUT = ("attention.attention.dropout",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._q, self._k, self._v, self._out = next(layout for layout in _LAYOUTS if layout[0] in self._parts)
        self._tables = [path for path in _TABLES if path in self._parts]

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.through(x, *_BEFORE)
        linears = (self.part(path)(x) for path in (self._q, self._k, self._v))
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in linears)  # (B, H, N, d)
        return q, k, v

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        y = self._scaled("lambda_1", self.through(y, self._out, "attention.output.dropout", "dropout"))
        return x + self.through(y, "layer_scale1", "drop_path")

    def mlp(self, x: Tensor) -> Tensor:
        y = self.through(x, *_AFTER, "mlp", "intermediate", "output.dense", "output.dropout", "dropout")
        return x + self.through(self._scaled("lambda_2", y), "layer_scale2", "drop_path")

    def _scaled(self, name: str, y: Tensor) -> Tensor:
        scale = getattr(self.module, name, None)
        return y if scale is None else scale * y

    @property
    def heads(self) -> int:
        attention = _attention(self.module)
        return getattr(attention, "num_attention_heads", None) or attention.num_heads

    @property
    def width(self) -> int:
        return self.part(self._out).in_features

    @property
    def scale(self) -> float:
        attention = _attention(self.module)
        return getattr(attention, "scaling", getattr(attention, "scale", super().scale))

    @property
    def dropout(self) -> float:
        attention = _attention(self.module)
        dropout = next((getattr(attention, name) for name in _DROPOUTS if hasattr(attention, name)), 0.0)
        return dropout.p if isinstance(dropout, nn.Dropout) else dropout

    @property
    def attention_weights(self) -> int:
        return weights(*map(self.part, (self._q, self._k, self._v, self._out)))

    @property
    def mlp_weights(self) -> int:
        return weights(self.part("mlp"), self.part("intermediate"), self.part("output.dense"))

    @property
    def input_width(self) -> int:
        return self.part(self._q).in_features

    # Positions --------------------------------------------------------------------------------------------------------

    @property
    def _on_grid(self) -> bool:
        """Whether the model tells its blocks the size of the image, and a bias as if it were a mask."""
        return self.accepts("resolution")

    @property
    def _rotary(self) -> bool:
        return self.accepts("position_embeddings")

    @property
    def _patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        size = getattr(self.module, "patch_size", None) or _attention(self.module).config.patch_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def takes(self, name: str) -> bool:
        if name == "attention_mask":
            return self._on_grid and not self.accepts("relative_position_bias")
        known = ("resolution", "interpolate_pos_encoding", "relative_position_bias", "position_embeddings")
        return name in known and self.accepts(name)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        x, given = super().read(args, kwargs)
        mask = given.get("attention_mask")  # or a bias that all blocks share, or their sum
        if mask is None:
            return x, given
        if not hides_nothing(mask.all() if mask.dtype == torch.bool else (mask > _HIDDEN).all()):
            raise NotImplementedError(f"{self.name} was given an attention_mask that hides tokens, which may not merge")
        return x, {**given, "attention_mask": None if mask.dtype == torch.bool else mask}

    def positions(self, tokens: int, given: Mapping[str, Any]) -> Positions:
        if (rotary := given.get("position_embeddings")) is not None:
            cos, sin = rotary
            return Positions(rotary=_of_all_tokens(cos, sin, tokens))
        bias = [given[name] for name in ("attention_mask", "relative_position_bias") if given.get(name) is not None]
        if self._tables:
            if given.get("resolution") is None:
                raise NotImplementedError(f"{self.name} needs the image's resolution for its positions, but got none")
            grid = tuple(side // patch for side, patch in zip(given["resolution"], self._patch, strict=True))
            interpolated = given.get("interpolate_pos_encoding", False)
            bias.append(self.part(self._tables[0])(grid, interpolated, dim_size=tokens))
        return Positions(bias=sum(bias)) if bias else NOWHERE

    def grid(self) -> int | None:
        return _GRID[0] * _GRID[1] + 1 if self._on_grid else None

    def example(self, x: Tensor) -> dict[str, Any]:
        if self._on_grid:
            return {"resolution": tuple(side * patch for side, patch in zip(_GRID, self._patch, strict=True))}
        if not self._rotary:
            return {}
        angles = torch.randn(x.shape[1] - self.prefix, self.width // self.heads, generator=generator(1)).to(x)
        return {"position_embeddings": (angles.cos(), angles.sin())}

    def unfit(self) -> str | None:
        config = getattr(_attention(self.module), "config", None)
        if hasattr(config, "vocab_size") and not hasattr(config, "patch_size"):
            tower = "apply it to the vision tower alone (model.vision_model)"
            return f"tokens of images, but {self.name} reads text, under masks: {tower}"
        return super().unfit()


def _of_all_tokens(cos: Tensor, sin: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, 1, N, d) of N tokens, from those of the last (n, d): the leading ones do not turn."""
    leading = cos.new_zeros(tokens - cos.shape[-2], cos.shape[-1])
    return torch.cat((leading + 1, cos))[None, None], torch.cat((leading, sin))[None, None]


def _attention(module: Any) -> Any:
    """The module that knows the number of heads."""
    attention = getattr(module, "attention", None) or module.self_attn
    return getattr(attention, "attention", attention)


def fits(module: nn.Module) -> bool:
    """Whether a module is built like such a layer."""
    parts = dict(module.named_modules())
    has_linears = any(all(isinstance(parts.get(path), nn.Linear) for path in layout) for layout in _LAYOUTS)
    has_norms = any(norm in parts for norm in _BEFORE) and any(norm in parts for norm in _AFTER)
    has_mlp = "mlp" in parts or {"intermediate", "output"} <= parts.keys()
    return has_linears and has_norms and has_mlp
