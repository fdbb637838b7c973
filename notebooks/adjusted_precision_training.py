# %% [markdown]
# # Adjusted-precision training
#
# Converters are noisy, and noise takes bits away. A network that was trained on 7 clean bits relies on differences that
# 7 noisy bits do not tell. Jin et al. (arXiv 2209.08617) therefore train at *another precision* than is used later; the
# abstract says no more. Here networks are trained at several precisions, and held-out images choose, with the noise.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.layers.arrays import Array, Chip, convert
from reference_impls.study import run
from reference_impls.techniques.adjusted_precision_training import effective_bits

show.style()
record = show.committed("adjusted-precision-training", "digits-noise")

# %% [markdown]
# ## What noise is worth in bits
#
# Rounding errs by a variance of 1/12 codes. Noise of $\sigma$ codes adds $\sigma^2$, and the whole is the error of an
# ideal converter of $b - \frac12 \log_2(1 + 12 \sigma^2)$ bits. Dots are measured on converters of 8 bits, the line is
# the formula.

# %%
array = Array("native", adc_bits=8, group=36)
sums = (torch.rand(1, 20_000) - 0.5) * array.full_scale


def error(chip: Chip) -> float:
    """Root mean square of the error of one conversion."""
    noisy = Array("native", adc_bits=8, group=36, chip=chip)
    return float(((convert(sums.clone(), noisy, axis=-1) * noisy.scale - sums) ** 2).mean().sqrt())


noises = np.linspace(0, 2, 9)
figure, axis = plt.subplots(figsize=(5.5, 3))
axis.plot(noises, [effective_bits(8, s) for s in noises], label="formula")
measured = [8 - np.log2(error(Chip(noise=float(s))) / error(Chip())) for s in noises]
axis.plot(noises, measured, "o", markersize=4, label="measured")
axis.set(xlabel="noise, in codes", ylabel="effective bits of 8")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Trained at 4 to 7 bits, run at 7
#
# Each panel is a noise; batch norms of all networks were estimated again on the noisy converter.

# %%
noises = sorted({p.knobs["noise"] for p in record.points})
figure, axes = plt.subplots(1, len(noises), figsize=(11, 3.2), sharey=True)
for axis, sigma in zip(axes, noises, strict=True):
    points = show.select(record.points, noise=sigma)
    bits, quality = [p.knobs["train_bits"] for p in points], [p.quality for p in points]
    axis.errorbar(bits, [q.value for q in quality], show.ends(quality), marker="o", capsize=2, label="trained at")
    for control, style in zip(record.controls, ("--", ":"), strict=True):
        for p in show.select(control.points, noise=sigma):
            axis.axhline(p.quality.value, color="gray", linestyle=style, linewidth=1, label=control.name)
    axis.set(title=f"noise of {sigma:g} codes", xlabel="bits in training", xticks=bits)
axes[0].set(ylabel="accuracy at 7 bits")
axes[-1].legend(fontsize=7)
plt.show()
for row in record.tables["chosen"].records():
    print(
        f"noise {row['noise']:g}: {row['effective bits']:.1f} effective bits; held-out images choose "
        f"{show.interval(row['bits'], '.1f')}, which gives {show.interval(row['accuracy'])}"
    )

# %% [markdown]
# ## Run now
#
# The small budget: networks of 5 and 7 bits, three epochs, one seed.

# %%
for p in run("adjusted-precision-training", "digits-noise").points:
    print(f"{show.knobs(p)}: {p.quality.value:.1%}")

# %% [markdown]
# ## When not to use it
#
# - **Without noise**: train at the converter's own bits.
# - **Where the noise is known**: draw it in training, once, instead of training at several precisions.
# - **With few bits to spare**: each bit less costs more than the noise that it is to meet.
