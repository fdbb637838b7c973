"""Templates of the pages. What they are given is escaped, unless it is `Html` already."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import figures, markup
from ..markup import Html

# Everything is made `Html` before jinja's own escaping sees it, which leaves characters that Markdown reads as markup.
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=Html.escape, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_TEMPLATES.filters["join"] = lambda items, between="": Html(between).join(items)
_TEMPLATES.globals |= {
    name: getattr(markup, name)
    for name in ("arxiv", "attributes", "code", "display_math", "doi", "external", "heading", "with_code")
} | {name: getattr(figures, name) for name in ("duration", "number", "quantity")}


def render(template: str, **context: object) -> Html:
    """A template filled in. A blank line ends a block of HTML for Markdown, so that there is never more than one."""
    return Html(re.sub(r"\n\s*\n", "\n\n", _TEMPLATES.get_template(template).render(context)).strip())
