"""The keys of published files: each is honoured, harmless, refused unless it has a value that we compute, or named.

A file that is half understood gives a wrong answer in silence. So every kind of file (a model's configuration, a
scheduler's, a tokenizer's, an adapter's) has one `Keys`, and no key of it is passed over:

    BERT = Keys(
        fields={"hidden_size": "dim"},         # honoured: their word -> the field of our configuration
        read={"id2label"},                     # honoured by code of its own, such as one that reads two keys at once
        fixed={"is_decoder": (False,)},        # refused by name, unless it has one of these values
        harmless=COMMON | {"attention_dropout"},  # changes nothing of what we compute, whatever it says
        absent={"hidden_size": 768},           # what their library takes for a key that is not there
    )
    values = BERT.ours(published)                        # fields for `config.build`; ConfigError names what is refused
    warnings += BERT.unknown(published, "config.json")   # to the user, in the result: what no column above names
    written = BERT.published(config) | BERT.kept(published)   # an export says what the import said

`null` is an absent key; for a switch that is on by default it is off, for the libraries ask `if config.switch`. A
test asks the reference library which keys its version has: `set(inspect.signature(Reference).parameters) <= BERT.names`
fails as soon as a release brings one that no column names, and every honoured key is compared with the reference at
another value than the default. What a file says about the library that wrote it (`BOOKKEEPING`, and keys with a leading
underscore) needs no column.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qkv.config import as_dict
from qkv.errors import ConfigError, shorten

Published = Mapping[str, Any]  # a JSON object out of a model's folder
Fixed = Mapping[str, tuple[Any, ...]]  # key -> the values that we compute

# Of the library that wrote the file, and in what precision: whoever writes it again says his own.
BOOKKEEPING = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
MAX_NAMED = 8  # unknown keys in one warning


def only(value: Any, *keys: str) -> dict[str, tuple[Any, ...]]:
    """Rows of `fixed`: keys that must have this one value."""
    return dict.fromkeys(keys, (value,))


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What one kind of file may say; the module's docstring tells what the columns mean. Of a key's `fixed` values the
    first is what its absence means, and what is written."""

    fields: Mapping[str, str] = field(default_factory=dict)
    read: Collection[str] = ()
    fixed: Fixed = field(default_factory=dict)
    harmless: Collection[str] = ()
    absent: Published = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Every key that has a column."""
        return frozenset((*self.fields, *self.read, *self.fixed, *self.harmless, *self.absent, *BOOKKEEPING))

    def given(self, published: Published) -> dict[str, Any]:
        """The file without its nulls, and with what absent keys mean."""
        fixed = {key: values[0] for key, values in self.fixed.items()}
        on = {key for key, value in {**fixed, **self.absent}.items() if value is True}
        said = {key: False if value is None and key in on else value for key, value in published.items()}
        return {**self.absent, **{key: value for key, value in said.items() if value is not None}}

    def ours(self, published: Published) -> dict[str, Any]:
        """The fields of our configuration that the file sets. ConfigError names a value that we cannot honour."""
        given = self.given(published)
        for key, values in self.fixed.items():
            if key in given and given[key] not in values:
                value = shorten(repr(given[key]))
                raise ConfigError(f"{key}={value} is not supported; it must be {' or '.join(map(repr, values))}")
        return {ours: given[key] for key, ours in self.fields.items() if given.get(key) is not None}

    def unknown(self, published: Published, where: str) -> list[str]:
        """A warning for the user that names the keys of the file `where` that have no column; none if all have."""
        names = self.names
        odd = [key for key, value in published.items() if value is not None and key not in names and key[:1] != "_"]
        if not odd:
            return []
        said = ", ".join(shorten(key, 40) for key in odd[:MAX_NAMED])
        more = f" and {len(odd) - MAX_NAMED} more" if len(odd) > MAX_NAMED else ""
        return [f"unknown-keys: {where} has {said}{more}; qkv does not know what they mean and leaves them out"]

    def kept(self, published: Published) -> dict[str, Any]:
        """What an export writes again, for it is in no field of our configuration: `harmless`, `fixed` and unknown."""
        ours = {*self.fields, *self.read, *BOOKKEEPING}
        return {key: value for key, value in published.items() if key not in ours and key[:1] != "_"}

    def published(self, config: Any) -> dict[str, Any]:
        """The file's keys from our configuration."""
        values = as_dict(config)
        return {key: values[0] for key, values in self.fixed.items()} | {
            key: values.get(ours) for key, ours in self.fields.items()
        }
