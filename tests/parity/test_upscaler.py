"""Upscalers against plain PyTorch written from the papers and Real-ESRGAN's published tensors: names, shapes, order."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from qkv.errors import CheckpointError, ConfigError
from qkv.models.upscaler import RRDB, Compact, CompactConfig, RRDBConfig
from qkv.weights.diffusers import save_component
from qkv.weights.files import open_tensors
from qkv.weights.upscaler import load_upscaler, published_upscaler
from tests.conftest import strengthen

Weights = Mapping[str, Tensor]


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)


def larger(x: Tensor, scale: int) -> Tensor:
    """Nearest neighbours."""
    return x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def compact(w: Weights, x: Tensor, layers: int, scale: int) -> Tensor:
    """SRVGGNetCompact of Real-ESRGAN's release: convolution and PReLU by turns, pixel shuffle, plus the picture."""
    seen = x
    for i in range(layers + 1):
        seen = conv(w, f"body.{2 * i}", seen)
        slope = w[f"body.{2 * i + 1}.weight"][None, :, None, None]
        seen = torch.where(seen > 0, seen, slope * seen)
    seen = conv(w, f"body.{2 * layers + 2}", seen)
    b, _, y, x_ = seen.shape  # pixel shuffle by its definition (1609.05158, eq. 4)
    shuffled = seen.view(b, 3, scale, scale, y, x_).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, y * scale, x_ * scale)
    return shuffled + larger(x, scale)


def rrdb(w: Weights, x: Tensor, layers: int, scale: int) -> Tensor:
    """RRDBNet: ESRGAN (1809.00219), figure 4, with residual scaling 0.2; scales 2 and 1 unshuffle pixels first."""

    def bend(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x)

    unit = 4 // scale
    b, c, y, x_ = x.shape
    seen = x.view(b, c, y // unit, unit, x_ // unit, unit).permute(0, 1, 3, 5, 2, 4)
    first = conv(w, "conv_first", seen.reshape(b, c * unit * unit, y // unit, x_ // unit))
    seen = first
    for i in range(layers):
        block = seen
        for j in (1, 2, 3):
            parts = [block]
            for k in (1, 2, 3, 4):
                parts.append(bend(conv(w, f"body.{i}.rdb{j}.conv{k}", torch.cat(parts, 1))))
            block = block + 0.2 * conv(w, f"body.{i}.rdb{j}.conv5", torch.cat(parts, 1))
        seen = seen + 0.2 * block
    seen = first + conv(w, "conv_body", seen)
    seen = bend(conv(w, "conv_up1", larger(seen, 2)))
    seen = bend(conv(w, "conv_up2", larger(seen, 2)))
    return conv(w, "conv_last", bend(conv(w, "conv_hr", seen)))


def shapes(kind: str, layers: int, scale: int, dim: int = 8, growth: int = 4) -> dict[str, tuple[int, ...]]:
    """The published tensors, written down from the released files, not from our modules."""
    kernels: dict[str, tuple[int, int]] = {}
    if kind == "compact":
        kernels = {"body.0": (dim, 3), f"body.{2 * layers + 2}": (3 * scale**2, dim)}
        kernels |= {f"body.{2 * i}": (dim, dim) for i in range(1, layers + 1)}
    else:
        kernels = {"conv_first": (dim, 3 * (4 // scale) ** 2), "conv_last": (3, dim)}
        kernels |= {f"conv_{name}": (dim, dim) for name in ("body", "up1", "up2", "hr")}
        for i in range(layers):
            for j in (1, 2, 3):
                kernels |= {f"body.{i}.rdb{j}.conv{k}": (growth, dim + (k - 1) * growth) for k in (1, 2, 3, 4)}
                kernels[f"body.{i}.rdb{j}.conv5"] = (dim, dim + 4 * growth)
    found: dict[str, tuple[int, ...]] = {}
    for name, (out, read) in kernels.items():
        found |= {f"{name}.weight": (out, read, 3, 3), f"{name}.bias": (out,)}
    if kind == "compact":
        found |= {f"body.{2 * i + 1}.weight": (dim,) for i in range(layers + 1)}
    return found


def published(kind: str, layers: int, scale: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(scale)
    return {
        name: torch.randn(shape, generator=draw) * (1.5 / torch.tensor(shape[1:]).prod() ** 0.5 if shape[1:] else 0.3)
        for name, shape in shapes(kind, layers, scale).items()
    }


CASES = [("compact", 1, 4), ("compact", 3, 2), ("compact", 2, 3), ("rrdb", 2, 4), ("rrdb", 1, 2), ("rrdb", 1, 1)]
PLAIN: dict[str, Callable[..., Tensor]] = {"compact": compact, "rrdb": rrdb}


@pytest.mark.parametrize(("kind", "layers", "scale"), CASES)
def test_a_file_without_a_configuration(kind: str, layers: int, scale: int, tmp_path: Path) -> None:
    weights = published(kind, layers, scale)
    save_file(weights, tmp_path / "x.safetensors")
    network, warnings = load_upscaler(tmp_path / "x.safetensors")
    x = torch.rand(2, 3, 12, 8)
    with torch.no_grad():
        expected = PLAIN[kind]({name: tensor.double() for name, tensor in weights.items()}, x.double(), layers, scale)
        found = network(x)
    assert warnings == []
    assert found.shape == (2, 3, 12 * scale, 8 * scale)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["compact", "rrdb"])
def test_the_comparison_can_fail(kind: str, tmp_path: Path) -> None:
    weights = published(kind, 2, 4)
    save_file(weights, tmp_path / "x.safetensors")
    network, _ = load_upscaler(tmp_path / "x.safetensors")
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            before = tensor.clone()
            tensor.mul_(2)
            changed, expected = network(x), PLAIN[kind](weights, x, 2, 4)
            tensor.copy_(before)
            assert (changed - expected).abs().max() > 3e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("kind", "layers", "scale"), CASES)
@pytest.mark.parametrize("key", ["params_ema", "params", None])
def test_a_pickle_on_request(kind: str, layers: int, scale: int, key: str | None, tmp_path: Path) -> None:
    weights, file = published(kind, layers, scale), tmp_path / "x.pth"
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"params": other, key: weights} if key else weights, file)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        load_upscaler(file)
    network, _ = load_upscaler(file, allow_pickle=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("network", [Compact(CompactConfig(dim=8, layers=2)), RRDB(RRDBConfig(dim=8, layers=1))])
def test_a_folder_comes_back_bit_for_bit(network: Compact | RRDB, tmp_path: Path) -> None:
    strengthen(network, 1)
    save_component(tmp_path / "a", published_upscaler(network))
    again, warnings = load_upscaler(tmp_path / "a")
    assert warnings == []
    assert again.config == network.config
    save_component(tmp_path / "b", published_upscaler(again))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert set(open_tensors(tmp_path / "a" / "diffusion_pytorch_model.safetensors")) == set(network.state_dict())


def test_a_configuration_that_lies(tmp_path: Path) -> None:
    config, tensors = published_upscaler(Compact(CompactConfig(dim=8, layers=2)))
    for change, error, message in (
        ({"num_conv": 3}, ConfigError, "of another shape than its weights have"),
        ({"act_type": "relu"}, ConfigError, "act_type='relu' is not supported; it must be 'prelu'"),
        ({"_class_name": "SwinIR"}, ConfigError, "holds a SwinIR; this reads SRVGGNetCompact and RRDBNet"),
        ({"upscale": "4"}, ConfigError, "upscale|scale"),
    ):
        save_component(tmp_path / "x", (config | change, tensors))
        with pytest.raises(error, match=message):
            load_upscaler(tmp_path / "x")
    save_component(tmp_path / "x", (config | {"colour": 1}, tensors))
    assert "colour" in load_upscaler(tmp_path / "x")[1][0]


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x": torch.zeros(3)},
        {"body.0.weight": torch.zeros(3)},
        {"conv_first.weight": torch.zeros(3)},
        {"conv_first.weight": torch.zeros(8, 2, 3, 3), "body.0.rdb1.conv1.weight": torch.zeros(4, 8, 3, 3)},
        {"body.0.weight": torch.zeros(2000, 3, 3, 3), "body.2.weight": torch.zeros(48, 2000, 3, 3)},
        {"model.0.weight": torch.zeros(64, 3, 3, 3)},
    ],
)
def test_weights_of_something_else(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds no upscaler that is known here"):
        load_upscaler(tmp_path / "x.safetensors")


def test_hostile_pickles(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    import pickle

    torch.save({"params": Evil()}, tmp_path / "evil.pth", pickle_module=pickle)
    (tmp_path / "noise.pth").write_bytes(b"PK\3\4" + bytes(range(256)) * 9)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"params": {"x": 3}}, tmp_path / "numbers.pth")
    for name in ("evil", "noise", "list", "numbers"):
        with pytest.raises(CheckpointError):
            load_upscaler(tmp_path / f"{name}.pth", allow_pickle=True)
