"""How a server is set up: by whoever starts it, never by a client."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qkv.config import make_plain
from qkv.errors import ConfigError
from qkv.loaded.where import AUTO, Where


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the server listens, who may ask for what, and how much at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()  # a client must show one of them; none: everybody may ask
    hosts: tuple[str, ...] = ()  # names that a request may call this server by, beside its addresses; "*": any
    origins: tuple[str, ...] = ()  # of pages elsewhere that may ask; "*": any
    models: Mapping[str, str] = field(default_factory=dict)  # kind: the model where a client names none
    aliases: Mapping[str, str] = field(default_factory=dict)  # a name that clients use: ours
    where: Where = AUTO
    folder: Path | None = None  # of jobs; None: in the data home
    preload: bool = True  # the default models of text and pictures, before the server is ready
    max_body: int = 64 << 20  # bytes
    read_seconds: float = 30.0  # that a client may be silent in the middle of a request
    pictures: int = 32  # requests for pictures at once, computed or waiting
    texts: int = 128  # for text
    others: int = 64  # vectors, translations
    grace: float = 22.0  # seconds from the first signal to the end; SageMaker kills after 30
    log_json: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port={self.port} is not in 0..65535")
        if any(len(key) < 8 or key != key.strip() for key in self.keys):
            raise ConfigError("a key has fewer than 8 characters, or blanks around it; give a longer one")
        object.__setattr__(self, "_digests", tuple(map(_digest, self.keys)))

    def admits(self, key: str | None) -> bool:
        """Whether who shows this key may ask. It takes the same time for every key."""
        digests: tuple[bytes, ...] = self._digests  # type: ignore[attr-defined]
        shown = _digest(key or "")
        return not digests or sum(hmac.compare_digest(shown, digest) for digest in digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
