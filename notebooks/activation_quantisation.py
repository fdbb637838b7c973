# %% [markdown]
# # Activation quantisation
#
# A product of two numbers of 8 bits costs far less than one of 32, in energy, area and time. So the activations of a
# network are rounded to integers of few bits as they come (Vanhoucke et al. 2011, and most of what followed), products
# run on integers, and one multiplication brings the result back to its scale.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from reference_impls import show
from reference_impls.benchmarks.low_precision import DIGITS, images_of, trained_with
from reference_impls.layers.quantised import signed_codes
from reference_impls.study import accuracy
from reference_impls.techniques.activation_quantisation import ActivationQuantisation, rotation, smoothing
from reference_impls.techniques.pim_quantization import spans

show.style()
digits = show.committed("activation-quantisation", "digits-bits")
mails = show.committed("activation-quantisation", "minilm-openings")

# %% [markdown]
# ## Rounding
#
# The step is the largest magnitude over the largest code. Nothing is clipped, and no value is off by more than half of
# it:

# %%
x = torch.randn(1, 512)
for bits in (8, 4, 2):
    codes = signed_codes(x, bits)
    error = (codes.codes * codes.step - x).abs().max()
    print(f"{bits} bits: step {codes.step.item():.3f}, {codes.codes.unique().numel()} codes, largest error {error:.3f}")

# %% [markdown]
# ## One outlier spoils the step for all
#
# Two channels of the rows below are fifty times larger than the others, as in large language models. Three remedies:
# the channels stay in floating point; they are scaled down and the weights up; or an orthogonal matrix spreads them.
# All three leave the exact product as it is.

# %%
rows, weight = torch.randn(64, 64), torch.randn(16, 64)
rows[:, [5, 40]] *= 50
turn, scale = rotation(64, rows), smoothing(rows.abs().amax(0), weight, 0.5)
views = {"as they are": rows, "rescaled": rows / scale, "rotated": rows @ turn}
print("largest change of the product:", (rows @ turn @ (weight @ turn).T - rows @ weight.T).abs().max().item())
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6))
for axis, (name, view) in zip(axes, views.items(), strict=True):
    axis.bar(range(64), view.abs().amax(0))
    axis.set(title=name, xlabel="channel")
axes[0].set(ylabel="largest magnitude")
plt.show()

# %%
layer = nn.Linear(64, 16, bias=False).requires_grad_(False)
layer.weight.copy_(weight)
exact, peaks = layer(rows), {"": rows.abs().amax(0)}
figure, axis = plt.subplots(figsize=(6, 3))
for outliers in ("none", "decompose", "smooth", "rotate"):
    errors = []
    for bits in range(3, 9):
        with ActivationQuantisation().apply(layer, activation_bits=bits, outliers=outliers, peaks=peaks):
            errors.append(((layer(rows) - exact).norm() / exact.norm()).item())
    axis.plot(range(3, 9), errors, "o-", markersize=4, label=outliers)
axis.set(xlabel="bits", ylabel="relative error", yscale="log")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A network in one call
#
# Trained in floating point for a few seconds, then rounded in all layers. Static ranges, found on some images, begin at
# 0 after a ReLU and so have twice the codes there.

# %%
plan = DIGITS[1]
parts = images_of(plan, 0)
model = trained_with(plan, parts.train, 0)
ranges = spans(model, parts.train.x[:256], digital=())
print(f"floating point: {accuracy(model, *parts.test):.1%}")
for bits in (8, 4, 3, 2):
    right = []
    for found in (None, ranges):
        with ActivationQuantisation().apply(model, activation_bits=bits, spans=found):
            right.append(accuracy(model, *parts.test))
    print(f"{bits} bits: {right[0]:.1%} with steps at run time, {right[1]:.1%} with static ranges")

# %% [markdown]
# The full record: three seeds, and networks that were trained at these bits.

# %%
series = {"at run time": show.select(digits.points, ranges="at run time")}
series |= {"static": show.select(digits.points, ranges="static")}
series |= {control.name: control.points for control in digits.controls}
figure, axis = plt.subplots(figsize=(6.5, 3.2))
for name, points in series.items():
    quality = [p.quality for p in points]
    bits = [p.knobs["activation_bits"] for p in points]
    axis.errorbar(bits, [q.value for q in quality], show.ends(quality), marker="o", markersize=4, capsize=2, label=name)
axis.axhline(digits.baseline.quality.value, color="black", linestyle="--", linewidth=0.8)
axis.set(xlabel="bits of activations", ylabel="accuracy")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Time, where kernels take integers
#
# MiniLM on the first 16 tokens of e-mails, one at a time: linear layers multiply int8. Left, how far its sentences
# move; right, milliseconds for one.

# %%
eight = show.select(mails.points, activation_bits=8)
figure, axes = plt.subplots(1, 2, figsize=(10, 3))
for remedy in dict.fromkeys(p.knobs["outliers"] for p in mails.points):
    points = show.select(mails.points, outliers=remedy)
    bits = [p.knobs["activation_bits"] for p in points]
    axes[0].plot(bits, [p.quality.value for p in points], "o-", markersize=4, label=remedy)
axes[0].set(xlabel="bits of activations", ylabel="cosine with floating point")
axes[0].legend(fontsize=7)
times = {"floating point": mails.baseline.wall_ms.median} | {p.knobs["outliers"]: p.wall_ms.median for p in eight}
show.bars(axes[1], times, label="ms, 8 bits")
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Where kernels for few bits are missing.** Convolutions here hold integers in floating point, and gain nothing.
# - **Below 4 bits without training.**
# - **Where reading weights takes the time**, at a batch of one: quantise the weights alone.
