"""Published names <-> ours: a family's naming is a table of rows that reads in both directions.

    Table([
        ("stack.blocks.{}.attention.q.{}", "text_model.encoder.layers.{}.self_attn.q_proj.{}"),
        Row(("q.weight", "k.weight", "v.weight"), "qkv.weight", transform=fused(3)),
    ], ignored=["text_model.embeddings.position_ids"])

A `{}` stands for one part of a name between dots, or a piece of it; the n-th on one side is the n-th on the other.
The first row that matches wins. Names are compared part by part: the 250 regular expressions of a drawing model took
20 ms to compile. `published(ours(w))` is `w`, name by name and bit by bit. Transforms of what is read
are views, so that memory-mapped tensors stay on disk. The rows themselves stand beside the models.
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
pointwise = Transform(
    lambda tensor: [tensor.squeeze(3).squeeze(2)], lambda ours: ours[0][..., None, None]
)  # (D, C, 1, 1): 1x1 conv


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


class Table:
    """A family's rows: pairs `(ours, published)` or `Row`s, and the published names that are dropped (`ignored`).

    ValueError if a row cannot be read backwards, or can never be reached.
    """

    def __init__(self, rows: Iterable[Row | tuple[str, str]], ignored: Iterable[str] = ()) -> None:
        self.rows = [row if isinstance(row, Row) else Row((row[0],), row[1]) for row in rows]
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
        unmatched = []
        for name, tensor in published.items():
            if _find(name, self._ignored) is not None:
                continue
            match = _find(name, self._published)
            if match is None:
                unmatched.append(name)
                continue
            row, values = match
            what = f"tensor {shorten(name)!r} of shape {tuple(tensor.shape)}"
            try:
                parts = row.transform.split(tensor)
            except (RuntimeError, IndexError) as error:
                raise CheckpointError(f"{what} cannot be split") from error
            if len(parts) != len(row.ours):
                raise CheckpointError(f"{what} does not split into {len(row.ours)} equal parts")
            for pattern, part in zip(row.ours, parts):
                ours = _fill(pattern, values)
                if ours in found:
                    raise CheckpointError(
                        f"tensor {shorten(name)!r} gives {ours!r} a second time, under another spelling"
                    )
                found[ours] = part
        _refuse(unmatched, "published")
        return found

    def published(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published tensors from ours. CheckpointError names those that no row knows, up to 10."""
        found: dict[str, Tensor] = {}
        unmatched = []
        for name in ours:
            match = _find(name, self._ours)
            if match is None:
                unmatched.append(name)
                continue
            row, values = match
            parts = [_fill(pattern, values) for pattern in row.ours]
            if missing := [part for part in parts if part not in ours]:
                raise CheckpointError(f"{_fill(row.published, values)} needs {', '.join(missing)} beside {name}")
            if name == parts[0]:
                found[_fill(row.published, values)] = row.transform.fuse([ours[part] for part in parts])
        _refuse(unmatched, "model's")
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


def _refuse(unmatched: list[str], whose: str) -> None:
    if unmatched:
        some = ", ".join(repr(shorten(name)) for name in unmatched[:10])
        raise CheckpointError(f"{len(unmatched)} {whose} tensors are not known to this model's table: {some}")
