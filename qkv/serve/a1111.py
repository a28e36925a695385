"""The dialect of AUTOMATIC1111's web UI: pictures from texts and pictures. https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API

Clients send every field with its default, so a field counts as asked for where it says something else. What changes
the picture more than a little and cannot be honoured is an error, the rest a warning of the answer. Masked pictures are
drawn, cut out and pasted back as the web UI does it. `a1111_lists.py` answers what clients ask about the server.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from PIL import Image, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict

from qkv.errors import InputError, quoted
from qkv.pictures import request as wishes
from qkv.pictures.picture import PUBLISHED_SAMPLERS, Picture, parameters
from qkv.serve.answers import Failure, Json, Plain, base64_text, encoded, until_gone
from qkv.serve.rooms import Rooms, Step
from qkv.serve.uploads import from_base64, opened
from qkv.tasks.draw import Progress

NAME, PREFIXES = "a1111", ("/sdapi/",)
router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])

Box = tuple[int, int, int, int]
MAX_BLUR = 64  # pixels
# What would make another picture, and what would make it a little different; everything empty asks for nothing.
_REFUSED = ("enable_hr", "script_name", "alwayson_scripts", "styles", "refiner_checkpoint", "latent_mask")
_UNHEARD = ("restore_faces", "tiling", "subseed_strength", "s_churn", "s_tmin", "s_tmax", "save_images", "s_min_uncond")
_IDLE: dict[str, tuple[Any, ...]] = {
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "s_noise": (1,),
    "initial_noise_multiplier": (1,),
}
# What means nothing by itself, or nothing here.
_SILENT = {"subseed", "image_cfg_scale", "script_args", "override_settings_restore_afterwards", "denoising_strength"}
_SILENT |= {"do_not_save_samples", "do_not_save_grid", "disable_extra_networks", "refiner_switch_at", "comments"}
_SILENT |= {"firstphase_width", "firstphase_height", "force_task_id", "infotext", "send_images", "include_init_images"}


def error(failure: Failure) -> Json:
    body = {"error": failure.kind, "detail": failure.message, "body": "", "errors": ""}
    return Json(body, failure.status, failure.headers)


class Job:
    """A request under way, as `progress` tells of it."""

    def __init__(self, pictures: int) -> None:
        self.pictures, self.done, self.began = pictures, 0, time.monotonic()
        self.step: Progress | None = None
        self.stopped = self.skipped = False

    @property
    def progress(self) -> float:
        part = self.step.step / self.step.steps if self.step else 0.0
        return max(0.01, (self.done + part) / self.pictures)  # 0 is that nothing is done


class Desk:
    """What the web UI keeps between requests: its options, and what is under way, the oldest first."""

    def __init__(self) -> None:
        self.model: str | None = None  # that clients chose for all who name none
        self.jobs: list[Job] = []

    @staticmethod
    def of(request: Request) -> "Desk":
        desk: Desk = request.app.state.desk
        return desk


class TextBody(BaseModel):
    """/sdapi/v1/txt2img"""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"prompt": "a dog in a suit", "seed": 1}})

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = None
    n_iter: int | None = None
    eta: float | None = None
    override_settings: Mapping[str, Any] | None = None
    send_images: bool | None = None
    include_init_images: bool | None = None

    def wish(self) -> wishes.Request:
        """InputError, NotFoundError."""
        if (self.width is None) != (self.height is None):
            raise InputError(f"width={self.width}, height={self.height}: give both or neither")
        sampler = self.sampler()
        return wishes.Request(
            prompts=(self.prompt,),
            negatives=(self.negative_prompt or "",),
            count=_or(self.batch_size, 1) * _or(self.n_iter, 1),
            seeds=() if self.seed in (None, -1) else (self.seed,),
            steps=self.steps,
            guidance=self.cfg_scale,
            sampler=sampler,
            size=None if self.width is None or self.height is None else (self.width, self.height),
            eta=_or(self.eta, 0.0) if sampler == "ddim" else 0.0,
        )

    def sampler(self) -> str | None:
        name, schedule = self.sampler_name or self.sampler_index, (self.scheduler or "").capitalize()
        if not name:
            return None
        known = wishes.web_uis_sampler(name, schedule)
        if known is None and schedule not in ("", "Automatic"):
            raise InputError(
                f"scheduler={quoted(self.scheduler)} does not go with sampler {quoted(name)} here; use automatic"
            )
        return known or name

    def warnings(self) -> list[str]:
        """What changed nothing. InputError for what would change all."""
        extra, found = self.model_extra or {}, []
        for name in _REFUSED:
            if extra.get(name):
                raise InputError(f"{name}={quoted(extra[name])} cannot be honoured here; leave it out")
        for name, value in extra.items():
            if value and value not in _IDLE.get(name, ()) and (name in _UNHEARD or name in _IDLE):
                found.append(f"{name}={quoted(value)}")
            elif not (name in (*_REFUSED, *_UNHEARD, *_IDLE) or name in _SILENT or name.startswith("hr_")):
                found.append(quoted(name))
        if self.eta not in (None, 0, 1) and self.sampler() != "ddim":
            found.append(f"eta={self.eta:g}")
        return [f"ignored: {', '.join(found[:10])} changed nothing"] if found else []


class ImageBody(TextBody):
    """/sdapi/v1/img2img"""

    init_images: list[str] | None = None
    resize_mode: int = 0
    denoising_strength: float | None = None
    mask: str | None = None
    mask_blur: float | None = None
    mask_blur_x: float | None = None
    mask_blur_y: float | None = None
    inpainting_fill: int | None = None
    inpaint_full_res: bool | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: int | None = None

    def canvas(self) -> "Canvas":
        """The picture and its mask, as they were sent. InputError."""
        if len(self.init_images or ()) != 1:
            raise InputError(f"there are {len(self.init_images or ())} init_images; give one")
        if self.resize_mode not in (0, 1):
            raise InputError(f"resize_mode={self.resize_mode} is not 0 (stretch) or 1 (crop)")
        image = opened("init_images", from_base64("init_images", (self.init_images or [""])[0]))
        mask = None if self.mask is None else self._mask(image.size)
        if self.resize_mode == 1 and self.width and self.height:
            wishes.check_size((self.width, self.height), wishes.SIZE_UNIT)
            size = (self.width, self.height)
            image, mask = ImageOps.fit(image, size), mask and ImageOps.fit(mask, size)
        return Canvas(image, mask, self._box(mask) if mask and self.inpaint_full_res else None)

    def _mask(self, size: tuple[int, int]) -> Image.Image:
        """White is drawn anew; of a mask with transparency, what is opaque."""
        mask = opened("mask", from_base64("mask", self.mask), alpha=True)
        mask = mask.getchannel("A") if mask.mode == "RGBA" else mask.convert("L")
        mask = mask.resize(size, Image.Resampling.LANCZOS)
        if self.inpainting_mask_invert:
            mask = ImageOps.invert(mask)
        blur = tuple(_or(each, _or(self.mask_blur, 4)) for each in (self.mask_blur_x, self.mask_blur_y))
        if not all(0 <= each <= MAX_BLUR for each in blur):
            raise InputError(f"mask_blur={max(blur):g} is not in 0..{MAX_BLUR}")
        return mask.filter(ImageFilter.GaussianBlur(blur))

    def _box(self, mask: Image.Image) -> Box | None:
        """What is drawn if only the masked part is: the mask with its padding, in the shape of the picture to be."""
        padding = _or(self.inpaint_full_res_padding, 0)
        if not 0 <= padding <= 1024:
            raise InputError(f"inpaint_full_res_padding={padding} is not in 0..1024")
        found = mask.getbbox()
        if found is None:
            return None
        shape = (self.width or 1) / (self.height or 1)
        across, down = (_grown(found[i], found[i + 2], padding, mask.size[i]) for i in (0, 1))
        width, height = across[1] - across[0], down[1] - down[0]
        across = _widened(*across, max(width, math.ceil(height * shape)), mask.width)
        down = _widened(*down, max(height, math.ceil(width / shape)), mask.height)
        return across[0], down[0], across[1], down[1]

    def edit(self) -> tuple[wishes.Request, "Canvas"]:
        canvas = self.canvas()
        image, mask = (each and each.crop(canvas.box) if canvas.box else each for each in canvas[:2])
        strength = _or(self.denoising_strength, 0.75)
        return dataclasses.replace(self.wish(), image=image, mask=mask, strength=strength), canvas

    def warnings(self) -> list[str]:
        found = super().warnings()
        if self.mask is not None and self.inpainting_fill not in (None, 1):
            found.append(
                f"inpainting_fill={self.inpainting_fill}: what is masked begins from the picture itself, as by 1"
            )
        return found


class Canvas(NamedTuple):
    """A picture that is drawn into: all of it, or what lies in `box`."""

    image: Image.Image
    mask: Image.Image | None = None  # grey, soft at its edges
    box: Box | None = None

    def finish(self, drawn: Image.Image) -> Image.Image:
        """What was drawn, on the picture where the mask is not white."""
        if self.mask is None:
            return drawn
        if self.box is None:
            image, mask = (each.resize(drawn.size, Image.Resampling.LANCZOS) for each in (self.image, self.mask))
            return Image.composite(drawn, image, mask)
        whole, mask = self.image.copy(), self.mask.crop(self.box)
        whole.paste(drawn.resize(mask.size, Image.Resampling.LANCZOS), self.box, mask)
        return whole


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _grown(start: int, end: int, padding: int, side: int) -> tuple[int, int]:
    return max(0, start - padding), min(side, end + padding)


def _widened(start: int, end: int, wanted: int, side: int) -> tuple[int, int]:
    """The span, `wanted` long around its middle, or as long as there is room."""
    wanted = min(wanted, side)
    start = min(max(0, (start + end - wanted) // 2), side - wanted)
    return start, start + wanted


@router.post("/txt2img")
async def txt2img(asked: TextBody, request: Request) -> Json:
    """Pictures from a text."""
    warnings = asked.warnings()
    return await until_gone(request, _answer(request, asked, asked.wish(), None, warnings))


@router.post("/img2img")
async def img2img(asked: ImageBody, request: Request) -> Json:
    """Pictures from a picture, or into one."""
    rooms: Rooms = request.app.state.rooms
    warnings = asked.warnings()
    wish, canvas = await rooms.beside(asked.edit)
    return await until_gone(request, _answer(request, asked, wish, canvas, warnings))


async def _answer(
    request: Request, asked: TextBody, wish: wishes.Request, canvas: Canvas | None, warnings: list[str]
) -> Json:
    rooms: Rooms = request.app.state.rooms
    desk = Desk.of(request)
    model, unknown = chosen(rooms, desk, asked.override_settings or {})
    found, unfinished = await _draw(rooms, desk, wish, model)
    if canvas is not None:
        found = [dataclasses.replace(each, image=canvas.finish(each.image)) for each in found]
    files = [await rooms.beside(each.png) for each in found]
    warnings = [*warnings, *unknown, *dict.fromkeys(warning for each in found for warning in each.warnings)]
    if unfinished is not None:
        files.append(await rooms.beside(lambda: encoded(canvas.finish(unfinished) if canvas else unfinished)))
    if len(found) < wish.pictures:
        warnings.append(f"interrupted: {len(found)} of {wish.pictures} pictures are done")
    info = _info(found, asked, warnings)
    images = [] if asked.send_images is False else [base64_text(file) for file in files]
    said = asked.model_dump(exclude=set() if asked.include_init_images else {"init_images", "mask"})
    about = json.loads(json.dumps(said), parse_constant=lambda _: None)  # NaN came in, and may not go out
    return Json({"images": images, "parameters": about, "info": json.dumps(info), "warnings": warnings})


async def _draw(
    rooms: Rooms, desk: Desk, wish: wishes.Request, model: str | None
) -> tuple[list[Picture], Image.Image | None]:
    """The pictures, but for those that were skipped; and what there is of the one at which somebody interrupted."""
    job, seeds = Job(wish.pictures), wish.choose_seeds()
    found: list[Picture] = []
    desk.jobs.append(job)
    try:
        while seeds and not job.stopped:
            job.skipped, job.step = False, None
            events = await rooms.draw(dataclasses.replace(wish, count=len(seeds), seeds=tuple(seeds)), model)
            async with aclosing(events) as each:
                async for event in each:
                    seeds = _note(job, event, found, seeds)
                    if job.stopped or job.skipped:
                        break
            if job.skipped:
                seeds, job.done = seeds[1:], job.done + 1
        return found, await rooms.beside(job.step.preview) if job.stopped and job.step else None
    finally:
        desk.jobs.remove(job)


def _note(job: Job, event: Step | Picture, found: list[Picture], seeds: list[int]) -> list[int]:
    """Notes what has happened; the seeds that are left."""
    if not isinstance(event, Picture):
        job.step = event.progress
        return seeds
    found.append(event)
    job.step, job.done = None, job.done + 1
    return seeds[1:]


def _info(found: Sequence[Picture], asked: TextBody, warnings: list[str]) -> Plain:
    said: Plain = {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt or "", "warnings": warnings}
    if not found:
        return said | {"infotexts": [], "all_seeds": []}
    first = found[0].settings
    width, height = first.size
    return said | {
        "all_prompts": [each.prompt for each in found],
        "all_negative_prompts": [each.negative for each in found],
        "seed": first.seed,
        "all_seeds": [each.seed for each in found],
        "width": width,
        "height": height,
        "sampler_name": PUBLISHED_SAMPLERS.get(first.sampler, (first.sampler, None))[0],  # type: ignore[call-overload]
        "cfg_scale": first.guidance,
        "steps": first.steps,
        "batch_size": asked.batch_size or 1,
        "denoising_strength": first.strength,
        "sd_model_name": first.model,
        "sd_model_hash": first.fingerprint,
        "index_of_first_image": 0,
        "infotexts": [parameters(each.settings) for each in found],
        "version": f"qkv {first.versions['qkv']}",
    }


# Options: the model is one; of the others the only value that they have here is listed.
FIXED: Plain = {
    "CLIP_stop_at_last_layers": 1,
    "sd_vae": "Automatic",
    "samples_format": "png",
    "enable_pnginfo": True,
    "eta_noise_seed_delta": 0,
    "live_previews_enable": True,
    "sd_checkpoint_hash": "",
}


_TITLE = re.compile(r"(\.safetensors|\.ckpt)?( \[[0-9a-f]+\])?$")  # what the web UI writes behind a model's name


def chosen(rooms: Rooms, desk: Desk, options: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The model that options name, else the desk's, and a warning for what cannot be set. NotFoundError, InputError."""
    model = options.get("sd_model_checkpoint") or desk.model
    if model is not None and not isinstance(model, str):
        raise InputError(f"sd_model_checkpoint={quoted(model)} is not a name")
    model = model and _TITLE.sub("", model)
    others = {name: value for name, value in options.items() if name != "sd_model_checkpoint"}
    odd = [name for name, value in others.items() if name not in FIXED or value != FIXED[name]]
    warnings = [f"ignored: the options {', '.join(map(quoted, odd[:10]))} changed nothing"] if odd else []
    return rooms.names.find(model, "pictures"), warnings
