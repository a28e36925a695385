"""generation_config.json: how a model's publisher wants it to write, key by key as transformers' `generate` does it.

Every key of transformers' GenerationConfig stands in the table below. Older folders have these keys in config.json.
What the user asks goes before what the file says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from qkv.errors import ConfigError, InputError, shorten
from qkv.loaded.gguf_keys import read_keys
from qkv.published import Keys
from qkv.sample.beam import EarlyStopping, check_beams
from qkv.sample.rules import TokenRules
from qkv.sample.stops import check_stops
from qkv.sample.tokens import Sampling, whole
from qkv.weights.gguf import GGUF

if TYPE_CHECKING:
    from qkv.sample.translation_beam import Search
    from qkv.weights.folder import Folder

FILE = "generation_config.json"
_MOST_IDS = 1 << 20  # numbers in one list

# Of Sampling; the filters count only where do_sample is set, and transformers has a value for each that is left out.
FILTERS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
RULES = tuple(each.name for each in fields(TokenRules))  # which have the keys' names
KEYS = Keys(
    read={
        *FILTERS,
        *RULES,
        *("do_sample", "repetition_penalty", "num_beams", "length_penalty", "early_stopping", "max_length"),
        *("max_new_tokens", "stop_strings"),
        "eos_token_id",  # where the tokenizer is read (text/vocabulary.py)
    },
    # What `generate` would do and we do not, with the values that mean "not at all".
    fixed={
        "top_h": (None,),
        "typical_p": (1.0,),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "encoder_repetition_penalty": (1.0,),
        "encoder_no_repeat_ngram_size": (0,),
        "token_healing": (False,),
        "guidance_scale": (1.0,),
        "watermarking_config": (None,),
        "penalty_alpha": (0.0,),
        "dola_layers": (None,),
        "diversity_penalty": (0.0,),
        "num_beam_groups": (1,),
        "constraints": (None,),
        "force_words_ids": (None,),
        "max_time": (None,),
    },
    # What changes no token: how it is computed, what is given back, ids that are known otherwise.
    harmless={
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "use_mtp", "return_legacy_cache"),
        *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "pad_token_id", "bos_token_id", "decoder_start_token_id", "is_assistant"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile"),
        *("continuous_batching_config", "low_memory", "prefill_chunk_size", "remove_invalid_values"),
        *("trust_remote_code", "generation_kwargs"),
    },
)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the file says, checked. `sampling`: fields of Sampling. `max_tokens`: of an answer, if nobody says how many;
    `max_length`: of prompt and answer then."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    beams: int | None = None
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    max_tokens: int | None = None
    max_length: int | None = None
    stop: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read(folder: "Folder") -> Generation:
    """Of a published folder. ConfigError, CheckpointError."""
    return read_generation(folder.json(FILE)) if folder.has(FILE) else from_config(folder.json("config.json"))


def read_generation(published: Mapping[str, Any], *, file: str = FILE) -> Generation:
    """From the keys of a generation_config.json. ConfigError names one that cannot be honoured."""
    try:
        KEYS.ours(published)
        return _checked(KEYS.given(published), tuple(KEYS.unknown(published, file)))
    except (ConfigError, InputError) as error:
        raise ConfigError(f"{file}: {error}") from error


def from_config(config: Mapping[str, Any]) -> Generation:
    """From the config.json of a folder without a generation_config.json, as older ones have it."""
    known = KEYS.names.difference(KEYS.harmless)
    return read_generation({key: value for key, value in config.items() if key in known}, file="config.json")


def from_gguf(gguf: GGUF) -> Generation:
    """From the metadata of a GGUF file, which may say how llama.cpp would draw. ConfigError."""
    try:
        sampling, warnings = read_keys(gguf.metadata)
        Sampling(**sampling)
    except (ConfigError, InputError) as error:
        raise ConfigError(f"{gguf.path}: {error}") from error
    return Generation(sampling=sampling, warnings=tuple(warnings))


def translation_search(told: Generation, *, end: int) -> "Search":
    """How a translator whose texts end with `end` searches. ConfigError for what its beams do not know."""
    from qkv.sample.translation_beam import Search

    rules: TokenRules = told.sampling.get("rules", TokenRules())
    known = ("bad_words_ids", "suppress_tokens", "renormalize_logits", "forced_eos_token_id")
    odd = [name for name in RULES if name not in known and getattr(rules, name) != getattr(TokenRules(), name)]
    odd += [name for name in ("temperature", "repetition_penalty") if told.sampling.get(name, 1.0) != 1.0]
    odd += ["do_sample"] if "top_k" in told.sampling else []
    odd += ["bad_words_ids of several tokens"] if any(len(run) > 1 for run in rules.bad_words_ids) else []
    odd += ["forced_eos_token_id"] if rules.forced_eos_token_id not in ((), (end,)) else []
    if odd or told.stop:
        raise ConfigError(f"{FILE}: {' and '.join(odd or ['stop_strings'])} is not supported for translators")
    banned = {token for (token,) in rules.bad_words_ids if token != end} | set(rules.suppress_tokens)
    lengths = (told.max_tokens, None if told.max_length is None else max(1, told.max_length - 1))  # but for the start
    return Search(
        beams=4 if told.beams is None else told.beams,
        length_penalty=told.length_penalty,
        penalty="power",
        early_stopping=told.early_stopping,
        longest=next((length for length in lengths if length is not None), None),
        banned=tuple(sorted(banned)),
        renormalise=rules.renormalize_logits,
    )


def _checked(given: Mapping[str, Any], warnings: tuple[str, ...]) -> Generation:
    drawn, beams = _flag(given, "do_sample"), given.get("num_beams")
    if drawn and beams not in (None, 1):
        raise InputError(f"do_sample with num_beams={shorten(repr(beams))} is not supported; ask for one of them")
    filters = {name: given.get(name, absent) for name, absent in FILTERS.items()} if drawn else {}
    penalty = {"repetition_penalty": given["repetition_penalty"]} if "repetition_penalty" in given else {}
    rules = TokenRules(**{name: _RULES[name](name, given[name]) for name in RULES if name in given})
    sampling = filters | penalty | ({} if rules == TokenRules() else {"rules": rules})
    Sampling(**sampling)
    found = Generation(
        sampling=sampling,
        beams=beams,
        length_penalty=given.get("length_penalty", 1.0),
        early_stopping=given.get("early_stopping", False),
        max_tokens=given.get("max_new_tokens"),
        max_length=given.get("max_length"),
        stop=check_stops(given.get("stop_strings", ())),
        warnings=warnings,
    )
    check_beams(1 if beams is None else beams, found.length_penalty)
    if not isinstance(found.early_stopping, bool) and found.early_stopping != "never":
        raise InputError(f"early_stopping={shorten(repr(found.early_stopping))} is none of true, false and 'never'")
    for name in ("max_new_tokens", "max_length"):
        if name in given:
            whole(name, given[name], 1, 2**31)
    return found


def _flag(given: Mapping[str, Any], name: str) -> bool:
    if not isinstance(value := given.get(name, False), bool):
        raise InputError(f"{name}={shorten(repr(value))} is neither true nor false")
    return value


def _count(name: str, value: Any) -> int:
    whole(name, value, 0, 2**31)
    found: int = value
    return found


def _ids(name: str, value: Any) -> tuple[int, ...]:
    """A list of token ids; a number is a list of one."""
    tokens = value if isinstance(value, list) else [value]
    if len(tokens) > _MOST_IDS:
        raise InputError(f"{name} has {len(tokens):,} ids; at most {_MOST_IDS:,} are read")
    return tuple(_count(f"{name}: token id", token) for token in tokens)


def _runs(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(run, list) and run for run in value):
        raise InputError(f"{name}={shorten(repr(value))} is no list of lists of token ids")
    return tuple(_ids(name, run) for run in value)


def _biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    found = []
    for pair in value if isinstance(value, list) else [value]:
        match pair:
            case [list(run), float() | int() as bias] if run:
                found.append((_ids(name, run), float(bias)))
            case _:
                raise InputError(f"{name} holds {shorten(repr(pair))}, not [[token ids], number]")
    return tuple(found)


def _decay(name: str, value: Any) -> tuple[int, float]:
    match value:
        case [int(start), float() | int() as factor] if start >= 0 and 0 < factor < 1e3:
            return start, float(factor)
    raise InputError(f"{name}={shorten(repr(value))} is not [where it starts, by how much]")


_RULES: dict[str, Callable[[str, Any], Any]] = {
    "sequence_bias": _biases,
    "no_repeat_ngram_size": _count,
    "bad_words_ids": _runs,
    "min_length": _count,
    "min_new_tokens": _count,
    "forced_bos_token_id": _count,
    "forced_eos_token_id": _ids,
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "renormalize_logits": lambda name, value: _flag({name: value}, name),
}
