"""Adapter to vision transformers of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers) and their kin.

It goes by structure, so it neither imports `transformers` nor depends on a class name. Two layouts of the attention
are known: `attention.{q,k,v,o}_proj` (transformers 5) and `attention.attention.{query,key,value}` with
`attention.output.dense` (transformers 4). Around it stand `layernorm_before`/`layernorm_after` (ViT, DeiT) or
`norm1`/`norm2` with `layer_scale1`/`layer_scale2` (DINOv2). The attention is computed by torch's fused kernel,
whatever `attn_implementation` the model was loaded with.
"""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.hosts.block import Block, weights

_LAYOUTS = (
    ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"),
)
_NORMS = (("layernorm_before", "layernorm_after"), ("norm1", "norm2"))


class HuggingFaceBlock(Block):
    """A layer of a Hugging Face vision transformer."""

    PARTS = (
        *("layernorm_before", "norm1", *_LAYOUTS[0], *_LAYOUTS[1], "attention.output.dropout", "layer_scale1"),
        *("layernorm_after", "norm2", "mlp", "intermediate", "output.dense", "output.dropout", "layer_scale2"),
        *("dropout", "drop_path"),
    )
    LEFT_OUT = ("attention.attention.dropout",)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.through(x, "layernorm_before", "norm1")
        layers = _attention_linears(self.module)[:3]
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers)  # (B, H, N, d)
        return q, k, v

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        y = _attention_linears(self.module)[3](y)
        return x + self.through(y, "attention.output.dropout", "dropout", "layer_scale1", "drop_path")

    def mlp(self, x: Tensor) -> Tensor:
        y = self.through(x, "layernorm_after", "norm2", "mlp", "intermediate", "output.dense", "output.dropout")
        return x + self.through(y, "dropout", "layer_scale2", "drop_path")

    @property
    def heads(self) -> int:
        attention = self.module.attention
        return getattr(attention, "attention", attention).num_attention_heads

    @property
    def width(self) -> int:
        return _attention_linears(self.module)[3].in_features

    @property
    def dropout(self) -> float:
        if isinstance(inner := getattr(self.module.attention, "attention", None), nn.Module):
            return inner.dropout.p if isinstance(inner.dropout, nn.Dropout) else getattr(inner, "dropout_prob", 0.0)
        return self.module.attention.attention_dropout

    @property
    def attention_weights(self) -> int:
        return weights(*_attention_linears(self.module))

    @property
    def mlp_weights(self) -> int:
        return weights(self.part("mlp"), self.part("intermediate"), self.part("output.dense"))

    @property
    def input_width(self) -> int:
        return _attention_linears(self.module)[0].in_features


def _attention_linears(module: nn.Module) -> list[nn.Linear]:
    for layout in _LAYOUTS:
        try:
            layers = [module.get_submodule(path) for path in layout]
        except AttributeError:
            continue
        if all(isinstance(layer, nn.Linear) for layer in layers):
            return layers
    return []


def fits(module: nn.Module) -> bool:
    """Whether a module is built like such a layer."""
    has_mlp = hasattr(module, "mlp") or (hasattr(module, "intermediate") and hasattr(module, "output"))
    has_norms = any(all(hasattr(module, norm) for norm in norms) for norms in _NORMS)
    return has_mlp and has_norms and bool(_attention_linears(module))
