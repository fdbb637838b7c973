"""The texts of new files, and writing them: all or none, and only if the check finds nothing new."""

from __future__ import annotations

import difflib
import keyword
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

from ..files import Changes
from ..knowledge import Finding, Knowledge, load
from ..knowledge.completeness import PLACEHOLDER, files_of
from ..knowledge.findings import counted
from ..knowledge.layout import append, dump, put
from ..knowledge.paths import ENTRIES, PAPERS, TECHNIQUES, module_name
from ..knowledge.schema import Paper

TEMPLATES: Final = Path(__file__).parent / "templates"
LONGEST_ID: Final = 60
NEAR: Final = 0.85
"""Names that are as similar as this may be meant to be the same."""
_TAKEN = {
    "Any", "Handle", "Mapping", "Module", "Redundancy", "Setting", "Technique", "Tensor", "UnsupportedHost",
}  # fmt: skip
_DULL = re.compile(
    "a|an|and|are|as|at|be|by|can|do|does|for|from|how|in|is|its?|not|of|on|or|our|the|to|towards?|using|via|we|what|when|"
    "why|with|you|your"
)


class Rejected(Exception):
    """What was to be written has findings; nothing was changed."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(counted(len(findings), "finding"))
        self.findings = findings


# --------------------------------------------------------------------------------------------------------------------
# Names


def slug(name: str) -> str:
    """`Row sharing (exact)` -> `row-sharing-exact`; accents go, other alphabets are left out."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def class_name(entry_id: str) -> str:
    """`row-sharing` -> `RowSharing`."""
    name = "".join(part[:1].upper() + part[1:] for part in entry_id.split("-"))
    return f"{name}Technique" if name in _TAKEN else name


def why_no_module(entry_id: str) -> str:
    """Why an id cannot name a Python module; empty if it can."""
    name = module_name(entry_id)
    if not name.isidentifier() or keyword.iskeyword(name):
        return f"{name!r} cannot be the name of a Python module"
    return f"an id with an implementation has at most {LONGEST_ID} characters" if len(entry_id) > LONGEST_ID else ""


def paper_key(family: str, year: int, title: str) -> str | None:
    """`Bolya`, 2023, `Token Merging` -> `bolya-2023-token`; None where the name or the title gives no such word."""
    who = re.sub(r"[^a-z-]", "", slug(family)).strip("-")
    words = [re.sub(r"[^a-z0-9]", "", slug(word)) for word in re.split(r"[\s\-:/]+", title)]
    word = next((w for w in words if w and not _DULL.fullmatch(w)), None)
    return f"{who}-{year}-{word}" if who and word else None


def near(knowledge: Knowledge, names: Iterable[str]) -> dict[str, str]:
    """Names of entries that are the same as one of `names`, or nearly so -> the id of their entry."""
    wanted = [_form(name) for name in names]
    found = {}
    for entry_id, entry in knowledge.entries.items():
        for name in (entry_id, entry.name, *entry.aliases):
            form = _form(name)
            if any(form == one or difflib.SequenceMatcher(None, form, one).ratio() >= NEAR for one in wanted):
                found[name] = entry_id
    return found


def _form(name: str) -> str:
    return slug(name).replace("-", " ")


# --------------------------------------------------------------------------------------------------------------------
# Texts


def entry_text(knowledge: Knowledge, data: Mapping[str, Any]) -> tuple[str, str]:
    """Path and text of the file of an entry."""
    file = f"{ENTRIES}/{data['id']}.yml"
    return file, dump(_bare(data), file, knowledge.axes)


def paper_text(knowledge: Knowledge, data: Mapping[str, Any]) -> tuple[str, str]:
    """Path and text of the file of a paper."""
    file = f"{PAPERS}/{data['key']}.yml"
    return file, dump(_bare(data), file, knowledge.axes)


def _bare(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without what is empty, and with single terms outside of lists."""
    kept = {key: value for key, value in data.items() if value not in (None, "", (), [], {})}
    if "axes" in kept:
        kept["axes"] = {axis: terms[0] if len(terms) == 1 else terms for axis, terms in kept["axes"].items()}
    return kept


def implementation(entry_id: str) -> str:
    """What an entry says of its implementation."""
    return f"{TECHNIQUES.replace('/', '.')}.{module_name(entry_id)}:{class_name(entry_id)}"


def code_texts(entry_id: str, name: str, papers: Iterable[Paper]) -> dict[str, str]:
    """Paths and texts of an implementation with its experiments, test and notebook: a small one that works."""
    module = module_name(entry_id)
    references = "\n".join(
        textwrap.fill(f"{paper.key}: {_reference(paper)}", 118, initial_indent="  ", subsequent_indent="    ")
        for paper in papers
    )
    values = {
        "id": entry_id,
        "module": module,
        "class_name": class_name(entry_id),
        "name": _harmless(name),
        "references": _harmless(references or "  no paper is named yet"),
        "marker": PLACEHOLDER,
    }
    files = dict(zip(files_of(entry_id), ("technique", "experiments", "test", "notebook"), strict=True))
    return {
        file: Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(values)
        for file, template in files.items()
    }


def _reference(paper: Paper) -> str:
    who = ", ".join(author.family for author in paper.authors) + (" et al." if paper.et_al else "")
    venue, year = paper.venue or "", str(paper.year or "")
    where = venue if year in venue else f"{venue} {year}".strip()
    ids = [f"arXiv {paper.ids.arxiv}" if paper.ids.arxiv else "", f"doi {paper.ids.doi}" if paper.ids.doi else ""]
    return ". ".join(filter(None, (who, paper.title, where, ", ".join(filter(None, ids)) or paper.ids.url)))


def _harmless(text: str) -> str:
    """A text that ends no docstring and escapes nothing."""
    return text.replace("\\", "\\\\").replace('"', "'")


# --------------------------------------------------------------------------------------------------------------------
# Writing


def write(
    knowledge: Knowledge, changes: Changes, new: Mapping[str, str], texts: Mapping[str, str] | None = None
) -> None:
    """Write new files below the root of `knowledge`, and `texts` in the place of those that are there.

    `knowledge` must have been read and checked since `changes` has the lock.

    Raises: FileExistsError where a new one is there already, Rejected where the check then finds something that it did
    not find before; in both cases nothing is left.
    """
    changes.write(texts or {}, new=new, check=lambda: _nothing_new(knowledge))


def with_implementation(knowledge: Knowledge, entry_id: str) -> tuple[str, str]:
    """Path and new text of an entry that names its implementation."""
    file = f"{ENTRIES}/{entry_id}.yml"
    text = (knowledge.root / file).read_bytes().decode("utf-8")
    return file, put(text, file, "implementation", implementation(entry_id), knowledge.axes)


def with_claim(knowledge: Knowledge, key: str, claim: Mapping[str, Any]) -> tuple[str, str]:
    """Path and new text of a paper with one more claim."""
    file = f"{PAPERS}/{key}.yml"
    text = (knowledge.root / file).read_bytes().decode("utf-8")
    return file, append(text, file, "claims", _bare(claim), knowledge.axes)


def _nothing_new(knowledge: Knowledge) -> None:
    known = {(f.file, f.code, f.message) for f in knowledge.findings}
    found = [f for f in load(knowledge.root).findings if (f.file, f.code, f.message) not in known]
    if found:
        raise Rejected(found)
