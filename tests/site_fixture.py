"""A small knowledge for tests of the site, made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference_impls.accounting.record import Record
from tools.knowledge.base import Knowledge
from tools.knowledge.schema import Axes, Entry, HardCase, Paper, Statements
from tools.knowledge.source import read_source


def variant(macs: int, quality: float, ms: float, **more: Any) -> dict[str, Any]:
    """A variant with an interval of 0.02 around its quality."""
    interval = {"low": quality - 0.01, "high": quality + 0.01, "n": 5}
    wall = {"median": ms, "p10": 0.9 * ms, "p90": 1.1 * ms, "p99": 1.2 * ms, "n": 15}
    return {
        "macs": macs,
        "bytes": 2 * macs,
        "quality": {"metric": "accuracy", "value": quality} | interval,
        "wall_ms": wall,
        **more,
    }


def record(scenario: str = "photos", **changes: Any) -> Record:
    """A sweep of r over 4 and 8: 25 % saved at no loss and 1.25 times as fast, 50 % at a loss of 0.1."""
    fields = {
        "technique": "token-merging",
        "scenario": scenario,
        "title": f"A ViT on {scenario}",
        "budget": "full",
        "data": "12 photos",
        "model": "ViT-S/16",
        "unit": "one image",
        "knobs": ["r"],
        "baseline": variant(4_000_000_000, 0.9, 100.0),
        "points": [
            variant(3_000_000_000, 0.9, 80.0, knobs={"r": 4}),
            variant(2_000_000_000, 0.8, 60.0, knobs={"r": 8}),
        ],
        "controls": [
            {
                "name": "random merging",
                "about": "Partners drawn at random.",
                "points": [variant(3_000_000_000, 0.7, 79.0, knobs={"r": 4})],
            }
        ],
        "redundancy": {
            "measure": "mean best-match cosine",
            "value": 0.87,
            "low": 0.85,
            "high": 0.89,
            "where": {"block 0": 0.9, "block 1": 0.84},
            "null": {"white noise": 0.12},
        },
        "seeds": [0, 1],
        "machine": {"cpu": "A CPU", "cores": 2, "threads": 1, "memory_gb": 23.4},
        "versions": {"torch": "2.13.0"},
        "command": "redundancy run token-merging",
        "date": "2026-11-22",
        "notes": ["Agreement, not accuracy."],
    }
    return Record.model_validate(fields | changes)


AXES = Axes.model_validate(
    {
        "about": "The vocabulary.",
        "scope_rule": "Would it vanish on noise?",
        "decision_card": [{"ask": "Why?", "axes": ["relation"]}],
        "axes": {
            name: {
                "name": name.capitalize(),
                "choice": "primary",
                "question": f"What {name}?",
                "definition": f"The {name}.",
                "rulings": ["A case: `irrelevance`, then `drop`, never `neither`."],
                "terms": {
                    t: {"name": t.replace("_", " ").capitalize(), "definition": f'About <{t}> & "more".'} for t in terms
                },
            }
            for name, terms in {
                "relation": ("spatial_similarity", "irrelevance", "sufficiency"),
                "location": ("tokens", "dataset"),
                "exploitation": ("merge", "drop"),
                "stage": ("training", "inference"),
                "data_kind": ("image", "text"),
                "adaptation": ("training_free", "finetune"),
            }.items()
        },
    }
)


def entry(**changes: Any) -> Entry:
    """A stable entry with everything."""
    fields = {
        "id": "token-merging",
        "kind": "technique",
        "name": "Token merging",
        "aliases": ["ToMe"],
        "status": "stable",
        "added": "2026-11-22",
        "axes": {
            "relation": ["spatial_similarity", "irrelevance"],
            "location": "tokens",
            "exploitation": "merge",
            "stage": "inference",
            "data_kind": "image",
            "adaptation": "training_free",
        },
        "summary": "Average the most similar tokens, dropping none.",
        "definition": "Tokens are merged, $r$ at a time, where $a_1 * b_2 < c$ and `$x$` is code.",
        "algorithm": [{"step": "Match tokens.", "function": "match"}, {"step": "Merge."}],
        "invariant": "With $r = 0$ nothing changes.",
        "cost_model": r"N^2 C \to (N - r)^2 C",
        "when_to_use": ["Many tokens are alike."],
        "when_not_to_use": ["Few tokens."],
        "limits": ["Dense outputs need unmerging."],
        "deviations": ["Ties go to the lower index."],
        "papers": [{"key": "bolya-2023-token", "role": "introduces"}],
        "implementation": "reference_impls.techniques.token_merging:TokenMerging",
        "relations": [{"type": "composes-with", "target": "token-dropping", "note": "Each works alone."}],
    }
    return Entry.model_validate(fields | changes)


DRAFT = {
    "id": "token-dropping",
    "name": "Token dropping",
    "aliases": ["EViT"],
    "status": "draft",
    "implementation": None,
    "invariant": None,
    "relations": [],
    "axes": {"relation": "irrelevance", "location": "tokens", "exploitation": "drop"},
}

SPEED_UP = "baseline.wall_ms.median / points[r=4].wall_ms.median"

PAPER = Paper.model_validate(
    {
        "key": "bolya-2023-token",
        "title": "Token Merging: Your ViT & <More>",
        "year": 2023,
        "venue": "ICLR 2023",
        "authors": [{"family": "Bolya", "given": "Daniel"}, {"family": "Müller", "given": "Æ."}, {"family": "Dai"}],
        "ids": {"arxiv": "2210.09461"},
        "axes": {"relation": ["spatial_similarity", "irrelevance"], "location": "tokens"},
        "summary": "Merges tokens.",
        "verified": {"source": "arXiv listing", "on": "2026-11-22"},
        "claims": [
            {
                "id": "c1",
                "technique": "token-merging",
                "kind": "speedup",
                "statement": "Twice as fast.",
                "quantity": {"metric": "throughput", "value": 2.0, "unit": "times"},
                "locator": {"table": "4", "section": "5.1"},
                "check": {
                    "scenario": "photos",
                    "field": SPEED_UP,
                    "target": 2.0,
                    "tolerance": 0.2,
                    "unit": "times",
                    "differs": ["data"],
                    "better": "higher",
                },
            },
            {
                "id": "c2",
                "technique": "token-merging",
                "kind": "definition",
                "statement": "Needs no training.",
                "locator": {"section": "abstract"},
            },
        ],
    }
)


HARD_CASE = HardCase.model_validate(
    {
        "id": "merging-tokens",
        "case": "Tokens that are alike and matter little.",
        "entries": ["token-merging"],
        "papers": ["bolya-2023-token"],
        "axis": "relation",
        "terms": ["spatial_similarity", "irrelevance"],
        "ruling": "Similarity: the *number that is ranked* is a similarity.",
        "because": "The rule of the axis.",
    }
)

OPEN_PROBLEMS = Statements.model_validate(
    {
        "about": "The project's own reading.",
        "statements": [
            {
                "id": "when-to-merge",
                "title": "Nobody knows when to merge",
                "statement": "No measure says *beforehand* what merging will cost.",
                "support": [{"claim": "bolya-2023-token#c1", "note": "The claim."}, {"paper": "bolya-2023-token"}],
            }
        ],
    }
)

PRINCIPLES = Statements.model_validate(
    {
        "about": "The project's own reading.",
        "statements": [
            {
                "id": "detection-is-cheap",
                "title": "Detection must cost less than it saves",
                "statement": "It must cost less.",
                "support": [{"result": "token-merging/photos"}, {"entry": "token-merging", "note": "The entry."}],
            }
        ],
    }
)


def knowledge(*records: Record, root: Path | None = None) -> Knowledge:
    """Two entries, a paper, the axes and the records given; with `root`, the implementation that lies there."""
    by_id = {e.id: e for e in (entry(), entry(**DRAFT))}
    results = {"token-merging": list(records)} if records else {}
    source = read_source(root, "token-merging", by_id["token-merging"].implementation, []) if root else None
    sources = {"token-merging": source} if source else {}
    return Knowledge(
        root=root or Path("nowhere"),
        axes=AXES,
        entries=by_id,
        papers={PAPER.key: PAPER},
        hard_cases=(HARD_CASE,),
        open_problems=OPEN_PROBLEMS,
        principles=PRINCIPLES,
        results=results,
        sources=sources,
    )
