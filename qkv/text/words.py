r"""How a language tokenizer cuts a text into words before it merges their symbols: the published ways, and no other.

A tokenizer.json brings regular expressions and processors of its own, which may be written to never end. So its
`normalizer` and `pre_tokenizer` are compared with what published decoders use, node by node: a pattern is accepted if
it stands in PATTERNS, and refused otherwise. All of these take time in proportion to the text.

There are two kinds of spelling. In "bytes" (GPT-2 and most since) every byte of UTF-8 is a printable character and the
text is cut into words. In "pieces" (sentencepiece as Llama 2 and Mistral 7B have it) a space is the character ▁, the
whole text is one word, and bytes without a token of their own are spelled <0x0A>.

Left out: Unigram and WordPiece models, and dropping, folding or rewriting text beyond Unicode's normal forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from qkv.errors import CheckpointError, shorten, unknown

_ENGLISH = "'s|'t|'re|'ve|'m|'ll|'d"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str, digits: str) -> str:
    """Words that end where lower case turns into upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{_UPPER}*{_LOWER}+{suffix}|{start}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BREAKS}"


def _words(digits: str, letters: str = r"\p{L}") -> str:
    marks = letters.replace("[", "").replace("]", "")
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letters}+"
    return rf"(?i:{_ENGLISH})|{word}|{digits}| ?[^\s{marks}\p{{N}}]+[\r\n]*|{_BREAKS}"


PATTERNS = {
    "GPT-2": rf"{_ENGLISH}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
    "Llama 3": _words(r"\p{N}{1,3}"),
    "Qwen 2": _words(r"\p{N}"),
    "Qwen 3.5": _words(r"\p{N}", r"[\p{L}\p{M}]"),
    "GPT-4o": _cased(f"(?i:{_ENGLISH})?", r"\p{N}{1,3}"),
    "Mistral Nemo": _cased("", r"\p{N}"),
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}

SPACE = "▁"  # how pieces spell it
# Gemma's, which cuts at spaces when its normalizer has left none.
_IDLE = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


@dataclass(frozen=True)
class Rules:
    """How one tokenizer cuts and spells. `normalizer` and `words` go into an encoder; `later` takes the place of
    `words` where a control token comes before the text. `leads`: pieces begin with a space that the text has not."""

    spelling: Literal["bytes", "pieces"]
    normalizer: normalizers.Normalizer | None
    words: pre_tokenizers.PreTokenizer | None
    later: pre_tokenizers.PreTokenizer | None
    ignore_merges: bool = False  # a word that is a token is not merged
    leads: bool = False

    @property
    def decoder(self) -> decoders.Decoder:
        """What a saved tokenizer.json gets; our own decoding is `token_bytes`."""
        if self.spelling == "bytes":
            return decoders.ByteLevel()
        parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if self.leads else parts)


def byte_rules(
    pattern: str | None = None,
    *,
    digits: bool = False,
    nfc: bool = False,
    whole: bool = False,
    prefix: bool = False,
) -> Rules:
    """Bytes, cut by one of PATTERNS (None: GPT-2's, as the library has it built in). `digits`: each digit is a word
    of its own. `whole`: a word that is a token is not merged. `prefix`: texts get a space before them."""
    parts: list[pre_tokenizers.PreTokenizer] = []
    if digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern is not None:
        parts.append(pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=pattern is None))
    words = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    return Rules("bytes", normalizers.NFC() if nfc else None, words, words, whole)


# What a GGUF file calls them (tokenizer.ggml.pre).
_GGUF: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("gpt-2", "phi-2", "olmo", "roberta-bpe"), {}),
    (("smollm", "starcoder", "refact", "codeshell", "command-r"), {"digits": True}),
    (("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), {"pattern": "Llama 3", "whole": True}),
    (("qwen2", "deepseek-r1-qwen"), {"pattern": "Qwen 2", "nfc": True}),
    (("qwen35",), {"pattern": "Qwen 3.5", "nfc": True}),
    (("gpt-4o",), {"pattern": "GPT-4o"}),
    (("tekken",), {"pattern": "Mistral Nemo", "whole": True}),
    (("bloom",), {"pattern": "BLOOM"}),
]


def gguf_rules(name: str) -> Rules:
    """By tokenizer.ggml.pre. CheckpointError if the name is not known: a guess would read every text wrong."""
    for names, options in _GGUF:
        if name in names:
            return byte_rules(**options)
    raise CheckpointError(unknown("tokenizer.ggml.pre", name, [name for names, _ in _GGUF for name in names]))


def json_rules(values: Mapping[str, Any]) -> Rules:
    """From the objects of a tokenizer.json. CheckpointError names a part that is not among the published ones."""
    normalizer = values.get("normalizer")
    words = values.get("pre_tokenizer")
    whole = values.get("model", {}).get("ignore_merges", False) is True
    nodes = _flat(words, "pretokenizers")
    spellings = {node["type"] for node in nodes} & {"ByteLevel", "Metaspace"}
    forms, pieces, leads = _normalizers(normalizer)
    if spellings == {"ByteLevel"} and not pieces:
        parts = [_pre_tokenizer(node) for node in nodes]
        cut = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
        return Rules("bytes", forms, cut, cut, whole)
    if pieces and all(node == _IDLE for node in nodes):
        return Rules("pieces", forms, None, None, whole, leads)
    if spellings == {"Metaspace"} and len(nodes) == 1 and not pieces:
        scheme = _metaspace(nodes[0])
        cut, later = (
            pre_tokenizers.Metaspace(SPACE, prepend_scheme=way, split=False)
            for way in (scheme, "never" if scheme == "first" else scheme)
        )
        return Rules("pieces", forms, cut, later, whole, scheme != "never")
    raise CheckpointError(f"its pre_tokenizer is {_brief(words)}; a byte-level or a sentencepiece one is expected")


def _flat(node: object, children: str) -> list[Mapping[str, Any]]:
    """A node, or the nodes of a sequence. Published ones neither nest nor have more than a handful."""
    match node:
        case None:
            return []
        case {"type": "Sequence"} if isinstance(node, dict) and isinstance(parts := node.get(children), list):
            nodes = parts
        case _:
            nodes = [node]
    for part in nodes:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str) or len(nodes) > 16:
            raise CheckpointError(f"{_brief(node)} is no part of a published tokenizer")
    return nodes


def _pre_tokenizer(node: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    match node:
        case {"type": "ByteLevel"}:
            options = {key: node.get(key, True) is True for key in ("add_prefix_space", "use_regex")}
            return pre_tokenizers.ByteLevel(**options)
        case {"type": "Digits"}:
            return pre_tokenizers.Digits(individual_digits=node.get("individual_digits", False) is True)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated" | "Removed", "invert": bool()}:
            # Isolated matches, and what is between them removed, come to the same where a pattern matches everything.
            if pattern in PATTERNS.values() and (node["behavior"] == "Removed") == node["invert"]:
                return pre_tokenizers.Split(Regex(pattern), node["behavior"].lower(), node["invert"])
    raise CheckpointError(
        f"{_brief(node)} cuts words in a way that is not known; known patterns: {', '.join(PATTERNS)}"
    )


def _normalizers(node: object) -> tuple[normalizers.Normalizer | None, bool, bool]:
    """The normalizer, whether it spells spaces as pieces do, and whether it puts one before the text."""
    parts: list[normalizers.Normalizer] = []
    pieces = leads = False
    for part in _flat(node, "normalizers"):
        match part:
            case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form}:
                parts.append(getattr(normalizers, form)())
            case {"type": "Prepend", "prepend": "▁"}:
                parts.append(normalizers.Prepend(SPACE))
                leads = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                parts.append(normalizers.Replace(" ", SPACE))
                pieces = True
            case other:
                raise CheckpointError(f"{_brief(other)} changes texts in a way that is not known")
    if not parts:
        return None, pieces, leads
    return (normalizers.Sequence(parts) if len(parts) > 1 else parts[0]), pieces, leads


def _metaspace(node: Mapping[str, Any]) -> str:
    match node:
        case {"replacement": "▁", "prepend_scheme": "first" | "always" | "never" as scheme, "split": False}:
            return scheme
    raise CheckpointError(f"{_brief(node)} is not the Metaspace of a published decoder")


def _brief(node: object) -> str:
    return shorten(repr(node), 120)


def valid_text(text: str) -> str:
    """`text` as Unicode: surrogate pairs are joined, half ones become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
