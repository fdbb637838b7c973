"""Index pages of entries and axes, and the pages of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reference_impls.accounting.saving import Best, macs_saved

from .. import headlines
from ..knowledge.schema import Entry
from ..knowledge.verdicts import MEANINGS
from .model import Atlas, Page
from .parts import FACETS, MAIN, STATUS, Facet, View, facet_of_axis, plain

COLUMNS = ("relation", "location", "exploitation", "stage", "data_kind", "adaptation")
CHOICE = {
    "single": "Exactly one term applies.",
    "primary": "One term decides; others may follow as secondary.",
    "multi": "All terms that apply, the main one first.",
}
SAVINGS = {
    "half": "half of the MACs or more", "quarter": "a quarter or more", "some": "any", "none": "none",
    "unmeasured": "not measured",
}  # fmt: skip
"""Bands of what was measured at a small loss."""
BESIDE = {"better": "saves less", "as-good": "saves as much or more", "none": "saves nothing, or none was tried"}
"""What the best control does at the same loss."""
QUICK = (
    ("Runs here", {"status": "stable"}),
    ("Training-free", {"adaptation": "training_free"}),
    ("Real savings", {"execution": "real", "saving": "some"}),
    ("Has a contradiction", {"verdict": "contradicted"}),
)
"""What many look for: a name, and the choices that it stands for."""


def techniques(atlas: Atlas) -> Page:
    """All entries in one table, which a script lets readers filter, sort, see as cards and take away."""
    rows = [_Row.of(atlas, entry) for entry in atlas.entries]
    return View(atlas, "techniques/index.md").page(
        "techniques.md", "Techniques", "taxonomy/techniques", meta={"hide": ["navigation", "toc"]},
        facets=_facets(atlas, rows), quick=QUICK, rows=rows, status=STATUS,
        axes=[axis for axis in COLUMNS if axis in atlas.knowledge.axes],
        drafts=sum(e.status == "draft" for e in atlas.entries), small_loss=headlines.SMALL_LOSS_TEXT,
        steady=lambda entry: _steadiness(atlas, entry),
    )  # fmt: skip


def _steadiness(atlas: Atlas, entry: Entry) -> tuple[str, str]:
    """P99 - P50 of the work of single items, and the baseline's; what is there instead where none is known."""
    if entry.status == "draft":
        return "–", ""
    found = headlines.steadiness(atlas.knowledge, entry.id) if entry.kind == "technique" else None
    follows = {axis: entry.axes[axis].primary for axis in ("stage", "detection_time") if axis in entry.axes}
    return found or ("not measured" if follows == {"stage": "inference", "detection_time": "dynamic"} else "", "")


@dataclass(frozen=True)
class _Row:
    """An entry as the table shows it."""

    entry: Entry
    saves: list[tuple[str, str]]
    """(what is saved, what the best control saves), a line for each kind of work."""
    share: float | None
    """The largest share of the MACs saved; None where nothing was measured."""
    control: float | None
    """What the best control saves of the same work."""
    execution: str
    verdicts: frozenset[str]
    """Of the claims that we tried."""
    benchmarks: frozenset[str]

    @classmethod
    def of(cls, atlas: Atlas, entry: Entry) -> _Row:
        known = atlas.knowledge
        found = [one for one, _ in headlines.of_entry(known, entry.id)]
        pairs = [pair for one in found for best in one.bests for pair in zip(best.saved, _beside(best), strict=True)]
        share, control = max(pairs, default=(None, None))
        source = known.sources.get(entry.id)
        return cls(
            entry, headlines.in_short(known, entry.id), share, control,
            source.execution or "" if source else "",
            frozenset(judged.verdict.replace(" ", "-") for _, _, judged in known.claims(entry.id) if judged.attempted),
            frozenset(r.benchmark for r in known.results_of(entry.id) if r.benchmark),
        )  # fmt: skip

    @property
    def data(self) -> Mapping[str, str]:
        """What the filter compares, by data attribute."""
        entry = self.entry
        terms = {a: [entry.axes[a].primary] if a in MAIN else list(entry.axes[a]) for a in entry.axes}
        words = " ".join([entry.name, *entry.aliases, entry.id, entry.summary]).lower()
        return {f"data-{axis}": " ".join(own) for axis, own in terms.items()} | {
            "data-id": entry.id, "data-status": entry.status, "data-text": words,
            "data-papers": " ".join(link.key for link in entry.papers), "data-execution": self.execution,
            "data-saving": " ".join(self.bands), "data-beside": self.beside,
            "data-verdict": " ".join(sorted(self.verdicts)), "data-benchmark": " ".join(sorted(self.benchmarks)),
        }  # fmt: skip

    @property
    def bands(self) -> list[str]:
        if self.share is None:
            return ["unmeasured"]
        named = (("half", 0.5), ("quarter", 0.25), ("some", 1e-9))
        return [name for name, least in named if self.share >= least] or ["none"]

    @property
    def beside(self) -> str:
        """Whether a control does as well; empty where nothing was measured."""
        if self.share is None:
            return ""
        if not self.control:
            return "none"
        return "better" if self.share > self.control else "as-good"


def _beside(best: Best) -> list[float]:
    """What the best control saves, for each input."""
    return [max(macs_saved(best.record, one[1]), 0.0) if one else 0.0 for one in best.controls]


def _facets(atlas: Atlas, rows: Sequence[_Row]) -> list[Facet]:
    used = [row.entry.axes for row in rows]
    there = {row.entry.status for row in rows}

    def used_in(name: str, options: Mapping[str, str]) -> dict[str, str]:
        taken = {value for row in rows for value in row.data.get(f"data-{name}", "").split()}
        return {value: label for value, label in options.items() if value in taken}

    verdicts = {word.replace(" ", "-"): word for word in MEANINGS}
    families = {id_: id_.replace("-", " ") for id_ in sorted(atlas.knowledge.benchmarks)}
    return [
        *(facet for axis in FACETS for facet in facet_of_axis(atlas, axis, used)),
        Facet("status", "Status", {s: name for s, name in STATUS.items() if s in there}),
        Facet("saving", "Measured saving", used_in("saving", SAVINGS)),
        *(f for axis in atlas.knowledge.axes.axes if axis not in FACETS
          for f in facet_of_axis(atlas, axis, used, more=True)),
        Facet("execution", "Execution", used_in("execution", {"real": "real", "simulated": "simulated"}), more=True),
        Facet("beside", "The best control", used_in("beside", BESIDE), more=True),
        Facet("verdict", "A claim was", used_in("verdict", verdicts), more=True),
        Facet("benchmark", "Measured in", used_in("benchmark", families), more=True),
    ]  # fmt: skip


def axes(atlas: Atlas) -> Page:
    """The vocabulary: every axis with its question."""
    view, known = View(atlas, "axes/index.md"), atlas.knowledge.axes
    rows = [(view.of_axis(name), plain(one.question), len(one.terms)) for name, one in known.axes.items()]
    return view.page("axes.md", "Taxonomy", "taxonomy/axes.yml", known=known, rows=rows)


def axis(atlas: Atlas, name: str) -> Page:
    """One axis: every term with its definition, question and entries."""
    one = atlas.knowledge.axes[name]
    meta = {"description": plain(one.question)}
    return View(atlas, f"axes/{name}.md").page(
        "axis.md", one.name, "taxonomy/axes.yml", meta=meta, name=name, axis=one, choice=CHOICE[one.choice],
        papers=lambda term: sum(name in p.axes and p.axes[name].primary == term for p in atlas.papers),
    )  # fmt: skip
