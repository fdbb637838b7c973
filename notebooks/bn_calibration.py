# %% [markdown]
# # Batch-norm calibration
#
# A real converter does not only round: it has a gain, an offset and a curve of its own, and it is noisy. Gain and
# offset are what a **batch norm** takes away, if it knows of them. So one runs a few images on the chip and estimates
# the statistics of the batch norms again (named in Jin et al., arXiv 2209.08617). Weights stay, no labels are needed.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.low_precision import COARSE, DIGITS, deployed, images_of, trained
from reference_impls.layers.arrays import Array, Chip, convert
from reference_impls.techniques.bn_calibration import BNCalibration, now, statistics

show.style()
chips, number = (show.committed("bn-calibration", s) for s in ("digits-chips", "digits-images"))

# %% [markdown]
# ## What a chip does to codes
#
# A converter of 4 bits, and what becomes of a sum that rises from nothing to full scale:

# %%
torch.manual_seed(0)
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True)
sums = torch.linspace(0, 540, 400)
errors = {"gain 0.8": Chip(gain=0.8), "offset 2": Chip(offset=2), "bow 1": Chip(bow=1), "noise 0.5": Chip(noise=0.5)}
for axis, (name, chip) in zip(axes, errors.items(), strict=True):
    for one, label in ((Chip(), "ideal"), (chip, name)):
        array = Array(adc_bits=4, group=36, chip=one)
        axis.plot(sums / 540, convert(sums.clone().view(1, -1), array, axis=-1)[0], linewidth=1, label=label)
    axis.set(title=name, xlabel="sum, of full scale")
axes[0].set(ylabel="code")
plt.show()

# %% [markdown]
# ## Statistics that no longer hold
#
# A network trained for a few seconds, on a converter of 6 bits with a gain of 0.9 and an offset of two codes. Each dot
# is a channel: what its batch norm takes for the mean, and what comes.

# %%
plan = DIGITS[1]
parts = images_of(plan, 0)
model = trained(plan, parts.train, 0)
array = replace(COARSE, adc_bits=6, chip=Chip(gain=0.9, offset=2))
on = deployed(model, array)
found = statistics(on.model, parts.train.x[:256])
norms = dict(on.model.named_modules())
figure, axis = plt.subplots(figsize=(4.2, 3.4))
for name, one in list(found.items())[1:]:
    axis.plot(now(norms[name]).mean, one.mean, "o", markersize=4, label=f"layer {int(name[0]) + 1}")
axis.axline((0, 0), slope=1, color="black", linewidth=0.6)
axis.set(xlabel="mean as trained", ylabel="mean on the chip")
axis.legend(fontsize=8)
plt.show()

before = on.accuracy(parts.test)
with BNCalibration().apply(on.model, images=parts.train.x[:256]):
    print(f"as trained: {before:.1%}; calibrated: {on.accuracy(parts.test):.1%}")
measure = BNCalibration().measure(on.model, parts.train.x[:256])
print(f"{measure.measure}: {measure.value:.2f}")

# %% [markdown]
# ## What it repairs, and what not
#
# Networks of three seeds on chips with one error each, and with all of them. Calibration meets what is the same for all
# images. Noise is not.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True)
for axis, bits in zip(axes, (6, 7), strict=True):
    ours = show.select(chips.points, adc_bits=bits)
    plain = show.select(chips.controls[0].points, adc_bits=bits)
    places = range(len(ours))
    for points, shift, label in ((plain, -0.2, "as trained"), (ours, 0.2, "calibrated")):
        quality = [p.quality for p in points]
        heights = [q.value for q in quality]
        axis.bar([x + shift for x in places], heights, 0.4, yerr=show.ends(quality), capsize=2, label=label)
    axis.set_xticks(list(places), [p.knobs["chip"] for p in ours], rotation=90, fontsize=8)
    axis.set(title=f"converter of {bits} bits")
axes[0].set(ylabel="accuracy")
axes[1].legend(fontsize=8)
plt.show()
show.gains(chips, "conventional network")

# %% [markdown]
# ## How many images it takes

# %%
figure, axis = plt.subplots(figsize=(5.5, 3))
quality = [p.quality for p in number.points]
images = [p.knobs["images"] for p in number.points]
axis.errorbar(images, [q.value for q in quality], show.ends(quality), marker="o", capsize=2, label="calibrated")
axis.axhline(number.controls[0].points[0].quality.value, color="gray", linestyle="--", label="as trained")
axis.axhline(number.baseline.quality.value, color="black", linewidth=0.8, label="baseline")
axis.set(xscale="log", xlabel="images", ylabel="accuracy")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Against noise.** It has no mean to take away. Train at an adjusted precision.
# - **Without images like those to come**, or in a network without batch norms.
# - **As a cure for too few bits.** What is rounded away does not come back.
