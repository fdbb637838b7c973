"""All-in-One: one set of weights holds networks of several pruning ratios, and the frequency picks one.

Papers
    gong-2022-all: "All-in-One: A Highly Representative DNN Pruning Framework for Edge Devices with Dynamic Power
    Management", arXiv 2212.05122, from its abstract and its framework figure.

Idea
    `shared_weight_multi_ratio_pruning` trains one tensor of weights and one soft mask for all ratios, and makes a
    sub-model of each that is a view of them. `dvfs_ratio_mapping` chooses, for a frequency, the least pruned one that
    is as fast as the first is at full frequency. This module composes the two: a switch is a choice of views, so that
    nothing is loaded or copied, and coming back gives the same outputs bit for bit.

    shared = ...                                                # trained jointly, then shared.finish()
    governor = governed(shared, shape=(1, 28, 28), profile=calibrate(times))
    governor.frequency = 0.5                                    # whenever the device switches
    outputs = governor(x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import warn_no_effect
from reference_impls.contract.knobs import Given, Number
from reference_impls.techniques.dvfs_ratio_mapping import Governor, Ladder, Latency, RatioMapping
from reference_impls.techniques.shared_weight_multi_ratio_pruning import (
    MultiRatioPruning,
    SharedNetwork,
    check_shared,
)


def ladder(shared: SharedNetwork, shape: Sequence[int]) -> Ladder:
    """Sub-models of all ratios of a finished network, on data of a shape without the batch axis."""
    return Ladder([shared.sub_model(ratio) for ratio in shared.ratios], shape)


def governed(
    shared: SharedNetwork, shape: Sequence[int], profile: Sequence[Latency] | None = None, target: float | None = None
) -> Governor:
    """A network that switches its ratio with the frequency. Arguments as of `Governor`."""
    return Governor(ladder(shared, shape), profile, target)


def stored(models: Sequence[nn.Module]) -> int:
    """Bytes of parameters and buffers of several networks, each storage once."""
    tensors = [x.untyped_storage() for model in models for x in [*model.parameters(), *model.buffers()]]
    return sum({one.data_ptr(): one.nbytes() for one in tensors}.values())


class AllInOne(Technique):
    """The sub-model of a shared network that keeps the latency level at a frequency."""

    id = "all-in-one-pruning"
    execution = "real"
    knobs: ClassVar = {
        "frequency": Number(1.0, low=0, high=1, low_open=True, about="of the processor now, as a share of its highest"),
        "profile": Given(
            None, form="list", about="measured latency of each ratio (`calibrate`); None: its MACs, all by the clock"
        ),
        "shape": Given(
            None, form="sizes", about="of one datum, without the batch axis; needed where there is no profile"
        ),
    }
    waivers: ClassVar = {"execution-is-as-declared": "The ratio follows from the frequency, and from no data."}

    def settings(self) -> list[Setting]:
        of_cases = {"shape": (1, 6, 6)}
        falling = [Setting(f"frequency {share:g}", {"frequency": share, **of_cases}) for share in (0.7, 0.5, 0.25)]
        return [Setting("full frequency", {"frequency": 1.0, **of_cases}, off=True), *falling]

    def measure(self, target: Any, inputs: Any) -> Redundancy:
        """Mean of the measures of the parts: how few channels hold the weights, and how far latency can be levelled."""
        shared = check_shared(self.id, target)
        where = {
            "weights": MultiRatioPruning().measure(shared, inputs).value,
            "latency": RatioMapping().measure(ladder(shared, inputs.shape[1:]), inputs).value,
        }
        return Redundancy(sum(where.values()) / len(where), "mean of weights and latency", where)

    def attach(
        self, target: Any, frequency: float, profile: Sequence[Latency] | None, shape: Sequence[int] | None
    ) -> Handle:
        """`handle.target` is a `Governor`, at the frequency; set `handle.target.frequency` to switch. The target stays.

        The trace holds the ratio that runs. Raises: UnsupportedHost for what is no finished SharedNetwork; TypeError or
        ValueError for a profile that is not of it, and where neither a profile nor a shape is given.
        """
        shared = check_shared(self.id, target)
        if profile is None and shape is None:
            raise ValueError("give a profile of measured latencies (`calibrate`), or a shape to count MACs by")
        governor = governed(shared, shape or (), profile)
        governor.frequency = frequency
        if not governor.now:
            warn_no_effect(self.id, "the least pruned sub-model meets the target at this frequency")
        return Handle(governor, trace=lambda: {"ratio": shared.ratios[governor.now]})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """MACs of the least pruned sub-model minus those of the one that ran."""
        macs = ladder(target, inputs.shape[1:]).macs
        return len(inputs) * (macs[0] - macs[target.index(trace["ratio"])])
