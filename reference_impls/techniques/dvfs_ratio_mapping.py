"""Mapping of frequencies to pruning ratios: as the clock falls, a more pruned network keeps the latency level.

Papers
    gong-2022-all: All-in-One, arXiv 2212.05122, from its abstract and its framework figure: a device that saves power
    lowers frequency and voltage, and switches to the pruning ratio that fits. The rule here, and the model of latency,
    are our reading, since the text could not be read.

Idea
    Given networks from the least to the most pruned, each one's latency at frequency phi, as a share of the highest,
    is modelled as T(phi) = A / phi + B: A follows the clock, B (memory, waiting) does not. Both are fitted to measured
    times at two levels or more. The target is the latency of the first network at full frequency; at every level the
    least pruned network that meets it runs, and the most pruned one where none does.

    ladder = Ladder([shared.sub_model(r) for r in shared.ratios], shape=(1, 28, 28))
    governor = Governor(ladder, calibrate(times))          # times: frequency -> milliseconds of each network
    governor.frequency = 0.5                               # whenever the device switches
    outputs = governor(x)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, warn_no_effect
from reference_impls.contract.knobs import Given, Number

ID = "dvfs-ratio-mapping"
LEVELS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the highest frequency over which variation is told where nobody names levels."""


class Latency(NamedTuple):
    """T(phi) = scaled / phi + fixed, in milliseconds or in any unit that all networks have in common."""

    scaled: float
    fixed: float = 0.0

    def at(self, frequency: float) -> float:
        """At a share of the highest frequency, in (0, 1]."""
        return self.scaled / frequency + self.fixed


def fit(frequencies: Sequence[float], times: Sequence[float]) -> Latency:
    """The model nearest to times at some frequencies, by least squares with neither part below 0.

    Raises: ValueError for fewer than two different frequencies, for others than in (0, 1], or for times of 0 or less.
    """
    for frequency in frequencies:
        check_range("frequency", frequency, 0, 1, low_open=True)
    if len(set(frequencies)) < 2 or len(times) != len(frequencies):
        raise ValueError(f"times at two frequencies or more are needed, one each: {len(times)} at {tuple(frequencies)}")
    if min(times) <= 0:
        raise ValueError(f"times must be above 0 milliseconds, got {min(times):g}")
    a = torch.tensor([[1 / frequency, 1.0] for frequency in frequencies], dtype=torch.float64)
    t = torch.tensor(list(times), dtype=torch.float64).view(-1, 1)
    scaled, fixed = torch.linalg.lstsq(a, t).solution.flatten().tolist()
    if fixed < 0:
        return Latency(float((a[:, 0] @ t[:, 0]) / (a[:, 0] @ a[:, 0])))
    return Latency(scaled, fixed) if scaled >= 0 else Latency(0.0, float(t.mean()))


@prepares("calibration")
def calibrate(times: Mapping[float, Sequence[float]]) -> list[Latency]:
    """The model of each network from frequency -> measured times (networks,). Raises as `fit`."""
    return [fit(list(times), one) for one in zip(*times.values(), strict=True)]


def chosen(profile: Sequence[Latency], frequency: float, target: float) -> int:
    """The first network, the least pruned, whose latency is at most the target; the last where none is."""
    met = (i for i, one in enumerate(profile) if one.at(frequency) <= target * (1 + 1e-9))
    return next(met, len(profile) - 1)


def variation(times: Iterable[float]) -> float:
    """Coefficient of variation: standard deviation over mean of the latencies of all levels, each weighing the same."""
    found = torch.tensor(list(times), dtype=torch.float64)
    return float(found.std(correction=0) / found.mean())


class Ladder(nn.ModuleList):
    """Networks of one task from the least to the most pruned. Calling it runs the first.

    shape: of one datum, without the batch axis, by which the MACs of each are told.
    """

    def __init__(self, models: Sequence[nn.Module], shape: Sequence[int]) -> None:
        super().__init__(models)
        if not len(self):
            raise ValueError("a ladder needs one network or more")
        self.shape = tuple(shape)

    @property
    def macs(self) -> list[int]:
        """MACs of each network for one datum. Raises TypeError for a network without a closed form."""
        return [closed_form(model, self.shape).macs for model in self]

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)  # type: ignore[no-any-return]


def check_profile(profile: Sequence[Latency] | None, ladder: Ladder) -> list[Latency]:
    """The profile, or one by MACs alone. Raises ValueError for one of another length, TypeError for other things."""
    if profile is None:
        return [Latency(float(macs)) for macs in ladder.macs]
    if not all(isinstance(one, Latency) for one in profile):
        raise TypeError("profile must hold a Latency for each network: calibrate(times) makes it from measured times")
    if len(profile) != len(ladder):
        raise ValueError(f"profile is of {len(profile)} networks, the ladder has {len(ladder)}")
    return list(profile)


class Governor(nn.Module):
    """Runs the network that fits the frequency; set `frequency` when the device switches.

    target: latency to keep, in the profile's unit; by default that of the first network at full frequency.
    """

    def __init__(self, ladder: Ladder, profile: Sequence[Latency] | None = None, target: float | None = None) -> None:
        super().__init__()
        self.ladder, self.profile = ladder, check_profile(profile, ladder)
        self.target = self.profile[0].at(1.0) if target is None else target
        self.frequency = 1.0

    @property
    def frequency(self) -> float:
        """Share of the highest frequency, in (0, 1]."""
        return self._frequency

    @frequency.setter
    def frequency(self, share: float) -> None:
        check_range("frequency", share, 0, 1, low_open=True)
        self._frequency = share
        self.now = chosen(self.profile, share, self.target)

    def forward(self, x: Tensor) -> Tensor:
        return self.ladder[self.now](x)  # type: ignore[no-any-return]


class RatioMapping(Technique):
    """The network of a ladder that keeps the latency level at a frequency."""

    id = "dvfs-ratio-mapping"
    execution = "real"
    knobs: ClassVar = {
        "frequency": Number(1.0, low=0, high=1, low_open=True, about="of the processor now, as a share of its highest"),
        "profile": Given(
            None, form="list", about="measured latency of each network (`calibrate`); None: its MACs, all by the clock"
        ),
    }
    waivers: ClassVar = {"execution-is-as-declared": "The network follows from the frequency, and from no data."}

    def settings(self) -> list[Setting]:
        falling = [Setting(f"frequency {share:g}", {"frequency": share}) for share in (0.8, 0.5, 0.25)]
        return [Setting("full frequency", {"frequency": 1.0}, off=True), *falling]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of the variation of latency over `LEVELS` that the mapping takes away, by MACs alone."""
        ladder = check_ladder(self.id, target)
        profile = check_profile(None, ladder)
        whole = variation(profile[0].at(level) for level in LEVELS)
        left = variation(profile[chosen(profile, level, profile[0].at(1))].at(level) for level in LEVELS)
        return Redundancy(min(max(1 - left / whole, 0.0), 1.0), "share of the variation over frequencies taken away")

    def attach(self, target: Any, frequency: float, profile: Sequence[Latency] | None) -> Handle:
        """`handle.target` is the network to run at this frequency; the trace says which of the ladder it is.

        Raises: UnsupportedHost for what is no `Ladder`; TypeError or ValueError for a profile that is not of it.
        """
        ladder = check_ladder(self.id, target)
        models = check_profile(profile, ladder)
        now = chosen(models, frequency, models[0].at(1.0))
        if not now:
            warn_no_effect(self.id, "the least pruned network meets the target at this frequency")
        return Handle(ladder[now], trace=lambda: {"network": now})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """MACs of the first network minus those of the one that runs."""
        return len(inputs) * (target.macs[0] - target.macs[trace["network"]])


def check_ladder(technique: str, target: object) -> Ladder:
    """The target, if it is a ladder. Raises UnsupportedHost otherwise."""
    if not isinstance(target, Ladder):
        raise UnsupportedHost(technique, target, "a Ladder: networks of one task, from the least pruned on")
    return target
