"""What a SageMaker container answers: /invocations, with the payloads of JumpStart's models and of AWS's containers.

    body ─ what kind of model is meant ─ the library's wish ─ an answer as that model's container words it

For pictures: {"prompt": ...}, or a text alone. For text, three generations: {"text_inputs": ...}, {"inputs": ...,
"parameters": {...}}, and OpenAI's messages or prompt, which `openai.py` reads. The Accept header decides how a picture
comes. What was asked and cannot be honoured is an error or a warning: in the answer, where it is an object, and always
in the header `x-qkv-warnings`. https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from qkv.errors import InputError, quoted, shorten
from qkv.pictures.picture import Picture
from qkv.serve import openai
from qkv.serve.answers import Failure, Json, Plain, base64_text, encoded, server_sent, unknown, until_gone
from qkv.serve.payloads import DRAWN, options, picture_wish
from qkv.serve.rooms import Rooms
from qkv.tasks.chat import ChatRequest
from qkv.tasks.complete import CompleteRequest
from qkv.writing.loop import Completion, Piece, Text
from qkv.writing.options import Options

NAME, PREFIXES = "sagemaker", ("/invocations", "/execution-parameters")
router = APIRouter(tags=["SageMaker"])
TEXTS = ("application/x-text", "text/plain")
OBJECTS = ("application/json", "application/octet-stream", "application/x-www-form-urlencoded", "")  # who says nothing
_WRITES = {"max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "n", "logprobs", "suffix", "stream"}
_SAID = {"inputs", "parameters", "stream", "model", "options"}
_ENDS = {"stop": "eos_token", "length": "length"}  # TGI's words


def error(failure: Failure) -> Json:
    return Json({"Message": failure.message} | openai.body(failure), failure.status, failure.headers)


class Target(NamedTuple):
    """Whom a payload is for."""

    model: str | None = None  # ours; None: the default for what the payload asks
    warnings: tuple[str, ...] = ()
    llama: bool = False  # to be worded as the container of Llama 2 does


class Payload(NamedTuple):
    """What a client sent: an object, or a text alone."""

    value: Plain
    text: str | None
    accept: str
    files: bool  # the pictures in it are files in base64, not rows of pixels


def read(body: bytes, content_type: str, accept: str) -> Payload:
    """The payload. Raises InputError."""
    kind, _, form = content_type.lower().replace(" ", "").partition(";")
    accept = accept.lower().replace(" ", "")
    if kind in TEXTS:
        try:
            return Payload({}, body.decode(), accept, False)
        except UnicodeDecodeError as error:
            raise InputError(f"the body is no UTF-8 text: byte {error.start} is wrong") from error
    if kind not in OBJECTS:
        raise InputError(f"ContentType={quoted(content_type)} is not read; send {TEXTS[0]} or {OBJECTS[0]}")
    value = _parsed(body)
    if isinstance(value, str):
        return Payload({}, value, accept, False)
    if not isinstance(value, dict):
        raise InputError(f"the body is JSON, but no object: {quoted(value)}")
    return Payload(value, None, accept, "jpeg" in form or "png" in form)


def _parsed(body: bytes) -> Any:
    def no_number(name: str) -> None:
        raise InputError(f"the body is not JSON: {name} is no number of it")

    try:
        return json.loads(body, parse_constant=no_number)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else shorten(str(error), 200)
        raise InputError(f"the body is not JSON: {reason}; or send a text as {TEXTS[0]}") from error


@router.get("/execution-parameters")
async def execution_parameters(request: Request) -> Json:
    """For batch transform."""
    rooms: Rooms = request.app.state.rooms
    most = rooms.settings.max_body >> 20
    return Json({"MaxConcurrentTransforms": 4, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": most})


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    headers = request.headers
    payload = read(await request.body(), headers.get("content-type", ""), headers.get("accept", ""))
    return await invoke(request, payload, target(request.app.state.rooms, headers.get(TARGET_MODEL)))


TARGET_MODEL = "x-amzn-sagemaker-target-model"


def target(rooms: Rooms, asked: str | None) -> Target:
    """Whom a request is for that no endpoint has: the model that its header names, the server's only one, or any."""
    if asked is not None:  # of a multi-model endpoint: an archive's name
        return Target(rooms.names.known(asked.removesuffix(".tar.gz")))
    only = set(rooms.settings.models.values())
    return Target(only.pop()) if len(only) == 1 else Target()


async def invoke(request: Request, payload: Payload, whom: Target) -> Response:
    """The answer to a payload. Raises InputError, NotFoundError, BusyError."""
    rooms: Rooms = request.app.state.rooms
    kind = _kind(payload) if whom.model is None else rooms.names.all()[rooms.names.known(whom.model)].kind
    if kind not in _ANSWERS:
        raise InputError(f"model {whom.model} is for {kind}, which no payload here asks for")
    content, found = await _ANSWERS[kind](request, payload, whom)
    warnings = [*whom.warnings, *found]
    if warnings and isinstance(content, dict):
        content = content | {"warnings": warnings}
    response: Response = content if isinstance(content, Response) else await rooms.beside(lambda: Json(content))
    if warnings:
        said = " | ".join(warnings).encode("ascii", "replace").decode()
        response.headers["x-qkv-warnings"] = shorten(" ".join(said.split()), 2000)
    return response


Answer = tuple[Any, Sequence[str]]  # a response, or what is to be JSON; and warnings


def _kind(payload: Payload) -> str:
    """What kind of model a payload is for, where nothing else says it."""
    if payload.text is not None:
        return "pictures" if "jpeg" in payload.accept or payload.accept.startswith("image/") else "text"
    return "pictures" if "prompt" in payload.value and not _WRITES & set(payload.value) else "text"


def _texts(payload: Payload) -> tuple[list[str], bool]:
    """The texts that are to be read, and whether they came as a list. InputError."""
    value = payload.value
    given: Any = payload.text if payload.text is not None else value.get("text_inputs", value.get("inputs"))
    texts: list[Any] = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("the payload has no inputs (or text_inputs), a text or a list of texts")
    return texts, isinstance(given, list)


async def _draw(request: Request, payload: Payload, whom: Target) -> Answer:
    rooms: Rooms = request.app.state.rooms
    value, file = payload.value if payload.text is None else {"prompt": payload.text}, _file_kind(payload.accept)
    found = await until_gone(request, rooms.drawn(picture_wish(value, files=payload.files), whom.model))
    warnings = [*found[0].warnings, *unknown(payload.value.keys() - DRAWN)]
    if file is not None:
        return await rooms.beside(lambda: _file(found, file, warnings))
    jpeg = "jpeg" in payload.accept.partition(";")[2]
    pictures = await rooms.beside(lambda: [_pixels(picture, jpeg) for picture in found])
    if payload.text is not None:
        return {"generated_image": pictures[0], "prompt": payload.text}, warnings
    seeds = [picture.seed for picture in found]
    return {"generated_images": pictures, "prompt": value["prompt"], "seeds": seeds}, warnings


def _file_kind(accept: str) -> str | None:
    """The kind of file that a picture is to be, if it is to be one. InputError."""
    kind = accept.removeprefix("image/").partition(",")[0]
    if not accept.startswith("image/"):
        return None
    if kind not in ("png", "jpeg", "webp"):
        raise InputError(f"Accept={quoted(accept)} is not image/png, image/jpeg or image/webp")
    return kind


def _file(found: Sequence[Picture], kind: str, warnings: Sequence[str]) -> Answer:
    """The first picture as a file."""
    data = found[0].png() if kind == "png" else encoded(found[0].image, kind)
    more = [f"one-picture: {len(found)} were drawn, image/{kind} has room for the first"] if len(found) > 1 else []
    return Response(data, media_type=f"image/{kind}"), [*warnings, *more]


def _pixels(picture: Picture, jpeg: bool) -> Any:
    """A JPEG file in base64, or rows of red, green and blue."""
    if jpeg:
        return base64_text(encoded(picture.image, "jpeg", 95))
    return np.asarray(picture.image).tolist()


async def _write(request: Request, payload: Payload, whom: Target) -> Answer:
    value = payload.value
    if "messages" in value or "prompt" in value:
        return await _as_openai(request, value, whom)
    if isinstance(value.get("inputs"), list) and any(isinstance(each, list | dict) for each in value["inputs"]):
        return await _dialogs(request, value, whom)
    texts, several = _texts(payload)
    given = value if "inputs" not in value else _parameters(value)
    asked, warnings = options(given)
    warnings += unknown(value.keys() - _SAID) if "inputs" in value else []
    if value.get("stream") and (several or asked.get("n", 1) != 1):
        raise InputError("a stream is of one text; send one and ask for one, or no stream")
    wishes = await _wishes(request, texts, given, asked, whom)
    fronts = texts if given.get("return_full_text") else [""] * len(texts)
    if value.get("stream"):
        events = await until_gone(request, request.app.state.rooms.write(wishes[0], whom.model))
        return server_sent(_tokens(events, fronts[0]), _broken), warnings
    found = await _written(request, wishes, whom)
    warnings += [warning for done in found for warning in done.warnings]
    rows = [[(front + text.text, text) for text in done.texts] for front, done in zip(fronts, found)]
    return _worded(rows, payload, given, whom), warnings


def _worded(rows: Sequence[Sequence[tuple[str, Text]]], payload: Payload, given: Plain, whom: Target) -> Any:
    """What was written for each input, in the words of the container that the payload is for."""
    if payload.text is not None:
        return {"generated_text": rows[0][0][0]}
    if "inputs" not in payload.value:
        return {"generated_texts": [text for row in rows for text, _ in row]}
    word = "generation" if whom.llama else "generated_text"
    answers = [[{word: text} | _details(one, given) for text, one in row] for row in rows]
    return answers if isinstance(payload.value["inputs"], list) else answers[0]


def _parameters(value: Plain) -> Plain:
    given = value.get("parameters") or {}
    if not isinstance(given, dict):
        raise InputError(f"parameters={quoted(given)} is no object")
    return given


def _details(text: Text, given: Plain) -> Plain:
    if not given.get("details"):
        return {}
    counted = {"finish_reason": _ENDS.get(text.finish, text.finish), "generated_tokens": len(text.ids)}
    return {"details": counted | {"seed": text.seed}}


async def _wishes(
    request: Request, texts: Sequence[str], given: Plain, asked: Plain, whom: Target
) -> list[CompleteRequest]:
    """A wish for each text. `max_length` counts the tokens of the prompt too, which only the model's own words tell."""
    longest, rooms = given.get("max_length"), request.app.state.rooms
    if longest is None or "max_tokens" in asked:
        return [CompleteRequest(prompt=text, options=Options(**asked)) for text in texts]
    if not isinstance(longest, int) or not 0 < longest < 1 << 20:
        raise InputError(f"max_length={quoted(longest)} is not a number of tokens")

    def counted() -> list[int]:
        language = rooms.language(whom.model)
        return [len(language.read(CompleteRequest(prompt=text).prompt)) for text in texts]

    wishes = []
    for text, read in zip(texts, await rooms.beside(counted)):
        if read >= longest:
            raise InputError(f"max_length={longest} counts the prompt too, which has {read} tokens; ask for more")
        wishes.append(CompleteRequest(prompt=text, options=Options(**asked | {"max_tokens": longest - read})))
    return wishes


async def _written(request: Request, asked: Sequence[ChatRequest | CompleteRequest], whom: Target) -> list[Completion]:
    rooms: Rooms = request.app.state.rooms
    if len(asked) > max(1, most := rooms.settings.texts):
        raise InputError(f"there are {len(asked):,} texts; at most {most} are written at once, send fewer")
    return await until_gone(request, rooms.written(asked, whom.model))


async def _tokens(events: AsyncIterator[Piece | Completion], front: str) -> AsyncIterator[Plain]:
    """A stream as TGI sends it; its last line has the whole."""
    async for event in events:
        text = event.text if isinstance(event, Piece) else ""
        line: Plain = {"token": {"text": text, "logprob": None, "special": False}, "generated_text": None}
        if isinstance(event, Completion):
            line |= {"generated_text": front + event.text} | _details(event.texts[0], {"details": True})
        yield line


def _broken(failure: Failure) -> Plain:
    return {"error": failure.message, "error_type": failure.kind}


async def _as_openai(request: Request, value: Plain, whom: Target) -> Answer:
    """OpenAI's two kinds of payload, read and answered by its own dialect."""
    kind: type[BaseModel] = openai.ChatBody if "messages" in value else openai.CompletionBody
    try:
        asked: Any = kind.model_validate(value if whom.model is None else value | {"model": whom.model})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {shorten(first['msg'], 200)}") from error
    return await (openai.chat if "messages" in value else openai.completions)(asked, request), []


async def _dialogs(request: Request, value: Plain, whom: Target) -> Answer:
    """Conversations as the container of Llama 2 takes them: a list of lists of messages, or one of these."""
    given = value["inputs"]
    talks = [given] if all(isinstance(each, dict) for each in given) else given
    for talk in talks:
        if not isinstance(talk, list) or not all(isinstance(each, dict) for each in talk):
            raise InputError("inputs is neither texts nor conversations, lists of {role, content}")
    asked, warnings = options(_parameters(value))
    found = await _written(request, [_talk(talk, asked) for talk in talks], whom)
    warnings += [*unknown(value.keys() - _SAID), *(warning for done in found for warning in done.warnings)]
    return [{"generation": {"role": "assistant", "content": done.text}} for done in found], warnings


def _talk(talk: Sequence[Plain], asked: Plain) -> ChatRequest:
    messages = [openai.message(each, at) for at, each in enumerate(talk)]
    return ChatRequest(messages=messages, options=Options(**asked))


async def _embed(request: Request, payload: Payload, whom: Target) -> Answer:
    texts, several = _texts(payload)
    _, found = await until_gone(request, request.app.state.rooms.embed(texts, whom.model))
    rows = found.vectors.tolist()
    warnings = [*found.warnings, *unknown(payload.value.keys() - {"text_inputs", "inputs"})]
    return rows if "inputs" in payload.value else {"embedding": rows if several else rows[0]}, warnings


async def _translate(request: Request, payload: Payload, whom: Target) -> Answer:
    texts, _ = _texts(payload)
    found = await until_gone(request, request.app.state.rooms.translate(texts, None, whom.model))
    rows = [{"translation_text": line.text} for line in found]
    warnings = [warning for line in found for warning in line.warnings]
    return rows if "inputs" in payload.value else rows[0], warnings


_ANSWERS = {"pictures": _draw, "text": _write, "embeddings": _embed, "translation": _translate}
