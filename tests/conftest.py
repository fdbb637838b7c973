"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reference_impls.data import assets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset("name")` is the folder of an asset; without it the test is skipped (fails if ATLAS_REQUIRE_ASSETS=1)."""

    def folder(name: str) -> Path:
        try:
            return assets.path(name)
        except assets.MissingAsset as missing:
            if os.environ.get("ATLAS_REQUIRE_ASSETS") == "1":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))

    return folder
