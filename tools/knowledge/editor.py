"""JSON Schemas for editors, generated from the models, with the terms of `taxonomy/axes.yml` as their vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from reference_impls.accounting.record import Record
from reference_impls.whole import write_atomically

from .paths import AXES, ENTRIES, HARD_CASES, OPEN_PROBLEMS, PAPERS, PRINCIPLES
from .schema import Axes, Axis, Entry, HardCases, Paper, Statements
from .text import one_line

FOLDER: Final = "tools/knowledge/schemas"
MODELS: Final[dict[str, type[BaseModel]]] = {
    "axes": Axes,
    "entry": Entry,
    "hard_cases": HardCases,
    "paper": Paper,
    "record": Record,
    "statements": Statements,
}
_FILES: Final = {AXES: "axes", HARD_CASES: "hard_cases", OPEN_PROBLEMS: "statements", PRINCIPLES: "statements"}


def schema_name(file: str) -> str | None:
    """Name of the schema of a YAML file, from its path relative to the root; None for a file that is none of ours."""
    folder, _, name = file.rpartition("/")
    if not name.endswith(".yml"):
        return None
    return _FILES.get(file) or {ENTRIES: "entry", PAPERS: "paper"}.get(folder)


def modeline(file: str) -> str:
    """The first line of a file of the knowledge, which tells editors its schema."""
    schema = f"{'../' * file.count('/')}{FOLDER}/{schema_name(file)}.schema.json"
    return f"# yaml-language-server: $schema={schema}"


def schemas(axes: Axes) -> dict[str, str]:
    """File name -> text of every schema."""
    return {
        f"{name}.schema.json": json.dumps(schema(name, axes), indent=1, ensure_ascii=False) + "\n" for name in MODELS
    }


def schema(name: str, axes: Axes) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of `MODELS`."""
    generated = MODELS[name].model_json_schema(by_alias=True, mode="validation")
    if name in ("entry", "paper"):
        described = generated["properties"]["axes"]
        described.pop("additionalProperties", None)
        described |= {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: _axis(axis) for key, axis in axes.axes.items()},
        }
        generated["$defs"].pop("Terms", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


def _axis(axis: Axis) -> dict[str, Any]:
    term = {"oneOf": [{"const": key, "description": one_line(t.definition)} for key, t in axis.terms.items()]}
    several = {"type": "array", "items": term, "minItems": 1, "uniqueItems": True}
    if axis.choice == "single":
        several["maxItems"] = 1
    return {"title": axis.name, "description": one_line(axis.question), "anyOf": [term, several]}


def stale(root: Path, axes: Axes) -> list[str]:
    """Names of the schemas under `root` that differ from the models."""
    folder = root / FOLDER
    return [
        name
        for name, text in schemas(axes).items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]


def write(root: Path, axes: Axes) -> list[str]:
    """Write the schemas that are stale; returns their names."""
    names, texts = stale(root, axes), schemas(axes)
    for name in names:
        write_atomically(root / FOLDER / name, texts[name], root)
    return names
