"""llama.cpp's own paths, which editors' plug-ins use: filling in the middle, tokens and back, what the model is."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict

from qkv.serve.answers import Json, Plain, server_sent, until_gone, warned
from qkv.serve.openai import Body, body
from qkv.serve.rooms import Rooms
from qkv.tasks.complete import CompleteRequest
from qkv.writing.loop import Completion, Piece, alast
from qkv.writing.options import Options

router = APIRouter(tags=["llama.cpp"])
_OURS = {"n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}


class InfillBody(Body):
    """/infill"""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n"}}
    )

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str | None = None
    input_extra: list[Mapping[str, Any]] | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stream: bool | None = None
    cache_prompt: bool | None = None
    samplers: list[str] | None = None
    t_max_predict_ms: int | None = None
    t_max_prompt_ms: int | None = None

    def wish(self) -> CompleteRequest:
        """The files of `input_extra`, then the text before, filled in before the text behind."""
        names = ("temperature", "top_k", "top_p", "min_p", *_OURS)
        asked: Plain = {_OURS.get(name, name): getattr(self, name) for name in names}
        for name in ("max_tokens", "seed"):
            given = self.seed if name == "seed" else asked[name]
            asked[name] = None if given is None or given < 0 else given
        extra = [f"{each.get('filename', '')}\n{each.get('text', '')}\n" for each in self.input_extra or ()]
        before = "".join(extra) + self.input_prefix + (self.prompt or "")
        return CompleteRequest(prompt=before, suffix=self.input_suffix, options=Options(**asked, stop=self.stop or ()))


@router.post("/infill")
async def infill(asked: InfillBody, request: Request) -> Any:
    rooms: Rooms = request.app.state.rooms
    events = await until_gone(request, rooms.write(asked.wish(), asked.model))

    def ended(done: Completion) -> Plain:
        read, written = done.usage
        why = {"stop": "eos", "length": "limit"}.get(done.finish, done.finish)
        counted = {"tokens_evaluated": read, "tokens_predicted": written, "stop": True, "stop_type": why}
        said = warned([*done.warnings, *asked.unknown()])
        return counted | {"model": done.model, "truncated": False} | said

    async def lines() -> Any:
        async for event in events:
            if isinstance(event, Piece):
                yield {"content": event.text, "stop": False}
            else:
                yield {"content": ""} | ended(event)

    if asked.stream:
        return server_sent(lines(), body)
    done = await until_gone(request, alast(events))
    return Json({"content": done.text} | ended(done))


class TokenizeBody(Body):
    """/tokenize"""

    content: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


@router.post("/tokenize")
async def tokenize(asked: TokenizeBody, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms

    def run() -> list[Any]:
        language = rooms.language(asked.model)
        if asked.add_special:
            ids = language.read(asked.content)
        else:
            ids = language.tokenizer.encode(asked.content, control=asked.parse_special)
        return [{"id": id, "piece": language.spell(id)} for id in ids] if asked.with_pieces else list(ids)

    return Json({"tokens": await until_gone(request, rooms.beside(run))})


class DetokenizeBody(Body):
    """/detokenize"""

    tokens: list[int]


@router.post("/detokenize")
async def detokenize(asked: DetokenizeBody, request: Request) -> Json:
    rooms: Rooms = request.app.state.rooms

    def run() -> str:
        return rooms.language(asked.model).tokenizer.decode(asked.tokens, control=True)

    return Json({"content": await until_gone(request, rooms.beside(run))})


@router.get("/props")
async def props(request: Request) -> Json:
    """The default model for text."""
    rooms: Rooms = request.app.state.rooms
    language = await until_gone(request, rooms.beside(lambda: rooms.language(None)))
    told = {"default_generation_settings": {"n_ctx": language.context}, "model_alias": language.name}
    return Json(told | {"total_slots": 32, "chat_template": language.template.source, "modalities": {"vision": False}})
