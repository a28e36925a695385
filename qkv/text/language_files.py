"""A tokenizer's published folder: which of its files says what, as transformers reads them.

A folder has tokenizer.json, or vocab.json and merges.txt, which are cut by the rules of the class that
tokenizer_config.json (or the model's type) names. Tokens are added by tokenizer.json, by `added_tokens_decoder` of
tokenizer_config.json, or in older folders by added_tokens.json and special_tokens_map.json; generation_config.json and
config.json name the ids that end an answer. Only data is taken. Every key of tokenizer_config.json stands in `KEYS`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.published import Keys
from qkv.text.vocabulary import Added, Vocabulary, assemble, pairs, read_vocab
from qkv.text.words import Rules, byte_rules, json_rules
from qkv.untrusted import read_json

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEYS = Keys(
    read={
        *NAMED,
        *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "tokenizer_class"),
        *("add_prefix_space", "add_bos_token", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        *("chat_template", "model_max_length", "source_lang", "target_lang"),
    },
    fixed={
        "add_eos_token": (False,),
        "split_special_tokens": (False,),
        "fix_mistral_regex": (False,),
        "do_basic_tokenize": (True,),
        "never_split": (None, []),
        "separate_vocabs": (False,),
    },
    # How texts are padded and cut, what is given back, what its library wrote down. Decoding never cleans spaces up:
    # a text is what its tokens spell.
    harmless={
        *("clean_up_tokenization_spaces", "padding_side", "truncation_side", "truncation_strategy", "max_length"),
        *("stride", "pad_to_multiple_of", "pad_token_type_id", "model_input_names", "return_token_type_ids", "errors"),
        *("trim_offsets", "legacy", "use_default_system_prompt", "spaces_between_special_tokens", "sp_model_kwargs"),
        *("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "processor_class"),
        *("auto_map", "is_local", "local_files_only", "backend", "tokenizer_type", "init_inputs", "use_fast"),
        *("model_specific_special_tokens", "chat_control_tokens", "response_template", "response_schema", "vocab_size"),
        *("from_slow", "verbose", "tokenizer_object", "truncation", "padding"),
    },
)
# Kinds of texts that published classes cut in the same way, where a folder has no tokenizer.json. What a class calls
# its special tokens if the folder does not.
_END = "<|endoftext|>"


@dataclass(frozen=True)
class _Class:
    cut: Mapping[str, Any] = field(default_factory=dict)  # of byte_rules
    named: Mapping[str, Added] = field(default_factory=dict)


def _tokens(**named: str) -> dict[str, Added]:
    """The space before a mask is the mask's."""
    return {key: Added(id=-1, content=name, special=True, lstrip=key == "mask_token") for key, name in named.items()}


_GPT2 = _Class({}, _tokens(bos_token=_END, eos_token=_END, unk_token=_END))
_QWEN2 = _Class({"pattern": "Qwen 2", "nfc": True}, _tokens(eos_token=_END, unk_token=_END, pad_token=_END))
_ROBERTA = _Class({}, _tokens(**dict(zip(NAMED, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>")))))
CLASSES = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "Qwen2Tokenizer": _QWEN2,
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
}
# The class of a model whose folder names none.
_OF_MODEL = {"gpt2": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "phi": "GPT2Tokenizer"}
_OF_MODEL |= {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "roberta": "RobertaTokenizer"}
_OF_MODEL |= dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer") | {"mpnet": "MPNetTokenizer"}


@dataclass(frozen=True)
class Told:
    """What a folder says beside its vocabulary. `named`: special tokens by their keys. `config`: tokenizer_config.json,
    with special_tokens_map.json where that counts. `added`: tokens by id, which tokenizer.json may have too."""

    config: Mapping[str, Any]
    kind: str | None  # the class, by its name without "Fast"; None: not named, or generic
    named: Mapping[str, Added]  # their ids are not known yet
    added: tuple[Added, ...]
    warnings: tuple[str, ...]


def read_told(folder: Path, keys: Keys = KEYS, *, within: str = "") -> Told:
    """What a folder says in `keys`; `within` names it to the user. CheckpointError for what is broken; ConfigError for
    a key that cannot be honoured."""
    config, model = (read_json(folder / name, optional=True) for name in (CONFIG, "config.json"))
    try:
        keys.ours(config)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error
    said = {CONFIG: config}
    kind = config.get("tokenizer_class") or model.get("tokenizer_class") or _OF_MODEL.get(str(model.get("model_type")))
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        said[MAP] = read_json(folder / MAP, optional=True)
        config = config | said[MAP]
    named = _named(config, folder / CONFIG)
    return Told(
        config,
        str(kind).removesuffix("Fast") if kind else None,
        named,
        tuple(_older(named.values(), folder) if decoder is None else _decoded(decoder, folder)),
        tuple(w for name, found in said.items() for w in keys.unknown(_unnamed(found), f"{within}{name}")),
    )


def _unnamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the tokens that have a name, whichever that is."""
    return {key: value for key, value in config.items() if not (key.endswith("_token") and _name(value))}


def _decoded(decoder: Any, folder: Path) -> Iterator[Added]:
    where = f"{folder / CONFIG}: added_tokens_decoder"
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{where} is no table of ids and tokens; get it again")
    for id, token in decoder.items():
        yield _added({**(token if isinstance(token, Mapping) else {}), "id": _id(id, where)}, where)


def _older(named: Iterable[Added], folder: Path) -> Iterator[Added]:
    """From added_tokens.json, which says no more than names and ids."""
    special, file = {token.content for token in named}, folder / ADDED
    for name, id in read_json(file, optional=True).items():
        yield Added(id=_id(id, str(file)), content=name, special=name in special, normalized=name not in special)


def read_folder(folder: Path) -> Vocabulary:
    """From a published folder. CheckpointError names the file that is missing, broken or not known, ConfigError a key
    that cannot be honoured."""
    told, file, values = read_told(folder), folder / "tokenizer.json", dict[str, Any]()
    if file.is_file():
        values = read_json(file)
        ids, merges = _model(values, file)
    else:
        file = folder / "vocab.json"
        ids, merges = read_vocab(folder)
    try:
        return _assembled(told, values, ids, merges, stops=list(_stops(folder)))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _assembled(told: Told, values: dict[str, Any], ids: dict[str, int], merges: list[Any], **more: Any) -> Vocabulary:
    """`values` are those of tokenizer.json, none where there is only a vocabulary."""
    known = CLASSES.get(told.kind or ("" if values else "GPT2Tokenizer"))
    named = {**(known.named if known else {}), **told.named}
    named = {key: named[key] for key in (*NAMED, *named) if key in named}
    names = {key: token.content for key, token in named.items()}
    asked = told.config.get("add_bos_token")
    begins = _begins_with(values.get("post_processor"), names.get("bos_token"))
    return assemble(
        ids,
        complete(ids, [*tokens_of(values), *told.added], named),
        merges=pairs(merges),
        rules=json_rules(_prefixed(values, told)) if values else _class_rules(known, told),
        bos=names.get("bos_token"),
        eos=names.get("eos_token"),
        named=names,
        adds_bos=asked if isinstance(asked, bool) else begins,
        warnings=told.warnings,
        **more,
    )


def tokens_of(values: Mapping[str, Any]) -> list[Added]:
    """The added tokens of a tokenizer.json. CheckpointError."""
    return [_added(token, "tokenizer.json") for token in _list(values.get("added_tokens"))]


def complete(ids: Mapping[str, int], added: Iterable[Added], named: Mapping[str, Added]) -> list[Added]:
    """The added tokens, each once, and the named ones that are not among them: those of the vocabulary, and new ones
    with the ids behind it."""
    found: dict[str, Added] = {}
    for token in added:
        found.setdefault(token.content, token)
    last = max([*(id for id in ids.values() if type(id) is int), *(token.id for token in found.values())], default=-1)
    for token in named.values():
        if token.content in found:
            continue
        if token.content not in ids:
            last += 1
        found[token.content] = replace(token, id=ids.get(token.content, last))
    return list(found.values())


def _class_rules(known: _Class | None, told: Told) -> Rules:
    if known is None:
        some = ", ".join(CLASSES)
        raise CheckpointError(
            f"{told.kind} cuts texts in a way that vocab.json and merges.txt do not say; they are read for {some}: "
            "get the folder's tokenizer.json too"
        )
    return byte_rules(**known.cut, prefix=told.config.get("add_prefix_space") is True)


def _prefixed(values: dict[str, Any], told: Told) -> dict[str, Any]:
    """A tokenizer.json whose space before a text is as tokenizer_config.json says: a class that the library builds anew
    goes by that, and puts none where nobody asks for one."""
    asked = told.config.get("add_prefix_space")
    if told.kind in CLASSES:
        return {
            **values,
            "pre_tokenizer": _set(values.get("pre_tokenizer"), "ByteLevel", add_prefix_space=asked is True),
        }
    if told.kind in ("LlamaTokenizer", "CodeLlamaTokenizer") and asked is False:
        parts = [part for part in _nodes(values.get("normalizer"), "normalizers") if part.get("type") != "Prepend"]
        scheme = _set(values.get("pre_tokenizer"), "Metaspace", prepend_scheme="never")
        return {**values, "normalizer": {"type": "Sequence", "normalizers": parts}, "pre_tokenizer": scheme}
    return values


def _set(node: Any, kind: str, **options: Any) -> Any:
    """A copy of a pre-tokenizer with these options where its parts are of that kind."""
    if (
        isinstance(node, dict)
        and node.get("type") == "Sequence"
        and isinstance(parts := node.get("pretokenizers"), list)
    ):
        return {**node, "pretokenizers": [_set(part, kind, **options) for part in parts]}
    return {**node, **options} if isinstance(node, dict) and node.get("type") == kind else node


def _nodes(node: Any, children: str) -> list[dict[str, Any]]:
    found = node.get(children) if isinstance(node, dict) and node.get("type") == "Sequence" else [node]
    return [part for part in _list(found) if isinstance(part, dict)]


def _stops(folder: Path) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name, optional=True).get("eos_token_id")
        yield from (id for id in (given if isinstance(given, list) else [given]) if type(id) is int)


def _named(config: Mapping[str, Any], file: Path) -> dict[str, Added]:
    """The special tokens that have a name, in transformers' order, and those that a list adds."""
    keys = [*NAMED, *(key for key in config if key.endswith("_token") and key not in NAMED)]
    found = {key: token for key in keys if (token := _special(config.get(key))) is not None}
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(more, Mapping):
        return found | {str(key): token for key, value in more.items() if (token := _special(value)) is not None}
    if not isinstance(more or [], list):
        raise CheckpointError(f"{file}: {shorten(repr(more))} is no list of tokens")
    listed = [token for value in more or [] if (token := _special(value)) is not None]
    return found | {f"special {number}": token for number, token in enumerate(listed)}


def _special(value: object) -> Added | None:
    if (name := _name(value)) is None:
        return None
    flags = value if isinstance(value, Mapping) else {}
    return Added(id=-1, content=name, special=True, **_flags(flags, "lstrip", "rstrip", "single_word", "normalized"))


def _name(token: object) -> str | None:
    match token:
        case str(name) | {"content": str(name)} if name:
            return name
    return None


def _flags(token: Mapping[str, Any], *names: str) -> dict[str, bool]:
    return {name: token.get(name) is True for name in names}


def _id(value: object, where: str) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if type(value) is int and value >= 0:
        return value
    raise CheckpointError(f"{where}: an added token has the id {shorten(repr(value))}; ids count from 0")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _model(values: Mapping[str, Any], file: Path) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of a tokenizer.json."""
    match values.get("model"):
        case {"vocab": dict(ids), "merges": list(merges), **rest} if rest.get("type", "BPE") == "BPE":
            odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if rest.get(key)]
            if odd:
                raise CheckpointError(f"{file}: {odd[0]} is not what language models have; is it another tokenizer?")
            return ids, merges
        case {"type": kind} if kind != "BPE":
            raise CheckpointError(f"{file} is a {shorten(str(kind))} model; only BPE is read")
    raise CheckpointError(f"{file} has no vocab and merges; get it again")


def _added(token: Any, where: str) -> Added:
    match token:
        case {"id": int(id), "content": str(content)} if content and type(id) is int:
            flags = _flags(token, "special", "lstrip", "rstrip", "single_word", "normalized")
            return Added(id=id, content=content, **flags)
    raise CheckpointError(f"{where} has an added token that is none: {shorten(repr(token))}")


def _begins_with(processor: object, bos: str | None) -> bool:
    """Whether a text's ids begin with bos: its template is [bos, the text]."""
    match processor:
        case {"type": "Sequence", "processors": list(parts)}:
            return any(_begins_with(part, bos) for part in parts)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": first}}, *_]}:
            return bos is not None and first == bos
    return False
