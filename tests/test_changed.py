"""What changed according to git, what is then reported, and which tests run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, EXPERIMENTS, MODULE, NOTEBOOK, PAPER, RESULT, TEST
from tools import changed
from tools.cli import main
from tools.knowledge import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_surrounding_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    root = base.write(tmp_path / "repository" / "atlas")
    base.put(root, ".gitignore", "*.log\n")
    git(root.parent, "init", "--quiet", "--initial-branch", "main")
    git(root.parent, "config", "user.email", "a@b.c")
    git(root.parent, "config", "user.name", "A")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "x")


def redundancy(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--root", str(root), *arguments])


def test_changed_new_and_deleted_files_count_and_ignored_ones_do_not(atlas: Path) -> None:
    assert changed.changed_files(atlas) == set()
    base.replace(atlas, ENTRY, "name: Token merging", "name: Token  merging")
    base.put(atlas, "papers/é-2020-x.yml", "new")
    base.put(atlas, "papers/x.log", "ignored")
    base.put(atlas.parent, "outside.txt", "outside")
    (atlas / TEST).unlink()
    git(atlas, "mv", NOTEBOOK, "notebooks/moved.py")
    assert changed.changed_files(atlas) == {ENTRY, "papers/é-2020-x.yml", TEST, NOTEBOOK, "notebooks/moved.py"}
    git(atlas, "add", "--all")
    assert ENTRY in changed.changed_files(atlas)


def test_changes_of_a_branch_are_counted_from_where_it_left(atlas: Path) -> None:
    git(atlas, "switch", "--quiet", "--create", "mine")
    base.replace(atlas, ENTRY, "dropping none", "losing none")
    commit(atlas)
    git(atlas, "switch", "--quiet", "main")
    base.replace(atlas, PAPER, "venue: ICLR 2023", "venue: ICLR")
    commit(atlas)
    git(atlas, "switch", "--quiet", "mine")
    base.put(atlas, "papers/new.yml", "new")
    assert changed.changed_files(atlas) == {"papers/new.yml"}
    assert changed.changed_files(atlas, "main") == {ENTRY, "papers/new.yml"}


def test_where_git_cannot_help_the_error_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = base.write(tmp_path / "atlas")
    result = redundancy(root, "check", "--changed")
    assert result.exit_code == 2
    assert "is in no git repository" in result.stderr
    git(root, "init", "--quiet")
    assert "nothing has been committed yet" in redundancy(root, "check", "--changed").stderr
    assert "git knows no commit 'nowhere'" in redundancy(root, "check", "--changed", "--base", "nowhere").stderr
    assert "--base goes with --changed" in redundancy(root, "check", "--base", "HEAD").stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git cannot be started" in redundancy(root, "check", "--changed").stderr


def test_only_findings_in_changed_files_are_reported_and_the_others_counted(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "irrelevance]", "irelevance]")
    commit(atlas)
    base.replace(atlas, DRAFT, "exploitation: drop", "exploitation: dorp")
    result = redundancy(atlas, "check", "--changed", "--format", "json")
    assert result.exit_code == 1
    assert [f["file"] for f in json.loads(result.stdout)] == [DRAFT]
    assert "findings in files that did not change: 1" in result.stderr
    assert "1 finding in 1 changed file\n" in result.stderr
    only = redundancy(atlas, "check", "--changed", str(atlas / "papers"))
    assert (only.exit_code, only.stdout) == (0, "")
    git(atlas, "checkout", "--quiet", DRAFT)
    assert redundancy(atlas, "check", "--changed").exit_code == 0


# --- which tests


def selected(root: Path, *files: str) -> list[str]:
    return changed.tests_for(root, files)


@pytest.mark.parametrize(
    "file",
    [
        "reference_impls/contract/gone.py",
        "tools/cli/run.py",
        "tests/conftest.py",
        "pyproject.toml",
        "mkdocs.yml",
        "Makefile",
        "something/new.txt",
    ],
)
def test_what_may_reach_everything_selects_every_test(file: str) -> None:
    assert selected(ROOT, file, "papers/x.yml") == ["tests"]


def test_prose_selects_no_test() -> None:
    assert (
        selected(ROOT, "README.md", "CONTRIBUTING.md", ".github/workflows/check.yml", "tools/site/docs/about.md") == []
    )
    assert selected(ROOT) == []


def test_knowledge_selects_the_tests_of_the_knowledge() -> None:
    assert selected(ROOT, "papers/x.yml", "README.md") == sorted(changed.KNOWLEDGE_TESTS)
    named = (*changed.KNOWLEDGE_TESTS, *changed.ENTRY_TESTS, *changed.SHARED_TESTS)
    assert all((ROOT / file).exists() for file in named)


@pytest.mark.parametrize("file", [MODULE, EXPERIMENTS, NOTEBOOK, TEST, RESULT])
def test_files_of_an_entry_select_its_tests(file: str) -> None:
    *paths, k, expression = selected(ROOT, file)
    importing = {"tests/test_families.py"} if file == MODULE else set()
    assert {*changed.KNOWLEDGE_TESTS, *changed.ENTRY_TESTS, *importing} <= set(paths)
    assert paths == sorted(paths)
    assert k == "-k"
    assert {"token-merging", "token_merging", "test_knowledge"} <= set(expression.split(" or "))
    assert "delta_convolution" not in expression


def test_a_test_selects_itself_and_a_shared_helper_what_imports_it() -> None:
    assert selected(ROOT, "tests/test_mutations.py") == ["tests/test_mutations.py"]
    assert "tests/test_models.py" in selected(ROOT, "tests/support.py")
    assert "tests/test_mutations.py" not in selected(ROOT, "tests/support.py")


def test_files_without_an_entry_select_every_test(atlas: Path) -> None:
    assert selected(atlas, "reference_impls/techniques/unknown.py") == ["tests"]


def test_entries_that_import_a_technique_are_tested_with_it(atlas: Path) -> None:
    base.put(atlas, "tests/techniques/test_token_dropping.py", "from reference_impls.techniques import token_merging\n")
    assert "token-dropping" in selected(atlas, MODULE)[-1].split(" or ")
    assert "token-dropping" not in selected(atlas, TEST)[-1].split(" or ")
    base.put(atlas, "tests/techniques/test_token_dropping.py", "from test_token_merging import CASES\n")
    assert "token-dropping" in selected(atlas, TEST)[-1].split(" or ")
    base.put(atlas, "tests/techniques/test_token_dropping.py", "from reference_impls.techniques import token_merging\n")
    (atlas / MODULE).unlink()
    assert "token-dropping" in selected(atlas, MODULE)[-1].split(" or "), "a deleted file counts where it is imported"


def test_a_shared_room_selects_the_techniques_that_reach_it(atlas: Path) -> None:
    base.put(atlas, "reference_impls/layers/__init__.py", "")
    base.put(atlas, "reference_impls/layers/conv.py", "from .norm import X\n")
    base.put(atlas, "reference_impls/layers/norm.py", "X = 1\n")
    base.put(atlas, "reference_impls/layers/other.py", "")
    base.put(atlas, "reference_impls/layers/table.yml", "")
    base.put(atlas, "tests/test_norm.py", "def test(): from reference_impls.layers import norm\n")
    base.put(atlas, "tests/test_other.py", "import reference_impls.layers.other\n")
    base.put(atlas, MODULE, "from reference_impls.layers.conv import X\n")
    *files, _, expression = selected(atlas, "reference_impls/layers/norm.py")
    assert {"token-merging", "test_norm", "test_contributing"} <= set(expression.split(" or "))
    assert "token-dropping" not in expression
    assert "tests/test_norm.py" in files
    assert "tests/test_other.py" not in files
    assert "token-merging" not in " ".join(selected(atlas, "reference_impls/layers/other.py"))
    assert "token-merging" in selected(atlas, "reference_impls/layers/table.yml")[-1], (
        "any module beside it may read it"
    )


def test_the_selection_can_be_run(atlas: Path) -> None:
    assert "no test is concerned" in redundancy(atlas, "affected", "--run").stderr
    base.put(atlas, "pyproject.toml", "")
    base.put(atlas, "tests/test_one.py", "def test_one():\n    assert False\n")
    assert redundancy(atlas, "affected", "--run").exit_code == 1
    base.put(atlas, "tests/test_one.py", "def test_one():\n    assert True\n")
    assert redundancy(atlas, "affected", "--run").exit_code == 0


def test_what_entries_that_changed_lack_is_told_beside_the_selection(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "status: stable", "status: draft")
    told = redundancy(atlas, "affected").stderr
    assert told == "token-merging lacks 1 thing to be stable: `status: stable` (`redundancy gaps token-merging`)\n"
    commit(atlas)
    base.put(atlas, RESULT.replace("photos", "others"), "{")
    assert "token-merging lacks" in redundancy(atlas, "affected").stderr
    base.put(atlas, MODULE, "def match(:\n")
    broken = redundancy(atlas, "affected")
    assert broken.exit_code == 1
    assert f"{MODULE}:1:11: not Python" in broken.stderr


def test_the_selection_is_understood_by_pytest(atlas: Path) -> None:
    base.put(atlas, MODULE, (atlas / MODULE).read_text() + "# changed\n")
    arguments = redundancy(atlas, "affected").stdout.splitlines()
    assert arguments[-2] == "-k"
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    chosen = collected.stdout
    assert "test_contract[token-merging-settings-cpu]" in chosen
    assert "tests/techniques/test_token_merging.py" in chosen
    assert "test_knowledge.py" in chosen
    assert "test_contract[delta-convolution" not in chosen
    assert load(ROOT, check=False).entries["token-merging"]
