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
from reference_impls.contract import Case, Cases, Invalid, NoEffectWarning, Technique
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


def check_extraction(technique: Technique, planted: Callable[[Kind, int], Any], choices: Iterable[Choice]) -> None:
    """Extracted networks take dtype and device of the supernet, and give its outputs; the generators stay."""
    choices = list(choices)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        supernet = planted("typical", 0).to(dtype)
        before = torch.get_rng_state()
        networks = [supernet.extract(choice) for choice in choices]
        assert torch.equal(before, torch.get_rng_state())
        for network in networks:
            assert {x.dtype for x in network.state_dict().values() if x.is_floating_point()} == {dtype}
        x = torch.randn(2, 1, supernet.space.size, supernet.space.size, generator=generator(0)).to(dtype)
        assert torch.equal(networks[0](x), supernet(x))
    placed = planted("typical", 0).to("meta").extract(choices[-1])
    assert {x.device.type for x in placed.state_dict().values()} == {"meta"}


def check_search_follows(technique: Technique, planted: Callable[[Kind, int], Any], target: float) -> None:
    """A supernet in double precision searches on data in single precision, and finds the same."""
    found = []
    for dtype in (torch.float32, torch.float64):
        supernet = planted("typical", 0).to(dtype)
        x = torch.randn(4, 1, supernet.space.size, supernet.space.size, generator=generator(0))
        supernet.search = SearchData(x, torch.arange(4) % 3, x)
        with technique.apply(supernet, target=target) as handle:
            found.append(handle.trace["found"])
            assert next(handle.target.parameters()).dtype == dtype
    assert found[0] == found[1] != supernet.space.largest()


def check_degenerate_searches(technique: Technique, planted: Callable[[Kind, int], Any]) -> None:
    """What leaves nothing to choose by is named when the search is applied, or when it is measured."""

    def applied(change: Callable[[Any], object] = lambda supernet: None, **how: Any) -> Callable[[], object]:
        supernet = planted("typical", 0)
        space = supernet.space
        draw = torch.randn(4, 1, space.size, space.size, generator=generator(0))
        supernet.search = SearchData(draw, how.pop("y", None))
        change(supernet)
        return lambda: technique.apply(supernet, **how)

    def not_finite(supernet: Any) -> None:
        next(supernet.parameters()).data[0] = torch.nan

    def constant(supernet: Any) -> None:
        for module in supernet.modules():
            if isinstance(module, nn.Linear) and module.out_features == supernet.space.classes:
                module.weight.data.zero_()

    supernet = planted("typical", 0)
    free = LatencyTable(dict.fromkeys(supernet.space.every_part(), 0.0))
    for says, call in {
        "class 5, but there are 5 classes": applied(y=torch.tensor([0, 1, 2, 5])),
        "not finite": applied(not_finite),
        "the same for all inputs": applied(constant),
        "predicts no latency": applied(table=free),
        "must be a LatencyTable": applied(table={"stem": 1.0}),
        "at least two inputs": lambda: technique.measure(supernet, torch.zeros(1, 1, 16, 16)),
    }.items():
        with pytest.raises((TypeError, ValueError), match=says):
            call()
    needed = planted("null", 0)
    needed.search = SearchData(torch.randn(4, 1, needed.space.size, needed.space.size, generator=generator(0)))
    with pytest.warns(NoEffectWarning, match="no move"):
        technique.apply(needed, tolerance=1e-3)
