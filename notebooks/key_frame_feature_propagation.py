# %% [markdown]
# # Key frame feature propagation
#
# **Deep Feature Flow** (arXiv 1611.07715) runs the heavy part of a network on key frames and moves its features along
# the flow to the frames in between. Here the flow is found by block matching, and nothing is trained: what does that
# do to a real detector?

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.data import video
from reference_impls.layers.motion import block_flow, luma
from reference_impls.models.yolov3_tiny import detections, stretched, yolov3_tiny
from reference_impls.techniques.key_frame_feature_propagation import KeyFrameFeaturePropagation, KeyFrames

show.style()
record = show.committed("key-frame-feature-propagation", "detector-vtest")

# %% [markdown]
# ## Motion, block by block
#
# Two frames of a street, three frames apart, and where each moving block of 16 x 16 pixels came from.

# %%
clip = stretched(video.clip("bikes", 8))
first, later = clip[:1], clip[3:4]
flow, left = block_flow(luma(first), luma(later), still=0.02)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.4))
axes[0].imshow(later[0].permute(1, 2, 0))
y, x = (16 * torch.arange(n) + 8 for n in flow.shape[1:])
axes[0].quiver(x, y, -2 * flow[1], 2 * flow[0], color="yellow", angles="uv", scale_units="xy", scale=0.5, width=0.003)
axes[1].imshow(left, cmap="magma")
for axis, title in zip(axes, ("motion since the key frame", "what it does not explain"), strict=True):
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Key frames come by themselves at a cut
#
# Three clips one after the other: the first frame of each is a key frame, whatever the interval.

# %%
keys = KeyFrames(interval=100, cut=0.3)
scenes = [frame for name in ("bikes", "carphone", "bigbuckbunny") for frame in video.clip(name, 3, (144, 176)).split(1)]
print(["key" if keys.next(frame) is None else "moved" for frame in scenes])

# %% [markdown]
# ## A detector on key frames
#
# Every second frame of the street through YOLOv3-tiny as a whole, the others from moved features.

# %%
model = yolov3_tiny().folded()
with KeyFrameFeaturePropagation().apply(model, interval=2) as handle:
    for t, frame in enumerate(clip[:4].split(1)):
        moved, whole = (detections(net(frame), 0.3)[0] for net in (handle.target, torch.no_grad()(model)))
        print(f"frame {t}: {len(moved.scores)} detections of at least 0.3, {len(whole.scores)} by the whole network")

# %% [markdown]
# ## On a fixed camera
#
# The full experiment follows people on a square. Truth is what the detector finds frame by frame, so 1 means that
# nothing changed. A head reads badly what was averaged from two positions: moved features are *worse* than features
# moved by whole positions. The paper says as much of flow without training. Boxes moved along the same flow do better.
# Who can wait a few frames for an answer does best: boxes between two key frames come from both of them.

# %%
show.trade_offs(record)
for name, points in show.series(record).items():
    for point in points:
        faster = show.interval(point.speed_up, ".2f")
        print(f"{name}, interval {point.knobs['interval']}: F1 {show.interval(point.quality)}, {faster} x as fast")

# %% [markdown]
# Most of what is lost has nothing to do with motion: scores near the threshold cross it from one frame to the next. A
# key frame that comes sooner when a score is near the threshold wins much of it back.
#
# ## When not to use it
#
# - A hard limit on every single frame: key frames keep the full cost. The 99th percentile tells:

# %%
for row in record.tables["clips"].records():
    if row["clip"] == "vtest":
        print(f"{row['series']}, interval {row['interval']}: P99 - P50 {row['P99 - P50 ms']:.0f} ms")
