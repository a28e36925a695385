"""From tokens to a text, as it comes: what `chat` and `complete` share.

    tokens ─ engine: events ─ whole characters ─ stop strings ─ pieces of text ─ the whole, with how it was made

`write` and `awrite` are the one loop over the engine's events, for plain and for async code; leaving it cancels what is
left within a token.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qkv.engine.handle import Handle
from qkv.engine.sequence import EngineRequest, Event, Finish
from qkv.loaded.language import Language
from qkv.sample.beam import beam_search
from qkv.sample.constrain import Grammar, Healing, from_regex, from_schema, take_back
from qkv.sample.stops import Stops, check_stops
from qkv.sample.tokens import Constraint, Sampling
from qkv.writing.options import Options
from qkv.writing.settle import Cutter, Task


class Piece(NamedTuple):
    """Some more of text `number`, 0 to n - 1; never half a character, never of a stop string."""

    number: int
    text: str


@dataclass(frozen=True)
class Token:
    """A token of a text with its log-probability, and the likeliest tokens in its place with theirs.

    The first token of an echoed prompt has none: there is nothing before it.
    """

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text that was written. `finish` is "stop" (its own end, or a stop string), "length" or "cancelled".

    `ids` and `logprob` are of what was written, `tokens` begin with the prompt's if that is echoed.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    seed: int | None = None  # None: nothing was drawn
    tokens: tuple[Token, ...] = ()  # if asked for log-probabilities
    logprob: float | None = None  # of the whole text, if it was needed


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was written, the best first, and how: `usage` counts tokens that were read and written, in all texts."""

    texts: tuple[Text, ...]
    model: str
    sampling: Sampling
    max_tokens: int
    usage: tuple[int, int]
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def text(self) -> str:
        return self.texts[0].text

    @property
    def finish(self) -> str:
        return self.texts[0].finish

    @property
    def seed(self) -> int | None:
        return self.texts[0].seed


def write(task: Task) -> Iterator[Piece | Completion]:
    """Pieces of text as they come, at last the whole. Everything is checked before this returns."""
    if task.beams > 1:
        return _search(task)
    return _stream(_Job(task))


def _stream(job: "_Job") -> Iterator[Piece | Completion]:
    for event in job.handle:
        yield from job.take(event)
    yield from job.end()


def awrite(task: Task) -> AsyncIterator[Piece | Completion]:
    """`write` for a coroutine. Beams come whole."""
    return _asearch(task) if task.beams > 1 else _astream(_Job(task))


async def _astream(job: "_Job") -> AsyncIterator[Piece | Completion]:
    async for event in job.handle:
        for piece in job.take(event):
            yield piece
    for found in job.end():
        yield found


async def _asearch(task: Task) -> AsyncIterator[Piece | Completion]:
    *_, completion = await asyncio.to_thread(lambda: list(_search(task)))
    yield completion


class _Job:
    """A task under way: its answers, and where they are."""

    def __init__(self, task: Task) -> None:
        self.task, self.began = task, time.perf_counter()
        language, options = task.language, task.options
        ids, taken = take_back(language.lexicon, task.ids) if task.heal else (list(task.ids), b"")
        grammar = _grammar(language, options)
        constraint: Callable[[], Constraint] | None = grammar.start if grammar else None
        if taken:
            constraint = lambda: Healing(language.lexicon, task.ids[len(ids) :])  # noqa: E731
        ranked = options.best_of is not None and options.best_of > options.n
        request = EngineRequest(
            prompt=ids,
            max_tokens=max(1, task.max_tokens),
            sampling=task.sampling,
            stops=language.tokenizer.stops | task.ends,
            n=options.answers,
            logprobs=0 if ranked and options.logprobs is None else options.logprobs,
            score=len(ids) - 1 if task.scored else 0,
            constraint=constraint,
        )
        self.ranked = ranked
        self._first, self._left = ids[0], request.score
        self._scored: list[Event] = []
        self.answers = [_Answer(task, number, taken.decode()) for number in range(options.answers)]
        self.handle: Handle = language.submit(request)

    def take(self, event: Event) -> Iterator[Piece]:
        """What an event adds to the text of its answer, if it may be shown yet."""
        if self._left and event.answer == 0:  # the prompt's tokens come first, and once for all answers
            self._left -= 1
            self._scored.append(event)
            return
        answer = self.answers[event.answer]
        if not self.task.max_tokens:  # the engine writes one token at least
            answer.finish = "length"
            return
        text = answer.take(event)
        if answer.finish and not event.finish:
            self.handle.cancel(event.answer)
        if text and not self.ranked:
            yield Piece(event.answer, text)

    def end(self) -> Iterator[Piece | Completion]:
        before = self._prompt() if self.task.scored else ()
        texts = [answer.result(before) for answer in self.answers]
        if self.ranked:
            texts = sorted(texts, key=lambda text: -(text.logprob or 0.0) / max(1, len(text.ids)))
            yield from (Piece(number, text.text) for number, text in enumerate(texts[: self.task.options.n]))
        yield _completion(self.task, texts, self.began)

    def _prompt(self) -> tuple[Token, ...]:
        spell = self.task.language.spell
        return Token(self._first, spell(self._first), None, ()), *(_token(spell, event) for event in self._scored)


def _grammar(language: Language, options: Options) -> Grammar | None:
    if options.schema is not None:
        return from_schema(language.lexicon, options.schema)
    return from_regex(language.lexicon, options.regex) if options.regex is not None else None


class _Answer:
    """The text of one answer in the making."""

    def __init__(self, task: Task, number: int, healed: str = "") -> None:
        self.finish = ""
        self._task, self._number = task, number
        self._stream = task.language.tokenizer.stream(continues=task.continues)
        self._skip = len(healed)  # characters of the prompt that are written again
        stops = (*check_stops(task.options.stop), *task.language.generation.stop)
        self._cutters: list[Cutter] = [*task.cutters(), Stops(stops)]
        self._text: list[str] = []
        self._events: list[Event] = []

    def take(self, event: Event) -> str:
        """What may be shown now; nothing if a stop string was met and the engine did not know yet."""
        if self.finish:
            return ""
        self._events.append(event)
        ended = event.finish == "stop"
        text = "" if ended else self._stream.push(event.id)
        if event.finish:
            self.finish = event.finish
            text += self._stream.finish()
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        text = text[skipped:]
        for cutter in self._cutters:
            text = cutter.push(text)
            if cutter.hit is not None:
                self.finish = "stop"
            elif self.finish:
                text += cutter.finish()  # nothing more comes, so nothing is held back
        if not self._text:
            text = self._task.prefix + text
        self._text.append(text)
        return text

    def result(self, before: Sequence[Token] = ()) -> Text:
        """The whole, the prompt's tokens `before` it."""
        events, sampling, spell = self._events, self._task.sampling, self._task.language.spell
        known = bool(events) and events[0].logprob is not None
        return Text(
            text="".join(self._text or [self._task.prefix]),
            ids=tuple(event.id for event in events),
            finish=self.finish or "cancelled",
            seed=None if sampling.seed is None or not sampling.temperature else sampling.seed + self._number,
            tokens=(*before, *(_token(spell, event) for event in events)) if self._asked else (),
            logprob=sum(event.logprob or 0.0 for event in events) if known else None,
        )

    @property
    def _asked(self) -> bool:
        return self._task.options.logprobs is not None


def _token(spell: Callable[[int], str], event: Event) -> Token:
    top = tuple((spell(id), logprob) for id, logprob in event.top)
    return Token(event.id, spell(event.id), event.logprob, top)


def _completion(task: Task, texts: Sequence[Text], began: float) -> Completion:
    warnings = list(task.warnings)
    if (task.options.schema or task.options.regex) and any(text.finish == "length" for text in texts):
        warnings.append(f"unfinished: {task.max_tokens} tokens were not enough for the schema or regex; max_tokens")
    return Completion(
        texts=tuple(texts[: task.options.n]),
        model=task.language.name,
        sampling=task.sampling,
        max_tokens=task.max_tokens,
        usage=(len(task.ids), sum(len(text.ids) for text in texts)),
        warnings=tuple(warnings),
        seconds=time.perf_counter() - began,
    )


def _search(task: Task) -> Iterator[Piece | Completion]:
    """Beams, whole at the end: what is best so far changes until then."""
    began, language, options = time.perf_counter(), task.language, task.options
    ends, told = language.tokenizer.stops | task.ends, language.generation
    found = []

    def likeliest(texts: Sequence[tuple[int, ...]], count: int) -> list[tuple[tuple[int, float], ...]]:
        handles = [language.submit(_step(task, text, count, ends)) for text in texts]
        return [event.top for handle in handles for event in handle]

    search = beam_search(
        likeliest,
        beams=task.beams,
        ends=ends,
        max_tokens=task.max_tokens,
        length_penalty=told.length_penalty if options.length_penalty is None else options.length_penalty,
        early_stopping=told.early_stopping,
    )
    for found in search:  # noqa: B007
        pass
    texts = []
    for number, text in enumerate(found[: options.n]):
        answer, last = _Answer(task, number), len(text.ids) - 1
        for place, token in enumerate(text.ids):
            finish: Finish | None = None if place < last else "stop" if text.ended else "length"
            answer.take(Event(number, token, None, (), finish))
        texts.append(dataclasses.replace(answer.result(), logprob=text.logprob))
        yield Piece(number, texts[-1].text)
    yield _completion(task, texts, began)


def _step(task: Task, text: tuple[int, ...], count: int, ends: frozenset[int]) -> EngineRequest:
    """One beam's next tokens."""
    return EngineRequest(
        prompt=[*task.ids, *text],
        max_tokens=1,
        sampling=task.sampling,
        stops=ends,
        logprobs=count,
        ranked=True,
        written=len(text),
        room=task.max_tokens - len(text),
    )


def last(events: Iterator[Piece | Completion]) -> Completion:
    """What a loop over events ends with."""
    *_, completion = events
    assert isinstance(completion, Completion)
    return completion


async def alast(events: AsyncIterator[Piece | Completion]) -> Completion:
    """`last` for a coroutine."""
    async for event in events:  # noqa: B007
        pass
    assert isinstance(event, Completion)
    return event
