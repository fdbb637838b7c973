"""Nothing that a notebook says or shows can bring markup, script or files of the repository into a page."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests import knowledge_fixture as base
from tools.knowledge import load
from tools.site import notebooks
from tools.site.markup import SVG_ATTRIBUTES, SVG_TAGS, SvgError, clean_svg
from tools.site.notebooks import Notebook, NotebookError, render

XLINK = "xmlns:xlink='http://www.w3.org/1999/xlink'"


def shown(data: Any, prose: str = "# A notebook") -> str:
    """The page of a notebook with one output and some prose."""
    outputs = [{"output_type": "display_data", "data": data}]
    cells = ({"cell_type": "markdown", "source": prose}, {"cell_type": "code", "source": "x", "outputs": outputs})
    return render(Notebook("x", "notebooks/x.py", cells, 1.0))


class Live(HTMLParser):
    """What a browser would obey."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {
            "script",
            "iframe",
            "object",
            "embed",
            "link",
            "meta",
            "base",
            "form",
            "foreignobject",
            "animate",
            "set",
        }:
            self.found.append(tag)
        for name, value in attrs:
            bare = re.sub(r"\s", "", (value or "").lower())
            odd = name.startswith("on") or name in {"srcdoc", "formaction", "srcset"}
            leads = name in {"href", "xlink:href", "src", "action"} and not bare.startswith(
                ("#", "data:image/", "https:")
            )
            if odd or leads or "url(http" in bare or "position:" in bare:
                self.found.append(f"{tag} {name}={value}")


SVGS = [
    "<svg onload='alert(1)'><script>alert(2)</script></svg>",
    "<svg><g onclick='x()'><a xlink:href='javascript:1'><text>t</text></a></g></svg>",
    "<svg><foreignObject><body xmlns='http://www.w3.org/1999/xhtml' onload='x()'/></foreignObject></svg>",
    "<svg><image xlink:href='https://a.example/x.png'/><image href='data:image/svg+xml;base64,AAAA'/></svg>",
    "<svg><use href='https://a.example/x.svg#y'/><use xlink:href='data:text/html,x#y'/></svg>",
    "<svg><style>@import 'https://a.example/x.css'; * {fill: red}</style></svg>",
    "<svg><style>* {fill: red; background: url(https://a.example)}</style></svg>",
    "<svg><style>*{fill:red} body{display:none}</style></svg>",
    "<svg style='position:fixed;inset:0;fill:url(https://a.example)'><rect fill='url(https://a.example#x)'/></svg>",
    "<svg><rect style='fill: url(&#x5c;68ttps://a.example)' filter='url(https://a.example)'/></svg>",
    "<svg><animate attributeName='href' to='javascript:1'/><set attributeName='onload' to='1'/></svg>",
    "<svg><title>&lt;script>1&lt;/script></title><desc><![CDATA[</svg><script>2</script>]]></desc></svg>",
    "<svg xmlns:h='http://www.w3.org/1999/xhtml'><h:script>1</h:script><h:iframe srcdoc='x'/></svg>",
]


@pytest.mark.parametrize("svg", SVGS)
def test_nothing_of_a_figure_is_live(svg: str) -> None:
    html = shown({"image/svg+xml": svg.replace("<svg", f"<svg {XLINK}", 1)})
    assert Live(html).found == []
    assert not re.search(r"a\.example|@import|display:none|alert", html)


PROSE = [
    "<script>1</script>", "<img src=x onerror=1>", "[a](javascript:alert(1))", "[a](java&#115;cript:1)",
    "<b onclick=1>x</b>", "[a]: javascript:1\n\n[a]", "![x](https://a.example/x.png)",
    "`<b>` <iframe srcdoc='x'></iframe>", "<!-- x --><svg onload=1>", "# title {: onclick=1 }",
    "# <script>1</script>", "## [a](javascript:1) `x`", "- a\n\n  <script>1</script>", "<javascript:alert(1)>",
    "```\n# <script>1</script>\n```", "text { onclick=1 }\n{: onclick=1 }", "$\\text{<b onclick=1>}$",
]  # fmt: skip


@pytest.mark.parametrize("prose", PROSE)
def test_nothing_of_the_prose_is_live(prose: str) -> None:
    from markdown import Markdown

    page = shown({"text/plain": "1"}, f"# A notebook\n\n{prose}")
    html = Markdown(extensions=["attr_list", "md_in_html", "tables"]).convert(page)
    assert [one for one in Live(html).found if "a.example" in one or "=" in one or one == "script"] == []
    assert "a.example" not in html or "<img" not in html


@pytest.mark.parametrize("marker", ['--8<-- "README.md"', "-8<- 'README.md'", "--8<--\nREADME.md\n--8<--", ";--8<-- x"])
@pytest.mark.parametrize("where", ["prose", "stream", "svg", "html"])
def test_no_file_of_the_repository_is_included(marker: str, where: str) -> None:
    from markdown import Markdown

    escaped = marker.replace("<", "&lt;")
    data = {
        "prose": {}, "stream": {"text/plain": marker}, "html": {"text/html": f"<pre>{escaped}</pre>"},
        "svg": {"image/svg+xml": f"<svg><text>\n{escaped}\n</text></svg>"},
    }[where]  # fmt: skip
    page = shown(data, f"# A\n\n{marker}" if where == "prose" else "# A")
    snippets = {"pymdownx.snippets": {"base_path": [str(base.ROOT)], "check_paths": True}}
    html = Markdown(extensions=["pymdownx.snippets"], extension_configs=snippets).convert(page)
    assert "Redundancy Atlas" not in html


ODD = {
    "an open tag": ({"image/svg+xml": "<svg"}, "no SVG"),
    "no tag": ({"image/svg+xml": "a figure"}, "no SVG"),
    "another tag": ({"image/svg+xml": "<svgx/>"}, "no SVG"),
    "an entity": ({"image/svg+xml": "<svg>&x;</svg>"}, "no SVG"),
    "a tower": ({"image/svg+xml": "<svg>" + "<g>" * 5000 + "</g>" * 5000 + "</svg>"}, "no SVG"),
    "no text": ({"image/svg+xml": None}, "no text but NoneType"),
    "no base64": ({"image/png": "@@@"}, "no base64"),
    "no PNG": ({"image/png": "aGVsbG8="}, "no PNG"),
    "nothing": ({"text/plain": None}, "no text but NoneType"),
    "a number": ({"text/html": 3}, "no text but int"),
    "no data": (None, "without data"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_output_names_its_cell(name: str) -> None:
    data, says = ODD[name]
    with pytest.raises(NotebookError, match=f"notebooks/x.py, cell 2: .*{says}"):
        shown(data)


def test_lists_of_lines_are_texts() -> None:
    assert "one two" in shown({"text/plain": ["one ", "two"]})
    assert "max-width:4px" in shown({"image/svg+xml": ["<svg width='3pt'", "/>"]})
    assert "max-width" not in shown({"image/svg+xml": "<svg width='..pt'/>"})


def test_figures_of_matplotlib_keep_all_that_draws() -> None:
    import matplotlib as mpl
    import numpy as np

    mpl.use("svg")
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.imshow(np.eye(4))
    right.bar([1, 2], [3, 4], hatch="/")
    right.plot([1, 2], [1, 2], "--", label="a<b & c")
    right.legend(title="$x_1$")
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    clean = clean_svg(text)
    for tag in ("path", "use", "image", "clipPath", "pattern", "g", "rect"):
        assert clean.count(f"<{tag} ") == text.count(f"<{tag} "), tag
    assert {"path", "image"} <= SVG_TAGS
    assert "d" in SVG_ATTRIBUTES
    assert "<style>*{stroke-linejoin: round; stroke-linecap: butt}</style>" in clean
    assert "<metadata" not in clean
    again = clean_svg(clean.replace("<svg", f"<svg {XLINK}", 1))
    assert "".join(again.split()) == "".join(clean.split()), "cleaning twice changes nothing"


def test_no_figure_is_without_its_end() -> None:
    with pytest.raises(SvgError):
        clean_svg("<svg><g></svg>")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("# <script>x</script>", "E210"), ("# [a](javascript:1)", "E210"), ('# --8<-- "README.md"', "E210"),
        ("# ![x](https://a.example/x.png)", "E210"), ("# $\\nosuchcommand{$", "E214"), ("# the `<b>` of 1 < 2", ""),
    ],
)  # fmt: skip
def test_markup_in_the_prose_is_a_finding_with_its_cell(line: str, code: str, tmp_path: Path) -> None:
    root = base.write(tmp_path / "atlas")
    text = f"# %%\nimport reference_impls\n\n# %% [markdown]\n# # Token merging\n#\n{line}\n"
    base.put(root, base.NOTEBOOK, text)
    found = [(f.code, f.line) for f in load(root).findings if f.file == base.NOTEBOOK and not f.code.startswith("W")]
    assert found == ([(code, 7)] if code else [])
    assert all("in cell 2: " in f.message for f in load(root).findings if f.file == base.NOTEBOOK)


def test_the_notebooks_of_the_atlas_have_clean_prose() -> None:
    for path in notebooks.sources(base.ROOT).values():
        text = "".join(line[2:] for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("# #"))
        assert "<" not in text
