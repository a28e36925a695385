"""Generative AI on one attention core: from a prompt to a picture or a text.

    import qkv

    picture = qkv.draw("a dog in a suit", seed=7)[0]
    picture.save("dog.png")
    print(qkv.chat("What is the capital of France?").text)
    print(qkv.complete("def factorial(n):", max_tokens=60).text)

Importing the package imports nothing else; torch comes with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkv.errors import (
        CheckpointError,
        ConfigError,
        InputError,
        MissingDependencyError,
        NotFoundError,
        OutputError,
        QkvError,
    )
    from qkv.fetch.pull import pull
    from qkv.loaded.drawer import load
    from qkv.loaded.language import Language, load_language
    from qkv.loaded.models import Loaded, loaded, unload
    from qkv.loaded.where import Where
    from qkv.pictures.picture import Picture, Settings, Upscaled
    from qkv.pictures.request import Request
    from qkv.registry import listing
    from qkv.sample.tokens import Sampling
    from qkv.tasks.chat import ChatRequest, Conversation, achat, achatting, chat, chatting
    from qkv.tasks.classify import Classified, classify
    from qkv.tasks.classify_text import Tagged, classify_text, tag_text
    from qkv.tasks.complete import CompleteRequest, acomplete, acompleting, complete, completing
    from qkv.tasks.draw import Progress, draw, drawing
    from qkv.tasks.embed import embed
    from qkv.tasks.export import export
    from qkv.tasks.fill import fill
    from qkv.tasks.search import search
    from qkv.tasks.search_pictures import search_pictures
    from qkv.tasks.translate import Translation, translate, translating
    from qkv.tasks.upscale import upscale, upscaling
    from qkv.tasks.write import Written, write
    from qkv.text.chat import Message
    from qkv.writing.loop import Completion, Piece, Text, Token
    from qkv.writing.options import Options
    from qkv.writing.shots import Shot, read_shots

# The same again, for when they are needed: each module's names.
_HOMES = {
    "errors": "CheckpointError ConfigError InputError MissingDependencyError NotFoundError OutputError QkvError",
    "fetch.pull": "pull",
    "loaded.drawer": "load",
    "loaded.language": "Language load_language",
    "loaded.models": "Loaded loaded unload",
    "loaded.where": "Where",
    "pictures.picture": "Picture Settings Upscaled",
    "pictures.request": "Request",
    "registry": "listing",
    "sample.tokens": "Sampling",
    "tasks.chat": "ChatRequest Conversation achat achatting chat chatting",
    "tasks.classify": "Classified classify",
    "tasks.classify_text": "Tagged classify_text tag_text",
    "tasks.complete": "CompleteRequest acomplete acompleting complete completing",
    "tasks.draw": "Progress draw drawing",
    "tasks.embed": "embed",
    "tasks.export": "export",
    "tasks.fill": "fill",
    "tasks.search": "search",
    "tasks.search_pictures": "search_pictures",
    "tasks.translate": "Translation translate translating",
    "tasks.upscale": "upscale upscaling",
    "tasks.write": "Written write",
    "text.chat": "Message",
    "writing.loop": "Completion Piece Text Token",
    "writing.options": "Options",
    "writing.shots": "Shot read_shots",
}
_HOME_OF = {name: f"qkv.{home}" for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qkv")
    if name == "loaded":
        return import_module("qkv.loaded")  # the room has the function's name, and does what it does
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qkv' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
