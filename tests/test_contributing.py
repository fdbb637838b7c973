"""CONTRIBUTING.md is run in a copy of the repository: its commands work, and print what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import console
from tools.cli import main
from tools.site import build

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def test_the_runner_tells_right_from_wrong(tmp_path: Path) -> None:
    text = "# x\n\n```console\n$ echo a; echo b >&2\na\nb\n$ printf '1 2\\n3\\n4\\n'\n1 ...\n...\n$ true\n```\n"
    text += "\n```sh\nfalse\n```\n"
    assert [(c.line, c.command) for c in console.commands(text)] == [
        (4, "echo a; echo b >&2"), (7, "printf '1 2\\n3\\n4\\n'"), (10, "true"),
    ]  # fmt: skip
    assert console.run(text, tmp_path, os.environ) == []
    assert console.run("```console\n$ echo \\\n  a  b\na b\n```\n", tmp_path, os.environ) == []
    for bad in (
        "$ echo a\nb",
        "$ echo a",
        "$ true\na",
        "$ printf 'a\\nb\\n'\na",
        "$ printf 'a\\nb\\n'\n...\na",
        "$ false",
    ):
        (message,) = console.run(f"```console\n{bad}\n```\n", tmp_path, os.environ)
        assert message.startswith("line 2: ")
    with pytest.raises(ValueError, match="line 2"):
        console.commands("```console\nechoed\n```\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this working tree, committed."""
    folder = tmp_path_factory.mktemp("contributing") / "atlas"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not in a git repository")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for arguments in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "x"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def environment(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who has activated the virtual environment of the clone."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "redundancy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tools.cli "$@"\n')
    (folder / "redundancy").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTEST_", "ATLAS_"))}
    return kept | {"PATH": f"{folder}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(clone), "NO_COLOR": "1"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_through_works_and_passes_every_check(clone: Path, environment: dict[str, str]) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(console.commands(text)) >= 8
    assert console.run(text, clone, environment) == []

    def passes(*command: str) -> None:
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
    written = [line[3:] for line in status.splitlines() if line.endswith(".py")]
    assert len(written) == 4
    passes("ruff", "format", "--check", *written)
    passes("ruff", "check", *written)
    passes("lint-imports")
    for arguments in (["check"], ["fmt", "--check"]):  # in this process: the code is the same, the atlas is the clone
        result = CliRunner().invoke(main, ["--root", str(clone), *arguments])
        assert result.exit_code == 0, result.output
    pages, *_ = build.collect(clone, run=False)
    assert "techniques/memo-functions.md" in {page.path for page in pages}
    tests = ["tests/test_experiments.py", "tests/test_notebooks.py"]
    passes(sys.executable, "-m", "pytest", "-q", *tests, "-k", "memo-functions or every_technique")
