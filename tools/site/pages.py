"""Every generated page of the site, as a pure function of the knowledge.

No site generator is imported here: the mkdocs hook feeds these pages to mkdocs, and `materialise` writes the same
pages to a folder for another generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reference_impls.accounting.record import Record
from tools.knowledge import Knowledge
from tools.knowledge.schema import Entry, Paper
from tools.site.hosts import Host, hosts
from tools.site.markup import escape
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
    section: str = ""
    """Within its folder, where this has many pages: what they are grouped by in the navigation."""


@dataclass(frozen=True)
class Material:
    """What pages show beside the knowledge."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """Source files of the implementations, by their path relative to the root."""
    hosts: Mapping[str, tuple[Host, ...]] = field(default_factory=dict)
    """Adapters of each implementation, by id."""
    notebooks: Mapping[str, Notebook] = field(default_factory=dict)
    """Executed notebooks, by id."""


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
        """Result records of an entry: full budget first, trade-offs before exact results, then by scenario."""
        found = self.knowledge.results.get(entry_id, [])
        return sorted(found, key=lambda r: (r.budget != "full", not r.baseline.quality.value, r.scenario))

    def term(self, axis: str, term: str) -> str:
        """A term as a reader sees it."""
        known = self.knowledge.axes.axes.get(axis)
        return known.terms[term].name if known and term in known.terms else term.replace("_", " ")

    def axis_name(self, axis: str) -> str:
        """An axis as a reader sees it."""
        known = self.knowledge.axes.axes.get(axis)
        return known.name if known else axis.replace("_", " ")

    def with_term(self, axis: str, term: str) -> list[Entry]:
        """Entries that have the term on the axis, primary or not."""
        return [e for e in self.entries if axis in e.axes and term in e.axes[axis]]


def gather(knowledge: Knowledge, notebooks: Mapping[str, Notebook]) -> Material:
    """Read the source files of every implementation."""
    root, sources = knowledge.root, knowledge.sources
    texts = {file: (root / file).read_text(encoding="utf-8") for s in sources.values() for file in s.files}
    return Material(texts, {id_: hosts(root, s.files) for id_, s in sources.items()}, notebooks)


def pages(knowledge: Knowledge, material: Material | None = None) -> list[Page]:
    """Every generated page, in the order of the navigation."""
    from tools.site import catalogue, entry, home, papers, relations, statements

    atlas = Atlas(knowledge, material or Material())
    return [
        home.page(atlas),
        catalogue.techniques(atlas),
        *(entry.page(atlas, e) for e in atlas.entries),
        *(entry.notebook_page(atlas, n) for n in atlas.material.notebooks.values()),
        catalogue.axes(atlas),
        *(catalogue.axis(atlas, name) for name in knowledge.axes.axes),
        statements.hard_cases(atlas),
        relations.page(atlas),
        statements.principles(atlas),
        statements.open_problems(atlas),
        papers.papers(atlas),
        *(papers.paper(atlas, p) for p in atlas.papers),
    ]


GUIDES = (
    ("Apply a technique", "apply.md"),
    ("Check your own technique", "contract.md"),
    ("How numbers are made", "evidence.md"),
    ("Data for programs", "api.md"),
)
ABOUT = (("About", "about.md"), ("Contribute", "contribute.md"))


def navigation(generated: list[Page]) -> list[NavItem]:
    """The navigation of the site: generated pages by folder, then the hand-written ones. Themes take titles as HTML."""

    def folder(name: str) -> list[NavItem]:
        items: list[NavItem] = []
        sections: dict[str, list[NavItem]] = {}
        for page in generated:
            if page.path.startswith(f"{name}/"):
                item: NavItem = page.path if page.path.endswith("/index.md") else {escape(page.title): page.path}
                (sections.setdefault(page.section, []) if page.section else items).append(item)
        return [*items, *({title: inside} for title, inside in sections.items())]

    notebooks = folder("notebooks")
    return [
        {"Map": "index.md"},
        {"Techniques": [*folder("techniques"), {"Relations": "relations.md"}]},
        *([{"Notebooks": notebooks}] if notebooks else []),
        {"Taxonomy": [*folder("axes"), {"Hard cases": "hard-cases.md"}]},
        {"Principles": [{"Principles": "principles.md"}, {"Open problems": "open-problems.md"}]},
        {"Papers": folder("papers")},
        {"Guides": [{title: path} for title, path in GUIDES]},
        {"About": [{title: path} for title, path in ABOUT]},
    ]
