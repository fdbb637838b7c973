# %% [markdown]
# # Themis
#
# A patch that somebody wears can hide people from a detector in live video. **Themis** (arXiv 2208.09195) finds the
# small region in which a patch works and takes its effect away, and leaves redundant computation out so that this runs
# in real time. Its full text could not be read, and its hardware is not here: what is composed is a reconstruction from
# the abstract, every threshold is the atlas's own, and no number is the paper's.
#
# Three techniques of the atlas make the system: *adversarial patch region removal* proposes windows and verifies them,
# *incremental region inference* makes that cheap, and *key frame feature propagation* answers between key frames.

# %%
import base64
import io

import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.detection_stream.streams import followed
from reference_impls.benchmarks.detection_stream.tasks import frames_of
from reference_impls.models.yolov3_tiny import yolov3_tiny
from reference_impls.techniques.themis import Themis

show.style()
clean, worn = (show.committed("themis", name) for name in ("clean-vtest", "worn-vtest"))
arrays = show.pictures(worn)

# %% [markdown]
# ## Before and after
#
# People on a square, as boxes, in eight successive frames; one of them wears a patch. Left what the detector finds
# alone, right what Themis finds. Dashed is who is lost, filled the window that Themis removed at a key frame. Of all
# rows of frames it is the one in which the detector alone loses most, whatever Themis does in it.


# %%
def png(pixels):
    """A picture (3, n, n) in [0, 1] as the address of an image."""
    with io.BytesIO() as file:
        plt.imsave(file, pixels.transpose(1, 2, 0), format="png")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def overlap(a, b):
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = sides.clip(0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def rectangle(box, look):
    x, y, x_end, y_end = (float(v) for v in box)
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{x_end - x:.0f}" height="{y_end - y:.0f}" {look}/>'


def panel(t, name):
    """What one of the two finds in a frame, and how many it loses."""
    found, truth = ([box for box in arrays[key][t] if box.any()] for key in (name, "truth"))
    lost = [box for box in truth if not any(overlap(box, other) >= 0.5 for other in found)]
    (y, x), side = arrays["places"][t], arrays["patch"].shape[-1]
    drawn = [rectangle(box, 'fill="none" stroke="var(--atlas-technique-1)" stroke-width="2.5"') for box in found]
    drawn += [
        rectangle(box, 'fill="none" stroke="var(--atlas-bad)" stroke-width="3" stroke-dasharray="7 5"') for box in lost
    ]
    drawn.append(f'<image x="{x:.0f}" y="{y:.0f}" width="{side}" height="{side}" href="{patch}"/>')
    if name == "themis":
        drawn += [
            rectangle((x, y, x + 24, y + 24), 'fill="var(--atlas-muted)" opacity="0.7"')
            for y, x in arrays["removed"][t]
            if x or y
        ]
    return "".join(drawn), len(lost)


def drawing(t):
    parts = []
    for left, (name, title) in zip((0, 790), (("alone", "the detector alone"), ("themis", "Themis")), strict=True):
        inside, lost = panel(t, name)
        frame = rectangle((0, 0, 768, 576), 'fill="none" stroke="currentColor" opacity="0.4"')
        words = f'<text y="-12" font-size="26" fill="currentColor">{title}, frame {t + 1}: {lost} lost</text>'
        parts.append(f'<g transform="translate({left + 5} 45)">{frame}{inside}{words}</g>')
    return "".join(parts)


patch = png(arrays["patch"])
label = "Boxes of the detector alone and of Themis on people of whom one wears a patch, frame by frame"
show.Flipbook([drawing(t) for t in range(len(arrays["places"]))], (1570, 630), label)

# %% [markdown]
# ## What is won back, and how late
#
# Only frames count in which the patch costs a detection that grey, random and shuffled pixels do not cost.

# %%
print(worn.data)
for row in worn.tables["streams"].records():
    print(f"{row['form']}: F1 {show.interval(row['F1'])}, won back {show.interval(row['won back'], '.0%')}")
for row in worn.tables["exposure"].records():
    met = (
        "never"
        if row["mean frames"] is None
        else f"after {row['mean frames']:.1f} frames, at most {row['most frames']}"
    )
    print(f"appears in frame {row['appears']}: {row['removed']} of {row['patches']} patches are removed, {met}")

# %% [markdown]
# ## What it costs when nobody attacks

# %%
rows = clean.tables["frames"].records()
figure, axis = plt.subplots(figsize=(8, 2.8))
show.bars(
    axis,
    {f"{r['clip']}: {r['form']}": r["time"] for r in rows if r["time"].value != 1},
    label="mean time of a frame over the detector's",
    form=".2f",
)
axis.axvline(1, color="black", linewidth=0.8)
plt.show()
for row in rows:
    print(
        f"{row['clip']}, {row['form']}: {row['MACs']:.2f} x the MACs, {row['windows']:.2f} windows a frame (P99 "
        f"{row['P99 windows']:.0f}), P99 - P50 {row['P99 - P50 ms']:.0f} ms, F1 {show.interval(row['F1'])}"
    )

# %% [markdown]
# On a moving camera (*tree*) and in a moving picture (*bikes*) windows change all the time, so that few are remembered.
# Key frames carry the whole defence: the mean falls, the worst frame does not.

# %%
show.trade_offs(clean)

# %% [markdown]
# ## Use it
#
# `apply` puts the system in the place of a detector: a module with `decode(result, threshold)`. It takes the frames of
# a stream one by one, and `reset` begins another stream.

# %%
detector = yolov3_tiny().folded()
with Themis().apply(detector) as handle:
    found = followed(handle.target, frames_of("bikes", 4))
    print("boxes:", [len(one.scores) for one in found], "key frames:", handle.trace["key"])
    print("windows verified:", handle.trace["windows"], "removed:", handle.trace["removed"])

# %% [markdown]
# ## When not to use it
#
# - Attackers who know the defence: *adversarial patch region removal* has an adaptive attack, which wins.
# - Decisions on single frames that must not come late.
# - Small frames, or a camera that moves.
