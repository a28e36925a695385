"""Anthropic's dialect: messages, whole and streamed. https://docs.anthropic.com/en/api/messages"""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict

from qkv.errors import InputError
from qkv.serve.answers import Failure, Json, Plain, server_sent, until_gone, warned
from qkv.serve.openai import Body, message
from qkv.serve.rooms import Rooms
from qkv.tasks.chat import ChatRequest, prepare
from qkv.writing.loop import Completion, Piece, alast
from qkv.writing.options import Options

NAME, PREFIXES = "anthropic", ("/v1/messages",)
router = APIRouter(tags=["Anthropic"])
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_TYPES |= {429: "rate_limit_error"}


def body(failure: Failure) -> Plain:
    kind = _TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def error(failure: Failure) -> Json:
    return Json(body(failure), failure.status, failure.headers)


class MessagesBody(Body):
    """/v1/messages"""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"example": {"max_tokens": 60, "messages": [{"role": "user", "content": "Hello"}]}},
    )

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Mapping[str, Any] | None = None
    thinking: Mapping[str, Any] | None = None

    def wish(self) -> ChatRequest:
        if self.tools:
            raise InputError("tools: the model's template has no place for them; leave them away")
        if (self.thinking or {}).get("type") == "enabled":
            raise InputError("thinking: the models here have no such part; leave it away")
        found = [message(each, at) for at, each in enumerate(self.messages)]
        if self.system:
            found.insert(0, message({"role": "system", "content": self.system}, 0))
        options = Options(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences or (),
        )
        begun = found[-1].role == "assistant" if found else False
        return ChatRequest(messages=found, options=options, temperature=1.0, continue_final=begun)


@router.post("/v1/messages")
async def messages(asked: MessagesBody, request: Request) -> Any:
    rooms: Rooms = request.app.state.rooms
    if asked.max_tokens is None:
        raise InputError("max_tokens is missing; say how many tokens may be written")
    wish = asked.wish()
    events = await until_gone(request, rooms.write(wish, asked.model))
    id = f"msg_{secrets.token_hex(12)}"
    if asked.stream:
        return server_sent(_stream(events, asked, id), body)
    done = await until_gone(request, alast(events))
    content = [{"type": "text", "text": done.text}]
    return Json(
        _message(id, done.model, content, _reason(done), done.usage) | warned([*done.warnings, *asked.unknown()])
    )


def _message(id: str, model: str, content: list[Plain], reason: Plain, usage: tuple[int, int]) -> Plain:
    counted = {"input_tokens": usage[0], "output_tokens": usage[1]}
    head = {"id": id, "type": "message", "role": "assistant", "model": model, "content": content}
    return head | reason | {"usage": counted}


def _reason(done: Completion) -> Plain:
    """Why it ended. Which stop string it was is not said."""
    reason = {"stop": "end_turn", "length": "max_tokens"}.get(done.finish, done.finish)
    return {"stop_reason": reason, "stop_sequence": None}


async def _stream(events: AsyncIterator[Piece | Completion], asked: MessagesBody, id: str) -> AsyncIterator[Plain]:
    nothing = {"stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": _message(id, asked.model or "", [], nothing, (0, 0))}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    async for event in events:
        if isinstance(event, Piece):
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": event.text}}
            continue
        yield {"type": "content_block_stop", "index": 0}
        counted = {"input_tokens": event.usage[0], "output_tokens": event.usage[1]}
        said = warned([*event.warnings, *asked.unknown()])
        yield {"type": "message_delta", "delta": _reason(event), "usage": counted} | said
    yield {"type": "message_stop"}


@router.post("/v1/messages/count_tokens")
async def count_tokens(asked: MessagesBody, request: Request) -> Json:
    """How many tokens the messages are for this model."""
    rooms: Rooms = request.app.state.rooms
    wish = asked.wish()
    task = await until_gone(request, rooms.beside(lambda: prepare(wish, rooms.language(asked.model))))
    return Json({"input_tokens": len(task.ids)})
