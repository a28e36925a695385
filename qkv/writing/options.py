"""What may be asked of `chat` and `complete`, checked before there is a model: what cannot be costs nothing.

These fields are the keyword arguments of the Python functions and the options of the command line, which is why this
file imports nothing at once that takes time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qkv.config import make_plain
from qkv.errors import InputError

if TYPE_CHECKING:
    from qkv.sample.tokens import Sampling

MAX_ANSWERS = 128  # n and best_of
MAX_LOGPROBS = 20  # as OpenAI's
MAX_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to write; None is the model's own default. sample/tokens.py explains the sampling. Raises InputError."""

    max_tokens: int | None = None  # 0, for an echoed prompt: nothing
    n: int = 1  # how many texts
    best_of: int | None = None  # of so many, the n likeliest a token
    stop: str | Sequence[str] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # text i is drawn with seed + i
    logprobs: int | None = None  # of every token, and of so many of the likeliest beside it
    schema: Mapping[str, Any] | str | None = None  # the text is JSON that fits this JSON schema
    regex: str | None = None  # the text matches this from end to end
    beams: int | None = None  # above 1: beam search
    length_penalty: float | None = None

    def __post_init__(self) -> None:
        from qkv.sample.beam import check_beams
        from qkv.sample.stops import check_stops
        from qkv.sample.tokens import MAX_SEED, whole

        make_plain(self)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 0, MAX_TOKENS)
        whole("n", self.n, 1, MAX_ANSWERS)
        if self.best_of is not None:
            whole("best_of", self.best_of, self.n, MAX_ANSWERS)
        if self.logprobs is not None:
            whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        check_stops(self.stop)
        check_beams(1 if self.beams is None else self.beams, self.length_penalty or 0.0)
        self.sampling({})
        if self.seed is not None:
            whole("seed", self.seed, 0, MAX_SEED - self.answers + 1)
        if self.schema is not None and self.regex is not None:
            raise InputError("schema and regex are both given; a text can follow one of them")
        if self.beams is not None and (found := self.against(self.beams)):
            raise InputError(f"beams={self.beams} cannot be searched with {' and '.join(found)}")

    def against(self, beams: int) -> list[str]:
        """What is asked that no search of so many beams can give."""
        odd = {
            "n above beams": self.n > beams,
            "best_of": self.best_of is not None,
            "a temperature": bool(self.temperature),
            "schema or regex": self.schema is not None or self.regex is not None,
            "logprobs": self.logprobs is not None,
        }
        return [name for name, given in odd.items() if given and beams > 1]

    def check_some(self) -> None:
        """InputError if nothing is to be written."""
        if self.max_tokens == 0:
            raise InputError("max_tokens=0 writes nothing; ask for 1 or more, or echo a prompt to see its own tokens")

    @property
    def answers(self) -> int:
        """How many texts are written, of which n are the result."""
        return self.best_of or self.n

    def sampling(self, defaults: Mapping[str, Any]) -> "Sampling":
        """What was asked, else what `defaults` say, else greedy. Raises InputError."""
        from qkv.sample.tokens import Sampling

        names = [each.name for each in dataclasses.fields(Sampling)]
        asked = {name: value for name in names if (value := getattr(self, name, None)) is not None}
        return Sampling(**{**defaults, **asked})
