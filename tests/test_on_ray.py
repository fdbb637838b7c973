"""Work on Ray: a cluster of two nodes on this machine gives, item for item, what one process gives."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from reference_impls.dedup import DedupError, Options, Source, dedup, methods, pipeline, run
from tests.test_runner import EXPERIMENT
from tools import bench, runner
from tools.cli import main

if os.environ.get("ATLAS_REQUIRE_RAY") != "1":
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    pytest.importorskip("rensa", reason="the extra `dedup` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]
TEXTS = [
    " ".join(f"w{random.randrange(10**6)}" for _ in range(40)) for n in range(400) for random in [Random(n * 7 // 10)]
]
WAITING = """
def run(study):
    from pathlib import Path
    with open({starts!r}, "a") as starts:
        starts.write(study.scenario.name + " ")
    while not Path({go!r}).exists():
        time.sleep(0.05)
    return make(study, scenario=study.scenario.name)

SCENARIOS = [Scenario(name, "Made up", run, Plan(), Plan()) for name in ("one", "two")]
"""


class Nodes(NamedTuple):
    """A cluster of one node, to which others can be added, and a folder that its processes import from."""

    add: Callable[[], Any]
    remove: Callable[[Any], None]
    address: str
    folder: Path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("packages")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    with pytest.MonkeyPatch.context() as patch:
        here = [str(Path(__file__).parents[1]), str(folder), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(here))
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            yield Nodes(
                lambda: cluster.add_node(**node),
                lambda one: cluster.remove_node(one, allow_graceful=False),
                cluster.address,
                folder,
            )
        finally:
            ray.shutdown()
            cluster.shutdown()


def killer(marker: Path) -> Callable[[], None]:
    """Kills the process in which it is called for the first time; a closure, so that it travels by value."""

    def die_once() -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return die_once


def encoder(first: Callable[[], None] = lambda: None) -> Callable[[list[str]], Any]:
    """An encoder for the pool of actors, which does something first."""

    def encode(rows: list[str]) -> Any:
        first()
        sums = [sum(map(ord, row)) for row in rows]
        return np.array([[n % 97, n % 89, 1] for n in sums], dtype=float)

    return encode


def test_one_and_two_nodes_give_what_one_process_gives_and_killed_workers_change_nothing(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import pyarrow.parquet as pq

    on_ray: Any = {"engine": "ray", "address": nodes.address}
    expected, meaning = dedup(TEXTS, "minhash"), dedup(TEXTS, "semantic", encoder=encoder())
    assert dedup(TEXTS, "minhash", **on_ray).equals(expected)
    second = nodes.add()
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 100)
    monkeypatch.setattr(methods, "PART", 30)
    marker = tmp_path / "embedding"
    assert dedup(TEXTS, "semantic", encoder=encoder(killer(marker)), **on_ray).equals(meaning)
    assert marker.exists()

    blocks, compare, die_once = Source.blocks, methods.compare, killer(marker := tmp_path / "comparing")

    def compares(part: methods.Part) -> Any:
        die_once()
        return compare(part)

    monkeypatch.setattr(methods, "compare", compares)
    monkeypatch.setattr(Source, "blocks", lambda self: blocks(self, 60))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run(Source(file), tmp_path / "out", Options(), **on_ray)
    assert pq.read_table(tmp_path / "out" / "result.parquet").to_pylist() == expected.to_pylist()
    assert marker.exists()
    nodes.remove(second)
    with pytest.raises(DedupError, match=r"^the encoder must give \(N, D\) for 2 rows, got \(3,\)$"):
        dedup(TEXTS[:2], "semantic", encoder=lambda rows: np.zeros(3), **on_ray)


def test_experiments_have_a_node_each_and_those_of_a_lost_one_run_again(nodes: Nodes, tmp_path: Path):
    package, starts, go = nodes.folder / "contributed", tmp_path / "starts", tmp_path / "go"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "made_up.py").write_text(EXPERIMENT + WAITING.format(starts=str(starts), go=str(go)))
    second = nodes.add()

    def lose_a_node() -> None:
        until = time.monotonic() + 100
        while len(starts.read_text().split() if starts.exists() else ()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        nodes.remove(second)
        go.touch()

    losing = threading.Thread(target=lose_a_node)
    losing.start()
    given: Any = {"package": "contributed", "seconds": 120}
    spread = list(
        bench.run_all(["made-up"], True, folder=tmp_path / "ray", engine="ray", address=nodes.address, **given)
    )
    losing.join()
    assert [(one.scenario, one.outcome.error) for one in sorted(spread, key=lambda r: r.scenario)] == [
        ("one", None), ("two", None),
    ]  # fmt: skip
    names = starts.read_text().split()
    assert sorted(names[:2]) == ["one", "two"], "both ran at the same time, each on its node"
    assert len(names) == 3, "what the lost node was at ran again"
    here = runner.run("made-up", scenario="two", budget="full", preloaded=True, **given).record
    assert here is not None
    there = json.loads((tmp_path / "ray" / "made-up" / "two.json").read_text())
    assert there["machine"].pop("node")
    assert there == json.loads(here.to_json())


def test_an_address_that_does_not_answer_is_told():
    with pytest.raises(DedupError, match="no Ray cluster answers at"):
        dedup(TEXTS, engine="ray", address="127.0.0.1:9")
    done = CliRunner().invoke(main, ["bench", "token-merging", "--engine", "ray", "--address", "127.0.0.1:9"])
    assert done.exit_code == 1
    assert "no Ray cluster answers at" in done.output
