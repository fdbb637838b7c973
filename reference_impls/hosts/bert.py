"""Encoders of text as stages with off-ramps: the project's own MiniLM, and those of Hugging Face's `transformers`.

`hosts/encoder.py` takes them apart. Tried with BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, ELECTRA, MPNet, ALBERT,
DeBERTa and ModernBERT; an encoder that cannot be run layer by layer is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import check_range, check_tensor
from reference_impls.hosts.encoder import check_inputs, take_apart
from reference_impls.hosts.staged import Staged


class MeanRamp(nn.Module):
    """An off-ramp: the mean of the real tokens, then a linear classifier. State -> logits (B, C)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, classes)

    def forward(self, state: Mapping[str, Any]) -> Tensor:
        return self.classifier(mean_pool(state["x"], state["real"]))


def mean_pool(x: Tensor, real: Tensor | None = None) -> Tensor:
    """Tokens (B, N, D) -> the mean of the real ones, all if None is given, (B, D). Summed in float32 at least.

    Whatever padding holds is left out, NaN too, which attention leaves where it sees no real token.
    Raises: ValueError for a sample without a real token.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if real is None:
        return wide.mean(dim=1).to(x.dtype)
    if not bool(real.any(1).all()):
        empty = (~real.any(1)).nonzero().flatten().tolist()
        raise ValueError(f"a mean needs at least one real token, which samples {empty} do not have: all are padding")
    kept = real.unsqueeze(-1)  # (B, N, 1)
    return (wide.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1)).to(x.dtype)


def staged_bert(model: Any, classes: int) -> Staged:
    """An encoder of text with a new off-ramp after each layer, in eval mode; it shares the encoder's weights.

    The tokens after the last stage are the model's last hidden state. What the model computes from that, such as a
    pooler, is left out; `network.stages[0].front.left_out` names those parameters. Off-ramps take the dtype and the
    device of the tokens that they see.

    Inputs of the network: {"ids": (B, N) int64, "real": (B, N) bool, False on padding}, and "token_type_ids" or
    "position_ids" (B, N) where the model takes them.
    Raises: UnsupportedHost for a model that cannot be run layer by layer, with the part that stands in the way.
        ValueError for fewer than 2 classes.
    """
    check_range("classes", classes, 2, integer=True)
    stages, tokens = take_apart(model, "staged_bert")
    ramps = [MeanRamp(x.shape[-1], classes).to(device=x.device, dtype=x.dtype) for x in tokens]
    return Staged(stages, ramps).eval()


@torch.no_grad()
def ramp_features(
    network: Staged, inputs: Mapping[str, Tensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """What each off-ramp sees of each text: (N, E, D), on the CPU. The inputs may be on another device."""
    parts, n = [], len(check_inputs(inputs)[0])
    device = next(network.parameters()).device
    for start in range(0, n, 64):
        progress(start, n)
        state: Any = {name: x[start : start + 64].to(device) for name, x in inputs.items()}
        seen = [mean_pool((state := stage(state))["x"], state["real"]) for stage in network.stages]
        parts.append(torch.stack(seen, 1).cpu())
    return torch.cat(parts)


class Ramps(nn.Module):
    """The off-ramps alone, on features that were computed once and are standardised here: (B, E, D) -> (E, B, C).

    Raises: ValueError for features of fewer than 2 samples, or fewer than 2 classes.
    """

    def __init__(self, features: Tensor, classes: int = 2) -> None:
        super().__init__()
        check_range("classes", classes, 2, integer=True)
        features = check_tensor("features", features, "N E D").float()
        check_range("the number of samples in features", len(features), 2, integer=True)
        self.linears = nn.ModuleList(nn.Linear(features.shape[2], classes) for _ in range(features.shape[1]))
        self.mean, std = features.mean(0), features.std(0)  # (E, D)
        self.std = torch.where(std > 0, std, torch.ones_like(std))  # a feature that is always the same tells nothing

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
