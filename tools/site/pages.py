"""Every generated page of the site, as a pure function of the knowledge.

No site generator is imported here: the mkdocs hook feeds these pages to mkdocs, and `materialise` writes the same
pages to a folder for another generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reference_impls.accounting.record import Record
from tools.knowledge import Knowledge
from tools.knowledge.schema import Claim, Entry, Paper
from tools.site import implementation
from tools.site.implementation import Implementation
from tools.site.notebooks import Notebook

NavItem = str | dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page: where it goes, what it says, and the file of the repository that it comes from."""

    path: str
    """In the documentation folder, ends in `.md`."""
    title: str
    markdown: str
    source: str
    """Relative to the root; what "edit" means."""


@dataclass(frozen=True)
class Material:
    """What pages show beside the knowledge: modules as source, notebooks as executed."""

    implementations: Mapping[str, Implementation] = field(default_factory=dict)
    notebooks: Mapping[str, Notebook] = field(default_factory=dict)


@dataclass(frozen=True)
class Atlas:
    """The knowledge with its material, and the look-ups that several pages need."""

    knowledge: Knowledge
    material: Material

    @property
    def entries(self) -> list[Entry]:
        """Entries by name, those with an implementation first, deprecated ones last."""
        order = {"stable": 0, "draft": 1, "deprecated": 2}
        return sorted(self.knowledge.entries.values(), key=lambda e: (order[e.status], e.name.lower()))

    @property
    def papers(self) -> list[Paper]:
        """Papers, newest first."""
        return sorted(self.knowledge.papers.values(), key=lambda p: (-(p.year or 0), p.key))

    def records(self, entry_id: str) -> list[Record]:
        """Result records of an entry: full budget first, then by scenario."""
        found = self.knowledge.results.get(entry_id, {})
        return sorted(found.values(), key=lambda r: (r.budget != "full", r.scenario))

    def claims(self, entry_id: str) -> list[tuple[Paper, Claim]]:
        """Claims about an entry, with the papers that make them."""
        return [(p, c) for p in self.papers for c in p.claims if c.technique == entry_id]

    def term(self, axis: str, term: str) -> str:
        """A term as a reader sees it."""
        known = self.knowledge.axes.axes.get(axis)
        return known.terms[term].name if known and term in known.terms else term.replace("_", " ")

    def with_term(self, axis: str, term: str) -> list[Entry]:
        """Entries that have the term on the axis, primary or not."""
        return [e for e in self.entries if axis in e.axes and term in e.axes[axis]]


def gather(root: Path, knowledge: Knowledge, notebooks: Mapping[str, Notebook]) -> Material:
    """Read the modules of every entry that has an implementation."""
    found = {e.id: implementation.read(root, e.implementation) for e in knowledge.entries.values() if e.implementation}
    return Material({id_: one for id_, one in found.items() if one is not None}, notebooks)


def pages(knowledge: Knowledge, material: Material | None = None) -> list[Page]:
    """Every generated page, in the order of the navigation."""
    from tools.site import catalogue, entry, home

    atlas = Atlas(knowledge, material or Material())
    return [
        home.page(atlas),
        catalogue.techniques(atlas),
        *(entry.page(atlas, e) for e in atlas.entries),
        *(entry.notebook_page(atlas, n) for n in atlas.material.notebooks.values()),
        catalogue.axes(atlas),
        *(catalogue.axis(atlas, name) for name in knowledge.axes.axes),
        catalogue.papers(atlas),
        *(catalogue.paper(atlas, p) for p in atlas.papers),
    ]


GUIDES = (
    ("Apply a technique", "apply.md"),
    ("Check your own technique", "contract.md"),
    ("How numbers are made", "evidence.md"),
)
ABOUT = (("About", "about.md"), ("Contribute", "contribute.md"))


def navigation(generated: list[Page]) -> list[NavItem]:
    """The navigation of the site: generated pages by folder, then the hand-written ones."""

    def folder(name: str) -> list[NavItem]:
        inside = [p for p in generated if p.path.startswith(f"{name}/")]
        return [p.path if p.path.endswith("/index.md") else {p.title: p.path} for p in inside]

    notebooks = folder("notebooks")
    return [
        {"Map": "index.md"},
        {"Techniques": folder("techniques")},
        *([{"Notebooks": notebooks}] if notebooks else []),
        {"Taxonomy": folder("axes")},
        {"Papers": folder("papers")},
        {"Guides": [{title: path} for title, path in GUIDES]},
        {"About": [{title: path} for title, path in ABOUT]},
    ]
