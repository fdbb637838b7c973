"""A run that would never end, its processes, and ways of ending it: what tests of interruption share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
END_S = 5.0
"""Within this time nothing of an interrupted command may be left."""
HARD_TO_CATCH = """
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
code = "import os, time; open('{pids}', 'a').write(str(os.getpid()) + ' '); time.sleep(1000)"
os.execve(sys.executable, [sys.executable, "-S", "-c", code], {{}})
"""
"""A process that leaves its session, hands itself to another parent, and forgets its environment."""
EXPERIMENT = """
import os, subprocess, sys, time
from reference_impls.study import Plan, Scenario

def run(study):
    open('{pids}', 'a').write(f"{{os.getpid()}} ")
    subprocess.run([sys.executable, "-c", "import os, sys\\n" + {hard!r}])
    time.sleep(1000)

SCENARIOS = [Scenario("default", "Made up", run, Plan(), Plan())]
"""
CALLER = """
import sys
from reference_impls import guard
from tools import runner
if {groups!r} is not None:
    guard.groups = lambda: {groups!r}
runner.run("made-up", package="endless", seconds=600, preloaded={preloaded})
"""


ENDLESS = """
import os, subprocess, sys, time
open({pids!r}, 'a').write(f"{{os.getpid()}} ")
subprocess.run([sys.executable, "-c", "import os, sys\\n" + {hard!r}])
time.sleep(1000)
"""
"""A process without an end, and one that it starts."""
COMMANDS = {
    "affected --run": """
from tools import changed
from tools.cli import main
changed.changed_files = lambda root, base: set()
changed.tests_for = lambda root, files: ["-p", "no:cacheprovider", {test!r}]
main(["affected", "--run"])
""",
    "bench --corpus": """
from pathlib import Path
from tools import bench
from tools.cli import main
bench.CHECK = Path({test!r}).read_text()
main(["bench", "--corpus", "2x2"])
""",
}
"""Callers of commands whose child, a test or a check, never ends."""


@dataclass
class Endless:
    """An experiment without an end, started by a process of its own in `folder`; or a command of `COMMANDS`."""

    folder: Path
    preloaded: bool = False
    groups: str | None = None
    """The folder of control groups; what the system lends, if None."""
    command: str = ""

    def start(self) -> subprocess.Popen[bytes]:
        """The caller, which runs it."""
        package, hard = self.folder / "endless", HARD_TO_CATCH.format(pids=self.pids)
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "made_up.py").write_text(EXPERIMENT.format(pids=self.pids, hard=hard))
        (self.folder / "tmp").mkdir()
        if self.command:
            test = self.folder / "test_endless.py"
            test.write_text(ENDLESS.format(pids=str(self.pids), hard=hard))
            return started([sys.executable, "-c", COMMANDS[self.command].format(test=str(test))], self.folder, ROOT)
        code = CALLER.format(groups=self.groups, preloaded=self.preloaded)
        return started([sys.executable, "-c", code], self.folder)

    @property
    def pids(self) -> Path:
        return self.folder / "pids"

    def processes(self, count: int = 2, seconds: float = 60) -> list[psutil.Process]:
        """The processes of the experiment, as soon as there are so many."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.pids.read_text().split() if self.pids.exists() else []
            if len(found) >= count:
                return [psutil.Process(int(pid)) for pid in found if psutil.pid_exists(int(pid))]
            time.sleep(0.02)
        raise TimeoutError(f"only {found} were started")


def hear_interrupts() -> None:
    """In a child: take SIGINT as at a terminal, even where a shell lets its background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(command: Sequence[str], folder: Path, where: Path | None = None) -> subprocess.Popen[bytes]:
    """A process in `folder`, or elsewhere, with its place for temporary files in `folder`."""
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": paths}
    return subprocess.Popen(
        command, cwd=where or folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=hear_interrupts,
    )  # fmt: skip


def interrupt(caller: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End a process by a signal, and wait until it has ended."""
    caller.send_signal(number)
    caller.wait(END_S + 25)


def left(processes: Sequence[psutil.Process], seconds: float = END_S) -> list[psutil.Process]:
    """Those that are still there after so many seconds; they are killed then."""
    deadline = time.monotonic() + seconds
    while (there := [one for one in processes if alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for one in there:
        one.kill()
    return there


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
