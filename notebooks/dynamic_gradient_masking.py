# %% [markdown]
# # Dynamic gradient masking
#
# Not every weight has to move in every step. **Dynamic gradient masking** (SparCL, arXiv 2209.09476) updates those
# alone whose gradients matter most to the task at hand or to remembered ones, and keeps the choice for some steps. This
# notebook shows which weights of one small learner move, why it is the update that must be masked, and reads the full
# experiment from its record.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.continual_learning import SMOKE, dense, network
from reference_impls.hosts.continual import gradients
from reference_impls.study import seeded
from reference_impls.techniques.dynamic_gradient_masking import DynamicGradientMasking, GradientMasking

show.style()
full = show.committed("dynamic-gradient-masking", "split-digits")

# %% [markdown]
# ## The idea in one picture
#
# One hidden layer, its weights as rows (outputs) by columns (inputs): in how many steps of each task a weight was
# updated. A fifth of them is updated in a step; over a task it is not the same fifth.

# %%
training = dense(SMOKE, seed=0)
run = DynamicGradientMasking().apply(training, sparsity=0.8, interval=1).target.run()
(part,) = run.parts
assert isinstance(part, GradientMasking)
pictures = [torch.zeros(SMOKE.width**2) for _ in training.tasks]
while run.epoch < run.epochs:
    task = run.task
    run.advance(1)
    pictures[task] += part.masks["1.1"]
figure, axes = plt.subplots(1, len(pictures), figsize=(9, 2.3))
for axis, picture, classes in zip(axes, pictures, training.tasks, strict=True):
    axis.imshow(picture.view(SMOKE.width, SMOKE.width), cmap="Blues", vmin=0)
    axis.set_title(f"classes {classes[0]} and {classes[1]}", fontsize=9)
    axis.set(xticks=[], yticks=[])
figure.tight_layout()
plt.show()
for picture, classes in zip(pictures, training.tasks, strict=True):
    print(f"classes {classes}: {float((picture == 0).double().mean()):.2f} of the weights were never updated")

# %% [markdown]
# ## Mask the update, not the gradient
#
# Weights outside the mask that moved in the second step, with the gradient alone masked and with the update masked.

# %%
x, y = training.x[:50], training.y[:50]
makers = {
    "plain descent": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "weight decay": lambda p: torch.optim.SGD(p, 0.1, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, 1e-3),
}
for name, make in makers.items():
    moved = {}
    for what in ("gradient", "update"):
        model = seeded(0, lambda: network(SMOKE.width))
        optimiser = make(model.parameters())
        masking = GradientMasking(model, optimiser, sparsity=0.8, interval=1)
        if what == "gradient":
            masking.detach()
        layer = model[1][1]
        for examples in (slice(0, 25), slice(25, 50)):
            found = gradients(model, torch.nn.functional.cross_entropy(model(x[examples]), y[examples]))
            for key, parameter in model.named_parameters():
                parameter.grad = found[key]
            masking.before_step(found, None)
            outside = ~masking.masks["1.1"].view_as(layer.weight)
            if what == "gradient":
                layer.weight.grad[outside] = 0
            before = layer.weight.detach().clone()
            optimiser.step()
        moved[what] = int((layer.weight != before)[outside].sum())
    print(f"{name:>14}: of {int(outside.sum())} weights moved {moved['gradient']} and {moved['update']}")

# %% [markdown]
# ## What it saves and what it loses
#
# Masks of single weights save nothing on dense kernels. With masks of input channels the gradients of the other
# channels' weights are not computed, a third of a layer's work at most.

# %%
for row in full.tables["ledger"].rows:
    name, counted, _, sparse, _, share, _ = row
    macs = f"{counted / 1e9:.2f} G MACs counted, {sparse / 1e9:.2f} with sparse kernels"
    print(f"{name:>48}: {macs}; by the convention {share:.2f}")
show.trade_offs(full, show.series(full), costs=("MACs", "milliseconds"))
for point in full.points:
    knobs = ", ".join(f"{name} {value}" for name, value in point.knobs.items())
    print(f"{knobs}: {show.interval(point.quality)}")
    for name, gain in point.gain.items():
        print(f"{'over ' + name:>40}: {show.interval(gain, '+.2f', 100)} points")

# %% [markdown]
# ## When not to use it
#
# - **To save time on dense kernels**: a gradient that is computed and then masked costs what it costs.
