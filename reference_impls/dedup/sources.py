"""Rows of a data set, block by block, from the formats in which people have them; and the kept ones written back."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

OnError = Literal["stop", "skip"]
Kind = Literal["jsonl", "csv", "parquet", "arrow", "texts", "images"]
BLOCK_ROWS, BLOCK_BYTES = 10_000, 64 << 20
TEXTS = {".txt", ".md", ".rst", ".html", ".eml"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
IN_FOLDERS: dict[Kind, set[str]] = {"parquet": {".parquet"}, "arrow": {".arrow"}, "texts": TEXTS, "images": IMAGES}


class DedupError(ValueError):
    """What is wrong with an input, an option or a result, where, and what to do."""


class BadRow(NamedTuple):
    """A row that could not be read."""

    where: str
    """Such as `mails.jsonl, line 7`"""
    why: str


class Row(NamedTuple):
    """One row of an input."""

    id: str
    value: Any
    """Its text, or its image (H, W, 3) uint8"""


@dataclass
class Block:
    """Successive rows."""

    ids: list[str]
    values: list[Any]
    bad: list[BadRow]
    numbers: list[int]
    """Of the rows among all of the input, the bad ones included"""
    done: int
    """Bytes of the input read so far, or files of a folder"""


@dataclass(frozen=True)
class Source:
    """An input and how its rows are read. `replace` of the kept text, where passages are cut, is up to `write`."""

    path: Path
    field: str = "text"
    id_field: str | None = None
    on_error: OnError = "stop"

    @property
    def kind(self) -> Kind:
        """The format, from the name or from what a folder holds. Raises: DedupError for any other."""
        return _kind(self.path)

    @property
    def files(self) -> list[Path]:
        """The files that hold the rows, in order."""
        if self.path.is_file():
            return [self.path]
        wanted = IN_FOLDERS[self.kind]
        return sorted(file for file in self.path.rglob("*") if file.suffix.lower() in wanted and file.is_file())

    @property
    def size(self) -> int:
        """What `Block.done` comes to at the end."""
        return len(self.files) if self.kind in ("texts", "images") else sum(file.stat().st_size for file in self.files)

    def state(self) -> list[list[Any]]:
        """Names, sizes and times of change: what must be the same when a run ends, or goes on."""
        return [[str(f.relative_to(self.path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in self.files]

    def blocks(self, rows: int = BLOCK_ROWS, bytes_: int = BLOCK_BYTES) -> Iterator[Block]:
        """The rows, in blocks of at most so many, or of so many bytes and one more row.

        Raises: DedupError for a row that cannot be read, unless these are to be skipped, and for an id that repeats.
        """
        known: set[str] | None = set() if self.id_field else None
        block, held, number = Block([], [], [], [], 0), 0, -1
        for number, (row, done) in enumerate(self._rows()):
            block.done = done
            if isinstance(row, BadRow):
                if self.on_error == "stop":
                    raise DedupError(f"{row.where}: {row.why}; mend it, or leave such rows out with --on-error skip")
                block.bad.append(row)
            else:
                if known is not None:
                    if row.id in known:
                        raise DedupError(
                            f"{self.path}: the id {row.id!r} occurs twice, the second time in row {number + 1}; name a "
                            "field without repetitions by --id, or leave it out to number the rows"
                        )
                    known.add(row.id)
                block.ids.append(row.id)
                block.values.append(row.value)
                block.numbers.append(number)
                held += len(row.value) if isinstance(row.value, str) else row.value.nbytes
            if len(block.ids) + len(block.bad) >= rows or held >= bytes_:
                yield block
                block, held = Block([], [], [], [], done), 0
        if block.ids or block.bad:
            yield block

    def _rows(self) -> Iterator[tuple[Row | BadRow, int]]:
        before = 0
        for n, file in enumerate(self.files):
            if self.kind in ("texts", "images"):
                read = _image if self.kind == "images" else _text
                yield self._guarded(lambda: read(file), str(file.relative_to(self.path)), str(file)), n + 1  # noqa: B023
                continue
            number = -1
            for number, (record, done) in enumerate(READERS[self.kind](file)):
                where = f"{file.name}, row {number + 1}"
                key = f"{file.stem}:{number}" if len(self.files) > 1 else str(number)
                yield (record if isinstance(record, BadRow) else self._of(record, key, where)), before + done
            before += file.stat().st_size

    def _of(self, record: Any, key: str, where: str) -> Row | BadRow:
        """The row of a record, a mapping."""
        if not isinstance(record, Mapping):
            return BadRow(where, f"a row must be an object with the field {self.field!r}, got {type(record).__name__}")
        for field in (self.field, *([self.id_field] if self.id_field else [])):
            if field not in record:
                there = ", ".join(map(str, list(record)[:8]))
                return BadRow(where, f"there is no field {field!r}, but {there or 'nothing'}")
        value = record[self.field]
        if not isinstance(value, str):
            got = "null" if value is None else repr(value)[:60]
            return BadRow(where, f"the field {self.field!r} must be a text, got {got}")
        return Row(str(record[self.id_field]) if self.id_field else key, value)

    def _guarded(self, read: Callable[[], Any], key: str, where: str) -> Row | BadRow:
        try:
            return Row(key, read())
        except (OSError, UnicodeDecodeError, SyntaxError) as error:
            return BadRow(where, f"cannot be read: {error}")

    def write(self, target: Path, kept: set[int], changed: Mapping[int, str]) -> Path:
        """Write the rows of these numbers into the folder `target`, in the input's format; returns where.

        changed: texts that take the place of a row's own, by number. Byte for byte the rest is as it was, but for CSV.
        """
        home = target / (self.path.name if self.path.is_file() else "kept")
        number = -1
        for file in self.files:
            out = home if self.path.is_file() else home / file.relative_to(self.path)
            out.parent.mkdir(parents=True, exist_ok=True)
            if self.kind in ("texts", "images"):
                number += 1
                if number in changed:
                    out.write_text(changed[number], encoding="utf-8", newline="")
                elif number in kept:
                    shutil.copyfile(file, out)
            else:
                number = WRITERS[self.kind](file, out, self.field, number, kept, changed)
        for name in ("dataset_info.json", "state.json"):
            if self.kind == "arrow" and (self.path / name).exists():
                shutil.copyfile(self.path / name, home / name)
        return home


def _kind(path: Path) -> Kind:
    if not path.exists():
        raise DedupError(f"{path} does not exist")
    names: dict[str, Kind] = {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
        ".arrow": "arrow",
    }
    if path.is_file():
        if path.suffix.lower() not in names:
            raise DedupError(f"{path.name} is of no known format; these are: {', '.join(names)}, or a folder")
        return names[path.suffix.lower()]
    found = {file.suffix.lower() for file in path.rglob("*") if file.is_file()}
    for kind, wanted in IN_FOLDERS.items():
        if found & wanted:
            return kind
    there = ", ".join(sorted(found)[:8]) or "it is empty"
    raise DedupError(f"the folder {path} holds no file that can be read: {there}")


def _text(file: Path) -> str:
    """A text in UTF-8, with or without a byte order mark, in UTF-16 with one, or else in Latin-1."""
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _image(file: Path) -> Any:
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _jsonl(file: Path) -> Iterator[tuple[Any, int]]:
    done = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            done += len(line)
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8")), done
            except (UnicodeDecodeError, ValueError, RecursionError) as error:
                yield BadRow(f"{file.name}, line {number + 1}", f"is no JSON in UTF-8: {error}"), done


def _csv(file: Path) -> Iterator[tuple[Any, int]]:
    csv.field_size_limit(1 << 30)
    size = file.stat().st_size
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            for row in rows:
                yield row, min(size, getattr(lines.buffer, "tell", lambda: size)())
    except UnicodeDecodeError as error:
        raise DedupError(
            f"{file.name} is not in UTF-8 ({error.reason} at byte {error.start}); convert it first"
        ) from None
    except csv.Error as error:
        raise DedupError(f"{file.name} is no CSV: {error}") from None


def _tables(file: Path) -> Iterator[Any]:
    """Record batches of a Parquet or an Arrow file."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if file.suffix.lower() == ".parquet":
            with pa.parquet.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=BLOCK_ROWS)
        else:
            with pa.OSFile(str(file)) as raw:
                try:
                    yield from pa.ipc.open_stream(raw)
                except pa.ArrowInvalid:
                    raw.seek(0)
                    with pa.ipc.open_file(raw) as batches:
                        yield from (batches.get_batch(n) for n in range(batches.num_record_batches))
    except (pa.ArrowException, OSError) as error:
        raise DedupError(f"{file.name} cannot be read: {error}") from None


def _columns(file: Path) -> Iterator[tuple[Any, int]]:
    size, done = file.stat().st_size, 0
    for batch in _tables(file):
        done = min(size, done + batch.nbytes)
        for row in batch.to_pylist():
            yield row, done


def _write_jsonl(file: Path, out: Path, field: str, number: int, kept: set[int], changed: Mapping[int, str]) -> int:
    with file.open("rb") as lines, out.open("wb") as left:
        for line in lines:
            if not line.strip():
                continue
            number += 1
            if number in changed:
                row = json.loads(line.decode("utf-8-sig"))
                left.write(json.dumps({**row, field: changed[number]}, ensure_ascii=False).encode() + b"\n")
            elif number in kept:
                left.write(line if line.endswith(b"\n") else line + b"\n")
    return number


def _write_csv(file: Path, out: Path, field: str, number: int, kept: set[int], changed: Mapping[int, str]) -> int:
    with file.open(encoding="utf-8-sig", newline="") as lines, out.open("w", encoding="utf-8", newline="") as left:
        rows = csv.DictReader(lines)
        writer = csv.DictWriter(left, rows.fieldnames or [], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            number += 1
            if number in kept:
                writer.writerow({**row, field: changed.get(number, row[field])})
    return number


def _write_columns(file: Path, out: Path, field: str, number: int, kept: set[int], changed: Mapping[int, str]) -> int:
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    writer: Any = None
    for batch in _tables(file):
        numbers = range(number + 1, number + 1 + len(batch))
        number += len(batch)
        if any(n in changed for n in numbers):
            column = batch.column(field)
            texts = [changed.get(n, text) for n, text in zip(numbers, column.to_pylist(), strict=True)]
            batch = batch.set_column(
                batch.schema.get_field_index(field), batch.schema.field(field), pa.array(texts, column.type)
            )
        if writer is None:
            make = pa.parquet.ParquetWriter if out.suffix == ".parquet" else pa.ipc.new_stream
            writer = make(str(out), batch.schema)
        writer.write_batch(batch.filter(pa.array([n in kept for n in numbers])))
    if writer is not None:
        writer.close()
    return number


READERS: dict[str, Callable[[Path], Iterator[tuple[Any, int]]]] = {
    "jsonl": _jsonl, "csv": _csv, "parquet": _columns, "arrow": _columns,
}  # fmt: skip
WRITERS: dict[str, Callable[..., int]] = {
    "jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_columns, "arrow": _write_columns,
}  # fmt: skip
