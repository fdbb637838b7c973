# %% [markdown]
# # All-in-One pruning
#
# **All-in-One** (Gong et al., arXiv 2212.05122) keeps one set of weights for networks of several pruning ratios, and
# switches with the clock of the processor, so that latency stays level. This notebook puts both parts together on a
# small network, shows what is stored and what a switch does, and reads the measured levels from the record.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.multi_ratio import SMOKE, pictures, separate, shared
from reference_impls.techniques.all_in_one_pruning import governed, ladder, stored

show.style()
full = show.committed("all-in-one-pruning", "all-in-one-fashion")

# %% [markdown]
# ## One network for every level
#
# The least pruned sub-model that is as fast as the whole network at full frequency, by MACs:

# %%
data = pictures(SMOKE, 0)
net = shared(SMOKE, data, 0, SMOKE.ratios).finish()
governor = governed(net, (1, 8, 8))
steps = ladder(net, (1, 8, 8))
levels = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
switched, whole = [], []
for level in levels:
    governor.frequency = level
    switched.append(steps.macs[governor.now] / level / steps.macs[0])
    whole.append(1 / level)
figure, axis = plt.subplots(figsize=(7, 3.2))
axis.plot(levels, whole, marker="o", ms=4, label="unswitched")
axis.plot(levels, switched, marker="o", ms=4, label="All-in-One")
axis.axhline(1, ls=":", color="black", lw=1)
axis.set(xlabel="frequency, share of the highest", ylabel="MACs over frequency", ylim=(0, 5))
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What is stored, and what a switch does
#
# All ratios are views of one storage, each with its batch norms. A switch changes which views run.

# %%
apart = separate(SMOKE, data, 0)
print(f"all ratios together: {stored(list(steps)):,} bytes; the first alone: {stored([steps[0]]):,}", end="; ")
print(f"a network for each ratio: {stored(apart):,}")
with torch.no_grad():
    governor.frequency = 1.0
    first = governor(data.test.x)
    governor.frequency = 0.2
    governor(data.test.x)
    governor.frequency = 1.0
    print("outputs after switching to and fro are equal bit for bit:", torch.equal(first, governor(data.test.x)))

# %% [markdown]
# From the record: bytes in memory and in files, and milliseconds of a switch beside those of loading a file.

# %%
for row in full.tables["storage"].records():
    print(row)
for what, ms in full.tables["switching"].rows:
    print(f"{what}: {show.interval(ms, '.4f') if hasattr(ms, 'low') else bool(ms)}")

# %% [markdown]
# ## Latency and accuracy over emulated levels

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
lines = {"All-in-One": full.points, **{control.name: control.points for control in full.controls}}
for name, points in lines.items():
    at = [p.knobs["frequency"] for p in points]
    axes[0].plot(at, [p.wall_ms.median for p in points], marker="o", ms=4, label=name)
    axes[1].plot(at, [p.quality.value for p in points], marker="o", ms=4, label=name)
axes[0].set(xlabel="frequency", ylabel="ms for one picture", ylim=(0, None))
axes[1].set(xlabel="frequency", ylabel="accuracy")
axes[0].legend(fontsize=8)
figure.tight_layout()
plt.show()
for series, cv, _, ms in full.tables["variation"].rows:
    print(f"{series}: coefficient of variation {show.interval(cv)}, {show.interval(ms, '.2f')} ms on average")
for row in full.tables["ratios"].records():
    print(row)

# %% [markdown]
# ## When not to use it
#
# - **A fixed frequency**: one pruned network is enough, and far cheaper to train.
# - **Memory sets the pace**: what does not follow the clock cannot be levelled by fewer MACs.
