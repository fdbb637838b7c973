"""The tests of other people's models pass with the oldest transformers that pyproject.toml allows, and one in between.

They carry the mark `transformers`, and run here once more in a process of their own for each version; the versions in
between only where ATLAS_REQUIRE_MODELS=1, as in continuous integration.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests import other_models
from tests.other_models import older_transformers, pytest_with

ROOT = Path(__file__).parents[1]
MARK = "pytest.mark.transformers"


def test_the_oldest_version_tried_is_the_oldest_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needed,) = project["optional-dependencies"]["hf"]
    assert re.fullmatch(r"transformers>=([\d.]+)", needed)[1] + ".0" == older_transformers()[0]


def test_what_is_missing_skips_a_test_or_fails_it_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("ATLAS_REQUIRE_MODELS", "0")
    with pytest.raises(pytest.skip.Exception, match="make setup"):
        other_models.timm()
    monkeypatch.setenv("ATLAS_REQUIRE_MODELS", "1")
    with pytest.raises(pytest.fail.Exception, match="make setup"):
        other_models.timm()


@pytest.mark.parametrize("version", older_transformers())
def test_with_an_older_transformers(version: str) -> None:
    if version != older_transformers()[0] and os.environ.get("ATLAS_REQUIRE_MODELS") != "1":
        pytest.skip("a version in between: set ATLAS_REQUIRE_MODELS=1 to try it")
    files = [p.as_posix() for p in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in p.read_text(encoding="utf-8")]
    assert len(files) > 1
    done = pytest_with(version, "-m", "transformers", *files)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, f"with transformers {version}: {failed}\n{done.stdout[-4000:]}{done.stderr[-1000:]}"
