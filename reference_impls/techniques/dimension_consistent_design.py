"""Dimension-consistent design: a network computes on maps first and on tokens last, and changes its layout once.

References:
  li-2022-efficientformer: Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren. EfficientFormer: Vision Transformers at
    MobileNet Speed. NeurIPS 2022, arXiv 2206.01191. The design, its two blocks MB4D and MB3D, the stem.

The idea: near the image, neighbouring pixels repeat, so mixing them needs no attention: a parameter-free mean of 3x3
neighbours is enough, and it works on maps (B, C, H, W), on which convolutions with folded batch normalisation are fast.
Only the last blocks, on 49 tokens, attend. In between the map is flattened once, so no block pays for a reshape.

    x = Stem(48, nn.ReLU)(images)                        # (B, 3, 224, 224) -> (B, 48, 56, 56)
    x = MapBlock(48, Pooling(), FeedForward(48, 192))(x) # MB4D: maps in, maps out
    x = Flatten()(x)                                     # (B, C, 7, 7) -> (B, 49, C), once
    x = TokenBlock(448, TokenAttention(448, (7, 7)), 1792)(x)  # MB3D: tokens in, tokens out

A finished network that attends in every block can be run in this order too (`DimensionConsistentDesign`): in its first
blocks the mean of 3x3 neighbours takes the place of the attention matrix. Where all tokens agree that changes nothing,
since every mean of equal values is the same.

    with DimensionConsistentDesign().apply(model, pooled=2):
        logits = model(images)

The parts stand in `layers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import Handle, Integer, Number, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import UnsupportedHost, warn_no_effect
from reference_impls.hosts.probe import refuse_look_alikes
from reference_impls.hosts.substitution import Substitution, inputs_of, modules_of, saved
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.layout import as_map, as_tokens
from reference_impls.layers.norm import normalises_by_batch
from reference_impls.layers.pooling import neighbourhood_mean
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.spatial_similarity import neighbour_similarity


def pooled_values(attention: TokenAttention, x: Tensor) -> Tensor:
    """The output of `attention` with the mean of 3x3 neighbours as its matrix: (B, N, C) -> (B, N, C).

    Values and the last projection stay; queries, keys and scores are not computed. With equal tokens the output is that
    of attention, whose rows are means as well.
    """
    value = value_rows(attention)
    values = F.linear(x, attention.qkv.weight[value], attention.qkv.bias[value])
    return attention.proj(as_tokens(neighbourhood_mean(as_map(values, attention.grid(x.shape[1])))))


def value_rows(attention: TokenAttention) -> Tensor:
    """Which rows of the joint projection make values, head by head: bool, one for each row."""
    one_head = torch.arange(2 * attention.key_dim + attention.value_dim) >= 2 * attention.key_dim
    return one_head.repeat(attention.heads)


def likeness(attention: TokenAttention, x: Tensor) -> Tensor:
    """`neighbour_similarity` of the tokens x: (B, N, C) that reach an attention module: (B,)."""
    return neighbour_similarity(as_map(x, attention.grid(x.shape[1])))


class DimensionConsistentDesign(Technique):
    """Pooling first, attention last, on networks of `TokenAttention`."""

    id = "dimension-consistent-design"
    execution = "real"
    knobs: ClassVar = {
        "pooled": Integer(
            None, low=0, optional=True, about="how many attention modules pool, the first ones; None: all"
        ),
        "threshold": Number(
            None, low=0, high=1, optional=True, about="only data of this `neighbour_similarity` or more"
        ),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("attention everywhere", {"pooled": 0}, off=True),
            Setting("pooling where neighbours agree", {"threshold": 0.9}, adaptive=True),
            Setting("pooling in the first block", {"pooled": 1}),
            Setting("pooling in two blocks", {"pooled": 2}),
            Setting("pooling everywhere", {"pooled": None}),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Cosine of a token with the mean of its 4 neighbours, over the tokens that reach attention, and its modules.

        The formula is `spatial_similarity.neighbour_similarity`, with the mean token of each datum subtracted: 0 for
        independent tokens, 1 for equal ones. `where` holds it for each module.
        """
        attentions, where = _checked(target), {}
        if normalises_by_batch(target):
            raise UnsupportedHost(self.id, target, "batch norm in evaluation mode, because measuring would move it")
        for name, x in inputs_of(attentions, target, inputs).items():
            where[name or "attention"] = mean_share(likeness(attentions[name], x))
        return Redundancy(sum(where.values()) / len(where), "cosine of a token with its neighbours' mean", where)

    def attach(self, target: nn.Module, pooled: int | None, threshold: float | None) -> Handle:
        """Mix the first `pooled` attention modules by the mean of 3x3 neighbours, see `pooled_values`.

        The trace is that of `hosts.Substitution`. Raises: UnsupportedHost for a network without `TokenAttention`,
        or with one that computes something else.
        """
        attentions = _checked(target)
        if pooled == 0:
            warn_no_effect(self.id, "pooled is 0")
        chosen = None if threshold is None else partial(_is_smooth, threshold)
        run = Substitution(self.id, dict(islice(attentions.items(), pooled)), pooled_values, chosen)
        return Handle(target, undo=run.undo, trace=run.trace)

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """For each datum and module that pools, with N tokens of C channels, keys of K and values of V channels in all
        heads together:

            2 C K N  +  (K + V) N^2.
        """

        def saving(attention: TokenAttention, shape: torch.Size) -> int:
            tokens, channels = shape[1:]
            keys, values = attention.heads * attention.key_dim, attention.heads * attention.value_dim
            return 2 * channels * keys * tokens + (keys + values) * tokens**2

        return saved(_attentions(target), trace, saving)


def _is_smooth(threshold: float, attention: TokenAttention, x: Tensor) -> Tensor:
    return likeness(attention, x) >= threshold


def _attentions(target: object) -> dict[str, TokenAttention]:
    found = modules_of(target, TokenAttention)
    if not found:
        raise UnsupportedHost(DimensionConsistentDesign.id, target, "a network with `TokenAttention`")
    return found


def _checked(target: object) -> dict[str, TokenAttention]:
    """The same, run once on equal tokens, on which attention and pooling must agree."""
    found = _attentions(target)
    refuse_look_alikes(DimensionConsistentDesign.id, target, TokenAttention, found, pooled_values, _equal_tokens)
    return found


def _equal_tokens(attention: TokenAttention) -> Tensor:
    token = torch.randn(1, 1, attention.qkv.in_features, generator=generator(0))
    return token.expand(1, math.prod(attention.size), -1)
