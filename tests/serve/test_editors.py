"""What editors and agents ask: Anthropic's messages, llama.cpp's own paths."""

import json
import urllib.error
import urllib.request

import pytest

import qkv

ASKED = [{"role": "user", "content": "what is the name of the thing?"}]


@pytest.fixture
def post(live):
    def ask(path: str, **asked: object) -> object:
        request = urllib.request.Request(live.address + path, json.dumps(asked).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.headers["content-type"].startswith("text/event-stream"):
                lines = answer.read().decode().splitlines()
                return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            return json.load(answer)

    return ask


def test_messages(post) -> None:
    given = {"model": "small", "messages": ASKED, "max_tokens": 12, "temperature": 0}
    answer = post("/v1/messages", **given, system="be short")
    ours = qkv.chat(ASKED, system="be short", model="small", max_tokens=12, temperature=0)
    assert answer["content"] == [{"type": "text", "text": ours.text}]
    assert answer["usage"] == {"input_tokens": ours.usage[0], "output_tokens": ours.usage[1]}
    assert answer["stop_reason"] == "max_tokens"
    assert post("/v1/messages/count_tokens", **given, system="be short")["input_tokens"] == ours.usage[0]


def test_a_stream_of_messages(post) -> None:
    given = {"model": "small", "messages": ASKED, "max_tokens": 12, "temperature": 0}
    whole = post("/v1/messages", **given)
    events = post("/v1/messages", **given, stream=True)
    kinds = [event["type"] for event in events]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(deltas) == whole["content"][0]["text"]
    assert events[-2]["usage"] == whole["usage"]


def test_an_answer_that_is_begun(post) -> None:
    begun = [*ASKED, {"role": "assistant", "content": "the thing is"}]
    answer = post("/v1/messages", model="small", messages=begun, max_tokens=9, temperature=0)
    ours = qkv.chat(begun, model="small", max_tokens=9, temperature=0, continue_final=True)
    assert answer["content"][0]["text"] == ours.text


def test_errors_as_anthropics(post) -> None:
    for asked, status, kind in (
        ({"max_tokens": -1}, 400, "invalid_request_error"),
        ({"model": "x"}, 404, "not_found_error"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post("/v1/messages", **{"model": "small", "messages": ASKED, "max_tokens": 3} | asked)
        assert refused.value.code == status
        said = json.load(refused.value)
        assert (said["type"], said["error"]["type"]) == ("error", kind)


def test_tokens_and_back(post) -> None:
    text = "return the name, 穿西裝 <|im_end|>"
    ids = post("/tokenize", model="small", content=text)["tokens"]
    assert post("/detokenize", model="small", tokens=ids)["content"] == text
    assert len(post("/tokenize", model="small", content=text, parse_special=False)["tokens"]) > len(ids)
    pieces = post("/tokenize", model="small", content="name", with_pieces=True)["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "name"


def test_the_middle(post) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post("/infill", model="small", input_prefix="a", input_suffix="b", n_predict=3)
    assert "no tokens for filling in the middle" in json.load(refused.value)["error"]["message"]


def test_what_the_model_is(live) -> None:
    with urllib.request.urlopen(f"{live.address}/props") as answer:
        said = json.load(answer)
    assert said["default_generation_settings"]["n_ctx"] == 128
    assert "im_start" in said["chat_template"]
