"""Subject lines of mails, each thread once."""

import json
from pathlib import Path

import pytest

from qkv.data.spam import Labelled
from qkv.data.spam_subjects import read, subject_of, topic_of
from qkv.errors import CheckpointError


def mail(subject: str) -> str:
    return f"From: a@example.org\nSubject: {subject}\nTo: b@example.org\n\nSubject: not this one\n"


def put(folder: Path, name: str, subject: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"id": "1", "text": mail(subject)}))


def test_a_thread_once_and_a_line_as_it_was_sent(tmp_path: Path) -> None:
    put(tmp_path, "easy-ham-1/1.json", "[ILUG] Re: A question")
    put(tmp_path, "easy-ham-1/2.json", "RE: [ILUG] a question!")
    put(tmp_path, "spam-2/1.json", "Free money       eIExvv")
    put(tmp_path, "spam-2/2.json", "FREE MONEY             7631qrs")
    put(tmp_path, "spam-2/3.json", "!!!")
    assert read(tmp_path) == [Labelled("[ILUG] Re: A question", "ham"), Labelled("Free money eIExvv", "spam")]


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        ("=?no-such-set?q?abc?=", "=?no-such-set?q?abc?="),
        ("  plain  ", "plain"),
    ],
)
def test_encoded_subjects(subject: str, said: str) -> None:
    assert subject_of(mail(subject)) == said


def test_topics() -> None:
    same = ["A melon", "Re: A melon", "Re[2]: FWD: a MELON?", "[list] Re: [other] A melon", "A melon     xyz"]
    assert {topic_of(subject) for subject in same} == {"amelon"}
    assert topic_of("A\n    melon") == "amelon"  # a folded line is no stamp
    assert topic_of("Reply: A melon") != "amelon"


def test_a_broken_corpus(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no mails"):
        read(tmp_path)
    (tmp_path / "spam-1").mkdir()
    (tmp_path / "spam-1" / "1.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no mail"):
        read(tmp_path)
