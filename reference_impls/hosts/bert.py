"""BERT encoders as stages with off-ramps: the project's own MiniLM and Hugging Face's `BertModel`, told by structure.

The state between layers is a dict, so that the padding mask leaves a batch together with its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import UnsupportedHost
from reference_impls.hosts.staged import Staged


class BertStage(nn.Module):
    """One layer (the first stage: the embeddings too), on a state of tokens and of which of them are real.

    Inputs of the first stage: {"ids": (B, N) int64, "real": (B, N) bool}. State: {"x": (B, N, D), "real": (B, N)}.
    """

    def __init__(self, layer: nn.Module, embeddings: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.embeddings = layer, embeddings

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        real = state["real"]
        x = state["x"] if self.embeddings is None else self.embeddings(state["ids"])
        mask = torch.zeros_like(real, dtype=x.dtype).masked_fill(~real, torch.finfo(x.dtype).min)
        out = self.layer(x, mask[:, None, None, :])  # (B, 1, 1, N): added to the scores of the keys
        return {"x": out[0] if isinstance(out, tuple) else out, "real": real}


class MeanRamp(nn.Module):
    """An off-ramp: the mean of the real tokens, then a linear classifier. State -> logits (B, C)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, classes)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        return self.classifier(mean_pool(**state))


def mean_pool(x: Tensor, real: Tensor | None = None) -> Tensor:
    """Tokens (B, N, D) -> the mean of the real ones, all if None is given, (B, D)."""
    if real is None:
        return x.mean(dim=1)
    weight = real.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


def staged_bert(model: Any, classes: int) -> Staged:
    """A BERT encoder with a new off-ramp after each layer, in eval mode; it shares the encoder's weights.

    Inputs: {"ids": (B, N) int64, "real": (B, N) bool, False on padding}.
    Raises: UnsupportedHost for a model without `.embeddings` and `.layers` (or `.encoder.layer`).
    """
    layers = getattr(model, "layers", None) or getattr(getattr(model, "encoder", None), "layer", None)
    embeddings = getattr(model, "embeddings", None)
    if layers is None or embeddings is None:
        raise UnsupportedHost("staged_bert", model, "an encoder with .embeddings and .layers or .encoder.layer")
    norms = [m for m in layers[0].modules() if isinstance(m, nn.LayerNorm)]
    stages = [BertStage(layer, embeddings if i == 0 else None) for i, layer in enumerate(layers)]
    return Staged(stages, [MeanRamp(norms[0].normalized_shape[0], classes) for _ in layers]).eval()


@torch.no_grad()
def ramp_features(
    network: Staged, inputs: Mapping[str, Tensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """What each off-ramp sees of each text: (N, E, D), on the CPU. The inputs may be on another device."""
    parts, n = [], len(inputs["ids"])
    device = next(network.parameters()).device
    for start in range(0, n, 64):
        progress(start, n)
        state = {name: x[start : start + 64].to(device) for name, x in inputs.items()}
        parts.append(torch.stack([mean_pool(**(state := stage(state))) for stage in network.stages], 1).cpu())
    return torch.cat(parts)


class Ramps(nn.Module):
    """The off-ramps alone, on features that were computed once and are standardised here: (B, E, D) -> (E, B, C)."""

    def __init__(self, features: Tensor, classes: int = 2) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(features.shape[2], classes) for _ in range(features.shape[1]))
        self.mean, self.std = features.mean(0), features.std(0)  # (E, D)

    def forward(self, features: Tensor) -> Tensor:
        x = ((features - self.mean) / self.std).unbind(1)
        return torch.stack([linear(one) for linear, one in zip(self.linears, x, strict=True)])

    @torch.no_grad()
    def copy_into(self, network: Staged) -> None:
        """Give the classifiers to the network's heads, with the standardisation folded in."""
        for head, linear, mean, std in zip(network.heads, self.linears, self.mean, self.std, strict=True):
            weight = linear.weight / std
            head.classifier.weight.copy_(weight)
            head.classifier.bias.copy_(linear.bias - weight @ mean)
