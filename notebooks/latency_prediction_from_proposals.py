# %% [markdown]
# # Latency prediction from proposals
#
# A detector in two stages first proposes regions, then decides on each. What a frame costs follows from how many
# regions there are, and that is known **before** the second stage has spent anything on them. Prophet (RTSS 2022)
# predicts the time of perception networks from this count. Here the prediction also decides: under a deadline the
# second stage gets the best proposals, as many as fit.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.accounting.count import count
from reference_impls.data import video
from reference_impls.models import mtcnn
from reference_impls.techniques.latency_prediction_from_proposals import LatencyPrediction, affordable, calibrate
from reference_impls.variation import accuracy

show.style()
record = show.committed("latency-prediction-from-proposals", "changing-scenes")
detector = mtcnn.pretrained()

# %% [markdown]
# ## The idea in one picture
#
# MTCNN is a cascade that finds faces. On frames of three clips, its multiply-accumulates against the windows that its
# first network proposes. A line fitted on every other frame predicts the rest.

# %%
clips = [video.clip(*clip) for clip in (("carphone", 8, (120, 160)), ("bikes", 8, (120, 160), 60),
                                       ("bigbuckbunny", 8, (120, 160), 40))]  # fmt: skip
frames = [clip[n : n + 1] for n in range(8) for clip in clips]


def macs(frame):
    """Millions of MACs of the detector on a frame."""
    with torch.no_grad(), count() as tally:
        detector(frame)
    return tally.macs / 1e6


every = {id(frame): macs(frame) for frame in frames}
known, tried = frames[::2], frames[1::2]
fit = calibrate(detector, known, lambda frame: every[id(frame)])
with torch.no_grad():
    proposals = [len(detector.propose(frame)) for frame in tried]
costs = [every[id(frame)] for frame in tried]
predicted = [fit({"proposals": n}) for n in proposals]
figure, axis = plt.subplots(figsize=(6, 3.6))
axis.plot(proposals, costs, "o", label="frames that were not in the fit")
axis.plot(sorted(proposals), sorted(predicted), label=f"{fit.base:.1f} + {fit.each['proposals']:.2f} n")
axis.set(xlabel="proposals n", ylabel="million MACs of a frame")
axis.legend()
plt.show()
print(f"accuracy on those frames: from proposals {accuracy(predicted, costs):.3f}, "
      f"by the mean {accuracy([np.mean([every[id(f)] for f in known])] * len(costs), costs):.3f}")  # fmt: skip

# %% [markdown]
# The points leave the line because the cascade has a **third** network: it looks at what the second lets through, which
# the number of proposals does not tell.
#
# ## A deadline
#
# A deadline of so many operations leaves room for some proposals. The best ones go on.

# %%
deadline = float(np.median(costs))
base, each = max(fit.base, 0.0), fit.each["proposals"]
print(f"a deadline of {deadline:.1f} million MACs has room for {affordable(deadline, base, each)} proposals")
frame = max(frames, key=lambda f: every[id(f)])
with LatencyPrediction().apply(detector, deadline=deadline, base=base, each=each) as handle, torch.no_grad():
    found = handle.target(frame)
    print("proposed and kept:", handle.trace["proposed"], handle.trace["kept"])
with torch.no_grad():
    dense = detector(frame)
    windows = detector.propose(frame)
figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for axis, boxes, title in zip(axes, (windows, found.boxes), ("proposals", "faces, within the deadline"), strict=True):
    axis.imshow(frame[0].permute(1, 2, 0))
    axis.set(title=title, xticks=[], yticks=[])
    for x1, y1, x2, y2, _ in boxes.tolist():
        axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="tab:orange"))
plt.show()
print(f"faces: {len(dense.boxes)} without a deadline, {len(found.boxes)} with it")

# %% [markdown]
# ## How much is redundant
#
# Most proposals are rejected by the later networks. Their share is the measure; a frame without proposals has none.

# %%
figure, axis = plt.subplots(figsize=(6, 1.8))
show.bars(axis, {record.title: record.redundancy, **record.redundancy.null}, label=record.redundancy.measure)
plt.show()

# %% [markdown]
# ## What it saves, and what it loses
#
# The full experiment, on frames that change scene every time. In grey, as many proposals drawn at random: the order of
# the first network is worth the distance to it.

# %%
show.trade_offs(record)
for point in record.points:
    print(f"deadline {point.knobs['deadline']:g}: {1 - point.macs / record.baseline.macs:.1%} fewer MACs, "
          f"F1 {show.interval(point.quality, '.3f')}")  # fmt: skip

# %% [markdown]
# ## Is the prediction good for anything?
#
# Four predictors say which frames will be late, and those are cut. *Late* counts the frames that missed the deadline
# all the same; *in vain* those that were cut although they would have been in time.

# %%
print(" deadline  predictor            accuracy   late   cut   in vain   F1")
for row in record.tables["predictors"].records():
    right = "     -" if row["accuracy"] is None else f"{row['accuracy']:6.3f}"
    print(f"{row['deadline']:9g}  {row['predictor']:20} {right} {row['late frames']:8} {row['cut frames']:5} "
          f"{row['cut in vain']:9}   {show.interval(row['F1'], '.3f')}")  # fmt: skip

# %% [markdown]
# Not for much, on this network. The count tells the cost better than the mean and the last frame do. But whoever cuts
# every frame to so many proposals is late no more often; and where few frames are late, none of them is saved. They are
# late by what the third network does with the best proposals, and those are kept.
#
# ## When not to use it
#
# - **A fixed number of proposals may do.** It needs no fit, and its time is constant.
# - **The wall clock may follow something else.** On a machine that others share, time follows the run queue, and no
#   count inside the network tells it: see the notebook on the variation of inference time.
