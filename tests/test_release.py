"""A release is prepared whole or not at all, and the published versions are those that there are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import publish, release
from tools.release import ReleaseError, prepared

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
TEXTS = {
    "pyproject.toml": '[project]\nname = "x"\nversion = "0.1.0"\n[tool.mypy]\npython_version = "3.11"\n',
    "CITATION.cff": 'cff-version: 1.2.0\nversion: 0.1.0\ndate-released: "2026-01-01"\n',
    "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n- A change.\n\n## 0.1.0 (2026-01-01)\n\n- The first.\n",
}


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the three files as they are here."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def test_version_date_and_changes_agree() -> None:
    made = prepared(TEXTS, "0.2.0", "2026-12-01")
    assert 'version = "0.2.0"' in made["pyproject.toml"]
    assert 'python_version = "3.11"' in made["pyproject.toml"]
    assert yaml.safe_load(made["CITATION.cff"]) == {
        "cff-version": "1.2.0", "version": "0.2.0", "date-released": "2026-12-01",
    }  # fmt: skip
    assert "## Unreleased\n\n## 0.2.0 (2026-12-01)\n\n- A change.\n\n## 0.1.0" in made["CHANGELOG.md"]


@pytest.mark.parametrize(
    ("version", "changed", "said"),
    [
        ("next", {}, "no version"),
        ("0.1.0", {}, "must be above it"),
        ("0.0.9", {}, "must be above it"),
        ("0.1.0rc1", {}, "must be above it"),
        ("0.2.0", {"CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 0.1.0\n"}, "names no change"),
    ],
)
def test_what_is_no_release_is_refused(version: str, changed: dict[str, str], said: str) -> None:
    with pytest.raises(ReleaseError, match=said):
        prepared(TEXTS | changed, version, "2026-12-01")


def test_a_release_is_one_commit_and_one_tag(clone: Path) -> None:
    assert release.release(clone, "9.9.9") == "v9.9.9"
    assert git(clone, "tag", "--list").split() == ["v9.9.9"]
    assert git(clone, "status", "--porcelain") == ""
    assert sorted(git(clone, "show", "--name-only", "--format=", "v9.9.9^{commit}").split()) == sorted(FILES)
    with pytest.raises(ReleaseError, match=r"9\.9\.9 already"):
        release.release(clone, "9.9.9")
    (clone / "CHANGELOG.md").write_text("changed")
    with pytest.raises(ReleaseError, match="not committed"):
        release.release(clone, "9.9.10")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [([], None), (["v0.9.0", "v0.10.0", "v0.10.1rc1", "other"], "v0.10.0"), (["v1.0.0", "v0.99.9"], "v1.0.0")],
)
def test_the_latest_release_is_published_beside_main(tags: list[str], expected: str | None) -> None:
    tag = publish.latest(tags)
    assert tag == expected
    assert [one["version"] for one in publish.versions(tag)] == [*([expected[1:]] if expected else []), "main"]


def test_the_workflows_are_workflows() -> None:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    command = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, files)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for file in files:
        found: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(found["permissions"] or {}) <= {"contents"}, "rights are given to single jobs"


def test_the_workflows_give_nothing_away() -> None:
    zizmor = Path(sys.executable).parent / "zizmor"
    command = [str(zizmor), "--offline", "--no-progress", "--config", ".github/zizmor.yml", ".github/workflows"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
