# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Early exit
#
# Most inputs are easy. A network that is deep enough for the hard ones computes the same long way for all of them.
# **Early exit** (BranchyNet, arXiv 1709.01686; DeeBERT, arXiv 2004.12993; PABEE, arXiv 2006.04152) puts small
# classifiers between the layers, and lets an input leave at the first one that is sure enough.
#
# This notebook trains a small residual network with four exits on handwritten digits, and then reads the full
# experiments on Fashion-MNIST and on e-mails from their records.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.record import Record
from reference_impls.data import images
from reference_impls.experiments.confidence_early_exit import Recipe, all_exits, split
from reference_impls.techniques.confidence_early_exit import (
    ConfidenceEarlyExit,
    EarlyExit,
    at_exits,
    calibrate,
    confidence,
    exit_decisions,
)

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "confidence-early-exit"
fashion = Record.model_validate_json((results / "fashion-cnn.json").read_text())
mails = Record.model_validate_json((results / "mails-minilm.json").read_text())
plt.rcParams.update({"figure.figsize": (9, 3.6), "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The idea in one picture
#
# The network below is trained on 1,000 digits, all four exits together. It runs the test digits in one batch. After
# each exit the digits whose largest class probability exceeds 0.9 leave the batch, so each stage works on fewer.

# %%
data = images.digits()
part = split(data, 1000, 437, seed=0)
network = Recipe("digits", size=8, width=16, images=1000, epochs=5).train(part, seed=0)
runner = EarlyExit(network, rule="confidence", threshold=0.9)
answers = runner(part.x_test).argmax(-1)
left = runner.left
print("digits that leave at each exit:", left.bincount(minlength=4).tolist())
print(f"accuracy {(answers == part.y_test).float().mean():.3f}, of the last exit alone "
      f"{(network(part.x_test).argmax(-1) == part.y_test).float().mean():.3f}")  # fmt: skip

# %%
test = data[2]
figure = plt.figure(figsize=(9, 3.2))
halves = figure.subfigures(2, 1)
for half, exits, title in zip(
    halves, (left == 0, left == 3), ("left at the first exit", "went to the end"), strict=True
):
    half.suptitle(title, fontsize=10, x=0.02, ha="left")
    row = half.subplots(1, 10, gridspec_kw={"top": 0.68, "bottom": 0.02, "left": 0.02, "right": 0.98})
    for axis, index in zip(row, exits.nonzero().squeeze(1)[:10].tolist(), strict=False):
        axis.imshow(test[index, 0], cmap="gray_r")
        right = "" if answers[index] == part.y_test[index] else f", is {part.y_test[index]}"
        axis.set_title(f"{answers[index]}{right}", fontsize=8, color="tab:red" if right else "black", pad=3)
    for axis in row:
        axis.axis("off")
plt.show()

# %% [markdown]
# ## How much of the computation is redundant
#
# At which exit does the answer settle, so that it stays the same to the end? What is computed after that point changes
# nothing. Its share is the measure of **sufficiency**. It needs no labels, and no rule can save more without changing
# an answer, because a rule cannot see the later exits.

# %%
found = ConfidenceEarlyExit().measure(network, part.x_test)
print(f"digits: {found.value:.3f} of the computation behind the first stage comes after the answer has settled")

# %%
figure, (left_axis, right_axis) = plt.subplots(1, 2)
for record, name in ((fashion, "Fashion-MNIST, CNN"), (mails, "mails, MiniLM")):
    where = record.redundancy.where
    depth = np.arange(1, len(where) + 1) / len(where)
    left_axis.plot(depth, list(where.values()), marker="o", label=name)
left_axis.set(xlabel="depth of the exit, as a share", ylabel="share of answers settled", ylim=(0, 1.03))
left_axis.legend(frameon=False)
bars = {}
for record, name in ((fashion, "CNN"), (mails, "MiniLM")):
    bars[f"{name}: real data"] = record.redundancy.value
    bars |= {f"{name}: {null}": value for null, value in record.redundancy.null.items()}
colours = ["tab:blue" if "real" in name else "tab:gray" for name in bars]
right_axis.barh(list(bars), list(bars.values()), color=colours)
right_axis.invert_yaxis()
right_axis.set(xlabel="sufficiency", xlim=(0, 1))
right_axis.tick_params(axis="y", labelsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# The gray bars are null cases. They are not 0: exits agree on noise too, because a network gives *some* answer to
# anything. **Agreement of exits is not knowledge**, so read the measure beside its null cases.
#
# ## What it costs, and what it saves: three rules
#
# - *confidence*: the largest class probability is above a threshold,
# - *entropy*: the entropy of the class probabilities is below a threshold,
# - *patience*: the last exits gave the same answer.


# %%
def draw(record: Record, title: str) -> None:
    """Accuracy against MACs and against wall-clock, the controls included."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(9, 3.9))
    measures = (lambda variant: variant.macs / 1e6, lambda variant: variant.wall_ms.median)
    for axis, x in zip(axes, measures, strict=True):
        for rule, marker in (("confidence", "o"), ("entropy", "s"), ("patience", "^")):
            points = sorted((p for p in record.points if p.knobs["rule"] == rule), key=x)
            y = np.array([p.quality.value for p in points])
            spread = [y - [p.quality.low for p in points], [p.quality.high for p in points] - y]
            axis.errorbar([x(p) for p in points], y, yerr=spread, marker=marker, label=rule, capsize=2, linewidth=1)
        for control, style in zip(record.controls, ("x--", "v:", "P"), strict=False):
            points = sorted(control.points, key=x)
            axis.plot(
                [x(p) for p in points], [p.quality.value for p in points], style, color="gray", label=control.name
            )
        axis.plot(x(record.baseline), record.baseline.quality.value, "k*", markersize=11, label="plain network")
        axis.set_xlim(left=0)
    axes[0].set(xlabel="million MACs per sample", ylabel="accuracy")
    axes[1].set(xlabel="wall-clock per sample in batches of 32 (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title, y=0.02, fontsize=9, va="bottom")
    figure.tight_layout(rect=(0, 0.05, 1, 0.87))
    plt.show()


draw(fashion, "Residual CNN on Fashion-MNIST, five seeds")
draw(mails, "MiniLM on the SpamAssassin mails, five splits")

# %% [markdown]
# In MACs the rules win clearly. In time they win less on the small CNN: each exit adds several small kernels, and
# a batch that has shrunk uses the processor worse. On the mails the star is a weak baseline, because the last layer of
# a frozen encoder is not its best one for another task; compare with *one exit for all* there.
#
# The gray marks are the **controls**:
#
# - *random exits*: as many samples leave at each exit, but drawn at random. The distance to the rules is what knowing
#   whom to let go is worth.
# - *one exit for all*: the network is cut, and nothing is decided.
# - *smaller plain network*: trained alone to that depth. If it lies on the curve, take it and leave early exit alone.
#
# Samples one at a time, which is how the papers measure. The plain network beside the confidence rule:

# %%
for record in (fashion, mails):
    plain = record.extra["batch_1_plain_ms"]
    print(f"{record.title}\n   plain network      {plain[1]:8.2f} ms   [p10 {plain[0]:.2f}, p90 {plain[2]:.2f}]")
    times = zip(record.extra["batch_1_threshold"], record.extra["batch_1_ms"], strict=True)
    for threshold, (low, median, high) in times:
        ratio = plain[1] / median
        spread = f"[p10 {low:.2f}, p90 {high:.2f}]"
        print(f"   confidence > {threshold:<5g} {median:8.2f} ms   {spread}   {ratio:.2f} times as fast")

# %% [markdown]
# ## Calibration: how much accuracy may it cost?
#
# A threshold is chosen on held-out data for a budget of accuracy. Below, for the digits, the walk from careful to bold.

# %%
held = all_exits(network, part.x_held)
tested = all_exits(network, part.x_test)
last = (tested[-1].argmax(-1) == part.y_test).double().mean()
for budget, delta in ((0.01, None), (0.02, None), (0.02, 0.05)):
    chosen = calibrate(held, part.y_held, "confidence", budget, delta=delta)
    kept = at_exits(tested, exit_decisions(tested, "confidence", chosen.threshold)).argmax(-1) == part.y_test
    kind = "certified at 95 %" if delta else "met on held-out  "
    print(f"budget {budget:.3f}, {kind}: threshold {chosen.threshold:.3f}, loss held out {chosen.loss:+.4f}, "
          f"on test {last - kept.double().mean():+.4f}, mean exit {chosen.depth + 1:.2f}")  # fmt: skip

# %% [markdown]
# And in the full experiments, over five seeds. A budget that is met on held-out data is missed on some test sets. A
# certified budget is met more often, and saves less.

# %%
for record in (fashion, mails):
    print(record.title)
    print("   rule         budget   certified   loss held out   loss on test [95 %]      seeds within   MACs")
    for rule in ("confidence", "entropy", "patience"):
        for budget, certified, _, held_out, mean, low, high, within, share in record.extra[f"calibration_{rule}"]:
            print(
                f"   {rule:<12} {budget:6.3f} {'yes' if certified else 'no':>9} {held_out:+15.4f} {mean:+12.4f} "
                f"[{low:+.4f}, {high:+.4f}] {within:9.0f} of {len(record.seeds)} {share:10.0%}"
            )

# %% [markdown]
# ## When not to use it
#
# - **A smaller plain network does as well.** Look at the gray marks above before you add exits.
# - **Inputs may differ from those of the calibration.** The share of inputs that leave before the last exit at
#   confidence 0.9, with networks that never saw noise:

# %%
for record in (fashion, mails):
    print(record.title)
    for name, value in record.extra.items():
        if name.startswith("left_early_"):
            print(f"   {name.removeprefix('left_early_').replace('_', ' '):30} {value:6.1%}")

# %% [markdown]
# - **The stages are tiny.** Each exit costs several small kernels and a wait for the device, whatever the stage costs.
#   One image at a time, a careful threshold can be slower than the plain network (above).
# - **The batch runs in lock-step.** Without taking samples out, a batch is as slow as its hardest sample. The chance
#   that *all* of a batch have left by an exit falls quickly with its size:

# %%
sure = (confidence(tested) > 0.9)[0].double().mean().item()
for size in (1, 8, 32, 128):
    print(f"   batch of {size:3}: {sure**size:.1e} of the batches could stop at the first exit without compaction")
