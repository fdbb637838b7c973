"""Small pieces of HTML that pages and notebooks share: text, prose, math, code, links and cleaned foreign HTML.

Pages are Markdown whose structured parts are HTML. What the knowledge says comes from strangers, so that nothing of it
is ever put into a page as it stands: templates escape plain text, Markdown goes through `prose` or `paragraph`, LaTeX
through `math`, addresses through `external`. Each yields `Html` made of a few known elements, which neither a browser
nor the Markdown of the page can read as anything else.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Mapping
from functools import cache
from html import unescape
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import Element, ParseError, fromstring

from latex2mathml.converter import Converter
from markdown import Markdown
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from ..knowledge.latex import LATER, MATH, latex_problem

CODE_SPAN = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.DOTALL)
UNKNOWN = re.compile(r"\\[A-Za-z]+")
"""A command that the converter passed through as text."""
UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">[^<]</mi>){2,}')
"""A word set upright letter by letter: as one identifier its letters stand close and it is read as one."""
PRIME = re.compile(r"<msup><mi>(\w)</mi><mi>(′+)</mi></msup>")
"""A letter with a prime: a superscript would raise the prime, which is high already, a second time."""

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]")
"""Characters that no text holds; two of them mark places inside the Markdown reader."""
ENTITIES = {ord(c): f"&#{ord(c)};" for c in "\"'\\`*_{}[]#|~^$!\n\r\t"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
}
"""Characters that HTML or Markdown could read as markup or as the end of it -> how they are written."""


class Html(Markup):
    """HTML that stands as it is; plain text that joins it (by `re.sub` too) or goes into a template is escaped."""

    @classmethod
    def escape(cls, s: Any, /) -> Self:
        """Plain text as HTML, for an element or an attribute, that Markdown leaves as it is; HTML stays as it is."""
        return cls(s.__html__() if hasattr(s, "__html__") else CONTROL.sub("", str(s)).translate(ENTITIES))


escape = Html.escape


def with_code(text: str) -> Html:
    """Plain text as `escape` gives it, but what stands between two backticks as code."""
    return Html(re.sub(r"&#96;(.+?)&#96;", r"<code>\1</code>", str(escape(text))))


def heading(text: str, level: int = 1, anchor: str = "") -> Html:
    """Plain text as a Markdown heading, which stands on one line and may have an anchor of our own."""
    mark = f" {{#{anchor}}}" if anchor else ""
    return Html(f"{'#' * level} {escape(' '.join(text.split()))}{mark}")


class MathError(ValueError):
    """LaTeX that cannot be turned into MathML."""


MATH_TAGS = frozenset(
    "math mrow mi mn mo mtext ms mspace msup msub msubsup munder mover munderover mfrac msqrt mroot mtable mtr mtd "  # noqa: SIM905
    "mlabeledtr mstyle mpadded mphantom menclose merror mmultiscripts mprescripts none".split()
)
MATH_ATTRIBUTES = frozenset(
    "display mathvariant stretchy fence form separator accent accentunder movablelimits largeop symmetric minsize "  # noqa: SIM905
    "maxsize linethickness columnalign rowalign columnspacing rowspacing columnlines rowlines frame width height depth "
    "lspace rspace voffset scriptlevel displaystyle mathsize mathcolor mathbackground notation open close".split()
)


@cache
def math(latex: str, *, display: bool = False) -> Html:
    """LaTeX as MathML, with the LaTeX as its alternative text.

    Raises MathError with the offending LaTeX.
    """
    if problem := latex_problem(latex):
        raise MathError(f"cannot read the LaTeX {latex!r}: {problem}")
    try:
        tree = Converter(display="block" if display else "inline").convert_to_element(latex)
        mathml = _mathml(tree, f' alttext="{escape(" ".join(latex.split()))}"')
    except Exception as error:  # the converter raises a dozen classes without a common base
        raise MathError(f"cannot read the LaTeX {latex!r}: {type(error).__name__}: {error}") from error
    mathml = PRIME.sub(r"<mi>\1\2</mi>", mathml)
    return Html(UPRIGHT.sub(lambda m: "<mi>" + re.sub(r"<[^>]+>", "", m[0]) + "</mi>", mathml))


def _mathml(element: Element, more: str = "") -> str:
    """An element of the converter as text. Its texts hold character references; the rest is the stranger's."""
    text = unescape(element.text or "")
    text = LATER.get(text, text)
    if unknown := UNKNOWN.match(text):
        raise MathError(f"{unknown[0]} is not known")
    inside = f"{escape(text)}{''.join(_mathml(child) for child in element)}"
    if element.tag not in MATH_TAGS:
        return inside
    kept = {name: value for name, value in element.attrib.items() if name in MATH_ATTRIBUTES}
    return f"<{element.tag}{attributes(kept)}{more}>{inside}</{element.tag}>"


def with_math(markdown: str) -> str:
    """Trusted Markdown with `$...$` and `$$...$$` replaced by MathML; code is left alone."""

    def convert(match: re.Match[str]) -> str:
        if match[1] is not None:
            return f"\n\n{display_math(match[1])}\n\n"
        return math(match[2].strip())

    pieces = CODE_SPAN.split(markdown)
    return "".join(p if i % 2 else MATH.sub(convert, p) for i, p in enumerate(pieces))


def display_math(latex: str) -> Html:
    """A formula on a line of its own."""
    return Html(f'<div class="atlas-math" tabindex="0">{math(latex.strip().strip("$"), display=True)}</div>')


TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
CLAUSE = re.compile(r"\\(?:to|longrightarrow|rightarrow|qquad)$")
"""What begins a line of its own in a cost model."""
JOINT = frozenset(["+", "-", "=", r"\ge", r"\le", r"\approx", r"\cdot"])
"""A line may break before these."""
SPACES = re.compile(r"^(?:\s|\\quad|\\qquad|\\[ ,;:!])+|(?:\s|\\quad|\\qquad|\\[ ,;:!])+$")


@cache
def cost_model(latex: str) -> Html:
    """A cost model, which may be long: a line for each of its clauses, which breaks before signs where it must.

    Browsers break no line inside a formula, so that each piece is a formula of its own; words stand as text.
    Raises MathError.
    """
    lines: list[list[Html]] = [[]]
    piece: list[str] = []

    def close() -> None:
        text = SPACES.sub("", "".join(piece))
        piece.clear()
        if text:
            text = f"{{}}{text}" if text[0] in "+-=" and lines[-1] else text
            formula = str(math(text, display=True)).replace(
                'display="block"', 'display="inline" displaystyle="true"', 1
            )
            lines[-1].append(Html(formula))

    tokens = TOKEN.findall(re.sub(r"\\(?:left|right|bigl|bigr)(?=[\[\](){}|\\])", "", " ".join(latex.split())))
    depth, before, at = 0, "", 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        depth += {"{": 1, "}": -1}.get(token, 0)
        free = depth == 0 and before not in ("_", "^")
        if free and token == "(" and (group := _group(tokens, at)):
            piece += tokens[at - 1 : group]
            at, token = group, ")"
        elif free and token == r"\text" and at < len(tokens) and tokens[at] == "{":
            end = next(
                i for i in range(at, len(tokens)) if tokens[at : i + 1].count("{") == tokens[at : i + 1].count("}")
            )
            words = " ".join("".join(tokens[at + 1 : end]).replace("\\ ", " ").split())
            close()
            if words.startswith("instead of") and lines[-1]:
                lines.append([])
            lines[-1].append(escape(words))
            at = end + 1
        elif free and (CLAUSE.match(token) or (token == r"\quad" and before == ",")):
            close()
            if lines[-1]:
                lines.append([])
            if token not in (r"\qquad", r"\quad"):
                lines[-1].append(Html("→"))
        elif free and token in JOINT and before not in ("", "(", "[", "{", ",", "="):
            close()
            piece.append(token)
        else:
            piece.append(token)
        if free and token in (",", ";"):
            close()
        before = before if token.isspace() else token
    close()
    return Html("").join(Html("<p>{}</p>").format(Html(" ").join(line)) for line in lines if line)


def _group(tokens: list[str], start: int, most: int = 24) -> int:
    """After the closing bracket of a group that begins before `start`, if it is short enough to stay on one line."""
    depth = 1
    for at, token in enumerate(tokens[start : start + most], start):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth == 0:
            return at + 1
    return 0


PROSE_INLINE = frozenset({"strong", "em", "code", "sub", "sup", "br", "a"})
PROSE_TAGS = PROSE_INLINE | frozenset("p pre ul ol li blockquote hr table thead tbody tr th td".split())  # noqa: SIM905
MARKS = re.compile(r"[*_`\[\]<>&\\\n]|  ")
"""Without any of these a text on one line has no markup."""
HELD = "\ue000{}\ue001"
"""Holds the place of a formula while the Markdown around it is read."""
HOLDS = re.compile("\ue000([0-9]{1,6})\ue001")


@cache
def prose(markdown: str) -> Html:
    """Markdown from strangers as HTML blocks: paragraphs, lists, emphasis, code, tables, links and math, and no more.

    Raises MathError.
    """
    return Html(f'<div class="atlas-prose">{_prose(markdown, inline=False)}</div>')


@cache
def paragraph(markdown: str) -> Html:
    """Markdown from strangers as HTML inside a line: emphasis, code, links and math, and no more.

    Raises MathError.
    """
    return Html(_prose(" ".join(markdown.split()), inline=True))


def _prose(markdown: str, *, inline: bool) -> str:
    formulas: list[tuple[str, str]] = []

    def hold(match: re.Match[str]) -> str:
        apart = match[1] is not None and not inline
        formulas.append((match[0], display_math(match[1]) if apart else math((match[1] or match[2]).strip())))
        held = HELD.format(len(formulas) - 1)
        return f"\n\n{held}\n\n" if apart else held

    text = re.sub("[\ue000\ue001]", "", CONTROL.sub("", markdown))
    text = "".join(p if i % 2 else MATH.sub(hold, p) for i, p in enumerate(CODE_SPAN.split(text)))
    if inline and not MARKS.search(text):
        html = str(escape(text))
    else:
        cleaner = _Cleaner(PROSE_INLINE if inline else PROSE_TAGS, formulas)
        html = cleaner.clean(_reader(inline).reset().convert(text))
    html = HOLDS.sub(lambda m: _held(m, formulas)[1], html)
    return re.sub(r'<p>(<div class="atlas-math" tabindex="0">.*?</div>)</p>', r"\1", html)


def _held(match: re.Match[str], formulas: list[tuple[str, str]]) -> tuple[str, str]:
    """The formula that is held there, as it was written and as MathML; nothing for a mark that is none of ours."""
    number = int(match[1])
    return formulas[number] if number < len(formulas) else ("", "")


@cache
def _reader(inline: bool) -> Any:
    """A Markdown reader without raw HTML, without references to other places and, inline, without blocks."""
    reader = Markdown(extensions=[] if inline else ["sane_lists", "tables", "fenced_code"])
    reader.preprocessors.deregister("html_block")
    reader.inlinePatterns.deregister("html")
    reader.parser.blockprocessors.deregister("reference")
    reader.ESCAPED_CHARS = [*reader.ESCAPED_CHARS, "$"]
    if inline:
        for name in ("indent", "code", "hashheader", "setextheader", "hr", "olist", "ulist", "quote"):
            reader.parser.blockprocessors.deregister(name)
    return reader


def code(source: str, language: str = "python", *, line_prefix: str = "") -> Html:
    """Highlighted source. With `line_prefix`, line n is an anchor `<line_prefix>-n`."""
    formatter = HtmlFormatter(cssclass="highlight", wrapcode=True, linespans=line_prefix or None)
    html = highlight(source.rstrip() + "\n", get_lexer_by_name(language, stripnl=False), formatter)
    # A blank line would end the raw HTML block for some Markdown readers.
    return Html(re.sub(r"\n(?=\n)", "\n&#8203;", html.strip()) if not line_prefix else html.strip())


def code_lines(source: str, line_prefix: str) -> list[Html]:
    """Highlighted Python, a line each; line n is an anchor `<line_prefix>-n`."""
    formatter = HtmlFormatter(nowrap=True)
    html = highlight(source, get_lexer_by_name("python", stripnl=False), formatter).split("\n")
    # A blank line would end the raw HTML block for some Markdown readers.
    return [Html(f'<span id="{line_prefix}-{n}">{line or "&#8203;"}</span>') for n, line in enumerate(html, 1)]


@cache
def href(here: str, there: str, anchor: str = "") -> Html:
    """Relative URL from the page at path `here` to the page at path `there` (both end in .md), as built: .html.

    Paths and anchors are our own, made of ids.
    """
    fragment = f"#{anchor}" if anchor else ""
    if here == there and anchor:
        return Html(fragment)
    url = posixpath.relpath(there, posixpath.dirname(here) or ".")
    return Html(re.sub(r"\.md$", ".html", url) + fragment)


def link(here: str, there: str, text: str, *, anchor: str = "", title: str = "", css: str = "") -> Html:
    """`<a>` between two pages; `text` is plain, or `Html`."""
    return Html(f'<a href="{href(here, there, anchor)}"{attributes({"title": title, "class": css})}>{escape(text)}</a>')


def safe(url: str) -> str | None:
    """The address if it leads to a page of the web or to a mailbox, else None."""
    url = re.sub(r"[\x00-\x20\x7f-\x9f]", "", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    web = parts.scheme in ("http", "https") and bool(parts.hostname)
    return url if web or (parts.scheme == "mailto" and "@" in parts.path) else None


def external(url: str, text: str) -> Html:
    """`<a>` to another site; `text` is plain. An address that is none of the web is left out."""
    address = safe(url)
    return Html(f'<a href="{escape(address)}" rel="noopener">{escape(text)}</a>') if address else escape(text)


def arxiv(identifier: str) -> Html:
    """Link to a preprint."""
    return external(f"https://arxiv.org/abs/{quote(identifier)}", f"arXiv:{identifier}")


def doi(identifier: str) -> Html:
    """Link to a DOI."""
    return external(f"https://doi.org/{quote(identifier, safe='/:;().-_')}", f"doi:{identifier}")


def scrolling(html: str, label: str) -> Html:
    """A box around HTML that scrolls sideways on its own, with a mouse, a finger or the keyboard."""
    return Html(f'<div class="atlas-scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>')


def front_matter(**fields: object) -> str:
    """YAML front matter. Texts are plain, and escaped here: themes put them into their templates as they are."""

    def safe_value(value: object) -> object:
        return escape(" ".join(value.split())) if isinstance(value, str) else value

    lines = [
        f"{name}: {json.dumps(safe_value(value), ensure_ascii=False)}"
        for name, value in fields.items()
        if value is not None
    ]
    return "\n".join(["---", *lines, "---", "", ""])


KEPT_TAGS = frozenset(
    "table thead tbody tfoot tr th td caption b strong i em code pre sub sup br p ul ol li div span small hr".split()  # noqa: SIM905
)
KEPT_ATTRIBUTES = frozenset({"colspan", "rowspan", "scope"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
VOID_TAGS = frozenset({"br", "hr"})


class _Cleaner(HTMLParser):
    """Keeps known elements and their text, closes what is left open, and drops everything else."""

    def __init__(self, tags: Collection[str], formulas: list[tuple[str, str]] | None = None) -> None:
        super().__init__(convert_charrefs=True)
        self.tags = tags
        self.formulas = formulas or []
        self.out: list[str] = []
        self.open: list[str] = []
        self.silent = 0

    def clean(self, html: str) -> str:
        self.feed(html)
        self.close()
        return "".join([*self.out, *(f"</{tag}>" for tag in reversed(self.open))])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self.silent += 1
        if self.silent:
            return
        if tag == "img":
            self.handle_data(dict(attrs).get("alt") or "")
        tag = "p" if tag in HEADINGS else tag
        if tag not in self.tags:
            return
        kept = {k: v or "" for k, v in attrs if k in KEPT_ATTRIBUTES}
        if tag == "a":
            target = HOLDS.sub(lambda m: _held(m, self.formulas)[0], dict(attrs).get("href") or "")
            if (address := safe(target)) is None or "a" in self.open:
                return
            kept = {"href": address, "rel": "noopener"}
        self.out.append(f"<{tag}{attributes(kept)}>")
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        tag = "p" if tag in HEADINGS else tag
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
            self.out.append(escape(data) if "pre" in self.open else escape(re.sub(r"\s+", " ", data)))


def clean_html(html: str) -> Html:
    """Foreign HTML (a notebook's table) with its text and structure only: no script, style, link or handler."""
    return Html(_Cleaner(KEPT_TAGS).clean(html))


def attributes(values: Mapping[str, str]) -> Html:
    """Attributes of an element, those with a value; their names are our own."""
    return Html("".join(f' {name}="{escape(value)}"' for name, value in values.items() if value))


SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"
SVG_TAGS = frozenset(
    "svg g defs symbol use path rect circle ellipse line polyline polygon text tspan title desc image clipPath mask "  # noqa: SIM905
    "pattern marker linearGradient radialGradient stop style".split()
)
SVG_STYLES = frozenset(
    "fill fill-opacity fill-rule stroke stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin "  # noqa: SIM905
    "stroke-miterlimit stroke-opacity stroke-width opacity color clip-path clip-rule mask marker-start marker-mid "
    "marker-end stop-color stop-opacity font font-family font-size font-stretch font-style font-variant font-weight "
    "text-anchor text-decoration text-rendering dominant-baseline alignment-baseline baseline-shift letter-spacing "
    "word-spacing visibility shape-rendering image-rendering paint-order vector-effect mix-blend-mode isolation "
    "transform transform-origin".split()
)
SVG_ATTRIBUTES = SVG_STYLES | frozenset(
    "id d points x y x1 y1 x2 y2 cx cy r rx ry fx fy dx dy rotate width height offset viewBox preserveAspectRatio "  # noqa: SIM905
    "gradientUnits gradientTransform spreadMethod patternUnits patternContentUnits patternTransform clipPathUnits "
    "maskUnits maskContentUnits markerWidth markerHeight markerUnits orient refX refY textLength lengthAdjust".split()
)
SVG_DEPTH = 60
DATA_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
INNER = re.compile(r"#[\w.:-]+")
REACHES = re.compile(
    r"""url\((?!\s*["']?#[\w.:-]+["']?\s*\))|\\|@|/\*|[a-z-]*image\(|image-set|src\(|expression|script""", re.I
)
"""What a value of a style must not hold: it may lead out of the figure, or hide that it does."""
EVERYWHERE = re.compile(r"\s*\*\s*\{([^{}<]*)\}\s*")
"""The one rule of matplotlib's figures, which holds for every element of them."""


class SvgError(ValueError):
    """An image that is no SVG."""


def clean_svg(svg: str) -> str:
    """A foreign SVG (a notebook's figure) with its shapes and text only: no script, handler, link or foreign element.

    Raises: SvgError.
    """
    start = svg.find("<svg")
    if start < 0:
        raise SvgError("it holds no <svg")
    try:
        root = fromstring(svg[start:])  # what declares entities stands before it, and is not read
    except (ParseError, ValueError, RecursionError) as error:
        raise SvgError(f"it is no XML: {error}") from error
    return _svg(root, 0)


def _svg(element: Element, depth: int) -> str:
    """An element as text; nothing for one that is not known."""
    tag = str(element.tag).removeprefix(SVG)
    if tag not in SVG_TAGS or (depth == 0) != (tag == "svg"):
        if depth == 0:
            raise SvgError("its first element is no <svg>")
        return ""
    if depth > SVG_DEPTH:
        raise SvgError(f"nested more than {SVG_DEPTH} deep")
    if tag == "style":
        rule = EVERYWHERE.fullmatch(element.text or "")
        return f"<style>*{{{styles}}}</style>" if rule and (styles := _styles(rule[1])) else ""
    kept = []
    for name, value in element.attrib.items():
        if name in (XLINK, "href"):
            if INNER.fullmatch(value) or (tag == "image" and DATA_IMAGE.fullmatch(value)):
                kept.append(("xlink:href", value))
        elif name == "style":
            kept.append((name, _styles(value)))
        elif name in SVG_ATTRIBUTES and not REACHES.search(value):
            kept.append((name, value))
    written = "".join(f' {name}="{_xml(value)}"' for name, value in kept if value)
    inside = _xml(element.text or "")
    for child in element:
        inside += _svg(child, depth + 1) + _xml(child.tail or "")
    return f"<{tag}{written}>{inside}</{tag}>" if inside or depth == 0 else f"<{tag}{written}/>"


def _styles(text: str) -> str:
    """The declarations of a style that draw, and reach nothing."""
    pairs = [
        (name.strip().lower(), value.strip()) for name, _, value in (one.partition(":") for one in text.split(";"))
    ]
    return "; ".join(f"{name}: {value}" for name, value in pairs if name in SVG_STYLES and not REACHES.search(value))


def _xml(text: str) -> str:
    """Text inside of XML, which ends no block of Markdown."""
    for sign, stands in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(sign, stands)
    return re.sub(r"\n\s*\n", "\n", CONTROL.sub("", text))
