# %% [markdown]
# # Octree occupancy decoding
#
# A decoder that grows a grid of voxels, 8 along a side, then 16, 32, 64, computes eight times as many cells at every
# level, and nearly all of them are free. **Octree occupancy decoding** gives every level a head, and refines only
# cells that are thought occupied (Octree Generating Networks, Tatarchenko et al., arXiv 1703.09438; StereoVoxelNet,
# Li et al., arXiv 2209.08459). Here it stands alone: any coarse-to-fine decoder can be built of it.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.accounting.count import count
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.data import stereo
from reference_impls.techniques.octree_occupancy_decoding import (
    OctreeDecoder,
    OctreeOccupancyDecoding,
    decode,
    decode_masked,
    grids,
)
from reference_impls.techniques.stereo_occupancy_voxels.grid import levels, voxelise

show.style()
scenes = show.committed("octree-occupancy-decoding", "scenes-threshold")
alone = {size: show.committed("octree-occupancy-decoding", f"decoder-{size}") for size in (64, 128, 256)}

# %% [markdown]
# ## Only kept cells have children
#
# Two real pairs as trees, Motorcycle (Middlebury 2014) and Aloe (Middlebury 2006, where its asset is in the cache):
# cells that hold a surface are split, the others are not. Seen from above. Then, what is computed at each level of
# Motorcycle when the gates are right, against a full grid.

# %%
pairs = stereo.at_hand()
cubes = {"Motorcycle": benchmark.CLOSE, "Aloe": benchmark.DEEP}
trees = {pair.name: levels(voxelise(pair.points(), cubes[pair.name])) for pair in pairs}
figure, axes = plt.subplots(len(trees), 4, figsize=(10, 2.6 * len(trees)), squeeze=False)
for row, (name, tree) in zip(axes, trees.items(), strict=True):
    for axis, cells in zip(row, tree, strict=True):
        axis.imshow(cells.any(1).T.flip(0), cmap="Blues", interpolation="nearest")
        axis.set_title(f"{name}, {len(cells)} along a side: {cells.float().mean():.2%}", fontsize=8)
        axis.set(xticks=[], yticks=[])
plt.show()
truth = trees["Motorcycle"]
torch.manual_seed(0)
decoder, x = OctreeDecoder((32, 16, 8, 4)).eval(), torch.randn(1, 32, 8, 8, 8)
gates = [cells[None] for cells in truth]
with torch.no_grad():
    for one in decode(decoder, x, 1.0, truth=gates):
        full = one.cells.size**3
        print(f"{one.cells.size:>3} along a side: {len(one.cells.index):>6} of {full:>6} computed, {one.kept:>5} kept")

# %% [markdown]
# ## Equal, and really skipped
#
# Dense layers that see 0 outside live cells give the same numbers. The rows that are multiplied are 8 for each kept
# cell: a mask over dense tensors would save none of them.

# %%
with torch.no_grad(), count() as tally:
    sparse = grids(decoder, decode(decoder, x, 1.0, truth=gates))
with torch.no_grad(), count() as dense:
    masked = decode_masked(decoder, x, 1.0, truth=gates)
print(f"largest difference {max(float((a - b).abs().max()) for a, b in zip(sparse, masked, strict=True)):.1e}")
print(f"{tally.macs / 1e6:.1f} of {dense.macs / 1e6:.1f} M MACs")
with OctreeOccupancyDecoding().apply(decoder, threshold=0.5) as handle, torch.no_grad():
    decoder(x)
    print("by its own gates, random weights:", handle.trace[""])

# %% [markdown]
# ## What it saves grows with the grid
#
# The whole decoder, heads, look-up of neighbours and writing of grids included, with a given share of the cells of
# every gated level kept. The dotted lines are the shares of cells with a surface at 64 along a side. At 256 the dense
# decoder makes its grids in slabs, for in one piece it would fill more than 8 GB.

# %%
figure, axis = plt.subplots(figsize=(5.5, 3))
for size, record in alone.items():
    shares = [float(p.knobs["kept"]) for p in record.points]
    faster = [p.speed_up for p in record.points]
    axis.errorbar(
        shares, [f.value for f in faster], show.ends(faster), marker="o", capsize=2, label=f"{size} along a side"
    )
axis.axhline(1, color="0.45", linewidth=1)
for name, tree in trees.items():
    share = float(tree[-1].float().mean())
    axis.axvline(share, color="0.6", linewidth=1, linestyle=":")
    axis.annotate(name, (share, 1.15), fontsize=7, rotation=90, ha="right", color="0.4")
axis.set(xscale="log", yscale="log", xlabel="share of cells kept at every gated level", ylabel="times as fast as dense")
axis.legend()
plt.show()
for record in alone.values():
    show.latency(record)

# %% [markdown]
# ## In a trained network
#
# A small stereo network on made scenes. A low threshold keeps more cells: it costs more, and misses less. As many
# cells drawn at random are no substitute. Every cell, computed by a network that was trained on live cells only, is
# worse: training and use must prune alike.

# %%
show.trade_offs(scenes)

# %% [markdown]
# A miss is final: what is lost at 8 cells along a side has no children. So the recall of each level, over the
# threshold, in made scenes and in the real pairs, where surfaces are the truth and the network has never seen a photo:

# %%
made = [{"pair": "made scenes", **row} for row in scenes.tables["levels"].records()]
rows = [row for row in made + scenes.tables["real pairs"].records() if row["variant"].startswith("threshold")]
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, name in zip(axes, ("made scenes", "Motorcycle", "Aloe"), strict=True):
    for size in (8, 16, 32, 64):
        found = [row for row in rows if row["pair"] == name and row["cells"] == size]
        cuts = [float(row["variant"].split()[1]) for row in found]
        axis.plot(cuts, [row["recall"].value for row in found], marker="o", label=f"{size} along a side")
    axis.set(title=name, xlabel="threshold", ylim=(0, 1))
axes[0].set(ylabel="share of occupied cells found")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Dense scenes.** With all cells kept the look-up of neighbours is on top.
# - **Kernels larger than their stride.** Then a child has several parents, and leaving one out changes its neighbours.
# - **Decoders that are a small part of the network**, as the published one is at 64 cells.
