"""Conversations to ids, by the template that a chat model was published with.

A template lays messages out between control tokens, which only it may place: a message that spells <|im_end|> is plain
text and ends nothing. So before the template sees the messages, the first character of every control token that they
spell, or begin to spell at their end, is exchanged for a private one that nobody has written; in what the template
makes of them only its own control tokens are left, and the exchange is undone between them. Where no message spells
one, the ids are those of transformers' apply_chat_template.

The template itself is a program from a stranger: `sandbox` bounds what it can do. Left out: tools and documents, and
contents that are more than a text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.atomic import write_file
from qkv.errors import CheckpointError, InputError, unknown
from qkv.text.language import MAX_TEXT, LanguageTokenizer
from qkv.untrusted import read_json, read_text

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 10_000

_PRIVATE = [*range(0xE000, 0xF900), *range(0xF0000, 0x110000)]  # Unicode's private use areas
_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Message:
    """One turn. InputError for an unknown role, or a content that is no text."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise InputError(unknown("role", self.role, ROLES))
        if not isinstance(self.content, str):
            raise InputError(f"the content of a message is {type(self.content).__name__}; it must be a text")


class ChatTemplate:
    """A compiled template. CheckpointError if it is broken."""

    def __init__(self, source: str) -> None:
        from qkv.text.sandbox import Template  # jinja2 is imported by whoever chats

        self.source = source
        self._template = Template(source)

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTemplate":
        """From a published folder: chat_template.jinja, or tokenizer_config.json. CheckpointError if it has none."""
        file = Path(folder) / _FILE
        if file.is_file():
            return cls(read_text(file))
        return cls(
            _source(read_json(Path(folder) / "tokenizer_config.json", optional=True).get("chat_template"), folder)
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "ChatTemplate":
        """From the metadata of a GGUF file. CheckpointError if it has none."""
        return cls(_source(metadata.get("tokenizer.chat_template"), metadata.get("general.name", "the file")))

    def save(self, folder: str | Path) -> None:
        """Beside the tokenizer, where transformers looks for it. OutputError."""
        write_file(Path(folder) / _FILE, self.source.encode())

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: LanguageTokenizer,
        *,
        answer: bool = True,
        continue_final: bool = False,
    ) -> list[int]:
        """The ids of a conversation, and with `answer` of the beginning of the next turn, which is the model's.

        With `continue_final` they end with the last message's content, which the model goes on with; no turn begins.
        A beginning of text is among them if the template says so. InputError for none or too many messages, or such as
        the template refuses; CheckpointError if it fails.
        """
        _check(messages)
        private = _private({token[0] for token in tokenizer.control}, messages)
        back = {ord(other): first for first, other in private.items()}
        turns = [{"role": turn.role, "content": _hide(turn.content, tokenizer.control, private)} for turn in messages]
        # One private character more than the control tokens need is free for the mark.
        mark = next(reversed(_private([*private, "\0"], messages).values())) if continue_final else ""
        if continue_final:
            turns[-1]["content"] += f"{mark} "
        v = tokenizer.vocabulary
        ends = {key: name for key, name in (("bos_token", v.bos), ("eos_token", v.eos)) if name is not None}
        named = {**v.named, **ends}
        text = self._template.render(
            {
                "messages": turns,
                "add_generation_prompt": answer and not continue_final,
                "tools": None,
                "documents": None,
                **named,
            }
        )
        if continue_final:
            text = _upto(text, mark)
        parts = tokenizer.split(text)
        return tokenizer.encode_parts(part.translate(back) if isinstance(part, str) else part for part in parts)


def _upto(text: str, mark: str) -> str:
    """A rendered conversation up to the mark behind its last message, as transformers' continue_final_message cuts it:
    without the space before, if the template trimmed the space behind."""
    before, found, behind = text.rpartition(mark)
    if not found:
        raise InputError("the last message cannot be gone on with: the model's template does not write it")
    return before if behind.startswith(" ") else before.rstrip()


def _source(template: object, where: object) -> str:
    """The template of a configuration, which is one, or a list of named ones."""
    if isinstance(template, list):
        named = (part for part in template if isinstance(part, dict) and part.get("name") == "default")
        template = next(named, {}).get("template")
    if not isinstance(template, str):
        raise CheckpointError(f"{where} has no chat template: it is no chat model; complete texts with it")
    return template


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InputError("the conversation has no messages; give at least one")
    if len(messages) > MAX_MESSAGES:
        raise InputError(f"the conversation has {len(messages):,} messages; at most {MAX_MESSAGES:,} are read")
    if (length := sum(len(message.content) for message in messages)) > MAX_TEXT:
        raise InputError(f"the conversation has {length:,} characters; at most {MAX_TEXT:,} are read: shorten it")


def _private(firsts: Iterable[str], messages: Iterable[Message]) -> dict[str, str]:
    """A private character for each of `firsts`, none of them written in any message."""
    written = set().union(*(message.content for message in messages))
    free = (chr(code) for code in _PRIVATE if chr(code) not in written)
    private = dict(zip(sorted(firsts), free))
    if len(private) < len(set(firsts)):
        raise InputError("the messages use every private character of Unicode; leave some of them out")
    return private


def _hide(text: str, control: Sequence[str], private: Mapping[str, str]) -> str:
    """`text` with no control token in it, nor the beginning of one at its end or before the space at its end, which
    what comes next could complete."""
    if not any(first in text for first in private):
        return text
    token = re.compile("|".join(map(re.escape, control)))
    ends = {len(text), len(text.rstrip())}
    longest = max(map(len, control))

    def begins(start: int) -> bool:
        if token.match(text, start):
            return True
        near = [end for end in ends if 0 < end - start < longest]
        return any(name.startswith(text[start:end]) for end in near for name in control)

    one_of = f"[{re.escape(''.join(private))}]"
    return re.sub(one_of, lambda found: private[found[0]] if begins(found.start()) else found[0], text)
