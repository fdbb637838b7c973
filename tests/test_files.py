"""Files are written whole or not at all, one writer at a time; folders for a time go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference_impls import whole
from tests import knowledge_fixture as base
from tests.interrupted import ROOT
from tools import files
from tools.knowledge import load

PAPER = "bolya-2023-token"


def left(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("fault", ["text", "disk", "place"])
def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results" / "record.json"
    files.write_atomically(file, "first")
    if fault != "text":

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(whole.os, "fsync" if fault == "disk" else "open", full)
    with pytest.raises((OSError, UnicodeEncodeError)):
        files.write_atomically(file, "second \ud800" if fault == "text" else "second")
    assert left(tmp_path) == {"results/record.json": "first"}


def test_mode_and_link_survive_a_write(tmp_path: Path) -> None:
    file, link = tmp_path / "a.yml", tmp_path / "b.yml"
    file.write_text("first")
    file.chmod(0o640)
    link.symlink_to(file)
    files.write_atomically(link, "second", tmp_path)
    assert link.is_symlink()
    assert file.read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["file", "folder", "circle", "pipe", "folder in the place"])
def test_nothing_is_written_through_a_link_that_leads_out_nor_over_what_is_no_file(tmp_path: Path, kind: str) -> None:
    root, outside = tmp_path / "checkout", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("theirs")
    file = root / "papers" / "file"
    if kind == "file":
        file.parent.mkdir()
        file.symlink_to(outside / "file")
    elif kind == "folder":
        (root / "papers").symlink_to(outside)
    else:
        file.parent.mkdir()
        {"circle": lambda: file.symlink_to(file), "pipe": lambda: os.mkfifo(file)}.get(kind, file.mkdir)()
    with pytest.raises(OSError):
        files.write_atomically(file, "ours", root)
    with pytest.raises(OSError), files.changing(root) as changes:
        changes.write({"papers/file": "ours"}, new={"papers/new": "ours"})
    assert left(outside) == {"file": "theirs"}
    assert not list(tmp_path.rglob("*.part"))
    assert not (root / "papers" / "new").exists()


@pytest.mark.parametrize("fault", [None, "there already", "text", "check", "place"])
def test_changes_come_all_together_or_not_at_all(tmp_path: Path, fault: str | None) -> None:
    (tmp_path / "old.txt").write_text("before")
    new = {"a/1.txt": "one", "b/2.txt": "\ud800" if fault == "text" else "two"}
    before = {"old.txt": "before"}
    if fault == "there already":
        new |= {"old.txt": "ours"}
    if fault == "place":
        (tmp_path / "b").write_text("a file where a folder should be")
        before |= {"b": "a file where a folder should be"}

    def check() -> None:
        assert left(tmp_path).items() >= {"a/1.txt": "one", "b/2.txt": "two"}.items()
        if fault == "check":
            raise ValueError("it is not good")

    texts = {} if fault == "there already" else {"old.txt": "after"}
    if fault is None:
        with files.changing(tmp_path) as changes:
            changes.write(texts, new=new, check=check)
        assert left(tmp_path) == {"old.txt": "after", "a/1.txt": "one", "b/2.txt": "two"}
        return
    with pytest.raises((OSError, ValueError)), files.changing(tmp_path) as changes:
        changes.write(texts, new=new, check=check)
    assert left(tmp_path) == before


def test_what_a_command_was_killed_over_is_taken_back_but_not_what_somebody_wrote_since(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from tools.files import changing
with changing(Path(sys.argv[1])) as changes:
    changes.write({"1.txt": "after", "2.txt": "after"}, new={"3.txt": "new"}, check=lambda: os.kill(os.getpid(), 9))
"""
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).write_bytes(b"before \xff")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert (tmp_path / "1.txt").read_text() == "after"
    assert (tmp_path / files.JOURNAL).exists()
    (tmp_path / "2.txt").write_text("by hand")
    with files.changing(tmp_path):
        pass
    found = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"1.txt": b"before \xff", "2.txt": b"by hand"}


@pytest.mark.parametrize("journal", ["[1]", "{", '{"a.txt": [1, 2]}', '{"../outside.txt": [null, "theirs"]}'])
def test_a_journal_that_is_none_of_ours_changes_nothing(tmp_path: Path, journal: str) -> None:
    root = tmp_path / "checkout"
    (root / files.JOURNAL).parent.mkdir(parents=True)
    (root / files.JOURNAL).write_text(journal)
    (tmp_path / "outside.txt").write_text("theirs")
    with files.changing(root):
        pass
    assert left(tmp_path) == {"outside.txt": "theirs"}


def test_two_claims_at_once_both_land(tmp_path: Path) -> None:
    root = base.write(tmp_path / "atlas")
    command = [
        sys.executable, "-m", "tools.cli", "--root", str(root), "new", "claim", PAPER, "--technique", "token-merging",
        "--kind", "definition", "--section", "3", "--statement",
    ]  # fmt: skip
    both = [subprocess.Popen([*command, f"It is {name}."], cwd=ROOT, stdout=subprocess.PIPE) for name in "abc"]
    said = sorted(one.communicate()[0].decode().split()[1] for one in both)
    assert [one.returncode for one in both] == [0, 0, 0]
    assert said == [f"{PAPER}#c3", f"{PAPER}#c4", f"{PAPER}#c5"]
    knowledge = load(root)
    assert knowledge.findings == []
    written = {claim.id: claim.statement for claim in knowledge.papers[PAPER].claims[2:]}
    assert sorted(written.values()) == ["It is a.", "It is b.", "It is c."]
    assert list(written) == ["c3", "c4", "c5"]


def test_a_folder_for_a_time_goes_with_its_owner_at_the_next_start_at_the_latest(tmp_path: Path) -> None:
    with files.scratch("atlas-run-", tmp_path) as folder:
        (folder / "kept").touch()
        with files.scratch("atlas-run-", tmp_path) as other:
            assert (folder / "kept").exists(), "its owner is there"
    assert not folder.exists()
    assert not other.exists()
    code = "import os, sys; from pathlib import Path; from tools.files import scratch\n"
    code += "with scratch('atlas-run-', Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    (tmp_path / "atlas-run-link").symlink_to(tmp_path)
    (tmp_path / "atlas-run-theirs").mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    with files.scratch("atlas-run-", tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atlas-run-link", "atlas-run-theirs"]


def test_the_journal_is_plain_json(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("vorhér")
    seen: list[dict[str, list[str]]] = []
    with files.changing(tmp_path) as changes:
        changes.write(
            {"old.txt": "nachhér"}, check=lambda: seen.append(json.loads((tmp_path / files.JOURNAL).read_text()))
        )
    assert seen == [{"old.txt": ["vorhÃ©r", "nachhÃ©r"]}]
