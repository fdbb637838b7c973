"""Example reports of redundancy: whole pages beside the site's own, and what was predicted against what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reference_impls.report.result import FILE, Result, schema
from reference_impls.report.verify import Verification

from ..knowledge import Knowledge
from ..report.measured import Costs
from ..report.page import page
from ..report.ranking import rank
from .markup import Html
from .model import DOCS, Atlas, Page
from .parts import View
from .templates import render

HOME = "reference_impls/report/measured"
VERIFIED, COSTS = "verification.json", "cost.json"
SCHEMA = "reports/report.schema.json"
GUIDE = "report.md"
EXAMPLES = "<!-- reports -->"
"""The line of the guide in whose place the examples stand."""
NOTEBOOK, STEPS = "redundancy-report", "<!-- notebook -->"
"""The notebook that goes through a report, and the line in whose place a link to it stands."""


@dataclass(frozen=True)
class Example:
    """A committed report."""

    name: str
    """Of its folder."""
    result: Result
    checked: Verification | None

    @property
    def path(self) -> str:
        return f"reports/{self.name}.html"


def examples(root: Path) -> list[Example]:
    """The committed reports, by name."""
    found = []
    for file in sorted((root / HOME).glob(f"*/{FILE}")):
        other = file.with_name(VERIFIED)
        checked = Verification.model_validate_json(other.read_text(encoding="utf-8")) if other.exists() else None
        found.append(Example(file.parent.name, Result.load(file.parent), checked))
    return found


def files(knowledge: Knowledge) -> dict[str, str]:
    """The page of each example, by its path on the site, and the schema of `report.json`."""
    command = "python -m tools.report.examples"
    return {SCHEMA: json.dumps(schema(), indent=1) + "\n"} | {
        one.path: page(one.result, rank(one.result, knowledge), knowledge, [f"{command} {one.name}"])
        for one in examples(knowledge.root)
    }


def pages(atlas: Atlas) -> list[Page]:
    """The guide to reports, with the examples."""
    text = atlas.material.guides.get(GUIDE, "")
    if EXAMPLES not in text:
        return []
    found = examples(atlas.knowledge.root)
    spent = atlas.knowledge.root / HOME / COSTS
    costs = Costs.model_validate_json(spent.read_text(encoding="utf-8")) if spent.exists() else None
    pairs = [(one, checked) for one in found if one.checked for checked in one.checked.checked]
    achieved = [checked for _, checked in pairs if checked.achieved]
    filled = render(
        "reports.md", found=found, pairs=pairs, costs=costs, schema=SCHEMA,
        within=sum(bool(c.agrees) for c in achieved), tried=len(achieved),
        below=sum(bool(c.below_ceiling) for c in achieved), timed=sum(c.below_ceiling is not None for c in achieved),
        name=lambda id_: atlas.knowledge.entries[id_].name if id_ in atlas.knowledge.entries else id_,
    ) if found else Html("")  # fmt: skip
    there = NOTEBOOK in atlas.material.notebooks
    link = View(atlas, GUIDE).link(f"notebooks/{NOTEBOOK}.md", "The notebook on a small model")
    steps = Html("<p>{} does it step by step.</p>").format(link) if there else Html("")
    whole = text.replace(EXAMPLES, filled).replace(STEPS, steps)
    return [Page(GUIDE, "Read a redundancy report", whole, f"{DOCS}/{GUIDE}")]
