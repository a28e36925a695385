"""This server's own paths, in plain JSON: how it is, which models are in memory, translation."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ConfigDict

from qkv.errors import NotFoundError
from qkv.loaded import models as loaded
from qkv.pictures.picture import PUBLISHED_SAMPLERS
from qkv.serve.answers import Json, Plain, until_gone, warned
from qkv.serve.openai import Body
from qkv.serve.rooms import Rooms

router = APIRouter(tags=["This server"])


@router.get("/health")
async def health() -> Json:
    """Whether the process answers at all."""
    return Json({"status": "ok"})


@router.get("/ready")
@router.get("/ping")
async def ready(request: Request) -> Response:
    """Whether the models that it starts with are there, and it takes requests."""
    good = request.app.state.ready and not request.app.state.rooms.closing
    return Response(status_code=200 if good else 503)


@router.get("/", include_in_schema=False)
@router.get("/page/{name}", include_in_schema=False)
async def page(name: str = "index.html") -> Response:
    """The page, out of a fixed list of files."""
    kind = _PAGE.get(name)
    if kind is None:
        raise NotFoundError("there is nothing at this path")
    return Response((Path(__file__).with_name("page") / name).read_bytes(), media_type=kind, headers=_ITSELF_ONLY)


_PAGE = dict.fromkeys(("main.js", "ask.js", "pictures.js", "texts.js", "words.js"), "text/javascript")
_PAGE |= {"index.html": "text/html; charset=utf-8", "style.css": "text/css"}
_ITSELF_ONLY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@router.get("/v1/samplers")
async def samplers() -> Json:
    """What a request for a picture may name as its sampler."""
    return Json({"data": sorted(PUBLISHED_SAMPLERS)})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(generate_latest(request.app.state.journal.registry), media_type=CONTENT_TYPE_LATEST)


class TranslateBody(Body):
    """/v1/translate"""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"text": "Click the button.", "to": "de"}})

    text: str | list[str]
    to: str | None = None


@router.post("/v1/translate")
async def translate(asked: TranslateBody, request: Request) -> Json:
    """A text, or each of several."""
    rooms: Rooms = request.app.state.rooms
    texts = [asked.text] if isinstance(asked.text, str) else asked.text
    lines = [text.split("\n") for text in texts]
    every = [line for each in lines for line in each]
    found = iter(await until_gone(request, rooms.translate(every, asked.to, asked.model)))
    several = [[next(found) for _ in each] for each in lines]
    said = ["\n".join(line.text for line in each) for each in several]
    warnings = dict.fromkeys([warning for each in several for line in each for warning in line.warnings])
    answer: Plain = {"text": said[0] if isinstance(asked.text, str) else said}
    answer["model"] = next((line.model for each in several for line in each), asked.model)
    return Json(answer | warned([*warnings, *asked.unknown()]))


@router.get("/v1/memory")
async def memory(request: Request) -> Json:
    """The models that are in memory."""
    rooms: Rooms = request.app.state.rooms
    about = ("kind", "device", "dtype", "bytes", "used")
    held = rooms.names.in_memory()
    return Json({"data": [{"name": name} | {each: getattr(model, each) for each in about} for name, model in held]})


@router.post("/v1/models/{name:path}/load")
async def load(name: str, request: Request) -> Json:
    """Brings a model into memory, as its first use would."""
    rooms: Rooms = request.app.state.rooms
    await until_gone(request, rooms.load(name))
    return await memory(request)


@router.post("/v1/models/{name:path}/unload")
async def unload(name: str, request: Request) -> Any:
    """Lets a model go; what computes with it goes on to its end."""
    rooms: Rooms = request.app.state.rooms
    known = rooms.names.known(name)
    await rooms.beside(lambda: loaded.unload(known))
    return await memory(request)
