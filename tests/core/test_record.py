"""`record` names what every layer gave, its weights are those that the fused path used, and it leaves no trace."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from qkv.core.attention import Attention, watched
from qkv.core.record import first_difference, record
from qkv.core.stack import Stack, StackConfig


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = StackConfig(dim=16, layers=2, heads=4, kv_heads=2, ffn_dim=24, causal=True, position="rotary")
        self.stack = Stack(config)
        self.cross = Attention(16, 2, memory_dim=6)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.cross(self.stack(x, mask=mask), memory)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 5, 16), torch.randn(2, 3, 6)


def test_names_in_the_order_they_ran(model):
    x, memory = inputs()
    with record(model) as out:
        result = model(x, memory)
    names = [name for name in out if name.count(".") <= 3 and "norm" not in name]
    assert names == [
        *("stack.blocks.0.attention", "stack.blocks.0.ffn", "stack.blocks.0"),
        *("stack.blocks.1.attention", "stack.blocks.1.ffn", "stack.blocks.1"),
        *("stack", "cross.q", "cross.k", "cross.v", "cross.out", "cross"),
    ]
    assert out["cross"].equal(result)
    assert not out["cross"].requires_grad
    assert not [name for name in out if name.endswith("weights")]


def test_weights_are_what_the_fused_path_did(model):
    x, memory = inputs()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5]).bool()
    plain = model(x, memory, mask)
    with record(model, weights=True) as out:
        watched = model(x, memory, mask)
    assert watched.equal(plain)
    for name in ("stack.blocks.0.attention", "stack.blocks.1.attention", "cross"):
        attention = model.get_submodule(name)
        weights, v = out[f"{name}.weights"], out[f"{name}.v"]  # (B, H, T, S), (B, S, G K)
        v = v.unflatten(-1, (attention.kv_heads, attention.head_dim)).transpose(1, 2)
        v = v.repeat_interleave(attention.heads // attention.kv_heads, dim=1)
        mixed = attention.out((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, out[name], atol=1e-6, rtol=1e-5)
    first = out["stack.blocks.0.attention.weights"]
    assert first.shape == (2, 4, 5, 5)
    assert (first.triu(1) == 0).all()
    assert (first[0, ..., :2] == 0).all()  # padding
    torch.testing.assert_close(first[1].sum(-1), torch.ones(4, 5))
    assert (first[0, :, :2] == 0).all()


def test_only_what_is_wanted(model):
    with record(model, weights=True, wanted=lambda name: name.endswith("1.attention") or name == "cross") as out:
        model(*inputs())
    assert list(out) == [
        *("stack.blocks.1.attention.weights", "stack.blocks.1.attention"),
        *("cross.weights", "cross"),
    ]


def test_nothing_is_left_after_an_error(model):
    with pytest.raises(RuntimeError), record(model, weights=True):  # noqa: PT012
        model(*inputs())
        model(torch.randn(2, 5, 7), torch.randn(2, 3, 6))
    assert not nn.modules.module._global_forward_hooks
    assert not watched.get()


def test_nothing_is_set_on_the_model(model):
    before = [dict(vars(module)) | {"_forward_hooks": len(module._forward_hooks)} for module in model.modules()]
    with record(model, weights=True):
        model(*inputs())
        now = [dict(vars(module)) | {"_forward_hooks": len(module._forward_hooks)} for module in model.modules()]
    assert [list(each) for each in now] == [list(each) for each in before]
    assert all(each["_forward_hooks"] == 0 for each in now)


def test_threads_do_not_see_each_other(model):
    """Eight record one model at once, each with texts of another length; a ninth computes and records nothing."""
    given = {length: (torch.randn(1, length, 16), torch.randn(1, 2 + length, 6)) for length in range(3, 12)}
    with torch.no_grad():
        alone = {}
        for length, (x, memory) in given.items():
            with record(model, weights=True) as alone[length]:
                model(x, memory)

    def run(length: int) -> bool:
        with torch.no_grad():
            for _ in range(20):
                if length == 11:
                    model(*given[length])
                    continue
                with record(model, weights=True) as out:
                    model(*given[length])
                if out.keys() != alone[length].keys() or not all(out[name].equal(alone[length][name]) for name in out):
                    return False
        return True

    with ThreadPoolExecutor(len(given)) as pool:
        assert all(pool.map(run, given, timeout=60))


def test_a_record_within_a_record(model):
    with record(model, weights=True) as outer:
        with record(model, weights=True) as inner:
            model(*inputs())
        assert inner.keys() >= {"cross", "cross.weights"}
        model(*inputs())
    assert outer.keys() == inner.keys()


def test_a_record_sees_what_one_within_it_sees(model):
    with record(model, weights=True) as outer, record(model, weights=True) as inner:
        model(*inputs())
    assert outer.keys() == inner.keys()
    assert all(outer[name].equal(inner[name]) for name in outer)


def test_weights_alone(model):
    with record(model, outputs=False, weights=True) as out:
        model(*inputs())
    assert list(out) == ["stack.blocks.0.attention.weights", "stack.blocks.1.attention.weights", "cross.weights"]


def test_first_difference():
    a, b = torch.tensor([1.0, -4.0]), torch.ones(2, 1)
    assert first_difference({"a": a, "b": b}, {"a": a, "b": b.flatten(), "c": a}, 1e-6) is None
    assert first_difference({"x": a, "a": a, "b": b}, {"a": a + 0.04, "b": b + 1}, 0.02) == "b differs by 5.00e-01"
    assert first_difference({"a": a}, {"a": a + 0.04}, 1e-3) == "a differs by 1.01e-02"
    assert first_difference({"a": a}, {"a": a * torch.nan}, 1e-3) == "a differs by nan"
