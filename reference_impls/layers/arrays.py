"""What a processing-in-memory array computes: in groups of rows, by columns, through converters of few bits.

References:
  jin-2022-pim (arXiv 2209.08617): the quantisation of partial sums and three decompositions. Its method section was not
    available to us: the decompositions are reconstructions, and every choice of them is a parameter.

A memory array holds the weights of N inputs in a column and adds their products up as a voltage. A converter of b bits
reads each sum s, of full scale F, as the code round(s L / F) with L = 2^b - 1. Activations enter m bits at a time:

    array = Array(scheme="bit-serial", adc_bits=5, dac_bits=4, group=144)
    y = array.scale * array_product(x, w, array)        # codes x (M, K) and w (O, K) -> (M, O)

Everything is exact in integers. A code is s * L / F in this order, rounded half to even: a factor L / F that is
computed first is wrong on ties, which are common. Codes are added up as integers, and the real scale comes at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.contract.errors import check_range
from reference_impls.layers.quantised import Weights, bit_planes, exact_dtype

Scheme = Literal["native", "differential", "bit-serial"]
SCHEMES: tuple[Scheme, ...] = ("native", "differential", "bit-serial")
CHUNK = 2**20
"""Partial sums that are held at a time: 4 MB in float32, which stays in the cache."""


@dataclass(frozen=True)
class Chip:
    """What a real converter does beside rounding: `clamp(round(gain f(u) + offset + noise N(0, 1)))` of the ideal u.

    offset, noise: in codes (least significant bits); noise is drawn anew, from torch's generator, for every conversion.
    bow: of the curve f(v) = v + bow v (1 - v)(1 - 2 v), v = |u| / L. gain_spread, offset_spread: deviation of gain and
    offset between the converters of the columns, drawn once from `seed`.

    Raises ValueError for a negative or infinite value, and for a gain that is not positive.
    """

    gain: float = 1.0
    offset: float = 0.0
    bow: float = 0.0
    noise: float = 0.0
    gain_spread: float = 0.0
    offset_spread: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("gain", self.gain, 0, low_open=True)
        for name in ("offset", "bow"):
            check_range(name, getattr(self, name), -1e6, 1e6)
        for name in ("noise", "gain_spread", "offset_spread"):
            check_range(name, getattr(self, name), 0, 1e6)

    def of_columns(self, codes: Tensor, axis: int) -> tuple[Tensor | float, Tensor | float]:
        """Gain and offset of each converter along an axis of the codes, or one number where they do not differ."""
        if not (self.gain_spread or self.offset_spread):
            return self.gain, self.offset
        shape = [2, *[1] * codes.ndim]
        shape[axis] = codes.shape[axis]
        draws = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)).to(codes)
        return self.gain + self.gain_spread * draws[0], self.offset + self.offset_spread * draws[1]


IDEAL = Chip()


@dataclass(frozen=True)
class Array:
    """How an array computes a layer.

    Args:
        scheme: what the columns hold. `native`: the signed weight in one cell. `differential`: its positive and its
            negative part in two columns. `bit-serial`: a column for each bit of its two's complement.
        adc_bits: b of the converter; None: an ideal one, so that sums are exact.
        dac_bits: m, bits of an activation that enter in a cycle.
        group: N, rows that one conversion adds up.
        sign_bit: of the signed codes of `native`: `extra` has L of them on each side, `included` 2^(b - 1) - 1.
        weights: how they become integers (`quantised.weight_codes`).

    Raises: TypeError or ValueError that names the argument and its range.
    """

    scheme: Scheme = "bit-serial"
    weight_bits: int = 4
    activation_bits: int = 4
    adc_bits: int | None = None
    dac_bits: int = 4
    group: int = 144
    sign_bit: Literal["extra", "included"] = "extra"
    weights: Weights = "tanh"
    chip: Chip = field(default=IDEAL)

    def __post_init__(self) -> None:
        for name, options in (("scheme", SCHEMES), ("sign_bit", ("extra", "included")), ("weights", ("tanh", "max"))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be {' or '.join(map(repr, options))}, got {getattr(self, name)!r}")
        check_range("weight_bits", self.weight_bits, 2, 8, integer=True)
        check_range("activation_bits", self.activation_bits, 1, 8, integer=True)
        check_range("dac_bits", self.dac_bits, 1, self.activation_bits, integer=True)
        check_range("group", self.group, 1, 2**16, integer=True)
        if self.adc_bits is not None:
            check_range("adc_bits", self.adc_bits, 2 if self.sign_bit == "included" else 1, 16, integer=True)
        elif self.chip != IDEAL:
            raise ValueError(
                "adc_bits=None is an ideal converter: give it bits to have the chip's gain, offset or noise"
            )

    @property
    def columns(self) -> int:
        """Columns, so conversions, of one output in a group and a cycle."""
        return {"native": 1, "differential": 2, "bit-serial": self.weight_bits}[self.scheme]

    @property
    def slices(self) -> int:
        """Cycles in which the bits of an activation enter."""
        return math.ceil(self.activation_bits / self.dac_bits)

    @property
    def full_scale(self) -> int:
        """F: the largest sum of a full group, whatever the data; a ragged last group has the same converter."""
        cell = 1 if self.scheme == "bit-serial" else 2 ** (self.weight_bits - 1) - 1
        return self.group * (2**self.dac_bits - 1) * cell

    @property
    def levels(self) -> int:
        """L: the code of a full sum."""
        if self.adc_bits is None:
            raise ValueError("an ideal converter has no number of levels")
        half = self.scheme == "native" and self.sign_bit == "included"
        return 2 ** (self.adc_bits - half) - 1

    @property
    def scale(self) -> float:
        """F / L: what a code stands for."""
        return 1.0 if self.adc_bits is None else self.full_scale / self.levels

    def groups(self, inputs: int) -> int:
        """Groups of a dot product of `inputs` numbers."""
        return math.ceil(inputs / self.group)

    def conversions(self, inputs: int) -> int:
        """Conversions for one output that is a dot product of `inputs` numbers: G S C."""
        return self.groups(inputs) * self.slices * self.columns

    def error_bound(self, inputs: int) -> float:
        """Largest error of an output, in units of integer products: half a step for each conversion, added up."""
        slices = sum(2**low for low in range(0, self.activation_bits, self.dac_bits))
        return self.groups(inputs) * slices * sum(map(abs, self.column_factors)) * self.scale / 2

    @property
    def column_factors(self) -> tuple[int, ...]:
        """What the codes of each column count."""
        if self.scheme == "bit-serial":
            top = self.weight_bits - 1
            return (*(2**k for k in range(top)), -(2**top))
        return (1,) if self.scheme == "native" else (1, -1)

    @property
    def slice_factors(self) -> tuple[int, ...]:
        """What the codes of each cycle count."""
        return tuple(2**low for low in range(0, self.activation_bits, self.dac_bits))


def columns(w: Tensor, array: Array) -> Tensor:
    """What the columns hold of weight codes w: (...) -> (C, ...). Their sum by `column_factors` is w."""
    if array.scheme == "native":
        return w.unsqueeze(0)
    if array.scheme == "differential":
        return torch.stack([w.clamp_min(0), (-w).clamp_min(0)])
    return bit_planes(w, array.weight_bits)


def slices(x: Tensor, array: Array) -> Tensor:
    """What enters in each cycle of activation codes x: (...) -> (S, ...). Their sum by `slice_factors` is x."""
    return x.unsqueeze(0) if array.slices == 1 else bit_planes(x, array.activation_bits, array.dac_bits)


def convert(sums: Tensor, array: Array, axis: int = -3, *, multiplied: bool = False) -> Tensor:
    """Codes of partial sums, in place, rounded half to even; `axis` is that of the columns, each with its converter.

    multiplied: the sums are those of weights that were multiplied by L, which spares a pass.

    Exact while L F < 2^23 in float32 (2^52 in float64): then s L is an integer that is held exactly, and no quotient
    that is not a tie can be rounded to one.
    """
    codes = (sums if multiplied else sums.mul_(array.levels)).div_(array.full_scale)
    chip = array.chip
    if chip == IDEAL:
        return codes.round_()
    if chip.bow:
        v = codes.abs() / array.levels
        codes += codes * (chip.bow * (1 - v) * (1 - 2 * v))
    gain, offset = chip.of_columns(codes, axis)
    codes.mul_(gain).add_(offset)
    if chip.noise:
        codes += chip.noise * torch.randn_like(codes)
    low = -array.levels if array.scheme == "native" else 0
    return codes.round_().clamp_(low, array.levels)


def array_product(x: Tensor, w: Tensor, array: Array) -> Tensor:
    """The readable path: integers that `array.scale` makes the products of x (M, K) and w (O, K) in codes, (M, O).

    One conversion after the other, in float64, whatever it takes; its groups share converters, which shows where a chip
    has a spread of them. `array_convolution` is the fast one.
    """
    x, w = x.double(), w.double()
    total = x.new_zeros(len(x), len(w))
    for cycle, x_slice in zip(array.slice_factors, slices(x, array), strict=True):
        for column, w_column in zip(array.column_factors, columns(w, array), strict=True):
            for x_group, w_group in zip(x_slice.split(array.group, 1), w_column.split(array.group, 1), strict=True):
                sums = x_group @ w_group.T  # (M, O) voltages
                total += cycle * column * (sums if array.adc_bits is None else convert(sums, array, axis=-1))
    return total


class Job(NamedTuple):
    """A convolution of codes as the array sees it."""

    x: Tensor
    """(B, J G c, H, W): J groups of the convolution, G groups of the array, each of c channels."""
    w: Tensor
    """(J G C O, c, h, w): C columns of O outputs in each."""
    groups: int
    outputs: int
    size: int
    """Partial sums of an image."""
    run: Callable[..., Tensor]


def job_of(x: Tensor, w: Tensor, array: Array, groups: int, stride: Any, dilation: Any) -> Job:
    """Lay out codes x (B, J K, H, W), padded, and w (J O, K, h, w) so that a grouped convolution gives partial sums."""
    area, sides = math.prod(w.shape[2:]), zip(x.shape[2:], w.shape[2:], stride, dilation, strict=True)
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sides]
    if array.group % area:  # groups that end within a channel: the windows become channels
        x = F.unfold(x, w.shape[2:], dilation, 0, stride).unflatten(2, size)
        w, stride, dilation, area = w.flatten(1)[..., None, None], (1, 1), (1, 1), 1
    channels, outputs = w.shape[1], len(w) // groups
    each = min(array.group // area, channels)
    parts = math.ceil(channels / each)
    if missing := parts * each - channels:
        x = F.pad(x.unflatten(1, (groups, channels)), (0, 0, 0, 0, 0, missing)).flatten(1, 2)
        w = F.pad(w, (0, 0, 0, 0, 0, missing))
    held = columns(w.view(groups, outputs, parts, each, *w.shape[2:]), array)  # (C, J, O, G, c, h, w)
    held = held.permute(1, 3, 0, 2, 4, 5, 6).flatten(0, 3).contiguous()
    run = partial(F.conv2d, stride=stride, dilation=dilation, groups=groups * parts)
    return Job(x, held, groups, outputs, math.prod(size) * len(held) * array.slices, run)


def partial_sums(job: Job, array: Array) -> Iterator[Tensor]:
    """The sums before conversion, for a few images b at a time: (b S, J G C O, H', W')."""
    for part in job.x.split(max(1, CHUNK // max(job.size, 1))):
        sums = job.run(slices(part, array).transpose(0, 1).flatten(0, 1), job.w)
        yield sums.round_() if sums.is_cuda else sums  # cuDNN may choose Winograd's algorithm, which is not exact


def array_convolution(
    x: Tensor, w: Tensor, array: Array, groups: int = 1, stride: Any = (1, 1), dilation: Any = (1, 1)
) -> Tensor:
    """Integers that `array.scale` makes the convolution of codes x (B, J K, H, W), padded, with w (J O, K, h, w).

    All cycles, columns and groups at once, for a few images at a time. Equal to `array_product` on the windows: codes
    are computed in float32 or float64, whichever is exact, or float64 where none is.
    """
    if array.adc_bits is None:
        wide = exact_dtype(x, w[0].numel() * 2 ** (array.weight_bits + array.activation_bits))
        return F.conv2d(x.to(wide), w.to(wide), stride=stride, dilation=dilation, groups=groups)
    narrow = exact_dtype(x, 2 * array.levels * array.full_scale)
    counted = sum(array.slice_factors) * sum(map(abs, array.column_factors))
    wide = exact_dtype(x, array.groups(w[0].numel()) * counted * array.levels)
    job = job_of(x.to(narrow), w.to(narrow), array, groups, stride, dilation)
    job = job._replace(w=job.w * array.levels)
    cycles = torch.tensor(array.slice_factors, dtype=wide, device=x.device)
    found = []
    for sums in partial_sums(job, array):
        codes = convert(sums, array, multiplied=True).to(wide)
        size, per_group = codes.shape[2:], codes.shape[1] // groups // job.outputs
        factors = cycles.new_tensor(array.column_factors).repeat(per_group // array.columns)
        y = torch.matmul(factors, codes.view(len(codes), groups, per_group, -1))  # (b S, J, O H' W')
        if array.slices > 1:
            y = torch.matmul(cycles, y.view(-1, array.slices, y[0].numel()))
        found.append(y.reshape(-1, groups * job.outputs, *size))
    return torch.cat(found)
