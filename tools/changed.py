"""What changed, according to git, and which tests that concerns."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .imports import Imports
from .knowledge.paths import ENTRIES, EXPERIMENTS, NOTEBOOKS, RESULTS, TECHNIQUES, TESTS, module_name

_RESULT = re.compile(r"reference_impls/results/([a-z0-9-]+)/.*")
_CODE = re.compile(r"reference_impls/.*|notebooks/[^/]*\.py|tests/(?:.*/)?(?!conftest\b)[^/]*\.py")
_KNOWLEDGE = re.compile(r"(?:taxonomy|papers)/.*\.yml")
_PROSE = re.compile(r"[^/]*\.(?:md|cff)|LICENSE.*|\.github/.*|\.gitignore|tools/site/docs/.*\.md")
KNOWLEDGE_TESTS = ("tests/test_knowledge.py", "tests/test_layout.py", "tests/test_cli.py", "tests/test_site.py")
ENTRY_TESTS = (
    "tests/test_contract.py", "tests/test_experiments.py", "tests/test_matrix.py", "tests/test_notebooks.py", TESTS,
)  # fmt: skip
SHARED_TESTS = ("tests/test_scaffold.py", "tests/test_contributing.py")
"""Run what new techniques are made of, which stands in templates and not in imports."""


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

    Code of `reference_impls`, notebooks and tests select the tests that reach them through imports, those of each
    technique included; results those of their technique; files of the knowledge those of the knowledge and the site;
    prose none. Anything else may reach everything, so all tests run (`["tests"]`).
    """
    code: set[Path] = set()
    touched: set[str] = set()
    knowledge = False
    for file in set(files):
        if (match := _RESULT.fullmatch(file)) and (root / ENTRIES / f"{match[1]}.yml").is_file():
            touched.add(match[1])
        elif _CODE.fullmatch(file):
            code |= _modules(root / file)
        elif _KNOWLEDGE.fullmatch(file):
            knowledge = True
        elif not _PROSE.fullmatch(file):
            return ["tests"]
    imports = Imports(root, code)
    starts = {entry.stem: _starts(root, entry.stem) for entry in (root / ENTRIES).glob("*.yml")}
    concerned = {id_ for id_, own in starts.items() if code & imports.reached(*own)}
    own = {path for paths in starts.values() for path in paths}
    tests = [p for p in (root / "tests").rglob("test_*.py") if p not in own and code & imports.reached(p)]
    shared = code - own
    if shared - imports.reached(*own, *tests):
        return ["tests"]
    touched |= concerned
    whole = {str(path.relative_to(root)) for path in tests}
    whole |= set(KNOWLEDGE_TESTS) if knowledge or touched else set()
    whole |= set(SHARED_TESTS) if any(path.is_relative_to(root / "reference_impls") for path in shared) else set()
    if not touched:
        return sorted(whole)
    names = [name for id_ in sorted(touched) for name in dict.fromkeys((id_, module_name(id_)))]
    expression = " or ".join([*names, *(Path(file).stem for file in sorted(whole))])
    return [*sorted(whole | set(ENTRY_TESTS)), "-k", expression]


def entries_of(root: Path, files: Iterable[str]) -> list[str]:
    """Ids of the entries whose own files are among these, sorted."""
    found = set()
    for entry_id in (path.stem for path in (root / ENTRIES).glob("*.yml")):
        own = {f"{ENTRIES}/{entry_id}.yml", *(path.relative_to(root).as_posix() for path in _starts(root, entry_id))}
        results = f"{RESULTS}/{entry_id}/"
        if any(file in own or file.startswith(results) for file in files):
            found.add(entry_id)
    return sorted(found)


def _modules(file: Path) -> set[Path]:
    """The file itself; for one that is no Python, the modules beside it, which may read it."""
    return (
        {file}
        if file.suffix == ".py"
        else {path for path in file.parent.glob("*.py") if path.stem != "__init__"} or {file}
    )


def _starts(root: Path, entry_id: str) -> list[Path]:
    """The files of an entry."""
    name = module_name(entry_id)
    technique = root / TECHNIQUES / name
    own = [root / TECHNIQUES / f"{name}.py", *technique.rglob("*.py"), root / EXPERIMENTS / f"{name}.py"]
    return [*own, root / NOTEBOOKS / f"{name}.py", root / TESTS / f"test_{name}.py"]
