"""Bounds of a JSON schema that llguidance (1.9) does not keep: what they exclude it writes in one case, so they are
moved there by a billionth.

A number above a whole L and below the next whole number, such as `{"exclusiveMinimum": 0, "maximum": 0.5}`, may be "0";
so may one below a whole M of -1 or less and above the one before it be M. Bounds that are no whole numbers are kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from qkv.errors import InputError

STEP = 1e-9
_DATA = ("const", "enum", "default", "examples", "required")  # what these hold is no schema
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # schemas by any name
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def keep_bounds(schema: Any) -> Any:
    """The schema with such bounds moved. InputError where the step would be lost in rounding."""
    parts = list(_schemas(schema))
    ends = {key: [part[key] for part in parts if _is_number(part.get(key))] for key in (*_LOWER, *_UPPER)}
    uppers, lowers = ([end for key in keys for end in ends[key]] for keys in (_UPPER, _LOWER))
    moved: dict[str, dict[float, float]] = {"exclusiveMinimum": {}, "exclusiveMaximum": {}}
    for low in ends["exclusiveMinimum"]:
        if low == int(low) and any(low < end < low + 1 for end in uppers):
            moved["exclusiveMinimum"][low] = _moved(low, STEP)
    for high in ends["exclusiveMaximum"]:
        if high == int(high) and any(high - 1 < end < high for end in lowers):
            moved["exclusiveMaximum"][high] = _moved(high, -STEP)
    return _with(schema, moved) if any(moved.values()) else schema


def _moved(bound: float, step: float) -> float:
    if abs(step - (bound + step - bound)) > abs(step) / 2:
        raise InputError(f"schema: so near to the excluded bound {bound:,} no number can be kept out; widen the range")
    return bound + step


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inner(key: str, value: Any) -> Iterator[Any]:
    """The schemas in the value of a schema's key."""
    if key in _DATA:
        return
    if key in _NAMED and isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
    else:
        yield value


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and those in it."""
    if isinstance(schema, Mapping):
        yield schema
        for key, value in schema.items():
            for part in _inner(key, value):
                yield from _schemas(part)


def _with(schema: Any, moved: Mapping[str, Mapping[float, float]]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found = {}
    for key, value in schema.items():
        if key in moved and _is_number(value):
            value = moved[key].get(value, value)
        elif key in _NAMED and isinstance(value, Mapping):
            value = {name: _with(part, moved) for name, part in value.items()}
        elif isinstance(value, list) and key not in _DATA:
            value = [_with(part, moved) for part in value]
        elif key not in _DATA:
            value = _with(value, moved)
        found[key] = value
    return found
