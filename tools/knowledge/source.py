"""What the source of an implementation says, read with `ast` and never imported.

Importing would need torch, take seconds, and run code of a contribution that nobody has looked at yet.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from .findings import Finding, finding
from .paths import SHARED, TECHNIQUES, module_name
from .reader import read_text

MAKERS: Final = frozenset({"Scenario", "task"})


@dataclass(frozen=True)
class Definition:
    """Where a function or class stands."""

    file: str
    line: int
    end: int
    docstring: str = ""


@dataclass(frozen=True)
class Attribute:
    """A class attribute: its value if it is written as a literal, and where it stands."""

    value: Any
    literal: bool
    line: int
    column: int


@dataclass(frozen=True)
class Knob:
    """A knob as its class declares it (`reference_impls.contract.knobs`)."""

    name: str
    kind: str
    """number, integer, choice, switch or given; empty where it cannot be read without importing."""
    default: Any
    takes: str
    """What values it takes: `at least 0`, `full or coarse`; empty where the kind says it."""
    about: str
    line: int = 1


@dataclass(frozen=True)
class Source:
    """The implementation of one entry."""

    id: str
    module: str
    """`reference_impls.techniques.token_merging`."""
    file: str
    """File of the class, or of the module where no class was found."""
    files: tuple[str, ...]
    """All files of the implementation: one, or those of its folder."""
    text: str
    """Text of `file`."""
    docstring: str
    """Docstring of the module."""
    class_name: str | None
    """The class on the contract."""
    class_line: int
    bases: tuple[str, ...]
    """Names of the base classes, as written."""
    attributes: Mapping[str, Attribute]
    """Class attributes, by name."""
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    """Functions, classes and `Class.method`s by name, its own and those that techniques share."""
    knobs: tuple[Knob, ...] = ()
    """The knobs that the class declares or inherits, as far as they are written as literals."""

    def _literal(self, name: str, default: Any) -> Any:
        attribute = self.attributes.get(name)
        return attribute.value if attribute is not None and attribute.literal else default

    @property
    def execution(self) -> str | None:
        """`real`, `simulated`, or None if the class does not say."""
        value = self._literal("execution", None)
        return value if value in ("real", "simulated") else None

    @property
    def stateful(self) -> bool:
        """Whether state is carried from one input to the next."""
        return self._literal("stateful", False) is True

    @property
    def waivers(self) -> dict[str, str]:
        """Name of a check of the conformance checks that does not apply -> the reason."""
        value = self._literal("waivers", {})
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


@dataclass
class _Module:
    file: str
    text: str
    tree: ast.Module


def parse_text(text: str, file: str, findings: list[Finding], *, run: bool = False) -> ast.Module | None:
    """The syntax tree of Python text, or None and a finding; with `run` it must also be Python that can be run, which
    `return` outside of a function is not."""
    try:
        tree = ast.parse(text)
        if run:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(text, file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return tree
    except SyntaxError as error:
        message = f"not Python: {error.msg}"
        findings.append(finding("E704", file, message, line=error.lineno or 1, column=max(error.offset or 1, 1)))
    except (ValueError, RecursionError, MemoryError) as error:
        findings.append(finding("E704", file, f"not Python: {error}"))
    return None


def read_shared(root: Path) -> dict[str, Definition]:
    """Definitions of the code that techniques share, by name, as far as it can be read."""
    found: dict[str, Definition] = {}
    for path in sorted(path for pattern in SHARED for path in root.glob(pattern)):
        file = path.relative_to(root).as_posix()
        text, _ = read_text(path, file)
        tree = parse_text(text, file, []) if text is not None else None
        found |= _definitions(_Module(file, text or "", tree)) if tree else {}
    return found


def read_source(
    root: Path,
    entry_id: str,
    implementation: str | None,
    findings: list[Finding],
    shared: Mapping[str, Definition] = MappingProxyType({}),
) -> Source | None:
    """The implementation of an entry; None if there is none or it is not Python. Adds to `findings`."""
    name = module_name(entry_id)
    base = root / TECHNIQUES
    folder = base / name
    if folder.is_dir():
        paths = sorted(folder.rglob("*.py"), key=lambda p: (p.name != "__init__.py", p))
    elif os.path.lexists(base / f"{name}.py"):
        paths = [base / f"{name}.py"]
    else:
        return None
    modules: list[_Module] = []
    for path in paths:
        file = path.relative_to(root).as_posix()
        text, problems = read_text(path, file)
        findings.extend(problems)
        if text is not None and (tree := parse_text(text, file, findings)) is not None:
            modules.append(_Module(file, text, tree))
    if not modules:
        return None
    wanted = implementation.partition(":")[2] if implementation else None
    home, node = _class(modules, entry_id, wanted)
    definitions: dict[str, Definition] = {}
    for module in modules:
        for known, definition in _definitions(module).items():
            definitions.setdefault(known, definition)
    return Source(
        id=entry_id,
        module=f"{TECHNIQUES.replace('/', '.')}.{name}",
        file=home.file,
        files=tuple(m.file for m in modules),
        text=home.text,
        docstring=next(filter(None, (ast.get_docstring(m.tree) for m in [home, *modules])), ""),
        class_name=node.name if node else None,
        class_line=node.lineno if node else 1,
        bases=tuple(ast.unparse(b) for b in node.bases) if node else (),
        attributes=_attributes(node) if node else {},
        definitions={**shared, **definitions},
        knobs=_knobs(base, home.tree, node) if node else (),
    )


def _class(modules: list[_Module], entry_id: str, wanted: str | None) -> tuple[_Module, ast.ClassDef | None]:
    """The class that the entry names; where it names none, the one whose `id` is the entry's."""
    for module in modules:
        for node in module.tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            if node.name == wanted:
                return module, node
            attribute = _attributes(node).get("id") if wanted is None else None
            if attribute is not None and attribute.value == entry_id:
                return module, node
    return modules[0], None


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """The class attributes that are given a value, as written."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if isinstance(target, ast.Name):
            yield target.id, value


def _attributes(node: ast.ClassDef) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    for name, value in _assignments(node):
        try:
            literal, known = ast.literal_eval(value), True
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            literal, known = None, False
        attributes[name] = Attribute(literal, known, value.lineno, value.col_offset + 1)
    return attributes


def _knobs(techniques: Path, tree: ast.Module, node: ast.ClassDef | None) -> tuple[Knob, ...]:
    """The knobs of a class, those of another that it spreads into them (`**Other.knobs`) included; where it declares
    none, those of the first of its bases that does, in whatever module of `techniques` it stands."""
    if node is None:
        return ()
    declared = dict(_assignments(node)).get("knobs")
    if isinstance(declared, ast.Dict):
        found: dict[str, Knob] = {}
        for key, value in zip(declared.keys, declared.values, strict=True):
            if key is None and isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
                other = _named_class(techniques, tree, value.value.id)  # `**Other.knobs`
                found |= {knob.name: knob for knob in _knobs(techniques, *other)} if other[1] is not node else {}
            else:
                knob = _knob(key, value)
                found[knob.name] = knob
        return tuple(found.values())
    bases = (_named_class(techniques, tree, base.id) for base in node.bases if isinstance(base, ast.Name))
    return next(filter(None, (_knobs(techniques, *base) for base in bases if base[1] is not node)), ())


def _named_class(techniques: Path, tree: ast.Module, name: str) -> tuple[ast.Module, ast.ClassDef | None]:
    """The class of that name in a module, or in the module of a technique from which it is imported."""
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return tree, statement
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            parts = (statement.module or "").split(".")
            path = techniques.joinpath(*parts[2:])
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if parts[:2] == TECHNIQUES.split("/") and file.is_file():
                    text, _ = read_text(file, file.name)
                    found = parse_text(text, file.name, []) if text is not None else None
                    return _named_class(techniques, found, name) if found else (tree, None)
    return tree, None


def _knob(key: ast.expr | None, call: ast.expr) -> Knob:
    """`"r": Integer(8, low=0, about="...")`; of no kind if it is written otherwise."""
    name = str(key.value) if isinstance(key, ast.Constant) else "?"
    try:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not a call of a kind of knob")
        default = ast.literal_eval(call.args[0])
        said = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, IndexError):
        return Knob(name, "", None, "", "", call.lineno)
    return Knob(name, call.func.id.lower(), default, _takes(said), str(said.get("about", "")), call.lineno)


def _takes(said: Mapping[str | None, Any]) -> str:
    low, high = said.get("low"), said.get("high")
    above = "above" if said.get("low_open") else "at least"
    if low is not None and high is not None:
        text = f"above {low}, at most {high}" if said.get("low_open") else f"{low} to {high}"
    elif low is not None:
        text = f"{above} {low}"
    elif high is not None:
        text = f"at most {high}"
    else:
        text = " or ".join(map(str, said.get("options", ())))
    more = ["a list with one for each part"] * bool(said.get("listed")) + ["None"] * bool(said.get("optional"))
    return ", or ".join(filter(None, (text, *more)))


def _definitions(module: _Module) -> dict[str, Definition]:
    found: dict[str, Definition] = {}

    def add(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, prefix: str) -> None:
        found[prefix + node.name] = Definition(
            module.file, node.lineno, node.end_lineno or node.lineno, ast.get_docstring(node) or ""
        )

    for node in module.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            add(node, "")
        elif isinstance(node, ast.ClassDef):
            add(node, "")
            for inner in node.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    add(inner, f"{node.name}.")
    return found


def scenarios(text: str, tree: ast.Module) -> set[str]:
    """Names of the scenarios that an experiments module defines: first argument or `name=` of each `Scenario(...)` and
    of each `task(...)` of a benchmark.

    Functions are searched only if some are not found outside of them.
    """
    outside = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    calls = _calls(outside)
    if len(calls) < sum(text.count(f"{maker}(") for maker in MAKERS):
        calls = _calls(tree.body)
    values = [v for c in calls for v in [k.value for k in c.keywords if k.arg == "name"] or c.args[:1]]
    return {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}


def _calls(statements: Sequence[ast.stmt]) -> list[ast.Call]:
    calls = (node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call))
    return [c for c in calls if {getattr(c.func, "id", None), getattr(c.func, "attr", None)} & MAKERS]
