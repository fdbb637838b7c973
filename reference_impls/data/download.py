"""Downloads that are resumed where they stopped, and hashed while they are read."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from reference_impls.data.sources import AssetError, Location

TRIES = 4  # connections in a row that bring nothing before a download is given up
TIMEOUT = 60.0  # seconds without an answer
CHUNK = 1 << 20


def fetch(location: Location, part: Path, progress: Callable[[int], None]) -> str:
    """Append to the file `part` until it is complete; the SHA-256 of the whole, computed while it is read.

    A `part` that is there already is gone on with. `progress` is told of the bytes that are there.
    Raises: AssetError; what came is then kept in `part`, unless it cannot be right.
    """
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


def _receive(location: Location, part: Path, progress: Callable[[int], None]) -> str:
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
        hashlib.file_digest(stream, lambda: digest)


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Proxies as the environment says; certificates of the system and those that the clients are told to trust."""
    context = ssl.create_default_context()
    for variable in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        bundle = os.environ.get(variable, "")
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
