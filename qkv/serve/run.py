"""A server on a socket, from its start to the end that a signal asks for.

The first signal: nothing new is taken, what runs may end within the grace. The second: at once. Either way the process
ends with 0, which is what a container's supervisor expects of one that it stopped.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from qkv.errors import OutputError
from qkv.serve.app import make_app
from qkv.serve.guard import Guard
from qkv.serve.settings import ServeSettings

HEADER_SECONDS = 20  # an idle connection


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Guard) -> None:
        super().__init__(config)
        self._rooms = app.app.state.rooms  # type: ignore[attr-defined]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours: uvicorn's raises the signal again at the end, and the process would not end with 0."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self._stop) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._rooms.closing = True


def serve(settings: ServeSettings, started: Callable[[str], None] | None = None) -> None:
    """Answers until a signal, and ends the process. `started` is called with the address once the socket listens.

    Raises OutputError.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("qkv.serve").setLevel(logging.INFO)
    app = make_app(settings)
    assert isinstance(app, Guard)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=HEADER_SECONDS,
        timeout_graceful_shutdown=int(settings.grace),
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
        http="h11",
    )
    listening = _listen(settings)
    if started is not None:
        host, port = listening.getsockname()[:2]
        started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server = _Server(config, app)
    server.run(sockets=[listening])
    sys.stderr.flush()
    os._exit(0 if server.started else 1)  # a thread that still reads a model would hold the process up


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise OutputError(
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; name another --port"
        ) from error
    listening.setblocking(False)
    return listening
