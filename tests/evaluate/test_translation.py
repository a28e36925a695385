"""Scores of a translator: those of all pairs, and of those that training did not know."""

import pytest

from qkv.data.parallel import Pair, write_pairs
from qkv.errors import InputError
from qkv.evaluate import translation
from qkv.loaded.translator import LoadedTranslator
from qkv.text.bleu import score
from qkv.text.moses import from_moses, to_moses

PAIRS = [
    Pair("one file", "eine Datei mit Namen"),
    Pair("two files here", "zwei Dateien sind hier"),
    Pair("x", "ganz neu ."),
]


@pytest.fixture
def paper(monkeypatch):
    """A translator that knows the first two."""

    def make(text):
        ready = LoadedTranslator(
            name="paper", model=None, pieces=None, source="en", target="de", text=text, search=None
        )
        known = dict(PAIRS[:2])
        monkeypatch.setattr(translation, "load_ready", lambda model: ready)
        lines = lambda sources, **options: (type("Line", (), {"text": known.get(s, "falsch")}) for s in sources)  # noqa: E731
        monkeypatch.setattr(translation, "translating", lines)

    return make


def test_scores(paper, tmp_path):
    paper("plain")
    write_pairs(tmp_path, "test", "en", "de", PAIRS)
    alone = translation.run("paper", tmp_path)
    assert "unseen" not in alone
    write_pairs(tmp_path, "train", "en", "de", PAIRS[:1])
    scores = translation.run("paper", tmp_path)
    assert scores["all"]["pairs"] == 3 and scores["unseen"]["pairs"] == 2  # noqa: PT018
    assert scores["all"]["bleu"] == alone["all"]["bleu"] > scores["unseen"]["bleu"] > 0
    assert translation.run("paper", tmp_path, limit=2)["all"]["bleu"] == pytest.approx(100)
    with pytest.raises(InputError, match="limit=0 is out of range"):
        translation.run("paper", tmp_path, limit=0)
    lines = translation.table(scores).splitlines()
    assert lines[0].startswith("all") and "tok:13a" in lines[2]  # noqa: PT018


def test_lower_case_moses(paper, tmp_path):
    paper("moses-lower")
    write_pairs(tmp_path, "test", "en", "de", PAIRS)
    found = translation.run("paper", tmp_path)
    assert "case:lc" in found["all"]["bleu_signature"]
    assert "bleu_tokenised" in found["all"]


def test_moses_there_and_back():
    assert to_moses("Don't stop, Anna!", "en") == "don 't stop , anna !"
    assert from_moses("don 't stop , anna !", "en") == "don't stop, anna!"
    assert to_moses("<b> & (c)", "en") == "< b > & ( c )"


def test_score():
    assert score(["eine Katze saß da ."], ["eine Katze saß da ."]).bleu == pytest.approx(100)
    assert score(["Eine Katze"], ["eine katze"]).chrf < score(["Eine Katze"], ["eine katze"], lowercase=True).chrf
    with pytest.raises(InputError, match="1 translations .* 2 references"):
        score(["a"], ["a", "b"])
