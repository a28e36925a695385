"""Fine-tuning on conversations: what is learnt, in which order, and what is refused before it starts."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from qkv.errors import ConfigError, InputError
from qkv.evaluate.loss import answer, exact, perplexity
from qkv.loaded.adapters import merge_adapter
from qkv.models.decoder import Decoder
from qkv.text.chat import ChatTemplate, Message
from qkv.train import curve
from qkv.train.checkpoint import load
from qkv.train.conversations import (
    IGNORED,
    Example,
    Order,
    Rows,
    Speaker,
    digest,
    messages,
    read_conversations,
    rows,
)
from qkv.train.finetune import answer_loss, answering, open_start, read_examples
from qkv.train.recipes import run
from qkv.weights.decoder import load_decoder
from qkv.weights.folder import Folder

RECIPE = """
task = "chat"
start = "{start}"
data = "{data}"
held_out = "{data}"
batch = 4
context = 90
[lora]
rank = 4
[fit]
steps = 6
dtype = "fp32"
save_every = 3
sample_every = 3
log_every = 1
[fit.optim]
lr = 1e-2
warmup = 1
"""
TALK = [Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "Twice?"), Message("assistant", "8")]


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", lambda metrics, picture: None)


def line(*turns: str) -> str:
    roles = ("user", "assistant") * len(turns)
    return json.dumps({"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns)]})


@pytest.fixture
def recipe(chat_model: Path, tmp_path: Path) -> Path:
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(line(f"{word}?", word.upper()) for word in ("one", "two", "three", "four", "five")))
    file = tmp_path / "chats.toml"
    file.write_text(RECIPE.format(start=chat_model, data=data))
    return file


def test_the_answers_and_their_ends_are_learnt_and_nothing_else(speaker: Speaker) -> None:
    ids, answered = speaker.example(TALK)
    tokenizer = speaker.tokenizer
    spelled = tokenizer.decode(ids, control=True)
    assert spelled == "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in TALK)
    space = tokenizer.encode(" ")[0]
    learnt = [id if right else space for id, right in zip(ids, answered)]
    assert tokenizer.decode(learnt, control=True).split() == ["4<|im_end|>", "8<|im_end|>"]


def test_spelled_control_tokens_are_text(speaker: Speaker) -> None:
    ids, answered = speaker.example([Message("user", "<|im_end|>"), Message("assistant", "<|im_start|>user")])
    assert [ids.count(token) for token in (256, 257)] == [2, 2]
    assert sum(answered) == len("<|im_start|>user") + 1


def test_the_loss_reaches_no_prompt_token(decoder: Decoder, speaker: Speaker) -> None:
    batch = rows([speaker.example(TALK), speaker.example(TALK[:2])])
    states = decoder.states(batch.ids).detach().requires_grad_()
    decoder.states = lambda ids: states  # type: ignore[method-assign,assignment]
    answering(decoder, batch, torch.Generator()).value.backward()
    assert states.grad is not None
    learnt = batch.targets != IGNORED
    assert (states.grad[~learnt] == 0).all()
    assert (states.grad[learnt].abs().sum(-1) > 0).all()
    found = speaker.tokenizer.decode(batch.targets[0][learnt[0]].tolist(), control=True)
    assert found == "4<|im_end|>8<|im_end|>"


def test_the_loss_is_the_mean_over_answers_however_they_are_padded(decoder: Decoder, speaker: Speaker) -> None:
    examples = [speaker.example(TALK), speaker.example(TALK[:2])]
    alone = [answering(decoder, rows([example]), torch.Generator()) for example in examples]
    together = answering(decoder, rows(examples), torch.Generator())
    assert together.count == alone[0].count + alone[1].count == 6  # type: ignore[operator]
    expected = (4 * alone[0].value + 2 * alone[1].value) / 6
    torch.testing.assert_close(together.value, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        chances = decoder(torch.tensor([examples[1].ids]))[0].double().log_softmax(-1)
    places = [i for i, learnt in enumerate(examples[1].answered) if learnt]
    plain = -sum(chances[i - 1, examples[1].ids[i]] for i in places) / 2
    assert float(alone[1].value.detach()) == pytest.approx(float(plain), rel=1e-5)
    assert answer_loss(decoder, examples, 1) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_run_fits_and_leaves_a_model_and_an_adapter(recipe: Path, chat_model: Path, tmp_path: Path) -> None:
    said = {"eos_token_id": 1, "do_sample": True, "top_k": 7, "unheard_of": 3}
    (chat_model / "generation_config.json").write_text(json.dumps(said))
    result = run(recipe, ["fit.steps=40"], folder=tmp_path / "run", progress=False)
    records = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["held_out"] for record in records if "held_out" in record]
    assert losses[-1] < 0.5 * losses[0]
    merged = open_start(str(tmp_path / "run/model"), torch.float32)
    assert result.steps == 40
    kept = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    assert kept == said | {"eos_token_id": sorted(merged.tokenizer.stops)}, "how it writes comes along"
    talk = merged.template.encode(TALK[:1], merged.tokenizer)
    ids = torch.tensor([talk])
    corrected = load_decoder(Folder(chat_model))
    merge_adapter(corrected, Folder(tmp_path / "run/adapter"))
    torch.testing.assert_close(merged.decoder(ids), corrected(ids), rtol=1e-3, atol=1e-3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    torch.testing.assert_close(theirs(ids).logits, merged.decoder(ids), rtol=1e-3, atol=1e-3)
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model").apply_chat_template(
            [{"role": "user", "content": "2 + 2?"}], add_generation_prompt=True, return_dict=False
        )
        == talk
    )


def test_a_checkpoint_holds_the_corrections_alone_and_resumes_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    run(recipe, folder=tmp_path / "whole", progress=False)
    run(recipe, ["fit.minutes=1e-9"], folder=tmp_path / "halves", progress=False)
    run(recipe, folder=tmp_path / "halves", resume=True, progress=False)
    one, other = load(tmp_path / "whole"), load(tmp_path / "halves")
    assert one is not None
    assert other is not None
    assert {name.rpartition(".")[2] for name in one.groups["model"]} == {"a", "b"}
    for group, tensors in one.groups.items():
        assert tensors.keys() == other.groups[group].keys()
        assert all(torch.equal(tensor, other.groups[group][name]) for name, tensor in tensors.items())


def test_without_lora_every_weight_is_trained(recipe: Path, chat_model: Path, tmp_path: Path) -> None:
    run(recipe, ["method=full"], folder=tmp_path / "run", progress=False)
    before, after = (load_decoder(Folder(folder)).state_dict() for folder in (chat_model, tmp_path / "run/model"))
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert not (tmp_path / "run/adapter").exists()


def test_accumulated_parts_weigh_by_their_answers(recipe: Path, tmp_path: Path) -> None:
    whole = run(recipe, ["fit.ema=0"], folder=tmp_path / "whole", progress=False)
    parts = run(recipe, ["fit.ema=0", "fit.accumulate=3"], folder=tmp_path / "parts", progress=False)
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(dict(parts.model.named_parameters())[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "chats.jsonl is empty; write one JSON object a line"),
        ("\n\n", "is empty"),
        (line("a", "b") + "\n{oops", "chats.jsonl, line 2: it is not JSON"),
        (line("a", "b") + "\n\n[1]", "chats.jsonl, line 3: it holds list, not an object"),
        ('{"text": "a"}', "line 1: messages is not a list of messages"),
        ('{"messages": []}', "line 1: messages is not a list of messages"),
        (
            '{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}',
            "line 1: it has tools, which training does",
        ),
        ('{"messages": [{"role": "user"}]}', "line 1: .* is not a message of role and content"),
        ('{"messages": [{"role": "user", "content": 4}]}', "line 1: .* is not a message of role and content"),
        ('{"messages": [{"role": "boss", "content": "a"}]}', "line 1: unknown role 'boss'"),
        (line("a"), "line 1: it has no answer to learn"),
        (line("a" * 90, "b"), "line 1: it has 1.. tokens, but context=90; shorten it or raise context"),
        ("\ud800", "not UTF-8"),
        ("[" * 100_000, "line 1: it is not JSON"),
    ],
)
def test_bad_data_is_named_before_training_starts(text: str, message: str, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=message):
        run(recipe, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_other_mistakes(recipe: Path, tmp_path: Path) -> None:
    for change, message in (
        ("context=500", "context=500 is more than the 96 tokens of the model"),
        ("batch=0", "batch=0"),
        ("lora.rank=0", "lora.rank=0 is out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(recipe, [change], folder=tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="cannot read .*none.jsonl"):
        run(recipe, [f'data="{tmp_path}/none.jsonl"'], folder=tmp_path / "run", progress=False)
    run(recipe, folder=tmp_path / "run", progress=False)
    (tmp_path / "chats.jsonl").write_text(line("another", "file"))
    with pytest.raises(ConfigError, match="sha256="):
        run(recipe, folder=tmp_path / "run", resume=True, progress=False)


def test_a_template_that_spells_the_past_otherwise_is_refused(speaker: Speaker) -> None:
    forgetful = ChatTemplate("{{ messages | length }}" + speaker.template.source)
    with pytest.raises(InputError, match="spells its beginning otherwise"):
        Speaker(speaker.tokenizer, forgetful, 96).example(TALK)


def test_an_epoch_reads_everything_once_rows_of_like_length_together() -> None:
    lengths = [3 + i * 7 % 50 for i in range(103)]
    order = Order(lengths, 8, 0)
    for epoch in (0, 1):
        steps = [order.at(step) for step in range(epoch * order.steps, (epoch + 1) * order.steps)]
        assert sorted(row for step in steps for row in step) == list(range(103))
        spread = [max(lengths[row] for row in step) - min(lengths[row] for row in step) for step in steps]
        assert sum(spread) / len(spread) < 10
    assert order.at(0) != order.at(order.steps)
    assert order.at(5) == Order(lengths, 8, 0).at(5) != Order(lengths, 8, 1).at(5)


def test_rows_are_padded_at_the_end() -> None:
    batch = rows([Example([1, 2, 3, 4], [False, False, True, True]), Example([5, 6], [False, True])])
    assert batch.ids.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch.targets.tolist() == [[IGNORED, 3, 4], [6, IGNORED, IGNORED]]
    assert isinstance(batch, Rows)


def test_measures(decoder: Decoder, speaker: Speaker) -> None:
    ids = speaker.template.encode(TALK[:1], speaker.tokenizer)
    expected = []
    for _ in range(5):
        with torch.no_grad():
            expected.append(int(decoder(torch.tensor([ids + expected]))[0, -1].argmax()))
    expected = expected[: next((i for i, token in enumerate(expected) if token == 257), 5)]
    said = answer(decoder, speaker, TALK[:1], most=5)
    assert said == speaker.tokenizer.decode(expected)
    right = [TALK[0], Message("assistant", said)]
    assert exact(decoder, speaker, [right, TALK[:2]], most=5) == 0.5
    text = "some text " * 9
    tokens = torch.tensor([speaker.tokenizer.encode(text)])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(decoder(tokens[:, :-1])[0], tokens[0, 1:])
    assert perplexity(decoder, speaker.tokenizer, text) == pytest.approx(float(loss.exp()), rel=1e-4)
    with pytest.raises(InputError, match="0 tokens"):
        perplexity(decoder, speaker.tokenizer, "")


def test_files_are_read_as_they_are(speaker: Speaker, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line("a\u2028b", "ç") + "\n")
    assert read_conversations(file, list) == [[Message("user", "a\u2028b"), Message("assistant", "ç")]]
    assert len(read_examples(file, speaker)) == 1
    assert digest(file) != digest(Path(__file__))
    assert messages([{"role": "user", "content": ""}]) == [Message("user", "")]
