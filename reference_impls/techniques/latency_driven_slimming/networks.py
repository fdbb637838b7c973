"""The networks of the search: a supernet in which every position is a choice, and the plain networks inside it.

A `Space` holds what all of them share. An `Architecture` says how wide each stage is and what stands at each position:
"4d", a block on maps (MB4D); "3d", a block on tokens (MB3D); or "identity", nothing. The supernet has one width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Shape
from reference_impls.contract import check_range, check_tensor
from reference_impls.contract.precision import widened
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.layout import as_map, as_tokens
from reference_impls.layers.pooling import Head, Pooling
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.layers.search_space import STAGES, Part, SearchSpace, replaced
from reference_impls.techniques.latency_driven_slimming.search import SearchData

Kind = Literal["4d", "3d", "identity"]
Noise = Literal["gumbel", "uniform"]
FIRST_3D = 2
"""Index of the first stage that may hold MB3D: attention is quadratic in the tokens, and early stages have many."""
STEP = 16
"""Widths are multiples of this."""


@dataclass(frozen=True)
class Architecture:
    """Widths of the four stages, and the kind of block at each position of each stage."""

    widths: tuple[int, ...]
    blocks: tuple[tuple[Kind, ...], ...]

    def depths(self) -> tuple[int, ...]:
        """Blocks in each stage, identities not counted."""
        return tuple(sum(kind != "identity" for kind in stage) for stage in self.blocks)

    def positions(self) -> Iterator[tuple[int, int, Kind]]:
        """Stage, index and kind of every position, in the order of computation."""
        for j, stage in enumerate(self.blocks):
            yield from ((j, i, kind) for i, kind in enumerate(stage))

    def replaced(self, stage: int, index: int, kind: Kind) -> Architecture:
        """The same with another kind at one position."""
        row = replaced(self.blocks[stage], index, kind)
        return dataclasses.replace(self, blocks=replaced(self.blocks, stage, row))

    def narrowed(self, stage: int, by: int = STEP) -> Architecture:
        """The same with one stage narrower."""
        return dataclasses.replace(self, widths=replaced(self.widths, stage, self.widths[stage] - by))

    def parts(self) -> Iterator[Part]:
        """The parts that it is made of, as keys of a latency table."""
        yield ("stem", self.widths[0])
        for j, stage in enumerate(self.blocks):
            if j > 0:
                yield ("down", j, self.widths[j - 1], self.widths[j])
            yield from ((kind, j, self.widths[j]) for kind in stage if kind != "identity")
        yield ("head", self.widths[-1])

    def text(self) -> str:
        """In a line: `32 44 | 48 4. | 64 333`; a dot is an identity."""
        sign = {"4d": "4", "3d": "3", "identity": "."}
        rows = zip(self.widths, self.blocks, strict=True)
        return " | ".join(f"{width} {''.join(sign[kind] for kind in stage)}" for width, stage in rows)


@dataclass(frozen=True)
class Space(SearchSpace):
    """What the networks of one search have in common.

    `widths`, `depths`: of the largest network, for each of the four stages; widths are multiples of 16. `size`: height
    and width of the images. `patch`: stride of the stem, 4 as published, or 2 (one convolution) for small images.
    `heads`, `key_dim`, `ratio`: of the attention. `expansion`: hidden channels for each channel.
    Raises: ValueError for another number of stages or a width that is no multiple of 16.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    size: int = 224
    in_channels: int = 3
    classes: int = 1000
    patch: Literal[2, 4] = 4
    heads: int = 8
    key_dim: int = 32
    ratio: int = 4
    expansion: int = 4
    layer_scale: float = 1e-5
    act = nn.ReLU

    def __post_init__(self) -> None:
        self.check_stages(self.widths)
        for width in self.widths:
            check_range("a width", width, STEP, integer=True)
            if width % STEP:
                raise ValueError(f"widths must be multiples of {STEP}, got {width}")

    def largest(self) -> Architecture:
        """Full depth and width, with MB3D wherever it may stand: where the search starts."""
        rows = ((("3d" if j >= FIRST_3D else "4d"),) * depth for j, depth in enumerate(self.depths))
        return Architecture(self.widths, tuple(rows))

    def describe(self, part: Part) -> tuple[Callable[[], nn.Module], Shape]:
        """See `SearchSpace`; attention takes tokens, all others feature maps."""
        match part:
            case ("4d", int(stage), int(width)):
                return partial(self._map_block, width), (width, *self.map_size(stage))
            case ("3d", int(stage), int(width)):
                return partial(self._token_block, stage, width), (math.prod(self.map_size(stage)), width)
            case ("head", int(width)):
                return partial(Head, nn.LayerNorm, width, self.classes), (math.prod(self.map_size(STAGES - 1)), width)
        return super().describe(part)

    def _map_block(self, width: int) -> MapBlock:
        return MapBlock(width, Pooling(), FeedForward(width, self.expansion * width), layer_scale=self.layer_scale)

    def _token_block(self, stage: int, width: int) -> TokenBlock:
        attention = TokenAttention(width, self.map_size(stage), self.heads, self.key_dim, self.ratio)
        return TokenBlock(width, attention, self.expansion * width, layer_scale=self.layer_scale)

    def choices(self) -> list[range]:
        """The widths that slimming can reach, the smallest being 16."""
        return [range(width, 0, -STEP) for width in self.widths]

    def blocks(self, stage: int, width: int) -> list[Part]:
        """See `SearchSpace`."""
        return [(kind, stage, width) for kind in kinds_at(stage)]


class Network(nn.Module):
    """The plain network of an architecture: (B, in_channels, size, size) -> logits (B, classes).

    It computes on maps up to the first MB3D and on tokens from there on; where that block is not in the last stage, the
    downsampling after it has to go through a map.
    """

    def __init__(self, space: Space, architecture: Architecture) -> None:
        super().__init__()
        self.space, self.architecture = space, architecture
        widths = architecture.widths
        self.stem = space.build(("stem", widths[0]))
        self.downs = nn.ModuleList(space.build(("down", j, widths[j - 1], widths[j])) for j in range(1, STAGES))
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Identity() if kind == "identity" else space.build((kind, j, widths[j])) for kind in stage)
            for j, stage in enumerate(architecture.blocks)
        )
        self.head = space.build(("head", widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return run(self, [list(stage) for stage in self.stages], self.architecture.blocks, x)


def run(
    network: Network | Supernet, stages: Sequence[Sequence[nn.Module]], kinds: Sequence[Sequence[Kind]], x: Tensor
) -> Tensor:
    """Run blocks of these kinds between the stem, the downsamplings and the head of a network."""
    space = network.space
    check_tensor("x", x, f"B {space.in_channels} {space.size} {space.size}", finite=False)
    x = network.stem(x)
    for j, (blocks, row) in enumerate(zip(stages, kinds, strict=True)):
        if j > 0:
            x = network.downs[j - 1](as_map(x, space.map_size(j - 1)))
        for block, kind in zip(blocks, row, strict=True):
            if kind != "identity":
                x = block(as_tokens(x) if kind == "3d" else as_map(x, space.map_size(j)))
    return network.head(as_tokens(x))


# --------------------------------------------------------------------------------------------------------------------
# The supernet


def path_weights(
    importance: Tensor, temperature: float, noise: Noise = "gumbel", generator: torch.Generator | None = None
) -> Tensor:
    """softmax((importance + noise) / temperature) over the last axis: how much of each choice runs in this step.

    `gumbel`: noise -log(-log U), with which the largest entry is drawn with probability softmax(importance).
    `uniform`: noise U itself, as the formula is printed; a choice that lags by 1 or more is then never the largest.

    It is drawn in float32 or wider. Raises: ValueError for a temperature that is not positive or an unknown noise.
    """
    check_range("temperature", temperature, 0, low_open=True)
    if noise not in ("gumbel", "uniform"):
        raise ValueError(f"noise must be 'gumbel' or 'uniform', got {noise!r}")
    logits = widened(importance)
    u = torch.rand(importance.shape, generator=generator).to(logits)
    if noise == "gumbel":
        u = -torch.log(-torch.log(u.clamp(1e-20, 1 - 1e-7)))
    return ((logits + u) / temperature).softmax(-1).to(importance.dtype)


class MetaPath(nn.Module):
    """One position of the supernet: every block that may stand there, and how important each choice is.

    `importance`: (choices + 1,) learned logits, the last one for the identity. On maps (B, C, H, W).
    """

    def __init__(self, choices: Mapping[str, nn.Module], size: tuple[int, int]) -> None:
        super().__init__()
        self.choices = nn.ModuleDict(choices)
        self.size = size
        self.importance = nn.Parameter(torch.zeros(len(choices) + 1))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix the choices by `weights` (choices + 1,)."""
        y = weights[-1] * x
        for weight, (kind, block) in zip(weights[:-1], self.choices.items(), strict=True):
            y = y + weight * as_map(block(as_tokens(x) if kind == "3d" else x), self.size)
        return y


class Supernet(nn.Module):
    """All choices at once. In training each pass mixes them at random; in eval mode the largest network runs.

    `temperature` and `noise` (see `path_weights`) may be set while it trains. `search` is what a search may evaluate
    candidates on; it has to be set before one.
    """

    def __init__(self, space: Space, *, temperature: float = 1.0, noise: Noise = "gumbel") -> None:
        super().__init__()
        self.space, self.temperature, self.noise, widths = space, temperature, noise, space.widths
        self.search: SearchData | None = None
        self.stem = space.build(("stem", widths[0]))
        self.downs = nn.ModuleList(space.build(("down", j, widths[j - 1], widths[j])) for j in range(1, STAGES))
        self.stages: Any = nn.ModuleList(
            nn.ModuleList(
                MetaPath({kind: space.build((kind, j, widths[j])) for kind in kinds_at(j)}, space.map_size(j))
                for _ in range(depth)
            )
            for j, depth in enumerate(space.depths)
        )
        self.head = space.build(("head", widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.path(x, self.space.largest())
        check_tensor("x", x, f"B {self.space.in_channels} {self.space.size} {self.space.size}", finite=False)
        x = self.stem(x)
        for j, stage in enumerate(self.stages):
            x = self.downs[j - 1](x) if j > 0 else x
            for position in stage:
                x = position(x, path_weights(position.importance, self.temperature, self.noise))
        return self.head(as_tokens(x))

    def path(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Run one choice at each position, at full width."""
        stages: list[list[nn.Module]] = [[] for _ in self.stages]
        for j, i, kind in architecture.positions():
            stages[j].append(nn.Identity() if kind == "identity" else self.stages[j][i].choices[kind])
        return run(self, stages, architecture.blocks, x)

    def probabilities(self) -> dict[tuple[int, int], dict[Kind, float]]:
        """For each position (stage, index), the learned probability of each choice."""
        found: dict[tuple[int, int], dict[Kind, float]] = {}
        for j, i, _ in self.space.largest().positions():
            p = self.stages[j][i].importance.detach().double().softmax(-1).tolist()
            found[j, i] = dict(zip((*kinds_at(j), "identity"), p, strict=True))
        return found

    def channel_order(self, stage: int) -> Tensor:
        """Channels of a stage, the most read first: (C,), by the norm of the weights that read them."""
        blocks = [position.choices[kind] for position in self.stages[stage] for kind in kinds_at(stage)]
        readers = [b.mlp.fc1.conv if isinstance(b, MapBlock) else b.mlp.fc1 for b in blocks]
        readers += [b.token_mixer.qkv for b in blocks if isinstance(b, TokenBlock)]
        readers.append(self.head.linear if stage == STAGES - 1 else self.downs[stage].conv.conv)
        squares = [widened(reader.weight.detach()).square().transpose(0, 1).flatten(1).sum(1) for reader in readers]
        return torch.stack(squares).sum(0).argsort(descending=True, stable=True)

    def extract(self, architecture: Architecture) -> Network:
        """The plain network of an architecture with the supernet's weights, in eval mode; nothing is shared.

        A narrower stage keeps the channels that are read most (`channel_order`), and each of its blocks the hidden
        units of the largest weights.
        """
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are written over
            network = Network(self.space, architecture).to(self.head.linear.weight)
        keep = [self.channel_order(j)[:width].sort().values for j, width in enumerate(architecture.widths)]
        by_size = [{width: index} for width, index in zip(self.space.widths, keep, strict=True)]
        _inherit(network.stem, self.stem, by_size[0], {})
        for j, (down, source) in enumerate(zip(network.downs, self.downs, strict=True)):
            _inherit(down, source, by_size[j + 1], by_size[j])
        for j, i, kind in architecture.positions():
            if kind != "identity":
                block = self.stages[j][i].choices[kind]
                hidden = _hidden_order(block)
                inner = {len(hidden): hidden[: self.space.expansion * architecture.widths[j]].sort().values}
                _inherit(network.stages[j][i], block, by_size[j] | inner, by_size[j] | inner)
        _inherit(network.head, self.head, by_size[-1], by_size[-1])
        return network.eval()


@torch.no_grad()
def _inherit(target: nn.Module, source: nn.Module, out: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
    """Copy the weights of `source` into a narrower `target`.

    Where an axis is shorter, the entries kept are `out[size]` on the first axis and `into[size]` on the second, by its
    size in the source; the first entries, where neither is given.
    """
    values = source.state_dict()
    for name, tensor in target.state_dict().items():
        value = values[name]
        for axis, (size, now) in enumerate(zip(value.shape, tensor.shape, strict=True)):
            if size != now:
                value = value.index_select(axis, (out, into)[axis].get(size, torch.arange(now)).to(value.device))
        tensor.copy_(value)


def _hidden_order(block: nn.Module) -> Tensor:
    """Hidden units of a block's MLP, those of the largest weights in and out first."""
    layers = (fc.conv if isinstance(fc, ConvNorm) else fc for fc in (block.mlp.fc1, block.mlp.fc2))
    fc1, fc2 = (widened(layer.weight.detach()) for layer in layers)
    size = fc1.flatten(1).norm(dim=1) * fc2.flatten(1).norm(dim=0)
    return size.argsort(descending=True, stable=True)


def kinds_at(stage: int) -> tuple[Kind, ...]:
    """The blocks that may stand at the positions of a stage."""
    return ("4d", "3d") if stage >= FIRST_3D else ("4d",)
