"""Configuration: frozen keyword-only dataclasses, filled from TOML, JSON or `key=value`.

A wrong key is an error that names the nearest right one; a value of the wrong type is an error that
names the key. Nothing here imports code by name.
"""

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qkv.errors import ConfigError, InputError, quoted, shorten, unknown
from qkv.textfiles import read_text

T = TypeVar("T")

MAX_TOML = 1 << 20  # bytes of a file
MANY = 1 << 14  # values that are looked at one by one
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # of a size, as powers of two


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from a mapping; nested mappings fill nested dataclasses.

    `where` is the dotted path that messages begin with. Raises ConfigError.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(unknown("key", _path(where, str(key)), [_path(where, k) for k in known]))
    filled = {key: convert(hints[key], value, _path(where, key)) for key, value in values.items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in filled:
            raise ConfigError(f"{_path(where, field.name)} is missing; set it")
    return cls(**filled)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` says, or ConfigError. Integers pass as floats, lists as tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(unknown(where, str(value), [str(arg) for arg in args]))
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where} has {len(value)} values; it needs {len(kinds)}")
        return tuple(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): convert(args[1], item, _path(where, str(key))) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}={shorten(repr(value))} is not a finite number") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}={value} is not a finite number")
        return value
    raise ConfigError(f"{where}={shorten(repr(value))} is not {_name(hint)}")


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    for arg in args:
        if arg is type(None) and value is None:
            return None
        try:
            return convert(arg, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}={shorten(repr(value))} is not {' or '.join(_name(arg) for arg in args)}")


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return names.get(hint, str(hint))


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def plain(value: Any) -> Any:
    """A value of numpy's or PyTorch's as Python has it: their numbers, arrays as tuples, a dtype or device by its name.

    Lists become tuples, as what holds them is frozen; what is in a mapping, one level deep, is made plain too.
    """
    if isinstance(value, list | tuple | dict) and len(value) > MANY:
        return value
    kind = type(value).__module__.partition(".")[0]
    if kind in ("numpy", "torch") and not isinstance(value, type):
        if hasattr(value, "tolist"):
            found = value.tolist()
            return tuple(found) if isinstance(found, list) else found
        return str(value).removeprefix("torch.")
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return {_scalar(key): _scalar(item) for key, item in value.items()}
    return value


def _scalar(value: Any) -> Any:
    return value if isinstance(value, list | tuple | dict) else plain(value)


def make_plain(request: Any) -> None:
    """Makes the fields of a frozen dataclass plain, and None the default, unless None is one of the field's values."""
    for field in dataclasses.fields(request):
        value = plain(getattr(request, field.name))
        optional = types.NoneType in typing.get_args(field.type)
        if value is None and not optional and field.default is not dataclasses.MISSING:
            value = field.default
        object.__setattr__(request, field.name, value)


def parse_bytes(name: str, given: object) -> int:
    """A size: bytes, or a text with K, M, G or T of them, which are powers of 1,024. Raises ConfigError."""
    text = str(given) if type(given) is int and abs(given) < 1 << 62 else given if isinstance(given, str) else ""
    match = re.fullmatch(r"(\d{1,19}(?:\.\d{1,3})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"{name}={quoted(given)} is no size; give bytes, or such as 500M or 2G")
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


def read_toml(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file with `section.key=value` overrides applied; values are TOML too.

    A value that is not TOML is taken as text, so that `name=dog` needs no quotes.
    """
    try:
        values = tomllib.loads(read_text(path, limit=MAX_TOML))
    except InputError as error:
        raise ConfigError(str(error)) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{shorten(override)!r} is not key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table = values
        *sections, last = key.strip().split(".")
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{section} in {shorten(override)!r} is not a table")
        table[last] = value
    return values


def as_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for TOML or JSON; None is left out, paths become text."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
            return {name: plain(item) for name, item in pairs if item is not None}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result = plain(config)
    assert isinstance(result, dict)
    return result
