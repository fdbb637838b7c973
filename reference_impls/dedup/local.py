"""The work in one process: what `on_ray` does on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reference_impls.dedup.methods import Method, packed
from reference_impls.dedup.sources import Block


class Local:
    """Works in this process, task after task."""

    def sketch(self, method: Method, blocks: Iterable[tuple[str, Block]]) -> Iterator[tuple[str, bytes]]:
        """The names of the blocks and their packed sketches, in any order."""
        for name, block in blocks:
            yield name, packed(method, block)

    def spread(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterable[Any]:
        """What the function makes of the tasks, in any order."""
        return map(function, tasks)
