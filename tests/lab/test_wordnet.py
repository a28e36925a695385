"""WordNet's files, as wndb(5WN) describes them."""

from pathlib import Path

import pytest

from lab.emblem.wordnet import PARTS, wordnet_glosses
from qkv.errors import CheckpointError, NotFoundError

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"
LINES = {
    "noun": '02084071 05 n 03 dog 0 domestic_dog 0 002 @ 02083346 n 0000 | a member of Canis; "it barked"  \n',
    "verb": "00001740 29 v 01 kick_in 0 000 01 + 02 00 | open violently  \n",
    "adj": "00013887 00 a 01 galore(ip) 0 000 | in great numbers  \n",
    "adv": "00001740 02 r 01 a_cappella 0 000 | without musical accompaniment  \n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in PARTS:
        (tmp_path / f"data.{part}").write_text(LICENCE + LINES[part])
    return tmp_path


def test_glosses_of_all_parts_of_speech(folder: Path) -> None:
    assert wordnet_glosses(folder) == [
        ("dog", 'a member of Canis; "it barked"'),
        ("kick in", "open violently"),
        ("galore", "in great numbers"),
        ("a cappella", "without musical accompaniment"),
    ]


def test_missing_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    (folder / "data.verb").write_text("not wordnet\n")
    with pytest.raises(CheckpointError, match="line 1 has no gloss"):
        wordnet_glosses(folder)
    with pytest.raises(NotFoundError, match="apt-get install wordnet-base"):
        wordnet_glosses(tmp_path / "nowhere")
