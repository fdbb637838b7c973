"""From a module to a delta network: the module is traced, and each of its layers on feature maps becomes a `Stage`.

What follows the last feature maps (global pooling aside) works on vectors: this head runs as it is, when anything
changed.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from reference_impls.contract import UnsupportedHost, check_tensor
from reference_impls.techniques.delta_convolution import stages
from reference_impls.techniques.delta_convolution.feature_maps import Axis
from reference_impls.techniques.delta_convolution.stages import Knobs, Sides, Stage

LONGEST_REST = 32
TECHNIQUE = "delta-convolution"
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)
FUNCTIONS = {F.relu6: nn.ReLU6, F.silu: nn.SiLU, F.hardswish: nn.Hardswish, F.gelu: nn.GELU} | {
    **dict.fromkeys((F.relu, torch.relu), nn.ReLU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh), nn.Tanh),
}
METHODS = {"relu": nn.ReLU, "relu_": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
ADDITIONS = (operator.add, operator.iadd, torch.add)
PASSED_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
RESHAPES = (torch.flatten, "flatten", "reshape", "view", "size")
HEAD_MODULES = (nn.Linear, nn.Flatten, nn.BatchNorm1d, nn.Softmax, nn.LogSoftmax, *PASSED_THROUGH, *ACTIVATIONS)
HEAD_FUNCTIONS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem, torch.squeeze),
    *(F.dropout, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, F.normalize, *FUNCTIONS),
)
HEAD_METHODS = ("squeeze", "contiguous", "softmax", "log_softmax", *METHODS)


class DeltaNetwork(nn.Module):
    """A model that takes the frames of a stream one after the other and does the work of what changed.

    Where the work of a whole frame hardly fell, the stream is not worth following at the moment: the next frames go
    through the dense network, 1, 2, 4, ... and at most `LONGEST_REST` of them before the stream is taken up again.

    The model's weights are copied, with batch norms folded; later changes of the model are not seen.
    """

    def __init__(self, target: nn.Module, knobs: Knobs) -> None:
        super().__init__()
        lowered = _Lowering(target, knobs)
        self.knobs = knobs
        self.stages, self.head_inputs, self.head_macs = lowered.stages, lowered.head_inputs, lowered.head_macs
        self.source = cast(stages.Source, self.stages[0])
        self.layers = [stage for stage in self.stages if not isinstance(stage, stages.GlobalAverage)]
        self.head = fx.GraphModule(lowered.root, lowered.head)
        self.head_is_empty = all(node.op in ("placeholder", "output") for node in lowered.head.nodes)
        self.dense = fuse(lowered.root).to(memory_format=torch.channels_last)
        self.dtype = next((p.dtype for p in target.parameters()), None)
        self.eval()
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next frame is computed as a whole."""
        self.frame_shape: torch.Size | None = None
        self.follows = False  # the stored maps belong to the frame before
        self.rest, self.next_rest = 0, 1
        self.head_runs: list[int] = []

    @torch.no_grad()
    def forward(self, frame: Tensor) -> Tensor:
        """frame: (B, C, H, W), the next frame of B streams. Returns what the model returns for it."""
        check_tensor("frame", frame, "B C H W", finite=False)
        if not self.follows and not self.rest:  # else the source looks at what changed, or the dense network at all
            stages.check_finite(frame)
        if self.dtype not in (None, frame.dtype):
            raise TypeError(f"frame must have the dtype of the model's weights, {self.dtype}, got {frame.dtype}")
        if self.frame_shape is None:
            self._start(frame)
        if frame.shape != self.frame_shape:
            raise ValueError(
                f"frame must have shape {tuple(self.frame_shape)} as the frames before it, got {tuple(frame.shape)}: "
                "call reset() to start a new stream"
            )
        if self.rest:
            self.rest -= 1
            for stage in self.layers:
                stage.computed.append(stage.shape.positions)
            self.head_runs.append(1)
            return self.dense(frame.contiguous(memory_format=torch.channels_last))
        first, self.follows = not self.follows, True
        self.source.receive(frame)
        for stage in self.stages:
            stage.begin() if first else stage.step()
        if not first:
            self._judge()
        return self._output(first)

    def _start(self, frame: Tensor) -> None:
        self.source.start(frame)
        for stage in self.stages[1:]:
            stage.find_shape()
        for stage in self.stages:
            stage.allocate(frame)
        self.frame_shape = frame.shape

    def _judge(self) -> None:
        """Decide whether the stream is worth following, by the work of this frame."""
        done = sum(stage.macs * stage.computed[-1] for stage in self.layers)
        whole = sum(stage.macs * stage.shape.positions for stage in self.layers)
        if done > (1 - self.knobs.min_profitable) * whole:
            self.follows = False
            self.rest, self.next_rest = self.next_rest, min(2 * self.next_rest, LONGEST_REST)
        else:
            self.next_rest = 1

    def _output(self, first: bool) -> Tensor:
        moved = first or any(len(stage.message) > 0 for stage in self.head_inputs)
        self.head_runs.append(int(moved))
        if self.head_is_empty:
            return self.head_inputs[0].output()
        if moved:
            self.result = self.head(*(stage.output() for stage in self.head_inputs))
        return self.result.clone()

    def trace(self) -> dict[str, Any]:
        """What was computed since the stream began, in the terms of `DeltaConvolution.saving`."""
        if self.frame_shape is None:
            return {"layers": {}, "head_macs": 0, "head": ()}
        layers = {
            s.name: {"macs_per_position": s.macs, "positions": s.shape.positions, "computed": tuple(s.computed)}
            for s in self.layers
        }
        return {"layers": layers, "head_macs": self.frame_shape[0] * self.head_macs, "head": tuple(self.head_runs)}


def _traced(target: nn.Module) -> fx.GraphModule:
    if not isinstance(target, nn.Module):
        raise UnsupportedHost(TECHNIQUE, target, "a torch.nn.Module that maps frames (B, C, H, W) to a tensor")
    if any(module.training for module in target.modules()):
        raise UnsupportedHost(TECHNIQUE, target, "a module in eval mode: call model.eval() first")
    try:
        single = fx.Tracer().is_leaf_module(target, "")  # a layer of torch.nn on its own would be traced into functions
        return fx.symbolic_trace(nn.Sequential(target).eval() if single else target)
    except Exception as error:
        raise UnsupportedHost(TECHNIQUE, target, f"a module that torch.fx can trace ({error})") from error


class _Lowering:
    """The model's stages in the order of execution, its head, and the stages that the head reads."""

    def __init__(self, target: nn.Module, knobs: Knobs) -> None:
        self.target, self.knobs = target, knobs
        self.root = _traced(target)
        self.modules = dict(self.root.named_modules())
        self.maps: dict[fx.Node, Stage] = {}  # nodes whose value is a feature map
        self.stages: list[Stage] = []
        self.head = fx.Graph()
        self.head_values: dict[fx.Node, fx.Node] = {}
        self.head_inputs: list[Stage] = []
        self.head_macs = 0
        """Multiply-accumulates of the head for each image."""
        nodes = list(self.root.graph.nodes)
        if sum(node.op == "placeholder" for node in nodes) != 1:
            raise self._unsupported("one input, the frame")
        for node in nodes:
            if node in self.maps:  # taken in by the stage of an earlier node
                continue
            if node.op == "placeholder":
                self._add(node, stages.Source(node.name, [], knobs))
            elif node.op == "output":
                self._output(node)
            elif any(self._is_map(argument) for argument in node.all_input_nodes):
                self._map_node(node)
            else:
                self._head_node(node)

    def _is_map(self, node: fx.Node) -> bool:
        return node in self.maps and not isinstance(self.maps[node], stages.GlobalAverage)

    def _unsupported(self, needs: str) -> UnsupportedHost:
        return UnsupportedHost(TECHNIQUE, self.target, needs)

    def _refuse(self, node: fx.Node) -> UnsupportedHost:
        what = self.modules[node.target] if node.op == "call_module" else node.target
        return self._unsupported(
            f"convolutions, batch norms, element-wise activations, additions and pooling up to the head; it does not "
            f"know the operator {node.name!r} ({what})"
        )

    def _add(self, node: fx.Node, stage: Stage, *, with_activation: bool = False) -> None:
        """Let a stage stand for `node` and, if wanted, for an activation that is its only reader."""
        self.stages.append(stage)
        self.maps[node] = stage
        follower = self._only_user(node) if with_activation else None
        if follower is not None and (activation := self._activation(follower, in_place=True)) is not None:
            stage.activation, self.maps[follower] = activation, stage

    def _module(self, node: fx.Node | None, *kinds: type[nn.Module]) -> nn.Module | None:
        """The module that `node` calls, if it is of one of the kinds."""
        if node is None or node.op != "call_module":
            return None
        module = self.modules[node.target]
        return module if isinstance(module, kinds) else None

    # Layers on feature maps -------------------------------------------------------------------------------------------

    def _map_node(self, node: fx.Node) -> None:
        """Make the stage of a node that reads at least one feature map."""
        source = self.maps.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if self._is_addition(node):
            addition = stages.Addition(node.name, [self.maps[a] for a in node.args], self.knobs)
            self._add(node, addition, with_activation=True)
        elif source is None:
            raise self._refuse(node)
        elif self._module(node, *PASSED_THROUGH) is not None:
            self.maps[node] = source
        elif (pad := self._module(node, nn.ZeroPad2d)) is not None:
            follower = self._only_user(node)
            layer = self._module(follower, nn.Conv2d)
            if layer is None or follower is None:
                raise self._unsupported(f"zero padding to be read by one convolution only; {node.name!r} is not")
            self._convolution(follower, source, layer, pad.padding)
            self.maps[node] = source
        elif (layer := self._module(node, nn.Conv2d)) is not None:
            self._convolution(node, source, layer)
        elif (norm := self._module(node, nn.BatchNorm2d)) is not None:
            affine = stages.Affine(node.name, source, self.knobs, self._checked_norm(norm, node))
            self._add(node, affine, with_activation=True)
        elif (activation := self._activation(node)) is not None:
            self._add(node, alone := Stage(node.name, [source], self.knobs))
            alone.activation = activation
        elif (pool := self._pool(node, source)) is not None:
            self._add(node, pool)
        elif self._module(node, nn.Flatten) is not None or node.target in RESHAPES:
            self._head_node(node)
        else:
            raise self._refuse(node)

    def _is_addition(self, node: fx.Node) -> bool:
        named = node.target in {"call_function": ADDITIONS, "call_method": ("add", "add_")}.get(node.op, ())
        return named and len(node.args) == 2 and not node.kwargs and all(a in self.maps for a in node.args)

    def _convolution(self, node: fx.Node, source: Stage, layer: nn.Conv2d, padding: Sides = (0, 0, 0, 0)) -> None:
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        uneven = layer.padding == "same" and any(span % 2 for span in spans)
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or uneven:
            raise self._unsupported(f"plain convolutions with zero padding; {node.name!r} is {layer}")
        follower = self._only_user(node)
        norm = self._module(follower, nn.BatchNorm2d) and self._checked_norm(self.modules[follower.target], node)
        stage = self.maps[node] = stages.Convolution(node.name, source, self.knobs, layer, norm, padding)
        self._add(node if norm is None else follower, stage, with_activation=True)

    def _checked_norm(self, norm: nn.Module, node: fx.Node) -> nn.BatchNorm2d:
        if getattr(norm, "running_mean", None) is None:
            raise self._unsupported(f"batch norms with running statistics; the one at {node.name!r} has none")
        return norm

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _activation(self, node: fx.Node, in_place: bool = False) -> nn.Module | None:
        """The activation module that `node` amounts to."""
        if (module := self._module(node, *ACTIVATIONS)) is not None:
            module = copy.deepcopy(module)
        elif node.op == "call_function" and node.target in FUNCTIONS and len(node.args) == 1:
            module = FUNCTIONS[node.target](**{k: v for k, v in node.kwargs.items() if k != "inplace"})
        elif node.op == "call_method" and node.target in METHODS:
            module = METHODS[node.target]()
        if hasattr(module, "inplace"):
            module.inplace = in_place
        return module

    def _pool(self, node: fx.Node, source: Stage) -> Stage | None:
        if (keep_axes := self._global_average(node)) is not None:
            return stages.GlobalAverage(node.name, source, self.knobs, keep_axes)
        if (pool := self._module(node, nn.MaxPool2d)) is not None:
            if pool.ceil_mode or pool.return_indices:
                raise self._unsupported(f"max pooling without ceil_mode or indices; {node.name!r} is {pool}")
            return stages.MaxPool(node.name, [source], self.knobs, _axes(pool, pool.dilation))
        if (pool := self._module(node, nn.AvgPool2d)) is not None:
            padded = any(_pair(pool.padding))
            if pool.ceil_mode or pool.divisor_override or (padded and not pool.count_include_pad):
                raise self._unsupported(f"average pooling over whole windows; {node.name!r} is {pool}")
            return stages.AveragePool(node.name, [source], self.knobs, _axes(pool, 1))
        return None

    def _global_average(self, node: fx.Node) -> bool | None:
        """Whether a global average keeps its axes of length 1; None if `node` is none."""
        if (pool := self._module(node, nn.AdaptiveAvgPool2d)) is not None:
            return True if _pair(pool.output_size) == (1, 1) else None
        if node.target is F.adaptive_avg_pool2d and _pair(node.args[1]) == (1, 1):
            return True
        if node.target in ("mean", torch.mean):
            axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            if axes is not None and sorted(a % 4 for a in axes) == [2, 3]:
                return bool(node.kwargs.get("keepdim", len(node.args) > 2 and node.args[2]))
        return None

    # The head -----------------------------------------------------------------------------------------------------

    def _head_node(self, node: fx.Node) -> None:
        """Copy a node on vectors into the head's graph."""
        known = node.op == "get_attr" or node.target in (*HEAD_FUNCTIONS, *HEAD_METHODS, *RESHAPES)
        if not known and self._module(node, *HEAD_MODULES) is None:
            raise self._refuse(node)
        if (layer := self._module(node, nn.Linear)) is not None:
            self.head_macs += layer.weight.numel()
        self.head_values[node] = self.head.node_copy(node, self._head_value)

    def _head_value(self, node: fx.Node) -> fx.Node:
        """The node of the head's graph that stands for `node`: an input of the head if `node` is a feature map."""
        if node not in self.head_values:
            self.head_inputs.append(self.maps[node])
            self.head_values[node] = self.head.placeholder(node.name)
        return self.head_values[node]

    def _output(self, node: fx.Node) -> None:
        if not isinstance(node.args[0], fx.Node):
            raise self._unsupported("one output tensor")
        self.head.output(self._head_value(node.args[0]))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _axes(pool: nn.MaxPool2d | nn.AvgPool2d, dilation: Any) -> tuple[Axis, Axis]:
    stride = pool.kernel_size if pool.stride is None else pool.stride
    parts = zip(_pair(pool.kernel_size), _pair(stride), _pair(pool.padding), _pair(dilation), strict=True)
    y, x = (Axis(k, s, p, d, p) for k, s, p, d in parts)
    return y, x
