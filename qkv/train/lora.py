"""LoRA (2106.09685, section 4.1): a frozen matrix W learns a correction of low rank, W + (alpha / rank) B A.

    add_lora(decoder, LoraConfig(rank=8))       linear layers that match become `LoraLinear`; B is zero: nothing changes
    with base_only(decoder): ...                what the model was before
    merge(decoder)                              plain linear layers again, the corrections in their weights

On disk an adapter is PEFT's, under the published names of the model's family; loaded/adapters.py reads it. Left out:
dropout, biases, embeddings and convolutions, DoRA and rank-stabilised scales, and, of what is written, families whose
published projections are fused or turned (GPT-2, BLOOM, NeoX): those adapters stay ours to merge.
"""

import contextlib
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.loaded.adapters import CONFIG, PREFIX
from qkv.models.decoder import Decoder
from qkv.weights.configs import write_json
from qkv.weights.families import FAMILIES, published_config
from qkv.weights.files import save_tensors


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """`layers`: patterns of the names of linear layers, `*` for any part. A correction is alpha / rank * B A."""

    rank: int = 8
    alpha: float = 16.0
    layers: tuple[str, ...] = ("stack.blocks.*.attention.*", "stack.blocks.*.ffn.*")

    def __post_init__(self) -> None:
        if not 0 < self.rank <= 4096:
            raise ConfigError(f"lora.rank={self.rank} is out of range; it must be 1 to 4096")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha={self.alpha}; it must be above 0 and finite")


class LoraLinear(nn.Linear):
    """A linear layer with its own weight, frozen, and a correction: `a` (rank, in), `b` (out, rank), both fp32."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.scale, self.active = config.alpha / config.rank, True
        place = base.weight.device
        self.a = nn.Parameter(torch.empty(config.rank, base.in_features, device=place))
        self.b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=place))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as PEFT and the paper's code

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        out = super().forward(x)
        return out + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) if self.active else out

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = self.weight.float() + self.scale * self.b.float() @ self.a.float()
        plain.weight = nn.Parameter(weight.to(self.weight.dtype).detach(), requires_grad=False)
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, config: LoraConfig) -> list[str]:
    """Freezes `model` and gives the layers that match a correction to train; their names. ConfigError for a pattern
    that no linear layer's name matches."""
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    for pattern in config.layers:
        if not fnmatch.filter(linear, pattern):
            raise ConfigError(f"lora.layers: {shorten(pattern)!r} matches no linear layer, such as {linear[0]}")
    names = [name for name in linear if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.layers)]
    model.requires_grad_(False)
    for name in names:
        model.set_submodule(name, LoraLinear(model.get_submodule(name), config))  # type: ignore[arg-type]
    return names


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers that have a correction, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextlib.contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """The corrections count for nothing within."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True


def merge(model: nn.Module) -> None:
    """Puts the corrections into the weights, in place."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged())


def save_adapter(model: Decoder, folder: Path, *, base: str, family: str | None = None) -> None:
    """Writes the corrections of `model` as PEFT does; `base` says what model they are for.

    ConfigError if the model is of no family that PEFT would find these layers in; OutputError.
    """
    layers = lora_layers(model)
    published = _published_names(model, family)
    odd = [name for name in layers if name not in published]
    if not layers or odd:
        raise ConfigError(f"{', '.join(odd[:3]) or 'a model without corrections'} cannot be saved as an adapter; merge")
    first = next(iter(layers.values()))
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{PREFIX}{published[name]}.lora_A.weight"] = layer.a.detach().cpu().contiguous()
        tensors[f"{PREFIX}{published[name]}.lora_B.weight"] = layer.b.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": len(first.a),
        "lora_alpha": first.scale * len(first.a),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(published[name] for name in layers),
    }
    write_json(folder / CONFIG, config)
    save_tensors(folder / "adapter_model.safetensors", tensors)


def _published_names(model: Decoder, family: str | None) -> dict[str, str]:
    """Our names of linear layers -> those in transformers' model, where each is one there too, the same way round."""
    table = FAMILIES[published_config(model.config, family)["model_type"]].table(model.config)
    names = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            probe = {f"{name}.weight": torch.empty(2, 3, device="meta")}
            with contextlib.suppress(CheckpointError):  # fused with others
                ((theirs, tensor),) = table.published(probe).items()
                if tensor.shape == (2, 3):
                    names[name] = theirs.removesuffix(".weight")
    return names
