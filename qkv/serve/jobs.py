"""Works that outlive their client: any request as a job, with progress, a preview, a result that waits to be fetched.

    POST /v1/jobs {"path": "/v1/images/generations", "body": {...}} ─ the same route, answered into a file

A job is the very request that it names, put to this application from within, so that every route can be one and none is
written twice. What is waiting or under way when the server ends begins anew with the next one; results go when they are
old or take too much room.
"""

import asyncio
import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message

from qkv.errors import BusyError, InputError, NotFoundError, quoted
from qkv.serve import journal
from qkv.serve.answers import Json, Plain, encoded, to_json
from qkv.serve.journal import log

router = APIRouter(tags=["Jobs"])
AGE, ROOM = 24 * 3600, 1 << 30  # seconds and bytes that results are kept for, and in
AT_ONCE, WAITING = 8, 1000  # jobs
NOT_JOBS = ("/v1/jobs", "/health", "/ready", "/ping", "/metrics")

_TABLE = """
create table if not exists jobs (
    id text primary key, path text, body text, state text, created real, ended real, status integer, kind text,
    done integer default 0, total integer default 0, bytes integer default 0
)"""


class JobBody(BaseModel):
    """A request of this server: its path and its JSON body."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"path": "/v1/images/generations", "body": {"prompt": "a dog in a suit"}}}
    )

    path: str
    body: dict[str, Any]


class Jobs:
    """The jobs of a server, in a folder. Everything here is for one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._app: ASGIApp | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._table: sqlite3.Connection | None = None

    @property
    def table(self) -> sqlite3.Connection:
        """The list of jobs, made when the first one comes."""
        if self._table is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._table = sqlite3.connect(self._folder / "jobs.sqlite", isolation_level=None)
            self._table.row_factory = sqlite3.Row
            self._table.execute("pragma journal_mode=wal")
            self._table.execute(_TABLE)
        return self._table

    def begin(self, app: ASGIApp) -> None:
        """Takes up again what the last server left."""
        self._app = app
        if (self._folder / "jobs.sqlite").exists():
            for row in self.table.execute("select id from jobs where state in ('waiting', 'running')").fetchall():
                self._start(row["id"])

    async def end(self) -> None:
        """Leaves what is under way for the next server."""
        running = list(self._running.values())
        for task in running:
            task.cancel("left")
        await asyncio.gather(*running, return_exceptions=True)
        if self._table is not None:
            self._table.close()

    def add(self, path: str, body: Mapping[str, Any]) -> Plain:
        """A new job. Raises InputError, BusyError."""
        if not path.startswith("/") or path.startswith(NOT_JOBS):
            raise InputError(f"path={quoted(path)} is no request that can be a job; /v1/images/generations is one")
        if len(self._running) >= WAITING:
            raise BusyError(f"{len(self._running)} jobs wait already, {WAITING} may; try again later")
        self._forget()
        id = f"job_{secrets.token_hex(12)}"
        values = (id, path, json.dumps(body), "waiting", time.time())
        self.table.execute("insert into jobs (id, path, body, state, created) values (?, ?, ?, ?, ?)", values)
        self._start(id)
        return self.get(id)

    def get(self, id: str) -> Plain:
        """What is known of a job. NotFoundError."""
        return _shown(self._row(id))

    def all(self) -> list[Plain]:
        return [_shown(row) for row in self.table.execute("select * from jobs order by created desc limit 1000")]

    def file(self, id: str, kind: str) -> tuple[bytes, sqlite3.Row]:
        """The preview or the result of a job. NotFoundError."""
        row = self._row(id)
        try:
            return (self._folder / f"{row['id']}.{kind}").read_bytes(), row
        except OSError:
            raise NotFoundError(f"job {id} has no {kind} yet; it is {row['state']}") from None

    def remove(self, id: str) -> Plain:
        """Cancels a job, or forgets one that is done. NotFoundError."""
        row = self._row(id)
        if id in self._running:
            self._running[id].cancel()
            self._set(id, state="cancelled", ended=time.time())
            return self.get(id)
        self._delete(row["id"])
        return _shown(row) | {"state": "removed"}

    def _row(self, id: str) -> sqlite3.Row:
        found: sqlite3.Row | None = self.table.execute("select * from jobs where id = ?", (id,)).fetchone()
        if found is None:
            raise NotFoundError(f"there is no job {quoted(id)}")
        return found

    def _set(self, id: str, **values: object) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self.table.execute(f"update jobs set {names} where id = ?", (*values.values(), id))

    def _delete(self, id: str) -> None:
        self.table.execute("delete from jobs where id = ?", (id,))
        for kind in ("preview", "result"):
            (self._folder / f"{id}.{kind}").unlink(missing_ok=True)

    def _forget(self) -> None:
        """Lets results go that are too old, and the oldest while all take too much."""
        rows = self.table.execute("select id, ended, bytes from jobs where ended is not null order by ended").fetchall()
        taken = sum(row["bytes"] for row in rows)
        for row in rows:
            if time.time() - row["ended"] > AGE or taken > ROOM:
                self._delete(row["id"])
                taken -= row["bytes"]

    def _start(self, id: str) -> None:
        task = asyncio.create_task(self._run(id))
        self._running[id] = task
        task.add_done_callback(lambda _: self._running.pop(id, None))

    async def _run(self, id: str) -> None:
        async with self._turn:
            row = self._row(id)
            self._set(id, state="running", done=0)
            try:
                answer = await self._ask(row)
            except asyncio.CancelledError as cancelled:
                if "left" in cancelled.args:
                    self._set(id, state="waiting")
                raise
            except Exception as error:
                log.error("job %s broke", id, exc_info=error)
                answer = _Answer()
            (self._folder / f"{id}.result").write_bytes(answer.body)
            state = "done" if answer.status < 400 else "failed"
            values = {"status": answer.status, "kind": answer.kind, "bytes": len(answer.body), "ended": time.time()}
            self._set(id, state=state, **values)

    async def _ask(self, row: sqlite3.Row) -> "_Answer":
        """Puts the request to the application."""
        answer, body = _Answer(), json.loads(row["body"])

        def watched(done: int, total: int, preview: Image.Image | None) -> None:
            self._set(row["id"], done=done, total=total)
            if preview is not None:
                (self._folder / f"{row['id']}.preview").write_bytes(encoded(preview))

        journal.watch(watched)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": row["path"],
            "raw_path": row["path"].encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": None,
            "server": ("localhost", 0),
            "state": {},
        }
        asked = [{"type": "http.request", "body": to_json(body), "more_body": False}]

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await asyncio.Event().wait()  # nobody hangs up
            raise AssertionError

        assert self._app is not None
        await self._app(scope, receive, answer.send)
        return answer


class _Answer:
    """What the application said."""

    def __init__(self) -> None:
        self.status, self.kind, self.body = 500, "application/json", b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [value.decode() for name, value in message["headers"] if name.lower() == b"content-type"]
            self.kind = kinds[0] if kinds else "application/octet-stream"
        else:
            self.body += message.get("body", b"")


def _shown(row: sqlite3.Row) -> Plain:
    shown = {name: row[name] for name in ("id", "path", "state", "created", "ended", "status")}
    return shown | {"progress": {"done": row["done"], "total": row["total"]}}


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.post("/v1/jobs")
async def add(asked: JobBody, request: Request) -> Json:
    return Json(_jobs(request).add(asked.path, asked.body), 202)


@router.get("/v1/jobs")
async def listing(request: Request) -> Json:
    return Json({"data": _jobs(request).all()})


@router.get("/v1/jobs/{id}")
async def get(id: str, request: Request) -> Json:
    return Json(_jobs(request).get(id))


@router.get("/v1/jobs/{id}/preview")
async def preview(id: str, request: Request) -> Response:
    """The picture as it is now."""
    data, _ = _jobs(request).file(id, "preview")
    return Response(data, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})


@router.get("/v1/jobs/{id}/result")
async def result(id: str, request: Request) -> Response:
    """The answer that the request would have got, with its status."""
    data, row = _jobs(request).file(id, "result")
    return Response(data, row["status"], media_type=row["kind"], headers={"X-Content-Type-Options": "nosniff"})


@router.delete("/v1/jobs/{id}")
async def remove(id: str, request: Request) -> Json:
    return Json(_jobs(request).remove(id))
