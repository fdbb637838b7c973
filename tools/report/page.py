"""The page of a report: one file that needs nothing else, in both schemes, on a phone and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reference_impls.report.result import Finding, Interval, Result

from ..knowledge import Knowledge
from ..numbers import number, quantity
from . import figures
from .ranking import Option, Ranking

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def page(result: Result, ranking: Ranking, knowledge: Knowledge | None, commands: list[str]) -> str:
    """The page as HTML. `commands`: what measures the report again, and what tries it."""
    budget = result.budget
    template = _TEMPLATES.get_template("page.html")
    return template.render(
        r=result, ranking=ranking, commands=commands, share=share, interval=interval, quantity=quantity, number=number,
        cells=_map(result), rows=_terms(knowledge, "relation"), columns=_terms(knowledge, "location"),
        heat=figures.heat(result.layers, result.findings), bars=figures.bars, setting=_setting,
        curves=[(f, svg) for f in result.findings if (svg := figures.curve(f, budget.name, budget.limit))],
        nulls=[f for f in result.findings if f.null],
    )  # fmt: skip


def share(value: float | None) -> str:
    """A share in per cent; empty where there is none."""
    return "" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def interval(one: Interval | None) -> str:
    """A share with the ends of its interval."""
    if one is None:
        return ""
    ends = ""
    if one.low is not None and one.high is not None and one.high - one.low >= 0.001:
        ends = f" ({100 * one.low:.1f} to {100 * one.high:.1f})".replace("-", "−")
    return f"{share(one.value)}{ends}"


def _setting(option: Option) -> str:
    return ", ".join(f"{name} = {value}" for name, value in option.suggestion.knobs.items()) or "its defaults"


def _terms(knowledge: Knowledge | None, axis: str) -> dict[str, str]:
    """Terms of an axis -> how readers see them."""
    if knowledge is None or axis not in knowledge.axes:
        return {}
    return {term: one.name for term, one in knowledge.axes[axis].terms.items()}


def _map(result: Result) -> dict[tuple[str, str], dict[str, Any]]:
    """(relation, location) -> the finding there that saves most, and what stands beside it."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for one in result.findings:
        found.setdefault((one.relation, one.location), []).append(one)
    return {
        place: {
            "best": (best := max(ones, key=lambda f: f.ceiling_macs)),
            "told": "; ".join(f"{f.title}: {f.value.value:.2f}, saves {share(f.ceiling_macs)}" for f in ones),
            "level": min(4, int(5 * max(best.ceiling_macs, 0.0))),
        }
        for place, ones in found.items()
    }
