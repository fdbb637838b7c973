# %% [markdown]
# # Variation of inference time
#
# The mean of a benchmark says nothing about the slowest frame, and deadlines are missed by slow frames. *Understanding
# Time Variations of DNN Inference in Autonomous Driving* (arXiv 2209.05487) asks where the variation comes from: the
# data, the way in, the model, the runtime, the hardware, or the whole system. This notebook profiles a small pipeline,
# and then reads six experiments from their records.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from reference_impls import show
from reference_impls.data import video
from reference_impls.models import mtcnn
from reference_impls.variation import ALL, Profiler, queries, report, shares, spread

show.style()
SCENARIOS = ("scenes", "arrival", "structure", "runtime", "neighbours", "end-to-end")
records = {name: show.committed("time-variation", name) for name in SCENARIOS}

# %% [markdown]
# ## How much the work of a frame varies
#
# The work of a two-stage detector follows what a frame shows, and so does that of a transformer that merges the tokens
# which are alike, less so. Counted in multiply-accumulates this is exact, whatever the machine does meanwhile.

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
scenes = records["scenes"]
named = {"one frame again": scenes.baseline, **{p.knobs["condition"]: p for p in scenes.points}}
for place, one in enumerate(named.values()):
    axis.plot([1, one.items.macs_p99 / one.items.macs_p50], [place, place], "-", linewidth=6, alpha=0.5)
    axis.plot(1, place, "o", color="black")
axis.set(
    yticks=range(len(named)),
    yticklabels=list(named),
    xlabel="MACs of a frame over their median: P50 (dot) to P99",
    ylim=(-0.6, len(named) - 0.4),
)
plt.show()

# %% [markdown]
# ## A profile
#
# Stages are marked with `with`; the profiler reads the wall clock, the processor's, and that of the run queue, where a
# thread waits for a processor. `redundancy profile SCRIPT.py` does the same for a script. The times below are measured
# now, on the machine that built this page.

# %% tags=["timed"]
detector, profiler = mtcnn.pretrained(), Profiler(ALL)
with torch.no_grad():
    for image in video.clip("carphone", 30, (120, 160)):
        with profiler.frame():
            with profiler.stage("propose"):
                proposals = detector.propose(image[None])
            with profiler.stage("refine"):
                kept = detector.refine(image[None], proposals)
            with profiler.stage("conclude"):
                detector.conclude(image[None], kept)
print(report(profiler.spans, warmup=2, clocks=ALL).to_text())

# %% [markdown]
# ## Whose the variation is
#
# The share of a stage is its covariance with the whole over the variance of the whole. Shares sum to one; what no stage
# covers is a part of its own. With times that were drawn, everything is known: the middle stage is longer on
# every fifth frame.

# %%
draws = np.random.default_rng(0)
first, middle, last = draws.normal(10, 1, 200), draws.normal(20, 1, 200), draws.normal(5, 1, 200)
middle[::5] += 15
total = first + middle + last + 0.5
found = shares({"first": first, "middle": middle, "last": last}, total)
print({name: round(share, 3) for name, share in found.items()}, "sum", round(sum(found.values()), 9))
figure, axis = plt.subplots(figsize=(6, 2))
show.bars(axis, found, label="share of the variance")
plt.show()

# %% [markdown]
# ## How many frames a statement about the tail needs
#
# P99 of fewer than 100 frames is their maximum under another name, and is refused. To show at 99 % confidence that 99 %
# of the frames stay below a limit takes:

# %%
print({f"{above} above": queries(0.99, above) for above in (0, 1, 2, 5)})
print(spread(total).sparse, "rests on fewer than ten frames beyond it")

# %% [markdown]
# ## Model: one stage, two stages, raw points
#
# The middle half of the frames, as a share of the median, in counted work and on the processor. In the published box
# plot lane detectors on raw points vary most, then two-stage detectors, then one-stage detectors.

# %%
rows = records["structure"].tables["spread"].records()
figure, axis = plt.subplots(figsize=(7, 2.6))
conditions = list(dict.fromkeys(row["condition"] for row in rows))
for offset, cost in ((-0.2, "MACs"), (0.2, "processor ms")):
    widths = [next(r for r in rows if r["condition"] == c and r["cost"] == cost)["middle half over median"]
              for c in conditions]  # fmt: skip
    axis.barh(np.arange(len(conditions)) + offset, widths, height=0.35, label=cost)
axis.set(yticks=range(len(conditions)), yticklabels=conditions, xlabel="middle half over median")
axis.legend()
plt.show()

# %% [markdown]
# ## Runtime and hardware: computing, or waiting?
#
# Wall time is time on the processor, time in the run queue, and a rest. Which of them varies?

# %%
for name in ("arrival", "runtime", "neighbours"):
    print(records[name].title)
    for row in records[name].tables["causes"].records():
        print("   " + f"{row['condition']:30} processor {row['processor']:6.1%}   run queue {row['run queue']:6.1%}   "
              f"rest {row['rest']:6.1%}")  # fmt: skip

# %% [markdown]
# A process that has its core to itself hardly waits: what varies is the processor, which needs longer for the same
# multiply-accumulates at some moments. Beside a busy neighbour on the same core about half of the variation is waiting.
# The wall clock tells neither from the work, which is why nothing above rests on it alone.
#
# ## The whole system
#
# Three branches run as processes, and a fusion puts their results together, under five policies of which frames a
# branch takes. *Simulated* replays the latencies of the first pass with a processor for each branch.

# %%
print("policy                              time        fused   in time   wasted   median delay")
for row in records["end-to-end"].tables["fusion"].records():
    delay = "-" if row["median delay"] is None else f"{row['median delay']:.0f} ms"
    print(f"{row['policy']:35} {row['time']:10} {row['frames fused']:6.1%} {row['fused in time']:8.1%} "
          f"{row['wasted results']:8.1%} {delay:>12}")  # fmt: skip
for note in dict.fromkeys(
    note for record in records.values() for note in record.notes if note.startswith("Not varied")
):
    print(note)
