"""The benchmarks run: their measures, their workers and, marked slow, a script from its command to its table."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qkv.core import attention

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


@pytest.fixture
def load(monkeypatch):
    """Imports a script of bench/ as it would import its neighbours."""
    monkeypatch.syspath_prepend(str(BENCH))
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)


@pytest.fixture
def measure(load) -> ModuleType:
    return load("measure")


def test_ratios_are_of_the_turns(measure):
    assert measure.ratios([4.0, 6.0, 30.0], [2.0, 2.0, 3.0]) == (3.0, 2.0, 10.0)
    assert str(measure.spread([0.5, 0.25, 1.0])) == "0.5 (0.25 to 1)"


def test_peers_take_turns_and_the_first_round_does_not_count(measure):
    order: list[str] = []

    def peer(name: str):
        return lambda: order.append(name) or float(len(order))

    found = measure.take_turns({"a": peer("a"), "b": peer("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_process_is_timed_and_weighed(measure):
    sizes = [0, 64]
    held = [measure.run_process([sys.executable, "-c", f"x = b'1' * ({size} << 20)"]) for size in sizes]
    assert all(0 < process.seconds < 60 for process in held)
    # The parent's own memory counts into both, which is why the scripts stay small; here it may cover the difference.
    assert held[1].peak >= held[0].peak - 1
    with pytest.raises(subprocess.CalledProcessError):
        measure.run_process([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_scripts_stay_small_enough_to_weigh_others():
    code = "import sys, draw_vs_diffusers, unet_step; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=BENCH, check=False).returncode == 0


def test_the_workers_draw(load, tiny):
    bench = load("draw_vs_diffusers")
    options = {"steps": 2, "guidance": 3.0}
    assert bench.open_ours(str(tiny), "float32", 1, options) == "float32"
    ours = bench.pixels(0)
    bench.open_diffusers(str(tiny), "float32", 1, options)
    theirs = bench.pixels(0)
    assert len(ours) == len(theirs) == 32 * 32 * 3
    assert max(abs(a - b) for a, b in zip(ours, theirs)) <= 2  # so both do the same work
    assert bench.seconds() > 0


def test_the_step_and_its_profile(load):
    bench = load("unet_step")
    plain = attention.attend
    for name in ("qkv", "diffusers"):
        bench.open_unet(name, "float32", 1, (32, 32, 32, 32), 8)
        assert bench.seconds() > 0
    bench.open_unet("qkv", "float32", 1, (32, 32, 32, 32), 8)
    shares = bench.profile()
    assert list(shares) == ["attention", "convolutions", "linears", "rest"]
    assert sum(shares.values()) == pytest.approx(100)
    assert all(0 < share < 100 for share in shares.values())
    assert attention.attend is plain


@pytest.mark.slow
def test_the_whole_comparison(tiny):
    command = [sys.executable, BENCH / "draw_vs_diffusers.py", tiny]
    command += ["--steps", "2", "--threads", "1", "--rounds", "1", "--prompts", "1", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for measured in ("warm", "start", "memory"):
        assert found[measured]["ratio"]["median"] > 0
        assert {len(values) for values in found[measured]["measured"].values()} == {1}
    assert found["psnr"]["median"] > 10
