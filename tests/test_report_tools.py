"""What the catalogue makes of a report: its order, its verdict, its page, and the command."""

from __future__ import annotations

import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reference_impls.accounting.record import Interval, Machine
from reference_impls.report.result import (
    AtLayer,
    Budget,
    Calibration,
    CurvePoint,
    DataFacts,
    Finding,
    Layer,
    ModelFacts,
    Result,
    Suggestion,
    schema,
)
from tools.cli import main
from tools.knowledge import Knowledge, load
from tools.report import inputs
from tools.report.page import page
from tools.report.ranking import rank
from tools.site import reports

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load(ROOT, check=False)


def finding(axis: str, technique: str | None, **changed: Any) -> Finding:
    """A finding whose middle setting keeps the budget and saves 30 % of the MACs and 20 % of the time."""
    curve = tuple(
        CurvePoint(setting={"r": r}, macs_saved=Interval(value=saved), time_saved=saved - 0.1,
                   error=Interval(value=lost), flips=Interval(value=lost), within_budget=lost <= 0.01, n=64)
        for r, saved, lost in ((4, 0.1, 0.0), (8, 0.3, 0.01), (16, 0.6, 0.2))
    )  # fmt: skip
    suggested = (Suggestion(technique=technique, knobs={"r": 8}, execution="real", applies=True),) if technique else ()
    values: dict[str, Any] = {
        "axis": axis, "title": f"The axis {axis}", "relation": "spatial_similarity", "location": "tokens",
        "granularity": "token", "saves": "inference", "measure": "a measure", "source": "module:function",
        "value": Interval(value=0.8, low=0.7, high=0.9, n=64), "null": {"noise": Interval(value=0.2)}, "excess": 0.6,
        "separable": True, "layers": (AtLayer(layer="block 0", value=0.8),), "curve": curve, "best": 1,
        "ceiling_macs": 0.3, "ceiling_time": 0.2, "suggestions": suggested,
    }  # fmt: skip
    return Finding(**values | changed)


def result(*findings: Finding, **changed: Any) -> Result:
    values: dict[str, Any] = {
        "model": ModelFacts(name="Net", parameters=10, macs=10**9, bytes=10**6, ms=12.5, device="cpu", dtype="float32",
                            output="logits (B, 10)", answer="the class of each item"),
        "data": DataFacts(name="photos", kind="image", items=64, asked=64, seen=64, ended=True, batch=8,
                          shapes=("x (8, 3, 224, 224) float32",)),
        "budget": Budget(flips=0.01), "seed": 0, "findings": findings, "joint": None, "not_analysed": (),
        "layers": (Layer(name="block 0", type="linear", operator="aten.addmm.default", macs=10**9, bytes=10**6,
                         time_share=1, analysed=True),),
        "calibration": Calibration(product_gmacs_s=40, small_product_gmacs_s=8, gather_gb_s=5, scatter_gb_s=4,
                                   compare_gb_s=6, hash_grows_s=1, call_us=3, bf16_speed_up=None, int8_speed_up=None,
                                   threads=1, seconds=2),
        "machine": Machine(cpu="a processor", cores=2, threads=1, memory_gb=16), "versions": {"torch": "2"},
        "seconds": 9, "complete": True,
    }  # fmt: skip
    return Result(**values | changed)


def test_the_largest_saving_of_time_comes_first_and_training_free_before_it(known: Knowledge) -> None:
    small = finding("tokens", "token-merging")  # training-free
    large = finding("exits", "confidence-early-exit", ceiling_time=0.5)  # needs training
    ranking = rank(result(large, small), known)
    assert [o.suggestion.technique for o in ranking.options] == ["token-merging", "confidence-early-exit"]
    assert ranking.first is ranking.options[0]
    assert ranking.verdict == (
        "Try Token merging with r = 8 first: at most 20% of the time and 30% of the MACs at flips ≤ 0.01."
    )
    assert ranking.first.notebook
    assert "load('token-merging').apply(model, r=8)" in ranking.first.code


@pytest.mark.parametrize(
    ("changed", "suggested", "standing", "verdict"),
    [
        ({"ceiling_time": -0.1}, {}, "macs only", "Do nothing for speed on this machine"),
        ({}, {"execution": "simulated"}, "macs only", "Do nothing for speed on this machine"),
        ({"saves": "training", "ceiling_time": None}, {"applies": None}, "trains", "Do nothing at inference"),
        ({"saves": "bits", "ceiling_time": None}, {}, "trains", "Do nothing at inference"),
        ({"best": None}, {}, "not here", "Do nothing: at flips"),
        ({"ceiling_macs": 0.01}, {}, "not here", "Do nothing: at flips"),
        ({}, {"applies": False, "needs": "tokens"}, "not here", "Do nothing: at flips"),
    ],
)
def test_what_saves_no_time_here_is_no_first_choice(
    known: Knowledge, changed: dict[str, Any], suggested: dict[str, Any], standing: str, verdict: str
) -> None:
    one = Suggestion(**{"technique": "token-merging", "knobs": {}, "execution": "real", "applies": True} | suggested)
    ranking = rank(result(finding("tokens", None, suggestions=(one,), **changed)), known)
    assert [o.standing for o in ranking.options] == [standing]
    assert ranking.first is None
    assert ranking.verdict.startswith(verdict)


def test_what_nothing_exploits_names_entries_of_its_place(known: Knowledge) -> None:
    ((_, ids),) = rank(result(finding("tokens", None)), known).unexploited
    assert "token-merging" in ids
    assert all(known.entries[i].axes["location"].primary == "tokens" for i in ids)
    assert rank(result(finding("tokens", None)), None).unexploited[0][1] == ()


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_escapes_what_it_is_told(known: Knowledge) -> None:
    found = result(finding("tokens", "token-merging", title="<script>alert(1)</script>"))
    seen = Elements()
    seen.feed(page(found, rank(found, known), known, ["redundancy report --model m:b"]))
    assert "script" not in seen.tags
    assert seen.loaded == []
    assert "<script>alert(1)</script>" in seen.text
    for said in ("What to try", "The map of the atlas", "Null controls", "not analysed", "redundancy report --model"):
        assert said in seen.text
    assert seen.tags.count("circle") == 3


def test_the_map_shows_the_finding_in_its_cell(known: Knowledge) -> None:
    found = result(finding("tokens", "token-merging"))
    text = page(found, rank(found, known), known, [])
    assert text.count('class="on ') == 1
    assert 'title="The axis tokens: 0.80, saves 30.0\N{NO-BREAK SPACE}%"' in text


def test_an_interrupted_report_says_so(known: Knowledge) -> None:
    found = result(complete=False)
    assert "interrupted" in page(found, rank(found, known), known, [])


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a small model and data, in the current folder."""
    code = "import torch\nfrom torch import nn\n"
    code += "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8),"
    code += " nn.ReLU(), nn.Linear(8, 3))\n"
    code += "def loader():\n    return [torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(i))"
    code += " for i in range(4)]\ndef fails():\n    raise RuntimeError('no weights')\n"
    (tmp_path / "given_to_the_report.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(main, ["report", *words], catch_exceptions=False)


MODEL, DATA = ("--model", "given_to_the_report:build"), ("--data", "given_to_the_report:loader")


def test_the_command_writes_a_report_and_its_page(given: Path) -> None:
    done = call(*MODEL, *DATA, "--kind", "image", "--items", "8", "--axis", "bits", "--out", "r", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["findings"][0]["axis"] == "bits"
    assert told["verdict"].startswith("Do nothing")
    assert Result.load(given / "r").findings[0].axis == "bits"
    text = (given / "r" / "index.html").read_text()
    assert "redundancy report --model given_to_the_report:build" in text
    again = call(*MODEL, *DATA, "--kind", "image", "--out", "r")
    assert (again.exit_code, "holds a report already" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*DATA, "--kind", "image"), "give the model by --model"),
        ((*MODEL, *DATA), "--kind image, video, text or tokens says"),
        (("--model", "nowhere:build", *DATA, "--kind", "image"), "'nowhere' cannot be imported"),
        (("--model", "given_to_the_report:made", *DATA, "--kind", "image"), "has no function 'made'; it has: build"),
        (("--model", "given_to_the_report:fails", *DATA, "--kind", "image"), "failed: RuntimeError: no weights"),
        (("--model", "build", *DATA, "--kind", "image"), "must be MODULE:FUNCTION"),
        ((*MODEL, "--data", "no/such/folder"), "there is no folder or file"),
        ((*MODEL, "--data", "."), "holds no picture, clip or text"),
        ((*MODEL, *DATA, "--budget", "flips=2"), "is none of flips=1%"),
        ((*MODEL, *DATA, "--kind", "image", "--resume"), "--resume goes on with the report in --out"),
        (("--hf", "no/such/model", "--data", "no/such"), "holds no model that transformers reads"),
    ],
)
def test_wrong_input_is_told_in_a_line(given: Path, words: tuple[str, ...], said: str) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_files_are_of_the_kind_that_most_of_them_have(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.JPG", "d.txt", "e.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    kind, paths = inputs.files(tmp_path)
    assert (kind, [p.name for p in paths]) == ("image", ["a.png", "c.JPG"])


def test_the_site_has_the_schema_and_every_example(known: Knowledge) -> None:
    found = reports.files(known)
    assert json.loads(found[reports.SCHEMA]) == schema()
    names = [one.name for one in reports.examples(ROOT)]
    assert len(names) >= 3
    assert set(found) == {reports.SCHEMA, *(f"reports/{name}.html" for name in names)}
    for one in reports.examples(ROOT):
        if one.checked is not None:
            predicted = (ROOT / reports.HOME / one.name / "predictions.json").read_bytes()
            assert hashlib.sha256(predicted).hexdigest() == one.checked.sha256
