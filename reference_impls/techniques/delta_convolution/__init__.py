"""Delta convolution: compute only what changed since the frame before, from the first layer to the last.

References
- parger-2022-deltacnn, "DeltaCNN: End-to-End CNN Inference of Sparse Frame Differences in Videos", arXiv 2203.03996.
- cavigelli-2017-cbinfer, "CBinfer: Change-Based Inference for Convolutional Neural Networks on Video Data",
  arXiv 1704.04313 (the ancestor: changed outputs are computed anew from values).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique, check_range
from reference_impls.redundancy.temporal_similarity import temporal_similarity
from reference_impls.techniques.delta_convolution.network import DeltaNetwork
from reference_impls.techniques.delta_convolution.stages import Knobs


class DeltaConvolution(Technique):
    """DeltaCNN on any module made of convolutions, batch norms, activations, additions, pooling and a head."""

    id = "delta-convolution"
    execution = "real"
    stateful = True
    waivers = {}  # noqa: RUF012

    def settings(self) -> list[Setting]:
        return [
            Setting("threshold 0", {"threshold": 0.0}, off=True),
            Setting("threshold 0.1", {"threshold": 0.1}, adaptive=True),
            Setting("threshold 0.3", {"threshold": 0.3}, adaptive=True),
        ]

    def measure(self, host: Any, inputs: Sequence[Tensor]) -> Redundancy:
        return temporal_similarity(inputs)

    def apply(
        self,
        host: Any,
        *,
        threshold: float = 0.1,
        tile: int = 8,
        min_profitable: float = 0.4,
        update: Literal["delta", "value"] = "delta",
    ) -> Handle:
        check_range("threshold", threshold, 0)
        check_range("tile", tile, 1, integer=True)
        check_range("min_profitable", min_profitable, 0, 1)
        if update not in ("delta", "value"):
            raise ValueError(f"update must be 'delta' or 'value', got {update!r}")
        network = DeltaNetwork(host, Knobs(threshold, tile, min_profitable, update))
        return Handle(network, trace=network.trace, reset=network.reset)

    def saving(self, host: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        layers = trace["layers"].values()
        positions = (
            layer["macs_per_position"] * (layer["positions"] * len(layer["computed"]) - sum(layer["computed"]))
            for layer in layers
        )
        return sum(positions) + trace["head_macs"] * trace["head"].count(0)
