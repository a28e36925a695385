"""What all dialects share of an answer: JSON, streams, a client that has gone, and errors without their secrets."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from qkv.errors import BusyError, ConfigError, InputError, MissingDependencyError, NotFoundError, QkvError, quoted
from qkv.serve.journal import log, request_id

T = TypeVar("T")
Plain = dict[str, Any]


class Json(JSONResponse):
    """JSON in UTF-8, of any text: half a surrogate pair becomes a question mark."""

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def warned(warnings: Sequence[str]) -> Plain:
    """The part of an answer that says what was asked and could not be honoured as it was."""
    return {"warnings": list(warnings)} if warnings else {}


def unknown(names: Iterable[str]) -> list[str]:
    """A warning for the fields of a request that are not known here, if there are any."""
    odd = sorted(names)
    return [f"unknown: {', '.join(map(quoted, odd[:10]))} changed nothing"] if odd else []


class Failure(NamedTuple):
    """An error as every dialect may show it. `kind` is a word that does not change."""

    status: int
    kind: str
    message: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.status == 429 else {}


def failure(error: BaseException) -> Failure:
    """What a client is told about an error; the server's log has the rest."""
    for known, status, kind in _STATUS:
        if isinstance(error, known):
            return Failure(status, kind, public(str(error)))
    log.error("request %s broke", request_id(), exc_info=error)
    return Failure(500, "server_error", f"the server could not do this; its log has the reason, request {request_id()}")


_STATUS: tuple[tuple[type[QkvError], int, str], ...] = (
    (BusyError, 429, "busy"),
    (NotFoundError, 404, "not_found"),
    (InputError, 400, "invalid"),
    (MissingDependencyError, 501, "not_installed"),
    (ConfigError, 503, "unavailable"),
)
_PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/'\",:;]+/)*([^\s/'\",:;]+)")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def public(message: str) -> str:
    """`message` without where things lie on this machine."""
    return _ADDRESS.sub("…", _PATH.sub(r"\1", message))


class GoneError(Exception):
    """The client has hung up."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled, and GoneError raised, when the client hangs up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        for each in (task, gone):
            each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_sent(events: AsyncIterator[Plain | str], failed: Callable[[Failure], Plain]) -> StreamingResponse:
    """A stream of `data:` lines; an error on the way becomes a last one."""

    async def lines() -> AsyncIterator[bytes]:
        async for event in guarded(events, failed):
            named = event if isinstance(event, dict) else {}
            name = f"event: {named['type']}\n".encode() if "type" in named else b""
            yield name + b"data: " + (event.encode() if isinstance(event, str) else to_json(event)) + b"\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def json_lines(events: AsyncIterator[Plain], failed: Callable[[Failure], Plain]) -> StreamingResponse:
    """A stream of JSON, an object a line."""

    async def lines() -> AsyncIterator[bytes]:
        async for event in guarded(events, failed):
            yield to_json(event) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def guarded(events: AsyncIterator[T], failed: Callable[[Failure], T | Plain]) -> AsyncIterator[T | Plain]:
    """The events, and an error as the last of them. Whoever leaves ends the work."""
    async with aclosing(events) as each:  # type: ignore[type-var]
        try:
            async for event in each:
                yield event
        except Exception as error:
            yield failed(failure(error))


def encoded(image: Image.Image, kind: str = "png", quality: int = 90) -> bytes:
    """A picture as PNG, JPEG or WebP, without settings."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({} if kind == "png" else {"quality": quality}))
    return buffer.getvalue()


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
