"""Fine-grained joint search: one slimmable supernet, and a greedy walk from its largest network that weighs accuracy
against size and latency together.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Search objective, supernet, search.

The idea. A search for speed alone leaves parameters that do little, and one expansion ratio for all blocks spends as
much on the useless as on the useful. So the choice is fine-grained: a width for each stage, and for each block whether
it is there, whether it attends, and its own expansion ratio. All networks share their weights: a narrower one takes the
leading channels, with batch norms of its own. Trained once by the sandwich rule (largest, smallest, two at random in
every step), any of them can be evaluated without training. The walk starts at the largest and takes, one after the
other, the move that loses the least accuracy for its gain in the mobile efficiency score, which falls with the number
of parameters and with the latency.

    supernet = Slimmable(Space(widths=((16, 32), ...), depths=(2, 2, 4, 3), size=32, in_channels=1, classes=10))
    train(Sandwich(supernet), ...)                            # the loss is the mean over the four sub-networks
    trial = Trial(supernet.extract, SearchData(x, y))         # validation images, never the test set
    path = joint_search(supernet, Efficiency.of(supernet.space, table), trial, target=200)
    network = supernet.extract(path[-1].state)                # or train Network(space, path[-1].state) from scratch

The authors published no code of the search; this one follows the formulas. The loop and the evaluation are those of
`latency_driven_slimming`. The modules: `networks` (plain networks, slimmable supernet, the space of them).
Below stand the score, the moves and the class of the contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from reference_impls.accounting.latency import LatencyTable
from reference_impls.contract import Given, Handle, Number, Redundancy, Setting, check_range, warn_no_effect
from reference_impls.redundancy.irrelevance import indifference
from reference_impls.techniques.fine_grained_joint_search.networks import Network, Sandwich, Slimmable, Space, Subnet
from reference_impls.techniques.latency_driven_slimming.search import (
    SearchData,
    SearchTechnique,
    Step,
    Trial,
    found,
    greedy,
    random_path,
)

EXPONENTS: Mapping[str, float] = {"size": 0.5, "latency": 1.0}
"""How much each metric weighs in the score by default: a choice of the atlas, not confirmed to be the paper's."""
SCORE = 100.0
"""Score of a network whose metrics equal the units."""


def mobile_efficiency_score(
    metrics: Mapping[str, float],
    units: Mapping[str, float],
    exponents: Mapping[str, float] = EXPONENTS,
    score: float = SCORE,
) -> float:
    """score * prod_i (M_i / U_i) ** -a_i: higher for a smaller or faster network (li-2023-rethinking, Eq. 7).

    metrics: M, such as {"size": parameters, "latency": ms}; units: U, what each is measured by; both positive.
    exponents: a, how much each metric weighs, at least 0. They enter with a minus sign, so that less is better.
    Raises: ValueError for different sets of names, or for values that are not positive.
    """
    if not metrics.keys() == units.keys() == exponents.keys():
        raise ValueError(f"metrics, units and exponents must name the same, got {metrics}, {units}, {exponents}")
    for name in metrics:
        check_range(f"metric {name}", metrics[name], 0, low_open=True)
        check_range(f"unit {name}", units[name], 0, low_open=True)
        check_range(f"exponent {name}", exponents[name], 0)
    return score * math.prod((metrics[name] / units[name]) ** -exponents[name] for name in metrics)


@dataclass(frozen=True)
class Efficiency:
    """The mobile efficiency score of a sub-network: parameters by closed form, latency from a table.

    `units` default to the size and latency of the largest sub-network, which then scores 100 (see `of`).
    """

    space: Space
    table: LatencyTable
    units: Mapping[str, float]
    exponents: Mapping[str, float] = field(default_factory=lambda: dict(EXPONENTS))

    @classmethod
    def of(cls, space: Space, table: LatencyTable, exponents: Mapping[str, float] = EXPONENTS) -> Efficiency:
        """The score relative to the largest sub-network of the space."""
        whole = space.largest()
        units = {"size": float(space.total(whole).parameters), "latency": table(whole.parts())}
        return cls(space, table, units, dict(exponents))

    def metrics(self, subnet: Subnet) -> dict[str, float]:
        """Parameters, and predicted latency in the unit of the table."""
        return {"size": float(self.space.total(subnet).parameters), "latency": self.table(subnet.parts())}

    def __call__(self, subnet: Subnet) -> float:
        return mobile_efficiency_score(self.metrics(subnet), self.units, self.exponents)


def moves(space: Space, subnet: Subnet) -> Iterator[tuple[str, Subnet]]:
    """Every smallest step down from a sub-network (the frontier of li-2023-rethinking, Eq. 9).

    Depth: a block loses its attention, or goes, unless it is the last one of its stage. Width: a stage takes the next
    smaller width. Expansion: a block takes the next smaller ratio.
    """
    depths = subnet.depths()
    for j, i, ratio, attends in subnet.blocks():
        if attends:
            yield f"attention {j + 1}.{i + 1}", subnet.with_block(j, i, ratio, attends=False)
        if depths[j] > 1:
            yield f"block {j + 1}.{i + 1}", subnet.with_block(j, i, 0, attends=False)
        if smaller := [r for r in space.ratios if r < ratio]:
            yield f"ratio {j + 1}.{i + 1}", subnet.with_block(j, i, smaller[-1], attends)
    for j, width in enumerate(subnet.widths):
        if smaller := [w for w in space.widths[j] if w < width]:
            yield f"width {j + 1}", subnet.with_width(j, smaller[-1])


def joint_search(
    supernet: Slimmable,
    efficiency: Efficiency,
    quality: Callable[[Subnet], float],
    target: float,
    *,
    tolerance: float = math.inf,
) -> list[Step[Subnet]]:
    """The path from the largest sub-network to the first whose efficiency reaches `target`.

    `quality` scores a sub-network, higher is better (see `Trial`); it is asked once for every move of every frontier.
    A step's `benefit` is its efficiency. The path ends early where every move loses more than `tolerance`.
    """
    space = supernet.space
    return greedy(space.largest(), lambda s: moves(space, s), quality, efficiency, target, tolerance=tolerance)


class FineGrainedJointSearch(SearchTechnique):
    """The search on the contract; the target is a `Slimmable` with its `search` data, in eval mode."""

    id = "fine-grained-joint-search"
    execution = "real"
    supernet = Slimmable
    knobs: ClassVar = {
        "target": Number(2.0, low=1, about="mobile efficiency score to reach, as a multiple of the largest network's"),
        "tolerance": Number(None, low=0, optional=True, about="most quality that a single move may cost; None: any"),
        "table": Given(None, about="latencies of the parts, a `LatencyTable`; None: exact MACs"),
        "exponents": Given(
            {"size": 0.5, "latency": 1.0}, form="table", about="how much size and latency weigh in the score"
        ),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("largest", {"target": 1.0}, off=True),
            Setting("what costs nothing", {"target": 1e6, "tolerance": 1e-4}, adaptive=True),
            Setting("smallest", {"target": 1e6}),
        ]

    @torch.no_grad()
    def measure(self, supernet: Slimmable, inputs: Tensor) -> Redundancy:
        """How little the moves matter: the mean over the first frontier of 1 - min(1, change of the logits).

        The frontier holds every block, attention, expansion step and width step of the largest network; the change of
        the logits y is |y' - y| / |y - mean y| over the inputs (B, C, H, W), one move at a time.
        """
        self._check_measurable(supernet, inputs)
        before, frontier = supernet(inputs), dict(moves(supernet.space, supernet.space.largest()))
        where = {name: indifference(before, supernet(inputs, subnet)) for name, subnet in frontier.items()}
        return Redundancy(sum(where.values()) / len(where), "mean indifference of the output to a move", where)

    def attach(
        self,
        supernet: Slimmable,
        /,
        target: float,
        tolerance: float | None,
        table: LatencyTable | None,
        exponents: Mapping[str, float],
    ) -> Handle:
        """Search a sub-network; the handle's target is a plain `Network`, and the supernet stays as it is.

        The trace holds the sub-network that was `found` and those `evaluated` on the way.
        Raises: UnsupportedHost; ValueError for a supernet without `search` data, or bad exponents.
        """
        data = self._search_data(supernet)
        if not isinstance(exponents, Mapping):
            raise TypeError(f"exponents must be a mapping from metric to weight, got {exponents!r}")
        # Without batch norms to estimate again, a candidate can run inside the supernet.
        trial = Trial(supernet.view if data.calibration is None else supernet.extract, data)
        efficiency = Efficiency.of(supernet.space, self._table(supernet, table), exponents)
        limit = math.inf if tolerance is None else tolerance
        path = joint_search(supernet, efficiency, trial, target * SCORE, tolerance=limit)
        if len(path) == 1:
            warn_no_effect(self.id, "no move is called for by the target and allowed by the tolerance")
        return found(supernet, path, trial)
