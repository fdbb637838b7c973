# %% [markdown]
# # Deadline-aware fusion
#
# A car looks at each frame with several networks and puts their results together. A fast network that takes frames
# which the slow one skips **computes for nothing**. Prophet (RTSS 2022) coordinates the networks so that their progress
# stays close. This notebook shows what that saves, in simulated time, so that everything repeats.

# %%
import matplotlib.pyplot as plt
import torch

from reference_impls import show
from reference_impls.benchmarks.time_variation.branches import BRANCHES, macs_of
from reference_impls.data import video
from reference_impls.techniques.deadline_aware_fusion import DeadlineAwareFusion, Perception, coordinated_outcome

show.style()
record = show.committed("deadline-aware-fusion", "three-branches")

# %% [markdown]
# ## Three branches and a camera
#
# A detector in two stages, a network of fixed work, and a lane finder that votes with edge points. On frames of a clip,
# a branch takes 1 ms for 3 million multiply-accumulates; the camera sends 30 frames per second.

# %%
frames = video.clip("bikes", 12, (120, 160))
branches = {name: make() for name, make in BRANCHES.items()}
times = {name: [max(macs / 3e6, 0.1) for macs in macs_of(branch, frames)] for name, branch in branches.items()}
for name, taken in times.items():
    print(f"{name:12} {min(taken):6.1f} to {max(taken):.1f} ms")
system = Perception(branches, times, period=1000 / 30, example=frames[:1]).eval()

# %% [markdown]
# ## The idea in one picture
#
# Each bar is a frame that a branch computes. Dark bars come into a fusion, light ones are computed for nothing.

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True)
outcomes = {"each alone": system.outcome(12), "coordinated": coordinated_outcome(system, 12, None)}
for axis, (title, outcome) in zip(axes, outcomes.items(), strict=True):
    fused = {round(stamp / system.period) for one in outcome.fused for stamp in one.stamps.values()}
    for row, computed in enumerate(outcome.computed.values()):
        for n in computed:
            axis.barh(row, 0.8, left=n - 0.4, color="tab:blue", alpha=1.0 if n in fused else 0.25)
    axis.set(
        yticks=range(3), yticklabels=list(outcome.computed), title=f"{title}: {outcome.wasted} results for nothing"
    )
axes[-1].set(xlabel="frame")
plt.show()

# %% [markdown]
# ## The fused results are the same
#
# For frames that are fused, the coordinated system gives what the branches give by themselves.

# %%
with torch.no_grad(), DeadlineAwareFusion().apply(system) as handle:
    together = handle.target(frames)
    kept = handle.trace["fused"]
    alone = system.computed(frames, coordinated_outcome(system, 12, None))
print("frames fused:", kept)
print("largest difference:", float((together[kept] - alone[kept]).abs().max()))

# %% [markdown]
# ## How much is redundant
#
# The share of the results that no fusion uses, of each branch; nothing where all branches keep up.

# %%
figure, axis = plt.subplots(figsize=(6, 2.2))
show.bars(axis, {"all": record.redundancy, **record.redundancy.where, **record.redundancy.null},
          label=record.redundancy.measure)  # fmt: skip
plt.show()

# %% [markdown]
# ## Policies
#
# The full experiment: what share of the frames is fused in time, and what each policy costs.

# %%
show.trade_offs(record)
print("policy                           deadline   fused   in time   wasted   median delay   longest")
for row in record.tables["policies"].records():
    middle, longest = ("-" if row[name] is None else f"{row[name]:.1f}" for name in ("median delay", "longest delay"))
    print(
        f"{row['policy']:32} {row['deadline'] or '-':>8} {row['frames fused']:7.1%} {row['fused in time']:9.1%} "
        f"{row['wasted results']:8.1%} {middle:>14} {longest:>9}"
    )

# %% [markdown]
# Taking every frame in its turn wastes nothing, and its delay grows without end. Coordination is no fresher than
# branches by themselves, because every branch waits for the slowest; it saves what was computed for nothing. A deadline
# lets frames go that would come too late.
#
# ## When not to use it
#
# - **Results are used without the fusion.** An emergency stop must not wait for a lane finder.
# - **Processors are shared.** Branches slow each other down, which simulated time leaves out: `redundancy run
#   time-variation --scenario end-to-end` runs them as processes.
