"""AWS's runtime API: what `boto3.client("sagemaker-runtime", endpoint_url=...)` calls. Payloads are sagemaker.py's.

A call is answered whole, as a stream of frames (`application/vnd.amazon.eventstream`: u32 lengths of all and of the
headers, their CRC32; headers; payload; CRC32 of all before), or later, as an object that S3's client reads from here.
Which model: what the endpoint of that name was created with, else the model of that name, else the default of what
the payload asks, with a warning. Errors go by the header `x-amzn-ErrorType`.
"""

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from qkv.errors import BusyError, quoted
from qkv.serve import sagemaker
from qkv.serve.answers import Failure, Json, Plain, failure, to_json
from qkv.serve.journal import request_id
from qkv.serve.jumpstart import ASYNC_BUCKET, Estate
from qkv.serve.sagemaker import Payload, Target

NAME, PREFIXES = "sagemaker", ("/endpoints/",)
router = APIRouter(tags=["SageMaker"])
MAX_PART = 1 << 20  # bytes of a frame's payload; botocore takes 24 MiB
MAX_LATER = 64  # invocations at once whose answers are kept for later
_TYPES = {401: "AccessDeniedException", 403: "AccessDeniedException", 429: "ThrottlingException"}
_TYPES |= {503: "ServiceUnavailable"}
_OURS = (408, 413, 415)  # statuses of the door's, which no model said
_ECHOED = ("x-amzn-sagemaker-custom-attributes", "x-amzn-sagemaker-inference-id")


def error(failure: Failure) -> Json:
    """What the model refuses is a ModelError, which clients do not try again; the rest is AWS's own."""
    headers = failure.headers | {"x-amzn-RequestId": request_id()}
    kind = _TYPES.get(failure.status) or ("ValidationError" if failure.status in _OURS else "ModelError")
    headers["x-amzn-ErrorType"] = kind
    if kind != "ModelError":
        return Json({"Message": failure.message}, failure.status, headers)
    told = {"Message": failure.message, "OriginalStatusCode": failure.status, "OriginalMessage": failure.message}
    return Json(told | {"LogStreamArn": ""}, 424, headers)


@router.post("/endpoints/{name}/invocations")
async def invocations(name: str, request: Request) -> Response:
    headers = request.headers
    payload = sagemaker.read(await request.body(), headers.get("content-type", ""), headers.get("accept", ""))
    response = await sagemaker.invoke(request, payload, _target(name, request))
    response.headers.update(_handed(request))
    return response


@router.post("/endpoints/{name}/invocations-response-stream")
async def stream(name: str, request: Request) -> Response:
    headers = request.headers
    accept = headers.get("x-amzn-sagemaker-accept", "")
    payload = sagemaker.read(await request.body(), headers.get("content-type", ""), accept)
    response = await sagemaker.invoke(request, payload, _target(name, request))
    inner = {"X-Amzn-SageMaker-Content-Type": response.headers["content-type"]} | _handed(request)
    if "x-qkv-warnings" in response.headers:
        inner["x-qkv-warnings"] = response.headers["x-qkv-warnings"]
    return StreamingResponse(_frames(response), media_type="application/vnd.amazon.eventstream", headers=inner)


@router.post("/endpoints/{name}/async-invocations")
async def later(name: str, request: Request) -> Json:
    headers, estate = request.headers, _estate(request)
    kind, accept = (headers.get(f"x-amzn-sagemaker-{name}", "") for name in ("content-type", "accept"))
    body = await request.body()
    if location := headers.get("x-amzn-sagemaker-inputlocation"):
        body = estate.objects.at(location).data
    payload = sagemaker.read(body, kind or headers.get("content-type", ""), accept)
    if len(estate.running) >= MAX_LATER:
        raise BusyError(f"{len(estate.running)} invocations wait for later already; try again later")
    id = headers.get("x-amzn-sagemaker-inference-id") or request_id()
    where = f"s3://{ASYNC_BUCKET}/{request_id()}"
    task = asyncio.create_task(_compute(request, payload, _target(name, request), where, estate))
    estate.running.add(task)
    task.add_done_callback(estate.running.discard)
    told = {"X-Amzn-SageMaker-OutputLocation": f"{where}.out", "X-Amzn-SageMaker-FailureLocation": f"{where}.error"}
    return Json({"InferenceId": id}, 202, told | _handed(request))


async def _compute(request: Request, payload: Payload, whom: Target, where: str, estate: Estate) -> None:
    """Computes what nobody waits for, and keeps the answer."""

    async def silence() -> Plain:
        await asyncio.Event().wait()  # nobody hangs up
        return {}

    try:
        response = await sagemaker.invoke(Request(request.scope, silence), payload, whom)
        parts = [part async for part in _parts(response)]
        estate.objects.put(f"{where}.out", b"".join(parts), response.headers["content-type"])
    except Exception as broke:
        estate.objects.put(f"{where}.error", to_json({"Message": failure(broke).message}), "application/json")


def _estate(request: Request) -> Estate:
    return request.app.state.estate


def _target(name: str, request: Request) -> Target:
    """Whom an endpoint of that name stands for."""
    rooms, named = request.app.state.rooms, request.headers.get(sagemaker.TARGET_MODEL)
    accepts = "accept_eula=true" in request.headers.get("x-amzn-sagemaker-custom-attributes", "").lower()
    if named is not None:
        return sagemaker.target(rooms, named)._replace(llama=accepts)
    made = _estate(request).endpoints.get(name)
    found = made.target if made is not None else _estate(request).meant(name)
    if found is None:
        found = sagemaker.target(rooms, None)
        answers = found.model or "the default model"
        found = found._replace(warnings=(f"endpoint: nobody made one named {quoted(name)}; {answers} answers",))
    return found._replace(llama=found.llama or accepts)


def _handed(request: Request) -> dict[str, str]:
    """The headers that AWS adds to an answer or hands through."""
    same = {name: request.headers[name] for name in _ECHOED if name in request.headers}
    return same | {"x-Amzn-Invoked-Production-Variant": "AllTraffic", "x-amzn-RequestId": request_id()}


async def _parts(response: Response) -> AsyncIterator[bytes]:
    """The body of a response, of a stream as it comes."""
    if isinstance(response, StreamingResponse):
        async for part in response.body_iterator:
            yield part if isinstance(part, bytes) else str(part).encode()
        return
    for at in range(0, len(response.body), MAX_PART):
        yield bytes(response.body[at : at + MAX_PART])


async def _frames(response: Response) -> AsyncIterator[bytes]:
    """A body as frames. A stream's last word of an error becomes an exception, which the client raises."""
    async for part in _parts(response):
        if part.startswith(b'data: {"error":'):
            said: Any = json.loads(part[6:])["error"]
            message = said if isinstance(said, str) else said["message"]
            kind = {":message-type": "exception", ":exception-type": "ModelStreamError"}
            yield frame(kind | {":content-type": "application/json"}, to_json({"Message": message}))
            return
        yield frame(_PART, part)


_PART = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of an event stream; every header is a text (type 7)."""
    packed = b""
    for name, value in headers.items():
        text = value.encode()
        packed += struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(text)) + text
    start = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    start += struct.pack("!I", zlib.crc32(start))
    message = start + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))
