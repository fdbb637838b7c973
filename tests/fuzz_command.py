"""The command under random arguments, in odd surroundings, and ended at random times."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests import knowledge_fixture as base
from tests.interrupted import END_S, ROOT, Endless, interrupt, left, started
from tools import bench, runner
from tools.cli import HOMES, main
from tools.files import changing, scratch
from tools.knowledge import load
from tools.runner import Outcome

HANG_S = 60.0
PAPER = "bolya-2023-token"
WORDS = [
    "", " ", "-", "--", "---", "-h", "--help", "--version", "--json", "--x", "-x", "token-merging", "token-dropping",
    "ToMe", "tome", PAPER, "E101", "w605", "photos", "relation=merge", "relation=spatial_similarity", "status=stable",
    "=", "a=b=c", "stage=", "smoke", "full", "cpu", "cuda", "cpu:99", "cuda:0", "nan", "inf", "-1", "0", "1", "1e999",
    "1e9", "3x3", "0x0", "999999999999999999999", "json", "text", "github", ".", "..", "/", "/dev/null", "/dev/full",
    "/dev/zero", "/proc/nowhere", "loop", "a/b/c", "papers", "taxonomy", "out", "a" * 300, "a/" * 200, "\x00",
    "\x1b[2J", "\n", "é", "日本", "\udcff", "[/x]", "[red]", "{}", "{0}", "%s", "%(x)s", "$x", "`x`", "'", '"', "\\",
    "*", "?", "~", "~nobody/x", "2210.09461", "10.1000/x", "1999", "2999", "It is so.", "A sentence. Another.",
    "it is so", "Bolya, Daniel", ",", "x" * 5000, "points[r=4].macs", "$x^2", "<b>x</b>",
]  # fmt: skip
"""What somebody may type, by mistake or not."""


CLAIM = f"new claim {PAPER} --technique token-merging --kind definition --section 3 --statement"
GOOD = [
    "list --where relation=spatial_similarity --json", "show token-merging --json", "gaps token-dropping", "fmt",
    "schema", "check --format json", "compare token-reduction", "explain E101", "export csv papers",
    "export json --out out", "assets list", "export bibtex token-merging --out x.bib", "run token-merging --seconds 5",
    "assets verify minilm", "bench token-merging --save --budget smoke", "bench --corpus 3x3", "affected --base main",
    "check --changed", "new implementation token-dropping", "notebook token-merging --no-open", CLAIM,
    f"new technique row-sharing --name Rows --summary Shares. --distinct --paper {PAPER}",
    "new paper smith-2020-x --offline --url https://a.example/x --title X --author Smith --year 2020",
]  # fmt: skip
"""Commands that work."""


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with the names that lead to it."""
    context = click.Context(group)
    for name in HOMES if group is main else group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def arguments(chance: random.Random, known: list[tuple[tuple[str, ...], click.Command]]) -> list[str]:
    """A command that works with a few of its words changed, or any one with some of its options."""
    if chance.random() < 0.4:
        words = [*chance.choice(GOOD).split(), *["It is so."] * (chance.random() < 0.3)]
        words = words if " ".join(words).startswith(tuple(" ".join(path) for path, _ in known)) else ["list"]
        for _ in range(chance.choice([0, 1, 1, 2])):
            at = chance.randrange(1, len(words) + 1)
            words[at : at + chance.choice([0, 1, 1])] = chance.choice(
                [[], [chance.choice(WORDS)], [chance.choice(WORDS)]]
            )
        return words
    path, command = chance.choice(known)
    words = list(path)
    if chance.random() < 0.05:
        words[-1:] = [chance.choice(WORDS)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    for option in chance.sample(options, k=min(len(options), chance.choice([0, 1, 1, 2, 3, 6, 20]))):
        words.append(chance.choice(option.opts))
        if not option.is_flag:
            choices = list(getattr(option.type, "choices", ()))
            words.append(chance.choice(choices if choices and chance.random() < 0.6 else WORDS))
    words += chance.choices(WORDS, k=chance.choice([0, 0, 1, 1, 1, 2, 5]))
    return words


def harmless(patch: pytest.MonkeyPatch) -> None:
    """Let nothing train, build, download, look anything up or run tests: what is tried is the command."""
    from reference_impls.cluster import ClusterError
    from reference_impls.data import assets
    from tools import spread
    from tools.scaffold import lookup

    def no_network(*_: Any, **__: Any) -> Any:
        raise lookup.LookupFailed("there is no network")

    def no_asset(*_: Any, **__: Any) -> Any:
        raise assets.AssetError("there is no network")

    def no_cluster(address: str | None) -> Any:
        raise ClusterError("there is no network")

    cost = bench.CheckCost(1, 1, (0.1,), 1.0, ())
    patch.setattr(lookup, "_get", no_network)
    patch.setattr(assets, "get", no_asset)
    patch.setattr(spread, "connect", no_cluster)
    patch.setattr("reference_impls.cluster.connect", no_cluster)
    patch.setattr(assets, "verify", lambda name: [])
    patch.setattr(runner, "run", lambda *_, **__: Outcome(error="timeout", message="not run"))
    patch.setattr(runner, "scenarios", lambda *_, **__: {"photos": "Photos"})
    patch.setattr(bench, "check_cost", lambda *_, **__: cost)
    patch.setattr(bench, "site_cost", lambda *_, **__: bench.SiteCost(1, 1, 1, 1.0))
    patch.setattr("tools.changed.tests_for", lambda root, files: [])
    for name in ("build", "check", "serve", "materialise"):
        patch.setattr(f"tools.site.build.{name}", lambda root: root)


def called(count: int, seed: int, folder: Path) -> Iterator[str]:
    """What went wrong with each of so many lists of arguments, in this process."""
    chance, known = random.Random(seed), list(commands())
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        harmless(patch)
        for number in range(count):
            if number % 100 == 0:
                if number:
                    yield from broken(folder / "atlas")
                shutil.rmtree(folder, ignore_errors=True)
                root, work = base.write(folder / "atlas"), folder / "work" / "here"
                work.mkdir(parents=True)
                (work / "loop").symlink_to("loop")
                os.chdir(work)
                patch.setenv("ATLAS_ROOT", str(root))
            words = arguments(chance, known)
            ahead = [] if chance.random() < 0.9 else ["--root", chance.choice(WORDS)]
            begin = time.monotonic()
            result = CliRunner().invoke(main, [*ahead, *words], input="")
            yield from wrong(words, result.exit_code, result.output, time.monotonic() - begin, result.exception)
        yield from broken(folder / "atlas")
    os.chdir(before)


def wrong(words: list[str], code: int, said: str, seconds: float, error: BaseException | None = None) -> Iterator[str]:
    """What is wrong with the end of a command."""
    what = " ".join(word[:60] for word in words)
    if error is not None and not isinstance(error, SystemExit):
        yield f"`{what}`: {type(error).__name__}: {error}"
    elif code not in (0, 1, 2) or "Traceback" in said:
        yield f"`{what}` ends with {code}: {said[-500:]}"
    if seconds > HANG_S:
        yield f"`{what}` took {seconds:.0f} s"


def broken(root: Path) -> Iterator[str]:
    """What is half-written in an atlas to which only commands have written."""
    with changing(root):
        pass
    yield from (f"left over: {part}" for part in root.rglob("*.part"))
    yield from (f"not good any more: {finding}" for finding in load(root).findings if finding.severity == "error")


# --- real processes ---------------------------------------------------------------------------------------------------

SURROUNDINGS = (
    "{}", "{} <&-", "{} >&-", "{} 2>&-", "{} <&- >&- 2>&-", "{} >/dev/full", "{} 2>/dev/full", "{} | head -c 9",
    "{} </dev/zero", "ATLAS_CACHE=loop {}", "ATLAS_CACHE=/dev/null {}", "ATLAS_CACHE=~nobody/x {}",
    "ATLAS_CACHE=/proc/x {}", "ATLAS_ROOT=loop {}", "ATLAS_ROOT=/nowhere {}", "ATLAS_ROOT= {}", "HOME= {}",
    "HOME=/nowhere {}", "LC_ALL=C {}", "PYTHONIOENCODING=ascii {}", "COLUMNS=1 {}", "COLUMNS=x {}", "TERM=dumb {}",
    "NO_COLOR=1 {}", "TMPDIR=/nowhere {}", "mkdir gone; cd gone; rmdir ../gone; {}", "ulimit -f 0; {}",
    "ulimit -n 20; {}", "umask 777; {}",
)  # fmt: skip
"""What may be around a command."""
SAFE = ("list", "show", "gaps", "check", "explain", "fmt", "schema", "export", "compare", "assets list", "new")


def as_processes(count: int, seed: int, folder: Path) -> Iterator[str]:
    """The same in processes of their own, in odd surroundings."""
    chance = random.Random(seed)
    known = [one for one in commands() if " ".join(one[0]).startswith(SAFE)]
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "loop").symlink_to("loop")
    root = base.write(folder / "atlas")
    for number in range(count):
        words = [word for word in arguments(chance, known) if "\0" not in word]
        words = [word for word in words if word not in ("--arxiv", "--doi")]
        around = SURROUNDINGS[number % len(SURROUNDINGS)]
        command = around.format('"$PYTHON" -m tools.cli "$@"')
        environment = os.environ | {
            "PYTHON": sys.executable, "ATLAS_ROOT": str(root), "PYTHONPATH": str(ROOT),
            "ATLAS_CACHE": str(folder / "cache"),
        }  # fmt: skip
        begin = time.monotonic()
        try:
            done = subprocess.run(
                ["bash", "-c", command, "bash", *(word.encode("utf-8", "surrogateescape") for word in words)],
                cwd=folder / "work", env=environment, capture_output=True, timeout=HANG_S,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            yield f"`{around.format(' '.join(words)[:300])}` hangs"
            continue
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        yield from (f"{around}: {one}" for one in wrong(words, done.returncode, said, time.monotonic() - begin))
    yield from broken(root)


# --- interruptions ----------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT)


def interrupted(count: int, seed: int, folder: Path) -> Iterator[str]:
    """What was left or lost by so many commands that were ended, or ran two at once."""
    chance = random.Random(seed)
    kinds: list[Callable[[random.Random, Path, signal.Signals], Iterator[str]]] = [
        a_writer,
        a_run,
        a_writer,
        two_at_once,
    ]
    for number, number_of_signal in zip(range(count), itertools.cycle(SIGNALS), strict=False):
        place = folder / str(number)
        place.mkdir(parents=True)
        kind = kinds[(number + number // len(kinds)) % len(kinds)]
        yield from (f"{kind.__name__}, {number_of_signal.name}: {one}" for one in kind(chance, place, number_of_signal))
        shutil.rmtree(place, ignore_errors=True)


def writing(root: Path, chance: random.Random, name: str = "x") -> list[str]:
    """A command that changes files."""
    new = {
        "claim": ["new", "claim", PAPER, "--technique", "token-merging", "--kind", "definition", "--section", "3",
                  "--statement", f"It is {name}."],
        "technique": ["new", "technique", f"row-{name}", "--name", f"Row {name}", "--paper", PAPER, "--summary",
                      "Computes equal rows once.", "--distinct"],
        "fmt": ["fmt"],
    }  # fmt: skip
    return [sys.executable, "-m", "tools.cli", "--root", str(root), *new[chance.choice(["claim", "technique", "fmt"])]]


def a_writer(chance: random.Random, place: Path, number: signal.Signals) -> Iterator[str]:
    """A command that writes: what it was to write is there as a whole, or nothing of it."""
    root = base.write(place / "atlas")
    paper = root / base.PAPER
    paper.write_text(paper.read_text().replace("year: 2023\nvenue: ICLR 2023", "venue: ICLR 2023\nyear: 2023"))
    names = {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    (place / "tmp").mkdir()
    command = started(writing(root, chance), place)
    time.sleep(chance.uniform(0.0, 1.2))
    interrupt(command, number)
    yield from broken(root)
    new = {p.relative_to(root) for p in root.rglob("*") if p.is_file()} - names
    if len(new) not in (0, 5):
        yield f"{len(new)} of 5 files: {sorted(map(str, new))}"
    claims = len(load(root).papers[PAPER].claims)
    if claims not in (2, 3):
        yield f"{claims} claims"


def a_run(chance: random.Random, place: Path, number: signal.Signals) -> Iterator[str]:
    """An experiment without an end."""
    endless = Endless(place, groups=chance.choice([None, ""]))
    caller = endless.start()
    processes = []
    if chance.random() < 0.7:
        processes = endless.processes()
        time.sleep(chance.uniform(0.0, 0.2))
    else:
        time.sleep(chance.uniform(0.3, 2.0))
    interrupt(caller, number)
    deadline = time.monotonic() + END_S
    if not processes and endless.pids.exists():
        processes = endless.processes(1)
    yield from (f"still there: {one}" for one in left(processes, deadline - time.monotonic()))
    with scratch("atlas-run-", place / "tmp") as folder:
        yield from (f"left over: {one}" for one in (place / "tmp").glob("atlas-run-*") if one != folder)


def two_at_once(chance: random.Random, place: Path, number: signal.Signals) -> Iterator[str]:
    """Two that write at the same time, which nobody interrupts."""
    root = base.write(place / "atlas")
    (place / "tmp").mkdir()
    only_claims = random.Random(0)
    only_claims.choice = lambda choices: choices[0]  # type: ignore[method-assign]
    both = [started(writing(root, only_claims, name), place) for name in ("a", "b")]
    codes = [one.wait(HANG_S) for one in both]
    statements = [claim.statement for claim in load(root).papers[PAPER].claims]
    if codes != [0, 0] or not {"It is a.", "It is b."} <= set(statements):
        yield f"exit codes {codes}, and there are {statements}"
    yield from broken(root)
