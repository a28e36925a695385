"""What other tools than AUTOMATIC1111's web UI write under `parameters`: JSON, put into the web UI's words.

SwarmUI's and Fooocus' are read; another tool's JSON is refused by name, since to draw it as a prompt would be wrong.
Where they call samplers as ComfyUI does, they get the web UI's names; what has no counterpart keeps its own and is
reported as not honoured (request.py).
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkv.errors import InputError, shorten


class Parameters(NamedTuple):
    """What the web UI's lines say; the fields as they are spelled there."""

    prompt: str
    negative: str
    fields: dict[str, str]


# Texts that tell who drew a picture which has no `parameters`.
TOOLS = {
    "prompt": "ComfyUI",
    "workflow": "ComfyUI",
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "Comment": "NovelAI, or a tool that writes a comment like it",
}

_SAMPLERS = {  # ComfyUI's: the web UI's
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "lcm": "LCM",
    "uni_pc": "UniPC",
}
_SCHEDULES = {"normal": "", "karras": "Karras", "ddim_uniform": ""}
_SWARM = {
    "seed": "Seed",
    "steps": "Steps",
    "cfgscale": "CFG scale",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "comfyuisampler": "Sampler",  # as older versions call them
    "comfyuischeduler": "Schedule type",
}
_FOOOCUS = {
    "seed": "Seed",
    "steps": "Steps",
    "guidance_scale": "CFG scale",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
}
# What says the same once more, or nothing about the picture.
_SWARM_IDLE = {"prompt", "negativeprompt", "width", "height", "swarm_version", "aspectratio", "images", "automaticvae"}
_FOOOCUS_IDLE = {
    *("prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "resolution", "performance"),
    *("metadata_scheme", "version", "base_model_hash", "refiner_model_hash", "created_by"),
}
_NONE = ("", "None", "[]", "False", "Default (model)")


def from_json(text: str) -> Parameters | None:
    """What a tool's JSON says; None if `text` is none. InputError names a tool that is not known."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        values: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None  # a prompt may begin with a bracket
    match values:
        case {"sui_image_params": {"prompt": str(prompt)}}:
            given = values["sui_image_params"]
            size = "{width}x{height}".format_map({"width": "", "height": ""} | given)
            return _worded(prompt, given.get("negativeprompt"), given, _SWARM, _SWARM_IDLE, size)
        case {"prompt": str(prompt), "negative_prompt": str(negative), "base_model": _}:
            size = str(values.get("resolution", "")).strip("()").replace(", ", "x")
            return _worded(prompt, negative, values, _FOOOCUS, _FOOOCUS_IDLE, size)
    keys = shorten(", ".join(map(str, values)))
    raise InputError(f"its `parameters` are JSON of a tool that is not known (with {keys}); give its prompt yourself")


def _worded(
    prompt: str, negative: object, given: Mapping[str, Any], names: Mapping[str, str], idle: set[str], size: str
) -> Parameters:
    fields = {names.get(key, key): str(value) for key, value in given.items() if key not in idle}
    fields = {key: value for key, value in fields.items() if value not in _NONE}
    sampler, schedule = fields.get("Sampler", ""), fields.get("Schedule type", "")
    fields |= {"Sampler": _SAMPLERS.get(sampler, sampler), "Schedule type": _SCHEDULES.get(schedule, schedule)}
    if size != "x" and size:
        fields["Size"] = size
    return Parameters(prompt.strip(), negative.strip() if isinstance(negative, str) else "", fields)
