# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dimension-consistent design
#
# A vision transformer for phones has two kinds of blocks. Some work on *maps* (B, C, H, W) as convolutions do, others
# on *tokens* (B, N, C) as attention does, and going from one to the other is a copy. **Dimension-consistent design**
# (EfficientFormer, Li et al., arXiv 2206.01191) puts all blocks on maps first, where a mean of 3 x 3 neighbours mixes
# positions, and all blocks with attention last, and changes the layout once.
#
# That pooling is enough at first is a bet on the data: near the image, neighbours say the same. This notebook measures
# how alike they are at each stage, replaces trained attention by pooling, trains both orders, and times the layouts.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.record import Record
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.experiments.dimension_consistent_design import networks, run_pooling
from reference_impls.experiments.efficient_nets import photo_crops, some_images, whole
from reference_impls.experiments.harness import Context
from reference_impls.layers.pooling import neighbourhood_mean
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "dimension-consistent-design"


def committed(scenario):
    return Record.model_validate_json((results / f"{scenario}.json").read_text())


pooling, placement, layout = map(committed, ("fill-pooling", "fill-placement", "layout"))
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %% [markdown]
# ## Neighbours, in pictures
#
# Four kinds of images: digits (enlarged from 8 x 8 pixels, so all too smooth), crops of photos, digits whose Fourier
# phases are scrambled (the same spectrum, so the same correlation between neighbours, but no objects), and white noise.
# Under each, its 3 x 3 means. The number is the cosine of a pixel with the mean of its neighbours, the image's mean
# subtracted.

# %%
digits = some_images(Context())
kinds = {
    "digits": digits,
    "photos": photo_crops(64),
    "phases scrambled": phase_scrambled(digits),
    "white noise": white_noise(digits),
}
figure, axes = plt.subplots(2, 8, figsize=(10, 2.9))
for i, (name, x) in enumerate(kinds.items()):
    for j in range(2):
        image = x[j + 1 : j + 2]
        low, high = image.min(), image.max()
        axes[0, 2 * i + j].imshow(image[0, 0], cmap="gray", vmin=low, vmax=high)
        axes[1, 2 * i + j].imshow(neighbourhood_mean(image)[0, 0], cmap="gray", vmin=low, vmax=high)
    axes[0, 2 * i].set_title(f"{name}: {neighbour_similarity(x).mean():.2f}", fontsize=9, loc="left")
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Pooling is attention with a fixed matrix
#
# The mean of 3 x 3 neighbours multiplies the values by a matrix whose rows sum to 1, as rows of attention do. So where
# all tokens are equal, it gives what attention gives, whatever the attention; and where they are not, the difference is
# a matter of how alike neighbours are.

# %%
matrix = neighbourhood_mean(torch.eye(16).view(1, 16, 4, 4))[0].flatten(1).mT  # (16, 16) for a map of 4 x 4
print("sums of the rows:", matrix.sum(1).unique().tolist(), " entries:", matrix.unique().tolist())

# %% [markdown]
# ## How alike neighbours are, stage by stage
#
# In trained networks with attention in all four blocks, for images with nothing hidden: the cosine of a position with
# its neighbours' mean (left), and the share of variance that half the resolution keeps (right). At the pixels,
# scrambled phases hardly differ from real images, since both measures depend on the spectrum alone; noise shows the
# zero.

# %%
labels = pooling.extra["stages"].split(", ")
colours = {"clothes": "tab:blue", "photos": "tab:green", "phases_scrambled": "tab:olive", "white_noise": "tab:gray"}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
for axis, what, title in (
    (axes[0], "similarity", "cosine with the neighbours"),
    (axes[1], "kept", "kept at half resolution"),
):
    for kind, colour in colours.items():
        rows = np.array(pooling.extra[f"{what}_{kind}"])
        axis.plot(rows[:, 0], "o-", color=colour, markersize=4, label=kind.replace("_", " "))
        axis.fill_between(range(len(rows)), rows[:, 1], rows[:, 2], color=colour, alpha=0.12, linewidth=0)
    axis.set(xticks=range(len(labels)), xticklabels=labels, title=title, ylim=(0, 1))
axes[1].legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# The measure on a model of your own, here one that is trained now for a few seconds. `threshold` would pool only those
# images, block by block, whose neighbours agree so much:

# %%
model = networks(Context(), "aaaa")[0]
found = DimensionConsistentDesign().measure(model, whole(digits))
print(f"{found.measure}: {found.value:.2f}", {name: round(value, 2) for name, value in found.where.items()})
with torch.no_grad(), DimensionConsistentDesign().apply(model, threshold=0.6) as handle:
    model(whole(digits))
    print("pooled:", {name: f"{n} of {len(digits)}" for name, (_, n) in handle.trace["substituted"].items()})

# %% [markdown]
# ## Pooling in the place of trained attention
#
# Networks trained with attention in all blocks fill in hidden patches; then the first blocks pool instead (values and
# projections stay). Beside it the last blocks, and no mixing at all in the first ones.

# %%
STYLES = {
    "the first blocks": ("tab:blue", "o-"),
    "the last blocks": ("tab:orange", "s:"),
    "no mixing": ("tab:gray", "x--"),
}


def curve(axis, record, title):
    for name, points in ({"the first blocks": record.points} | {c.name: c.points for c in record.controls}).items():
        colour, style = STYLES[name]
        variants = [record.baseline, *points]
        axis.plot(
            range(5), [variant.quality.value for variant in variants], style, color=colour, markersize=4, label=name
        )
        if variants[0].quality.low is not None:
            ends = ([variant.quality.low for variant in variants], [variant.quality.high for variant in variants])
            axis.fill_between(range(5), *ends, color=colour, alpha=0.12, linewidth=0)
    axis.set(xlabel="blocks that pool", xticks=range(5), title=title)


figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3))
curve(axes[0], pooling, f"full record ({len(pooling.seeds)} trainings)")
curve(axes[1], run_pooling(Context()), "run now (1 seed, small budget)")
axes[0].set_ylabel(pooling.baseline.quality.metric)
axes[0].legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Trained so
#
# Each network trained for itself: four blocks, two on 8 x 8 and two on 4 x 4, that attend (a), pool (p) or do not mix
# (n). `ppaa` is EfficientFormer's order.

# %%
variants = {"aaaa": placement.baseline, "ppaa": placement.points[0], "pppp": placement.points[1]}
variants |= {"aapp": placement.controls[0].points[0], "nnaa": placement.controls[1].points[0]}
figure, axis = plt.subplots(figsize=(7.5, 2.8))
for i, (name, variant) in enumerate(variants.items()):
    q = variant.quality
    colour = "tab:blue" if name == "ppaa" else "tab:gray"
    axis.errorbar(q.value, -i, xerr=[[q.value - q.low], [q.high - q.value]], fmt="o", color=colour, capsize=3)
    text = f"{variant.macs / 1e6:.2f} M MACs, {variant.wall_ms.median:.2f} ms"
    axis.annotate(text, (1.02, -i), xycoords=("axes fraction", "data"), va="center", fontsize=8)
axis.set(yticks=-np.arange(len(variants)), yticklabels=variants, xlabel=placement.baseline.quality.metric)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The layout alone
#
# Four pooling blocks as in the second stage of EfficientFormer-L1, with the same weights: on maps; on tokens, where
# each pooling needs a map and so two changes of layout; on maps with a copy there and back in front of each block; and
# on tokens with the layer norms that blocks on tokens have. MACs are equal to the unit.

# %%
variants = {"on tokens": layout.baseline, "on maps": layout.points[0]} | {c.name: c.points[0] for c in layout.controls}
for name, variant in variants.items():
    w = variant.wall_ms
    print(
        f"{name:24s} {variant.macs / 1e6:.1f} M MACs, {variant.bytes / 1e6:.1f} MB, {w.median:.2f} ms "
        f"(10-90 %: {w.p10:.2f} to {w.p90:.2f}), difference of the result {variant.quality.value:.1g}"
    )
for name, (ratio, low, high) in layout.extra.items():
    print(
        f"{name.removeprefix('speed_up_').replace('_', ' ')}: "
        f"{ratio:.2f} times as fast as on tokens (95 %: {low:.2f} to {high:.2f})"
    )

# %% [markdown]
# ## When not to use it
#
# - **For the sake of the pooling.** Attention last is better than attention first, for half of the MACs; but here
#   the first blocks did better without any mixer than with pooling, and EfficientFormerV2 replaces it by a depthwise
#   convolution.
# - **On a finished network**, beyond a block or two: its attention was not trained to be local.
# - **As a measure of data.** The saving by the layout has nothing to do with the data, and is as large on noise.
