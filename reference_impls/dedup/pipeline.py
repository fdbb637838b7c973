"""A run of deduplication: blocks are sketched and kept, decided on together, and written whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reference_impls.dedup import page
from reference_impls.dedup.local import Local
from reference_impls.dedup.methods import Decisions, Options, Progress, Sketch, check_images
from reference_impls.dedup.sources import BLOCK_ROWS, Block, DedupError, Source
from reference_impls.whole import write_atomically

Engine = Literal["local", "ray"]
GROUPS, MEMBERS = 20, 5
"""Groups that the page shows, and members of each."""


@dataclass(frozen=True)
class Sketched:
    """The sketches of one input, and what its rows are called."""

    sketches: Sequence[Sketch]
    ids: list[str]
    numbers: array[int]
    """Of the rows among all of the input"""
    lengths: array[int]
    """Characters of each row; 0 for an image"""
    bad: list[tuple[str, str]]


class Store:
    """Finished blocks in a folder, or in memory where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.held = folder, dict[str, bytes]()

    def __contains__(self, name: str) -> bool:
        return name in self.held or (self.folder is not None and (self.folder / f"{name}.npz").exists())

    def put(self, name: str, packed: bytes) -> None:
        """Keep a block, whole or not at all."""
        if self.folder is None:
            self.held[name] = packed
            return
        part = self.folder / f"{name}.part"
        part.write_bytes(packed)
        part.replace(self.folder / f"{name}.npz")

    def get(self, name: str) -> Sketch:
        """A block, of which no array is read before it is asked for, nor kept."""
        folder = self.folder
        return Reader((lambda: io.BytesIO(self.held[name])) if folder is None else (lambda: folder / f"{name}.npz"))


class Reader(Mapping[str, Any]):
    """The arrays of an .npz, opened each time, so that thousands of blocks need no open file."""

    def __init__(self, place: Callable[[], Any]) -> None:
        self.place = place

    def __getitem__(self, name: str) -> Any:
        with np.load(self.place()) as arrays:
            return arrays[name]

    def __iter__(self) -> Iterator[str]:
        with np.load(self.place()) as arrays:
            return iter(arrays.files)

    def __len__(self) -> int:
        return len(list(iter(self)))


def sketched(
    blocks: Iterable[Block],
    total: int,
    options: Options,
    store: Store,
    name: str,
    engine: Local,
    progress: Progress,
) -> Sketched:
    """Sketch all blocks that are not there yet, and gather what is needed to decide."""
    names, done = list[str](), dict[str, int]()

    def waiting() -> Iterator[tuple[str, Block]]:
        for n, block in enumerate(blocks):
            check_images(options, {type(value) for value in block.values})
            names.append(f"{name}-{n:06}")
            done[names[-1]] = block.done
            if names[-1] not in store:
                yield names[-1], block

    for finished, raw in engine.sketch(options.own(options), waiting()):
        store.put(finished, raw)
        progress(f"sketching {name}", done[finished], total)
    ids, numbers, lengths, bad, sketches = list[str](), array("q"), array("q"), list[Any](), list[Any]()
    for one in names:
        sketch = store.get(one)
        told = json.loads(sketch["told"].tobytes())
        ids += told[0]
        numbers.extend(told[1])
        lengths.extend(told[2])
        bad += told[3]
        if told[0]:
            sketches.append(sketch)
    return Sketched(sketches, ids, numbers, lengths, [tuple(one) for one in bad])


def decide(options: Options, rows: Sketched, against: Sketched | None, progress: Progress, engine: Local) -> Decisions:
    """What goes of the rows; their twins count from the first reference on."""
    sketches = [*(against.sketches if against else ()), *rows.sketches]
    if not rows.ids:
        none = np.zeros(0, np.int64)
        return Decisions(none, none / 1.0, none > 0, {})
    return options.own(options).decide(sketches, len(against.ids) if against else 0, progress, engine.spread)


def result_table(options: Options, rows: Sketched, against: Sketched | None, found: Decisions) -> Any:
    """A row for each row: id, decision (kept, removed, or cut), twin, similarity, method, as a pyarrow table."""
    import pyarrow as pa

    first = len(against.ids) if against else 0
    named = [*([f"against:{one}" for one in against.ids] if against else []), *rows.ids]
    decision, twin, similarity = list[str](), list[str | None](), list[float | None]()
    for i in range(first, first + len(rows.ids)):
        decision.append("removed" if found.gone[i] else "cut" if i in found.changed else "kept")
        other = decision[-1] != "kept"
        twin.append(named[int(found.twin[i])] if other else None)
        similarity.append(float(found.similarity[i]) if other else None)
    method = pa.array([options.method] * len(rows.ids)).dictionary_encode()
    columns = {
        "id": rows.ids,
        "decision": decision,
        "twin": twin,
        "similarity": pa.array(similarity, pa.float64()),
        "method": method,
    }
    return pa.table(
        {"id": pa.array(rows.ids, pa.string()), **{k: v for k, v in columns.items() if k != "id"}}
        | {"twin": pa.array(twin, pa.string())}
    )


def dedup(
    rows: Iterable[Any],
    method: str = "minhash",
    threshold: float | None = None,
    *,
    field: str = "text",
    against: Iterable[Any] | None = None,
    engine: Engine = "local",
    address: str | None = None,
    progress: Progress = lambda label, done, total: None,
    **options: Any,
) -> Any:
    """What repeats among rows: texts, mappings with a text in `field`, or images (H, W, 3) of integers.

    Returns a pyarrow table with a row for each: id (its number), decision (kept, removed or cut), twin, similarity,
    method. against: rows, such as a test set, that stay; then only twins of these go. options: as `Options`.
    Raises: DedupError for a row that is none of these, and for options that do not fit.
    """
    chosen = Options(method, threshold, **options)
    work = engine_of(engine, address)
    store = Store(None)

    def of(name: str, given: Iterable[Any]) -> Sketched:
        values = [_value(n, row, field) for n, row in enumerate(given)]
        blocks = (_block(values, start) for start in range(0, len(values), BLOCK_ROWS))
        return sketched(blocks, len(values), chosen, store, name, work, progress)

    theirs = None if against is None else of("against", against)
    ours = of("rows", rows)
    return result_table(chosen, ours, theirs, decide(chosen, ours, theirs, progress, work))


def _value(n: int, row: Any, field: str) -> Any:
    value = row.get(field) if isinstance(row, Mapping) else row
    if isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind in "ui" and value.ndim in (2, 3)):
        return value
    raise DedupError(
        f"row {n} must be a text, a mapping with a text in {field!r}, or an image of integers, got {row!r:.80}"
    )


def _block(values: Sequence[Any], start: int) -> Block:
    part = values[start : start + BLOCK_ROWS]
    numbers = list(range(start, start + len(part)))
    return Block([str(n) for n in numbers], list(part), [], numbers, start + len(part))


def engine_of(engine: str, address: str | None) -> Local:
    """Where the work is done. Raises: DedupError for an engine that there is not, or that does not answer."""
    if engine == "local":
        if address:
            raise DedupError("an address is for --engine ray")
        return Local()
    if engine != "ray":
        raise DedupError(f"the engine must be local or ray, got {engine!r}")
    from reference_impls.dedup import on_ray

    return on_ray.OnRay(address)


# --------------------------------------------------------------------------------------------------------------------
# From files to files


def run(
    source: Source,
    out: Path,
    options: Options,
    *,
    against: Source | None = None,
    engine: Engine = "local",
    address: str | None = None,
    resume: bool = False,
    write_kept: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> dict[str, Any]:
    """Deduplicate an input into the folder `out`; returns the summary that is written there.

    `out` appears when everything in it is there: result.parquet, summary.json, index.html and, if asked for, the kept
    rows. Until then the work lies beside it, in `.<name>.part`, and a run that was interrupted goes on with `resume`.
    Raises: DedupError, with what is wrong and what to do.
    """
    began, part = time.monotonic(), out.with_name(f".{out.name}.part")
    state = {"options": options.told(), "input": source.state(), "against": against.state() if against else None}
    if out.exists():
        raise DedupError(f"{out} exists; name another folder, or remove it")
    work, store = engine_of(engine, address), Store(part / "blocks")
    _claim(part, state, resume)
    try:
        theirs = (
            sketched(against.blocks(), against.size, options, store, "against", work, progress) if against else None
        )
        ours = sketched(source.blocks(), source.size, options, store, "rows", work, progress)
        for one, before in ((source, state["input"]), (against, state["against"])):
            if one is not None and one.state() != before:
                raise DedupError(f"{one.path} changed while it was read; nothing is written: wait until it is finished")
        found = decide(options, ours, theirs, progress, work)
        summary = _write(part, source, options, ours, theirs, found, write_kept)
        summary["seconds"] = round(time.monotonic() - began, 1)
        (part / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(part / "blocks")
        (part / "state.json").unlink()
        part.replace(out)
    except DedupError:  # what is wrong with the input will not be right when it goes on
        shutil.rmtree(part)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DedupError(f"no space left for {part}; finished blocks are kept: free some, then --resume") from error
    return summary


def _claim(part: Path, state: Mapping[str, Any], resume: bool) -> None:
    """Make the folder of the work, or take up the one that an interrupted run left."""
    file = part / "state.json"
    if resume:
        if not file.exists():
            raise DedupError(f"there is nothing to resume: {part} holds no interrupted run")
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(state))
        if other := [name for name in now if before.get(name) != now[name]]:
            raise DedupError(f"the interrupted run had other {' and '.join(other)}; remove {part}, and begin again")
        for name in ("kept", "result.parquet", "index.html", "summary.json"):  # of a run that ended while writing
            stale = part / name
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        return
    if file.exists():
        raise DedupError(f"{part} holds an interrupted run: go on with --resume, or remove it")
    shutil.rmtree(part, ignore_errors=True)  # of a run that ended before it began
    (part / "blocks").mkdir(parents=True)
    write_atomically(file, json.dumps(state))


def _write(
    part: Path,
    source: Source,
    options: Options,
    ours: Sketched,
    theirs: Sketched | None,
    found: Decisions,
    write_kept: bool,
) -> dict[str, Any]:
    import pyarrow.parquet as pq

    first, n = len(theirs.ids) if theirs else 0, len(ours.ids)
    gone = found.gone[first:]
    changed = {i - first: text for i, text in found.changed.items()}
    characters = sum(ours.lengths)
    cut = sum(length for length, out in zip(ours.lengths, gone.tolist(), strict=True) if out)
    cut += sum(ours.lengths[i] - len(text) for i, text in changed.items())
    pq.write_table(result_table(options, ours, theirs, found), part / "result.parquet")
    groups = largest(found, first)
    members = {i for group in groups for i in (group["stays"], *group["members"][:MEMBERS])}
    values = picked(source, {ours.numbers[i - first]: i for i in members if i >= first})
    summary = {
        "input": str(source.path.name),
        "options": options.told(),
        "against": None if theirs is None else len(theirs.ids),
        "rows": n,
        "kept": int((~gone).sum()) - len(changed),
        "removed": int(gone.sum()),
        "cut": len(changed),
        "skipped": len(ours.bad),
        "skipped examples": [f"{where}: {why}" for where, why in ours.bad[:10]],
        "share of rows removed": float(gone.mean()) if n else 0.0,
        "share of characters removed": cut / characters if characters else None,
        "training saved": (
            "the share of characters that goes" if characters else "the share of rows that goes"
        ) + ", of every epoch, where the number of epochs stays",
        "largest groups": [
            {"size": group["size"], "stays": _name(group["stays"], ours, theirs),
             "members": [_name(i, ours, theirs) for i in group["members"][:MEMBERS]]}
            for group in groups
        ],
    }  # fmt: skip
    shown = [
        page.Group(
            group["size"],
            [
                (_name(i, ours, theirs), values.get(i), float(found.similarity[i]))
                for i in (group["stays"], *group["members"][:MEMBERS])
            ],
        )
        for group in groups
    ]
    (part / "index.html").write_text(page.render(summary, shown), encoding="utf-8")
    if write_kept:
        numbers = {number for number, out in zip(ours.numbers, gone.tolist(), strict=True) if not out}
        source.write(part / "kept", numbers, {ours.numbers[i]: text for i, text in changed.items()})
    return summary


def _name(i: int, ours: Sketched, theirs: Sketched | None) -> str:
    first = len(theirs.ids) if theirs else 0
    return ours.ids[i - first] if i >= first else f"against:{theirs.ids[i]}"  # type: ignore[union-attr]


def largest(found: Decisions, references: int) -> list[dict[str, Any]]:
    """The largest groups: who stays, and who goes for it or for one that goes for it."""
    stands = found.twin.copy()
    changed = np.isin(np.arange(len(stands)), list(found.changed)) | found.gone
    stands = np.where(changed, stands, np.arange(len(stands)))
    for _ in range(64):  # chains of twins are short, and passages may stand in a circle
        stands = np.where(changed, stands[stands], stands)
    moved = np.flatnonzero(changed)
    groups = Counter(stands[moved].tolist()).most_common(GROUPS)
    order = moved[np.argsort(stands[moved], kind="stable")]
    ends = stands[order]
    found_groups = []
    for stays, _ in groups:
        members = [
            i
            for i in order[np.searchsorted(ends, stays) : np.searchsorted(ends, stays, "right")].tolist()
            if i != stays
        ]
        found_groups.append({"size": len(members) + 1, "stays": stays, "members": members})
    return found_groups


def picked(source: Source, wanted: Mapping[int, int]) -> dict[int, Any]:
    """The values of these rows, by the item that `wanted` names for a row's number."""
    values, left = dict[int, Any](), set(wanted)
    for block in source.blocks() if left else ():
        for number, value in zip(block.numbers, block.values, strict=True):
            if number in left:
                values[wanted[number]] = value
                left.discard(number)
        if not left:
            break
    return values
