"""Deduplication on Ray: a cluster of two nodes on this machine gives, item for item, what one process gives."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from reference_impls.dedup import DedupError, Options, Source, dedup, pipeline, run

if os.environ.get("ATLAS_REQUIRE_RAY") != "1":
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    pytest.importorskip("rensa", reason="the extra `dedup` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]
TEXTS = [
    " ".join(f"w{random.randrange(10**6)}" for _ in range(40)) for n in range(400) for random in [Random(n * 7 // 10)]
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of one node, to which others can be added."""
    import ray
    from ray.cluster_utils import Cluster

    here = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        yield lambda: cluster.add_node(**node), cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def encoder(dies_once_at: Path | None = None) -> Callable[[list[str]], Any]:
    """An encoder for the pool of actors, whose first process may die."""

    def encode(rows: list[str]) -> Any:
        if dies_once_at is not None and not dies_once_at.exists():
            dies_once_at.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        sums = [sum(map(ord, row)) for row in rows]
        return np.array([[n % 97, n % 89, 1] for n in sums], dtype=float)

    return encode


def test_one_and_two_nodes_give_what_one_process_gives_and_a_killed_worker_changes_nothing(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add, address = nodes
    expected = {method: dedup(TEXTS, method) for method in ("exact", "minhash", "substring")}
    meaning = dedup(TEXTS, "semantic", encoder=encoder())
    for rows in (400, 40):
        monkeypatch.setattr(pipeline, "BLOCK_ROWS", rows)
        assert dedup(TEXTS, "minhash", engine="ray", address=address).equals(expected["minhash"])
    add()
    for method, table in expected.items():
        assert dedup(TEXTS, method, engine="ray", address=address).equals(table), method
    assert dedup(TEXTS, "semantic", encoder=encoder(), engine="ray", address=address).equals(meaning)

    marker = tmp_path / "killed"

    assert dedup(TEXTS, "semantic", encoder=encoder(marker), engine="ray", address=address).equals(meaning)
    assert marker.exists()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    summary = run(Source(file), tmp_path / "out", Options(), engine="ray", address=address)
    assert summary["removed"] == expected["minhash"]["decision"].to_pylist().count("removed")


def test_an_address_that_does_not_answer_is_told():
    with pytest.raises(DedupError, match="no Ray cluster answers at"):
        dedup(TEXTS, engine="ray", address="127.0.0.1:9")
