"""Ends a process together with everything that it started, whoever ends first.

On Linux a keeper stands between the caller and the process. Orphans of the process become children of the keeper
(`PR_SET_CHILD_SUBREAPER`), whatever session they are in and whatever they did to their environment, and where the
system lends a control group (version 2), all of them are in one. When the process ends, or the keeper is asked to end
(SIGTERM, SIGHUP), or the caller is gone, even by SIGKILL, the keeper ends all of them and then itself, with the exit
code of the process. Not held: without a control group, processes that each start the next one and end faster than the
list of processes can be read; and a process that kills its own keeper. Elsewhere than on Linux the caller does it all.

This module needs the standard library alone: as a program, `python guard.py CALLER GROUPS COMMAND...`, it starts fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

AVAILABLE = sys.platform == "linux"
"""Whether there is a keeper; elsewhere a command is started as it is."""
END_S = 4.0
"""Longest time in which a keeper ends what it keeps."""
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of prctl(2)
OWN_GROUP = "atlas-"


class Child(Protocol):
    """What is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    @property
    def stdout(self) -> Any: ...
    @property
    def returncode(self) -> Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def terminate(self) -> None: ...


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command with a keeper, in a session of its own; `options` are those of `subprocess.Popen`."""
    if AVAILABLE:
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), groups()]
        command = [*keeper, *command]
    return subprocess.Popen(command, start_new_session=True, **options)


def end(child: Child) -> None:
    """End what `start` or a fork with `keep` has started, and everything below it."""
    if AVAILABLE:
        child.terminate()  # the keeper, which ends all that it keeps
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            _kill_all(child.pid)
    child.kill()
    child.wait()


def run(command: Sequence[str], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command run to its end, its two outputs captured; nothing of it is left, whatever ends the call.

    Raises: subprocess.TimeoutExpired.
    """
    child = start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    with child:
        try:
            out, err = child.communicate(timeout=timeout)
        finally:
            end(child)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def call(command: Sequence[str], **options: Any) -> int:
    """The exit code of a command run to its end with the caller's own streams; nothing of it is left either.

    After an interrupt the command has `END_S` seconds in which to say what it has done.
    """
    child = start(command, **options)
    with child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)
            raise
        finally:
            end(child)


# --- the keeper -------------------------------------------------------------------------------------------------------


def keep(caller: int, home: str) -> None:
    """Become the keeper of a fork of this process: returns in the fork alone.

    Args:
        caller: the parent of this process, with which it ends.
        home: the folder in which a control group may be made; empty if there is none.
    """
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # which a caller may ignore: then nobody is told of an end
    _prctl(SET_SUBREAPER, 1)
    _prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != caller:
        os._exit(1)
    group, keeper = _Group(home), os.getpid()
    process = os.fork()
    if process == 0:
        _prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        group.enter()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return
    code = 1
    try:
        code = _watch(process, watched, group)
    finally:
        os._exit(code)


def _watch(process: int, watched: set[signal.Signals], group: _Group) -> int:
    """Wait for the process, or for somebody who wants it to end; then end all, and the process's exit code."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # whoever reads what the process writes must not wait for the keeper
        os.dup2(null, stream)
    status: int | None = None
    while status is None:
        number = signal.sigwait(watched)
        if number == signal.SIGINT:
            _signal(process, signal.SIGINT)
        elif number != signal.SIGCHLD:
            break
        status = _reaped(process)
    group.end()
    last = _kill_all(os.getpid(), process)
    group.remove()
    status = last if status is None else status
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    if code < 0:
        _die_like(-code)
    return code


def _die_like(number: int) -> NoReturn:
    """End by the signal that ended the process."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _reaped(process: int) -> int | None:
    """Take the exit status of every child that has ended; that of `process`, if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == process:
            found = status


def _kill_all(root: int, process: int = 0) -> int | None:
    """Kill everything below `root`, again and again until nothing is left; the exit status of `process`, a child."""
    status, deadline = None, time.monotonic() + END_S
    while True:
        there = descendants(root)
        for pid in there:
            _signal(pid, signal.SIGKILL)
        if root == os.getpid() and (reaped := _reaped(process)) is not None:
            status = reaped
        if not there or time.monotonic() > deadline:
            return status
        time.sleep(0.002)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


def descendants(root: int) -> list[int]:
    """The processes below `root` that have not ended."""
    children: dict[int, list[int]] = {}
    ended = set()
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - many names, and fast
        try:
            stat = Path("/proc", name, "stat").read_bytes()
        except OSError:
            continue
        state, parent = stat.rpartition(b")")[2].split()[:2]
        children.setdefault(int(parent), []).append(int(name))
        if state in (b"Z", b"X"):
            ended.add(int(name))
    found, open_ = [], [root]
    while open_:
        below = children.pop(open_.pop(), [])
        open_ += below
        found += [pid for pid in below if pid not in ended]
    return found


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# --- control groups ---------------------------------------------------------------------------------------------------


def groups() -> str:
    """The folder of this process's own control group (version 2), if groups may be made in it; else empty."""
    try:
        own = next(
            line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
        )
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            if kind.startswith("cgroup2 "):
                root, place = mount.split()[3:5]
                home = Path(place, os.path.relpath(own, root))
                return str(home) if os.access(home, os.W_OK) and (home / "cgroup.procs").exists() else ""
    except (OSError, StopIteration, ValueError):
        pass
    return ""


class _Group:
    """A control group for what a keeper keeps; does nothing where none can be made."""

    def __init__(self, home: str) -> None:
        self.folder: Path | None = None
        self._lock: IO[bytes] | None = None
        if not home:
            return
        for left in Path(home).glob(f"{OWN_GROUP}*"):  # its keeper was killed, or holds the lock
            if _locked(left):
                _end(left)
        folder = Path(home, f"{OWN_GROUP}{os.getpid()}")
        try:
            folder.mkdir()
            if not (folder / "cgroup.kill").exists() or not (lock := _locked(folder)):
                folder.rmdir()
                return
        except OSError:
            return
        self.folder, self._lock = folder, lock

    def enter(self) -> None:
        """In the process: go into the group."""
        if self.folder is not None and self._lock is not None:
            self._lock.close()  # the lock is the keeper's
            try:
                (self.folder / "cgroup.procs").write_text("0")
            except OSError:
                return  # the keeper still has the descendants

    def end(self) -> None:
        """Kill all that is in it, at once."""
        if self.folder is not None:
            _end(self.folder, remove=False)

    def remove(self) -> None:
        """Remove it, once it is empty."""
        if self.folder is not None:
            _end(self.folder)


def _locked(folder: Path) -> IO[bytes] | None:
    """The group's events, opened with a lock that goes with its holder; None where somebody has it."""
    import fcntl

    try:
        file = (folder / "cgroup.events").open("rb")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return file


def _end(group: Path, *, remove: bool = True) -> None:
    try:
        (group / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + END_S / 2
        while remove and time.monotonic() < deadline:
            if "populated 0" in (group / "cgroup.events").read_text():
                return group.rmdir()
            time.sleep(0.002)
    except OSError:
        return None


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
