"""Ollama's dialect: what editors' plug-ins and chat pages speak. https://docs.ollama.com/api

Streams are lines of JSON, and a stream is the default. `keep_alive` is honoured as far as it asks for less: 0 lets a
model go once nobody uses it. Pulling, creating, copying and deleting models is for whoever runs the server.
"""

import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from qkv.errors import InputError, NotFoundError, quoted
from qkv.loaded import models as loaded
from qkv.registry import Model
from qkv.serve.answers import Failure, Json, Plain, json_lines, unknown, until_gone, warned
from qkv.serve.openai import Body, message
from qkv.serve.rooms import Rooms
from qkv.tasks.chat import ChatRequest
from qkv.tasks.complete import CompleteRequest
from qkv.writing.loop import Completion, Piece, alast
from qkv.writing.options import Options

NAME, PREFIXES = "ollama", ("/api/",)
router = APIRouter(tags=["Ollama"])

_OURS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # Ollama's option: ours, if not the same
_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
_WHERE = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "num_keep", "numa")  # not a client's
# What the client's own defaults are, and says nothing.
_IDLE = {"typical_p": 1.0, "repeat_last_n": 64, "mirostat": 0, "tfs_z": 1.0}


def body(failure: Failure) -> Plain:
    return {"error": failure.message}


def error(failure: Failure) -> Json:
    return Json(body(failure), failure.status, failure.headers)


class Asked(Body):
    """What the requests for a text share."""

    options: Mapping[str, Any] | None = None
    format: str | Mapping[str, Any] | None = None
    stream: bool | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None

    def wanted(self) -> Options:
        """The options in our words. InputError."""
        given = {name: value for name, value in (self.options or {}).items() if value is not None}
        asked = {_OURS.get(name, name): value for name, value in given.items() if name in (*_OURS, *_SAME)}
        if isinstance(asked.get("max_tokens"), int) and asked["max_tokens"] < 0:
            del asked["max_tokens"]  # until the model ends it
        if isinstance(asked.get("seed"), int) and asked["seed"] < 0:
            del asked["seed"]
        return Options(**asked, schema=_schema(self.format))

    def warnings(self) -> list[str]:
        given = self.options or {}
        known = {*_OURS, *_SAME, *(name for name, value in _IDLE.items() if given.get(name, value) == value)}
        odd = sorted(name for name in given if name not in known)
        theirs = [name for name in odd if name in _WHERE]
        found = [f"fixed: {', '.join(theirs)} is the server's to say"] if theirs else []
        return [*found, *unknown(name for name in odd if name not in _WHERE), *self.unknown()]


def _schema(given: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if given is None or given == "":
        return None
    if given == "json":
        return {"type": "object"}
    if isinstance(given, str):
        raise InputError(f"format={quoted(given)} is neither json nor a JSON schema")
    return given


class ChatBody(Asked):
    """/api/chat"""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": False}
        },
    )

    messages: list[dict[str, Any]] = Field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Asked):
    """/api/generate"""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"prompt": "def factorial(n):", "raw": True, "stream": False}}
    )

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool | None = None


@router.post("/api/chat")
async def chat(asked: ChatBody, request: Request) -> Any:
    if asked.tools:
        raise InputError("tools: the model's template has no place for them; leave them away")
    if not asked.messages:
        return await _held(asked, request, {"message": {"role": "assistant", "content": ""}})
    for at, each in enumerate(asked.messages):
        if each.get("images"):
            raise InputError(f"messages[{at}] has images; the models here read text only")
    found = [message(each, at) for at, each in enumerate(asked.messages)]
    wish = ChatRequest(messages=found, options=asked.wanted(), temperature=0.8)
    return await _answered(asked, request, wish, lambda text: {"message": {"role": "assistant", "content": text}})


@router.post("/api/generate")
async def generate(asked: GenerateBody, request: Request) -> Any:
    for name in ("template", "context", "images"):
        if getattr(asked, name):
            raise InputError(f"{name} is not taken here; send the whole conversation to /api/chat")
    if not asked.prompt and asked.suffix is None:
        return await _held(asked, request, {"response": ""})
    wish: ChatRequest | CompleteRequest
    if asked.raw or asked.suffix is not None:
        wish = CompleteRequest(prompt=asked.prompt, suffix=asked.suffix or None, options=asked.wanted())
    else:
        said = [{"role": "system", "content": asked.system}] if asked.system else []
        said.append({"role": "user", "content": asked.prompt})
        found = [message(each, at) for at, each in enumerate(said)]
        wish = ChatRequest(messages=found, options=asked.wanted(), temperature=0.8)
    return await _answered(asked, request, wish, lambda text: {"response": text})


async def _held(asked: Asked, request: Request, empty: Plain) -> Json:
    """An empty wish: the model is loaded, or let go."""
    rooms: Rooms = request.app.state.rooms
    name = rooms.names.find(asked.model, "text")
    if leaves := _nothing(asked.keep_alive):
        await _let_go(rooms, asked, name)
    else:
        await until_gone(request, rooms.load(name))
    reason = "unload" if leaves else "load"
    return Json(_head(name) | empty | {"done": True, "done_reason": reason})


def _nothing(keep_alive: str | float | None) -> bool:
    return keep_alive is not None and str(keep_alive).rstrip("smh") in ("0", "0.0")


def _head(model: str) -> Plain:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


async def _answered(asked: Asked, request: Request, wish: ChatRequest | CompleteRequest, shaped: Any) -> Any:
    rooms: Rooms = request.app.state.rooms
    name, began = rooms.names.find(asked.model, "text"), time.perf_counter_ns()
    events = await until_gone(request, rooms.write(wish, name))
    loading = time.perf_counter_ns() - began

    async def lines() -> AsyncIterator[Plain]:
        first = None
        async for event in events:
            first = first or time.perf_counter_ns()
            if isinstance(event, Piece):
                yield _head(name) | shaped(event.text) | {"done": False}
            else:
                yield _head(name) | shaped("") | _end(event, asked, began, loading, first)
        await _let_go(rooms, asked, name)

    if asked.stream is None or asked.stream:
        return json_lines(lines(), body)
    done = await until_gone(request, alast(events))
    await _let_go(rooms, asked, name)
    return Json(_head(name) | shaped(done.text) | _end(done, asked, began, loading, None))


async def _let_go(rooms: Rooms, asked: Asked, name: str) -> None:
    if _nothing(asked.keep_alive):
        await rooms.beside(lambda: loaded.unload(name))


def _end(done: Completion, asked: Asked, began: int, loading: int, first: int | None) -> Plain:
    """How it ended, and the nanoseconds it took."""
    read, written = done.usage
    total = time.perf_counter_ns() - began
    reading = max(0, (first or began + loading) - began - loading)
    times = {"total_duration": total, "load_duration": loading, "prompt_eval_duration": reading}
    times |= {"eval_duration": total - loading - reading}
    ended = {"done": True, "done_reason": done.finish, "prompt_eval_count": read, "eval_count": written}
    return ended | times | warned([*done.warnings, *asked.warnings()])


class EmbedBody(Body):
    """/api/embed"""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"input": ["a dog", "a cat"]}})

    input: str | list[str] = ""
    prompt: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: Mapping[str, Any] | None = None
    keep_alive: str | float | None = None


@router.post("/api/embed")
async def embed(asked: EmbedBody, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    name, found = await until_gone(request, rooms.embed(texts, asked.model))
    if found.cut and asked.truncate is False:
        raise InputError(f"{found.warnings[-1]}; send shorter ones, or let them be cut (truncate)")
    answer = {"model": name, "embeddings": found.vectors.tolist(), "prompt_eval_count": sum(found.tokens)}
    return Json(answer | warned([*found.warnings, *asked.unknown()]))


@router.post("/api/embeddings")
async def embeddings(asked: EmbedBody, request: Request) -> Json:
    """One text, as older clients ask."""
    rooms: Rooms = request.app.state.rooms
    _, found = await until_gone(request, rooms.embed([asked.prompt or ""], asked.model))
    return Json({"embedding": found.vectors[0].tolist()})


@router.get("/api/tags")
async def tags(request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    return Json({"models": [_row(model) for model in rooms.names.all().values()]})


@router.get("/api/ps")
async def running(request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    here = rooms.names.all()
    found = [
        _row(here[name]) | {"size": held.bytes, "size_vram": held.bytes if held.device != "cpu" else 0}
        for name, held in rooms.names.in_memory()
        if name in here
    ]
    return Json({"models": found})


def _row(model: Model) -> Plain:
    changed = datetime.fromtimestamp(model.path.stat().st_mtime, UTC).isoformat().replace("+00:00", "Z")
    about = {"family": model.kind, "families": [model.kind], "format": "qkv", "parameter_size": "", "parent_model": ""}
    row = {"name": model.name, "model": model.name, "modified_at": changed, "size": model.bytes, "digest": ""}
    return row | {"details": about | {"quantization_level": ""}}


class ShowBody(Body):
    """/api/show"""

    name: str | None = None


@router.post("/api/show")
async def show(asked: ShowBody, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    model = rooms.names.all()[rooms.names.known(asked.model or asked.name or "")]
    what = {"text": ["completion"], "embeddings": ["embedding"], "pictures": ["image"]}.get(model.kind, [])
    about = {"general.architecture": model.kind, "general.name": model.name}
    row = _row(model)
    told = {"details": row["details"], "modified_at": row["modified_at"], "model_info": about, "capabilities": what}
    return Json(told | {"license": model.licence, "modelfile": "", "parameters": "", "template": ""})


@router.get("/api/version")
async def its_version() -> Json:
    return Json({"version": version("qkv")})


@router.head("/api/tags", include_in_schema=False)
async def here() -> Response:
    return Response()


@router.api_route("/api/{verb:path}", methods=["POST", "DELETE"], include_in_schema=False)
async def not_here(verb: str) -> None:
    known = {
        "pull": "qkv pull",
        "delete": "qkv models rm",
        "create": "qkv train",
        "copy": "qkv export",
        "push": "qkv export",
    }
    if verb in known:
        raise InputError(f"{verb} is for whoever runs this server: {known[verb]}")
    raise NotFoundError("there is nothing at this path")
