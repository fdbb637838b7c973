# %% [markdown]
# # EfficientFormer
#
# Can a vision transformer be as fast as MobileNet? **EfficientFormer** (Li et al., arXiv 2206.01191) says yes, on a
# phone, by trusting that neighbouring pixels repeat: near the image, a plain mean over 3 x 3 neighbours mixes them, and
# it has no parameter. Attention comes last, on 49 tokens.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.accounting.count import count
from reference_impls.data import images
from reference_impls.data.controls import uniform_noise
from reference_impls.experiments.efficientformer import NANO
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import kept_detail
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.efficientformer import VARIANTS, EfficientFormerTechnique, build

show.style()

# %% [markdown]
# ## Neighbours repeat
#
# Seven photos, sampled more and more coarsely and enlarged again: how much of their variance survives? At a stride of
# 4, where the network's first stage works, nine tenths of it do, but for one photo, which is a field of stars. Of white
# noise, next to nothing is left: there, neighbours tell nothing of one another.

# %%
names, photos = images.photos(224)
noise = uniform_noise(photos)
strides = (1, 2, 4, 8, 16, 32)
figure, axis = plt.subplots(figsize=(6.5, 3.2))
for name, x, colour in (("photos", photos, "tab:blue"), ("white noise", noise, "tab:gray")):
    kept = torch.stack([kept_detail(x, (224 // s, 224 // s)) for s in strides])
    axis.plot(strides, kept, "o-", color=colour, markersize=3, linewidth=1, label=[name] + ["_"] * (len(x) - 1))
axis.set_xscale("log", base=2)
axis.set(xlabel="stride", ylabel="share of the variance kept", xticks=strides, xticklabels=strides, ylim=(0, 1.03))
axis.legend(loc="center left")
figure.tight_layout()
plt.show()
alike = dict(zip(names, neighbour_similarity(photos).tolist(), strict=True))
print("likeness of neighbouring pixels:", {name: round(value, 3) for name, value in alike.items()})
print("of white noise:", round(neighbour_similarity(noise).mean().item(), 3))

# %% [markdown]
# ## Where the MACs go
#
# Nearly all of them go to the feed-forward parts; mixing between positions takes less than a tenth, because it is
# pooling everywhere but in the last blocks. These are closed forms; tests hold them equal to what the counter sees.

# %%
with torch.device("meta"):
    show.shares({variant.upper(): build(config).parts((224, 224)) for variant, config in VARIANTS.items()})

# %% [markdown]
# ## A network, and its form for deployment
#
# `build` makes a network with random weights, `load_timm` fills it with ImageNet weights if you have them. `fuse` gives
# the network that is deployed: batch norm disappears in the convolutions, and the two heads, trained on labels and on a
# teacher, become one. The outputs stay.

# %%
torch.manual_seed(0)
network = build("l1").eval()
deployed = network.fuse()
photo = imagenet_normalise(photos[:1])
with torch.no_grad(), count() as tally:
    logits = network(photo)
with torch.no_grad():
    difference = (deployed(photo) - logits).abs().max() / logits.abs().max()
    print("stages:", [tuple(x.shape[1:]) for x in network.forward_stages(photo)])
print(f"counted MACs: {tally.macs:,}")
for name, model in (("as trained", network), ("deployed", deployed)):
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
print(f"difference of the logits: {difference:.1e} of the largest")

# %% [markdown]
# ## Fewer pixels
#
# The design cannot be switched off in a trained network, so what the atlas applies to one is something else: it lets
# the network see its images as coarsely as they allow.

# %%
small = build(NANO, num_classes=10, img_size=128).eval()
coarse = torch.nn.functional.interpolate(photos[:2], size=(16, 16), mode="bilinear", antialias=True)
coarse = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
fine = torch.nn.functional.interpolate(photos[:2], size=(128, 128), mode="bilinear", antialias=True)
with torch.no_grad(), EfficientFormerTechnique().apply(small, tolerance=0.02) as handle:
    for name, x in (("blurred photos", coarse), ("photos", fine), ("white noise", noise[:2, :, :128, :128])):
        handle.target(x)
        seen = handle.trace
        print(f"{name}: seen at {seen['size'][0]} pixels, {seen['macs']:,} MACs per image")

# %% [markdown]
# Does the network still answer rightly? Below, a small EfficientFormer on handwritten digits that were enlarged to 64
# pixels, and on clothes enlarged to 96 (three trainings each). Trained at the largest size only, it cannot read the
# same images at lower resolution, though hardly anything of them is lost, not even with batch norm recalibrated;
# trained at all sizes, it can. That the *data* are redundant is not enough: the network has to have learnt so. The
# statistics of batch norm, which all sizes share, fit none of them well: recalibrated at the size that runs, they give
# most of the loss back. Cropping, which keeps as many pixels, shows that the detail can go, not the area.

# %%
records = [show.committed("efficientformer", f"{data}-resolution") for data in ("digits", "fashion")]
show.beside(records, "trained at all sizes", tolerance=0.0)

# %% [markdown]
# ## Beside MobileNetV2
#
# "At MobileNet speed" was said of an iPhone 12 and Apple's compiler, CoreML. On one thread of this CPU
# (below) it is not so, neither operator by operator nor compiled. Left against MACs, right against parameters.

# %%
show.times(show.committed("efficientformer", "latency-224"), {"EfficientFormer": "EF", "MobileNetV2": "MNv2"})

# %% [markdown]
# ## When not to use it
#
# - **On a CPU, for speed.** The widths and depths were chosen on a phone; measure on your own device,
#   with your own compiler.
# - **At other resolutions, untrained.** The published networks take 224 pixels only. Here the position biases stretch,
#   but the network has never seen things at another scale.
# - **For the published accuracy, from random weights.** It was reached with a teacher (RegNetY-16GF) and 300 epochs or
#   more of ImageNet.
