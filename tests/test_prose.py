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


def test_order_is_said_by_before_and_after_and_units_by_per() -> None:
    text = "Layers be" + "hind it run on ten frames a sec" + "ond, in fr" + "ont of two MACs a tok" + "en.\n"
    assert [line.rpartition("write ")[2] for line in prose.findings("a.md", text)] == [
        "after, or which cause", "per", "before", "per",
    ]  # fmt: skip
    kept = 'NORMS = ("be' + 'hind",)\nBE' + "HIND = 1  # norms be" + "hind\nneurons a token needs\n"
    assert list(prose.findings("a.py", kept)) == []
    counted = "It takes fewer " + "operations.\n"
    assert list(prose.findings("papers/a.yml", counted)) == []
    assert len(list(prose.findings("taxonomy/a.yml", counted))) == 1


def test_only_files_of_the_atlas_are_read(tmp_path: Path) -> None:
    for name in ("README.md", "tools/a.py", "site/index.html", "notes.md", "tools/a.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(prose.files(tmp_path)) == ["README.md", "tools/a.py"]
