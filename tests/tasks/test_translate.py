"""Lines in, lines out: in order, in their places, whatever is in them; and the command line around it."""

import io
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qkv import registry
from qkv.cli import main
from qkv.cli.translate import Line, read
from qkv.errors import CheckpointError, ConfigError, InputError, NotFoundError
from qkv.loaded.translator import load_ready
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.pictures.alignment import align, draw_alignment
from qkv.tasks.translate import translate, translating
from qkv.text.pieces import learn_pieces
from qkv.weights.translator import save_translator

TEXTS = ["Click the button to open the file.", "Klicken Sie, um die Datei zu öffnen.", "One. Two. Three."] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A translator of paper: it says something, the same for the same text."""
    path = tmp_path_factory.mktemp("models") / "paper"
    pieces = learn_pieces(TEXTS, 340)
    torch.manual_seed(0)
    shape = {"context": 40, "dim": 16, "layers": 2, "heads": 2, "ffn_dim": 16}
    model = Translator(TranslatorConfig(vocab=340, start=339, pad=339, **shape))
    for parameter in model.parameters():
        parameter.data *= 1.5
    model.bias[0] = 1.0  # texts end
    save_translator(model, path, also={"num_beams": 3})
    pieces.save(path)
    (path / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return path


LINES = ["Click the file.", "", "  Open it. Click!  ", "One. Two.", "   ", "Click the file."]


def test_lines_keep_their_places(folder):
    found = list(translating(LINES, model=folder))
    assert [line.source for line in found] == LINES
    assert found[1].text == "" and math.isnan(found[1].score)  # noqa: PT018
    assert found[4].text.strip() == ""
    assert found[2].text.startswith("  ") and len(found[2].sentences) == 2  # noqa: PT018
    assert found[0].text == found[5].text != ""
    alone = [translate(line, model=folder).text for line in LINES]
    assert [line.text for line in found] == alone, "what is translated beside it changes nothing"
    assert translate("\n".join(LINES), model=folder).text == "\n".join(alone)


def test_it_streams(folder):
    """The first line is out before the third is asked for."""
    given = iter(LINES)
    found = translating(given, model=folder)
    next(found)
    assert list(given) == LINES[1:]


def test_a_sentence_too_long_is_cut_and_said_so(folder):
    line = next(translating(["file " * 40], model=folder))
    assert line.warnings[0].startswith("long-sentence")
    assert len(line.sentences) > 1
    assert "".join("".join(source for source, _ in line.sentences).split()) == "file" * 40
    assert next(translating(["x" * 500], model=folder)).warnings


def test_a_line_too_long_is_refused(folder):
    with pytest.raises(InputError, match="line 2 has 100001 characters"):
        list(translating(["ok", "x" * 100_001], model=folder))


@pytest.mark.parametrize(
    "text", ["\x07\x1b[0m", "🙂" * 30, "\u202eabc", "▁▁", "</s> <pad> <unk>", ">>xx<< yes", "\ufffe", "a\udcff", "a\0"]
)
def test_odd_texts(folder, text):
    assert isinstance(translate(text, model=folder).text, str)


def test_what_is_no_text(folder):
    with pytest.raises(InputError, match="line 2 is no text but NoneType"):
        list(translating(["ok", None], model=folder))


def test_the_space_around_a_line_stays(folder):
    said = translate("\t Click.  ", model=folder).text
    assert said == f"\t {translate('Click.', model=folder).text}  "


def test_a_line_end_that_the_model_spells_is_a_space(folder, monkeypatch):
    ready = load_ready(folder)
    monkeypatch.setattr(type(ready.pieces), "decode", lambda self, ids: "a\nb\r\nc")
    assert translate("Click.", model=folder).text == "a b c"


def test_a_model_of_the_hub_is_not_fetched_offline(home):
    with pytest.raises(NotFoundError, match="run once: qkv pull some/translator"):
        translate("Click.", model="some/translator", offline=True)


def test_a_folder_that_names_no_language(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").unlink()
    assert translate("Click.", model=tmp_path).text
    with pytest.raises(InputError, match="'de', but into a language that it does not name; ask for none"):
        translate("Click.", model=tmp_path, to="de")


def test_languages(folder, home, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "ASSETS", tmp_path / "none")  # as if none came with the package
    assert translate("Click.", model=folder, to="de").text
    with pytest.raises(InputError, match="'fr', but into de"):
        translate("Click.", model=folder, to="fr")
    with pytest.raises(NotFoundError, match="no translator is here"):
        translate("Click.", to="de")
    (home / "models").mkdir(parents=True)
    (home / "models" / "mine").symlink_to(folder)
    assert translate("Click.").model == "mine"
    assert translate("Click.", to="de").model == "mine"
    with pytest.raises(NotFoundError, match="'fr'; there is de"):
        translate("Click.", to="fr")


def test_marks_of_models_with_many_targets(folder, tmp_path):
    pieces = load_ready(folder).pieces
    ids = {**pieces.ids, ">>fr<<": 338, next(piece for piece, id in pieces.ids.items() if id == 338): 340}
    assert replace(load_ready(folder), pieces=type(pieces)(*pieces.models, ids)).targets == {"fr"}


def test_the_model_s_own_manner(folder, tmp_path):
    assert load_ready(folder).search.beams == 3
    assert load_ready(folder).search.penalty == "power"
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").unlink()
    assert load_ready(tmp_path).search.beams == 4
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_beams": 6}))
    assert load_ready(tmp_path).search.beams == 6


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("vocab.json", b"{}", CheckpointError),
        ("source.spm", b"", CheckpointError),
        ("generation_config.json", b'{"num_beams": "x"}', ConfigError),
        ("generation_config.json", b'{"num_beams": 0}', ConfigError),
        ("qkv.json", b'{"beam": 2}', ConfigError),
        ("config.json", b"[]", CheckpointError),
        ("tokenizer_config.json", b"\xff", CheckpointError),
    ],
)
def test_broken_folders(folder, tmp_path, name, data, error):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error):
        translate("Click.", model=tmp_path)


def test_alignment(folder):
    ready = load_ready(folder)
    found = align(ready, "Click the button.", "Klicken Sie, um")
    assert found.source == ["Click", "the", "button."]
    assert found.target == ["Klicken", "Sie,", "um"]
    assert found.weights.shape == (3, 3)
    assert (found.weights >= 0).all()
    assert (found.weights.sum(1) <= 1 + 1e-5).all()
    assert not np.allclose(found.weights, align(ready, *("Click the button.", "Klicken Sie, um"), layer=1).weights)
    picture = draw_alignment(found)
    assert picture.width > 3 * 26 and picture.height > 3 * 26  # noqa: PT018
    with pytest.raises(InputError, match="no word"):
        align(ready, "", "Klicken")
    with pytest.raises(InputError, match="layer=2"):
        align(ready, "Click", "Klicken", layer=2)


# The command line.


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["translate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_a_text(folder, capsys):
    code, out, err = run(capsys, "One. Two.", "--model", folder)
    assert (code, err) == (0, "")
    assert out == translate("One. Two.", model=folder).text + "\n"


def test_a_file_and_json(folder, capsys, tmp_path):
    (tmp_path / "in.txt").write_bytes("\n".join(LINES).encode() + b"\r\n")
    code, out, _ = run(capsys, tmp_path / "in.txt", "--model", folder, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["source"] for row in rows] == LINES
    assert rows[1]["score"] is None


def test_stdin(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One.\n\nTwo.")))
    code, out, _ = run(capsys, "-", "--model", folder, "--to", "de")
    assert code == 0
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize("text", ["One.\r\n\r\n\tTwo.  \r\nThree.", "One.\n\n\n", "\r\n", "  One.\nTwo.\r\n"])
def test_a_file_keeps_its_lines(folder, capsys, tmp_path, text):
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, out, _ = run(capsys, tmp_path / "in.txt", "--model", folder)
    assert code == 0
    expected = text
    for word in ("One.", "Two.", "Three."):
        expected = expected.replace(word, translate(word, model=folder).text)
    assert out == expected


def pipe(monkeypatch, *parts):
    """Someone who writes these parts into stdin, one at a time; an exception among them is raised."""

    def read1(size):
        part = next(waiting, b"")
        if isinstance(part, type):
            raise part
        return part

    waiting = iter(parts)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read1=read1)))
    return waiting


def test_a_slow_writer_is_not_waited_for(monkeypatch):
    waiting = pipe(monkeypatch, b"One.\nTw", b"o.\r\nThree.\n", b"Four.")
    bursts = read("-")
    assert next(bursts) == [Line("One.", "\n")]
    assert next(bursts) == [Line("Two.", "\r\n"), Line("Three.", "\n")]
    assert next(waiting) == b"Four.", "not asked for as yet"


def test_ctrl_c_leaves_what_is_translated(folder, capsys, monkeypatch):
    pipe(monkeypatch, b"One.\n", KeyboardInterrupt)
    assert run(capsys, "-", "--model", folder) == (130, translate("One.", model=folder).text + "\n", "")


def test_show_attention(folder, capsys, tmp_path):
    options = ("--model", folder, "--show-attention", "-o", tmp_path / "a.png")
    code, _, err = run(capsys, "Click the file. Click!", *options)
    assert (code, err) == (0, f"qkv: attention in {tmp_path / 'a.png'}\n")
    assert Image.open(tmp_path / "a.png").height > 4 * 26
    _, out, _ = run(capsys, "Click.", *options, "--json")
    assert json.loads(out)["attention"] == str(tmp_path / "a.png")
    _, out, _ = run(capsys, "Click.", *options[:3], "-o", tmp_path, "--json")
    assert json.loads(out)["attention"] == str(tmp_path / "click.attention.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "there is no text"),
        (["Click.", "--to", "xx"], "does not translate into 'xx'"),
        (["Click.", "--beams", "0"], "beams=0"),
        (["Click.", "--length-penalty", "nan"], "length_penalty"),
        (["Click.", "--show-attention", "-o", "a.jpg"], "ends in .png"),
        (["Click.", "-o", "a.png"], "-o is where --show-attention draws"),
        (["a\nb", "--show-attention"], "draws one line"),
        (["{binary}"], "line 1"),
        (["{zero}"], "zero byte"),
        (["{long}"], "line 2 of"),
        (["/dev/zero"], "line 1 of /dev/zero has more than 100000 characters"),
        (["{empty}"], "there is no text in"),
        (["/proc/self/mem"], "cannot read /proc/self/mem"),
        (["{folder}"], "is a folder; name a file in it"),
        (["no-such-file.txt"], "there is no file 'no-such-file.txt'"),
        (["./nothing"], "there is no file './nothing'"),
        (["x" * 300, "--show-attention", "-o", "none/a.png"], "there is no such folder"),
        (["Click.", "--threads", "0"], "threads=0"),
    ],
)
def test_faults(folder, capsys, tmp_path, arguments, words):
    (tmp_path / "binary").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    (tmp_path / "zero").write_bytes(b"a\0b")
    (tmp_path / "long").write_bytes(b"ok\n" + b"x" * 100_001 + b"\n")
    (tmp_path / "empty").write_bytes(b"")
    paths = {name: tmp_path / name for name in ("binary", "zero", "long", "empty")} | {"folder": tmp_path}
    arguments = [argument.format(**paths) for argument in arguments]
    code, out, err = run(capsys, *arguments, "--model", folder)
    assert (code, out) == (2, "")
    assert err.startswith("qkv: error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_model_that_is_no_translator(capsys, tiny):
    code, _, err = run(capsys, "Click.", "--model", tiny)
    assert code == 2
    assert err.count("\n") == 1
