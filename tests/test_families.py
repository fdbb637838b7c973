"""What reference_impls/hosts/families.yml says of other people's models is true of the versions at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.contract import NoEffectWarning, UnsupportedHost
from reference_impls.hosts.bert import staged_bert
from reference_impls.techniques.confidence_early_exit import ConfidenceEarlyExit
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.token_merging import TokenMerging
from tests import other_models
from tests.families import CNNS, ENCODERS, VISION, Case, equal_tokens
from tests.support import assert_close
from tools.site.hosts import Family, families

ROOT = Path(__file__).parents[1]
TABLE = families(ROOT)
BUILT: Mapping[str, Mapping[str, Any]] = {
    "token-merging": VISION, "confidence-early-exit": ENCODERS, "delta-convolution": CNNS,
}  # fmt: skip
EXACT = 1e-5
ROTARY = {"DINOv3", "timm EVA-02", "timm DINOv3"}
"""Their attention turns keys by position, so that tokens which are the same still differ."""

TOME, DELTA = TokenMerging(), DeltaConvolution()


def lines(technique: str, status: str) -> list[Any]:
    """The families of a technique with that status, for a test that is parametrised over them."""
    marks = {"transformers": [pytest.mark.transformers]}
    return [
        pytest.param(one, id=one.family, marks=marks.get(one.library, []))
        for one in TABLE.techniques[technique]
        if one.status == status
    ]


def built(family: Family) -> Case:
    """The family's model; skips the test where the version at hand does not know it, as the table says."""
    build = BUILT[family.technique][family.family]
    library = getattr(other_models, family.library)() if family.library != "torch" else torch
    version = library.__version__.partition("+")[0]
    if version in family.not_there:
        with pytest.raises(pytest.skip.Exception, match="is not there"):
            build()
        pytest.skip(f"{family.family} is not there in {family.library} {version}")
    return build()


def run(case: Case, target: Any = None) -> Tensor:
    with torch.no_grad():
        return case.run(case.model if target is None else target, case.inputs)


# --- token merging


@pytest.mark.parametrize("family", lines("token-merging", "exact"))
def test_token_merging_is_exact(family: Family) -> None:
    case = built(family)
    dense = run(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        for knobs in ({"r": 0}, {"r": None, "threshold": 1.0}):
            with TOME.apply(case.model, **knobs) as handle:
                assert_close(run(case, handle.target), dense, EXACT)
    with TOME.apply(case.model, r=3) as handle:
        merged = run(case, handle.target)
        assert any(after < before for before, after in handle.trace["tokens"])
    assert merged.shape == dense.shape
    assert not torch.equal(merged, dense)
    assert torch.equal(run(case), dense)
    if isinstance(case.inputs, Tensor) and family.family != "CLIP":
        assert 0 < TOME.measure(case.model, case.inputs).value <= 1


@pytest.mark.parametrize("family", [f for f in lines("token-merging", "exact") if f.values[0].family not in ROTARY])
def test_merging_equal_tokens_changes_nothing(family: Family) -> None:
    """Where positions add nothing, tokens of equal patches are equal, and their merging is exact by proportional
    attention: this holds the whole computation on merged tokens, whatever the block consists of."""
    case = equal_tokens(built(family), dim=0 if family.family.endswith("batch second") else 1)
    dense = run(case)
    schedule = [4, 0, 0] * (2 if family.family == "two ViTs in one model" else 1)  # 0: merged tokens meet attention
    with TOME.apply(case.model, r=schedule) as handle:
        assert_close(run(case, handle.target), dense, EXACT)
        assert [before - after for before, after in handle.trace["tokens"]] == schedule


# --- early exit


@pytest.mark.parametrize("family", lines("confidence-early-exit", "exact"))
def test_early_exit_is_exact(family: Family) -> None:
    case = built(family)
    expected = run(case)
    staged = staged_bert(case.model, classes=3)
    state = case.inputs
    with torch.no_grad():
        for stage in staged.stages:
            state = stage(state)
        logits = staged(case.inputs)
    real = case.inputs["real"]
    assert_close(state["x"][real], expected[real], EXACT)
    for threshold in (0.999, 0.4):
        with ConfidenceEarlyExit().apply(staged, rule="confidence", threshold=threshold) as handle, torch.no_grad():
            early = handle.target(case.inputs)
        assert early.shape == logits.shape
        if threshold == 0.999:  # nobody is that sure
            assert_close(early, logits, EXACT)
    assert torch.equal(run(case), expected)


# --- delta convolution


@pytest.mark.parametrize("family", lines("delta-convolution", "exact"))
def test_delta_convolution_is_exact(family: Family) -> None:
    case = built(family)
    expected = run(case)
    with DELTA.apply(case.model, threshold=0.0) as handle:
        assert_close(run(case, handle.target), expected, 1e-4)
        handle.reset()  # after frames in which much moved, a stream runs densely for a while
        still = case.inputs[:1]
        with torch.no_grad():
            handle.target(still)
            with count() as delta:
                handle.target(still)
            with count() as dense:
                case.model(still)
    assert delta.macs < dense.macs


# --- refusals


def attempts(technique: str, case: Case) -> list[Callable[[], object]]:
    """Ways to ask a technique for what it refuses."""
    if technique == "token-merging":
        return [lambda: TOME.apply(case.model, r=2), lambda: TOME.measure(case.model, case.inputs)]
    if technique == "confidence-early-exit":
        return [lambda: staged_bert(case.model, classes=3)]
    return [lambda: DELTA.apply(case.model, threshold=0.0)]


@pytest.mark.parametrize("family", [one for technique in BUILT for one in lines(technique, "refused")])
def test_refused_by_name(family: Family) -> None:
    case = built(family)
    dense = run(case)
    for attempt in attempts(family.technique, case):
        with pytest.raises(UnsupportedHost, match=family.names):
            attempt()
    assert torch.equal(run(case), dense)


# --- the table itself


@pytest.mark.parametrize("technique", BUILT)
def test_every_model_that_is_built_has_one_line(technique: str) -> None:
    assert [one.family for one in TABLE.techniques[technique]] == list(BUILT[technique])


def test_the_versions_are_those_of_the_lock_files() -> None:
    pinned = dict(
        line.split("==")
        for lock in ("requirements.lock", "requirements-models.lock")
        for line in (ROOT / lock).read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    older = {"transformers": other_models.older_transformers()}
    assert TABLE.versions == {
        library: (*older.get(library, ()), pinned[library])
        for library in ("transformers", "timm", "torchvision", "torch")
    }
    named = {version for ones in TABLE.techniques.values() for one in ones for version in one.not_there}
    assert named <= {version for versions in TABLE.versions.values() for version in versions}
