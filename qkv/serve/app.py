"""The ASGI application: the rooms, the guard, the dialects.

A dialect is a module with a `router`, the `PREFIXES` of the paths that are its own, a `NAME`, and `error`, which words
a failure as its clients expect it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import Gauge
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from qkv import registry
from qkv.errors import QkvError, shorten
from qkv.loaded import models as loaded
from qkv.serve import (
    a1111,
    a1111_lists,
    anthropic,
    endpoints,
    jobs,
    jumpstart,
    llamacpp,
    ollama,
    openai,
    openai_images,
    own,
    sagemaker,
)
from qkv.serve.answers import Failure, GoneError, failure
from qkv.serve.guard import Guard
from qkv.serve.jobs import Jobs
from qkv.serve.journal import Journal
from qkv.serve.rooms import Rooms
from qkv.serve.settings import ServeSettings

# The first words what belongs to nobody.
DIALECTS: tuple[ModuleType, ...] = (openai, anthropic, ollama, a1111, sagemaker, endpoints, jumpstart)
MORE = (own.router, a1111_lists.router, openai_images.router, llamacpp.router, jobs.router)


def make_app(settings: ServeSettings) -> ASGIApp:
    """The server for these settings, without a socket."""
    journal, rooms = Journal(as_json=settings.log_json), Rooms(settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_ready(app, rooms))
        app.state.jobs.begin(app)
        yield
        loading.cancel()
        await app.state.jobs.end()

    app = FastAPI(title="qkv", version=version("qkv"), lifespan=life, docs_url=None, redoc_url=None)
    app.state.rooms, app.state.journal, app.state.ready = rooms, journal, False
    app.state.jobs = Jobs(settings.folder or registry.home() / "jobs")
    app.state.estate, app.state.desk = jumpstart.Estate(rooms.names), a1111.Desk()
    _gauges(rooms, journal)
    for router in (*(dialect.router for dialect in DIALECTS), *MORE):
        app.include_router(router)
    for kind in (QkvError, GoneError, Exception):
        app.add_exception_handler(kind, _broken)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
    return Guard(app, settings, journal, shown, lambda path: _dialect(path).NAME)


async def _ready(app: FastAPI, rooms: Rooms) -> None:
    if rooms.settings.preload:
        await rooms.preload()
    app.state.ready = True


def _gauges(rooms: Rooms, journal: Journal) -> None:
    waiting = Gauge("qkv_requests_here", "Requests computed or waiting.", ("what",), registry=journal.registry)
    for what in rooms.busy:
        waiting.labels(what).set_function(lambda what=what: rooms.busy[what])  # type: ignore[misc]
    taken = Gauge("qkv_models_bytes", "Memory that models take.", registry=journal.registry)
    taken.set_function(lambda: sum(model.bytes for model in loaded.loaded()))


def _dialect(path: str) -> ModuleType:
    return next((each for each in DIALECTS[1:] if path.startswith(each.PREFIXES)), DIALECTS[0])


def shown(path: str, failure: Failure) -> Response:
    """A failure in the words of the dialect whose path it is."""
    return _dialect(path).error(failure)


async def _broken(request: Request, error: Exception) -> Response:
    if isinstance(error, GoneError):
        return Response(status_code=499)  # nobody reads it
    return shown(request.url.path, failure(error))


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return shown(request.url.path, Failure(400, "invalid", shorten(message, 300)))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method"}
    known = {404: "there is nothing at this path", 405: "this path is asked in another way"}
    message = known.get(error.status_code, shorten(str(error.detail), 300))
    return shown(request.url.path, Failure(error.status_code, kinds.get(error.status_code, "invalid"), message))
