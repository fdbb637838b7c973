"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import files


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    file = tmp_path / "results" / "record.json"
    files.write_atomically(file, "first")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(file, "second \ud800")
    assert file.read_text() == "first"
    assert list(file.parent.iterdir()) == [file]


def test_mode_and_link_survive_a_write(tmp_path: Path) -> None:
    file, link = tmp_path / "a.yml", tmp_path / "b.yml"
    file.write_text("first")
    file.chmod(0o640)
    link.symlink_to(file)
    files.write_atomically(link, "second")
    assert link.is_symlink()
    assert file.read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o640


def test_new_files_come_all_together(tmp_path: Path) -> None:
    texts = {tmp_path / "a" / "1.txt": "one", tmp_path / "b" / "2.txt": "two"}
    files.write_new(texts)
    assert {file: file.read_text() for file in texts} == texts


@pytest.mark.parametrize("fault", ["text", "name", "folder"])
def test_new_files_come_all_together_or_not_at_all(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {tmp_path / "a" / "1.txt": "one", tmp_path / "b" / "2.txt": "two"}
    if fault == "text":
        texts[tmp_path / "b" / "2.txt"] = "\ud800"
    elif fault == "name":  # somebody takes the second name at the last moment
        replace = Path.replace

        def replaced(self: Path, target: Path) -> Path:
            (tmp_path / "b" / "2.txt").write_text("theirs")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", replaced)
    else:
        (tmp_path / "b").write_text("a file where a folder should be")
    with pytest.raises((OSError, UnicodeEncodeError)):
        files.write_new(texts)
    left = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert (
        left == {"text": {}, "name": {"b/2.txt": "theirs"}, "folder": {"b": "a file where a folder should be"}}[fault]
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "2.txt").write_text("theirs")
    (tmp_path / "3.txt").symlink_to(tmp_path / "nowhere")
    for name in ("2.txt", "3.txt"):
        with pytest.raises(FileExistsError, match=name):
            files.write_new({tmp_path / "1.txt": "one", tmp_path / name: "ours"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.txt", "3.txt"]
    assert (tmp_path / "2.txt").read_text() == "theirs"
