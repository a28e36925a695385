"""A batch of any make, in parts that hold each example once."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from qkv.train.batch import parts, rows


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_parts_are_the_whole(count: int) -> None:
    batch = Pair(torch.arange(7), torch.arange(14).view(7, 2))
    found = parts({"pair": batch, "name": "x"}, count)
    assert len(found) == min(count, 7)
    assert all(part["name"] == "x" and isinstance(part["pair"], Pair) for part in found)
    for place in (0, 1):
        assert torch.equal(torch.cat([part["pair"][place] for part in found]), batch[place])
    assert sum(map(rows, found)) == 7
    assert max(map(rows, found)) - min(map(rows, found)) <= -(-7 // count)


def test_one_part_is_the_batch_itself() -> None:
    batch = [torch.zeros(3)]
    assert parts(batch, 1)[0] is batch
