# %% [markdown]
# # Delta convolution
#
# A camera sends the same scene again and again. **DeltaCNN** (arXiv 2203.03996), after **CBinfer** (arXiv 1704.04313),
# follows such a stream through the whole network. A convolution is linear but for its bias, so its output moves by the
# convolution of what its input moved. Only changed positions are sent from layer to layer. This notebook follows a real
# clip through EfficientNet-Lite0, and then reads the full experiments from their records.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.benchmarks.video_stream import run_stream
from reference_impls.data import video
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.redundancy.temporal_similarity import changed_tiles, temporal_similarity
from reference_impls.techniques.delta_convolution import DeltaConvolution

show.style()
clips, large_clips = (show.committed("delta-convolution", f"efficientnet-clips{size}") for size in ("", "-768"))
layers = [show.committed("delta-convolution", f"convolution-{name}") for name in ("64x56", "64x112", "256x56")]

# %% [markdown]
# ## The idea in one picture
#
# Two frames of a street, and the 8 x 8 tiles in which some value moved by more than 0.3 standard deviations.

# %%
clip = video.clip("bikes", 8, (128, 256))
frames = list(normalise(clip).split(1))
mask = changed_tiles(frames[3], frames[4], tile=8, threshold=0.3 * frames[0].std().item())[0].float()
shaded = clip[4] * (0.25 + 0.75 * mask.repeat_interleave(8, 0).repeat_interleave(8, 1))
titles = ("frame 3", "frame 4", f"{mask.mean():.0%} of the tiles changed")
figure, axes = plt.subplots(1, 3, figsize=(9, 2.1))
for axis, title, picture in zip(axes, titles, (clip[3], clip[4], shaded), strict=True):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(title, fontsize=9)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## How far a change travels
#
# A convolution widens a change by half a kernel, so deep layers are busy although the picture is mostly still. The
# share of each feature map that was computed, after the first frame:

# %%
net, delta = efficientnet_lite0(), DeltaConvolution()
with torch.no_grad():
    dense = run_stream(net, frames)
figure, axis = plt.subplots(figsize=(9, 3.4))
for threshold in (0.1, 0.3, 0.8):
    with delta.apply(net, threshold=threshold, tile=4, min_profitable=0.0) as handle:
        cosine = torch.cosine_similarity(run_stream(handle.target, frames), dense)[1:].min()
        found = handle.trace["layers"].values()
    share = [min(1, np.mean(layer["computed"][1:]) / layer["positions"]) for layer in found]
    axis.plot(share, label=f"threshold {threshold}: smallest cosine of the logits {cosine:.3f}")
axis.set(xlabel="layer, from the frame to the head", ylabel="share of the feature map computed", ylim=(0, 1.05))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## How much of the stream is redundant
#
# The share of tiles that stay as they were, also of a fixed camera (`vtest`) and a moving one (`tree`) in the full
# experiment. Moving each frame of the latter back as a whole hardly helps.

# %%
print(f"bikes: {temporal_similarity(frames).value:.3f}")
for name, value in (clips.redundancy.where | clips.redundancy.null).items():
    print(f"{name}: {value:.3f}")

# %% [markdown]
# ## What it costs, and what it saves
#
# Agreement with the dense network against MACs and the time of one CPU thread; the thresholds rise from right to left.

# %%
show.trade_offs(clips)

# %% [markdown]
# At this resolution MACs fall and time hardly does: most of the network works on feature maps so small that moving data
# takes as long as computing. The camera's own resolution has four times the pixels:

# %%
show.trade_offs(large_clips)
for record in (clips, large_clips):
    print(record.title)
    for point in record.points:
        print(
            f"   threshold {point.knobs['threshold']:<5g}{point.macs / record.baseline.macs:5.0%} of the MACs, "
            f"cosine {point.quality.value:.3f}, {show.interval(point.speed_up, '.2f')} times as fast"
        )

# %% [markdown]
# Read the controls before believing the curve:
#
# - *other clip*: with a moving camera hardly any MACs are saved, and looking for changes costs time.
# - *held results*: the dense network on every second or fourth frame. For a label of the whole picture, that is hard
#   to beat. Delta convolution answers every frame, and moving things appear in place.
# - *differences*: the paper's form. Equal results and MACs, more memory traffic.
# - *shuffled frames*: even in random order the frames of a fixed camera share their background.
#
# ## One convolution at a time
#
# EfficientNet has few MACs for each value that it moves. Ordinary 3 x 3 convolutions have many, and there tiles pay.
# Above 1, the technique is faster than the best native dense kernel.

# %%
figure, axis = plt.subplots(figsize=(9, 3.4))
for record in layers:
    ratios = [point.speed_up for point in record.points]
    shares = [point.knobs["changed"] for point in record.points]
    axis.errorbar(shares, [r.value for r in ratios], show.ends(ratios), marker="o", capsize=2, label=record.title)
axis.axhline(1, color="black", linewidth=0.7)
axis.set(xlabel="share of positions that change, in one blob", ylabel="speed-up", yscale="log")
axis.minorticks_off()
axis.set_yticks([1, 2, 3, 4, 6], ["1x", "2x", "3x", "4x", "6x"])
axis.legend(fontsize=8)
plt.show()
for record in layers:
    print(record.title)
    for name, points in show.series(record).items():
        for point in show.select(points, changed=0.1):
            print(f"   {name}, tiles of {point.knobs['tile']}: {show.interval(point.speed_up, '.2f')} times as fast")

# %% [markdown]
# When 10 % of the positions change at random, every tile is reached, and nothing is left to save. Without the fallback
# the layer is clearly slower than the dense one; with it the layer soon gives up looking and is nearly as fast.
#
# ## When not to use it
#
# - The camera moves, or the light flickers: measure the temporal similarity first.
# - The network is small, deep and depthwise, or the frames are small: moving data costs more than is saved.
# - One answer for the whole picture is wanted and may be a few frames old: hold the last result instead.
