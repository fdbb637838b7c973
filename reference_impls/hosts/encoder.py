"""An encoder of text run layer by layer, exactly as its own `forward` runs it; no family is known by name.

What stands before the layers (embeddings, projections, masks, relative positions, rotary angles) is computed by
the encoder's own `forward`, with stand-ins in the places of the layers, which note what each layer would be given. The
layers are then called with that, one after the other. `take_apart` runs the encoder once, follows its tokens from layer
to layer, and refuses an encoder that does more on that way than call modules on them.

Inputs: {"ids": (B, N) int64, "real": (B, N) bool, False on padding}, and "token_type_ids" or "position_ids" where the
encoder's `forward` takes them. The ids of padding are the encoder's own (its `pad_token_id`).
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reference_impls.contract import UnsupportedHost, check_tensor, tensors
from reference_impls.contract.replacement import refuse_capture
from reference_impls.hosts.staged import Shared, select

PROBE = (3, 6)  # samples and tokens of the run that takes an encoder apart
_PLAIN = (Tensor, bool, int, float, str, torch.dtype, torch.device, type(None))
_MORE = ("token_type_ids", "position_ids")  # nothing but embeddings and angles depend on them
_FLAGS = ("output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Call:
    """What a layer is given beside its tokens. `place` is where the tokens stand: a position or a name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Call, Tensor]:
        """The call, and the tokens that it was given: the first tensor that may be (B, N, D)."""
        for place, value in (*enumerate(args), *kwargs.items()):
            if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
                args = tuple(None if i == place else a for i, a in enumerate(args))
                return cls(args, {k: None if k == place else v for k, v in kwargs.items()}, place), value
        raise ValueError("the encoder gives a layer no tokens (B, N, D)")

    def map(self, function: Callable[[Any], Any]) -> Call:
        """The same call with `function` of each value inside."""
        kwargs = {name: _map(value, function) for name, value in self.kwargs.items()}
        return Call(tuple([_map(value, function) for value in self.args]), kwargs, self.place)

    def leaves(self) -> list[Any]:
        """The values inside, in the order in which `map` meets them."""
        found: list[Any] = []
        self.map(found.append)
        return found

    def run(self, layer: nn.Module, x: Tensor) -> Any:
        """What the layer makes of the tokens x."""
        args = [x if i == self.place else a for i, a in enumerate(self.args)]
        return layer(*args, **{k: x if k == self.place else v for k, v in self.kwargs.items()})


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_map(part, function) for part in value])
    if kind is dict:
        return {name: _map(part, function) for name, part in value.items()}
    return function(value)


@dataclass(frozen=True)
class Given:
    """In a call, stands for a tensor that has a row for each sample: its number in the state's list of these."""

    number: int


class _AllNoted(BaseException):
    """Ends the encoder's forward once every layer's call is noted; no `except Exception` takes it for an error."""


class Note(NamedTuple):
    """What a stand-in saw: the layer in whose place it is, how that would be called, and with which tokens."""

    layer: nn.Module
    call: Call
    tokens: Tensor


_NOTES: ContextVar[tuple[list[Note], int]] = ContextVar("notes")  # those so far, and how many there will be


class StandIn(nn.Module):
    """Stands in a layer's place: notes what it is given, and hands the tokens on in the form of the layer's output."""

    def __init__(self, layer: nn.Module, slot: Slot) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not a child: the stages hold the layers
        self.slot = slot

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "layer" not in self.__dict__:
                raise
            return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        notes, depth = _NOTES.get()
        notes.append(Note(self.layer, *Call.of(args, kwargs)))
        if len(notes) == depth:
            raise _AllNoted
        return self.slot.put(notes[-1].tokens)


@dataclass(frozen=True)
class Slot:
    """Where the tokens stand in what a layer returns: alone (None), or as one of a tuple."""

    at: int | None
    length: int = 0

    @classmethod
    def of(cls, output: Any, shape: torch.Size) -> Slot | None:
        """Where a tensor of this shape stands."""
        if isinstance(output, Tensor):
            return cls(None) if output.shape == shape else None
        if isinstance(output, tuple | list):
            for i, part in enumerate(output):
                if isinstance(part, Tensor) and part.shape == shape:
                    return cls(i, len(output))
        return None

    def get(self, output: Any) -> Tensor:
        return output if self.at is None else output[self.at]

    def put(self, x: Tensor) -> Any:
        return x if self.at is None else tuple(x if i == self.at else None for i in range(self.length))


class Front(nn.Module):
    """What an encoder computes before its layers: inputs -> the state that the first layer takes.

    State: {"x": (B, N, D), "real": (B, N) bool, "given": the tensors beside x that have a row for each sample, "calls":
    what each layer is called with}. `left_out` names the parameters of the encoder that its last hidden state does not
    depend on, such as a pooler's.

    Raises: TypeError or ValueError for bad inputs; NotImplementedError while a graph is captured.
    """

    def __init__(self, frame: nn.Module, depth: int, names: bool) -> None:
        super().__init__()
        self.frame, self.depth, self.names = frame, depth, names
        self.shared: frozenset[tuple[int, int]] = frozenset()  # call and leaf of tensors without a row for each sample
        self.left_out: tuple[str, ...] = ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # control flow by an exception; what is expensive is outside
    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        refuse_capture("the encoder's forward ends before its first layer", "to the encoder with captured layers")
        ids, real = check_inputs(inputs)
        calls: list[Call] = []
        numbers: dict[int, int] = {}
        given: list[Tensor] = []
        for i, (_, call, tokens) in enumerate(notes := self.note(inputs)):
            if tokens.shape[:2] != ids.shape:
                raise ValueError(
                    f"the encoder gives its layer {i + 1} tokens of shape {tuple(tokens.shape)}, not (B, N, D) with "
                    f"(B, N) = {tuple(ids.shape)}: it must keep padding (attn_implementation 'sdpa' or 'eager')"
                )
            leaves = itertools.count()

            def part(value: Any, i: int = i, leaves: Iterator[int] = leaves) -> Any:
                """A tensor with a row for each sample goes to the list; all else is the same for every sample."""
                leaf = next(leaves)
                if not isinstance(value, _PLAIN):
                    raise TypeError(
                        f"the encoder gives its layer {i + 1} a {type(value).__name__}, from which no samples can be "
                        "taken out: switch off its cache, or choose attn_implementation 'sdpa' or 'eager'"
                    )
                of_all = not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != len(ids)
                if of_all or (i, leaf) in self.shared:
                    return value
                if id(value) not in numbers:
                    numbers[id(value)] = len(given)
                    given.append(value)
                return Given(numbers[id(value)])

            calls.append(call.map(part))
        return {"x": notes[0].tokens, "real": real, "given": given, "calls": Shared(calls)}

    def note(self, inputs: Mapping[str, Tensor]) -> list[Note]:
        """What the encoder gives to each of its layers in turn."""
        notes: list[Note] = []
        token = _NOTES.set((notes, self.depth))
        try:
            call_encoder(self.frame, inputs, self.names)
        except _AllNoted:
            return notes
        finally:
            _NOTES.reset(token)
        raise ValueError(f"the encoder called its layers {len(notes)} times instead of {self.depth}")


class EncoderStage(nn.Module):
    """A layer of an encoder and the modules that it calls on the layer's output; first of all, its front.

    State -> state, with the tokens x in it replaced; the first stage takes the inputs.
    """

    def __init__(self, index: int, layer: nn.Module, slot: Slot, after: list[nn.Module], front: Front | None) -> None:
        super().__init__()
        self.front, self.layer, self.after = front, layer, nn.ModuleList(after)
        self.index, self.slot = index, slot

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        if self.front is not None:
            state = self.front(state)
        given = state["given"]
        call = state["calls"].value[self.index].map(lambda v: given[v.number] if isinstance(v, Given) else v)
        x = self.slot.get(call.run(self.layer, state["x"]))
        for module in self.after:
            x = module(x)
        return {**state, "x": x}


def check_inputs(inputs: Any) -> tuple[Tensor, Tensor]:
    """The ids and which tokens are real. TypeError or ValueError unless they fit one another."""
    if not isinstance(inputs, Mapping) or not {"ids", "real"} <= inputs.keys():
        got = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise TypeError(f"inputs must be a dict of 'ids' (B, N) and 'real' (B, N), True on real tokens, got {got}")
    if unknown := inputs.keys() - {"ids", "real", *_MORE}:
        raise TypeError(f"beside 'ids' and 'real', inputs may hold {' and '.join(_MORE)}, got {sorted(unknown)}")
    ids, real = (check_tensor(name, inputs[name], "B N", floating=False) for name in ("ids", "real"))
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"ids must hold integers, got {ids.dtype}")
    if real.dtype != torch.bool:
        raise TypeError(f"real must hold bools, got {real.dtype}: use mask.bool()")
    if ids.shape != real.shape or 0 in ids.shape:
        raise ValueError(
            f"ids and real must have the same shape (B, N) with at least one sample and one token, got "
            f"{tuple(ids.shape)} and {tuple(real.shape)}"
        )
    return ids, real


def call_encoder(encoder: nn.Module, inputs: Mapping[str, Tensor], names: bool) -> Any:
    """The encoder's own output: by the names of Hugging Face, or else as `encoder(ids, real)`."""
    more: dict[str, Any] = {name: x for name, x in inputs.items() if name not in ("ids", "real")}
    config = getattr(encoder, "config", None)
    more |= {flag: False for flag in _FLAGS if getattr(config, flag, False)}
    if names:
        return encoder(input_ids=inputs["ids"], attention_mask=inputs["real"].long(), **more)
    return encoder(inputs["ids"], inputs["real"], **more)


def last_hidden_state(output: Any) -> Tensor | None:
    """The tokens in an encoder's output: itself, under their name, or the first of a tuple."""
    if isinstance(output, Mapping):
        return output.get("last_hidden_state")
    found = output[0] if isinstance(output, tuple | list) and output else output
    return found if isinstance(found, Tensor) else None


# --------------------------------------------------------------------------------------------------------------------
# Taking an encoder apart


@torch.no_grad()
def take_apart(encoder: Any, technique: str) -> tuple[list[EncoderStage], list[Tensor]]:
    """The stages of an encoder, which share its weights, and the tokens that each leaves on a small run: (1, N, D).

    The encoder is put in eval mode and run once on 3 x 6 random tokens; its stages give the same last hidden state.

    Raises: UnsupportedHost, which names the part of the encoder that stages would lose.
    """

    def refuse(needs: str) -> UnsupportedHost:
        return UnsupportedHost(technique, encoder, needs)

    if not isinstance(encoder, nn.Module):
        raise refuse("an nn.Module")
    prefix = getattr(encoder, "base_model_prefix", "")
    if prefix and isinstance(getattr(encoder, prefix, None), nn.Module):
        raise refuse(f"the encoder without the head of a task: pass model.{prefix}")
    if hasattr(encoder, "_orig_mod"):
        raise refuse("the module as it was before torch.compile: pass model._orig_mod, and compile the stages")
    lists = dict(_outermost_lists(encoder))
    if not lists:
        raise refuse("an encoder with a list of layers (such as .layers or .encoder.layer)")
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    inputs = _probe(encoder)
    try:
        with torch.inference_mode(False), torch.autocast(inputs["ids"].device.type, enabled=False):
            return _take_apart(encoder, lists, inputs, refuse)
    except Exception as error:
        for module, mode in modes:
            module.training = mode
        if isinstance(error, UnsupportedHost):
            raise
        shape = f"ids {PROBE}, some of them padding, in stages"
        raise refuse(f"an encoder that runs on {shape}; it raised {type(error).__name__}: {error}") from error


def _take_apart(
    encoder: nn.Module,
    lists: Mapping[str, nn.ModuleList],
    inputs: Mapping[str, Tensor],
    refuse: Callable[[str], UnsupportedHost],
) -> tuple[list[EncoderStage], list[Tensor]]:
    before, names = list(encoder.modules()), "input_ids" in inspect.signature(encoder.forward).parameters
    with _followed(encoder, lists) as (layers, modules):
        last = last_hidden_state(call_encoder(encoder, inputs, names))
    if list(encoder.modules()) != before:
        raise refuse(f"an encoder whose modules stay the same when it runs, which it changed on {PROBE[1]} tokens")
    used = [name for name, members in lists.items() if sum(one.layer in set(members) for one in layers) > 1]
    if len(used) != 1:
        found = ", ".join(used) or "none"
        raise refuse(f"exactly one list of at least 2 layers that run one after the other; found: {found}")
    name, members = used[0], lists[used[0]]
    layers = [one for one in layers if one.layer in set(members)]
    if last is None or last.shape[:2] != PROBE:
        raise refuse("an encoder that returns its last hidden state (B, N, D), without the head of a task")
    _check_path(encoder, name, refuse)

    # From each layer to the next, then to the last hidden state: the same tensor, or modules called on it
    x = layers[0].tokens
    if x.shape[:2] != PROBE:
        raise refuse(f"layers that are given tokens (B, N, D) with their padding, not {tuple(x.shape)}")
    slots, afters = [], []
    for i, layer in enumerate(layers):
        slot = Slot.of(layer.output, x.shape)
        if slot is None:
            raise refuse(f"layers that return tokens of the shape that they are given, which layer {i + 1} does not")
        out = slot.get(layer.output)
        target = layers[i + 1].reached if i + 1 < len(layers) else (last, last._version)
        after = _between((out, layer.version(out)), target, modules)
        if after is None:
            where = f"between its layers {i + 1} and {i + 2}" if i + 1 < len(layers) else "after its last layer"
            raise refuse(f"nothing but modules called on the tokens {where}, where this encoder computes more")
        slots.append(slot)
        afters.append(after)

    # Run in stages, on fewer samples from the second on
    front = Front(_frame(encoder, name, slots[0]), len(layers), names)
    _check_calls(front.note(inputs), layers, refuse)
    front.shared = frozenset(
        (i, leaf)
        for i, one in enumerate(layers)
        for leaf, value in enumerate(one.call.leaves())
        if isinstance(value, Tensor) and (value.ndim == 0 or value.shape[0] != PROBE[0])
    )
    stages = [
        EncoderStage(i, layer.layer, slot, after, None if i else front)
        for i, (layer, slot, after) in enumerate(zip(layers, slots, afters, strict=True))
    ]
    stay = torch.tensor([2, 0], device=last.device)
    states: list[Tensor] = []
    with _Read() as read:
        state: Any = inputs
        for i, stage in enumerate(stages):
            state = stage(state) if i else select(stage(state), stay)
            states.append(state["x"][:1])
    expected, actual = (x[real := inputs["real"][stay]].double() for x in (last[stay], state["x"]))
    tolerance = torch.finfo(last.dtype).eps ** 0.5
    if not bool((actual - expected).abs().max() <= tolerance * expected.abs().max()):
        raise refuse(f"stages that give its last hidden state, from which theirs differ on {int(real.sum())} tokens")
    front.left_out = tuple(name for name, p in encoder.named_parameters() if id(p) not in read.ids)
    _drop_unread(encoder, front.frame, name, read.ids)
    return stages, states


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Every list of modules that is in no other list, by name."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child):
            yield prefix + name, child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _probe(encoder: nn.Module) -> dict[str, Tensor]:
    """Random tokens, the last two samples padded."""
    config = getattr(encoder, "config", None)
    pad = getattr(config, "pad_token_id", None) or 0
    words = next((m for m in encoder.modules() if isinstance(m, nn.Embedding)), None)
    vocabulary = getattr(config, "vocab_size", None) or (len(words.weight) if words is not None else 2)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    ids = torch.randint(vocabulary, PROBE, generator=torch.Generator().manual_seed(0))
    ids = torch.where(ids == pad, (pad + 1) % vocabulary, ids)
    real = torch.arange(PROBE[1]) < torch.tensor([[PROBE[1]], [PROBE[1] - 1], [PROBE[1] - 2]])
    return {"ids": ids.masked_fill(~real, pad).to(device), "real": real.to(device)}


@dataclass
class _Layer:
    """A layer's run: what it was given, with its tokens and their version at that time, and what it returned."""

    layer: nn.Module
    call: Call
    tokens: Tensor
    reached: tuple[Tensor, int]
    output: Any = None
    versions: tuple[tuple[int, int], ...] = ()

    def version(self, x: Tensor) -> int:
        return dict(self.versions)[id(x)]


_Step = tuple[
    nn.Module, tuple[Tensor, int], tuple[Tensor, int]
]  # a module, its one argument, its output; with versions


@contextmanager
def _followed(encoder: nn.Module, lists: Mapping[str, nn.ModuleList]) -> Iterator[tuple[list[_Layer], list[_Step]]]:
    """Notes every run of the lists' members, and of each other module that is called on one tensor alone."""
    layers: list[_Layer] = []
    steps: list[_Step] = []
    started: list[tuple[Tensor, int] | None] = []

    def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call, x = Call.of(args, kwargs)
        layers.append(_Layer(module, call, x, (x, x._version)))

    def after_layer(module: nn.Module, args: Any, output: Any) -> None:
        one = next(one for one in reversed(layers) if one.layer is module and one.output is None)
        one.output, one.versions = output, tuple((id(x), x._version) for x in tensors(output))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        started.append((args[0], args[0]._version) if alone else None)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        start = started.pop()
        if start is not None and isinstance(output, Tensor):
            steps.append((module, start, (output, output._version)))

    members = {m for group in lists.values() for m in group}
    inside = {m for member in members for m in member.modules()}
    hooks = []
    for module in encoder.modules():
        if module in members:
            hooks.append(module.register_forward_pre_hook(before_layer, with_kwargs=True, prepend=True))
            hooks.append(module.register_forward_hook(after_layer))
        elif module not in inside and not inside & set(module.modules()):
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            hooks.append(module.register_forward_hook(after))
    try:
        yield layers, steps
    finally:
        for hook in hooks:
            hook.remove()


def _between(start: tuple[Tensor, int], end: tuple[Tensor, int], steps: list[_Step]) -> list[nn.Module] | None:
    """The modules whose calls, one on the output of the other, lead from a tensor to another; None if none do."""
    if start[0] is end[0] and start[1] == end[1]:
        return []
    for i, (module, taken, left) in reversed(list(enumerate(steps))):  # the outermost module first
        if taken[0] is start[0] and taken[1] == start[1]:
            rest = _between(left, end, steps[i + 1 :])
            if rest is not None:
                return [module, *rest]
    return None


def _path(encoder: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """The encoder and what lies on the way to its list of layers, that list last, with their names."""
    names = name.split(".")
    return [(".".join(names[:i]), encoder.get_submodule(".".join(names[:i]))) for i in range(len(names) + 1)]


def _check_path(encoder: nn.Module, name: str, refuse: Callable[[str], UnsupportedHost]) -> None:
    for at, module in _path(encoder, name):
        what = f"the encoder's .{at}" if at else "the encoder"
        if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise refuse(f"no forward or backward hooks on {what}, because stages end inside it: remove them first")
        if "forward" in vars(module):
            raise refuse(f"{what} with the forward of its class; that of the instance was replaced")


def _shallow(module: nn.Module) -> Any:
    """The same module with a table of children of its own; parameters, buffers and hooks are shared."""
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    if getattr(clone, "gradient_checkpointing", False):  # the layers run outside the frame
        clone.__dict__["gradient_checkpointing"] = False
    return clone


def _frame(encoder: nn.Module, name: str, slot: Slot) -> nn.Module:
    """The encoder with stand-ins in the places of its layers."""
    path = [_shallow(module) for _, module in _path(encoder, name)]
    for parent, child, part in zip(path, path[1:], name.split("."), strict=False):
        parent._modules[part] = child
    path[-1].__dict__["_modules"] = {key: StandIn(layer, slot) for key, layer in path[-1]._modules.items()}
    return path[0]


def _check_calls(notes: list[Note], layers: list[_Layer], refuse: Callable[[str], UnsupportedHost]) -> None:
    """Refuse an encoder that gives a layer something else when the layers before it have computed."""
    for i, (note, layer) in enumerate(zip(notes, layers, strict=True)):
        expected, actual = layer.call.leaves(), note.call.leaves()
        same = note.layer is layer.layer and note.call.place == layer.call.place and len(expected) == len(actual)
        if not same or not all(map(_equal, expected, actual)):
            raise refuse(f"layers of which each is given only tokens by the one before it, unlike layer {i + 1}")
    if not torch.equal(notes[0].tokens, layers[0].tokens):
        raise refuse("embeddings that are the same in each run in eval mode")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and (not isinstance(a, _PLAIN) or bool(a == b))


class _Read(TorchFunctionMode):
    """Notes the identity of every tensor that torch's functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # looking at a dtype is no use of a parameter
            self.ids |= {id(x) for x in tensors((args, kwargs or {}))}
        return func(*args, **kwargs or {})


def _drop_unread(encoder: nn.Module, frame: nn.Module, name: str, read: set[int]) -> None:
    """Take out of the frame what holds parameters and was not read, such as a pooler."""
    names = name.split(".")
    for i, (_, module) in enumerate(_path(frame, name)[:-1]):
        for key, child in list(module._modules.items()):
            own = list(child.parameters()) if child is not None and key != names[i] else []
            if own and not any(id(p) in read for p in own):
                module._modules[key] = None
