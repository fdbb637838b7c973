# %% [markdown]
# # Stride attention
#
# Attention compares every position of a feature map with every other: 14 x 14 are 196 positions, and at half the
# resolution 49, with a sixteenth of the pairs. **Stride attention** (EfficientFormerV2, Li et al., arXiv 2212.08059)
# makes a coarse feature map, attends there, and interpolates the result. What is not smooth takes another way, a small
# convolution of the values beside attention (*local values*). What does the coarse map lose?

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import CenteredNorm

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
# A small network reconstructs the masked half of the patches (4 x 4 pixels) of an image, so positions must ask others.
# Its first attention was trained on all 64 positions; below is what it adds in one channel, the same computed on 16
# positions and interpolated, and the local values, which are not smooth.

# %%
shown = show.pictures(tokens)
shown["masked"] = np.ma.masked_where(shown["hidden"] == 1, shown["seen"])
limit = max(np.abs(shown[name]).max() for name in ("attended", "strided"))
grey = {"cmap": plt.get_cmap("gray_r").with_extremes(bad="tab:orange"), "vmin": -0.81, "vmax": 2}
signed = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
titles = ("masked", "reconstructed", "attended, 64 tokens", "attended, 16 tokens", "local values")
looks = {"masked": grey, "reconstructed": grey, "attended": signed, "strided": signed}
looks["local"] = {"cmap": "RdBu", "norm": CenteredNorm()}
_, axes = plt.subplots(1, 5, figsize=(10, 2.4))
for axis, title, (name, look) in zip(axes, titles, looks.items(), strict=True):
    axis.imshow(shown[name], **look)
    axis.set_title(title)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The measure
#
# A grid of half the resolution holds the frequencies below its own Nyquist limit. The measure is the share of energy
# below it, without the mean, scaled so that white noise gives 0 and a constant map 1. So waves of fewer than 4 cycles
# on 16 positions are kept, and exactly 4 count half:

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
# In the networks of the full record. Left: share of energy by frequency of what reaches attention, what it mixes, and
# its local values; the dashed line is what half the resolution still holds. Right: the measure at the same places.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), width_ratios=(1.1, 1.5))
rows = tokens.tables["spectrum"].records()
for place in dict.fromkeys(row["place"] for row in rows):
    shares = [row["share"] for row in rows if row["place"] == place]
    axes[0].plot(range(1, 5), shares, "o-", markersize=4, label=place)
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
# How much of the hidden pixels' variance networks without strides explain with 64, 16, 4 tokens and 1. Cells of
# *random* positions are the control: as many tokens, but no neighbours. With local values on the coarse map as well, as
# in the paper, a network that was not trained so breaks; it falls below zero, worse than predicting the mean image.
# Right: a network trained now for a few seconds, whose attention still gives every position the same; so it loses
# nothing either.

# %%
records = {"full record": tokens, "enlarged": tokens, "run now": run("stride-attention", "fill-tokens")}
axes = show.panels(records, "samples", "tokens that attend", [1, 4, 16, 64], powers_of_two=True)
low = min(p.quality.value for p in (*tokens.points, *tokens.controls[0].points))
axes[1].set(ylim=(low - 0.02, tokens.baseline.quality.value + 0.02))
axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, 0.93))
plt.show()
show.gains(tokens, "cells of random positions")

# %% [markdown]
# ## Trained with it
#
# Every network trained with its own mixer: attention at full resolution, with strides as in the paper (a depthwise
# convolution makes the coarse map, local values live on it), and mixers without attention. Left the task above; right
# the classes of Fashion-MNIST.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2))
for axis, record in zip(axes, (mixers, classes), strict=True):
    show.bars(axis, show.variants(record, "attention, stride 1"), label=record.baseline.quality.metric)
plt.show()

# %% [markdown]
# ## A projection that works on interpolated positions
#
# V2 interpolates first, so three quarters of the positions that it projects are interpolated ones. A 1 x 1 convolution
# and batch norm commute with bilinear interpolation; only the GELU in between does not. So why not project first?

# %%
for row in order.tables["EfficientFormerV2-S0"].records():
    cost = f"{row['MACs'] / 1e6:.1f} M MACs, {row['ms']:.1f} ms"
    print(f"S0, {row['order']}: {cost}; speed-up {show.interval(row['speed-up'])}")
for name, quality in show.variants(order, "as published").items():
    print(f"{name}: {show.interval(quality)} explained")
show.gains(order, "baseline")

# %% [markdown]
# ## Beside its rival
#
# Attention downsampling averages the queries alone. Both on the same finished networks, timed in the same rounds:

# %%
show.trade_offs(show.committed("compact-networks", "feature-maps"))

# %% [markdown]
# ## What it saves
#
# One block of S0 at stride 16 by its closed form, and the latency of the whole network, with random weights:

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
