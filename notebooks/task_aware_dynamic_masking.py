# %% [markdown]
# # Task-aware dynamic masking
#
# A sparse network that meets tasks one after the other has to give its few active weights to the new task without
# taking them from the old ones. **Task-aware dynamic masking** (SparCL, arXiv 2209.09476) judges weights by their
# magnitude and by the gradients of both, lets the masks grow when a task begins, and exchanges the least important
# weights within it. This notebook follows the masks of one small learner, and reads the full experiment from its
# record.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.continual_learning import SMOKE, TASKS, dense
from reference_impls.techniques.task_aware_dynamic_masking import (
    TaskAwareDynamicMasking,
    TaskAwareMasking,
    continual_importance,
)

show.style()
full = show.committed("task-aware-dynamic-masking", "split-digits")

# %% [markdown]
# ## The idea in one picture
#
# Digits, two classes at a time, by DER++ with a small buffer. How many of the 1,024 weights of a hidden layer are
# active in each epoch, and how many of them were active from the start.

# %%
training = replace(dense(SMOKE, seed=0), epochs=5)
knobs = {"sparsity": 0.75, "inter": 0.05, "intra": 0.05}
run = TaskAwareDynamicMasking().apply(training, **knobs).target.run()
(part,) = run.parts
assert isinstance(part, TaskAwareMasking)
first, active, kept = part.masks["1.1"].clone(), [], []
while run.epoch < run.epochs:
    active.append(int(part.masks["1.1"].sum()))
    kept.append(int((part.masks["1.1"] & first).sum()))
    run.advance(len(run._order) - run.step)
figure, axis = plt.subplots(figsize=(7, 3.2))
epochs = np.arange(1, len(active) + 1)
axis.step(epochs, active, where="mid", label="active")
axis.step(epochs, kept, where="mid", label="of these, since the start")
for task in range(1, len(TASKS)):
    axis.axvline(task * training.epochs + 0.5, color="lightgrey", linewidth=1)
axis.set(xlabel="epoch, five for each task", ylabel="weights of a layer", ylim=(0, None))
axis.legend(fontsize=8)
figure.tight_layout()
plt.show()
print("active weights, epoch by epoch:", active)

# %% [markdown]
# ## What the importance rests on
#
# How far the order of weights by both gradients is from that by magnitude alone: of the weights that an update of this
# size would remove from the last mask, how many are the same.

# %%
for name, layer in part.layers.items():
    key = f"{name}.weight"
    assert part.rehearsed is not None
    both = continual_importance(layer.weight, part.current[key], part.rehearsed[key], 0.5, 0.5, "element")
    mask = part.masks[name]
    count = round(0.05 * len(mask))
    removed = [set(score[mask].argsort()[:count].tolist()) for score in (both, layer.weight.detach().abs().flatten())]
    print(f"layer {name}: {len(removed[0] & removed[1])} of {count} removed by magnitude alone too")

# %% [markdown]
# ## What it saves and what it loses
#
# On dense kernels masks of single weights save nothing; masks of input channels do. The ledger of the record has both,
# and what kernels would save that use every zero.

# %%
for row in full.tables["ledger"].rows:
    name, counted, _, sparse, _, share, _ = row
    macs = f"{counted / 1e9:.2f} G MACs counted, {sparse / 1e9:.2f} with sparse kernels"
    print(f"{name:>48}: {macs}; by the convention {share:.2f}")
show.trade_offs(full, show.series(full), costs=("MACs", "milliseconds"))
for point in full.points:
    knobs = ", ".join(f"{name} {value}" for name, value in point.knobs.items())
    print(f"{knobs}: {show.interval(point.quality)}")
    for name, gain in point.gain.items():
        print(f"{'over ' + name:>40}: {show.interval(gain, '+.2f', 100)} points")

# %% [markdown]
# ## When not to use it
#
# - **Dense kernels only**: zeros at single places then save operations on paper and no time.
# - **No buffer**: half of the importance then has no data to rest on.
