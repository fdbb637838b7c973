# %% [markdown]
# # Removal of train-test duplicates
#
# A test item that stands in the training set too is answered by heart. Barz and Denzler (arXiv 1902.00423) found such
# twins in CIFAR; here they are sought in mails, by the words that two mails share and by embeddings.

# %%
import matplotlib.pyplot as plt
import numpy as np

from reference_impls import show
from reference_impls.benchmarks.data_selection import TWO_FOLDERS, embedded_mails, halves
from reference_impls.data.planted import KINDS
from reference_impls.redundancy.cross_sample_similarity import nearest
from reference_impls.study import Context
from reference_impls.techniques.train_test_deduplication import TrainTestDeduplication, TwoSets

show.style()
planted = show.committed("train-test-deduplication", "planted-sweep")

# %% [markdown]
# ## The idea in one picture
#
# For each test mail of a random split the nearest mail to train on. Right of the line are suspects.

# %%
training, test = halves(embedded_mails(TWO_FOLDERS, Context()), seed=0)
cosine, twin = nearest(test.z, training.z)
figure, axis = plt.subplots(figsize=(8, 2.8))
axis.hist(cosine.numpy(), bins=np.linspace(0, 1, 41))
axis.axvline(0.9, color="tab:red")
axis.set(xlabel="cosine of a test mail with the nearest mail to train on", ylabel="test mails")
figure.tight_layout()
plt.show()

# %%
sets = TwoSets(training.mails, test.mails, training.z, test.z)
with TrainTestDeduplication().apply(sets, threshold=0.9) as handle:
    left = len(handle.target.test)
    print(f"{left} of {len(test.mails)} test mails have no twin among {len(training.mails)} mails to train on")
    pairs = zip(handle.trace["item"].tolist(), handle.trace["twin"].tolist(), strict=True)
for item, other in list(pairs)[:3]:
    print(f"\n{float(cosine[item]):.3f}\n  {test.mails[item].text[:110]!r}\n  {training.mails[other].text[:110]!r}")

# %% [markdown]
# A pair is a suspect only. A judge, a person or a stricter comparison, may acquit it:

# %%
print(TrainTestDeduplication().measure(sets))
same = TrainTestDeduplication().apply(sets, threshold=0.9, judge=lambda a, b: a.text.lower() == b.text.lower())
print(f"{len(same.trace['item'])} of them differ in nothing but letter case")

# %% [markdown]
# ## What is found
#
# Copies of test mails, of six kinds, planted among the mails to train on.

# %%
rows = [row for row in planted.tables["what goes"].records() if row["technique"] == "train-test-deduplication"]
figure, axis = plt.subplots(figsize=(9, 3.4))
for n, row in enumerate(rows):
    place = np.arange(len(KINDS)) + (n - len(rows) / 2 + 0.5) * 0.13
    axis.bar(place, [row[kind] or 0 for kind in KINDS], width=0.12, label=row["setting"])
axis.set_xticks(range(len(KINDS)), [kind.replace(" of the", "\nof the") for kind in KINDS], fontsize=8)
axis.set(ylabel="share found", ylim=(0, 1.05))
axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()
for row in rows:
    print(f"{row['setting']:>30}: {row['all kinds']:.0%} of the leaks found, precision {row['precision']:.0%}")

# %% [markdown]
# ## What accuracy is left
#
# The twins are taken out of the mails to train on, so that all filters are tested on the same mails; and as many others
# at random.

# %%
print(f"{planted.baseline.quality.value:8.4f}  all mails")
for name, points in show.series(planted).items():
    for point in points:
        print(f"{point.quality.value:8.4f}  {point.knobs['setting']:35} {name}")
show.gains(planted, "random removal", "+.2f", scale=100)  # percentage points

# %% [markdown]
# ## When not to use it
#
# Where the model will meet its training items again, as a cache of frequent requests does, the accuracy with them is
# the one that matters.
