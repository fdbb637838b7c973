"""What editors, hooks and GitHub read, held against independent validators: schemas, workflow, issue form, hooks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import knowledge_fixture as base
from tools.knowledge import editor
from tools.knowledge.codes import CODES
from tools.knowledge.layout import document
from tools.knowledge.paths import AXES, ENTRIES, HARD_CASES, OPEN_PROBLEMS, PAPERS, PRINCIPLES
from tools.knowledge.reader import read_yaml

ROOT = Path(__file__).parents[1]
ENTRY, PAPER = f"{ENTRIES}/token-merging.yml", f"{PAPERS}/bolya-2023-token.yml"
GOOD = {
    "axes": [AXES],
    "entry": [f"{ENTRIES}/*.yml"],
    "paper": [f"{PAPERS}/*.yml"],
    "record": ["reference_impls/results/*/*.json"],
    "statements": [PRINCIPLES, OPEN_PROBLEMS],
    "hard_cases": [HARD_CASES],
}


def tool(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def refused(kind: str, files: list[Path]) -> dict[str, list[str]]:
    """File -> what check-jsonschema says against it."""
    done = tool("check-jsonschema", "-o", "json", "--schemafile", ROOT / editor.FOLDER / f"{kind}.schema.json", *files)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["status"] == "ok" else 1), done.stderr
    assert not report.get("parse_errors"), report
    said: dict[str, list[str]] = {}
    for error in report["errors"]:
        said.setdefault(error["filename"], []).append(f"{error['path']}: {error['message']}")
    return said


def test_every_schema_has_good_files() -> None:
    assert set(GOOD) == set(editor.MODELS)


@pytest.mark.parametrize("kind", GOOD)
def test_an_independent_validator_accepts_every_file(kind: str) -> None:
    files = [path for pattern in GOOD[kind] for path in sorted(ROOT.glob(pattern))]
    assert len(files) >= len(GOOD[kind])
    assert refused(kind, files) == {}


BAD: list[tuple[str, str, dict[str, Any]]] = [
    # schema, what is wrong, the keys that make it so (dotted; None takes a key away)
    ("entry", "unknown key", {"sumary": "Merges."}),
    ("entry", "unknown axis", {"axes.relations": "irrelevance"}),
    ("entry", "unknown term", {"axes.relation": "spatial"}),
    ("entry", "unknown secondary term", {"axes.relation": ["spatial_similarity", "iirelevance"]}),
    ("entry", "two terms where one belongs", {"axes.stage": ["training", "inference"]}),
    ("entry", "a term twice", {"axes.relation": ["irrelevance", "irrelevance"]}),
    ("entry", "no term", {"axes.relation": []}),
    ("entry", "missing key", {"kind": None}),
    ("entry", "unknown status", {"status": "done"}),
    ("entry", "date of another form", {"added": "22/11/2026"}),
    ("entry", "number for a text", {"name": 12}),
    ("entry", "text for a list", {"aliases": "ToMe"}),
    ("entry", "too long a summary", {"summary": "x" * 161}),
    ("entry", "no paper", {"papers": []}),
    ("entry", "unknown role", {"papers": [{"key": "bolya-2023-token", "role": "invents"}]}),
    ("entry", "key of another form", {"papers": [{"key": "Bolya2023", "role": "introduces"}]}),
    ("entry", "id of another form", {"id": "Token_Merging"}),
    ("entry", "implementation elsewhere", {"implementation": "os:system"}),
    ("entry", "unknown key in a relation", {"relations": [{"type": "supersedes", "target": "a", "nte": "x"}]}),
    ("paper", "arXiv id as a number", {"ids": {"arxiv": 2210.09461}}),
    ("paper", "DOI with its address", {"ids": {"doi": "https://doi.org/10.1/x"}}),
    ("paper", "address with a script", {"ids": {"url": "javascript:alert(1)"}}),
    ("paper", "year as a text", {"year": "2023"}),
    ("paper", "year of another age", {"year": 1492}),
    ("paper", "unknown kind", {"kind": "article"}),
    ("paper", "unknown term", {"axes.exploitation": "merging"}),
    ("paper", "author without a family name", {"authors": [{"given": "Daniel"}]}),
    ("paper", "claim without a place",
     {"claims": [{"id": "c1", "technique": "a", "kind": "negative", "statement": "x"}]}),
    ("paper", "claim with another sort of id",
     {"claims": [{"id": "1", "technique": "a", "kind": "negative", "statement": "x", "locator": {"page": 1}}]}),
    ("paper", "quantity without a unit",
     {"claims": [{"id": "c1", "technique": "a", "kind": "memory", "statement": "x", "locator": {"page": 1},
                  "quantity": {"metric": "m", "value": 1}}]}),
    ("paper", "value as a text",
     {"claims": [{"id": "c1", "technique": "a", "kind": "memory", "statement": "x", "locator": {"page": 1},
                  "quantity": {"metric": "m", "value": "1", "unit": "MB"}}]}),
    ("axes", "unknown key", {"abut": "x"}),
    ("axes", "axis without terms", {"axes.scope.terms": {}}),
    ("axes", "unknown choice", {"axes.scope.choice": "several"}),
    ("statements", "statement without support",
     {"statements": [{"id": "a", "title": "A", "statement": "B", "support": []}]}),
    ("hard_cases", "case without a ruling", {"cases": [{"id": "a", "case": "b", "axis": "relation", "terms": ["c"]}]}),
]  # fmt: skip


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in BAD}))
def test_an_independent_validator_refuses_every_damage(kind: str, tmp_path: Path) -> None:
    sources = {"entry": ENTRY, "paper": PAPER, "axes": AXES, "statements": PRINCIPLES, "hard_cases": HARD_CASES}
    written = {}
    for n, (_, what, changes) in enumerate(case for case in BAD if case[0] == kind):
        data = read_yaml(ROOT / sources[kind], "x").data
        for key, value in changes.items():
            _put(data, key.split("."), value)
        written[str(tmp_path / f"{n}.yml")] = what
        (tmp_path / f"{n}.yml").write_text(document(data), encoding="utf-8")
    (tmp_path / "good.yml").write_text(document(read_yaml(ROOT / sources[kind], "x").data), encoding="utf-8")
    assert refused(kind, [tmp_path / "good.yml"]) == {}
    said = refused(kind, [Path(file) for file in written])
    assert [what for file, what in written.items() if file not in said] == []


def _put(data: Any, path: list[str], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    if value is None:
        del data[path[-1]]
    else:
        data[path[-1]] = value


def test_the_line_for_editors_leads_to_a_schema() -> None:
    for file in (ENTRY, PAPER, AXES):
        line = (ROOT / file).read_text(encoding="utf-8").partition("\n")[0]
        assert line == editor.modeline(file)
        assert (ROOT / file).parent.joinpath(line.partition("$schema=")[2]).resolve().is_file()


# --- GitHub and hooks


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", ".github/workflows/check.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/check.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/propose-technique.yml"),
    ],
)
def test_github_understands(schema: str, file: str) -> None:
    done = tool("check-jsonschema", "--builtin-schema", schema, file)
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_commands_that_exist_and_takes_no_text_of_strangers_into_a_shell() -> None:
    jobs = read_yaml(ROOT / ".github/workflows/check.yml", "check.yml").data["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert not any("${{" in run for run in runs)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", " ".join(runs)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for command in re.findall(r"redundancy (\w+)(?: (--\w+))?", " ".join(runs)):
        usage = tool("python", "-m", "tools.cli", command[0], "--help")
        assert usage.returncode == 0
        assert command[1] in usage.stdout


def test_the_hooks_pass_on_good_files_and_stop_bad_ones(tmp_path: Path) -> None:
    pytest.importorskip("pre_commit")
    root = base.write(tmp_path / "atlas")
    shutil.copy(ROOT / ".pre-commit-config.yaml", root)
    bin_folder = root / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "ruff").symlink_to(Path(sys.executable).with_name("ruff"))
    (bin_folder / "redundancy").write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tools.cli "$@"\n'
    )
    (bin_folder / "redundancy").chmod(0o755)
    base.put(root, ".gitignore", ".venv/\n")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    def hooks(*arguments: str) -> subprocess.CompletedProcess[str]:
        return tool("pre-commit", "run", *arguments, cwd=root)

    for name in (base.ENTRY, base.DRAFT, base.PAPER):
        subprocess.run([str(bin_folder / "redundancy"), "--root", str(root), "fmt", name], cwd=root, check=True)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "x")
    base.put(root, "good.py", "X = 1\n")
    done = hooks("--files", base.ENTRY, base.DRAFT, base.PAPER, "good.py")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Passed") == 4
    base.replace(root, base.DRAFT, "exploitation: drop", "exploitation:   dorp")
    base.put(root, "bad.py", "import os\nX =  1\n")
    git("add", "--all")
    done = hooks()
    assert done.returncode == 1
    assert done.stdout.count("Failed") == 4
    assert re.search(rf"{base.DRAFT}:\d+:19: E207", done.stdout)
    assert "run `redundancy fmt`" in done.stdout


# --- explanations


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_an_example_of_wrong_and_right(code: str) -> None:
    one = CODES[code]
    for text in (one.title, one.explanation, one.wrong, one.right):
        assert text.strip() == text != ""
    assert one.wrong != one.right
    assert not one.title.endswith(".")
    assert one.explanation.endswith((".", ":"))
    printed = tool("python", "-m", "tools.cli", "explain", code).stdout if code in ("E101", "E406") else one.text()
    assert "\n\nWrong:\n    " in printed
    assert "\n\nRight:\n    " in printed
