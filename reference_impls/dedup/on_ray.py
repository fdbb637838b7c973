"""The sketches made on a Ray cluster, as a Ray Data pipeline: a row of the data set is a block of rows.

Ray spreads the blocks, runs those of a lost worker again, and spills what memory does not hold. Encoders run in a pool
of actors, which load their model once. The caller reads the input, keeps finished sketches, and decides.
"""

from __future__ import annotations

import logging
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reference_impls.dedup.methods import Method, Semantic, packed
from reference_impls.dedup.sources import Block, DedupError

ANSWER_S = 5.0
"""Seconds in which a cluster must answer."""


class Sketcher:
    """Sketches a block; as a class, an actor that keeps its encoder."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"name": row["name"], "sketch": packed(self.method, pickle.loads(row["block"]))}


def connect(address: str | None) -> Any:
    """Ray, connected to the cluster at `address`, or to the one at hand, or to one started here.

    Raises: DedupError for an address that does not answer.
    """
    import ray

    if address and ":" in address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
        except (OSError, ValueError) as error:
            raise DedupError(f"no Ray cluster answers at {address} ({error}); start one: `ray start --head`") from None
        health = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        try:  # something else may listen there, to which Ray would talk for minutes
            if not address.startswith("ray://"):
                subprocess.run(health, check=True, capture_output=True, timeout=12 * ANSWER_S)
        except subprocess.SubprocessError:
            raise DedupError(f"what answers at {address} is no Ray cluster that is well") from None
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError) as error:
        raise DedupError(f"no Ray cluster answers at {address or 'the default address'}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def engine(address: str | None) -> Callable[[Method, Iterable[tuple[str, Block]]], Iterator[tuple[str, bytes]]]:
    """An engine as `pipeline.locally` is one."""
    ray = connect(address)

    def on_cluster(method: Method, blocks: Iterable[tuple[str, Block]]) -> Iterator[tuple[str, bytes]]:
        rows = [{"name": name, "block": pickle.dumps(block)} for name, block in blocks]
        if not rows:
            return
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        if isinstance(method, Semantic):
            size = max(1, min(len(rows), int(ray.cluster_resources().get("CPU", 1)) // 2))
            done = data.map(Sketcher, fn_constructor_args=(method,), concurrency=size)
        else:
            done = data.map(Sketcher(method).__call__)
        for row in done.iter_rows():
            yield row["name"], row["sketch"]

    return on_cluster
