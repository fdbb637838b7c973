"""Knowledge as an attacker would write it: every free text of every file holds markup that must not come alive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tests import site_fixture
from tools.knowledge import Knowledge
from tools.knowledge.source import read_source

M = TypeVar("M", bound=BaseModel)

RUN = "window.__pwned=1"
"""What an attacker's script does; a page on which it ran has been taken over."""
WORD = "zebracrossing"
"""Stands in every text, so that a search finds the pages."""
FAR = "https://evil.example"
FILE = "CITATION.cff"
"""A file that an include would pull into a page."""
SHORT = f'{WORD}"><script>{RUN}</script>'
"""For texts of limited length."""
PAYLOADS = (
    f"{WORD} <script>{RUN}</script> <img src=x onerror='{RUN}'> <svg onload={RUN}> <b onmouseover={RUN}>b</b>",
    (
        f"{WORD}\n\n<script>{RUN}</script>\n\n<div markdown='1' onclick='{RUN}'>\n\n# x\n\n</div>\n\n"
        f"<iframe srcdoc='<script>{RUN}</script>'></iframe>\n\n<form action={FAR}><button>b</button></form>"
    ),
    (
        f"{WORD} [a](javascript:{RUN}) [b]( JaVaScRiPt:{RUN} ) [c](&#106;avascript&colon;{RUN}) [d](java\tscript:{RUN})"
        f" [e](data:text/html,<script>{RUN}</script>) [f](vbscript:x) [g](//evil.example/x) <javascript:{RUN}>"
    ),
    f"{WORD} [ref] [text][ref] [Papers]\n\n[ref]: javascript:{RUN}\n[Papers]: javascript:{RUN} 'title'\n",
    f"{WORD}\" onclick=\"{RUN}\" x=\"' onfocus='{RUN}' autofocus tabindex=1 x='><script>{RUN}</script>",
    (
        rf"{WORD} $\text{{<script>{RUN}</script>}}$ $\href{{javascript:{RUN}}}{{x}}$ $\class{{a' onclick='{RUN}}}{{x}}$"
        rf" $\style{{background:url({FAR}/s)}}{{y}}$ $a<img src=x onerror={RUN}>$"
        rf" $$\hbox{{<img src=x onerror={RUN}>}}$$"
    ),
    (
        f"{WORD} ![i]({FAR}/i.png) ![j](javascript:{RUN}) <!-- --><script>{RUN}</script> <!-->"
        " <img src=//evil.example/k>"
    ),
    f'{WORD}\n\n--8<-- "{FILE}"\n\n--8<--\n{FILE}\n--8<--\n\n;--8<-- "{FILE}"\n\n-8<- "{FILE}"',
    (
        f'{WORD}{{: onclick="{RUN}" style="background:url({FAR}/a)" }}\n{{: #search .md-overlay onclick={RUN} }}\n\n'
        f'# h {{: onclick={RUN} }}\n\n!!! note "<script>{RUN}</script>"\n    <script>{RUN}</script>'
    ),
    (
        f"---\ntitle: x\nhide: [toc]\ntemplate: evil.html\n---\n{WORD}\n---\n\n```html onclick={RUN}\n"
        f"<script>{RUN}</script>\n```\n\n~~~{{ .x onclick={RUN} }}\ny\n~~~"
    ),
    (
        f"{WORD} `</code><script>{RUN}</script>` ``` <script>{RUN}</script> ``` "
        "\x02wzxhzdk:0\x03 \x02klzzwxh:0001\x03 \ue0000\ue001 &#xe000;1&#xe001;"
    ),
    (
        f"{WORD} {{{{ config.site_name }}}} {{% raw %}} %3Cscript%3E &lt;script&gt;{RUN}&lt;/script&gt; "
        f"&#60;img src=x onerror={RUN}&#62; \u2028<script>{RUN}</script>\u2029 \ufeff<script>{RUN}</script>"
    ),
    (
        f"{WORD}\n\n| a | b |\n|---|---|\n| <script>{RUN}</script> | [x](javascript:{RUN}) |\n\n"
        f"- <script>{RUN}</script>\n\n> <img src=x onerror={RUN}>\n\n"
        f"<a href='javascript:{RUN}'>x</a> <a\nhref=javascript:{RUN}>y</a>"
    ),
)
"""The checks would refuse most of these; the pages must hold without them."""

SOURCE = f'''"""{SHORT}"""
# --8<-- "{FILE}"
def match(x): return "</code></pre><script>{RUN}</script>"

class TokenMerging:
    execution = "real"
    waivers = {{"no-drift": '{SHORT}'}}
'''


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all strings in nested dicts and lists."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for n, item in enumerate(value):
            yield from leaves(item, (*path, n))


def put(value: Any, path: tuple[Any, ...], text: str) -> Any:
    """A copy of nested dicts and lists with another string at the path."""
    if not path:
        return text
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], text)
    return copy


def attacked(model: M, first: int, **fixed: Any) -> M:
    """The model with an attack in every text that its schema leaves free, beginning with the payload number `first`."""
    data: Any = model.model_dump(by_alias=True, mode="json", exclude_none=True) | fixed
    for n, path in enumerate(list(leaves(data))):
        for text in (PAYLOADS[(first + n) % len(PAYLOADS)], SHORT):
            changed = put(data, path, text)
            try:
                type(model).model_validate(changed)
            except ValidationError:
                continue
            data = changed
            break
    return type(model).model_validate(data)


def knowledge(root: Path) -> Knowledge:
    """An atlas whose every text attacks: each text with each payload. The implementations are written below `root`."""
    entries, papers, results, sources, cases, statements = {}, {}, {}, {}, [], []
    count = len(PAYLOADS)
    for n in range(count):
        id_, key = f"attack-{n}", f"attack-2020-{n}"
        module = f"reference_impls/techniques/attack_{n}.py"
        (root / module).parent.mkdir(parents=True, exist_ok=True)
        (root / module).write_text(SOURCE, encoding="utf-8")
        links = [{"type": "composes-with", "target": f"attack-{(n + 1) % count}", "note": "x"}]
        fixed = {"id": id_, "relations": links, "papers": [{"key": key, "role": "introduces"}], "invariant": "x"}
        fixed |= {"implementation": f"reference_impls.techniques.attack_{n}:TokenMerging", "cost_model": "x"}
        status = {0: "draft", 1: "deprecated"}.get(n, "stable")
        entry = attacked(site_fixture.entry(**fixed, status=status), n)
        entries[id_] = entry.model_copy(update={"cost_model": rf"\text{{{SHORT}}}", "algorithm": entry.algorithm})
        claims = [claim | {"technique": id_} for claim in site_fixture.PAPER.model_dump(mode="json")["claims"]]
        for claim in claims:
            claim["setting"] = {"task": "x", "dataset": "x", "model": "x", "batch": "x"}
            claim["locator"] = dict.fromkeys(("section", "table", "figure", "equation", "page", "file"), "x")
            claim["seen_at"] = "x"
        claims[0]["check"] |= {"note": "x"}
        code = [{"url": f"https://x.org/'onclick='{RUN}", "official": True, "licence": "x"}]
        ids = {"doi": f"10.1000/\"'><img{n}", "url": f"https://x.org/a'onclick='{RUN}'{n}", "arxiv": f"2001.{n:05}"}
        papers[key] = attacked(site_fixture.PAPER, n, key=key, claims=claims, code=code, ids=ids)
        record = attacked(site_fixture.record(technique=id_, extra={"x": "y"}), n)
        measured = record.redundancy.model_copy(update={"where": {SHORT: 0.4, "b": 0.5}, "null": {SHORT: 0.1}})
        points = tuple(point.model_copy(update={"knobs": {SHORT: SHORT}}) for point in record.points)
        texts = {"knobs": (SHORT,), "points": points, "redundancy": measured, "versions": {SHORT: SHORT}}
        results[id_] = [record.model_copy(update=texts)]
        source = read_source(root, id_, entries[id_].implementation, [])
        assert source is not None
        sources[id_] = source
        named = {"id": f"case-{n}", "entries": [id_], "papers": [key]}
        cases.append(attacked(site_fixture.HARD_CASE, n, **named))
        support = [{"claim": f"{key}#c1", "note": "x"}, {"entry": id_, "note": "x"}, {"paper": key}]
        support.append({"result": f"{id_}/photos"})
        statements.append({"id": f"statement-{n}", "title": "x", "statement": "x", "support": support})
    made = [
        attacked(known, 3, statements=statements) for known in (site_fixture.PRINCIPLES, site_fixture.OPEN_PROBLEMS)
    ]
    return Knowledge(
        root=root,
        axes=attacked(site_fixture.AXES, 0),
        entries=entries,
        papers=papers,
        hard_cases=tuple(cases),
        principles=made[0],
        open_problems=made[1],
        results=results,
        sources=sources,
    )
