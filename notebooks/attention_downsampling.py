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
# # Attention downsampling
#
# Networks for images halve their maps from stage to stage, usually by a convolution of stride 2, which sees 3 x 3
# positions. **Attention downsampling** (LeViT, Graham et al., arXiv 2104.01136; EfficientFormerV2, Li et al., arXiv
# 2212.08059) lets each position of the small map look anywhere in the large one: attention whose *queries* stand on
# every second row and column, while *keys* and *values* are those of all positions.
#
# The bet on the data: neighbouring positions ask for nearly the same, so one of four queries is enough; but each of
# them may need any key. This notebook puts both halves of that sentence to the test.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.record import Record
from reference_impls.experiments.attention_downsampling import run_queries
from reference_impls.experiments.efficient_nets import some_images, whole
from reference_impls.experiments.harness import Context
from reference_impls.experiments.stride_attention import networks
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling, DualPathDownsample

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "attention-downsampling"


def committed(scenario):
    return Record.model_validate_json((results / f"{scenario}.json").read_text())


queries, halving = map(committed, ("fill-queries", "fill-downsampling"))
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %% [markdown]
# ## Who asks whom
#
# On a map of 8 x 8, queries (blue) of the small map stand on every second position. Each has a weight for all 64 keys;
# on the right those of one query, in a module with random weights and a bias that favours what is near.

# %%
torch.manual_seed(0)
down = AttentionDown(16, 32, (8, 8), heads=1, key_dim=8).eval()
with torch.no_grad():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    down.bias.table.copy_(-0.5 * (rows + columns).flatten()[None])
x = torch.randn(1, 16, 8, 8)
with torch.no_grad():
    q, k = down.q(x).flatten(2), down.k(x).flatten(2)  # (1, 8, 16), (1, 8, 64)
    weights = (q.mT @ k * down.key_dim**-0.5 + down.bias((8, 8))).softmax(-1)[0]  # (16 queries, 64 keys)
print(
    "queries:", q.shape[2], "keys:", k.shape[2], "sum of the weights of each query:", weights.sum(1).unique().tolist()
)

figure, axes = plt.subplots(1, 2, figsize=(6.5, 3))
grid = np.stack(np.meshgrid(range(8), range(8)), -1).reshape(-1, 2)
axes[0].scatter(*grid.T, s=30, color="lightgray", label="keys and values (64)")
axes[0].scatter(
    *grid[(grid % 2 == 0).all(1)].T, s=60, facecolors="none", edgecolors="tab:blue", linewidths=2, label="queries (16)"
)
axes[0].set(xlim=(-0.5, 7.5), ylim=(7.5, -0.5), aspect="equal")
axes[0].legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
axes[1].imshow(weights[5].view(8, 8), cmap="Blues")
axes[1].plot(2, 2, "o", markersize=9, markerfacecolor="none", markeredgecolor="tab:red", markeredgewidth=2)
axes[1].set_title("weights of the query at the circle")
for axis in axes:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# What it costs, by its closed form, for the step of S0 from 14 x 14 to 7 x 7:

# %%
cost = closed_form(AttentionDown(96, 176, (14, 14)), (96, 14, 14))
convolution = 9 * 96 * 176 * 49
print(f"attention beside the convolution: {cost.macs / 1e6:.1f} M MACs, {cost.parameters:,} parameters")
print(f"the convolution of stride 2 alone: {convolution / 1e6:.1f} M MACs")
step = DualPathDownsample(96, 176, (14, 14)).eval()
with torch.no_grad():
    print("shape:", tuple(step(torch.zeros(1, 96, 14, 14)).shape))

# %% [markdown]
# ## Do neighbours ask for the same?
#
# The measure: the share of the queries' energy that a grid of half the resolution holds, without the mean; 0 for white
# noise and a chessboard, 1 for equal queries. Queries of trained networks that fill in hidden patches, for four kinds
# of images, with the keys beside them:

# %%
kinds = ("clothes", "photos", "phases_scrambled", "half_hidden", "white_noise")
places = queries.extra["measured_places"].split(", ")
colours = {"queries": "tab:blue", "keys": "tab:orange", "input": "tab:gray"}
figure, axis = plt.subplots(figsize=(7.5, 3))
for i, place in enumerate(places):
    rows = np.array([queries.extra[f"measured_{kind}"][i] for kind in kinds])
    spread = np.abs(rows[:, 1:] - rows[:, :1]).T
    axis.bar(np.arange(len(kinds)) + 0.27 * (i - 1), rows[:, 0], 0.25, color=colours[place], yerr=spread, label=place)
axis.set(
    xticks=range(len(kinds)),
    xticklabels=[k.replace("_", " ") for k in kinds],
    ylabel="measure (0: noise, 1: equal)",
    ylim=(0, 1),
)
axis.legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# On a network of your own it is one call, here on one that is trained now for a few seconds:

# %%
model, images = networks(Context(), "stride 1")[0], some_images(Context())
found = AttentionDownsampling().measure(model, whole(images))
print(f"{found.measure}: {found.value:.2f}")

# %% [markdown]
# ## Fewer queries, fewer keys, or both
#
# A network was trained with 64 queries and 64 keys; now it runs with fewer of one, of the other, or of both, and the
# results are interpolated where queries went. All three leave the local values as they are. The network on the right is
# trained now for a few seconds; its attention still gives every position the same, so there is nothing to lose.

# %%
STYLES = {
    "fewer queries": ("tab:blue", "o-"),
    "fewer keys": ("tab:orange", "s-"),
    "fewer queries and keys": ("tab:red", "x--"),
}


def curve(axis, record, title):
    for name, points in ({"fewer queries": record.points} | {c.name: c.points for c in record.controls}).items():
        colour, style = STYLES[name]
        variants = [record.baseline, *points]
        at, quality = [variant.samples for variant in variants], [variant.quality.value for variant in variants]
        axis.plot(at, quality, style, color=colour, markersize=4, label=name)
        if variants[0].quality.low is not None:
            ends = ([variant.quality.low for variant in variants], [variant.quality.high for variant in variants])
            axis.fill_between(at, *ends, color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="queries or keys left", xticks=[1, 4, 16, 64], xticklabels=[1, 4, 16, 64], title=title)


figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
curve(axes[0], queries, f"full record ({len(queries.seeds)} trainings)")
live = run_queries(Context())
curve(axes[1], live, "run now (1 seed, small budget)")
axes[1].set_ylim(*(np.array(axes[0].get_ylim()) - queries.baseline.quality.value + live.baseline.quality.value))
axes[0].set_ylabel(queries.baseline.quality.metric)
axes[0].legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()
for factor in (2, 4, 8):
    mean, low, high = queries.extra[f"paired_queries_{factor}"]
    print(f"factor {factor}: fewer queries minus fewer keys {mean:+.4f} (95 % over seeds: {low:+.4f} to {high:+.4f})")

# %% [markdown]
# ## Halving the map, trained
#
# Four networks that differ only in what brings 8 x 8 to 4 x 4, each trained for itself: a query at all 64 positions
# with the results averaged; a query for each of the 16 (the technique); keys and values subsampled too; and the
# convolution alone. Nothing else in these networks mixes positions.

# %%
variants = {"64 queries, 64 keys": halving.baseline, "16 queries, 64 keys": halving.points[0]}
variants |= {
    {"fewer queries and keys": "16 queries, 16 keys"}.get(c.name, c.name): c.points[0] for c in halving.controls
}
figure, axis = plt.subplots(figsize=(7.5, 2.6))
for i, variant in enumerate(variants.values()):
    q = variant.quality
    axis.errorbar(q.value, -i, xerr=[[q.value - q.low], [q.high - q.value]], fmt="o", color="tab:blue", capsize=3)
    text = f"{variant.macs / 1e6:.2f} M MACs, {variant.wall_ms.median:.2f} ms"
    axis.annotate(text, (1.02, -i), xycoords=("axes fraction", "data"), va="center", fontsize=8)
axis.set(yticks=-np.arange(len(variants)), yticklabels=variants, xlabel=halving.baseline.quality.metric)
figure.tight_layout()
plt.show()
for name, value in halving.extra.items():
    mean, low, high = value
    print(
        f"{name.removeprefix('paired_').replace('_', ' ')} against 64 queries: "
        f"{mean:+.4f} (95 %: {low:+.4f} to {high:+.4f})"
    )

# %% [markdown]
# So attention beside the convolution is worth much here, and the two halves of the sentence at the top come out like
# this. Queries: a quarter of them is not quite enough, for a query at every position does better. Keys: they may be
# averaged too, at no loss that these trainings show. The task makes neighbours ask for different things, since patches
# are hidden at random; on whole images their queries are much more alike.
#
# ## When not to use it
#
# - **Early in the network.** There are four times as many keys at twice the resolution; EfficientFormerV2 uses it
#   before the last stage only.
# - **When the work beside the attention counts.** Values come from all positions and are widened; they are most of the
#   cost that is left, and subsampling queries saves none of it.
