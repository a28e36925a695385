"""The real client of Ollama, unchanged, against a live server."""

import json
import urllib.request

import numpy as np
import ollama
import pytest

import qkv

ASKED = [{"role": "user", "content": "what is the name of the thing?"}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(live) -> ollama.Client:
    return ollama.Client(host=live.address)


def test_chat(client) -> None:
    answer = client.chat(model="small", messages=ASKED, options=GREEDY)
    ours = qkv.chat(ASKED, model="small", temperature=0, max_tokens=12)
    assert answer.message.content == ours.text
    assert (answer.done_reason, answer.prompt_eval_count, answer.eval_count) == (ours.finish, *ours.usage)
    assert answer.total_duration >= answer.load_duration + answer.eval_duration
    pieces = list(client.chat(model="small", messages=ASKED, options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == ours.text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_generate(client) -> None:
    raw = client.generate(model="small", prompt="return the", raw=True, options=GREEDY)
    assert raw.response == qkv.complete("return the", model="small", temperature=0, max_tokens=12).text
    spoken = client.generate(model="small", prompt="hello", system="be short", options=GREEDY)
    assert spoken.response == qkv.chat("hello", system="be short", model="small", temperature=0, max_tokens=12).text
    with pytest.raises(ollama.ResponseError, match="no tokens for filling in the middle"):
        client.generate(model="small", prompt="a", suffix="b")


def test_a_schema(client) -> None:
    shape = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = client.chat(model="small", messages=ASKED, format=shape, options={"temperature": 0, "num_predict": 40})
    assert json.loads(answer.message.content)["n"] in (1, 2)


def test_vectors(client) -> None:
    texts = ["a dog in a suit", "a red cat"]
    np.testing.assert_allclose(client.embed(model="reader", input=texts).embeddings, qkv.embed(texts, model="reader"))
    one = client.embeddings(model="reader", prompt=texts[0]).embedding
    np.testing.assert_allclose(one, qkv.embed(texts[0], model="reader"))


def test_what_is_here(client) -> None:
    assert {"small", "tiny", "reader"} <= {model.model for model in client.list().models}
    client.chat(model="small", messages=[], keep_alive="5m")
    assert "small" in {model.model for model in client.ps().models}
    assert client.show("small").capabilities == ["completion"]


def test_a_model_is_let_go(client) -> None:
    client.generate(model="small", prompt="", keep_alive=0)
    assert "small" not in {model.model for model in client.ps().models}


def test_what_is_not_honoured_is_said(client, live) -> None:
    asked = {"model": "small", "prompt": "x", "raw": True, "stream": False}
    asked["options"] = GREEDY | {"num_ctx": 99, "mirostat": 2}
    request = urllib.request.Request(f"{live.address}/api/generate", json.dumps(asked).encode())  # as a form, it says
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["warnings"] == [
            "fixed: num_ctx is the server's to say",
            "unknown: 'mirostat' changed nothing",
        ]


@pytest.mark.parametrize(
    ("asked", "said", "status"),
    [
        ({"model": "nothing"}, "unknown model 'nothing'", 404),
        ({"options": {"temperature": -1}}, "temperature=-1", 400),
        ({"format": {"type": "nothing"}}, "schema", 400),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "read text only", 400),
    ],
)
def test_errors(client, asked, said: str, status: int) -> None:
    with pytest.raises(ollama.ResponseError, match=said) as refused:
        client.chat(**{"model": "small", "messages": ASKED} | asked)
    assert refused.value.status_code == status
    with pytest.raises(ollama.ResponseError, match="for whoever runs this server: qkv pull"):
        client.pull("small")
