"""The training loop: `fit` takes a model, batches and an objective, and makes a run folder.

    RUN/checkpoints/   full states (see checkpoint.py)        RUN/config.json    the resolved configuration
        metrics.jsonl  a record every `log_every` steps           loss.png       its curves
        samples/       what the averaged weights draw or write    lock           held while training

Everything random is a function of (seed, step): `batches(step)` returns the batch of a step, and the objective
draws from a generator made for the step (global draws, as dropout's, are seeded with it). So a resumed run equals
an unbroken one bit for bit on the same CPU, and no random state is saved. bf16 is autocast over fp32 weights.
Frozen weights are where the recipe took them from: the average shares them, and checkpoints leave them out.
Left out: several processes.
"""

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from qkv.atomic import write_file
from qkv.config import as_dict
from qkv.device import find_dtype
from qkv.errors import CheckpointError, ConfigError, InputError, MissingDependencyError, QkvError, shorten
from qkv.train import checkpoint, curve
from qkv.train.batch import parts, rows, to_device
from qkv.train.meter import Meter
from qkv.train.optim import (
    OptimConfig,
    ema_decay,
    ema_update,
    learning_rate,
    optimizer_tensors,
    optimizers,
    restore_optimizers,
)
from qkv.train.signals import stop_signals

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
PATIENCE = 5  # steps in a row whose loss or gradient is not finite
CADENCE = {f"fit.{key}" for key in ("steps", "minutes", "save_every", "sample_every", "log_every", "keep")}


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how to train; `minutes` ends this invocation (with a checkpoint), not the run.

    `accumulate` takes a step's batch in so many parts, one after the other, to need less memory: the same gradient,
    but for objectives that compare the examples of a batch with one another. `dtype` bf16 is for devices that compute
    it natively; others compute in fp32 and say so, since emulating it takes many times as long.
    """

    steps: int
    accumulate: int = 1
    seed: int = 0
    dtype: Literal["bf16", "fp32"] = "bf16"
    ema: float = 0.999
    optim: OptimConfig = field(default_factory=OptimConfig)
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 1000
    keep: int = 2
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "save_every", "sample_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema={self.ema}; it must be from 0 (no averaging) to below 1")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes={self.minutes}; it must be above 0")


@dataclass(frozen=True)
class Loss:
    """The result of an objective: a scalar to minimise, and numbers to log.

    `count` is the number of things that `value` is the mean over (tokens) where these are not the batch's examples.
    """

    value: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result(Generic[Model]):
    """The end of an invocation: the averaged model, in eval mode, and where the run stands.

    `loss` is the mean of the last record in metrics.jsonl (nan before the first).
    """

    model: Model
    steps: int
    loss: float
    skipped: int
    ended: Literal["done", "minutes", "signal"]
    checkpoint: Path


def fit(
    model: Model,
    batches: Callable[[int], Batch],
    objective: Callable[[Model, Batch, torch.Generator], Loss],
    config: FitConfig,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    resume: bool | Path = False,
    samples: Callable[[Model, int], Image | str | None] | None = None,
    validate: Callable[[Model, int], Mapping[str, float]] | None = None,
    progress: bool = True,
) -> Result[Model]:
    """Train `model` (fp32, on its device, in place) up to step `config.steps` in the run folder `folder`.

    `batches(step)` must depend on the step alone; it runs one step ahead in a thread, and its tensors (also in
    tuples, lists, dicts) are moved to the model's device. `objective(model, batch, generator)` runs under
    autocast; the generator lives on the model's device. `samples` and `validate` get the averaged model and the
    step every `sample_every` steps and at the end. `recipe` is the rest of the run's configuration (model, data
    and their hashes): it is saved, and a resume with another one is refused. `resume` starts an empty folder too; if it
    is another run's folder, with that run's newest checkpoint, whatever was configured there: training in stages.

    A step with a loss or gradient that is not finite is skipped; SIGINT and SIGTERM end after the step, saved.
    Raises InputError (folder in use or holding a run, nothing to go on from), ConfigError (resumed with another
    configuration), CheckpointError, OutputError, and QkvError after 5 skipped steps in a row.
    """
    ended: Literal["done", "minutes", "signal"] = "done"
    deadline = time.monotonic() + (config.minutes * 60 if config.minutes else math.inf)
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoint.lock(folder))
        run = _Run(model, config, folder, as_dict({**(recipe or {}), "fit": config}), progress)
        run.open(resume)
        stack.enter_context(run.meter)
        stop = stack.enter_context(stop_signals())
        stack.enter_context(torch.random.fork_rng([run.device] if run.device.type == "cuda" else []))
        for batch in stack.enter_context(contextlib.closing(_ahead(batches, run.step, config.steps))):
            run.advance(objective, to_device(batch, run.device))
            if stop.is_set() or time.monotonic() >= deadline:
                ended = "signal" if stop.is_set() else "minutes"
                break
            if run.step % config.save_every == 0:
                run.save()
            if run.step % config.sample_every == 0 and run.step < config.steps:
                run.show(samples, validate)
        path = run.save()
        if ended == "done":
            run.show(samples, validate)
        else:
            run.plot()
            run.meter.say(f"ended at step {run.step} of {config.steps} ({ended}); resume goes on from {path}")
        losses = [record["loss"] for record in curve.read(run.metrics) if "loss" in record]
        return Result(
            model=run.average,
            steps=run.step,
            loss=losses[-1] if losses else math.nan,
            skipped=run.history.skipped,
            ended=ended,
            checkpoint=path,
        )


@dataclass
class _History:
    """A run's past as a checkpoint keeps it beside tensors; `window` holds the steps since the last record."""

    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    window: dict[str, list[float]] = field(default_factory=dict)


class _Run(Generic[Model]):
    """The moving parts of one `fit`, between two steps always in a state that can be saved."""

    def __init__(self, model: Model, config: FitConfig, folder: Path, facts: dict[str, Any], progress: bool):
        self.model, self.config, self.folder, self.facts = model.train(), config, folder, facts
        self.frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.average = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.optimizers = optimizers(model, config.optim)
        self.device = next(model.parameters()).device
        self.narrow = config.dtype == "bf16" and find_dtype("auto", self.device) is torch.bfloat16
        self.machine = {"torch": torch.__version__, "device": self.device.type, "threads": torch.get_num_threads()}
        self.metrics = folder / "metrics.jsonl"
        self.step, self.history = 0, _History()
        self.progress = progress

    def open(self, resume: bool | Path) -> None:
        """Begin in an empty folder, or where its or another run's newest checkpoint left off."""
        saved = checkpoint.load(self.folder)
        if saved and not resume:
            raise InputError(f"{self.folder} holds a run at step {saved.step}; resume it or train in another folder")
        ours = saved is not None
        if not ours and isinstance(resume, Path):
            saved = checkpoint.load(resume)
            if saved is None:
                raise InputError(f"{resume} holds no checkpoint to go on from; give a folder that a run has saved in")
        if saved:
            self._restore(saved, unchanged=ours)
        budget = self.config.minutes * 60 if self.config.minutes else math.inf
        self.meter = Meter(self.step, self.config.steps, budget, self.progress)
        if self.config.dtype == "bf16" and not self.narrow:
            self.meter.say(f"warning: this {self.device.type} has no bf16 of its own; computing in fp32")
        if saved:
            self.meter.say(f"resumed from {saved.path}")
            if saved.facts["machine"] != self.machine:
                was = ", ".join(f"{key} {value}" for key, value in saved.facts["machine"].items())
                self.meter.say(f"warning: it was trained with {was}; the last bits may differ from an unbroken run")
        write_file(self.folder / "config.json", json.dumps(self.facts, indent=2).encode())
        curve.rewind(self.metrics, self.step)

    def _check_unchanged(self, saved: checkpoint.Checkpoint) -> None:
        """ConfigError that names the keys in which a resumed run would differ from the one it resumes."""
        old, new = dict(_flatten(saved.facts["config"])), dict(_flatten(json.loads(json.dumps(self.facts))))
        changed = sorted(key for key in (old.keys() | new.keys()) - CADENCE if old.get(key) != new.get(key))
        if changed:
            named = "; ".join(
                f"{key}={shorten(repr(new.get(key)))} was {shorten(repr(old.get(key)))}" for key in changed[:3]
            )
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            advice = f"set it back, or let another folder begin --from {self.folder}"
            raise ConfigError(f"cannot resume {saved.path}: {named}{more}; {advice}")

    def _restore(self, saved: checkpoint.Checkpoint, *, unchanged: bool) -> None:
        try:
            if unchanged:
                self._check_unchanged(saved)
            for module, group in ((self.model, "model"), (self.average, "ema")):
                missing, surplus = module.load_state_dict(saved.groups[group], strict=False)
                if surplus or not self.frozen.issuperset(missing):
                    raise KeyError(", ".join([*surplus, *sorted(set(missing) - self.frozen)]))
            restore_optimizers(self.optimizers, self.model, saved.groups["optimizer"])
            self.step, self.history = saved.step, _History(**saved.facts["history"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{saved.path} does not fit this model: {shorten(str(error), 300)}") from error

    def save(self) -> Path:
        groups = {
            "model": self._trained(self.model),
            "ema": self._trained(self.average),
            "optimizer": optimizer_tensors(self.optimizers, self.model),
        }
        facts = {"config": self.facts, "machine": self.machine, "history": dataclasses.asdict(self.history)}
        return checkpoint.save(self.folder, self.step, groups, facts, self.config.keep)

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name not in self.frozen}

    def advance(self, objective: Callable[[Model, Batch, torch.Generator], Loss], batch: Batch) -> None:
        """One step: loss, gradient, update, average, and a record where one is due."""
        began, config, history = time.monotonic(), self.config, self.history
        generator = _seed(config.seed, self.step, self.device)
        loss = self._gradient(objective, batch, generator)
        rate = learning_rate(config.optim, self.step, config.steps)
        norm = self._descend(loss.value, rate)
        if norm is None:
            history.skipped += 1
            history.skipped_in_row += 1
        else:
            history.skipped_in_row = 0
            ema_update(self.average, self.model, ema_decay(config.ema, self.step))
            for name, value in {"loss": loss.value, **loss.metrics, "norm": norm}.items():
                history.window.setdefault(name, []).append(float(value))
        self.step += 1
        history.seconds += time.monotonic() - began
        if history.skipped_in_row == PATIENCE:
            last = checkpoint.newest(self.folder)
            raise QkvError(
                f"the loss or its gradient was not finite in {PATIENCE} steps in a row, to {self.step}; lower lr and "
                f"train anew from the last good checkpoint ({last or 'none is saved yet'})"
            )
        if norm is not None:
            self.meter.tick(self.step, history.window["loss"][-1], loss.count or rows(batch))
        if self.step % config.log_every == 0 and history.window:
            means = {name: math.fsum(values) / len(values) for name, values in history.window.items()}
            history.window = {}
            kept = {"lr": rate, "skipped": history.skipped, "seconds": round(history.seconds, 3)}
            curve.append(self.metrics, {"step": self.step, **means, **kept})

    def _gradient(
        self, objective: Callable[[Model, Batch, torch.Generator], Loss], batch: Batch, generator: torch.Generator
    ) -> Loss:
        """The batch's loss, its gradient left in the parameters; each part weighs as much as it is the mean over."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        done: list[tuple[Loss, int]] = []
        for part in parts(batch, self.config.accumulate):
            with self._autocast():
                loss = objective(self.model, part, generator)
            weight = rows(part) if loss.count is None else loss.count
            (loss.value if self.config.accumulate == 1 else loss.value * weight).backward()
            done.append((dataclasses.replace(loss, value=loss.value.detach()), weight))
        return done[0][0] if self.config.accumulate == 1 else self._mean(done)

    def _mean(self, done: Sequence[tuple[Loss, int]]) -> Loss:
        """The loss of all parts together, the gradient divided as it is."""
        total = sum(weight for _, weight in done)
        torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], total)
        first = done[0][0]
        return Loss(
            torch.stack([loss.value * weight for loss, weight in done]).sum() / total,
            {name: sum(float(loss.metrics[name]) * weight for loss, weight in done) / total for name in first.metrics},
            count=None if first.count is None else total,
        )

    def _descend(self, loss: Tensor, rate: float) -> float | None:
        """Update the weights; the gradient's norm before clipping, or None (and no update) if it is not finite."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip))
        if not (math.isfinite(norm) and math.isfinite(loss.item())):
            return None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return norm

    def show(
        self,
        samples: Callable[[Model, int], Image | str | None] | None,
        validate: Callable[[Model, int], Mapping[str, float]] | None,
    ) -> None:
        """Measures and samples the averaged model: numbers in metrics.jsonl, a sample in samples/, the curves."""
        with torch.no_grad(), self._autocast():
            numbers = validate(self.average, self.step) if validate else {}
            sample = samples(self.average, self.step) if samples else None
        if numbers:
            curve.append(self.metrics, {"step": self.step, **numbers})
            self.meter.say(f"step {self.step}  " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        path = self.folder / "samples" / f"{self.step:08d}"
        if isinstance(sample, str):
            write_file(path.with_suffix(".txt"), sample.encode())
        elif sample:
            data = io.BytesIO()
            sample.save(data, format="png")
            write_file(path.with_suffix(".png"), data.getvalue())
        self.plot()

    def plot(self) -> None:
        try:
            curve.plot(self.metrics, self.folder / "loss.png")
        except MissingDependencyError as error:
            self.meter.say(f"no loss.png: {error}")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.narrow)


def _flatten(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _seed(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The objective's generator of this step; torch's global one (dropout) is seeded beside it."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=16).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.Generator(device).manual_seed(int.from_bytes(digest[8:], "big") >> 1)


def _ahead(batches: Callable[[int], Batch], start: int, stop: int) -> Generator[Batch, None, None]:
    """batches(start) ... batches(stop - 1), each made in a thread while the one before is trained on."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(batches, start) if start < stop else None
        for step in range(start + 1, stop + 1):
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = thread.submit(batches, step) if step < stop else None
            yield batch
