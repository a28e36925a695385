"""Which label fits a picture, and what cannot be asked."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import qkv
from qkv import cli
from qkv.errors import CheckpointError, ConfigError, InputError, NotFoundError
from qkv.tasks.classify import MAX_LABELS, Classified, classify
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.text.tokenizer import Tokenizer
from qkv.weights.clip import load_clip
from qkv.weights.folder import Folder

LABELS = ["a dog", "a red cat", "a horse on mars"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(path)
    return path


def test_probabilities_are_clips(photo, tiny_clip):
    """By the plain way: both towers, the scale, a softmax in float64."""
    clip, tokenizer = load_clip(Folder(tiny_clip)), Tokenizer.load(tiny_clip)
    seen = torch.from_numpy(load_clip_embedder(tiny_clip, dtype="float32").see(Image.open(photo)))
    rows = [[tokenizer.start, *tokenizer.encode(label), tokenizer.end] for label in LABELS]
    with torch.no_grad():
        logits = torch.cat([clip.logits(seen[None], torch.tensor([row])) for row in rows], 1)[0].double().numpy()
    expected = dict(zip(LABELS, np.exp(logits) / np.exp(logits).sum()))
    found = classify(photo, LABELS, model=tiny_clip, dtype="float32")
    assert isinstance(found, Classified)
    assert {one.label: one.probability for one in found.labels} == pytest.approx(expected, abs=1e-5)
    likely = [one.probability for one in found.labels]
    assert likely == sorted(likely, reverse=True)
    assert sum(likely) == pytest.approx(1)
    assert (found.model, found.warnings) == ("seer", ())


def test_a_pillow_image_is_the_same(photo, tiny_clip):
    with Image.open(photo) as image:
        assert qkv.classify(image, LABELS, model=tiny_clip) == qkv.classify(str(photo), LABELS, model=tiny_clip)


def test_each_label_is_read_alone(photo, tiny_clip):
    few, many = (
        {one.label: one.score for one in classify(photo, labels, model=tiny_clip, dtype="float32").labels}
        for labels in (LABELS[:2], [*LABELS, "穿西裝的狗 " * 3])
    )
    assert few == pytest.approx({label: many[label] for label in few}, abs=1e-6)


def test_a_long_label_is_cut_with_a_warning(photo, tiny_clip):
    found = classify(photo, ["a dog " * 30, "a cat"], model=tiny_clip)
    assert found.warnings == ("1 of the texts have more than 18 tokens; only their beginnings were read",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no label leaves no choice; give two or more"),
        (["a dog"], "1 label leaves no choice"),
        (["a dog", " \n"], "label 2 of 2 is empty"),
        (["a dog", 3], "label 2 of 2 is no text but int"),
        (["a dog", "a cat", " A  Dog"], "labels 1 and 3 are both 'A Dog'; give each label once"),
        ([f"label {i}" for i in range(MAX_LABELS + 1)], "there are 10,001 labels; give at most 10,000"),
        ("a dog", "is one text; give a list"),
    ],
)
def test_labels_that_cannot_be(labels, message, photo, tiny_clip):
    with pytest.raises(InputError, match=message):
        classify(photo, labels, model=tiny_clip)


def test_models_that_cannot_be(photo, tmp_path, tiny_clip, tiny, tiny_bert):
    with pytest.raises(CheckpointError, match="is no CLIP: give a folder with a CLIPModel's config.json"):
        classify(photo, LABELS, model=tiny)
    with pytest.raises(ConfigError, match="it is no CLIPModel's"):
        classify(photo, LABELS, model=tiny_bert())
    with pytest.raises(NotFoundError):
        classify(photo, LABELS, model="no-such-model")
    copy = tmp_path / "other"
    copy.mkdir()
    for file in tiny_clip.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"ends texts with \d+, the model with 7"):
        classify(photo, LABELS, model=copy)


def test_the_command(run, photo, tiny_clip):
    expected = classify(photo, LABELS, model=tiny_clip).labels
    lines = run("classify", photo, "--labels", *LABELS, "--model", tiny_clip).out.splitlines()
    assert lines == [f"{one.probability:6.3f}  {one.label}" for one in expected]
    ran = run("classify", "--model", tiny_clip, photo, "--labels", *LABELS, "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["label"], row["probability"]) for row in rows] == [(one.label, one.probability) for one in expected]
    assert {row["model"] for row in rows} == {"seer"}
    single = run("classify", "--labels", "a dog", "--labels", "a red cat", "--", photo)
    assert single.code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["PHOTO"], "no label leaves no choice"),
        (["PHOTO", "--labels"], "no label leaves no choice"),
        (["PHOTO", "--labels", "a dog", ""], "label 2 of 2 is empty"),
        (["PHOTO", "--labels", "a dog", "a dog"], "labels 1 and 2 are both"),
        (["PHOTO", "--labels", *map(str, range(10_001))], "at most 10,000"),
        (["none.png", "--labels", "a", "b"], "cannot read none.png: No such file"),
        (["--labels", "a", "b", "PHOTO"], "Missing argument"),
        (["PHOTO", "--labels", "a", "b", "--models", "x"], "--models"),
    ],
)
def test_bad_input_is_one_line(run, photo, arguments, reason):
    ran = run("classify", *[photo if argument == "PHOTO" else argument for argument in arguments])
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"qkv: error: [^\n]{10,600}\n", ran.err)
    assert reason in ran.err
