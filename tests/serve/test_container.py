"""The image's entry point: which model, which settings, how it ends; and a training by hyperparameters."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from qkv.errors import ConfigError, InputError, NotFoundError
from qkv.serve import container


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """SageMaker's folders, and a home of its own."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "ml"))
    monkeypatch.setenv("QKV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ml"


def test_settings_of_the_environment(place) -> None:
    plain = container.settings({})
    assert (plain.host, plain.port, plain.hosts, plain.models) == ("0.0.0.0", 8080, ("*",), {})
    env = {"SAGEMAKER_BIND_TO_PORT": "9000", "SM_QKV_TEXTS": "3", "SM_QKV_DTYPE": "float32", "SM_QKV_LOG_JSON": "true"}
    found = container.settings(env)
    assert (found.port, found.texts, found.where.dtype, found.log_json) == (9000, 3, "float32", True)
    with pytest.raises(ConfigError, match="unknown key 'textes'; did you mean texts"):
        container.settings({"SM_QKV_TEXTES": "3"})
    with pytest.raises(ConfigError, match="is no port"):
        container.settings({"SAGEMAKER_BIND_TO_PORT": "x"})


def test_which_model(place, tiny, tiny_decoder) -> None:
    assert container.settings({"HF_MODEL_ID": "emblem"}).models == {"pictures": "emblem"}
    (place / "model").mkdir(parents=True)
    (place / "model" / "inner").symlink_to(tiny_decoder)
    assert container.settings({"HF_MODEL_ID": "emblem"}).models == {"text": "model"}
    (place / "model" / "inner").unlink()
    (place / "model").rmdir()
    (place / "model").symlink_to(tiny)
    for _ in range(2):  # a container may start again
        assert container.settings({"HF_MODEL_ID": "emblem"}).models == {"pictures": "model"}
    assert container.settings({"SM_QKV_MODEL": "emblem"}).models == {"pictures": "emblem"}
    with pytest.raises(NotFoundError):
        container.settings({"SM_QKV_MODEL": "nobody"})


def test_a_container_serves_and_ends_with_0(place, tiny) -> None:
    place.mkdir()
    (place / "model").symlink_to(tiny)
    env = os.environ | {"SAGEMAKER_BIND_TO_PORT": "0"}
    command = [sys.executable, "-m", "qkv.serve.container", "serve"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving at http://0.0.0.0:")
        port = int(line.rpartition(":")[2])
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 400
        while True:
            try:
                assert urllib.request.urlopen(f"{url}/ping", timeout=60).status == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        # The one model is meant by whatever comes, under any name of the host.
        headers = {"Content-Type": "application/x-text", "Host": "anything.example"}
        asked = urllib.request.Request(f"{url}/invocations", b"a dog", headers)
        assert "generated_image" in json.loads(urllib.request.urlopen(asked, timeout=120).read())
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0


def test_a_signal_while_a_model_is_read(place) -> None:
    """The process ends all the same, soon, and with 0."""
    code = (
        "import os, signal, threading, time\n"
        "from qkv.serve import rooms, run\n"
        "from qkv.serve.settings import ServeSettings\n"
        "rooms.Rooms.preload = lambda self: self.beside(lambda: time.sleep(90))\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "run.serve(ServeSettings(port=0), lambda address: threading.Timer(3, kill).start())\n"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=85).returncode == 0
    assert time.monotonic() - began < 85


RECIPE = """
task = "masked"
data = "text/data.txt"
batch = 2
model = { vocab = 40, context = 16, segments = 1, dim = 16, layers = 1, heads = 2, ffn_dim = 32 }
fit = { steps = 9, save_every = 9, sample_every = 9 }
"""


def prepare(place: Path, **hyperparameters: str) -> None:
    for folder in ("input/config", "input/data/recipe", "input/data/text"):
        (place / folder).mkdir(parents=True)
    (place / "input/data/recipe/run.toml").write_text(RECIPE)
    (place / "input/data/text/data.txt").write_text("to be or not to be, that is the question. " * 200)
    (place / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))


def test_a_training(place, capsys) -> None:
    prepare(place, **{"fit.steps": "3", "sagemaker_region": '"us-east-1"'})
    container.train()
    assert "at step 3: loss=" in capsys.readouterr().out
    assert (place / "model" / "config.json").is_file()
    assert not (place / "output" / "failure").exists()


def test_a_training_that_fails_says_why(place, monkeypatch) -> None:
    prepare(place, **{"fit.step": "3"})
    with pytest.raises(ConfigError, match="did you mean fit.steps"):
        container.train()
    assert "did you mean fit.steps" in (place / "output" / "failure").read_text()
    (place / "input/data/recipe/run.toml").unlink()
    with pytest.raises(InputError, match="hold 0 recipes"):
        container.train()
    assert container.main(["sing"]) == 2
    assert container.main(["train"]) == 2
