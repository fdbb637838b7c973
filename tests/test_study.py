"""The study layer: variants by series and knobs, one interleaved run, intervals, records, and who meets where."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reference_impls import show
from reference_impls.accounting import pictures
from reference_impls.accounting.count import count
from reference_impls.accounting.preparation import heard, listening, prepares
from reference_impls.accounting.record import Interval, Record
from reference_impls.contract import Redundancy
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Context,
    Cost,
    Plan,
    Recipe,
    Scenario,
    Study,
    contenders,
    machine,
    measured,
    over_items,
    over_seeds,
    paired,
    pooled,
    run,
    scenarios,
    table,
    train,
    training_macs,
)
from reference_impls.study.registry import measure

NOTHING = measured([Redundancy(0.5, "made up")])


def study_of(
    *, owner: str = "made-up", benchmark: str | None = None, seeds: tuple[int, ...] = (0, 1, 2)
) -> Study[Plan]:
    plan = Plan(repetitions=5, seeds=seeds)
    return Study(owner, Scenario("a-task", "A task", lambda study: None, plan, plan, benchmark), Context())


def product(rows: int, columns: int = 4):
    x, y = torch.ones(rows, 8), torch.ones(8, columns)
    return lambda: x @ y


def product_macs(rows: int, columns: int = 4) -> int:
    return 8 * rows * columns


def swept(study: Study[Plan], *, series: str = TECHNIQUE) -> Study[Plan]:
    """A baseline and two points, scored for three seeds, with a control at one of the points."""
    for score in (0.9, 0.8, 1.0):
        study.add(BASELINE, {}, product(16), units=16, score=score)
        study.add(series, {"r": 1}, product(8), units=16, score=score - 0.1)
        study.add(series, {"r": 2}, product(4), units=16, score=score - 0.2)
        study.add("at random", {"r": 1}, product(8), units=16, score=score - 0.4)
    study.measure()
    return study


def record_of(study: Study[Plan], **changes: object) -> Record:
    said = {"data": "none", "unit": "one row", "knobs": ("r",), "metric": "accuracy", "redundancy": NOTHING}
    return study.record(**said | {"controls": {"at random": "Drawn at random."}} | changes)


def test_variants_are_counted_per_unit_and_timed_in_paired_rounds() -> None:
    record = record_of(swept(study_of()))
    assert record.baseline.macs == 8 * 4
    assert [(p.knobs, p.macs) for p in record.points] == [({"r": 1}, 16), ({"r": 2}, 8)]
    assert record.baseline.speed_up is None
    for point in (*record.points, *record.controls[0].points):
        assert point.speed_up is not None
        assert point.speed_up.n == point.wall_ms.n == 5


def test_scores_gather_over_seeds_and_gains_are_paired_by_seed() -> None:
    record = record_of(swept(study_of()))
    assert record.baseline.quality.value == pytest.approx(0.9)
    first, second = record.points
    assert first.gain["baseline"].value == pytest.approx(-0.1)
    assert first.gain["baseline"].high == pytest.approx(-0.1), "the spread of the seeds cancels out"
    assert first.gain["at random"].value == pytest.approx(0.3)
    assert "at random" not in second.gain, "the control has no such point"
    assert record.controls[0].points[0].gain["baseline"].value == pytest.approx(-0.4)


def test_one_seed_gives_no_interval_and_no_gain() -> None:
    study = study_of(seeds=(0,))
    study.add(BASELINE, {}, product(4), score=0.9)
    study.add(TECHNIQUE, {"r": 1}, product(2), score=0.8)
    study.measure()
    (point,) = record_of(study, controls=None).points
    assert (point.quality.low, point.quality.n, point.gain) == (None, 1, {})


def test_a_cost_from_elsewhere_is_taken_as_it_is() -> None:
    study = study_of()
    one, two = Cost(10, 20, (), (2.0, 4.0)), Cost(30, 40, ("aten.sort",), (1.0, 1.0))
    study.add(BASELINE, cost=one, score=(1.0, 1.0))
    study.add(TECHNIQUE, {"r": 1}, cost=pooled([one, two]).plus(5), score=(1.0, 1.0))
    (point,) = record_of(study, controls=None).points
    assert (point.macs, point.bytes, point.uncounted, point.wall_ms.n) == (25, 30, ("aten.sort",), 4)
    assert point.speed_up == Interval(value=1.5, low=1.0, high=4.0, n=4), "each of the two is paired: 1, 1, 2, 4"


def test_streams_tell_how_cost_varies_from_item_to_item() -> None:
    begun = []

    def stream(width: Callable[[int], int]) -> Callable[[], list[Callable[[], object]]]:
        def begin() -> list[Callable[[], object]]:
            begun.append(width)
            return [product(width(n)) for n in range(100)]

        return begin

    study = study_of()
    study.add(BASELINE, call=product(16), stream=stream(lambda n: 16), score=1.0)
    study.add(TECHNIQUE, {"r": 1}, product(8), stream=stream(lambda n: 1 + n), score=1.0)
    study.add(TECHNIQUE, {"r": 2}, product(8), score=1.0)
    study.measure()
    record = record_of(study, controls=None)
    base, (first, second) = record.baseline.items, record.points
    assert (base.n, base.macs_p50, base.macs_p99) == (100, product_macs(16), product_macs(16))
    assert first.items.macs_p50 == np.percentile([product_macs(1 + n) for n in range(100)], 50)
    assert first.items.macs_p99 > first.items.macs_p50
    assert 0 < first.items.ms_p50 <= first.items.ms_p99
    assert second.items is None
    assert len(begun) == 2 * 4, "each round begins its streams anew"
    assert Record.model_validate_json(record.to_json()) == record


def test_few_items_have_no_spread_and_streams_have_the_same_items() -> None:
    study = study_of()
    study.add(BASELINE, call=product(2), stream=lambda: [product(2)] * 99, score=1.0)
    study.measure()
    assert study.baseline.items is None
    study.add(TECHNIQUE, {"r": 1}, product(2), stream=lambda: [product(2)] * 100, score=1.0)
    study.add(TECHNIQUE, {"r": 2}, product(2), stream=lambda: [product(2)] * 101, score=1.0)
    with pytest.raises(ValueError, match="have the same items"):
        study.measure()


def test_techniques_meet_in_a_benchmark() -> None:
    study = swept(study_of(owner="a-family", benchmark="a-family"), series="token-merging")
    study.add("semantic-deduplication", {"r": 3}, product(2), units=16, score=(0.5, 0.5, 0.5))
    study.measure()
    record = record_of(study)
    assert (record.technique, record.benchmark, record.owner) == (None, "a-family", "a-family")
    assert [p.technique for p in record.points] == ["token-merging", "token-merging", "semantic-deduplication"]
    assert Record.model_validate_json(record.to_json()) == record


def test_the_fastest_of_several_dense_ways_is_the_baseline() -> None:
    study = study_of()
    for layout, ms in (("a", 3.0), ("b", 1.0)):
        study.add(BASELINE, {"layout": layout}, cost=Cost(1, 1, (), (ms,)), score=1.0)
    assert study.baseline.knobs == {"layout": "b"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda study: record_of(study, controls={}), "say in `controls` what these series are: at random"),
        (lambda study: study.add(TECHNIQUE, {"r": 9}, score=1.0) or record_of(study), "was not measured"),
        (lambda study: study.add(TECHNIQUE, {"r": 9}, cost=Cost(1, 1, (), (1.0,))) or record_of(study), "neither"),
        (lambda study: record_of(study, knobs=("q",)), "does not say its q"),
    ],
)
def test_what_is_missing_is_named(spoil, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spoil(swept(study_of()))


def test_look_ups_say_what_there_is() -> None:
    study = swept(study_of())
    with pytest.raises(LookupError, match=r"no variant 'technique' with \{'r': 7\}; there are: baseline"):
        study.cost(TECHNIQUE, r=7)
    with pytest.raises(LookupError, match="did you mean 'token-merging'"):
        scenarios("token-mergin")
    with pytest.raises(LookupError, match="did you mean 'compact-networks'"):
        scenarios("compact-network")
    with pytest.raises(LookupError, match="did you mean 'digits-vit'"):
        run("token-merging", "digit-vit")
    with pytest.raises(FileNotFoundError, match="token-merging/digits-vit"):
        show.committed("token-merging", "nothing")


def test_contenders_come_from_the_experiments_that_send_some() -> None:
    sent = contenders("compact-networks", "feature-maps")
    assert set(sent) == {"stride-attention", "attention-downsampling"}
    assert all(one.knobs for many in sent.values() for one in many)
    assert contenders("compact-networks", "no-such-task") == {}


def test_pictures_stand_beside_the_record(tmp_path: Path) -> None:
    study = swept(study_of())
    record = record_of(
        study, pictures={"a picture": torch.eye(3)}, tables={"t": table("A table.", ("a", "b"), [[1, None]])}
    )
    pictures.save(record, tmp_path / "a-task.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-task.json", "a-task.npz"]
    assert np.array_equal(pictures.load(tmp_path / "a-task.json")["a picture"], np.eye(3))
    read = Record.model_validate_json((tmp_path / "a-task.json").read_text())
    assert (read.pictures, read.tables["t"].records()) == (("a picture",), [{"a": 1, "b": None}])
    assert pictures.load(tmp_path / "none.json") == {}


def test_intervals() -> None:
    mean = over_seeds([1.0, 2.0, 3.0])
    assert (mean.value, mean.n) == (2.0, 3)
    assert mean.high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3), "Student's t with 2 degrees of freedom"
    assert paired([1.0, 2.0], [0.0, 1.0]) == Interval(value=1.0, low=1.0, high=1.0, n=2)
    boot = over_items([0.0, 1.0] * 50)
    assert boot.low is not None
    assert 0.3 < boot.low < boot.value == 0.5
    assert over_items([0.0, 1.0] * 50) == boot


def test_the_commit_of_whoever_installed_the_atlas_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment often lies inside a repository of its user, which ignores it."""
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for arguments in (["init", "--quiet"], [*identity, "commit", "--quiet", "--allow-empty", "--message", "theirs"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    module = tmp_path / "site-packages" / "machine.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(machine, "__file__", str(module))
    assert re.fullmatch(r"release .+", machine.versions()["commit"])


# --- preparations


@prepares("clustering")
def clustered(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize("held", ["counted", "excluded", "shared"])
def test_a_preparation_that_nobody_accounts_for_is_refused(held: str) -> None:
    study = swept(study_of())
    with listening():
        clustered(torch.ones(1))
        with pytest.raises(ValueError, match=r"runs a clustering, and nothing says .* study\.prepare\("):
            record_of(study)
        study.prepare("clustering", "clustering the rows", 7, held=held)  # type: ignore[arg-type]
        record = record_of(study)
    (told,) = getattr(record, held)
    assert (told.kind, told.what, told.macs) == ("clustering", "clustering the rows", 7)
    assert record.prepared == {"clustering"}


def test_what_is_no_shared_preparation_has_a_size() -> None:
    with pytest.raises(ValueError, match="say how many MACs the search takes"):
        study_of().prepare("search", "the search")
    study_of().prepare("search", "the search", held="shared")


def test_only_what_runs_inside_a_study_is_heard() -> None:
    clustered(torch.ones(1))
    assert heard() == frozenset()
    with listening() as outer:
        with listening():
            clustered(torch.ones(1))
        assert outer == set()
        assert clustered.__name__ == "clustered"


def test_an_experiment_that_clusters_and_does_not_say_so_is_refused() -> None:
    """By the way that every experiment runs, whichever module it stands in."""

    def forgetful(study: Study[Plan]) -> Record:
        clustered(torch.ones(1))
        return record_of(swept(study))

    plan = Plan(repetitions=2, seeds=(0, 1, 2))
    with pytest.raises(ValueError, match="runs a clustering"):
        measure("made-up", Scenario("a-task", "A task", forgetful, plan, plan), Context())


def test_the_cost_of_a_training_is_what_the_counter_finds() -> None:
    x, y, recipe = torch.randn(10, 3), torch.zeros(10).long(), Recipe(2, batch_size=4)

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))

    with count() as tally:
        train(network(), x, y, recipe, seed=0)
    assert training_macs(network, x, y, recipe) == tally.macs
    assert training_macs(network, x, y, recipe, steps=2) == tally.macs


def test_a_control_on_other_input_is_marked() -> None:
    (control,) = record_of(swept(study_of()), other_input=["at random"]).controls
    assert control.other_input
