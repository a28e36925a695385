"""Muon against a plain written-out version, PyTorch's own, and the singular values that it promises."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qkv.errors import ConfigError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.models.residual import Residual
from qkv.train.muon import Muon, _by_gram, _by_steps, orthogonal
from qkv.train.optim import (
    OptimConfig,
    hidden_matrices,
    learning_rate,
    optimizer_tensors,
    optimizers,
    restore_optimizers,
)

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 24)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 rounds as the products happen to be cut; what is compared closely is computed in fp32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)


def written_out(weight: Tensor, momentum: Tensor, gradient: Tensor, lr: float, mu: float, decay: float) -> Tensor:
    """One step on one matrix, as the papers have it: momentum is changed in place."""
    momentum.copy_(mu * momentum + (1 - mu) * gradient)
    update = (mu * momentum + (1 - mu) * gradient).clone()
    if update.shape[0] > update.shape[1]:
        update = update.T
    update = update / update.norm()
    for _ in range(5):
        square = update @ update.T
        update = 3.4445 * update + (-4.7750 * square + 2.0315 * square @ square) @ update
    if weight.shape[0] > weight.shape[1]:
        update = update.T
    size = 0.2 * max(weight.shape) ** 0.5
    return weight - lr * decay * weight - lr * size * update.float()


@pytest.mark.parametrize("shape", [(3, 16, 32), (2, 24, 200)])
def test_steps_on_the_gram_matrix_are_the_same(shape: tuple[int, ...]) -> None:
    """Of matrices whose columns differ a thousandfold: to 1e-4 of the singular values, which are about 1."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, shape[-1])
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    assert torch.allclose(_by_gram(x), _by_steps(x), rtol=0, atol=1e-4)
    assert torch.allclose(_by_gram(x.double()), _by_steps(x.double()), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("in_fp32")
def test_it_is_the_written_out_update() -> None:
    ours, theirs = matrices(), [p.detach().clone() for p in matrices()]
    momenta = [torch.zeros_like(weight) for weight in theirs]
    optimizer = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        for parameter, gradient in zip(ours, gradients(step)):
            parameter.grad = gradient
        optimizer.step()
        theirs = [
            written_out(weight, momentum, gradient, 0.02, 0.9, 0.1)
            for weight, momentum, gradient in zip(theirs, momenta, gradients(step))
        ]
    for mine, expected, start in zip(ours, theirs, matrices()):
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-5, atol=1e-6)
        assert (expected - start).norm() > 0.05


@pytest.mark.usefixtures("in_fp32")
def test_it_is_pytorchs_own() -> None:
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    peer = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for parameter, other, gradient in zip(ours, theirs, gradients(step)):
            parameter.grad, other.grad = gradient, gradient.clone()
        mine.step()
        peer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_singular_values_become_one(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(given, full_matrices=False)
    given = u @ torch.diag_embed(torch.linspace(1, 0.05, 16).expand(s.shape)) @ v
    found = orthogonal(given).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (u.mT @ found @ v.mT - torch.diag_embed(values)).abs().amax() < 1.3  # the directions stay
    assert torch.diagonal(u.mT @ found @ v.mT, dim1=-2, dim2=-1).min() > 0.5


def test_a_matrix_without_a_gradient_stays_and_zeros_are_no_trouble() -> None:
    first, second = matrices()[:2]
    before = first.clone(), second.clone()
    second.grad = torch.zeros_like(second)
    Muon([first, second], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.usefixtures("in_fp32")
def test_a_convolution_is_the_matrix_from_what_it_sees_to_its_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.02, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=1e-5, atol=1e-6)


def small() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab=11, context=8, dim=16, layers=2, heads=2, ffn_dim=32, tied=False))


def test_only_hidden_matrices_are_its_own() -> None:
    model = small()
    muon, adamw = optimizers(model, OptimConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    mine = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert mine == {
        f"stack.blocks.{i}.{part}.weight"
        for i in range(2)
        for part in ("attention.q", "attention.k", "attention.v", "attention.out", "ffn.up", "ffn.down")
    }
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert mine | rest == set(names.values())
    assert not mine & rest
    assert {"token.weight", "position.weight", "head.weight"} <= rest
    residual = Residual(4, 8, groups=2, eps=1e-5, time_dim=6)
    assert {tuple(p.shape) for p in hidden_matrices(residual)} == {(8, 4, 3, 3), (8, 8, 3, 3), (8, 4, 1, 1), (8, 6)}
    with pytest.raises(ConfigError, match="this model has none; use adamw"):
        optimizers(nn.Linear(2, 2), OptimConfig(optimizer="muon"))


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    config = OptimConfig(optimizer="muon", lr=0.01)
    ids = torch.arange(8)[None]

    def advance(model: Decoder, optims: list[torch.optim.Optimizer], steps: int) -> None:
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(model(ids)[0], ids[0])
            model.zero_grad()
            loss.backward()
            for optimizer in optims:
                optimizer.step()

    model = small()
    optims = optimizers(model, config)
    advance(model, optims, 3)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optims, model).items()}
    assert {"stack.blocks.0.ffn.up.weight.momentum", "token.weight.exp_avg"} <= saved.keys()
    other = copy.deepcopy(model)
    again = optimizers(other, config)
    restore_optimizers(again, other, saved)
    advance(model, optims, 3)
    advance(other, again, 3)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_it_learns() -> None:
    model = small()
    optims = optimizers(model, OptimConfig(optimizer="muon", lr=0.01))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        start = torch.randint(11, (8, 1), generator=generator)
        ids = (start + torch.arange(9) * (1 + start % 3)) % 11
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for optimizer in optims:
            optimizer.step()
    assert float(loss.detach()) < 1.0  # a guess costs 2.4


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"cooldown": 0.0}, {"cooldown": 1.5}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimConfig(**wrong)  # type: ignore[arg-type]


def test_warm_up_stable_decay() -> None:
    config = OptimConfig(lr=2.0, warmup=10, schedule="wsd", cooldown=0.4, floor=0.1)
    points = {0: 0.1, 9: 1.0, 60: 1.0, 80: 0.55, 100: 0.1, 120: 0.1}
    for step, factor in points.items():
        assert learning_rate(config, step, 100) == pytest.approx(2.0 * factor)
