"""Bibliographic data from arXiv and from the registries of DOIs, where there is a network. Nothing is guessed.

arXiv answers over OAI-PMH in its own metadata format, in which family names stand apart from given names. A DOI is
resolved with a request for CSL-JSON (content negotiation), which Crossref, DataCite and others answer.
"""

from __future__ import annotations

import html
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any, Final

from reference_impls import strict

from ..knowledge.text import one_line

ARXIV: Final = "https://oaipmh.arxiv.org/oai"
DOI: Final = "https://doi.org"
SECONDS: Final = 10.0
PREPRINT: Final = "arXiv"
"""The venue of what arXiv says; the year beside it is the one in which the preprint appeared."""
MAX_BYTES: Final = 2_000_000
_OAI = "{http://www.openarchives.org/OAI/2.0/}"
_FIELDS = "{http://arxiv.org/OAI/arXiv/}"


class LookupFailed(Exception):
    """Nothing could be looked up; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a registry says of a paper. What it does not say is absent."""

    source: str
    """Where it was read, for `verified`."""
    title: str | None = None
    authors: tuple[dict[str, str], ...] = ()
    """`family` and, where known, `given`."""
    year: int | None = None
    venue: str | None = None
    remark: str = ""
    """What else the registry says, which somebody has to look into."""


def bare_arxiv(text: str) -> str:
    """`https://arxiv.org/abs/2210.09461v2` -> `2210.09461`."""
    text = re.sub(r"^(https?://)?(www\.)?(arxiv\.org/(abs|pdf|html)/|arxiv:\s*)", "", text.strip(), flags=re.IGNORECASE)
    return re.sub(r"(v\d+)?(\.pdf)?/?$", "", text)


def bare_doi(text: str) -> str:
    """`https://doi.org/10.1038/218019a0` -> `10.1038/218019a0`."""
    return re.sub(r"^(https?://(dx\.)?doi\.org/|doi:\s*)", "", text.strip(), flags=re.IGNORECASE)


def arxiv(arxiv_id: str, *, base: str = ARXIV, seconds: float = SECONDS) -> Found:
    """What arXiv says of a paper: title, authors, and the year in which it appeared there. Raises LookupFailed."""
    query = {"verb": "GetRecord", "metadataPrefix": "arXiv", "identifier": f"oai:arXiv.org:{arxiv_id}"}
    content = _get(f"{base}?{urllib.parse.urlencode(query)}", "application/xml", seconds)
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise LookupFailed(f"arXiv answers with something else than XML: {error}") from error
    record = root.find(f".//{_FIELDS}arXiv")
    if record is None:
        said = root.findtext(f"{_OAI}error", "")
        raise LookupFailed(f"arXiv has no record of {arxiv_id}{f': {one_line(said)}' if said else ''}")
    if one_line(record.findtext(f"{_FIELDS}id", "")) != arxiv_id:
        raise LookupFailed(f"arXiv answers with another paper than {arxiv_id}")
    created = re.match(r"\d{4}", record.findtext(f"{_FIELDS}created", ""))
    people = [
        _person(a.findtext(f"{_FIELDS}keyname"), a.findtext(f"{_FIELDS}forenames"), a.findtext(f"{_FIELDS}suffix"))
        for a in record.iterfind(f"{_FIELDS}authors/{_FIELDS}author")
    ]
    later = [one_line(record.findtext(_FIELDS + name, "")) for name in ("journal-ref", "doi", "comments")]
    return Found(
        source="arXiv record",
        title=one_line(record.findtext(f"{_FIELDS}title", "")) or None,
        authors=tuple(person for person in people if person),
        year=int(created.group()) if created else None,
        venue=PREPRINT,
        remark="; ".join(filter(None, later)),
    )


def doi(name: str, *, base: str = DOI, seconds: float = SECONDS) -> Found:
    """What the registry of a DOI says of a publication. Raises LookupFailed."""
    kind = "application/vnd.citationstyles.csl+json"
    content = _get(f"{base}/{urllib.parse.quote(name, safe='/()')}", kind, seconds)
    try:
        data = strict.loads(content)
    except ValueError as error:
        raise LookupFailed("the registry answers with something else than JSON") from error
    if not isinstance(data, dict) or str(data.get("DOI", "")).lower() != name.lower():
        raise LookupFailed(f"the registry answers with another publication than {name}")
    people = [_person(a.get("family") or a.get("literal") or a.get("name"), a.get("given"), a.get("suffix"))
              for a in _list(data.get("author")) if isinstance(a, dict)]  # fmt: skip
    return Found(
        source="record of the DOI",
        title=_text(data.get("title")) or None,
        authors=tuple(person for person in people if person),
        year=_year(data),
        venue=_venue(data),
    )


def _get(url: str, accept: str, seconds: float) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "redundancy-atlas"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        reason = "there is no such record" if error.code == 404 else f"status {error.code}"
        raise LookupFailed(f"{urllib.parse.urlsplit(url).netloc}: {reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise LookupFailed(f"{urllib.parse.urlsplit(url).netloc} cannot be reached: {one_line(str(cause))}") from error
    if len(content) > MAX_BYTES:
        raise LookupFailed(f"{urllib.parse.urlsplit(url).netloc} answers with more than {MAX_BYTES:,} bytes")
    return content


def _person(family: Any, given: Any, suffix: Any = None) -> dict[str, str]:
    names = {"family": " ".join(filter(None, (_text(family), _text(suffix)))), "given": _text(given)}
    return {key: name for key, name in names.items() if name} if names["family"] else {}


def _year(data: dict[str, Any]) -> int | None:
    for key in ("issued", "published-print", "published-online"):
        parts = data.get(key)
        dates = _list(parts.get("date-parts")) if isinstance(parts, dict) else []
        first = _list(dates[0]) if dates else []
        if first and str(first[0]).isdigit():
            return int(first[0])
    return None


def _venue(data: dict[str, Any]) -> str | None:
    """`Nature 218(5136), 19-22`, as far as the registry says so."""
    name = _text(data.get("container-title"))
    volume, issue, page = (_text(data.get(key)) for key in ("volume", "issue", "page"))
    if not name:
        return None
    number = f" {volume}{f'({issue})' if issue else ''}" if volume else ""
    return f"{name}{number}{f', {page}' if volume and page else ''}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """Text of a field, without the markup and the entities that registries leave in it."""
    if isinstance(value, list):
        value = value[0] if value else ""
    if not isinstance(value, (str, int)):
        return ""
    return one_line(html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", str(value))))
