# %% [markdown]
# # Dynamic sparse training
#
# Most weights of a network may be zero from the first step on, if the places of the others may move: **dynamic sparse
# training** drops the least important ones and grows as many elsewhere, every so often. This notebook trains a small
# network with 90 % of its weights at zero, looks at how its masks move, and reads the full experiment from its record.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.sparse_training import SMOKE, dense
from reference_impls.hosts.training import Run, ledger
from reference_impls.techniques.dynamic_sparse_training import DynamicSparseTraining, SparseTraining, spread

show.style()
full = show.committed("dynamic-sparse-training", "sparse-digits")

# %% [markdown]
# ## The idea in one picture
#
# One layer of a small network on digits, its weights as rows (outputs) by columns (inputs), epoch by epoch. White is
# dropped. The number of active weights is the same to the unit at the end; MEST's soft bound exceeds it for a while.

# %%
training = dense(SMOKE, seed=0)
handle = DynamicSparseTraining().apply(training, sparsity=0.9, method="em&s")
run = Run(handle.target)
(sparse,) = run.parts
assert isinstance(sparse, SparseTraining)
pictures = []
for _ in range(SMOKE.epochs):
    layer = sparse.layers["1.0"]
    mask = spread(sparse.masks["1.0"], layer.weight, "element")
    pictures.append(torch.where(mask, layer.weight.detach(), torch.nan).flatten(1))
    run.advance(len(training.x) // training.batch_size + 1)
figure, axes = plt.subplots(len(pictures), 1, figsize=(8, 5.4), sharex=True)
for epoch, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
    axis.imshow(picture, cmap="coolwarm", aspect="auto", vmin=-0.3, vmax=0.3)
    axis.set_title(f"epoch {epoch + 1}: {int((~picture.isnan()).sum())} of {picture.numel()} active", fontsize=9)
    axis.set(xticks=[], yticks=[])
figure.tight_layout()
plt.show()
print("active weights, epoch by epoch:", handle.trace["active"]["1.0"])

# %% [markdown]
# ## What it saves, on paper and in kernels
#
# A mask of single weights saves nothing on dense kernels; a mask of input channels does, as each layer then multiplies
# fewer channels. The closed form tells both, and what kernels would save that use every zero.

# %%
for knobs in ({"pattern": "element"}, {"pattern": "channel", "method": "set"}):
    handle = DynamicSparseTraining().apply(training, sparsity=0.5, **knobs)
    handle.target.fit()
    plain, costs = ledger(training, {}), ledger(training, handle.trace)
    shares = {name: getattr(costs, name) / getattr(plain, name) for name in ("executed", "sparse", "convention")}
    print(f"{knobs['pattern']:>8}: ", ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))

# %% [markdown]
# ## Accuracy: which way of moving masks
#
# The same network for several seeds, beside masks that never move, and beside dense trainings that cost about as much
# by the papers' convention: a narrower network, and fewer epochs.

# %%
for sparsity in (0.9, 0.98):
    rows = {f"dense ({sparsity:g} below)": full.baseline.quality}
    for point in show.select(full.points, sparsity=sparsity, pattern="element"):
        rows[str(point.knobs["method"])] = point.quality
    for control in full.controls:
        for point in show.select(control.points, sparsity=sparsity, pattern="element"):
            rows[control.name] = point.quality
    for name, quality in rows.items():
        print(f"{name:>24}: {quality.value:.3f}  ({quality.low:.3f} to {quality.high:.3f})")
    print()

# %% [markdown]
# ## Time
#
# One training in milliseconds, as the record has them. A mask of elements adds a product per weight to every step.
# Masks of channels execute fewer MACs; whether that saves time depends on how large the layers are, since each gathers
# its active channels first.

# %%
shown = [("dense", full.baseline), *(("elements", p) for p in show.select(full.points, sparsity=0.9, method="set"))]
shown += [("channels", p) for p in show.select(full.points, pattern="channel")]
shown += [(c.name, p) for c in full.controls for p in show.select(c.points, pattern="channel")]
for name, variant in shown:
    ratio = variant.macs / full.baseline.macs
    print(
        f"{name:>24}: {variant.wall_ms.median:8.0f} ms, {ratio:.2f} of the MACs, accuracy {variant.quality.value:.3f}"
    )

# %% [markdown]
# ## When not to use it
#
# - **Dense kernels are all there is**, and masks are of single weights: the zeros save operations on paper only.
# - **A smaller dense network will do.** Look at the two dense controls above before you choose a mask.
