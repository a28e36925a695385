"""Searching texts: the nearest passage first, nothing embedded twice, bad files passed over."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qkv.errors import InputError, NotFoundError
from qkv.index.passages import LONGEST, Passage, Skipped, read_lines, read_passages
from qkv.index.vectors import VectorStore, key_of
from qkv.tasks import search as module
from qkv.tasks.embed import embed, load_embedder
from qkv.tasks.search import Found, SearchProgress, search, searching

pytestmark = pytest.mark.processor

TEXTS = ["a dog in a suit", "a red cat", "riding a horse on mars", "a blue fish", "dogs playing poker"]


@pytest.fixture(scope="module")
def model(tiny_bert):
    return tiny_bert()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "texts"
    (place / "more").mkdir(parents=True)
    (place / "one.txt").write_text("\n\na dog\nin a suit\n\na red cat\n \n", encoding="utf-8")
    (place / "more" / "two.jsonl").write_text('{"text": "riding a horse on mars"}\n\n"a blue fish"\n')
    (place / "three.md").write_bytes("\ufeffdogs playing poker".encode())
    (place / ".hidden").write_text("hidden")
    return place


@pytest.mark.parametrize("name", ["cosine", "dot", "dot_product", "euclidean", "manhattan", None])
def test_the_order_is_the_models(name, folder, tiny_bert):
    """similarity_fn_name, and prompts of their own for what is searched with and through."""
    prompts = {"query": "a dog ", "passage": "mars "}
    said = {"prompts": prompts, "similarity_fn_name": name}
    model = tiny_bert(said={"config_sentence_transformers.json": said})
    query, texts = embed("a dog a cat", model=model), embed([f"mars {text}" for text in TEXTS], model=model)
    scores = {
        "cosine": texts @ query / np.linalg.norm(texts, axis=1) / np.linalg.norm(query),
        "dot": texts @ query,
        "euclidean": -np.sqrt(((texts - query) ** 2).sum(1)),
        "manhattan": -np.abs(texts - query).sum(1),
    }[(name or "cosine").removesuffix("_product")]
    found = search("a cat", folder, model=model)
    assert [hit.passage.text for hit in found.hits] == [TEXTS[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit.score for hit in found.hits], sorted(scores, reverse=True), rtol=1e-2)


def test_passages_know_where_they_stand(folder):
    found = [(one.text, one.file.name, one.line) for one in read_passages(folder)]
    assert found == [
        ("a dog in a suit", "one.txt", 3),
        ("a red cat", "one.txt", 6),
        ("dogs playing poker", "three.md", 1),
        ("riding a horse on mars", "two.jsonl", 1),
        ("a blue fish", "two.jsonl", 3),
    ]


def test_links_are_named(folder, tmp_path):
    """Of files and of folders, broken ones and circles."""
    links = {"a": folder / "one.txt", "b": tmp_path, "more/c": folder / "more", "d": "d", "e": "gone"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    found = [one for one in read_passages(folder) if isinstance(one, Skipped)]
    assert {str(one.file.relative_to(folder)) for one in found} == set(links)
    assert {one.reason for one in found} == {"it is a link; search what it leads to"}
    assert list(read_passages(folder / "a")) != []  # named, a link is what it leads to


def test_long_paragraphs_go_on(tmp_path):
    words = [f"word{i}" for i in range(1000)]
    for name, text in {"lines": "\n".join(words), "line": " ".join(words), "letters": "x" * 3000}.items():
        (tmp_path / name).write_text(text)
        parts = list(read_passages(tmp_path / name))
        assert all(isinstance(part, Passage) and 0 < len(part.text) <= LONGEST for part in parts)
        texts = [part.text for part in parts]
        assert ("" if name == "letters" else " ").join(texts) == text.replace("\n", " ")
        starts = [words.index(text.split()[0]) + 1 for text in texts] if name == "lines" else [1] * len(texts)
        assert [part.line for part in parts] == starts


def test_what_is_no_text_is_passed_over(folder):
    (folder / "bytes.bin").write_bytes(b"\0\1\2")
    (folder / "latin.txt").write_bytes("schön".encode("latin-1"))
    (folder / "bad.jsonl").write_text('{"text": "a cat"}\n{"text": 3}\nno json\n' + "[" * 100_000)
    os.mkfifo(folder / "pipe")
    skipped = [one for one in read_passages(folder) if isinstance(one, Skipped)]
    assert {(one.file.name, one.reason) for one in skipped} == {
        ("bytes.bin", "it is binary, not text"),
        ("latin.txt", "it is not UTF-8 text: byte 3; save it as UTF-8"),
        ("bad.jsonl", 'line 2 has no "text"'),
        ("bad.jsonl", "line 3 is not JSON"),
        ("bad.jsonl", "line 4 is not JSON"),
        ("pipe", "it is not a regular file"),
    }


def test_half_characters_are_marked(tmp_path):
    (tmp_path / "a.jsonl").write_text('"a \\ud800 dog"')
    assert [one.text for one in read_passages(tmp_path)] == ["a \ufffd dog"]


def test_huge_files_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("qkv.index.passages.MAX_FILE", 10)
    (tmp_path / "huge").write_text("x" * 11)
    assert [one.reason for one in read_passages(tmp_path)] == ["it has more than 0 MiB"]


def test_lines_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two\n")
    (tmp_path / "b.jsonl").write_text('"one"\n{"text": "two"}\n')
    (tmp_path / "c.jsonl").write_text('"one"\n{}\n')
    assert read_lines(tmp_path / "a.txt") == ["one", "", " two"]
    assert read_lines(tmp_path / "b.jsonl") == ["one", "two"]
    with pytest.raises(InputError, match='line 2 has no "text"'):
        read_lines(tmp_path / "c.jsonl")


def test_the_nearest_first(folder, model, home):
    found = search("a red fish", folder, model=model, dtype="float32")
    vectors, query = (embed(texts, model=model, dtype="float32") for texts in (TEXTS, "a red fish"))
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)
    assert [hit.passage.text for hit in found.hits] == [TEXTS[i] for i in order]
    np.testing.assert_allclose([hit.score for hit in found.hits], cosines[order], atol=1e-6)
    assert (found.passages, found.computed, found.skipped, found.warnings) == (5, 5, (), ())
    assert len(search("a red fish", folder, model=model, top=2).hits) == 2


def test_nothing_is_computed_twice(folder, model, home):
    first = search("a cat", folder, model=model)
    (folder / "new.txt").write_text("a horse\n\na red cat")
    again = search("a cat", folder, model=model)
    assert (first.computed, again.computed, again.passages) == (5, 1, 7)
    scores = {hit.passage.text: hit.score for hit in again.hits}
    assert all(scores[hit.passage.text] == hit.score for hit in first.hits)
    other = "bfloat16" if load_embedder(model).stamp.endswith("float32") else "float32"
    assert search("a cat", folder, model=model, dtype=other).computed == 6  # another precision, other vectors


def test_an_index_that_was_broken_off_goes_on(folder, model, home, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    events = searching("a cat", folder, model=model)
    seen = [next(events) for _ in range(3)]
    assert seen == [SearchProgress(0, 5), SearchProgress(2, 5), SearchProgress(4, 5)]
    events.close()
    assert search("a cat", folder, model=model).computed == 1


def test_a_model_whose_files_change_is_another(folder, tiny_bert, home):
    changed = tiny_bert()
    assert search("a cat", folder, model=changed).computed == 5
    (changed / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    assert search("a cat", folder, model=changed).computed == 5


def test_where_nothing_can_be_kept(folder, model, home, monkeypatch):
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file is in the way")
    found = search("a cat", folder, model=model)
    assert len(found.hits) == 5
    assert "the vectors are not kept for the next search" in found.warnings[0]


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query(query, folder, model):
    with pytest.raises(InputError, match="the query is empty"):
        search(query, folder, model=model)


def test_places_without_text(tmp_path, model):
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        search("x", tmp_path / "nowhere", model=model)
    with pytest.raises(InputError, match="there is no text in"):
        search("x", tmp_path, model=model)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(InputError, match=r"there is no text in .*: picture.png: it is binary, not text"):
        search("x", tmp_path / "picture.png", model=model)
    with pytest.raises(InputError, match="top=0 is out of range"):
        search("x", tmp_path, model=model, top=0)


# The store.


def some(count, seed=0):
    rng = np.random.default_rng(seed)
    return [key_of(f"{seed} {i}".encode()) for i in range(count)], rng.standard_normal((count, 3)).astype(np.float32)


def test_the_store_keeps(tmp_path):
    keys, vectors = some(5)
    store = VectorStore(tmp_path / "store", 3)
    store.add(keys[:2], vectors[:2])
    store.add(keys[1:], vectors[1:])
    for reader in (store, VectorStore(tmp_path / "store", 3)):
        assert len(reader) == 5
        np.testing.assert_array_equal(reader.get(keys[::-1]), vectors[::-1])
        assert key_of(b"else") not in reader


def test_two_writers(tmp_path):
    (one, a), (two, b) = some(3), some(4, seed=1)
    first, second = VectorStore(tmp_path, 3), VectorStore(tmp_path, 3)
    first.add(one, a)
    second.add([*two, one[0]], np.concatenate([b, a[:1]]))
    first.add(two, b)
    for store in (first, second, VectorStore(tmp_path, 3)):
        assert len(store) == 7
        np.testing.assert_array_equal(store.get([*two, *one]), np.concatenate([b, a]))


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_process_that_was_killed(lost, tmp_path):
    """While it appended: the end of either file is missing."""
    keys, vectors = some(4)
    VectorStore(tmp_path, 3).add(keys[:3], vectors[:3])
    whole = (tmp_path / "keys").read_bytes()
    with (tmp_path / "vectors").open("ab") as file:
        file.write(vectors[3:].tobytes()[: lost % 12])
    with (tmp_path / "keys").open("r+b") as file:
        file.truncate(len(whole) - min(lost, len(whole)))
    store = VectorStore(tmp_path, 3)
    kept = (len(whole) - min(lost, len(whole))) // 16
    assert len(store) == kept
    store.add(keys, vectors)
    np.testing.assert_array_equal(VectorStore(tmp_path, 3).get(keys), vectors)


def test_a_store_that_is_broken(folder, model, home):
    search("a cat", folder, model=model)
    (place,) = (home / "vectors").iterdir()
    (place / "vectors").write_bytes(b"")
    found = search("a cat", folder, model=model)
    assert found.computed == 5
    assert "fewer vectors than keys; delete it" in found.warnings[0]


def test_the_command(folder, model, home):
    (folder / "bytes.bin").write_bytes(b"\0")
    command = [sys.executable, "-m", "qkv", "search", "a red fish", folder, "--model", model, "-k", "2", "--json"]
    done = subprocess.run([*command, "--dtype", "float32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qkv: skipped" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = search("a red fish", folder, model=model, top=2, dtype="float32")
    assert isinstance(expected, Found)
    assert [row["text"] for row in rows] == [hit.passage.text for hit in expected.hits]
    assert [(row["file"], row["line"]) for row in rows] == [
        (str(hit.passage.file), hit.passage.line) for hit in expected.hits
    ]


def test_names_of_files_that_are_no_unicode(folder, model, home):
    (folder / "one.txt").rename(folder / "one\udcff.txt")
    command = [sys.executable, "-m", "qkv", "search", "a red fish", folder, "--model", model]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=strict)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"one\udcff.txt:3" in done.stdout


def test_no_vector_is_asked_for_without_a_model(folder, home):
    with pytest.raises(NotFoundError):
        search("x", folder, model="no-such-model")
