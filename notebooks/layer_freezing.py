# %% [markdown]
# # Layer freezing
#
# The front layers of a network settle first. Once they do, updating them is work for nothing: **layer freezing** takes
# block after block out of the training, from the input on, and the backward pass ends where the first active block
# begins. This notebook looks at how blocks settle, at the schedules, and reads the full experiment from its record.

# %%
import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.sparse_training import SMOKE, dense, labels_at_random
from reference_impls.hosts.training import ledger
from reference_impls.techniques.layer_freezing import SCHEMES, LayerFreezing, settled, share_saved, solve

show.style()
full = show.committed("layer-freezing", "freeze-digits")

# %% [markdown]
# ## Which blocks settle
#
# How near the weights of a block are at half time to those at the end, in a plain training of a small network on
# digits; and on the same digits with their labels dealt out at random, where the network has to learn by heart.

# %%
training = dense(SMOKE, seed=0)
found = {"digits": settled(training), "labels at random": settled(labels_at_random(training))}
figure, axis = plt.subplots(figsize=(8, 3))
for n, (name, where) in enumerate(found.items()):
    axis.bar(np.arange(len(where)) + 0.4 * n, where.values(), width=0.38, label=name)
axis.set_xticks(np.arange(len(where)) + 0.2, where)
axis.set(ylabel="settled at half time", ylim=(0, 1))
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# In the full experiment, of more epochs:

# %%
print(f"{full.redundancy.value:.3f} on average;", {k: round(v, 2) for k, v in full.redundancy.where.items()})
print({name: round(value, 3) for name, value in full.redundancy.null.items()})

# %% [markdown]
# ## Four schedules that save the same
#
# A share of MACs is asked for, and the first epoch of freezing follows from it. Dark: frozen.

# %%
longer = dense(SMOKE.__class__(**{**vars(SMOKE), "epochs": 24}), seed=0)
blocks = len(longer.model)
figure, axes = plt.subplots(1, len(SCHEMES), figsize=(10, 2.4), sharey=True)
for axis, scheme in zip(axes, SCHEMES, strict=True):
    timeline = solve(longer, 0.15, scheme)
    frozen = np.array([[block in still for still in timeline] for block in range(blocks)])
    axis.imshow(frozen, aspect="auto", cmap="Blues", vmin=0, vmax=1.3, origin="lower")
    axis.set(title=f"{scheme}: {share_saved(longer, timeline):.3f}", xlabel="epoch")
    axis.title.set_fontsize(8)
axes[0].set(ylabel="block")
figure.tight_layout()
plt.show()

# %% [markdown]
# By the papers' convention a training step is three products in every layer, one in a frozen layer. What dense kernels
# execute is a little less, since the first active layer needs no gradient of its input:

# %%
for saving in (0.1, 0.2):
    handle = LayerFreezing().apply(longer, saving=saving)
    plain, costs = ledger(longer, {}), ledger(longer, handle.trace)
    print(f"asked {saving:g}: convention {1 - costs.convention / plain.convention:.3f}", end=", ")
    print(f"executed {1 - costs.executed / plain.executed:.3f}; first epoch with a frozen block:", end=" ")
    print(next(epoch for epoch, still in enumerate(handle.trace["frozen"]) if still))
try:
    LayerFreezing().apply(longer, saving=0.6)
except ValueError as error:
    print(error)

# %% [markdown]
# ## What a backward pass costs
#
# From the record: with more blocks frozen from the front the backward pass has fewer MACs and keeps fewer bytes. So it
# takes less time, though on a shared machine not at every single block.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
rows = full.tables["backward"].records()
for axis, name in zip(axes, ("MACs", "bytes kept", "ms"), strict=True):
    values = [getattr(row[name], "value", row[name]) for row in rows]
    axis.bar([row["frozen"] for row in rows], values)
    axis.set(xlabel="frozen blocks", title=name)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What it costs in accuracy
#
# Beside the same schedule in other orders, and dense trainings that cost as much.

# %%
show.trade_offs(full, show.series(full), costs=("MACs", "milliseconds"))
for point in full.points:
    gain = point.gain["baseline"]
    print(f"{point.knobs['scheme']:>22} {point.knobs['saving']:.2f}: {point.quality.value:.3f}", end="  ")
    print(f"against no freezing {100 * gain.value:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})")

# %% [markdown]
# ## When not to use it
#
# - **The forward pass dominates**, as with cached or quantised backward passes: it stays.
# - **A shorter training will do.** It is the control that costs as much and is simpler.
