"""One reader for users' text files: every door that takes one reads what every editor writes."""

import gzip
import io
import json
from pathlib import Path

import pytest

from qkv import textfiles
from qkv.cli.text import MAX_SCHEMA
from qkv.cli.translate import read as read_to_translate
from qkv.config import read_toml
from qkv.data.parallel import read_pairs
from qkv.errors import ConfigError, InputError, QkvError
from qkv.index.passages import Skipped, read_lines, read_passages
from qkv.tasks.code import in_file
from qkv.textfiles import NotTextError, as_utf8, decode, json_lines, lines, read_text
from qkv.train.conversations import read_conversations
from qkv.train.language_model import read_texts
from qkv.writing.options import Options
from qkv.writing.shots import read_shots

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]
TEXT = "größer\u2028und länger 🐕"


def encoded(text: str, encoding: str) -> bytes:
    return b"\xfe\xff" * (encoding == "utf-16-be") + text.encode(encoding)


def shots(path: Path) -> object:
    return read_shots(path)[0].input


def conversation(path: Path) -> object:
    return read_conversations(path, lambda messages: messages)[0][0].content


def translated(path: Path) -> object:
    return [line.text for burst in read_to_translate(str(path)) for line in burst]


def pairs(path: Path) -> object:
    return read_pairs(path.parent, "a", "en", "de")[0].source


LINE = json.dumps({"input": TEXT, "output": "b"}, ensure_ascii=False)
TALK = json.dumps({"messages": [{"role": "user", "content": TEXT}]}, ensure_ascii=False)
READERS = {  # file: what it holds, who reads it, what is read
    "shots.jsonl": (LINE + "\r\n", shots, TEXT),
    "talk.jsonl": (TALK + "\n", conversation, TEXT),
    "recipe.toml": (f'text = "{TEXT}"\n', lambda path: read_toml(path)["text"], TEXT),
    "schema.json": (
        '{"type": "string"}',
        lambda path: json.loads(read_text(path, limit=MAX_SCHEMA)),
        {"type": "string"},
    ),
    "text.txt": (TEXT, read_texts, [TEXT]),
    "lines.jsonl": (json.dumps({"text": TEXT}, ensure_ascii=False) + "\n", read_lines, [TEXT]),
    "lines.txt": (f"{TEXT}\r\nb\r\n", read_lines, [TEXT, "b"]),
    "passages.md": (f"\n{TEXT}\n", lambda path: [(p.text, p.line) for p in read_passages(path)], [(TEXT, 2)]),
    "translate.txt": (f"{TEXT}\r\nb", translated, [TEXT, "b"]),
    "code.py": (f"# {TEXT}\r\nx = 1\r\n", lambda path: in_file(path, 2, Options()).sides[0], f"# {TEXT}\nx = 1"),
    "a.en": (f"{TEXT}\n", pairs, TEXT),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", READERS)
def test_every_door_reads_every_mark(tmp_path, name, encoding):
    text, read, expected = READERS[name]
    (tmp_path / "a.de").write_text("x\n", encoding="utf-8")
    (tmp_path / name).write_bytes(encoded(text, encoding))
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("data", [b"caf\xe9", b"a\0b", b"\xff\xfea", "x\0".encode("utf-16")])
@pytest.mark.parametrize("name", [name for name in READERS if name != "passages.md"])
def test_no_door_takes_what_is_no_text(tmp_path, name, data):
    (tmp_path / "a.de").write_text("x\n", encoding="utf-8")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(QkvError, match=f"{name}|{tmp_path}"):
        READERS[name][1](tmp_path / name)


@pytest.mark.parametrize(
    "name", [name for name in READERS if "lines" not in name and name not in ("passages.md", "a.en", "translate.txt")]
)
def test_a_missing_file_is_named_with_the_reason(tmp_path, name):
    with pytest.raises((InputError, ConfigError), match=f"cannot read .*{name}: No such file"):
        READERS[name][1](tmp_path / name)


def test_search_says_why_a_file_is_passed_over(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"a" * 10_000 + b"\0")
    reasons = [one.reason for one in read_passages(tmp_path) if isinstance(one, Skipped)]
    assert reasons == [
        "it is not UTF-8 text: byte 3; save it as UTF-8",
        "it is binary, not text",
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_stream_comes_as_utf8_however_it_is_cut(encoding, chunk):
    for text in (TEXT, "", "a", "ab"):
        stream = io.BytesIO(encoded(text, encoding))
        assert b"".join(as_utf8(stream, chunk)) == text.encode()


def test_a_stream_is_not_waited_for_longer_than_its_mark_needs():
    class Slow:
        def __init__(self):
            self.given = [b"a\n", b"b\n", b""]

        def read(self, size: int) -> bytes:
            return self.given.pop(0)

    stream = Slow()
    assert next(as_utf8(stream, 10)) == b"a\n"
    assert len(stream.given) == 2


def test_a_broken_stream_is_named():
    with pytest.raises(NotTextError, match="UTF-16"):
        list(as_utf8(io.BytesIO(b"\xff\xfea"), 10))


def test_sizes_are_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 2_000_001)
    assert len(read_text(tmp_path / "a", limit=2_000_001)) == 2_000_001
    with pytest.raises(InputError, match="it has more than 1 MiB"):
        read_text(tmp_path / "a", limit=2_000_000)
    with pytest.raises(InputError, match="more than 1 MiB"):
        read_text("/dev/zero", limit=1 << 20)


def test_a_packed_side_of_pairs_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr("qkv.data.parallel.MAX_BYTES", 1 << 20)
    (tmp_path / "a.de").write_text("x\n", encoding="utf-8")
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(b"x" * (2 << 20)))
    with pytest.raises(InputError, match=r"a\.en\.gz: it has more than 1 MiB"):
        read_pairs(tmp_path, "a", "en", "de")


def test_lines_end_where_an_editor_ends_them():
    assert lines("a\r\nb\u2028c\x0bd\x85e\n\n") == ["a", "b\u2028c\x0bd\x85e", ""]
    assert lines("") == [""]


def test_json_lines_name_the_line(tmp_path):
    (tmp_path / "a").write_text('{"a": 1}\n\n[]\n', encoding="utf-8")
    with pytest.raises(InputError, match="a, line 3: it holds list, not an object"):
        json_lines(tmp_path / "a", dict)
    (tmp_path / "a").write_text("{\n", encoding="utf-8")
    with pytest.raises(InputError, match="a, line 1: it is not JSON"):
        json_lines(tmp_path / "a", dict)
    (tmp_path / "a").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="is empty"):
        json_lines(tmp_path / "a", dict)


def test_decode_agrees_with_python():
    for name in ENCODINGS:
        assert decode(encoded(TEXT, name)) == TEXT
    assert not textfiles.decode(b"")
