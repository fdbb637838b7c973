"""Checks that need more than one file, and checks of what the texts say.

Links are followed in both directions: what an entry or a claim names must exist, and what exists (an implementation, a
notebook, a test, a result) must belong to an entry. An entry whose YAML cannot be read still counts as there, so that
one broken file does not call forth findings in others.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from reference_impls.accounting.record import Record

from . import references
from .base import Knowledge
from .claims import fields_of, measured
from .completeness import INDEX_AXES, REASON_WORDS, axis_hint, due
from .editor import modeline
from .fields import FieldAbsent, FieldError
from .findings import Finding, did_you_mean, finding, nearest
from .latex import latex_problem
from .notebook import notebook_findings
from .paths import (
    AXES,
    BENCHMARKS,
    ENTRIES,
    EXPERIMENTS,
    GUIDES,
    HARD_CASES,
    NOTEBOOKS,
    OPEN_PROBLEMS,
    PAPERS,
    PRINCIPLES,
    RESULTS,
    TECHNIQUES,
    TESTS,
    located,
    module_name,
)
from .reader import Document, Keys, Place, read_json, read_text
from .schema import ID, KEY, Claim, Entry, Paper, Statements, Terms
from .source import Source, parse_text, scenarios
from .text import lists, one_line, text_problems, texts

BEGINNING = datetime.date(2026, 1, 1)
"""No entry was added, no paper read and nothing measured before the year in which the atlas began."""
FIRST_YEAR = 1936
"""No paper on computing is older than computers, not even as an idea (Turing 1936)."""
ORDERS: Mapping[str, str] = {"generalises": "above", "variant-of": "below", "supersedes": "newer"}


def check_all(knowledge: Knowledge) -> list[Finding]:
    """Everything that is wrong between the files of `knowledge`."""
    return list(_Checker(knowledge).run())


class _Checker:
    def __init__(self, knowledge: Knowledge) -> None:
        self.k = knowledge
        self.root = knowledge.root
        self.entry_ids = self._stems(ENTRIES) | {entry.id for entry in knowledge.entries.values()}
        self.paper_keys = self._stems(PAPERS) | {paper.key for paper in knowledge.papers.values()}
        self.today = datetime.datetime.now(datetime.UTC).date()
        self.scenarios: dict[str, set[str]] = {}
        """Scenarios that the experiments of each entry define, as far as their names are literal."""

    def _past(self, document: Document, path: Keys, day: str) -> Iterator[Finding]:
        """A day must be on the calendar, and not later than tomorrow: somewhere on Earth it has begun."""
        try:
            when = datetime.date.fromisoformat(day)
        except ValueError:
            yield document.finding("E205", f"{day} is not on the calendar", path)
        else:
            if when > self.today + datetime.timedelta(days=1):
                yield document.finding("E211", f"{day} is still to come", path)
            elif when < BEGINNING:
                hint = f"today is {self.today}"
                yield document.finding("E211", f"{day} lies before the atlas began", path, hint=hint)

    def _arxiv(self, document: Document, arxiv_id: str) -> Iterator[Finding]:
        """The first four digits of an arXiv id are the year and the month of its submission."""
        path: Keys = ("ids", "arxiv")
        stamp, _, number = arxiv_id.rpartition("/")[2].partition(".")
        old = "/" in arxiv_id
        month, number = int(stamp[2:4]), number or stamp[4:]
        year = int(stamp[:2]) + (1900 if old and stamp[:2] > "90" else 2000)
        hint = "look it up: arxiv.org/abs/ and the id"
        if not 1 <= month <= 12:
            message = f"there is no month {stamp[2:4]}, which the third and fourth digit of an arXiv id are"
            yield document.finding("E205", message, path, hint=hint)
        elif (year, month) > (self.today.year, self.today.month):
            yield document.finding("E211", f"an arXiv id of {year}-{month:02}, which is still to come", path, hint=hint)
        elif (year, month) < (1991, 7) or old != ((year, month) < (2007, 4)):
            message = f"arXiv gave no id of this form in {year}-{month:02}"
            hint = "ids are archive/YYMMNNN from 1991-07 to 2007-03, and YYMM.NNNN or YYMM.NNNNN since"
            yield document.finding("E211", message, path, hint=hint)
        elif not old and len(number) != (wanted := 4 if year < 2015 else 5):
            yield document.finding(
                "E205", f"an arXiv id of {year} has {wanted} digits after the point", path, hint=hint
            )
        elif not int(number):
            yield document.finding("E205", "arXiv counts from 1, and the number of this id is 0", path, hint=hint)

    def _stems(self, folder: str) -> set[str]:
        prefix = f"{folder}/"
        return {file.removeprefix(prefix).removesuffix(".yml") for file in self.k.documents if file.startswith(prefix)}

    def run(self) -> Iterator[Finding]:
        yield from self._axes()
        yield from self._code_rooms()
        for entry_id, entry in self.k.entries.items():
            document = self.k.documents[f"{ENTRIES}/{entry_id}.yml"]
            yield from self._terms(document, entry.axes)
            yield from self._entry(document, entry_id, entry)
            if not self._is_renamed(entry_id, entry):
                yield from self._completeness(document, entry_id, entry)
                yield from self._implementation(document, entry_id, entry)
        for key, paper in self.k.papers.items():
            yield from self._paper(self.k.documents[f"{PAPERS}/{key}.yml"], key, paper)
        yield from self._unique()
        yield from self._circles()
        yield from self._hard_cases()
        yield from self._numbers_in_prose()
        yield from self._statements(OPEN_PROBLEMS, self.k.open_problems)
        yield from self._statements(PRINCIPLES, self.k.principles)
        yield from self._records()
        for file, document in self.k.documents.items():
            if document.readable:
                yield from _prose(document)
                yield from _repeated(document)
                yield from _modeline(file, document)

    # --- the vocabulary

    def _axes(self) -> Iterator[Finding]:
        document = self.k.documents[AXES]
        if not len(self.k.axes):
            return
        for axis in INDEX_AXES:
            if axis not in self.k.axes:
                yield document.finding(
                    "E202", f'the axis "{axis}" is missing: entries are listed by it', ("axes",), key=True
                )
        for n, step in enumerate(self.k.axes.decision_card):
            for m, axis in enumerate(step.axes):
                yield from _known(document, ("decision_card", n, "axes", m), "E206", "axis", axis, self.k.axes.axes)

    def _terms(self, document: Document, classified: Mapping[str, Terms]) -> Iterator[Finding]:
        """The terms of an entry or a paper against the vocabulary."""
        axes = self.k.axes
        if not len(axes):
            return
        for name, terms in classified.items():
            path: Keys = ("axes", name)
            if name not in axes:
                yield from _known(document, path, "E206", "axis", name, axes.axes, key=True)
                continue
            axis = axes[name]
            listed = isinstance(document.data["axes"][name], list)
            for n, term in enumerate(terms):
                at = (*path, n) if listed else path
                if term not in axis.terms:
                    yield _no_term(document, at, name, term, axis.terms)
                elif term in terms.root[:n]:
                    yield document.finding("E208", f'"{term}" stands here twice', at)
                elif axis.choice == "single" and n == 1:
                    message = f"the axis {name} takes one term only"
                    yield document.finding("E208", message, at, hint=f'keep the term that decides, "{terms.primary}"?')

    # --- entries

    def _entry(self, document: Document, entry_id: str, entry: Entry) -> Iterator[Finding]:
        if entry.id != entry_id:
            rename = self._is_renamed(entry_id, entry)
            yield _misnamed(document, "id", entry.id, entry_id, rename=rename)
        for n, link in enumerate(entry.papers):
            yield from _known(document, ("papers", n, "key"), "E301", "paper", link.key, self.paper_keys, PAPERS)
        yield from _twice(document, "papers", "key", "paper", [link.key for link in entry.papers])
        targets: list[tuple[Keys, str]] = [
            (("relations", n, "target"), r.target) for n, r in enumerate(entry.relations)
        ]
        targets += [(("parts", n), part) for n, part in enumerate(entry.parts)]
        yield from self._past(document, ("added",), entry.added)
        if entry.reviewed:
            yield from self._past(document, ("reviewed",), entry.reviewed)
        if entry.replaced_by is not None:
            targets.append((("replaced_by",), entry.replaced_by))
        for path, target in targets:
            if target == entry_id:
                yield document.finding("E303", "the entry names itself", path)
            else:
                yield from _known(document, path, "E303", "entry", target, self.entry_ids, ENTRIES)
        if entry.parts and entry.kind != "system":
            message = f"only a system has parts, and this is a {entry.kind}"
            yield document.finding(
                "E205", message, ("parts",), key=True, hint="make it `kind: system`, or use relations"
            )
        if (entry.status == "deprecated") < (entry.replaced_by is not None):
            message = "only a deprecated entry is replaced"
            yield document.finding("E405", message, ("replaced_by",), key=True, hint="set `status: deprecated`")
        if entry.cost_model is not None and (wrong := latex_problem(entry.cost_model)):
            message = f"a formula that the site cannot show: {wrong}"
            yield document.finding("E214", message, ("cost_model",), hint="write it in plain LaTeX, without packages")
        if not re.match(r"[A-Z0-9$]", entry.summary) or not entry.summary.endswith("."):
            yield document.finding(
                "W601", "the summary is no sentence: capital letter first, full stop last", ("summary",)
            )

    def _is_renamed(self, stem: str, entry: Entry) -> bool:
        """Whether it is the name of the file that is wrong, and not the id in it: the name can be no id, or there is
        code of that id."""
        code = f"{TECHNIQUES}/{module_name(entry.id)}"
        there = any(located(self.root, file).exists() for file in (code, f"{code}.py", f"{RESULTS}/{entry.id}"))
        return entry.id != stem and (there or not re.fullmatch(ID, stem))

    def _completeness(self, document: Document, entry_id: str, entry: Entry) -> Iterator[Finding]:
        for need in due(self.k, entry.model_copy(update={"id": entry_id})):  # the file's name decides
            hint = f"{need.hint}; or set `status: draft`" if need.status == "stable" else need.hint
            yield document.finding(need.code, need.message, need.path, key=need.at_key, hint=hint)

    # --- code

    def _implementation(self, document: Document, entry_id: str, entry: Entry) -> Iterator[Finding]:
        source = self.k.sources.get(entry_id)
        if entry.implementation is None:
            if source is not None:
                message = f"{source.file} exists, but the entry does not name it"
                hint = f'add: implementation: "{source.module}:{source.class_name or "ClassName"}"'
                yield document.finding("E304", message, (), hint=hint)
            return
        path: Keys = ("implementation",)
        module, _, name = entry.implementation.partition(":")
        wanted = f"{TECHNIQUES.replace('/', '.')}.{module_name(entry_id)}"
        if module != wanted and not module.startswith(f"{wanted}."):
            hint = f'the id says: "{wanted}:{name}"'
            yield document.finding("E304", "the module does not follow from the id of the entry", path, hint=hint)
            return
        if source is None:
            file = f"{TECHNIQUES}/{module_name(entry_id)}.py"
            if not (self.root / file).exists() and not (self.root / file.removesuffix(".py")).is_dir():
                hint = "write it, or leave `implementation` out of a draft"
                yield document.finding("E304", f"there is no {file}", path, hint=hint)
            return
        if source.class_name != name:
            known = [
                d
                for d, at in source.definitions.items()
                if d[:1].isupper() and "." not in d and at.file in source.files
            ]
            hint = did_you_mean(name, known)
            yield document.finding("E305", f"{source.file} has no class {name}", path, hint=hint)
        else:
            yield from _contract(source, entry_id)
            yield from self._references(source, entry)
        for n, step in enumerate(entry.algorithm):
            if step.function is not None and step.function not in source.definitions:
                message = f"{source.file} has no function or class {step.function}"
                hint = did_you_mean(step.function, source.definitions)
                yield document.finding("E307", message, ("algorithm", n, "function"), hint=hint)

    def _references(self, source: Source, entry: Entry) -> Iterator[Finding]:
        for link in entry.papers:
            paper = self.k.papers.get(link.key)
            if link.role != "introduces" or paper is None:
                continue
            document = self.k.documents[f"{PAPERS}/{link.key}.yml"]
            wrong = paper.ids.arxiv and any(self._arxiv(document, paper.ids.arxiv))  # then this is said
            for what in filter(None, (link.key, None if wrong else paper.ids.arxiv)):
                if what not in source.docstring:
                    message = f"the docstring of the module does not name {what}"
                    hint = "start the module with its references: paper key and arXiv id"
                    yield finding("E703", source.file, message, hint=hint)

    def _code_rooms(self) -> Iterator[Finding]:
        """Implementations, experiments, notebooks and tests that belong to no entry, or are not what they should be."""
        ids = {module_name(entry_id): entry_id for entry_id in self.entry_ids}
        rooms: list[tuple[str, str, Callable[[Path, str], Iterator[Finding]] | None]] = [
            (TECHNIQUES, "", None),
            (EXPERIMENTS, "", self._experiments),
            (NOTEBOOKS, "", self._notebook),
            (TESTS, "test_", self._test),
        ]
        for room, prefix, look in rooms:
            folder = self.root / room
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                code = path.suffix == ".py" or (room == TECHNIQUES and (path / "__init__.py").is_file())
                if not code or path.name.startswith("_") or not path.name.startswith(prefix):
                    continue
                name, file = path.stem.removeprefix(prefix), path.relative_to(self.root).as_posix()
                if look is not None:
                    yield from look(path, file)
                entry_id = name.replace("_", "-")
                if room == NOTEBOOKS and name in GUIDES:
                    continue
                if name not in ids and (room != EXPERIMENTS or entry_id in self.scenarios):
                    hint = f"add {ENTRIES}/{entry_id}.yml, or remove the file"
                    if (near := nearest(entry_id, self.entry_ids)) is not None:
                        hint = f'did you mean "{near}"? Then call the file {prefix}{module_name(near)}{path.suffix}'
                    yield finding("E309", file, f"no entry is called {entry_id}", hint=hint)
        for benchmark in self.k.meetings:
            path = self.root / BENCHMARKS / f"{module_name(benchmark)}.py"
            if path.is_file():
                yield from self._experiments(path, path.relative_to(self.root).as_posix())
        for owner, names in self.k.known_results.items():
            if owner not in (known := self.entry_ids | self.k.benchmarks):
                for scenario in sorted(names):
                    file = f"{RESULTS}/{owner}/{scenario}.json"
                    message = f"no entry and no benchmark is called {owner}"
                    yield finding("E309", file, message, hint=did_you_mean(owner, known))

    def _experiments(self, path: Path, file: str) -> Iterator[Finding]:
        text, problems = read_text(path, file)
        if text is not None and not re.search(r"^SCENARIOS\b", text, re.MULTILINE):
            return  # a helper of the experiments
        tree = None if text is None else parse_text(text, file, problems)
        yield from problems
        self.scenarios[path.stem.replace("_", "-")] = scenarios(text, tree) if text and tree else set()

    def _notebook(self, path: Path, file: str) -> Iterator[Finding]:
        text, problems = read_text(path, file)
        yield from problems
        if text is not None:
            yield from notebook_findings(text, file)

    def _test(self, path: Path, file: str) -> Iterator[Finding]:
        text, problems = read_text(path, file)
        if text is not None:
            parse_text(text, file, problems)
        yield from problems

    # --- papers and claims

    def _paper(self, document: Document, key: str, paper: Paper) -> Iterator[Finding]:
        if paper.key != key:
            cited = any(link.key == paper.key for entry in self.k.entries.values() for link in entry.papers)
            rename = cited or not re.fullmatch(KEY, key)
            yield _misnamed(document, "key", paper.key, key, rename=rename)
            key = paper.key if rename else key
        if paper.year is not None and paper.year > self.today.year + 1:
            yield document.finding("E211", f"{paper.year} is still to come", ("year",))
        if paper.year is not None and paper.year < FIRST_YEAR:
            hint = f"the key says {key.split('-')[-2]}" if re.fullmatch(KEY, key) else "look it up"
            message = f"{paper.year} lies before there were computers"
            yield document.finding("E211", message, ("year",), hint=hint)
        if paper.ids.arxiv is not None:
            yield from self._arxiv(document, paper.ids.arxiv)
        yield from self._past(document, ("verified", "on"), paper.verified.on)
        if paper.year is not None and f"-{paper.year}-" not in key:
            yield document.finding("W602", f"the key says another year than {paper.year}", ("year",))
        yield from self._terms(document, paper.axes)
        for name in INDEX_AXES if paper.kind != "survey" else ():
            if name in self.k.axes and name not in paper.axes:
                message = f"the paper has no term on the axis {name}"
                yield document.finding("E403", message, ("axes",), key=True, hint=axis_hint(self.k.axes[name]))
        yield from _twice(document, "claims", "id", "claim id", [claim.id for claim in paper.claims])
        for n, claim in enumerate(paper.claims):
            yield from self._claim(document, ("claims", n), key, claim, has_code=bool(paper.code))

    def _claim(self, document: Document, path: Keys, key: str, claim: Claim, *, has_code: bool) -> Iterator[Finding]:
        at = (*path, "technique")
        entry = self.k.entries.get(claim.technique)
        yield from _known(document, at, "E302", "entry", claim.technique, self.entry_ids, ENTRIES)
        if entry is not None and all(link.key != key for link in entry.papers):
            file = f"{ENTRIES}/{claim.technique}.yml"
            hint = f"add `- {{key: {key}, role: ...}}` to `papers` in {file}"
            yield document.finding("E308", f"{file} does not name this paper", at, hint=hint)
        if claim.kind in ("speedup", "operations", "accuracy", "memory", "energy") and claim.quantity is None:
            message = f"a claim of kind {claim.kind} needs its number"
            yield document.finding("E505", message, path, hint="add `quantity: {metric: ..., value: ..., unit: ...}`")
        if claim.locator.file is not None and claim.seen_at is None and not has_code:
            message = "a file of the official repository, but the paper names no repository"
            yield document.finding("E507", message, (*path, "locator", "file"), hint="add it under `code`")
        if claim.check is None:
            return
        at = (*path, "check", "field")
        try:
            fields_of(claim.check)
        except FieldError as error:
            hint = "for example points[r=13].quality.value - baseline.quality.value"
            yield document.finding("E502", str(error), at, hint=hint)
            return
        known = self.k.known_results.get(claim.technique, set()) | {
            r.scenario for r in self.k.results_of(claim.technique)
        }
        defined = self.scenarios.get(claim.technique, set())
        scenario = claim.check.scenario
        if scenario not in known and claim.technique in self.entry_ids:
            message = f'{claim.technique} has no result of a scenario "{scenario}"'
            hint = (
                f"measure it: redundancy bench {claim.technique} --save"
                if scenario in defined
                else did_you_mean(scenario, known | defined)
            )
            yield document.finding("E501", message, (*path, "check", "scenario"), hint=hint)
        record = self.k.result(claim.technique, scenario)
        if record is None:
            return
        try:
            measured(claim.check, record, claim.technique)
        except FieldAbsent as error:
            yield document.finding("E503", str(error), at)
        if claim.check.unit is None or claim.check.differs is None:
            lacks = " and ".join(name for name in ("unit", "differs") if getattr(claim.check, name) is None)
            hint = "for example `unit: percentage points` and `differs: [data, model]`; `differs: []` if in nothing"
            yield document.finding("E509", f"the check does not say its {lacks}", (*path, "check"), hint=hint)

    # --- results

    def _records(self) -> Iterator[Finding]:
        for owner, records in (*self.k.results.items(), *self.k.meetings.items()):
            room = BENCHMARKS if owner in self.k.benchmarks else EXPERIMENTS
            defined = self.scenarios.get(owner)
            for record in records:
                if record.scenario not in self.k.known_results[owner]:
                    continue  # misnamed, and said to be so
                suffix = "" if record.device == "cpu" else f".{record.device.partition(':')[0]}"
                file = f"{RESULTS}/{owner}/{record.scenario}{suffix}.json"
                if record.budget != "full":
                    message = "a committed result comes from the full budget"
                    yield self._at_record(file, "E504", message, ("budget",), f"redundancy bench {owner} --save")
                if defined and record.scenario not in defined:
                    message = f'{room}/{module_name(owner)}.py defines no scenario "{record.scenario}"'
                    yield self._at_record(file, "E310", message, ("scenario",), did_you_mean(record.scenario, defined))
                yield from self._meeting(file, record)
                if not str(BEGINNING) <= record.date <= str(self.today + datetime.timedelta(days=1)):
                    message = f"{record.date} is no day since the atlas began that has been"
                    hint = "records are measured, never edited by hand"
                    yield self._at_record(file, "E211", message, ("date",), hint)
                for path, text in texts(record.model_dump()):
                    for problem in text_problems(text):
                        yield self._at_record(file, problem.code, problem.message, path, problem.hint)

    def _meeting(self, file: str, record: Record) -> Iterator[Finding]:
        """The benchmark that a record names, and the entries that its points name, must exist."""
        named: list[tuple[Keys, str, str, Collection[str]]] = [
            (("points", n, "technique"), "entry", point.technique, self.entry_ids)
            for n, point in enumerate(record.points)
            if point.technique is not None
        ]
        if record.benchmark is not None:
            named.append((("benchmark",), "benchmark", record.benchmark, self.k.benchmarks))
        for path, what, name, pool in named:
            if name not in pool:
                message = f"no {what} is called {name}"
                yield self._at_record(file, "E309", message, path, did_you_mean(name, pool))

    def _at_record(self, file: str, code: str, message: str, path: Keys, hint: str) -> Finding:
        return read_json(self.root / file, file).finding(code, message, path, hint=hint)

    # --- all

    def _unique(self) -> Iterator[Finding]:
        names: dict[str, str] = {}
        for entry_id, entry in self.k.entries.items():
            document = self.k.documents[f"{ENTRIES}/{entry_id}.yml"]
            own: list[tuple[Keys, str]] = [(("id",), entry_id), (("name",), entry.name)]
            own += [(("aliases", n), alias) for n, alias in enumerate(entry.aliases)]
            for path, name in own:
                other = names.setdefault(name.lower().replace(" ", "-"), entry_id)
                if path[0] == "aliases" and name == entry.name:
                    yield document.finding("E311", f'"{name}" is the name of the entry already', path)
                if other != entry_id:
                    yield document.finding("E311", f'"{name}" is also a name of {other}', path)
        owners: dict[tuple[str, str], str] = {}
        for key, paper in self.k.papers.items():
            document = self.k.documents[f"{PAPERS}/{key}.yml"]
            for kind, value in (("arxiv", paper.ids.arxiv), ("doi", paper.ids.doi), ("url", paper.ids.url)):
                if value is not None and (owner := owners.setdefault((kind, value.lower()), key)) != key:
                    yield document.finding("E311", f"{kind} {value} is also that of {owner}", ("ids", kind))

    def _circles(self) -> Iterator[Finding]:
        """Replacing, being above and composing are orders: following them must not lead back."""
        links: dict[str, list[tuple[str, Keys, str, str]]] = {"replacing": [], "above": [], "newer": [], "composed": []}
        for entry_id, entry in self.k.entries.items():
            for n, relation in enumerate(entry.relations):
                order = ORDERS.get(relation.type, "")
                path: Keys = ("relations", n, "target")
                if order == "below":
                    links["above"].append((entry_id, path, relation.target, entry_id))
                elif order:
                    links[order].append((entry_id, path, entry_id, relation.target))
            links["composed"] += [(entry_id, ("parts", n), entry_id, part) for n, part in enumerate(entry.parts)]
            if entry.replaced_by is not None:
                links["replacing"].append((entry_id, ("replaced_by",), entry_id, entry.replaced_by))
                links["newer"].append((entry_id, ("replaced_by",), entry.replaced_by, entry_id))
        said: set[tuple[str, Keys]] = set()
        for order, found in links.items():
            targets: dict[str, list[str]] = {}
            for _, _, upper, lower in found:
                if upper != lower:
                    targets.setdefault(upper, []).append(lower)
            try:
                TopologicalSorter(targets).prepare()
                continue
            except CycleError:
                pass
            for entry_id, path, upper, lower in found:
                if upper != lower and (entry_id, path) not in said and upper in reachable(targets, lower):
                    said.add((entry_id, path))
                    yield self._circle(order, entry_id, path, _way(targets, lower, upper))

    def _circle(self, order: str, entry_id: str, path: Keys, way: Sequence[str]) -> Finding:
        """The finding for one link of a circle; `way` leads from its lower end back to its upper one."""
        about = {
            "replacing": "`replaced_by` leads from here back to this entry",
            "above": "`generalises` and `variant-of` lead from here back to this entry",
            "newer": "`supersedes` and `replaced_by` lead from here back to this entry",
            "composed": "`parts` lead from here back to this entry",
        }
        hint = f"{' > '.join([way[-1], *way])}: one of these goes the other way round, or is not so"
        document = self.k.documents[f"{ENTRIES}/{entry_id}.yml"]
        return document.finding("E312" if order == "replacing" else "E313", about[order], path, hint=hint)

    # --- numbers in prose

    def _numbers_in_prose(self) -> Iterator[Finding]:
        """References to records must lead to a number."""
        for file, document in self.k.documents.items():
            if "{{" in document.text and document.readable:
                for path, text in texts(document.data):
                    for written, problem in references.problems(text, self.k, self._owner(file, document.data, path)):
                        place = document.place_of_text(path, written)
                        yield document.finding("E508", str(problem), path, place=place, hint=problem.hint)
        for file, owner, path, text, said in self._told():
            yield from self._bare_numbers(self.k.documents[file], owner, path, text, said)

    def _told(self) -> Iterator[tuple[str, str, Keys, str, set[float]]]:
        """(file, whose results, where, text, numbers told elsewhere) of texts whose numbers are ours, beside those that
        `completeness` looks at."""
        for entry_id, entry in self.k.entries.items():
            if entry.status == "stable":
                file = f"{ENTRIES}/{entry_id}.yml"
                for n, relation in enumerate(entry.relations):
                    yield file, entry_id, ("relations", n, "note"), relation.note, set()
        for key, paper in self.k.papers.items():
            for n, claim in enumerate(paper.claims):
                if (check := claim.check) and check.note:
                    said = {check.target, check.tolerance, check.target - check.tolerance}
                    yield f"{PAPERS}/{key}.yml", claim.technique, ("claims", n, "check", "note"), check.note, said
        for file, statements in ((OPEN_PROBLEMS, self.k.open_problems), (PRINCIPLES, self.k.principles)):
            for n, statement in enumerate(statements.statements):
                for m, support in enumerate(statement.support):
                    if support.note and support.result:
                        owner = support.result.partition("/")[0]
                        yield file, owner, ("statements", n, "support", m, "note"), support.note, set()

    def _owner(self, file: str, data: Any, path: Keys) -> str | None:
        """The entry whose scenarios the references at a place of a file mean."""
        folder, _, name = file.rpartition("/")
        if folder == ENTRIES:
            return name.removesuffix(".yml")
        claim = data["claims"][path[1]] if folder == PAPERS and path[:1] == ("claims",) else {}
        return claim.get("technique") if isinstance(claim, dict) else None

    def _bare_numbers(
        self, document: Document, owner: str, path: Keys, text: str, said: set[float]
    ) -> Iterator[Finding]:
        """Numbers of a text that look measured and are neither `said` nor a knob of the owner's results."""
        if not references.bare_numbers(text, said, self.k.papers):
            return
        records = self.k.results_of(owner)
        points = [p for r in records for p in (*r.points, *(p for c in r.controls for p in c.points))]
        knobs = {v for p in points for v in p.knobs.values() if not isinstance(v, str)}
        if bare := references.bare_numbers(text, said | knobs, self.k.papers):
            message = f"a number that looks measured, without its record: {', '.join(bare)}"
            hint = "write {{scenario: field}}, or name the paper by its key; `redundancy explain W605` has more"
            yield document.finding("W605", message, path, hint=hint)

    # --- hard cases and statements

    def _hard_cases(self) -> Iterator[Finding]:
        if not self.k.hard_cases:
            return
        document, axes = self.k.documents[HARD_CASES], self.k.axes
        yield from _twice(document, "cases", "id", "id", [case.id for case in self.k.hard_cases])
        for n, case in enumerate(self.k.hard_cases):
            path: Keys = ("cases", n)
            for m, entry in enumerate(case.entries):
                yield from _known(document, (*path, "entries", m), "E314", "entry", entry, self.entry_ids, ENTRIES)
            for m, key in enumerate(case.papers):
                yield from _known(document, (*path, "papers", m), "E314", "paper", key, self.paper_keys, PAPERS)
            if not len(axes):
                continue
            yield from _known(document, (*path, "axis"), "E206", "axis", case.axis, axes.axes)
            terms = axes[case.axis].terms if case.axis in axes else case.terms
            for m, term in enumerate(case.terms):
                if term not in terms:
                    yield _no_term(document, (*path, "terms", m), case.axis, term, terms)

    def _statements(self, file: str, statements: Statements) -> Iterator[Finding]:
        if not statements.statements:
            return
        document = self.k.documents[file]
        yield from _twice(document, "statements", "id", "id", [statement.id for statement in statements.statements])
        results = [f"{owner}/{scenario}" for owner, names in self.k.known_results.items() for scenario in names]
        for n, statement in enumerate(statements.statements):
            for m, support in enumerate(statement.support):
                path: Keys = ("statements", n, "support", m)
                if support.entry is not None:
                    at = (*path, "entry")
                    yield from _known(document, at, "E314", "entry", support.entry, self.entry_ids, ENTRIES)
                if support.paper is not None:
                    at = (*path, "paper")
                    yield from _known(document, at, "E314", "paper", support.paper, self.paper_keys, PAPERS)
                if support.claim is not None:
                    yield from self._supporting_claim(document, (*path, "claim"), support.claim)
                if support.result is not None:
                    yield from _known(document, (*path, "result"), "E314", "result", support.result, results)

    def _supporting_claim(self, document: Document, path: Keys, claim: str) -> Iterator[Finding]:
        key = claim.partition("#")[0]
        paper = self.k.papers.get(key)
        known = [f"{key}#{c.id}" for c in paper.claims] if paper else []
        if key not in self.paper_keys or (paper and claim not in known):
            hint = did_you_mean(claim, known) if known else did_you_mean(key, self.paper_keys)
            yield document.finding("E314", f'there is no claim "{claim}"', path, hint=hint)


def _modeline(file: str, document: Document) -> Iterator[Finding]:
    wanted = modeline(file)
    if document.first_line.strip() != wanted:
        message = "the first line does not tell editors which schema this is"
        yield document.finding("W604", message, place=Place(), hint=f"start with: {wanted}")


def reachable(targets: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """The nodes of a directed graph to which a path leads from `start`, itself only if it lies on a circle."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for target in targets.get(ahead.pop(), ()):
            if target not in seen:
                seen.add(target)
                ahead.append(target)
    return seen


def _way(targets: Mapping[str, Iterable[str]], start: str, end: str) -> list[str]:
    """A shortest path of a directed graph from `start` to `end`, to which one leads."""
    before: dict[str, str] = {start: start}
    ahead = [start]
    for node in ahead:
        for target in targets.get(node, ()):
            if target not in before:
                before[target] = node
                ahead.append(target)
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def _misnamed(document: Document, key: str, value: str, stem: str, *, rename: bool) -> Finding:
    """`rename`: it is the file that has the wrong name."""
    message = f'"{value}", but the file is called {stem}.yml'
    hint = f"call the file {value}.yml" if rename else f"write {stem}, or call the file {value}.yml"
    return document.finding("E209", message, (key,), hint=f"{hint}: {key}s are never renamed")


def _known(
    document: Document,
    path: Keys,
    code: str,
    what: str,
    name: str,
    pool: Collection[str],
    folder: str = "",
    *,
    key: bool = False,
) -> Iterator[Finding]:
    """A finding if there is no such thing; where nothing is near, its hint names the file to add in `folder`."""
    if name not in pool:
        hint = _suggest(name, pool, folder) if folder else did_you_mean(name, pool)
        yield document.finding(code, f'there is no {what} "{name}"', path, key=key, hint=hint)


def _no_term(document: Document, path: Keys, axis: str, term: str, terms: Iterable[str]) -> Finding:
    message = f'"{term}" is no term of the axis {axis}'
    return document.finding("E207", message, path, hint=did_you_mean(term, terms))


def _twice(document: Document, listed: str, key: str, what: str, names: Sequence[str]) -> Iterator[Finding]:
    """A finding for every name that stood before in the list `listed`, at its `key`."""
    seen: set[str] = set()
    for n, name in enumerate(names):
        if name in seen:
            yield document.finding("E311", f'the {what} "{name}" stands here twice', (listed, n, key))
        seen.add(name)


def _suggest(word: str, known: Iterable[str], folder: str) -> str:
    hint = did_you_mean(word, known)
    if not hint.startswith("did") and re.fullmatch(KEY if folder == PAPERS else ID, word):
        return f"add {folder}/{word}.yml"
    return hint


def _contract(source: Source, entry_id: str) -> Iterator[Finding]:
    """The class attributes that the tools read without importing: literal, and of the right form."""

    def wrong(code: str, name: str, message: str, hint: str) -> Finding:
        attribute = source.attributes.get(name)
        line, column = (attribute.line, attribute.column) if attribute else (source.class_line, 1)
        return finding(
            code, source.file, message, line=line, column=column, path=f"{source.class_name}.{name}", hint=hint
        )

    forms: dict[str, tuple[Callable[[Any], bool], str, bool]] = {
        "id": (lambda v: isinstance(v, str), f'id = "{entry_id}"', True),
        "execution": (
            lambda v: v in ("real", "simulated"),
            'execution = "real", or "simulated" if it only masks',
            True,
        ),
        "stateful": (lambda v: isinstance(v, bool), "stateful = True", False),
        "waivers": (_is_waivers, 'waivers = {"name-of-the-check": "why it cannot apply, in a sentence"}', False),
    }
    for name, (fits, form, needed) in forms.items():
        attribute = source.attributes.get(name)
        if attribute is None:
            if needed:
                yield wrong("E701", name, "the class does not state it", f"write it as a literal: {form}")
        elif not attribute.literal:
            yield wrong("E701", name, "not a literal, so that it cannot be read without importing", f"write: {form}")
        elif not fits(attribute.value):
            yield wrong("E702", name, f"{attribute.value!r} is not what belongs here", f"write: {form}")
        elif name == "id" and attribute.value != entry_id:
            yield wrong("E306", name, f'"{attribute.value}", but the entry is {entry_id}', f'write: id = "{entry_id}"')
    for knob in source.knobs:
        if not knob.kind:
            message = f"the knob {knob.name} is not written as literals, so that it cannot be read without importing"
            hint = 'write: "r": Integer(8, low=0, about="tokens merged per block")'
            path = f"{source.class_name}.knobs"
            yield finding("E701", source.file, message, line=knob.line, path=path, hint=hint)
    if not any(base.rpartition(".")[2].partition("[")[0].endswith("Technique") for base in source.bases):
        message = f"{source.class_name} is no subclass of Technique"
        hint = f"class {source.class_name}(Technique), with `from reference_impls.contract import Technique`"
        yield finding("E705", source.file, message, line=source.class_line, hint=hint)


def _is_waivers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, str) and k.strip() and len(v.split()) >= REASON_WORDS
        for k, v in value.items()
    )


def _repeated(document: Document) -> Iterator[Finding]:
    """Items that stand in a list a second time; case and white space make no difference."""
    for path, items in lists(document.data):
        if len(items) < 2 or (path[:1] == ("axes",) and len(path) == 2):
            continue  # terms of an entry, of which E208 says it
        seen: dict[str, int] = {}
        for n, item in enumerate(items):
            if isinstance(item, dict) and item.keys() & {"id", "key"}:
                continue  # of which E311 says it
            form = one_line(json.dumps(item, sort_keys=True, ensure_ascii=False)).casefold()
            first = seen.setdefault(form, n)
            if first != n:
                line = document.place((*path, first)).line
                hint = f"the first is on line {line}; delete one, or write what was meant"
                yield document.finding("E215", "stands here for the second time", (*path, n), hint=hint)


def _prose(document: Document) -> Iterator[Finding]:
    for path, text in texts(document.data):
        for problem in text_problems(text):
            place = document.place_of_text(path, problem.at) if "\n" in text else None
            yield document.finding(problem.code, problem.message, path, place=place, hint=problem.hint)
