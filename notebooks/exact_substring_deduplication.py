# %% [markdown]
# # Exact substring deduplication
#
# Two mails that differ may still hold the same quotation, licence or footer. **ExactSubstr** (Lee et al., arXiv
# 2107.06499) finds every passage of k characters that stands in a corpus twice, and cuts it where it stands again.

# %%
import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.data_selection import TWO_FOLDERS
from reference_impls.data.planted import KINDS
from reference_impls.data.text import legible_mails
from reference_impls.techniques.exact_substring_deduplication import find_cuts

show.style()
sweep = show.committed("exact-substring-deduplication", "planted-sweep")

# %% [markdown]
# ## The idea in one picture
#
# Each row is a mail, as long as its text; red is what stood before, at 100 characters or more.

# %%
texts = [mail.text[:3000] for mail in legible_mails(TWO_FOLDERS)][:80]
cuts = find_cuts(texts)
figure, axis = plt.subplots(figsize=(9, 4))
axis.barh(range(len(texts)), [len(text) for text in texts], height=0.9, color="0.85")
axis.barh(cuts.document, cuts.end - cuts.start, left=cuts.start, height=0.9, color="tab:red")
axis.set(xlabel="characters", ylabel="mail", ylim=(len(texts), -1))
figure.tight_layout()
plt.show()
longest = int(np.argmax(cuts.end - cuts.start))
passage = texts[cuts.document[longest]][cuts.start[longest] : cuts.end[longest]]
print(f"the longest passage has {len(passage):,} characters: {passage[:150]!r} ...")

# %% [markdown]
# ## Overlaps
#
# Where occurrences overlap, cutting the later one would break the first. A character goes only when no first occurrence
# needs it, so each passage that was cut still stands, whole:

# %%
for text, length in (("cdcedbddfcfcfc", 4), ("abababab", 3), ("the cat, the cat", 7)):
    (left,) = find_cuts([text], length).apply([text])
    print(f"{text!r} at {length} characters: {left!r}")

# %% [markdown]
# ## How much goes, and what is found
#
# Against the length from which on a passage counts, on mails with planted copies of six kinds.

# %%
rows = [row for row in sweep.tables["what goes"].records() if row["technique"] == "exact-substring-deduplication"]
lengths = [int(row["setting"].split()[2]) for row in rows]
figure, axis = plt.subplots(figsize=(9, 3.4))
for kind in KINDS:
    axis.plot(lengths, [row[kind] for row in rows], marker="o", label=kind)
axis.plot(lengths, [row["share removed"] for row in rows], "k--", label="share of the text that goes")
axis.set_xscale("log")
axis.set_xticks(lengths, lengths)
axis.set(xlabel="characters of a passage", ylabel="share found", ylim=(-0.03, 1.03))
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()

# %% [markdown]
# Capital letters, or a mark every few words, hide a copy from it: what it finds, it finds exactly.
#
# ## What it costs in quality
#
# A spam filter trained on what is left of the texts, and on as many whole mails left at random.

# %%
show.trade_offs(sweep, costs=("samples", "MACs", "milliseconds"))
show.gains(sweep, "random removal", "+.2f", scale=100)  # percentage points

# %% [markdown]
# ## When not to use it
#
# - **Copies with small changes:** MinHash or embeddings find them.
# - **Texts that people read:** cuts leave sentences broken.
