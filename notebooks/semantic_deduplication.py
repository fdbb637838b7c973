# %% [markdown]
# # Semantic deduplication
#
# A mailing list repeats itself: replies quote what they answer, newsletters change a date. **SemDeDup** (Abbas et al.,
# arXiv 2303.09540) leaves such mails out *before* training: it embeds every mail once, and removes a mail whose
# embedding points almost the same way as that of another mail. This notebook finds the duplicates in some real mails,
# and then reads the full experiment from its record.

# %%
import textwrap
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.data_selection import TWO_FOLDERS, embedded_mails, k_means
from reference_impls.redundancy.cross_sample_similarity import duplicates
from reference_impls.study import Context
from reference_impls.techniques.semantic_deduplication import SemanticDeduplication, representatives, semdedup

show.style()
full = show.committed("semantic-deduplication", "mails-dedup")
planted = show.committed("semantic-deduplication", "planted-duplicates")
by_epsilon = full.tables["by epsilon"].records()

# %% [markdown]
# ## The idea in one picture
#
# Some hundred mails of the SpamAssassin corpus, embedded with all-MiniLM-L6-v2. Clustering and matching are two calls.

# %%
data = embedded_mails(TWO_FOLDERS, Context())
labels, _ = k_means(data.z, seed=0)
handle = SemanticDeduplication().apply(data.mails, embeddings=data.z, labels=labels, epsilon=0.05)
print(f"{len(data.mails)} mails, {len(handle.target)} kept")
found = duplicates(data.z, epsilon=0.05)
print(f"{found.measure}: {found.value:.3f}", {name: round(value, 3) for name, value in found.where.items()})

# %% [markdown]
# A mail beside its nearest twin: words differ here and there, so a hash cannot see that they are the same. Below, the
# cosine of every mail of the corpus with its nearest other one; right of a line $1 - \epsilon$ are duplicates.

# %%
i = next(k for k, mail in enumerate(data.mails) if mail.source == "spam-1" and mail.file.startswith("00109"))
cosines, nearest = (data.z @ data.z[i]).topk(2)  # the first is the mail itself
figure, panels = plt.subplot_mosaic([["one", "other"], ["all", "all"]], figsize=(9, 5.2), height_ratios=(0.6, 1))
for name, index in (("one", i), ("other", int(nearest[1]))):
    mail, fate = data.mails[index], "removed" if index in handle.trace["removed"] else "kept"
    excerpt = textwrap.shorten(mail.text.replace("\n", " | "), 330, placeholder=" ...")
    panels[name].text(0, 0.95, textwrap.fill(excerpt, 52), va="top", family="monospace", fontsize=7.5)
    panels[name].set_title(f"{fate}: {mail.source}, mail {mail.file[:5]}", loc="left", fontsize=9)
    panels[name].axis("off")
start, end, mails = np.array(full.tables["nearest mail"].rows).T
panels["all"].bar(start, mails, width=end - start, align="edge")
for row in by_epsilon:
    panels["all"].axvline(1 - row["epsilon"], color="tab:red", linewidth=1)
    panels["all"].text(1 - row["epsilon"], mails.max() * 1.02, row["epsilon"], color="tab:red", ha="center", fontsize=8)
panels["all"].set(xlim=(0, 1.005), xlabel="cosine with the nearest other mail", ylabel="mails")
title = f"Two mails with cosine {float(cosines[1]):.3f}; below, all mails, and thresholds $\\epsilon$ in red"
figure.suptitle(title, fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# The twin of a removed mail may itself be removed. Following such chains leads to the kept mail that stands for it:

# %%
chosen = semdedup(data.z, 0.05, labels)  # the function that `apply` calls
stands = representatives(chosen)
print("kept mails that stand for n mails:", Counter(Counter(stands.tolist()).values()))
to_kept = (data.z[chosen.removed] * data.z[stands[chosen.removed]]).sum(1)
print(f"removed mails whose kept mail is farther than epsilon: {int((to_kept <= 0.95).sum())} of {len(to_kept)}")

# %% [markdown]
# ## How much redundancy the mails hold
#
# That depends on what is compared:

# %%
for compared, number in full.tables["exact duplicates"].rows:
    print(f"{number:6}  equal to an earlier mail by {compared}")
for row in by_epsilon:
    print(f"{row['near-duplicates']:6}  cosine above {1 - row['epsilon']:g} with another mail, or a chain of such")

where = {name: value for name, value in full.redundancy.where.items() if name.startswith("folder ")}
nulls = {f"null: {name}": value for name, value in full.redundancy.null.items()}
figure, axis = plt.subplots(figsize=(8, 2.8))
values = where | {"all mails": full.redundancy.value} | nulls
show.bars(axis, values, label="share of mails that could go at ε = 0.05")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What it costs, and what it saves
#
# A small network trained as a spam filter on what is kept, for the same number of epochs, on several random splits; and
# on as many mails that were left **at random**.

# %%
lines = {name: points for name, points in show.series(full).items() if name != "another copy kept"}
show.trade_offs(full, lines, costs=("samples", "MACs", "milliseconds"))

# %% [markdown]
# The splits differ more than the variants do. Compared in pairs within each split:

# %%
show.gains(full, "random removal", "+.2f", scale=100)  # percentage points
print("  epsilon    kept   accuracy on unseen mails   (random removal)")
for epsilon, kept, *_, unseen, at_random, _ in full.tables["by epsilon"].rows:
    print(f"{epsilon:9g} {kept:7.3f} {unseen:26.4f}   ({at_random:.4f})")
seen = full.extra["share of test mails seen in training"]
print(f"Test mails with a near-duplicate among the training mails: {seen:.1%}")

# %% [markdown]
# MACs and wall-clock hold matching and k-means, but **not the embedding**. Made once, it costs far more than training
# this small network:

# %%
for part, macs in full.tables["MACs of the parts"].rows:
    print(f"{part:>9}: {macs / 1e9:10.1f} x 10^9 MACs")
for left_out in full.excluded:
    print(f"{left_out.kind:>9}: {left_out.macs / 1e9:10.1f} x 10^9 MACs, left out")

# %% [markdown]
# So here the technique costs more than it saves. It pays before an expensive training. One step of training costs about
# three forward passes (forward, and twice as much backward), so a network of the encoder's own size, trained for $E$
# epochs, gets its embedding back when the removed share is above $1 / (3 E)$: a third for one epoch, 1 % for 32.
#
# ## Controls: duplicates that we planted
#
# Copies of six kinds, put into mails without any duplicates; for the null, the embeddings are dealt out at random.

# %%
(null,) = planted.controls[0].points
top = null.knobs["rate"]
recall = planted.tables["recall by kind"]
precision = [row["precision"] for row in planted.tables["removed"].records() if row["rate"] == top]
epsilons = [row[0] for row in recall.rows]
figure, axis = plt.subplots(figsize=(9, 3.6))
for kind, line in zip(recall.columns[1:], np.array(recall.rows)[:, 1:].T, strict=True):
    axis.plot(range(len(epsilons)), line, marker="o", label=kind)
axis.plot(range(len(epsilons)), precision, "k--", label="precision")
axis.plot(epsilons.index(null.knobs["epsilon"]), null.quality.value, "x", color="gray", label="null: dealt at random")
axis.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
axis.set(xlabel="$\\epsilon$", ylabel="share found", ylim=(-0.03, 1.03))
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()
print("planted   removed   found   (epsilon 0.05)")
for point in show.select(planted.points, epsilon=0.05):
    print(f"{point.knobs['rate']:7.0%} {point.redundancy:9.1%} {point.quality.value:7.1%}")

# %% [markdown]
# Clustering saves comparisons, but not always time: among so few mails, k-means (counted in "inside clusters") takes
# longer than comparing all pairs. Its worth grows with the square of the data set.

# %%
(inside,) = show.select(planted.points, epsilon=0.05, rate=top)
for name, variant in (("all pairs", planted.baseline), ("inside clusters", inside)):
    print(f"{name:>15}: {variant.macs / 1e9:6.3f} x 10^9 MACs, {variant.wall_ms.median:6.0f} ms")
loss = planted.baseline.quality.value - inside.quality.value
print(f"planted duplicates lost between clusters at epsilon 0.05: {loss:.1%}")

# %% [markdown]
# ## When not to use it
#
# - **The trained model is small.** The embedding costs more than the training, as above.
# - **Exact copies are all there is.** A hash finds them for nothing.
# - **What differs is the point:** forms filled in, frames of one scene, rare classes made of near copies.
# - **The encoder does not read what matters.** Here it reads 128 tokens; two newsletters with one head are one to it.
#
# And whatever is trained: look for duplicates *between* training and test data before you trust an accuracy.
