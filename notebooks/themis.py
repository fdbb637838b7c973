# %% [markdown]
# # Themis
#
# A small printed patch can make a detector blind to whoever wears it. **Themis** (arXiv 2208.09195) finds such patches
# in live video and takes their effect away, and leaves out computation that repeats, so that it keeps up with the
# camera. Its full text could not be read. What is composed here is a **reconstruction from the abstract** and from the
# authors' earlier work; every threshold and every number is the atlas's own.
#
# Three techniques make the system: *adversarial patch region removal* decides, *incremental region inference* makes its
# tests cheap, and *key frame feature propagation*, in the form that moves boxes, answers for the frames in between.

# %%
import base64
import io

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.benchmarks.detection_stream.streams import fast
from reference_impls.models.yolov3_tiny import detections, yolov3_tiny
from reference_impls.techniques.adversarial_patch_region_removal import fill
from reference_impls.techniques.themis import Themis

show.style()
clean, worn = (show.committed("themis", name) for name in ("clean-vtest", "worn-vtest"))


def form(row):
    """A short name of a form in a table."""
    name = row.get("form")
    return "Themis" if name == "technique" else "defence in every frame" if "every frame" in name else name


# %% [markdown]
# ## Before and after
#
# A cyclist waits before a camera. From the fourth frame on they wear a patch, stored with the atlas, that was optimised
# to hide them. One line puts the system in the detector's place; it is told neither that there is a patch nor where. A
# patch that comes between two key frames is met at the next key frame, and until then the boxes just move.

# %%
detector = fast(yolov3_tiny())
system = Themis().apply(detector).target
patch = next(p for p in attack.stored(attack.CYCLIST) if (p.wearer, p.size) == (1, 24))
stream = [
    frame if t < 3 else attack.pasted(frame, patch.pixels, place)
    for t, (frame, place) in enumerate(zip(attack.row_of(patch.clip, patch.start), patch.places, strict=True))
]
frames = []
for t, frame in enumerate(frame.contiguous(memory_format=torch.channels_last) for frame in stream):
    with torch.no_grad():
        alone = detections(detector(frame))[0]
    defended = system(frame)
    key = system.boxes.computed[-1]
    removed = system.removed[-1] if key else ()
    frames.append((frame, alone, defended, removed, key))
    found = [f"{len(one.scores)} found" for one in (alone, defended)]
    what = f"key frame, {len(removed)} windows removed" if key else "boxes move"
    print(f"frame {t}: the detector alone {found[0]}, Themis {found[1]} ({what})")


# %%
def picture(frame, found, x, title, removed=()):
    """A frame in SVG, cut to the cyclist, with its boxes; removed windows are filled, as the detector sees them."""
    frame = frame.clone()
    for place in removed:
        frame[..., place[0] : place[0] + SIDE, place[1] : place[1] + SIDE] = fill(frame, place, (SIDE, SIDE), "inpaint")
    file = io.BytesIO()
    cut = (frame[0, :, :, LEFT : LEFT + WIDTH].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()
    plt.imsave(file, cut, format="jpeg", pil_kwargs={"quality": 60})
    code = base64.b64encode(file.getvalue()).decode()
    rectangle = '<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="{}" stroke-width="3"{}/>'
    drawn = (
        f'<image href="data:image/jpeg;base64,{code}" x="{x}" y="{HEAD}" width="{WIDTH}" height="{frame.shape[2]}"/>'
    )
    for a, b, c, d in found.boxes.clamp(min=0).tolist():
        a, c = (min(max(v - LEFT, 2), WIDTH - 2) for v in (a, c))
        b, d = (min(max(v, 2), frame.shape[2] - 2) for v in (b, d))
        drawn += rectangle.format(f"{x + a:.0f}", f"{HEAD + b:.0f}", f"{c - a:.0f}", f"{d - b:.0f}", "#0f0", "")
    for top, left in removed:
        drawn += rectangle.format(x + left - LEFT, HEAD + top, SIDE, SIDE, "#f80", ' stroke-dasharray="6 4"')
    return drawn + f'<text x="{x}" y="20" font-size="21" fill="currentColor">{title}</text>'


LEFT, WIDTH, SIDE, HEAD = 280, 320, 24, 28
drawings = [
    picture(frame, alone, 0, f"frame {t}: the detector alone")
    + picture(frame, defended, WIDTH + 10, "with Themis" + (", key frame" if key else ""), removed)
    for t, (frame, alone, defended, removed, key) in enumerate(frames)
]
still = next(t for t, (*_, removed, _) in enumerate(frames) if removed)
show.Flipbook(
    drawings,
    (2 * WIDTH + 10, HEAD + 258),
    "Eight frames of a cyclist, with a patch from the fourth on: what the detector alone finds, and what Themis finds",
    still=still,
)

# %% [markdown]
# Green is what is found; a dashed window was filled before the detector looked. In print one frame stands.
#
# ## On a square, in two hundred frames
#
# Ten people wear patches of three sizes through seven frames each. This is the row in which the detector alone loses
# most (boxes only): dashed is what it finds without the patch, full what it finds with it.

# %%
shown = show.pictures(worn)
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharex=True, sharey=True)
lost = (shown["truth"].any(2).sum(1) - shown["alone"].any(2).sum(1)).argmax()
for axis, name, title in zip(axes, ("alone", "themis"), ("the detector alone", "with Themis"), strict=True):
    for kind, colour, line in (("truth", "C7", "--"), (name, "C0", "-")):
        for left, top, right, bottom in shown[kind][lost]:
            axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], line, color=colour)
    y, x = shown["places"][lost]
    size = shown["patch"].shape[-1]
    axis.imshow(shown["patch"].transpose(1, 2, 0), extent=(x, x + size, y + size, y), zorder=3)
    axis.set(xlim=(0, 768), ylim=(576, 0), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"frame {lost} of the row, {title}", fontsize=9)
plt.show()

# %%
print(worn.data)
print()
for row in worn.tables["streams"].records():
    back = show.interval(row["won back"], ".0%")
    print(f"{form(row):24} F1 {show.interval(row['F1'])}, AP {row['AP']:.3f}, won back {back}")

# %% [markdown]
# ## How late a patch is met
#
# A patch that appears between key frames meets no network before the next one. Some are removed later than that, or
# never: a window goes only if filling it changes what is found.

# %%
for row in worn.tables["exposure"].records():
    late = "" if row["mean frames"] is None else f", {row['mean frames']:.1f} frames late, {row['most frames']} at most"
    print(
        f"appears in frame {row['appears']}: {row['removed']} of {row['patches']} removed{late}; "
        f"somebody lost in {row['lost in']} frames until then"
    )

# %% [markdown]
# ## What it costs while nobody attacks
#
# Each frame by the detector alone, by the system, and by the defence in every frame, which remembers harmless windows
# too but moves no boxes. On a fixed camera (vtest) most windows were seen before; where the picture keeps changing
# (bikes, tree) most are new. In tree the detector finds nothing, so that clip tells of costs alone.

# %%
rows = clean.tables["frames"].records()
head = ("time", "MACs", "key", "windows", "their P99", "filled", "F1", "P50 ms", "P99 ms", "P99 - P50 ms")
print(f"{'':31}" + "".join(f"{name:>10}" for name in head[:-3]) + "".join(f"{name:>14}" for name in head[-3:]))
for row in rows:
    cells = [row["time"].value, row["MACs"], row["key frames"], row["windows"], row["P99 windows"], row["filled"]]
    texts = [f"{cell:10.2f}" for cell in (*cells, row["F1"].value)]
    texts += [f"{row[name]:14.0f}" for name in head[-3:]]
    print(f"{row['clip']}, {form(row)}".ljust(31) + "".join(texts))

# %%
clips = list(dict.fromkeys(row["clip"] for row in rows))
figure, axes = plt.subplots(len(clips), 1, figsize=(8, 1.5 * len(clips)), sharex=True)
for axis, clip in zip(axes, clips, strict=True):
    show.bars(axis, {form(row): row["time"] for row in rows if row["clip"] == clip}, form=".2f")
    axis.set_title(clip, fontsize=9, loc="left")
axes[-1].set_xlabel("mean time of a frame, of the detector's")
plt.show()

# %% [markdown]
# The worst frame is what a deadline has to be set for: a key frame with eight new windows costs a multiple of the
# detector alone, whatever the mean is.
#
# Truth in these tables is what the detector finds by itself. Against people boxed by hand, in frames without a patch:

# %%
for row in clean.tables["people"].records():
    print(f"{form(row):24} F1 {show.interval(row['F1'])}, AP {row['AP']:.3f}")

# %% [markdown]
# ## When not to use it
#
# - **Against an attacker who knows it**: see the adaptive attack in the notebook of adversarial patch region removal.
# - **Where every frame decides alone**: boxes that move are up to two frames old, and a patch has until the next key
#   frame.
# - **On a moving camera**, for its speed: there is little to reuse.
