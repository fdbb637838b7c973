"""MiniLM, a sentence encoder: BERT of 6 layers in plain torch, with its pretrained weights.

References:
  devlin-2019-bert (arXiv 1810.04805): the architecture (layer norms after the residual additions).
  wang-2020-minilm (arXiv 2002.10957): how so small a BERT was distilled.
  reimers-2019-sentence (arXiv 1908.10084): a sentence is the mean of its tokens, compared by the cosine.

The attention and the MLP are those of `vit.py`; queries, keys and values of the checkpoint are joined into one `qkv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import check_range
from reference_impls.data import assets
from reference_impls.hosts.bert import mean_pool
from reference_impls.layers.residual import Mlp
from reference_impls.models.vit import Attention

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EPS = 1e-12


class Embeddings(nn.Module):
    """The sum of word, position and segment embeddings, normalised."""

    def __init__(self, vocabulary: int, positions: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.positions = nn.Embedding(positions, dim)
        self.segments = nn.Embedding(2, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, N), all of the first segment -> (B, N, D)."""
        N = ids.shape[1]
        if self.positions.num_embeddings < N:
            raise ValueError(f"ids hold {N} tokens; the model has positions for {self.positions.num_embeddings}")
        return self.norm(self.words(ids) + self.positions.weight[:N] + self.segments.weight[0])


class Layer(nn.Module):
    """Attention and MLP, each with a residual connection and a layer norm after it."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D); the mask (B, 1, 1, N) says which keys are real."""
        x = self.norm1(x + self.attn(x, mask))
        return self.norm2(x + self.mlp(x))


class MiniLM(nn.Module):
    """BERT without its pooler: `embeddings`, then `layers`; 22,565,376 parameters at the sizes of all-MiniLM-L6-v2."""

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        positions: int = 512,
        dim: int = 384,
        depth: int = 6,
        num_heads: int = 12,
        hidden: int = 1536,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, positions, dim)
        self.layers = nn.ModuleList(Layer(dim, num_heads, hidden) for _ in range(depth))

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Token ids (B, N) -> (B, N, D). `real` (B, N) is False on padding; None if there is none."""
        x = self.embeddings(ids)
        mask = None if real is None else real[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def load_minilm() -> tuple[MiniLM, Tokenizer]:
    """all-MiniLM-L6-v2 in evaluation mode, and its tokenizer (without truncation or padding).

    Licence: Apache-2.0 (model card of sentence-transformers/all-MiniLM-L6-v2, trained from nreimers/MiniLM-L6-H384-
    uncased on a billion sentence pairs); the asset `minilm`.
    Raises: MissingAsset.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = assets.path("minilm")
    with torch.device("meta"):
        model = MiniLM()
    model.load_state_dict(from_bert(load_file(folder / "model.safetensors")), assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return model.eval(), tokenizer


def from_bert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a Hugging Face `BertModel` -> that of `MiniLM`; the pooler is left out."""
    ours = {
        "embeddings.word_embeddings": "embeddings.words",
        "embeddings.position_embeddings": "embeddings.positions",
        "embeddings.token_type_embeddings": "embeddings.segments",
        "embeddings.LayerNorm": "embeddings.norm",
        "attention.output.dense": "attn.proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    result = {}
    for key, value in weights.items():
        name, _, kind = key.rpartition(".")
        place = ""
        if name.startswith("encoder.layer."):
            _, _, index, name = name.split(".", 3)
            place = f"layers.{index}."
        if name == "attention.self.query":
            joined = [weights[key.replace("query", role)] for role in ("query", "key", "value")]
            result[f"{place}attn.qkv.{kind}"] = torch.cat(joined)
        elif name in ours:
            result[f"{place}{ours[name]}.{kind}"] = value
    return result


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int = 256) -> list[list[int]]:
    """Token ids of each text, from [CLS] to [SEP], cut to `max_tokens` (the model was trained with at most 256)."""
    check_range("max_tokens", max_tokens, 3, 512, integer=True)
    ids = (encoding.ids for encoding in tokenizer.encode_batch(list(texts)))
    return [i if len(i) <= max_tokens else [*i[: max_tokens - 1], i[-1]] for i in ids]


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Token ids of several texts -> ids (B, N), padded with 0, and which are real (B, N); None if all are."""
    lengths = [len(i) for i in ids]
    padded = torch.zeros(len(ids), max(lengths), dtype=torch.long)
    for row, i in zip(padded, ids, strict=True):
        row[: len(i)] = torch.tensor(i)
    if min(lengths) == max(lengths):
        return padded, None
    return padded, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


@torch.no_grad()
def embed(
    model: MiniLM,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_tokens: int = 256,
    batch_size: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Texts -> unit vectors (N, D) on the CPU, in the order of the texts; their dot product is the cosine.

    Texts of about equal length are computed together, so that little is padded. `progress(label, done, total)`.
    """
    check_range("batch_size", batch_size, 1, integer=True)
    device = model.embeddings.norm.weight.device
    ids = tokenise(tokenizer, texts, max_tokens)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = torch.empty(len(ids), model.embeddings.norm.weight.numel())
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch, real = pad([ids[i] for i in chosen])
        batch, real = batch.to(device), None if real is None else real.to(device)
        vectors[chosen] = F.normalize(mean_pool(model(batch, real), real), dim=1).cpu()
        if progress:
            progress("embedding", min(start + batch_size, len(order)), len(order))
    return vectors
