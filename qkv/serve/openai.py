"""OpenAI's dialect for text: chat, completions, embeddings, models. https://platform.openai.com/docs/api-reference

What a client may say beside it (seed, top_k, min_p, repetition_penalty ...) stands at the top level, as `extra_body`
puts it there. A field that is known and cannot be honoured is an error, one that is unknown a warning of the answer.
"""

import base64
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from qkv.errors import InputError, quoted
from qkv.serve.answers import Failure, Json, Plain, server_sent, unknown, until_gone, warned
from qkv.serve.rooms import Rooms
from qkv.tasks.chat import ChatRequest
from qkv.tasks.complete import CompleteRequest
from qkv.text.chat import Message
from qkv.writing.loop import Completion, Piece, Text, Token, alast
from qkv.writing.options import Options

NAME, PREFIXES = "openai", ("/v1/",)
router = APIRouter(tags=["OpenAI"])
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {429: "rate_limit_error"}
_CODES = {"key": "invalid_api_key", "not_found": "model_not_found", "busy": "rate_limit_exceeded"}


def body(failure: Failure) -> Plain:
    kind = _TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "server_error")
    message, code = failure.message, _CODES.get(failure.kind, failure.kind)
    if failure.kind == "invalid" and message.startswith("the prompt has "):
        code = "context_length_exceeded"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error(failure: Failure) -> Json:
    return Json(body(failure), failure.status, failure.headers)


class Body(BaseModel):
    """A body that may say more than is known."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    user: str | None = None
    metadata: Mapping[str, Any] | None = None

    def unknown(self) -> list[str]:
        """A warning for what is not known here."""
        return unknown(self.model_extra or {})


class Writing(Body):
    """How to write."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stream: bool | None = None
    stream_options: Mapping[str, Any] | None = None

    def options(self, **more: Any) -> Options:
        """The same as the library's. OpenAI's own default temperature is 1."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "seed")
        asked = {name: getattr(self, name) for name in (*names, "frequency_penalty", "logit_bias", "max_tokens")}
        return Options(**asked | {"n": 1 if self.n is None else self.n, "stop": self.stop or ()} | more)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatBody(Writing):
    """/v1/chat/completions"""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "What is the capital of France?"}]}},
    )

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None

    def wish(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        options = self.options(logprobs=logprobs, schema=schema(self.response_format))
        return ChatRequest(messages=[message(each, at) for at, each in enumerate(self.messages)], options=options)


def message(given: Mapping[str, Any], at: int) -> Message:
    """A message as the library has it. InputError."""
    role, content = given.get("role"), given.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        odd = [str(part.get("type")) for part in parts if part.get("type") != "text"]
        if odd:
            raise InputError(f"messages[{at}] has a part of type {quoted(odd[0])}; this model reads text only")
        content = "".join(str(part.get("text", "")) for part in parts)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"messages[{at}]: role and content are not both texts")
    return Message({"developer": "system"}.get(role, role), content)


def schema(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that `response_format` asks for. InputError."""
    kind = (given or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = (given or {}).get("json_schema")
    if kind == "json_schema" and isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        return inner["schema"]
    raise InputError(f"response_format={quoted(given)} is not text, json_object, or json_schema with a schema")


@router.post("/v1/chat/completions")
async def chat(asked: ChatBody, request: Request) -> Any:
    rooms: Rooms = request.app.state.rooms
    events = await until_gone(request, rooms.write(asked.wish(), asked.model))
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
    if asked.stream:
        return server_sent(_chat_chunks(events, head, asked), body)
    done = await until_gone(request, alast(events))
    choices = [
        {
            "index": at,
            "message": {"role": "assistant", "content": text.text, "refusal": None},
            "finish_reason": text.finish,
            "logprobs": {"content": [_chat_logprob(token) for token in text.tokens]} if asked.logprobs else None,
        }
        for at, text in enumerate(done.texts)
    ]
    found = head | {"object": "chat.completion", "model": done.model, "choices": choices, "usage": usage(done)}
    return Json(found | _said(done, asked))


def usage(done: Completion) -> Plain:
    read, written = done.usage
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _said(done: Completion, asked: Body) -> Plain:
    """What a client should hear beside the answer, and the seed that gives it again."""
    seed = {} if done.seed is None else {"seed": done.seed}
    return seed | warned([*done.warnings, *asked.unknown()])


async def _chat_chunks(
    events: AsyncIterator[Piece | Completion], head: Plain, asked: ChatBody
) -> AsyncIterator[Plain | str]:
    head = head | {"object": "chat.completion.chunk", "model": asked.model or ""}

    def chunk(at: int, delta: Plain, finish: str | None = None, more: Plain | None = None) -> Plain:
        return head | {"choices": [{"index": at, "delta": delta, "finish_reason": finish} | (more or {})]}

    for at in range(asked.n or 1):
        yield chunk(at, {"role": "assistant", "content": ""})
    async for event in events:
        if isinstance(event, Piece):
            yield chunk(event.number, {"content": event.text})
            continue
        head["model"] = event.model
        for at, text in enumerate(event.texts):
            found = {"logprobs": {"content": [_chat_logprob(token) for token in text.tokens]}} if asked.logprobs else {}
            yield chunk(at, {}, text.finish, found)
        if asked.counts:
            yield head | {"choices": [], "usage": usage(event)} | _said(event, asked)
    yield "[DONE]"


def _chat_logprob(token: Token) -> Plain:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.text.encode())} | {
        "top_logprobs": [
            {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())} for text, logprob in token.top
        ]
    }


def _finite(logprob: float | None) -> float | None:
    """JSON has no minus infinity; OpenAI writes -9999."""
    return None if logprob is None else max(logprob, -9999.0)


class CompletionBody(Writing):
    """/v1/completions"""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"prompt": "def factorial(n):", "max_tokens": 60}}
    )

    prompt: str | list[int] | list[str] | list[list[int]] = ""
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, description="How many of the likeliest tokens to show in each place.")

    def wishes(self) -> list[CompleteRequest]:
        """One for each prompt."""
        several = isinstance(self.prompt, list) and bool(self.prompt) and not isinstance(self.prompt[0], int)
        prompts: list[Any] = self.prompt if several else [self.prompt]  # type: ignore[assignment]
        options = self.options(logprobs=self.logprobs, best_of=self.best_of)
        suffix = self.suffix or None
        return [CompleteRequest(prompt=one, suffix=suffix, echo=bool(self.echo), options=options) for one in prompts]


@router.post("/v1/completions")
async def completions(asked: CompletionBody, request: Request) -> Any:
    rooms: Rooms = request.app.state.rooms
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "object": "text_completion"}
    wishes = asked.wishes()
    if asked.stream:
        if len(wishes) > 1:
            raise InputError(f"{len(wishes)} prompts in one stream; send one prompt, or no stream")
        events = await until_gone(request, rooms.write(wishes[0], asked.model))
        return server_sent(_chunks(events, head, asked), body)
    found = await until_gone(request, rooms.written(wishes, asked.model))
    texts = [text for done in found for text in done.texts]
    choices = [
        {"index": at, "text": text.text, "finish_reason": text.finish, "logprobs": _logprobs(text)}
        for at, text in enumerate(texts)
    ]
    counted = [usage(done) for done in found]
    total = {name: sum(each[name] for each in counted) for name in counted[0]}
    return Json(head | {"model": found[0].model, "choices": choices, "usage": total} | _said(found[0], asked))


async def _chunks(
    events: AsyncIterator[Piece | Completion], head: Plain, asked: CompletionBody
) -> AsyncIterator[Plain | str]:
    head = head | {"model": asked.model or ""}
    async for event in events:
        if isinstance(event, Piece):
            yield head | {"choices": [{"index": event.number, "text": event.text, "finish_reason": None}]}
            continue
        head["model"] = event.model
        for at, text in enumerate(event.texts):
            choice = {"index": at, "text": "", "finish_reason": text.finish, "logprobs": _logprobs(text)}
            yield head | {"choices": [choice]}
        if asked.counts:
            yield head | {"choices": [], "usage": usage(event)} | _said(event, asked)
    yield "[DONE]"


def _logprobs(text: Text) -> Plain | None:
    if not text.tokens:
        return None
    offsets, at = [], 0
    for token in text.tokens:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.text for token in text.tokens],
        "token_logprobs": [_finite(token.logprob) for token in text.tokens],
        "top_logprobs": [{spelt: _finite(logprob) for spelt, logprob in token.top} for token in text.tokens],
        "text_offset": offsets,
    }


class EmbeddingBody(Body):
    """/v1/embeddings"""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"input": ["a dog", "a cat"]}})

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


@router.post("/v1/embeddings")
async def embeddings(asked: EmbeddingBody, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("input is not a text or a list of texts; token ids of another model's mean nothing here")
    name, found = await until_gone(request, rooms.embed(texts, asked.model))  # type: ignore[arg-type]
    vectors = found.vectors
    if asked.dimensions is not None and asked.dimensions != vectors.shape[1]:
        raise InputError(f"dimensions={quoted(asked.dimensions)}: {name} gives {vectors.shape[1]}, and no fewer")
    data = [
        {"object": "embedding", "index": at, "embedding": _written(vector, asked.encoding_format)}
        for at, vector in enumerate(vectors)
    ]
    read = sum(found.tokens)
    answer = {"object": "list", "model": name, "data": data, "usage": {"prompt_tokens": read, "total_tokens": read}}
    return Json(answer | warned([*found.warnings, *asked.unknown()]))


def _written(vector: Any, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return np.asarray(vector).tolist()


@router.get("/v1/models")
async def models(request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    return Json({"object": "list", "data": [_model(rooms, name) for name in rooms.names.all()]})


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    return Json(_model(rooms, rooms.names.known(name)))


def _model(rooms: Rooms, name: str) -> Plain:
    row = rooms.names.all()[name]
    default = rooms.names.find(None, row.kind) == name
    about = {"kind": row.kind, "default": default, "bytes": row.bytes, "licence": row.licence}
    return {"id": name, "object": "model", "created": 0, "owned_by": "qkv"} | about
