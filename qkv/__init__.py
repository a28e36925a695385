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
    from qkv.pictures.picture import Picture, Settings
    from qkv.pictures.request import Request
    from qkv.registry import listing
    from qkv.sample.tokens import Sampling
    from qkv.tasks.chat import ChatRequest, Conversation, achat, achatting, chat, chatting
    from qkv.tasks.classify import Classified, classify
    from qkv.tasks.complete import CompleteRequest, acomplete, acompleting, complete, completing
    from qkv.tasks.draw import Progress, draw, drawing
    from qkv.tasks.embed import embed
    from qkv.tasks.export import export
    from qkv.tasks.fill import fill
    from qkv.tasks.search import search
    from qkv.tasks.search_pictures import search_pictures
    from qkv.tasks.translate import Translation, translate, translating
    from qkv.text.chat import Message
    from qkv.writing.loop import Completion, Piece, Text, Token
    from qkv.writing.options import Options
    from qkv.writing.shots import Shot, read_shots

_HOMES = {
    "qkv.errors": (
        "CheckpointError",
        "ConfigError",
        "InputError",
        "MissingDependencyError",
        "NotFoundError",
        "OutputError",
        "QkvError",
    ),
    "qkv.registry": ("listing",),
    "qkv.tasks.draw": ("Progress", "draw", "drawing"),
    "qkv.tasks.export": ("export",),
    "qkv.pictures.picture": ("Picture", "Settings"),
    "qkv.loaded.drawer": ("load",),
    "qkv.pictures.request": ("Request",),
    "qkv.tasks.chat": (
        "ChatRequest",
        "Conversation",
        "achat",
        "achatting",
        "chat",
        "chatting",
    ),
    "qkv.tasks.complete": (
        "CompleteRequest",
        "acomplete",
        "acompleting",
        "complete",
        "completing",
    ),
    "qkv.loaded.language": (
        "Language",
        "load_language",
    ),
    "qkv.writing.options": ("Options",),
    "qkv.writing.shots": (
        "Shot",
        "read_shots",
    ),
    "qkv.tasks.translate": ("Translation", "translate", "translating"),
    "qkv.writing.loop": (
        "Completion",
        "Piece",
        "Text",
        "Token",
    ),
    "qkv.sample.tokens": ("Sampling",),
    "qkv.text.chat": ("Message",),
    "qkv.fetch.pull": ("pull",),
    "qkv.tasks.classify": ("Classified", "classify"),
    "qkv.tasks.embed": ("embed",),
    "qkv.tasks.fill": ("fill",),
    "qkv.tasks.search": ("search",),
    "qkv.tasks.search_pictures": ("search_pictures",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ChatRequest",
    "CheckpointError",
    "Classified",
    "CompleteRequest",
    "Completion",
    "ConfigError",
    "Conversation",
    "InputError",
    "Language",
    "Message",
    "MissingDependencyError",
    "NotFoundError",
    "Options",
    "OutputError",
    "Picture",
    "Piece",
    "Progress",
    "QkvError",
    "Request",
    "Sampling",
    "Settings",
    "Shot",
    "Text",
    "Token",
    "Translation",
    "achat",
    "achatting",
    "acomplete",
    "acompleting",
    "chat",
    "chatting",
    "classify",
    "complete",
    "completing",
    "draw",
    "drawing",
    "embed",
    "export",
    "fill",
    "listing",
    "load",
    "load_language",
    "pull",
    "read_shots",
    "search",
    "search_pictures",
    "translate",
    "translating",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qkv")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qkv' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
