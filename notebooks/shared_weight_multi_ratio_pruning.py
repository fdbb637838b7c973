# %% [markdown]
# # Shared-weight multi-ratio pruning
#
# One tensor of weights and one learned **soft mask** hold networks of several pruning ratios. All are trained together,
# and each is then a front part of the same tensors. This notebook trains a small network on digits for four ratios,
# looks at the masks while they move, slices the sub-models off, and reads the full experiment from its record.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.multi_ratio import SMOKE, moved, network, pictures, shared
from reference_impls.study.training import accuracy, seeded
from reference_impls.techniques.shared_weight_multi_ratio_pruning import SharedNetwork

show.style()
full = {
    name: show.committed("shared-weight-multi-ratio-pruning", name) for name in ("digits-channels", "digits-elements")
}

# %% [markdown]
# ## One soft mask, nested masks
#
# Before training the soft mask is the magnitude of the weights. A channel is scored by the mean of the soft mask over
# the filter that makes it and over all that read it. Each ratio keeps the channels with the highest scores: dark is
# kept by every ratio, light by the least pruned one alone. Rows are outputs and columns inputs of the third
# convolution, so that the kept part of every ratio is a rectangle, once rows and columns are put in order.

# %%
data = pictures(SMOKE, 0)
trained = shared(SMOKE, data, 0, SMOKE.ratios)
begun = SharedNetwork(seeded(0, lambda: network(SMOKE.width)), SMOKE.ratios)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))


def kept(one, name="2.0"):
    """By how many ratios each filter of a layer is kept, for each channel that it reads."""
    return sum((one.weights(k)[name].abs().sum((2, 3)) > 0).float() for k in range(len(one.ratios))).detach()


for axis, one, title in ((axes[0], begun, "before training"), (axes[1], trained, "after training")):
    axis.imshow(kept(one), cmap="Blues", vmin=0, vmax=4, aspect="auto")
    axis.set(title=title, xlabel="channel in", ylabel="channel out")
share = moved(SMOKE, data, 0)
trained.finish()
axes[2].imshow(kept(trained), cmap="Blues", vmin=0, vmax=4, aspect="auto")
axes[2].set(title="in the order of the scores", xlabel="channel in", ylabel="channel out")
figure.tight_layout()
plt.show()
print("share of the kept channels that were not kept at first:", [f"{one:.2f}" for one in share])

# %% [markdown]
# ## Sub-models are slices of one storage
#
# After `finish()` the front of every tensor is the sub-model of a ratio. All weights share their memory, whatever the
# ratio, and a file holds them once.

# %%
for ratio in trained.ratios:
    model = trained.sub_model(ratio)
    weight = model[2][0].weight
    same = weight.untyped_storage().data_ptr() == trained.layers()[2].weight.untyped_storage().data_ptr()
    right = accuracy(model, *data.test)
    print(f"ratio {ratio:.2f}: third convolution {tuple(weight.shape)}, one storage: {same}, accuracy {right:.2f}")
with tempfile.TemporaryDirectory() as folder:
    trained.save(Path(folder) / "all.pt")
    torch.save(trained.sub_model(0.0).state_dict(), Path(folder) / "one.pt")
    together, alone = ((Path(folder) / name).stat().st_size for name in ("all.pt", "one.pt"))
print(f"a file of all four: {together:,} bytes; of the first alone: {alone:,} bytes")

# %% [markdown]
# ## Accuracy of every ratio
#
# From the records: beside masks put on a finished network, one batch norm for all ratios, masks of the largest weights,
# distillation, and a network trained for each ratio by itself.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for axis, record in zip(axes, full.values(), strict=True):
    lines = {"soft mask": record.points, **{control.name: control.points for control in record.controls}}
    for name, points in lines.items():
        order = range(len(points))
        width = 2.2 if name == "soft mask" else 1.1
        axis.plot(order, [p.quality.value for p in points], marker="o", ms=3, lw=width, label=name)
    axis.set_xticks(order, [f"{p.knobs['ratio']:g}" for p in points])
    axis.set(xlabel="ratio that is pruned", title=record.scenario)
axes[0].set(ylabel="accuracy", ylim=(0, 1))
axes[1].legend(fontsize=7)
figure.tight_layout()
plt.show()
for record in full.values():
    for point in record.points:
        print(f"{record.scenario}, ratio {point.knobs['ratio']:g}: {show.interval(point.quality)}", end="; ")
        over = {n: g for n, g in point.gain.items() if n in ("magnitude mask", "a network for each ratio")}
        print(", ".join(f"over {n} {show.interval(g, '+.3f')}" for n, g in over.items()))

# %% [markdown]
# ## When not to use it
#
# - **One ratio is enough**: training costs a pass for each ratio in every step.
# - **Masks of single weights on dense kernels**: they save nothing; channels do.
