"""OpenAI's own client, unchanged, against a live server; what it reads is what the library gives."""

import base64
import io
import itertools
import time

import numpy as np
import openai
import pytest
from PIL import Image

import qkv
from qkv.pictures.picture import read

ASKED = [{"role": "user", "content": "what is the name of the thing?"}]


@pytest.fixture
def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.address}/v1", api_key="none", max_retries=0)


def test_models(client) -> None:
    names = [model.id for model in client.models.list()]
    assert {"small", "tiny", "reader"} <= set(names)
    assert client.models.retrieve("tiny").kind == "pictures"
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        client.models.retrieve("../../etc/passwd")


def test_a_chat_is_the_librarys(client) -> None:
    given = {"seed": 5, "temperature": 0.8, "max_tokens": 12}
    answer = client.chat.completions.create(model="small", messages=ASKED, n=2, **given)
    ours = qkv.chat(ASKED, model="small", n=2, **given)
    assert [choice.message.content for choice in answer.choices] == [text.text for text in ours.texts]
    assert [choice.finish_reason for choice in answer.choices] == [text.finish for text in ours.texts]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == ours.usage
    assert answer.usage.total_tokens == sum(ours.usage)
    assert answer.seed == 5


def test_a_stream_is_the_same_text(client) -> None:
    given = {"model": "small", "messages": ASKED, "max_tokens": 20, "seed": 1, "n": 2, "temperature": 1}
    whole = client.chat.completions.create(**given)
    found, usage, finish = ["", ""], None, {}
    for chunk in client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
            finish |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert found == [choice.message.content for choice in whole.choices]
    assert finish == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_log_probabilities(client) -> None:
    answer = client.chat.completions.create(
        model="small", messages=ASKED, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
        assert len(token.top_logprobs) == 3


def test_a_schema(client) -> None:
    shape = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": shape, "strict": True}}
    answer = client.chat.completions.create(model="small", messages=ASKED, max_tokens=40, response_format=form)
    assert answer.choices[0].message.content.replace(" ", "") in ('{"n":1}', '{"n":2}')


def test_completions(client) -> None:
    prompts = ["return the name", "the thing"]
    answer = client.completions.create(model="small", prompt=prompts, max_tokens=6, temperature=0, logprobs=2)
    ours = [qkv.complete(prompt, model="small", max_tokens=6, temperature=0) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [one.text for one in ours]
    assert answer.choices[1].logprobs.text_offset[0] == 0
    echoed = client.completions.create(model="small", prompt="the thing", max_tokens=3, temperature=0, echo=True)
    assert echoed.choices[0].text.startswith("the thing")
    pieces = client.completions.create(model="small", prompt="the thing", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces if chunk.choices) == ours[1].text


def test_embeddings(client) -> None:
    texts = ["a dog in a suit", "a red cat"]
    ours = qkv.embed(texts, model="reader")
    answer = client.embeddings.create(model="reader", input=texts)  # the client asks for base64
    np.testing.assert_array_equal(np.float32([row.embedding for row in answer.data]), ours)
    plain = client.embeddings.create(model="reader", input=texts[0], encoding_format="float")
    np.testing.assert_array_equal(np.float32(plain.data[0].embedding), ours[0])


def test_pictures(client, tmp_path) -> None:
    given = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0, "negative_prompt": "blue"}
    answer = client.images.generate(model="tiny", prompt="a dog", n=2, size="32x32", extra_body=given)
    ours = qkv.draw("a dog", model="tiny", count=2, seed=3, steps=4, guidance=2.0, negative="blue")
    for number, (theirs, picture) in enumerate(zip(answer.data, ours)):
        path = tmp_path / f"{number}.png"
        path.write_bytes(base64.b64decode(theirs.b64_json))
        assert path.read_bytes() == picture.png()
        assert read(path).settings == picture.settings
    jpeg = client.images.generate(model="tiny", prompt="a dog", output_format="jpeg", extra_body=given)
    assert Image.open(io.BytesIO(base64.b64decode(jpeg.data[0].b64_json))).format == "JPEG"


def test_pictures_as_they_come(client) -> None:
    given = {"seed": 3, "num_inference_steps": 6}
    events = list(client.images.generate(model="tiny", prompt="a dog", stream=True, partial_images=2, extra_body=given))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    whole = client.images.generate(model="tiny", prompt="a dog", extra_body=given)
    assert events[-1].b64_json == whole.data[0].b64_json


def noise(size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (size, size, 3), dtype=np.uint8))


def holed(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture, transparent in the box."""
    image = image.copy()
    image.putalpha(255)
    image.paste((0, 0, 0, 0), box)
    return image


def file(image: Image.Image) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "upload", buffer.getvalue(), "image/png"


def test_edits(client) -> None:
    """What is transparent, in the mask or in the picture itself, is drawn anew."""
    given = {"prompt": "a dog", "model": "tiny", "size": "32x32"}
    more = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
    ours = {"model": "tiny", "seed": 3, "steps": 4, "guidance": 2.0, "size": (32, 32), "image": noise()}
    white = Image.new("L", (32, 32))
    white.paste(255, (4, 8, 20, 24))
    hole = holed(noise(), (4, 8, 20, 24))
    on_white = Image.composite(Image.new("RGB", (32, 32), "white"), noise(), white)

    def edit(**asked: object) -> bytes:
        extra = more | asked.pop("extra", {})
        return base64.b64decode(client.images.edit(**given, **asked, extra_body=extra).data[0].b64_json)

    masked = qkv.draw("a dog", **ours, mask=white)[0].png()
    assert edit(image=file(noise()), mask=file(hole)) == masked
    assert edit(image=[file(noise())], mask=file(hole)) == masked
    assert edit(image=file(hole)) == qkv.draw("a dog", **ours | {"image": on_white}, mask=white)[0].png()
    whole = qkv.draw("a dog", **ours, strength=0.5)[0].png()
    assert edit(image=file(noise()), extra={"strength": 0.5}) == whole
    *_, last = client.images.edit(
        **given, image=file(noise()), stream=True, partial_images=1, extra_body=more | {"strength": 0.5}
    )
    assert (last.type, base64.b64decode(last.b64_json)) == ("image_edit.completed", whole)


def test_edits_that_cannot_be(client) -> None:
    for asked, said in (
        ({"image": file(noise()), "mask": file(noise())}, "the mask is nowhere transparent"),
        ({"image": file(noise()), "mask": file(holed(noise(16), (0, 0, 9, 9)))}, "the mask has 16x16 pixels"),
        ({"image": [file(noise()), file(noise())]}, "there are 2 files image"),
        ({"image": ("upload", b"<svg/>", "image/png")}, "image cannot be read: it is not a PNG"),
        ({"image": file(noise()), "n": 99}, "n: "),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.images.edit(prompt="a dog", model="tiny", **asked)


BAD = {
    "temperature": ({"temperature": -1}, "temperature=-1"),
    "n": ({"n": 10**9}, "n=1000000000"),
    "max_tokens": ({"max_tokens": 2**63}, "max_tokens="),
    "empty": ({"messages": []}, "messages"),
    "null": ({"messages": [{"role": "user", "content": None}]}, "messages.0."),
    "long": ({"messages": [{"role": "user", "content": "x" * 4000}]}, "the prompt has"),
    "kind": ({"model": "tiny"}, "model tiny is for pictures, not for text"),
    "type": ({"messages": "hello"}, "messages"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
    "schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_said(client, name: str) -> None:
    asked, said = BAD[name]
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.chat.completions.create(**{"model": "small", "messages": ASKED} | asked)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code == ("context_length_exceeded" if name == "long" else "invalid")
    assert refused.value.request_id.startswith("req_")


def test_what_is_not_known_is_a_warning(client) -> None:
    answer = client.chat.completions.create(model="small", messages=ASKED, max_tokens=1, extra_body={"mirostat": 2})
    assert answer.warnings == ["unknown: 'mirostat' changed nothing"]


def test_leaving_a_stream_ends_the_work(client, live) -> None:
    stream = client.chat.completions.create(model="small", messages=ASKED, max_tokens=60, stream=True)
    for _ in itertools.islice(stream, 2):
        pass
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(model="tiny", prompt="x", timeout=0.2, extra_body={"num_inference_steps": 900})
    deadline = time.monotonic() + 20
    while any(live.rooms.busy.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(live.rooms.busy.values())


def test_a_prompt_too_many_ends_the_others(serve) -> None:
    narrow = serve(texts=2)
    client = openai.OpenAI(base_url=f"{narrow.address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="2 requests for texts are here already"):
        client.completions.create(model="small", prompt=["a", "b", "c"], max_tokens=60)
    assert narrow.rooms.busy["texts"] == 0
