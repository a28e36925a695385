"""The files of CLIP's tokenizer: tokenizer.json, or vocab.json and merges.txt; their configuration; and back.

Of tokenizer.json only the vocabulary, the merges and the added tokens are read, never its patterns or processors: the
rules are CLIP's, and a hostile pattern is never run. Control tokens and added ones are where transformers looks:
`added_tokens_decoder` in tokenizer_config.json; without it special_tokens_map.json, added_tokens.json and the
`added_tokens` of tokenizer.json. Every file is bounded before it is read.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.atomic import write_file
from qkv.errors import CheckpointError, shorten
from qkv.published import Keys
from qkv.text.language_files import ADDED, CONFIG, MAP, complete, read_told, tokens_of
from qkv.text.vocabulary import Added, read_vocab
from qkv.untrusted import read_json

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77  # positions of every published CLIP text encoder
MAX_CONTEXT = 100_000  # more is no limit
END = "</w>"  # of a word's last symbol

_CONTROL = ("bos_token", "eos_token", "unk_token", "pad_token")

CONFIG_KEYS = Keys(
    read={*_CONTROL, "additional_special_tokens", "extra_special_tokens", "model_max_length", "added_tokens_decoder"},
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
    told, file = read_told(folder, CONFIG_KEYS, within=f"{folder.name}/"), folder / "tokenizer.json"
    if file.is_file():
        vocab, merges, listed = _read_tokenizer_json(file)
    else:
        (vocab, lines), listed = read_vocab(folder), []
        merges = [_merge(line.split(" "), folder / "merges.txt") for line in lines]
    if told.config.get("added_tokens_decoder") is not None:
        listed = []  # what that says is the whole truth
    for key in _CONTROL:
        if told.config.get(key) is not None and key not in told.named:
            raise CheckpointError(f"{folder / CONFIG}: {key}={shorten(repr(told.config[key]))} is not a token")
    control = {key: told.named[key].content for key in _CONTROL if key in told.named}
    others = {key: token for key, token in told.named.items() if key not in control}
    controls, added = {BOS, EOS, *control.values()}, complete(vocab, [*listed, *told.added], others)
    return Files(
        vocab={token.content: token.id for token in added if token.content in controls} | vocab,
        merges=merges,
        added=[token for token in added if token.content not in controls],
        context=_context(told.config.get("model_max_length"), folder / CONFIG),
        more={key: value for key, value in CONFIG_KEYS.kept(told.config).items() if key not in _HERE},
        warnings=told.warnings,
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
    for name, text in texts.items():
        write_file(folder / name, text.encode())


def _registered(files: Files, control: Mapping[str, str]) -> list[Added]:
    """The control tokens as transformers registers them, which takes them before the added ones where it is told."""
    return [Added(id=files.vocab[name], content=name, special=True) for name in dict.fromkeys(control.values())]


def _context(longest: Any, file: Path) -> int | None:
    """`model_max_length`; transformers writes 1e30 where there is no limit."""
    if longest is None or (isinstance(longest, int | float) and longest > MAX_CONTEXT):
        return None
    if type(longest) is not int or longest < 3:
        raise CheckpointError(f"{file}: model_max_length={shorten(repr(longest))} is no number of tokens above 2")
    return longest


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]], list[Added]]:
    values = read_json(path)
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != END:
        raise CheckpointError(f"{path} is not a CLIP tokenizer: its model is not BPE with {END!r}")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} has no vocab and merges; get it again")
    pairs = [_merge(pair.split(" ") if isinstance(pair, str) else pair, path) for pair in merges]
    return vocab, pairs, tokens_of(values)


def _merge(pair: object, path: Path) -> tuple[str, str]:
    if isinstance(pair, list) and len(pair) == 2:  # a `match` takes three times as long, of 12,000
        left, right = pair
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise CheckpointError(f"{path} has a merge that is not two symbols: {shorten(repr(pair))}")
