"""What to try first: the suggestions of a report in the light of the catalogue.

Savings are never added: two techniques on one kind of redundancy exploit the same thing. The order is what this machine
could realise, techniques without training first; what it could not tell, or would lose to overhead, is said as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from reference_impls.report.result import Finding, Result, Suggestion

from ..knowledge import Knowledge

LEAST: Final = 0.02
"""Share of the time, or of the MACs where no time is told, below which nothing is worth the trouble."""
Standing = Literal["try", "macs only", "trains", "not here"]
"""`try`: time falls on this machine. `macs only`: MACs fall and the time does not. `trains`: saves of a training or of
bits, or needs one. `not here`: the technique refuses this model."""
ORDER: Final[tuple[Standing, ...]] = ("try", "trains", "macs only", "not here")


@dataclass(frozen=True)
class Option:
    """One technique for one finding."""

    finding: Finding
    suggestion: Suggestion
    name: str
    adaptation: str
    """Term of the axis of that name; empty where the entry is unknown."""
    notebook: bool
    standing: Standing
    why: str
    """Why it stands there, in a sentence."""

    @property
    def time(self) -> float:
        """Share of this machine's time that is saved at best; 0 where none is."""
        return max(self.finding.ceiling_time or 0.0, 0.0) if self.suggestion.execution == "real" else 0.0

    @property
    def macs(self) -> float:
        return max(self.finding.ceiling_macs, 0.0)

    @property
    def code(self) -> str:
        """The lines that apply it."""
        knobs = "".join(f", {name}={value!r}" for name, value in self.suggestion.knobs.items())
        return (
            "from reference_impls.contract.registry import load\n"
            f"handle = load({self.suggestion.technique!r}).apply(model{knobs})\n"
            "...            # use the model as before\n"
            "handle.undo()"
        )


@dataclass(frozen=True)
class Ranking:
    """The options in order, and what to do."""

    verdict: str
    """One sentence."""
    first: Option | None
    """What to try first; None for "do nothing"."""
    options: tuple[Option, ...]
    unexploited: tuple[tuple[Finding, tuple[str, ...]], ...] = field(default=())
    """Findings that nothing here exploits, with the ids of entries that the catalogue has at the same place."""


def rank(result: Result, knowledge: Knowledge | None) -> Ranking:
    """The suggestions of a report in order; without a catalogue nothing is known of training and notebooks."""
    options = [_option(finding, one, knowledge) for finding in result.findings for one in finding.suggestions]
    options.sort(key=lambda o: (ORDER.index(o.standing), o.adaptation != "training_free", -o.time, -o.macs))
    first = next((option for option in options if option.standing == "try"), None)
    bare = [
        (finding, _neighbours(finding, knowledge))
        for finding in result.findings
        if not finding.suggestions and finding.ceiling_macs > LEAST
    ]
    return Ranking(_verdict(result, first, options), first, tuple(options), tuple(bare))


def untrained(ranking: Ranking) -> list[str]:
    """Ids of the suggested techniques that can be tried as they are: those that train parts of their own cannot."""
    able = {"", "training_free", "calibration"}
    found = [o for o in ranking.options if o.adaptation in able or o.finding.saves == "training"]
    return list(dict.fromkeys(o.suggestion.technique for o in found))


def _option(finding: Finding, one: Suggestion, knowledge: Knowledge | None) -> Option:
    entry = knowledge.entries.get(one.technique) if knowledge else None
    adaptation = entry.axes["adaptation"].primary if entry and "adaptation" in entry.axes else ""
    notebook = bool(knowledge and (knowledge.root / "notebooks" / f"{one.technique.replace('-', '_')}.py").is_file())
    standing, why = _standing(finding, one)
    return Option(finding, one, entry.name if entry else one.technique, adaptation, notebook, standing, why)


def _standing(finding: Finding, one: Suggestion) -> tuple[Standing, str]:
    if one.applies is False:
        return "not here", f"it refuses this model: {one.needs}"
    if finding.best is None and finding.curve:
        return "not here", "no setting keeps the budget"
    if finding.ceiling_macs < LEAST:
        return "not here", f"it would save less than {LEAST:.0%}"
    if finding.saves != "inference":
        return "trains", {"training": "it saves of a training", "bits": "it saves bits"}[finding.saves]
    if one.execution == "simulated":
        return "macs only", "the reference implementation computes everything and masks"
    if finding.ceiling_time is None or finding.ceiling_time < LEAST:
        return "macs only", "on this machine the overhead takes what is saved"
    if one.applies is None and one.needs:
        return "not here", one.needs
    apart = "" if finding.separable is not False else "; the null controls show as much, so it is the architecture's"
    return "try", f"at the budget, on this machine, at best{apart}"


def _verdict(result: Result, first: Option | None, options: Iterable[Option]) -> str:
    budget = f"{result.budget.name} ≤ {result.budget.limit:g}"
    if first is not None:
        knobs = ", ".join(f"{name} = {value}" for name, value in first.suggestion.knobs.items())
        setting = f" with {knobs}" if knobs else ""
        return (
            f"Try {first.name}{setting} first: at most {first.time:.0%} of the time and {first.macs:.0%} of the MACs "
            f"at {budget}."
        )
    counts = {standing: sum(o.standing == standing for o in options) for standing in ORDER}
    if counts["macs only"]:
        return f"Do nothing for speed on this machine: at {budget} MACs could be saved, and overhead takes the time."
    if counts["trains"]:
        return f"Do nothing at inference: at {budget} only the training, or the bits, hold what can be saved."
    return f"Do nothing: at {budget} no technique of the atlas saves {LEAST:.0%} or more on this model and these data."


def _neighbours(finding: Finding, knowledge: Knowledge | None) -> tuple[str, ...]:
    """Entries whose relation and location are those of the finding."""
    if knowledge is None:
        return ()
    wanted: Mapping[str, str] = {"relation": finding.relation, "location": finding.location}
    return tuple(
        id_
        for id_, entry in knowledge.entries.items()
        if all(axis in entry.axes and entry.axes[axis].primary == term for axis, term in wanted.items())
    )
