"""Deduplication of rows and files: the same table from each format, nothing half-written, and clear errors."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from reference_impls.dedup import DedupError, Options, Source, dedup, methods, on_ray, pipeline, run
from reference_impls.dedup.sources import Block
from reference_impls.techniques import minhash_deduplication as minhash
from tools import progress as progress_module
from tools.cli import main

pa = pytest.importorskip("pyarrow", reason="the extra `dedup` is not installed")
pq = pytest.importorskip("pyarrow.parquet")
ipc = pytest.importorskip("pyarrow.ipc")
pytest.importorskip("rensa", reason="the extra `dedup` is not installed")


def text(seed: int, words: int = 60) -> str:
    random = Random(seed)
    return " ".join(f"w{random.randrange(10**6)}" for _ in range(words))


TEXTS = [text(0), text(1), text(0), text(1).upper(), text(2), text(2) + " one two", "", "   "]
MINHASH = ["kept", "kept", "removed", "removed", "kept", "removed", "kept", "kept"]


def decisions(table: Any) -> list[str]:
    return table["decision"].to_pylist()


def jsonl(folder: Path, texts: list[str] = TEXTS) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": one, "n": n}) + "\n" for n, one in enumerate(texts)), encoding="utf-8")
    return file


def csv(folder: Path) -> Path:
    file = folder / "rows.csv"
    file.write_text("n,text\n" + "".join(f'{n},"{one}"\n' for n, one in enumerate(TEXTS)), encoding="utf-8-sig")
    return file


def parquet(folder: Path) -> Path:
    file = folder / "rows.parquet"
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), file, row_group_size=3)
    return file


def hugging_face(folder: Path) -> Path:
    saved = folder / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    table = pa.table({"text": TEXTS, "n": range(len(TEXTS))})
    with ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return saved


def texts(folder: Path) -> Path:
    home = folder / "texts"
    home.mkdir()
    for n, one in enumerate(TEXTS):
        (home / f"{n}.txt").write_text(one, encoding="utf-16" if n % 2 else "utf-8")
    return home


FORMATS: list[Callable[[Path], Path]] = [jsonl, csv, parquet, hugging_face, texts]


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_gives_the_same_table_and_gets_its_kept_rows_back(make: Callable[[Path], Path], tmp_path: Path):
    source = Source(make(tmp_path))
    summary = run(source, tmp_path / "out", Options(), write_kept=True)
    table = pq.read_table(tmp_path / "out" / "result.parquet")
    assert table.schema.names == ["id", "decision", "twin", "similarity", "method"]
    assert decisions(table) == MINHASH
    assert min(table["similarity"].drop_null().to_pylist()) >= 0.8
    assert (summary["rows"], summary["kept"], summary["removed"]) == (8, 5, 3)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "index.html", "kept", "result.parquet", "summary.json",
    ]  # fmt: skip
    (home,) = (tmp_path / "out" / "kept").iterdir()
    left = [value for block in Source(home).blocks() for value in block.values]
    assert left == [one for one, how in zip(TEXTS, MINHASH, strict=True) if how == "kept"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("exact", "kkrkkkkk"), ("minhash", "kkrrkrkk"), ("substring", "kkrkkckk")],
)
def test_each_method_removes_what_it_sees(method: str, expected: str):
    assert "".join(one[0] for one in decisions(dedup(TEXTS, method))) == expected
    by_field = dedup([{"body": one} for one in TEXTS], method, field="body")
    assert by_field.equals(dedup(TEXTS, method))


def test_meaning_is_compared_by_the_encoder_that_is_given():
    table = dedup(TEXTS, "semantic", encoder=lambda rows: np.array([[len(r), r.isupper(), 1] for r in rows], float))
    assert decisions(table)[6:] == ["kept", "kept"]
    assert "removed" in decisions(table)
    with pytest.raises(DedupError, match=r"\(N, D\)"):
        dedup(TEXTS, "semantic", encoder=lambda rows: np.zeros(3))
    with pytest.raises(DedupError, match="no_such"):
        dedup(TEXTS, "semantic", encoder="no_such:thing")


def test_images_are_compared_by_their_pixels(tmp_path: Path):
    from PIL import Image

    home = tmp_path / "images"
    home.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    for name, image in {"a.png": 0, "b.bmp": 0, "c.png": 1}.items():
        Image.fromarray(pixels[image]).save(home / name)
    (home / "broken.png").write_bytes(b"no image")
    summary = run(Source(home, on_error="skip"), tmp_path / "out", Options("exact"), write_kept=True)
    assert (summary["kept"], summary["removed"], summary["skipped"]) == (2, 1, 1)
    assert "data:image/png" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(DedupError, match="these are images"):
        run(Source(home, on_error="skip"), tmp_path / "other", Options("minhash"))


@pytest.mark.parametrize("method", ["exact", "minhash", "substring"])
def test_against_a_test_set_only_its_twins_go(method: str, tmp_path: Path):
    table = dedup([text(0), text(3), text(3), text(1)], method, against=[text(1), text(0)])
    assert decisions(table) == ["removed", "kept", "kept", "removed"]
    assert table["twin"].to_pylist() == ["against:1", None, None, "against:0"]


@pytest.mark.parametrize("method", ["exact", "minhash", "substring"])
def test_blocks_decide_nothing(method: str, monkeypatch: pytest.MonkeyPatch):
    expected = dedup(TEXTS * 3, method)
    for rows in (1, 2, 7):
        monkeypatch.setattr(pipeline, "BLOCK_ROWS", rows)
        assert dedup(TEXTS * 3, method).equals(expected)


def chained(n: int) -> list[str]:
    """Texts of which some share most of their words with the last one of another, so that groups are long."""
    texts = list[str]()
    for k in range(n):
        words = text(k, 40).split()
        texts.append(" ".join([*texts[-1].split()[6:], *words[:6]] if k % 5 else words))
    return texts


@pytest.mark.parametrize(("join", "stays"), [("greedy", "first"), ("greedy", "longest"), ("components", "first")])
def test_parts_decide_nothing(join: str, stays: str, monkeypatch: pytest.MonkeyPatch):
    rows = [*chained(60), text(3), *chained(60)[::-2]]
    options: Any = {"threshold": 0.5, "join": join, "stays": stays}
    expected = minhash.minhash_dedup(rows, **options)
    against = dedup(rows[20:], "minhash", 0.5, against=rows[:20]) if join == "greedy" else None
    assert len(expected.removed) > 60
    for size in (1, 7, 1000):
        monkeypatch.setattr(methods, "PART", size)
        monkeypatch.setattr(pipeline.Local, "spread", lambda self, function, parts: map(function, [*parts][::-1]))
        table = dedup(rows, "minhash", **options)
        gone = [n for n, one in enumerate(decisions(table)) if one == "removed"]
        assert gone == expected.removed.tolist()
        assert [int(table["twin"][n].as_py()) for n in gone] == expected.twin.tolist()
        if against is not None:
            assert dedup(rows[20:], "minhash", 0.5, against=rows[:20]).equals(against)


def test_all_equal_none_equal_one_giant_and_nothing():
    assert decisions(dedup([text(0)] * 500)).count("removed") == 499
    assert decisions(dedup([text(n) for n in range(200)])) == ["kept"] * 200
    giant = text(7, 200_000)
    assert decisions(dedup([giant, text(1), giant])) == ["kept", "kept", "removed"]
    assert decisions(dedup([])) == []


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = jsonl(tmp_path, [text(n // 2) for n in range(40)])
    blocks = Source.blocks
    monkeypatch.setattr(Source, "blocks", lambda self: blocks(self, 10))
    out, expected = tmp_path / "out", tmp_path / "expected"
    run(Source(file), expected, Options())

    class Killed(pipeline.Local):
        def sketch(self, method: Any, blocks: Any) -> Any:
            for n, one in enumerate(super().sketch(method, blocks)):
                if n == 2:
                    raise KeyboardInterrupt
                yield one

    monkeypatch.setattr(pipeline, "engine_of", lambda *given: Killed())
    with pytest.raises(KeyboardInterrupt):
        run(Source(file), out, Options())
    assert not out.exists()
    done = list[str]()

    class Counted(pipeline.Local):
        def sketch(self, method: Any, blocks: Any) -> Any:
            for name, packed in super().sketch(method, blocks):
                done.append(name)
                yield name, packed

    monkeypatch.setattr(pipeline, "engine_of", lambda *given: Counted())
    with pytest.raises(DedupError, match="--resume"):
        run(Source(file), out, Options())
    with pytest.raises(DedupError, match="other options"):
        run(Source(file), out, Options(threshold=0.5), resume=True)
    run(Source(file), out, Options(), resume=True)
    assert done == ["rows-000002", "rows-000003"]
    assert pq.read_table(out / "result.parquet").equals(pq.read_table(expected / "result.parquet"))
    assert not list(tmp_path.glob(".*.part"))


def test_a_file_that_grows_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = jsonl(tmp_path)
    sketched = pipeline.sketched

    def growing(*given: Any) -> Any:
        found = sketched(*given)
        with file.open("a") as more:
            more.write('{"text": "more"}\n')
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "sketched", growing)
        with pytest.raises(DedupError, match="changed while it was read"):
            run(Source(file), tmp_path / "out", Options())
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


FULL_DISKS: dict[str, tuple[Any, str]] = {
    "a block": (pipeline.Store, "put"),
    "the table": (pq, "write_table"),
    "the page": (pipeline.page, "render"),
    "the kept rows": (Source, "write"),
}


@pytest.mark.parametrize("what", FULL_DISKS)
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = jsonl(tmp_path)

    def full(*given: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(*FULL_DISKS[what], full)
        with pytest.raises(DedupError, match="no space left"):
            run(Source(file), tmp_path / "out", Options(), write_kept=True)
    assert not (tmp_path / "out").exists()
    run(Source(file), tmp_path / "out", Options(), resume=True, write_kept=True)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "index.html", "kept", "result.parquet", "summary.json",
    ]  # fmt: skip


def test_a_run_that_ended_before_it_began_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = jsonl(tmp_path)

    def full(*given: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            run(Source(file), tmp_path / "out", Options())
    assert run(Source(file), tmp_path / "out", Options())["rows"] == 8


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": 3}', "must be a text, got 3"),
        ('{"text": null}', "got null"),
        ('{"body": "a"}', "no field 'text', but body"),
        ("[1, 2]", "must be an object"),
        ("{broken", "no JSON"),
        ("\udcff", "no JSON in UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_or_skipped_and_counted(line: str, says: str, tmp_path: Path):
    file = jsonl(tmp_path)
    with file.open("ab") as more:
        more.write(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DedupError, match=r"rows\.jsonl, (row|line) 9") as error:
        run(Source(file), tmp_path / "out", Options())
    assert says in str(error.value)
    summary = run(Source(file, on_error="skip"), tmp_path / "skipped", Options(), write_kept=True)
    assert (summary["rows"], summary["skipped"]) == (8, 1)
    assert says in summary["skipped examples"][0]
    assert len((tmp_path / "skipped" / "kept" / "rows.jsonl").read_text().splitlines()) == 5


def test_a_text_that_is_missing_is_named_in_tables_too(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("n,text\n1,a b\n2\n3,\n")
    pq.write_table(pa.table({"n": [1, 2, 3], "text": ["a b", None, ""]}), tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        with pytest.raises(DedupError, match=rf"{name}, row 2: the field 'text' must be a text, got null"):
            run(Source(tmp_path / name), tmp_path / f"out-{name}", Options("exact"))
        summary = run(Source(tmp_path / name, on_error="skip"), tmp_path / f"out-{name}", Options("exact"))
        assert (summary["rows"], summary["kept"], summary["skipped"]) == (2, 2, 1)


def test_other_encodings_are_read_or_told(tmp_path: Path):
    home = tmp_path / "texts"
    home.mkdir()
    for name, encoding in {"a": "utf-8", "b": "utf-16", "c": "utf-8-sig", "d": "latin-1"}.items():
        (home / f"{name}.txt").write_text("Köln am Rhein, fünf Wörter", encoding=encoding)
    assert run(Source(home), tmp_path / "out", Options("exact"))["removed"] == 3
    (tmp_path / "marked.jsonl").write_text('{"text": "ö"}\n{"text": "ö"}\n', encoding="utf-8-sig")
    assert run(Source(tmp_path / "marked.jsonl"), tmp_path / "marked", Options("exact"))["removed"] == 1
    (tmp_path / "rows.csv").write_text("text\nKöln\n", encoding="latin-1")
    with pytest.raises(DedupError, match=r"rows\.csv is not in UTF-8 .* at byte 6\); convert it first"):
        run(Source(tmp_path / "rows.csv"), tmp_path / "none", Options("exact"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-16")
    with pytest.raises(DedupError, match=r"rows\.jsonl, line 1: is no JSON in UTF-8"):
        run(Source(tmp_path / "rows.jsonl"), tmp_path / "none", Options("exact"))
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_ids_that_repeat_and_inputs_that_are_none_are_told(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n')
    with pytest.raises(DedupError, match="id '1' occurs twice, the second time in row 2"):
        run(Source(file, id_field="id"), tmp_path / "out", Options())
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.xyz").write_text("")
    (tmp_path / "bad.parquet").write_text("no parquet")
    for name, says in (("none", "does not exist"), ("empty", "it is empty"), ("rows.xyz", "no known format"),
                       ("bad.parquet", "cannot be read")):  # fmt: skip
        with pytest.raises(DedupError, match=says):
            run(Source(tmp_path / name), tmp_path / f"out-{name}", Options())
    for bad in ({"method": "best"}, {"stays": "last"}, {"method": "exact", "threshold": 0.5}):
        with pytest.raises(DedupError, match=list(bad)[-1]):
            Options(**bad)
    with pytest.raises(DedupError, match="row 1 must be"):
        dedup(["a", 3])


def test_the_command_says_what_it_found_and_what_is_wrong(tmp_path: Path):
    def invoked(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["dedup", *arguments])
        assert done.exit_code == code, done.output
        return done.output

    file, out = str(jsonl(tmp_path)), str(tmp_path / "out")
    assert "removed  " in invoked(file, "--out", out)
    assert "exists; name another folder" in invoked(file, "--out", out, code=1)
    told = CliRunner().invoke(main, ["dedup", file, "--out", str(tmp_path / "two"), "--json", "--method", "exact"])
    assert json.loads(told.stdout)["removed"] == 1
    assert "does not exist" in invoked("nowhere.jsonl", "--out", str(tmp_path / "x"), code=1)
    assert "threshold must" in invoked(file, "--out", str(tmp_path / "x"), "--threshold", "2", code=1)
    assert "--engine ray" in invoked(file, "--out", str(tmp_path / "x"), "--address", "here:1", code=1)
    assert not (tmp_path / "x").exists()


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path: Path):
    evil = "<script>alert(1)</script> " + text(0)
    run(Source(jsonl(tmp_path, [evil, evil])), tmp_path / "out", Options())
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page
    assert "http" not in page
    assert "2 rows: 0" in page


def test_blank_lines_are_no_rows(tmp_path: Path):
    file = jsonl(tmp_path)
    file.write_text(file.read_text().replace("\n", "\n\n"))
    summary = run(Source(file), tmp_path / "out", Options(), write_kept=True)
    assert (summary["rows"], summary["kept"]) == (8, 5)
    assert len((tmp_path / "out" / "kept" / "rows.jsonl").read_text().splitlines()) == 5


def test_lines_of_progress_tell_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = iter((0.0, 10.0, 20.0))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress_module.progress() as report:
        for done in (0, 250, 1000):
            report("sketching", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "sketching: 0 of 1000", "sketching: 250 of 1000, about 30 s left", "sketching: 1000 of 1000",
    ]  # fmt: skip


def test_a_block_without_a_readable_row_is_no_sketch():
    packed = methods.packed(Options().own(Options()), Block([], [], [], [], 0))
    assert len(packed) > 0


def test_what_is_wrong_comes_back_from_a_node_as_a_message():
    def refuse(value: int) -> int:
        if value > 1:
            raise DedupError(f"{value} is too many")
        return -value

    done = [pickle.loads(on_ray.Task(refuse)({"task": pickle.dumps(value)})["result"]) for value in (1, 2)]
    assert done == [(None, -1), ("2 is too many", None)]
