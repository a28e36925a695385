"""The cache's rows: those that leave take nothing along, those that stay keep what they had, in the order asked for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.core.cache import LayerCache


@given(st.permutations(range(5)), st.integers(0, 5), st.integers(1, 4))
def test_rows_that_are_kept(order, count, length):
    cache, (k, v), (more_k, more_v) = LayerCache(context=6), torch.randn(2, 5, 3, length, 4), torch.randn(2, 5, 3, 1, 4)
    cache.extend(k, v)
    rows = torch.tensor(order[:count], dtype=torch.long)
    cache.keep(rows)
    keys, values = cache.extend(more_k[rows], more_v[rows])
    assert torch.equal(keys, torch.cat((k, more_k), dim=-2)[rows])
    assert torch.equal(values, torch.cat((v, more_v), dim=-2)[rows])
