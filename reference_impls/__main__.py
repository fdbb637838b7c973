"""One experiment in a process of its own: `python -m reference_impls ID --result FILE`.

`redundancy run` starts this as a child. On success it writes the result record as JSON to FILE, before it its
pictures to the same name with `.npz`, and exits with 0; when the experiment fails it writes `{"error": kind, "message":
text}` to FILE and exits with 1. FILE appears whole or not at all. Standard output goes to standard error, where lines
that start with `ATLAS-PROGRESS` tell how far the experiment is.

The network is refused, and memory is limited. This guards against mistakes, not against malice. It stands in this
package, which imports nothing, because a process with threads, such as those of a matrix library, cannot leave its
network devices.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_impls.whole import write_atomically

PROGRESS = "ATLAS-PROGRESS "
"""Starts a line of progress on standard error; a JSON object with `label`, `done` and `total` follows."""

MESSAGE_LENGTH = 4000
CONNECTION_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
NETWORK_EVENTS = CONNECTION_EVENTS | {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


class NetworkRefused(PermissionError):
    """An experiment tried to use the network."""


class ExperimentError(Exception):
    """A failure whose kind is known: (kind, message)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m reference_impls", description=__doc__)
    parser.add_argument("technique", help="id of the technique, or of a benchmark")
    parser.add_argument("--scenario", help="name of the scenario; the first one when left out")
    parser.add_argument("--list", action="store_true", help="write the scenarios, {name: title}, and run none")
    parser.add_argument("--budget", choices=("smoke", "full"), default="smoke")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--result", type=Path, required=True, help="the file to write")
    parser.add_argument("--memory", type=int, help="bytes that this process may allocate")
    parser.add_argument("--package", default="reference_impls.experiments", help="where the experiment's module is")
    options = parser.parse_args(arguments)

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for the experiment's prints and those of native libraries
    if options.memory and sys.platform == "linux":
        _limit_memory(options.memory, options.device)
    _refuse_network()
    try:
        _run(options)
    except BaseException as error:
        traceback.print_exc()
        kind, message = _explain(error)
        write_atomically(options.result, json.dumps({"error": kind, "message": message[:MESSAGE_LENGTH]}))
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    owner, file = options.technique, options.result
    try:
        from reference_impls.accounting import pictures
        from reference_impls.study import registry
        from reference_impls.study.plan import Context

        found = registry.scenarios(owner, options.package)
    except Exception as error:
        raise ExperimentError("import", f"the experiment of {owner!r} cannot be imported: {_name(error)}") from error
    if options.list:
        return write_atomically(file, json.dumps({name: scenario.title for name, scenario in found.items()}))
    name = options.scenario or next(iter(found), None)
    if name not in found:
        raise ExperimentError("usage", f"{owner!r} has no scenario {name!r}; there are: {', '.join(found) or 'none'}")
    _usable(options.device)
    record: object = registry.measure(owner, found[name], Context(options.budget, options.device, progress=_report))
    if not isinstance(record, pictures.Record):
        what = f"the scenario {name!r} must return a record (`Study.record` makes one), got {type(record).__name__}"
        raise ExperimentError("invalid-record", what)
    return pictures.save(record, file)


def _usable(device: str) -> None:
    """Raise an ExperimentError unless something can be computed on this device of torch."""
    if device == "cpu":
        return
    import torch

    try:
        if device.startswith("cpu"):
            raise RuntimeError("the CPU has no number")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise ExperimentError("usage", f"the device {device!r} cannot be used here: {why}") from error


def _report(label: str, done: int, total: int) -> None:
    line = PROGRESS + json.dumps({"label": str(label), "done": int(done), "total": int(total)})
    os.write(2, f"\n{line}\n".encode())  # in one piece, and on a line of its own


def _explain(error: BaseException) -> tuple[str, str]:
    """Kind and message of a failure, from the first cause whose kind is known."""
    import pydantic

    from reference_impls.extras import advice

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if missing := advice(link):
            return "missing-extra", missing
        if type(link).__name__ == "MissingAsset":
            return "missing-asset", str(link)
        if isinstance(link, NetworkRefused):
            return "network", str(link)
        if isinstance(link, MemoryError) or "can't allocate memory" in str(link) or "out of memory" in str(link):
            return "memory", f"the experiment ran out of memory; make it smaller, or allow more memory: {_name(link)}"
    for link in chain:
        if isinstance(link, ExperimentError):
            kind, message = link.args
            return kind, message
        if isinstance(link, pydantic.ValidationError):
            return "invalid-record", f"the result record is not valid: {link}"
    return "exception", f"the experiment failed: {_name(error)}"


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _limit_memory(size: int, device: str) -> None:
    """Let an allocation beyond `size` bytes fail with an error, and be the first process to go when memory runs out.

    Only on Linux, where the limit counts private writable memory alone; CUDA reserves far more than it uses.
    """
    import resource

    if not device.startswith("cuda"):
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _refuse_network() -> None:
    """Let every use of the network by this process fail, with a message that says what to do.

    Where Linux allows it, this process and its children moreover lose the network devices, so that programs and
    native code are held too. Must run before any thread starts.
    """
    if sys.platform == "linux":
        _leave_network_namespace()

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in NETWORK_EVENTS:
            return
        # (socket, address) for connections and messages, (host, ...) for look-ups. Messages without an address go
        # through a connection. Workers of a data loader pass data through sockets in a folder called pymp-*.
        address = arguments[1] if event in CONNECTION_EVENTS else arguments[0]
        if address is None or (isinstance(address, str | bytes) and "/pymp-" in os.fsdecode(address)):
            return
        raise NetworkRefused(
            f"the experiment tried to use the network ({event} to {address}), but experiments run offline: add what it "
            "needs to reference_impls/data/assets.yml, read it with `assets.path(name)`, and fetch it beforehand with "
            "`redundancy assets get`"
        )

    sys.addaudithook(refuse)


def _leave_network_namespace() -> None:
    clone_newuser, clone_newnet = 0x10000000, 0x40000000
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(clone_newuser | clone_newnet) != 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):
            Path(f"/proc/self/{name}").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
