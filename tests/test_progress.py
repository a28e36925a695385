"""A bar is seen where someone looks and wants it, and nowhere else; then rich is not even imported."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from qkv.progress import Bar, track


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What is seen on a terminal."""
    monkeypatch.setattr("qkv.progress.watched", lambda: True)
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    return lambda: capfd.readouterr().err


def test_a_bar_on_a_terminal(terminal: Callable[[], str]) -> None:
    with Bar("drawing", 8, shown=True) as bar:
        assert bar
        bar.advance(3)
        bar.update(5, what="painting")
        bar.say("one [line]")
    shown = terminal()
    assert all(words in shown for words in ("painting", "5/8", "one [line]"))


def test_a_note_stays_until_there_is_another(terminal: Callable[[], str]) -> None:
    with Bar("training", 8, note="") as bar:
        bar.update(1, note="loss 2.5")
        bar.update(2)
    assert "loss 2.5" in terminal().rsplit("2/8", 1)[1]


def test_sizes_are_sizes(terminal: Callable[[], str]) -> None:
    with Bar("fetching", 93_000_000, size=True) as bar:
        bar.update(46_000_000)
    assert "46.0/93.0 MB" in terminal()


def test_items_pass_through(terminal: Callable[[], str]) -> None:
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert "3/3" in terminal()


def test_nothing_where_it_is_not_wanted(terminal: Callable[[], str]) -> None:
    assert list(track([1, 2], "reading", shown=False)) == [1, 2]
    assert terminal() == ""


QUIET = """
import sys
from collections.abc import Callable
from qkv.progress import Bar, track
assert list(track([1, 2], "reading")) == [1, 2]
with Bar("drawing") as bar:
    assert not bar
    bar.update(1, total=2, note="a")
    bar.say("b")
assert "rich" not in sys.modules
"""


def test_nothing_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
