"""Every generated page of the site, as a pure function of the knowledge.

No site generator is imported here: the mkdocs hook feeds these pages to mkdocs, and `materialise` writes the same
pages to a folder for another generator.
"""

from __future__ import annotations

from ..knowledge import Knowledge
from ..knowledge.references import resolved
from . import (
    benchmarks,
    catalogue,
    claims,
    comparison,
    entry,
    guides,
    home,
    learn,
    papers,
    relations,
    reports,
    results,
    statements,
)
from .markup import escape
from .model import Atlas, Material, NavItem, Page
from .parts import STATUS


def pages(knowledge: Knowledge, material: Material | None = None) -> list[Page]:
    """Every generated page, in the order of the navigation."""
    atlas = Atlas(resolved(knowledge), material or Material())
    return [
        home.page(atlas),
        catalogue.techniques(atlas),
        *(entry.page(atlas, e) for e in atlas.entries),
        *(entry.numbers_page(atlas, e) for e in atlas.entries if atlas.results(e.id)),
        *(entry.source_page(atlas, e) for e in atlas.entries if e.implementation and e.id in knowledge.sources),
        *(entry.notebook_page(atlas, n) for n in atlas.material.notebooks.values()),
        comparison.page(atlas),
        *benchmarks.pages(atlas),
        claims.page(atlas),
        *results.pages(atlas),
        catalogue.axes(atlas),
        *(catalogue.axis(atlas, name) for name in knowledge.axes.axes),
        statements.hard_cases(atlas),
        relations.page(atlas),
        statements.principles(atlas),
        statements.open_problems(atlas),
        papers.papers(atlas),
        *(papers.paper(atlas, p) for p in atlas.papers),
        *guides.pages(atlas),
        *guides.verdicts(atlas),
        *reports.pages(atlas),
        *learn.pages(atlas),
    ]


GUIDES = (
    ("Apply a technique", "apply.md"),
    ("Read a redundancy report", "report.md"),
    ("Check your own technique", "contract.md"),
    ("Data for programs", "api.md"),
)
EVIDENCE = (
    ("Claims", "claims.md"),
    ("Results", "results.md"),
    ("Methods", "evidence.md"),
    ("Machines", "machines.md"),
)
ABOUT = (("About", "about.md"), ("Contribute", "contribute.md"))


def navigation(generated: list[Page]) -> list[NavItem]:
    """The navigation of the site: generated pages by folder, then the hand-written ones. Themes take titles as HTML."""

    def folder(name: str) -> list[NavItem]:
        items: list[NavItem] = []
        sections: dict[str, list[NavItem]] = {}
        for page in generated:
            if page.path.startswith(f"{name}/"):
                item: NavItem = page.path if page.path.endswith("/index.md") else {str(escape(page.title)): page.path}
                (sections.setdefault(page.section, []) if page.section else items).append(item)
        drafts = f"{STATUS['draft']}: "
        order = sorted(sections, key=lambda title: (title.startswith(drafts), title if drafts in title else ""))
        return [*items, *({str(escape(title)): sections[title]} for title in order)]

    notebooks = folder("notebooks")
    return [
        {"Map": "index.md"},
        {
            "Learn": [
                {"What is redundant?": "learn.md"},
                {"Which technique?": "decide.md"},
                {"Glossary": "glossary.md"},
                {"What is new": "new.md"},
            ]
        },
        {"Techniques": [*folder("techniques"), {"Relations": "relations.md"}, {"Compare": "compare.md"}]},
        *([{"Benchmarks": benchmarks_}] if (benchmarks_ := folder("benchmarks")) else []),
        *([{"Notebooks": notebooks}] if notebooks else []),
        {"Taxonomy": [*folder("axes"), {"Hard cases": "hard-cases.md"}]},
        {"Principles": [{"Principles": "principles.md"}, {"Open problems": "open-problems.md"}]},
        {"Papers": folder("papers")},
        {"Evidence": [{title: path} for title, path in EVIDENCE]},
        {"Guides": [{title: path} for title, path in GUIDES]},
        {"About": [{title: path} for title, path in ABOUT]},
    ]
