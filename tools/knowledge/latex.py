"""The LaTeX that the site can show, as far as a check can tell without reading every formula in full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

MATH: Final = re.compile(r"(?<![\\$])\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?!\w)", re.DOTALL)
"""A formula in Markdown: on a line of its own, or inside a line."""
LATER: Final = {r"\arg": "arg", r"\lVert": "‖", r"\rVert": "‖", r"\lvert": "|", r"\rvert": "|"}
"""Usual commands that the converter does not know -> what they stand for."""
_COMMAND = re.compile(r"\\[A-Za-z]+")
_GREEK: Final = re.compile(
    "(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|ell)"
)
_WORDS = re.compile(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}")
_INDEX = re.compile(r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+(?:\{[^{}]*\})?|.)")
_SYMBOL = re.compile(r"\\([A-Za-z]+)|([A-Za-z])")
_DEFINED = re.compile(r"((?:\\bar\s*)?\\?[A-Za-z]+)(?:_\w|_\{[^{}]*\}|\([^()]*\))*\s*=")


def latex_problem(latex: str) -> str:
    """Why the site cannot show a formula: a command that it does not know, or braces that do not match; else empty."""
    if len(re.findall(r"(?<!\\)\{", latex)) != len(re.findall(r"(?<!\\)\}", latex)):
        return "its braces do not match"
    return next((f"{command} is not known" for command in _COMMAND.findall(latex) if not _known(command)), "")


def unexplained(formula: str, explained: Iterable[str]) -> list[str]:
    """Letters of a formula that neither a list of symbols nor the formula itself (`n = N / 4`) explains.

    Indices and words count for nothing, and a letter is explained in any of its forms: $c$ by $c_{head}$ or $c(n)$.
    """
    told = {letter for latex in explained for letter in _letters(latex)}
    told |= {letter for defined in _DEFINED.finditer(formula) for letter in _letters(defined[0].rstrip(" ="))}
    return sorted(set(_letters(formula)) - told - {"O"})  # the O of an order of growth


def _letters(latex: str) -> list[str]:
    names = _SYMBOL.findall(_WORDS.sub(" ", _INDEX.sub(" ", latex)))
    return [letter or f"\\{command}" for command, letter in names if letter or _GREEK.fullmatch(command.lower())]


@cache
def _known(command: str) -> bool:
    """Whether the converter knows a command: it passes the name of one that it does not know through as text."""
    from latex2mathml.converter import convert

    if command in LATER or command == r"\end":
        return True
    try:
        return command not in re.sub(r"<math[^>]*>", "", convert(f"{command}{{a}}{{b}}"))
    except Exception:  # it knows the command and misses what belongs to it, such as a delimiter
        return True
