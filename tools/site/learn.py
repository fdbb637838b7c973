"""Pages for readers who are new: what data redundancy is, which technique fits a case, the words, and what is new."""

from __future__ import annotations

from itertools import groupby
from pathlib import PurePath

from .markup import Html
from .model import Atlas, Page
from .notebooks import first_figure
from .parts import View, anchor, plain

FIGURES = (
    ("A video", "delta-convolution",
     "Most of a frame is the frame before. Where nothing moved, a network computes again what it knows."),
    ("A picture", "token-merging",
     "A sky looks like the rest of the sky: patches that the network itself finds alike get the same work each."),
    ("A text", "minhash-deduplication",
     "Corpora hold the same mail, page or licence many times over, with a word changed here and there."),
    ("A training set", "data-sieving",
     "Examples that are learnt early are shown again in every epoch, and teach nothing new."),
)  # fmt: skip
"""A kind of data, the entry whose notebook draws it, and what to see."""
FIGURE_BYTES = 220_000
QUESTIONS = (
    ("data_kind", "What are your data?"), ("stage", "Where does the cost lie?"),
    ("adaptation", "May the model be trained again?"), ("guarantee", "How exact must the result be?"),
    ("support", "What can your hardware and runtime do?"),
)  # fmt: skip
MOST = 60
"""Days on the page of news."""
FEW = 24
"""Names of one kind on one day."""
PAPERS = {"A": "Papers added", "M": "Papers changed"}


def pages(atlas: Atlas) -> list[Page]:
    """The four pages."""
    return [_learn(atlas), _decide(atlas), _glossary(atlas), _new(atlas)]


def _learn(atlas: Atlas) -> Page:
    shown = []
    for title, id_, about in FIGURES:
        if id_ in atlas.knowledge.entries:
            notebook = atlas.material.notebooks.get(id_)
            shown.append(
                (title, id_, about, first_figure(notebook, FIGURE_BYTES, f"picture-{id_}") if notebook else None)
            )
    relations = atlas.knowledge.axes.axes.get("relation")
    return View(atlas, "learn.md").page(
        "learn.md", "What is redundant?", "taxonomy/axes.yml", shown=shown, relations=relations
    )


def _decide(atlas: Atlas) -> Page:
    """The questions with the terms that can answer them; a script weighs the entries."""
    used = [e.axes for e in atlas.entries]
    asked = [
        (axis, question, [(t, one.name) for t, one in atlas.knowledge.axes[axis].terms.items()
                          if any(axis in own and t in own[axis] for own in used)])
        for axis, question in QUESTIONS if axis in atlas.knowledge.axes
    ]  # fmt: skip
    return View(atlas, "decide.md").page(
        "decide.md", "Which technique?", "taxonomy/techniques", asked=asked, meta={"hide": ["toc"]}
    )


BENCHMARKS = "benchmarks/index.md"
WORDS = {
    "MAC": ("A multiply-accumulate: a multiplication with the addition that follows it.", "evidence.md#operations"),
    "Baseline": ("The same work without the technique, in the best native dense way.", "evidence.md#wall-clock"),
    "Control": ("The same saving without the technique's insight, such as random merging.", "evidence.md#controls"),
    "Null control": ("A measure taken where the redundancy is absent, such as on noise.", "evidence.md#controls"),
    "P99 - P50": ("What the slowest hundredth of single items takes beyond the median.", "evidence.md#variation"),
    "Entry": ("A technique, which removes one redundancy, a system of several, or a study.", "about.md"),
    "Claim": ("A number or a statement of a paper, in our words, with its place.", "claims.md"),
    "Verdict": ("How a claim compares with our result, computed by one rule.", "evidence.md"),
    "Result": ("What was measured of one or more techniques on named data, with its machine.", "results.md"),
    "Conformance check": ("What every implementation is held against, such as: off is the baseline.", "contract.md"),
    "Real execution": ("Fewer MACs are executed; simulated: all is computed, and masked.", "evidence.md#operations"),
    "Benchmark": ("One task, baseline and set of controls for techniques that answer one question.", BENCHMARKS),
}  # fmt: skip
"""Words of the atlas that are no terms of an axis -> their meaning, and where more stands."""


def _glossary(atlas: Atlas) -> Page:
    """Every term and every word in the order of the alphabet, under its first letter."""
    view = View(atlas, "glossary.md")
    lines: list[tuple[str, Html, str]] = []
    for word, (meaning, there) in WORDS.items():
        page, _, place = there.partition("#")
        if page != BENCHMARKS or atlas.knowledge.benchmarks:
            lines.append((word, view.link(page, word, anchor=place), meaning))
    for axis, known in atlas.knowledge.axes.axes.items():
        for key, term in known.terms.items():
            leads = view.link(f"axes/{axis}.md", term.name, anchor=anchor(key))
            name = Html("{} <small>({})</small>").format(leads, view.of_axis(axis))
            lines.append((term.name, name, plain(term.definition)))
    lines.sort(key=lambda line: (line[0].lower(), str(line[1])))
    letters = [(letter, list(those)) for letter, those in groupby(lines, key=lambda line: line[0][0].upper())]
    return view.page("glossary.md", "Glossary", "taxonomy/axes.yml", letters=letters, meta={"hide": ["toc"]})


def _new(atlas: Atlas) -> Page:
    """Entries by the day on which they were added, results by the day on which they were measured, and what git tells
    of changes."""
    view, known = View(atlas, "new.md"), atlas.knowledge
    days: list[tuple[str, str, Html]] = [
        (str(entry.added), "Added", view.of_entry(entry.id)) for entry in known.entries.values()
    ]
    for record in known.records:
        owner = record.technique or next((p.technique for p in record.points if p.technique), None)
        if owner in known.entries:
            days.append((record.date, "Measured", Html("{}: {}").format(view.of_entry(str(owner)), record.title)))
    added = {(change.day, change.path) for change in atlas.material.changes if change.what == "A"}
    for change in dict.fromkeys(atlas.material.changes):
        id_ = PurePath(change.path).stem
        if change.what == "M" and (change.day, change.path) in added:
            continue
        if change.path.startswith("papers/") and id_ in known.papers and change.what != "D":
            days.append((change.day, PAPERS[change.what], view.of_paper(known.papers[id_])))
        elif id_ in known.entries and change.what == "M" and change.day != str(known.entries[id_].added):
            days.append((change.day, "Changed", view.of_entry(id_)))
    days.sort(key=lambda one: (one[1], str(one[2])))
    days.sort(key=lambda one: one[0], reverse=True)
    grouped = [
        (day, [(kind, _few([text for _, _, text in those])) for kind, those in groupby(ones, key=lambda one: one[1])])
        for day, ones in groupby(days, key=lambda one: one[0])
    ]
    return view.page(
        "new.md", "What is new", "taxonomy/techniques", grouped=grouped[:MOST], left=max(len(grouped) - MOST, 0)
    )


def _few(texts: list[Html]) -> list[Html]:
    """The first of many."""
    more = len(texts) - FEW
    return texts if more < 2 else [*texts[:FEW], Html(f"and {more} more")]
