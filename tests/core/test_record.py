"""`record` names what every layer gave, its weights are those that the fused path used, and it leaves no trace."""

import pytest
import torch
from torch import Tensor, nn

from qkv.core.attention import Attention
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


def test_the_model_is_restored_after_an_error(model):
    with pytest.raises(RuntimeError), record(model, weights=True):  # noqa: PT012
        model(*inputs())
        model(torch.randn(2, 5, 7), torch.randn(2, 3, 6))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.watch is None for module in model.modules() if isinstance(module, Attention))


def test_a_record_within_a_record(model):
    with record(model, weights=True) as outer:
        with record(model, weights=True) as inner:
            model(*inputs())
        assert inner.keys() >= {"cross", "cross.weights"}
        model(*inputs())
    assert outer.keys() == inner.keys()


def test_first_difference():
    a, b = torch.tensor([1.0, -4.0]), torch.ones(2, 1)
    assert first_difference({"a": a, "b": b}, {"a": a, "b": b.flatten(), "c": a}, 1e-6) is None
    assert first_difference({"x": a, "a": a, "b": b}, {"a": a + 0.04, "b": b + 1}, 0.02) == "b differs by 5.00e-01"
    assert first_difference({"a": a}, {"a": a + 0.04}, 1e-3) == "a differs by 1.01e-02"
    assert first_difference({"a": a}, {"a": a * torch.nan}, 1e-3) == "a differs by nan"
