"""A number that is written lies within its schema's bounds: llguidance's own fault at excluded ones is mended."""

import itertools
from decimal import Decimal
from typing import Any

import pytest

from qkv.errors import InputError
from qkv.sample.bounds import keep_bounds
from qkv.sample.constrain import Lexicon, from_schema
from qkv.text.learn import learn_bpe

TOKENIZER = learn_bpe("", 256, end=True)
LEXICON = Lexicon(TOKENIZER, TOKENIZER.vocab, TOKENIZER.stops)


def writes(schema: Any, *texts: str) -> list[str]:
    """Those of the texts that the grammar of a schema allows from end to end."""
    grammar, found = from_schema(LEXICON, schema), []
    for text in texts:
        follower = grammar.start()
        for id in TOKENIZER.encode(text):
            if not follower.allowed()[id]:
                break
            follower.accept(id)
        else:
            found += [text] if follower.allowed()[TOKENIZER.bos] else []
    return found


def spelled(bound: float) -> set[str]:
    """The bound, and its neighbours."""
    near = [Decimal(str(bound)) + Decimal(step) for step in ("0", "0.001", "-0.001", "0.1", "-0.1")]
    return {f"{each}{zeros}" for each in near for zeros in ("", "0" if "." in str(each) else ".0")}


LOWER = [{"minimum": 0}, {"exclusiveMinimum": 0}, {"minimum": 0, "exclusiveMinimum": 0}]
UPPER = [{"maximum": 0}, {"exclusiveMaximum": 0}, {"maximum": 0, "exclusiveMaximum": 0}]


@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (3, 3.01), (10, 11), (-1.5, -1), (-10.25, -10), (-0.5, 0), (0, 1)])
def test_no_number_beyond_a_bound_is_written(low, high):
    for lower, upper in itertools.product(LOWER, UPPER):
        bounds = dict.fromkeys(lower, low) | dict.fromkeys(upper, high)
        for kind in ({}, {"type": "number"}, {"type": ["string", "number"]}):
            for number in map(Decimal, writes(kind | bounds, *spelled(low), *spelled(high))):
                least, most = Decimal(str(low)), Decimal(str(high))
                assert number > least or ("exclusiveMinimum" not in bounds and number == least)
                assert number < most or ("exclusiveMaximum" not in bounds and number == most)


def test_what_is_allowed_is_still_written():
    inside = ("0.25", "0.5", "0.001", "0.00000001")
    assert writes({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0", "0.0", *inside) == list(inside)
    below = ("-1.25", "-1.5", "-1.001")
    assert writes({"type": "number", "exclusiveMaximum": -1, "minimum": -1.5}, "-1", "-1.0", *below) == list(below)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}]},
        {"$ref": "#/$defs/share", "$defs": {"share": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}},
        {"anyOf": [{"type": "null"}, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}]},
    ],
)
def test_bounds_within_schemas(schema):
    assert writes(schema, "0", "0.25") == ["0.25"]


def test_a_share_in_an_object():
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}
    schema = {"type": "object", "properties": {"const": share}, "required": ["const"], "additionalProperties": False}
    assert writes(schema, '{"const": 0}', '{"const": 0.25}') == ['{"const": 0.25}']


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 9},
        {"exclusiveMinimum": 0.5, "maximum": 0.75},
        {"const": {"exclusiveMinimum": 0, "maximum": 0.5}},
        {"properties": {"exclusiveMinimum": {"type": "string"}, "maximum": {"type": "string"}}},
        {"exclusiveMinimum": True, "maximum": 0.5},
        True,
        [1],
    ],
)
def test_other_schemas_stay_as_they_are(schema):
    assert keep_bounds(schema) is schema


def test_a_step_that_would_be_lost_is_refused():
    with pytest.raises(InputError, match="so near to the excluded bound 1,000,000,000,000"):
        keep_bounds({"exclusiveMinimum": 10**12, "maximum": 10**12 + 0.5})
