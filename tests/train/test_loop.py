"""`fit` on a toy network: it learns, repeats itself bit for bit, and says what goes wrong in one line."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, InputError, MissingDependencyError
from qkv.train import curve, loop
from qkv.train.batch import rows, to_device
from qkv.train.checkpoint import load
from qkv.train.loop import FitConfig, Loss, Result, fit
from qkv.train.optim import OptimConfig, ema_decay, ema_update, learning_rate, optimizer_tensors, optimizers

FAST = OptimConfig(lr=1e-2, warmup=5)
plot = curve.plot


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing costs more than training here; two tests put it back."""
    monkeypatch.setattr(curve, "plot", lambda metrics, picture: None)


def toy() -> nn.Module:
    """Channels-last convolutions, dropout and tied weights: what makes a resume go wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 3, 3, padding=1),
    ).to(memory_format=torch.channels_last)
    model[5].weight = model[4].weight
    return model


def batches(step: int) -> dict[str, Tensor]:
    return {"pixels": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))}


def denoise(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
    clean = batch["pixels"]
    noise = torch.randn(clean.shape, generator=generator)
    loss = (model(clean + 0.5 * noise).float() - clean).square().mean()
    return Loss(loss, {"psnr": -10 * loss.detach().log10()})


def train(
    folder: Path,
    steps: int,
    model: nn.Module | None = None,
    resume: bool | Path = False,
    progress: bool = False,
    **options: object,
) -> Result:
    hooks = {key: options.pop(key) for key in ("samples", "validate", "recipe") if key in options}
    given = {"dtype": "fp32", "optim": FAST, "log_every": 3, "save_every": 4, "sample_every": 1000, **options}
    config = FitConfig(steps=steps, **given)  # type: ignore[arg-type]
    model = model or toy()
    return fit(model, batches, denoise, config, folder, resume=resume, progress=progress, **hooks)  # type: ignore[arg-type]


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = load(one), load(other)
    assert first is not None
    assert second is not None
    assert first.step == second.step
    assert first.groups.keys() == second.groups.keys() == {"model", "ema", "optimizer"}
    for group, tensors in first.groups.items():
        assert tensors.keys() == second.groups[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.groups[group][name]), f"{group} {name}"
    assert records(one) == records(other)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_is_bit_equal(tmp_path: Path, dtype: str) -> None:
    train(tmp_path / "whole", 20, dtype=dtype)
    train(tmp_path / "halves", 10, dtype=dtype)
    torch.rand(7)  # the state of the global generator outside must not matter
    result = train(tmp_path / "halves", 20, resume=True, dtype=dtype)
    assert result.steps == 20
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("native", [torch.bfloat16, torch.float32])
def test_bf16_is_for_processors_that_have_it(
    native: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere the run computes in fp32, and says so."""
    monkeypatch.setattr(loop, "find_dtype", lambda dtype, device: native)
    run = train(tmp_path / "bf16", 5, dtype="bf16", progress=True)
    plain = train(tmp_path / "fp32", 5)
    same = torch.equal(run.model.state_dict()["0.weight"], plain.model.state_dict()["0.weight"])
    assert same == (native is torch.float32)
    assert ("no bf16 of its own" in capsys.readouterr().err) == (native is torch.float32)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one", 5), train(tmp_path / "other", 5, seed=1)
    assert not torch.equal(one.model.state_dict()["0.weight"], other.model.state_dict()["0.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step_and_the_run_goes_on_exactly(tmp_path: Path, number: signal.Signals) -> None:
    cosine = OptimConfig(lr=1e-2, warmup=2, schedule="cosine")

    def kill(model: nn.Module, step: int) -> dict[str, float]:
        if step == 10:
            os.kill(os.getpid(), number)
        return {}

    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path / "whole", 20, optim=cosine)
    first = train(tmp_path / "halves", 20, optim=cosine, sample_every=10, validate=kill)
    assert (first.ended, first.steps) == ("signal", 11)
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train(tmp_path / "halves", 20, resume=True, optim=cosine).ended == "done"
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_records_after_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    train(tmp_path / "whole", 12)
    train(tmp_path / "killed", 8)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "loss": 99.0}\n{"step": 12, "lo')  # the process died before it could save
    train(tmp_path / "killed", 12, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_minutes_end_an_invocation_with_a_checkpoint(tmp_path: Path) -> None:
    result = train(tmp_path, 1000, minutes=1e-9)
    assert (result.ended, result.steps) == ("minutes", 1)
    assert result.checkpoint == tmp_path / "checkpoints" / "00000001"


def test_an_objective_overfits_one_batch(tmp_path: Path) -> None:
    """The check that every objective of the package gets: one batch, learned by heart."""

    def autoencode(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Loss:
        return Loss((model(batch).float() - batch).square().mean())

    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, 192), nn.Unflatten(1, (3, 8, 8)))
    config = FitConfig(steps=150, optim=OptimConfig(lr=3e-3, warmup=5), ema=0.9, log_every=10)
    result = fit(model, lambda step: pixels, autoencode, config, tmp_path, progress=False)
    losses = [record["loss"] for record in records(tmp_path)]
    assert losses[0] > 0.5
    assert losses[-1] < 0.01
    assert result.loss == losses[-1]
    assert float((result.model(pixels) - pixels).square().mean()) < 0.01  # the average learned it too


def test_the_averaged_model_is_what_is_drawn_returned_and_read(tmp_path: Path) -> None:
    seen = []

    def samples(model: nn.Module, step: int) -> Image.Image:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append((step, model.state_dict()["0.weight"].clone()))
        return Image.new("RGB", (2, 2))

    model = toy()
    result = train(tmp_path, 6, model=model, sample_every=4, samples=samples, validate=lambda _, step: {"val": step})
    assert [step for step, _ in seen] == [4, 6]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000004.png", "00000006.png"]
    assert {"step": 4, "val": 4} in records(tmp_path)
    saved = load(tmp_path)
    assert saved is not None
    average = saved.groups["ema"]
    assert torch.equal(seen[-1][1], average["0.weight"])
    assert not torch.equal(model.state_dict()["0.weight"], average["0.weight"])
    fresh = toy()
    fresh.load_state_dict(average)  # tied weights have both their names
    assert all(map(torch.equal, fresh.parameters(), result.model.parameters()))


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model = toy()
    model[6].requires_grad_(False)
    before = model[6].weight.clone()
    result = train(tmp_path, 5, model=model)
    assert torch.equal(model[6].weight, before)
    assert torch.equal(result.model.state_dict()["6.weight"], before)


def test_each_step_draws_its_own_noise(tmp_path: Path) -> None:
    drawn: list[tuple[float, float]] = []

    def objective(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        drawn.append((float(torch.rand((), generator=generator)), float(torch.rand(()))))
        return denoise(model, batch, generator)

    for name in ("one", "again"):
        fit(toy(), batches, objective, FitConfig(steps=4, dtype="fp32"), tmp_path / name, progress=False)
    assert drawn[:4] == drawn[4:]
    assert len({number for pair in drawn for number in pair}) == 8  # nor are the two generators the same


@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_accumulated_parts_are_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    def objective(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        loss = model(batch["pixels"]).square().mean()
        return Loss(loss, {"part": loss.detach()})

    models, logged = [], []
    for count in (1, accumulate):
        model = nn.Sequential(*(module for module in toy() if not isinstance(module, nn.Dropout)))
        config = FitConfig(steps=3, dtype="fp32", accumulate=count, log_every=1, optim=FAST)
        fit(model, batches, objective, config, tmp_path / str(count), progress=False)
        models.append(model)
        logged.append([(record["loss"], record["part"]) for record in records(tmp_path / str(count))])
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(*logged):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_sample_may_be_a_text(tmp_path: Path) -> None:
    train(tmp_path, 4, sample_every=2, samples=lambda _, step: f"step {step} — é")
    assert (tmp_path / "samples/00000004.txt").read_text(encoding="utf-8") == "step 4 — é"


def test_frozen_weights_are_shared_and_left_out_of_checkpoints(tmp_path: Path) -> None:
    model = toy()
    model[6].requires_grad_(False)
    result = train(tmp_path, 4, model=model)
    assert result.model.get_parameter("6.weight") is model[6].weight
    saved = load(tmp_path)
    assert saved is not None
    assert not {"6.weight", "6.bias"} & saved.groups["model"].keys()
    again = toy()
    again[6].requires_grad_(False)
    assert train(tmp_path, 6, model=again, resume=True).steps == 6
    with pytest.raises(CheckpointError, match="does not fit this model: .*6.weight"):
        train(tmp_path, 8, resume=True)


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    model = toy()
    before = torch.get_rng_state()
    train(tmp_path, 3, model=model)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_come_in_order_and_their_errors_come_through(tmp_path: Path) -> None:
    asked = []

    def counted(step: int) -> dict[str, Tensor]:
        asked.append(step)
        if step == 5:
            raise InputError("the data end here")
        return batches(step)

    with pytest.raises(InputError, match="the data end here"):
        fit(toy(), counted, denoise, FitConfig(steps=9, dtype="fp32"), tmp_path, progress=False)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, 4)
    with pytest.raises(InputError, match="holds a run at step 4; resume it"):
        train(tmp_path, 8)
    assert train(tmp_path, 4, resume=True).steps == 4  # nothing left to do


def test_another_stage_begins_where_a_run_ended_with_settings_of_its_own(tmp_path: Path) -> None:
    hotter = OptimConfig(lr=1e-1, warmup=5)
    train(tmp_path / "first", 4)
    with pytest.raises(
        ConfigError, match=r"cannot resume .*fit\.optim\.lr=0\.1 was .* another folder begin --from .*first"
    ):
        train(tmp_path / "first", 8, resume=True, optim=hotter)
    train(tmp_path / "second", 8, resume=tmp_path / "first", optim=hotter)
    assert [record["step"] for record in records(tmp_path / "second")] == [6]
    train(tmp_path / "second", 10, resume=tmp_path / "first", optim=hotter)  # said again, it goes on with its own
    assert [record["step"] for record in records(tmp_path / "second")] == [6, 9]

    train(tmp_path / "whole", 8)
    train(tmp_path / "same", 8, resume=tmp_path / "first")
    whole, same, other = (load(tmp_path / name) for name in ("whole", "same", "second"))
    assert whole is not None
    assert same is not None
    assert other is not None
    for name, tensor in whole.groups["model"].items():
        assert torch.equal(tensor, same.groups["model"][name])
        assert not torch.equal(tensor, other.groups["model"][name])
    with pytest.raises(InputError, match="nowhere holds no checkpoint to go on from"):
        train(tmp_path / "third", 8, resume=tmp_path / "nowhere")


def test_curves_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", plot)
    train(tmp_path, 6, validate=lambda model, step: {"val": 1.0})
    assert Image.open(tmp_path / "loss.png").size[0] > 100


def test_without_matplotlib_there_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", plot)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"qkv\[train\]"):
        curve.plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    train(tmp_path, 6)
    assert not (tmp_path / "loss.png").exists()


class Pair(NamedTuple):
    pixels: Tensor
    weight: Tensor


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: (1, {"a": t}), lambda t: Pair(t, t.sum())])
def test_batches_of_any_shape_are_moved_and_counted(wrap: Callable[[Tensor], object]) -> None:
    batch = wrap(torch.zeros(5, 2))
    assert rows(batch) == 5
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert str(moved).count("device='meta'") == str(batch).count("tensor(")


def test_lines_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qkv.train.meter.QUIET", 0.0)
    config = FitConfig(steps=3, dtype="fp32")
    fit(toy(), batches, denoise, config, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"(step [123]/3  loss [\d.]+  [\d.e+]+ items/s  0:00 h left\n){3}", err)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0; it must be 1 or more"),
        ({"steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"steps": 1, "minutes": -1.0}, "minutes=-1.0"),
        ({"steps": 1, "keep": 0}, "keep=0"),
        ({"steps": 1, "accumulate": 0}, "accumulate=0"),
    ],
)
def test_wrong_settings(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"clip": 0.0}, {"warmup": -1}, {"floor": 2.0}, {"weight_decay": -1.0}]
)
def test_wrong_optimiser_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 100: 1.0}),
        ("cosine", {4: 0.49842, 50: 0.6, 100: 0.2, 200: 0.2}),
        ("inverse_sqrt", {0: 0.1, 9: 1.0, 39: 0.5, 89: 1 / 3}),
    ],
)
def test_schedules(schedule: str, points: dict[int, float]) -> None:
    config = OptimConfig(lr=2.0, warmup=10, schedule=schedule, floor=0.2)  # type: ignore[arg-type]
    for step, factor in points.items():
        assert learning_rate(config, step, 100) == pytest.approx(2.0 * factor, rel=1e-4)


def test_gains_and_biases_are_not_decayed() -> None:
    (adamw,) = optimizers(toy(), OptimConfig(weight_decay=0.1))
    decayed, plain = adamw.param_groups
    assert decayed["weight_decay"] == 0.1
    assert all(p.dim() > 1 for p in decayed["params"])
    assert plain["weight_decay"] == 0.0
    assert all(p.dim() == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(toy().parameters()))


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="no parameter to train"):
        optimizers(toy().requires_grad_(False), OptimConfig())


def test_optimizer_state_has_names() -> None:
    model = toy()
    (adamw,) = optimizers(model, OptimConfig())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    adamw.step()
    assert {name for name in optimizer_tensors([adamw], model) if name.startswith("0.")} == {
        f"0.{kind}.{key}" for kind in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_average_is_the_formula() -> None:
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * model.weight.detach()
    ema_update(average, model, 0.9)
    torch.testing.assert_close(average.weight.detach(), expected)
    assert [ema_decay(0.99, step) for step in (0, 8, 10_000)] == [0.1, 0.5, 0.99]
