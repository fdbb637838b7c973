"""What reference_impls/hosts/families.yml says of other people's models is true of the versions at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impls.contract import NoEffectWarning, UnsupportedHost
from reference_impls.hosts.bert import staged_bert
from reference_impls.techniques.confidence_early_exit import ConfidenceEarlyExit
from reference_impls.techniques.token_merging import TokenMerging
from tests import other_models
from tests.families import ENCODERS, VISION, Case, equal_tokens, randomised
from tests.support import assert_close
from tools.site.hosts import Family, families

ROOT = Path(__file__).parents[1]
TABLE = families(ROOT)
BUILT: Mapping[str, Mapping[str, Any]] = {"token-merging": VISION, "confidence-early-exit": ENCODERS}
EXACT = 1e-5
ROTARY = {"DINOv3", "timm EVA-02", "timm DINOv3"}
"""Their attention turns keys by position, so that tokens which are the same still differ."""

TOME = TokenMerging()


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
    staged = randomised(staged_bert(case.model, classes=3))
    expected = run(case)  # of the weights that the encoder shares with its stages
    state = case.inputs
    with torch.no_grad():
        for stage in staged.stages:
            state = stage(state)
        logits = staged(case.inputs)
    real = case.inputs["real"]
    assert_close(state["x"][real], expected[real], EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        late = ConfidenceEarlyExit().apply(staged, rule="confidence", threshold=1.0)
    with late, torch.no_grad():
        assert_close(late.target(case.inputs), logits, EXACT)
    with ConfidenceEarlyExit().apply(staged, rule="confidence", threshold=0.333) as early, torch.no_grad():
        assert_close(
            early.target(case.inputs), staged.exits(case.inputs)[0], EXACT
        )  # a third is the least of 3 classes
    assert torch.equal(run(case), expected)


# --- refusals


def attempts(technique: str, case: Case) -> list[Callable[[], object]]:
    """Ways to ask a technique for what it refuses."""
    if technique == "token-merging":
        return [lambda: TOME.apply(case.model, r=2), lambda: TOME.measure(case.model, case.inputs)]
    return [lambda: staged_bert(case.model, classes=3)]


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


def test_delta_networks_have_one_line_each() -> None:
    """That every one of them is exact is held by their own tests."""
    networks = pytest.importorskip("tests.test_delta_networks").NETWORKS
    assert [(one.family, one.status) for one in TABLE.techniques["delta-convolution"]] == [
        (n, "exact") for n in networks
    ]


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
