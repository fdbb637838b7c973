"""SpFDE: sparse training whose layers freeze from the front, on a sieved part of the data.

Papers
    yuan-2022-layer: "Layer Freezing & Data Sieving: Missing Pieces of a Generic Framework for Sparse Training",
    arXiv 2209.11204. Its engine is MEST with a soft memory bound (yuan-2021-mest, arXiv 2110.14032).

Idea
    Three savings in one training. What is due at the end of an epoch is done in one order: the data are sieved, masks
    are pruned and grown, blocks freeze. A layer that is about to freeze is brought to its target first, since between
    growing above the bound and pruning back it has more active weights than it should keep.

The three parts are those of `dynamic_sparse_training`, `layer_freezing` and `data_sieving`; this module composes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.hosts.training import Part, Training, check_training, saved
from reference_impls.techniques.data_sieving import DataSieving, Sieving
from reference_impls.techniques.dynamic_sparse_training import (
    METHODS,
    DynamicSparseTraining,
    SparseTraining,
    active_count,
    sparse_layers,
)
from reference_impls.techniques.layer_freezing import Freezing, LayerFreezing, Scheme, Timeline, solve

METHOD = "em&s"


class SpFDE(Part):
    """The three parts of a run: `sieve`, `sparse` and `freezing`, in the order in which an epoch ends."""

    def __init__(self, sieve: Sieving, sparse: SparseTraining, freezing: Freezing, names: Sequence[str]) -> None:
        self.sieve, self.sparse, self.freezing = sieve, sparse, freezing
        self.parts: tuple[Part, ...] = (sieve, sparse, freezing)
        freezing.before = lambda blocks: sparse.settle(_inside(sparse, names, blocks))
        freezing.after = lambda blocks: sparse.unsettle(_inside(sparse, names, blocks))

    def examples(self) -> Tensor:
        """Those of the sieve."""
        return self.sieve.examples()

    def lifetimes(self) -> Sequence[float]:
        """Those of the frozen blocks."""
        return self.freezing.lifetimes()

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        """Counts forgetting."""
        self.sieve.seen(index, outputs, y)

    def epoch_ended(self, epoch: int) -> None:
        """Sieve, prune and grow, freeze."""
        for part in self.parts:
            part.epoch_ended(epoch)

    def detach(self) -> None:
        """As plain as before."""
        for part in self.parts:
            part.detach()

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for part, one in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(one)


def _inside(sparse: SparseTraining, names: Sequence[str], blocks: Sequence[int]) -> list[str]:
    """Names of the sparse layers in these blocks, whose names are `names`."""
    return [name for name in sparse.layers if name.split(".")[0] in {names[i] for i in blocks}]


def target_density(training: Training, sparsity: float) -> dict[str, Any]:
    """The trace of a training whose sparse layers are at their target throughout, for `hosts.training.ledger`."""
    groups = {name: layer.weight.numel() for name, layer in sparse_layers(training.model).items()}
    active = {name: [active_count(n, sparsity)] * training.epochs for name, n in groups.items()}
    return {"groups": groups, "active": active, "pattern": "element"}


def soft_density(training: Training, sparsity: float) -> dict[str, Any]:
    """The same with the active weights that MEST's soft bound allows in each epoch, masks moving after every one."""
    trace, bounds = target_density(training, sparsity), METHODS[METHOD].bounds
    assert bounds is not None
    for name, n in trace["groups"].items():
        grown = [bounds(sparsity, epoch / training.epochs).grow for epoch in range(1, training.epochs)]
        trace["active"][name][1:] = [active_count(n, one) for one in grown]
    return trace


class SpFDETechnique(Technique):
    """SpFDE: sparse masks of elements, freezing in one of four schemes, circular data sieving."""

    id = "spfde"
    execution = "real"
    knobs: ClassVar = {
        "sparsity": Number(0.9, low=0, high=0.999, about="share of the weights of each sparse layer that are zero"),
        "saving": Number(0.2, low=0, high=0.66, about="share of the sparse training's MACs that freezing is to save"),
        "scheme": Choice(
            "single-shot",
            options=("single-shot", "single-shot & resume", "periodic", "delayed periodic"),
            about="when blocks freeze and whether they thaw",
        ),
        "removed": Number(0.2, low=0, high=0.95, about="share of the examples that are left out at any time"),
        "exchanged": Number(0.1, low=0, high=1, about="share of the active examples that change sides in an update"),
        "interval": Integer(1, low=1, about="epochs between two updates of data, masks and frozen blocks"),
        "seed": Integer(0, low=0, about="of masks, growth and the split of the data"),
    }
    waivers: ClassVar = {"execution-is-as-declared": "All three savings are budgets set before training."}

    def settings(self) -> list[Setting]:
        def setting(name: str, sparsity: float, saving: float, removed: float, off: bool = False) -> Setting:
            return Setting(name, {"sparsity": sparsity, "saving": saving, "removed": removed}, off=off)

        return [
            setting("nothing saved", 0.0, 0.0, 0.0, off=True),
            setting("sparse, 5 % + 10 %", 0.75, 0.05, 0.1),
            setting("sparse, 20 % + 25 %", 0.75, 0.2, 0.25),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean of the measures of the three parts: of the weights, the layers and the examples."""
        parts = {"weights": DynamicSparseTraining(), "layers": LayerFreezing(), "examples": DataSieving()}
        where = {name: part.measure(target, inputs).value for name, part in parts.items()}
        return Redundancy(sum(where.values()) / len(where), "mean of weights, layers and examples", where)

    def attach(
        self,
        target: Any,
        sparsity: float,
        saving: float,
        scheme: Scheme,
        removed: float,
        exchanged: float,
        interval: int,
        seed: int,
    ) -> Handle:
        """A training with all three; the trace holds frozen blocks, active weights and examples of each epoch.

        Raises: as the three techniques.
        """
        training = check_training(self.id, target)
        base = target_density(training, sparsity)
        timeline = solve(training, saving, scheme, interval, trace=base) if saving else ((),) * training.epochs
        if not sparsity and not any(timeline) and not int(removed * len(training.x) + 1e-9):
            warn_no_effect(self.id, "nothing is masked, frozen or left out")
        active, examples = dict[str, list[int]](), list[int]()
        part = partial(
            _spfde,
            timeline=timeline,
            sieving={
                "examples": len(training.x), "removed": removed, "exchanged": exchanged, "interval": interval,
                "epochs": training.epochs, "seed": seed, "log": examples,
            },
            masking={
                "sparsity": sparsity, "method": METHOD if sparsity else "static", "interval": interval,
                "epochs": training.epochs, "seed": seed, "log": active,
            },
        )  # fmt: skip

        def trace() -> Mapping[str, Any]:
            seen = {"examples": examples[: training.epochs], "frozen": list(timeline)}
            return {**base, **seen, "active": active}

        return Handle(training.plus(part), trace=trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.training.ledger`: masks of elements save nothing on dense kernels, the other two do."""
        return saved(target, trace)


def _spfde(
    model: nn.Module, optimiser: Optimizer, timeline: Timeline, sieving: dict[str, Any], masking: dict[str, Any]
) -> SpFDE:
    sparse = SparseTraining(model, optimiser, **masking)
    freezing = Freezing(model.children(), optimiser, timeline)
    return SpFDE(Sieving(**sieving), sparse, freezing, [name for name, _ in model.named_children()])
