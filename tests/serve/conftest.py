"""A live server on a free port, with small models of every kind, for clients that none of us wrote."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import uvicorn

from qkv import registry
from qkv.serve.app import make_app
from qkv.serve.settings import ServeSettings

DEFAULTS = {"text": "small", "pictures": "tiny", "embeddings": "reader"}


class Live(NamedTuple):
    address: str
    rooms: object


@contextlib.contextmanager
def running(settings: ServeSettings) -> Iterator[Live]:
    app = make_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    rooms = app.app.state.rooms
    deadline = time.monotonic() + 400  # on a machine that does much else
    while not (server.started and app.app.state.ready):
        assert thread.is_alive(), "the server does not come up"
        assert time.monotonic() < deadline, "the server does not get ready"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Live(f"http://127.0.0.1:{port}", rooms)
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def models_home(tmp_path_factory, tiny: Path, tiny_decoder: Path, tiny_bert: Callable[..., Path]) -> Path:
    """A data home with a model of each kind."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    (registry.home() / "kernels").mkdir(parents=True, exist_ok=True)
    (home / "kernels").symlink_to(registry.home() / "kernels")
    sentence = {"modules.json": [], "1_Pooling/config.json": {"pooling_mode_mean_tokens": True}}
    reader = tiny_bert(said=sentence)
    for name, folder in {"small": tiny_decoder, "tiny": tiny, "reader": reader}.items():
        (home / "models" / name).symlink_to(folder)
    return home


@pytest.fixture(scope="session")
def _servers() -> Iterator[tuple[contextlib.ExitStack, dict[str, Live]]]:
    with contextlib.ExitStack() as stack:
        yield stack, {}


@pytest.fixture
def serve(_servers, models_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Live]:
    """Starts a server with these settings, which lives as long as the tests; the same settings are the same one."""
    monkeypatch.setenv("QKV_HOME", str(models_home))
    stack, servers = _servers

    def start(**settings: object) -> Live:
        key = repr(sorted(settings.items()))
        if key not in servers:
            servers[key] = stack.enter_context(running(ServeSettings(models=DEFAULTS, **settings)))
        return servers[key]

    return start


@pytest.fixture
def live(serve: Callable[..., Live]) -> Live:
    return serve()
