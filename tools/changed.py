"""What changed, according to git, and which tests that concerns."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools.knowledge.completeness import NOTEBOOKS, TESTS
from tools.knowledge.load import ENTRIES
from tools.knowledge.source import EXPERIMENTS, module_name

_OF_ONE_ENTRY = re.compile(
    r"reference_impls/(?:techniques|experiments)/(?P<module>[a-z0-9_]+?)(?:\.py|/.*)"
    r"|reference_impls/results/(?P<id>[a-z0-9-]+)/[^/]+\.json"
    r"|notebooks/(?P<notebook>[a-z0-9_]+)\.py"
    r"|tests/techniques/test_(?P<test>[a-z0-9_]+)\.py"
)
_KNOWLEDGE = re.compile(r"(?:taxonomy|papers)/.*\.yml")
_PROSE = re.compile(r"[^/]*\.(?:md|cff)|LICENSE.*|\.github/.*|\.gitignore|tools/site/docs/.*\.md")
KNOWLEDGE_TESTS = ("tests/test_knowledge.py", "tests/test_layout.py", "tests/test_cli.py", "tests/test_site.py")
ENTRY_TESTS = ("tests/test_contract.py", "tests/test_experiments.py", "tests/test_notebooks.py", "tests/techniques")


class NoRepository(Exception):
    """Git cannot say what changed; the message says why."""


def changed_files(root: Path, base: str | None = None) -> set[str]:
    """The files below `root` that differ from the last commit, or from where this branch left `base`.

    Files that git does not track yet count, ignored ones do not; deleted files count. Raises NoRepository where there
    is no git, no repository or no such commit.
    """
    if _git(root, "rev-parse", "--is-inside-work-tree", fail=False).strip() != "true":
        raise NoRepository(f"{root} is in no git repository")
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{base or 'HEAD'}^{{commit}}", fail=False).strip()
    if not commit:
        raise NoRepository(f"git knows no commit {base!r}" if base else "nothing has been committed yet")
    if base:
        commit = _git(root, "merge-base", commit, "HEAD", fail=False).strip() or commit
    names = _git(root, "diff", "--name-only", "--no-renames", "--relative", "-z", commit, "--")
    names += _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return {name for name in names.split("\0") if name}


def _git(root: Path, *arguments: str, fail: bool = True) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_PREFIX")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        raise NoRepository(f"git cannot be started: {error.strerror}") from error
    if done.returncode and fail:
        raise NoRepository(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else ""


def tests_for(root: Path, files: Iterable[str]) -> list[str]:
    """The arguments for pytest that test what these files can have changed; empty if nothing is to be tested.

    Files of single entries select the tests of these entries and of those that import them, files of the knowledge
    those of the knowledge and the site, prose none; anything else may reach everything, so all tests run (`["tests"]`).
    """
    touched: set[str] = set()
    knowledge = False
    changed = set(files)
    for file in changed:
        if match := _OF_ONE_ENTRY.fullmatch(file):
            (name,) = filter(None, match.groups())
            entry_id = name.replace("_", "-")
            if not (root / ENTRIES / f"{entry_id}.yml").is_file():
                return ["tests"]
            touched.add(entry_id)
            knowledge = True
        elif _KNOWLEDGE.fullmatch(file):
            knowledge = True
        elif not _PROSE.fullmatch(file):
            return ["tests"]
    if not knowledge:
        return []
    if not touched:
        return [*KNOWLEDGE_TESTS]
    ids = sorted(touched | _importers(root, {root / file for file in changed}))
    names = [name for id_ in ids for name in dict.fromkeys((id_, id_.replace("-", "_")))]
    names += [Path(file).stem for file in KNOWLEDGE_TESTS]
    return [*KNOWLEDGE_TESTS, *ENTRY_TESTS, "-k", " or ".join(names)]


def _importers(root: Path, changed: set[Path]) -> set[str]:
    """Ids of the entries whose experiments, test or notebook reach one of these files through imports."""
    from tools.site.notebooks import reached

    found = set()
    for entry in (root / ENTRIES).glob("*.yml"):
        name = module_name(entry.stem)
        starts = (root / EXPERIMENTS / f"{name}.py", root / NOTEBOOKS / f"{name}.py", root / TESTS / f"test_{name}.py")
        if any(start.is_file() and changed & reached(root, start) for start in starts):
            found.add(entry.stem)
    return found
