"""The fields of SageMaker's payloads in the library's words: JumpStart's of pictures, transformers' of text."""

from typing import Any

import numpy as np
from PIL import Image

from qkv.errors import InputError, quoted
from qkv.pictures import request as wishes
from qkv.serve.answers import Plain, unknown
from qkv.serve.uploads import from_base64, opened

_OURS = {"max_new_tokens": "max_tokens", "num_return_sequences": "n", "num_beams": "beams", "stop_sequences": "stop"}
_SAME = (
    *("max_tokens", "n", "stop", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty", "best_of"),
    *("presence_penalty", "frequency_penalty", "length_penalty"),
)
_READ = ("text_inputs", "max_length", "do_sample", "return_full_text", "details", "stream", "early_stopping")
_IDLE: Plain = {  # what changes nothing in this value, and is refused in any other
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "truncate": None,
    "watermark": False,
    "decoder_input_details": False,
    "num_beam_groups": 1,
    "use_cache": True,
}


def options(given: Plain) -> tuple[Plain, list[str]]:
    """The library's options of what transformers, TGI and JumpStart call them, and warnings. InputError."""
    given = {name: value for name, value in given.items() if value is not None}
    for name, idle in _IDLE.items():
        if name in given and given[name] != idle:
            raise InputError(f"{name}={quoted(given[name])}: there is none of it here; leave it away")
    asked = {_OURS.get(name, name): value for name, value in given.items() if name in (*_OURS, *_SAME)}
    if asked.get("beams") == 1:
        del asked["beams"]
    if given.get("do_sample") is False:
        asked["temperature"] = 0.0
    elif given.get("do_sample") or "top_p" in asked or "top_k" in asked:
        asked.setdefault("temperature", 1.0)
    return asked, unknown(given.keys() - {*_OURS, *_SAME, *_READ, *_IDLE})


DRAWN = {
    *("prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed", "eta"),
    *("num_images_per_prompt", "sampler", "image", "mask_image", "strength"),
    "batch_size",  # a picture is the same in any company
}


def picture_wish(value: Plain, *, files: bool) -> wishes.Request:
    """The library's wish. `files`: pictures are files in base64, else rows of pixels. InputError."""
    prompt, negative = value.get("prompt"), value.get("negative_prompt")
    if negative is not None and isinstance(negative, list) != isinstance(prompt, list):
        raise InputError("negative_prompt is a list if prompt is one, else a text; give both alike")
    width, height, guidance = value.get("width"), value.get("height"), value.get("guidance_scale")
    if (width is None) != (height is None):
        raise InputError(f"{'width' if height is None else 'height'} stands alone; give both, or neither")
    if isinstance(guidance, int | float) and guidance <= 1:
        guidance = 1.0  # published: it is ignored
    asked: Plain = {
        "prompts": tuple(prompt) if isinstance(prompt, list) else (prompt,),
        "negatives": tuple(negative) if isinstance(negative, list) else (negative or "",),
        "count": value.get("num_images_per_prompt"),
        "seeds": value.get("seed"),
        "steps": value.get("num_inference_steps"),
        "guidance": guidance,
        "sampler": value.get("sampler"),
        "size": None if width is None else (width, height),
        "eta": value.get("eta"),
    }
    said = {name: given for name, given in asked.items() if given is not None}
    return wishes.Request(**said, **_start(value, files))


def _start(value: Plain, files: bool) -> Plain:
    """What a picture begins from, as fields of the library's request. In a mask, white is drawn anew. InputError."""
    names = {"image": "image", "mask_image": "mask", "strength": "strength"}
    given = {ours: value[name] for name, ours in names.items() if value.get(name) is not None}
    pictures = [name for name in given if name != "strength"]
    return given | {name: _picture(name, given[name], files) for name in pictures}


def _picture(name: str, given: Any, files: bool) -> Image.Image:
    if isinstance(given, str) or files:
        return opened(name, from_base64(name, given))
    try:
        pixels = np.asarray(given, np.int64)
    except (ValueError, TypeError, OverflowError):
        pixels = np.zeros(0, np.int64)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)) or not pixels.size:
        raise InputError(f"{name} is neither a file in base64 nor rows of pixels, each red, green and blue")
    if pixels.min() < 0 or pixels.max() > 255:
        raise InputError(f"{name} has a pixel that is not in 0..255")
    grey = pixels.shape[2:] == (1,)
    return Image.fromarray((pixels[..., 0] if grey else pixels).astype(np.uint8)).convert("RGB")
