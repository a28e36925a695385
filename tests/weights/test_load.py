"""Weights into modules and out again, through files, folders and tables."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_weights
from qkv.weights.tables import Row, Table, fused

TABLE = Table(
    [
        Row(tuple(f"{part}.{{}}" for part in "qkv"), "attn.in_proj_{}", transform=fused(3)),
        ("norm.{}", "ln.{}"),
        ("stats.{}", "bn.{}"),
    ],
    ignored=["attn.mask"],
)


class Attention(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.stats = nn.BatchNorm1d(dim)  # has buffers that are saved, one of them of integers


def on_meta() -> Attention:
    with torch.device("meta"):
        return Attention()


def weights() -> dict[str, torch.Tensor]:
    published = TABLE.published(
        {name: torch.randn(t.shape).to(t.dtype) for name, t in Attention().state_dict().items()}
    )
    return published


def test_export_of_import_is_the_same_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", weights())
    module = on_meta()
    load_weights(module, TABLE.ours(Folder(tmp_path).tensors()))
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", "model", TABLE.published(export_weights(module)))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_tensors_are_assigned_not_copied(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", on_memory := dict(Attention().state_dict()))
    mapped = open_tensors(tmp_path / "a.safetensors")
    module = on_meta()
    load_weights(module, mapped)
    assert module.q.weight.data_ptr() == mapped["q.weight"].data_ptr()
    assert module.q.weight.requires_grad
    assert not module.stats.num_batches_tracked.requires_grad
    assert module.q.weight.equal(on_memory["q.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_converts_floating_tensors_only(tmp_path: Path, dtype: torch.dtype) -> None:
    state = Attention(128).state_dict()
    save_tensors(tmp_path / "a.safetensors", state)
    with torch.device("meta"):
        module = Attention(128)
    mapped = open_tensors(tmp_path / "a.safetensors")
    load_weights(module, mapped, dtype=dtype, check_finite=True)
    for name, tensor in export_weights(module).items():
        floating = state[name].is_floating_point()
        assert tensor.dtype == (dtype if floating else torch.int64)
        assert tensor.equal(state[name].to(dtype) if floating else state[name])
        assert mapped[name].equal(state[name])  # dropped pages come back from the file


def test_forward_equals_the_usual_way() -> None:
    reference = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    load_weights(module, reference.state_dict())
    x = torch.randn(3, 4)
    assert module(x).equal(reference(x))


def test_modules_must_keep_the_rule() -> None:
    with torch.device("meta"):
        hidden, tied = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        hidden.register_buffer("table", torch.zeros(3), persistent=False)
        tied[1].weight = tied[0].weight
    for module in (hidden, tied):
        with pytest.raises(AssertionError, match="persistent=False"):
            load_weights(module, {name: torch.zeros(t.shape) for name, t in module.state_dict().items()})
