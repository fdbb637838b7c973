"""Notebooks in Jupyter's own format: written from their sources, opened here, and addresses that open them elsewhere.

Needs jupytext and nbformat; whoever only wants to know which notebooks there are needs neither.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import write_atomically

REPOSITORY = ("ATLAS_REPOSITORY", "GITHUB_REPOSITORY")
"""Environment variables that may name the repository on GitHub, "owner/name"; the first that is set counts."""
SLUG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
FRONT_ENDS = ("jupyterlab", "notebook")
"""Modules that open a notebook in a browser, in the order in which they are tried."""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
"""The kernel of the interpreter that runs Jupyter."""


class NoRepository(ValueError):
    """A name that is no repository of GitHub."""


@dataclass(frozen=True)
class Home:
    """The repository on GitHub, and the tag at which this version of the atlas is found there."""

    repository: str
    tag: str

    def colab(self, id_: str) -> str:
        """Address that opens a notebook in Colab. Colab reads .ipynb files alone, which a tag of their own holds."""
        return f"https://colab.research.google.com/github/{self.repository}/blob/notebooks-{self.tag}/{id_}.ipynb"

    @property
    def codespace(self) -> str:
        """Address that starts the dev container of the repository at the tag."""
        return f"https://codespaces.new/{self.repository}/tree/{self.tag}"

    def edit(self, path: str) -> str:
        """Address at which a file of the repository is edited."""
        return f"https://github.com/{self.repository}/edit/main/{path}"

    @property
    def propose(self) -> str:
        """Address of the form that proposes a technique."""
        return f"https://github.com/{self.repository}/issues/new?template=propose-technique.yml"

    @property
    def install(self) -> str:
        """First cell of a notebook where nothing is installed yet."""
        return (
            f'%pip install --quiet "redundancy-atlas[notebooks] @ git+https://github.com/{self.repository}@{self.tag}"'
        )


def home(root: Path, environment: Mapping[str, str] = os.environ) -> Home | None:
    """Where the atlas at `root` is on GitHub; None where no environment variable says so, or its version is unknown.

    Raises: NoRepository.
    """
    name = next((environment[one] for one in REPOSITORY if environment.get(one)), "")
    file = root / "pyproject.toml"
    if not name or not file.is_file():
        return None
    if not SLUG.fullmatch(name):
        raise NoRepository(f"{name!r} is no repository of GitHub: write it as owner/name")
    version = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}).get("version")
    return Home(name, f"v{version}") if version else None


def sources(root: Path) -> dict[str, Path]:
    """Id -> notebook, for every notebook of the atlas."""
    return {p.stem.replace("_", "-"): p for p in sorted((root / "notebooks").glob("*.py"))}


def as_ipynb(path: Path, first: str = "") -> str:
    """The source of a notebook in Jupyter's own format, without outputs; two calls give the same text.

    `first` is the code of a cell before all others. Raises ValueError for a file that is no text.
    """
    import jupytext
    import nbformat as _nbformat

    nbformat: Any = _nbformat  # typed in part only
    node = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    if first:
        node.cells.insert(0, nbformat.v4.new_code_cell(first))
    for number, cell in enumerate(node.cells):
        cell["id"] = f"cell-{number}"
    node.metadata = {"kernelspec": dict(KERNEL)}
    return str(nbformat.writes(node)) + "\n"


def front_end() -> str | None:
    """The module that opens a notebook in a browser, if one is installed."""
    return next((name for name in FRONT_ENDS if importlib.util.find_spec(name)), None)


def opening(module: str, file: Path, root: Path) -> tuple[list[str], dict[str, str]]:
    """The command that opens a notebook, and its environment.

    The kernel is that of this interpreter, whatever else the user has installed under its name, and finds the code of
    the atlas at `root`.
    """
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
    }
    return [sys.executable, "-m", module, str(file)], environment


def write_all(root: Path, folder: Path, where: Home) -> list[str]:
    """Write every notebook as Colab takes it, which installs the package first; the ids in order."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sources(root)
    for id_, path in found.items():
        write_atomically(folder / f"{id_}.ipynb", as_ipynb(path, where.install))
    return list(found)


def main() -> int:
    """`python -m tools.jupyter FOLDER`: the notebooks that a release puts under a tag of their own."""
    root = Path(__file__).parents[1]
    where = home(root)
    if len(sys.argv) != 2 or where is None:
        print(f"usage: {REPOSITORY[0]}=owner/name python -m tools.jupyter FOLDER", file=sys.stderr)
        return 2
    print(f"{len(write_all(root, Path(sys.argv[1]), where))} notebooks for {where.repository} at {where.tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
