"""Where and with what a record was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import torch

from reference_impls.accounting.record import Machine


def machine(device: str, threads: int) -> Machine:
    """This machine."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return Machine(
        cpu=cpu,
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        threads=threads,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None,
    )


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that results depend on, and the commit of the atlas."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    found["scikit-learn"] = metadata.version("scikit-learn")
    try:
        found["commit"] = _git("rev-parse", "--short=12", "HEAD")
        # A run that saves its records changes them, so they do not make the source another one.
        if _git("status", "--porcelain", "--", ":/", ":(top,exclude)reference_impls/results"):
            found["commit"] += "-dirty"
    except (OSError, subprocess.CalledProcessError):
        found["commit"] = f"release {_release()}"
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _release() -> str:
    try:
        return metadata.version("redundancy-atlas")
    except metadata.PackageNotFoundError:
        return "unknown"
