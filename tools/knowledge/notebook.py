"""What is wrong with the text of a notebook: Python in jupytext's py:percent form, read and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from .findings import Finding, finding
from .source import parse_text
from .text import text_problems

_MARKER = re.compile(r"# %%(?: (?P<rest>.*))?$")
_SNIPPET = re.compile(r"^[ \t]*;*-+8<-+.*$", re.MULTILINE)
_NEARLY = re.compile(r"\s*#+\s*%%")


def notebook_findings(text: str, file: str) -> Iterator[Finding]:
    """Everything that keeps the text of a notebook from being one, each at its line."""
    lines = text.split("\n")
    magic = False
    for n, line in enumerate(lines, 1):
        if re.match(r"\s*(from|import)\s+(tools|redundancy_atlas)\b", line):
            hint = "import what it needs from reference_impls"
            yield finding("E802", file, "a notebook that imports the tools", line=n, hint=hint)
        if re.match(r"\s*[%!]", line):
            magic = True
            message = "a magic or shell line: the notebook must also run as a script"
            yield finding("E803", file, message, line=n, hint="write it in Python, or leave it out")
    problems: list[Finding] = []
    tree = parse_text(text, file, problems, run=True)
    inside = _inside_strings(tree) if tree else set()
    cells = []
    for n, line in enumerate(lines, 1):
        marker = _MARKER.match(line)
        rest = (marker["rest"] or "").strip() if marker else ""
        if n in inside or not (marker or _NEARLY.match(line)):
            continue
        if not marker or re.match(r"(\[)?(markdown|md)\b(?!\])", rest):
            hint = "write `# %% [markdown]` for text, `# %%` for code"
            yield finding("E801", file, "a marker that makes no cell of its kind", line=n, hint=hint)
        cells.append((n, rest.startswith(("[markdown]", "[md]"))))
    if cells and lines[0].strip() and not lines[0].startswith(("# %%", "# ---")):
        hint = "begin the file with `# %% [markdown]`"
        yield finding("E801", file, "text above the first marker, which is in no cell", hint=hint)
    if not cells:
        message = "no cell marker: a notebook is Python in the py:percent form"
        yield finding("E801", file, message, hint="start with `# %% [markdown]`")
    if tree is None or not cells:
        yield from problems if not magic else ()  # a magic line is no Python
        return
    yield from _prose_findings(lines, cells, file)
    for (start, is_text), (end, _) in zip(cells, [*cells[1:], (len(lines) + 1, False)], strict=True):
        code = [statement for statement in tree.body if is_text and start < statement.lineno < end]
        if code and not (len(code) == 1 and _is_string(code[0])):
            hint = "put a line `# %%` above it, or `# ` before what is text"
            message = "code under a markdown cell, which shows as prose and is never run"
            yield finding("E804", file, message, line=code[0].lineno, column=code[0].col_offset + 1, hint=hint)


def _prose_findings(lines: list[str], cells: list[tuple[int, bool]], file: str) -> Iterator[Finding]:
    """What must not reach a page in the text of each cell, with the number of the cell."""
    ends = [*cells[1:], (len(lines) + 1, False)]
    for number, ((start, is_text), (end, _)) in enumerate(zip(cells, ends, strict=True), 1):
        prose = [re.sub(r"^# ?", "", line) for line in lines[start : end - 1]] if is_text else []
        problems = [(one.code, one.message, one.hint, one.at) for one in text_problems("\n".join(prose))]
        if included := _SNIPPET.search("\n".join(prose)):
            hint = "quote the lines, or name the file"
            problems.append(("E210", "a line that includes a file of the repository", hint, included.group()))
        for code, message, hint, at in problems:
            first = at.split("\n")[0]
            line = next((n for n, text in enumerate(prose, start + 1) if first in text), start)
            yield finding(code, file, f"in cell {number}: {message}", line=line, hint=hint)


def _is_string(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)


def _inside_strings(tree: ast.Module) -> set[int]:
    """Lines that begin inside a string of several lines."""
    strings = (node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr)))
    return {n for node in strings for n in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}
