"""The LaTeX that the site can show, as far as a check can tell without reading every formula in full."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

MATH: Final = re.compile(r"(?<![\\$])\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?!\w)", re.DOTALL)
"""A formula in Markdown: on a line of its own, or inside a line."""
LATER: Final = {r"\arg": "arg", r"\lVert": "‖", r"\rVert": "‖", r"\lvert": "|", r"\rvert": "|"}
"""Usual commands that the converter does not know -> what they stand for."""
_COMMAND = re.compile(r"\\[A-Za-z]+")


def latex_problem(latex: str) -> str:
    """Why the site cannot show a formula: a command that it does not know, or braces that do not match; else empty."""
    if len(re.findall(r"(?<!\\)\{", latex)) != len(re.findall(r"(?<!\\)\}", latex)):
        return "its braces do not match"
    return next((f"{command} is not known" for command in _COMMAND.findall(latex) if not _known(command)), "")


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
