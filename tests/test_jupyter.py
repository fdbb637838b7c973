"""A notebook of the atlas is written and opened in Jupyter, and its addresses elsewhere are those of a tag."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from tests import knowledge_fixture as base
from tools import jupyter
from tools.cli import main
from tools.cli import notebook as command
from tools.knowledge import load
from tools.site.model import gather
from tools.site.notebooks import Notebook
from tools.site.pages import pages

ROOT = Path(__file__).parents[1]
HOME = jupyter.Home("some-one/atlas.x", "v1.2.3")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return base.write(tmp_path / "atlas")


def called(root: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--root", str(root), "notebook", *words])


def test_the_file_is_written_once_and_then_belongs_to_the_reader(root: Path) -> None:
    file = root / "build" / "notebooks" / "token-merging.ipynb"
    assert called(root, "token-merging").stdout.strip() == str(file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell["cell_type"] for cell in written["cells"]] == ["markdown", "code"]
    file.write_text("mine", encoding="utf-8")
    again = called(root, "token-merging")
    assert (again.exit_code, file.read_text(encoding="utf-8")) == (0, "mine")
    assert "--fresh" in again.stderr
    called(root, "token-merging", "--fresh")
    assert json.loads(file.read_text(encoding="utf-8")) == written


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["token-mergin"], 2, "did you mean"),
        ([], 2, "Missing argument"),
        (["token-merging", "--out", "."], 2, "name a file"),
    ],
)
def test_what_cannot_be_opened_is_said(root: Path, words: list[str], code: int, said: str) -> None:
    result = called(root, *words)
    assert result.exit_code == code
    assert said in result.stderr


def test_a_source_that_is_no_text_is_said(root: Path) -> None:
    (root / base.NOTEBOOK).write_bytes(b"# %%\n\xff\n")
    result = called(root, "token-merging")
    assert result.exit_code == 1
    assert "cannot be read as a notebook" in result.stderr


class Started:
    """Stands in for the process of Jupyter."""

    calls: ClassVar[list[tuple[list[str], dict[str, str]]]] = []
    code = 0

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.calls.append((words, env))
        self.interrupts = 1

    def wait(self) -> int:
        self.interrupts -= 1
        if self.interrupts >= 0:
            raise KeyboardInterrupt  # Ctrl+C reaches Jupyter too, which asks
        return self.code

    def poll(self) -> int:
        return self.code


def test_jupyter_starts_with_the_kernel_of_this_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.subprocess, "Popen", Started)
    monkeypatch.setattr(command.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(jupyter.importlib.util, "find_spec", lambda name: name == "notebook")
    Started.calls.clear()
    context = main.make_context("redundancy", ["--root", str(root), "notebook", "token-merging"])
    with context:
        main.invoke(context)
    ((words, environment),) = Started.calls
    assert words == [sys.executable, "-m", "notebook", str(root / "build/notebooks/token-merging.ipynb")]
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(root)


def test_the_first_front_end_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(jupyter.importlib.util, "find_spec", lambda name: name in there)
    assert jupyter.front_end() is None
    there |= {"notebook"}
    assert jupyter.front_end() == "notebook"
    there |= {"jupyterlab"}
    assert jupyter.front_end() == "jupyterlab"


def test_the_addresses_have_the_form_that_colab_and_codespaces_read() -> None:
    colab, space = urlsplit(HOME.colab("token-merging")), urlsplit(HOME.codespace)
    assert (colab.scheme, colab.netloc) == ("https", "colab.research.google.com")
    assert re.fullmatch(r"/github/[\w.-]+/[\w.-]+/blob/notebooks-v\d+\.\d+\.\d+/[a-z0-9-]+\.ipynb", colab.path)
    assert (space.scheme, space.netloc) == ("https", "codespaces.new")
    assert re.fullmatch(r"/[\w.-]+/[\w.-]+/tree/v\d+\.\d+\.\d+", space.path)
    form = HOME.propose.rpartition("template=")[2]
    assert (ROOT / ".github" / "ISSUE_TEMPLATE" / form).is_file()


def test_notebooks_for_colab_begin_with_the_package_of_the_tag(root: Path, tmp_path: Path) -> None:
    assert jupyter.write_all(root, tmp_path / "colab", HOME) == ["token-merging"]
    (file,) = (tmp_path / "colab").iterdir()
    assert file.name == HOME.colab("token-merging").rpartition("/")[2]
    first, *others = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert "".join(first["source"]).endswith(f'git+https://github.com/{HOME.repository}@{HOME.tag}"')
    plain = json.loads(jupyter.as_ipynb(root / base.NOTEBOOK))["cells"]
    assert [cell["source"] for cell in others] == [cell["source"] for cell in plain]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"GITHUB_REPOSITORY": "a/b"}, "a/b"),
        ({"GITHUB_REPOSITORY": "a/b", "ATLAS_REPOSITORY": "c/d"}, "c/d"),
    ],
)
def test_the_repository_is_named_by_the_environment(environment: dict[str, str], expected: str | None) -> None:
    found = jupyter.home(ROOT, environment)
    assert (found.repository if found else None) == expected
    assert found is None or re.fullmatch(r"v\d+\.\d+\.\d+\S*", found.tag)
    with pytest.raises(jupyter.NoRepository, match="owner/name"):
        jupyter.home(ROOT, {"ATLAS_REPOSITORY": '"><script>'})


def test_pages_link_to_the_tag_where_the_repository_is_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in jupyter.REPOSITORY:
        monkeypatch.delenv(name, raising=False)
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    known = load(root, check=False)
    notebook = Notebook("token-merging", base.NOTEBOOK, ({"cell_type": "markdown", "source": "# A"},), 1.0)

    def made() -> dict[str, str]:
        found: dict[str, Any] = {p.path: p.markdown for p in pages(known, gather(known, {"token-merging": notebook}))}
        return found

    texts = made()
    for page in ("notebooks/token-merging.md", "techniques/token-merging.md"):
        assert "token-merging.ipynb" in texts[page]
        assert "colab" not in texts[page]
    monkeypatch.setenv("ATLAS_REPOSITORY", HOME.repository)
    texts = made()
    for page in ("notebooks/token-merging.md", "techniques/token-merging.md"):
        assert f'href="{HOME.colab("token-merging")}"' in texts[page]
    assert f'href="{HOME.codespace}"' in texts["notebooks/token-merging.md"]
    assert "redundancy notebook token-merging" in texts["notebooks/token-merging.md"]
