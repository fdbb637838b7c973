# %% [markdown]
# # StereoVoxelNet
#
# A robot wants to know where it must not go. **StereoVoxelNet** (Li et al., arXiv 2209.08459) asks a stereo pair for
# occupied voxels directly, with no disparity map in between. Two redundancies of the data cause its saving:
# disparities in even steps sample near space more finely than voxels can hold, and most of space is free, so that a
# grid need not be refined everywhere.

# %%
import matplotlib.pyplot as plt

from reference_impls import show
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.data import stereo
from reference_impls.data.stereo_scenes import CAMERA, draw_scene, render
from reference_impls.techniques.stereo_occupancy_voxels import next_level
from reference_impls.techniques.stereo_occupancy_voxels.grid import Grid, levels, voxelise
from reference_impls.techniques.stereo_occupancy_voxels.network import VOLUMES

show.style()
scenes, paper = (show.committed("stereo-occupancy-voxels", s) for s in ("scenes", "paper-size"))

# %% [markdown]
# ## Pairs
#
# The scenes that we train on are made: boxes over a plane, whose depth and occupancy are exact. Below one of them,
# beside real pairs: Motorcycle (Middlebury 2014), and Aloe (Middlebury 2006) where its asset is in the cache. What is
# further to the left in the right image is near.

# %%
view, pairs = render(draw_scene(2)), stereo.at_hand()
made = (view.left, view.right, CAMERA.disparity(view.depth))
rows = {"made": made} | {pair.name: (pair.left, pair.right, pair.disparity) for pair in pairs}
figure, axes = plt.subplots(len(rows), 3, figsize=(9.5, 2 * len(rows)))
for row, (name, images) in zip(axes, rows.items(), strict=True):
    for axis, image, title in zip(row, images, ("left", "right", "disparity"), strict=True):
        step = -(-image.shape[-1] // 140)  # enough for a page
        small = image[..., ::step, ::step]
        axis.imshow(small.permute(1, 2, 0) if small.ndim == 3 else small, cmap="viridis", interpolation="none")
        axis.set_title(f"{name}, {title}", fontsize=8)
        axis.axis("off")
plt.show()
warped, inside = stereo.warp(view.right, made[2])
print(f"right image warped to the left: median error {(warped - view.left).abs().mean(0)[inside].median():.5f}")

# %% [markdown]
# ## How much of space is free
#
# Cells that hold a surface, at four sizes of cell. The finer the grid, the smaller their share, in the made scenes
# and in the real ones.

# %%
cubes = {"Motorcycle": benchmark.CLOSE, "Aloe": benchmark.DEEP}
real = {pair.name: levels(voxelise(pair.points(), cubes[pair.name])) for pair in pairs}
print(f"{'cells along a side':20}{'made scenes':>14}" + "".join(f"{name:>14}" for name in real))
for n, row in enumerate(scenes.tables["occupied"].records()):
    shares = [row["made scenes"].value, *(float(tree[n].float().mean()) for tree in real.values())]
    print(f"{row['cells']:<20}" + "".join(f"{share:>14.2%}" for share in shares))
figure, axes = plt.subplots(
    len(pairs), 3, figsize=(9.5, 3.6 * len(pairs)), subplot_kw={"projection": "3d"}, squeeze=False
)
figure.subplots_adjust(hspace=0.35)
for row, (name, tree) in zip(axes, real.items(), strict=True):
    for axis, cells in zip(row, tree[1:], strict=True):
        show.space(axis, {f"{len(cells)} along a side": cells.numpy()})
        axis.set_title(f"{name}, {len(cells)} along a side: {cells.float().mean():.1%}", fontsize=8)
plt.show()

# %% [markdown]
# ## Where the MACs go
#
# The published network on images of 400 x 880 pixels, with random weights. Matching at the disparities that voxels
# ask for, 12 in place of 48, saves nearly half of the MACs. The decoder is 2.4 % of the network, so that leaving free
# space out, or a coarser grid, saves next to nothing here; the page on octree decoding has grids for which that is
# otherwise.

# %%
show.latency(paper)
print({name: len(shifts) for name, shifts in VOLUMES.items()}, "levels")

# %% [markdown]
# ## Is it stereo at all?
#
# A network that has seen boxes on a plane could guess depth from one image, or draw the same cells always. Of our
# small network (the project's own, trained in minutes) the controls tell: with the left image twice, with the right
# image of another scene, trained on left images alone, with the mean occupancy of the training scenes, and empty.
# Semi-global matching, which learns nothing, gives visible surfaces, ground and all; the truth here is solid boxes.
# Then the scenes with textured boxes, and those whose boxes have one colour each, apart.

# %%
rows = {row["variant"]: row for row in scenes.tables["variants"].records()}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 1))
show.bars(axes[0], {name: row["IoU"] for name, row in rows.items()}, label=benchmark.METRIC, form=".3f")
wanted = ("stereo, occupied cells", "monocular", "left image twice", "mean occupancy")
for name in wanted:
    found = [row for row in scenes.tables["levels"].records() if row["variant"] == name]
    sizes, values = [row["cells"] for row in found], [row["IoU"] for row in found]
    axes[1].errorbar(sizes, [v.value for v in values], show.ends(values), marker="o", capsize=2, label=name)
axes[1].set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="cells along a side", ylabel="IoU")
axes[1].minorticks_off()
axes[1].legend(fontsize=7)
plt.show()
for name, row in rows.items():
    if row["gain"] is not None:
        print(f"gain over {name}: {show.interval(row['gain'], '+.3f')}; empty predictions {row['empty']:.0%}")
for row in scenes.tables["textures"].records():
    if row["cells"] == 64:
        print(f"{row['variant']}: IoU {show.interval(row['IoU'])}")

# %% [markdown]
# ## In space
#
# Turn it. What the network finds in a test scene, beside what is there.

# %%
shown = show.pictures(scenes)
show.Turnable({"found": shown["found"], "truth": shown["truth"]})

# %% [markdown]
# ## On real pairs
#
# The network has never seen a photo. Its levels follow from the camera of each pair. This is what comes out, as it
# is, against the surfaces that the pairs' disparities show; the made scene on the left.

# %%
photos = {name: one.pair.left.permute(1, 2, 0).numpy() for name, one in benchmark.real_pairs().items()}
columns = {"made": shown["left"]} | {name: photos.get(name) for name in ("Motorcycle", "Aloe")}
figure = plt.figure(figsize=(10, 4.6))
for n, (name, photo) in enumerate(columns.items(), start=1):
    if photo is not None:
        axis = figure.add_subplot(2, 3, n, title=name)
        step = -(-photo.shape[1] // 140)
        axis.imshow(photo[::step, ::step].clip(0, 1), interpolation="none")
        axis.axis("off")
    axis = figure.add_subplot(2, 3, n + 3, projection="3d")
    of = "" if name == "made" else f"{name} "
    show.space(axis, {"found": shown[f"{of}found"], "truth": shown[f"{of}truth"]})
    axis.legend(fontsize=7)
plt.show()
for row in scenes.tables["real pairs"].records():
    if row["cells"] in (8, 64):
        where = f"{row['pair']}, {row['variant']}, {row['cells']} cells along a side"
        print(f"{where:62}IoU {row['IoU'].value:.3f}, recall {row['recall'].value:.3f}")

# %% [markdown]
# ## Which level?
#
# The robot's policy: one level coarser when nothing is near, else one finer. On made scenes it reads the true grid
# here.

# %%
level, taken = 3, []
for seed in range(12):
    scene = draw_scene(seed)
    cells = levels(scene.occupied(Grid.in_front(8.0).edges()))
    taken.append(level := next_level(cells[level].float(), level))
print("levels for 12 scenes:", taken)

# %% [markdown]
# ## When not to use it
#
# - **Where depth itself is wanted**, or thin structures: a cell is occupied or not.
# - **Trained on made boxes, in the world.** The controls show that it sees stereo, not that it sees chairs.
# - **For the octree's sake at 64 cells.** The savings of the published network are in its matching.
