"""Experiments of token merging, all of them in the benchmark of token reduction.

- `digits-vit`, `fashion-vit`: accuracy of small trained ViTs against r, with chance as the control.
- `saliency-photos`, `saliency-photos-threshold`: a pretrained ViT-S/14 on photos, agreement of its saliency map.
- `vit-small-latency`, `vit-small-latency-batch-1`: wall-clock of a ViT-S/16 at 224 pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from reference_impls.benchmarks import token_reduction as benchmark
from reference_impls.benchmarks.token_reduction import DIGITS, FASHION, LatencyPlan, Method, SaliencyPlan
from reference_impls.contract import Handle
from reference_impls.study import TECHNIQUE, forward
from reference_impls.techniques.token_merging import TokenMerging

TOME = TokenMerging()
OURS = Method(TECHNIQUE, lambda model, r: TOME.apply(model, r=r))
PLAIN_ATTENTION = Method(
    "without proportional attention",
    lambda model, r: TOME.apply(model, r=r, proportional=False),
    "The technique without log s in the attention: a merged token counts as one.",
)


def by_threshold(model: nn.Module, threshold: float) -> Handle:
    """Merges every pair above a cosine, in the place of a fixed number."""
    return TOME.apply(model, r=None, threshold=threshold)


def picture(model: nn.Module, x: Tensor, r: int = 16) -> dict[str, Any]:
    """Which patches of a photo merged, and its saliency maps, on the grid of patches."""
    dense = forward(model, x)()
    with TOME.apply(model, r=r) as handle:
        merged = forward(model, x)()
        group = handle.trace["group"][0, 1:].view(16, 16)
    maps = {"saliency, dense": dense, "saliency, merged": merged}
    return {"group of patch": group, **{name: nn.functional.avg_pool2d(map_, 14)[0, 0] for name, map_ in maps.items()}}


def of_batches(size: int) -> tuple[LatencyPlan, LatencyPlan]:
    """The plans of the latency of batches, full and smoke."""
    full = LatencyPlan(repetitions=21, batch=size, rs=(8, 13, 16))
    return full, LatencyPlan(repetitions=3, batch=size, rs=(13,))


RANDOM = (benchmark.RANDOM_MERGING, benchmark.RANDOM_DROPPING)
CLASSIFY = partial(benchmark.classification, technique=TOME, methods=(OURS, *RANDOM, PLAIN_ATTENTION))
SALIENCY = partial(benchmark.saliency, technique=TOME)
LATENCY = partial(benchmark.latency, technique=TOME, methods=(OURS, PLAIN_ATTENTION))
PHOTOS = "Saliency maps of photos by a pretrained ViT-S/14"
SCENARIOS = (
    benchmark.task("digits-vit", "A ViT with one token for each pixel, on handwritten digits", CLASSIFY, *DIGITS),
    benchmark.task("fashion-vit", "A ViT with patches of 4 x 4 pixels, on Fashion-MNIST", CLASSIFY, *FASHION),
    benchmark.task(
        "saliency-photos",
        PHOTOS,
        partial(SALIENCY, methods=(OURS, RANDOM[0], PLAIN_ATTENTION), knob="r", picture=picture),
        SaliencyPlan(values=(4, 8, 12, 16, 20)),
        SaliencyPlan(repetitions=2, values=(8, 16), photos=2),
    ),
    benchmark.task(
        "saliency-photos-threshold",
        f"{PHOTOS}, merging only keys above a cosine",
        partial(SALIENCY, methods=(Method(TECHNIQUE, by_threshold),), knob="threshold"),
        SaliencyPlan(values=(0.998, 0.995, 0.99, 0.98), frames=100, watched=(0.995, 0.98)),
        SaliencyPlan(repetitions=2, values=(0.995, 0.98), photos=2),
    ),
    benchmark.task("vit-small-latency", "Wall-clock of a ViT-S/16, batch of 8", LATENCY, *of_batches(8)),
    benchmark.task("vit-small-latency-batch-1", "Wall-clock of a ViT-S/16, one image", LATENCY, *of_batches(1)),
)
