"""What families of decoders share beside `Family`: spellings, windows, rotary positions, fused projections."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from qkv.config import build, convert
from qkv.core.stack_config import RotaryScaling
from qkv.errors import ConfigError, shorten, unknown
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Published
from qkv.weights.configs import spelled
from qkv.weights.family import Family, Joint, drop_copies, whole


def fields(**other: str | None) -> dict[str, str]:
    """The keys of a decoder's shape, as `spelled` gives them."""
    return spelled(tied="tie_word_embeddings", **other)


def explicit(config: DecoderConfig) -> DecoderConfig:
    """The same decoder with its defaults spelled out and its windows as short as they go."""
    windows = config.stack.layer_windows
    period = next(p for p in range(1, config.layers + 1) if windows[p:] == windows[:-p])
    return dataclasses.replace(
        config,
        kv_heads=config.heads if config.kv_heads is None else config.kv_heads,
        head_dim=config.stack.head_width,
        rotary_dim=config.stack.rotary_width if config.position == "rotary" else None,
        windows=windows[:period],
    )


def _settle(config: DecoderConfig, tensors: dict[str, Tensor]) -> DecoderConfig:
    if config.tied:
        why = "tie_word_embeddings is set, but the file holds a head that is not the embedding"
        drop_copies(tensors, {"head.weight": "token.weight"}, why)
    return config


@dataclass(frozen=True, kw_only=True)
class DecoderFamily(Family[DecoderConfig]):
    """A row of decoders; what is there twice in a file is the head of a tied one."""

    kind: type[DecoderConfig] = DecoderConfig
    tidy: Callable[[DecoderConfig], DecoderConfig] = explicit
    settle: Callable[[DecoderConfig, dict[str, Tensor]], DecoderConfig] = _settle


def layer_windows(kinds: Any, windows: Mapping[str, int | None], layers: int, key: str) -> list[int | None]:
    """The window of each layer from the list of their `kinds` under `key`. ConfigError if it is no such list."""
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(windows) for kind in kinds):
        raise ConfigError(f"{key}={shorten(repr(kinds))} must hold {' or '.join(windows)} for {layers} layers")
    return [windows[kind] for kind in kinds]


def windowed(
    kinds: Callable[[Published, int], list[str]], absent: int | None = None, switch: str | None = None
) -> Joint[DecoderConfig]:
    """Windows layer by layer, from layer_types and sliding_window: where there is no list, `kinds` makes it for so many
    layers, and `absent` is written where no layer has one. There are none unless `switch`, if there is one, is on."""

    def read(published: Published) -> dict[str, Any]:
        layers = whole(published, "num_hidden_layers", most=1000)
        windows: dict[str, int | None] = {"full_attention": None}
        if switch is None or published.get(switch):
            window = whole(published, "sliding_window", most=1_000_000_000) if switch else published["sliding_window"]
            windows["sliding_attention"] = window
        given = published.get("layer_types")
        if given is None:
            given = [kind if kind in windows else "full_attention" for kind in kinds(published, layers)]
        return {"windows": layer_windows(given, windows, layers, "layer_types")}

    def write(config: DecoderConfig) -> Published:
        windows = config.stack.layer_windows
        width = next(filter(None, windows), absent)
        given = ["full_attention" if window is None else "sliding_attention" for window in windows]
        return {"sliding_window": width, "layer_types": given} | ({switch: width is not None} if switch else {})

    return Joint({"sliding_window", "layer_types", *([switch] if switch else [])}, read, write)


_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "context",
}


def _read_rotary(published: Published, *, share: float | None = None) -> dict[str, Any]:
    """Base, width and scaling of rotary positions, in transformers 5's spelling (rope_parameters) or the older one.

    `share`: how much of each head turns where the file does not say it; None where all of it must. ConfigError names
    any other kind of rotary positions (yarn, linear, longrope ...).
    """
    rope = published.get("rope_scaling") or published.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"rope_parameters={shorten(repr(rope))} is not a JSON object")
    for key in rope:
        if key not in _ROPE | _LLAMA3.keys():
            raise ConfigError(unknown("rope parameter", key, _ROPE | _LLAMA3.keys()))
    base = rope.get("rope_theta", published.get("rope_theta"))
    values = {} if base is None else {"rotary_base": base}
    part = rope.get("partial_rotary_factor", published.get("partial_rotary_factor", share))
    if share is not None:
        part = convert(float, part, "partial_rotary_factor")
        if not 0 < part <= 1:
            raise ConfigError(f"partial_rotary_factor={part} is out of range; it must be above 0 and at most 1")
        values["rotary_dim"] = int(whole(published, "hidden_size") / whole(published, "num_attention_heads") * part)
    elif part not in (None, 1):
        raise ConfigError(f"partial_rotary_factor={shorten(repr(part))} is not supported; it must be 1")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        given = {"original_max_position_embeddings": published.get("max_position_embeddings")} | dict(rope)
        scaling = {ours: given[key] for key, ours in _LLAMA3.items() if key in given}
        values["rotary_scaling"] = build(RotaryScaling, scaling, "rope_scaling")
    elif kind != "default":
        raise ConfigError(f"rope_type={shorten(repr(kind))} is not supported; it must be 'default' or 'llama3'")
    return values


def _write_rotary(config: DecoderConfig) -> dict[str, Any]:
    """In the older spelling, which every version of transformers reads."""
    scaling = None
    if config.rotary_scaling is not None:
        scaling = {key: getattr(config.rotary_scaling, ours) for key, ours in _LLAMA3.items()}
        scaling["rope_type"] = "llama3"
    return {"rope_theta": config.rotary_base, "rope_scaling": scaling}


ROTARY = Joint({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}, _read_rotary, _write_rotary)


def partly_rotary(share: float, base: str = "rope_theta", part: str = "partial_rotary_factor") -> Joint[DecoderConfig]:
    """Rotary positions that turn `share` of each head where a file does not say it; `base` and `part` are written."""

    def write(config: DecoderConfig) -> Published:
        rotary = _write_rotary(config)
        width = config.stack.rotary_width / config.stack.head_width
        return {base: rotary["rope_theta"], part: width, "rope_scaling": rotary["rope_scaling"]}

    return Joint(ROTARY.keys, partial(_read_rotary, share=share), write)


def widened(key: str, dim: str = "hidden_size") -> Joint[DecoderConfig]:
    """The width of the feed-forward layers under `key`, four times that of the model where there is none."""

    def read(published: Published) -> dict[str, Any]:
        inner = published.get(key)
        return {"ffn_dim": 4 * whole(published, dim) if inner is None else inner}

    return Joint({key}, read, lambda config: {key: config.ffn_dim})
