"""SmolLM2-135M, a small language model: a Llama of 30 blocks in plain torch, with its pretrained weights.

References: "SmolLM2: When Smol Goes Big", arXiv 2502.02737, the model and how it was trained; "LLaMA: Open and
Efficient Foundation Language Models", arXiv 2302.13971, the architecture (RMS norms before, gated MLPs, rotary
positions, no biases); "GQA", arXiv 2305.13245, three queries that share each key and value.

The weights are those of SmolLM2-135M-Instruct at 4 bits (Q4_1 in GGUF), read as float32. The file keeps the pairs that
a rotation turns side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.data import assets
from reference_impls.models import gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EPS = 1e-5


class Attention(nn.Module):
    """Causal attention with rotary positions, whose keys and values several queries share."""

    def __init__(self, dim: int, heads: int, shared: int, base: float) -> None:
        super().__init__()
        self.heads, self.shared, self.width, self.base = heads, shared, dim // heads, base
        self.q = nn.Linear(dim, heads * self.width, bias=False)
        self.k = nn.Linear(dim, shared * self.width, bias=False)
        self.v = nn.Linear(dim, shared * self.width, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        q, k, v = (part(x).unflatten(2, (-1, self.width)).transpose(1, 2) for part in (self.q, self.k, self.v))
        turn = rotation(x.shape[1], self.width, self.base, x)
        q, k = rotated(q, turn), rotated(k, turn)
        k, v = (one.repeat_interleave(self.heads // self.shared, 1) for one in (k, v))  # B H N d
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def rotation(tokens: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (N, d / 2) of position x base^(-2 i / d)."""
    rate = base ** -(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angle = torch.arange(tokens, device=like.device, dtype=torch.float32)[:, None] * rate
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Heads (B, H, N, d), each pair of neighbours turned by the angle of its position."""
    a, b = x[..., ::2], x[..., 1::2]
    cosine, sine = turn
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2)


class Gated(nn.Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection."""

    def __init__(self, dim: int, heads: int, shared: int, hidden: int, base: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.RMSNorm(dim, eps=EPS), Attention(dim, heads, shared, base)
        self.norm2, self.mlp = nn.RMSNorm(dim, eps=EPS), Gated(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmolLM2(nn.Module):
    """The model, whose head is its embedding; 134,515,008 parameters at the sizes of SmolLM2-135M."""

    def __init__(
        self,
        *,
        vocabulary: int = 49152,
        dim: int = 576,
        depth: int = 30,
        heads: int = 9,
        shared: int = 3,
        hidden: int = 1536,
        base: float = 100_000.0,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, shared, hidden, base) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=EPS)

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Token ids (B, N) -> logits of the token after each (B, N, vocabulary).

        real: (B, N), false on padding at the end, which no token before it sees: nothing follows from it.
        """
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.words.weight)


def load_smollm2() -> tuple[SmolLM2, Tokenizer]:
    """SmolLM2-135M-Instruct in evaluation mode, and its tokenizer.

    Licence: Apache-2.0 (the file's own field); the asset `smollm2-135m`. Raises: MissingAsset.
    """
    (file,) = assets.path("smollm2-135m").glob("*.gguf")
    found = gguf.read(file)
    with torch.device("meta"):
        model = SmolLM2()
    model.load_state_dict(from_gguf(found.tensors), assign=True)
    return model.eval(), _tokenizer(found.fields)


def from_gguf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a GGUF file of a Llama -> the state dict of `SmolLM2`."""
    ours = {
        "attn_norm": "norm1", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v", "attn_output": "attn.proj",
        "ffn_norm": "norm2", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up", "ffn_down": "mlp.down",
    }  # fmt: skip
    result = {"words.weight": tensors["token_embd.weight"], "norm.weight": tensors["output_norm.weight"]}
    for name, value in tensors.items():
        if name.startswith("blk."):
            _, index, part, kind = name.split(".")
            result[f"blocks.{index}.{ours[part]}.{kind}"] = value
    return result


def _tokenizer(fields: Mapping[str, object]) -> Tokenizer:
    """Byte pairs whose digits stand alone, as the file says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
