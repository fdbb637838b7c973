# %% [markdown]
# # PIM-QAT
#
# In-memory arrays read every partial sum with a converter of few bits (see *PIM quantisation*). A network that was
# trained without it breaks at few bits. **PIM-QAT** (Jin et al., arXiv 2209.08617) puts the converter into training.
# Its parts are rescaling, batch-norm calibration and training at an adjusted precision; the abstract names them, and
# here they are rebuilt from that.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.low_precision import COARSE, DIGITS, deployed, images_of, network, trained
from reference_impls.layers.pim import Rescaling
from reference_impls.study import run
from reference_impls.techniques.pim_qat import PIMQAT

show.style()
digits = show.committed("pim-qat", "digits-recovery")

# %% [markdown]
# ## The forward pass is the array's, the backward pass the layer's
#
# Rounding has no gradient. The straight-through estimator gives the integer layer's, times the ratio of the spreads of
# what the array gives and what it should give:

# %%
model = network(8).train()
x = torch.rand(64, 1, 8, 8)
for b in (None, 7, 5, 4, 3):
    with PIMQAT().apply(model, adc_bits=b) as handle:
        model(x).square().sum().backward()
        ratios = ", ".join(f"{seen.xi:.2f}" for seen in handle.trace["layers"].values())
    print(f"{'exact' if b is None else f'{b} bits'}: ratios of the three layers {ratios}")

# %% [markdown]
# ## Trained now, for a few seconds
#
# Three epochs, one seed, a converter of 5 bits: a conventional network and one that was trained through it.

# %%
plan = DIGITS[1]
parts = images_of(plan, 0)
array = replace(COARSE, adc_bits=5)
networks = {
    "conventional": trained(plan, parts.train, 0),
    "trained through it": trained(plan, parts.train, 0, array, Rescaling()),
}
for name, one in networks.items():
    exact, few = (deployed(one, on).accuracy(parts.test) for on in (COARSE, array))
    print(f"{name}: {exact:.1%} with exact sums, {few:.1%} with 5 bits")

# %% [markdown]
# What some test images give after the second convolution (every eighth number), exactly and converted:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, sharey=True)
for axis, (name, one) in zip(axes, networks.items(), strict=True):
    sums = {}
    for bits, on in (("exact", COARSE), ("5 bits", array)):
        kept = deployed(one, on).model
        with torch.no_grad():
            sums[bits] = kept[1][0](kept[0](parts.test.x[:16])).flatten()[::8]
    axis.plot(sums["exact"], sums["5 bits"], ".", markersize=2)
    axis.axline((0, 0), slope=1, color="black", linewidth=0.6)
    axis.set(title=name, xlabel="exact sum")
axes[0].set(ylabel="converted sum")
plt.show()

# %% [markdown]
# ## Collapse and recovery
#
# The full record: five seeds, a network of its own for each number of bits. Estimating batch norms again helps a
# conventional network little here, because what it meets is no shift and no gain. Right: run now.

# %%
records = {"full record": digits, "run now": run("pim-qat", "digits-recovery")}
axes = show.panels(
    records,
    lambda variant: getattr(variant, "knobs", {}).get("adc_bits") or 12,
    "bits (12: baseline and integers)",
    [3, 4, 5, 6, 12],
)
for axis in axes:
    axis.set(ylim=(0, 1.02))
axes[0].legend(fontsize=7)
plt.show()
show.gains(digits, "conventional network")

# %% [markdown]
# Larger images, MNIST and Fashion-MNIST, three seeds each:

# %%
larger = {"MNIST": "mnist-recovery", "Fashion-MNIST": "fashion-recovery"}
axes = show.panels(
    {name: show.committed("pim-qat", scenario) for name, scenario in larger.items()},
    lambda variant: getattr(variant, "knobs", {}).get("adc_bits") or 12,
    "bits (12: baseline and integers)",
    [4, 5, 6, 12],
)
for axis in axes:
    axis.set(ylim=(0, 1.02))
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Where a converter has bits enough.** From 6 or 7 bits on a conventional network is nearly as good here.
# - **Against errors of the chip alone.** Gain and offset are met by calibration of batch norms, at no training.
# - **Without time to train.** A step of training computes the layer twice, on the array and digitally.
