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
# # Delta convolution
#
# A camera sends the same scene again and again. **DeltaCNN** (arXiv 2203.03996), after **CBinfer** (arXiv 1704.04313),
# follows such a stream through the whole network: a convolution is linear but for its bias, so its output moves by the
# convolution of what its input moved. Only positions that changed are sent from layer to layer.
#
# This notebook follows a real clip through EfficientNet-Lite0, and then reads the full experiments from their records.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.record import Record
from reference_impls.data import video
from reference_impls.experiments.delta_convolution import run_stream
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.redundancy.temporal_similarity import changed_tiles, temporal_similarity
from reference_impls.techniques.delta_convolution import DeltaConvolution

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "delta-convolution"
clips, large_clips = (
    Record.model_validate_json((results / f"efficientnet-clips{size}.json").read_text()) for size in ("", "-768")
)
layers = [
    Record.model_validate_json((results / f"convolution-{name}.json").read_text())
    for name in ("64x56", "64x112", "256x56")
]
plt.rcParams.update({"figure.figsize": (9, 3.4), "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The idea in one picture
#
# Two frames of a street, and the 8 x 8 tiles in which some value moved by more than 0.3 standard deviations.

# %%
clip = video.clip("bikes", 8, (128, 256))
frames = list(normalise(clip).split(1))
limit = 0.3 * frames[0].std().item()
mask = changed_tiles(frames[3], frames[4], tile=8, threshold=limit)[0]
figure, axes = plt.subplots(1, 3, figsize=(9, 2.1))
shade = mask.repeat_interleave(8, 0).repeat_interleave(8, 1).float()
for axis, picture, title in (
    (axes[0], clip[3], "frame 3"),
    (axes[1], clip[4], "frame 4"),
    (axes[2], clip[4] * (0.25 + 0.75 * shade), f"{mask.float().mean():.0%} of the tiles changed"),
):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(title, fontsize=9)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## How far a change travels
#
# Every layer sends the positions that moved above its threshold. A convolution widens a change by half a kernel, so
# deep layers are busy although the picture is mostly still. The share of each map that was computed, after the first
# frame:

# %%
net = efficientnet_lite0()
dense = run_stream(net, frames)
figure, axis = plt.subplots()
for threshold in (0.1, 0.3, 0.8):
    with DeltaConvolution().apply(net, threshold=threshold, tile=4, min_profitable=0.0) as handle:
        got = run_stream(handle.target, frames)
        found = handle.trace["layers"].values()
        saved = DeltaConvolution().saving(net, frames, handle.trace)
    share = [min(1, np.mean(layer["computed"][1:]) / layer["positions"]) for layer in found]
    cosine = torch.cosine_similarity(got, dense)[1:].min()
    axis.plot(share, label=f"threshold {threshold}: smallest cosine of the logits {cosine:.3f}")
axis.set(xlabel="layer, from the frame to the head", ylabel="share of the map computed", ylim=(0, 1.05))
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## How much of the stream is redundant
#
# The measure is the share of tiles that stay as they were. White noise measures 0. The full experiment compares a fixed
# camera (`vtest`) with a moving one (`tree`). A single shift of the whole picture does not bring the moving one back.

# %%
print(f"bikes: {temporal_similarity(frames).value:.3f}")
for name, value in (clips.redundancy.where | clips.redundancy.null).items():
    print(f"{name}: {value:.3f}")

# %% [markdown]
# ## What it costs, and what it saves
#
# Agreement with the dense network, against MACs and against wall-clock of one CPU thread.


# %%
def draw(record: Record) -> None:
    """Quality against MACs and time, the controls included."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(9, 3.8))
    measures = (lambda variant: variant.macs / 1e6, lambda variant: variant.wall_ms.median)
    for axis, x in zip(axes, measures, strict=True):
        points = sorted(record.points, key=lambda p: p.knobs["threshold"])
        axis.plot([x(p) for p in points], [p.quality.value for p in points], "o-", label="delta convolution")
        for p in points:
            axis.annotate(f"{p.knobs['threshold']:g}", (x(p), p.quality.value), fontsize=7, xytext=(3, 4),
                          textcoords="offset points")  # fmt: skip
        for control, marker in zip(record.controls, ("D", "x", "v", "P"), strict=False):
            axis.plot([x(p) for p in control.points], [p.quality.value for p in control.points], marker,
                      color="gray", label=control.name)  # fmt: skip
        axis.plot(x(record.baseline), record.baseline.quality.value, "k*", markersize=11, label="dense")
        axis.set_xlim(left=0)
    axes[0].set(xlabel="million MACs a frame", ylabel="cosine of the logits")
    axes[1].set(xlabel="wall-clock a frame (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.84))
    plt.show()


draw(clips)

# %% [markdown]
# At this resolution, 384 x 288, MACs fall and time hardly does: most of the network works on maps so small that
# moving data takes as long as computing. The camera's own resolution has four times the pixels:

# %%
draw(large_clips)
for record in (clips, large_clips):
    print(record.title)
    for point in record.points:
        threshold = point.knobs["threshold"]
        ratio, low, high = record.extra[f"speed_up value {threshold:g}"]
        share = point.macs / record.baseline.macs
        print(
            f"   threshold {threshold:<5g}{share:5.0%} of the MACs, cosine {point.quality.value:.3f},"
            f" {ratio:.2f} times as fast [{low:.2f}, {high:.2f}]"
        )

# %% [markdown]
# Read the controls before believing the curve:
#
# - *other clip*: with a moving camera hardly any operation is saved, and looking for changes costs time.
# - *held results*: run the dense network on every second or fourth frame and repeat its answer. For a label of the
#   whole picture, that is hard to beat. Delta convolution answers every frame, and moving things appear in place.
# - *differences*: the paper's form. Equal results and MACs, more memory traffic.
# - *shuffled frames*: even in random order the frames of a fixed camera share their background.
#
# ## One convolution at a time
#
# EfficientNet has few MACs for each value that it moves. Ordinary 3 x 3 convolutions have many, and there the
# tiles pay. A share of the positions changes, in one blob. A ratio above 1 is faster than the best native dense kernel.

# %%
figure, axis = plt.subplots()
for record in layers:
    share = record.extra["changed"]
    ratios = np.array([record.extra[f"speed_up blob {s} 8 value"] for s in share])
    spread = np.abs(ratios[:, 1:] - ratios[:, :1]).T
    axis.errorbar(share, ratios[:, 0], yerr=spread, marker="o", capsize=2, label=record.title)
axis.axhline(1, color="black", linewidth=0.7)
axis.set(xlabel="share of positions that change, in one blob", ylabel="speed-up", yscale="log")
axis.minorticks_off()
axis.set_yticks([1, 2, 3, 4, 6], ["1x", "2x", "3x", "4x", "6x"])
axis.legend(frameon=False, fontsize=8)
plt.show()
for record in layers:
    print(record.title)
    for label in ("blob 0.1 8 value", "blob 0.1 8 delta", "scattered value", "scattered, no fallback"):
        ratio, low, high = record.extra[f"speed_up {label}"]
        print(f"   {label:<24} {ratio:5.2f} [{low:.2f}, {high:.2f}]")

# %% [markdown]
# 10 % of positions scattered at random reach every tile: nothing is left to save. Without the fallback that costs a
# third of the speed; with it the layer soon gives up looking and is nearly as fast as the dense one.
#
# ## When not to use it
#
# - The camera moves, or the light flickers: measure the temporal similarity first.
# - The network is small, deep and depthwise, or the frames are small: moving data costs more than is saved.
# - One answer for the whole picture is wanted and may be a few frames old: hold the last result instead.
