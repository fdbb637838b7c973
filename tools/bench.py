"""`redundancy bench`: measures every technique again, and how long `redundancy check` takes on a large atlas."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import yaml

from reference_impls import guard, strict
from reference_impls.accounting.pictures import save as save_record

from . import runner
from .files import changing, scratch
from .knowledge.paths import AXES, RESULTS
from .knowledge.reader import read_yaml
from .runner import Budget, Outcome

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
ROOT = Path(__file__).resolve().parents[1]
Engine = Literal["local", "ray"]
Unit = tuple[str, str]


@dataclass(frozen=True)
class Result:
    """One scenario that was run."""

    technique: str
    scenario: str
    outcome: Outcome
    file: Path | None = None
    """Where the record was saved."""


def run_all(
    ids: Iterable[str],
    save: bool,
    *,
    budget: Budget = "full",
    device: str = "cpu",
    folder: Path = ROOT / RESULTS,
    root: Path | None = None,
    seconds: float | None = None,
    memory_gb: float = runner.MEMORY_GB,
    started: Callable[[str, str], runner.Progress] = lambda technique, scenario: lambda label, done, total: None,
    package: str = "reference_impls.experiments",
    implementations: Path | None = None,
    only: Collection[str] = (),
    engine: Engine = "local",
    address: str | None = None,
) -> Iterator[Result]:
    """Run every scenario of the techniques, yielding each as it ends; a failure does not keep the others from running.

    Args:
        ids: the techniques.
        save: write each record to `folder/<id>/<scenario>.json` (on another device than the CPU,
            `<scenario>.<device>.json`). A failed run leaves an earlier record as it is.
        root: the checkout whose lock is held while a record is written, and out of which no link may lead.
        started: called before each scenario; returns what is told of its progress.
        implementations: as for `runner.run`.
        only: names of scenarios; all by default.
        engine: `ray` spreads the scenarios over the nodes of the cluster at `address` (`spread.py`); progress inside
            of a scenario is not told then, and results come in any order.
    Raises: ClusterError for an address that does not answer.
    """
    units = list[Unit]()
    for technique in ids:
        try:
            names = runner.scenarios(technique, package=package, implementations=implementations)
        except RuntimeError as error:
            yield Result(technique, "", Outcome(error="import", message=str(error)))
            continue
        units += [(technique, name) for name in names if not only or name in only]
    measure = partial(
        runner.run,
        budget=budget,
        device=device,
        seconds=seconds,
        memory_gb=memory_gb,
        package=package,
        implementations=implementations,
    )
    if engine == "ray":
        from .spread import spread

        outcomes = spread(measure, units, address)
    else:
        outcomes = (
            ((technique, name), measure(technique, scenario=name, progress=started(technique, name)))
            for technique, name in units
        )
    for (technique, name), outcome in outcomes:
        file = None
        if save and outcome.record is not None:
            kind = device.partition(":")[0]
            file = folder / technique / (f"{name}.json" if kind == "cpu" else f"{name}.{kind}.json")
            with changing(root) if root else nullcontext():
                save_record(outcome.record, file, root)
        yield Result(technique, name, outcome, file)


@dataclass(frozen=True)
class CheckCost:
    """What `redundancy check` cost on a generated atlas."""

    entries: int
    papers: int
    seconds: tuple[float, ...]
    """Wall-clock of each repetition, interpreter start included."""
    peak_mb: float
    """Largest memory of the interpreter, in MiB."""
    findings: tuple[str, ...]
    """What it reported: nothing, or the generator does not follow the schema."""


CHECK = f"""
import json, resource, sys
from pathlib import Path
from {__package__}.knowledge import load
findings = load(Path(sys.argv[1])).findings
print(json.dumps([[str(finding) for finding in findings], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def check_cost(entries: int = 200, papers: int | None = None, repetitions: int = 5, root: Path = ROOT) -> CheckCost:
    """Time the check of an atlas of `entries` drafts and `papers` papers (by default as many), in new interpreters."""
    papers = entries if papers is None else papers
    with scratch("atlas-check-") as folder:
        generate(folder, entries, papers, root)
        seconds, peaks, findings = [], [], []
        for _ in range(repetitions):
            start = time.perf_counter()
            command = [sys.executable, "-c", CHECK, str(folder)]
            done = guard.run(command, cwd=ROOT)
            seconds.append(time.perf_counter() - start)
            done.check_returncode()
            findings, peak = strict.loads(done.stdout)
            peaks.append(peak * (1 if sys.platform == "darwin" else 1024) / 2**20)
        return CheckCost(entries, papers, tuple(seconds), max(peaks), tuple(findings))


@dataclass(frozen=True)
class SiteCost:
    """What a strict build of the site cost, of an atlas that was filled up with generated entries."""

    entries: int
    papers: int
    pages: int
    seconds: float
    """Wall-clock, without the runs of notebooks; one process."""


def _left_out(root: Path) -> Callable[[str, list[str]], set[str]]:
    """What a copy of the atlas at `root` goes without: what is hidden or compiled, and what its commands have built."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        built = {"site", "build", "dist"} if Path(folder) == root else set()
        return {name for name in names if name.startswith(".") or name == "__pycache__" or name in built}

    return ignored


def site_cost(entries: int, papers: int, root: Path = ROOT) -> SiteCost:
    """Build the site of the atlas at `root`, filled up to so many entries and papers by drafts varied from its own."""
    with scratch("atlas-site-") as folder:
        whole, extra = folder / "atlas", folder / "generated"
        shutil.copytree(root, whole, symlinks=True, ignore=_left_out(root))
        there = [len(list((root / name).glob("*.yml"))) for name in ("taxonomy/techniques", "papers")]
        more = max(entries - there[0], 1)
        generate(extra, more, max(papers - there[1], more), root)
        shutil.copytree(extra, whole, dirs_exist_ok=True)
        techniques, written = (len(list((whole / name).glob("*.yml"))) for name in ("taxonomy/techniques", "papers"))
        start = time.perf_counter()
        done = guard.run([sys.executable, "-c", SITE, str(whole)], cwd=whole, env=_of(whole, root))
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr.decode("utf-8", "replace").strip()[-2000:])
        return SiteCost(techniques, written, len(list((whole / "site").rglob("*.html"))), seconds)


SITE = """
import importlib, sys
from pathlib import Path
importlib.import_module("tools.site.build").build(Path(sys.argv[1]), run=False)
"""


def _of(copy: Path, root: Path) -> dict[str, str]:
    """The environment in which Python takes the code of a copy, and the runs of notebooks of the clone it is of."""
    code = os.pathsep.join(map(str, (copy, copy / "tools" / "import-path")))
    return os.environ | {"PYTHONPATH": code, "ATLAS_NOTEBOOK_CACHE": str(root / ".cache" / "notebooks")}


def generate(folder: Path, entries: int, papers: int, root: Path = ROOT) -> None:
    """Write an atlas of `entries` valid drafts and `papers` papers, varied from the entries of `root` and their papers.

    Paper n is about entry n modulo `entries`, with the claims of the paper that it is varied from; each entry is
    related to the one before it. Raises FileNotFoundError if `root` has no entry to vary.
    """
    sources = sorted((root / "taxonomy" / "techniques").glob("*.yml"))
    if not sources:
        raise FileNotFoundError(f"{root / 'taxonomy' / 'techniques'} holds no entry to vary")
    (folder / "taxonomy" / "techniques").mkdir(parents=True)
    (folder / "papers").mkdir()
    (folder / AXES).write_text((root / AXES).read_text(encoding="utf-8"), encoding="utf-8")
    originals = sorted((root / "papers").glob("*.yml"))
    about: dict[int, list[str]] = {}
    for number, original in enumerate(islice(cycle(originals), papers)):
        paper: dict[str, Any] = read_yaml(original, original.name).data
        year = 1990 + number % 30
        key = f"generated-{year}-paper{number}"
        about.setdefault(number % entries, []).append(key)
        paper |= {
            "key": key,
            "year": year,
            "title": f"{paper['title']} {number}",
            "ids": {"arxiv": f"{1001 + number // 9999:04d}.{1 + number % 9999:04d}"},
            "founding": False,
            "claims": [
                {k: v for k, v in claim.items() if k != "check"} | {"technique": _id(sources, number % entries)}
                for claim in paper.get("claims", [])
            ],
        }
        _dump(folder / "papers" / f"{key}.yml", paper, original)
    for number, source in enumerate(islice(cycle(sources), entries)):
        entry: dict[str, Any] = read_yaml(source, source.name).data
        entry = {k: v for k, v in entry.items() if k not in {"implementation", "parts", "replaced_by", "relations"}}
        entry |= {"id": _id(sources, number), "name": f"{entry['name'][:70]} {number}"}
        entry |= {"status": "draft", "aliases": [], "founding": False}
        if entry.get("invariant"):
            entry["invariant_untested"] = "It is that of the entry from which this one was varied."
        entry["algorithm"] = [{"step": step["step"]} for step in entry.get("algorithm", [])]
        entry["papers"] = [{"key": key, "role": "introduces"} for key in about[number]]
        if number:
            related = {"type": "generalises", "target": _id(sources, number - 1), "note": "The entry before."}
            entry["relations"] = [related]
        _dump(folder / "taxonomy" / "techniques" / f"{entry['id']}.yml", entry, source)


def _id(sources: Sequence[Path], number: int) -> str:
    """Id of a generated entry: that of the entry it is varied from, and its number."""
    return f"{sources[number % len(sources)].stem}-{number}"


def _dump(file: Path, content: dict[str, Any], original: Path) -> None:
    """Write `content` under the first line of `original`, which tells editors the schema."""
    content = json.loads(re.sub(r"\{\{.*?\}\}", "some", json.dumps(content)))  # a generated entry has no results
    modeline = original.read_text(encoding="utf-8").partition("\n")[0]
    text = yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    file.write_text(f"{modeline}\n{text}", encoding="utf-8")
