"""Adapter to vision transformers of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers) and their kin.

It goes by structure, so it neither imports `transformers` nor depends on a class name. Two layouts of the attention
are known: `attention.{q,k,v,o}_proj` (transformers 5) and `attention.attention.{query,key,value}` with
`attention.output.dense` (transformers 4). Around it stand `layernorm_before`/`layernorm_after` (ViT, DeiT) or
`norm1`/`norm2` with `layer_scale1`/`layer_scale2` (DINOv2). The attention is computed by torch's fused kernel,
whatever `attn_implementation` the model was loaded with.
"""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.hosts.block import Block, chains, linears

_LAYOUTS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
)
_NORMS = (("layernorm_before", "layernorm_after"), ("norm1", "norm2"))


class HuggingFaceBlock(Block):
    """A layer of a Hugging Face vision transformer."""

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = _norms(self.module)[0](x)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, N, d)
            for layer in self.attention_linears[:3]
        )
        return q, k, v

    def project(self, y: Tensor) -> Tensor:
        return self.through(self.attention_linears[3](y), "dropout", "layer_scale1", "drop_path")

    def mlp(self, x: Tensor) -> Tensor:
        module, x = self.module, _norms(self.module)[1](x)
        if hasattr(module, "mlp"):
            return self.through(module.mlp(x), "dropout", "layer_scale2", "drop_path")
        x = module.intermediate(x)
        return module.output.dropout(module.output.dense(x))  # ViT of transformers 4

    @property
    def heads(self) -> int:
        attention = self.module.attention
        return getattr(attention, "attention", attention).num_attention_heads

    @property
    def attention_linears(self) -> list[nn.Linear]:
        return _attention_linears(self.module)

    @property
    def mlp_linears(self) -> list[nn.Linear]:
        if hasattr(self.module, "mlp"):
            return linears(self.module.mlp)
        return [*linears(self.module.intermediate), *linears(self.module.output)]


def _attention_linears(module: nn.Module) -> list[nn.Linear]:
    attention = getattr(module, "attention", None)
    for layout in _LAYOUTS:
        try:
            layers = [attention.get_submodule(path) for path in layout]
        except AttributeError:
            continue
        if all(isinstance(layer, nn.Linear) for layer in layers):
            return layers
    return []


def _norms(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    for first, second in _NORMS:
        if hasattr(module, first) and hasattr(module, second):
            return getattr(module, first), getattr(module, second)
    return None


def _is_block(module: nn.Module) -> bool:
    has_mlp = hasattr(module, "mlp") or (hasattr(module, "intermediate") and hasattr(module, "output"))
    return has_mlp and bool(_attention_linears(module)) and _norms(module) is not None


def _prefix(model: nn.Module) -> int:
    """Class, distillation and register tokens, as the model's embeddings hold them."""
    tokens = {
        name.rpartition(".")[2]: parameter.shape[1]
        for name, parameter in model.named_parameters()
        if name.endswith(("cls_token", "distillation_token", "register_tokens"))
    }
    return sum(tokens.values())


def blocks(model: nn.Module) -> list[Block] | None:
    """The blocks of the first chain of such layers in `model`."""
    for _, chain in chains(model, _is_block):
        return [HuggingFaceBlock(f"block {i}", module, _prefix(model)) for i, module in enumerate(chain)]
    return None
