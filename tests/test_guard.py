"""Whatever ends a command, everything that it has started ends with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reference_impls import guard
from tests.interrupted import COMMANDS, ROOT, Endless, interrupt, left
from tools.files import scratch

pytestmark = pytest.mark.skipif(not guard.AVAILABLE, reason="keepers need Linux")


@pytest.mark.parametrize(
    ("number", "preloaded", "groups"),
    [
        (signal.SIGTERM, False, None),
        (signal.SIGHUP, False, ""),
        (signal.SIGKILL, False, None),
        (signal.SIGKILL, False, ""),
        (signal.SIGKILL, True, ""),
    ],
    ids=["TERM", "HUP without groups", "KILL", "KILL without groups", "KILL of a forked one"],
)
def test_nothing_of_a_run_outlives_its_caller(
    tmp_path: Path, number: signal.Signals, preloaded: bool, groups: str | None
) -> None:
    folder = tmp_path / ("deep" * 25)  # longer than the path of a socket may be
    endless = Endless(folder, preloaded, groups)
    caller = endless.start()
    processes = endless.processes()
    assert len(processes) == 2
    interrupt(caller, number)
    assert left(processes) == []
    with scratch("atlas-run-", folder / "tmp") as own:
        there = [one.name for one in (folder / "tmp").glob("atlas-run-*")]
        assert there == [own.name], "what a killed caller left goes at the next start"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_command_that_tests_or_times_outlives_it(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    endless = Endless(tmp_path, command=command)
    caller = endless.start()
    processes = endless.processes()
    assert len(processes) == 2
    interrupt(caller, number)
    assert left(processes) == []


def test_a_command_keeps_its_exit_code_and_its_signal() -> None:
    assert guard.start(["sh", "-c", "exit 7"]).wait() == guard.call(["sh", "-c", "exit 7"]) == 7
    assert guard.start([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]).wait() == -11
    assert guard.start(["/no/such/program"], stderr=subprocess.DEVNULL).wait() != 0
    done = guard.run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


def test_a_caller_that_ignores_signals_is_told_of_the_end() -> None:
    code = "import signal; from reference_impls import guard\n"
    code += "for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
    code += "child = guard.start(['sh', '-c', 'exit 7']); child.wait(); guard.end(guard.start(['sleep', '1000']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("groups", [None, ""], ids=["as it is", "without groups"])
def test_what_a_command_started_ends_with_it(groups: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if groups is not None:
        monkeypatch.setattr(guard, "groups", lambda: groups)
    code = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, env={}).pid)"
    done = guard.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == 0
    assert not psutil.pid_exists(int(done.stdout))
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        guard.run(["sleep", "1000"], timeout=0.2)
    assert time.monotonic() - start < 60


def test_processes_that_each_start_the_next_one_are_caught_in_a_group() -> None:
    if not guard.groups():
        pytest.skip("no control group may be made here")
    jump = "import os, time\nif os.fork(): time.sleep(1000)\nos.setsid()\nwhile True:\n    if os.fork(): os._exit(0)"
    child = guard.start([sys.executable, "-c", jump])
    time.sleep(0.3)
    guard.end(child)
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if jump in (p.info["cmdline"] or [])]
    assert not list(Path(guard.groups()).glob(f"{guard.OWN_GROUP}{child.pid}"))
