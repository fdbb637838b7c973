"""Other people's libraries of models, in tests: those of the environment, and older versions of transformers beside it.

    timm(), torchvision(), transformers(), accelerate()    the library; skips the test where it is not installed
    timm_network("resnet18", num_classes=5)                a network of timm with random weights, in evaluation mode
    transformers_class("ViTModel")                         skips the test where this version does not know the family
    older_transformers()                                   versions with a lock file of their own, oldest first
    pytest_with("4.48.0", "tests/test_families.py")        runs tests with that version instead of the installed one

`make setup` installs the libraries, and `python -m tests.other_models` fetches the older versions; the first test that
needs one does so too. Where ATLAS_REQUIRE_MODELS=1, what is missing is a failure.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from torch import nn

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / "transformers"
LOCK = "requirements-transformers-{}.lock"


def accelerate() -> Any:
    return _library("accelerate")


def timm() -> Any:
    return _library("timm")


def torchvision() -> Any:
    return _library("torchvision")


def transformers() -> Any:
    return _library("transformers")


def transformers_class(name: str) -> Any:
    """A class of transformers; skips the test where the version at hand does not have it: "not there"."""
    library = transformers()
    if not hasattr(library, name):
        pytest.skip(f"{name} is not there in transformers {library.__version__}")
    return getattr(library, name)


def timm_network(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights, in evaluation mode."""
    network: nn.Module = timm().create_model(name, **options).eval()
    return network


def missing(reason: str) -> Any:
    """Skips the test; fails it where the tests are run with ATLAS_REQUIRE_MODELS=1."""
    if os.environ.get("ATLAS_REQUIRE_MODELS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return missing(f"{name} cannot be imported ({error}): run `make setup`")


# --------------------------------------------------------------------------------------------------------------------
# Older versions of transformers


def older_transformers() -> list[str]:
    """Versions with a lock file of their own, oldest first."""
    versions = [match[1] for p in ROOT.glob("requirements-*.lock") if (match := re.fullmatch(r".*-([\d.]+)", p.stem))]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def packages(version: str) -> Path:
    """The folder with that version of transformers and what belongs to it, installed there at the first call.

    Raises: CalledProcessError where pip cannot install them, such as without a network.
    """
    lock = ROOT / LOCK.format(version)
    folder = FOLDER / f"{version}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:8]}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            new = Path(tempfile.mkdtemp(dir=FOLDER, prefix="new-"))
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            try:
                subprocess.run([*pip, "--target", new, "-r", lock], check=True, capture_output=True, text=True)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return folder


def pytest_with(version: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a process in which that version of transformers comes first on the path."""
    try:
        folder = packages(version)
    except subprocess.CalledProcessError as error:
        missing(f"transformers {version} cannot be installed: {error.stderr.strip()[-300:]}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = [str(folder), *filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", *arguments],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def main(versions: Sequence[str]) -> None:
    for version in versions or older_transformers():
        print(f"transformers {version}: {packages(version).relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
