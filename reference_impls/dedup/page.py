"""The page of a run: what went, and the largest groups to look at, in one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from difflib import SequenceMatcher
from typing import Any, NamedTuple

SHOWN = 1500
"""Characters of a text that the page shows."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #f5c54266 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dt { opacity: .7 } dd { margin: 0 }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; padding: .4rem .8rem }
summary { cursor: pointer; overflow-wrap: anywhere }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); padding-left: .8rem }
mark { background: var(--mark); color: inherit } h3 { font-size: 1rem; margin: .8rem 0 .2rem } img { max-width: 16rem }
"""


class Group(NamedTuple):
    """A row that stays, and rows that go for it."""

    size: int
    members: list[tuple[str, Any, float]]
    """Id, value and similarity, of the one that stays first; no value where it is not of this input"""


def render(summary: dict[str, Any], groups: list[Group]) -> str:
    """The page as HTML."""
    facts = {
        "input": summary["input"],
        "method": ", ".join(f"{k} {v}" for k, v in summary["options"].items() if v is not None),
        "rows": f"{summary['rows']:,}",
        "kept": f"{summary['kept']:,}",
        "removed": f"{summary['removed']:,} ({summary['share of rows removed']:.1%})",
        "cut": f"{summary['cut']:,}",
        "skipped": f"{summary['skipped']:,}",
    }
    if (share := summary["share of characters removed"]) is not None:
        facts["characters that go"] = f"{share:.1%}: so much of every epoch, where the number of epochs stays"
    listed = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    skipped = "".join(f"<li>{html.escape(one)}</li>" for one in summary["skipped examples"])
    skipped = f"<h2>Rows that could not be read</h2><ul>{skipped}</ul>" if skipped else ""
    shown = "".join(_group(n, group) for n, group in enumerate(groups)) or "<p>Nothing repeats.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Deduplication of {html.escape(summary['input'])}</title><style>{STYLE}</style></head><body>"
        f"<h1>Deduplication of {html.escape(summary['input'])}</h1><dl>{listed}</dl>{skipped}"
        f"<h2>The largest groups</h2><p>The first of a group stays. Words that differ from it are marked.</p>{shown}"
        "</body></html>\n"
    )


def _group(n: int, group: Group) -> str:
    (name, first, _), *others = group.members
    parts = [f"<h3>stays: {html.escape(name)}</h3>{_value(first)}"]
    for other, value, similarity in others:
        parts.append(f"<h3>goes: {html.escape(other)} (similarity {similarity:.3f})</h3>{_value(value, first)}")
    opened = " open" if n == 0 else ""
    return f"<details{opened}><summary>{group.size:,} rows: {html.escape(name)}</summary>{''.join(parts)}</details>"


def _value(value: Any, beside: Any = None) -> str:
    if value is None:
        return "<p>not of this input</p>"
    if not isinstance(value, str):
        return f'<img alt="image" src="data:image/png;base64,{_thumbnail(value)}">'
    text = value[:SHOWN] + (" ..." if len(value) > SHOWN else "")
    return f'<div class="text">{_marked(text, beside[:SHOWN]) if isinstance(beside, str) else html.escape(text)}</div>'


def _marked(text: str, beside: str) -> str:
    """The text, the words that are not in the other one at their place marked."""
    words, others = text.split(" "), beside.split(" ")
    pieces = []
    for what, _, _, start, end in SequenceMatcher(None, others, words, autojunk=False).get_opcodes():
        if piece := html.escape(" ".join(words[start:end])):
            pieces.append(piece if what == "equal" else f"<mark>{piece}</mark>")
    return " ".join(pieces)


def _thumbnail(image: Any) -> str:
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((256, 256))
    raw = io.BytesIO()
    small.save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()
