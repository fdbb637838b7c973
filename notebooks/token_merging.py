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
# # Token merging
#
# A vision transformer cuts an image into patches and gives every patch the same work, twelve times over. Most of a sky
# looks like the rest of the sky. **Token merging** (ToMe, Bolya et al., arXiv 2210.09461) lets patches that look alike
# *to the network* continue as one token: in every block, the `r` most similar pairs become their mean. Nothing is
# trained.
#
# This notebook shows which patches merge, measures how alike they are, runs the technique on a small network, and then
# reads the full experiments from their records.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference_impls
from reference_impls.accounting.record import Record
from reference_impls.data import images
from reference_impls.experiments.harness import Context
from reference_impls.experiments.token_merging import DIGITS_TRAINING, DIGITS_VIT, classifier, run_digits
from reference_impls.techniques.token_merging import TokenMerging, bipartite_soft_matching, merge, unmerge

torch.set_num_threads(1)
results = Path(reference_impls.__file__).parent / "results" / "token-merging"


def committed(scenario):
    return Record.model_validate_json((results / f"{scenario}.json").read_text())


digits_record, photos_record, threshold_record = map(
    committed, ("digits-vit", "saliency-photos", "saliency-photos-threshold")
)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

# %% [markdown]
# ## The idea in one picture
#
# A pretrained ViT-S/14 predicts where people look (a saliency map). It sees the photo as 16 x 16 patches. Behind its
# last block, with `r` = 16, three quarters of them are gone: in the second picture, patches that ended in the same
# token have one colour, the mean of what they show. Flat background collapses into a few tokens, detail keeps more of
# them.

# %%
names, photos = images.photos(224)
photo = photos[names.index(photos_record.extra["photos"].split(", ")[0])].permute(1, 2, 0).numpy()
group = np.array(photos_record.extra["group_of_patch"], dtype=int)  # (16, 16), the token that each patch ended in
patches = photo.reshape(16, 14, 16, 14, 3).mean((1, 3))  # (16, 16, 3)
painted = np.zeros_like(patches)
for token in np.unique(group):
    painted[group == token] = patches[group == token].mean(0)

figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
for axis, picture, title in (
    (axes[0], photo, "a photo"),
    (axes[1], painted, f"256 patches in {len(np.unique(group))} tokens"),
    (axes[2], np.array(photos_record.extra["map_dense"]), "saliency, 256 patches"),
    (axes[3], np.array(photos_record.extra["map_merged"]), f"saliency, r = {photos_record.extra['group_r']:.0f}"),
):
    axis.imshow(picture, extent=(0, 16, 16, 0), cmap="magma", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
for i in range(16):  # draw a line wherever two neighbours are in different tokens
    for j in range(16):
        if j < 15 and group[i, j] != group[i, j + 1]:
            axes[1].plot([j + 1, j + 1], [i, i + 1], color="white", linewidth=0.8)
        if i < 15 and group[i, j] != group[i + 1, j]:
            axes[1].plot([j, j + 1], [i + 1, i + 1], color="white", linewidth=0.8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The algorithm on tensors
#
# The keys of attention say what a token contains, so they are what tokens are compared by. Tokens at even positions (A)
# look for their most similar one at odd positions (B); the best `r` of these pairs merge. Each token carries its size,
# the number of patches it stands for.

# %%
x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [2.0, 0.1]]])  # (B, N, D), a class token first
match = bipartite_soft_matching(x, r=1, prefix=1)
merged, size = merge(x, torch.ones(1, 5), match)
print("token of each patch:", match.group.tolist())
print("tokens:", merged.tolist(), "sizes:", size.tolist())
print("unmerged:", unmerge(merged, match).tolist())

# %% [markdown]
# A token of size $s$ has to weigh as much as $s$ tokens in the next attention: *proportional attention* adds $\log s$
# to its logits. With it, equal tokens merge without any change of the result. That is exact, and tested; the rest is
# a matter of how alike tokens are.
#
# ## How alike the tokens are
#
# The measure: for each token, the cosine of its key with the most similar other key of the same image. Keys share a
# large mean, which lifts every cosine without making a token replaceable. The raw cosine (dashed) hardly knows a photo
# from white noise; with the mean key of the image subtracted (solid), the difference appears.

# %%
raw = {"photos": "similarity_raw", "white noise": "similarity_raw_white_noise"}
centred = {
    "photos": list(photos_record.redundancy.where.values()),
    "shuffled pixels": photos_record.extra["similarity_shuffled_pixels"],
    "white noise": photos_record.extra["similarity_white_noise"],
}
colours = {"photos": "tab:blue", "shuffled pixels": "tab:olive", "white noise": "tab:gray"}
figure, axis = plt.subplots(figsize=(7.5, 3.4))
for name, key in raw.items():
    axis.plot(photos_record.extra[key], "--", color=colours[name], linewidth=1)
for name, values in centred.items():
    axis.plot(values, "o-", color=colours[name], markersize=4, label=name)
axis.plot([], [], "--", color="black", linewidth=1, label="raw, mean not subtracted")
axis.set(xlabel="block", ylabel="best-match cosine of keys", ylim=(0, 1.03), xticks=range(12))
axis.legend(frameon=False, loc="lower right")
figure.tight_layout()
plt.show()
print(
    f"{photos_record.redundancy.measure}: {photos_record.redundancy.value:.3f} on photos,",
    photos_record.redundancy.null,
)

# %% [markdown]
# The same measure on a model of your own is one call. Here it is a small ViT on scikit-learn's digits with one token
# for each of the 64 pixels, trained now (or taken from the cache):

# %%
x_train, y_train, x_test, y_test = images.digits()
model = classifier(Context(), "digits-vit", DIGITS_VIT, DIGITS_TRAINING["smoke"], x_train, y_train, seed=0)
found = TokenMerging().measure(model, x_test[:64])
print(f"{found.measure}: {found.value:.3f}")
print({name: round(value, 3) for name, value in found.where.items()})

# %% [markdown]
# And this is how it is applied: the handle restores the model when it is closed. Each row is a digit, and its pixels
# coloured by the token that they end in: 64 pixels in 16 tokens, and the answers stay.

# %%
figure, axes = plt.subplots(2, 6, figsize=(9, 3.1))
with torch.no_grad(), TokenMerging().apply(model, r=12) as handle:
    prediction = model(x_test[:6]).argmax(1)
    tokens = handle.trace["group"][:, 1:].view(-1, 8, 8) - 1
    print("tokens in front of and behind the merge of each block:", handle.trace["tokens"])
for column, (digit, token, answer) in enumerate(zip(x_test, tokens, prediction, strict=False)):
    axes[0, column].imshow(digit[0], cmap="gray_r")
    axes[1, column].imshow(token, cmap="tab20")
    axes[0, column].set_title(f"reads {answer}", fontsize=9)
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What it costs, and what it saves
#
# First the digits, run now in the small ("smoke") budget; then the records of the full runs on digits and photos.
# Left against MACs, right against wall-clock; up and to the left is better. The controls lose as many tokens:
# merged with a partner drawn at random, or thrown away at random.

# %%
live = run_digits(Context())


STYLES = {
    "token merging": ("tab:blue", "o-"),
    "random merging": ("tab:orange", "s:"),
    "random dropping": ("tab:green", "x:"),
    "without proportional attention": ("tab:red", "^--"),
}


def trade_off(axes, record, title):
    costs = (lambda variant: variant.macs / 1e6, lambda variant: variant.wall_ms.median)
    for name, points in ({"token merging": record.points} | {c.name: c.points for c in record.controls}).items():
        colour, style = STYLES[name]
        quality = [p.quality.value for p in points]
        for axis, cost in zip(axes, costs, strict=True):
            axis.plot([cost(p) for p in points], quality, style, color=colour, markersize=4, label=name)
            if points[0].quality.low is not None and name in ("token merging", "random merging"):
                low, high = ([getattr(p.quality, end) for p in points] for end in ("low", "high"))
                axis.fill_between([cost(p) for p in points], low, high, color=colour, alpha=0.12, linewidth=0)
    for axis, cost in zip(axes, costs, strict=True):
        axis.plot(cost(record.baseline), record.baseline.quality.value, "*k", markersize=10, label="dense")
        axis.set_xlim(left=0)
        axis.set_title(title, fontsize=9)
    axes[0].set(xlabel=f"million MACs, {record.unit.split(',')[0]}", ylabel=record.baseline.quality.metric)
    axes[1].set(xlabel=f"milliseconds, {record.unit}")


figure, axes = plt.subplots(3, 2, figsize=(9.5, 9.5))
trade_off(axes[0], live, "digits, run now (1 seed)")
trade_off(axes[1], digits_record, f"digits, full record ({len(digits_record.seeds)} trainings)")
trade_off(axes[2], photos_record, "photos, full record (agreement with the dense network)")
axes[0, 1].legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# MACs always fall as the closed form says. Time falls with them only where the blocks are wide: width 384 on the
# photos. At width 32, comparing and moving tokens costs about what the narrow blocks save.
#
# That is what the bench measures on a plain ViT-S/16 at 224 pixels, one thread, against the same model with fused
# attention (random weights; they change no operation):

# %%
for scenario in ("vit-small-latency", "vit-small-latency-batch-1"):
    record = committed(scenario)
    print(f"{record.unit}, dense {record.baseline.wall_ms.median:.0f} ms; {record.machine.cpu}")
    for point, (r, ratio, low, high) in zip(record.points, record.extra["speed_up"], strict=True):
        fewer = record.baseline.macs / point.macs
        print(f"  r = {r:2.0f}: {fewer:.2f} x fewer MACs, {ratio:.2f} x faster (95 %: {low:.2f} to {high:.2f})")

# %% [markdown]
# ## Let the photo decide
#
# A fixed `r` merges as many tokens of a busy photo as of an empty one. With a threshold on the cosine, each photo
# merges what is alike in it. The price: the threshold has to be chosen for the network, since raw cosines of keys lie
# close to 1. And white noise shows the limit: it merges as readily as a photo, although nothing in it is alike.

# %%
labels = threshold_record.extra["photos"].split(", ")
left = np.array(threshold_record.extra["tokens_left_by_photo"])  # (thresholds, photos)
noise = threshold_record.extra["tokens_left_of_white_noise"]
figure, axis = plt.subplots(figsize=(8.5, 3.2))
width = 0.8 / len(left)
for i, (point, counts) in enumerate(zip(threshold_record.points, left, strict=True)):
    name = f"cosine {point.knobs['threshold']}: correlation {point.quality.value:.3f}"
    axis.bar(np.arange(len(labels) + 1) + i * width, [*counts, noise[i]], width, label=name)
axis.axhline(257, color="black", linewidth=0.8)
axis.set(
    ylabel="tokens left of 257", xticks=np.arange(len(labels) + 1) + 1.5 * width, xticklabels=[*labels, "white noise"]
)
axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.28))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Narrow blocks or few tokens.** See the digits above: fewer MACs, and no time gained.
# - **Every token matters.** Small text or dense detail does not merge without loss, and a fixed `r` merges it all the
#   same. Measure first, or use a threshold.
# - **The grid matters.** Windowed attention and convolutions between the blocks need the tokens in their places.
# - **A high cosine is not a licence.** Compare with the controls: on an easy task, even dropping tokens at random loses
#   little, and then the technique deserves no credit.
