"""Techniques found by name: `reference_impls/techniques/<id with underscores>` holds the class whose `id` is `<id>`.

No list is kept anywhere, so a new technique adds only new files.
"""

from __future__ import annotations

import importlib
import pkgutil

from reference_impls.contract.errors import nearest
from reference_impls.contract.technique import Technique

PACKAGE = "reference_impls.techniques"


def module_name(technique_id: str) -> str:
    """`token-merging` -> `token_merging`."""
    return technique_id.replace("-", "_")


def ids() -> list[str]:
    """Ids of every technique with an implementation, sorted; imports none of them."""
    package = importlib.import_module(PACKAGE)
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__))


def load(technique_id: str) -> Technique:
    """An instance of the technique's class; LookupError with a suggestion if there is none."""
    if technique_id not in ids():
        raise LookupError(f"no implementation is called {technique_id!r}{nearest(technique_id, ids())}")
    module = importlib.import_module(f"{PACKAGE}.{module_name(technique_id)}")
    techniques = [t for t in vars(module).values() if isinstance(t, type) and issubclass(t, Technique)]
    classes = [t for t in techniques if getattr(t, "id", None) == technique_id]
    if len(classes) != 1:
        what = f"exactly one Technique whose id is {technique_id!r}, found {len(classes)}"
        raise LookupError(f"{module.__name__} must hold {what}")
    return classes[0]()
