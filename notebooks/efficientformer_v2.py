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
# # EfficientFormerV2
#
# **EfficientFormerV2** (Li et al., arXiv 2212.08059) shrinks EfficientFormer to the size of MobileNetV2. Depthwise
# convolutions take the place of pooling, and attention moves up to maps of stride 16, where it would be expensive if it
# ran there; it runs on half the resolution, and its result is interpolated. The bet on the data: neighbours repeat,
# and what attention adds is smooth.
#
# This notebook shows where the MACs go, what the stride of attention is worth, how one set of weights takes other
# sizes, and what the networks cost beside MobileNetV2 on the CPU of a PC.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import reference_impls
from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.record import Record
from reference_impls.data import images
from reference_impls.models.vit import imagenet_normalise
from reference_impls.techniques.efficientformer_v2 import VARIANTS, EfficientFormerV2Technique, build
from reference_impls.techniques.stride_attention import MapAttention

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "efficientformer-v2"


def committed(scenario):
    return Record.model_validate_json((results / f"{scenario}.json").read_text())


plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %% [markdown]
# ## Where the MACs go
#
# Mixing by attention takes a fifth to a quarter of the MACs, although all of it runs on 49 tokens. The numbers
# are closed forms, and tests hold them equal, to the unit, to what the counter of the atlas sees.

# %%
figure, axis = plt.subplots(figsize=(7.5, 2.8))
colours = ("tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
for row, (variant, config) in enumerate(VARIANTS.items()):
    with torch.device("meta"):
        parts = build(config).parts((224, 224))
    whole, left = sum(part.macs for part in parts.values()), 0.0
    for (name, part), colour in zip(parts.items(), colours, strict=True):
        share = part.macs / whole
        axis.barh(row, share, left=left, color=colour, label=name if row == 0 else None)
        if share > 0.03:
            axis.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", color="white", fontsize=8)
        left += share
    print(f"{variant.upper()}: {sum(p.parameters for p in parts.values()):,} parameters, {whole:,} MACs")
axis.set(yticks=range(4), yticklabels=[v.upper() for v in VARIANTS], xlabel="share of the MACs", xlim=(0, 1))
axis.invert_yaxis()
axis.legend(frameon=False, ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.35))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What the stride of attention is worth
#
# One attention block of S0 at stride 16, on a map of 14 x 14: with a stride of 2, products between queries and keys
# fall sixteen-fold, and the block's MACs to less than a third. Published, the projection behind attention runs on
# the interpolated map, where three of four pixels are interpolated ones; in front of the interpolation it would cost a
# quarter (the activation in between makes it another network, to be trained anew).

# %%
blocks = {
    "stride 1": closed_form(MapAttention(96, (14, 14)), (96, 14, 14)),
    "stride 2, as published": closed_form(MapAttention(96, (14, 14), stride=2), (96, 14, 14)),
    "stride 2, projected first": closed_form(MapAttention(96, (14, 14), stride=2, project_first=True), (96, 14, 14)),
}
networks = {
    "stride 1": replace(VARIANTS["s0"], strides=(1, 1, 1, 1)),
    "stride 2, as published": VARIANTS["s0"],
    "stride 2, projected first": replace(VARIANTS["s0"], project_first=True),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 2.2), sharey=True)
for name, block in blocks.items():
    with torch.device("meta"):
        whole = build(networks[name]).macs((224, 224))
    for axis, value in ((axes[0], block.macs / 1e6), (axes[1], whole / 1e6)):
        axis.barh(name, value, color="tab:orange" if axis is axes[0] else "tab:blue")
        axis.text(value, name, f" {value:.1f}", va="center", fontsize=8)
axes[0].set(xlabel="million MACs, one block", xlim=(0, 125))
axes[1].set(xlabel="million MACs, S0", xlim=(0, 640))
axes[0].invert_yaxis()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## One set of weights, many sizes
#
# Images of any size in multiples of 32 are taken. Position biases are tables of distances; for a larger or smaller map
# they are stretched, distance 0 staying distance 0.

# %%
torch.manual_seed(0)
network = build("s0", features_only=True).eval()
_, photos = images.photos(224)
x = imagenet_normalise(photos[:1])
for size in ((224, 224), (160, 160), (96, 320)):
    with torch.no_grad():
        maps = network(torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True))
    print(size, "->", [tuple(y.shape[1:]) for y in maps])

# %% [markdown]
# A network that was trained on one size reads no other, even where the smaller image holds all of the detail. Below, a
# small EfficientFormerV2 on handwritten digits that were enlarged to 64 pixels, and on clothes enlarged to 96 (three
# trainings each): only when all sizes are in the training does the network make use of what the images allow. The
# statistics of batch norm, which the sizes share, then fit none of them well, and are worth estimating anew for the
# size that is deployed. The network that saw one size they hardly help.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), sharey=True)
for axis, scenario in zip(axes, ("digits-resolution", "fashion-resolution"), strict=True):
    record = committed(scenario)
    lines = [("trained at all sizes", record.points[:-1], "tab:blue", "o-")]
    lines += [
        (control.name, control.points, colour, "s--")
        for control, colour in zip(record.controls, ("tab:cyan", "tab:orange", "tab:green", "tab:olive"), strict=True)
    ]
    for name, points, colour, style in lines:
        quality = [p.quality for p in points]
        bars = [[q.value - q.low for q in quality], [q.high - q.value for q in quality]]
        cost_of = [p.macs / 1e6 for p in points]
        axis.errorbar(cost_of, [q.value for q in quality], bars, fmt=style, color=colour, capsize=3, label=name)
    base = record.baseline
    axis.plot(base.macs / 1e6, base.quality.value, "*k", markersize=10, label="one size, the largest")
    axis.set(title=record.data.partition(":")[0], xlabel="million MACs, one image", xlim=(0, None), ylim=(0, 1.05))
axes[0].set_ylabel("accuracy")
figure.tight_layout(rect=(0, 0.14, 1, 1))
figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, fontsize=8, loc="lower center", ncols=3)
plt.show()

# %% [markdown]
# This is what the technique on the contract applies, and undoes:

# %%
technique = EfficientFormerV2Technique()
model = build("s0").eval()
with torch.no_grad(), technique.apply(model, scale=0.5) as handle:
    logits = handle.target(x)
    print(
        "seen at",
        handle.trace["size"],
        "with",
        f"{handle.trace['macs']:,} MACs; logits",
        tuple(logits.shape),
    )
found = technique.measure(model, x)
print(f"{found.measure}: {found.value:.3f} of the photo; of the maps that the stages make of it:")
print({name: round(value, 2) for name, value in found.where.items()}, "(random weights)")

# %% [markdown]
# ## Beside MobileNetV2
#
# S0 has about MobileNetV2's number of parameters and a third more MACs. On one thread of this CPU it takes
# longer, both operator by operator and compiled; on an iPhone 12, its authors measured otherwise. A
# statement about speed needs the device and the compiler in it.

# %%
record = committed("latency-224")
variants = [(p.knobs["model"], p.knobs["form"], p, "tab:blue") for p in record.points]
for control in record.controls:
    variants += [
        (p.knobs["model"], p.knobs["form"], p, "tab:orange") for p in control.points if "timm" not in control.name
    ]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
for model, form, point, colour in variants:
    for axis, value in ((axes[0], point.macs / 1e9), (axes[1], point.quality.value)):
        marker = "o" if form == "compiled" else "x"
        axis.plot(value, point.wall_ms.median, marker, color=colour)
        if form == "compiled":
            label = model.replace("EfficientFormer", "EF").replace("MobileNetV2", "MNv2")
            axis.annotate(label, (value, point.wall_ms.median), xytext=(4, -9), textcoords="offset points", fontsize=8)
axes[0].set(xlabel="billion MACs", ylabel="ms for one image, one thread", xlim=(0, None), ylim=(0, None))
axes[1].set(xlabel="million parameters, deployed", xlim=(0, None))
for marker, form in (("o", "compiled"), ("x", "eager")):
    axes[1].plot([], [], marker, color="black", label=form)
axes[1].legend(frameon=False)
figure.tight_layout()
plt.show()
print(record.machine.cpu, "|", record.notes[0])
for key, (ratio, low, high) in record.extra.items():
    if key.startswith("time of EfficientFormer"):
        print(f"{key}: {ratio:.2f} (95 %: {low:.2f} to {high:.2f})")

# %% [markdown]
# ## When not to use it
#
# - **On a CPU, for speed.** Depthwise convolutions, small attention maps and interpolation move much memory for few
#   MACs.
# - **At other resolutions, untrained.** The biases stretch; what the network knows of scale does not.
# - **For the published accuracy, from random weights.** It was reached with a teacher and 300 or 450 epochs.
