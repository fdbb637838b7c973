# %% [markdown]
# # Bit-serial precision
#
# A layer that needs five bits of its activations wastes three of a unit of eight. A **bit-serial** unit takes one bit
# of an activation in a cycle and adds up the weights that it gates; a layer then takes as many cycles as it needs bits
# (Stripes, Judd et al. 2016).

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.low_precision import DIGITS, images_of, trained_with
from reference_impls.layers.quantised import bit_planes
from reference_impls.study import accuracy
from reference_impls.techniques.bit_serial_precision import BitSerialPrecision, Window, precisions
from reference_impls.techniques.pim_quantization import spans

show.style()
record = show.committed("bit-serial-precision", "digits-profile")

# %% [markdown]
# ## A product, bit by bit
#
# Four activations meet four weights. Each plane of bits gates the weights; shifted and added up, the sums are the
# product:

# %%
x, w = torch.tensor([5, 0, 12, 7]), torch.tensor([3, -2, 1, 4])
planes = bit_planes(x, 4)
for k, plane in enumerate(planes):
    print(f"bit {k}: {plane.tolist()} -> sum of the weights {int(plane @ w):3d}, counts {2**k}")
print("together", int(sum(2**k * int(plane @ w) for k, plane in enumerate(planes))), "and at once", int(x @ w))

# %% [markdown]
# ## What activations need
#
# A network trained now for a few seconds, activations in codes of 8 bits. Each group of 16 needs the bits from its
# highest to its lowest one in use:

# %%
plan = DIGITS[1]
parts = images_of(plan, 0)
model = trained_with(plan, parts.train, 0)
ranges = spans(model, parts.train.x[:256], digital=())
codes = (parts.test.x[:64].movedim(1, -1) * 255).round()
inner = model[:2](parts.test.x[:64]).detach()
inner = (inner / inner.max() * 255).round().movedim(1, -1)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for axis, (name, values) in zip(axes, {"pixels": codes, "second layer's output": inner}.items(), strict=True):
    needed = precisions(values, 16)
    axis.bar(range(9), torch.bincount(needed, minlength=9)[:9] / len(needed))
    axis.set(title=f"{name}: {needed.double().mean():.1f} bits in the mean", xlabel="bits that a group needs")
axes[0].set(ylabel="share of the groups")
plt.show()

# %% [markdown]
# Nothing is lost by that; cutting low bits loses something:

# %%
for windows in (None, *(dict.fromkeys(ranges, Window(8 - bits, 8)) for bits in (6, 4, 3, 2))):
    with BitSerialPrecision().apply(model, spans=ranges, windows=windows):
        right = accuracy(model, *parts.test)
    print(f"{8 if windows is None else 8 - windows['0.0'].low} bits in every layer: {right:.1%}")

# %% [markdown]
# ## Profiles
#
# The full record, three seeds: bits of each layer, found on held-out images layer by layer, at four tolerances.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3))
rows = record.tables["precision"].records()
for tolerance in dict.fromkeys(row["tolerance"] for row in rows):
    own = [row for row in rows if row["tolerance"] == tolerance]
    axes[0].plot([row["layer"] for row in own], [row["bits"].value for row in own], "o-", label=f"{tolerance:g}")
axes[0].set(ylabel="bits", ylim=(0, 8.5))
axes[0].tick_params(axis="x", rotation=30)
axes[0].legend(fontsize=8, title="tolerance")
shares = {row["tolerance"]: row["share"].value for row in record.tables["cycles"].records()}
axes[1].plot(
    [shares[p.knobs["tolerance"]] for p in record.points],
    [p.quality.value for p in record.points],
    "o-",
    label="profiles",
)
same = record.controls[0]
axes[1].plot(
    [int(p.knobs["tolerance"].split()[0]) / 8 for p in same.points],
    [p.quality.value for p in same.points],
    "s--",
    label=same.name,
)
axes[1].set(xlabel="time over that at 8 bits", ylabel="accuracy")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Groups
#
# Without loss: each group tells its own bits. Large groups hardly gain.

# %%
for row in record.tables["groups"].records():
    print(f"groups of {row['group']}: {show.interval(row['share'], '.1%')} of the time")

# %% [markdown]
# ## When not to use it
#
# - **On a processor with words of 8 or 16 bits.** Only whole steps save time there.
# - **Where layers are bound by reading weights**, such as large linear ones: their cycles are not what takes time.
