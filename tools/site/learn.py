"""Pages for readers who are new: what data redundancy is, which technique fits a case, and what is new in the atlas."""

from __future__ import annotations

from itertools import groupby

from .markup import Html
from .model import Atlas, Page
from .notebooks import first_figure
from .parts import View

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
MOST = 120
"""Entries and results on the page of news."""


def pages(atlas: Atlas) -> list[Page]:
    """The three pages."""
    return [_learn(atlas), _decide(atlas), _new(atlas)]


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


def _new(atlas: Atlas) -> Page:
    """Entries by the day on which they were added, and results by the day on which they were measured."""
    view = View(atlas, "new.md")
    days: list[tuple[str, str, Html]] = [
        (str(entry.added), "Added", view.of_entry(entry.id)) for entry in atlas.knowledge.entries.values()
    ]
    for record in atlas.knowledge.records:
        owner = record.technique or next((p.technique for p in record.points if p.technique), None)
        if owner in atlas.knowledge.entries:
            days.append((record.date, "Measured", Html("{}: {}").format(view.of_entry(str(owner)), record.title)))
    days.sort(key=lambda one: (one[0], one[1], str(one[2])), reverse=True)
    grouped = [
        (day, [(kind, [text for _, _, text in those]) for kind, those in groupby(list(ones), key=lambda one: one[1])])
        for day, ones in groupby(days[:MOST], key=lambda one: one[0])
    ]
    return view.page("new.md", "What is new", "taxonomy/techniques", grouped=grouped, left=max(len(days) - MOST, 0))
