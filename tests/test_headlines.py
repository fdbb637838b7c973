"""What an entry saves, in one place for all pages: nothing flatters."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reference_impls.accounting.record import Record
from reference_impls.accounting.saving import (
    best,
    end_to_end,
    is_exact,
    left_out,
    macs_saved,
    tails,
    uses_to_pay,
    work_to_pay,
)
from tests.site_fixture import knowledge, record, variant
from tools.cli import main
from tools.headlines import Saves, in_short, of_entry, steadiness, told
from tools.knowledge import Knowledge, load
from tools.site import evidence, preparation
from tools.site.catalogue import techniques
from tools.site.model import Atlas, Material

ROOT = Path(__file__).parents[1]
G = 10**9
ERROR = {"metric": "largest error", "value": 0.0, "higher_is_better": False}
EMBEDDING = {"kind": "embedding", "what": "embedding the texts", "macs": 100 * G}


@pytest.fixture(scope="module")
def atlas() -> Knowledge:
    return load(ROOT, check=False)


def said(*records: Record) -> list[Saves]:
    return [saves for _, saves in told(records)]


def without_error(macs: int, error: float, **knobs: Any) -> dict[str, Any]:
    return variant(macs, 0.9, 10.0, knobs=knobs or {"r": 1}) | {"quality": ERROR | {"value": error}}


def lossless(scenario: str = "layers", *points: Mapping[str, Any], **changes: Any) -> Record:
    """A record whose quality is an error beside a baseline of none."""
    base = variant(4 * G, 0.9, 10.0) | {"quality": ERROR}
    return record(scenario, baseline=base, points=list(points), controls=[], **changes)


def training(**changes: Any) -> Record:
    """A quarter of a training is saved, and an embedding that costs 25 trainings is in no variant."""
    return record(**{"work": "training", "excluded": [EMBEDDING], "unit": "training once"} | changes)


# --- arithmetic


def test_nothing_is_saved_from_end_to_end_until_the_preparation_is_shared() -> None:
    one = training(counted=[{"kind": "clustering", "what": "clustering", "macs": G}], grows={"epochs": 5})
    (point, _) = one.points
    assert left_out(one) == 100 * G
    assert macs_saved(one, point) == 0.25
    assert end_to_end(one, point) == 1 - 103 / 4
    assert uses_to_pay(one, point) == 100
    assert end_to_end(one, point, uses=100) == pytest.approx(0)
    assert work_to_pay(one, point) == 101 / 2  # of 4, 2 are saved in the work itself, and clustering stays 1
    assert end_to_end(one, point, work=101 / 2) == pytest.approx(0)
    dear = record(points=[variant(5 * G, 0.9, 1.0, knobs={"r": 1})], excluded=[EMBEDDING])
    assert uses_to_pay(dear, dear.points[0]) is None


def test_what_the_baseline_needs_too_makes_a_saving_smaller_and_never_negative() -> None:
    one = record(shared=[{"kind": "embedding", "what": "embedding", "macs": 96 * G}])
    assert end_to_end(one, one.points[0]) == pytest.approx(0.01)


@pytest.mark.parametrize(("error", "exact"), [(0.0, True), (3e-7, True), (1e-3, False)])
def test_an_error_of_rounding_is_exact(error: float, exact: bool) -> None:
    one = lossless("layers", without_error(G, error))
    assert is_exact(one, one.points[0]) is exact
    assert best(one).points == ((one.points[0],) if exact else (None,))
    assert not is_exact(record(), record().points[0]), "an accuracy that stays is no proof"


# --- words


def test_a_lossless_technique_is_exact() -> None:
    (saves,) = said(lossless("layers", without_error(G, 3e-7)))
    assert saves.value == "exact: 75\u00a0%"
    assert saves.about.startswith("without any loss")
    (saves,) = said(lossless("layers", without_error(G, 0.5)))
    assert saves.value == "none"
    (saves,) = said(lossless("layers", without_error(G, 0.0)), record())
    assert saves.value == "25\u00a0%; exact: 75\u00a0%"


def test_nobody_chooses_the_input() -> None:
    points = [without_error(macs * G // 10, 0.0, changed=share) for share, macs in ((0.1, 4), (0.5, 30), (0.9, 60))]
    (saves,) = said(lossless("layers", *points, knobs=["changed"], given=["changed"]))
    assert saves.value == "exact: 25–90\u00a0%"
    assert saves.shares == (0.9, 0.25, 0.0)
    assert "changed from 0.1 to 0.9" in saves.about


def test_one_range_spans_one_kind_of_work() -> None:
    network, layer = said(lossless("layers", without_error(G, 0.0), work="layer"), record())
    assert (network.work, network.value) == ("network", "25\u00a0%")
    assert (layer.work, layer.value) == ("layer", "exact: 75\u00a0%")
    assert [line for line, _ in in_short(knowledge(record(), record("b", work="layer")), "token-merging")] == [
        "25\u00a0%",
        "25\u00a0%, a part of a network",
    ]


def test_work_that_is_done_once_is_told_from_end_to_end() -> None:
    (saves,) = said(training())
    assert saves.value == "none"
    assert "embedding the texts takes 100\u00a0GMACs, 25 times the baseline. Without it: 25\u00a0%" in saves.about
    assert "it pays where 100 such units share it" in saves.about
    cheap = EMBEDDING | {"macs": G // 2}
    assert said(training(excluded=[cheap]))[0].value == "12\u00a0%"
    (both,) = said(training(excluded=[], shared=[EMBEDDING]))
    assert both.value == "0.96\u00a0%"
    assert "Without embedding the texts, which both need: 25\u00a0%" in both.about


def test_work_that_repeats_says_what_is_left_out() -> None:
    (saves,) = said(record(excluded=[EMBEDDING]))
    assert saves.value == "25\u00a0%"
    assert saves.about.endswith(
        "Left out: embedding the texts, 100\u00a0GMACs, as much as it saves on 100 units (image)"
    )


def test_random_weights_give_no_headline() -> None:
    untrained = record("b", model="ViT-S/16 with random weights")
    assert said(record(), untrained)[0].value == "25\u00a0%"
    assert "without 1 record with random weights" in said(record(), untrained)[0].about
    (saves,) = said(untrained)
    assert saves.value == saves.control == "random weights"


def test_none_is_said_and_counted() -> None:
    bad = record("b", points=[variant(3 * G, 0.5, 120.0, knobs={"r": 4})])
    assert said(bad)[0].value == "none"
    assert in_short(knowledge(record(), bad), "token-merging") == [("25\u00a0%; none in 1 of 2 scenarios", "none")]


ITEMS = {"n": 200, "macs_p50": 4e9, "macs_p99": 4e9, "ms_p50": 10.0, "ms_p99": 11.0}


def test_what_is_added_to_the_spread_is_a_share_of_the_dense_item() -> None:
    base = variant(4 * G, 0.9, 10.0) | {"items": ITEMS}
    follows = [
        variant(3 * G, 0.9, 8.0, knobs={"r": r}) | {"items": ITEMS | {"macs_p50": 2e9, "macs_p99": p99}}
        for r, p99 in ((4, 3e9), (8, 3.8e9))
    ]
    untold = variant(3 * G, 0.9, 8.0, knobs={"r": 2})
    both = record(baseline=base, points=[untold, *follows], controls=[])
    assert [tails(both, point) for point in both.points] == [None, (0.25, 0.0), (pytest.approx(0.45), 0.0)]
    assert steadiness(knowledge(both), "token-merging") == ("25–45\u00a0%", "0\u00a0%")
    assert steadiness(knowledge(record()), "token-merging") is None
    no_work = record(baseline=base | {"items": ITEMS | {"macs_p50": 0.0, "macs_p99": 0.0}}, points=follows, controls=[])
    assert tails(no_work, no_work.points[0]) is None
    page = techniques(Atlas(knowledge(both), Material())).markdown
    assert "<small>baseline 0\u00a0%</small>" in page
    assert "25–45\u00a0%" in page


def test_a_control_on_other_input_is_no_rival() -> None:
    point = variant(0, 0.9, 1.0, knobs={"r": 4})
    null = {"name": "nothing changes", "about": "Still.", "points": [point], "other_input": True}
    assert said(record(controls=[null]))[0].control == "none tried"
    rival = {"name": "one exit", "about": "Cut.", "points": [point]}
    assert said(record(controls=[null, rival]))[0].control == "100\u00a0% (one exit)"


# --- everywhere the same


def test_catalogue_page_command_and_export_say_the_same(atlas: Knowledge) -> None:
    table = techniques(Atlas(atlas, Material())).markdown
    exported = json.loads(CliRunner().invoke(main, ["--root", str(ROOT), "export", "json"]).stdout)["entries"]
    by_id = {one["id"]: one for one in exported}
    for entry in (one for one in atlas.entries.values() if one.status == "stable"):
        row = next(
            html.unescape(line)
            for line in table.split("<tr ")
            if f"techniques/{entry.id}.html" in line or f'"{entry.id}.html"' in line
        )
        pairs, study = of_entry(atlas, entry.id), entry.kind == "study"
        assert bool(pairs) != study, entry.id
        own = [result.record for result in Atlas(atlas, Material()).results(entry.id)]
        tiles = [value for what, value, _ in evidence.headline(own, study=study) if what.startswith("MACs saved")]
        assert tiles == [saves.value for _, saves in pairs] == [one["value"] for one in by_id[entry.id]["saves"]]
        for _, saves in pairs:
            assert saves.value in row
            assert saves.control in row
    assert ">–<" not in "".join(line for line in table.split("<tr ") if line.startswith('class="stable'))


def test_show_says_what_is_saved() -> None:
    shown = CliRunner().invoke(main, ["--root", str(ROOT), "show", "semantic-deduplication"]).stdout
    assert "MACs saved, selecting data and training on them: none" in shown
    assert "times the baseline" in shown


# --- the curve


def test_the_page_says_from_where_on_it_pays() -> None:
    html = preparation.block(training(grows={"epochs": 5}), "fig")
    assert "<li>100 units (training once) that share it</li>" in html
    assert "<li>500 epochs</li>" in html
    assert html.count("<svg") == 1
    assert "25 times what the baseline takes" in html
    assert preparation.block(record(), "fig") == ""
    never = record(points=[variant(5 * G, 0.9, 1.0, knobs={"r": 1})], excluded=[EMBEDDING])
    assert "never pays" in preparation.block(never, "fig")
