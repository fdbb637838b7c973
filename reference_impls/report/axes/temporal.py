"""Positions and tiles of feature maps that stay as they were in the frame before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reference_impls.contract import tensors
from reference_impls.redundancy.inputs import deviations
from reference_impls.redundancy.temporal_similarity import (
    affected,
    changed_tiles,
    held,
    tile_maximum,
)
from reference_impls.report.axes.base import Axis, Setting
from reference_impls.report.axes.stream import Temporal
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Edit, Probe, View
from reference_impls.report.watch import Call, short

_NAMES = (
    "relu relu_ hardtanh hardtanh_ leaky_relu leaky_relu_ silu silu_ gelu sigmoid sigmoid_ hardswish hardswish_ "
    "hardsigmoid hardsigmoid_ tanh tanh_ elu elu_ mish mish_ softplus clamp clamp_ clamp_min clamp_min_ prelu "
    "max_pool2d_with_indices native_layer_norm native_group_norm"
)
NONLINEAR = frozenset(_NAMES.split())
"""Operators whose results are withheld where they hardly move; through others changes travel on."""


class Stream(Edit):
    """Positions that move by at most `threshold` deviations keep what they sent, after every non-linear operator.

    As delta networks do (parger-2022-deltacnn, cavigelli-2017-cbinfer): the unit is the standard deviation of the
    tensor in the first frame. Convolutions compute the tiles of `tile` x `tile` outputs that a sent position reaches;
    products with single positions compute exactly those. Where less than `min_profitable` of a layer is idle, it
    computes everything; where less of a frame is, the next 1, 2, 4, ... 32 frames run dense.
    """

    def __init__(self, threshold: float, tile: int, min_profitable: float, dense: float) -> None:
        super().__init__()
        self.threshold, self.tile, self.least, self.dense = threshold, tile, min_profitable, dense

    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        x = batch.main
        if not x.is_floating_point() or x.ndim != 4:
            return batch
        self.spend(compare_bytes=2 * x.numel() * x.element_size())
        return batch.with_main(self._held(x))

    def _held(self, x: Tensor) -> Tensor:
        limit = self.threshold * float(deviations(x[:1].float()))
        return held(x, limit)[0]

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if short(func) not in NONLINEAR:
            _travels(args, first)
            return out
        if not isinstance(first, Tensor) or first.ndim not in (3, 4) or len(first) != self._frames:
            return out
        maps = first if first.ndim == 4 else first.transpose(1, 2)[..., None]
        kept = self._held(maps)
        self.spend(compare_bytes=2 * first.numel() * first.element_size(), calls=3 * len(first))
        first.copy_(kept if first.ndim == 4 else kept[..., 0].transpose(1, 2))
        return out

    @property
    def _frames(self) -> int:
        assert self.batch is not None
        return self.batch.items

    def account(self, call: Call, out: Any) -> None:
        frames, x = self._frames, call.x
        if call.site.type == "conv" and x.ndim == 4 and len(x) == frames and not call.named.get("transposed"):
            sent = _moved(x) | _sent_of(x)
            stride, padding, dilation = map(call.sliding, ("stride", "padding", "dilation"))
            assert call.weight is not None
            kernel = (call.weight.shape[2], call.weight.shape[3])
            reached = affected(sent, kernel, stride, padding, dilation)
            total = reached[0].numel()
            if self.tile > 1 and (kernel, stride) != ((1, 1), (1, 1)):
                side = min(self.tile, max(reached.shape[1:]))
                tiles = tile_maximum(reached[..., None].float(), side) > 0
                work = tiles.flatten(1).sum(1) * side**2
                work = torch.where(work > (1 - self.least) * total, total, work)
                # Whole tiles are sent on, up to the next operator that withholds.
                up = tiles.repeat_interleave(side, 1).repeat_interleave(side, 2)
                out.sent = up[:, : reached.shape[1], : reached.shape[2]]
                halo = x[0, 0].numel() / total * (side + kernel[0] - 1) * (side + kernel[1] - 1) / side**2
            else:
                work, halo = reached.flatten(1).sum(1), float(kernel[0] * kernel[1])
            bytes_ = float(work[1:].sum()) * x.shape[1] * x.element_size()
            self.spend(gather_bytes=bytes_ * halo, calls=4 * frames,
                       scatter_bytes=float(work[1:].sum()) * out.shape[1] * out.element_size())  # fmt: skip
        elif call.site.type == "linear" and x.ndim == 2 and len(x) % frames == 0:
            rows = x.view(frames, -1, x.shape[1])
            moved = torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device)
            moved[1:] = (rows[1:] != rows[:-1]).any(2)
            work, total = moved.sum(1), moved.shape[1]
        elif call.site.type in ("matmul", "attention") and len(x) % frames == 0:
            whole = x.reshape(frames, -1)
            work, total = torch.ones(frames, dtype=torch.long, device=x.device), 1
            work[1:] = (whole[1:] != whole[:-1]).any(1)
        else:
            return
        idle = 1 - work.double() / total
        idle[0] = 0
        self.save(call.site.name, idle * call.cost(out))

    def end(self) -> None:
        """Frames of which hardly anything falls away are computed as a whole, and so are those after them."""
        share = self.of_items() / max(self.dense, 1)
        kept, rest, longer, follows = torch.zeros(len(share), dtype=torch.bool), 0, 1, True
        for t in range(1, len(share)):
            if rest:
                rest -= 1
            elif not follows:
                follows = True  # a whole frame, to begin the stream again
            else:
                kept[t] = True
                if share[t] < self.least:
                    follows, rest, longer = False, longer, min(2 * longer, 32)
                else:
                    longer = 1
        for site, macs in self.saved.items():
            self.mean[site] -= float(macs[~kept].sum())
            self.saved[site] = macs * kept


def _sent_of(x: Any) -> Any:
    """Positions of a tensor that were sent though they may not differ, (T, H, W); False for none."""
    return getattr(x, "sent", False)


def _travels(args: tuple[Any, ...], out: Any) -> None:
    """What was sent of the operands of an operator has been sent of its result, where positions are the same."""
    if not isinstance(out, Tensor) or out.ndim != 4:
        return
    for x in tensors(list(args)):
        sent = _sent_of(x)
        if isinstance(sent, Tensor) and sent.shape == (len(out), *out.shape[2:]):
            out.sent = sent | _sent_of(out)  # type: ignore[attr-defined]


def _moved(x: Tensor) -> Tensor:
    """Positions (T, H, W) at which some channel differs from the frame before; all of the first frame."""
    moved = torch.ones(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
    moved[1:] = (x[1:] != x[:-1]).any(1)
    return moved


class _StaticProbe(Probe):
    """Share of positions, or tiles, of the inputs of products that stay within a threshold of the frame before."""

    def __init__(self, threshold: float, tile: int) -> None:
        super().__init__()
        self.threshold, self.tile = threshold, tile

    def account(self, call: Call, out: Any) -> None:
        x = call.x
        if call.site.type == "linear" and x.ndim == 2 and len(x) % call.batch == 0 and len(x) > call.batch:
            x = x.view(call.batch, -1, x.shape[1]).transpose(1, 2)[..., None]
        if x.ndim != 4 or len(x) != call.batch or len(x) < 2 or call.site.type not in ("conv", "linear"):
            return
        limit = self.threshold * float(deviations(x[:1].float()))
        tile = min(self.tile, max(x.shape[2:]))
        moved = changed_tiles(x[:-1], x[1:], tile=tile, threshold=limit).double()
        static = 1 - moved.mean()  # of a clip, for each of its frames
        self.note(call.site.name, static.expand(call.batch), call.cost(out))


class TemporalTiles(Temporal):
    """Tiles of feature maps that stay as they were."""

    id = "temporal-tiles"
    title = "Tiles of feature maps that stay as in the frame before"
    location, granularity = "activations", "region_block"
    measure = "share of 8 x 8 tiles of the inputs of layers that stay within 0.1 deviations of the frame before"
    source = "reference_impls.redundancy.temporal_similarity:changed_tiles"
    least = 0.4

    def probe(self, view: View) -> Probe:
        return _StaticProbe(self.threshold, self.tile)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [
            {"threshold": t, "tile": self.tile, "min_profitable": self.least}
            for t in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
        ]

    def edit(self, view: View, setting: Setting) -> Edit:
        return Stream(setting["threshold"], setting["tile"], setting["min_profitable"], view.total)


class TemporalPositions(TemporalTiles):
    """Single positions of feature maps that stay as they were: what no tiles could do better."""

    id = "temporal-positions"
    title = "Positions of feature maps that stay as in the frame before"
    granularity = "element"
    measure = "share of positions of the inputs of layers that stay within 0.1 deviations of the frame before"
    tile, least = 1, 0.0


AXES: Sequence[type[Axis]] = (TemporalPositions, TemporalTiles)
