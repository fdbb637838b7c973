"""From the graph of a model to the units of a delta network: which stage stands for which operator.

Rules look at an operator and at how its operands lie in feature maps, and make a stage, or decline. An operator for
which every rule declines runs as a whole (`whole.Whole`), so a rule only has to be right where it does not decline.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reference_impls.hosts.graph import (
    CONVOLUTIONS,
    NORMS,
    Graph,
    Operation,
    Value,
    aten,
    is_eval_norm,
    norm_parts,
)
from reference_impls.hosts.operators import filled, is_pointwise, pairs_of
from reference_impls.techniques.delta_convolution import layers, stages, whole
from reference_impls.techniques.delta_convolution.feature_maps import Axis, Shape, TransposedAxis
from reference_impls.techniques.delta_convolution.layout import CHANNEL, Layout, feature_map, fresh, moved
from reference_impls.techniques.delta_convolution.operators import (
    channel_function,
    function_of,
    position,
    shape_of,
)
from reference_impls.techniques.delta_convolution.stages import Knobs, Output, Stage, Unit

SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.neg.default)
RESAMPLINGS = (
    *(aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.default, aten.upsample_bilinear2d.default),
    *(aten.reflection_pad2d.default, aten.replication_pad2d.default),
)
Source = tuple[Stage, Layout]


class Lowering:
    """The units of a delta network, in order, and what stands for each value of the graph."""

    def __init__(self, graph: Graph, knobs: Knobs) -> None:
        self.graph, self.knobs = graph, knobs
        self.frame = whole.Frame()
        self.units: list[Unit] = []
        self.maps: dict[Value, Source] = {}
        self.parts: dict[Value, whole.Part] = {}
        self.padded: dict[Value, tuple[Value, list[int]]] = {}
        self.names: Counter[str] = Counter()
        self.taken: set[Operation] = set()
        layout = feature_map(shape_of(graph.frame), graph.frame.shape[1])
        self._add(stages.Compared(Output("frame", graph.frame, layout), knobs, self.frame), with_activation=False)
        for operation in graph.operations:
            if operation not in self.taken and not any(rule(operation) for rule in self._rules()):
                self._whole(operation)

    def given(self, value: Value) -> stages.Given:
        """A value as a whole tensor."""
        return self.parts[value] if value in self.parts else whole.OfStage(*self.maps[value])

    def _rules(self) -> Sequence[Callable[[Operation], bool]]:
        return (
            *(self._move, self._zeros_around, self._convolution, self._norm, self._max_pool, self._average_pool),
            *(self._global_average, self._product, self._resampling, self._concatenation, self._channelwise),
            self._pointwise,
        )

    # Making units ---------------------------------------------------------------------------------------------------

    def _name(self, operation: Operation) -> str:
        """The module's path for what a module computes, else the operator's name after it; a number if it recurs."""
        own = operation.func in (*CONVOLUTIONS, *NORMS, aten.mm.default, aten.addmm.default)
        name = operation.where if own and operation.where else f"{operation.where}/{operation.name}".lstrip("/")
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}#{self.names[name]}"

    def _add(self, stage: Stage, *, with_activation: bool = True) -> bool:
        """Let a stage stand for its value and, where it can, for an element-wise function that is the only reader."""
        self.units.append(stage)
        self.maps[stage.value_of] = stage, stage.layout
        reader = stage.value_of.only_reader if with_activation else None
        if reader is not None and reader.inputs() == [stage.value_of] and is_pointwise(reader):
            value = reader.outputs[0]
            places = [i for i, a in enumerate(reader.args) if isinstance(a, Tensor | Value)]
            if value.shape == stage.value_of.shape and value.dtype == stage.dtype and len(places) == 1:
                stage.activation = function_of(reader, places)
                self.maps[value] = stage, stage.layout
                self.taken.add(reader)
        return True

    def _whole(self, operation: Operation) -> None:
        sources = {value: self.given(value) for value in operation.inputs()}
        unit = whole.Whole(self._name(operation), operation, sources)
        self.units.append(unit)
        self.parts |= {v: whole.Part(unit, i) for i, v in enumerate(operation.outputs) if v is not None}

    def _source(self, argument: Any) -> Source | None:
        """The stage that gives an argument; a tensor (B, C, H, W) that was computed as a whole becomes one."""
        if not isinstance(argument, Value):
            return None
        if argument in self.maps:
            return self.maps[argument]
        if len(argument.shape) != 4 or math.prod(argument.shape[2:]) == 1 or not argument.dtype.is_floating_point:
            return None
        if argument in self.padded:  # zeros around a feature map that another operator than a convolution reads
            return None
        layout = feature_map(shape_of(argument), argument.shape[1])
        name = f"what {self.parts[argument].unit.name} gives"
        stage = stages.Compared(Output(name, argument, layout), self.knobs, self.parts[argument])
        self.units.append(stage)
        self.maps[argument] = stage, layout
        return self.maps[argument]

    def _map(self, argument: Any) -> Stage | None:
        """A stage whose channels are those of the argument, which must lie as (B, C, H, W)."""
        source = self._source(argument)
        if source is None or not source[1].is_feature_map or math.prod(argument.shape[2:]) == 1:
            return None
        stage, layout = source
        if stages.is_range(layout.channels, stage.channels):
            return stage
        return self._gathered(argument)

    def _gathered(self, value: Value) -> Stage:
        """A stage of the channels of a value, in its order."""
        stage, layout = self.maps[value]
        new = fresh(layout.dims, layout.shape, list(layout.channels.shape))
        name = f"channels of {stage.name}"
        self.names[name] += 1
        output = Output(f"{name}#{self.names[name]}", value, new)
        operand = layers.FromStage(stage, layout.channels)
        gathered = layers.Pointwise(output, [operand], self.knobs, lambda x: x, linear=True)
        self._add(gathered, with_activation=False)
        return gathered

    def _output(self, operation: Operation, layout: Layout | None = None) -> Output:
        value = operation.outputs[0]
        return Output(self._name(operation), value, layout or feature_map(shape_of(value), value.shape[1]))

    # Rules: True where a stage now stands for the operator ----------------------------------------------------------

    def _move(self, operation: Operation) -> bool:
        inputs = operation.inputs()
        if not inputs or inputs[0] not in self.maps:
            return False
        stage, layout = self.maps[inputs[0]]
        layouts = moved(layout, operation)
        pairs = zip(operation.outputs, layouts, strict=False)
        found = [(value, new) for value, new in pairs if value is not None and new is not None]
        if not found or len(found) < len(operation.outputs):
            return False
        if any(list(value.shape) != new.sizes for value, new in found):
            return False
        self.maps |= {value: (stage, new) for value, new in found}
        return True

    def _zeros_around(self, operation: Operation) -> bool:
        """Zero padding that only convolutions read is theirs."""
        if operation.func is not aten.constant_pad_nd.default or operation.outputs[0].returned:
            return False
        sides, fill = list(operation.args[1]), (*operation.args[2:], 0)[0]
        readers = operation.outputs[0].readers
        plain = all(r.func in CONVOLUTIONS and not r.args[6] and r.args[0] is operation.outputs[0] for r in readers)
        if fill or len(sides) != 4 or min(sides) < 0 or not plain or self._map(operation.args[0]) is None:
            return False
        self.padded[operation.outputs[0]] = operation.args[0], sides
        return True

    def _convolution(self, operation: Operation) -> bool:
        if operation.func not in CONVOLUTIONS:
            return False
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = operation.args[:9]
        unpadded, (left, right, top, bottom) = self.padded.get(x, (x, [0, 0, 0, 0]))
        source = self._map(unpadded) if isinstance(weight, Tensor) and not isinstance(bias, Value) else None
        if source is None or math.prod(operation.outputs[0].shape[2:]) == 1:
            if self.padded.pop(x, None):
                self._whole(next(o for o in self.graph.operations if x in o.outputs))
            return False
        kernel = weight.shape[2:]
        pairs = [pairs_of(kernel, stride, padding, dilation)[i] for i in (0, 1)]
        if transposed:
            axes = [TransposedAxis(*pair) for pair in pairs]
            if any(axis.lead < 0 or axis.dilation * (axis.kernel - 1) < axis.stride - 1 for axis in axes):
                return False
            stage: Stage = layers.TransposedConvolution(
                self._output(operation), source, self.knobs, weight, bias, (axes[0], axes[1]), groups, output_padding
            )
        else:
            (k, s, p, d), (kx, sx, px, dx) = pairs
            both = Axis(k, s, top + p, d, bottom + p), Axis(kx, sx, left + px, dx, right + px)
            stage = layers.Convolution(self._output(operation), source, self.knobs, weight, bias, both, groups)
        return self._add(stage)

    def _norm(self, operation: Operation) -> bool:
        source = self._map(operation.args[0]) if is_eval_norm(operation) else None
        if source is None or any(v is not None and (v.readers or v.returned) for v in operation.outputs[1:]):
            return False
        weight, bias, mean, variance, eps = norm_parts(operation)
        scale = torch.rsqrt(variance.float() + eps) if variance.dtype != torch.float64 else torch.rsqrt(variance + eps)
        scale = scale if weight is None else scale * weight.detach()
        shift = -mean * scale if bias is None else bias.detach() - mean * scale
        parts = scale.to(source.dtype), shift.to(source.dtype)
        return self._add(layers.Affine(self._output(operation), source, self.knobs, *parts))

    def _max_pool(self, operation: Operation) -> bool:
        if operation.func is not aten.max_pool2d_with_indices.default:
            return False
        out, indices = operation.outputs
        source = self._map(operation.args[0])
        if source is None or math.prod(out.shape[2:]) == 1 or indices.readers or indices.returned:
            return False
        kernel, stride, padding, dilation, _ = filled(operation.args[1:], ([], 0, 1, False))
        pairs = pairs_of(kernel, stride or kernel, padding, dilation)
        sizes = zip(pairs, out.shape[2:], operation.args[0].shape[2:], strict=True)
        reach = [(n - 1) * s + d * (k - 1) + 1 - size - p for (k, s, p, d), n, size in sizes]
        axes = [Axis(k, s, p, d, max(0, beyond)) for (k, s, p, d), beyond in zip(pairs, reach, strict=True)]
        operator = layers.applied(aten.max_pool2d.default, operation.args, operation.kwargs, [0])
        return self._add(layers.MaxPool(self._output(operation), source, self.knobs, (axes[0], axes[1]), operator))

    def _average_pool(self, operation: Operation) -> bool:
        if operation.func is not aten.avg_pool2d.default:
            return False
        out, source = operation.outputs[0], self._map(operation.args[0])
        kernel, stride, padding, _, count_padding, divisor = filled(operation.args[1:], ([], 0, False, True, None))
        pairs = pairs_of(kernel, stride or kernel, padding, 1)
        sizes = zip(pairs, out.shape[2:], operation.args[0].shape[2:], strict=True)
        beyond = any((n - 1) * s + k > size + (2 * p if count_padding else 0) for (k, s, p, _), n, size in sizes)
        uneven = beyond or divisor or (not count_padding and any(p for _, _, p, _ in pairs))
        if source is None or uneven or math.prod(out.shape[2:]) == 1:
            return False
        axes = [Axis(k, s, p, d, p) for k, s, p, d in pairs]
        return self._add(layers.AveragePool(self._output(operation), [source], self.knobs, (axes[0], axes[1])))

    def _global_average(self, operation: Operation) -> bool:
        if operation.func is not aten.mean.dim or operation.kwargs or operation.args[0] not in self.maps:
            return False
        (stage, layout), axes = self.maps[operation.args[0]], operation.args[1]
        averaged = "".join(layout.dims[a] for a in axes) if axes else ""
        kept = [d for i, d in enumerate(layout.dims) if i not in [a % len(layout.dims) for a in axes or ()] and d]
        spatial = {name for name, size in (("H", stage.shape.height), ("W", stage.shape.width)) if size > 1}
        if set(averaged) != spatial or len(averaged) != len(spatial) or "B" in kept[1:] or not spatial:
            return False
        average = whole.GlobalAverage(self._name(operation), stage, layout, operation.outputs[0], self.knobs.update)
        self.units.append(average)
        self.parts[operation.outputs[0]] = whole.Part(average)
        return True

    def _product(self, operation: Operation) -> bool:
        """The product of every position's channels with a constant matrix: a 1 x 1 convolution."""
        place = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1}.get(operation.func)
        if place is None or operation.kwargs or operation.args[place] not in self.maps:
            return False
        stage, layout = self.maps[operation.args[place]]
        weight, bias = operation.args[place + 1], operation.args[0] if place else None
        if not isinstance(weight, Tensor) or isinstance(bias, Value) or CHANNEL in layout.dims[:-1]:
            return False
        if weight.dim() == 3:
            if len(weight) > 1 and weight.stride(0):
                return False
            weight = weight[0]
        out = operation.outputs[0]
        if layout.dims[-1] != CHANNEL or out.shape[-1] == 1 or not set("".join(layout.dims[:-1])):
            return False
        if bias is not None and bias.dim() != 1:
            return False
        if not stages.is_range(layout.channels, stage.channels):
            stage = self._gathered(operation.args[place])
        output = self._output(operation, fresh(layout.dims, layout.shape, out.shape[-1:]))
        return self._add(layers.Convolution(output, stage, self.knobs, weight.t()[:, :, None, None], bias))

    def _resampling(self, operation: Operation) -> bool:
        function, x = operation.func, operation.args[0] if operation.args else None
        outside = function is aten.constant_pad_nd.default
        spatial = (
            function in RESAMPLINGS
            or (function is aten.slice.Tensor and (*operation.args[1:], 0)[0] % 4 in (2, 3))
            or (
                function in (aten.flip.default, aten.roll.default)
                and {a % 4 for a in operation.args[-1]} in ({2}, {3}, {2, 3})
            )
            or (outside and len(operation.args[1]) == 4)
        )
        if not spatial or len(operation.inputs()) != 1 or not isinstance(x, Value):
            return False
        source, out = self._map(x), operation.outputs[0]
        if source is None or math.prod(out.shape[2:]) == 1:
            return False
        operator = layers.applied(function, operation.args, operation.kwargs, [0])
        fill = (*operation.args[2:], 0)[0] if outside else 0
        ramp = layers.applied(function, [x, operation.args[1]], {}, [0]) if outside else operator
        found = layers.taps(ramp, (source.shape.height, source.shape.width), outside)
        output = self._output(operation)
        return self._add(layers.Resampling(output, source, self.knobs, operator, found, fill), with_activation=False)

    def _concatenation(self, operation: Operation) -> bool:
        if operation.func is not aten.cat.default:
            return False
        out, parts = operation.outputs[0], operation.args[0]
        dim = (*operation.args[1:], operation.kwargs.get("dim", 0))[0] % len(out.shape)
        parts = [part for part in parts if tuple(part.shape) != (0,)]
        dims = self._dims(parts, out, dim)
        if dims is None:
            return False
        numbers, operands, total = [], [], 0
        shape = self._shape_of(parts)
        for part in parts:
            sizes = [n for n, d in zip(part.shape, dims, strict=True) if d == CHANNEL]
            operand = self._operand(part, fresh(dims, shape, sizes))
            if operand is None or (isinstance(operand, layers.Constant) and operand.values.dim() == 2):
                return False
            numbers.append(torch.arange(total, total + math.prod(sizes)).reshape(sizes))
            operands.append(operand)
            total += math.prod(sizes)
        layout = Layout(tuple(dims), shape, torch.cat(numbers, sum(d == CHANNEL for d in dims[:dim])))
        if not stages.is_range(layout.channels, total):
            return False
        return self._add_pointwise(operation, operands, lambda *rows: torch.cat(rows, -1), True, layout)

    def _channelwise(self, operation: Operation) -> bool:
        """Norms, softmax and reductions over channels alone."""
        if not operation.args or operation.args[0] not in self.maps or len(operation.inputs()) != 1:
            return False
        stage, layout = self.maps[operation.args[0]]
        found = channel_function(operation, layout)
        if found is None or not operation.outputs[0].dtype.is_floating_point:
            return False
        function, dims, sizes = found
        if any(v is not None and (v.readers or v.returned) for v in operation.outputs[1:]):
            return False
        new = fresh(dims, layout.shape, sizes)
        if new.sizes != list(operation.outputs[0].shape):
            return False
        return self._add_pointwise(operation, [layers.FromStage(stage, layout.channels)], function, False, new)

    def _pointwise(self, operation: Operation) -> bool:
        if not is_pointwise(operation):
            return False
        out = operation.outputs[0]
        places = [
            i for i, a in enumerate(operation.args) if isinstance(a, Value) or (isinstance(a, Tensor) and a.dim())
        ]
        arguments = [operation.args[i] for i in places]
        dims = self._dims(arguments, out)
        if dims is None or any(isinstance(a, Value) for a in operation.kwargs.values()):
            return False
        sizes = [n for n, d in zip(out.shape, dims, strict=True) if d == CHANNEL]
        layout = fresh(dims, self._shape_of(arguments), sizes)
        operands = [self._operand(argument, layout) for argument in arguments]
        if any(operand is None for operand in operands):
            return False
        varying = [not isinstance(operand, layers.Constant) for operand in operands]
        scales = operation.func is aten.mul.Tensor or (operation.func is aten.div.Tensor and varying[0])
        linear = operation.func in SUMS or (scales and sum(varying) == 1)
        return self._add_pointwise(operation, operands, function_of(operation, places), linear, layout)

    # Operands that lie alike ----------------------------------------------------------------------------------------

    def _add_pointwise(
        self,
        operation: Operation,
        operands: Sequence[Any],
        function: stages.Function,
        linear: bool,
        layout: Layout,
    ) -> bool:
        if layout.sizes != list(operation.outputs[0].shape):
            return False
        output = self._output(operation, layout)
        return self._add(layers.Pointwise(output, operands, self.knobs, function, linear=linear))

    def _shape_of(self, arguments: Sequence[Any]) -> Shape:
        return next(self.maps[a][0].shape for a in arguments if isinstance(a, Value) and a in self.maps)

    def _dims(self, arguments: Sequence[Any], out: Value, joined: int | None = None) -> list[str] | None:
        """How positions and channels lie in a result, if all feature maps among the arguments agree on it.

        joined: the dimension along which they are concatenated.
        """
        if not any(isinstance(a, Value) and a in self.maps for a in arguments):
            return None
        dims, shapes = [""] * len(out.shape), set()
        for argument in arguments:
            if not isinstance(argument, Value):
                continue
            source = self._source(argument) if argument.shape[2:] == out.shape[2:] else self.maps.get(argument)
            if source is None:
                continue
            stage, layout = source
            shapes.add(stage.shape)
            for i, d in enumerate(layout.dims, len(dims) - len(layout.dims)):
                if d not in ("", CHANNEL):
                    if dims[i] not in ("", d):
                        return None
                    dims[i] = d
        if len(shapes) != 1:
            return None
        for i, size in enumerate(out.shape):
            if dims[i] == "" and size > 1:
                dims[i] = CHANNEL
        return dims if joined is None or dims[joined] == CHANNEL else None

    def _operand(self, argument: Any, layout: Layout) -> layers.Operand | None:
        """An argument as what a pointwise layer with this layout reads of it."""
        dims, sizes = layout.dims, list(layout.channels.shape)
        shape = [1] * (len(dims) - len(argument.shape)) + list(argument.shape)
        own = [n for n, d in zip(shape, dims, strict=True) if d == CHANNEL]
        if isinstance(argument, Value) and argument in self.maps:
            stage, its = self.maps[argument]
            padded = [""] * (len(dims) - len(its.dims)) + list(its.dims)
            if any(position(a) != position(b) or (a == CHANNEL != b) for a, b in zip(padded, dims, strict=True)):
                return None
            return layers.FromStage(stage, its.channels.reshape(own).expand(sizes))
        positions = {d: n for n, d in zip(shape, dims, strict=True) if position(d) and n > 1}
        if not isinstance(argument, Value) and positions:
            return layers.Constant(layout.rows(argument.expand(layout.sizes)))
        if set(positions) - {"B"} or (positions and next(filter(None, dims)) != "B"):
            return None
        images = positions.get("B", 1)

        def rows(tensor: Tensor) -> Tensor:
            return tensor.reshape(images, *own).expand(images, *sizes).reshape(images, -1)

        if isinstance(argument, Value):
            return layers.Gate(self.given(argument), rows, layout.shape.height * layout.shape.width)
        return layers.Constant(rows(argument.detach()))
