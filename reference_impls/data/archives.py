"""The files in a wheel (zip), a source distribution or an npm package (tar.gz), or a Debian package (ar).

They are read without any other program, and nothing in them runs.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from reference_impls.data.sources import AssetError


def inside(member: str, strip: str) -> PurePosixPath:
    """The name of a member less `strip`, refused if it would leave the folder."""
    name = PurePosixPath(member.removeprefix(strip))
    if name.is_absolute() or ".." in name.parts or "\\" in member or ":" in member or not name.parts:
        raise AssetError(f"the archive holds a file with an unsafe name: {member!r}")
    return name


def members(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files in a wheel (zip), an sdist or npm package (tar.gz), or a .deb (ar)."""
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
