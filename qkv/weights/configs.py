"""Published config.json <-> ours: two columns of keys, and the values that our networks cannot but have.

A key that asks for something else is refused by name, so that no model is silently computed wrong.
Keys that no row names (dropout, versions, paths, code) are ignored; no key ever imports anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.config import as_dict
from qkv.errors import ConfigError, shorten
from qkv.weights.files import write_file

# How transformers spells the shape of a stack, in every family that came after BERT.
LAYERS = {
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
}


@dataclass(frozen=True, kw_only=True)
class Keys:
    """`fields`: published key -> ours. `fixed`: published key -> the values that mean what we do, the first of them
    written; a key that is absent is taken to mean it. `absent`: what the publishing library takes for a key of
    `fields` that the file leaves out, where our own default is another."""

    fields: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)

    def ours(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of our configuration that the file sets. ConfigError names a value that we cannot honour."""
        for key, values in self.fixed.items():
            if key in published and published[key] not in values:
                value = shorten(repr(published[key]))
                raise ConfigError(f"{key}={value} is not supported; it must be {' or '.join(map(repr, values))}")
        given = {**self.absent, **published}
        return {ours: given[key] for key, ours in self.fields.items() if given.get(key) is not None}

    def published(self, config: Any) -> dict[str, Any]:
        """The file's keys from our configuration."""
        values = as_dict(config)
        return {key: values[0] for key, values in self.fixed.items()} | {
            key: values.get(ours) for key, ours in self.fields.items()
        }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file as published ones look, in a folder that is made if need be. Raises OutputError."""
    write_file(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
