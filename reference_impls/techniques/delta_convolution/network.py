"""A delta network: a model that follows a stream, and the check of it against the model when it is made."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reference_impls.accounting.count import uncounted
from reference_impls.contract import UnsupportedHost, check_tensor
from reference_impls.contract.replacement import refuse_capture
from reference_impls.hosts.graph import Graph, Recording, Unaccounted, Value, fold_norms, record
from reference_impls.hosts.tracing import compare, copied, probed, quietly
from reference_impls.techniques.delta_convolution import stages, whole
from reference_impls.techniques.delta_convolution.lowering import Lowering
from reference_impls.techniques.delta_convolution.stages import Knobs, Stage

LONGEST_REST = 32
TECHNIQUE = "delta-convolution"


class Plan:
    """A delta network for frames of one shape: the model's graph and its units."""

    def __init__(self, recorded: Graph, frame: Tensor, knobs: Knobs, first: Recording | None = None) -> None:
        """frame: one of them. first: the run of the stream's first frame, if it was recorded just now."""
        self.recorded, self.first = recorded, first
        self.graph = graph = fold_norms(self.recorded)
        lowering = Lowering(self.graph, knobs)
        self.frame, self.units = lowering.frame, lowering.units
        self.stages = [unit for unit in self.units if isinstance(unit, Stage)]
        self.result = pytree.tree_map(
            lambda leaf: lowering.given(leaf) if isinstance(leaf, Value) else leaf, graph.result
        )
        self.watched = {value for unit in self.units for value in unit.watched()}
        for stage in self.stages:
            stage.allocate(frame)
        self.busy = [unit for unit in self.units if unit.macs]
        self.dense_work = sum(unit.macs * unit.total for unit in self.busy)
        self.constants: list[int] = []

    def reset(self) -> None:
        """Forget what was computed."""
        for unit in self.units:
            unit.computed = []
        self.constants = []

    def begin(self, frame: Tensor) -> Any:
        """The first frame of a stream, as a whole, as the model itself computes it."""
        self.frame.receive(frame)
        self.constants.append(int(self.first is not None))
        if self.first is not None:  # the frame that was recorded has been computed already
            (result, known), self.first = (self.first.result, self.first.tensors), None
        else:
            result, known = self.recorded.run(frame, self.watched)
        for unit in self.units:
            unit.begin(known)
        return pytree.tree_map(_copied, result)

    def step(self, frame: Tensor) -> Any:
        """The next frame."""
        self.frame.receive(frame)
        self.constants.append(0)
        for unit in self.units:
            unit.step()
        return _copied(self.result) if isinstance(self.result, whole.OfStage) else pytree.tree_map(_copied, self.result)

    def dense(self, frame: Tensor) -> Any:
        """A frame through the model's graph, past the stream."""
        self.constants.append(0)
        for unit in self.units:
            unit.computed.append(unit.total)
        return self.graph.run(frame.contiguous(memory_format=torch.channels_last))[0]

    def work(self) -> tuple[int, int]:
        """Multiply-accumulates of the last frame, and of a dense one."""
        return sum(unit.macs * unit.computed[-1] for unit in self.busy), self.dense_work

    def trace(self) -> dict[str, Any]:
        """Name of each unit -> work in all, and in each frame."""
        layers = {
            unit.name: {"macs_per_position": unit.macs, "positions": unit.total, "computed": tuple(unit.computed)}
            for unit in self.units
            if isinstance(unit, Stage) or unit.macs
        }
        if macs := self.graph.constant_macs:
            layers["(constants)"] = {"macs_per_position": macs, "positions": 1, "computed": tuple(self.constants)}
        return layers


def _copied(leaf: Any) -> Any:
    tensor = getattr(leaf, "tensor", leaf)
    return tensor.clone() if isinstance(tensor, Tensor) else tensor


class DeltaNetwork(nn.Module):
    """A model that takes the frames of a stream one after the other and does the work of what changed.

    Where the work of a whole frame hardly fell, the stream is not worth following at the moment: the next frames go
    through the dense network, 1, 2, 4, ... and at most `LONGEST_REST` of them before the stream is taken up again.

    `model` is a copy of the model as it was: later changes of the original are not seen. A copy of a delta network
    starts a stream of its own. Streams are followed in one thread at a time.
    """

    plan: Plan | None
    key: tuple[Any, ...] | None
    """The kind of frames that the plan is for."""
    probed: tuple[tuple[Any, ...] | None, Graph | None]
    """The kind of frames on which the model was checked, and its graph for them."""
    device: torch.device | None

    def __init__(self, target: Any, knobs: Knobs, frame_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(target, nn.Module):
            raise UnsupportedHost(TECHNIQUE, target, "a torch.nn.Module that maps frames (B, C, H, W) to tensors")
        if any(module.training for module in target.modules()):
            raise UnsupportedHost(TECHNIQUE, target, "a module in eval mode: call model.eval() first")
        with _says(target):
            self.model = copied(target)
        self.knobs = knobs
        self.eval()
        self._forget()
        types = {p.dtype for p in self.model.parameters()} | {b.dtype for b in self.model.buffers()}
        autocast = torch.is_autocast_enabled(self.device.type if self.device else "cpu")
        if knobs.update == "delta" and (autocast or types & {torch.float16, torch.bfloat16}):
            raise UnsupportedHost(TECHNIQUE, target, NEEDS_WIDE)
        with uncounted(), quietly(self.device):
            self.probed = _check(target, self.model, knobs, frame_shape)

    def _forget(self) -> None:
        self.plan, self.key = None, None
        self.probed = None, None
        self.dtype = next((p.dtype for p in self.model.parameters()), None)
        self.device = _device(self.model)
        self.lock = threading.Lock()
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("lock", "plan", "key", "probed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def _apply(self, fn: Any, recurse: bool = True) -> DeltaNetwork:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; the next frame starts a new stream."""
        result = super().load_state_dict(*args, **kwargs)
        self._forget()
        return result

    @property
    def layers(self) -> list[Stage]:
        """The layers on feature maps, from the frame on; none before the first frame."""
        return self.plan.stages if self.plan else []

    def reset(self) -> None:
        """Forget the stream: the next frame is computed as a whole."""
        self.frame_shape: torch.Size | None = None
        self.follows = False  # the stored maps belong to the frame before
        self.rest, self.next_rest = 0, 1
        if self.plan:
            self.plan.reset()

    def forward(self, frame: Tensor) -> Any:
        """frame: (B, C, H, W), the next frame of B streams. Returns what the model returns for it."""
        refuse_capture("what a frame costs depends on the frames before it", "to a model that runs eagerly")
        if not self.lock.acquire(blocking=False):
            raise RuntimeError(
                "this delta network is at work on another frame: a stream belongs to one network, and its frames come "
                "one after the other. Apply the technique once for each stream"
            )
        try:
            return self._next(frame)
        finally:
            self.lock.release()

    def _next(self, frame: Tensor) -> Any:
        check_tensor("frame", frame, "B C H W", finite=False)
        kind = frame.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if self.dtype not in (None, frame.dtype) and autocast is None:
            raise TypeError(f"frame must have the dtype of the model's weights, {self.dtype}, got {frame.dtype}")
        if frame.device != (self.device or frame.device):
            raise ValueError(f"frame must be on the model's device, {self.device}, got {frame.device}")
        if not frame.numel():
            raise ValueError(f"frame holds nothing: its shape is {tuple(frame.shape)}")
        if self.training:
            raise ValueError("a delta network works in eval mode: call eval() on it")
        if self.frame_shape not in (None, frame.shape):
            raise ValueError(
                f"frame must have shape {tuple(self.frame_shape)} as the frames before it, got {tuple(frame.shape)}: "
                "call reset() to start a new stream"
            )
        key = frame.shape, frame.dtype, frame.device, autocast
        if self.frame_shape is not None and key != self.key:
            raise ValueError("autocast or the type of the frames changed within the stream: call reset() to start anew")
        if not self.follows:  # else the source looks at what changed
            stages.check_finite(frame)
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), torch.no_grad():
            if self.plan is None or key != self.key:
                self._start(frame, key, autocast)
            self.frame_shape = frame.shape
            with torch.autocast(kind, enabled=False) if autocast else nullcontext():
                return self._follow(self.plan, frame)

    def _start(self, frame: Tensor, key: tuple[Any, ...], autocast: torch.dtype | None) -> None:
        if autocast is not None and self.knobs.update == "delta":
            raise UnsupportedHost(TECHNIQUE, self.model, NEEDS_WIDE)
        self.plan = None  # so that two of them never need memory
        with _says(self.model):
            try:
                first, graph = None, self.probed[1]
                if graph is None or key != self.probed[0]:
                    first = record(self.model, frame)
                    graph = first.graph
                self.plan, self.key = Plan(graph, frame, self.knobs, first), key
            except RuntimeError as error:
                raise ValueError(f"the model does not run on frames of shape {tuple(frame.shape)}: {error}") from error

    def _follow(self, plan: Plan, frame: Tensor) -> Any:
        if self.rest:
            self.rest -= 1
            return plan.dense(frame)
        if not self.follows:
            self.follows = True
            return plan.begin(frame)
        try:
            result = plan.step(frame)
        except BaseException:
            self.reset()  # what is stored belongs to no frame
            raise
        done, dense = plan.work()
        if done > (1 - self.knobs.min_profitable) * dense:
            self.follows = False
            self.rest, self.next_rest = self.next_rest, min(2 * self.next_rest, LONGEST_REST)
        else:
            self.next_rest = 1
        return result

    def trace(self) -> dict[str, Any]:
        """What was computed since the stream began, in the terms of `DeltaConvolution.saving`."""
        return {"layers": self.plan.trace() if self.plan and self.frame_shape is not None else {}}


NEEDS_WIDE = (
    "float32 or float64 without autocast where differences are sent, because they would add up the rounding of lower "
    "precision; update='value' works in any"
)


@contextmanager
def _says(target: nn.Module) -> Iterator[None]:
    """What cannot be accounted for is said of the target."""
    try:
        yield
    except Unaccounted as error:
        raise UnsupportedHost(TECHNIQUE, target, str(error)) from error


def _device(model: nn.Module) -> torch.device | None:
    return next((t.device for t in (*model.parameters(), *model.buffers())), None)


# --------------------------------------------------------------------------------------------------------------------
# The check


def _check(target: nn.Module, model: nn.Module, knobs: Knobs, frame_shape: Sequence[int] | None) -> tuple[Any, Graph]:
    """Two small frames through the delta network and through the model. Raises UnsupportedHost where they differ."""
    low = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    if low:  # the same graph, without the rounding
        model = copy.deepcopy(model).float()
    exact = Knobs(0.0, knobs.tile, 0.0, knobs.update)
    with _says(target):
        with suppress(ValueError):  # a compiled forward has no signature
            try:
                inspect.signature(model.forward).bind(None)
            except TypeError as error:
                raise Unaccounted(f"one input, the frame (B, C, H, W) ({error})") from error
        recording, frame = probed(model, frame_shape)
        plan = Plan(recording.graph, frame, exact, recording)
        results = [(recording.result, plan.graph.run(frame)[0])]
        plan.begin(frame)
        other = frame.clone()
        height, width = (max(1, n // 4) for n in frame.shape[2:])
        other[:, :, height : 2 * height, width : 2 * width] += 2
        try:
            results.append((model(other.clone()), plan.step(other)))
        except Exception as error:
            raise Unaccounted(f"a model that does the same with every frame; its second raises {error}") from error
        for expected, actual in results:
            compare(expected, actual)
    return (None if low else (frame.shape, frame.dtype, frame.device, None)), recording.graph
