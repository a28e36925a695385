"""JumpStart's control plane, as far as its SDK asks: the list of models, and endpoints that are made and deleted.

With AWS_ENDPOINT_URL=http://127.0.0.1:PORT the lines of the public notebooks run unchanged:

    JumpStartModel(model_id="qkv-txt2img-emblem").deploy().predict({"prompt": "a dog in a suit"})

The SDK reads manifest and specs as S3's objects and makes a model, a configuration and an endpoint (`POST /` with
x-amz-target). An endpoint is a name for one of the models that are here; making one loads nothing. All of it is in
memory, bounded, and gone when the server ends. Signatures are not checked: the guard has seen the key. A role, which no
cell of a notebook names since its machine has one, the SDK asks of AWS itself, elsewhere: there say `role="..."`.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from xml.sax.saxutils import escape

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qkv.errors import InputError, NotFoundError, QkvError, quoted, shorten
from qkv.registry import Model
from qkv.serve.answers import Failure, Json, Plain, failure, to_json
from qkv.serve.journal import request_id
from qkv.serve.rooms import Names
from qkv.serve.sagemaker import OBJECTS, TEXTS, Target

NAME, PREFIXES = "sagemaker", ("/jumpstart-cache-", "/sagemaker-", "/qkv-")
router = APIRouter(tags=["SageMaker"])
ASYNC_BUCKET = "qkv-async"
MAX_SAID = 64 << 10  # bytes of a control call
MAX_MADE = 1000  # of each: models, configurations, endpoints
MAX_OBJECTS, MAX_OBJECT_BYTES = 256, 256 << 20  # that are kept; the oldest goes first

TASKS = {"pictures": "txt2img", "text": "textgeneration", "embeddings": "textembedding", "translation": "translation"}
WORDS = {  # to search for
    "pictures": "Text to Image",
    "text": "Text Generation",
    "embeddings": "Text Embedding",
    "translation": "Machine Translation",
}
# Ids in the public notebooks, and what they are for.
NOTEBOOKS = {
    "model-txt2img-stabilityai-stable-diffusion-v2-1-base": "pictures",
    "model-txt2img-stabilityai-stable-diffusion-v2": "pictures",
    "model-inpainting-stabilityai-stable-diffusion-2-inpainting-fp16": "pictures",
    "huggingface-text2text-flan-t5-xl": "text",
    "huggingface-text2text-flan-t5-xxl": "text",
    "huggingface-textgeneration1-gpt-j-6b": "text",
    "huggingface-llm-falcon-7b-instruct-bf16": "text",
    "huggingface-llm-mistral-7b-instruct": "text",
    "meta-textgeneration-llama-2-7b": "text",
    "meta-textgeneration-llama-2-7b-f": "text",
    "meta-textgeneration-llama-codellama-7b": "text",
    "huggingface-sentencesimilarity-all-MiniLM-L6-v2": "embeddings",
}
VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0")  # a notebook may ask for "1.*" or the like
_FAMILIES = "c5 c6i c7i m5 m6i m7i r5 t2 t3 g4dn g5 g6 g6e p2 p3 p3dn p4d p4de p5 inf1 inf2 local local_gpu"
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_ACTION = re.compile(r"SageMaker\.(Create|Describe|Delete|List)(Model|EndpointConfig|Endpoint)(s?)")
_ARNS = {"Model": "model", "EndpointConfig": "endpoint-config", "Endpoint": "endpoint"}
_SAID = {"Model": "model", "EndpointConfig": "endpoint configuration", "Endpoint": "endpoint"}


class Object(NamedTuple):
    """What S3 has under a key."""

    data: bytes
    kind: str


class Objects:
    """The few objects that clients have put here, or wait for."""

    def __init__(self) -> None:
        self._kept: dict[str, Object] = {}

    def at(self, uri: str) -> Object:
        """The object of a URI. Raises NotFoundError."""
        if uri not in self._kept:
            raise NotFoundError(f"there is no object {quoted(uri)} here; put it, or send the body itself")
        return self._kept[uri]

    def put(self, uri: str, data: bytes, kind: str) -> None:
        self._kept.pop(uri, None)
        self._kept[uri] = Object(data, kind)
        while len(self._kept) > MAX_OBJECTS or sum(len(each.data) for each in self._kept.values()) > MAX_OBJECT_BYTES:
            del self._kept[next(iter(self._kept))]


class Made(NamedTuple):
    """What a client has made: what it said, when, and whom it is for."""

    said: Plain
    at: float
    target: Target = Target()


class Estate:
    """What clients have made here."""

    def __init__(self, names: Names) -> None:
        self._names, self.objects = names, Objects()
        self._made: dict[str, dict[str, Made]] = {kind: {} for kind in _ARNS}
        self.running: set[asyncio.Task[None]] = set()  # invocations that nobody waits for

    @property
    def endpoints(self) -> Mapping[str, Made]:
        return self._made["Endpoint"]

    def meant(self, name: str) -> Target | None:
        """Whom a client means by a model's name or JumpStart's id; None for a name that is not known."""
        for model in self._names.all().values():
            if name in (model.name, own_id(model)):
                return Target(model.name)
        if name in NOTEBOOKS:
            ours = self._names.find(None, NOTEBOOKS[name])
            return Target(ours, (f"alias: {name} is not here; {ours} answers",), name.startswith("meta-"))
        try:
            return Target(self._names.known(name))
        except NotFoundError:
            return None

    def act(self, verb: str, kind: str, said: Plain) -> Plain:
        """What a control call gives. Raises InputError, NotFoundError."""
        made = self._made[kind]
        if verb == "List":
            wanted = str(said.get("NameContains") or "")
            return {f"{kind}s": [_about(kind, name, each) for name, each in made.items() if wanted in name]}
        name = said.get(f"{kind}Name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{kind}Name={quoted(name)} is not letters, digits and hyphens, at most 63")
        if verb == "Create":
            return self._create(kind, name, said)
        if name not in made:
            raise NotFoundError(f"Could not find {_SAID[kind]} {name!r}.")
        if verb == "Delete":
            del made[name]
            return {}
        return made[name].said | _about(kind, name, made[name]) | _state(kind, made[name].said)

    def _create(self, kind: str, name: str, said: Plain) -> Plain:
        made = self._made[kind]
        if name in made:
            raise InputError(f"Cannot create already existing {_SAID[kind]} {name!r}.")
        if len(made) >= MAX_MADE:
            raise InputError(f"there are {MAX_MADE} of these already; delete some")
        whom = Target()
        if kind == "Model":
            whom = self._inside(said)
        elif kind == "EndpointConfig":
            whom = self._part("Model", (_first(said.get("ProductionVariants"))).get("ModelName"))
        else:
            whom = self._part("EndpointConfig", said.get("EndpointConfigName"))
        made[name] = Made(said, time.time(), whom)
        return {f"{kind}Arn": _arn(kind, name)}

    def _inside(self, said: Plain) -> Target:
        """The model that a container is told to serve, by the variable that Hugging Face's containers read."""
        container = said.get("PrimaryContainer") or _first(said.get("Containers"))
        inside = container.get("Environment") if isinstance(container, dict) else None
        asked = inside.get("HF_MODEL_ID") if isinstance(inside, dict) else None
        if asked is None:
            return Target(warnings=("model: its container names none in HF_MODEL_ID; the default answers",))
        found = self.meant(str(asked))
        return Target(self._names.known(str(asked))) if found is None else found

    def _part(self, kind: str, name: object) -> Target:
        if name not in self._made[kind]:
            raise NotFoundError(f"Could not find {_SAID[kind]} {quoted(name)}.")
        return self._made[kind][str(name)].target


def _first(given: object) -> Plain:
    first = given[0] if isinstance(given, list) and given else None
    return first if isinstance(first, dict) else {}


def _arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:000000000000:{_ARNS[kind]}/{name}"


def _about(kind: str, name: str, made: Made) -> Plain:
    about = {f"{kind}Name": name, f"{kind}Arn": _arn(kind, name), "CreationTime": made.at}
    return about | ({"EndpointStatus": "InService", "LastModifiedTime": made.at} if kind == "Endpoint" else {})


def _state(kind: str, said: Plain) -> Plain:
    variants = [{"VariantName": "AllTraffic", "CurrentWeight": 1.0, "CurrentInstanceCount": 1}]
    return {"ProductionVariants": variants} if kind == "Endpoint" else {}


@router.post("/")
async def control(request: Request) -> Response:
    """SageMaker's control calls."""
    body = await request.body()
    try:
        if len(body) > MAX_SAID:
            raise InputError(f"the call has more than {MAX_SAID >> 10} KiB; say less")
        action = request.headers.get("x-amz-target", "")
        return _aws(_control(request.app.state.estate, action, body))
    except QkvError as error:
        told = failure(error)
        return _aws({"__type": "ValidationException", "message": told.message}, min(told.status, 400))


def _control(estate: Estate, action: str, body: bytes) -> Plain:
    if action == "SageMaker.ListTags":
        return {"Tags": []}
    found = _ACTION.fullmatch(action)
    if found is None or bool(found[3]) != (found[1] == "List"):
        raise InputError(f"{quoted(action)} is no call that this server answers; see /v1/models for what is here")
    try:
        said = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError("the call is not JSON") from error
    return estate.act(found[1], found[2], said if isinstance(said, dict) else {})


def _aws(content: Plain, status: int = 200) -> Json:
    return Json(content, status, {"x-amzn-RequestId": request_id()}, media_type="application/x-amz-json-1.1")


def _xml(content: str, status: int = 200) -> Response:
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>{content}', status, media_type="text/xml")


# Objects: the manifest and the specs, and what was put.


def error(failure: Failure) -> Response:
    code = {404: "NoSuchKey", 401: "AccessDenied", 403: "AccessDenied"}.get(failure.status, "InvalidRequest")
    told = f"<Error><Code>{code}</Code><Message>{escape(shorten(failure.message, 300))}</Message></Error>"
    return _xml(told, failure.status)


@router.get("/jumpstart-cache-{bucket}/{key:path}")
@router.head("/jumpstart-cache-{bucket}/{key:path}")
async def metadata(bucket: str, key: str, request: Request) -> Response:
    """JumpStart's list of models, and what it says of each."""
    names: Names = request.app.state.rooms.names
    listed = ids(names)
    rows = [header(id, version, kind) for id, (kind, _) in listed.items() for version in _versions(id)]
    if key == "models_manifest.json":
        return _given(to_json(rows))
    if key == "proprietary-sdk-manifest.json":
        return _given(to_json(rows[:1]))  # none is; but the SDK looks into the first
    for row in rows:
        if row["spec_key"] == key:
            return _given(to_json(spec(row["model_id"], row["version"], listed[row["model_id"]])))
    raise NotFoundError(f"there is no {quoted(key)} in JumpStart's bucket here")


@router.get("/sagemaker-{bucket}/{key:path}")
@router.head("/sagemaker-{bucket}/{key:path}")
@router.get("/qkv-{bucket}/{key:path}")
@router.head("/qkv-{bucket}/{key:path}")
async def fetch(key: str, request: Request) -> Response:
    """What was put, or an answer that was to come later."""
    found = _objects(request).at(_uri(request))
    return _given(found.data, found.kind)


@router.put("/sagemaker-{bucket}/{key:path}")
@router.put("/qkv-{bucket}/{key:path}")
async def put(key: str, request: Request) -> Response:
    """The input of an invocation whose answer comes later."""
    _objects(request).put(_uri(request), data := await request.body(), request.headers.get("content-type", ""))
    return _given(b"", tagged=data)


def _objects(request: Request) -> Objects:
    return request.app.state.estate.objects


def _uri(request: Request) -> str:
    return f"s3:/{request.url.path}"


def _given(data: bytes, kind: str = "application/json", *, tagged: bytes | None = None) -> Response:
    """An object as S3 gives it."""
    tag = hashlib.sha256(data if tagged is None else tagged).hexdigest()[:32]
    headers = {"ETag": f'"{tag}"', "Last-Modified": "Sat, 01 Jan 2000 00:00:00 GMT"}
    return Response(data, media_type=kind or "binary/octet-stream", headers=headers)


def own_id(model: Model) -> str:
    """JumpStart's ids are framework-task-name; its filters take them apart."""
    return f"qkv-{TASKS.get(model.kind, model.kind)}-{model.name}"


def ids(names: Names) -> dict[str, tuple[str, str]]:
    """Every id that JumpStart lists, the kind and the name of the model that answers."""
    own = {own_id(model): (model.kind, model.name) for model in names.all().values() if model.kind in TASKS}
    for id, kind in NOTEBOOKS.items():
        with suppress(NotFoundError):
            own[id] = (kind, names.find(None, kind))
    return own


def _versions(id: str) -> tuple[str, ...]:
    return VERSIONS if id in NOTEBOOKS else VERSIONS[:1]


def header(id: str, version: str, kind: str) -> Plain:
    """A row of the manifest."""
    words = [TASKS[kind], WORDS[kind]]
    about = {"model_id": id, "version": version, "min_version": "2.0.0", "search_keywords": words}
    return about | {"spec_key": f"qkv/{id}/{version}.json"}


def spec(id: str, version: str, answers: tuple[str, str]) -> Plain:
    """What the SDK must know to deploy a model; most of it is of machines that nobody rents here."""
    kind, name = answers
    machines = {family: {"properties": {"image_uri": "qkv"}} for family in _FAMILIES.split()}
    variable = {"name": "HF_MODEL_ID", "type": "text", "default": id, "scope": "container"}
    about = {
        "model_id": id,
        "url": "",
        "version": version,
        "min_sdk_version": "2.0.0",
        "training_supported": False,
        "incremental_training_supported": False,
        "hosting_ecr_specs": {"framework": "huggingface", "framework_version": "1.0", "py_version": "py311"},
        "hosting_artifact_key": f"qkv/{name}/",
        "hosting_script_key": f"qkv/{name}/",
        "hosting_prepacked_artifact_key": f"qkv/{name}/",
        "hosting_use_script_uri": False,
        "hosting_instance_type_variants": {"variants": machines},
        "resource_name_base": re.sub(r"[^a-zA-Z0-9]+", "-", id),
        "default_inference_instance_type": "ml.m5.xlarge",
        "supported_inference_instance_types": ["ml.m5.xlarge"],
        "inference_environment_variables": [variable | {"required_for_model_class": True}],
        "predictor_specs": {
            "default_content_type": OBJECTS[0],
            "supported_content_types": [OBJECTS[0], TEXTS[0]],
            "default_accept_type": OBJECTS[0],
            "supported_accept_types": [OBJECTS[0], f"{OBJECTS[0]};jpeg"][: 1 + (kind == "pictures")],
        },
        "default_payloads": {"Example": _example(kind)},
    }
    alias = {"deprecate_warn_message": f"{id} is not here; {name} answers"} if id in NOTEBOOKS else {}
    return about | alias


def _example(kind: str) -> Plain:
    about: Plain = {"content_type": OBJECTS[0], "accept": OBJECTS[0]}
    if kind == "pictures":
        found = {"prompt_key": "prompt", "output_keys": {"generated_image": "generated_images[0]"}}
        body = {"prompt": "a dog in a suit", "seed": 1}
        return about | found | {"accept": f"{OBJECTS[0]};jpeg", "body": body}
    if kind == "text":
        body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 16}}
        keys = {"generated_text": "[0].generated_text"}
        return about | {"prompt_key": "inputs", "output_keys": keys, "body": body}
    output = {"embeddings": "embedding", "translation": "[0].translation_text"}[kind]
    field = "text_inputs" if kind == "embeddings" else "inputs"
    return about | {"prompt_key": field, "output_keys": {kind: output}, "body": {field: "Open the file."}}
