# %% [markdown]
# # Dynamic data removal
#
# A learner that meets tasks one after the other passes each task's examples many times, and many of them are learnt
# early. **Dynamic data removal** (SparCL, arXiv 2209.09476) takes those that were forgotten least out for the rest of
# their task; the next one starts with all of its own. This notebook follows the examples of one small learner, and
# reads the full experiment from its record.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.continual_learning import SMOKE, dense
from reference_impls.hosts.continual import ledger
from reference_impls.techniques.data_sieving import history
from reference_impls.techniques.dynamic_data_removal import DataRemoval, DynamicDataRemoval

show.style()
full = show.committed("dynamic-data-removal", "split-digits")

# %% [markdown]
# ## The idea in one picture
#
# A row for each example, a column for each epoch, five for each of five tasks; dark where the example is presented.

# %%
training = replace(dense(SMOKE, seed=0), epochs=5)
handle = DynamicDataRemoval().apply(training, removed=0.6, removals=2, interval=2)
run = handle.target.run()
(part,) = run.parts
assert isinstance(part, DataRemoval)
used = np.zeros((len(training.x), run.epochs), dtype=bool)
while run.epoch < run.epochs:
    used[part.active.numpy(), run.epoch] = True
    run.advance(len(run._order) - run.step)
order = np.lexsort((-used.sum(1), used.argmax(1)))
figure, axis = plt.subplots(figsize=(7, 3.6))
axis.imshow(used[order], aspect="auto", cmap="Blues", vmin=0, vmax=1.3, interpolation="none")
axis.set(xlabel="epoch", ylabel="examples, task by task")
figure.tight_layout()
plt.show()
print("examples in each epoch:", handle.trace["examples"])

# %% [markdown]
# ## What there is to remove
#
# In a plain training: the share of a task's examples that is right in each epoch of their task, among all ten classes.

# %%
right = history(training)
for task, classes in enumerate(training.tasks):
    mine, start = training.examples_of(task), task * training.epochs
    shares = right[start : start + training.epochs, mine].double().mean(1)
    print(f"classes {classes}:", [round(float(share), 2) for share in shares])
print(f"{full.redundancy.measure}, full experiment: {full.redundancy.value:.3f};", dict(full.redundancy.null))

# %% [markdown]
# Within a short window an example is forgotten once at most, so most counts tie, and what ties is drawn at random. The
# control below, a removal of as many at random, says what the counts are worth.
#
# ## What it saves and what it loses

# %%
plain, costs = ledger(training, {}), ledger(training, handle.trace)
print(f"this training: {1 - costs.executed / plain.executed:.3f} of the MACs saved, the rehearsal beside them included")
show.trade_offs(full, show.series(full), costs=("MACs", "milliseconds"))
for point in full.points:
    print(f"removed {point.knobs['removed']:.0%}: {show.interval(point.quality)}")
    for name, gain in point.gain.items():
        print(f"{'over ' + name:>40}: {show.interval(gain, '+.2f', 100)} points")

# %% [markdown]
# ## When not to use it
#
# - **Tasks of few epochs**, in which counts stay at 0 or 1: the order is then close to chance.
# - **Wrong labels**, which are forgotten most and therefore stay.
