"""Latency-driven slimming: train one supernet, measure what its parts take on a device, and cut what costs more than it
is worth.

References:
  li-2022-efficientformer: Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren. EfficientFormer: Vision Transformers at
    MobileNet Speed. NeurIPS 2022, arXiv 2206.01191. Supernet of MetaPaths, latency table, gradual slimming.

The idea. Every position of a supernet chooses among a block on maps (MB4D), in the late stages also a block on tokens
(MB3D), and the identity. The choice is mixed by a Gumbel softmax while the supernet trains, once, so that the logits of
the choices tell how important each position is. Then the network shrinks step by step. Three moves compete: leave out
the least important block; turn the first MB3D back into an MB4D; take 16 channels from the least important stage. A
table of measured latencies tells what each would save, an evaluation what it would cost, and the one with the least
loss of accuracy for each millisecond is made, until the target is reached.

    supernet = Supernet(Space(widths=(32, 48, 64, 96), depths=(2, 2, 3, 3), size=32, in_channels=1, classes=10))
    ...                                                       # train it as any network
    trial = Trial(supernet.extract, SearchData(x, y))         # validation images, never the test set
    path = slim(supernet, table, trial, target=0.5)           # half of the predicted latency
    network = supernet.extract(path[-1].state)

The authors published no code of the search; this one follows the formulas. The modules: `networks` (supernet, plain
networks, the space of them), `search` (the greedy loop, evaluation). Below stand the three moves and the
class of the contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from reference_impls.accounting.latency import LatencyTable
from reference_impls.contract import Given, Handle, Number, Redundancy, Setting, warn_no_effect
from reference_impls.redundancy.irrelevance import indifference
from reference_impls.techniques.latency_driven_slimming.networks import (
    STEP,
    Architecture,
    Kind,
    Network,
    Space,
    Supernet,
    path_weights,
)
from reference_impls.techniques.latency_driven_slimming.search import (
    SearchData,
    SearchTechnique,
    Step,
    Trial,
    found,
    greedy,
    random_path,
)

Importance = Mapping[tuple[int, int], float]
"""Position (stage, index) -> how much more its blocks matter than the identity."""


def importance(probabilities: Mapping[tuple[int, int], Mapping[Kind, float]]) -> dict[tuple[int, int], float]:
    """Importance of each position: p(4d) / p(identity), in late stages (p(4d) + p(3d)) / p(identity).

    `probabilities`: softmax of the learned logits, see `Supernet.probabilities`. A stage is worth the sum over its
    positions.
    """
    return {
        position: sum(p for kind, p in choices.items() if kind != "identity") / max(choices["identity"], 1e-12)
        for position, choices in probabilities.items()
    }


def moves(architecture: Architecture, scores: Importance) -> Iterator[tuple[str, Architecture]]:
    """The three moves of slimming: at most one each of `remove`, `3d to 4d` and `narrow`.

    The least important block goes, unless it is the last one of its stage; the first MB3D becomes MB4D, so that MB3D
    stay after all MB4D; the least important stage that is wider than 16 channels gives up 16. The importance of a
    stage counts the positions whose blocks are still there.
    """
    depths = architecture.depths()
    blocks = [(j, i) for j, i, kind in architecture.positions() if kind != "identity"]
    if removable := [(j, i) for j, i in blocks if depths[j] > 1]:
        j, i = min(removable, key=lambda position: scores[position])
        yield f"remove {j + 1}.{i + 1}", architecture.replaced(j, i, "identity")
    yield from _without_first_3d(architecture)
    stages = [j for j, width in enumerate(architecture.widths) if width > STEP]
    if stages:
        least = min(stages, key=lambda j: sum(scores[position] for position in blocks if position[0] == j))
        yield f"narrow {least + 1}", architecture.narrowed(least)


def all_moves(architecture: Architecture) -> Iterator[tuple[str, Architecture]]:
    """Every move that keeps the rules, whatever the importance: what the control draws from."""
    depths = architecture.depths()
    for j, i, kind in architecture.positions():
        if kind != "identity" and depths[j] > 1:
            yield f"remove {j + 1}.{i + 1}", architecture.replaced(j, i, "identity")
    yield from _without_first_3d(architecture)
    for j, width in enumerate(architecture.widths):
        if width > STEP:
            yield f"narrow {j + 1}", architecture.narrowed(j)


def _without_first_3d(architecture: Architecture) -> Iterator[tuple[str, Architecture]]:
    for j, i, kind in architecture.positions():
        if kind == "3d":
            yield f"3d to 4d {j + 1}.{i + 1}", architecture.replaced(j, i, "4d")
            return


def slim(
    supernet: Supernet,
    table: LatencyTable,
    quality: Callable[[Architecture], float],
    target: float,
    *,
    tolerance: float = math.inf,
) -> list[Step[Architecture]]:
    """The path from the largest network to the first of at most `target` times its latency in `table`.

    `quality` scores an architecture, higher is better (see `Trial`). A step's `benefit` is minus its latency. The path
    ends early where no move is left that saves anything and loses at most `tolerance`.
    """
    scores = importance(supernet.probabilities())
    start = supernet.space.largest()

    def benefit(architecture: Architecture) -> float:
        return -table(architecture.parts())

    return greedy(start, lambda a: moves(a, scores), quality, benefit, target * benefit(start), tolerance=tolerance)


class LatencyDrivenSlimming(SearchTechnique):
    """Slimming on the contract; the target is a `Supernet` with its `search` data, in eval mode."""

    id = "latency-driven-slimming"
    execution = "real"
    supernet = Supernet
    knobs: ClassVar = {
        "target": Number(0.5, low=0, high=1, about="latency to reach, as a share of the largest network's"),
        "tolerance": Number(None, low=0, optional=True, about="most quality that a single move may cost; None: any"),
        "table": Given(None, about="latencies of the parts, a `LatencyTable`; None: exact MACs"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("whole", {"target": 1.0}, off=True),
            Setting("what costs nothing", {"target": 0.0, "tolerance": 1e-4}, adaptive=True),
            Setting("half of the latency", {"target": 0.5}),
        ]

    @torch.no_grad()
    def measure(self, supernet: Supernet, inputs: Tensor) -> Redundancy:
        """How little the blocks matter: the mean over positions of 1 - min(1, change when the block is left out).

        The change is that of the logits y, |y' - y| / |y - mean y| over the inputs (B, C, H, W), one block at a time.
        """
        self._check_measurable(supernet, inputs)
        whole = supernet.space.largest()
        before = supernet(inputs)
        without = {f"stage {j + 1} block {i + 1}": whole.replaced(j, i, "identity") for j, i, _ in whole.positions()}
        where = {name: indifference(before, supernet.path(inputs, a)) for name, a in without.items()}
        return Redundancy(sum(where.values()) / len(where), "mean indifference of the output to a block", where)

    def attach(
        self, supernet: Supernet, /, target: float, tolerance: float | None, table: LatencyTable | None
    ) -> Handle:
        """Slim the network; the handle's target is a plain `Network`, and the supernet stays as it is.

        The trace holds the architecture that was `found` and those `evaluated` on the way.
        Raises: UnsupportedHost; ValueError for a supernet without `search` data.
        """
        data = self._search_data(supernet)
        trial = Trial(supernet.extract, data)
        limit = math.inf if tolerance is None else tolerance
        path = slim(supernet, self._table(supernet, table), trial, target, tolerance=limit)
        if len(path) == 1:
            warn_no_effect(self.id, "no move is called for by the target and allowed by the tolerance")
        return found(supernet, path, trial)
