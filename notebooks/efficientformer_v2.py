# %% [markdown]
# # EfficientFormerV2
#
# **EfficientFormerV2** (Li et al., arXiv 2212.08059) shrinks EfficientFormer to the size of MobileNetV2. Depthwise
# convolutions take the place of pooling, and attention moves up to maps of stride 16, where it would be expensive if it
# ran there; it runs on half the resolution, and its result is interpolated. The bet on the data: neighbours repeat,
# and what attention adds is smooth.

# %%

import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.accounting.closed_form import closed_form
from reference_impls.data import images
from reference_impls.models.vit import imagenet_normalise
from reference_impls.techniques.efficientformer_v2 import VARIANTS, EfficientFormerV2Technique, build
from reference_impls.techniques.stride_attention import MapAttention

show.style()

# %% [markdown]
# ## Where the MACs go
#
# Mixing by attention takes a fifth to a quarter of the MACs, although all of it runs on 49 tokens. These are closed
# forms; tests hold them equal to what the counter sees.

# %%
with torch.device("meta"):
    show.shares({variant.upper(): build(config).parts((224, 224)) for variant, config in VARIANTS.items()})

# %% [markdown]
# ## What the stride of attention is worth
#
# One attention block of S0 at stride 16, on a map of 14 x 14: with a stride of 2, products between queries and keys
# fall sixteen-fold, and the block's MACs to less than a third. Published, the projection after attention runs on
# the interpolated map, where three of four pixels are interpolated ones; before the interpolation it would cost a
# quarter (the activation in between makes it another network, to be trained anew).

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.2), sharey=True)
for name, block, network in (
    ("stride 1", {}, {"strides": (1, 1, 1, 1)}),
    ("stride 2, as published", {"stride": 2}, {}),
    ("stride 2, projected first", {"stride": 2, "project_first": True}, {"project_first": True}),
):
    with torch.device("meta"):
        whole = build("s0", **network).macs((224, 224))
    one = closed_form(MapAttention(96, (14, 14), **block), (96, 14, 14)).macs
    for axis, macs, colour in ((axes[0], one, "tab:orange"), (axes[1], whole, "tab:blue")):
        axis.barh(name, macs / 1e6, color=colour)
        axis.text(macs / 1e6, name, f" {macs / 1e6:.1f}", va="center", fontsize=8)
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
# statistics of batch norm, which the sizes share, then fit none of them well, and are worth recalibrating for the
# size that is deployed. The network that saw one size they hardly help.

# %%
records = [show.committed("efficientformer-v2", f"{data}-resolution") for data in ("digits", "fashion")]
show.beside(records, "trained at all sizes", tolerance=0.0)

# %% [markdown]
# This is what the technique applies, and undoes:

# %%
technique = EfficientFormerV2Technique()
model = build("s0").eval()
with torch.no_grad(), technique.apply(model, scale=0.5) as handle:
    logits, seen = handle.target(x), handle.trace
    print(f"seen at {seen['size']} with {seen['macs']:,} MACs; logits {tuple(logits.shape)}")
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
show.times(show.committed("efficientformer-v2", "latency-224"), {"EfficientFormer": "EF", "MobileNetV2": "MNv2"})

# %% [markdown]
# ## When not to use it
#
# - **On a CPU, for speed.** Depthwise convolutions, small attention maps and interpolation move much memory for few
#   MACs.
# - **At other resolutions, untrained.** The biases stretch; what the network knows of scale does not.
# - **For the published accuracy, from random weights.** It was reached with a teacher and 300 or 450 epochs.
