"""Models in memory: found by name, read, put where they compute, and kept for the next request (models.py).

`qkv.loaded()` says which are here: the module is called like the function, so it answers for it.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkv.loaded.models import Loaded


class _Room(ModuleType):
    def __call__(self) -> "list[Loaded]":
        """The models that are in memory, with their sizes; the least recently used first."""
        from qkv.loaded.models import loaded

        return loaded()


sys.modules[__name__].__class__ = _Room
