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
import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.early_exit import DIGITS, all_exits, images_of, trained_cnn
from reference_impls.data import images
from reference_impls.techniques.confidence_early_exit import ConfidenceEarlyExit, at_exits, calibrate, exit_decisions

show.style()
records = {name: show.committed("confidence-early-exit", name) for name in ("fashion-cnn", "mails-minilm")}

# %% [markdown]
# ## The idea in one picture
#
# The network below, trained on digits with all four exits together, classifies the test digits in one batch. After each
# exit the digits whose largest class probability exceeds 0.9 leave the batch, so each stage works on fewer.

# %%
_, plan = DIGITS
parts = images_of(plan, seed=0)
x, y = parts.test
network = trained_cnn(plan, parts.train, seed=0)
with ConfidenceEarlyExit().apply(network, rule="confidence", threshold=0.9) as handle:
    answers, left = handle.target(x).argmax(-1), handle.trace["left"]
print("digits that leave at each exit:", left.bincount(minlength=4).tolist())
print(f"accuracy {(answers == y).float().mean():.3f}, of the last exit alone "
      f"{(network(x).argmax(-1) == y).float().mean():.3f}")  # fmt: skip

# %%
pictures = images.digits()[2]
for title, at in {"left at the first exit": 0, "went to the end": 3}.items():
    figure, row = plt.subplots(1, 10, figsize=(9, 1.5))
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    for axis in row:
        axis.axis("off")
    for axis, index in zip(row, (left == at).nonzero().squeeze(1)[:10].tolist(), strict=False):
        axis.imshow(pictures[index, 0], cmap="gray_r")
        wrong = "" if answers[index] == y[index] else f", is {y[index]}"
        axis.set_title(f"{answers[index]}{wrong}", fontsize=8, color="tab:red" if wrong else "black", pad=3)
    plt.show()

# %% [markdown]
# ## How much of the computation is redundant
#
# At which exit does the answer settle, so that it stays the same to the end? The share of the computation after that
# point is the measure of **sufficiency**. It needs no labels, and no rule can save more without changing an answer,
# because a rule cannot see the later exits.

# %%
found = ConfidenceEarlyExit().measure(network, x)
print(f"digits: {found.value:.3f} of the computation after the first stage comes after the answer has settled")

figure, (depths, shares) = plt.subplots(1, 2, figsize=(9, 3.6))
values = {}
for record, name in zip(records.values(), ("CNN", "MiniLM"), strict=True):
    where = record.redundancy.where
    depths.plot(np.arange(1, len(where) + 1) / len(where), list(where.values()), marker="o", label=name)
    values[f"{name}: real data"] = record.redundancy
    values |= {f"{name}: {null}": value for null, value in record.redundancy.null.items()}
depths.set(xlabel="depth of the exit, as a share", ylabel="share of answers settled", ylim=(0, 1.03))
depths.legend(fontsize=8)
show.bars(shares, values, label="sufficiency")
shares.tick_params(axis="y", labelsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# All bars but those of real data are null cases. They are not 0: exits agree on noise too, because a network gives
# *some* answer to anything. **Agreement of exits is not knowledge**, so read the measure beside its null cases.
#
# ## What it costs, and what it saves: three rules
#
# - *confidence*: the largest class probability is above a threshold,
# - *entropy*: the entropy of the class probabilities is below a threshold,
# - *patience*: the last exits gave the same answer.
#
# The gray **controls**: *random exits*, where as many samples leave at each exit, but drawn at random (the distance to
# the rules is what knowing whom to let go is worth); *one exit for all*, the network cut, with nothing decided; and a
# *smaller plain network*, trained alone to that depth. If it lies on the curve, take it and leave early exit alone.

# %%
for record in records.values():
    lines = {rule: show.select(record.points, rule=rule) for rule in ("confidence", "entropy", "patience")}
    show.trade_offs(record, lines | {control.name: control.points for control in record.controls})

# %% [markdown]
# In MACs the rules win clearly. In time they win less on the small CNN: each exit adds several small kernels, and
# a batch that has shrunk uses the processor worse. On the mails the baseline is weak, because the last layer of a
# frozen encoder is not its best one for another task; compare with *one exit for all* there.
#
# Samples one at a time, which is how the papers measure, the plain network beside the confidence rule:

# %%
for record in records.values():
    print(record.title)
    rows = record.tables["one sample at a time"].records()
    for row in rows:
        name = "plain network" if row is rows[0] else f"confidence > {row['threshold']:g}"
        spread = f"[p10 {row['p10']:.2f}, p90 {row['p90']:.2f}]"
        print(
            f"   {name:<18} {row['median']:8.2f} ms   {spread}   {rows[0]['median'] / row['median']:.2f} times as fast"
        )

# %% [markdown]
# ## Calibration: how much accuracy may it cost?
#
# A threshold is chosen on held-out data for a budget of accuracy, by a walk from careful to bold. For the digits:

# %%
held, tested = all_exits(network, parts.held.x), all_exits(network, x)
last = (tested[-1].argmax(-1) == y).double().mean()
for budget, delta in ((0.01, None), (0.02, None), (0.02, 0.05)):
    chosen = calibrate(held, parts.held.y, "confidence", budget, delta=delta)
    kept = at_exits(tested, exit_decisions(tested, "confidence", chosen.threshold)).argmax(-1) == y
    kind = "certified at 95 %" if delta else "met on held-out  "
    print(f"budget {budget:.3f}, {kind}: threshold {chosen.threshold:.3f}, loss held out {chosen.loss:+.4f}, "
          f"on test {last - kept.double().mean():+.4f}, mean exit {chosen.depth + 1:.2f}")  # fmt: skip

# %% [markdown]
# And in the full experiments, over their seeds. A budget met on held-out data is missed on some test sets; a certified
# one is met more often, and saves less.

# %%
for record in records.values():
    print(record.title)
    print("   rule         budget   certified   loss held out   loss on test          within budget   MACs")
    for row in record.tables["calibration"].records():
        print(f"   {row['rule']:<12} {row['budget']:6.3f} {'yes' if row['certified'] else 'no':>9} "
              f"{row['held-out loss']:+15.4f}   {show.interval(row['test loss'], '+.4f')} "
              f"{row['seeds within']:4} of {len(record.seeds)} {row['MACs']:8.0%}")  # fmt: skip

# %% [markdown]
# ## When not to use it
#
# - **A smaller plain network does as well.** Look at the gray marks above before you add exits.
# - **Inputs may differ from those of the calibration.** The share of inputs that leave before the last exit at
#   confidence 0.9, with networks that never saw noise:

# %%
for record in records.values():
    print(record.title)
    for row in record.tables["left early"].records():
        print(f"   {row['samples']:30} {row['share']:6.1%}")

# %% [markdown]
# - **The stages are tiny.** Each exit costs several small kernels and a wait for the device. One image at a time, a
#   careful threshold can be slower than the plain network (above).
# - **The batch runs in lock-step.** Without taking samples out, a batch is as slow as its hardest sample. The chance
#   that *all* of a batch have left by an exit falls quickly with its size:

# %%
sure = (left == 0).double().mean().item()
for size in (1, 8, 32, 128):
    print(f"   batch of {size:3}: {sure**size:.1e} of the batches could stop at the first exit without compaction")
