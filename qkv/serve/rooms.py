"""Where wishes are computed: a model by its name, a place in the queue, a turn; and their events as they come.

Text goes to the engine, which works at many requests at once; pictures take turns, a step each; vectors and
translations come one after another. A client names a model by a name that is listed, and nothing else of where.
"""

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from typing import NamedTuple, TypeVar

from PIL import Image

from qkv import registry
from qkv.errors import BusyError, InputError, NotFoundError, unknown
from qkv.loaded.drawer import load_drawer
from qkv.loaded.language import Language, load_language
from qkv.loaded.models import Loaded, loaded
from qkv.loaded.translator import load_ready
from qkv.pictures.picture import Picture
from qkv.pictures.request import Request
from qkv.registry import Model
from qkv.serve import journal
from qkv.serve.settings import ServeSettings
from qkv.serve.turns import Turns
from qkv.tasks import chat, complete
from qkv.tasks.chat import ChatRequest
from qkv.tasks.complete import CompleteRequest
from qkv.tasks.draw import Progress, drawing
from qkv.tasks.embed import Embeddings, Kind, load_embedder
from qkv.tasks.translate import Translation, translating
from qkv.writing.loop import Completion, Piece, alast, awrite

T = TypeVar("T")
JOB_PREVIEWS = 5  # of each picture of a job
FRESH = 2.0  # seconds that a listing of models is believed


class Step(NamedTuple):
    """A step of a picture is done; `preview` if one was asked for at this step."""

    progress: Progress
    preview: Image.Image | None


Texts = AsyncGenerator[Piece | Completion, None]
Pictures = AsyncGenerator[Step | Picture, None]


class Names:
    """The models that clients may name."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._seen, self._models = float("-inf"), dict[str, Model]()

    def all(self) -> dict[str, Model]:
        """Every model that is here, by name."""
        if time.monotonic() - self._seen > FRESH:
            self._models = {model.name: model for model in registry.listing()}
            self._seen = time.monotonic()
        return self._models

    def in_memory(self) -> list[tuple[str, Loaded]]:
        """What is in memory, by the names that clients use."""
        models = self.all().values()

        def name(held: Loaded) -> str:
            return next((m.name for m in models if m.path in (held.path, *held.path.parents)), held.name)

        return [(name(held), held) for held in loaded()]

    def known(self, name: str) -> str:
        """Our name of the model that a client calls `name`. Raises NotFoundError."""
        name = self._settings.aliases.get(name, name)
        if name not in self.all():
            raise NotFoundError(unknown("model", name, self.all()))
        return name

    def find(self, name: str | None, *kinds: str) -> str:
        """Our name of the model that a client calls `name`, of one of these kinds; None is the default of the first.

        Raises NotFoundError, InputError if it is for something else.
        """
        models = self.all()
        fitting = [model.name for model in models.values() if model.kind in kinds]
        if name is None or not name.strip():
            chosen = self._settings.models.get(kinds[0]) or registry.DEFAULTS.get(kinds[0])
            name = chosen if chosen in fitting else next(iter(fitting), None)
            if name is None:
                raise NotFoundError(f"no model for {kinds[0]} is here; fetch one on the server: qkv pull")
            return name
        name = self.known(name)
        if name not in fitting:
            known = ", ".join(fitting) or "none"
            raise InputError(
                f"model {name} is for {models[name].kind}, not for {kinds[0]}; for that there are: {known}"
            )
        return name


class Rooms:
    """All that a server computes with. Everything here is for one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.names = settings, Names(settings)
        self.closing = False
        self.busy = {"pictures": 0, "texts": 0, "others": 0}
        self._pictures, self._others = Turns("qkv-pictures"), Turns("qkv-others")
        self._beside = ThreadPoolExecutor(16, "qkv-serve")

    @contextmanager
    def admitted(self, kind: str) -> Iterator[None]:
        """A place in the queue. BusyError at once if there is none."""
        most: int = getattr(self.settings, kind)
        if self.closing:
            raise BusyError("the server is closing; nothing new is taken")
        if self.busy[kind] >= most:
            raise BusyError(f"{self.busy[kind]} requests for {kind} are here already, {most} may be; try again later")
        self.busy[kind] += 1
        try:
            yield
        finally:
            self.busy[kind] -= 1

    async def beside(self, run: Callable[[], T]) -> T:
        """What `run` gives, on a thread beside the event loop."""
        here = contextvars.copy_context()  # so that what it costs is noted for this request
        return await asyncio.get_running_loop().run_in_executor(self._beside, here.run, run)

    def language(self, model: str | None) -> Language:
        """The model for text of that name, in memory."""
        return load_language(self.names.find(model, "text"), **vars(self.settings.where), offline=True)

    async def write(self, wish: ChatRequest | CompleteRequest, model: str | None) -> Texts:
        """A text, piece by piece, at last the whole. All is checked, and in the engine's queue, when this returns."""
        return await _begun(self._writing(wish, model))

    async def _writing(
        self, wish: ChatRequest | CompleteRequest, model: str | None
    ) -> AsyncGenerator[Piece | Completion | None, None]:
        def begin() -> AsyncIterator[Piece | Completion]:
            language = self.language(model)
            journal.note(model=language.name)
            if isinstance(wish, ChatRequest):
                return awrite(chat.prepare(wish, language))
            return awrite(complete.prepare(wish, language))

        with self.admitted("texts"):
            events = await self.beside(begin)
            yield None
            async for event in events:
                if isinstance(event, Completion):
                    journal.note(read=event.usage[0], written=event.usage[1])
                yield event

    async def written(self, wishes: Sequence[ChatRequest | CompleteRequest], model: str | None) -> list[Completion]:
        """Texts, whole; they share the engine's steps."""
        async with AsyncExitStack() as leaving:  # one that is refused ends those that were taken
            begun = [await leaving.enter_async_context(aclosing(await self.write(wish, model))) for wish in wishes]
            return [await alast(events) for events in begun]

    async def draw(self, request: Request, model: str | None, *, previews: int = 0) -> Pictures:
        """Pictures, step by step, with so many previews of each. All is checked when this returns."""
        return await _begun(self._drawing(request, model, previews))

    async def drawn(self, request: Request, model: str | None) -> list[Picture]:
        """Pictures, whole."""
        async with aclosing(await self.draw(request, model)) as events:
            return [event async for event in events if isinstance(event, Picture)]

    async def _drawing(
        self, request: Request, model: str | None, previews: int
    ) -> AsyncGenerator[Step | Picture | None, None]:
        name = self.names.find(model, "pictures")
        journal.note(model=name)
        previews = max(previews, JOB_PREVIEWS if journal.watched() else 0)
        with self.admitted("pictures"):
            events = await self.beside(lambda: drawing(request, name, self.settings.where))
            yield None
            async for event in self._pictures.run(lambda: _with_previews(events, previews)):
                done = isinstance(event, Picture)
                journal.note(pictures=int(done), steps=int(not done))
                if isinstance(event, Step):
                    now = event.progress
                    before = now.picture * now.steps
                    journal.step(before + now.step, now.pictures * now.steps, event.preview)
                yield event

    async def embed(self, texts: Sequence[str], model: str | None, kind: Kind = "prefix") -> tuple[str, Embeddings]:
        """The model's name and the vectors."""
        name, where = self.names.find(model, "embeddings"), self.settings.where

        def run() -> Iterator[Embeddings]:
            yield load_embedder(name, device=where.device, dtype=where.dtype, offline=True).embed(texts, kind)

        (found,) = [each async for each in self.other(name, run)]
        journal.note(read=sum(found.tokens))
        return name, found

    async def translate(self, lines: Sequence[str], to: str | None, model: str | None) -> list[Translation]:
        """Each line, translated."""
        name, where = self.names.find(model, "translation"), self.settings.where

        def run() -> Iterator[Translation]:
            return translating(lines, to=to, model=name, device=where.device, dtype=where.dtype, offline=True)

        return [line async for line in self.other(name, run)]

    async def other(self, name: str, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The events of what is neither text nor pictures, computed with the model of that name."""
        journal.note(model=name)
        with self.admitted("others"):
            async for event in self._others.run(begin):
                yield event

    async def preload(self) -> None:
        """The default models of text and pictures, in memory."""
        for kind in ("text", "pictures"):
            with suppress(NotFoundError):
                await self.load(self.names.find(None, kind))

    async def load(self, name: str) -> None:
        """Brings a model into memory. Raises NotFoundError, InputError for a kind that nothing loads ahead."""
        name, where = self.names.known(name), self.settings.where
        loaders: dict[str, Callable[[], object]] = {
            "text": lambda: self.language(name),
            "pictures": lambda: load_drawer(name, where),
            "embeddings": lambda: load_embedder(name, device=where.device, dtype=where.dtype, offline=True),
            "translation": lambda: load_ready(name, device=where.device, dtype=where.dtype, offline=True),
        }
        kind = self.names.all()[name].kind
        if kind not in loaders:
            raise InputError(f"model {name} is for {kind}, which is not loaded ahead")
        await self.beside(loaders[kind])


async def _begun(events: AsyncGenerator[T | None, None]) -> AsyncGenerator[T, None]:
    """The events behind the None that says that all is checked."""
    assert await anext(events) is None
    return events  # type: ignore[return-value]


def _with_previews(events: Iterator[Progress | Picture], previews: int) -> Iterator[Step | Picture]:
    for event in events:
        if isinstance(event, Progress):
            wanted = event.step in _places(event.steps, previews)
            yield Step(event, event.preview() if wanted else None)
        else:
            yield event


def _places(steps: int, previews: int) -> set[int]:
    """The steps, evenly apart and never the last, after which a preview is shown."""
    return {round(steps * part / (previews + 1)) for part in range(1, previews + 1)} & set(range(1, steps))
