"""The e-mails of the SpamAssassin public corpus (asset `spam-assassin`).

**What the text of a mail is here**: its subject, a line break, and its body, both with every run of white space made
one space. The body is the text of all its parts of type text/plain that are no attachments; if those are empty, of its
parts of type text/html, less comments, scripts, styles and tags. All other headers are left out: they name the servers
that a mail passed, which gives away where it was collected. Counts of duplicates depend on this definition.
"""

from __future__ import annotations

import codecs
import email
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from itertools import islice

from reference_impls.data import assets

SPAM = {"easy-ham-1": False, "easy-ham-2": False, "hard-ham-1": False, "spam-1": True, "spam-2": True}


@dataclass(frozen=True)
class Mail:
    """A mail. `source` is the folder of the corpus that it is from, `file` its name there."""

    text: str
    spam: bool
    source: str
    file: str


def mails() -> list[Mail]:
    """All 6,046 mails, sorted by folder and name: 4,150 wanted ones (ham) and 1,896 spam.

    Licence: ODC-PDDL 1.0 and CC0 1.0 (README of the package that carries the corpus).
    Raises: MissingAsset.
    """
    return [mail for folder in sorted(SPAM) for mail in _mails_of(folder)]


def _mails_of(folder: str) -> Iterator[Mail]:
    """The mails of one folder by name, each read when it is asked for."""
    for file in sorted((assets.path("spam-assassin") / folder).glob("*.txt")):
        yield Mail(text_of(file.read_bytes()), SPAM[folder], folder, file.name)


def distinct(mails: Sequence[Mail], keys: Iterable[Sequence[int]]) -> dict[tuple[int, ...], bool]:
    """Key of each mail, such as its first token ids -> whether it is spam; keys that bear both labels are left out.

    A mail with the key of another would be answered by heart where one of them is trained on and the other tested.
    """
    labels: dict[tuple[int, ...], set[bool]] = {}
    for mail, key in zip(mails, keys, strict=True):
        labels.setdefault(tuple(key), set()).add(mail.spam)
    return {key: spam for key, (spam, *others) in labels.items() if not others}


def legible_mails(folders: Mapping[str, int] | None = None) -> list[Mail]:
    """The mails that hold at least one letter or digit: all, or the first so many of each of these folders."""
    wanted: Mapping[str, int | None] = dict.fromkeys(sorted(SPAM)) if folders is None else folders
    return [
        mail
        for folder, number in wanted.items()
        for mail in islice((mail for mail in _mails_of(folder) if normalised(mail.text)), number)
    ]


def exact_copies(mails: Sequence[Mail]) -> dict[str, int]:
    """How many mails repeat an earlier one exactly, under four definitions of what a mail is."""
    folder = assets.path("spam-assassin")
    definitions: dict[str, Callable[[Mail], bytes | str]] = {
        "file": lambda mail: (folder / mail.source / mail.file).read_bytes(),
        "subject and body": lambda mail: mail.text,
        "body": lambda mail: mail.text.partition("\n")[2],
        "normalised text": lambda mail: normalised(mail.text),
    }
    return {name: len(mails) - len({content(mail) for mail in mails}) for name, content in definitions.items()}


def text_of(raw: bytes) -> str:
    """The text of a raw e-mail, as the module defines it. Never fails: what cannot be decoded is replaced."""
    message = email.message_from_bytes(raw)
    parts = [part for part in message.walk() if not part.is_multipart() and not _is_attachment(part)]
    # A part of type multipart that is none is a broken one, whose parts the parser did not find.
    body = "\n".join(_decoded(p) for p in parts if p.get_content_type().startswith(("text/plain", "multipart/")))
    if not body.strip():
        body = "\n".join(strip_html(_decoded(p)) for p in parts if p.get_content_type().startswith("text/html"))
    return f"{_one_line(_header(message, 'Subject'))}\n{_one_line(body)}"


def normalised(text: str) -> str:
    """Lower-case letters and digits of a text, each run of anything else made one space."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def strip_html(text: str) -> str:
    """HTML -> its text: comments, scripts, styles and tags become a space, entities become characters."""
    text = re.sub(r"(?s)<!--.*?(-->|$)", " ", text)
    text = re.sub(r"(?is)<(script|style)\b.*?(</\1\s*>|$)", " ", text)
    return html.unescape(re.sub(r"(?s)<[a-zA-Z/!?][^>]*>?", " ", text))


def _is_attachment(part: Message) -> bool:
    return str(part.get("Content-Disposition", "")).strip().lower().startswith("attachment")


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return _to_text(payload if isinstance(payload, bytes) else b"", part.get_content_charset())


def _header(message: Message, name: str) -> str:
    """A header with its encoded words (RFC 2047) decoded; as it is, if they are broken."""
    value = str(message.get(name, ""))
    try:
        pieces = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(p if isinstance(p, str) else _to_text(p, charset) for p, charset in pieces)


def _to_text(raw: bytes, charset: str | None) -> str:
    """Decode with the charset named, if Python knows it as one of text; else as UTF-8, else as Latin-1."""
    if charset is not None and charset.isascii():
        try:
            return raw.decode(codecs.lookup(charset).name, errors="replace")
        except (LookupError, ValueError):
            pass
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _one_line(text: str) -> str:
    return " ".join(text.split())
