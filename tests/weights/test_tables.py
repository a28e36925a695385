"""Tables of names read both ways: out of ours(w) comes w again, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.weights.tables import Row, Table, Transform, fused, pointwise, transposed

TABLE = Table(
    [
        ("stack.norm.{}", "text_model.final_layer_norm.{}"),
        Row(("stack.blocks.{}.attention.q.{}",), "layers.{}.attn.to_q.{}", aliases=("layers.{}.attn.query.{}",)),
        Row(tuple(f"blocks.{{}}.{part}.{{}}" for part in "qkv"), "h.{}.attn.c_attn.{}", transform=fused(3)),
        Row(("project.weight",), "proj_in.weight", transform=pointwise),
        Row(("ffn.{}.weight",), "mlp_{}.weight", transform=transposed),
        ("{}.{}", "{}.other_{}"),
    ],
    ignored=["text_model.embeddings.position_ids", "layers.{}.attn.masked_bias"],
)


@st.composite
def published(draw: st.DrawFn) -> dict[str, Tensor]:
    layers = draw(st.integers(0, 3))
    dim = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    tensors = {
        "text_model.final_layer_norm.weight": torch.randn(dim),
        "proj_in.weight": torch.randn(dim, 3, 1, 1),
        "mlp_up.weight": torch.randn(dim, 2),
        "ema.other_decay": torch.full((), float("nan")),
    }
    for i in range(layers):
        tensors[f"layers.{i}.attn.to_q.weight"] = torch.randn(dim, dim)
        tensors[f"h.{i}.attn.c_attn.weight"] = torch.randn(3 * dim, dim)
        tensors[f"h.{i}.attn.c_attn.bias"] = torch.randn(3 * dim)
    names = draw(st.permutations(list(tensors)))
    return {name: tensors[name].to(dtype) for name in names}


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    return {
        name: (tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, tensor in tensors.items()
    }


@settings(max_examples=50, deadline=None)
@given(published())
def test_export_of_import_is_the_same(tensors: dict[str, Tensor]) -> None:
    there = TABLE.ours(tensors)
    back = TABLE.published(there)
    assert bits(back) == bits(tensors)
    assert list(TABLE.ours(back)) == list(there)


def test_names_and_values() -> None:
    fused_qkv = torch.arange(12.0).reshape(6, 2)
    ours = TABLE.ours(
        {"h.11.attn.c_attn.weight": fused_qkv, "layers.0.attn.query.bias": torch.ones(2), "mlp_up.weight": fused_qkv}
    )
    assert list(ours) == [
        *(f"blocks.11.{part}.weight" for part in "qkv"),
        "stack.blocks.0.attention.q.bias",
        "ffn.up.weight",
    ]
    assert ours["blocks.11.k.weight"].equal(fused_qkv[2:4])
    assert ours["ffn.up.weight"].equal(fused_qkv.t())
    assert "layers.0.attn.to_q.bias" in TABLE.published(ours)  # an alias is read, never written


def test_nothing_is_copied_when_read() -> None:
    tensors = {"h.0.attn.c_attn.weight": torch.randn(6, 2), "proj_in.weight": torch.randn(2, 3, 1, 1)}
    owners = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert {tensor.untyped_storage().data_ptr() for tensor in TABLE.ours(tensors).values()} == owners


def test_ignored_names_are_dropped() -> None:
    assert TABLE.ours({"text_model.embeddings.position_ids": torch.arange(3)}) == {}
    assert TABLE.ours({"layers.3.attn.masked_bias": torch.arange(3)}) == {}


def test_a_wildcard_is_one_part_of_a_name() -> None:
    table = Table([("a.{}.weight", "b.{}.weight")])
    for name in ("b.0.1.weight", "b..weight", "b.0.weight.x", "xb.0.weight", "b.0xweight"):
        with pytest.raises(CheckpointError):
            table.ours({name: torch.ones(1)})


def test_unknown_names_are_listed_up_to_ten() -> None:
    with pytest.raises(CheckpointError, match=r"12 published tensors are not known .*: 'x0', .*'x9'$"):
        TABLE.ours({f"x{i}": torch.ones(1) for i in range(12)})
    with pytest.raises(CheckpointError, match=r"1 model's tensors are not known .*: 'x'$"):
        TABLE.published({"x": torch.ones(1)})


def test_two_spellings_of_one_tensor_are_refused() -> None:
    with pytest.raises(CheckpointError, match="second time"):
        TABLE.ours({f"layers.0.attn.{name}.bias": torch.ones(2) for name in ("to_q", "query")})


@pytest.mark.parametrize("shape", [(), (1,), (4, 2)])
def test_what_cannot_be_split_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.weight"):
        TABLE.ours({"h.0.attn.c_attn.weight": torch.ones(shape)})


@pytest.mark.parametrize("shape", [(2, 3, 1, 5), (3, 3, 3, 3), (2, 3, 1, 1, 1)])
def test_only_a_1x1_convolution_becomes_a_matrix(shape: tuple[int, ...]) -> None:
    assert TABLE.ours({"proj_in.weight": torch.ones(2, 3, 1, 1)})["project.weight"].shape == (2, 3)
    assert TABLE.ours({"proj_in.weight": torch.ones(shape)})["project.weight"].dim() > 2  # for load_weights to refuse
    with pytest.raises(CheckpointError, match=r"proj_in\.weight' of shape \(2, 3\) cannot be split"):
        TABLE.ours({"proj_in.weight": torch.ones(2, 3)})


def test_a_part_that_is_missing_is_named() -> None:
    parts = {f"blocks.0.{part}.weight": torch.ones(2, 2) for part in "qk"}
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.weight needs blocks\.0\.v\.weight"):
        TABLE.published(parts)


@pytest.mark.parametrize(
    "rows",
    [
        [("a.{}", "b")],
        [("a", "b.{}")],
        [Row(("a.{}", "b"), "c.{}", transform=fused(2))],
        [Row(("a.{}",), "b.{}", aliases=("c.{}.{}",))],
        [("a.{}", "x.{}"), ("a.{}", "y.{}")],
        [("a.{}", "x.{}"), ("b.{}", "x.{}")],
        [("a.{}", "x.{}"), ("a.0", "y")],
        [Row(("a",), "x", aliases=("y",)), ("b", "y")],
        [("a.{}_{}", "b.{}.{}")],
    ],
)
def test_rows_that_cannot_be_reversed_are_refused(rows: list[Row | tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"number of|hidden|two {}"):
        Table(rows)


def test_a_family_may_bring_its_own_transform() -> None:
    """BLOOM: (heads, 3, K) interleaved head by head."""
    per_head = Transform(
        lambda tensor: [part.flatten(0, 1) for part in tensor.unflatten(0, (2, 3, -1)).unbind(1)],
        lambda ours: torch.stack([part.unflatten(0, (2, -1)) for part in ours], 1).flatten(0, 2),
    )
    table = Table([Row(("q", "k", "v"), "qkv", transform=per_head)])
    weight = torch.randn(12, 5)
    assert table.published(table.ours({"qkv": weight}))["qkv"].equal(weight)
