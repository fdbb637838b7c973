# %% [markdown]
# # Near-duplicate removal by MinHash
#
# A newsletter with another date, a mail with a footer of its list: most of the words are the same, and a hash of the
# text sees nothing. **MinHash** (Broder, doi 10.1109/SEQUEN.1997.666900) compares the *sets of word sequences* of two
# documents from a few numbers of each, and bands of these numbers find the pairs, so that nobody compares all.

# %%
import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.data_selection import TWO_FOLDERS
from reference_impls.data.planted import KINDS
from reference_impls.data.text import legible_mails
from reference_impls.techniques import minhash_deduplication as minhash

show.style()
planted = show.committed("deduplication", "planted-copies")
sweep = show.committed("minhash-deduplication", "planted-sweep")
candidates = show.committed("minhash-deduplication", "mails-candidates")
scale = show.committed("minhash-deduplication", "scale")

# %% [markdown]
# ## The idea in one picture
#
# The share of equal minima estimates the Jaccard index of two shingle sets. Each dot is a pair of mails.

# %%
texts = [mail.text for mail in legible_mails(TWO_FOLDERS)]
sets = minhash.shingled(texts)
signature = minhash.signatures(sets)
keys = minhash.band_keys(signature, *minhash.banding(0.8))
i, j = np.triu_indices(len(texts), 1)
estimate = (signature[i] == signature[j]).mean(1)
close = np.flatnonzero(estimate > 0.05)
exact = np.array([minhash.jaccard(sets.of(a), sets.of(b)) for a, b in zip(i[close], j[close], strict=True)])
bucket = (keys[i[close]] == keys[j[close]]).any(1)

bands, rows = minhash.banding(0.8)
line = np.linspace(0, 1, 200)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.scatter(exact[~bucket], estimate[close][~bucket], s=8, color="gray", label="no candidate")
left.scatter(exact[bucket], estimate[close][bucket], s=12, color="tab:red", label="candidate")
left.plot(line, line, color="black", linewidth=0.8)
left.set(xlabel="exact Jaccard index", ylabel="share of equal minima", title=f"{len(texts)} mails, 128 minima")
left.legend(fontsize=8)
right.plot(line, minhash.found_share(line, bands, rows), label=f"$1 - (1 - J^{{{rows}}})^{{{bands}}}$")
curve = candidates.tables["s-curve"].records()
middle = [(row["from"] + row["to"]) / 2 for row in curve]
right.plot(middle, [row["candidates"] / max(row["pairs"], 1) for row in curve], "o", label="pairs of all mails")
right.axvline(0.8, color="tab:red", linewidth=0.8)
right.set(xlabel="exact Jaccard index", ylabel="share that become candidates", title=f"{bands} bands of {rows}")
right.legend(fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# A candidate is only a candidate: its exact Jaccard index decides. A mail goes when one that *stays* is as alike as the
# threshold asks, so a twin of everything removed is still there.

# %%
found = minhash.remove(sets, keys, 0.8)
print(f"{len(texts)} mails, {len(found.removed)} go, their similarity is at least {found.similarity.min():.2f}")
removed, twin, alike = found.removed[0], found.twin[0], found.similarity[0]
print(f"mail {removed} goes for mail {twin} ({alike:.2f}):\n{texts[removed][:160]!r}\n{texts[twin][:160]!r}")
for join in ("greedy", "components"):
    print(f"{join:>10}: {len(minhash.remove(sets, keys, 0.5, join=join).removed)} go from a Jaccard index of 0.5 on")

# %% [markdown]
# ## What it finds, and what it cannot see
#
# Copies of six kinds, planted in mails that have none, beside the other ways to look for them. Train-test removal looks
# for copies of test mails.

# %%
table = planted.tables["what goes"]
values = np.array([[row[kind] for kind in KINDS] for row in table.records()], dtype=float)
figure, axis = plt.subplots(figsize=(9, 3.2))
axis.imshow(values, cmap="Greens", vmin=0, vmax=1, aspect="auto")
for (y, x), value in np.ndenumerate(values):
    axis.text(x, y, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "black", fontsize=8)
axis.set_xticks(range(len(KINDS)), [kind.replace(" of the", "\nof the") for kind in KINDS], fontsize=7)
labels = [f"{row['technique'].replace('-', ' ')}, {row['setting']}" for row in table.records()]
axis.set_yticks(range(len(values)), labels, fontsize=7)
axis.grid(visible=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What it saves, and what it costs in quality
#
# A spam filter trained on what is left, for as many epochs, and on as many mails that were left at random.

# %%
show.trade_offs(sweep, costs=("samples", "MACs", "milliseconds"))
show.gains(sweep, "random removal", "+.2f", scale=100)  # percentage points

# %% [markdown]
# Signatures and candidates of all mails, on one thread; making shingles from the texts comes on top for all of them.

# %%
print(f"{candidates.baseline.wall_ms.median:8.0f} ms  rensa alone")
(ours,) = show.select(candidates.points, threshold=0.8)
print(f"{ours.wall_ms.median:8.0f} ms  ours, signatures by rensa")
for control in candidates.controls:
    print(f"{control.points[0].wall_ms.median:8.0f} ms  {control.name}")
for row in candidates.tables["recall"].records():
    print("Jaccard {threshold}: {candidates} of {pairs} pairs found, {false removals} false removals".format(**row))

# %% [markdown]
# ## A million documents, and a billion
#
# Generated corpora, the same recipe and seed at each size: four to eight sentences of mails, three documents in ten a
# planted copy of an earlier one. `redundancy dedup`, from a JSONL file to the table of what goes, in one process.

# %%
runs = [row for row in scale.tables["runs"].records() if row["method"] == "minhash"]
line = (
    "{documents:>9,} documents: {seconds:6.1f} s ({sketching:.1f} sketching, {deciding:.1f} deciding), {peak GB:.2f} GB"
)
for row in runs:
    print(line.format(**row))

# %% [markdown]
# Nobody ran a billion. What they would need follows from what one document came to:
#
# - **Sketching** needs no other document: time and bytes are those of one document, a billion times.
# - **First shuffle:** each document sends the key of each of its $B$ bands, and its number, to wherever that bucket is
#   gathered: 16 bytes a band. In `redundancy dedup` this stands in the memory of the caller, which is what ends first.
# - **Second shuffle:** documents that share a bucket send their shingles to the part in which they are compared.
# - **Comparing** takes each such part for itself, as `--engine ray` does. Its time is a lower bound: it grew faster
#   than the documents already, for the reason below.

# %%
document = {row["what"]: row["value"] for row in scale.tables["a document"].records()}
n, last, bands = 1e9, runs[-1], document["bands"]
hours = n * (last["sketching"] + last["deciding"]) / last["documents"] / 3600
needs = {
    "text": (n * document["bytes of text"] / 1e12, "TB"),
    "sketches": (n * (document["bytes of shingles"] + 8 * bands) / 1e12, "TB"),
    "first shuffle, keys of the bands": (16 * n * bands / 1e12, "TB"),
    "second shuffle, shingles of candidates": (
        n * document["share in a bucket with others"] * document["bytes of shingles"] / 1e12,
        "TB",
    ),
    "sketching and comparing": (hours, "hours of one core"),
    "the same": (hours / 32, "hours of 32 cores"),
    "memory for the first shuffle": (16 * n * bands / 2**30 / 128, "nodes of 128 GiB"),
}
for what, (value, unit) in needs.items():
    print(f"{what:40} {value:8.2f} {unit}")

# %% [markdown]
# What does not grow with the number of documents but with its square are candidates that turn out unlike. Were every
# document as alike as this to one in a million others, each would meet so many of them in its buckets:

# %%
for alike in (0.1, 0.2, 0.3):
    met = [n / 1e6 * minhash.found_share(alike, b, r) for b, r in ((bands, document["rows of a band"]), (14, 9))]
    print(
        f"Jaccard {alike}: {met[0]:7.3f} with {bands} bands of {document['rows of a band']}, {met[1]:7.4f} with 14 of 9"
    )

# %% [markdown]
# Longer bands meet fewer, and miss more of the pairs at the threshold: for a billion documents 128 minima are few.

# %% [markdown]
# ## When not to use it
#
# - **Copies in other words**, translations and paraphrases: embed and compare.
# - **Short texts:** one changed word changes most of the shingles.
# - **Repeated passages** in otherwise different documents: cut them.
