"""Pydantic's errors as findings at the exact place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from .findings import Finding, did_you_mean
from .reader import Document, Keys

M = TypeVar("M", bound=BaseModel)

_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "mapping_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
}


def validate(model: type[M], document: Document, *, as_json: bool = False) -> tuple[M | None, list[Finding]]:
    """`document` as an instance of `model`, or None and all that is wrong with it.

    `as_json`: its numbers are numbers. YAML is read more kindly.
    """
    try:
        value = (
            model.model_validate_json(json.dumps(document.data), strict=True)
            if as_json
            else model.model_validate(document.data)
        )
    except ValidationError as error:
        return None, _findings(model, document, error)
    return value, []


def _findings(model: type[BaseModel], document: Document, error: ValidationError) -> list[Finding]:
    found: dict[tuple[Keys, str], Finding] = {}
    unions: dict[Keys, list[str]] = {}
    for problem in error.errors(include_url=False):
        path, skipped = _path(problem["loc"], document.data, str(problem["type"]))
        if document.is_tainted(path) or _follows_from_another(dict(problem)):
            continue
        if skipped:  # one of several forms that are allowed here; said once, for all of them
            unions.setdefault(path, []).append(_TYPES.get(str(problem["type"]), str(problem["msg"])))
            continue
        item = _finding(model, document, path, dict(problem))
        found.setdefault((path, item.code), item)
    for path, forms in unions.items():
        wanted = " or ".join(dict.fromkeys(forms))
        found.setdefault(
            (path, "E203"), document.finding("E203", f"must be {wanted}, is {_shown(_at(document.data, path))}", path)
        )
    return list(found.values())


def _follows_from_another(problem: dict[str, Any]) -> bool:
    """Whether a list is only too short because items of it are wrong, which is said of the items."""
    value = problem.get("input")
    return (
        problem["type"] == "too_short" and isinstance(value, list) and len(value) >= int(problem["ctx"]["min_length"])
    )


def _path(loc: tuple[int | str, ...], data: Any, kind: str) -> tuple[Keys, bool]:
    """The path in the document of an error of pydantic, without the names of the members of a union."""
    path: list[int | str] = []
    skipped = False
    for n, part in enumerate(loc):
        if (isinstance(data, dict) and isinstance(part, str) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            path.append(part)
            data = data[part]  # type: ignore[index]
        elif kind == "missing" and n == len(loc) - 1:
            path.append(part)
        elif part != "[key]" and not isinstance(part, int):
            skipped = True
    return tuple(path), skipped


def _at(data: Any, path: Keys) -> Any:
    for part in path:
        data = data[part]
    return data


def _finding(model: type[BaseModel], document: Document, path: Keys, problem: dict[str, Any]) -> Finding:
    kind, context = str(problem["type"]), problem.get("ctx") or {}
    if kind == "missing":
        owner = submodel(model, path[:-1])
        return document.finding(
            "E202", f'the key "{path[-1]}" is missing', path[:-1], key=True, hint=_example(owner, str(path[-1]))
        )
    if kind == "extra_forbidden":
        owner = submodel(model, path[:-1])
        message = f'there is no key "{path[-1]}" here'
        return document.finding("E201", message, path, key=True, hint=did_you_mean(str(path[-1]), _names(owner)))
    value = problem.get("input")
    if kind in ("string_too_short", "string_pattern_mismatch") and isinstance(value, str) and not value.strip():
        return document.finding("E205", "is blank", path, hint="give it a value, or leave the key out")
    if "[key]" in problem["loc"]:
        message = f'the key "{path[-1]}" does not have the form {context.get("pattern", "that is wanted")}'
        return document.finding("E205", message, path, key=True)
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        message = f"{_shown(value)} is none of: {', '.join(known)}" if known else str(problem["msg"])
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        return document.finding("E204", message, path, hint="" if hint.startswith("there are") else hint)
    if kind in _TYPES:
        return document.finding(
            "E203", f"must be {_TYPES[kind]}, is {_shown(value)}", path, hint=_type_hint(document, path, kind, value)
        )
    if kind == "string_pattern_mismatch":
        owner = submodel(model, path[:-1])
        message = f"{_shown(value)} does not have the form {context.get('pattern')}"
        hint = _mended(value, str(context.get("pattern"))) or _example(owner, str(path[-1]) if path else "")
        return document.finding("E205", message, path, hint=hint)
    if kind == "too_short":
        least = int(context["min_length"])
        message = f"needs at least {least} {'item' if least == 1 else 'items'}"
        return document.finding("E205", message, path, key=True, hint="leave the key out if there is none")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return document.finding("E205", message[:1].lower() + message[1:], path)


def _type_hint(document: Document, path: Keys, kind: str, value: Any) -> str:
    if value is None:
        return "give it a value, or leave the key out"
    if kind.startswith(("int_", "float_")) and isinstance(value, str) and (number := _number(value)):
        return f"write it without quotes, leading zeros or separators: {number}"
    if kind == "string_type" and path in document.places.raw:
        return f'write it in quotes: "{document.places.raw[path]}"'
    if kind in ("tuple_type", "list_type") and isinstance(value, str):
        return "start each item on a line of its own with `- `"
    if isinstance(value, str) and kind not in ("dict_type", "model_type", "mapping_type", "model_attributes_type"):
        return "leave the quotes out" if value in ("true", "false") else ""
    return ""


def _number(text: str) -> str:
    """The number that a text means: `02022` and `1,000` are 2022 and 1000; nothing where it is none."""
    bare = re.sub(r"(?<=\d)[,_' ](?=\d{3}(?!\d))", "", text.strip())
    found = re.fullmatch(r"\+?(-?)0*(\d+(?:\.\d+)?)", bare)
    return f"{found[1]}{found[2]}" if found else ""


def _mended(text: Any, pattern: str) -> str:
    """What to write where a text misses its form by white space, capitals or leading zeros alone; else nothing."""
    if not isinstance(text, str):
        return ""
    tidy = " ".join(text.split())
    date = re.sub(r"\b(\d)\b", r"0\1", re.sub(r"[/.]", "-", tidy))
    for mended in (
        tidy,
        tidy.lower(),
        date,
        re.sub(r"(?<!\d)0+(?=\d)", "", tidy),
        re.sub(r"[\s_]+", "-", tidy.lower()),
    ):
        if re.search(pattern, mended):
            return f'write "{mended}"'
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f'{text[:57]}..."'


def submodel(model: type[BaseModel] | None, path: Keys) -> type[BaseModel] | None:
    """The model of the mapping at `path` below `model`; None where there is none."""
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is not None:
            model = _model_in(field.annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(a) for a in get_args(annotation))), None)


def _names(model: type[BaseModel] | None) -> Iterable[str]:
    return [f.alias or name for name, f in model.model_fields.items()] if model else []


def _example(model: type[BaseModel] | None, name: str) -> str:
    field = next((f for n, f in model.model_fields.items() if name in (n, f.alias)), None) if model else None
    if field is None or not field.examples:
        return ""
    example = field.examples[0]
    if example in ([], {}):
        return str(field.description).splitlines()[0]
    return f"for example {name}: {json.dumps(example, ensure_ascii=False)}"
