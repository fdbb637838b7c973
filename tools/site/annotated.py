"""A module with its docstrings and comments beside the lines that they are about."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc

from .equations import equations
from .markup import Html, code_lines, with_code

RULER = re.compile(r"^[-=#\s]*$")


@dataclass(frozen=True)
class Part:
    """Lines of code, and what is said of them."""

    note: str
    """Plain text, paragraphs apart by blank lines."""
    equations: tuple[Html, ...]
    """What its first line computes, where that is an equation."""
    lines: tuple[int, ...]
    """Their numbers, from 1; empty where there is a note alone."""


def parts(text: str) -> list[Part]:
    """The module in order, without the lines of docstrings and of comments that stand on lines of their own.

    A part begins with each class, function and method, after each comment on lines of its own, and with each line that
    has an equation.
    """
    lines = text.splitlines()
    said, docstrings, starts = _docstrings(ast.parse(text))
    comments, computed = _comments(text, lines), equations(text)
    starts |= computed.keys()
    notes: list[str] = [said.pop(0)] if 0 in said else []
    code: list[int] = []
    formulas: list[Html] = []
    found: list[Part] = []

    def end() -> None:
        nonlocal notes, code, formulas
        if notes or any(lines[n - 1].strip() for n in code):
            while code and not lines[code[-1] - 1].strip():
                code.pop()
            found.append(Part("\n\n".join(notes), tuple(formulas), tuple(code)))
        notes, code, formulas = [], [], []

    for n in range(1, len(lines) + 1):
        if code and (n in comments or (n in starts and n - 1 not in comments)):
            end()
        if n in comments:
            notes += [comments[n]] if comments[n] else []
        elif n not in docstrings and (code or lines[n - 1].strip()):
            notes += [said.pop(n)] if n in said else []
            formulas += [computed[n]] if n in computed else []
            code.append(n)
    end()
    return found


def _docstrings(module: ast.Module) -> tuple[dict[int, str], set[int], set[int]]:
    """(first line of what it is about -> docstring, lines of docstrings, first lines of classes and functions)."""
    said: dict[int, str] = {}
    lines: set[int] = set()
    starts: set[int] = set()

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, depth: int) -> None:
        where = 0
        if not isinstance(node, ast.Module):
            where = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            starts.add(where)
        if (text := ast.get_docstring(node, clean=False)) is not None:
            first = node.body[0]
            if first.end_lineno != first.lineno or len(node.body) > 1:
                said[where] = cleandoc(text)
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and depth < 2:
                visit(child, depth + 1)

    visit(module, 0)
    return said, lines, starts


def _comments(text: str, lines: list[str]) -> dict[int, str]:
    """Line -> comment, of lines that hold nothing else; a ruler says nothing."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not lines[token.start[0] - 1][: token.start[1]].strip():
            said = token.string.lstrip("#").strip()
            found[token.start[0]] = "" if RULER.match(said) else said.strip("- ")
    return found


def rendered(text: str, line_prefix: str) -> Iterator[tuple[Html, Html]]:
    """(note, code) of each part as HTML; line n of the module is an anchor `<line_prefix>-n`."""
    html = code_lines(text, line_prefix)
    for part in parts(text):
        shown = Html("").join(
            Html('<div class="atlas-math" tabindex="0">{}</div>').format(one) for one in part.equations
        )
        yield _note(part.note) + shown, Html("\n").join(html[n - 1] for n in part.lines)


def _note(text: str) -> Html:
    """Paragraphs; what is indented keeps its lines."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if not block.strip():
            continue
        if all(line.startswith("    ") for line in block.splitlines()):
            out.append(Html("<pre>{}</pre>").format(cleandoc(block)))
        else:
            out.append(Html("<p>{}</p>").format(with_code(block.replace("\n", " "))))
    return Html("").join(out)
