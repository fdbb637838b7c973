# %% [markdown]
# # Token merging
#
# A vision transformer cuts an image into patches and gives every patch the same work, twelve times over. Most of a sky
# looks like the rest of the sky. **Token merging** (ToMe, Bolya et al., arXiv 2210.09461) lets patches that look alike
# *to the network* continue as one token: in every block, the `r` most similar pairs become their mean. Nothing is
# trained.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.benchmarks.token_reduction import trained_vit
from reference_impls.data import images
from reference_impls.study import Context, Study, run, scenarios
from reference_impls.techniques.token_merging import TokenMerging, bipartite_soft_matching, merge, unmerge

show.style()
digits, photos, by_threshold = (
    show.committed("token-merging", name) for name in ("digits-vit", "saliency-photos", "saliency-photos-threshold")
)

# %% [markdown]
# ## The idea in one picture
#
# A pretrained ViT-S/14 predicts where people look (a saliency map). It sees a photo as 16 x 16 patches. With `r` = 16,
# three quarters of them are gone after its last block. In the second picture, patches that ended in the same token
# have one colour, the mean of what they show: flat background collapses into a few tokens, detail keeps more of them.

# %%
names, squares = images.photos(224)
maps = show.pictures(photos)
photo = squares[names.index(photos.tables["tokens left"].columns[3])].permute(1, 2, 0).numpy()
group = maps["group of patch"].astype(int)  # (16, 16), the token that each patch ended in
patches = photo.reshape(16, 14, 16, 14, 3).mean((1, 3))  # (16, 16, 3)
tokens, place = np.unique(group, return_inverse=True)
painted = np.array([patches[group == token].mean(0) for token in tokens])[place.reshape(16, 16)]
panels = {"a photo": photo, f"256 patches in {len(tokens)} tokens": painted}
panels |= {name: maps[name] for name in ("saliency, dense", "saliency, merged")}

figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
for axis, (title, picture) in zip(axes, panels.items(), strict=True):
    axis.imshow(picture, extent=(0, 16, 16, 0), cmap="magma", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
borders = {"color": "white", "linewidth": 0.8}  # wherever two neighbours are in different tokens
for i, j in np.argwhere(group[:, 1:] != group[:, :-1]):
    axes[1].plot([j + 1, j + 1], [i, i + 1], **borders)
for i, j in np.argwhere(group[1:] != group[:-1]):
    axes[1].plot([j, j + 1], [i + 1, i + 1], **borders)
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
# to its logits. With it, equal tokens merge without any change of the result; that is exact, and tested.
#
# ## How alike the tokens are
#
# The measure: for each token, the cosine of its key with the most similar other key of the same image. Keys share a
# large mean, which lifts every cosine without making a token replaceable. The raw cosine (dashed) hardly tells a photo
# from white noise; with the mean key of the image subtracted (solid), the difference appears.

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.4))
by_block = photos.tables["similarity by block"].records()
for name in ("data", "shuffled pixels", "white noise"):
    rows = [row for row in by_block if row["images"] == name]
    (line,) = axis.plot([row["centred"] for row in rows], "o-", markersize=4, label=name.replace("data", "photos"))
    if name != "shuffled pixels":
        axis.plot([row["raw"] for row in rows], "--", color=line.get_color(), linewidth=1)
axis.plot([], [], "--", color="black", linewidth=1, label="raw, mean not subtracted")
axis.set(xlabel="block", ylabel="best-match cosine of keys", ylim=(0, 1.03), xticks=range(12))
axis.legend(loc="lower right")
figure.tight_layout()
plt.show()
print(f"{photos.redundancy.measure}: {photos.redundancy.value:.3f} on photos,", photos.redundancy.null)

# %% [markdown]
# The same measure on a model of your own is one call, and so is the technique: the handle restores the model when it is
# closed. Here is a small ViT on scikit-learn's digits with one token for each of the 64 pixels, trained now or taken
# from the cache. Below each digit its pixels are coloured by the token that they end in: 16 tokens, and the answers
# stay.

# %%
model = trained_vit(Study("token-merging", scenarios("token-merging")["digits-vit"], Context()), seed=0)
_, _, x_test, _ = images.digits()
found = TokenMerging().measure(model, x_test[:64])
print(f"{found.measure}: {found.value:.3f}", {name: round(value, 3) for name, value in found.where.items()})

figure, axes = plt.subplots(2, 6, figsize=(9, 3.1))
with torch.no_grad(), TokenMerging().apply(model, r=12) as handle:
    answers = model(x_test[:6]).argmax(1)
    token_of = handle.trace["group"][:, 1:].view(-1, 8, 8) - 1
    print("tokens before and after the merge of each block:", handle.trace["tokens"])
for column, answer in enumerate(answers):
    axes[0, column].imshow(x_test[column, 0], cmap="gray_r")
    axes[1, column].imshow(token_of[column], cmap="tab20")
    axes[0, column].set_title(f"reads {answer}", fontsize=9)
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What it costs, and what it saves
#
# The digits, run now in the small ("smoke") budget with one training; then the records of the full runs on digits and
# photos (for these, agreement with the dense network). Up and to the left is better. The controls lose as many tokens:
# merged with a partner drawn at random, or thrown away at random.

# %% tags=["timed"]
show.trade_offs(run("token-merging", "digits-vit"))

# %%
for record in (digits, photos):
    show.trade_offs(record)

# %% [markdown]
# MACs always fall as the closed form says. Time falls with them only where the blocks are wide: width 384 on the
# photos. At width 32, comparing and moving tokens costs about what the narrow blocks save. On a plain ViT-S/16 at 224
# pixels, one thread, against the same model with fused attention (random weights; they change no MAC):

# %%
for scenario in ("vit-small-latency", "vit-small-latency-batch-1"):
    show.latency(show.committed("token-merging", scenario))

# %% [markdown]
# ## Let the photo decide
#
# A fixed `r` merges as many tokens of a busy photo as of an empty one. With a threshold on the cosine, each photo
# merges what is alike in it. The threshold has to be chosen for the network, since raw cosines of keys lie close to 1.
# And white noise shows the limit: it merges as readily as a photo, although nothing in it is alike.

# %%
left = by_threshold.tables["tokens left"]
figure, axis = plt.subplots(figsize=(8.5, 3.2))
for point, row in zip(by_threshold.points, left.rows, strict=True):
    name = f"cosine {point.knobs['threshold']}: correlation {point.quality.value:.3f}"
    axis.plot(left.columns[2:], row[2:], "o", label=name)  # white noise, then the photos
axis.axhline(by_threshold.baseline.samples, color="black", linewidth=0.8)
axis.set(ylabel="tokens left", ylim=(0, None))
axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.28))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## When not to use it
#
# - **Narrow blocks or few tokens.** See the digits above: fewer MACs, and no time gained.
# - **Every token matters.** A fixed `r` merges small text and detail all the same. Measure first, or use a threshold.
# - **The grid matters.** Windowed attention and convolutions between the blocks need the tokens in their places.
# - **A high cosine is no licence.** Compare with the controls: where even dropping tokens at random loses little, the
#   technique deserves no credit.
