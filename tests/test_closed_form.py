"""Closed forms against the counter, which knows nothing of them, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_impls.accounting.closed_form import Footprint, closed_form
from reference_impls.accounting.count import count
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import ConvNorm, Downsample, InvertedResidual, Stem, conv_norm_act
from reference_impls.layers.layout import Flatten
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.pooling import Head, Pooling
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.models.efficientnet_lite import EfficientNetLite0
from reference_impls.techniques.attention_downsampling import DualPathDownsample
from reference_impls.techniques.stride_attention import MapAttention

PARTS = [
    (nn.Conv2d(6, 4, (3, 2), (2, 1), (1, 0), dilation=(2, 1), groups=2), (6, 11, 9)),
    (nn.Conv2d(6, 4, 3, padding="same", dilation=2), (6, 11, 9)),
    (nn.Conv2d(6, 4, 3, padding="valid"), (6, 11, 9)),
    (nn.Linear(6, 4, bias=False), (5, 7, 6)),
    (
        nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.AdaptiveAvgPool2d((2, None)), nn.Flatten(), nn.Linear(132, 3)),
        (6, 7, 8),
    ),
    (conv_norm_act(6, 4, 3, 2), (6, 7, 8)),
    (InvertedResidual(6, 6, 3, 1, 2), (6, 7, 8)),
    (nn.Sequential(Stem(6, nn.ReLU), Downsample(6, 8)), (3, 33, 30)),
    (MapBlock(6, Pooling(), FeedForward(6, 12)), (6, 7, 8)),
    (MapBlock(6, None, FeedForward(6, 12, local=True)), (6, 7, 8)),
    (MapBlock(6, MapAttention(6, (7, 8), 2, 4, 2, stride=2), FeedForward(6, 12)), (6, 7, 8)),
    (DualPathDownsample(6, 10, (7, 8), 2, 4), (6, 7, 8)),
    (nn.Sequential(Flatten(), TokenBlock(6, TokenAttention(6, (7, 8), 2, 4, 2), 12)), (6, 7, 8)),
    (Head(nn.LayerNorm, 6, 3), (9, 6)),
    (Head(nn.BatchNorm2d, 6, 3), (6, 7, 8)),
    (EfficientNetLite0(10), (3, 32, 64)),
]


@pytest.mark.parametrize(("module", "shape"), PARTS, ids=[type(module).__name__ for module, _ in PARTS])
def test_closed_forms_equal_what_is_counted(module: nn.Module, shape: tuple[int, ...]) -> None:
    for folded in (False, True):
        if folded:
            fold_batch_norm(module.eval())
        with torch.no_grad(), count() as tally:
            y = module(torch.zeros(2, *shape))
        form = closed_form(module, shape)
        assert form == Footprint(sum(p.numel() for p in module.parameters()), tally.macs // 2)
        assert form.shape == y.shape[1:]


def test_sums_and_bad_input() -> None:
    assert sum([Footprint(1, 2, (3,)), Footprint(4, 5)], Footprint()) == Footprint(5, 7)
    assert (Footprint(1, 2, (3,)) + Footprint(4)).shape == (3,)
    with pytest.raises(TypeError, match=r"Bilinear has no closed form: register one beside its class"):
        closed_form(nn.Sequential(nn.Bilinear(2, 2, 2)), (2,))
    with pytest.raises(ValueError, match=r"Conv2d\(3, 4.* cannot take a datum of shape \(1, 3, 8, 8\); .*batch axis"):
        closed_form(ConvNorm(3, 4), (1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"Linear\(in_features=3.* cannot take a datum of shape \(4, 2\)"):
        closed_form(nn.Linear(3, 4), (4, 2))
