"""The issue form that proposes a technique without Python, and its answers as a draft.

The form is generated from the decision card and the terms of `taxonomy/axes.yml` (`redundancy schema` writes it), so
that it never offers a term which the check would refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from ..knowledge import Knowledge
from ..knowledge.completeness import INDEX_AXES
from ..knowledge.layout import document
from ..knowledge.schema import Axes, Axis
from ..knowledge.text import one_line

FILE: Final = ".github/ISSUE_TEMPLATE/propose-technique.yml"
_NO_ANSWER = "_No response_"


@dataclass(frozen=True)
class _Field:
    id: str
    label: str
    about: str
    lines: bool = False
    """Whether an answer may have several lines."""
    required: bool = False


BEFORE: Final = (
    _Field("name", "Name", "The name as a reader sees it, such as `Token merging`.", required=True),
    _Field("aliases", "Other names", "Names that readers may look for, separated by commas."),
    _Field("summary", "Summary", "What it does, in one sentence of at most 160 characters.", required=True),
    _Field(
        "papers",
        "Papers",
        "One a line: arXiv id, DOI or address. The one that first described it stands first.",
        lines=True,
        required=True,
    ),
)
AFTER: Final = (
    _Field("definition", "Definition", "What exactly it is, in your own words. Markdown with $LaTeX$.", lines=True),
    _Field("algorithm", "Algorithm", "The steps, one a line.", lines=True),
    _Field("invariant", "Invariant", "What a test must hold, such as: with r = 0 nothing changes."),
    _Field("remarks", "Remarks", "Doubts about the classification, related techniques, anything else.", lines=True),
)


def form(axes: Axes) -> str:
    """The text of the issue form."""
    data = {
        "name": "Propose a technique",
        "description": "For a draft of an entry. No Python is needed; a maintainer turns the answers into files.",
        "title": "Technique: ",
        "labels": ["technique"],
        "body": [
            {
                "type": "markdown",
                "attributes": {
                    "value": "Write in your own words. The page *The thirteen axes* of the site explains every term "
                    "below; leave a question open where you are in doubt."
                },
            },
            *(_input(one) for one in BEFORE),
            *(_dropdown(name, axes[name]) for name in _asked(axes)),
            *(_input(one) for one in AFTER),
        ],
    }  # fmt: skip
    return document(data)


def _asked(axes: Axes) -> list[str]:
    """Every axis once, in the order of the decision card."""
    return list(dict.fromkeys(name for step in axes.decision_card for name in step.axes))


def _input(one: _Field) -> dict[str, Any]:
    return {
        "type": "textarea" if one.lines else "input",
        "id": one.id,
        "attributes": {"label": one.label, "description": one.about},
        "validations": {"required": one.required},
    }


def _dropdown(name: str, axis: Axis) -> dict[str, Any]:
    return {
        "type": "dropdown",
        "id": name,
        "attributes": {
            "label": axis.name,
            "description": one_line(axis.question),
            "multiple": axis.choice == "multi",
            "options": [f"{term.name} ({key})" for key, term in axis.terms.items()],
        },
        "validations": {"required": name in INDEX_AXES},
    }


def answers(text: str, knowledge: Knowledge) -> dict[str, Any]:
    """What a filled-in form says, as the options of `redundancy new technique`.

    `text` is the body of the issue. Raises ValueError where it is none of this form.
    """
    labels = {one.label: one.id for one in (*BEFORE, *AFTER)}
    labels |= {axis.name: f"axis {name}" for name, axis in knowledge.axes.axes.items()}
    said = {
        labels[label]: answer
        for label, answer in _sections(text.replace("\r\n", "\n"), labels).items()
        if answer and answer != _NO_ANSWER
    }
    if "name" not in said:
        raise ValueError('this is no answer to the form "Propose a technique": it has no section "### Name"')
    found: dict[str, Any] = {key: one_line(said[key]) for key in ("name", "summary", "invariant") if key in said}
    if "definition" in said:
        found["definition"] = said["definition"]
    found["aliases"] = [name.strip() for name in said.get("aliases", "").split(",") if name.strip()]
    found["steps"] = [re.sub(r"^(\d+[.)]|[-*])\s+", "", line) for line in _lines(said.get("algorithm", ""))]
    papers = [re.sub(r"^[-*]\s+", "", line) for line in _lines(said.get("papers", ""))]
    found["papers"] = [name if n == 0 else f"{name}=analyses" for n, name in enumerate(papers)]
    found["axis"] = [
        f"{key.removeprefix('axis ')}={','.join(re.findall(r'[(]([a-z0-9_]+)[)]', answer))}"
        for key, answer in said.items()
        if key.startswith("axis ")
    ]
    return found


def _sections(text: str, labels: dict[str, str]) -> dict[str, str]:
    """Label -> answer. Only a heading that is a label of the form starts a section: answers may hold headings."""
    parts: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.split("\n"):
        label = line.removeprefix("### ").strip()
        if line.startswith("### ") and label in labels and label not in parts:
            current = parts.setdefault(label, [])
        else:
            current.append(line)
    return {label: "\n".join(lines).strip() for label, lines in parts.items()}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
