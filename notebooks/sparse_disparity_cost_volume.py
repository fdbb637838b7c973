# %% [markdown]
# # Sparse disparity cost volume
#
# A **cost volume** holds, for every pixel and every candidate disparity, how badly two images match. Disparity is
# $1/Z$: candidates in even steps are dense in depth nearby and sparse far away. Where depths in even steps are
# wanted, as for a grid of voxels, a dozen candidates do in place of 48 (StereoVoxelNet, Li et al., arXiv 2209.08459).

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.data import stereo
from reference_impls.techniques.sparse_disparity_cost_volume import CostVolume, MatchingCost, depth_levels, spared
from reference_impls.techniques.stereo_occupancy_voxels.network import BASELINE, FOCAL, VOLUMES

show.style()
ID = "sparse-disparity-cost-volume"
tiny, volume = (show.committed(ID, name) for name in ("volume-small", "volume-paper"))
scenes, own = (show.committed(ID, name) for name in ("scenes-levels", "trained-levels"))

# %% [markdown]
# ## Disparity is one over depth
#
# Candidates of the published network (DrivingStereo's camera), where they lie in disparity and where in depth. Of 48
# even ones most lie within the first few metres; beyond 20 m there are four.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.4), sharey=True)
for row, (name, levels) in enumerate(VOLUMES.items()):
    shifts = torch.tensor(levels[1:]) * 4.0
    for axis, x in ((axes[0], shifts), (axes[1], FOCAL * BASELINE / shifts)):
        axis.plot(x, [row] * len(x), "|", markersize=14, color="C0" if name == "voxel" else "C1")
    near = sum(FOCAL * BASELINE / float(s) < 8 for s in shifts)
    print(f"{name:10} {len(levels):>3} levels, {near:>2} of them nearer than 8 m")
axes[0].set(xlabel="disparity in pixels", yticks=range(len(VOLUMES)), yticklabels=list(VOLUMES), ylim=(3.5, -0.5))
axes[1].set(xlabel="depth in metres", xlim=(0, 34))
plt.show()

# %% [markdown]
# ## On real pairs
#
# Motorcycle (Middlebury 2014), and Aloe (Middlebury 2006) where its asset is in the cache. Their pixels, sorted by
# disparity and by depth: in depth, even steps of disparity are of uneven width. The dashes are candidates in even
# steps of depth, put where they lie in disparity.

# %%
pairs = [pair.fitted(250, 370).centred() for pair in stereo.at_hand()]
figure, axes = plt.subplots(len(pairs), 3, figsize=(10, 2.8 * len(pairs)), squeeze=False)
for row, pair, step in zip(axes, pairs, (0.2, 0.8), strict=False):
    known = pair.disparity[pair.disparity.isfinite()]
    metres = pair.camera.depth(known)
    depths = torch.arange(float(metres.min()), float(metres.max()), step)
    candidates = pair.camera.disparity(depths)
    row[0].imshow(pair.left.permute(1, 2, 0).clamp(0, 1))
    row[0].axis("off")
    for axis, values, dashes in ((row[1], known, candidates), (row[2], metres, depths)):
        axis.hist(values.numpy(), bins=60, color="C0")
        axis.vlines(dashes, 0, axis.get_ylim()[1] / 12, color="C1")
        axis.set(yticks=[])
    row[1].set(xlabel="disparity in pixels")
    row[2].set(xlabel="depth in metres")
    levels = depth_levels(pair.camera.focal, pair.camera.baseline, depths)
    print(
        f"{pair.name}: depths {step} m apart ask for {levels} at a quarter of the resolution; of all levels to the last"
        f" {spared(range(levels[-1] + 1), levels):.0%} need no matching"
    )
plt.show()

# %% [markdown]
# ## The same costs, level by level or side by side
#
# The readable path goes through the levels in a loop, each on the columns that have a partner. The fast one puts the
# columns of several levels side by side, with a column of zeros between two of them; the costs are the same. On one
# thread of a CPU that pays for small maps only, such as the first ones below. At the published size, the second, a
# level fills the fast memory of a core by itself, and both are the same loop.

# %%
torch.manual_seed(0)
small = CostVolume((0, 2, 5), MatchingCost()).eval().double()
left, right = torch.randn(2, 1, 32, 6, 12, dtype=torch.float64)
with torch.no_grad():
    print(f"largest difference: {(small(left, right) - small.loop(left, right)).abs().max():.1e}")
for record in (tiny, volume):
    show.latency(record)

# %% [markdown]
# ## In a finished network
#
# Our small stereo network was trained with all levels; here only those are computed that depths ask for, the others
# take the costs of the nearest. As many levels in even steps of disparity are the control.

# %%
show.trade_offs(scenes)
for row in scenes.tables["computed"].records():
    print(f"depths {row['step']:g} m apart: {row['levels']} of {row['of']} levels")

# %% [markdown]
# ## Trained with its own levels
#
# What the paper compares: networks that were trained with each set of levels. On the left made scenes, then the real
# pairs, on which levels at depths are those of the pair's camera; none of the networks has seen a photo.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.4), sharey=True)
made = {row["variant"]: row["IoU"] for row in own.tables["variants"].records()}
show.bars(axes[0], made, label="made scenes: IoU of 64 cells", form=".3f")
for axis, name in zip(axes[1:], ("Motorcycle", "Aloe"), strict=True):
    rows = [row for row in own.tables["real pairs"].records() if (row["pair"], row["cells"]) == (name, 64)]
    show.bars(axis, {row["variant"]: row["IoU"] for row in rows}, label=f"{name}: IoU of 64 cells", form=".3f")
plt.show()
for row in own.tables["seeds"].records():
    if row["gain"] is not None:
        print(f"levels at depths gain {show.interval(row['gain'], '+.3f')} over {row['variant']}, paired by seed")

# %% [markdown]
# ## When not to use it
#
# - **For disparity maps.** Their error counts in pixels, and wants even steps.
# - **Without calibration.** The candidates follow from focal length and baseline; a baseline in millimetres is refused.
