"""Works that outlive their client, and their server."""

import base64
import io
import time

import httpx
import pytest
from PIL import Image

import qkv
from qkv.serve.settings import ServeSettings
from tests.serve.conftest import DEFAULTS, running

ASKED = {"model": "tiny", "prompt": "a dog", "seed": 3, "num_inference_steps": 6}


def ended(client: httpx.Client, id: str) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job = client.get(f"/v1/jobs/{id}").json()
        if job["ended"]:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


@pytest.fixture
def client(live) -> httpx.Client:
    return httpx.Client(base_url=live.address, timeout=60)


def test_a_picture(client) -> None:
    made = client.post("/v1/jobs", json={"path": "/v1/images/generations", "body": ASKED})
    assert made.status_code == 202
    id = made.json()["id"]
    job = ended(client, id)
    assert (job["state"], job["status"], job["progress"]) == ("done", 200, {"done": 6, "total": 6})
    assert Image.open(io.BytesIO(client.get(f"/v1/jobs/{id}/preview").content)).size == (32, 32)
    found = client.get(f"/v1/jobs/{id}/result").json()["data"][0]["b64_json"]
    assert base64.b64decode(found) == qkv.draw("a dog", model="tiny", seed=3, steps=6)[0].png()
    assert id in [each["id"] for each in client.get("/v1/jobs").json()["data"]]
    assert client.delete(f"/v1/jobs/{id}").json()["state"] == "removed"
    assert client.get(f"/v1/jobs/{id}").status_code == 404


def test_a_failure_is_the_answer(client) -> None:
    wrong = {"path": "/v1/images/generations", "body": ASKED | {"size": "7x7"}}
    id = client.post("/v1/jobs", json=wrong).json()["id"]
    assert ended(client, id)["state"] == "failed"
    result = client.get(f"/v1/jobs/{id}/result")
    assert result.status_code == 400
    assert "not a multiple of 8" in result.json()["error"]["message"]
    for path in ("/v1/jobs", "nothing", "/health"):
        assert client.post("/v1/jobs", json={"path": path, "body": {}}).status_code == 400


def test_cancelling(client, live) -> None:
    long = {"path": "/v1/images/generations", "body": ASKED | {"num_inference_steps": 900}}
    id = client.post("/v1/jobs", json=long).json()["id"]
    assert client.delete(f"/v1/jobs/{id}").json()["state"] == "cancelled"
    deadline = time.monotonic() + 20
    while live.rooms.busy["pictures"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live.rooms.busy["pictures"] == 0
    assert client.get(f"/v1/jobs/{id}").json()["state"] == "cancelled"


def test_what_a_server_leaves_the_next_takes_up(serve, tmp_path) -> None:
    settings = ServeSettings(models=DEFAULTS, folder=tmp_path / "jobs", preload=False)
    long = {"path": "/v1/images/generations", "body": ASKED | {"num_inference_steps": 300}}
    with running(settings) as first:
        id = httpx.post(f"{first.address}/v1/jobs", json=long).json()["id"]
    with running(settings) as second, httpx.Client(base_url=second.address) as client:
        assert ended(client, id)["state"] == "done"
