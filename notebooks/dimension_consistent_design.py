# %% [markdown]
# # Dimension-consistent design
#
# A vision transformer for phones has two kinds of blocks. Some work on *feature maps* (B, C, H, W) as convolutions do,
# others on *tokens* (B, N, C) as attention does, and going from one to the other is a copy. **Dimension-consistent
# design** (EfficientFormer, Li et al., arXiv 2206.01191) puts all blocks on feature maps first, where a mean of 3 x 3
# neighbours mixes positions, and all blocks with attention last, and changes the layout once.
#
# That pooling is enough at first is a bet on the data: near the image, neighbours say the same.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.data.masking import unmasked
from reference_impls.experiments.dimension_consistent_design import networks
from reference_impls.layers.pooling import neighbourhood_mean
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import Context, Study, run, scenarios
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign

show.style()
ID = "dimension-consistent-design"
pooling, placement, layout = (show.committed(ID, s) for s in ("fill-pooling", "fill-placement", "layout"))
study = Study(ID, scenarios(ID)["fill-pooling"], Context())

# %% [markdown]
# ## Neighbours, in pictures
#
# Digits (enlarged from 8 x 8 pixels, so all too smooth), crops of photos, digits whose Fourier phases are scrambled
# (equal spectrum, so the same correlation between neighbours, but no objects), and white noise; under each, its 3 x 3
# means. The number is the cosine of a pixel with the mean of its neighbours, the image's mean subtracted.

# %%
kinds = study.plan.kinds()
figure, axes = plt.subplots(2, 8, figsize=(10, 2.9))
for i, (name, x) in enumerate(kinds.items()):
    for j in range(2):
        image = x[j + 1 : j + 2]
        limits = {"vmin": image.min(), "vmax": image.max()}
        axes[0, 2 * i + j].imshow(image[0, 0], cmap="gray", **limits)
        axes[1, 2 * i + j].imshow(neighbourhood_mean(image)[0, 0], cmap="gray", **limits)
    axes[0, 2 * i].set_title(f"{name.split(' of ')[0]}: {neighbour_similarity(x).mean():.2f}", fontsize=9, loc="left")
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Pooling is attention with a fixed matrix
#
# The mean of 3 x 3 neighbours multiplies the values by a matrix whose rows sum to 1, as rows of attention do. So where
# all tokens are equal, it gives what any attention gives; else the difference depends on how alike neighbours are.

# %%
matrix = neighbourhood_mean(torch.eye(16).view(1, 16, 4, 4))[0].flatten(1).mT  # (16, 16) for a feature map of 4 x 4
print(f"sums of the rows: {matrix.sum(1).mean():.3f};", "entries:", [round(x, 3) for x in matrix.unique().tolist()])

# %% [markdown]
# ## How alike neighbours are, stage by stage
#
# In trained networks with attention in all four blocks, for images with nothing masked: the cosine of a position with
# its neighbours' mean (left), and the share of variance that half the resolution keeps (right). At the pixels,
# scrambled phases hardly differ from real images, since both measures depend on the spectrum alone; noise shows the
# zero.

# %%
rows = pooling.tables["by stage"].records()
stages = list(dict.fromkeys(row["stage"] for row in rows))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
titles = {"similarity": "cosine with the neighbours", "kept": "kept at half resolution"}
for axis, (column, title) in zip(axes, titles.items(), strict=True):
    for kind in dict.fromkeys(row["images"] for row in rows):
        values = [row[column] for row in rows if row["images"] == kind]
        axis.errorbar(stages, [v.value for v in values], show.ends(values), marker="o", capsize=2, label=kind)
    axis.set(title=title, ylim=(0, 1))
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# The measure on a model of your own, here one that is trained now for a few seconds. `threshold` would pool only those
# images, block by block, whose neighbours agree so much:

# %%
model, digits = networks(study, "aaaa")[0], unmasked(next(iter(kinds.values())))
found = DimensionConsistentDesign().measure(model, digits)
print(f"{found.measure}: {found.value:.2f}", {name: round(value, 2) for name, value in found.where.items()})
with torch.no_grad(), DimensionConsistentDesign().apply(model, threshold=0.6) as handle:
    model(digits)
    print("pooled:", {name: f"{n} of {len(digits)}" for name, (_, n) in handle.trace["substituted"].items()})

# %% [markdown]
# ## Pooling in the place of trained attention
#
# Networks trained with attention in all blocks reconstruct masked patches; then the first blocks pool instead (values
# and projections stay). Beside it the last blocks, and no mixing at all in the first ones.

# %%
records = {"full record": pooling, "run now, small budget": run(ID, "fill-pooling")}
axes = show.panels(records, lambda v: getattr(v, "knobs", {"pooled": 0})["pooled"], "blocks that pool", range(5))
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Trained so
#
# Each network trained for itself: four blocks, two on 8 x 8 and two on 4 x 4. The technique pools in the first two and
# attends in the last two (`pooled 2`), or pools in all of them.

# %%
figure, axis = plt.subplots(figsize=(8.5, 2.8))
show.bars(axis, show.variants(placement, "attention everywhere"), label=placement.baseline.quality.metric)
plt.show()

# %% [markdown]
# ## The layout alone
#
# Four pooling blocks as in the second stage of EfficientFormer-L1, with the same weights: on tokens (the baseline),
# where each pooling needs a feature map and so two changes of layout; on feature maps; on feature maps with a copy
# there and back before each block; and on tokens with the layer norms that blocks on tokens have. MACs are equal
# to the unit.

# %%
show.latency(layout)
for name, points in {"tokens": [layout.baseline], **show.series(layout)}.items():
    difference = points[0].quality.value
    print(f"{name}: {points[0].bytes / 1e6:.1f} MB, largest difference of the result {difference:.1g}")

# %% [markdown]
# ## When not to use it
#
# - **For the sake of the pooling.** Attention last is better than attention first, for half of the MACs; but here
#   the first blocks did better without any mixer than with pooling, and EfficientFormerV2 replaces it by a depthwise
#   convolution.
# - **On a finished network**, beyond a block or two: its attention was not trained to be local.
# - **As a measure of data.** The saving by the layout has nothing to do with the data, and is as large on noise.
