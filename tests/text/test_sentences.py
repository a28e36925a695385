"""Sentences where they are plain to see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.text.sentences import sentences


@pytest.mark.parametrize(
    "expected",
    [
        ["Click the button.", "Then wait."],
        ['He said "Stop!"', "Then he left."],
        ["Is it open?", "Yes!", "No."],
        ["Choose a format, e.g. PDF, and save."],
        ["Use z.B. Calc.", "Dann speichern."],
        ["See page 3. Otherwise wait."],  # a number may be counted on: better one too few than one too many
        ["Open the file (see below).", "Close it."],
        ["Version 7.4 is here."],
        [],
    ],
)
def test_plain_cases(expected):
    assert sentences(" ".join(expected)) == expected


def test_chinese():
    assert sentences("打開檔案。關閉它！") == ["打開檔案。", "關閉它！"]


@given(st.text(max_size=60))
def test_nothing_is_lost(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
