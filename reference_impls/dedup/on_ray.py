"""The work on a Ray cluster, as Ray Data pipelines: a row of a data set is a block of rows, or a part to decide.

Ray spreads the tasks, runs those of a lost worker again, and spills what memory does not hold. Blocks are sketched
there; encoders run in a pool of actors, which load their model once. For `minhash`, rows that share buckets are
compared there too, a part at a time: parts have no bucket in common, so the result does not depend on who takes which.
The caller reads the input, which takes less than a tenth of the time of MinHash sketches, so the nodes need no disk in
common. It keeps finished sketches, and decides what has no such parts: equal hashes of 16 bytes a row (`exact`),
passages across the whole corpus (`substring`), and embeddings inside of clusters (`semantic`).
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reference_impls.cluster import ClusterError, connect, told
from reference_impls.dedup.local import Local
from reference_impls.dedup.methods import Method, Semantic, packed
from reference_impls.dedup.sources import Block, DedupError


class Sketcher:
    """Sketches a named block."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, task: tuple[str, Block]) -> tuple[str, bytes]:
        name, block = task
        return name, packed(self.method, block)


def connected(address: str | None) -> Any:
    """Ray, connected as by `cluster.connect`, and quiet. Raises: DedupError for an address that does not answer."""
    try:
        ray = connect(address)
    except ClusterError as error:
        raise DedupError(str(error)) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


class Task:
    """Applies a function to what a row of a data set holds, as a pipeline wants it.

    What is wrong with an input comes back as a message, since Ray would hand on a traceback in its place.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            done: tuple[str | None, Any] = (None, self.function(pickle.loads(row["task"])))
        except DedupError as error:
            done = (str(error), None)
        return {"result": pickle.dumps(done)}


class OnRay(Local):
    """Works on the cluster at an address. Raises: DedupError as `connected`."""

    def __init__(self, address: str | None) -> None:
        self.ray = connected(address)

    def sketch(self, method: Method, blocks: Iterable[tuple[str, Block]]) -> Iterator[tuple[str, bytes]]:
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        pool = max(1, cores // 2) if isinstance(method, Semantic) else None
        return self._done(Sketcher(method), blocks, pool)

    def spread(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterable[Any]:
        return self._done(function, tasks)

    def _done(self, function: Callable[[Any], Any], tasks: Iterable[Any], pool: int | None = None) -> Iterator[Any]:
        """What the function makes of the tasks, as they are done; in a pool of so many actors, or wherever."""
        import pyarrow as pa

        # Each task goes to the cluster's memory at once, so that the caller holds no more than one.
        waiting = [self.ray.put(pa.table({"task": pa.array([pickle.dumps(one)], pa.large_binary())})) for one in tasks]
        if not waiting:
            return
        data = self.ray.data.from_arrow_refs(waiting)
        if pool:
            size = min(pool, len(waiting))
            done = data.map(Task, fn_constructor_args=(function,), concurrency=size)
        else:
            done = data.map(Task(function).__call__)
        del waiting
        try:
            for row in done.iter_rows():
                wrong, result = pickle.loads(row["result"])
                if wrong is not None:
                    raise DedupError(wrong)
                yield result
        except self.ray.exceptions.RayError as error:
            if isinstance(getattr(error, "cause", None) or error, self.ray.exceptions.RayError):
                message = f"the cluster did not finish: {told(error)}; what is done is kept: --resume"
                raise ClusterError(message) from error
            raise
