"""Two to four entries side by side: the page, and the script with what it shows of each entry.

What is compared is chosen in the browser, and pages opened from disk can load scripts and no other data.
"""

from __future__ import annotations

import json
from typing import Any

from reference_impls.accounting.record import Record

from ..headlines import in_short, knobs, own_part
from ..knowledge.schema import Claim, Entry
from ..numbers import number
from .model import Atlas, Page
from .parts import STATUS, View, locator, plain, printed, short_reference
from .shares import COSTS, kept

SCRIPT = "assets/comparison.js"
HERE = "compare.md"
LONG = 320
"""Characters of a statement or an item, at most."""


def page(atlas: Atlas) -> Page:
    """The page, which a script fills in; without one it says so and lists what can be compared."""
    axes = [(name, axis.name) for name, axis in atlas.knowledge.axes.axes.items()]
    return View(atlas, HERE).page(
        "compare.md", "Compare", "taxonomy/techniques", meta={"hide": ["navigation", "toc"]}, axes=axes
    )


def script(atlas: Atlas) -> str:
    """The data of every entry, as a script."""
    data = {
        "axes": {name: axis.name for name, axis in atlas.knowledge.axes.axes.items()},
        "entries": {entry.id: _entry(atlas, entry) for entry in atlas.entries},
    }
    return f"window.atlasComparison = {json.dumps(data, ensure_ascii=False, separators=(',', ':'))};\n"


def _entry(atlas: Atlas, entry: Entry) -> dict[str, Any]:
    known = atlas.knowledge
    source = known.sources.get(entry.id)
    results = [_result(atlas, record, entry.id) for record in known.results_of(entry.id)]
    return {
        "name": entry.name,
        "status": STATUS[entry.status],
        "summary": entry.summary,
        "axes": {axis: [atlas.term(axis, term) for term in terms] for axis, terms in entry.axes.items()},
        "execution": source.execution if source else None,
        "when": [_cut(item) for item in entry.when_to_use],
        "not": [_cut(item) for item in entry.when_not_to_use],
        "limits": [_cut(item) for item in entry.limits],
        "saves": [f"{saved}; best control: {control}" for saved, control in in_short(known, entry.id)],
        "claims": [_claim(atlas, claim, short_reference(paper)) for paper, claim, _ in known.claims(entry.id)],
        "results": [one for one in results if one["points"]],
    }  # fmt: skip


def _claim(atlas: Atlas, claim: Claim, reference: str) -> dict[str, str]:
    quantity, judged = claim.quantity, atlas.knowledge.judge(claim)
    said = f"{printed(quantity)} {quantity.unit} ({quantity.metric})" if quantity else ""
    return {
        "text": _cut(claim.statement), "where": f"{reference}, {locator(claim.locator)}", "said": said,
        "ours": "" if judged.value is None else number(judged.value), "verdict": judged.verdict,
    }  # fmt: skip


def _result(atlas: Atlas, record: Record, entry_id: str) -> dict[str, Any]:
    """A record as curves: [% of the MACs, % of the time, % of the quality, setting] of each point."""
    macs, time = COSTS[0], COSTS[1]
    points = [
        [*(round(value, 2) for value in values if value is not None), knobs(point)]
        for point in own_part(record, entry_id).points
        if None not in (values := (macs.of(record, point), time.of(record, point), kept(record, point)))
    ]
    return {"title": record.title, "benchmark": record.benchmark, "metric": record.baseline.quality.metric,
            "task": f"{record.data} · {record.model}", "points": points}  # fmt: skip


def _cut(text: str) -> str:
    said = plain(text)
    return said if len(said) <= LONG else f"{said[:LONG].rsplit(' ', 1)[0]} …"
