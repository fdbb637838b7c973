"""The benchmark of several ratios: the duty cycle by a clock of its own, masks put on afterwards, and what moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reference_impls.benchmarks import multi_ratio as benchmark
from reference_impls.contract import generator
from reference_impls.study.intervals import over_rounds
from reference_impls.techniques.shared_weight_multi_ratio_pruning import SharedNetwork
from tests.ratio_cases import RATIOS, chain


class Clock:
    """Time that passes where it is asked for, slept, or worked."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-4  # longer than asked, as real ones are


class Work(nn.Module):
    """Takes the time that it is told of."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x + self.seconds


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_a_duty_cycle_stretches_the_whole_latency_by_its_share(share: float, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(benchmark, "time", clock)
    model = nn.Sequential(*(Work(clock, seconds) for seconds in (0.004, 0.001, 0.0001)))
    outputs = benchmark.slowed(model, share)(torch.zeros(1))
    assert clock.now == pytest.approx(0.0051 / share, rel=0.01)
    assert torch.equal(outputs, model(torch.zeros(1)))


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="share must be"):
        benchmark.slowed(nn.Sequential(), 0.0)


def test_masks_put_on_afterwards_keep_the_largest_weights():
    plan = benchmark.RatioPlan(ratios=RATIOS, granularity="element")
    dense = SharedNetwork(chain(), (0.0,), "element", score="magnitude")
    models = benchmark.masked_afterwards(plan, dense)
    x = torch.randn(3, 1, 6, 6, generator=generator(0))
    torch.testing.assert_close(models[0](x), dense.eval()(x))
    layer = dense.layers()[0].weight.abs()
    kept = models[2][1][0].levels > 2  # type: ignore[index, union-attr, operator]
    assert int(kept.sum()) == layer.numel() // 2
    assert float(layer[kept].min().detach()) >= float(layer[~kept].max().detach())


def test_the_median_over_rounds_lies_in_its_interval():
    found = over_rounds([3.0, 1.0, 2.0, 9.0, 2.0])
    assert (found.value, found.n) == (2.0, 5)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 2.0 <= found.high
