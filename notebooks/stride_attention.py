# %% [markdown]
# # Stride attention
#
# Attention compares every position of a feature map with every other, so its work grows with the square of their
# number. A feature map of 14 x 14 has 196 positions; at half the resolution it has 49, and a sixteenth of the pairs.
# **Stride attention** (EfficientFormerV2, Li et al., arXiv 2212.08059) makes a coarse feature map, attends there, and
# interpolates the result. What is not smooth takes another way, a small convolution of the values beside attention
# (*local values*).
#
# This notebook asks what the coarse map loses: which frequencies attention adds to a feature map, how results fall when
# a finished network runs with fewer tokens, what training with a stride gives, and what it saves in time.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.accounting.closed_form import closed_form
from reference_impls.benchmarks.compact_networks.feature_maps import attention_networks
from reference_impls.data.masking import unmasked
from reference_impls.redundancy.over_resolution import over_resolution
from reference_impls.study import Context, Study, run, scenarios
from reference_impls.techniques.stride_attention import MapAttention, StrideAttention, cell_means

show.style()
tokens, mixers, classes, order, latency = (
    show.committed("stride-attention", scenario)
    for scenario in ("fill-tokens", "fill-mixers", "classify-mixers", "fill-projection-order", "s0-latency")
)

# %% [markdown]
# ## The idea in one picture
#
# A small network gets an image of Fashion-MNIST in patches of 4 x 4 pixels, half of them masked, and reconstructs what
# is missing. To do so a position must ask others. Its first attention was trained on all 64 positions; below is what it
# adds in one channel, the same computed on 16 positions and interpolated, and the local values, which are not smooth.

# %%
shown = show.pictures(tokens)
grey = plt.get_cmap("gray_r").with_extremes(bad="tab:orange")
shades = {"cmap": grey, "vmin": -0.81, "vmax": 2}
limit = max(np.abs(shown[name]).max() for name in ("attended", "strided"))
limits = {"attended": limit, "strided": limit, "local": np.abs(shown["local"]).max()}
drawn = {
    "masked": (np.ma.masked_where(shown["hidden"] == 1, shown["seen"]), shades),
    "reconstructed": (shown["reconstructed"], shades),
}
titles = {"attended": "attended, 64 tokens", "strided": "attended, 16 tokens", "local": "local values"}
for name, title in titles.items():
    drawn[title] = (shown[name], {"cmap": "RdBu", "vmin": -limits[name], "vmax": limits[name]})
_, axes = plt.subplots(1, 5, figsize=(10, 2.4))
for axis, (title, (image, look)) in zip(axes, drawn.items(), strict=True):
    axis.imshow(image, **look)
    axis.set_title(title)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The measure
#
# A grid of half the resolution holds the frequencies below its own Nyquist limit and loses the others. The measure is
# the share of energy below the limit, without the mean, scaled so that white noise gives 0 and a constant map 1. Waves
# show it plainly: fewer than 4 cycles on 16 positions are kept, and exactly 4 count half.

# %%
for cycles in (1, 3, 4, 5, 8):
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(16) / 16).expand(1, 1, 16, 16)
    print(f"{cycles} cycles: {over_resolution(wave).item():.2f}")
noise = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))
print(f"white noise: {over_resolution(noise).item():.2f}")

# %% [markdown]
# Averaging cells of a feature map averages queries and keys, which are linear in it. So the score of two cells is
# *exactly* the mean score of their positions, and a coarse map asks a well-defined question:

# %%
torch.manual_seed(0)
attention, x = MapAttention(8, (4, 4), heads=1, key_dim=4, ratio=1).eval(), torch.randn(1, 8, 4, 4)
with torch.no_grad():
    fine = attention.q(x).flatten(2).mT @ attention.k(x).flatten(2)  # (1, 16, 16)
    coarse = attention.q(cell_means(x, 2)).flatten(2).mT @ attention.k(cell_means(x, 2)).flatten(2)  # (1, 4, 4)
first_cell, last_cell = [0, 1, 4, 5], [10, 11, 14, 15]
print(f"mean of 16 scores: {fine[0, first_cell][:, last_cell].mean():.6f}; of the two cells: {coarse[0, 0, 3]:.6f}")

# %% [markdown]
# ## Which frequencies attention adds
#
# Left: share of energy by frequency, in the networks of the full record: what reaches attention, what it mixes, and its
# local values. The dashed line is what half the resolution still holds. Right: the measure at the same places.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), width_ratios=(1.1, 1.5))
rows = tokens.tables["spectrum"].records()
for place in dict.fromkeys(row["place"] for row in rows):
    points = [(row["cycles"], row["share"]) for row in rows if row["place"] == place]
    axes[0].plot(*zip(*points, strict=True), "o-", markersize=4, label=place)
axes[0].axvline(2, color="black", linestyle="--", linewidth=0.8)
axes[0].set(xlabel="cycles across the feature map", ylabel="share of energy", xticks=[1, 2, 3, 4], ylim=(0, None))
axes[0].legend()
show.grouped_bars(axes[1], tokens.tables["redundancy by place"], "images", "place", "redundancy")
axes[1].set(ylabel="measure (0: noise, 1: constant)")
plt.show()

# %% [markdown]
# The same measure on a model of your own is one call. Here it is a network trained now for a few seconds:

# %%
study = Study("stride-attention", scenarios("stride-attention")["fill-tokens"], Context())
model, images = attention_networks(study)[0], unmasked(study.plan.first)
found = StrideAttention().measure(model, images)
print(f"{found.measure}: {found.value:.2f}")
with torch.no_grad(), StrideAttention().apply(model, stride=2) as handle:
    model(images)
    print("coarsened:", {name: f"{n} of {len(images)} maps" for name, (_, n) in handle.trace["substituted"].items()})

# %% [markdown]
# ## Fewer tokens in a finished network
#
# The networks were trained at full resolution, without strides. Left: how much of the hidden pixels' variance they
# explain with 64, 16, 4 tokens and 1. Cells of *random* positions are the control: as many tokens, but no neighbours.
# With local values on the coarse map as well, as in the paper, a network that was not trained so breaks; it falls below
# zero, worse than predicting the mean image. Right: a network trained now for a few seconds, whose attention still
# gives every position the same; so it loses nothing either.

# %%
live = run("stride-attention", "fill-tokens")
records = {"full record": tokens, "enlarged": tokens, "run now": live}
axes = show.panels(records, "samples", "tokens that attend", [1, 4, 16, 64], powers_of_two=True)
low = min(p.quality.value for p in (*tokens.points, *tokens.controls[0].points))
axes[1].set(ylim=(low - 0.02, tokens.baseline.quality.value + 0.02))
axes[0].legend(fontsize=8, loc="lower center")
plt.show()
show.gains(tokens, "cells of random positions")

# %% [markdown]
# ## Trained with it
#
# Now every network is trained with its own mixer, for the same time: attention at full resolution and with strides as
# in the paper (a depthwise convolution makes the coarse map, local values live on it), and mixers without attention.
# Left the task above; right the classes of Fashion-MNIST.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2))
for axis, record in zip(axes, (mixers, classes), strict=True):
    show.bars(axis, show.variants(record, "attention, stride 1"), label=record.baseline.quality.metric)
plt.show()

# %% [markdown]
# ## A projection that works on interpolated positions
#
# V2 interpolates first and projects afterwards, so three quarters of the positions that it projects are interpolated
# ones. A 1 x 1 convolution and batch norm commute with bilinear interpolation; only the GELU in between does not. So
# the projection may as well come first:

# %%
for row in order.tables["EfficientFormerV2-S0"].records():
    print(
        f"S0, {row['order']}: {row['MACs'] / 1e6:.1f} M MACs, {row['ms']:.1f} ms; speed-up",
        show.interval(row["speed-up"]),
    )
for name, quality in show.variants(order, "as published").items():
    print(f"{name}: {show.interval(quality)} explained")
show.gains(order, "baseline")

# %% [markdown]
# ## What it saves
#
# The closed form of one block of S0 at stride 16, and the latency of the whole network at 224 pixels, one thread, one
# image (random weights; they change no operation):

# %%
for stride in (1, 2):
    block = closed_form(MapAttention(96, (14, 14), stride=stride), (96, 14, 14))
    print(f"block, stride {stride}: {block.macs / 1e6:.1f} M MACs")
show.latency(latency)

# %% [markdown]
# ## When not to use it
#
# - **Every position has its own result.** Reconstruction loses by the stride; classification, where all positions are
#   averaged in the end, does not. There the strided networks even learned better.
# - **On a network that was not trained so.** Keep the local values at full resolution, and expect a loss.
# - **For the count of MACs.** A block loses most of its MACs, the network's latency far less: the other layers stay,
#   and so does the projection on the interpolated feature map.
