"""A complete technique in a page: rows of a batch that repeat go through a row-wise layer once.

It is what `docs/contract` walks through and what their own tests damage on purpose. The idea is as old as
memo functions (Michie 1968, doi 10.1038/218019a0); it is not an entry of the atlas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from reference_impls.contract.errors import UnsupportedHost, check_tensor, warn_no_effect
from reference_impls.contract.knobs import Switch
from reference_impls.contract.replacement import replace
from reference_impls.contract.technique import Case, Cases, Expectation, Handle, Invalid, Redundancy, Setting, Technique


def distinct_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of x: (N, C), and for each row of x the index of its own: (M, C), (N,) with M <= N."""
    check_tensor("x", x, "N C")
    rows, index = torch.unique(x, dim=0, return_inverse=True)
    return rows, index


class RowSharing(Technique):
    """Computes a linear layer once for each distinct row of its input."""

    id = "row-sharing"
    execution = "real"
    knobs: ClassVar = {"share": Switch(True, about="compute each distinct row once")}

    def settings(self) -> list[Setting]:
        return [Setting("off", {"share": False}, off=True), Setting("share", {"share": True}, adaptive=True)]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of the rows beyond the first that repeat an earlier one: (N - M) / (N - 1)."""
        rows, _ = distinct_rows(inputs)
        return Redundancy((len(inputs) - len(rows)) / max(len(inputs) - 1, 1), "repeated rows")

    def attach(self, target: Any, share: bool) -> Handle:
        if not isinstance(target, nn.Linear):
            raise UnsupportedHost(self.id, target, "an nn.Linear, which treats every row alike")
        if not share:
            warn_no_effect(self.id, "share is off")
        trace: dict[str, int] = {}
        undo = replace(target, partial(_shared, share, trace), self.id)
        return Handle(target, undo=undo, trace=lambda: trace)

    def saving(self, target: nn.Linear, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        return int(trace["rows"] - trace["distinct"]) * target.in_features * target.out_features


def _shared(
    share: bool, trace: dict[str, int], layer: nn.Module, dense: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """In the place of the layer's forward `dense`."""
    rows, index = distinct_rows(x) if share else (x, slice(None))
    trace.update(rows=len(x), distinct=len(rows))
    return dense(rows)[index]


class RowSharingCases(Cases):
    """A linear layer, and rows with a known number of repetitions."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        distinct = {"typical": 6, "redundant": 1, "null": 12}[kind]
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(distinct, 5, generator=generator)
        target = nn.Linear(5, 3)
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        inputs = rows[torch.arange(12) % distinct].to(device)
        return Case(target.to(device).requires_grad_(False), inputs, lambda layer, x: layer(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        x = self.build("typical", seed, device).inputs
        by_hand = len({tuple(row) for row in x.tolist()})
        yield Expectation("distinct rows", torch.tensor(by_hand), torch.tensor(len(distinct_rows(x)[0])))
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], device=device)
        yield Expectation("row of each", torch.tensor([0, 1, 0], device=device), distinct_rows(rows)[1])
        yield Expectation("measure", torch.tensor(0.5), torch.tensor(RowSharing().measure(None, rows).value))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        x = self.build("typical", seed, device).inputs
        rows, index = distinct_rows(x)
        yield Expectation("the rows put back", x, rows[index])

    def invalid(self, device: str) -> Iterable[Invalid]:
        x, nothing = self.build("typical", 0, device).inputs, torch.full((2, 5), torch.nan, device=device)
        yield Invalid("a vector", lambda: RowSharing().measure(None, x[0]), "shape")
        yield Invalid("integers", lambda: RowSharing().measure(None, x.long()), "floating point")
        yield Invalid("NaN", lambda: RowSharing().measure(None, nothing), "not finite")
        yield Invalid("a layer without rows", lambda: RowSharing().apply(nn.ReLU()), "needs an nn.Linear")
