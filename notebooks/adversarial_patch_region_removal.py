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
# their share in each window. The window with the largest share is where the patch is.

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
for row in record.tables["defences"].records():
    print(f"{row['defence']}: {row['frames']} frames, F1 {show.interval(row['F1'])}, won back {row['won back']:.0%}")
for name in ("sizes", "positions"):
    for row in record.tables[name].records():
        back = "nothing lost" if row["won back"] is None else f"won back {row['won back']:.0%}"
        print(
            f"{name[:-1]} {next(iter(row.values()))}: proposed {row['proposed']:.0%}, "
            f"confirmed {row['confirmed']:.0%}, {back}"
        )

# %% [markdown]
# An attacker who knows the defence keeps the patch below the proposals: see *adaptive attack* above. Which block and
# which share of the neurons is looked at matters:

# %%
for row in record.tables["sweep"].records():
    print(
        f"block {row['block']}, share {row['share']}: {row['proposed']:.0%} proposed, {row['shuffled']:.0%} by chance"
    )

# %% [markdown]
# ## What it costs
#
# Verification by full passes is what reuse is measured against; on clean frames most windows were seen before.

# %%
show.latency(cost)
for row in record.tables["clean"].records():
    print(
        f"{row['clip']}, {row['form']}: {row['MACs']:.2f} x the detector's MACs, {row['windows']:.1f} windows a frame, "
        f"{row['filled']:.1%} of the frames filled, F1 {show.interval(row['F1'])}"
    )
