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
# # Stride attention
#
# Attention compares every position of a map with every other, so its work grows with the square of their number. A map
# of 14 x 14 has 196 positions; at half the resolution it has 49, and a sixteenth of the pairs. **Stride attention**
# (EfficientFormerV2, Li et al., arXiv 2212.08059) does just that: it makes a coarse map, attends there, and
# interpolates the result. What is not smooth takes another way, a small convolution of the values beside attention
# (*local values*).
#
# This notebook asks what the coarse map loses: which frequencies attention really adds to a map, how results fall when
# a finished network is run with fewer tokens, what training with a stride gives, and what it saves in time.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.record import Record
from reference_impls.experiments.efficient_nets import some_images, whole
from reference_impls.experiments.harness import Context
from reference_impls.experiments.stride_attention import networks, run_tokens
from reference_impls.redundancy.over_resolution import over_resolution
from reference_impls.techniques.stride_attention import MapAttention, StrideAttention, cell_means

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "stride-attention"


def committed(scenario):
    return Record.model_validate_json((results / f"{scenario}.json").read_text())


tokens, mixers, classes, order, clock = map(
    committed, ("fill-tokens", "fill-mixers", "classify-mixers", "fill-projection-order", "s0-latency")
)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %% [markdown]
# ## The idea in one picture
#
# A small network sees an image of clothes in patches of 4 x 4 pixels, half of them hidden, and paints what is missing.
# To do so a position must ask others. Its first attention was trained on all 64 positions; below is what it adds in one
# channel, the same computed on 16 positions and interpolated, and the local values, which are not smooth.

# %%
shown = {
    name: np.array(tokens.extra[f"picture_{name}"])
    for name in ("seen", "hidden", "filled", "attended", "strided", "local")
}
seen = np.ma.masked_where(shown["hidden"] == 1, shown["seen"])
figure, axes = plt.subplots(1, 5, figsize=(10, 2.4))
grey = plt.get_cmap("gray_r").with_extremes(bad="tab:orange")
for axis, picture, title in ((axes[0], seen, "seen"), (axes[1], shown["filled"], "filled in")):
    axis.imshow(picture, cmap=grey, vmin=-0.81, vmax=2)
    axis.set_title(title)
limit = max(np.abs(shown[name]).max() for name in ("attended", "strided"))
for axis, name, title in (
    (axes[2], "attended", "attended, 64 tokens"),
    (axes[3], "strided", "attended, 16 tokens"),
    (axes[4], "local", "local values"),
):
    bound = limit if name != "local" else np.abs(shown["local"]).max()
    axis.imshow(shown[name], cmap="RdBu", vmin=-bound, vmax=bound)
    axis.set_title(title)
for axis in axes:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The measure
#
# A grid of half the resolution holds the frequencies below its own Nyquist limit and loses the others. The measure is
# the share of energy below the limit, without the mean, scaled so that white noise gives 0 and a constant map 1. On
# waves it is plain: up to 4 cycles on 16 positions are kept, and exactly 4 count half.

# %%
for cycles in (1, 3, 4, 5, 8):
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(16) / 16).expand(1, 1, 16, 16)
    print(f"{cycles} cycles: {over_resolution(wave).item():.2f}")
print(
    f"white noise: {over_resolution(torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))).item():.2f}"
)

# %% [markdown]
# Averaging cells of a map averages queries and keys, which are linear in it. So the score of two cells is *exactly* the
# mean score of their positions, and a coarse map asks a well-defined question:

# %%
attention = MapAttention(8, (4, 4), heads=1, key_dim=4, ratio=1).eval()
x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    fine = attention.q(x).flatten(2).mT @ attention.k(x).flatten(2)  # (1, 16, 16)
    coarse = attention.q(cell_means(x, 2)).flatten(2).mT @ attention.k(cell_means(x, 2)).flatten(2)  # (1, 4, 4)
first_cell, last_cell = [0, 1, 4, 5], [10, 11, 14, 15]
print(
    "mean of 16 scores:",
    fine[0, first_cell][:, last_cell].mean().item(),
    " score of the cells:",
    coarse[0, 0, 3].item(),
)

# %% [markdown]
# ## Which frequencies attention adds
#
# Share of energy by frequency, in the networks of the full record: what reaches attention, what it mixes, and its local
# values. The dashed line is what half the resolution still holds.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), width_ratios=(1.1, 1.5))
colours = {"input": "tab:gray", "attended": "tab:blue", "local": "tab:red"}
for name, colour in colours.items():
    axes[0].plot([1, 2, 3, 4], tokens.extra[f"spectrum_{name}"], "o-", color=colour, markersize=4, label=name)
axes[0].axvline(2, color="black", linestyle="--", linewidth=0.8)
axes[0].set(xlabel="cycles across the map", ylabel="share of energy", xticks=[1, 2, 3, 4], ylim=(0, None))
axes[0].legend(frameon=False)
kinds = ("clothes", "photos", "phases_scrambled", "half_hidden", "white_noise")
places = tokens.extra["measured_places"].split(", ")
for i, place in enumerate(places):
    rows = np.array([tokens.extra[f"measured_{kind}"][i] for kind in kinds])  # mean, low, high
    spread = np.abs(rows[:, 1:] - rows[:, :1]).T
    axes[1].bar(
        np.arange(len(kinds)) + 0.27 * (i - 1), rows[:, 0], 0.25, color=colours[place], yerr=spread, label=place
    )
axes[1].set(
    xticks=range(len(kinds)),
    xticklabels=[k.replace("_", "\n") for k in kinds],
    ylabel="measure (0: noise, 1: constant)",
)
axes[1].legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# The same measure on a model of your own is one call. Here it is a network trained now for a few seconds:

# %%
model, images = networks(Context(), "stride 1")[0], some_images(Context())
found = StrideAttention().measure(model, whole(images))
print(f"{found.measure}: {found.value:.2f}")
with torch.no_grad(), StrideAttention().apply(model, stride=2) as handle:
    model(whole(images))
    print("coarsened:", {name: f"{n} of {len(images)} maps" for name, (_, n) in handle.trace["substituted"].items()})

# %% [markdown]
# ## Fewer tokens in a finished network
#
# The networks were trained at full resolution and know nothing of strides. Left: how much of the hidden pixels'
# variance they fill in with 64, 16, 4 tokens and 1. Cells of *random* positions (orange) are the control: as many
# tokens, but no neighbours. With local values on the coarse map as well, as in the paper, a network that was not
# trained so breaks. Right: the same of a network trained now for a few seconds, whose attention still gives every
# position the same; so it loses nothing either.

# %%
STYLES = {
    "stride attention": ("tab:blue", "o-"),
    "cells of random positions": ("tab:orange", "s:"),
    "local values on the coarse map": ("tab:red", "x--"),
}


def curve(axis, record, title):
    for name, points in ({"stride attention": record.points} | {c.name: c.points for c in record.controls}).items():
        colour, style = STYLES[name]
        variants = [record.baseline, *points]
        at, quality = [variant.samples for variant in variants], [variant.quality.value for variant in variants]
        axis.plot(at, quality, style, color=colour, markersize=4, label=name)
        if variants[0].quality.low is not None:
            ends = ([variant.quality.low for variant in variants], [variant.quality.high for variant in variants])
            axis.fill_between(at, *ends, color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens that attend", xticks=[1, 4, 16, 64], xticklabels=[1, 4, 16, 64], title=title)


figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), width_ratios=(1.3, 1.3, 1))
curve(axes[0], tokens, f"full record ({len(tokens.seeds)} trainings)")
curve(axes[1], tokens, "the same, enlarged")
low = min(p.quality.value for p in (*tokens.points, *tokens.controls[0].points))
axes[1].set_ylim(low - 0.02, tokens.baseline.quality.value + 0.02)
curve(axes[2], run_tokens(Context()), "run now (1 seed)")
axes[0].set_ylabel(tokens.baseline.quality.metric)
handles, names = axes[0].get_legend_handles_labels()
figure.tight_layout(rect=(0, 0.08, 1, 1))
figure.legend(handles, names, frameon=False, fontsize=8, loc="lower center", ncols=3)
plt.show()
for stride in (2, 4, 8):
    mean, low, high = tokens.extra[f"paired_neighbours_{stride}"]
    print(f"stride {stride}: neighbours minus random cells {mean:+.4f} (95 % over seeds: {low:+.4f} to {high:+.4f})")

# %% [markdown]
# ## Trained with it
#
# Now every network is trained with its own mixer, for the same time: attention at full resolution and with strides 2
# and 4 as in the paper (a depthwise convolution makes the coarse map, local values live on it), and three mixers
# without attention. Left the task above; right telling the ten classes apart.

# %%
NAMES = {"stride 1": "attention, 64", "stride 2": "attention, 16", "stride 4": "attention, 4"}


def bars(axis, record, title):
    variants = (
        {"attention, 64": record.baseline}
        | {f"attention, {p.samples}": p for p in record.points}
        | {c.name.removeprefix("mixer "): c.points[0] for c in record.controls}
    )
    for i, (name, variant) in enumerate(variants.items()):
        q = variant.quality
        colour = "tab:blue" if name.startswith("attention") else "tab:gray"
        axis.errorbar(q.value, -i, xerr=[[q.value - q.low], [q.high - q.value]], fmt="o", color=colour, capsize=3)
        axis.annotate(
            f"{variant.macs / 1e6:.2f} M", (1.02, -i), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axis.set(yticks=-np.arange(len(variants)), yticklabels=variants, xlabel=record.baseline.quality.metric, title=title)
    axis.annotate("macs", (1.02, 0.7), xycoords=("axes fraction", "data"), fontsize=8)


figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
bars(axes[0], mixers, "filling in hidden patches")
bars(axes[1], classes, "telling clothes apart")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Three quarters of a projection work on interpolated pixels
#
# V2 interpolates first and projects (1024 -> C) afterwards. A 1 x 1 convolution and batch norm commute with bilinear
# interpolation; only the GELU in between does not. So the projection may as well come first:

# %%
s0, first = order.extra["s0_macs"]
ratio, low, high = order.extra["s0_speed_up"]
print(f"S0: {s0 / 1e6:.1f} M MACs as published, {first / 1e6:.1f} M projecting first ({1 - first / s0:.1%} fewer)")
print(f"S0: {ratio:.3f} times as fast (95 %: {low:.3f} to {high:.3f}), one thread, one image")
for name, variant in (
    ("published order", order.baseline),
    ("trained projecting first", order.points[0]),
    ("swapped without training", order.controls[0].points[0]),
):
    print(f"{name}: {variant.quality.value:.3f} filled in, {variant.macs / 1e6:.2f} M MACs")
print("difference of the trained ones, seed by seed (mean, 95 %):", np.round(order.extra["paired_projected_first"], 4))

# %% [markdown]
# ## What it saves
#
# The closed form of one block of S0 at stride 16, and the clock on the whole network at 224 pixels, one thread, one
# image (random weights; they change no operation):

# %%
for stride in (1, 2):
    block = closed_form(MapAttention(96, (14, 14), stride=stride), (96, 14, 14))
    print(f"block, stride {stride}: {block.macs / 1e6:.1f} M MACs")
print(
    f"S0 at full resolution: {clock.baseline.macs / 1e6:.0f} M MACs, "
    f"{clock.baseline.wall_ms.median:.1f} ms, {clock.machine.cpu}"
)
for point, (stride, ratio, low, high) in zip(clock.points, clock.extra["speed_up"], strict=True):
    fewer = clock.baseline.macs / point.macs
    print(f"  stride {stride:.0f}: {fewer:.2f} x fewer MACs, {ratio:.2f} x faster (95 %: {low:.2f} to {high:.2f})")

# %% [markdown]
# ## When not to use it
#
# - **Every position has its own result.** Filling in patches loses by the stride; telling classes apart, where all
#   positions are averaged in the end, does not. There the strided networks even learned better.
# - **On a network that was not trained so.** Keep the local values at full resolution, and expect a loss.
# - **For the count of MACs.** The block of S0 falls to 29 % of its MACs, and the network's time by a tenth:
#   the other layers stay, and so does the projection on the interpolated map.
