"""From what the command is given to a report that is ranked and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_impls import report as measuring
from reference_impls.report.achieve import Target
from reference_impls.report.result import FILE, Result
from reference_impls.report.verify import Verification, verify
from reference_impls.whole import write_atomically

from ..files import scratch
from ..knowledge import Knowledge, load
from ..progress import progress
from . import inputs
from .page import page
from .ranking import Ranking, rank, untrained

PAGE = "index.html"


@dataclass(frozen=True)
class Done:
    """A report with what the catalogue makes of it."""

    result: Result
    ranking: Ranking
    target: Target
    """Where another process finds the model and the data."""
    given: dict[str, str | None]
    """What the command named."""


def measured(
    *,
    model: str | None,
    hf: str | None,
    data: str,
    kind: str | None,
    budget: dict[str, float],
    items: int,
    seed: int,
    device: str,
    axes: Sequence[str] | None,
    out: Path | None,
    resume: bool,
    root: Path,
    command: str,
) -> Done:
    """Measure, rank, and write the page into `out`, if it is given.

    Raises: inputs.InputError for a model or data that cannot be had; ValueError or TypeError as `report` does.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise inputs.InputError(f"--out must be a folder, and {str(out)!r} is a file")
    if out is not None and (out / FILE).exists() and not resume:
        raise inputs.InputError(f"{str(out)!r} holds a report already: name another folder")
    network = inputs.hugging_face(hf) if hf else inputs.named(str(model), "--model")
    network = network.to(device)
    kind, batches, name = _data(data, kind, network, hf)
    knowledge = load(root, check=False)
    with progress() as tell:
        result = measuring.report(
            network, batches, kind=kind, budget=budget, items=items, seed=seed, axes=axes,  # type: ignore[arg-type]
            data_name=name, resume=out, progress=lambda now: tell(now.doing, round(100 * now.done), 100),
        )  # fmt: skip
    ranking = rank(result, knowledge)
    if out is not None:
        write(result, ranking, knowledge, out, command)
    here = inputs.__name__
    target = Target(
        model=f"{here}:given_model" if hf else str(model),
        data=f"{here}:given_data" if Path(data).exists() else data,
    )
    return Done(result, ranking, target, {"hf": hf, "model": model, "data": data})


def verified(done: Done, out: Path | None) -> Verification:
    """Apply what the report suggests, each in a process of its own. Raises: ValueError where nothing applies."""
    before = os.environ.get(inputs.GIVEN)
    os.environ[inputs.GIVEN] = json.dumps(done.given)
    try:
        with scratch("atlas-verify-") as folder:
            return verify(done.result, done.target, out or folder, techniques=untrained(done.ranking))
    finally:
        os.environ.pop(inputs.GIVEN)
        os.environ |= {inputs.GIVEN: before} if before else {}


def write(result: Result, ranking: Ranking, knowledge: Knowledge | None, out: Path, command: str) -> None:
    """The report as JSON, text and a page, into a folder."""
    result.save(out)
    commands = [command, *([f"{command} --verify"] if ranking.first else [])]
    commands += [f"redundancy show {o.suggestion.technique}" for o in ranking.options[:1]]
    write_atomically(out / PAGE, page(result, ranking, knowledge, commands))


def _data(data: str, kind: str | None, network: Any, hf: str | None) -> tuple[str, Iterable[Any], str]:
    """(kind, batches, name) of what --data names."""
    if ":" in data and not Path(data).exists():
        if kind is None:
            raise inputs.InputError("--kind image, video, text or tokens says what the loader gives")
        return kind, inputs.named(data, "--data"), data
    told, paths = inputs.files(Path(data))
    if kind is not None and kind != told:
        raise inputs.InputError(f"--kind {kind} does not fit {data!r}, whose files are of kind {told}")
    return told, inputs.loader(told, paths, network, hf), Path(data).name
