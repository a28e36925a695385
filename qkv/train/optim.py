"""The optimisers of a model, learning-rate schedules, and the running average of the weights.

AdamW: Loshchilov and Hutter 2019; Muon: muon.py. Schedules are plain functions of the step, so that nothing of them has
to be saved: cosine (Loshchilov and Hutter 2017), inverse square root (Vaswani et al. 2017, section 5.3), and warm-up,
stable, decay (MiniCPM, 2404.06395, section 4). The averaged weights (EMA) are what is sampled from and exported;
diffusion models need them.
Left out: per-layer learning rates, loss scaling (bf16 has the exponents of fp32).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qkv.core.block import Block
from qkv.errors import CheckpointError, ConfigError
from qkv.models.residual import Residual
from qkv.train.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule; `clip` bounds the gradient's norm, `floor` is the last fraction of `lr` that cosine and
    wsd fall to, the latter in the last `cooldown` of the steps.

    "muon" is for the matrices of the model's blocks, with `momentum`; everything else keeps AdamW, with `betas`.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-4
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    schedule: Literal["constant", "cosine", "inverse_sqrt", "wsd"] = "constant"
    warmup: int = 100
    floor: float = 0.0
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("lr", self.lr > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("eps", self.eps > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("clip", self.clip > 0, "above 0"),
            ("warmup", self.warmup >= 0, "0 or more steps"),
            ("floor", 0 <= self.floor <= 1, "from 0 to 1"),
            ("cooldown", 0 < self.cooldown <= 1, "above 0, to 1"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be {expected}")


def warm_up(step: int, warmup: int) -> float:
    """Linear from 1 / warmup at step 0 to 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine(step: int, steps: int, floor: float) -> float:
    """From 1 at step 0 to `floor` after the last of `steps`."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def inverse_sqrt(step: int, warmup: int) -> float:
    """1 until the warm-up's end, then falling with the root of the step; times `warm_up`, it is the paper's rule."""
    return math.sqrt(max(warmup, 1) / max(step + 1, warmup, 1))


def wsd(step: int, steps: int, cooldown: float, floor: float) -> float:
    """1 until the last `cooldown` of the steps, then falling straight to `floor` after the last."""
    left = max(steps - step, 0) / (cooldown * steps)
    return floor + (1 - floor) * min(1.0, left)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0, 1, ... of `steps`."""
    factor = warm_up(step, config.warmup)
    if config.schedule == "cosine":
        factor *= cosine(step, steps, config.floor)
    elif config.schedule == "inverse_sqrt":
        factor *= inverse_sqrt(step, config.warmup)
    elif config.schedule == "wsd":
        factor *= wsd(step, steps, config.cooldown, config.floor)
    return config.lr * factor


def optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Those of `config` over the parameters that are trained, each parameter in one of them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("the model has no parameter to train; every requires_grad is False")
    if config.optimizer == "adamw":
        return [adamw(trained, config)]
    hidden = {id(p): p for p in hidden_matrices(model) if p.requires_grad}
    if not hidden:
        raise ConfigError("optimizer=muon trains the matrices of blocks, and this model has none; use adamw")
    muon = Muon(hidden.values(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    rest = [p for p in trained if id(p) not in hidden]
    return [muon, adamw(rest, config)] if rest else [muon]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of the linear layers and convolutions inside the model's blocks: not embeddings, heads and
    projections around them."""
    blocks = (module for module in model.modules() if isinstance(module, (Block, Residual)))
    return [layer.weight for block in blocks for layer in block.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def adamw(trained: Sequence[Tensor], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `trained`; gains and biases (1-d) are not decayed."""
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused takes a quarter of the foreach time on a CPU too (18 M parameters: 11 ms against 46).
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The optimisers' state as `parameter.key` -> tensor, e.g. `conv.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put `optimizer_tensors` back. Raises CheckpointError where they belong to other parameters."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    owners = {p: owner for owner in optimizers for group in owner.param_groups for p in group["params"]}
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in (parameter.shape, torch.Size()):
            raise CheckpointError(
                f"the optimiser's {full} {tuple(value.shape)} fits no trained parameter of this model"
            )
        # A moment keeps its parameter's memory order (channels-last), or the fused kernel mixes up its values.
        like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        owners[parameter].state[parameter][key] = like.to(parameter.device).copy_(value).detach()


def ema_decay(decay: float, step: int) -> float:
    """The average's decay, short at first so that the random initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, in place; buffers and frozen weights are copied or left."""
    pairs = [(mean, p) for mean, p in zip(average.parameters(), model.parameters()) if p.requires_grad]
    torch._foreach_lerp_([mean for mean, _ in pairs], [p for _, p in pairs], 1 - decay)
    for mean, buffer in zip(average.buffers(), model.buffers()):
        mean.copy_(buffer)
