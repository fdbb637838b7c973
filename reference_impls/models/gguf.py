"""Reads a GGUF file: its fields, and its tensors as float32. Nothing in the file runs.

The layout is that of the GGUF specification, version 3: a header, typed key-value fields, a table of tensors, and their
data, aligned. Blocks of 32 numbers share a scale (Q8_0) or a scale and a minimum (Q4_1, the low halves of 16 bytes
before the high ones).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a type of field -> its code in `struct`."""
STRING, ARRAY = 8, 9
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = 32
"""Numbers of a block."""
SIZES = {F32: (1, 4), F16: (1, 2), Q4_1: (BLOCK, 20), Q8_0: (BLOCK, 34)}
"""Type of a tensor -> numbers and bytes of a block."""


@dataclass(frozen=True)
class Gguf:
    """What a file holds."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.take("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inside, length = self.take("I"), self.take("Q")
            return [self.value(inside) for _ in range(length)]
        return self.take(SCALARS[kind])


def read(file: Path) -> Gguf:
    """The fields and the tensors of a file, these as float32.

    Raises: ValueError for another kind of file, one that ends too soon, or a tensor of a type that is not known here.
    """
    reader = _Reader(memoryview(file.read_bytes()))
    try:
        return _read(reader)
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"{file.name} is damaged: {error!r} at byte {reader.at}") from error


def _read(reader: _Reader) -> Gguf:
    if bytes(reader.data[:4]) != b"GGUF":
        raise ValueError("the file is no GGUF file")
    reader.at = 4
    if (version := reader.take("I")) not in (2, 3):
        raise ValueError(f"GGUF of version {version} is not read here")
    count, pairs = reader.take("Q"), reader.take("Q")
    fields = {}
    for _ in range(pairs):
        name = reader.string()
        fields[name] = reader.value(reader.take("I"))
    table = []
    for _ in range(count):
        name, rank = reader.string(), reader.take("I")
        shape = [reader.take("Q") for _ in range(rank)][::-1]  # the file has the innermost axis first
        table.append((name, shape, reader.take("I"), reader.take("Q")))
    unit = int(fields.get("general.alignment", 32))
    start = -(-reader.at // unit) * unit
    return Gguf(fields, {n: _tensor(reader.data, s, kind, start + at, n) for n, s, kind, at in table})


def _tensor(data: memoryview, shape: list[int], kind: int, at: int, name: str) -> Tensor:
    if kind not in SIZES:
        raise ValueError(f"the tensor {name!r} is of type {kind}, which is not read here")
    numbers, size = SIZES[kind]
    blocks, rest = divmod(prod(shape), numbers)
    if rest or at + blocks * size > len(data):
        raise ValueError(f"the tensor {name!r} {tuple(shape)} does not lie in the file as a whole")
    raw = np.frombuffer(data[at : at + blocks * size], np.uint8).reshape(blocks, size)
    return torch.from_numpy(np.array(_numbers(raw, kind).reshape(shape)))


def _numbers(raw: Any, kind: int) -> Any:
    """Blocks (n, bytes) -> float32 numbers (n, of a block)."""
    if kind == F32:
        return raw.view(np.float32)
    if kind == F16:
        return raw.view(np.float16).astype(np.float32)
    scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == Q8_0:
        return scale * raw[:, 2:].view(np.int8)
    least, codes = raw[:, 2:4].copy().view(np.float16).astype(np.float32), raw[:, 4:]
    return np.concatenate((codes & 15, codes >> 4), 1) * scale + least
