"""The files of CLIP's tokenizer: tokenizer.json, or vocab.json and merges.txt; their configuration; and back.

Of tokenizer.json only the vocabulary, the merges and the added tokens are read, never its patterns or processors: the
rules are CLIP's, and a hostile pattern is never run. Control tokens and added ones are where transformers looks:
`added_tokens_decoder` in tokenizer_config.json; without it special_tokens_map.json, added_tokens.json and the
`added_tokens` of tokenizer.json. Every file is bounded before it is read.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.errors import CheckpointError, OutputError, shorten
from qkv.published import Keys
from qkv.text.vocabulary import Added, read_vocab
from qkv.untrusted import read_json

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77  # positions of every published CLIP text encoder
MAX_CONTEXT = 100_000  # more is no limit
END = "</w>"  # of a word's last symbol

_CONTROL = ("bos_token", "eos_token", "unk_token", "pad_token")
_MORE = ("additional_special_tokens", "extra_special_tokens")  # older, newer
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
CONFIG_KEYS = Keys(
    read={*_CONTROL, *_MORE, "model_max_length", "added_tokens_decoder"},
    fixed={
        "padding_side": ("right",),
        "truncation_side": ("right",),
        "add_bos_token": (True,),
        "add_eos_token": (True,),
        "split_special_tokens": (False,),
    },
    harmless={
        *("tokenizer_class", "processor_class", "name_or_path", "special_tokens_map_file", "tokenizer_file"),
        *("vocab_file", "merges_file", "model_input_names", "use_fast", "from_slow", "legacy", "backend", "is_local"),
        *("local_files_only", "add_prefix_space", "do_lower_case", "errors", "clean_up_tokenization_spaces"),
        *("pad_token_type_id", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "chat_template"),
    },
)
# Where the files lay on the machine of whoever wrote them, and what was told to the class of that time.
_HERE = {"tokenizer_class", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"}
MAP_KEYS = Keys(read={*_CONTROL, *_MORE})


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a folder says. `context` is how many tokens a text is padded to and cut at, None if no file says it; `more`
    is what tokenizer_config.json says beside, for an export."""

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    bos: str = BOS
    eos: str = EOS
    pad: str = EOS
    added: Sequence[Added] = ()
    context: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=(), compare=False)


def read_files(folder: Path) -> Files:
    """The tokenizer's files in `folder`. CheckpointError, ConfigError."""
    config, special = (read_json(folder / name, optional=True) for name in (CONFIG, MAP))
    CONFIG_KEYS.ours(config)
    file = folder / "tokenizer.json"
    if file.is_file():
        vocab, merges, listed = _read_tokenizer_json(file)
    else:
        (vocab, lines), listed = read_vocab(folder), []
        merges = [_merge(line.split(" "), folder / "merges.txt") for line in lines]
    if (decoder := config.get("added_tokens_decoder")) is None:
        said = config | special
        tokens = {**_added_json(folder / ADDED, said), **_by_content(listed, file)}
    else:  # the newer way, and then the whole truth
        said, tokens = config, _by_content(_decoded(decoder, folder / CONFIG), folder / CONFIG)
    control = {key: _name(said[key], key, folder / CONFIG) for key in _CONTROL if said.get(key) is not None}
    added = _numbered({**_specials(said, folder / CONFIG), **tokens}, vocab)
    controls = {BOS, EOS, *control.values()}
    return Files(
        vocab={token.content: token.id for token in added if token.content in controls} | vocab,
        merges=merges,
        added=[token for token in added if token.content not in controls],
        context=_context(config.get("model_max_length"), folder / CONFIG),
        more={key: value for key, value in CONFIG_KEYS.kept(config).items() if key not in _HERE},
        warnings=(
            *CONFIG_KEYS.unknown(config, f"{folder.name}/{CONFIG}"),
            *MAP_KEYS.unknown(special, f"{folder.name}/{MAP}"),
        ),
        **{key.removesuffix("_token"): name for key, name in control.items() if key != "unk_token"},
    )


def write_files(files: Files, folder: Path) -> None:
    """vocab.json, merges.txt and their configuration, as transformers' CLIPTokenizer reads them. OutputError."""
    control: dict[str, Any] = {
        "bos_token": files.bos,
        "eos_token": files.eos,
        "unk_token": files.eos,
        "pad_token": files.pad,
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": files.context or CONTEXT, **control, **files.more}
    merges = "".join(f"{left} {right}\n" for left, right in files.merges)
    texts = {"vocab.json": json.dumps(files.vocab, ensure_ascii=False), "merges.txt": f"#version: 0.2\n{merges}"}
    if files.added:
        config["added_tokens_decoder"] = {
            token.id: {key: value for key, value in dataclasses.asdict(token).items() if key != "id"}
            for token in [*_registered(files, control), *files.added]
        }
        texts[ADDED] = json.dumps({token.content: token.id for token in files.added}, ensure_ascii=False)
    texts |= {CONFIG: json.dumps(config, indent=2, ensure_ascii=False), MAP: json.dumps(control, indent=2)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _registered(files: Files, control: Mapping[str, str]) -> list[Added]:
    """The control tokens as transformers registers them, which takes them before the added ones where it is told."""
    return [Added(id=files.vocab[name], content=name, special=True) for name in dict.fromkeys(control.values())]


def _added(token: Any, id: Any, file: Path, **said: bool) -> Added:
    """An added token from its JSON; `said` are its flags where the JSON does not say them."""
    match token:
        case {"content": str(content)} if content:
            said = {"special": False} | said | {flag: token[flag] is True for flag in _FLAGS if flag in token}
            return Added(id=id, content=content, **{"normalized": not said["special"]} | said)
    raise CheckpointError(f"{file} has an added token that is none: {shorten(repr(token))}")


def _by_content(tokens: list[Any], file: Path) -> dict[str, Added]:
    added = (_added(token, token.get("id") if isinstance(token, dict) else 0, file) for token in tokens)
    return {token.content: token for token in added}


def _decoded(decoder: Any, file: Path) -> list[Any]:
    """The entries of `added_tokens_decoder` as tokenizer.json has them, with their id inside."""
    if not isinstance(decoder, dict) or not all(key.isdecimal() and isinstance(t, dict) for key, t in decoder.items()):
        raise CheckpointError(f"{file}: added_tokens_decoder is no table of ids and tokens; get it again")
    return [token | {"id": int(key[:10])} for key, token in decoder.items()]


def _added_json(file: Path, said: Mapping[str, Any]) -> dict[str, Added]:
    """added_tokens.json, the oldest way: content and id."""
    ids = read_json(file, optional=True)
    special = {*_specials(said, file), *(_name(said[key], key, file) for key in _CONTROL if said.get(key) is not None)}
    return {content: _added({"content": content}, id, file, special=content in special) for content, id in ids.items()}


def _specials(said: Mapping[str, Any], file: Path) -> dict[str, Added]:
    """The tokens that are only named, without an id: -1 stands for it."""
    more: Any = next((said[key] for key in _MORE if said.get(key)), [])
    tokens = list(more.values()) if isinstance(more, dict) else more
    if not isinstance(tokens, list):
        raise CheckpointError(f"{file}: {shorten(repr(more))} is no list of tokens")
    named = ({"content": token} if isinstance(token, str) else token for token in tokens)
    return {token.content: token for token in (_added(entry, -1, file, special=True) for entry in named)}


def _numbered(tokens: Mapping[str, Added], vocab: Mapping[str, Any]) -> list[Added]:
    """Every token with its id: the vocabulary's if it is there too, its own, or else the next that is free."""
    taken = [id for id in (*vocab.values(), *(token.id for token in tokens.values())) if isinstance(id, int)]
    free = itertools.count(max(taken, default=-1) + 1)
    found = []
    for content, token in tokens.items():
        id = vocab.get(content, token.id)
        found.append(dataclasses.replace(token, id=next(free) if id == -1 else id))
    return found


def _context(longest: Any, file: Path) -> int | None:
    """`model_max_length`; transformers writes 1e30 where there is no limit."""
    if longest is None or (isinstance(longest, int | float) and longest > MAX_CONTEXT):
        return None
    if type(longest) is not int or longest < 3:
        raise CheckpointError(f"{file}: model_max_length={shorten(repr(longest))} is no number of tokens above 2")
    return longest


def _name(token: Any, key: str, file: Path) -> str:
    match token:
        case str(name) | {"content": str(name)}:
            return name
    raise CheckpointError(f"{file}: {key}={shorten(repr(token))} is not a token")


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]], list[Any]]:
    values = read_json(path)
    model, listed = values.get("model"), values.get("added_tokens")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != END:
        raise CheckpointError(f"{path} is not a CLIP tokenizer: its model is not BPE with {END!r}")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} has no vocab and merges; get it again")
    pairs = [_merge(pair.split(" ") if isinstance(pair, str) else pair, path) for pair in merges]
    return vocab, pairs, listed if isinstance(listed, list) else []


def _merge(pair: object, path: Path) -> tuple[str, str]:
    if isinstance(pair, list) and len(pair) == 2:  # a `match` takes three times as long, of 12,000
        left, right = pair
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise CheckpointError(f"{path} has a merge that is not two symbols: {shorten(repr(pair))}")
