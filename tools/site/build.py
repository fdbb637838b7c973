"""Build, serve and materialise the site."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from reference_impls import guard

from ..export import api
from ..export.bibtex import bibtex
from ..files import changing, scratch
from ..imports import NotPython
from ..jupyter import NoRepository, as_ipynb
from ..knowledge import Knowledge, load
from ..knowledge.findings import counted
from ..knowledge.references import resolved
from . import comparison, links, notebooks, reports
from .markup import MathError
from .model import Atlas, Page, gather
from .pages import navigation, pages

Say = Callable[[str], None]
PORTS = range(8000, 8020)
BIBLIOGRAPHY = "assets/bibliography.js"
CONFIG = "ATLAS_SITE_CONFIG"
"""Environment variable that names another configuration of the site, such as the one that is published."""
TIMED = re.compile(r'<section class="atlas-timed">.*?</section>', re.DOTALL)


class SiteError(RuntimeError):
    """The site cannot be built; the message says what to mend."""


def say(line: str) -> None:
    """One line of progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def collect(root: Path, *, run: bool = True, progress: Say = say) -> tuple[list[Page], dict[str, str], Atlas]:
    """The generated pages of the atlas at `root`, path -> text of the data beside them, and what they were made of.

    Notebooks that changed are executed unless `run` is false.
    """
    knowledge = checked(root)
    try:
        executed = notebooks.executed(root, run=run, progress=progress)
        material = gather(knowledge, executed)
        atlas = Atlas(resolved(knowledge), material)
        beside = data(knowledge) | {comparison.SCRIPT: comparison.script(atlas)} | reports.files(knowledge)
        return pages(knowledge, material), beside, atlas
    except (notebooks.NotebookError, MathError, NotPython, NoRepository) as error:
        raise SiteError(str(error)) from error


def checked(root: Path) -> Knowledge:
    """The knowledge at `root`. Raises SiteError where the check finds errors in it."""
    knowledge = load(root)
    if errors := [f for f in knowledge.findings if f.severity == "error"]:
        shown = "\n".join(str(f) for f in errors[:20])
        raise SiteError(f"{counted(len(errors), 'error')} in the knowledge, see `redundancy check`:\n{shown}")
    return knowledge


def data(knowledge: Knowledge) -> dict[str, str]:
    """What lies beside the pages, by its path on the site: the API, notebooks for Jupyter, and BibTeX as a script.

    Pages opened from disk can load scripts and no other data.
    """
    found = {f"{api.FOLDER}/{name}": text for name, text in api.files(knowledge).items()}
    found |= {f"notebooks/{id_}.ipynb": as_ipynb(path) for id_, path in notebooks.sources(knowledge.root).items()}
    records = {paper.key: bibtex(paper) for paper in knowledge.papers.values()}
    return found | {BIBLIOGRAPHY: f"window.atlasBibliography = {json.dumps(records, separators=(',', ':'))};\n"}


def build(root: Path, *, site_dir: Path | None = None, run: bool = True, progress: Say = say) -> Path:
    """Build the whole site strictly into `site_dir` (default `site/`) and check its links; the folder is returned.

    Raises SiteError with every broken link, warning or failing notebook. An earlier site stays until the new one is
    whole.
    """
    started = time.monotonic()
    target = site_dir or root / "site"
    checked(root)
    if run:
        try:
            fetch_assets(root, progress)
            notebooks.executed(root, progress=progress)
        except (notebooks.NotebookError, NotPython) as error:
            raise SiteError(str(error)) from error
    progress("site: building pages")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "ATLAS_NOTEBOOKS": "run" if run else "cached"}
    with scratch("site-", root / "build") as folder:
        fresh = folder / "site"
        config = root / os.environ.get(CONFIG, "mkdocs.yml")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean",
                   "--config-file", str(config), "--site-dir", str(fresh)]  # fmt: skip
        done = guard.run(command, cwd=root, env=environment)
        if done.returncode:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            raise SiteError(f"mkdocs found problems:\n{said[-6000:]}")
        if faults := links.check(fresh):
            faulty = root / "build" / "site-with-faults"
            swap(fresh, faulty, folder)
            raise SiteError(f"{len(faults)} faults in the built pages (left in {faulty}):\n" + "\n".join(faults[:40]))
        with changing(root):
            swap(fresh, target, folder)
    progress(f"site: built in {time.monotonic() - started:.0f} s: {target / 'index.html'}")
    return target


def swap(fresh: Path, target: Path, folder: Path) -> None:
    """Put a folder in the place of another one, which goes to `folder`, and comes back if this fails."""
    old = folder / "old"
    target.parent.mkdir(parents=True, exist_ok=True)
    if there := os.path.lexists(target):
        shutil.move(target, old)
    try:
        shutil.move(fresh, target)
    except BaseException:
        if there and not target.exists():
            shutil.move(old, target)
        raise


def check(root: Path, *, progress: Say = say) -> None:
    """Build the site from the cache of notebooks and again from an empty one, and compare.

    Raises SiteError that names every file that differs, but for the times that notebooks measured.
    """
    with scratch("atlas-site-") as folder:
        first = build(root, site_dir=folder / "first", progress=progress)
        before = os.environ.get(notebooks.CACHE)
        os.environ[notebooks.CACHE] = str(folder / "notebooks")
        try:
            second = build(root, site_dir=folder / "second", progress=progress)
        finally:
            os.environ.pop(notebooks.CACHE)
            os.environ |= {notebooks.CACHE: before} if before else {}
        if found := differences(first, second):
            raise SiteError(f"two builds differ in {len(found)} places:\n" + "\n".join(found[:40]))
    progress("site: two builds from different caches are equal, but for measured times")


def differences(first: Path, second: Path) -> list[str]:
    """Every file that two sites do not share byte for byte, with the first line that differs; measured times may."""
    one, two = ({p.relative_to(s).as_posix(): p for p in s.rglob("*") if p.is_file()} for s in (first, second))
    found = [
        f"{name}: only in {'the first' if name in one else 'the second'}" for name in sorted(one.keys() ^ two.keys())
    ]
    for name in sorted(one.keys() & two.keys()):
        a, b = one[name].read_bytes(), two[name].read_bytes()
        if a != b and name.endswith(".html"):
            a, b = (TIMED.sub("", text.decode()).encode() for text in (a, b))
        if a != b:
            lines = zip([*a.splitlines(), b""], [*b.splitlines(), b""], strict=False)
            number, (x, y) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
            at = next((i for i, (c, d) in enumerate(zip(x, y, strict=False)) if c != d), 0)
            shown = [repr(text[max(at - 40, 0) : at + 40].decode(errors="replace")) for text in (x, y)]
            found.append(f"{name}, line {number}: {shown[0]} and {shown[1]}")
    return found


def fetch_assets(root: Path, progress: Say = say) -> None:
    """Fetch the pinned assets that notebooks use, where they are not in the cache yet.

    Without a network nothing is raised here: notebooks whose run is cached need no asset, and one that does need it
    says so itself.
    """
    todo = [i for i, path in notebooks.sources(root).items() if notebooks.cached(root, i, path) is None]
    if not todo:
        return
    from reference_impls.data import assets

    for name in assets.smoke():
        try:
            assets.path(name)
        except assets.MissingAsset:
            progress(f"asset {name}: fetching")
            try:
                assets.get(name)
            except assets.AssetError as error:
                progress(str(error))


def materialise(root: Path, folder: Path | None = None, *, run: bool = True, progress: Say = say) -> Path:
    """Write the same pages as files, with a configuration that needs no hook, for another generator to build from.

    The folder (default `build/pages`, git-ignored) holds `mkdocs.yml` and `docs/`.
    """
    target = folder or root / "build" / "pages"
    generated, files, _ = collect(root, run=run, progress=progress)
    with scratch("pages-", target.parent) as aside:
        write(generated, files, root, aside / "pages")
        swap(aside / "pages", target, aside)
    progress(f"site: {len(generated)} generated pages written to {target}; Zensical builds them with `zensical build`")
    return target


def write(generated: list[Page], files: Mapping[str, str], root: Path, target: Path) -> None:
    """Write pages, data, the hand-written pages of `root` and a configuration without the hook into `target`."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("docs", "overrides"):
        shutil.copytree(root / "tools" / "site" / name, target / name)
    for path, text in {**{page.path: page.markdown for page in generated}, **files}.items():
        file = target / "docs" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    config = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    del config["hooks"]
    for extension in config["markdown_extensions"]:
        if isinstance(extension, dict) and (snippets := extension.get("pymdownx.snippets")):
            snippets["base_path"] = [str(root)]
    config["theme"]["custom_dir"] = "overrides"
    config |= {"docs_dir": "docs", "site_dir": "site", "nav": navigation(generated)}
    (target / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def serve(root: Path, *, run: bool = True, progress: Say = say) -> None:
    """Build the site, then serve it on this machine until interrupted."""
    folder = build(root, run=run, progress=progress)
    with server(folder) as http:
        progress(f"site: http://127.0.0.1:{http.server_address[1]}/ (Ctrl+C stops)")
        try:
            http.serve_forever()
        except KeyboardInterrupt:
            progress("site: stopped")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


def server(folder: Path, ports: range = PORTS) -> ThreadingHTTPServer:
    """A server of `folder` on the first free port of `ports`, reachable from this machine only."""
    handler = partial(_Quiet, directory=str(folder))
    for port in ports:
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError:
            continue
    raise SiteError(f"no free port between {ports.start} and {ports.stop - 1}")
