"""The atlas as it is installed: from the wheel, editable, and as a clone that is used without installation.

Each way has an environment of its own, into which the declared dependencies are linked from the running environment and
nothing else, so that no network is needed. Clone and environments lie in folders with a space in their name.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reference_impls.extras import DISTRIBUTION, EXTRAS

ROOT = Path(__file__).parents[1]
BUILD = "from hatchling.build import build_editable as e, build_wheel as w; w('wheel'); e('editable')"
FOREIGN = ("tools", "tests", "notebooks", "taxonomy", "papers")
"""Names of folders of the clone that somebody else's packages may have."""
pytestmark = [
    pytest.mark.xdist_group("install"),
    pytest.mark.skipif(sys.platform == "win32", reason="links packages of the running environment"),
]


class Environment:
    """A virtual environment without pip."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.packages = next((folder / "lib").glob("python*/site-packages"))

    def link(self, distributions: Iterable[str]) -> None:
        """Have these distributions of the running environment."""
        for name in distributions:
            found = metadata.distribution(name)
            for first in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / first).exists():
                    (self.packages / first).symlink_to(Path(str(found.locate_file(first))).resolve())

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "install", *options, str(wheel)], check=True, capture_output=True, text=True)

    def run(self, program: str, *arguments: str, folder: Path, path: str = "", code: int = 0) -> str:
        """The output of one of its programs, run in `folder` with `path` as PYTHONPATH; `code` is the exit code."""
        return run([str(self.bin / program), *arguments], folder, path, code)


def run(command: list[str], folder: Path, path: str = "", code: int = 0) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "ATLAS_ROOT"))}
    environment = kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [Requirement(text) for text in found]


def needed(own: list[Requirement], extras: Iterable[str] = ()) -> set[str]:
    """Names of everything that the atlas with these extras needs, what its dependencies need included."""
    found: set[tuple[str, str]] = set()
    todo = [(DISTRIBUTION, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        there = own if name == DISTRIBUTION else map(Requirement, metadata.distribution(name).requires or ())
        for one in there:
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]
    return {name for name, _ in found} - {DISTRIBUTION}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone holds, with a wheel in `wheel/` and an editable one in `editable/`."""
    try:
        import hatchling  # noqa: F401
    except ImportError as error:
        if os.environ.get("ATLAS_REQUIRE_WHEEL") == "1":
            raise
        pytest.skip(f"no wheel can be built ({error}): run `make setup`")
    folder = tmp_path_factory.mktemp("install") / "a clone"
    folder.mkdir()
    for name in ("LICENSE", "LICENSE-DATA", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("reference_impls", "tools", "taxonomy", "papers", "notebooks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb", "docs"))
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    return next((clone / "wheel").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(clone: Path, wheel: Path) -> Environment:
    """The wheel with its core dependencies."""
    environment = Environment(clone.with_name("an environment"))
    environment.link(needed(requirements(wheel)))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def editable(clone: Path, wheel: Path) -> Environment:
    """The clone installed for editing."""
    environment = Environment(clone.with_name("an editable environment"))
    environment.link(needed(requirements(wheel)))
    environment.install(next((clone / "editable").glob("*.whl")))
    return environment


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of somebody who has packages of the same names as the clone's folders."""
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of somebody else')")
    return tmp_path


def test_the_core_works_in_an_empty_folder(installed: Environment, tmp_path: Path) -> None:
    assert re.fullmatch(
        r"redundancy, version \d+\.\d+\.\d+\n", installed.run("redundancy", "--version", folder=tmp_path)
    )
    listed = installed.run("redundancy", "list", folder=tmp_path)
    assert len(listed.splitlines()) > 100
    assert re.search(r"^token-merging +stable .* real$", listed, re.MULTILINE)
    shown = installed.run("redundancy", "show", "token-merging", folder=tmp_path)
    assert "r=" in shown or "speed-up (paired rounds)" in shown
    assert "What it lacks" not in shown
    assert "@inproceedings{bolya-2023-token" in installed.run(
        "redundancy", "export", "bibtex", "token-merging", folder=tmp_path
    )
    assert "minilm" in installed.run("redundancy", "assets", "list", folder=tmp_path)
    assert "works on a clone" in installed.run("redundancy", "check", folder=tmp_path, code=2)
    assert "usage: python -m reference_impls" in installed.run(
        "python", "-m", "reference_impls", "--help", folder=tmp_path
    )
    assert not list(tmp_path.iterdir())


def test_what_an_extra_brings_is_named_and_works_once_it_is_installed(
    installed: Environment, clone: Path, wheel: Path, theirs: Path
) -> None:
    path = str(theirs)
    checked = installed.run("redundancy", "check", folder=clone, path=path, code=2)
    assert 'pip install "redundancy-atlas[site]"' in checked
    built = installed.run("redundancy", "site", "build", folder=clone, path=path, code=2)
    assert 'pip install "redundancy-atlas[site]"' in built
    refused = installed.run("redundancy", "run", "token-merging", folder=theirs, path=path, code=2)
    assert 'pip install "redundancy-atlas[data]"' in refused
    installed.link(needed(requirements(wheel), ["data"]))
    assert "baseline" in installed.run("redundancy", "run", "dimension-consistent-design", folder=theirs, path=path)


@pytest.mark.parametrize("way", ["installed", "editable"])
def test_the_command_meets_no_package_of_somebody_else(way: str, request: pytest.FixtureRequest, theirs: Path) -> None:
    environment: Environment = request.getfixturevalue(way)
    assert "unknown term" in environment.run("redundancy", "explain", "E207", folder=theirs, path=str(theirs))
    offered = "import importlib.util as u; print(*[n for n in {!r} if u.find_spec(n)])"
    names = (*FOREIGN, "redundancy_atlas", "reference_impls")
    empty = theirs / "empty"
    empty.mkdir()
    found = environment.run("python", "-c", offered.format(names), folder=empty)
    assert found.split() == ["redundancy_atlas", "reference_impls"]


@pytest.mark.parametrize("way", ["installed", "editable", "clone"])
def test_the_example_of_the_readme_runs(way: str, clone: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    if way == "clone":  # used where it lies, by the interpreter of the tests
        run([sys.executable, "-c", example], clone)
    else:
        environment: Environment = request.getfixturevalue(way)
        environment.run("python", "-c", example, folder=tmp_path)


@pytest.mark.parametrize("extra", ["data", "dedup", "notebooks", "site"])
def test_every_requirement_of_an_extra_is_named_with_it(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {module for module, its in EXTRAS.items() if its == extra}
    for text in project["optional-dependencies"][extra]:
        name = canonicalize_name(Requirement(text).name)
        if name not in (DISTRIBUTION, "mkdocs-material"):  # a theme is not imported
            offered = {file.parts[0].removesuffix(".py") for file in metadata.distribution(name).files or ()}
            assert len(offered & modules) == 1, name
            modules -= offered
    assert not modules


def test_the_core_is_what_techniques_need(wheel: Path) -> None:
    core = {canonicalize_name(one.name) for one in requirements(wheel) if one.marker is None}
    small = {"click", "filelock", "platformdirs", "psutil", "rich", "safetensors"}
    assert core == {"torch", "numpy", "pydantic", "pyyaml"} | small


def lines() -> Iterator[str]:
    for path in sorted((ROOT / "tools").rglob("*.py")):
        if path.name != "hook.py":
            yield from (f"{path.name}: {line}" for line in path.read_text(encoding="utf-8").splitlines())


def test_the_tools_import_one_another_relatively() -> None:
    """Since they are `tools` in a clone and `redundancy_atlas` where they are installed."""
    assert not [line for line in lines() if re.search(r"\.py: *(?:from|import) tools\b", line)]
