# %% [markdown]
# # Fine-grained joint search
#
# EfficientFormerV2 (Li et al., arXiv 2212.08059) asks for networks that are small *and* fast. Its search holds every
# candidate in one **slimmable** supernet, starts at the largest, and walks down: of all the smallest steps (one block,
# one attention, one expansion ratio, one width), the one that loses the least accuracy for its gain in a score of size
# and latency.
#
# The authors never published that search; here one that follows their formulas runs on handwritten digits, and the full
# experiments, five seeds each, are read from their records. On Fashion-MNIST the walk beats random sub-networks of
# equal score as long as all inherit the supernet's weights; trained from scratch it does **not** beat them beyond
# doubt. On the digits there is hardly anything to win.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.contract import generator
from reference_impls.experiments.fine_grained_joint_search import DIGITS, nano
from reference_impls.study import Recipe
from reference_impls.techniques.fine_grained_joint_search import (
    Efficiency,
    SearchData,
    Trial,
    joint_search,
    mobile_efficiency_score,
    moves,
)

show.style()
record, digits = (show.committed("fine-grained-joint-search", f"{name}-search") for name in ("fashion", "digits"))

# %% [markdown]
# ## The score
#
# 100 times the product of (metric / unit) to the power of *minus* its weight. Weights and units are parameters; the
# paper's could not be confirmed, so ours are 0.5 for size and 1 for latency, relative to the largest network.

# %%
units = {"size": 1.0, "latency": 1.0}
shares = np.linspace(0.2, 1, 60)
score = [[mobile_efficiency_score({"size": s, "latency": t}, units) for s in shares] for t in shares]
figure, axis = plt.subplots(figsize=(4.6, 3.4))
lines = axis.contour(shares, shares, score, levels=[125, 150, 200, 300, 500, 800], colors="tab:blue")
axis.clabel(lines, fmt="%d")
axis.set(xlabel="size, share of the largest", ylabel="latency, share of the largest", title="mobile efficiency score")
plt.show()

# %% [markdown]
# ## One set of weights, many networks
#
# A narrower network takes the leading channels of every weight. It needs batch norms of its own, since its sums have
# other statistics. In every step of the training the largest, the smallest and two random networks run (the *sandwich
# rule*).

# %%
plan = replace(DIGITS, space=nano(16, (1, 1, 2, 1)), images=384, validation=200, recipe=Recipe(4, lr=4e-3))
part = plan.split(seed=0)
supernet = plan.supernet(part, seed=0)
space = plan.space
for name, subnet in (("largest", space.largest()), ("smallest", space.smallest())):
    total = space.total(subnet)
    print(f"{name:8} {subnet.text()}: {total.parameters:,} parameters, {total.macs:,} MACs")

# %% [markdown]
# Are batch norms by width enough? A layer's statistics depend on the widths before it as well. Recalibrating them
# on a few training images, which trains nothing, tells:

# %%
draw = generator(1)
own = Trial(supernet.extract, SearchData(*part.held))
recalibrated = Trial(supernet.extract, supernet.search)
sample = [space.largest(), space.smallest(), *(space.sample(draw) for _ in range(6))]
pairs = np.array([[own(subnet), recalibrated(subnet)] for subnet in sample])
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(pairs[:, 0], "o", label="norms by width")
axis.plot(pairs[:, 1], "s", label="recalibrated")
axis.set_xticks(range(len(sample)), ["largest", "smallest", *(f"random {i}" for i in range(1, 7))], rotation=30)
axis.set(ylabel="accuracy, validation", ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# ## The walk
#
# Every move of the frontier is evaluated; the cheapest is made. The table here holds MACs, to give the same path
# everywhere.

# %%
efficiency = Efficiency.of(space, space.macs_table())
frontier = list(moves(space, space.largest()))
print(f"{len(frontier)} moves from the largest network: {', '.join(name for name, _ in frontier)}\n")
path = joint_search(supernet, efficiency, Trial(supernet.extract, supernet.search), target=250)
print("widths, and expansion of the blocks of each stage; a: attends\n")
for step in path:
    print(f"{step.move:14} score {step.benefit:5.0f}  accuracy {step.quality:.3f}   {step.state.text()}")

# %% [markdown]
# ## Searched against random, at equal score
#
# Fashion-MNIST, padded to 32 pixels, with a latency table of this machine. Left: the walk of the first seed, and random
# sub-networks of it. Right: the mean over seeds, on test images.

# %%
path, drawn = (record.tables[name].records() for name in ("path", "random sub-networks"))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for steps, style, name in ((path, "o-", "the walk"), (drawn, "x", "random sub-networks")):
    left.plot(*([step[column] for step in steps] for column in ("score", "accuracy")), style, markersize=4, label=name)
left.set(xlabel="mobile efficiency score", ylabel="accuracy, validation")
left.legend(fontsize=8)
lines = {name: show.select(points, weights="inherited") for name, points in show.series(record, "greedy walk").items()}
show.trade_off(right, record, lambda variant: getattr(variant, "knobs", {"target": 1.0})["target"], lines=lines)
right.axhline(record.extra["accuracy of the largest, inherited weights"], color="black", linewidth=0.8)
right.set(xlabel="score, as a multiple of the largest network's", ylabel="test accuracy, inherited weights")
right.legend(fontsize=7)
for axis, ticks in ((left, [100, 200, 400, 800]), (right, [1, 2, 4, 8])):
    axis.set_xscale("log", base=2)
    axis.set(xticks=ticks, xticklabels=ticks)
figure.tight_layout()
plt.show()

# %% [markdown]
# Differences, paired by seed, in points of test accuracy, with 95 % intervals. An interval that holds 0 shows nothing.
# Against random sub-networks the lead is beyond doubt at 2 and 4 times the score, against the best of six of them at 4
# times. Against the walk that was told of latency alone there is no lead.

# %%
for control in record.controls:
    show.gains(record, control.name, "+.2f", 100)

# %% [markdown]
# On the digits one interval of ten leaves out 0, by a hair, as one of ten may by chance: even a random eighth of the
# network is almost as good as the whole.

# %%
for control in digits.controls:
    show.gains(digits, control.name, "+.2f", 100)

# %% [markdown]
# ## What joint means
#
# At equal score, what the networks are made of. On this CPU latency and size fall together, so the walk that is told of
# latency alone ends at networks of nearly the same size.

# %%
for row in record.tables["found"].records():
    if row["method"] != "best of random":
        print(f"score x {row['target']} {row['method']:14} score {row['score']:6.0f}, {row['parameters']:8,.0f} "
              f"parameters, {row['ms']:.2f} ms predicted for a batch {row['network'] or ''}")  # fmt: skip
print("\nmoves of the walks, over all seeds:", dict(record.tables["moves"].rows))

# %% [markdown]
# ## From scratch
#
# What counts is the network trained on its own, and there the lead of the walk shrinks to less than the intervals can
# tell. Searched and random networks alike are nearly as good as the largest one, with 40 % of its parameters.

# %%
show.networks(record, "largest", "greedy walk", weights="from scratch")

# %% [markdown]
# ## How redundant the parts are
#
# One move at a time from the largest network, without any training: how little the logits move, in bars of mean over
# the moves of a kind and stage. White noise gives another number.

# %%
kinds = {}
for name, value in record.redundancy.where.items():
    kind, _, place = name.partition(" ")
    kinds.setdefault(f"{kind}, stage {place.partition('.')[0]}", []).append(value)
nulls = {f"{name}, all moves": value for name, value in record.redundancy.null.items()}
figure, axis = plt.subplots(figsize=(7, 3.8))
means = {kind: float(np.mean(values)) for kind, values in kinds.items()}
show.bars(axis, {**means, **nulls}, label="indifference of the output to the move")
axis.set(xlim=(0, 1))
figure.tight_layout()
plt.show()
