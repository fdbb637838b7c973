"""Delta convolution: follow a video stream through a whole network and compute only what changed since the last frame.

References
- parger-2022-deltacnn, "DeltaCNN: End-to-End CNN Inference of Sparse Frame Differences in Videos", arXiv 2203.03996.
- cavigelli-2017-cbinfer, "CBinfer: Change-Based Inference for Convolutional Neural Networks on Video Data",
  arXiv 1704.04313, the ancestor: changed outputs are recomputed from values, layer by layer.

The idea. Convolutions, batch norms, average pooling and additions are linear but for a constant, so their output moves
by W d when their input moves by d; the bias has been added in the first frame, once and for all. Activations and max
pooling need the accumulated value and send on the difference of their results. Positions at which no difference
exceeds a threshold are not sent. What was withheld is not lost: the difference is always taken to what has been sent,
so the error stays below the threshold in each layer however long the stream is.

From the source of frames to the head only changed positions travel. Layers on single positions (1 x 1 convolutions,
activations, additions) work on exactly those. Convolutions and pooling gather, for each tile of their output that a
changed position can reach, the input with its halo, compute it densely, and scatter the result.

The modules: `graph` (what a model really computes), `layout` (where positions and channels lie in its tensors),
`lowering` (which stage stands for which operator), `feature_maps` (what is stored, gathering and scattering), `stages`
and `layers` (the layers and their state), `network` (the model that follows a stream). Below stands the class of the
contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from reference_impls.contract import Choice, Given, Handle, Integer, Number, Redundancy, Setting, Technique
from reference_impls.redundancy.temporal_similarity import temporal_similarity
from reference_impls.techniques.delta_convolution.network import DeltaNetwork
from reference_impls.techniques.delta_convolution.stages import Knobs


class DeltaConvolution(Technique):
    """DeltaCNN (parger-2022-deltacnn) on the operators that a model of images really runs."""

    id = "delta-convolution"
    execution = "real"
    stateful = True
    exploits: ClassVar = {
        "temporal-tiles": {"threshold": "threshold", "tile": "tile", "min_profitable": "min_profitable"},
        "temporal-positions": {"threshold": "threshold", "tile": "tile", "min_profitable": "min_profitable"},
    }
    knobs: ClassVar = {
        "threshold": Number(
            0.1, low=0, about="largest change, in standard deviations, that a position may withhold; 0 loses nothing"
        ),
        "tile": Integer(8, low=1, about="side of the output tiles that convolutions and pooling compute, in positions"),
        "min_profitable": Number(
            0.4, low=0, high=1, about="share of the work that must fall away for tiles to pay; 0: always by tiles"
        ),
        "update": Choice(
            "value", options=("value", "delta"), about="send changed positions with new values, or differences"
        ),
        "frame_shape": Given(
            None,
            form="sizes",
            about="shape (B, C, H, W) of the frames on which the model is checked; None: small square ones",
        ),
    }
    waivers: ClassVar = {
        "off-warns": "Threshold 0 loses nothing, but it still leaves out whatever did not change at all."
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("threshold 0", {"threshold": 0.0}, off=True),
            Setting("threshold 0.05, differences", {"threshold": 0.05, "update": "delta"}, adaptive=True),
            Setting("threshold 0.2", {"threshold": 0.2}, adaptive=True),
        ]

    def measure(self, target: Any, inputs: Sequence[Tensor]) -> Redundancy:
        """Temporal similarity of successive frames, each (B, C, H, W).

        Raises: UnsupportedHost for a target that `apply` refuses.
        """
        found = temporal_similarity(inputs)
        self.apply(target, frame_shape=tuple(inputs[0].shape))
        return found

    def attach(
        self,
        target: Any,
        threshold: float,
        tile: int,
        min_profitable: float,
        update: Literal["value", "delta"],
        frame_shape: Sequence[int] | None,
    ) -> Handle:
        """A delta network in the place of `target`, which stays as it is; call it with a frame (B, C, H, W) at a time.

        target: an `nn.Module` in eval mode with one input; its result is made of tensors in dicts, lists and tuples.
        It runs once on a small frame, and what it did is lowered: convolutions (transposed ones too), batch norms,
        element-wise functions and products, pooling, upsampling, padding, concatenation, and whatever looks at the
        channels of a position alone work on what changed. Any other operator runs as a whole when something reached it.
        The delta network is compared with the model on two small frames before it is handed out.

        The threshold's unit is the standard deviation of the frame, or of the layer's output, in the first frame. Where
        less than `min_profitable` of a layer's tiles is idle, the layer computes its whole feature map; where less of
        the network's work falls away in a frame, the next frames go through the dense network, 1, 2, 4, ... up to 32 of
        them before the stream is taken up again.

        update="delta" sends differences, as DeltaCNN; "value" sends new values, and reached tiles are recomputed from
        them, as CBinfer. "value" moves less memory and adds up no rounding; "delta" tells untouched positions of a
        computed tile from changed ones exactly, which matters at threshold 0.

        Refused are models with random numbers, with decisions by the values of a frame, and with a state of their own.

        Raises: UnsupportedHost, which names the operator; TypeError for a frame shape that is none.
        """
        if frame_shape is not None and not (
            isinstance(frame_shape, (tuple, list)) and all(type(n) is int and 0 < n < 2**31 for n in frame_shape)
        ):
            raise TypeError(f"frame_shape must be the sizes of a frame, such as (B, C, H, W), got {frame_shape!r}")
        network = DeltaNetwork(target, Knobs(threshold, tile, min_profitable, update), frame_shape)
        return Handle(network, trace=network.trace, reset=network.reset, undo=network.reset)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Sum over layers of (positions of all frames - positions computed) x MACs per position.

        A position of a k x k convolution takes C_out C_in k^2 / groups MACs. Positions computed count whole tiles, also
        where these reach beyond the feature map. Those of a transposed convolution are positions of its input. An
        operator that runs as a whole is one position, and so is all that does not depend on the frame.
        """
        return sum(
            layer["macs_per_position"] * (layer["positions"] * len(layer["computed"]) - sum(layer["computed"]))
            for layer in trace["layers"].values()
        )
