"""What a published family of models is to us: a table of names, two columns of keys, and the values of all its members.

The families themselves stand one a file beside this one, and all of them in families.py; docs/adding-a-family.md tells
how to add one.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from qkv.config import build, convert
from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.published import Fixed, Keys, Published
from qkv.weights.configs import COMMON
from qkv.weights.folder import Folder
from qkv.weights.load import Model, export_weights, load_module
from qkv.weights.tables import Table

VERSION = "0.42.1"  # of the diffusers that our folders are tested with
Config = TypeVar("Config")

# What no model here has, wherever it is asked for: key -> the values that mean "no".
REFUSED = {
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "add_cross_attention": (None, False),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}


class Joint(NamedTuple, Generic[Config]):
    """Published keys that are no field each: `read` gives the fields that hang on them (what a file leaves out is
    filled in from `Keys.absent`), `write` gives those keys back."""

    keys: Collection[str]
    read: Callable[[Published], Mapping[str, Any]]
    write: Callable[[Config], Published] = lambda config: {}


@dataclass(frozen=True, kw_only=True)
class Family(Generic[Config]):
    """One row of the album.

    `kind` is our configuration, `architecture` their class; `keys.fixed` holds its model_type. `values` are
    fields that every member has; `joints` come after `keys`. `aliases` are other spellings of published keys; `refused`
    are keys that must have one of these values if they are there.

    `tidy` spells a configuration's defaults out. `settle` takes what is there twice out of the tensors, and gives the
    configuration that they have; the fields that they alone tell are `unsaid` in a config.json. `modern` renames old
    spellings of tensors. `heads`: the same body, published with something on top of it.
    """

    kind: type[Config]
    architecture: str
    keys: Keys
    table: Callable[[Config], Table]
    values: Published = field(default_factory=dict)
    joints: Sequence[Joint[Config]] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: Fixed = field(default_factory=lambda: REFUSED)
    tidy: Callable[[Config], Config] = lambda config: config
    settle: Callable[[Config, dict[str, Tensor]], Config] = lambda config, tensors: config
    unsaid: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    modern: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors
    heads: Mapping[str, "Family[Config]"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its model_type; diffusers has none, and names the class alone."""
        return str(self.keys.fixed.get("model_type", [self.architecture])[0])

    def config(self, published: Published, where: str = "") -> Config:
        """Ours from a config.json. ConfigError names what we cannot honour; `where` it stands, its messages say."""
        published = {**self.keys.absent, **{self.aliases.get(key, key): value for key, value in published.items()}}
        Keys(fixed=self.refused).ours(published)
        values = {**self.values, **self.keys.ours(published)}
        for joint in self.joints:
            values |= joint.read(published)
        activation = values.get("activation")
        if isinstance(activation, str):
            values["activation"] = _ACTIVATIONS.get(activation, activation)
        return self.tidy(build(self.kind, values, where))

    def unknown(self, published: Published, also: Collection[str] = ()) -> list[str]:
        """A warning that names the keys of a config.json which no row here knows, nor `also`."""
        joint = {key for joint in self.joints for key in joint.keys}
        known = {*self.keys.names, *joint, *self.refused, *self.aliases, *also}
        return Keys(read=known, harmless=COMMON).unknown(published, "config.json")

    def published(self, config: Config) -> dict[str, Any]:
        """The config.json of `config`. ConfigError if this family cannot say all of it."""
        config = self.tidy(config)
        spelled: dict[str, Any] = {"architectures": [self.architecture]}
        if self.name == self.architecture:
            spelled = {"_class_name": self.architecture, "_diffusers_version": VERSION}
        spelled |= self.keys.published(config)
        for key, ours in self.keys.fields.items():
            if ours == "activation" and spelled[key] == "gelu_tanh":
                spelled[key] = "gelu_new"
        for joint in self.joints:
            spelled |= joint.write(config)
        here = _values(config)
        there = {**_values(self.config(spelled)), **self.unsaid(config)}
        if odd := [f"{name}={here[name]}" for name in here if here[name] != there[name]]:
            raise ConfigError(f"{self.name} models are not published with {', '.join(odd)}")
        return spelled

    def export(self, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The config.json and the tensors of a model of this family."""
        return self.published(model.config), self.table(model.config).published(export_weights(model))

    def load(
        self,
        folder: Folder,
        make: Callable[[Config], Model],
        component: str = "",
        *,
        published: Published | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Model:
        """What `make` makes of the configuration in a folder, or in its `component`, with its weights.

        `published` stands in place of its config.json; options are those of `load_module`. ConfigError or
        CheckpointError if it is of a kind that is not supported, or broken.
        """
        if published is None:
            published = folder.json(f"{component}/config.json" if component else "config.json")
        config = self.config(published, component)
        tensors = self.table(config).ours(self.modern(folder.tensors(component, variant=variant)))
        try:
            config = self.settle(config, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{folder.path}: {error}") from error
        return load_module(lambda: make(config), tensors, **options)


def _values(config: Any) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}


def drop_copies(tensors: dict[str, Tensor], copies: Mapping[str, str], why: str) -> None:
    """Takes tensors out that are copies of others: name -> the other's. CheckpointError says `why` if one is not."""
    for copy, of in copies.items():
        tensor = tensors.pop(copy, None)
        if tensor is not None and not same_numbers(tensor, tensors.setdefault(of, tensor)):
            raise CheckpointError(why.format(copy))


def same_numbers(tensor: Tensor, other: Tensor) -> bool:
    return tensor.data_ptr() == other.data_ptr() or (tensor.shape == other.shape and bool(tensor.equal(other)))


def whole(published: Published, key: str, most: int = 1_000_000) -> int:
    """A key's whole number from 1 to `most`, for what is computed from it. ConfigError names the key."""
    value: int = convert(int, published.get(key), key)
    if not 1 <= value <= most:
        raise ConfigError(f"{key}={shorten(str(value))} is out of range; it must be 1 to {most}")
    return value
