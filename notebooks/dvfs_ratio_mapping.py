# %% [markdown]
# # Frequency-to-ratio mapping
#
# A device that saves power lowers its clock, and a network's latency rises. With networks of several pruning ratios at
# hand, a **more pruned one** runs as the clock falls, and latency stays level. This notebook looks at the model of
# latency, at what can be levelled and what not, and reads the measured levels from the record.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.benchmarks.multi_ratio import SMOKE, pictures, shared
from reference_impls.techniques.all_in_one_pruning import ladder
from reference_impls.techniques.dvfs_ratio_mapping import Governor, Latency, chosen, fit, variation

show.style()
full = show.committed("dvfs-ratio-mapping", "fashion-levels")

# %% [markdown]
# ## What a network's latency is made of
#
# $T(\varphi) = A / \varphi + B$: $A$ follows the clock, $B$ does not. Five ratios, by their MACs alone, and once more
# with a part that does not follow. The mapping takes the least pruned network below the line of the target.

# %%
macs = np.array([1, 0.56, 0.39, 0.25, 0.06])
frequencies = np.linspace(0.2, 1, 200)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for axis, fixed in zip(axes, (0.0, 0.3), strict=True):
    profile = [Latency(float(a), fixed) for a in macs]
    target = profile[0].at(1.0)
    for one in profile:
        axis.plot(frequencies, [one.at(f) for f in frequencies], color="0.75", lw=1)
    now = [profile[chosen(profile, f, target)].at(f) for f in frequencies]
    axis.plot(frequencies, now, lw=2.2, label="mapped")
    axis.plot(frequencies, [profile[0].at(f) for f in frequencies], lw=1.4, label="unswitched")
    axis.axhline(target, ls=":", color="black", lw=1)
    axis.set(xlabel="frequency, share of the highest", ylim=(0, 4), title=f"fixed part {fixed:g}")
    print(f"fixed part {fixed:g}: coefficient of variation {variation(now):.3f} mapped", end=", ")
    print(f"{variation(profile[0].at(f) for f in frequencies):.3f} unswitched")
axes[0].set(ylabel="latency over that of the whole network")
axes[0].legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# Both parts follow from times at two levels:

# %%
print(fit([1.0, 0.5], [10.0, 16.0]))

# %% [markdown]
# ## A governor
#
# It holds the networks, and runs the one that fits. Switching is a choice, nothing is loaded; coming back gives the
# same outputs bit for bit.

# %%
data = pictures(SMOKE, 0)
net = shared(SMOKE, data, 0, SMOKE.ratios).finish()
governor = Governor(ladder(net, (1, 8, 8)))
with torch.no_grad():
    first = governor(data.test.x)
    for frequency in (1.0, 0.7, 0.4, 0.2, 1.0):
        governor.frequency = frequency
        outputs = governor(data.test.x)
        right = (outputs.argmax(1) == data.test.y).double().mean()
        print(f"frequency {frequency:.1f}: ratio {net.ratios[governor.now]:.2f}, accuracy {right:.2f}")
print("equal bit for bit:", torch.equal(first, outputs))

# %% [markdown]
# ## Measured over emulated levels
#
# A duty cycle at one true clock, from the record. All of the latency follows such a clock, the best case for the
# mapping.

# %%
figure, axis = plt.subplots(figsize=(7, 3.4))
lines = {"mapped by measured latency": full.points, **{control.name: control.points for control in full.controls}}
for name, points in lines.items():
    axis.plot([p.knobs["frequency"] for p in points], [p.wall_ms.median for p in points], marker="o", ms=4, label=name)
axis.axhline(full.baseline.wall_ms.median, ls=":", color="black", lw=1)
axis.set(xlabel="frequency, share of the highest", ylabel="ms for one picture", ylim=(0, None))
axis.legend(fontsize=8)
figure.tight_layout()
plt.show()
for series, cv, spread, ms in full.tables["variation"].rows:
    print(f"{series:>32}: coefficient of variation {show.interval(cv)}, spread {show.interval(spread)}", end=", ")
    print(f"{show.interval(ms, '.2f')} ms on average")
for row in full.tables["ratios"].records():
    print(row)
for row in full.tables["latency model"].records():
    print({name: round(value, 3) for name, value in row.items()})

# %% [markdown]
# ## When not to use it
#
# - **The lowest frequency is fast enough** for the whole network.
# - **Latency is mostly memory or waiting**: the part that does not follow the clock cannot be levelled.
