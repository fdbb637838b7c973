# %% [markdown]
# # Adversarial patch region removal
#
# A small printed patch can make a detector blind to whoever wears it. **Themis** (arXiv 2208.09195) observes that such
# a patch dominates the shallow features in a small region, and that what it does to the predictions is not robust. The
# rule here is a reconstruction from the abstract: windows that hold many of the most active shallow neurons are
# proposed, filled one by one, and removed if detections appear or vanish elsewhere.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

from reference_impls import show
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.data import video
from reference_impls.models.yolov3_tiny import stretched, yolov3_tiny
from reference_impls.techniques.adversarial_patch_region_removal import (
    AdversarialPatchRegionRemoval,
    important,
    window_sums,
)

show.style()
owner = "adversarial-patch-region-removal"
cost, record = (show.committed(owner, name) for name in ("defence-cost", "patches-vtest"))

# %% [markdown]
# ## The patches
#
# One for each person and size, optimised by gradient descent where it lies. They are stored with the atlas.

# %%
figure, axes = plt.subplots(3, 10, figsize=(9, 2.9))
for patch in attack.stored():
    axis = axes[attack.SIZES.index(patch.size), patch.wearer]
    axis.imshow(patch.pixels[0].permute(1, 2, 0))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## What a patch does to shallow features
#
# A frame of a street with a patch pasted into it (nobody wears it here): the important neurons of the first block, and
# how many of them each window holds. The window that holds most is where the patch is.

# %%
detector = yolov3_tiny().folded()
street, worn = stretched(video.clip("bikes", 1)), attack.stored()[2]
frame = attack.pasted(street, worn.pixels, (100, 300)).contiguous(memory_format=torch.channels_last)
defence = AdversarialPatchRegionRemoval().apply(detector, fill="inpaint").target
marks = important(defence.network.reference(frame).shallow(1)[0], 0.01)
defence(frame)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 1.9))
for axis, picture, title in zip(
    axes,
    (frame[0].permute(1, 2, 0), marks, window_sums(marks, 12)),
    ("frame", "neurons", "sums of windows"),
    strict=True,
):
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
for y, x in defence.proposals:
    axes[0].add_patch(Rectangle((x, y), 24, 24, fill=False, color="C1"))
plt.show()
print("best proposal (top, left):", defence.proposals[0], "confirmed:", defence.confirmed)

# %% [markdown]
# ## What is won back
#
# Only frames count in which the patch costs a detection that grey, random and shuffled pixels do not cost.

# %%
print(record.data)
rows = {row["defence"].replace("technique", "this defence"): row for row in record.tables["defences"].records()}
for name, row in rows.items():
    back = show.interval(row["won back"], ".0%")
    print(f"{name:30}{row['frames']:>3} frames, F1 {show.interval(row['F1'])}, won back {back}")

# %% [markdown]
# The bars say what is won back of the lost F1, with intervals over the wearers. An attacker who knows the defence keeps
# the patch below the proposals: see *adaptive attack*.

# %%
figure, axis = plt.subplots(figsize=(9, 3.4))
show.bars(axis, {name: row["won back"] for name, row in rows.items()}, label="won back of the lost F1", form=".0%")
plt.show()

# %% [markdown]
# By the patch's side, and by wearer, who each stand somewhere else: how often it is proposed and confirmed, and how
# well the window that is confirmed meets it. A window of 24 pixels that covers all of a patch of 12 has an IoU of 0.25.

# %%
print(f"{'':12}{'frames':>7}{'counted':>9}{'proposed':>10}{'confirmed':>11}{'IoU':>6}{'covered':>9}{'won back':>10}")
for name, first in (("sizes", "side"), ("positions", "wearer")):
    for row in record.tables[name].records():
        cells = [row[key] for key in ("proposed", "confirmed", "IoU", "covered", "won back")]
        numbers = ["–" if x is None else f"{x:.2f}" for x in cells]
        label = f"{first} {row[first]}"
        print(f"{label:12}{row['frames']:>7}{row['counted']:>9}" + "{:>10}{:>11}{:>6}{:>9}{:>10}".format(*numbers))

# %% [markdown]
# A cyclist in another clip is much nearer to the camera. A patch of 40 pixels there is larger than a
# window of 24, which then covers a part of it. Smoothing gradients, which did nothing on the square, does well here:

# %%
for row in record.tables["cyclist"].records():
    back = show.interval(row["won back"], ".0%")
    what = f"patch of {row['side']} pixels, {row['defence']}"
    print(f"{what:48}{row['frames']:>3} frames, F1 {row['F1'].value:.3f}, won back {back}")

# %% [markdown]
# Which block and which share of the neurons is looked at matters little for whether the patch is among the eight best
# windows; with the marks in random order it hardly ever is.

# %%
for row in record.tables["sweep"].records():
    print(
        f"block {row['block']}, share {row['share']}: {row['proposed']:.0%} proposed, {row['shuffled']:.0%} by chance"
    )

# %% [markdown]
# ## What it costs
#
# Verification by full passes is what reuse is measured against. Eight windows in each frame, and fewer:

# %%
show.latency(cost)
for row in cost.tables["over the detector"].records():
    print(f"{row['windows']} windows, {row['form']}: {show.interval(row['time'], '.2f')} x the detector's time")

# %% [markdown]
# Frames in which nobody attacks: the threshold was set so that twenty others propose four windows each, in the mean.
# Here there are more. How Themis verifies fewer of them stands in its own notebook.

# %%
for row in record.tables["clean"].records():
    print(
        f"{row['clip']}: {row['MACs']:.2f} x the detector's MACs, {row['windows']:.1f} windows per frame, "
        f"{row['filled']:.1%} of the frames filled, F1 {show.interval(row['F1'])}"
    )
