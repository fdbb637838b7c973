# %% [markdown]
# # Where is the redundancy in my model?
#
# A layer that spends half of its work on what repeats looks like any other. The **redundancy report** takes a model
# and some data and asks, for each kind of redundancy: how much is there, is it the data's or the architecture's, what
# would its ideal reuse change in the answers, and what could this machine make of it?
#
# Here the model is a small vision transformer, trained on handwritten digits in a few seconds. Put your own in its
# place.

# %%
from typing import Any

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.data import images
from reference_impls.models.vit import small_vit
from reference_impls.report import report
from reference_impls.study import training

show.style()
x_train, y_train, x_test, y_test = images.digits()
shape: dict[str, Any] = {"image_size": 8, "patch_size": 1, "in_channels": 1, "num_classes": 10}
model = training.seeded(0, lambda: small_vit(**shape, dim=32, depth=4, num_heads=2, mlp_ratio=2.0))
training.train(model, x_train, y_train, training.Recipe(8, 3e-3, 32), seed=0)
with torch.no_grad():
    right = (model(x_test).argmax(1) == y_test).float().mean()
print(f"{right:.1%} of the test digits are told right")

# %% [markdown]
# ## One call
#
# The loader gives batches with labels, as yours does. The budget says what may change: here 2 % of the answers. Only
# a few axes are asked for, so that this runs in seconds; without `axes` all that fit are measured.

# %%
loader = list(zip(x_test.split(8), y_test.split(8), strict=True))
axes = ["tokens", "exits", "channels", "zero-values", "bits", "repeated-items", "near-items"]
result = report(model, loader, kind="image", budget={"flips": 0.02}, items=64, axes=axes)
for found in result.findings:
    nulls = max((n.value for n in found.null.values()), default=float("nan"))
    saved = f"{found.ceiling_macs:.0%} {'' if found.saves == 'inference' else 'of ' + found.saves}"
    print(f"{found.axis:16} {found.value.value:.2f}, null {nulls:.2f}; at the budget it saves at most {saved}")

# %% [markdown]
# ## A saving is a curve
#
# For each setting the ideal reuse was simulated inside the model, and the rest of it ran on the results. So a saving
# stands at a share of changed answers, never alone. The dashed line is the budget.

# %%
drawn = [f for f in result.findings if f.curve and f.saves == "inference" and f.curve[0].flips is not None]
figure, panels = plt.subplots(1, len(drawn), figsize=(3.1 * len(drawn), 2.7), sharey=True, squeeze=False)
for axis, found in zip(panels[0], drawn, strict=True):
    points = sorted(found.curve, key=lambda p: p.macs_saved.value)
    axis.plot([p.macs_saved.value for p in points], [p.flips.value for p in points if p.flips], "o-", ms=4)
    axis.axhline(result.budget.limit, ls="--", lw=1, color="C1")
    axis.set(title=found.axis, xlabel="share of the MACs saved")
panels[0][0].set_ylabel("answers that change")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The data's, or the architecture's?
#
# The same measures where the redundancy of the data is destroyed, or the weights are drawn again. What stays as high
# was not the data's: it comes with the architecture, and other data would show it too.

# %%
measured = [f for f in result.findings if f.null]
figure, panels = plt.subplots(1, len(measured), figsize=(2.6 * len(measured), 2.4), sharex=True, squeeze=False)
for axis, found in zip(panels[0], measured, strict=True):
    names = ["these data", *found.null]
    values = [found.value.value, *(n.value for n in found.null.values())]
    axis.barh(names[::-1], values[::-1], color=["C1"] * len(found.null) + ["C0"])
    axis.set(title=found.axis, xlim=(0, 1))
    axis.tick_params(labelsize=7)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What to try
#
# Each finding names the techniques of the atlas that exploit it, with the values to start from, and whether `apply`
# takes this model. `redundancy report` on the command line ranks them against the catalogue and writes a page;
# `--verify` applies them and shows what came of it.

# %%
for found in result.findings:
    for one in found.suggestions:
        what = {True: "applies", False: f"refused: {one.needs[:60]}", None: "not tried here"}[one.applies]
        print(f"{found.axis:16} {one.technique:28} {one.knobs} {what}")
