"""A language model ready to write: found by name, read, behind its engine, and kept in memory for the next request.

On a processor it runs on the compiled kernels, and a GGUF file even without importing torch; where they can't be built,
or don't know the model, it runs in PyTorch and says so. So it does if a `dtype` of PyTorch's is named. Both ways go
through the same engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qkv import registry
from qkv.engine.engine import Engine
from qkv.engine.handle import Handle
from qkv.engine.runner import Runner
from qkv.engine.sequence import EngineRequest
from qkv.errors import ConfigError, InputError, NotFoundError, shorten
from qkv.fetch.pull import find
from qkv.loaded import generation, models
from qkv.loaded.generation import Generation, from_gguf
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.machine import has_nvidia_driver
from qkv.models.decoder_config import DecoderConfig
from qkv.sample.constrain import Lexicon
from qkv.sample.tokens import whole
from qkv.text.chat import ChatTemplate
from qkv.text.language import LanguageTokenizer
from qkv.weights.quantised import Blocks

if TYPE_CHECKING:
    import torch

    from qkv.models.decoder import Decoder

MAX_CHARACTERS = 1 << 20  # of all texts of one request: as much as is tokenised in a second or two
MAX_THREADS = 64

# Fill in the middle (2207.14255): before the code above, before the code below, before what is to be written.
FIM = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder, CodeGemma
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_FIM_ENDS = ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "▁<EOT>", "<|file_sep|>", "<file_sep>", "<|repo_name|>")


@dataclass(frozen=True, eq=False, kw_only=True)
class Language:
    """A model with all that its folder says about writing with it.

    One model in memory may be had on several numbers of `threads`: as another `Language` `of` the same one.
    """

    name: str
    tokenizer: LanguageTokenizer
    engine: Engine
    load_template: Callable[[], ChatTemplate]
    generation: Generation = field(default_factory=Generation)  # how the publisher wants it to write
    warnings: tuple[str, ...] = ()
    threads: int | None = None
    of: "Language | None" = None

    @property
    def bytes(self) -> int:
        return self.engine.bytes

    def submit(self, request: EngineRequest) -> Handle:
        """What the engine makes of a request. Raises what `Engine.submit` does."""
        return self.engine.submit(request, threads=self.threads)

    @property
    def vocab(self) -> int:
        return self.engine.runner.vocab

    @property
    def context(self) -> int:
        """How many tokens a text may have: what the model can read, or what there is memory for."""
        return self.engine.context

    @cached_property
    def template(self) -> ChatTemplate:
        """How the model was trained to talk; only who chats pays for it. CheckpointError if there is none."""
        return self.load_template() if self.of is None else self.of.template

    @cached_property
    def lexicon(self) -> Lexicon:
        if self.of is not None:
            return self.of.lexicon
        return Lexicon(self.tokenizer, self.vocab, self.tokenizer.stops)

    def spell(self, token: int) -> str:
        """A token as text, for showing it."""
        return self.tokenizer.token_bytes(token).decode(errors="replace") if token < self.tokenizer.vocab else ""

    def token(self, spelling: str) -> int | None:
        """The control token that is spelled like this."""
        ids = self.tokenizer.encode(spelling, control=True)
        return ids[0] if len(ids) == 1 and self.spell(ids[0]) == spelling else None

    @cached_property
    def fim(self) -> tuple[int, int, int] | None:
        """The three tokens of filling in the middle, or None if the vocabulary has none."""
        for spellings in FIM:
            before, after, middle = map(self.token, spellings)
            if before is not None and after is not None and middle is not None:
                return before, after, middle
        return None

    @cached_property
    def fim_ends(self) -> frozenset[int]:
        """Tokens that end a text in the middle."""
        found = {self.token(spelling) for spelling in _FIM_ENDS} | set(self.fim or ())
        return frozenset(token for token in found if token is not None)

    def read(self, text: str) -> list[int]:
        """The tokens of a prompt; control tokens that it spells are plain text. Raises InputError."""
        check_text("prompt", text)
        start = [self.tokenizer.bos] if self.tokenizer.adds_bos and self.tokenizer.bos is not None else []
        ids = [*start, *self.tokenizer.encode(text)]
        if not ids and self.tokenizer.bos is not None:
            ids = [self.tokenizer.bos]
        if not ids:
            raise InputError("the prompt is empty, and this model has no token to begin with; write something")
        return ids


def check_text(name: str, text: object) -> str:
    """`text` if it can be read at all; else InputError."""
    if not isinstance(text, str):
        raise InputError(f"{name} is not a text but {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is no Unicode text: half a surrogate pair at character {error.start}") from error
    return text


@dataclass(frozen=True)
class Adapted:
    """The model of that name or in that folder, with the LoRA adapter in the folder `lora` put into its weights."""

    model: str | Path | None
    lora: str | Path


Asked = str | Path | Adapted | None  # which model; None is the default one


def adapted(model: str | Path | None, lora: str | Path | None) -> Asked:
    return model if lora is None else Adapted(model, lora)


def load_language(
    model: Asked = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    offline: bool = False,
) -> Language:
    """The language model of that name, in that folder or GGUF file, which may be `Adapted`; None is the default one.

    A known model that is not here is fetched, unless `offline`. `dtype` auto is the file's own; int8 and int4 make
    its weights smaller as they are read. `memory` is for keys and values, in bytes or such as "2G"; None is a share of
    what is free. Raises NotFoundError, CheckpointError, ConfigError, InputError.
    """
    if threads is not None:
        whole("threads", threads, 1, MAX_THREADS)
    name, lora = (model.model, Path(model.lora).absolute()) if isinstance(model, Adapted) else (model, None)
    path = find(name if name is not None else registry.DEFAULTS["text"], "text", offline=offline).absolute()
    if lora is not None and not lora.is_dir():
        raise NotFoundError(f"there is no folder {shorten(str(lora))!r} with an adapter; name the one that PEFT wrote")
    asked = Where(device=device, dtype=dtype, threads=threads, memory=memory)
    where = replace(asked, device=computing_device(asked.device), threads=None)
    what = What("text", path, () if lora is None else (lora,))

    def load() -> Language:
        if path.suffix != ".gguf":
            return _from_folder(path, where, lora)
        if lora is not None:
            raise ConfigError(
                f"{path.name} is a GGUF file; an adapter goes into a folder of safetensors: name that one"
            )
        return _from_gguf(path, where)

    language = models.get(what, where, load)
    return language if asked.threads is None else replace(language, threads=asked.threads, of=language)


def _from_gguf(path: Path, where: Where) -> Language:
    from qkv.weights.gguf import open_gguf
    from qkv.weights.gguf_decoder import load_gguf, read_decoder

    gguf = open_gguf(path)
    told, tokenizer = from_gguf(gguf), LanguageTokenizer.from_gguf(gguf.metadata)
    runner, warnings = _runner(lambda: read_decoder(gguf), lambda dtype: load_gguf(path, dtype), where)
    return Language(
        name=path.stem,
        tokenizer=tokenizer,
        load_template=lambda: ChatTemplate.from_gguf(gguf.metadata),
        engine=Engine(runner),
        generation=told,
        warnings=(*told.warnings, *warnings),
    )


def _from_folder(path: Path, where: Where, lora: Path | None) -> Language:
    from qkv.loaded.adapters import merge_adapter
    from qkv.loaded.encoder import unknown_keys
    from qkv.weights.decoder import as_blocks, load_decoder
    from qkv.weights.folder import Folder

    folder, odd = Folder(path), dict[str, None]()

    def load(dtype: "torch.dtype | None" = None) -> "Decoder":
        decoder = load_decoder(folder, dtype=dtype)
        if lora is not None:
            family = folder.json("config.json")["model_type"]
            odd.update(dict.fromkeys(merge_adapter(decoder, Folder(lora), family=family)))
        return decoder

    tokenizer = LanguageTokenizer.load(path)
    told = generation.read(folder)
    runner, warnings = _runner(lambda: as_blocks(load()), load, where)
    return Language(
        name=path.name if lora is None else f"{path.name}+{lora.name}",
        tokenizer=tokenizer,
        load_template=lambda: ChatTemplate.load(path),
        engine=Engine(runner),
        generation=told,
        warnings=(*unknown_keys(folder), *tokenizer.vocabulary.warnings, *told.warnings, *odd, *warnings),
    )


_KERNELS = {"auto": None, "int8": "Q8_0", "int4": "Q4_1"}  # dtype: what matrices are made of, if not of what they are


def needs_kernels(dtype: str) -> bool:
    """Whether nothing else computes in it."""
    return _KERNELS.get(dtype) is not None


def on_kernels(device: str, dtype: str) -> bool:
    """Whether the compiled kernels are asked first."""
    return dtype in _KERNELS and device == "cpu"


def _runner(
    read: Callable[[], tuple[DecoderConfig, Mapping[str, Blocks]]],
    load: Callable[["torch.dtype"], "Decoder"],
    where: Where,
) -> tuple[Runner, tuple[str, ...]]:
    """On the compiled kernels what `read` gives, else in PyTorch what `load` gives; and warnings."""
    if not on_kernels(where.device, where.dtype):
        return _torch_runner(load, where), ()
    from qkv.engine.native_runner import NativeRunner
    from qkv.kernels.build import KernelError

    kind = _KERNELS[where.dtype]
    try:
        config, weights = read()
        if kind is not None:
            from qkv.weights.quantise import requantise

            weights = requantise(weights, kind)
        return NativeRunner(config, weights, memory=where.pool), ()
    except (KernelError, ConfigError) as error:
        reason = f"the compiled kernels do not run here: {shorten(str(error), 300)}"
        if needs_kernels(where.dtype):
            raise ConfigError(f"dtype={where.dtype}: {reason}; leave dtype away") from error
        return _torch_runner(load, where), (f"slow: {reason}; PyTorch does",)


def computing_device(device: str) -> str:
    """Where a text is computed: auto is a GPU where there is one, else the processor."""
    return device if device != "auto" else "cuda" if _has_gpu() else "cpu"


def _has_gpu() -> bool:
    """Whether PyTorch has a GPU to compute on; it is imported only where there can be one."""
    if not has_nvidia_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _torch_runner(load: Callable[["torch.dtype"], "Decoder"], where: Where) -> Runner:
    from qkv import device as devices
    from qkv.engine.torch_runner import TorchRunner

    torch_device = devices.find_device(where.device)
    if needs_kernels(where.dtype):
        raise InputError(f"dtype={where.dtype} is for processors; on {torch_device.type} use bfloat16 or float16")
    decoder = load(devices.find_dtype(where.dtype, torch_device)).to(torch_device)
    return TorchRunner(decoder, memory=where.pool)
