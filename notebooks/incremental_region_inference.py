# %% [markdown]
# # Incremental region inference
#
# Occlusion maps, perturbation tests and defences against patches run a network on many copies of one picture, each with
# one window replaced. A window reaches, in each layer, only what reads something of it. **Krypton** (SIGMOD 2019) keeps
# the picture's feature maps and computes of each copy the rectangle that is reached. Nothing is approximated.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from reference_impls import show
from reference_impls.accounting.count import count
from reference_impls.contract import generator
from reference_impls.data import video
from reference_impls.data.images import photo, resized
from reference_impls.experiments.incremental_region_inference import occlusion_map, places
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.models.yolov3_tiny import letterboxed, yolov3_tiny
from reference_impls.techniques.incremental_region_inference import incremental

show.style()
windows, maps = (show.committed("incremental-region-inference", name) for name in ("detector-windows", "occlusion-map"))

# %% [markdown]
# ## How far a window reaches
#
# A window of 32 pixels in a frame of 416 pixels, and the rectangles that it reaches in the feature maps of YOLOv3-tiny.
# A 3 x 3 convolution adds a position to each side; on a coarser map a position is wider.

# %%
detector = yolov3_tiny().folded()
frame = letterboxed(video.clip("bikes", 1), (416, 416))[0].contiguous(memory_format=torch.channels_last)
reference = incremental(detector).reference(frame)
with count() as tally:
    reference.replaced(torch.full((1, 3, 32, 32), 0.5), [(200, 160)])
with count() as dense, torch.no_grad():
    detector(frame)
shares = {name: layer["computed"] / layer["positions"] for name, layer in reference.layers.items()}
figure, axis = plt.subplots(figsize=(9, 3))
axis.bar(range(len(shares)), list(shares.values()))
axis.set(
    xticks=range(len(shares)), ylabel="share of the map computed", xlabel="convolution, from the frame to the heads"
)
plt.show()
print(f"{tally.macs / dense.macs:.0%} of the MACs of a full pass")

# %% [markdown]
# Early layers are reached in a corner, late ones nearly everywhere: reuse pays with the size of the frame.

# %%
figure, axis = plt.subplots(figsize=(6, 3))
rows = windows.tables["reached"].records()
for side in sorted({row["side"] for row in rows}):
    mine = [row for row in rows if row["side"] == side]
    axis.plot([r["size"] for r in mine], [r["share"] for r in mine], marker="o", label=f"frame of {side} pixels")
axis.set(xlabel="side of the window in pixels", ylabel="share of a full pass", ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# ## Eight windows of a frame
#
# Eight windows, against eight full passes. The pass of the frame itself is left out, because a detector has done it;
# a control counts it. A window of the whole frame is the null case: everything is computed, and nothing is saved.

# %%
show.latency(windows)

# %% [markdown]
# ## An occlusion map of your own model
#
# Any traceable model will do: `incremental(model)` keeps a picture's feature maps, `replaced` gives the model's result
# for windows of it. Here EfficientNet-Lite0 on a photo of 224 pixels.

# %%
model, image = efficientnet_lite0(), resized(photo("coffee"), 224)
where = places(224, 16)
reference = incremental(model).reference(normalise(image))
grey = torch.zeros(1, 3, 32, 32)
effect = torch.cat(
    [
        occlusion_map(reference.result, reference.replaced(grey.repeat(len(part), 1, 1, 1), part))
        for part in (where[i : i + 13] for i in range(0, len(where), 13))
    ]
)
side = round(len(where) ** 0.5)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
axes[0].imshow(image[0].permute(1, 2, 0))
axes[1].imshow(effect.view(side, side), cmap="magma")
for axis, title in zip(axes, ("the photo", "what a grey window there takes from the class"), strict=True):
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A small network of your own, explained by random windows
#
# In the manner of RISE (arXiv 1806.07421): many random windows, and for each pixel the mean of what those windows take
# from the class that cover it. RISE's masks are spread over the whole picture; here each is one window, so that the
# rest need not be computed again. The network is written and trained in this cell; nothing of it is prepared.


# %%
class Digits(nn.Module):
    """Three convolutions with norms, one of them with a way around it, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.around, self.last = self.layer(1, 16, 2), self.layer(16, 16, 1), self.layer(16, 32, 2)
        self.head = nn.Linear(32 * 12 * 12, 10)

    def layer(self, channels, out, stride):
        return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x):
        x = self.first(x)
        return self.head(self.last(x + self.around(x)).flatten(1))


digits = load_digits()
pictures = F.interpolate(torch.tensor(digits.images / 16).float()[:, None], (48, 48), mode="bilinear")
labels, own = torch.tensor(digits.target), Digits()
optimiser = torch.optim.Adam(own.parameters(), lr=3e-3)
for step in range(100):
    chosen = torch.randint(1500, (32,), generator=generator(step))
    loss = F.cross_entropy(own(pictures[chosen]), labels[chosen])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
own.eval()
with torch.no_grad():
    right = (own(pictures[1500:]).argmax(1) == labels[1500:]).float().mean()
print(f"{right:.0%} of the digits that it did not train on are right")

# %%
x, side, number = pictures[1503:1504], 10, 256
corners = torch.randint(48 - side + 1, (number, 2), generator=generator(0)).tolist()
with count() as tally:
    reference = incremental(own).reference(x)
    varied = reference.replaced(torch.zeros(number, 1, side, side), corners)
windowed = x.repeat(number, 1, 1, 1)
for one, (y, left) in zip(windowed, corners, strict=True):
    one[:, y : y + side, left : left + side] = 0
with count() as dense, torch.no_grad():
    expected = own(windowed)
effect = occlusion_map(reference.result, varied)
covers, total = torch.zeros(48, 48), torch.zeros(48, 48)
for value, (y, left) in zip(effect, corners, strict=True):
    covers[y : y + side, left : left + side] += 1
    total[y : y + side, left : left + side] += value
figure, axes = plt.subplots(1, 2, figsize=(6, 2.8))
axes[0].imshow(x[0, 0], cmap="gray", interpolation="none")
axes[1].imshow(total / covers.clamp(min=1), cmap="magma", interpolation="none")
for axis, title in zip(
    axes, (f"a digit, seen as a {int(reference.result.argmax())}", "what windows there take"), strict=True
):
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()
print(f"{tally.macs / dense.macs:.0%} of the MACs of full passes; ", end="")
print(f"largest difference {float((varied - expected).abs().max()):.0e}")

# %% [markdown]
# ## At two resolutions

# %%
show.latency(maps)
for row in maps.tables["maps"].records():
    print(f"{row['side']} pixels: {row['windows']} windows, largest difference {row['difference']:.1e}")

# %% [markdown]
# ## When not to use it
#
# - Small pictures, or networks that look far: deep layers are then reached nearly everywhere.
# - After a global average with gates (squeeze-and-excitation), one window changes everything.
# - Frames of a video: noise changes every pixel. Delta convolution follows those.
