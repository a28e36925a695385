"""Training survives what happens to long runs: kill -9, a full disk, NaN, a second trainer, changed settings."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, InputError, OutputError, QkvError
from qkv.train import checkpoint, curve
from qkv.train.loop import FitConfig, Loss, Result, fit
from qkv.train.optim import OptimConfig

# Forks savers and kills each at a random instant. What a saver reported as saved must be on the disk, and whatever
# is newest must load whole: every tensor holds the number of its step.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from qkv.train.checkpoint import load, lock, save

run, times = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
random.seed(0)

def write(step):
    tensors = {str(i): torch.full((40, 50), float(step)) for i in range(4)}
    save(run, step, {"model": tensors, "ema": tensors}, {"step": step}, keep=2)

step = 1
began = time.monotonic()
write(step)
once = time.monotonic() - began  # on this disk, as busy as it is
for _ in range(times):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with lock(run):  # the killed holder's lock must be free
            while True:
                step += 1
                write(step)
                os.write(send, b".")
    os.close(send)
    time.sleep(random.uniform(0.0, 4 * once))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    step += len(os.read(receive, 100_000))
    os.close(receive)
    read = load(run)
    assert step <= read.step <= step + 1, (step, read.step)
    assert read.facts == {"step": read.step}
    assert all(bool((t == read.step).all()) for group in read.groups.values() for t in group.values())
    step = read.step
assert step > 1
save(run, step + 1, {"model": {"w": torch.zeros(1)}}, {}, keep=2)  # one that is not killed tidies up
assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"{step:08d}", f"{step + 1:08d}"]
print(step)
"""

HOLDER = """
import sys, time
from pathlib import Path
from qkv.train.checkpoint import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", lambda metrics, picture: None)


def regress(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Loss:
    return Loss((model(batch) - 1).square().mean())


def good(step: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(step))


def train(folder: Path, steps: int = 8, batches: object = good, resume: bool = False, **options: object) -> Result:
    torch.manual_seed(0)
    recipe = options.pop("recipe", {"data": {"sha256": "abc"}, "model": {"widths": (6, 2)}})
    model = options.pop("model", None) or nn.Linear(6, 2)
    config = FitConfig(steps=steps, **{"dtype": "fp32", "save_every": 4, "log_every": 2, **options})  # type: ignore[arg-type]
    return fit(model, batches, regress, config, folder, recipe=recipe, resume=resume, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_while_saving(tmp_path: Path, times: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLER, tmp_path, str(times)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_kill_while_dropping_an_old_one(tmp_path: Path) -> None:
    """The old checkpoint is renamed before it is deleted: half of it never counts."""
    train(tmp_path)
    half = tmp_path / "checkpoints" / ".00000002.old"
    half.mkdir()
    (half / "ema.safetensors").write_bytes(b"")
    assert train(tmp_path, 12, resume=True).steps == 12
    assert not half.exists()


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, 4)
    written = checkpoint.save_file

    def full(tensors: dict[str, Tensor], file: Path) -> None:
        written(tensors, file)
        if file.name == "optimizer.safetensors":
            os.truncate(file, 10)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"cannot save step 8 .*No space left.*resume from .*00000004"):
        train(tmp_path, 8, resume=True)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000004"]
    assert train(tmp_path, 8, resume=True).steps == 8


def test_disk_full_under_the_real_writer(tmp_path: Path) -> None:
    """A file size limit stops the library's own write half-way, as a full disk does."""
    script = """
import resource, sys
from pathlib import Path
import torch
from qkv.errors import OutputError
from qkv.train.checkpoint import load, save
run = Path(sys.argv[1])
save(run, 1, {"model": {"w": torch.zeros(100)}}, {}, keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(run, 2, {"model": {"w": torch.zeros(100_000)}}, {}, keep=2)
except OutputError as error:
    print(error)
assert load(run).step == 1
assert len(list((run / "checkpoints").iterdir())) == 1
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot save step 2" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write in"):
        train(tmp_path)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="cannot write in"):
        train(tmp_path / "run")


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    def some_bad(step: int) -> Tensor:
        return good(step) * {3: float("nan"), 5: float("inf")}.get(step, 1.0)

    result = train(tmp_path, 8, some_bad)
    assert result.skipped == 2
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 1, 2, 2]
    assert train(tmp_path, 10, some_bad, resume=True).skipped == 2


def test_a_skipped_step_changes_no_weight(tmp_path: Path) -> None:
    before = train(tmp_path / "a", 4).model.state_dict()
    after = train(tmp_path / "b", 6, lambda step: good(step) * (float("nan") if step >= 4 else 1.0)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("resumed", [False, True])
def test_nan_in_a_row_stops_and_names_the_last_good_checkpoint(tmp_path: Path, resumed: bool) -> None:
    def broken(step: int) -> Tensor:
        return good(step) * (float("nan") if step >= 6 else 1.0)

    if resumed:  # a resume must not get five more tries
        train(tmp_path, 8, broken, save_every=6)
    last = "00000008" if resumed else "00000006"
    with pytest.raises(QkvError, match=rf"5 steps in a row, to 11; lower lr .*{last}"):
        train(tmp_path, 100, broken, resume=resumed, save_every=6)


def test_nan_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(QkvError, match="none is saved yet"):
        train(tmp_path, 100, lambda step: good(step) * float("nan"), save_every=50)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "fit.seed=1 was 0"),
        ({"dtype": "bf16"}, "fit.dtype='bf16' was 'fp32'"),
        ({"optim": OptimConfig(lr=1.0)}, "fit.optim.lr=1.0 was 0.0005"),
        ({"recipe": {"data": {"sha256": "abd"}, "model": {"widths": (6, 2)}}}, "data.sha256='abd' was 'abc'"),
        ({"recipe": {"data": {"sha256": "abc"}}}, "model.widths=None was"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    train(tmp_path)
    with pytest.raises(ConfigError, match=named):
        train(tmp_path, 12, resume=True, **changed)


def test_resume_with_another_cadence_is_fine(tmp_path: Path) -> None:
    train(tmp_path)
    result = train(tmp_path, 12, resume=True, save_every=3, sample_every=5, log_every=1, keep=1, minutes=5.0)
    assert result.steps == 12


def test_resume_on_another_machine_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    state = tmp_path / "checkpoints" / "00000008" / "state.json"
    state.write_text(state.read_text().replace('"threads": ', '"threads": 10'))
    torch.manual_seed(0)
    recipe = {"data": {"sha256": "abc"}, "model": {"widths": (6, 2)}}
    config = FitConfig(steps=9, dtype="fp32", save_every=4, log_every=2)
    fit(nn.Linear(6, 2), good, regress, config, tmp_path, recipe=recipe, resume=True)
    assert "the last bits may differ" in capsys.readouterr().err


@pytest.mark.parametrize("model", [nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 2)), nn.Linear(6, 2, bias=False)])
def test_resume_of_another_model_is_refused(tmp_path: Path, model: nn.Module) -> None:
    train(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        train(tmp_path, 12, resume=True, model=model)


def test_two_trainers_in_one_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {other.pid} since .*; wait, stop it, or"):
            train(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert f"process {other.pid} " in (tmp_path / "lock").read_text()  # stale now
        assert train(tmp_path).steps == 8
