"""A decoder from scratch on a small text: it learns, resumes bit for bit, and other programs open what comes out."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qkv.errors import ConfigError, InputError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.tasks.complete import complete
from qkv.text.language import LanguageTokenizer
from qkv.text.learn import learn_bpe
from qkv.train import curve
from qkv.train.checkpoint import load
from qkv.train.language_model import (
    Windows,
    encode,
    encode_all,
    mean_loss,
    next_token,
    read_texts,
    split,
    with_biases,
    write,
)
from qkv.train.recipes import run
from qkv.weights.decoder import load_decoder
from qkv.weights.folder import Folder

TEXT = "".join(f"{i} green bottles hanging on the wall, and {i - 1} more — é\n" for i in range(400))
RECIPES = Path(__file__).parents[2] / "qkv" / "recipes"
SMALL = ["model.dim=32", "model.layers=2", "model.heads=2", "model.ffn_dim=64", "model.context=16", "batch=4"]
SHORT = ["fit.steps=6", "fit.save_every=3", "fit.sample_every=3", "fit.log_every=1"]


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", lambda metrics, picture: None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def tiny(**changes: object) -> Decoder:
    torch.manual_seed(0)
    shape = {"vocab": 256, "context": 16, "dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64}
    return Decoder(DecoderConfig(**{**shape, **changes})).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["shakespeare-char", "shakespeare-char-fast", "shakespeare-char-30min"])
def test_the_recipes_train_and_transformers_opens_the_result(recipe: str, text: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *SHORT, f'data="{text}"', "fit.optim.warmup=1", "model.head_dim=16"]
    result = run(RECIPES / f"{recipe}.toml", changes, folder=tmp_path / "run", progress=False)
    assert result.steps == 6
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["validation"] < math.log(256)
    assert records[-1]["validation_byte"] == pytest.approx(records[-1]["validation"])
    sample = (tmp_path / "run/samples/00000006.txt").read_text(encoding="utf-8")
    assert sample.startswith("\n")

    folder = tmp_path / "run/model"
    tokenizer = LanguageTokenizer.load(folder)
    ids = torch.tensor([tokenizer.encode("bottles — é")])
    with torch.no_grad():  # in training, activations are PyTorch's own, which have other bits
        expected = with_biases(result.model)(ids)
        assert torch.equal(load_decoder(Folder(folder))(ids), expected)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(folder)("bottles — é").input_ids == ids[0].tolist()


@pytest.mark.parametrize("changes", [[], ["fit.optim.optimizer=muon", "fit.dtype=bf16", "fit.accumulate=2"]])
def test_a_resumed_run_is_bit_equal(changes: list[str], text: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *SHORT, *changes, f'data="{text}"', "fit.ema=0.9"]
    recipe = RECIPES / "shakespeare-char.toml"
    run(recipe, changes, folder=tmp_path / "whole", progress=False)
    run(recipe, [*changes, "fit.minutes=1e-9"], folder=tmp_path / "halves", progress=False)
    run(recipe, changes, folder=tmp_path / "halves", resume=True, progress=False)
    one, other = load(tmp_path / "whole"), load(tmp_path / "halves")
    assert one is not None
    assert other is not None
    assert other.step == one.step == 6
    for group, tensors in one.groups.items():
        assert tensors.keys() == other.groups[group].keys()
        assert all(torch.equal(tensor, other.groups[group][name]) for name, tensor in tensors.items()), group
    assert len({"momentum", "exp_avg"} & {name.rpartition(".")[2] for name in one.groups["optimizer"]}) == (
        2 if "fit.optim.optimizer=muon" in changes else 1
    )


@pytest.mark.parametrize("vocab", [256, 300])
def test_what_was_trained_can_end(vocab: int, text: Path, tmp_path: Path) -> None:
    """In transformers' generate, and under a regex of ours, which cannot do without."""
    changes = [*SMALL, *SHORT, f'data="{text}"', f"model.vocab={vocab}"]
    run(RECIPES / "shakespeare-char.toml", changes, folder=tmp_path / "run", progress=False)
    folder = tmp_path / "run/model"
    tokenizer = LanguageTokenizer.load(folder)
    (end,) = tokenizer.stops
    assert (tokenizer.vocab, tokenizer.bos) == (vocab, end)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    assert (reader.eos_token_id, reader.eos_token) == (end, "<|endoftext|>")
    assert theirs.config.eos_token_id == end
    assert theirs.generation_config.eos_token_id in (end, [end])
    assert reader("é<|endoftext|>").input_ids == tokenizer.encode("é<|endoftext|>", control=True)
    theirs.generate(torch.tensor([[10]]), max_new_tokens=4, do_sample=False, pad_token_id=end)
    answer = complete("1", model=folder, regex="[0-9]{2,4}", max_tokens=10)
    assert answer.text.isdigit()
    assert answer.finish == "stop"
    assert complete("", model=folder, max_tokens=1).usage == (1, 1)  # the end of a text begins one


def test_documents_are_kept_apart(tmp_path: Path) -> None:
    """The end stands between them, and a run of one document reads what it read without an end."""
    (tmp_path / "a.txt").write_text("first" * 20, encoding="utf-8")
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    (tmp_path / "c.txt").write_text("last" * 20, encoding="utf-8")
    documents = read_texts(tmp_path)
    first, rest = split(documents, 0.75)
    assert (first, rest) == (["first" * 20, "last" * 8 + "las"], ["t" + "last" * 11])
    tokenizer = learn_bpe("".join(first), 256, end=True)
    ids = encode_all(tokenizer, first)
    assert np.flatnonzero(ids == tokenizer.bos).tolist() == [100]
    assert tokenizer.decode(ids) == "first" * 20 + "last" * 8 + "las"
    plain = encode(learn_bpe(TEXT, 300), TEXT)
    assert np.array_equal(encode_all(learn_bpe(TEXT, 300, end=True), [TEXT]), plain)
    assert split([TEXT], 0.9) == ([TEXT[: round(len(TEXT) * 0.9)]], [TEXT[round(len(TEXT) * 0.9) :]])


def test_another_text_is_not_resumed(text: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *SHORT, f'data="{text}"']
    run(RECIPES / "shakespeare-char.toml", changes, folder=tmp_path / "run", progress=False)
    text.write_text(TEXT.replace("green", "brown"), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot resume .*text="):
        run(RECIPES / "shakespeare-char.toml", changes, folder=tmp_path / "run", resume=True, progress=False)


def test_a_learnt_vocabulary_trains_too(text: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *SHORT, f'data="{text}"', "model.vocab=300"]
    run(RECIPES / "shakespeare-char.toml", changes, folder=tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["validation_byte"] < record["validation"]
    tokenizer = LanguageTokenizer.load(tmp_path / "run/model")
    assert tokenizer.vocab == 300
    assert len(tokenizer.encode(TEXT)) < 0.6 * len(TEXT)


@pytest.mark.parametrize("vocab", [256, 300])
def test_a_learnt_tokenizer_spells_every_text_and_comes_out_the_same(vocab: int) -> None:
    tokenizer, again = learn_bpe(TEXT, vocab), learn_bpe(TEXT, vocab)
    assert tokenizer.vocabulary.ids == again.vocabulary.ids
    for words in (TEXT, "漢字 \U0001f600\x00 <|endoftext|>"):
        assert tokenizer.decode(tokenizer.encode(words)) == words
    assert len(encode(tokenizer, TEXT)) == len(tokenizer.encode(TEXT))
    if vocab == 256:
        assert len(tokenizer.encode("é")) == 2


@pytest.mark.parametrize(
    ("words", "vocab", "message"), [("", 256, None), ("ab", 255, "bytes alone are 256"), ("ab ab", 999, "lower vocab")]
)
def test_what_cannot_be_learnt(words: str, vocab: int, message: str | None) -> None:
    if message is None:
        assert learn_bpe(words, vocab).vocab == 256
    else:
        with pytest.raises(InputError, match=message):
            learn_bpe(words, vocab)


def test_the_loss_is_that_of_a_plain_formula() -> None:
    decoder, ids = tiny(), torch.arange(17)[None] * 3
    loss = next_token(decoder, ids, torch.Generator())
    chances = decoder(ids[:, :-1])[0].double().log_softmax(-1)
    expected = -sum(chances[t, ids[0, t + 1]] for t in range(16)) / 16
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert loss.count == 16


def test_the_validation_loss_counts_every_token_once() -> None:
    decoder = tiny()
    ids = np.random.default_rng(0).integers(256, size=75)  # four windows of 16 and one of 10
    total = 0.0
    for start in range(0, 74, 16):
        window = torch.from_numpy(ids[start : start + 17])[None]
        loss = next_token(decoder, window, torch.Generator())
        total += float(loss.value) * (window.shape[1] - 1)
    assert mean_loss(decoder, ids, batch=3) == pytest.approx(total / 74, rel=1e-6)


def test_windows_depend_on_the_step_and_reach_both_ends() -> None:
    windows = Windows(np.arange(20), 16, 512, 0)
    assert torch.equal(windows(3), windows(3))
    assert not torch.equal(windows(3), windows(4))
    assert {int(row[0]) for row in windows(0)} == {0, 1, 2, 3}
    assert all(torch.equal(row, row[0] + torch.arange(17)) for row in windows(0))


def test_written_text_is_that_of_whole_passes() -> None:
    decoder = tiny(position="rotary")
    ids = [5]
    for _ in range(6):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    assert [5, *write(decoder, [5], 6, temperature=0.0)] == ids


def test_zero_biases_change_nothing() -> None:
    plain = tiny(bias=False, attention_bias=False, out_bias=False)
    biased = with_biases(plain)
    assert biased.config == replace(plain.config, bias=True, attention_bias=True, out_bias=True)
    ids = torch.arange(10)[None]
    assert torch.equal(plain(ids), biased(ids))
    rotary = tiny(bias=False, norm="rms", position="rotary")
    assert with_biases(rotary) is rotary


def test_bad_texts_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 500)
    (tmp_path / "short.txt").write_text("too short")
    recipe = RECIPES / "shakespeare-char.toml"
    for name, message in (
        ("none.txt", "cannot read .*none.txt: No such file"),
        ("empty", "holds no \\*.txt file"),
        ("latin.txt", "is not UTF-8 text"),
        ("short.txt", "8 tokens for training; context=64 needs more"),
    ):
        with pytest.raises(InputError, match=message):
            run(recipe, [f'data="{tmp_path / name}"'], folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="validation=1.5"):
        run(recipe, ["data=x", "validation=1.5"], folder=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="prompt is empty"):
        run(recipe, ["data=x", 'prompt=""'], folder=tmp_path / "run", progress=False)
