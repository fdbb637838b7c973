# %% [markdown]
# # Attention downsampling
#
# Networks for images halve their feature maps from stage to stage, usually by a convolution of stride 2, which covers
# 3 x 3 positions. **Attention downsampling** (LeViT, Graham et al., arXiv 2104.01136; EfficientFormerV2, Li et al.,
# arXiv 2212.08059) lets each position of the small map look anywhere in the large one: attention whose *queries* stand
# on every second row and column, while *keys* and *values* are those of all positions.
#
# The bet on the data: neighbouring positions ask for nearly the same, so one of four queries is enough; but each of
# them may need any key. Both halves of that sentence are tested here.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.accounting.closed_form import closed_form
from reference_impls.benchmarks.compact_networks.feature_maps import attention_networks
from reference_impls.data.masking import unmasked
from reference_impls.study import Context, Study, run, scenarios
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling, DualPathDownsample

show.style()
queries, halving = (show.committed("attention-downsampling", s) for s in ("fill-queries", "fill-downsampling"))

# %% [markdown]
# ## Who asks whom
#
# On a feature map of 8 x 8, queries of the small map stand on every second position. Each has a weight for all 64 keys;
# on the right those of one query, in a module with random weights and a bias that favours what is near.

# %%
torch.manual_seed(0)
down = AttentionDown(16, 32, (8, 8), heads=1, key_dim=8).eval()
with torch.no_grad():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    down.bias.table.copy_(-0.5 * (rows + columns).flatten()[None])
    x = torch.randn(1, 16, 8, 8)
    q, k = down.q(x).flatten(2), down.k(x).flatten(2)  # (1, 8, 16), (1, 8, 64)
    weights = (q.mT @ k * down.key_dim**-0.5 + down.bias((8, 8))).softmax(-1)[0]  # (16 queries, 64 keys)
print(f"{q.shape[2]} queries, {k.shape[2]} keys; the weights of a query add up to {weights.sum(1).mean():.3f}")

figure, axes = plt.subplots(1, 2, figsize=(6.5, 3))
grid = np.stack(np.meshgrid(range(8), range(8)), -1).reshape(-1, 2)
asking = {"s": 60, "facecolors": "none", "edgecolors": "tab:blue", "linewidths": 2}
axes[0].scatter(*grid.T, s=30, color="lightgray", label="keys and values (64)")
axes[0].scatter(*grid[(grid % 2 == 0).all(1)].T, **asking, label="queries (16)")
axes[0].set(xlim=(-0.5, 7.5), ylim=(7.5, -0.5), aspect="equal")
axes[0].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
axes[1].imshow(weights[5].view(8, 8), cmap="Blues")
axes[1].plot(2, 2, "o", markersize=9, markerfacecolor="none", markeredgecolor="tab:red", markeredgewidth=2)
axes[1].set_title("weights of the query at the circle")
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown]
# What it costs, by its closed form, for the step of S0 from 14 x 14 to 7 x 7:

# %%
step = DualPathDownsample(96, 176, (14, 14)).eval()
for name, part in {"attention": step.attn, "the convolution of stride 2 beside it": step.conv}.items():
    cost = closed_form(part, (96, 14, 14))
    print(f"{name}: {cost.macs / 1e6:.1f} M MACs, {cost.parameters:,} parameters")
with torch.no_grad():
    print("shape:", tuple(step(torch.zeros(1, 96, 14, 14)).shape))

# %% [markdown]
# ## Do neighbours ask for the same?
#
# The measure: the share of the queries' energy that a grid of half the resolution holds, without the mean; 0 for white
# noise and a chessboard, 1 for equal queries. Here in trained networks that reconstruct masked patches:

# %%
figure, axis = plt.subplots(figsize=(7.5, 3))
show.grouped_bars(axis, queries.tables["redundancy by place"], "images", "place", "redundancy")
axis.set(ylabel="measure (0: noise, 1: equal)", ylim=(0, 1))
plt.show()

# %% [markdown]
# On a network of your own it is one call, here on one that is trained now for a few seconds:

# %%
study = Study("attention-downsampling", scenarios("attention-downsampling")["fill-queries"], Context())
found = AttentionDownsampling().measure(attention_networks(study)[0], unmasked(study.plan.first))
print(f"{found.measure}: {found.value:.2f}")

# %% [markdown]
# ## Fewer queries, fewer keys, or both
#
# A network trained with 64 queries and 64 keys runs with fewer of one, of the other, or of both; local values stay as
# they are. The network on the right is trained now for a few seconds; its attention still gives every position the
# same, so there is nothing to lose.

# %%
live = run("attention-downsampling", "fill-queries")
records = {"full record": queries, "run now, small budget": live}
axes = show.panels(records, "samples", "queries or keys left", [1, 4, 16, 64], powers_of_two=True)
limits = np.array(axes[0].get_ylim()) - queries.baseline.quality.value
axes[1].set(ylim=limits + live.baseline.quality.value)
axes[0].legend(fontsize=8)
plt.show()
show.gains(queries, "fewer keys")

# %% [markdown]
# ## Halving the feature map, trained
#
# Four networks that differ only in what brings 8 x 8 to 4 x 4, each trained for itself: a query at all 64 positions
# with the results averaged; a query for each of the 16 (the technique); keys and values subsampled too; and the
# convolution alone. Nothing else in these networks mixes positions.

# %%
figure, axis = plt.subplots(figsize=(8.5, 2.6))
show.bars(axis, show.variants(halving, "64 queries"), label=halving.baseline.quality.metric)
plt.show()
show.gains(halving, "baseline")
for control in halving.controls:
    print(f"{control.name}: {show.interval(control.points[0].gain.get('baseline'), '+.4f')} over baseline")

# %% [markdown]
# So attention beside the convolution is worth much here, and the two halves of the sentence at the top come out like
# this. Queries: a quarter of them is not quite enough, for a query at every position does better. Keys: they may be
# averaged too, at no loss that these trainings show. The task makes neighbours ask for different things, since patches
# are masked at random; on whole images their queries are much more alike.
#
# ## When not to use it
#
# - **Early in the network.** There are four times as many keys at twice the resolution; EfficientFormerV2 uses it
#   before the last stage only.
# - **When the work beside the attention counts.** Values come from all positions and are widened; they are most of the
#   cost that is left, and subsampling queries saves none of it.
