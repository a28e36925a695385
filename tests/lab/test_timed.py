"""A training for so many minutes: the steps are what the first ones tell."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.train import timed
from qkv.errors import ConfigError


def test_steps_are_measured_and_then_run(monkeypatch, tmp_path):
    clock, asked = iter((0.0, 45.0)), []
    monkeypatch.setattr(timed.time, "monotonic", lambda: next(clock))

    def run(recipe, changes, **places):
        asked.append((changes, places))
        return SimpleNamespace(steps=120)

    monkeypatch.setattr(timed, "run", run)
    timed.run_within(5, Path("a.toml"), ["batch=8"], folder=tmp_path, device="cpu")
    (probe, begun), (changes, went_on) = asked
    assert probe == ["batch=8", f"fit.steps={timed.FAR}", "fit.minutes=0.5"]
    assert "resume" not in begun
    # Of 5 minutes 0.25 are spare; 0.75 went by, 0.25 of them for reading, as it will be once more; 240 steps a minute.
    assert changes == ["batch=8", f"fit.steps={120 + int(3.75 * 240)}"]
    assert went_on["resume"] is True
    assert went_on["folder"] == begun["folder"] == tmp_path


@pytest.mark.parametrize(("minutes", "used", "done"), [(1, 0.9, 10), (5, 0.6, 0)])
def test_a_time_too_short_is_refused(minutes, used, done):
    with pytest.raises(ConfigError, match="is too short"):
        timed.steps_left(minutes, used, done)
