"""The Hugging Face hub, played by a small server on this machine: HF_ENDPOINT says where it is."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from qkv.errors import CheckpointError
from qkv.fetch.hub import Id, parse, wanted

COMMIT = "c" * 40
WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "model.fp16.safetensors": b"a second copy",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another framework",
    "tokenizer.json": b"{}",
}


class Hub(ThreadingHTTPServer):
    """Two models, `good/model` and the pickle-only `old/model`; everything else is not there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(FILES)
        self.asked: list[str] = []
        self.cuts = 0  # how many more answers break off in the middle
        self.stall = threading.Event()  # if set, answers stop in the middle until it is cleared
        self.stalled = threading.Event()
        self.claimed: str | None = None  # a SHA-256 of the weights that is not theirs
        self.status = 404  # of the models that are not there
        self.moved: str | None = None  # where the branch points to after it was asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, repo: str) -> dict[str, bytes]:
        if repo == "old/model":
            return {name: data for name, data in self.files.items() if not name.endswith(".safetensors")}
        return self.files if repo == "good/model" else {}


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/revision/(\w+)", path):
            self.info(match[1], self.server.named(match[1]), match[2])
        elif match := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            self.file(self.server.named(match[1]).get(match[3]), match[2])
        else:
            self.refuse("RepoNotFound")

    def info(self, repo: str, files: dict[str, bytes], revision: str) -> None:
        if not files:
            return self.refuse("GatedRepo" if self.server.status == 403 else "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse("RevisionNotFound")
        siblings = []
        for name, data in files.items():
            row = {"rfilename": name, "size": len(data), "blobId": "b"}
            if name.endswith(".safetensors"):
                sha256 = self.server.claimed or hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 100}
            siblings.append(row)
        told = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"], "private": False}
        self.send(json.dumps(told).encode())

    def file(self, data: bytes | None, revision: str) -> None:
        if data is None:
            return self.refuse("EntryNotFound")
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        cut = self.command == "GET" and len(data) > 1000 and self.server.cuts > 0
        etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if revision == "main" and self.server.moved:
            etag["X-Repo-Commit"] = self.server.moved
        if match:
            etag["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(data[start:], 206 if match else 200, etag, cut=cut)

    def refuse(self, code: str) -> None:
        self.send(b"", self.server.status, {"X-Error-Code": code} if self.server.status < 500 else {})

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.stall.is_set() and len(body) > 1000:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.close_connection = True
            while self.server.stall.is_set():
                time.sleep(0.01)
            return
        if cut:
            self.server.cuts -= 1
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.stall.clear()
    server.shutdown()
    server.server_close()
    thread.join()


class Ran(NamedTuple):
    out: str
    err: str


PROGRAM = """
import sys
from qkv.errors import QkvError
from qkv.fetch.pull import find, pull
try:
    print({"find": find, "pull": pull}[sys.argv[1]](sys.argv[2], offline="offline" in sys.argv))
except QkvError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def start(hub: Hub, tmp_path: Path):
    """Starts find or pull in a process of its own: the hub's client reads its environment once."""

    def run(verb: str, model: str, *options: str, **changes: str) -> subprocess.Popen[str]:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "QKV_HOME": str(tmp_path / "home")}
        limits = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "20", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, verb, model, *options],
            env={**os.environ, **own, **limits, **changes},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture
def ask(start):
    def run(*arguments: str, **changes: str) -> Ran:
        running = start(*arguments, **changes)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 0, err
        return Ran(out.rstrip("\n"), err)

    return run


def test_find_fetches_once(ask, hub: Hub, tmp_path: Path) -> None:
    first = ask("find", "good/model")
    folder = Path(first.out)
    assert folder == tmp_path / "hf" / "hub" / "models--good--model" / "snapshots" / COMMIT
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    size = sum(len(FILES[name]) for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json"))
    line = f"qkv: fetching good/model ({size / 1e6:.1f} MB, mit) from the Hugging Face hub into {tmp_path}/hf/hub\n"
    assert line in first.err
    fetched = [line.split()[1].rsplit("/")[-1] for line in hub.asked if line.startswith("GET") and "resolve" in line]
    assert fetched[-1] == "config.json"  # without which the folder is no model
    hub.asked.clear()
    assert ask("find", "good/model", "offline") == Ran(str(folder), "")
    assert ask("find", "good/model") == Ran(str(folder), "")
    assert ask("find", f"good/model@{COMMIT}") == Ran(str(folder), "")
    assert hub.asked == []
    assert ask("pull", "good/model") == Ran(str(folder), "")  # asks for what is new, fetches nothing
    assert not any("GET" in line and "resolve" in line for line in hub.asked)
    assert not (tmp_path / "home").exists()


def test_a_broken_connection_is_taken_up_again(ask, hub: Hub) -> None:
    piece = 10 << 20  # what the client reads at once, and loses when it breaks off inside
    hub.files["model.safetensors"] = data = os.urandom(piece * 5 // 2)
    hub.cuts = 1
    folder = Path(ask("pull", "good/model").out)
    assert (folder / "model.safetensors").read_bytes() == data
    assert [line.split()[-1] for line in hub.asked if "bytes=" in line] == [f"bytes={piece}-"]


def test_a_damaged_download_leaves_nothing_that_loads(ask, hub: Hub) -> None:
    hub.claimed = "d" * 64
    ran = ask("pull", "good/model")
    assert re.fullmatch(r"CheckpointError good/model: model\.safetensors came damaged[^\n]+", ran.out)
    hub.claimed = None
    hub.asked.clear()
    assert "offline nothing is fetched" in ask("find", "good/model", "offline").out
    assert (Path(ask("find", "good/model").out) / "model.safetensors").read_bytes() == WEIGHTS
    assert not any(line.startswith("GET") and "README.md" in line for line in hub.asked)  # that one was here


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_was_stopped_leaves_nothing_that_loads(start, ask, hub: Hub, end: signal.Signals) -> None:
    hub.stall.set()
    running = start("find", "good/model")
    assert hub.stalled.wait(30)
    running.send_signal(end)
    began = time.monotonic()
    running.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert running.returncode != 0
    assert "offline nothing is fetched" in ask("find", "good/model", "offline").out
    hub.stall.clear()
    assert (Path(ask("find", "good/model").out) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_branch_that_moves_under_a_download(ask, hub: Hub) -> None:
    hub.moved = "e" * 40
    assert "was changed on the hub in the meantime" in ask("find", "good/model").out
    assert "offline nothing is fetched" in ask("find", "good/model", "offline").out


def test_one_clear_line_each(ask, hub: Hub) -> None:
    def said(model: str, **changes: str) -> str:
        ran = ask("find", model, **changes)
        assert "\n" not in ran.out
        assert len(ran.out) < 400
        return ran.out

    assert said("no/model").startswith("NotFoundError no/model is not on the hub, or private")
    assert said("good/model@v2") == "NotFoundError good/model has no revision 'v2' on the hub"
    assert said("old/model").startswith("CheckpointError old/model has its weights as pickles only (pytorch_model.bin)")
    assert "no file small.gguf; its GGUF files: none" in said("good/model/small.gguf")
    hub.status = 403
    assert said("gated/model").startswith("NotFoundError gated/model is gated: accept its terms")
    hub.status = 401
    assert said("no/model").startswith("NotFoundError no/model is not on the hub, or private")
    hub.status = 500
    assert "it answered 500" in said("no/model")
    closed = "http://127.0.0.1:9"
    assert re.search(
        r"cannot fetch good/model from the hub: \w+: .*check the network", said("good/model", HF_ENDPOINT=closed)
    )
    offline = said("good/model", HF_HUB_OFFLINE="1")
    assert offline.endswith("run once: qkv pull good/model")


def test_one_file_of_several(ask, hub: Hub) -> None:
    hub.files = {"a.Q4_0.gguf": b"GGUF" + WEIGHTS, "a.Q8_0.gguf": b"GGUF", "README.md": b""}
    told = ask("find", "good/model").out
    assert "of which one must be named, as good/model/FILE: a.Q4_0.gguf, a.Q8_0.gguf" in told
    ran = ask("find", "good/model/a.Q4_0.gguf")
    assert Path(ran.out).name == "a.Q4_0.gguf"
    assert "into" in ran.err
    assert ask("find", "good/model/a.Q4_0.gguf", "offline") == Ran(ran.out, "")


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("gpt2/x", Id("gpt2/x")),
        ("a/b@v1.0", Id("a/b", "v1.0")),
        ("a/b/c-Q4_0.gguf", Id("a/b", "main", "c-Q4_0.gguf")),
        ("a/b@v1/c.gguf", Id("a/b", "v1", "c.gguf")),
    ],
)
def test_ids(text: str, id: Id) -> None:
    assert parse(text) == id
    assert str(id) == text


@pytest.mark.parametrize(
    "text",
    [
        "gpt2",
        "/etc",
        "../x",
        "a/../b",
        "a/b/c",
        "./x",
        "a/b\n",
        "a/b\0",
        "a/b@",
        "a//b",
        "~/b",
        "x" * 10_000,
        "a/" + "x" * 10_000,
    ],
)
def test_what_is_no_id(text: str) -> None:
    assert parse(text) is None


def test_wanted() -> None:
    def chosen(*names: str) -> list[str]:
        return wanted("m", names)

    shards = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert chosen("config.json", *shards, index, "consolidated.safetensors") == [*shards, index, "config.json"]
    assert chosen("config.json", "model.fp16.safetensors") == ["model.fp16.safetensors", "config.json"]
    pipeline = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    extra = ["sd.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"]
    assert chosen(*pipeline, *extra, "tokenizer/merges.txt", "a/b/c.json") == [
        "tokenizer/merges.txt",
        *pipeline[1:],
        "model_index.json",
    ]
    for name in ("../a.json", "/a.json", "../model.safetensors", "a/../../b.json"):  # a hostile hub's
        assert chosen("config.json", "model.safetensors", name) == ["model.safetensors", "config.json"]
    for names, reason in {
        ("config.json", shards[0], index): "not complete: of model there are 1 shards of 2",
        ("config.json", "pytorch_model.bin"): "pickles only",
        ("model.safetensors",): "has no config.json",
        ("config.json", "flax_model.msgpack"): "not a model that we read",
        (): "not a model that we read",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            chosen(*names)
