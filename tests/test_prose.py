"""The list of words that the atlas does not use."""

from __future__ import annotations

from pathlib import Path

from tools import prose


def test_a_word_is_found_at_its_place_with_what_to_write() -> None:
    text = "A line.\nThe " + "bat" + "tery passes, and every " + "arm is timed.\n"
    assert list(prose.findings("a.md", text)) == [
        'a.md:2:1: "The bat' + 'tery": write conformance checks',
        'a.md:2:25: "every ' + 'arm": write variant',
    ]
    assert list(prose.findings("a.md", text.replace("\n", " <!-- prose: ok -->\n"))) == []


def test_only_files_of_the_atlas_are_read(tmp_path: Path) -> None:
    for name in ("README.md", "tools/a.py", "site/index.html", "notes.md", "tools/a.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(prose.files(tmp_path)) == ["README.md", "tools/a.py"]
