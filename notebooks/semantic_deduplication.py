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
# # Semantic deduplication
#
# A mailing list repeats itself: replies quote what they answer, newsletters change a date, the same advertisement
# arrives under another subject. A filter that is trained on all of it sees many mails twice. **SemDeDup** (Abbas et
# al., arXiv 2303.09540) leaves such mails out *before* training: it embeds every mail once, and removes a mail whose
# embedding points almost the same way as that of another mail.
#
# This notebook finds the duplicates in some real mails, and then reads the full experiment from its record.

# %%
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import reference_impls
from reference_impls.accounting.record import Record
from reference_impls.experiments.harness import Context
from reference_impls.experiments.semantic_deduplication import embedded_mails, k_means
from reference_impls.redundancy.cross_sample_similarity import duplicates
from reference_impls.techniques.semantic_deduplication import SemanticDeduplication, representatives, semdedup

results = Path(reference_impls.__file__).parent / "results" / "semantic-deduplication"
full = Record.model_validate_json((results / "mails-dedup.json").read_text())
planted = Record.model_validate_json((results / "planted-duplicates.json").read_text())
plt.rcParams.update({"figure.figsize": (9, 3.6), "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The idea in one picture
#
# 400 mails of the SpamAssassin corpus, embedded with all-MiniLM-L6-v2. Clustering and matching are two calls.

# %%
data = embedded_mails(Context())
labels, _ = k_means(data.z, seed=0, threads=1)
handle = SemanticDeduplication().apply(data.mails, embeddings=data.z, labels=labels, epsilon=0.05)
print(f"{len(data.mails)} mails, {len(handle.target)} kept")

# %% [markdown]
# Below is a mail beside its nearest twin. A hash cannot see that they are the same: the words differ here and there.
# Under them stands the cosine of every mail of the corpus with its nearest other mail. Everything to the right of a
# line $1 - \epsilon$ has a duplicate at that threshold.

# %%
i = next(k for k, mail in enumerate(data.mails) if mail.source == "spam-1" and mail.file.startswith("00109"))
cosines, nearest = (data.z @ data.z[i]).topk(2)  # the first is the mail itself
j, cosine = int(nearest[1]), float(cosines[1])

figure, panels = plt.subplot_mosaic([["one", "other"], ["all", "all"]], figsize=(9, 5.2), height_ratios=(0.6, 1))
for name, index in (("one", i), ("other", j)):
    mail, fate = data.mails[index], "removed" if index in handle.trace["removed"] else "kept"
    excerpt = textwrap.shorten(mail.text.replace("\n", " | "), 330, placeholder=" ...")
    panels[name].text(0, 0.95, textwrap.fill(excerpt, 52), va="top", family="monospace", fontsize=7.5)
    panels[name].set_title(f"{fate}: {mail.source}, mail {mail.file[:5]}", loc="left", fontsize=9)
    panels[name].axis("off")
bottom = panels["all"]
edges, counts = np.array(full.extra["nearest_cosine_edges"]), np.array(full.extra["nearest_cosine_counts"])
bottom.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="tab:blue")
for epsilon in full.extra["epsilon"]:
    bottom.axvline(1 - epsilon, color="tab:red", linewidth=1)
    bottom.text(1 - epsilon, counts.max() * 1.02, f"{epsilon:g}", color="tab:red", ha="center", fontsize=8)
bottom.set(xlim=(0, 1.005), xlabel="cosine with the nearest other mail", ylabel="mails")
figure.suptitle(f"Two mails with cosine {cosine:.3f}; below, all mails, and thresholds $\\epsilon$ in red", fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# The twin of a removed mail may itself be removed. Following such chains leads to the kept mail that stands for it:

# %%
chosen = semdedup(data.z, 0.05, labels)  # the function behind `apply`
stands = representatives(chosen)
print("kept mails that stand for n mails:", Counter(Counter(stands.tolist()).values()))
to_kept = (data.z[chosen.removed] * data.z[stands[chosen.removed]]).sum(1)
print(f"removed mails whose kept mail is farther than epsilon: {int((to_kept <= 0.95).sum())} of {len(to_kept)}")

# %% [markdown]
# ## How much redundancy the mails hold
#
# How many mails are duplicates depends on what is compared. The same corpus, counted in several ways:

# %%
words = {
    "file": "the whole file, byte by byte",
    "subject_and_body": "subject and body, decoded",
    "body": "the body alone",
    "normalised_text": "subject and body, letters and digits only, lower case",
}
for name, meaning in words.items():
    print(f"{full.extra[f'exact_duplicates_by_{name}']:6.0f}  {meaning}")
for epsilon, number in zip(full.extra["epsilon"], full.extra["near_duplicates"], strict=True):
    print(f"{number:6.0f}  cosine above {1 - epsilon:g} with another mail, or a chain of such")

# %%
where = full.redundancy.where
folders = {name.removeprefix("folder "): value for name, value in where.items() if name.startswith("folder ")}
bars = {**folders, "all mails": full.redundancy.value, **{f"null: {k}": v for k, v in full.redundancy.null.items()}}
figure, axis = plt.subplots()
axis.barh(list(bars), list(bars.values()), color=["tab:blue"] * len(folders) + ["tab:green", "tab:gray"])
axis.set_xlabel("share of mails that could go at $\\epsilon$ = 0.05")
axis.invert_yaxis()
figure.tight_layout()
plt.show()

# %% [markdown]
# The measure can be had on any embeddings. On the mails above:

# %%
found = duplicates(data.z, epsilon=0.05)
print(f"{found.measure}: {found.value:.3f}", {name: round(value, 3) for name, value in found.where.items()})

# %% [markdown]
# ## What it costs, and what it saves
#
# The record holds a small network trained as a spam filter on what is kept, for the same number of epochs, on five
# random splits. Beside it: the same network trained on as many mails that were left **at random**.

# %%
variants = {"semantic deduplication": full.points, **{control.name: control.points for control in full.controls[:2]}}
axes_of = {
    "training mails": lambda variant: variant.samples,
    "MACs (10$^9$)": lambda variant: variant.macs / 1e9,
    "wall-clock (s)": lambda variant: variant.wall_ms.median / 1e3,
}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.8), sharey=True)
for axis, (label, x) in zip(axes, axes_of.items(), strict=True):
    for (name, points), marker in zip(variants.items(), "os^", strict=True):
        y = np.array([point.quality.value for point in points])
        spread = [y - [p.quality.low for p in points], [p.quality.high for p in points] - y]
        axis.errorbar([x(point) for point in points], y, yerr=spread, marker=marker, label=name, capsize=2, linewidth=1)
    axis.plot(x(full.baseline), full.baseline.quality.value, "k*", markersize=10, label="all mails")
    axis.set_xlabel(label)
axes[0].set_ylabel(full.baseline.quality.metric)
figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False, fontsize=8)
figure.tight_layout(rect=(0, 0, 1, 0.92))
plt.show()

# %% [markdown]
# The bars are 95 % intervals over the splits, and the splits differ more than the arms do. Within each split the arms
# can be compared in pairs, which is sharper:

# %%
gain = [100 * np.array(full.extra[f"gain_over_random{end}"]) for end in ("", "_low", "_high")]
unseen = [full.extra[f"accuracy_unseen{of}"] for of in ("", "_random")]
print("  epsilon    kept   gain over random [95 % interval]   on unseen mails   (random)")
for epsilon, kept, mean, low, high, ours, at_random in zip(
    full.extra["epsilon"], full.extra["kept_share"], *gain, *unseen, strict=True
):
    print(f"{epsilon:9g} {kept:7.3f}   {mean:+.2f} points [{low:+.2f}, {high:+.2f}] {ours:19.4f}   ({at_random:.4f})")
print(f"Test mails with a near-duplicate among the training mails: {full.extra['leaked_test_share']:.1%}")

# %% [markdown]
# MACs and wall-clock hold matching and k-means. **The embedding is not in these arms.** It is made once, but it
# costs far more than training this small network:

# %%
for name in ("training", "matching", "k_means", "embedding"):
    print(f"{name:>9}: {full.extra[f'{name}_macs'] / 1e9:10.1f} x 10^9 MACs")

# %% [markdown]
# So here the technique costs more than it saves. It pays before an expensive training. One step of training costs about
# three forward passes (forward, and twice as much backward), so a network of the encoder's own size, trained for $E$
# epochs, gets its embedding back when the removed share is above $1 / (3 E)$:

# %%
for epochs in (1, 3, 10, 32):
    print(f"{epochs:3} epochs: more than {1 / (3 * epochs):6.1%} must be removed")

# %% [markdown]
# ## Controls: duplicates that we planted
#
# Into mails without any duplicates we put copies of six kinds, and look for them again. The null control deals the same
# embeddings out to the mails at random.

# %%
kinds = planted.extra["kinds"].split(", ")
epsilons = planted.extra["epsilon"]
figure, axis = plt.subplots()
for kind, line in zip(kinds, np.array(planted.extra["recall_by_kind"]).T, strict=True):
    axis.plot(range(len(epsilons)), line, marker="o", label=kind)
axis.plot(range(len(epsilons)), planted.extra["precision"][: len(epsilons)], "k--", label="precision")
null = planted.controls[0].points[0]
axis.plot(epsilons.index(null.knobs["epsilon"]), null.quality.value, "x", color="gray", label="null: dealt at random")
axis.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
axis.set(xlabel="$\\epsilon$", ylabel="share found", ylim=(-0.03, 1.03))
axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()

# %%
print("planted   removed   found   (epsilon 0.05)")
for point in planted.points:
    if point.knobs["epsilon"] == 0.05:
        print(f"{point.knobs['rate']:7.0%} {point.redundancy:9.1%} {point.quality.value:7.1%}")

# %% [markdown]
# Clustering saves comparisons, but not always time: among so few mails, k-means itself takes longer than comparing all
# pairs. Its worth grows with the square of the data set. Both figures of "inside clusters" include k-means.

# %%
inside = planted.points[0]
for name, variant in (("all pairs", planted.baseline), ("inside clusters", inside)):
    print(f"{name:>15}: {variant.macs / 1e9:6.3f} x 10^9 MACs, {variant.wall_ms.median:6.0f} ms")
loss = (
    planted.baseline.quality.value
    - next(p for p in planted.points if p.knobs == {"epsilon": 0.05, "rate": 0.4}).quality.value
)
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
