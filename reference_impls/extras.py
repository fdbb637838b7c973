"""Packages beyond the core, and the extra of the installation that brings them.

The core is what applying a technique needs. Data, pretrained models, figures and the site need more, which is imported
where it is used; whoever runs such code tells from the ImportError what to install (`advice`).
"""

from __future__ import annotations

DISTRIBUTION = "redundancy-atlas"
EXTRAS = {
    "av": "data",
    "onnx": "data",
    "skimage": "data",
    "sklearn": "data",
    "threadpoolctl": "data",
    "tokenizers": "data",
    "PIL": "dedup",
    "pyarrow": "dedup",
    "rensa": "dedup",
    "xxhash": "dedup",
    "ipykernel": "notebooks",
    "jupytext": "notebooks",
    "matplotlib": "notebooks",
    "nbclient": "notebooks",
    "nbformat": "notebooks",
    "jinja2": "site",
    "latex2mathml": "site",
    "mkdocs": "site",
    "pygments": "site",
    "transformers": "hf",
    "ray": "ray",
    "timm": "timm",
    "pytest": "dev",
}
"""Top-level module -> the extra that brings it."""


def advice(error: BaseException, extra: str | None = None) -> str | None:
    """What to install where an import failed because an extra is missing; None for every other error.

    `extra` is one that brings the missing module and whatever else is needed there.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    if module not in EXTRAS:
        return None
    return f'{module} is needed and not installed: pip install "{DISTRIBUTION}[{extra or EXTRAS[module]}]"'
