"""Resident memory of this process, all of it: tensors, buffers of kernels, and what the allocator holds back.

Linux tells it in `/proc/self/status`. `resource.getrusage` would not do: in a process that a large one started, the
peak that it tells begins with what the parent held.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")


def peak_beyond(call: Callable[[], object]) -> int | None:
    """Bytes of memory that the call took at most beyond what was there before it; None where the system does not tell.

    Memory that was freed before but is held back by the allocator is not seen: measure in a fresh process.
    """
    if not (_PROCESS / "status").exists():
        return None
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten; without that it is an upper bound
    before = _kilobytes("VmRSS")
    call()
    return 1024 * max(_kilobytes("VmHWM") - before, 0)


def _kilobytes(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
