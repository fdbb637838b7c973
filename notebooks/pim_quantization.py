# %% [markdown]
# # PIM quantisation
#
# A memory array can multiply: voltages on its rows, weights in its cells, and each column adds the currents up. What
# comes out is analogue, and a **converter** of few bits has to read it. So every partial sum of a layer is rounded, by
# hardware, on a fixed scale (Jin et al., arXiv 2209.08617: *PIM-QAT*). The abstract of that paper is all that was
# available here; the formulas below are the common ones.
#
# The layers compute this in integers, code by code, so that a network can be tried on an array before there is one.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullFormatter

from reference_impls import show
from reference_impls.benchmarks.low_precision import DIGITS, images_of, trained
from reference_impls.contract import generator
from reference_impls.layers.arrays import SCHEMES, Array, array_product, columns, convert
from reference_impls.study import accuracy
from reference_impls.techniques.pim_quantization import PIMQuantization

show.style()
schemes = show.committed("pim-quantization", "digits-schemes")

# %% [markdown]
# ## One conversion
#
# Nine activations of 4 bits meet nine weights of 4 bits. A native column holds signed weights; bit-serial columns hold
# one bit each, the last with a negative count:

# %%
x = torch.tensor([[3, 15, 0, 7, 2, 9, 12, 1, 5]])
w = torch.tensor([[2, -7, 1, 0, 5, -3, 4, 6, -1]])
print("exact product:", (x @ w.T).item())
for scheme in SCHEMES:
    array = Array(scheme, adc_bits=5, group=9)
    held = columns(w, array)[:, 0]
    print(f"{scheme}: full scale {array.full_scale}, step {array.scale:.2f}")
    for count, column in zip(array.column_factors, held, strict=True):
        s = x.float() @ column.float()
        code = convert(s.clone().view(1, 1), array, axis=-1).item()
        print(f"   count {count:+d}: sum {s.item():4.0f} -> code {code:+.0f}, read as {code * array.scale:.1f}")
    print(f"   together {array_product(x, w, array).item() * array.scale:.1f}")

# %% [markdown]
# ## One bit more can be worse
#
# A sum is read without loss where it is a multiple of the step. With one bit a cycle and groups of nine rows the full
# scale is 9, so 6 bits (63 codes, 7 for each unit) are exact, and 7 bits (127, a prime) are not.

# %%
draws = generator(0)
x = torch.randint(0, 16, (200, 36), generator=draws).double()
w = torch.randint(-7, 8, (16, 36), generator=draws).double()
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
bits = range(2, 11)
for axis, m, group in ((axes[0], 1, 9), (axes[1], 4, 36)):
    for scheme in SCHEMES:
        errors = []
        for b in bits:
            array = Array(scheme, adc_bits=b, dac_bits=m, group=group)
            y = array_product(x, w, array) * array.scale
            errors.append(((y - x @ w.T).norm() / (x @ w.T).norm()).item())
        axis.plot(bits, [max(e, 1e-6) for e in errors], "o-", markersize=4, label=scheme)
    axis.set(xlabel="bits of the converter", yscale="log", title=f"groups of {group}, {m} bits per cycle")
axes[0].set(ylabel="relative error (0 drawn as 1e-6)")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A network on an array, in one call
#
# A small CNN that was trained with 4-bit weights and activations, but knows nothing of converters (trained now for a
# few seconds). First and last layer stay digital; undone, the model is as it was.

# %%
plan = DIGITS[1]
parts = images_of(plan, 0)
model = trained(plan, parts.train, 0)
knobs = {"weights": "tanh", "clip": 1.0}
for b in (None, 8, 6, 5, 4):
    with PIMQuantization().apply(model, adc_bits=b, **knobs) as handle:
        right = accuracy(model, *parts.test)
        conversions = {name: seen.conversions // seen.shape[0] for name, seen in handle.trace["layers"].items()}
    print(f"{'exact sums' if b is None else f'{b} bits'}: {right:.1%}")
print("conversions of an image by layer:", conversions)

# %% [markdown]
# ## Schemes and cycles
#
# Networks of three seeds. Left: accuracy against bits. Right: the same against conversions of an image, which the
# energy of an array goes with; a native column takes one for each output and group, bit-serial ones one for each bit of
# the weight, and cycles multiply.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
converted = {(r["scheme"], r["dac_bits"]): r["conversions"] for r in schemes.tables["conversions"].records()}
for (scheme, m), number in converted.items():
    points = sorted(show.select(schemes.points, scheme=scheme, dac_bits=m), key=lambda p: p.knobs["adc_bits"])
    quality = [p.quality for p in points]
    label = f"{scheme}, {m} bits per cycle"
    axes[0].errorbar(
        [p.knobs["adc_bits"] for p in points],
        [q.value for q in quality],
        show.ends(quality),
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )
    axes[1].plot([number] * len(points), [q.value for q in quality], "o", label=label)
    apart = [p for p, above in pairwise(points) if above.quality.value - p.quality.value > 0.06]
    for p in apart:
        axes[1].annotate(f" {p.knobs['adc_bits']}", (number, p.quality.value), fontsize=7)
axes[0].axhline(schemes.baseline.quality.value, color="black", linestyle="--", linewidth=0.8)
axes[0].set(xlabel="bits of the converter", ylabel="accuracy")
axes[1].set(xlabel="conversions of an image (bits beside points that stand apart)", xscale="log")
axes[1].xaxis.set_minor_formatter(NullFormatter())
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## The range that nobody uses
#
# The scale is made for the largest sum that there can be. Real sums stay far below, and the bits for the rest are
# wasted; a converter whose range ended at the largest real sum would save so many at the same step:

# %%
figure, axis = plt.subplots(figsize=(7.5, 3))
rows = schemes.tables["range in use"].records()
bars = {f"{row['scheme']}, {row['layer']}": row["bits"] for row in rows}
show.bars(axis, bars, label="bits that a calibrated range saves", form=".1f")
plt.show()

# %% [markdown]
# ## A pretrained network
#
# EfficientNet-Lite0 with its ImageNet weights, 8-bit weights and activations, groups of 16 rows; nothing was trained
# for the array. How its logits on photos correlate with those in floating point:

# %%
lite = show.committed("pim-quantization", "lite0-photos")
figure, axis = plt.subplots(figsize=(6, 3))
for scheme in SCHEMES:
    points = show.select(lite.points, scheme=scheme)
    axis.plot([p.knobs["adc_bits"] for p in points], [p.quality.value for p in points], "o-", label=scheme)
axis.axhline(lite.baseline.quality.value, color="black", linestyle="--", linewidth=0.8, label="exact integers")
axis.set(xlabel="bits of the converter", ylabel="correlation")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **As it is, at few bits.** A conventional network breaks off. Trained through the converter it does not (PIM-QAT).
# - **To save anything on a digital machine.** This simulates, column by column and cycle by cycle.
# - **For layers shorter than a group**, such as depthwise convolutions: leave them digital.
