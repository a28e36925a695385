"""Generative AI on one attention core: from a prompt to a picture.

    import qkv

    picture = qkv.draw("a dog in a suit", seed=7)[0]
    picture.save("dog.png")

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
    from qkv.registry import listing
    from qkv.tasks.draw import Progress, draw, drawing
    from qkv.tasks.export import export
    from qkv.tasks.picture import Picture, Settings
    from qkv.tasks.ready import load
    from qkv.tasks.request import Request

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
    "qkv.tasks.picture": ("Picture", "Settings"),
    "qkv.tasks.ready": ("load",),
    "qkv.tasks.request": ("Request",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "MissingDependencyError",
    "NotFoundError",
    "OutputError",
    "Picture",
    "Progress",
    "QkvError",
    "Request",
    "Settings",
    "draw",
    "drawing",
    "export",
    "listing",
    "load",
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
