"""Notebooks: `notebooks/<id with underscores>.py` executed in the smoke budget and rendered as pages.

`show.style`, which every notebook calls first, seeds all random numbers, so that two runs print the same. A cell whose
output holds times that it measured is tagged, `# %% tags=["timed"]`, and the page marks it.

A run is cached in `.cache/notebooks/` under a hash of what it can depend on: the notebook, the modules of
`reference_impls` that it reaches through imports (not their comments and docstrings), the committed results and the
pinned assets that these name, and the versions of Python and torch. So editing one technique runs one notebook again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jupytext
import nbformat as _nbformat
import yaml

from reference_impls import guard, strict

from .. import forked
from ..files import write_atomically
from ..forked import Forked
from ..imports import Imports, facts
from ..jupyter import sources
from ..knowledge.paths import RESULTS
from .markup import Html, MathError, SvgError, clean_html, clean_svg, code, escape, paragraph, prose, scrolling

nbformat: Any = _nbformat  # typed in part only
CACHE = "ATLAS_NOTEBOOK_CACHE"
"""Environment variable that names another folder for the cache than `.cache/notebooks/`."""
TIMED = "timed"
"""Tag of a cell whose output holds times that were measured in this run, and so differs from run to run."""
RENDERING = 1
"""Raised when the way notebooks are executed (not rendered) changes, so that cached runs are made again."""
TURNABLE = "application/vnd.atlas.turnable+html"
"""Type of the outputs of `show.Turnable` and `show.Flipbook`, which alone bring a script or a style of their own."""
CELL_TIMEOUT = 600
AT_ONCE = 2
CACHED_MB = 256
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MATPLOTLIBRC = Path(__file__).parent / "assets" / "matplotlibrc"
SETUP = "%config InlineBackend.figure_formats = ['svg']\n%config InlineBackend.rc = {}"

THEME_COLOURS = {"#123456": "currentColor", "#000000": "currentColor"} | {
    f"#{colour}": f"var(--atlas-{name})"
    for name, colours in {
        "technique-1": "0072b2 1f77b4", "control-1": "d55e00 ff7f0e", "technique-2": "009e73 2ca02c",
        "control-2": "cc79a7",
        "technique-3": "e69f00", "technique-4": "56b4e9 9467bd", "muted": "8a8f98 7f7f7f 808080", "bad": "d62728",
    }.items()
    for colour in colours.split()
}  # fmt: skip
"""Colours of `assets/matplotlibrc` and of matplotlib's own cycle -> what stands for them on the page, where they follow
the theme."""
TIMED_HEAD = '<section class="atlas-timed"><p class="atlas-note">Times measured in this run; others differ.</p>'
FOLDED_FROM = 9
"""Code that draws is folded away from so many lines on: the figure is what readers look for."""


HEADING = re.compile(r"(#{1,6})\s+(.*?)[\s#]*$")
PNG = b"\x89PNG\r\n\x1a\n"
FENCE = re.compile(r" {0,3}(```+|~~~+)")


class OddOutput(ValueError):
    """An output of a cell that cannot be shown."""


class NotebookError(RuntimeError):
    """A notebook that failed, with the cell and the end of its traceback."""


@dataclass(frozen=True)
class Notebook:
    """An executed notebook."""

    id: str
    path: str
    """Its source, relative to the root."""
    cells: tuple[Mapping[str, Any], ...]
    seconds: float

    @property
    def title(self) -> str:
        """Its first heading, or the id."""
        for cell in self.cells:
            if cell["cell_type"] == "markdown" and (match := re.search(r"^# (.+)$", cell["source"], re.MULTILINE)):
                return match[1].strip()
        return self.id


def executed(
    root: Path,
    *,
    run: bool = True,
    only: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Notebook]:
    """Id -> executed notebook, from the cache where nothing changed; at most two run at once.

    With `run=False` those that are not in the cache are left out. Raises NotebookError naming every failure.
    """
    wanted = sources(root)
    if only is not None:
        wanted = {id_: wanted[id_] for id_ in only if id_ in wanted}
    done: dict[str, Notebook] = {}
    todo: dict[str, Path] = {}
    for id_, path in wanted.items():
        hit = cached(root, id_, path)
        if hit is not None:
            done[id_] = hit
        elif run:
            todo[id_] = path
    failures = []
    kernels = Kernels()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {id_: pool.submit(_execute, root, id_, path, progress, kernels) for id_, path in todo.items()}
        try:
            for id_, job in jobs.items():
                try:
                    done[id_] = job.result()
                except NotebookError as error:
                    failures.append(str(error))
        except BaseException:  # told to end: no thread may wait for a cell until then
            pool.shutdown(wait=False, cancel_futures=True)
            kernels.end()
            raise
    if failures:
        raise NotebookError("\n\n".join(failures))
    return {id_: done[id_] for id_ in wanted if id_ in done}


class Kernels:
    """The kernels of one call of `executed`."""

    def __init__(self) -> None:
        self._running: list[Forked] = []
        self._ended = False
        self._lock = threading.Lock()

    def start(self, arguments: list[str], folder: str, environment: Mapping[str, str]) -> Forked:
        """A kernel in a fork. Raises NotebookError once they were ended."""
        with self._lock:
            if self._ended:
                raise NotebookError("no notebook is run any more")
            launch = "ipykernel.kernelapp:launch_new_instance"
            kernel = Forked(launch, arguments, folder=folder, environment=environment, capture=False)
            self._running = [one for one in self._running if one.poll() is None] + [kernel]
            return kernel

    def end(self) -> None:
        """End those that run, and let none start."""
        with self._lock:
            self._ended = True
            for kernel in self._running:
                guard.end(kernel)


def key(root: Path, id_: str, path: Path) -> str:
    """Hash of everything that a run of the notebook can depend on."""
    modules = sorted(Imports(root).reached(path) - {path})
    named = {id_}.union(*(facts(module).texts for module in (path, *modules)))
    digest = hashlib.sha256(path.read_bytes())
    for module in modules:
        digest.update(f"{module.relative_to(root).as_posix()}\0{facts(module).meaning}\0".encode())
    for file in sorted((root / RESULTS).glob("*/*")):
        if file.parent.name in named:
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    pins = root / "reference_impls" / "data" / "assets.yml"
    for asset, pin in (yaml.safe_load(pins.read_text(encoding="utf-8")) if pins.is_file() else {}).items():
        if asset in named:
            digest.update(json.dumps([asset, pin], sort_keys=True).encode())
    for fact in (RENDERING, SETUP, MATPLOTLIBRC.read_text(encoding="utf-8"), platform.python_version()):
        digest.update(f"{fact}\0".encode())
    for package in ("torch", "matplotlib", "numpy"):
        digest.update(f"{package} {_version(package)}\0".encode())
    return digest.hexdigest()[:20]


def render(notebook: Notebook) -> str:
    """The notebook as Markdown: prose as that of the knowledge, code highlighted, outputs as HTML of the theme.

    Raises: NotebookError that names the cell whose prose or output is odd.
    """
    parts = []
    for index, cell in enumerate(notebook.cells):
        try:
            if cell["cell_type"] == "markdown":
                parts.append(_prose(cell["source"]))
            elif cell["cell_type"] == "code" and cell["source"].strip():
                parts.append(_code(cell["source"]))
                outputs = [_output(o, f"nb{index}-{i}") for i, o in enumerate(_joined(cell.get("outputs", [])))]
                if shown := [o for o in outputs if o]:
                    html = '<div class="atlas-output" data-search-exclude>' + "".join(shown) + "</div>"
                    parts.append(f"{TIMED_HEAD}{html}</section>" if TIMED in _tags(cell) else html)
        except (OddOutput, MathError) as error:
            raise NotebookError(f"{notebook.path}, cell {index + 1}: {error}") from error
    return "\n\n".join(parts) + "\n"


def _prose(markdown: str) -> str:
    """The text of a cell: its headings as Markdown, all else as cleaned HTML."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in markdown.split("\n"):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif fence and line.strip() == fence:
            fence = ""
        if not fence and not mark and (title := HEADING.match(line)):
            blocks += [[f"{title[1]} {paragraph(title[2])}"], []]
        else:
            blocks[-1].append(line)
    texts = ["\n".join(block).strip() for block in blocks]
    return "\n\n".join(text if n % 2 else str(prose(text)) for n, text in enumerate(texts) if text)


def first_figure(notebook: Notebook, most: int, name: str = "picture") -> tuple[Html, str] | None:
    """(figure, heading above it) of the first figure of a notebook of at most so many bytes, without measured times.

    `name` prefixes the ids inside the figure.
    """
    title = ""
    for number, cell in enumerate(notebook.cells, 1):
        if cell["cell_type"] == "markdown":
            title = next(iter(re.findall(r"^#+ (.+)$", cell["source"], re.MULTILINE)[-1:]), title)
        for output in cell.get("outputs", ()) if TIMED not in _tags(cell) else ():
            try:
                svg = _text((output.get("data") or {}).get("image/svg+xml", ""))
                if svg and len(figure := themed_svg(svg, name, title)) <= most:
                    return Html(figure), title
            except OddOutput as error:
                raise NotebookError(f"{notebook.path}, cell {number}: {error}") from error
    return None


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", ()))


def themed_svg(svg: str, name: str, label: str = "Output of the cell above") -> str:
    """A figure of matplotlib for inlining, cleaned: ids made unique by `name`, colours of the theme, no fixed size.

    Raises: OddOutput.
    """
    try:
        svg = clean_svg(svg)
    except SvgError as error:
        raise OddOutput(f"an image that is no SVG: {error}") from error
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for colour, stand_in in THEME_COLOURS.items():
        svg = re.sub(colour, stand_in, svg, flags=re.IGNORECASE)
    head, rest = svg.split(">", 1)
    width = re.search(r' width="(\d{1,6}(?:\.\d+)?)pt"', head)
    head = re.sub(r' (width|height|style)="[^"]*"', "", head)
    style = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    return f'{head} class="atlas-plot"{style} role="img" aria-label="{escape(label)}">{rest.strip()}'.replace(
        "\n\n", "\n"
    )


def _code(source: str) -> str:
    html, lines = str(code(source)), len(source.splitlines())
    draws = re.search(r"\bplt\.|\.subplots\(", source) and not re.search(r"^(import|from) ", source, re.MULTILINE)
    if lines >= FOLDED_FROM and draws:
        html = f"<details><summary>Code of the figure, {lines} lines</summary>{html}</details>"
    return f'<div class="atlas-cell" data-search-exclude>{html}</div>'


def _text(value: Any) -> str:
    """What Jupyter holds as a text, or as a list of its lines. Raises OddOutput."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "".join(value)
    if not isinstance(value, str):
        raise OddOutput(f"an output is no text but {type(value).__name__}")
    return value


def _joined(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Consecutive pieces of one stream as one output."""
    joined: list[dict[str, Any]] = []
    for output in map(dict, outputs):
        if output.get("output_type") == "stream":
            output |= {"name": output.get("name", "stdout"), "text": _text(output.get("text", ""))}
            last = joined[-1] if joined else {}
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] += output["text"]
                continue
        joined.append(output)
    return joined


def _output(output: Mapping[str, Any], name: str) -> str:
    if output.get("output_type") == "stream":
        if output["name"] == "stderr":
            return ""  # warnings of libraries and progress bars: no result
        return _pre(output["text"])
    data = output.get("data", {})
    if not isinstance(data, Mapping):
        raise OddOutput("an output without data")
    if "image/svg+xml" in data:
        return f'<figure class="atlas-nbfig">{themed_svg(_text(data["image/svg+xml"]), name)}</figure>'
    if "image/png" in data:
        png = re.sub(r"\s", "", _text(data["image/png"]))
        try:
            begins = base64.b64decode(png, validate=True)[: len(PNG)]
        except ValueError as error:
            raise OddOutput(f"an image that is no base64: {error}") from error
        if begins != PNG:
            raise OddOutput("an image that is no PNG")
        image = f'<img alt="Output of the cell above" src="data:image/png;base64,{png}">'
        return f'<figure class="atlas-nbfig">{image}</figure>'
    if TURNABLE in data:
        return f'<figure class="atlas-nbfig">{data[TURNABLE]}</figure>'
    if "text/html" in data:
        return scrolling(clean_html(_text(data["text/html"])), "Output")
    return _pre(_text(data.get("text/plain", "")))


def _pre(text: str) -> str:
    text = ANSI.sub("", text).rstrip()
    return f'<pre class="atlas-stream" tabindex="0">{escape(text)}</pre>' if text else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cache_file(root: Path, id_: str, path: Path) -> Path:
    folder = Path(os.environ.get(CACHE) or root / ".cache" / "notebooks")
    return folder / f"{id_}.{key(root, id_, path)}.ipynb"


def cached(root: Path, id_: str, path: Path) -> Notebook | None:
    file = _cache_file(root, id_, path)
    try:
        content = strict.read(file, CACHED_MB * 2**20)
        strict.loads(content)
        node = nbformat.reads(content.decode(), as_version=4)
    except (OSError, ValueError, TypeError, AttributeError, nbformat.validator.NotebookValidationError):
        return None  # absent, or damaged by something outside: run it again
    return _notebook(root, id_, path, node)


def _notebook(root: Path, id_: str, path: Path, node: Any) -> Notebook:
    cells = tuple(cast("Mapping[str, Any]", cell) for cell in node.cells[1:])  # without the set-up cell
    return Notebook(id_, path.relative_to(root).as_posix(), cells, float(node.metadata.get("atlas_seconds", 0.0)))


def _execute(root: Path, id_: str, path: Path, progress: Callable[[str], None], kernels: Kernels) -> Notebook:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    target = _cache_file(root, id_, path)  # before the run: a file edited meanwhile leaves a key that no longer matches
    node = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    node.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    environment = os.environ | {
        "MATPLOTLIBRC": str(MATPLOTLIBRC), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip
    progress(f"notebook {id_}: running")
    started = time.monotonic()
    client = NotebookClient(
        node, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(root)}}, extra_arguments=["--log-level=40"],
        kernel_manager_class=_kernel_manager(kernels),
    )  # fmt: skip
    try:
        asyncio.run(client.async_execute(env=environment))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        progress(f"notebook {id_}: failed")
        raise NotebookError(_explain(id_, path.relative_to(root), node, error)) from None
    except Exception as error:
        progress(f"notebook {id_}: failed")
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise NotebookError(
            f"{path.relative_to(root)}: the Jupyter kernel did not run ({why}); it needs the loopback network"
        ) from error
    seconds = time.monotonic() - started
    node.metadata["atlas_seconds"] = round(seconds, 1)
    write_atomically(target, nbformat.writes(node))
    for old in target.parent.glob(f"{id_}.*.ipynb"):
        if old != target:
            old.unlink(missing_ok=True)
    progress(f"notebook {id_}: done in {seconds:.0f} s")
    return _notebook(root, id_, path, node)


def _kernel_manager(kernels: Kernels) -> Any:
    """A kernel in a fork of a process that has imported torch and IPython, where that is possible."""
    from jupyter_client.manager import AsyncKernelManager

    if not forked.AVAILABLE:
        return AsyncKernelManager

    class ForkedKernelManager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            arguments = kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :]
            kernel: Any = self.provisioner
            kernel.process = kernels.start(arguments, options["cwd"], options["env"])
            kernel.pid, kernel.pgid = kernel.process.pid, None  # no signal to a group, which begins in the child
            self._reconcile_connection_info(kernel.connection_info)

    return ForkedKernelManager


def _explain(id_: str, path: Path, node: Any, error: Exception) -> str:
    """Which cell failed and the end of its traceback; for a missing asset, how to get it."""
    for number, cell in enumerate(node.cells[1:], start=1):
        for output in cell.get("outputs", ()):
            if output["output_type"] != "error":
                continue
            if output["ename"] == "MissingAsset":
                return f"{path} needs an asset that is not here: {output['evalue']}"
            tail = "\n".join(ANSI.sub("", "\n".join(output["traceback"])).splitlines()[-15:])
            first = cell["source"].strip().splitlines()[0]
            return f"{path}, cell {number} ({first}):\n{tail}\n{output['ename']}: {output['evalue']}"
    return f"{path}: {type(error).__name__}: {error}"
