"""Child processes that begin with torch imported: forked from one server of this process, not started anew.

An interpreter that imports torch costs two seconds of CPU, a fork a few milliseconds. The server (that of
`multiprocessing`) starts with the first child, has imported `PRELOADED` once, runs no thread, and ends with this
process. What a child imports beyond that it imports for itself, so that it sees files as they are now. Each child has
its keeper (`reference_impls.guard`).
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from reference_impls import guard

PRELOADED = ("torch", "pydantic", "psutil", "sklearn.datasets", "ipykernel.kernelapp")
"""Nothing of the atlas, which a child finds by its own path, nor matplotlib, which reads the environment on import."""
SERVER = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
"""Environment that only counts when an interpreter starts."""
AVAILABLE = sys.platform == "linux"
"""Elsewhere native libraries may not survive a fork; start a new interpreter instead."""
LONGEST_FOLDER = 107 - len("/pymp-01234567/listener-01234567")
"""Bytes of the folder for temporary files: the path of a socket, in which the server listens, has at most 107."""
_STARTING = threading.Lock()


class Forked:
    """A running function in a session of its own, where forks are `AVAILABLE`.

    `function` is named `module:name` and imported in the child; what it returns, if that is a number, is the exit code.
    What it writes to its standard output and error comes out of `stdout`, or goes nowhere if `capture` is false.
    """

    def __init__(
        self, function: str, *arguments: Any, folder: Path | str, environment: Mapping[str, str], capture: bool = True
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        reader, writer = context.Pipe(duplex=False)
        output = writer if capture else None
        server = _start_server()
        about = (server, guard.groups(), function, arguments, str(folder), dict(environment), output)
        self._process = context.Process(target=_child, args=about, daemon=False)
        self._process.start()
        writer.close()
        self.stdin = self.stderr = None
        self.stdout: BinaryIO | None = os.fdopen(os.dup(reader.fileno()), "rb") if capture else None
        reader.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the keeper, which keeps nothing any more or does not answer; `terminate` ends what it keeps."""
        if self.poll() is None:
            self._process.kill()

    def terminate(self) -> None:
        """Let the keeper end the process and everything below it."""
        if self.poll() is None:
            self._process.terminate()


def _start_server() -> int:
    """Start the server in its environment, unless it runs; its process id."""
    with _STARTING:
        before, chosen = {name: os.environ.get(name) for name in SERVER}, tempfile.tempdir
        os.environ.update(SERVER)
        if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
            tempfile.tempdir = "/tmp"  # in which multiprocessing makes a folder of its own
        try:
            server: Any = importlib.import_module("multiprocessing.forkserver")
            server.ensure_running()
            return int(server._forkserver._forkserver_pid)
        finally:
            tempfile.tempdir = chosen
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _child(
    server: int,
    home: str,
    function: str,
    arguments: tuple[Any, ...],
    folder: str,
    environment: Mapping[str, str],
    output: Connection | None,
) -> None:
    """In the child: begin as an interpreter does that is started in `folder` with this environment."""
    os.setsid()
    its: Any = importlib.import_module("multiprocessing.forkserver")
    os.close(its._forkserver._forkserver_alive_fd)  # else the server would wait for this process, not for its starter
    its._forkserver._forkserver_alive_fd = its._forkserver._forkserver_address = None
    guard.keep(server, home)  # this process ends with the server, which ends with its starter
    sink = os.open(os.devnull, os.O_WRONLY) if output is None else output.fileno()
    for stream in (1, 2):
        os.dup2(sink, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*first, *(path for path in sys.path if path not in first)]
    own = {name.partition(".")[0] for name in (__name__, guard.__name__)}
    for known in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[known]  # the child may know other packages of these names
    importlib.invalidate_caches()
    multiprocessing.set_start_method(None, force=True)  # the default again, for the child's own children
    for text in (sys.stdout, sys.stderr):
        if isinstance(text, io.TextIOWrapper):
            text.reconfigure(write_through=True)
    faulthandler.enable()  # a crash of native code leaves the Python line in the log
    if action := environment.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)  # type: ignore[arg-type]
    module, _, name = function.partition(":")
    code = getattr(importlib.import_module(module), name)(*arguments)
    sys.exit(code if isinstance(code, int) else 0)
