"""Checks of the built HTML: every internal link and anchor leads somewhere, and nothing is loaded from another host."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src",
           "audio": "src", "object": "data", "embed": "src", "use": "href", "image": "href",
           "form": "action"}  # fmt: skip
"""Element -> the attribute whose address a browser opens by itself (or sends a form to)."""
HARMLESS_REL = {"canonical", "alternate", "next", "prev", "edit"}


@dataclass
class _Seen(HTMLParser):
    ids: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    targets: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        for name in {values.get("id"), values.get("name") if tag == "a" else None} - {None, ""}:
            (self.doubled if name in self.ids else self.ids).add(str(name))
        if tag == "a" and "href" in values:
            self.targets.append(values["href"])
        if (attribute := LOADING.get(tag)) and not (tag == "link" and values.get("rel") in HARMLESS_REL):
            address = values.get(attribute) or values.get(f"xlink:{attribute}") or ""
            if address and not address.startswith(("data:", "#")):
                self.loaded.append(address)


def check(site: Path) -> list[str]:
    """Every fault of a built site as a line: broken links and anchors, doubled ids, addresses on other hosts."""
    pages = {p.relative_to(site).as_posix(): p for p in sorted(site.rglob("*.html"))}
    seen: dict[str, _Seen] = {}
    for name, path in pages.items():
        seen[name] = _Seen()
        seen[name].feed(path.read_text(encoding="utf-8"))
    faults = []
    for name, page in seen.items():
        faults += [f"{name}: the id {one!r} occurs twice" for one in sorted(page.doubled)]
        for address in [*page.targets, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded:
                    faults.append(f"{name}: loads {address} from another host")
                continue
            if name == "404.html":
                continue  # served for any path, so its links are absolute
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = name if not parts.path else "index.html" if target == "." else target
            if not (site / target).exists():
                faults.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in seen and unquote(parts.fragment) not in seen[target].ids:
                faults.append(f"{name}: {address} names an anchor that is not on {target}")
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        faults += [
            f"{sheet.relative_to(site)}: loads {url} from another host"
            for url in (part.split(")")[0].strip("'\" ") for part in text.split("url(")[1:])
            if url.startswith(("http:", "https:", "//"))
        ]
    return faults
