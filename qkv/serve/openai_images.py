"""OpenAI's dialect for pictures: generations and edits. https://platform.openai.com/docs/api-reference/images

What this server's models know beside it stands at the top level: seed, negative_prompt, num_inference_steps,
guidance_scale, sampler, and of an edit its strength.
"""

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from qkv.errors import InputError, NotFoundError, quoted
from qkv.pictures import request as wishes
from qkv.pictures.picture import Picture
from qkv.serve.answers import Json, Plain, base64_text, encoded, server_sent, until_gone, warned
from qkv.serve.openai import Body, body
from qkv.serve.rooms import Rooms, Step
from qkv.serve.uploads import opened, transparent

router = APIRouter(tags=["OpenAI"])
MAX_PICTURES = 10  # of one request, as OpenAI's
# What a model of this kind has no word for.
_SAID_ONLY = ("quality", "style", "background", "moderation", "input_fidelity")


class ImageBody(Body):
    """/v1/images/generations"""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"prompt": "a dog in a suit", "seed": 1}})

    prompt: str
    negative_prompt: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    size: str | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=100)
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    input_fidelity: str | None = None

    def wish(self) -> wishes.Request:
        return wishes.Request(
            prompts=(self.prompt,),
            negatives=(self.negative_prompt or "",),
            count=self.n or 1,
            seeds=() if self.seed is None else (self.seed,),
            steps=self.num_inference_steps,
            guidance=self.guidance_scale,
            sampler=self.sampler,
            size=size(self.size),
        )

    def ignored(self) -> list[str]:
        names = [name for name in _SAID_ONLY if getattr(self, name) not in (None, "auto")]
        return [f"ignored: {', '.join(names)} changed nothing"] if names else []


class EditBody(ImageBody):
    """The fields of /v1/images/edits beside its files."""

    strength: float | None = None

    def edit(self, files: Mapping[str, list[bytes]]) -> wishes.Request:
        """What is transparent, in the mask or else in the picture itself, is drawn anew. InputError."""
        for name in ("image", "mask"):
            if len(files.get(name, ())) > 1 or (name == "image" and name not in files):
                raise InputError(f"there are {len(files.get(name, ()))} files {name}; one is what is edited")
        if odd := sorted(files.keys() - {"image", "mask"}):
            raise InputError(f"there is a file {quoted(odd[0])}; only image and mask are files")
        image = opened("image", files["image"][0], alpha=True)
        mask = transparent(image)
        if given := files.get("mask"):
            mask = transparent(opened("mask", given[0], alpha=True))
            if mask is None:
                raise InputError("the mask is nowhere transparent; what is transparent is drawn anew")
        return dataclasses.replace(self.wish(), image=image, mask=mask, strength=self.strength)


def size(given: str | None) -> tuple[int, int] | None:
    """Width and height of "512x512"; None for auto. InputError."""
    if given is None or given == "auto":
        return None
    width, _, height = given.partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(given) < 16):
        raise InputError(f"size={quoted(given)} is not WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    return int(width), int(height)


@router.post("/v1/images/generations")
async def generations(asked: ImageBody, request: Request) -> Any:
    return await _answer(asked, asked.wish(), request, "image_generation")


_FORM = {"schema": {"type": "object", "required": ["image", "prompt"], "properties": {"prompt": {"type": "string"}}}}


@router.post("/v1/images/edits", openapi_extra={"requestBody": {"content": {"multipart/form-data": _FORM}}})
async def edits(request: Request) -> Any:
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=16, max_fields=100) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            else:
                fields[name] = value
    try:
        asked = EditBody.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    wish = await request.app.state.rooms.beside(lambda: asked.edit(files))
    return await _answer(asked, wish, request, "image_edit")


async def _answer(asked: ImageBody, wish: wishes.Request, request: Request, kind: str) -> Any:
    rooms: Rooms = request.app.state.rooms
    if asked.response_format == "url":
        raise InputError("response_format=url: this server hands pictures over in the answer; ask for b64_json")
    if asked.stream:
        events = await until_gone(request, rooms.draw(wish, asked.model, previews=asked.partial_images or 0))
        return server_sent(_stream(rooms, events, asked, kind), body)
    found = await until_gone(request, rooms.drawn(wish, asked.model))
    data = [{"b64_json": await _file(rooms, picture, asked), "seed": picture.seed} for picture in found]
    answer = {"created": int(time.time()), "data": data, "output_format": asked.output_format or "png"}
    return Json(answer | _said(found[0], asked))


def _said(picture: Picture, asked: ImageBody) -> Plain:
    said = warned([*picture.warnings, *asked.unknown(), *asked.ignored()])
    return {"size": "{}x{}".format(*picture.settings.size)} | said


async def _file(rooms: Rooms, picture: Picture, asked: ImageBody) -> str:
    """The picture in base64; as PNG with how it was drawn."""
    if asked.output_format in (None, "png"):
        return base64_text(await rooms.beside(picture.png))
    return await _encoded(rooms, picture.image, asked)


async def _encoded(rooms: Rooms, image: Image.Image, asked: ImageBody) -> str:
    kind, quality = asked.output_format or "png", asked.output_compression
    return base64_text(await rooms.beside(lambda: encoded(image, kind, 90 if quality is None else quality)))


async def _stream(
    rooms: Rooms, events: AsyncIterator[Step | Picture], asked: ImageBody, kind: str
) -> AsyncIterator[Plain | str]:
    partial = 0
    about = {"output_format": asked.output_format or "png", "background": "opaque", "quality": "auto"}
    async for event in events:
        head = about | {"created_at": int(time.time())}
        if isinstance(event, Picture):
            picture = {"b64_json": await _file(rooms, event, asked), "seed": event.seed}
            yield head | {"type": f"{kind}.completed"} | picture | _said(event, asked)
            partial = 0
        elif event.preview is not None:
            picture = {"b64_json": await _encoded(rooms, event.preview, asked), "partial_image_index": partial}
            size = "{}x{}".format(*event.preview.size)
            yield head | {"type": f"{kind}.partial_image", "size": size} | picture
            partial += 1


@router.post("/v1/images/variations")
async def variations() -> None:
    raise NotFoundError("no model here varies a picture; /v1/images/edits draws from one and a text")
