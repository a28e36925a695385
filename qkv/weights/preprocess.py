"""How a published model wants its pictures: `preprocessor_config.json`, in its old and new spellings, and back."""

from pathlib import Path
from typing import Any

from qkv.config import build, convert
from qkv.errors import ConfigError, shorten
from qkv.models.preprocess import Preprocess
from qkv.published import Keys, Published, only
from qkv.weights.configs import write_json
from qkv.weights.folder import Folder

FILE, NEWER = "preprocessor_config.json", "processor_config.json"
KEYS = Keys(
    read={
        *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    },
    fixed={
        "image_processor_type": ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
        "feature_extractor_type": ("CLIPFeatureExtractor", "CLIPImageProcessor"),  # its older name
        **only(False, "do_pad", "default_to_square", "use_square_size"),
    },
    harmless={
        *("processor_class", "pad_size", "data_format", "input_data_format", "device", "return_tensors"),
        *("disable_grouping", "image_seq_length"),
    },
    absent={"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True},
)
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


def read_preprocess(folder: Folder, size: int) -> Preprocess:
    """What the folder says, or how OpenAI's CLIP does it, for a tower of `size` x `size` pixels.

    ConfigError names a value that cannot be honoured; CheckpointError.
    """
    published = _published(folder)
    preprocess = Preprocess(resize=size, crop=(size, size)) if published is None else from_published(published)
    if preprocess.size != (size, size):
        given = "{} x {}".format(*preprocess.size)
        raise ConfigError(f"{folder.path}: {FILE} makes pictures of {given} pixels; the model reads {size} x {size}")
    return preprocess


def unknown_keys(folder: Folder) -> list[str]:
    """A warning that names the keys of the folder's file which no table knows."""
    return KEYS.unknown(_published(folder) or {}, FILE)


def _published(folder: Folder) -> Published | None:
    if folder.has(FILE):
        return folder.json(FILE)
    nested = folder.json(NEWER).get("image_processor") if folder.has(NEWER) else None
    return nested if isinstance(nested, dict) else None


def from_published(published: Published) -> Preprocess:
    """The configuration of a CLIPImageProcessor; keys that are absent are as it has them. ConfigError."""
    KEYS.ours(published)
    published, values = KEYS.given(published), dict[str, Any]()
    if "size" in published:
        values["resize"] = _edges("size", published["size"])
    if "crop_size" in published:
        crop = _edges("crop_size", published["crop_size"])
        values["crop"] = (crop, crop) if isinstance(crop, int) else crop
    if "resample" in published:
        values["resample"] = _resample(published["resample"])
    if "rescale_factor" in published:
        values["factor"] = published["rescale_factor"]
    for key, ours in (("image_mean", "mean"), ("image_std", "std")):
        if key in published:
            value = published[key]
            values[ours] = [value] * 3 if isinstance(value, int | float) else value
    for key, off in _OFF.items():
        if not convert(bool, published.get(key, True), f"{FILE}: {key}"):
            values |= off
    return build(Preprocess, values, FILE)


_OFF: dict[str, dict[str, Any]] = {
    **{"do_resize": {"resize": None}, "do_center_crop": {"crop": None}, "do_rescale": {"factor": 1.0}},
    **{"do_normalize": {"mean": [0.0] * 3, "std": [1.0] * 3}, "do_convert_rgb": {}},  # ours are always RGB
}


def _edges(key: str, value: Any) -> Any:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224} as ours."""
    match value:
        case {"shortest_edge": short, **rest} if not rest and key == "size":
            return short
        case {"height": height, "width": width, **rest} if not rest:
            return (height, width)
        case int():
            return value
    known = 'a number, {"shortest_edge": ...} or {"height": ..., "width": ...}'
    raise ConfigError(f"{FILE}: {key}={shorten(repr(value))} is not supported; it must be {known}")


def _resample(value: Any) -> str:
    if isinstance(value, int) and 0 <= value < len(_RESAMPLE):
        return _RESAMPLE[value]
    raise ConfigError(f"{FILE}: resample={shorten(repr(value))} is no filter of Pillow's; it must be 0 to 5")


def save_preprocess(preprocess: Preprocess, folder: Path) -> None:
    """Writes preprocessor_config.json as transformers' CLIPImageProcessor reads it. OutputError."""
    resize, crop = preprocess.resize, preprocess.crop
    size = {"shortest_edge": resize} if isinstance(resize, int) else _sides(resize)
    written = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        **{"do_resize": resize is not None, "size": size, "resample": _RESAMPLE.index(preprocess.resample)},
        **{"do_center_crop": crop is not None, "crop_size": _sides(crop)},
        **{"do_rescale": True, "rescale_factor": preprocess.factor},
        **{"do_normalize": True, "image_mean": list(preprocess.mean), "image_std": list(preprocess.std)},
    }
    write_json(folder / FILE, {key: value for key, value in written.items() if value is not None})


def _sides(sides: tuple[int, int] | None) -> dict[str, int] | None:
    return None if sides is None else {"height": sides[0], "width": sides[1]}
