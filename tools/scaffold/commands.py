"""The commands `redundancy new technique|implementation|paper|claim`."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from ..cli.common import clone, content
from ..files import Changes, changing
from ..knowledge import Knowledge, load
from ..knowledge.findings import did_you_mean, render
from ..knowledge.layout import Refused
from ..knowledge.paths import TECHNIQUES, module_name
from ..knowledge.schema import ID, KEY, Claim, Entry, Locator, Paper, PaperLink, Quantity, Setting
from ..knowledge.text import text_problems
from . import drafts, lookup
from .ask import Asker


def _choices(model: type[BaseModel], field: str) -> tuple[str, ...]:
    """What the schema lets a field be."""
    return tuple(get_args(model.model_fields[field].annotation))


KINDS, PAPER_KINDS, CLAIM_KINDS = _choices(Entry, "kind"), _choices(Paper, "kind"), _choices(Claim, "kind")
ROLES = _choices(PaperLink, "role")
NUMBERED = ("speedup", "operations", "accuracy", "memory", "energy")
"""Kinds of claim that need a number."""


@click.group()
def new() -> None:
    """Write the files of a new technique, paper or claim.

    On a terminal you are asked for what the options leave open; elsewhere what is missing is an error.
    """


def axis_options(command: Any) -> Any:
    """Options for the terms on the axes."""
    option = click.option(
        "--axis", "axis", multiple=True, metavar="AXIS=TERM[,TERM...]", help="A term, the main one first; repeatable."
    )
    return option(command)


def parse_axes(options: Sequence[str]) -> dict[str, list[str]]:
    """`relation=irrelevance,sufficiency` and so on."""
    given: dict[str, list[str]] = {}
    for text in options:
        axis, equals, terms = text.partition("=")
        if not equals or not terms:
            raise click.UsageError(f"--axis takes axis=term, got {text!r}")
        if axis in given:
            raise click.UsageError(f"--axis {axis} is given twice; write --axis {axis}=first,second")
        given[axis] = terms.split(",")
    return given


def today() -> str:
    return datetime.date.today().isoformat()


def fitting(pattern: str, says: str) -> Any:
    return lambda text: "" if re.fullmatch(pattern, text) else says


def prose(text: str) -> str:
    """What must not reach a page."""
    return "; ".join(problem[1] for problem in text_problems(text))


def sentence(text: str) -> str:
    """What is wrong with a summary."""
    if len(text) > 160:
        return f"{len(text)} characters; at most 160"
    if not re.match(r"[A-Z0-9$]", text) or not text.endswith("."):
        return "one sentence: a capital letter first, a full stop last"
    return prose(text)


@contextlib.contextmanager
def all_or_nothing(root: Path) -> Iterator[tuple[Knowledge, Changes]]:
    """The knowledge, read again under the lock, and what may be done with it.

    Says what is wrong with what was to be written, and that nothing was.
    """
    try:
        with changing(root) as changes:
            yield load(root), changes
    except (drafts.Rejected, Refused) as error:
        click.echo(render(error.findings, "text"))
        raise click.ClickException("nothing was written: what is found above would be wrong with it") from error
    except (FileExistsError, ValueError) as error:
        raise click.ClickException(f"{error}; nothing was written") from error


# --------------------------------------------------------------------------------------------------------------------


@new.command()
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--name", help="The name as a reader sees it.")
@click.option("--kind", type=click.Choice(KINDS), help="technique by default.")
@click.option("--alias", "aliases", multiple=True, help="Another name; repeatable.")
@axis_options
@click.option("--summary", help="What it does, in one sentence of at most 160 characters.")
@click.option("--definition", help="What exactly it is, in Markdown.")
@click.option("--step", "steps", multiple=True, help="A step of the algorithm; repeatable.")
@click.option("--invariant", help="What a test of an implementation must hold.")
@click.option("--paper", "papers", multiple=True, metavar="KEY[=ROLE]", help="A paper of papers/; repeatable.")
@click.option("--part", "parts", multiple=True, metavar="ID", help="For a system: a technique that it composes.")
@click.option("--code/--no-code", default=None, help="Whether to write an implementation to start from. [yes]")
@click.option("--distinct", is_flag=True, help="It is another technique than those with a similar name.")
@click.option("--from-issue", "issue", type=content, metavar="FILE", help="Answers of the issue form; - reads them.")
@click.pass_context
def technique(ctx: click.Context, /, **options: Any) -> None:
    """Write the files of a new technique, system or study: a draft that passes the check and every test."""
    knowledge = load(clone(ctx))
    if options["issue"] is not None:
        from .issue import answers

        try:
            told = answers(options["issue"], knowledge)
        except ValueError as error:
            raise click.UsageError(f"--from-issue: {error}") from error
        options |= {key: value for key, value in told.items() if not options[key]}
    asker = Asker()
    data, code = _entry(knowledge, asker, options)
    asker.done()
    with all_or_nothing(knowledge.root) as (fresh, changes):
        texts = dict([drafts.entry_text(fresh, data)])
        if code:
            named = [knowledge.papers[link["key"]] for link in data["papers"]]
            texts |= drafts.code_texts(data["id"], data["name"], named)
        drafts.write(fresh, changes, texts)
    steps = [(f"redundancy gaps {data['id']}", "what it lacks to become stable")]
    _told(texts, steps + (_code_steps(data["id"]) if code else []))


def _entry(knowledge: Knowledge, asker: Asker, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What the file of an entry says, and whether code comes with it."""
    name = asker.text("--name", options["name"], "Name")
    is_id = fitting(ID, "an id is lower-case words with dashes, such as token-merging")
    entry_id = options["id_"]
    if entry_id is None:
        entry_id = asker.text(
            "ID", None, "Id, final once it is merged", default=drafts.slug(name or "") or None, check=is_id
        )
    elif problem := is_id(entry_id):
        raise click.UsageError(problem)
    _is_new(knowledge, asker, [n for n in (entry_id, name, *options["aliases"]) if n], entry_id, options["distinct"])
    kind = asker.choice("--kind", options["kind"], "Kind", KINDS)
    links = _papers(knowledge, asker, options["papers"])
    given = _of_paper(knowledge, links) | parse_axes(options["axis"])
    optional = [axis for axis, about in knowledge.axes.axes.items() if kind in about.optional_for]
    data = {
        "id": entry_id,
        "kind": kind,
        "name": name,
        "aliases": list(options["aliases"]) or asker.texts("--alias", (), "Other name"),
        "status": "draft",
        "added": today(),
        "axes": asker.classification(knowledge.axes, given, optional=optional),
        "summary": asker.text("--summary", options["summary"], "Summary, one sentence", check=sentence),
        "definition": asker.text("--definition", options["definition"], "Definition", required=False, check=prose),
        "algorithm": [{"step": step} for step in asker.texts("--step", options["steps"], "Step of the algorithm")],
        "invariant": asker.text(
            "--invariant", options["invariant"], "What must a test of it hold", required=False, check=prose
        ),
        "papers": links,
    }
    if kind == "system":
        data["parts"] = _parts(knowledge, asker, options["parts"])
    code = options["code"]
    if kind != "technique":
        if code:
            raise click.UsageError("--code: only a technique has an implementation on the contract")
        return data, False
    if code is None:
        code = asker.agreed("Write an implementation to start from, with experiments, test and notebook?")
    if code and entry_id is not None:
        if problem := drafts.why_no_module(entry_id):
            raise click.UsageError(f"{problem}; choose another id, or --no-code")
        data["implementation"] = drafts.implementation(entry_id)
    return data, code


def _is_new(knowledge: Knowledge, asker: Asker, names: list[str], entry_id: str | None, distinct: bool) -> None:
    if entry_id in knowledge.entries:
        raise click.UsageError(f"there is an entry {entry_id} already; ids are never reused")
    similar = drafts.near(knowledge, names)
    if not similar or distinct:
        return
    listed = ", ".join(f"{name} ({other})" if name != other else name for name, other in similar.items())
    if asker.interactive:
        click.echo(f"  there is already: {listed}")
        if not asker.agreed("Is yours another technique?", default=False):
            raise click.UsageError(f"see `redundancy show {next(iter(similar.values()))}`; nothing was written")
    else:
        raise click.UsageError(f"did you mean {listed}? If yours is another technique, say --distinct")


def _papers(knowledge: Knowledge, asker: Asker, options: Sequence[str]) -> list[dict[str, str]]:
    texts = list(options)
    if not texts:

        def known(text: str) -> str:
            return "" if _paper_of(knowledge, text) else _no_paper(knowledge, text)

        first = asker.text("--paper", None, "Paper that introduces it: key, arXiv id or DOI", check=known)
        texts = [first] if first else []
    links = []
    for text in texts:
        name, _, role = text.partition("=")
        key = _paper_of(knowledge, name)
        if key is None:
            raise click.UsageError(f"--paper: {_no_paper(knowledge, name)}")
        if role and role not in ROLES:
            raise click.UsageError(f"--paper: {role!r} is no role; there are: {', '.join(ROLES)}")
        links.append({"key": key, "role": role or "introduces"})
    return links


def _paper_of(knowledge: Knowledge, name: str) -> str | None:
    """The key of a paper, from its key, arXiv id, DOI or address."""
    if name in knowledge.papers:
        return name
    ids = {lookup.bare_arxiv(name), lookup.bare_doi(name).lower(), name.strip()}
    for key, paper in knowledge.papers.items():
        if ids & {value for value in (paper.ids.arxiv, (paper.ids.doi or "").lower(), paper.ids.url) if value}:
            return key
    return None


def _no_paper(knowledge: Knowledge, name: str) -> str:
    hint = did_you_mean(name, knowledge.papers)
    return f"there is no paper {name!r}; {hint or 'add it first with `redundancy new paper`'}"


def _of_paper(knowledge: Knowledge, links: list[dict[str, str]]) -> dict[str, list[str]]:
    """The classification of the paper that introduces a technique is where that of the technique starts."""
    for link in links:
        if link["role"] == "introduces":
            return {axis: list(terms) for axis, terms in knowledge.papers[link["key"]].axes.items()}
    return {}


def _entry_of(knowledge: Knowledge, entry_id: str) -> Entry:
    if entry_id not in knowledge.entries:
        raise click.UsageError(f"there is no entry {entry_id!r}; {did_you_mean(entry_id, knowledge.entries)}")
    return knowledge.entries[entry_id]


def _parts(knowledge: Knowledge, asker: Asker, options: Sequence[str]) -> list[str]:
    parts = asker.texts("--part", options, "Technique that it composes, by id")
    return [_entry_of(knowledge, part).id for part in parts]


def _told(files: Iterable[str], steps: Sequence[tuple[str, str]]) -> None:
    """What was written, and what to do next: a command and what it is for."""
    for file in files:
        click.echo(f"wrote {file}")
    click.echo("\nNext:")
    width = max(len(command) for command, _ in steps)
    for command, what in steps:
        click.echo(f"  {command:{width}}  {what}".rstrip())


def _code_steps(entry_id: str) -> list[tuple[str, str]]:
    return [
        (f"redundancy run {entry_id}", "the experiment in its small budget"),
        ("redundancy affected --run", "the tests of what changed"),
        (f"edit {TECHNIQUES}/{module_name(entry_id)}.py", "put your technique in the place of the stand-in"),
    ]


# --------------------------------------------------------------------------------------------------------------------


@new.command("implementation")
@click.argument("id_", metavar="ID")
@click.pass_context
def implementation_(ctx: click.Context, id_: str) -> None:
    """Write an implementation to start from for the draft ID, with its experiments, test and notebook."""
    knowledge = load(clone(ctx))
    entry = _entry_of(knowledge, id_)
    if entry.implementation is not None:
        raise click.UsageError(f"{id_} has an implementation: {entry.implementation}")
    if entry.kind != "technique" or entry.status != "draft":
        raise click.UsageError(
            f"{id_} is a {entry.status} {entry.kind}; an implementation is begun for a draft technique"
        )
    if problem := drafts.why_no_module(id_):
        raise click.UsageError(problem)
    texts = drafts.code_texts(id_, entry.name, _named(knowledge, entry))
    with all_or_nothing(knowledge.root) as (fresh, changes):
        drafts.write(fresh, changes, texts, dict([drafts.with_implementation(fresh, id_)]))
    _told(texts, _code_steps(id_))


def _named(knowledge: Knowledge, entry: Entry) -> list[Any]:
    return [knowledge.papers[link.key] for link in entry.papers if link.key in knowledge.papers]


# --------------------------------------------------------------------------------------------------------------------


@new.command()
@click.argument("key", metavar="[KEY]", required=False)
@click.option("--arxiv", metavar="ID", help="arXiv id; title and authors are looked up there.")
@click.option("--doi", metavar="DOI", help="DOI; title, authors, year and venue are looked up there.")
@click.option("--url", metavar="URL", help="Address of the paper, where it has neither.")
@click.option("--offline", is_flag=True, help="Look nothing up.")
@click.option("--title", help="The title.")
@click.option("--author", "authors", multiple=True, metavar='"FAMILY, GIVEN"', help="An author, in order; repeatable.")
@click.option("--et-al", is_flag=True, help="There are more authors than those given.")
@click.option("--year", type=click.IntRange(1900, 2100), help="Year of the publication that --venue names.")
@click.option("--venue", help="Where it was published.")
@click.option("--kind", type=click.Choice(PAPER_KINDS), help="method by default.")
@click.option("--code", "code", metavar="URL", help="Official repository.")
@click.option("--licence", metavar="SPDX", help="Licence of the repository.")
@axis_options
@click.option("--like", metavar="ENTRY", help="Take the classification of this entry for the axes that are not given.")
@click.option("--summary", help="One or two sentences, in your own words.")
@click.option("--source", help="Where you read title, authors, year and venue; known after a look-up.")
@click.pass_context
def paper(ctx: click.Context, /, **options: Any) -> None:
    """Write the file of a paper. What is not confirmed is left out, never guessed."""
    knowledge = load(clone(ctx))
    asker = Asker()
    data = _paper(knowledge, asker, options)
    asker.done()
    with all_or_nothing(knowledge.root) as (fresh, changes):
        file, text = drafts.paper_text(fresh, data)
        drafts.write(fresh, changes, {file: text})
    steps = [
        (f"redundancy new technique --paper {data['key']}", "if it introduces one that is not here yet"),
        (f"redundancy new claim {data['key']}", "a number or a statement of it, with its place"),
    ]
    _told([file], steps)


def _paper(knowledge: Knowledge, asker: Asker, options: dict[str, Any]) -> dict[str, Any]:
    arxiv = lookup.bare_arxiv(options["arxiv"]) if options["arxiv"] else None
    doi = lookup.bare_doi(options["doi"]) if options["doi"] else None
    if not (arxiv or doi or options["url"]) and asker.interactive:
        arxiv = asker.text("--arxiv", None, "arXiv id", required=False)
        doi = None if arxiv else asker.text("--doi", None, "DOI", required=False)
    for name in filter(None, (arxiv, doi, options["url"])):
        if (other := _paper_of(knowledge, name)) is not None:
            raise click.UsageError(f"{name} is papers/{other}.yml already")
    found = None if options["offline"] else _looked_up(arxiv, doi)
    title = asker.text("--title", options["title"] or (found.title if found else None), "Title")
    authors = [_author(text) for text in options["authors"]] or list(found.authors if found else ())
    if not authors:
        authors = [_author(t) for t in asker.texts("--author", (), "Author as `family, given`")]
    year = options["year"]
    if year is None and found and not (options["venue"] and found.venue == lookup.PREPRINT):
        year = found.year  # that of the preprint says nothing about a later publication
    if year is None and asker.interactive:
        answer = asker.text("--year", None, "Year", required=False, check=fitting(r"(19|20)\d\d", "four digits"))
        year = int(answer) if answer else None
    venue = options["venue"] or (found.venue if found else None)
    venue = asker.text("--venue", venue, "Venue", required=False)
    kind = asker.choice("--kind", options["kind"], "Kind", PAPER_KINDS)
    given = parse_axes(options["axis"])
    if options["like"]:
        like = _entry_of(knowledge, options["like"])
        given = {axis: list(terms) for axis, terms in like.axes.items()} | given
    derived = drafts.paper_key(authors[0]["family"], year, title) if authors and year and title else None
    source = options["source"] or (found.source if found else None)
    form = "a key is family name, year and a telling word of the title, such as bolya-2023-token"
    return {
        "key": _key(knowledge, asker, options["key"], derived, form),
        "title": title,
        "kind": kind if kind != "method" else None,
        "authors": authors,
        "et_al": options["et_al"] or None,
        "year": year,
        "venue": venue,
        "ids": {k: v for k, v in (("arxiv", arxiv), ("doi", doi), ("url", options["url"])) if v},
        "code": _repository(options),
        "axes": {} if kind == "survey" else asker.classification(knowledge.axes, given, also=False),
        "summary": asker.text("--summary", options["summary"], "Summary, in your own words", check=prose),
        "verified": {
            "source": asker.text("--source", source, "Where did you read title, authors, year and venue"),
            "on": today(),
        },
    }


def _key(knowledge: Knowledge, asker: Asker, given: str | None, derived: str | None, form: str) -> str | None:
    def check(text: str) -> str:
        if text in knowledge.papers:
            return f"papers/{text}.yml is there already"
        return "" if re.fullmatch(KEY, text) else form

    if given is None and derived is not None and not asker.interactive:
        given = derived
    missing = "KEY (or --author and --year, which it follows from)"
    return asker.text(missing, given, "Key, final once it is merged", default=derived, check=check)


def _looked_up(arxiv: str | None, doi: str | None) -> lookup.Found | None:
    """What a registry says; a message on standard error where it says nothing."""
    found = None
    for name, ask, base in ((doi, lookup.doi, lookup.DOI), (arxiv, lookup.arxiv, lookup.ARXIV)):
        if name and found is None:
            try:
                found = ask(name, base=base)
            except lookup.LookupFailed as error:
                click.echo(f"nothing was looked up: {error}", err=True)
    if found is None:
        return None
    who = "; ".join(", ".join(filter(None, (a["family"], a.get("given")))) for a in found.authors)
    click.echo(f"looked up in the {found.source}: {found.title} ({who}; {found.venue}, {found.year})", err=True)
    if found.remark:
        click.echo(f"it also says: {found.remark}", err=True)
    return found


def _author(text: str) -> dict[str, str]:
    family, _, given = (part.strip() for part in text.partition(","))
    return {"family": family, "given": given} if given else {"family": family}


def _repository(options: dict[str, Any]) -> list[dict[str, Any]]:
    if not options["code"]:
        return []
    licence = {"licence": options["licence"]} if options["licence"] else {}
    return [{"url": options["code"], "official": True, **licence}]


# --------------------------------------------------------------------------------------------------------------------

QUANTITY, SETTING, LOCATOR = (tuple(model.model_fields) for model in (Quantity, Setting, Locator))


def _claim_options(command: Any) -> Any:
    """An option for every field of a claim's quantity, setting and locator."""
    for model, names in reversed(((Quantity, QUANTITY), (Setting, SETTING), (Locator, LOCATOR))):
        for name in reversed(names):
            about = f"{model.__name__}: {str(model.model_fields[name].description).splitlines()[0]}"
            command = click.option(f"--{name}", type=float if name == "value" else str, help=about)(command)
    return command


@new.command()
@click.argument("key", metavar="KEY")
@click.option("--technique", metavar="ID", help="The entry that the claim is about.")
@click.option("--kind", type=click.Choice(CLAIM_KINDS), help="What sort of claim it is.")
@click.option("--statement", help="The claim, in your own words.")
@_claim_options
@click.option("--seen-at", help="Where it was read, if not in the paper itself.")
@click.pass_context
def claim(ctx: click.Context, /, **options: Any) -> None:
    """Add a claim to the paper KEY: one number or statement, with the place where a reader finds it."""
    knowledge = load(clone(ctx))
    key = options["key"]
    if key not in knowledge.papers:
        raise click.UsageError(_no_paper(knowledge, key))
    asker = Asker()
    data = _claim(knowledge, asker, key, options)
    asker.done()
    with all_or_nothing(knowledge.root) as (fresh, changes):
        if key not in fresh.papers:
            raise click.ClickException(f"{_no_paper(fresh, key)}; nothing was written")
        data = {"id": f"c{max((int(one.id[1:]) for one in fresh.papers[key].claims), default=0) + 1}", **data}
        file, text = drafts.with_claim(fresh, key, data)
        drafts.write(fresh, changes, {}, {file: text})
    click.echo(f"added {key}#{data['id']} to {file}")


def _claim(knowledge: Knowledge, asker: Asker, key: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the claim says; its id is given when it is written."""
    about = options["technique"] or _only_entry(knowledge, key)

    def known(text: str) -> str:
        entry = knowledge.entries.get(text)
        if entry is None:
            return f"there is no entry {text!r}; {did_you_mean(text, knowledge.entries)}"
        if all(link.key != key for link in entry.papers):
            file = f"taxonomy/techniques/{text}.yml"
            return f"{file} does not name this paper; add `- {{key: {key}, role: ...}}` to its `papers` first"
        return ""

    technique_id = asker.text("--technique", about, "Entry that it is about", check=known)
    if options["kind"] is None and not asker.interactive:
        asker.missing.append("--kind")
    kind = asker.choice("--kind", options["kind"], "Kind", CLAIM_KINDS)
    statement = asker.text("--statement", options["statement"], "The claim, in your own words", check=prose)
    quantity = {name: options[name] for name in QUANTITY if options[name] is not None}
    if kind in NUMBERED:
        for name, field in Quantity.model_fields.items():
            if field.is_required() and name not in quantity:
                number = fitting(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", "a number") if name == "value" else lambda text: ""
                answer = asker.text(f"--{name}", None, name.capitalize(), check=number)
                if answer is not None:
                    quantity[name] = float(answer) if name == "value" else answer
    if "value" in quantity and float(quantity["value"]).is_integer():
        quantity["value"] = int(quantity["value"])
    locator = {name: options[name] for name in LOCATOR if options[name] is not None}
    if not locator:
        if asker.interactive:
            name = asker.choice("locator", None, "Where does a reader find it", LOCATOR)
            locator[name] = asker.text(f"--{name}", None, name.capitalize())
        else:
            asker.missing.append(" or ".join(f"--{name}" for name in LOCATOR))
    return {
        "technique": technique_id,
        "kind": kind,
        "statement": statement,
        "quantity": {name: quantity[name] for name in QUANTITY if name in quantity},
        "setting": {name: options[name] for name in SETTING if options[name] is not None},
        "locator": locator,
        "seen_at": options["seen_at"],
    }


def _only_entry(knowledge: Knowledge, key: str) -> str | None:
    """The entry that names a paper, where it is only one."""
    naming = knowledge.entries_of(key)
    return naming[0].id if len(naming) == 1 else None
