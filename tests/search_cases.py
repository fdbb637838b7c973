"""Cases and checks of both searches: supernets whose parts are known to matter or not, and what their networks cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import nn

from reference_impls.accounting.count import count
from reference_impls.accounting.latency import LatencyTable
from reference_impls.contract import Case, Cases, Invalid, Technique
from reference_impls.layers.search_space import Choice, Part, SearchSpace
from reference_impls.techniques.latency_driven_slimming import SearchData
from tests.support import generator, parameters

Kind = Literal["typical", "redundant", "null"]


class SearchCases(Cases):
    """`planted(kind, seed)` makes a supernet; candidates are held to the whole network's outputs on `inputs` images."""

    def __init__(self, technique: Technique, planted: Callable[[Kind, int], Any], inputs: int) -> None:
        self.technique, self.planted, self.inputs = technique, planted, inputs

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        supernet, draw = self.planted(kind, seed).to(device), generator(seed + 1)
        shape = 1, supernet.space.size, supernet.space.size
        supernet.search = SearchData(torch.randn(2, *shape, generator=draw).to(device))
        inputs = torch.randn(self.inputs, *shape, generator=draw).to(device)
        return Case(supernet, inputs, lambda network, x: network(x))

    def invalid(self, device: str) -> Iterable[Invalid]:
        apply, case = self.technique.apply, self.build("typical", 0, device)
        supernet, x = case.target, case.inputs
        nothing, training = self.planted("typical", 0), self.planted("typical", 0).train()
        yield Invalid("a colour image", lambda: supernet(x.repeat(1, 3, 1, 1)), "must have shape (B, 1, 16, 16)")
        yield Invalid("NaN to search on", lambda: SearchData(x * torch.nan), "not finite")
        yield Invalid("labels of other images", lambda: SearchData(x, torch.zeros(3).long()), "as many labels")
        yield Invalid("a table of nothing", lambda: apply(supernet, table=LatencyTable({})), "the table holds no")
        yield Invalid("nothing to search on", lambda: apply(nothing), "supernet.search")
        yield Invalid("a supernet in training mode", lambda: apply(training), "eval mode")


def check_costs(space: SearchSpace, network: Callable[[Any, Any], nn.Module], choices: Iterable[Choice]) -> None:
    """Closed form, table and counter agree on the networks of a space."""
    table = space.macs_table()
    for choice in choices:
        model = network(space, choice).eval()
        with torch.no_grad(), count() as tally:
            model(torch.zeros(2, space.in_channels, space.size, space.size))
        assert tally.macs == 2 * space.total(choice).macs == 2 * table(choice.parts())
        assert parameters(model) == space.total(choice).parameters


def check_parts(space: SearchSpace, unknown: Part, scale: Callable[[Part], int] = lambda part: 0) -> None:
    """Every part is built as it costs; `scale` tells how many parameters of the closed form it is built without."""
    for part in space.every_part():
        module = space.build(part).eval()
        with torch.no_grad(), count() as tally:
            module(space.example(part, 3))
        assert tally.macs == 3 * space.cost(part).macs, part
        assert parameters(module) + scale(part) == space.cost(part).parameters, part
    with pytest.raises(ValueError, match="no part"):
        space.build(unknown)


def check_contender(experiment: ModuleType, found: str, space: SearchSpace, choice: Callable[[Any], Choice]) -> None:
    """The contender is what the committed record found; its rivals follow the seed, and take no more MACs."""
    assert experiment.FOUND.text() == found
    (contender,) = experiment.CONTENDERS["compact-networks/networks-fashion"]
    assert contender.at_random is not None
    drawn = [choice(contender.at_random(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(space.total(one).macs <= space.total(experiment.FOUND).macs for one in drawn)
