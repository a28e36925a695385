"""Published names <-> ours: a family's naming is a table of rows that reads in both directions.

    Table([
        ("stack.norm.{}", "final_layer_norm.{}"),
        *rows([("attention.(q|k|v).{}", "self_attn.(q|k|v)_proj.{}")], "stack.blocks.{}.", "encoder.layers.{}."),
        ("(q|k|v).weight", "qkv.weight", fused(3)),
    ], ignored=["embeddings.position_ids"])

A `{}` stands for one part of a name between dots, or a piece of it; the n-th on one side is the n-th on the other.
`(q|k|v)` writes several names as one: beside as many published ones, a row each; beside one, the parts that its
transform splits. The first row that matches wins. Names are compared part by part: the 250 regular expressions of a
drawing model took 20 ms to compile. `published(ours(w))` is `w`, name by name and bit by bit. Transforms of what is
read are views, so that memory-mapped tensors stay on disk. The rows themselves stand in the families' files.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from qkv.errors import CheckpointError, shorten


class Transform(NamedTuple):
    """How one published tensor becomes ours, one or several, and back, bit for bit."""

    split: Callable[[Tensor], Sequence[Tensor]]
    fuse: Callable[[Sequence[Tensor]], Tensor]


same = Transform(lambda tensor: [tensor], lambda ours: ours[0])
transposed = Transform(lambda tensor: [tensor.t()], lambda ours: ours[0].t())  # (in, out): GPT-2's Conv1D
# (D, C, 1, 1): a 1x1 convolution
pointwise = Transform(lambda tensor: [tensor.squeeze(3).squeeze(2)], lambda ours: ours[0][..., None, None])


def fused(count: int) -> Transform:
    """`count` projections stacked along the output: (count * D, C) or (count * D) <-> count of (D, C) or (D)."""
    return Transform(lambda tensor: tensor.chunk(count), lambda ours: torch.cat(list(ours)))


@dataclasses.dataclass(frozen=True)
class Row:
    """One rule. `aliases` are older published spellings: they are read, never written."""

    ours: tuple[str, ...]
    published: str
    aliases: tuple[str, ...] = ()
    transform: Transform = same


Pair = tuple[str, str] | tuple[str, str, Transform]


def rows(pairs: Iterable[Pair], ours: str = "", published: str = "", *older: str) -> list[Row]:
    """The rows of `pairs` (ours, published) behind these prefixes; in older files the published names have `older`."""
    found = []
    for mine, theirs, *transform in pairs:
        names, others = _spellings(ours + mine), _spellings(theirs)
        parts = [tuple(names)] if len(others) == 1 else [(name,) for name in names]
        for part, name in zip(parts, others, strict=True):
            found.append(Row(part, published + name, tuple(prefix + name for prefix in older), *transform))
    return found


def _spellings(name: str) -> list[str]:
    """a.(q|k).b -> a.q.b and a.k.b."""
    before, group, rest = name.partition("(")
    words, _, after = rest.partition(")")
    return [before + word + end for word in words.split("|") for end in _spellings(after)] if group else [name]


class Table:
    """A family's rows, pairs or `Row`s, and the published names that are dropped (`ignored`).

    ValueError if a row cannot be read backwards, or can never be reached.
    """

    def __init__(self, items: Iterable[Row | Pair], ignored: Iterable[str] = ()) -> None:
        self.rows = [row for item in items for row in ([item] if isinstance(item, Row) else rows([item]))]
        self._ours = [(_pattern(name), row) for row in self.rows for name in row.ours]
        self._published = [(_pattern(name), row) for row in self.rows for name in (row.published, *row.aliases)]
        self._ignored = [(_pattern(name), None) for name in ignored]
        for row in self.rows:
            if len({name.count("{}") for name in (*row.ours, row.published, *row.aliases)}) != 1:
                raise ValueError(f"{row} has not the same number of {{}} in every name")
            for name, patterns in [(row.published, self._published), *((name, self._ours) for name in row.ours)]:
                found = _find(_fill(name, ["0"] * name.count("{}")), patterns)
                if found is None or found[0] is not row:
                    raise ValueError(f"{row} is hidden by an earlier row")

    def ours(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors from published ones. CheckpointError names those that no row knows, up to 10."""
        found: dict[str, Tensor] = {}
        wanted = [name for name in published if _find(name, self._ignored) is None]
        for name, row, values in _matches(wanted, self._published, "published"):
            what = f"tensor {shorten(name)!r} of shape {tuple(published[name].shape)}"
            try:
                parts = row.transform.split(published[name])
            except (RuntimeError, IndexError) as error:
                raise CheckpointError(f"{what} cannot be split") from error
            if len(parts) != len(row.ours):
                raise CheckpointError(f"{what} does not split into {len(row.ours)} equal parts")
            for pattern, part in zip(row.ours, parts):
                if (ours := _fill(pattern, values)) in found:
                    again = f"gives {ours!r} a second time, under another spelling"
                    raise CheckpointError(f"tensor {shorten(name)!r} {again}")
                found[ours] = part
        return found

    def published(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published tensors from ours. CheckpointError names those that no row knows, up to 10."""
        found: dict[str, Tensor] = {}
        for name, row, values in _matches(ours, self._ours, "model's"):
            parts = [_fill(pattern, values) for pattern in row.ours]
            if missing := [part for part in parts if part not in ours]:
                raise CheckpointError(f"{_fill(row.published, values)} needs {', '.join(missing)} beside {name}")
            if name == parts[0]:
                found[_fill(row.published, values)] = row.transform.fuse([ours[part] for part in parts])
        return found


Pattern = list[str | tuple[str, str]]  # part by part: itself, or what stands before and behind the {}
Found = TypeVar("Found")


def _pattern(name: str) -> Pattern:
    parts: Pattern = []
    for part in name.split("."):
        before, hole, after = part.partition("{}")
        if "{}" in after:
            raise ValueError(f"{name} has two {{}} between dots")
        parts.append((before, after) if hole else part)
    return parts


def _match(parts: Sequence[str], pattern: Pattern) -> list[str] | None:
    """The parts of a name that fill the pattern's holes; None if it does not match."""
    if len(parts) != len(pattern):
        return None
    values = []
    for part, expected in zip(parts, pattern):
        if isinstance(expected, str):
            if part != expected:
                return None
        else:
            before, after = expected
            end = len(part) - len(after)
            if end <= len(before) or not part.startswith(before) or not part.endswith(after):
                return None
            values.append(part[len(before) : end])
    return values


def _fill(name: str, values: Sequence[str]) -> str:
    pieces = name.split("{}")
    return "".join(piece + value for piece, value in zip(pieces, [*values, ""]))


def _find(name: str, patterns: Iterable[tuple[Pattern, Found]]) -> tuple[Found, list[str]] | None:
    parts = name.split(".")
    for pattern, row in patterns:
        if (values := _match(parts, pattern)) is not None:
            return row, values
    return None


def _matches(
    names: Iterable[str], patterns: Sequence[tuple[Pattern, Row]], whose: str
) -> list[tuple[str, Row, list[str]]]:
    """Each name with its row and what fills its holes. CheckpointError names those that have none, up to 10."""
    found = [(name, _find(name, patterns)) for name in names]
    if unknown := [name for name, match in found if match is None]:
        some = ", ".join(repr(shorten(name)) for name in unknown[:10])
        raise CheckpointError(f"{len(unknown)} {whose} tensors are not known to this model's table: {some}")
    return [(name, *match) for name, match in found if match]
