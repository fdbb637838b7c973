"""A Ray cluster, for work that outgrows one machine: how the commands find one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9A-Fa-f:]+\]|[^\s:/\[\]]+):[0-9]{1,5}")
ANSWER_S = 5.0
"""Seconds in which a cluster must answer."""


class ClusterError(ValueError):
    """There is no cluster where one was said to be; the message says what to do."""


def connect(address: str | None) -> Any:
    """Ray, connected to the cluster at `address`, or to the one at hand, or to one started here.

    Its nodes must find this package where it is here: on a shared disk, or installed on each.
    Raises: ClusterError for an address that is none, or does not answer.
    """
    if address and not _ADDRESS.fullmatch(address):
        raise ClusterError(f"{address!r} is no address of a cluster; write host:port, ray://host:port or auto")
    import ray

    if address and ":" in address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except (OSError, ValueError, OverflowError) as error:
            told = f"no Ray cluster answers at {address} ({error}); start one: `ray start --head`"
            raise ClusterError(told) from None
        health = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        try:  # something else may listen there, to which Ray would talk for minutes
            if not address.startswith("ray://"):
                subprocess.run(health, check=True, capture_output=True, timeout=12 * ANSWER_S)
        except subprocess.SubprocessError:
            raise ClusterError(f"what answers at {address} is no Ray cluster that is well") from None
    paths = [
        str(Path(__file__).resolve().parents[1]),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}}
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False, runtime_env=environment)
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"no Ray cluster answers at {address or 'the default address'}: {error}") from None
    return ray


def told(error: Exception) -> str:
    """What went wrong on a cluster, in a line, without the tracebacks of other machines."""
    cause = getattr(error, "cause", None)
    return str(cause or error).strip().partition("\n")[0] or type(cause or error).__name__
