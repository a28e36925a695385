"""The rest of the web UI's dialect: what is there, how far it is, stop, read a picture's settings, enlarge."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, Field

from qkv.errors import InputError, quoted
from qkv.pictures import png
from qkv.pictures.files import MAX_PIXELS
from qkv.pictures.picture import MAX_TEXT, PUBLISHED_SAMPLERS, parse_parameters
from qkv.serve.a1111 import FIXED, Desk, chosen
from qkv.serve.answers import Json, base64_text, encoded
from qkv.serve.rooms import Rooms
from qkv.serve.uploads import from_base64, opened
from qkv.tasks.upscale import upscaling
from qkv.weights.upscaler import FOLDER

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])

MAX_ENLARGED = 8.0  # times a side
_PLAIN = {"None": Image.Resampling.LANCZOS, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_EMPTY: dict[str, Any] = {  # what there is none of here
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},
}
_LISTS = (
    *("script-info", "sd-vae", "sd-modules", "latent-upscale-modes", "loras", "hypernetworks", "face-restorers"),
    *("realesrgan-models", "prompt-styles", "artist-categories", "artists", "extensions"),
)
_EMPTY |= {name: [] for name in _LISTS}


def _empty(name: str) -> Callable[[], Any]:
    async def answer() -> Json:
        return Json(_EMPTY[name])

    return answer


for _name in _EMPTY:
    router.get(f"/{_name}", name=_name)(_empty(_name))


@router.get("/samplers")
async def samplers() -> Json:
    names = dict.fromkeys(name for name, _ in PUBLISHED_SAMPLERS.values())
    return Json([{"name": name, "aliases": [], "options": {}} for name in names])


@router.get("/schedulers")
async def schedulers() -> Json:
    schedules = ["Automatic", *dict.fromkeys(schedule for _, schedule in PUBLISHED_SAMPLERS.values() if schedule)]
    return Json([{"name": each.lower(), "label": each, "aliases": None} for each in schedules])


@router.get("/sd-models")
async def sd_models(request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms
    names = [name for name, model in rooms.names.all().items() if model.kind == "pictures"]
    told = {"hash": None, "sha256": None, "config": None}
    return Json([{"title": name, "model_name": name, "filename": name} | told for name in names])


@router.get("/options")
async def options(request: Request) -> Json:
    model, _ = chosen(request.app.state.rooms, Desk.of(request), {})
    return Json({"sd_model_checkpoint": model} | FIXED)


@router.post("/options")
async def set_options(asked: dict[str, Any], request: Request) -> Json:
    """Chooses the model for all who name none; the rest must be as it is."""
    desk = Desk.of(request)
    desk.model, warnings = chosen(request.app.state.rooms, desk, asked)
    return Json({"warnings": warnings} if warnings else None)


@router.post("/refresh-checkpoints")
async def refresh() -> Json:
    return Json(None)


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> Json:
    """How far the oldest request is, and its picture as it is now."""
    desk = Desk.of(request)
    job = desk.jobs[0] if desk.jobs else None
    step = job.step if job else None
    state = {
        "skipped": bool(job and job.skipped),
        "interrupted": bool(job and job.stopped),
        "job": "drawing" if job else "",
        "job_count": job.pictures if job else 0,
        "job_no": job.done if job else 0,
        "sampling_step": step.step if step else 0,
        "sampling_steps": step.steps if step else 0,
    }
    image = None
    if step and not skip_current_image:
        rooms: Rooms = request.app.state.rooms
        image = base64_text(await rooms.beside(lambda: encoded(step.preview())))
    done = job.progress if job else 0.0
    left = (time.monotonic() - job.began) * (1 - done) / done if job else 0.0
    return Json({"progress": done, "eta_relative": left, "state": state, "current_image": image, "textinfo": None})


@router.post("/interrupt")
async def interrupt(request: Request) -> Json:
    """Ends all that is under way within a step."""
    for job in Desk.of(request).jobs:
        job.stopped = True
    return Json({})


@router.post("/skip")
async def skip(request: Request) -> Json:
    """Leaves out the picture that the oldest request is at."""
    for job in Desk.of(request).jobs[:1]:
        job.skipped = True
    return Json({})


class InfoBody(BaseModel):
    image: str


@router.post("/png-info")
async def png_info(asked: InfoBody) -> Json:
    """What a PNG picture says of how it was drawn."""
    data = from_base64("image", asked.image)
    try:
        texts = png.texts(data, None, MAX_TEXT) if data.startswith(png.SIGNATURE) else {}
    except ValueError as error:
        raise InputError(f"image cannot be read: {error}") from error
    info = texts.get("parameters", "")
    prompt, negative, fields = parse_parameters(info)
    found = {"Prompt": prompt, "Negative prompt": negative} | fields if info else {}
    return Json({"info": info, "items": texts, "parameters": found})


@router.post("/interrogate")
async def interrogate() -> Json:
    raise InputError("no model here describes a picture in words")


@router.get("/upscalers")
async def upscalers(request: Request) -> Json:
    names = [*_PLAIN, *_networks(request.app.state.rooms)]
    told = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return Json([{"name": name} | told for name in names])


def _networks(rooms: Rooms) -> list[str]:
    """The models that have an upscaler."""
    return [name for name, model in rooms.names.all().items() if (model.path / FOLDER).is_dir()]


class ExtraBody(BaseModel):
    """How pictures are enlarged: by a factor, or (resize_mode 1) to a size."""

    resize_mode: int = 0
    upscaling_resize: float = 2.0
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str | None = None
    upscaler_2: str | None = None
    extras_upscaler_2_visibility: float = 0.0
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0

    def check(self, names: list[str]) -> None:
        """InputError for what cannot be honoured."""
        for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
            if getattr(self, name):
                raise InputError(f"{name}={getattr(self, name):g} cannot be honoured here; leave it 0")
        if (name := self.upscaler_1 or "None") not in names:
            raise InputError(f"upscaler_1={quoted(name)} is not here; there are {', '.join(names)}")

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Of the result. InputError."""
        if self.resize_mode == 1:
            size = (self.upscaling_resize_w, self.upscaling_resize_h)
        else:
            if not 0 < self.upscaling_resize <= MAX_ENLARGED:
                raise InputError(
                    f"upscaling_resize={self.upscaling_resize:g} is not above 0 and at most {MAX_ENLARGED:g}"
                )
            size = (int(image.width * self.upscaling_resize), int(image.height * self.upscaling_resize))
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise InputError(f"the result would have {size[0]} x {size[1]} pixels; at most {MAX_PIXELS:,} are made")
        return size

    def fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The image, resampled where it has not that size."""
        method = _PLAIN.get(self.upscaler_1 or "None", Image.Resampling.LANCZOS)
        if self.resize_mode == 1 and self.upscaling_crop:
            return ImageOps.fit(image, size, method)
        return image if image.size == size else image.resize(size, method)


class ExtraImage(ExtraBody):
    """/sdapi/v1/extra-single-image"""

    image: str


class ExtraFile(BaseModel):
    data: str
    name: str = ""


class ExtraImages(ExtraBody):
    """/sdapi/v1/extra-batch-images"""

    images: list[ExtraFile] = Field(alias="imageList")


@router.post("/extra-single-image")
async def extra_single_image(asked: ExtraImage, request: Request) -> Json:
    """A picture enlarged, transparency too."""
    return Json({"html_info": "", "image": await _enlarged(request.app.state.rooms, asked, asked.image)})


@router.post("/extra-batch-images")
async def extra_batch_images(asked: ExtraImages, request: Request) -> Json:
    """Several pictures, one after another."""
    rooms: Rooms = request.app.state.rooms
    return Json({"html_info": "", "images": [await _enlarged(rooms, asked, each.data) for each in asked.images]})


async def _enlarged(rooms: Rooms, asked: ExtraBody, text: str) -> str:
    networks = _networks(rooms)
    asked.check([*_PLAIN, *networks])
    image = await rooms.beside(lambda: opened("image", from_base64("image", text), alpha=True))
    size, name = asked.size(image), asked.upscaler_1
    if name in networks:
        where = rooms.settings.where

        def run() -> Iterator[Any]:
            return upscaling(image, model=name, where=where, offline=True)

        *_, last = [event async for event in rooms.other(name, run)]
        image = last.image
    return base64_text(await rooms.beside(lambda: encoded(asked.fit(image, size))))
