# %% [markdown]
# # PIM scale rescaling
#
# Converters of few bits change not only the values of a layer but their **scale**: independent rounding errors add
# their variance, and sums below half a step vanish. Jin et al. (arXiv 2209.08617) rescale the backward and the forward
# pass of training for that. Their formulas were not available here; this is a reconstruction, and it is tested as one.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from reference_impls import show
from reference_impls.layers.pim import SCHEMES, Array, PIMConv2d
from reference_impls.study import run
from reference_impls.techniques.pim_scale_rescaling import PIMScaleRescaling

show.style()
record = show.committed("pim-scale-rescaling", "digits-rescaling")

# %% [markdown]
# ## Larger, smaller, gone
#
# The ratio of spreads, converted over exact, of the second convolution of trained networks; rows are group sizes. Above
# 1 the scale is enlarged, and 0 is the dead zone, where every code is 0.

# %%
rows = [row for row in record.tables["scale"].records() if row["dac_bits"] == 4]
groups, bits = (sorted({row[name] for row in rows}) for name in ("group", "adc_bits"))
figure, axes = plt.subplots(1, 3, figsize=(11, 2.8))
for axis, scheme in zip(axes, SCHEMES, strict=True):
    values = {(row["group"], row["adc_bits"]): row["ratio"].value for row in rows if row["scheme"] == scheme}
    grid = np.array([[values[group, b] for b in bits] for group in groups])
    axis.imshow(np.log2(np.clip(grid, 0.125, 8)), cmap="RdBu_r", vmin=-3, vmax=3)
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(bits)), bits)
    axis.set_yticks(range(len(groups)), groups)
    axis.grid(visible=False)
    axis.set(title=scheme, xlabel="bits of the converter")
axes[0].set(ylabel="rows in a group")
plt.show()

# %% [markdown]
# ## The gradient
#
# A layer on a coarse array, and the gradient of its weights with rescaling and without. They differ by the ratio alone:

# %%
torch.manual_seed(0)
x = torch.rand(8, 16, 8, 8)
gradients = {}
for backward in (False, True):
    torch.manual_seed(1)
    model = nn.Sequential(PIMConv2d(16, 16, 3, array=Array(adc_bits=4)))
    with PIMScaleRescaling().apply(model, backward=backward, forward=2.0) as handle:
        model(x).square().sum().backward()
        ratio = handle.trace["ratios"]["0"]
    gradients[backward] = model[0].weight.grad
print(f"ratio of spreads {ratio:.4f}, of gradients {(gradients[True] / gradients[False]).median():.4f}")

# %% [markdown]
# ## Does it train better?
#
# Networks trained through the converter from five seeds, with the rescaled gradient and with the plain straight-through
# estimator. The intervals say how sure the difference is. Right: run now, one seed.

# %%
records = {"full record": record, "run now": run("pim-scale-rescaling", "digits-rescaling")}
axes = show.panels(
    records, lambda variant: getattr(variant, "knobs", {}).get("adc_bits", 12), "bits (12: baseline)", [3, 4, 5, 6, 12]
)
axes[0].legend(fontsize=8)
plt.show()
show.gains(record, "plain estimator")

# %% [markdown]
# AdamW divides each gradient by its own running size, and a batch norm after the layer divides the output by its
# spread; between them little is left of a factor. A training without either would feel it more.
#
# ## When not to use it
#
# - **In the hope of accuracy**, with batch norms and an optimiser of Adam's kind: measure it first.
# - **With an ideal converter**: the ratio is 1.
