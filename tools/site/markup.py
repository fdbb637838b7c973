"""Small pieces of HTML that pages and notebooks share: text, math, code, links and cleaned foreign HTML.

Pages are Markdown whose structured parts are HTML. Everything here yields HTML that Markdown leaves as it is.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape, unescape
from html.parser import HTMLParser

import latex2mathml.converter
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

MATH = re.compile(r"(?<![\\$])\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?!\w)", re.DOTALL)
CODE_SPAN = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.DOTALL)
UNKNOWN = re.compile(r"<m\w+[^>]*>(\\[A-Za-z]+)")
"""A command that the converter passed through."""
UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">[^<]</mi>){2,}')
"""A word set upright letter by letter: as one identifier its letters stand close and it is read as one."""
MATH_TEXT = re.compile(r">([^<>]+)<")


class MathError(ValueError):
    """LaTeX that cannot be turned into MathML."""


@cache
def math(latex: str, *, display: bool = False) -> str:
    """LaTeX as MathML, with the LaTeX as its alternative text.

    Raises MathError with the offending LaTeX.
    """
    try:
        mathml = latex2mathml.converter.convert(latex, display="block" if display else "inline")
    except Exception as error:  # the converter raises a dozen classes without a common base
        raise MathError(f"cannot read the LaTeX {latex!r}: {type(error).__name__}: {error}") from error
    if unknown := UNKNOWN.search(mathml):
        raise MathError(f"cannot read the LaTeX {latex!r}: {unknown[1]} is not known")
    if len(re.findall(r"(?<!\\)\{", latex)) != len(re.findall(r"(?<!\\)\}", latex)):
        raise MathError(f"cannot read the LaTeX {latex!r}: its braces do not match")
    alternative = "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in " ".join(latex.split()))
    mathml = mathml.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', f' alttext="{alternative}"')
    mathml = UPRIGHT.sub(lambda m: "<mi>" + re.sub(r"<[^>]+>", "", m[0]) + "</mi>", mathml)
    # Markdown must find nothing to emphasise between the tags.
    return MATH_TEXT.sub(lambda m: ">" + re.sub(r"[*_`\\$~^\[\]]", lambda c: f"&#{ord(c[0])};", m[1]) + "<", mathml)


def with_math(markdown: str) -> str:
    """Markdown with `$...$` and `$$...$$` replaced by MathML; code is left alone."""

    def convert(match: re.Match[str]) -> str:
        if match[1] is not None:
            return f'\n\n<div class="atlas-math">{math(match[1].strip(), display=True)}</div>\n\n'
        return math(match[2].strip())

    pieces = CODE_SPAN.split(markdown)
    return "".join(p if i % 2 else MATH.sub(convert, p) for i, p in enumerate(pieces))


def paragraph(markdown: str) -> str:
    """Inline Markdown of an entry on one line, with its math."""
    return with_math(" ".join(markdown.split()))


def bullets(items: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {paragraph(item)}" for item in items) + "\n"


def code(source: str, language: str = "python", *, line_prefix: str = "") -> str:
    """Highlighted source. With `line_prefix`, line n is an anchor `<line_prefix>-n`."""
    formatter = HtmlFormatter(cssclass="highlight", wrapcode=True, linespans=line_prefix or None)
    html = highlight(source.rstrip() + "\n", get_lexer_by_name(language, stripnl=False), formatter)
    # A blank line would end the raw HTML block for some Markdown readers.
    return re.sub(r"\n(?=\n)", "\n&#8203;", html.strip()) if not line_prefix else html.strip()


def href(here: str, there: str, anchor: str = "") -> str:
    """Relative URL from the page at path `here` to the page at path `there` (both end in .md), as built: .html."""
    fragment = f"#{anchor}" if anchor else ""
    if here == there and anchor:
        return fragment
    url = posixpath.relpath(there, posixpath.dirname(here) or ".")
    return re.sub(r"\.md$", ".html", url) + fragment


def link(here: str, there: str, text: str, *, anchor: str = "", title: str = "", css: str = "") -> str:
    """`<a>` between two pages; `text` is HTML."""
    attributes = {"href": href(here, there, anchor), "title": title, "class": css}
    return f"<a{_attributes(attributes)}>{text}</a>"


def external(url: str, text: str) -> str:
    """`<a>` to another site; `text` is plain."""
    return f'<a href="{escape(url)}" rel="noopener">{escape(text)}</a>'


def table(
    head: Iterable[str], rows: Iterable[Iterable[str]], *, css: str = "", caption: str = "", numeric: Iterable[int] = ()
) -> str:
    """A table of HTML cells in a box that scrolls on its own; the first cell of a row is its header."""
    right = set(numeric)

    def cell(tag: str, column: int, html: str, scope: str = "") -> str:
        number = "num" if column in right else ""
        return f"<{tag}{_attributes({'scope': scope, 'class': number})}>{html}</{tag}>"

    header = "".join(cell("th", i, html, "col") for i, html in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(cell("th" if i == 0 else "td", i, c, "row" if i == 0 else "") for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    html = f'<table class="atlas-table {css}">{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'
    return scrolling(html, unescape(re.sub(r"<[^>]+>", "", caption)) or "Table")


def scrolling(html: str, label: str) -> str:
    """A box that scrolls sideways on its own, with a mouse, a finger or the keyboard."""
    return f'<div class="atlas-scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>'


def small(html: str) -> str:
    """A second line in a cell of a table, or nothing."""
    return f"<br><small>{html}</small>" if html else ""


def copyable(text: str, label: str) -> str:
    """A block of text with a button that copies it."""
    button = f'<button type="button" class="atlas-copy__button" data-atlas-copy aria-label="Copy {escape(label)}">'
    return f'<div class="atlas-copy">{button}Copy</button><pre tabindex="0">{escape(text.strip())}</pre></div>'


def front_matter(**fields: object) -> str:
    """YAML front matter with plain scalars, one a line."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---", "", ""])


KEPT_TAGS = frozenset(
    "table thead tbody tfoot tr th td caption b strong i em code pre sub sup br p ul ol li div span small hr".split()  # noqa: SIM905
)
KEPT_ATTRIBUTES = frozenset({"colspan", "rowspan", "scope"})
VOID_TAGS = frozenset({"br", "hr"})


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.open: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self.silent += 1
        elif tag in KEPT_TAGS and not self.silent:
            kept = {k: v or "" for k, v in attrs if k in KEPT_ATTRIBUTES}
            self.out.append(f"<{tag}{_attributes(kept)}>")
            if tag not in VOID_TAGS:
                self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.silent = max(0, self.silent - 1)
        elif tag in self.open:
            while True:  # close what the foreign HTML left open inside
                last = self.open.pop()
                self.out.append(f"</{last}>")
                if last == tag:
                    break

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.out.append(escape(data))


def clean_html(html: str) -> str:
    """Foreign HTML (a notebook's table) with its text and structure only: no script, style, link or handler."""
    cleaner = _Cleaner()
    cleaner.feed(html)
    cleaner.close()
    return "".join([*cleaner.out, *(f"</{tag}>" for tag in reversed(cleaner.open))])


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in values.items() if value)
