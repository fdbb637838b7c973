# %% [markdown]
# # Data sieving
#
# Examples that a network keeps getting right teach it little. **Data sieving** (SpFDE, arXiv 2209.11204) trains on a
# part of the data, and every few epochs swaps the examples that were forgotten least for removed ones. This notebook
# follows the examples of one training, and reads the full experiment from its record.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.benchmarks.sparse_training import SMOKE, dense
from reference_impls.hosts.training import Run, ledger
from reference_impls.techniques.data_sieving import DataSieving, Sieving, forgetting_events, history

show.style()
full = show.committed("data-sieving", "sieve-digits")

# %% [markdown]
# ## The idea in one picture
#
# A row for each example, a column for each epoch; dark where the example is in use. Every example comes back.

# %%
training = dense(SMOKE.__class__(**{**vars(SMOKE), "epochs": 10}), seed=0)
handle = DataSieving().apply(training, removed=0.3, exchanged=0.2, interval=1)
run = Run(handle.target)
(sieve,) = run.parts
assert isinstance(sieve, Sieving)
used = np.zeros((len(training.x), training.epochs), dtype=bool)
for epoch in range(training.epochs):
    used[sieve.active.numpy(), epoch] = True
    run.advance(-(-len(sieve.active) // training.batch_size))
first = [int(row.argmin()) if not row.all() else training.epochs for row in used]
figure, axis = plt.subplots(figsize=(7, 3.6))
axis.imshow(used[np.argsort(first, kind="stable")], aspect="auto", cmap="Blues", vmin=0, vmax=1.3, interpolation="none")
axis.set(xlabel="epoch", ylabel="examples, by their first absence")
figure.tight_layout()
plt.show()
print("examples in each epoch:", handle.trace["examples"])
print("seen so far:", [int(used[:, : e + 1].any(1).sum()) for e in range(training.epochs)], "of", len(training.x))

# %% [markdown]
# ## What there is to sieve
#
# In a plain training: how many examples are right in each epoch, and how often an example is forgotten.

# %%
right = history(training)
events = forgetting_events(right)
learnt = events[right.any(0)]
print("right, epoch by epoch:", [round(float(share), 2) for share in right.double().mean(1)])
print(
    "forgotten n times:", dict(enumerate(torch.bincount(learnt).tolist())), "; never right:", int((~right.any(0)).sum())
)
print(f"{full.redundancy.measure}, full experiment: {full.redundancy.value:.3f};", dict(full.redundancy.null))

# %% [markdown]
# The counts of one interval are small, so that most examples tie, and ties are broken at random. The control below, an
# exchange at random, says what the counts are worth.
#
# ## What it saves and what it loses

# %%
plain, costs = ledger(training, {}), ledger(training, handle.trace)
print(f"this training: {1 - costs.executed / plain.executed:.3f} of the MACs saved")
show.trade_offs(full, show.series(full), costs=("MACs", "milliseconds"))
for point in full.points:
    gain = {name: point.gain[name] for name in ("baseline", "random exchange", "no return", "shorter dense training")}
    shown = "; ".join(
        f"{name} {100 * g.value:+.2f} ({100 * g.low:+.2f} to {100 * g.high:+.2f})" for name, g in gain.items()
    )
    print(f"removed {point.knobs['removed']:.0%}: accuracy {point.quality.value:.3f}; points over {shown}")

# %% [markdown]
# ## When not to use it
#
# - **Few epochs**, in which counts stay at 0 or 1: the order is then close to chance.
# - **Wrong labels**, which are forgotten most and therefore stay.
