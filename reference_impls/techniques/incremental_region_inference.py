"""Incremental region inference: variants of a frame that differ in one region each, from what is known of the frame.

References
- nakandala-2019-incremental, "Incremental and Approximate Inference for Faster Occlusion-based Deep CNN Explanations",
  SIGMOD 2019, doi 10.1145/3299869.3319874: the region that a change reaches in each layer, and windows in batches.

The idea. Occlusion maps, perturbation tests and defences against patches run a network on many copies of one frame, of
which each has one window replaced. A window reaches, in each layer, only the outputs that read something of it. So the
frame is computed once, everything kept; of a variant each layer computes the reached rectangle from a window of its
input with the halo, what did not change being read from the frame's own feature map. Rectangles of all variants are
brought to one size, so that a layer runs once on all of them; windows whose rectangles differ much run in groups.

Nothing is approximated: the same operators work on the same numbers. An operator without a rule here runs as a whole,
for each variant, and stays exact too.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from reference_impls.accounting.count import uncounted
from reference_impls.contract import (
    Handle,
    Redundancy,
    Setting,
    Switch,
    Technique,
    UnsupportedHost,
    check_frame,
    check_tensor,
)
from reference_impls.contract.errors import warn_no_effect
from reference_impls.contract.replacement import refuse_capture
from reference_impls.hosts.graph import (
    CONVOLUTIONS,
    NORMS,
    Graph,
    Operation,
    Recording,
    Unaccounted,
    Value,
    aten,
    is_eval_norm,
    record,
)
from reference_impls.hosts.operators import Axis, filled, is_pointwise, pairs_of
from reference_impls.hosts.tracing import compare, copied, probed, quietly

TECHNIQUE = "incremental-region-inference"
PASSED_ON = (aten.alias.default, aten.clone.default, aten.detach.default, aten.contiguous.default, aten.dropout.default)
UPSAMPLINGS = (aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)


@dataclass(frozen=True)
class Region:
    """What differs of a feature map in K variants: crops (K, C, h, w), and where each begins: (top, left) of K."""

    crops: Tensor
    places: tuple[tuple[int, int], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of each crop."""
        return self.crops.shape[2], self.crops.shape[3]


Varied = Region | list[Tensor]
"""A value in K variants: a region of each, or each as a whole."""


class Reference:
    """A frame whose feature maps are all known, and the same network on variants of it.

    result: what the model returns for the frame.
    """

    def __init__(self, graph: Graph, known: dict[Value, Tensor], result: Any, extents: Extents | None = None) -> None:
        self.graph, self.known, self.result = graph, known, result
        self.extents = extents or Extents(graph)
        self.layers = {
            f"{n} {o.where or o.name}": {"macs_per_position": o.macs // _positions(o), "positions": _positions(o),
                                         "computed": 0} for n, o in enumerate(graph.operations) if o.macs
        }  # fmt: skip
        self.names = dict(zip([o for o in graph.operations if o.macs], self.layers, strict=True))

    def shallow(self, block: int = 1) -> Tensor:
        """What the first, second, ... convolution gives (1, C, h, w), with norm, activation and pooling after it.

        Raises: ValueError for a model that has fewer convolutions.
        """
        convolutions = [o.outputs[0] for o in self.graph.operations if o.func in CONVOLUTIONS]
        if not 1 <= block <= len(convolutions):
            raise ValueError(f"block must be one of the {len(convolutions)} convolutions, got {block}")
        value, after = convolutions[block - 1], (*NORMS, aten.max_pool2d_with_indices.default)
        while value is not None and (reader := value.only_reader) and (is_pointwise(reader) or reader.func in after):
            value = reader.outputs[0]
        return self.known[value]

    @torch.no_grad()
    def replaced(self, crops: Tensor, places: Sequence[tuple[int, int]]) -> Any:
        """The model's result for K variants of the frame, as for a batch of them.

        crops: (K, C, h, w), what stands in the place of the frame's pixels from (top, left) on, each inside the frame.
        Raises: ValueError for crops that do not fit.
        """
        _, channels, height, width = self.graph.frame.shape
        check_tensor("crops", crops, "K C h w")
        fits = len(crops) == len(places) and crops.shape[1] == channels
        h, w = crops.shape[2:]
        if not fits or not all(0 <= y <= height - h and 0 <= x <= width - w for y, x in places):
            raise ValueError(
                f"crops of shape {tuple(crops.shape)} at {list(places)} do not lie in a frame of shape "
                f"{tuple(self.graph.frame.shape)}: give one (top, left) for each"
            )
        groups = [
            (group, self._varied(crops[group], [places[k] for k in group])) for group in self._groups(places, (h, w))
        ]
        return pytree.tree_map(lambda leaf: self._given(leaf, groups, len(crops)), self.graph.result)

    def planned(self, places: Sequence[tuple[int, int]], size: tuple[int, int]) -> int:
        """MACs that windows of a size (h, w) at these places will take, to choose by; at most a little too few."""
        extents = [self.extents.of(place, size) for place in places]
        return sum(
            len(group) * batch_macs([extents[k] for k in group], self._per_position)
            for group in self._groups(places, size)
        )

    @property
    def _per_position(self) -> list[int]:
        return [layer["macs_per_position"] for layer in self.layers.values()]

    def _groups(self, places: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[list[int]]:
        return grouped([self.extents.of(place, size) for place in places], self._per_position)

    def _varied(self, crops: Tensor, places: Sequence[tuple[int, int]]) -> dict[Value, Varied]:
        """Everything that differs in some variants, which run as one batch."""
        varied: dict[Value, Varied] = {self.graph.frame: Region(crops, tuple(places))}
        for operation in self.graph.operations:
            if any(value in varied for value in operation.inputs()):
                self._follow(operation, varied, len(crops))
        return varied

    @property
    def macs(self) -> int:
        """MACs of all variants so far, in closed form."""
        return sum(layer["macs_per_position"] * layer["computed"] for layer in self.layers.values())

    def _follow(self, operation: Operation, varied: dict[Value, Varied], count: int) -> None:
        rule = next(
            (r for funcs, r in RULES if operation.func in funcs), _pointwise if is_pointwise(operation) else None
        )
        region = rule(operation, Window(self.known, varied, count)) if rule else None
        if region is not None:
            varied[operation.outputs[0]] = region
            done = count * region.size[0] * region.size[1]
        else:
            each = [operation(self._whole(operation, varied, k)) for k in range(count)]
            for i, value in enumerate(operation.outputs):
                if value is not None:
                    varied[value] = [out[i] for out in each]  # type: ignore[misc]
            done = count * _positions(operation)
        if operation in self.names:
            self.layers[self.names[operation]]["computed"] += done

    def _whole(self, operation: Operation, varied: Mapping[Value, Varied], k: int) -> dict[Value, Tensor]:
        """The inputs of an operator for one variant."""
        return {v: self._variant(v, varied[v], k) if v in varied else self.known[v] for v in operation.inputs()}

    def _variant(self, value: Value, found: Varied, k: int) -> Tensor:
        if isinstance(found, list):
            return found[k]
        whole, (top, left), (h, w) = self.known[value].clone(), found.places[k], found.size
        whole[:, :, top : top + h, left : left + w] = found.crops[k]
        return whole

    def _given(self, leaf: Any, groups: Sequence[tuple[list[int], Mapping[Value, Varied]]], count: int) -> Any:
        """A part of the result for all variants, one after the other."""
        if not isinstance(leaf, Value):
            return leaf
        known = self.known[leaf]
        if len(known) == 1 and not any(isinstance(varied.get(leaf), list) for _, varied in groups):
            out = known.expand(count, *known.shape[1:]).clone(memory_format=torch.preserve_format)
            for group, varied in groups:
                if isinstance(region := varied.get(leaf), Region):
                    for k, crop, (y, x) in zip(group, region.crops, region.places, strict=True):
                        out[k, :, y : y + region.size[0], x : x + region.size[1]] = crop
            return out
        each = [known] * count
        for group, varied in groups:
            for n, k in enumerate(group if leaf in varied else ()):
                each[k] = self._variant(leaf, varied[leaf], n)
        return torch.cat(each)


def _positions(operation: Operation) -> int:
    """Positions of the feature map that a convolution gives; 1 for an operator that only runs as a whole."""
    value = operation.outputs[0]
    plain = operation.func in CONVOLUTIONS and not operation.args[6] and value is not None
    return value.shape[2] * value.shape[3] if plain else 1


# --------------------------------------------------------------------------------------------------------------------
# Groups of variants whose rectangles are of about one size

WEIGHTS_ANEW = 60
"""A group reads all weights once more; in a layer that costs about as much as computing so many positions."""


class Extents:
    """How much of each layer a window of the frame reaches: height and width, layer by layer, remembered by place.

    It serves to plan groups; what is computed is found, and counted, as it runs.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.along: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def of(self, place: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
        """For each operator that multiplies, in order."""
        return list(zip(*(self._lengths(i, place[i], place[i] + size[i]) for i in (0, 1)), strict=True))

    def _lengths(self, i: int, low: int, high: int) -> tuple[int, ...]:
        """Of what a change from `low` to `high` reaches along an axis."""
        if (i, low, high) not in self.along:
            spans, lengths = {self.graph.frame: (low, high)}, list[int]()
            for operation in self.graph.operations:
                given = [spans[value] for value in operation.inputs() if value in spans]
                if given:
                    end = operation, i, min(span[0] for span in given), max(span[1] for span in given)
                    span = reached(*end)
                    spans |= {value: span for value in operation.outputs if value is not None}
                if operation.macs:
                    lengths.append(span[1] - span[0] if given else 0)
            self.along[i, low, high] = tuple(lengths)
        return self.along[i, low, high]


def reached(operation: Operation, i: int, low: int, high: int) -> tuple[int, int]:
    """Where an operator's result may differ along an axis of feature maps if what it reads differs within a span."""
    out = operation.outputs[0]
    if out is None or len(out.shape) != 4 or (operation.macs and _positions(operation) == 1):
        return 0, 1
    length = out.shape[2 + i]
    if axes := _axes(operation):
        return axes[i].reached(low, high, length)
    if operation.func is aten.constant_pad_nd.default:
        sides = operation.args[1]
        before = sides[2 - 2 * i] if len(sides) > 2 - 2 * i else 0
        return low + before, high + before
    if operation.func in UPSAMPLINGS:
        times = length // operation.args[0].shape[2 + i]
        return low * times, high * times
    alike = all(len(v.shape) == 4 and v.shape[2 + i] == length for v in operation.inputs())
    return (low, high) if alike else (0, length)


def batch_macs(extents: Sequence[Sequence[tuple[int, int]]], per_position: Sequence[int]) -> int:
    """MACs of each variant of a batch: in every layer the rectangle that holds those of all."""
    widest = np.array(extents, dtype=np.int64).reshape(len(extents), len(per_position), 2).max(0)
    return int((widest.prod(1) * np.array(per_position, dtype=np.int64)).sum())


def grouped(extents: Sequence[Sequence[tuple[int, int]]], per_position: Sequence[int]) -> list[list[int]]:
    """Which variants run as one batch: the groups that cost least, weights read anew for each counted.

    extents: of each variant, height and width of the rectangle in each layer. per_position: MACs at one of its
    positions. Variants are put in order by their rectangle in the costliest layer, and cut where it is cheapest.
    """
    sizes = np.array(extents, dtype=np.int64).reshape(len(extents), len(per_position), 2)
    each = np.array(per_position, dtype=np.int64)
    if len(sizes) < 2 or not len(each):
        return [list(range(len(sizes)))]
    costliest = int((sizes.prod(2) * each).sum(0).argmax())
    order = np.lexsort((sizes[:, costliest, 1], sizes[:, costliest, 0]))
    best, since = [0.0], [0]
    for end in range(1, len(order) + 1):
        widest = np.maximum.accumulate(sizes[order[:end]][::-1], axis=0)[::-1]  # of those from each start to the end
        batch = (widest.prod(2) * each).sum(1) * np.arange(end, 0, -1) + WEIGHTS_ANEW * int(each.sum())
        costs = np.array(best) + batch
        since.append(int(costs.argmin()))
        best.append(float(costs.min()))
    groups, end = list[list[int]](), len(order)
    while end:
        groups.append(sorted(order[since[end] : end].tolist()))
        end = since[end]
    return groups[::-1]


# --------------------------------------------------------------------------------------------------------------------
# Rules: the region of an operator's result in all variants, or None where it has to run as a whole


class Window:
    """What the rules see: the frame's feature maps, and what of them varies."""

    def __init__(self, known: Mapping[Value, Tensor], varied: Mapping[Value, Varied], count: int) -> None:
        self.known, self.varied, self.count = known, varied, count

    def region(self, value: Any) -> Region | None:
        """A feature map (1, C, H, W) in its variants; None for anything else."""
        if not isinstance(value, Value) or len(value.shape) != 4 or value not in self.varied:
            return None
        found = self.varied[value]
        return Region(torch.cat(found), ((0, 0),) * self.count) if isinstance(found, list) else found

    def read(self, value: Value, places: Sequence[tuple[int, int]], size: tuple[int, int], beyond: float = 0) -> Tensor:
        """Windows (K, C, h, w) of a feature map in its variants; `beyond` stands where they leave the map."""
        base, region, (h, w) = self.known[value], self.region(value), size
        height, width = base.shape[2:]
        last = base.is_contiguous(memory_format=torch.channels_last) and base.shape[1] > 1
        layout = torch.channels_last if last else torch.contiguous_format
        out = torch.empty((self.count, base.shape[1], h, w), dtype=base.dtype, device=base.device, memory_format=layout)
        for k, (top, left) in enumerate(places):
            y, y_end, x, x_end = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
            if (y_end - y, x_end - x) != (h, w):
                out[k].fill_(beyond)
            out[k, :, y - top : y_end - top, x - left : x_end - left] = base[0, :, y:y_end, x:x_end]
            if region is not None:
                (ry, rx), (rh, rw) = region.places[k], region.size
                y, y_end, x, x_end = max(top, ry), min(top + h, ry + rh), max(left, rx), min(left + w, rx + rw)
                if y < y_end and x < x_end:
                    crop = region.crops[k, :, y - ry : y_end - ry, x - rx : x_end - rx]
                    out[k, :, y - top : y_end - top, x - left : x_end - left] = crop
        return out


Places = tuple[tuple[int, int], ...]


def aligned(spans: Sequence[Sequence[tuple[int, int]]], sizes: Sequence[int]) -> tuple[Places, tuple[int, int]]:
    """Rectangles of one size that hold those given: spans[axis][k] = (first, end) on a map with these sizes."""
    lengths = [max(1, *(end - first for first, end in axis)) for axis in spans]
    moved = [
        [max(0, min(first, n - length)) for first, _ in axis]
        for axis, length, n in zip(spans, lengths, sizes, strict=True)
    ]
    return tuple(zip(*moved, strict=True)), (lengths[0], lengths[1])


def _sliding(
    operation: Operation, window: Window, axes: Sequence[Axis], beyond: float, run: Callable[[Tensor], Tensor]
) -> Region | None:
    """The outputs that a changed input reaches, each from its window with the halo."""
    source, out = operation.args[0], operation.outputs[0]
    region = window.region(source)
    if region is None or out is None:
        return None
    spans = [
        [axis.reached(place[i], place[i] + region.size[i], out.shape[2 + i]) for place in region.places]
        for i, axis in enumerate(axes)
    ]
    places, size = aligned(spans, out.shape[2:])
    starts = [tuple(p * a.stride - a.padding for p, a in zip(place, axes, strict=True)) for place in places]
    extent = axes[0].extent(size[0]), axes[1].extent(size[1])
    return Region(run(window.read(source, starts, extent, beyond)), places)


def _axes(operation: Operation) -> list[Axis] | None:
    """How a convolution or pooling slides down and across; None for any other operator."""
    if operation.func in CONVOLUTIONS:
        weight, _, stride, padding, dilation, transposed = operation.args[1:7]
        if transposed or not isinstance(weight, Tensor) or weight.dim() != 4:
            return None
        kernel: Any = weight.shape[2:]
    elif operation.func is aten.max_pool2d_with_indices.default:
        kernel, stride, padding, dilation, _ = filled(operation.args[1:], ([], 0, 1, False))
    elif operation.func is aten.avg_pool2d.default:
        kernel, stride, padding = filled(operation.args[1:], ([], 0))[:3]
        dilation = 1
    else:
        return None
    return [Axis(*pair) for pair in pairs_of(kernel, stride or kernel, padding, dilation)]


def _convolution(operation: Operation, window: Window) -> Region | None:
    weight, bias, stride, _, dilation, _, _, groups = operation.args[1:9]
    axes = _axes(operation)
    if axes is None or isinstance(bias, Value):
        return None
    return _sliding(
        operation, window, axes, 0, lambda windows: F.conv2d(windows, weight, bias, stride, 0, dilation, groups)
    )


def _max_pool(operation: Operation, window: Window) -> Region | None:
    indices, axes = operation.outputs[1], _axes(operation)
    if axes is None or indices is None or indices.readers or indices.returned:
        return None
    kernel, dilation = operation.args[1], [a.dilation for a in axes]

    def pooled(windows: Tensor) -> Tensor:
        return F.max_pool2d(windows, kernel, [a.stride for a in axes], 0, dilation)

    return _sliding(operation, window, axes, -torch.inf, pooled)


def _average_pool(operation: Operation, window: Window) -> Region | None:
    kernel, _, _, ceil, count_padding, divisor = filled(operation.args[1:], ([], 0, False, True, None))
    axes = _axes(operation)
    if axes is None or ceil or divisor or (not count_padding and any(a.padding for a in axes)):
        return None
    return _sliding(operation, window, axes, 0, lambda windows: F.avg_pool2d(windows, kernel, [a.stride for a in axes]))


def _norm(operation: Operation, window: Window) -> Region | None:
    region = window.region(operation.args[0])
    unread = all(v is None or not (v.readers or v.returned) for v in operation.outputs[1:])
    if region is None or not is_eval_norm(operation) or not unread:
        return None
    return Region(operation.func(region.crops, *operation.args[1:], **operation.kwargs)[0], region.places)


def _passed_on(operation: Operation, window: Window) -> Region | None:
    return window.region(operation.args[0])


def _padding(operation: Operation, window: Window) -> Region | None:
    region, sides = window.region(operation.args[0]), list(operation.args[1])
    if region is None or len(sides) > 4 or min(sides) < 0:
        return None
    left, top = sides[0], sides[2] if len(sides) > 2 else 0
    return Region(region.crops, tuple((y + top, x + left) for y, x in region.places))


def _upsampling(operation: Operation, window: Window) -> Region | None:
    region, source, out = window.region(operation.args[0]), operation.args[0], operation.outputs[0]
    if region is None or out is None or any(b % a for a, b in zip(source.shape[2:], out.shape[2:], strict=True)):
        return None
    times = [b // a for a, b in zip(source.shape[2:], out.shape[2:], strict=True)]
    crops = F.interpolate(region.crops, scale_factor=[float(n) for n in times], mode="nearest")
    return Region(crops, tuple((y * times[0], x * times[1]) for y, x in region.places))


def _together(operands: Sequence[Value], window: Window) -> tuple[Places, tuple[int, int]] | None:
    """Rectangles of one size that hold what varies of feature maps of the same height and width."""
    regions = [r for r in map(window.region, operands) if r is not None]
    if not regions or len({value.shape[2:] for value in operands}) > 1:
        return None
    spans = [
        [
            (min(r.places[k][i] for r in regions), max(r.places[k][i] + r.size[i] for r in regions))
            for k in range(window.count)
        ]
        for i in (0, 1)
    ]
    return aligned(spans, operands[0].shape[2:])


def _concatenation(operation: Operation, window: Window) -> Region | None:
    operands, dim = operation.args[0], (*operation.args[1:], 0)[0]
    if not all(isinstance(v, Value) and len(v.shape) == 4 for v in operands) or dim % 4 != 1:
        return None
    found = _together(operands, window)
    return found and Region(torch.cat([window.read(v, *found) for v in operands], 1), found[0])


def _maps(operation: Operation) -> list[Value] | None:
    """The feature maps that an element-wise operator reads, all of the size of its result.

    None if it reads anything else than those and one number for all, or for each channel.
    """
    out, maps = operation.outputs[0], list[Value]()
    for leaf in pytree.tree_leaves((operation.args, operation.kwargs)):
        if isinstance(leaf, Value) and out is not None and leaf.shape[2:] == out.shape[2:] and len(leaf.shape) == 4:
            maps.append(leaf)
        elif isinstance(leaf, Value) or (isinstance(leaf, Tensor) and leaf.numel() > 1 and leaf.shape[-2:] != (1, 1)):
            return None
    return maps if is_pointwise(operation) and maps and maps[0].shape[0] == 1 else None


def _pointwise(operation: Operation, window: Window) -> Region | None:
    """An element-wise operator on feature maps."""
    maps = _maps(operation) or []
    if len(set(maps)) == 1 and (region := window.region(maps[0])):
        return Region(_applied(operation, {maps[0]: region.crops}), region.places)
    found = _together(maps, window) if maps else None
    if found is None:
        return None
    return Region(_applied(operation, {value: window.read(value, *found) for value in dict.fromkeys(maps)}), found[0])


def _applied(operation: Operation, given: Mapping[Value, Tensor]) -> Tensor:
    """An operator on other tensors than those that it was recorded with."""
    args, kwargs = pytree.tree_map(
        lambda leaf: given.get(leaf, leaf) if isinstance(leaf, Value) else leaf, (operation.args, operation.kwargs)
    )
    return operation.func(*args, **kwargs)


def _kept(graph: Graph) -> set[Value]:
    """The values that variants read of the frame: all but those that go through one element-wise operator alone."""
    values = [graph.frame, *(v for o in graph.operations for v in o.outputs if v is not None)]

    def alone(value: Value) -> bool:
        reader = value.only_reader
        return reader is not None and value is not graph.frame and set(_maps(reader) or ()) == {value}

    return {value for value in values if value.readers or value.returned if not alone(value)}


Rule = Callable[[Operation, Window], Region | None]
RULES: tuple[tuple[Sequence[Any], Rule], ...] = (
    (CONVOLUTIONS, _convolution),
    ((aten.max_pool2d_with_indices.default,), _max_pool),
    ((aten.avg_pool2d.default,), _average_pool),
    (tuple(NORMS), _norm),
    (PASSED_ON, _passed_on),
    ((aten.constant_pad_nd.default,), _padding),
    (UPSAMPLINGS, _upsampling),
    ((aten.cat.default,), _concatenation),
)


# --------------------------------------------------------------------------------------------------------------------
# The network


class IncrementalNetwork(nn.Module):
    """A model that computes a frame once and, of its variants, only what a change reaches.

    Call it with a batch (B, C, H, W): the first frame is the reference, the others are compared with it. Or keep
    `reference(frame)` and ask it for `replaced` windows. `model` is a copy of the model as it was.
    """

    def __init__(self, target: Any, frame_shape: Sequence[int] | None = None, reuse: bool = True) -> None:
        super().__init__()
        if not isinstance(target, nn.Module):
            raise UnsupportedHost(TECHNIQUE, target, "a torch.nn.Module that maps frames (B, C, H, W) to tensors")
        if any(module.training for module in target.modules()):
            raise UnsupportedHost(TECHNIQUE, target, "a module in eval mode: call model.eval() first")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise UnsupportedHost(TECHNIQUE, target, "one floating point type, float32 or another, without autocast")
        self.reuse = reuse
        try:
            self.model = copied(target)
            self._forget()
            with uncounted(), quietly(next((p.device for p in self.model.parameters()), None)):
                self._check(frame_shape)
        except Unaccounted as error:
            raise UnsupportedHost(TECHNIQUE, target, str(error)) from error
        self.eval()

    def _check(self, frame_shape: Sequence[int] | None) -> None:
        """A batch of a frame and a variant through both. Raises Unaccounted where they differ."""
        if frame_shape is not None and not (
            isinstance(frame_shape, (tuple, list)) and all(type(n) is int and 0 < n < 2**31 for n in frame_shape)
        ):
            raise TypeError(f"frame_shape must be the sizes of a frame, such as (B, C, H, W), got {frame_shape!r}")
        recording, frame = probed(self.model, frame_shape)
        if frame.shape[0] != 1:
            raise Unaccounted("a frame_shape (1, C, H, W): variants are found one by one")
        other, (h, w) = frame.clone(), (max(1, n // 4) for n in frame.shape[2:])
        other[:, :, h : 2 * h, w : 2 * w] += 2
        try:
            expected = self.model(torch.cat((frame, other)))
        except Exception as error:
            raise Unaccounted(f"a model that takes a batch as it takes a frame; it raises {error}") from error
        first = Reference(recording.graph, {recording.graph.frame: frame} | recording.tensors, recording.result)
        varied = first.replaced(other[:, :, h : 2 * h, w : 2 * w].contiguous(), [(h, w)])
        compare(expected, _joined(first.result, varied, [True]))

    def _forget(self) -> None:
        self.graphs: dict[Any, Graph] = {}
        self.extents: dict[Any, Extents] = {}
        self.last: dict[str, Any] = {}
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("graphs", "extents", "last", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def _apply(self, fn: Any, recurse: bool = True) -> IncrementalNetwork:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self

    def reference(self, frame: Tensor) -> Reference:
        """A frame (1, C, H, W) computed as a whole, all its feature maps kept.

        Raises: TypeError or ValueError for a frame of another rank, type or batch, or that is not finite.
        """
        refuse_capture("which layers run depends on what differs between frames", "to a model that runs eagerly")
        check_frame(frame)
        key = frame.shape, frame.dtype, frame.device
        with torch.no_grad(), self.lock:
            graph, made = self.graphs.get(key), None
            if graph is None:
                made = self._recorded(frame)
                graph = self.graphs[key] = made.graph
                self.extents[key] = Extents(graph)
            extents = self.extents[key]
        if made is not None:
            known = {graph.frame: frame} | made.tensors
            return Reference(graph, {value: known[value] for value in _kept(graph)}, made.result, extents)
        with torch.no_grad():
            result, known = graph.run(frame, _kept(graph))
        return Reference(graph, known, result, extents)

    def _recorded(self, frame: Tensor) -> Recording:
        try:
            return record(self.model, frame)
        except Unaccounted as error:
            raise UnsupportedHost(TECHNIQUE, self.model, str(error)) from error

    def forward(self, frames: Tensor) -> Any:
        """frames: (B, C, H, W), the first is the reference. Returns what the model returns for the batch."""
        check_tensor("frames", frames, "B C H W")
        if not self.reuse or len(frames) == 1:
            self.last = {}
            return self.model(frames)
        new = (frames[:1].shape, frames.dtype, frames.device) not in self.graphs
        reference = self.reference(frames[:1])
        boxes = [changed_box(frames[0], frame) for frame in frames[1:]]
        changed = [box is not None for box in boxes]
        varied = None
        if any(changed):
            spans = [[(box[i], box[i + 2]) for box in boxes if box] for i in (0, 1)]
            places, (h, w) = aligned(spans, frames.shape[2:])
            others = [frame for frame, box in zip(frames[1:], boxes, strict=True) if box]
            crops = [f[:, y : y + h, x : x + w] for f, (y, x) in zip(others, places, strict=True)]
            varied = reference.replaced(torch.stack(crops), places)
        constants = reference.graph.constant_macs * (not new)
        self.last = {"variants": len(frames) - 1, "constants": constants, "layers": copy.deepcopy(reference.layers)}
        return _joined(reference.result, varied, changed)


def changed_box(frame: Tensor, other: Tensor) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right of what differs between two frames (C, H, W); None if nothing does."""
    differs = (frame != other).any(0)
    rows, columns = differs.any(1).nonzero()[:, 0], differs.any(0).nonzero()[:, 0]
    return (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else None


def _joined(result: Any, varied: Any, changed: Sequence[bool]) -> Any:
    """The reference's result, then those of the variants, of which unchanged ones have the reference's."""
    leaves, structure = pytree.tree_flatten(result)
    others = pytree.tree_leaves(varied) if varied is not None else leaves

    def rows(leaf: Any, other: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        each = iter(other.split(1)) if varied is not None else iter(())
        return torch.cat([leaf, *(next(each) if is_changed else leaf for is_changed in changed)])

    return pytree.tree_unflatten([rows(a, b) for a, b in zip(leaves, others, strict=True)], structure)


def incremental(model: nn.Module, frame_shape: Sequence[int] | None = None) -> IncrementalNetwork:
    """The model with `reference` and `replaced`: variants of a frame at the cost of what their windows reach.

    Raises: UnsupportedHost for a model that cannot be recorded faithfully.
    """
    return IncrementalNetwork(model, frame_shape)


class IncrementalRegionInference(Technique):
    """Krypton's exact part (nakandala-2019-incremental) on the operators that a model of images really runs."""

    id = "incremental-region-inference"
    execution = "real"
    knobs: ClassVar = {"reuse": Switch(True, about="compute, of variants of the first frame, only what differs")}

    def settings(self) -> list[Setting]:
        return [Setting("off", {"reuse": False}, off=True), Setting("reuse", {"reuse": True}, adaptive=True)]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of the pixels of the variants that lie outside the box of what differs from the first frame.

        inputs: (B, C, H, W), the first is the reference. 1 for copies of one frame, 0 for frames that have nothing in
        common.
        """
        check_tensor("inputs", inputs, "B C H W")
        if len(inputs) < 2:
            raise ValueError(f"inputs must hold a frame and at least one variant of it, got {len(inputs)} frame(s)")
        boxes = [changed_box(inputs[0], other) for other in inputs[1:]]
        shares = [0.0 if b is None else (b[2] - b[0]) * (b[3] - b[1]) / inputs[0, 0].numel() for b in boxes]
        where = {f"variant {k + 1}": 1 - share for k, share in enumerate(shares)}
        return Redundancy(1 - sum(shares) / len(shares), "share of pixels outside the box of what differs", where)

    def attach(self, target: Any, reuse: bool) -> Handle:
        """An `IncrementalNetwork` in the place of `target`, which stays as it is.

        target: an `nn.Module` in eval mode with one input, which treats the frames of a batch one by one. It runs on
        small frames, is recorded, and compared with what was recorded.
        Raises: UnsupportedHost, which names the operator.
        """
        network = IncrementalNetwork(target, reuse=reuse)
        if not reuse:
            warn_no_effect(self.id, "reuse is off")
        return Handle(network, trace=lambda: network.last)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Sum over layers of MACs per position x (positions of all variants - positions computed)."""
        layers = trace.get("layers", {}).values()
        return trace.get("constants", 0) + sum(
            one["macs_per_position"] * (one["positions"] * trace["variants"] - one["computed"]) for one in layers
        )
