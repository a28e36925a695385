"""Model folders against transformers and diffusers: each opens what the other wrote, by every published name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv.errors import CheckpointError, OutputError
from qkv.weights.folder import Folder, write_tensors


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.fixture(scope="module")
def encoder() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.CLIPTextModel(config)


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(("limit", "shards"), [("1GB", 1), ("10KB", 3)])
@pytest.mark.parametrize("kind", ["encoder", "autoencoder"])
def test_both_ways(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, limit: str, shards: int, variant: str | None
) -> None:
    """Theirs saved and read by us; ours saved under the very same names and loaded by theirs."""
    peer = request.getfixturevalue(kind)
    stem = "model" if kind == "encoder" else "diffusion_pytorch_model"
    peer.save_pretrained(tmp_path / "theirs", max_shard_size=limit, variant=variant)
    read = Folder(tmp_path).tensors("theirs", variant=variant)
    assert equal(read, dict(peer.state_dict()))
    assert equal(Folder(tmp_path / "theirs").tensors(), read)  # an only variant is found without naming it

    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    size = {"1GB": 10**9, "10KB": 10**4}[limit]
    write_tensors(ours, stem, peer.state_dict(), max_shard_bytes=size, variant=variant)
    files = {path.name for path in ours.iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) >= shards
    if shards == 1 or kind == "autoencoder":  # transformers orders tensors for its shards by another rule
        assert files == {path.name for path in (tmp_path / "theirs").iterdir()}
    loaded, report = type(peer).from_pretrained(ours, variant=variant, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert equal(dict(loaded.state_dict()), dict(peer.state_dict()))
    assert equal(Folder(ours).tensors(variant=variant), dict(peer.state_dict()))


def test_the_index_is_diffusers_own(tmp_path: Path, autoencoder: Any) -> None:
    (tmp_path / "ours").mkdir()
    autoencoder.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    write_tensors(tmp_path / "ours", "diffusion_pytorch_model", autoencoder.state_dict(), max_shard_bytes=10_000)
    for path in (tmp_path / "ours").iterdir():
        assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()


WEIGHTS = {"a": torch.arange(100.0), "b": torch.arange(50.0), "c": torch.arange(300.0), "d": torch.zeros(1)}


def test_shards_keep_to_the_limit(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", WEIGHTS, max_shard_bytes=600)
    assert [sorted(load_file(tmp_path / f"model-{i:05d}-of-00003.safetensors")) for i in (1, 2, 3)] == [
        ["a", "b"],
        ["c"],  # larger than the limit by itself
        ["d"],
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * 451}
    assert equal(Folder(tmp_path).tensors(), WEIGHTS)


@pytest.mark.parametrize(("first", "second"), [(600, 10**9), (10**9, 600), (600, 1200)])
def test_rewriting_leaves_no_old_shards(tmp_path: Path, first: int, second: int) -> None:
    write_tensors(tmp_path, "model", WEIGHTS, variant="fp16")
    write_tensors(tmp_path, "model", WEIGHTS, max_shard_bytes=first)
    (tmp_path / "model_notes.safetensors").touch()
    write_tensors(tmp_path, "model", WEIGHTS, max_shard_bytes=second)
    (tmp_path / "new").mkdir()
    write_tensors(tmp_path / "new", "model", WEIGHTS, max_shard_bytes=second)
    kept = {"new", "model.fp16.safetensors", "model_notes.safetensors"}
    assert set(os.listdir(tmp_path)) == {*os.listdir(tmp_path / "new"), *kept}


def test_a_failure_keeps_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path, "model", WEIGHTS)
    files = set(os.listdir(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_tensors(tmp_path, "model", {"z": torch.zeros(1000)}, max_shard_bytes=600)
    assert set(os.listdir(tmp_path)) == files
    assert equal(Folder(tmp_path).tensors(), WEIGHTS)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)
def test_variants_by_every_published_name(tmp_path: Path, name: str) -> None:
    if name.endswith(".json"):
        shard = "diffusion_pytorch_model-00001-of-00001.fp16.safetensors"
        save_file({"v": torch.ones(1)}, tmp_path / shard)
        (tmp_path / name).write_text(json.dumps({"weight_map": {"v": shard}}))
    else:
        save_file({"v": torch.ones(1)}, tmp_path / name)
    assert list(Folder(tmp_path).tensors()) == ["v"]
    assert list(Folder(tmp_path).tensors(variant="fp16")) == ["v"]
    with pytest.raises(CheckpointError, match="no bf16 variant; it has fp16"):
        Folder(tmp_path).tensors(variant="bf16")
    save_file({"plain": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert list(Folder(tmp_path).tensors()) == ["plain"]
    assert list(Folder(tmp_path).tensors(variant="fp16")) == ["v"]


def test_two_variants_must_be_chosen_from(tmp_path: Path) -> None:
    for variant in ("fp16", "non_ema"):
        save_file({variant: torch.ones(1)}, tmp_path / f"model.{variant}.safetensors")
    with pytest.raises(CheckpointError, match="variants fp16, non_ema; choose one"):
        Folder(tmp_path).tensors()
    assert list(Folder(tmp_path).tensors(variant="non_ema")) == ["non_ema"]


@pytest.mark.parametrize("odd", ["in the index", "in the shard"])
def test_index_and_shards_must_agree(tmp_path: Path, odd: str) -> None:
    save_file(
        {"a": torch.ones(1)} | ({"x": torch.ones(1)} if odd == "in the shard" else {}), tmp_path / "1.safetensors"
    )
    named = {"a": "1.safetensors"} | ({"x": "1.safetensors"} if odd == "in the index" else {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(CheckpointError, match="differ in 1 tensors: 'x'"):
        Folder(tmp_path).tensors()


def test_nothing_there_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights: no model\.safetensors or diffusion_pytorch_model"):
        Folder(tmp_path).tensors("unet")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        Folder(tmp_path / "no")


def test_json(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"limit": Infinity, "ü": [1]}', encoding="utf-8")
    folder = Folder(tmp_path)
    assert folder.json("unet/config.json") == {"limit": float("inf"), "ü": [1]}
    assert folder.has("unet/config.json")
    assert not folder.has("config.json")
    with pytest.raises(CheckpointError, match=r"has no file 'config\.json'"):
        folder.json("config.json")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/dev/zero"])
def test_a_path_that_is_no_folder(path: str) -> None:
    with pytest.raises(CheckpointError, match="is not a model folder"):
        Folder(path)
