"""The door: who may ask, how much, under which name. It stands before every route, in plain ASGI.

    request ─ id ─ host, origin ─ key ─ size and time ─ the app

A page on another site can neither read nor cause anything here: its Origin is refused, and a name that it made point to
this machine (DNS rebinding) is not one that we are called by.
"""

import asyncio
import base64
import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qkv.serve.answers import Failure, failure
from qkv.serve.journal import Journal, Record
from qkv.serve.settings import ServeSettings

OPEN = ("/health", "/ready", "/ping")  # without a key
LINGER = 2.0  # seconds
LOCAL = ("localhost",)
Shown = Callable[[str, Failure], Response]  # path, failure: how the dialect of that path says it


class _RefusedError(Exception):
    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Guard:
    """Lets a request through to `app`, or answers it with what `shown` makes of the refusal."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, journal: Journal, shown: Shown, dialect: Callable[[str], str]
    ) -> None:
        self.app, self.settings, self.journal = app, settings, journal
        self._shown, self._dialect = shown, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] != "websocket":  # there are none
                await self.app(scope, receive, send)
            return
        passage = _Passage(self, scope, receive, send)
        record = passage.record
        record.begin()
        try:
            check(Headers(scope=scope), scope, self.settings)
            if self._dialect(scope["path"]) != "sagemaker":  # there the type says what the body is
                _read_as_json(scope)
            await self.app(scope, passage.receive, passage.send)
            if passage.refused is not None:
                raise _RefusedError(passage.refused)
            outcome = str(passage.status or "cancelled")
        except _RefusedError as refused:
            outcome = str(await self._answer(passage, refused.failure))
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = str(await self._answer(passage, failure(error)))
        finally:
            if passage.gone and not passage.whole:
                outcome = "cancelled"
            self.journal.end(record, self._dialect(scope["path"]), outcome)

    async def _answer(self, passage: "_Passage", failure: Failure) -> int:
        if not passage.status and not passage.gone:
            passage.refused = None
            await passage.linger()
            response = self._shown(passage.record.path, failure)
            response.headers["Connection"] = "close"  # the rest of the body is not read
            await response(passage.scope, passage.receive, passage.send)
        return failure.status


class _Passage:
    """One request on its way through."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self._settings = guard.settings
        self.record = Record(f"req_{secrets.token_hex(12)}", scope["method"], scope["path"])
        self.status = self._read = 0
        self.whole = self.gone = self._body_read = False
        self.refused: Failure | None = None  # the app heard of it and has no say any more

    async def receive(self) -> Message:
        """A part of the body, if there are not too many bytes of it, in time."""
        if self._body_read:  # what comes now is that the client hangs up
            message = await self._receive()
        else:
            try:
                message = await asyncio.wait_for(self._receive(), self._settings.read_seconds)
            except TimeoutError:
                seconds = self._settings.read_seconds
                raise self._refuse(Failure(408, "timeout", f"nothing of the body came for {seconds:g} s")) from None
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self._body_read = not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._settings.max_body:
            raise self._refuse(_too_large(self._settings))
        return message

    async def linger(self) -> None:
        """Reads past what is left of the body for a moment: who still writes would never see the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._body_read and not self.gone:
                    message = await self._receive()
                    self.gone = message["type"] == "http.disconnect"
                    self._body_read = not message.get("more_body", False)

    def _refuse(self, failure: Failure) -> _RefusedError:
        self.refused = failure
        return _RefusedError(failure)

    async def send(self, message: Message) -> None:
        if self.refused is not None and not self.status:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.record.first = time.perf_counter() - self.record.began
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self.record.id.encode())]}
        elif not message.get("more_body", False):
            self.whole = True
        await self._send(message)


def _read_as_json(scope: Scope) -> None:
    """A body without a type, or with the one that curl gives it, is JSON: clients that say nothing mean that."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", "application/x-www-form-urlencoded", "text/plain"):
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]


def check(headers: Headers, scope: Scope, settings: ServeSettings) -> None:
    """Refuses who may not ask, before anything of the body is read."""
    host = headers.get("host", "")
    if not _is_ours(host, settings):
        raise _RefusedError(Failure(403, "host", "this server does not go by the name that the request calls it"))
    origin = headers.get("origin")
    ours = origin is None or origin.partition("://")[2] == host or origin in settings.origins
    if not ours and "*" not in settings.origins:
        raise _RefusedError(Failure(403, "origin", "pages of other sites may not ask this server"))
    if scope["path"] not in OPEN and not settings.admits(key(headers)):
        raise _RefusedError(Failure(401, "key", "the key is missing or wrong; give one as Authorization: Bearer KEY"))
    if headers.get("content-encoding", "identity") != "identity":
        raise _RefusedError(Failure(415, "encoding", "compressed bodies are not read; send it as it is"))
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > settings.max_body:
        raise _RefusedError(_too_large(settings))


def _too_large(settings: ServeSettings) -> Failure:
    return Failure(413, "too_large", f"the body has more than {settings.max_body >> 20} MiB; send less")


def _is_ours(host: str, settings: ServeSettings) -> bool:
    """Whether this server may be called so: by an address, by localhost, or by a name that it was given."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d+)?", host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    if "*" in settings.hosts or name in (*LOCAL, *settings.hosts, settings.host):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def key(headers: Headers) -> str | None:
    """The key that a client shows, in any of the ways that clients have."""
    kind, _, value = headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        return _password(value)
    if kind.startswith("AWS4-HMAC"):
        found = re.search(r"Credential=([^/,\s]+)/", value)
        return found[1] if found else None
    return headers.get("x-api-key")


def _password(value: str) -> str | None:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return None
