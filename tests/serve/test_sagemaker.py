"""boto3, unchanged, against a live server: what SageMaker's endpoints and containers answer, in every shape."""

import base64
import functools
import io
import itertools
import json
import struct
import time
import urllib.error
import urllib.request
import zlib

import boto3
import numpy as np
import pytest
from botocore.config import Config
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from PIL import Image

import qkv
from qkv.serve.endpoints import frame

TALK = [{"role": "user", "content": "what is the name of the thing?"}]
DRAWN = {"prompt": "a dog", "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 3}
JPEG = "application/json;jpeg"


def client(address: str, service: str = "sagemaker-runtime", key: str = "anybody", **more):
    config = Config(region_name="us-east-1", retries={"max_attempts": 0}, **more)
    return boto3.client(service, endpoint_url=address, aws_access_key_id=key, aws_secret_access_key="x", config=config)


@functools.cache  # making one costs more than asking it
def _runtime(address: str):
    return client(address)


@pytest.fixture
def runtime(live):
    return _runtime(live.address)


@pytest.fixture
def ask(runtime):
    def ask(endpoint: str, payload: object, accept: str | None = None, kind: str | None = "application/json", **more):
        body = payload.encode() if isinstance(payload, str) else json.dumps(payload)
        said = {"Accept": accept} if accept else {}
        said |= {"ContentType": kind} if kind else {}
        answer = runtime.invoke_endpoint(EndpointName=endpoint, Body=body, **said, **more)
        return json.loads(answer["Body"].read())

    return ask


def ours(**more):
    given = {"model": "tiny", "steps": 4, "guidance": 2.0, "seed": 3} | more
    return qkv.draw(given.pop("prompt", "a dog"), **given)


# Pictures.


def test_a_picture_is_the_librarys(ask) -> None:
    answer = ask("tiny", DRAWN | {"width": 32, "height": 32, "negative_prompt": "blue", "batch_size": 4})
    assert answer["prompt"] == "a dog"
    assert answer["seeds"] == [3]
    np.testing.assert_array_equal(answer["generated_images"][0], np.asarray(ours(negative="blue")[0].image))
    assert "warnings" not in answer


def test_pictures_of_lists(ask) -> None:
    asked = DRAWN | {"prompt": ["a dog", "a cat"], "negative_prompt": ["blue", ""], "num_images_per_prompt": 2}
    answer = ask("tiny", asked)
    pictures = ours(prompt=["a dog", "a cat"], negative=["blue", ""], count=2)
    assert answer["prompt"] == ["a dog", "a cat"]
    assert len(answer["generated_images"]) == 4
    for theirs, picture in zip(answer["generated_images"], pictures):
        np.testing.assert_array_equal(theirs, np.asarray(picture.image))


def test_pictures_as_files(ask, runtime) -> None:
    answer = ask("tiny", DRAWN, JPEG)
    image = Image.open(io.BytesIO(base64.b64decode(answer["generated_images"][0])))
    assert (image.format, image.size) == ("JPEG", (32, 32))
    told = runtime.invoke_endpoint(EndpointName="tiny", Body=json.dumps(DRAWN), Accept="image/png, */*")
    assert told["ContentType"] == "image/png"
    assert told["Body"].read() == ours()[0].png()


def test_a_prompt_alone(ask) -> None:
    answer = ask("tiny", "a dog", kind="application/x-text")
    assert answer["prompt"] == "a dog"
    assert np.asarray(answer["generated_image"]).shape == (32, 32, 3)
    assert ask("tiny", json.dumps("a dog"))["prompt"] == "a dog"  # sagemaker's JSONSerializer of a text


def test_guidance_of_one_or_less_is_none(ask) -> None:
    answer = ask("tiny", DRAWN | {"guidance_scale": 0.5, "negative_prompt": "blue"})
    np.testing.assert_array_equal(answer["generated_images"][0], np.asarray(ours(guidance=1.0)[0].image))
    assert answer["warnings"][0].startswith("negative-without-guidance")


def test_pictures_that_begin_from_a_picture(ask) -> None:
    """As rows of pixels, and as files in base64; in JumpStart's mask white is drawn anew, as in ours."""
    begin = ours(seed=9)[0].image
    mask = Image.fromarray(np.uint8([[255] * 16 + [0] * 16] * 32))
    expected = ours(image=begin, mask=mask, strength=0.7)[0].image
    asked = DRAWN | {"strength": 0.7, "image": np.asarray(begin).tolist(), "mask_image": np.asarray(mask).tolist()}
    np.testing.assert_array_equal(ask("tiny", asked)["generated_images"][0], np.asarray(expected))
    files = {"image": base64.b64encode(png(begin)).decode(), "mask_image": base64.b64encode(png(mask)).decode()}
    answer = ask("tiny", asked | files, kind=JPEG)
    np.testing.assert_array_equal(answer["generated_images"][0], np.asarray(expected))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


# Texts.


def completed(prompt: str = "the thing", **options) -> qkv.Completion:
    return qkv.complete(prompt, model="small", code=False, **options)


def test_text_inputs(ask) -> None:
    sampled = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.7, "seed": 5, "num_return_sequences": 2}
    answer = ask("small", {"text_inputs": "the thing", "max_new_tokens": 6} | sampled)
    expected = completed(max_tokens=6, top_k=20, top_p=0.9, temperature=0.7, seed=5, n=2)
    assert answer == {"generated_texts": [text.text for text in expected.texts]}
    beams = ask("small", {"text_inputs": "the thing", "max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2})
    assert beams["generated_texts"] == [text.text for text in completed(max_tokens=4, beams=2, n=2).texts]


def test_max_length_counts_the_prompt(ask) -> None:
    used, _ = completed(max_tokens=1).usage
    answer = ask("small", {"text_inputs": "the thing", "max_length": used + 5})
    assert answer["generated_texts"] == [completed(max_tokens=5).text]


def test_inputs_and_parameters(ask) -> None:
    asked = {"inputs": "the thing", "parameters": {"max_new_tokens": 6, "details": True, "do_sample": False}}
    (answer,) = ask("small", asked)
    expected = completed(max_tokens=6)
    assert answer["generated_text"] == expected.text
    assert answer["details"]["generated_tokens"] == len(expected.texts[0].ids)
    whole = asked | {"parameters": {"max_new_tokens": 6, "return_full_text": True}}
    assert ask("small", whole) == [{"generated_text": "the thing" + expected.text}]
    several = ask("small", asked | {"inputs": ["the thing", "a name"], "parameters": {"max_new_tokens": 6}})
    assert [row[0]["generated_text"] for row in several] == [expected.text, completed("a name", max_tokens=6).text]


def test_the_words_of_llama_2(ask) -> None:
    eula = {"CustomAttributes": "accept_eula=true"}
    asked = {"parameters": {"max_new_tokens": 6, "temperature": 0.0}}
    plain = completed(max_tokens=6, temperature=0).text
    assert ask("small", asked | {"inputs": "the thing"}, **eula) == [{"generation": plain}]
    answer = ask("small", asked | {"inputs": [TALK]}, **eula)
    expected = qkv.chat(TALK, model="small", max_tokens=6, temperature=0).text
    assert answer == [{"generation": {"role": "assistant", "content": expected}}]


def test_openai_messages(ask) -> None:
    answer = ask("small", {"messages": TALK, "max_tokens": 6, "temperature": 0})
    assert answer["choices"][0]["message"]["content"] == qkv.chat(TALK, model="small", max_tokens=6, temperature=0).text
    answer = ask("small", {"prompt": "the thing", "max_tokens": 6, "temperature": 0})
    assert answer["choices"][0]["text"] == completed(max_tokens=6, temperature=0).text


def test_json_without_a_content_type(ask) -> None:
    assert ask("small", {"inputs": "the thing", "parameters": {"max_new_tokens": 2}}, kind=None)
    assert ask("small", "the thing", kind="application/x-text")["generated_text"]


def test_vectors_and_translations(ask) -> None:
    vectors = qkv.embed(["a dog", "a red cat"], model="reader")
    answer = ask("reader", {"text_inputs": ["a dog", "a red cat"]})
    np.testing.assert_array_equal(np.float32(answer["embedding"]), vectors)
    np.testing.assert_array_equal(
        np.float32(ask("reader", "a dog", kind="application/x-text")["embedding"]), vectors[0]
    )


@pytest.mark.weights
def test_a_translation(ask) -> None:
    answer = ask("help-en-de", {"inputs": "Open the file."})
    assert answer == [{"translation_text": qkv.translate("Open the file.", model="help-en-de").text}]


# Streams.


def parts(runtime, endpoint: str, payload: object) -> list[bytes]:
    answer = runtime.invoke_endpoint_with_response_stream(
        EndpointName=endpoint, Body=json.dumps(payload), ContentType="application/json"
    )
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    return [event["PayloadPart"]["Bytes"] for event in answer["Body"]]


def test_a_stream_of_tokens(runtime) -> None:
    asked = {"inputs": "the thing", "parameters": {"max_new_tokens": 12}, "stream": True}
    lines = [json.loads(line[5:]) for line in b"".join(parts(runtime, "small", asked)).split(b"\n\n") if line]
    expected = completed(max_tokens=12)
    assert "".join(line["token"]["text"] for line in lines) == expected.text
    assert lines[-1]["generated_text"] == expected.text
    assert len(lines) > 2


def test_a_stream_of_messages(runtime) -> None:
    asked = {"messages": TALK, "max_tokens": 12, "stream": True, "temperature": 0}
    lines = [line[6:] for line in b"".join(parts(runtime, "small", asked)).split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    found = "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    assert found == qkv.chat(TALK, model="small", max_tokens=12, temperature=0).text


def test_a_whole_answer_in_a_stream(runtime) -> None:
    answer = json.loads(b"".join(parts(runtime, "tiny", DRAWN)))
    np.testing.assert_array_equal(answer["generated_images"][0], np.asarray(ours()[0].image))


def test_an_error_on_the_way_is_raised(runtime, monkeypatch) -> None:
    from qkv.serve import sagemaker

    async def broken(events, front):
        yield {"token": {"text": "a"}}
        raise ValueError("secret")

    monkeypatch.setattr(sagemaker, "_tokens", broken)
    asked = {"inputs": "the thing", "parameters": {"max_new_tokens": 2}, "stream": True}
    with pytest.raises(EventStreamError, match="ModelStreamError") as raised:
        parts(runtime, "small", asked)
    assert "secret" not in str(raised.value)


def test_leaving_a_stream_ends_the_work(runtime, live) -> None:
    asked = {"inputs": "the thing", "parameters": {"max_new_tokens": 60}, "stream": True}
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName="small", Body=json.dumps(asked))
    for _ in itertools.islice(answer["Body"], 2):
        pass
    answer["Body"].close()
    deadline = time.monotonic() + 20
    while any(live.rooms.busy.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(live.rooms.busy.values())


def test_frames() -> None:
    """By the published layout, and read by botocore."""
    message = frame({":message-type": "event", ":event-type": "é"}, b"abc\x00")
    total, headers, checked = struct.unpack("!III", message[:12])
    assert (total, checked) == (len(message), zlib.crc32(message[:8]))
    assert struct.unpack("!I", message[-4:])[0] == zlib.crc32(message[:-4])
    buffer = EventStreamBuffer()
    buffer.add_data(message + message[:20])
    (event,) = list(buffer)
    assert event.headers == {":message-type": "event", ":event-type": "é"}
    assert event.payload == b"abc\x00"
    assert headers == len(message) - 16 - 4


# Later.


def test_an_answer_that_comes_later(serve) -> None:
    address = serve().address
    runtime, store = client(address), client(address, "s3", s3={"addressing_style": "path"})
    store.put_object(Bucket="sagemaker-here", Key="in/one.json", Body=json.dumps(DRAWN))
    for given in ({"Body": json.dumps(DRAWN)}, {"InputLocation": "s3://sagemaker-here/in/one.json"}):
        told = runtime.invoke_endpoint_async(EndpointName="tiny", ContentType="application/json", **given)
        answer = json.loads(_waited(store, told["OutputLocation"]))
        np.testing.assert_array_equal(answer["generated_images"][0], np.asarray(ours()[0].image))
    told = runtime.invoke_endpoint_async(EndpointName="tiny", Body=json.dumps(DRAWN | {"width": 7, "height": 8}))
    assert "width=7" in json.loads(_waited(store, told["FailureLocation"]))["Message"]
    with pytest.raises(ClientError, match="no object"):
        runtime.invoke_endpoint_async(EndpointName="tiny", InputLocation="s3://sagemaker-here/none")


def _waited(store, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    deadline = time.monotonic() + 60
    while True:
        try:
            return store.get_object(Bucket=bucket, Key=key)["Body"].read()
        except store.exceptions.NoSuchKey:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# Headers, names, errors.


def test_headers_are_handed_through(runtime) -> None:
    answer = runtime.invoke_endpoint(
        EndpointName="small",
        Body=json.dumps({"inputs": "the thing", "parameters": {"max_new_tokens": 1, "mirostat": 2}}),
        CustomAttributes="trace=1",
        InferenceId="mine",
    )
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert answer["CustomAttributes"] == "trace=1"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert headers["x-amzn-sagemaker-inference-id"] == "mine"
    assert answer["ResponseMetadata"]["RequestId"].startswith("req_")
    assert headers["x-qkv-warnings"] == "unknown: 'mirostat' changed nothing"


def test_which_model_answers(ask, runtime) -> None:
    answer = ask("nobody's", DRAWN)
    assert answer["warnings"] == ['endpoint: nobody made one named "nobody\'s"; the default model answers']
    assert ask("nobody's", {"inputs": "the", "parameters": {"max_new_tokens": 1}})
    assert "warnings" not in ask("qkv-txt2img-tiny", DRAWN)
    alias = "model-txt2img-stabilityai-stable-diffusion-v2-1-base"
    assert ask(alias, DRAWN)["warnings"] == [f"alias: {alias} is not here; tiny answers"]
    targeted = ask("any", "a dog", kind="application/x-text", TargetModel="tiny.tar.gz")
    assert "generated_image" in targeted
    with pytest.raises(ClientError, match="unknown model"):
        ask("any", DRAWN, TargetModel="../../etc/passwd")


BAD = {
    "size": ("tiny", DRAWN | {"width": 7, "height": 8}, "width=7"),
    "one side": ("tiny", DRAWN | {"width": 8}, "width stands alone"),
    "steps": ("tiny", DRAWN | {"num_inference_steps": 10**9}, "steps=1000000000"),
    "count": ("tiny", DRAWN | {"num_images_per_prompt": 10**6}, "count=1000000"),
    "negatives": ("tiny", DRAWN | {"negative_prompt": ["blue"]}, "negative_prompt is a list if"),
    "prompt": ("tiny", DRAWN | {"prompt": 5}, "prompt=5"),
    "no prompt": ("tiny", {"seed": 1}, "prompt=None"),
    "pixels": ("tiny", DRAWN | {"image": [[1, 2], [3]]}, "image is neither a file in base64 nor rows of pixels"),
    "colours": ("tiny", DRAWN | {"image": [[[1, 2, 256]]]}, "not in 0..255"),
    "no file": ("tiny", DRAWN | {"image": "aGVsbG8="}, "image cannot be read: it is not a PNG"),
    "no image": ("tiny", DRAWN | {"strength": 0.5}, "there is a strength, but no image"),
    "strength": ("tiny", DRAWN | {"image": [[[1, 2, 3]] * 8] * 8, "strength": 2}, "strength=2"),
    "inputs": ("small", {"inputs": 5}, "no inputs"),
    "many": ("small", {"inputs": ["x"] * 200}, "there are 200 texts; at most 128"),
    "streams": ("small", {"inputs": ["x", "y"], "stream": True}, "a stream is of one text"),
    "parameters": ("small", {"inputs": "x", "parameters": 5}, "parameters=5 is no object"),
    "tokens": ("small", {"inputs": "x", "parameters": {"max_new_tokens": -1}}, "max_tokens=-1"),
    "ngrams": ("small", {"text_inputs": "x", "no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
    "length": ("small", {"text_inputs": "the thing", "max_length": 1}, "counts the prompt too"),
    "messages": ("small", {"messages": "hello"}, "messages"),
    "list": ("small", [1], "no object"),
    "cut": ("small", '{"inputs": "x', "not JSON"),
    "nan": ("small", '{"inputs": "x", "parameters": {"temperature": NaN}}', "NaN"),
    "deep": ("small", "[" * 100_000, "nests too deep"),
    "half a pair": ("small", r'{"inputs": "\ud800"}', ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_a_model_error(runtime, ask, name: str) -> None:
    endpoint, payload, said = BAD[name]
    with pytest.raises(runtime.exceptions.ModelError) as refused:
        ask(endpoint, payload)
    assert refused.value.response["OriginalStatusCode"] == 400
    assert said in refused.value.response["OriginalMessage"]
    assert "/" not in refused.value.response["OriginalMessage"].replace("application/x-text", "")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_a_content_type_that_is_not_read(runtime, ask) -> None:
    with pytest.raises(runtime.exceptions.ModelError, match="text/csv"):
        ask("small", "a,b", kind="text/csv")
    with pytest.raises(runtime.exceptions.ModelError, match="image/gif"):
        ask("tiny", DRAWN, accept="image/gif")
    with pytest.raises(runtime.exceptions.ModelError, match="UTF-8"):
        runtime.invoke_endpoint(EndpointName="small", Body=b"\xff\xfe", ContentType="application/x-text")


def test_the_key_and_the_queue(serve) -> None:
    locked = serve(keys=("a-key-of-some-length",)).address
    with pytest.raises(ClientError) as refused:
        client(locked).invoke_endpoint(EndpointName="small", Body=b"{}")
    assert refused.value.response["Error"]["Code"] == "AccessDeniedException"
    answer = client(locked, key="a-key-of-some-length").invoke_endpoint(
        EndpointName="small", Body=json.dumps({"inputs": "the", "parameters": {"max_new_tokens": 1}})
    )
    assert json.loads(answer["Body"].read())
    full = serve(texts=0).address
    with pytest.raises(ClientError) as busy:
        client(full).invoke_endpoint(EndpointName="small", Body=json.dumps({"inputs": "the"}))
    assert busy.value.response["Error"]["Code"] == "ThrottlingException"
    assert busy.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"


# The container itself.


def post(url: str, payload: object, **headers: str) -> tuple[int, dict]:
    asked = urllib.request.Request(url, json.dumps(payload).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def test_the_container(live) -> None:
    url = f"{live.address}/invocations"
    status, answer = post(url, {"inputs": "the thing", "parameters": {"max_new_tokens": 3}})
    assert (status, answer) == (200, [{"generated_text": completed(max_tokens=3).text}])
    assert post(url, DRAWN, Accept=JPEG)[1]["seeds"] == [3]
    status, answer = post(url, {"inputs": 5})
    assert status == 400
    assert "no inputs" in answer["Message"]
    with urllib.request.urlopen(f"{live.address}/ping") as answer:
        assert (answer.status, answer.read()) == (200, b"")
    with urllib.request.urlopen(f"{live.address}/execution-parameters") as answer:
        assert json.loads(answer.read()) == {
            "MaxConcurrentTransforms": 4,
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": 64,
        }
