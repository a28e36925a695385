"""SageMaker's SDK, unchanged, in an environment of its own (`make clients`), against a live server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qkv
from qkv import registry

HERE = Path(__file__).parent
CLIENTS = HERE.parents[1] / ".venv-clients" / "bin" / "python"
pytestmark = pytest.mark.clients


@pytest.fixture
def address(tmp_path, monkeypatch, tiny_decoder) -> Iterator[str]:
    """A server with emblem and a small model for text."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small").symlink_to(tiny_decoder)
    monkeypatch.setenv("QKV_HOME", str(tmp_path))
    command = [sys.executable, "-m", "qkv", "serve", "--port", "0", "--text", "small", "--offline"]
    log = tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream) as server:
        deadline = time.monotonic() + 400
        while "serving at " not in (said := log.read_text()):
            assert server.poll() is None, said
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield said.partition("serving at ")[2].split()[0]
        server.terminate()
        assert server.wait(30) == 0


def test_the_cells_of_notebooks(address, tmp_path) -> None:
    assert CLIENTS.exists(), "run: make clients"
    role = tmp_path / "resource-metadata.json"
    role.write_text(json.dumps({"ExecutionRoleArn": "arn:aws:iam::000000000000:role/notebook"}))
    keys = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "QKV_HOME": str(tmp_path),
        "AWS_ENDPOINT_URL": address,
    } | keys
    command = [str(CLIENTS), "-P", str(HERE / "jumpstart_cells.py"), str(role), "qkv-textgeneration-small"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    came = json.loads(done.stdout.splitlines()[-1])
    assert "qkv-txt2img-emblem" in came["txt2img"]
    assert "qkv-textgeneration-small" in came["texts"]
    assert not set(came["texts"]) & set(came["txt2img"])
    assert (came["pixels"], came["pictures"], came["prompt"]) == ([128, 128, 3], 2, "a dog in a suit")
    assert came["jpeg"] == "/9j/"
    assert came["text alone"] == ["generated_image", "prompt", "warnings"]
    assert came["example"] == ["generated_images", "prompt", "seeds", "warnings"]
    assert "Could not find endpoint" in came["deleted"]
    assert "is not here; emblem answers" in done.stderr + done.stdout
    expected = qkv.complete("the thing", model=registry.home() / "models" / "small", max_tokens=8, code=False).text
    assert came["generated"] == [{"generated_text": expected}]
    lines = [json.loads(line[5:]) for line in came["stream"].split("\n\n") if line]
    assert "".join(line["token"]["text"] for line in lines) == expected
