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
from reference_impls.layers.arrays import SCHEMES, Array
from reference_impls.layers.pim import PIMConv2d
from reference_impls.study import run
from reference_impls.techniques.pim_scale_rescaling import PIMScaleRescaling

show.style()
record = show.committed("pim-scale-rescaling", "digits-rescaling")

# %% [markdown]
# ## Larger, smaller, gone
#
# The ratio of spreads, converted over exact, of the second convolution of trained networks. Each panel is a map over
# the rows in a group and the bits of the converter; from panel to panel downwards, more bits of an activation enter in
# a cycle. Above 1 the scale is enlarged, and 0 is the dead zone, where every code is 0.

# %%
rows = record.tables["scale"].records()
groups, bits, cycles = (sorted({row[name] for row in rows}) for name in ("group", "adc_bits", "dac_bits"))
places = ("scheme", "dac_bits", "group", "adc_bits")
values = {tuple(row[name] for name in places): row["ratio"].value for row in rows}
figure, axes = plt.subplots(len(cycles), 3, figsize=(11, 2.1 * len(cycles)), sharex=True, sharey=True, squeeze=False)
for line, m in zip(axes, cycles, strict=True):
    for axis, scheme in zip(line, SCHEMES, strict=True):
        grid = np.array([[values[scheme, m, group, b] for b in bits] for group in groups])
        axis.imshow(np.log2(np.clip(grid, 0.125, 8)), cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axis.set_xticks(range(len(bits)), bits)
        axis.set_yticks(range(len(groups)), groups)
        axis.grid(visible=False)
        axis.set_title(f"{scheme}, {m} bit{'s' if m > 1 else ''} a cycle", fontsize=9)
    line[0].set(ylabel="rows in a group")
for axis in axes[-1]:
    axis.set(xlabel="bits of the converter")
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
# Networks trained through the converter, with the rescaled gradient and with the plain straight-through estimator: by
# AdamW from five seeds, by gradient descent with momentum from three, and run now, from one. The intervals say how sure
# the difference is.

# %%
momentum = show.committed("pim-scale-rescaling", "digits-momentum")
axes = show.panels(
    {"AdamW": record, "momentum": momentum, "AdamW, run now": run("pim-scale-rescaling", "digits-rescaling")},
    lambda variant: getattr(variant, "knobs", {}).get("adc_bits", 12),
    "bits (12: baseline)",
    [3, 4, 5, 6, 12],
)
axes[0].legend(fontsize=8)
plt.show()
for one in (record, momentum):
    print(one.title)
    show.gains(one, "plain estimator")

# %% [markdown]
# AdamW divides each gradient by its own running size, and a batch norm after the layer divides the output by its
# spread; between them little is left of a factor. Steps of gradient descent keep it.
#
# ## When not to use it
#
# - **In the hope of accuracy**, with batch norms and an optimiser of Adam's kind: measure it first.
# - **With a converter that nothing trains through**: at 3 bits momentum gets nowhere by either estimator.
# - **With an ideal converter**: the ratio is 1.
