# %% [markdown]
# # Latency-driven slimming
#
# EfficientFormer (Li et al., arXiv 2206.01191) was not drawn by hand. A supernet was trained once, in which every
# position *chooses* among a block on maps, a block on tokens, and nothing at all. Then it was cut down step by step:
# of three possible cuts, the one that loses the least accuracy **for each millisecond it saves**.
#
# The authors never published that search. This notebook runs one that follows their formulas, on handwritten digits,
# and then reads the full experiment on Fashion-MNIST from its record.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.benchmarks.compact_networks.searches import trial
from reference_impls.experiments.latency_driven_slimming import DIGITS
from reference_impls.study import Recipe
from reference_impls.techniques.latency_driven_slimming import importance, path_weights, slim

show.style()
record = show.committed("latency-driven-slimming", "fashion-slimming")

# %% [markdown]
# ## A choice that can be trained
#
# The choices of a position are mixed with weights softmax((a + noise) / temperature). The logits `a` are learned, the
# noise is drawn again in each pass. With Gumbel noise the largest weight falls on a choice exactly with probability
# softmax(a); with the uniform noise that the formula is printed with, a choice that lags by 1 never comes first.

# %%
logits = torch.tensor([1.0, 0.0, -0.5])
draw = torch.Generator().manual_seed(0)
shares = {
    noise: path_weights(logits.expand(20_000, 3), 0.5, noise, draw).argmax(-1).bincount(minlength=3) / 20_000
    for noise in ("gumbel", "uniform")
}
figure, axis = plt.subplots(figsize=(6, 2.8))
axis.bar(np.arange(3) - 0.27, logits.softmax(-1), 0.25, label="softmax(a)", color="tab:gray")
axis.bar(np.arange(3), shares["gumbel"], 0.25, label="largest with Gumbel noise")
axis.bar(np.arange(3) + 0.27, shares["uniform"], 0.25, label="largest with uniform noise")
axis.set_xticks(range(3), [f"a = {a:g}" for a in logits.tolist()])
axis.set_ylabel("share of 20,000 draws")
axis.legend()
plt.show()

# %% [markdown]
# ## A supernet on digits
#
# Four stages with two positions each. The search looks at validation images only.

# %%
plan = replace(DIGITS, images=600, validation=300, recipe=Recipe(4, lr=4e-3))
part = plan.split(seed=0)
supernet = plan.supernet(part, seed=0)
for (stage, index), score in importance(supernet.probabilities()).items():
    print(f"stage {stage + 1} position {index + 1}: blocks {score:.2f} times as likely as nothing")

# %% [markdown]
# Now the walk. To give the same path everywhere, the table here holds MACs, not milliseconds.

# %%
path = slim(supernet, plan.space.macs_table(), trial(supernet), target=0.25)
print("widths and blocks of each stage: 4 on maps, 3 on tokens, a dot for nothing\n")
for step in path:
    print(f"{step.move:14} {-step.benefit / 1e6:5.2f} M MACs  accuracy {step.quality:.3f}   {step.state.text()}")


# %%
KINDS = {
    "remove": ("a block goes", "tab:red"),
    "3d to 4d": ("tokens to maps", "tab:purple"),
    "narrow": ("16 channels go", "tab:green"),
}


def draw_path(axis, cost, accuracy, moves):
    """Accuracy along a path, every move in the colour of its kind."""
    axis.plot(cost, accuracy, color="lightgray", zorder=0)
    axis.plot(cost[0], accuracy[0], "k*", markersize=11, label="whole network")
    for kind, (name, colour) in KINDS.items():
        at = [i for i, move in enumerate(moves, start=1) if move.startswith(kind)]
        axis.plot([cost[i] for i in at], [accuracy[i] for i in at], "o", color=colour, label=name)
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


figure, axis = plt.subplots(figsize=(6.5, 3.4))
draw_path(axis, [-s.benefit / 1e6 for s in path], [s.quality for s in path], [s.move for s in path[1:]])
axis.set(xlabel="million MACs per image", ylabel="accuracy, validation", title="digits, the walk from right to left")
plt.show()

# %% [markdown]
# ## Fashion-MNIST, with a latency table of this machine
#
# Left: the walk of the first seed. Right: the sum of what the parts of a network take, against what the whole takes,
# all measured in the same rounds.

# %%
path = record.tables["path"].records()
predicted, measured = zip(*record.tables["latency, predicted and measured"].rows, strict=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
draw_path(left, [s["ms"] for s in path], [s["accuracy"] for s in path], [s["move"] for s in path[1:]])
left.set(xlabel="predicted ms of a batch", ylabel="accuracy, validation")
right.plot(predicted, measured, "o", alpha=0.8)
top = 1.05 * max(*predicted, *measured)
right.plot([0, top], [0, top], ":", color="gray")
right.set(xlabel="predicted ms (sum of the parts)", ylabel="measured ms", xlim=(0, top), ylim=(0, top))
figure.tight_layout()
plt.show()
error, correlation = (record.extra[f"prediction {what}"] for what in ("error", "correlation"))
print(f"mean error of the sum {error:.0%}, correlation {correlation:.3f}")
print("moves, over all seeds:", dict(record.tables["moves"].rows))

# %% [markdown]
# ## Does it beat slimming at random?
#
# The controls end at the same predicted latency: *random slimming* draws its moves; *MACs for latency* makes the
# same walk, told MACs in the place of milliseconds; *importance shuffled* deals the learned importance out to
# other positions. Differences are paired by seed, in points of test accuracy, with 95 % intervals.

# %%
lines = {n: show.select(points, weights="inherited") for n, points in show.series(record, "greedy slimming").items()}
figure, axis = plt.subplots(figsize=(7, 3.8))
show.trade_off(axis, record, lambda variant: getattr(variant, "knobs", {"target": 1.0})["target"], lines=lines)
whole = record.extra["accuracy of the whole, inherited weights"]
axis.axhline(whole, color="black", linewidth=0.8, label="whole network")
axis.set(xlabel="share of the whole network's predicted latency", ylabel="test accuracy, inherited weights")
axis.legend(fontsize=8)
plt.show()
for control in record.controls:
    show.gains(record, control.name, "+.2f", 100)

# %% [markdown]
# From scratch, every network trained alone, the lead over random is no longer beyond doubt. The slimmed network is as
# good as the whole one at half of its MACs:

# %%
show.networks(record, "whole network", "greedy slimming", weights="from scratch")

# %% [markdown]
# ## How redundant the blocks are
#
# One block at a time is left out, without any training. The bars say how little the logits move: 1 would mean not at
# all. It is a property of the network *on the data*: white noise gives another number.

# %%
figure, axis = plt.subplots(figsize=(7, 3))
nulls = {f"{name}, all blocks": value for name, value in record.redundancy.null.items()}
show.bars(axis, {**record.redundancy.where, **nulls}, label="indifference of the output to the block")
axis.set(xlim=(0, 1))
figure.tight_layout()
plt.show()
