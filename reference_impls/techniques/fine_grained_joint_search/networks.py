"""The networks of the search: a slimmable supernet, whose sub-networks are leading slices of shared weights.

A `Space` holds what all of them share and the choices there are; a `Subnet` is one choice: a width for each stage, and
for each block whether it is there, whether it attends, and the expansion ratio of its feed-forward part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reference_impls.accounting.closed_form import Footprint, Shape
from reference_impls.contract import check_tensor
from reference_impls.layers.pooling import Head
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.layers.search_space import STAGES, Part, SearchSpace, replaced
from reference_impls.techniques.attention_downsampling import DualPathDownsample
from reference_impls.techniques.latency_driven_slimming.search import SearchData
from reference_impls.techniques.stride_attention import MapAttention

ATTENTION_STRIDE = {2: 2, 3: 1}
"""Stages whose blocks may attend, and the stride of their attention."""


@dataclass(frozen=True)
class Subnet:
    """One network of the space. A block with ratio 0 is not there."""

    widths: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]
    attention: tuple[tuple[bool, ...], ...]

    def depths(self) -> tuple[int, ...]:
        """Blocks in each stage."""
        return tuple(sum(ratio > 0 for ratio in stage) for stage in self.ratios)

    def blocks(self) -> Iterator[tuple[int, int, int, bool]]:
        """Stage, position, expansion ratio and attention of every block that is there."""
        for j, (ratios, attention) in enumerate(zip(self.ratios, self.attention, strict=True)):
            for i, (ratio, attends) in enumerate(zip(ratios, attention, strict=True)):
                if ratio:
                    yield j, i, ratio, attends

    def with_block(self, stage: int, index: int, ratio: int, attends: bool) -> Subnet:
        """The same with another block at one position; ratio 0 removes it."""
        return dataclasses.replace(
            self,
            ratios=replaced(self.ratios, stage, replaced(self.ratios[stage], index, ratio)),
            attention=replaced(self.attention, stage, replaced(self.attention[stage], index, attends and ratio > 0)),
        )

    def with_width(self, stage: int, width: int) -> Subnet:
        """The same with another width of one stage."""
        return dataclasses.replace(self, widths=replaced(self.widths, stage, width))

    def parts(self) -> Iterator[Part]:
        """The parts that it is made of, as keys of a latency table."""
        yield ("stem", self.widths[0])
        yield from (("down", j, self.widths[j - 1], self.widths[j]) for j in range(1, STAGES))
        for j, _, ratio, attends in self.blocks():
            if attends:
                yield ("attention", j, self.widths[j])
            yield ("ffn", j, self.widths[j], ratio)
        yield ("head", self.widths[-1])

    def text(self) -> str:
        """In a line: `16 44 | 32 43 | 64 4a 3 . 4`: widths, ratios; `a` attends, a dot is a block that is gone."""
        rows = []
        for width, ratios, attention in zip(self.widths, self.ratios, self.attention, strict=True):
            blocks = (f"{r}{'a' if a else ''}" if r else "." for r, a in zip(ratios, attention, strict=True))
            rows.append(f"{width} {' '.join(blocks)}")
        return " | ".join(rows)


@dataclass(frozen=True)
class Space(SearchSpace):
    """The choices of a search, and what its networks have in common.

    `widths`: for each of the four stages the widths to choose from, rising. `depths`: most blocks of each stage.
    `ratios`: the expansion ratios to choose from, rising. `size`: height and width of the images. `patch`: stride of
    the stem, 4 as published, or 2 (one convolution) for small images. `heads`, `key_dim`, `ratio`: of the attention
    of blocks; that of the downsampling has half the `key_dim`.
    Raises: ValueError for another number of stages, or choices that do not rise.
    """

    widths: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...] = (3, 4)
    size: int = 224
    in_channels: int = 3
    classes: int = 1000
    patch: Literal[2, 4] = 4
    heads: int = 8
    key_dim: int = 32
    ratio: int = 4
    layer_scale: float = 1e-5
    act = nn.GELU

    def __post_init__(self) -> None:
        self.check_stages(self.widths)
        for choices in (*self.widths, self.ratios):
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
                raise ValueError(f"choices must be positive and rise, got {choices}")

    def uniform(self, width: int, ratio: int, *, depth: int | None = None, attends: bool = True) -> Subnet:
        """The sub-network with width number `width` in each stage (the last one where there are fewer) and one ratio.

        `depth`: blocks that each stage keeps, the first ones; all by default.
        """
        kept = [depths if depth is None else min(depth, depths) for depths in self.depths]
        rows = [tuple(ratio if i < k else 0 for i in range(n)) for k, n in zip(kept, self.depths, strict=True)]
        attention = [tuple(attends and j in ATTENTION_STRIDE and r > 0 for r in row) for j, row in enumerate(rows)]
        widths = tuple(choices[min(width, len(choices) - 1)] for choices in self.widths)
        return Subnet(widths, tuple(rows), tuple(attention))

    def largest(self) -> Subnet:
        """Everything, every block of the last two stages attending: where the search starts."""
        return self.uniform(max(map(len, self.widths)), self.ratios[-1])

    def smallest(self) -> Subnet:
        """One block a stage, of least width and ratio, without attention."""
        return self.uniform(0, self.ratios[0], depth=1, attends=False)

    def sample(self, generator: torch.Generator | None = None) -> Subnet:
        """A sub-network at random: widths, ratios, the number of blocks of each stage and which, and attention."""

        def draw(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        widths = tuple(choices[draw(len(choices))] for choices in self.widths)
        ratios, attention = [], []
        for j, depth in enumerate(self.depths):
            kept = set(torch.randperm(depth, generator=generator)[: 1 + draw(depth)].tolist())
            row = tuple(self.ratios[draw(len(self.ratios))] if i in kept else 0 for i in range(depth))
            ratios.append(row)
            attention.append(tuple(bool(r and j in ATTENTION_STRIDE and draw(2)) for r in row))
        return Subnet(widths, tuple(ratios), tuple(attention))

    def describe(self, part: Part) -> tuple[Callable[[], nn.Module], Shape]:
        """See `SearchSpace`; all parts work on feature maps."""
        match part:
            case ("down", 3, int(before), int(width)):
                size, shape = self.map_size(2), (self.heads, self.key_dim // 2, self.ratio)
                return partial(DualPathDownsample, before, width, size, *shape), (before, *size)
            case ("attention", int(stage), int(width)):
                size, shape = self.map_size(stage), (self.heads, self.key_dim, self.ratio)
                return partial(MapAttention, width, size, *shape, ATTENTION_STRIDE[stage]), (width, *size)
            case ("ffn", int(stage), int(width), int(ratio)):
                return partial(FeedForward, width, ratio * width, local=True), (width, *self.map_size(stage))
            case ("head", int(width)):
                return partial(Head, nn.BatchNorm2d, width, self.classes), (width, *self.map_size(STAGES - 1))
        return super().describe(part)

    def cost(self, part: Part) -> Footprint:
        """Closed form of a part's parameters, its layer scale included, and of its MACs for one image."""
        scale = int(str(part[2])) if part[0] in ("attention", "ffn") else 0
        return super().cost(part) + Footprint(scale)

    def choices(self) -> tuple[tuple[int, ...], ...]:
        """See `SearchSpace`."""
        return self.widths

    def blocks(self, stage: int, width: int) -> list[Part]:
        """See `SearchSpace`."""
        attention: list[Part] = [("attention", stage, width)] if stage in ATTENTION_STRIDE else []
        return [("ffn", stage, width, ratio) for ratio in self.ratios] + attention


class Network(nn.Module):
    """The plain network of a choice: (B, in_channels, size, size) -> logits (B, classes)."""

    def __init__(self, space: Space, subnet: Subnet) -> None:
        super().__init__()
        self.space, self.subnet = space, subnet
        widths = subnet.widths
        self.stem = space.build(("stem", widths[0]))
        self.downs = nn.ModuleList(space.build(("down", j, widths[j - 1], widths[j])) for j in range(1, STAGES))
        self.stages: Any = nn.ModuleList(nn.ModuleList(nn.Identity() for _ in row) for row in subnet.ratios)
        for j, i, ratio, attends in subnet.blocks():
            mixer = space.build(("attention", j, widths[j])) if attends else None
            mlp = space.build(("ffn", j, widths[j], ratio))
            self.stages[j][i] = MapBlock(widths[j], mixer, mlp, layer_scale=space.layer_scale)
        self.head = space.build(("head", widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, f"B {self.space.in_channels} {self.space.size} {self.space.size}", finite=False)
        x = self.stem(x)
        for j, stage in enumerate(self.stages):
            x = self.downs[j - 1](x) if j > 0 else x
            for block in stage:
                x = block(x)
        return self.head(x)


# --------------------------------------------------------------------------------------------------------------------
# The supernet


class Slimmable(nn.Module):
    """Every network of a space in one set of weights. Called like a network, it runs the largest one.

    A sub-network uses the leading channels of every weight, and batch norms of its own: one for each number of channels
    that a layer can have (switchable batch normalisation). `search` is what a search may evaluate candidates on; it has
    to be set before one.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.search: SearchData | None = None
        self.largest = Network(space, space.largest())
        sizes: dict[str, set[int]] = {}
        for width in range(max(map(len, space.widths))):
            for ratio in space.ratios:
                for name, norm in _norms(_skeleton(space, space.uniform(width, ratio))):
                    sizes.setdefault(name, set()).add(norm.num_features)
        self.norms = nn.ModuleDict()
        for name, norm in _norms(self.largest):
            others = sorted(sizes[name] - {norm.num_features})
            self.norms[_key(name)] = nn.ModuleDict({str(n): nn.BatchNorm2d(n) for n in others})

    def forward(self, x: Tensor, subnet: Subnet | None = None) -> Tensor:
        """Logits (B, classes) of a sub-network, the largest by default."""
        if subnet is None:
            return self.largest(x)
        skeleton = _skeleton(self.space, subnet).train(self.training)
        return functional_call(skeleton, self.weights(subnet), (x,))

    def weights(self, subnet: Subnet) -> dict[str, Tensor]:
        """Parameters and buffers of a sub-network by name: views of the shared ones, and its own batch norms."""
        found: dict[str, Tensor] = {}
        for name, module in _skeleton(self.space, subnet).named_modules():
            whole = self.largest.get_submodule(name)
            if isinstance(module, nn.BatchNorm2d) and module.num_features != whole.num_features:
                whole = self.norms[_key(name)][str(module.num_features)]
            small = module._parameters | module._buffers
            for key, value in (whole._parameters | whole._buffers).items():
                if value is not None and (part := small[key]) is not None:
                    same = value.shape == part.shape
                    found[f"{name}.{key}"] = value if same else value[tuple(slice(n) for n in part.shape)]
        return found

    def view(self, subnet: Subnet) -> Callable[[Tensor], Tensor]:
        """A sub-network as it is inside the supernet, without a copy."""
        return partial(self, subnet=subnet)

    def extract(self, subnet: Subnet) -> Network:
        """The plain network of a choice with a copy of its weights, in eval mode."""
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are written over
            network = Network(self.space, subnet).to(self.largest.head.linear.weight)
        weights = self.weights(subnet)
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
        return network.eval()


def _norms(network: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    yield from ((name, m) for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d))


def _key(name: str) -> str:
    return name.replace(".", "-")  # names of modules hold no point


@lru_cache(maxsize=256)
def _skeleton(space: Space, subnet: Subnet) -> Network:
    """A network without storage, into which weights are put for one call."""
    with torch.device("meta"):
        return Network(space, subnet)


class Sandwich(nn.Module):
    """The supernet in training: logits of the largest, the smallest and two random sub-networks, (4, B, classes).

    The random ones are drawn from torch's global generator, so that whoever seeds it repeats the training.
    """

    def __init__(self, supernet: Slimmable) -> None:
        super().__init__()
        self.supernet = supernet

    def forward(self, x: Tensor) -> Tensor:
        space = self.supernet.space
        chosen = (None, space.smallest(), space.sample(), space.sample())
        return torch.stack([self.supernet(x, subnet) for subnet in chosen])
