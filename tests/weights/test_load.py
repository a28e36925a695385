"""Weights into modules and out again, through files, folders and tables."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qkv.errors import CheckpointError
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


# Weights that do not fit.


def meta(count: int = 1) -> torch.nn.ModuleDict:
    with torch.device("meta"):
        return torch.nn.ModuleDict({f"m{i}": torch.nn.Linear(4, 3) for i in range(count)})


def linear(**change: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"m0.weight": torch.zeros(3, 4), "m0.bias": torch.zeros(3)} | {
        k.replace("_", "."): v for k, v in change.items()
    }


def test_missing_extra_and_misshapen_tensors_are_named() -> None:
    wrong = linear(m0_bias=torch.zeros(4), other=torch.zeros(2))
    del wrong["m0.weight"]
    with pytest.raises(CheckpointError) as error:
        load_weights(meta(), wrong)
    message = str(error.value)
    assert "1 missing: m0.weight (3, 4)" in message
    assert "1 unexpected: 'other' (2,)" in message
    assert "m0.bias is (4,), expected (3,)" in message


def test_at_most_ten_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"40 missing") as error:
        load_weights(meta(20), {})
    assert str(error.value).count("(3, 4)") + str(error.value).count("(3,)") == 10


def test_integers_cannot_be_weights() -> None:
    with pytest.raises(CheckpointError, match=r"m0.bias is torch.int64, expected torch.float32"):
        load_weights(meta(), linear(m0_bias=torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_nan_and_infinity_are_found(bad: float, dtype: torch.dtype) -> None:
    weights = linear(m0_bias=torch.tensor([0, bad, 0]).to(dtype))
    with pytest.raises(CheckpointError, match=r"m0\.bias holds NaN or infinity"):
        load_weights(meta(), weights, check_finite=True)
    load_weights(meta(), weights)


def test_a_conversion_that_overflows_is_found() -> None:
    with pytest.raises(CheckpointError, match=r"as torch\.float16"):
        load_weights(meta(), linear(m0_bias=torch.full((3,), 1e6)), dtype=torch.float16, check_finite=True)
