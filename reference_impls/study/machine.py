"""Where and with what a record was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil
import torch

from reference_impls.accounting.record import Machine


def machine(device: str, threads: int) -> Machine:
    """This machine."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: *(.*\S)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return Machine(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        threads=threads,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None,
    )


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that results depend on, and the commit of the atlas."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scikit-learn"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else the repository is that of whoever installed it
        found["commit"] = _git("rev-parse", "--short=12", "HEAD")
        # A run that saves its records changes them, so they do not make the source another one.
        records = (f":(top,exclude)reference_impls/{where}" for where in ("results", "report/measured"))
        if _git("status", "--porcelain", "--", ":/", *records):
            found["commit"] += "-dirty"
    except (OSError, subprocess.CalledProcessError):
        found["commit"] = "release unknown"
        with suppress(metadata.PackageNotFoundError):
            found["commit"] = f"release {metadata.version('redundancy-atlas')}"
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
