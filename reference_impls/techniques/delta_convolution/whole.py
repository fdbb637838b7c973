"""Whole tensors in a delta network: frames, what stages have sent, a global average, and operators that see everything.

They know whether they changed in this frame, but not where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reference_impls.hosts.graph import Operation, Value
from reference_impls.techniques.delta_convolution.layout import Layout
from reference_impls.techniques.delta_convolution.stages import Given, Stage, is_range


class Frame:
    """The frames of the stream."""

    checked = True

    def receive(self, frame: Tensor) -> None:
        """Take the next frame (B, C, H, W)."""
        self.tensor, self.changed = frame, True


class Part:
    """One output of a unit that works on whole tensors."""

    checked = False

    def __init__(self, unit: Whole | GlobalAverage, index: int = 0) -> None:
        self.unit, self.index = unit, index

    @property
    def tensor(self) -> Tensor:
        return self.unit.tensors[self.index]

    @property
    def changed(self) -> bool:
        return self.unit.changed


class OfStage:
    """What a stage has sent, as a tensor of the model."""

    checked = False

    def __init__(self, stage: Stage, layout: Layout) -> None:
        self.stage, self.layout = stage, layout
        self.channels = None if is_range(layout.channels, stage.channels) else layout.channels.flatten()
        self.direct = self.channels is None and layout.is_feature_map

    @property
    def tensor(self) -> Tensor:
        rows = self.stage.sent.interior
        if self.direct:
            return rows.permute(0, 3, 1, 2)
        if self.channels is not None:
            rows = rows.index_select(3, self.channels.to(rows.device))
        return self.layout.tensor(rows)

    @property
    def changed(self) -> bool:
        return len(self.stage.message) > 0


class Whole:
    """An operator that no stage stands for: it runs as a whole, from what has been sent, when anything reached it."""

    total = 1

    def __init__(self, name: str, operation: Operation, sources: Mapping[Value, Given]) -> None:
        self.name, self.operation, self.macs, self.sources = name, operation, operation.macs, sources
        operation.as_recorded = True
        self.computed: list[int] = []

    def watched(self) -> list[Value]:
        return [value for value in self.operation.outputs if value is not None and (value.readers or value.returned)]

    def begin(self, known: Mapping[Value, Tensor]) -> None:
        self.tensors: Sequence[Tensor | None] = [known.get(value) for value in self.operation.outputs]
        self.changed = True
        self.computed.append(1)

    def step(self) -> None:
        self.changed = any(source.changed for source in self.sources.values())
        self.computed.append(int(self.changed))
        if self.changed:
            self.tensors = self.operation({value: source.tensor for value, source in self.sources.items()})


class GlobalAverage:
    """The mean of each channel: it moves by the sum of the differences over the number of positions."""

    macs, total = 0, 1

    def __init__(self, name: str, source: Stage, layout: Layout, value: Value, update: str) -> None:
        self.name, self.source, self.update, self.out = name, source, update, value
        self.of_stage = is_range(layout.channels, source.channels)
        self.channels = layout.channels.flatten()
        self.computed: list[int] = []

    def watched(self) -> list[Value]:
        return []

    def begin(self, known: Mapping[Value, Tensor]) -> None:
        self.mean = self.source.sent.interior.mean((1, 2))  # (B, C)
        self._give()

    def step(self) -> None:
        message, area = self.source.message, self.source.shape.height * self.source.shape.width
        self.changed = len(message) > 0
        if not self.changed:
            self.computed.append(0)
            return
        if self.update == "value":
            self.mean = self.source.sent.interior.mean((1, 2))
        elif self.source.shape.batch == 1:
            self.mean += message.rows.sum(0) / area
        else:
            self.mean.index_add_(0, torch.div(message.positions, area, rounding_mode="floor"), message.rows / area)
        self._give()

    def _give(self) -> None:
        self.changed = True
        self.computed.append(1)
        mean = self.mean if self.of_stage else self.mean.index_select(1, self.channels.to(self.mean.device))
        self.tensors = [mean.reshape(self.out.shape)]
