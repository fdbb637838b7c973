"""The page of all claims beside our results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from ..knowledge.claims import Judgement
from ..knowledge.schema import Claim, Paper
from ..knowledge.verdicts import MEANINGS
from .model import Atlas, Page
from .parts import Facet, View, short_reference

FIRST = ("contradicted", "does not discriminate", "not shown", "partly")
"""What a sceptical reader looks for comes first."""


def page(atlas: Atlas) -> Page:
    """Every claim, contradictions first."""
    known = atlas.knowledge
    rows = [(paper, claim, known.judge(claim)) for paper in atlas.papers for claim in paper.claims]
    order = [*FIRST, *(word for word in MEANINGS if word not in FIRST)]
    rows.sort(key=lambda row: order.index(row[2].verdict))
    there = {judged.verdict for _, _, judged in rows}
    kinds = [k for k in get_args(Claim.model_fields["kind"].annotation) if any(c.kind == k for _, c, _ in rows)]
    facets = [
        Facet("verdict", "Verdict", {word.replace(" ", "-"): word for word in MEANINGS if word in there}),
        Facet("kind", "Kind of claim", {kind: kind for kind in kinds}),
        Facet("tried", "Tried here", {"yes": "yes", "no": "no"}),
    ]
    return View(atlas, "claims.md").page(
        "claims.md", "Claims", "papers", meta={"hide": ["navigation", "toc"]}, rows=rows, facets=facets, data=_data,
        quick=(("Contradicted", {"verdict": "contradicted"}), ("Tried here", {"tried": "yes"})),
        tried=sum(judged.attempted for _, _, judged in rows),
    )  # fmt: skip


def _data(paper: Paper, claim: Claim, judged: Judgement) -> Mapping[str, str]:
    """What the filter compares, by data attribute."""
    words = (claim.statement, claim.technique, claim.quantity.metric if claim.quantity else "", short_reference(paper))
    return {
        "data-id": f"{paper.key}#{claim.id}", "data-papers": paper.key, "data-text": " ".join(words).lower(),
        "data-verdict": judged.verdict.replace(" ", "-"), "data-kind": claim.kind,
        "data-tried": "yes" if judged.attempted else "no",
    }  # fmt: skip
