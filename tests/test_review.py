"""What should be looked at again, by the dates of the files."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import knowledge_fixture as base
from tests.knowledge_fixture import DRAFT, ENTRY, PAPER
from tools.cli import main
from tools.knowledge import load, review

ROOT = Path(__file__).resolve().parents[1]
TODAY = date(2026, 12, 24)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


def test_looks_come_by_age(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "added: 2026-11-22", 'added: 2026-11-22\nreviewed: "2026-12-01"')
    found = review.looks(load(atlas, check=False), TODAY)
    assert [look.on for look in found] == sorted(look.on for look in found)
    by_file = {look.file: look for look in found}
    assert (by_file[ENTRY].on, by_file[ENTRY].days, by_file[ENTRY].how) == ("2026-12-01", 23, "reviewed")
    assert (by_file[DRAFT].days, by_file[DRAFT].how) == (32, "added")
    assert by_file[PAPER].how.startswith("confirmed in: ")
    assert len(found) == 2 + len(load(atlas, check=False).papers)


@pytest.mark.parametrize(
    ("venue", "ids", "expected"),
    [
        ("ICLR 2023", '{arxiv: "2210.09461"}', None),
        ("arXiv 2022", '{arxiv: "2210.09461"}', (2022, "")),
        ("arXiv 2022", '{arxiv: "2210.09461", doi: "10.48550/arXiv.2210.09461"}', (2022, "")),
        ("arXiv 2022", '{arxiv: "2210.09461", url: "https://arxiv.org/abs/2210.09461"}', (2022, "")),
        ("arXiv 2022", '{arxiv: "2210.09461", doi: "10.1145/3564663"}', (2022, "10.1145/3564663")),
        ("arXiv 2022", '{url: "https://openreview.net/forum?id=x"}', (2023, "https://openreview.net/forum?id=x")),
    ],
)
def test_a_preprint_is_told_by_its_venue_and_a_publication_by_an_identifier(
    atlas: Path, venue: str, ids: str, expected: tuple[int, str] | None
) -> None:
    text = (atlas / PAPER).read_text(encoding="utf-8")
    text = re.sub(r"^venue: .*$", f"venue: {venue}", text, flags=re.MULTILINE)
    (atlas / PAPER).write_text(re.sub(r"^ids: .*$", f"ids: {ids}", text, flags=re.MULTILINE), encoding="utf-8")
    found = {one.file: (one.year, one.published) for one in review.preprints(load(atlas, check=False))}
    assert found.get(PAPER) == expected


def test_what_was_published_comes_first_among_the_preprints() -> None:
    found = review.preprints(load(ROOT, check=False))
    keys = [(not one.published, one.year) for one in found]
    assert keys == sorted(keys)


def test_a_file_that_speaks_of_a_library_is_as_old_as_its_last_look(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "limits: [Dense outputs need unmerging.]", "limits: [Unlike timm, it is small.]")
    library = review.Library("timm", "huggingface/pytorch-image-models", "1.1", "2026-12-01")

    def named() -> list[str]:
        return [one.file for one in review.stale(load(atlas, check=False), [library])]

    assert named() == [ENTRY]
    base.replace(atlas, ENTRY, "added: 2026-11-22", 'added: 2026-11-22\nreviewed: "2026-12-01"')
    assert named() == [], "it was read since"
    base.replace(atlas, ENTRY, 'reviewed: "2026-12-01"', 'reviewed: "2026-11-30"')
    base.replace(atlas, ENTRY, "Unlike timm", "Unlike timmies")
    assert named() == [], "another word"
    base.replace(atlas, ENTRY, "Unlike timmies", "As in huggingface/pytorch-image-models")
    assert named() == [ENTRY]


def test_a_record_is_as_old_as_the_library_that_measured_it(atlas: Path) -> None:
    knowledge = load(atlas, check=False)
    (record,) = knowledge.records
    version = record.versions["torch"]
    for release, expected in ((version.partition("+")[0], []), ("99.0", [f"measured with {version}"])):
        library = review.Library("torch", "pytorch/pytorch", release, "2026-11-22")
        assert [one.because for one in review.stale(knowledge, [library]) if "results" in one.file] == expected


def test_the_releases_are_those_of_the_locks() -> None:
    locks = [ROOT / name for name in ("requirements.lock", "requirements-models.lock")]
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(lock.read_text() for lock in locks), re.MULTILINE))
    found = review.libraries(ROOT)
    assert len(found) >= 4
    for one in found:
        assert one.release == pinned[one.name], f"{review.LIBRARIES}: write the release of the lock, and since when"
        assert "2026-11-22" <= one.since <= date.today().isoformat()
    assert review.libraries(ROOT / "papers") == []


def test_the_command(atlas: Path) -> None:
    run = CliRunner().invoke(main, ["--root", str(atlas), "review", "--limit", "1"])
    assert run.exit_code == 0, run.output
    assert "Last looks, the oldest of" in run.output
    assert "more: --limit 0" in run.output
    told = json.loads(CliRunner().invoke(main, ["--root", str(atlas), "review", "--json"]).stdout)
    assert list(told) == ["looks", "preprints", "libraries"]
    assert {look["file"] for look in told["looks"]} >= {ENTRY, DRAFT, PAPER}


def test_a_day_to_come_is_no_last_look(atlas: Path) -> None:
    base.replace(atlas, ENTRY, "added: 2026-11-22", 'added: 2026-11-22\nreviewed: "2126-11-22"')
    assert [(f.code, f.path) for f in load(atlas).findings] == [("E211", "reviewed")]
