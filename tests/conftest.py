"""A tiny pipeline folder with strong random weights: every part of Stable Diffusion at 32 x 32 pixels; and a language
model of paper that says what a script says."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from qkv import registry
from qkv.engine.engine import Engine
from qkv.engine.runner import Chunk
from qkv.loaded.language import Language
from qkv.models.bert import Bert, BertConfig
from qkv.models.clip import CLIP, TextConfig, TextTower, VisionConfig
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.noise import NoiseConfig
from qkv.models.preprocess import Preprocess
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.text.bert import learn_wordpiece
from qkv.text.chat import ChatTemplate
from qkv.text.language import LanguageTokenizer
from qkv.text.learn import learn_bpe
from qkv.text.tokenizer import train_tokenizer
from qkv.text.vocabulary import Added, assemble
from qkv.weights.bert import save_bert
from qkv.weights.clip import save_clip
from qkv.weights.decoder import save_decoder
from qkv.weights.diffusers import save_latent_diffusion
from qkv.weights.preprocess import save_preprocess

# The data home: never the user's own, of which the suite shares the compiled kernels and may read the models.

USERS = Path(os.path.realpath(registry.home()))
WRITES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1, "os.truncate": 0}


def make_home(folder: Path, *shared: str) -> Path:
    folder.mkdir()
    for name in shared:
        (folder / name).symlink_to(USERS / name)
    return folder


def is_users(path: object) -> bool:
    """Whether what is written at `path` lies in the user's home, beside the kernels."""
    if not isinstance(path, str | bytes | os.PathLike):  # a descriptor
        return False
    real = Path(os.path.realpath(os.fsdecode(path)))
    return real.is_relative_to(USERS) and not real.is_relative_to(USERS / "kernels")


def guard(event: str, arguments: tuple) -> None:
    """An audit hook: fails the test that writes into the user's home, or starts a Python that would."""
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        assert not is_users(arguments[0]), f"a test writes {arguments[0]}, in the user's data home"
    elif event in WRITES:
        path = arguments[WRITES[event]]
        assert not is_users(path), f"a test writes {path}, in the user's data home"
    elif event == "subprocess.Popen":
        program, _, _, env = arguments
        if Path(os.fsdecode(program)).name.startswith(("python", "qkv")):
            home = dict(os.environ if env is None else env).get("QKV_HOME", USERS)
            assert not is_users(home), "a test starts a process that writes into the user's data home"


@pytest.fixture(scope="session", autouse=True)
def suites_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each process of pytest-xdist has its own."""
    (USERS / "kernels").mkdir(parents=True, exist_ok=True)
    sys.addaudithook(guard)
    with mock.patch.dict(os.environ, QKV_HOME=str(make_home(tmp_path_factory.mktemp("suite") / "home", "kernels"))):
        yield


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test sets ends with it (`--offline` sets variables of the process); one marked `weights` sees the user's
    models."""
    with mock.patch.dict(os.environ):
        if request.node.get_closest_marker("weights"):
            folder = make_home(tmp_path_factory.mktemp("weights") / "home", "kernels", "models")
            os.environ["QKV_HOME"] = str(folder)
        yield


@pytest.fixture
def users_home() -> Path:
    return USERS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("QKV_HOME", str(folder))
    return folder


TEXTS = [
    "a photo of an astronaut riding a horse on mars",
    "a painting of new york city in impressionist style",
    "a dog in a suit, dogs playing poker, a red cat and a blue fish",
    "穿西裝的狗, ein Hund im Anzug, un chien à l'école",
]


def strengthen(module: nn.Module, seed: int) -> None:
    """Random weights that let every layer be seen in the result."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        is_gain = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            width = parameter[0].numel()  # so that signals neither die nor explode
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.1 * noise if parameter.ndim == 1 else noise / width**0.5)


def tiny_pipeline(name: str = "tiny") -> LatentDiffusion:
    tokenizer = train_tokenizer(TEXTS * 3, vocab=600)
    end = tokenizer.vocab - 1
    text = TextConfig(vocab=tokenizer.vocab, dim=32, layers=2, heads=2, ffn_dim=64, start=end - 1, end=end, pad=end)
    unet = UNetConfig(
        dims=(16, 32),
        attention=(True, True),
        heads=(2, 2),
        layers=1,
        memory_dim=32,
        groups=8,
        linear_projection=True,
        sample_size=8,
    )
    vae = VAEConfig(dims=(8, 16, 16), layers=1, groups=4, sample_size=32, scaling=0.7)
    noise = NoiseConfig(
        prediction="v", zero_terminal_snr=True, spacing="trailing", sampler="ddim", final_alpha_one=True
    )
    model = LatentDiffusion(
        name=name, tokenizer=tokenizer, text=TextTower(text), unet=UNet(unet), vae=VAE(vae), noise=noise
    )
    for seed, part in enumerate((model.text, model.unet, model.vae)):
        strengthen(part.eval(), seed)
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, in float32."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_latent_diffusion(tiny_pipeline(), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder for pictures of 32 x 32."""
    folder = tmp_path_factory.mktemp("clip") / "seer"
    tokenizer = train_tokenizer(TEXTS * 3, vocab=600)
    tower = {"dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "proj_dim": 16}
    end = tokenizer.vocab - 1
    text = TextConfig(vocab=tokenizer.vocab, context=20, start=end - 1, end=end, pad=end, **tower)
    clip = CLIP(text, VisionConfig(image_size=32, patch=8, **tower)).eval()
    for seed, part in enumerate((clip.text, clip.vision), 6):
        strengthen(part, seed)
    save_clip(clip, folder)
    tokenizer.save(folder)
    save_preprocess(Preprocess(resize=32, crop=(32, 32)), folder)
    return folder


# The language model of paper: byte by byte, so that every character arrives in pieces.

WORDS = "return the name of a thing, and return it again: the thing\n" * 5
PLAIN = 280  # tokens; the control tokens come behind them
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def paper_tokenizer(control: Sequence[str] = CONTROL) -> LanguageTokenizer:
    learnt = learn_bpe(WORDS, PLAIN).vocabulary
    added = [Added(id=PLAIN + i, content=content, special=True) for i, content in enumerate(control)]
    return LanguageTokenizer(
        assemble(dict(learnt.ids), added, merges=learnt.merges, rules=learnt.rules, bos=CONTROL[0], eos=CONTROL[0])
    )


class ScriptRunner:
    """After a text that ends with a key of `script`, and part of what it stands for, comes the next byte of that."""

    def __init__(self, script: Mapping[str, str], known: LanguageTokenizer, context: int) -> None:
        self.vocab, self.context, self.page, self.pages, self.page_bytes = known.vocab + 13, context, 4, 400, 1000
        self.script, self.tokenizer = script, known
        self.paper = np.full((self.pages, self.page), -1)
        self.steps = 0

    def step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        self.steps += 1
        for chunk in chunks:
            for row, token in enumerate(chunk.ids, chunk.start):
                self.paper[chunk.table[row // self.page], row % self.page] = token
        return [self._logits(chunk) for chunk in chunks if chunk.wanted]

    def _logits(self, chunk: Chunk) -> np.ndarray:
        read, stop = self.paper[list(chunk.table)].ravel(), chunk.start + len(chunk.ids)
        return np.stack([self.row(read[: i + 1].tolist()) for i in range(stop - chunk.wanted, stop)])

    def row(self, ids: list[int]) -> np.ndarray:
        logits = np.random.default_rng(ids).standard_normal(self.vocab).astype(np.float32)
        logits[self.tokenizer.vocab :] = -50  # padding
        text = b"".join(map(self.tokenizer.token_bytes, ids))
        for key, said in self.script.items():
            _, found, after = text.rpartition(key.encode())
            if found and said.encode().startswith(after):
                rest = said.encode()[len(after) :]
                ends = self.tokenizer.token_bytes
                token = next(i for i in range(PLAIN) if ends(i) == rest[:1]) if rest else PLAIN + 2
                logits[token] += 20
                break
        return logits


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Language]:
    """Makes a model of that script the one that is loaded, whatever name is asked for."""

    def make(script: Mapping[str, str], *, context: int = 300, control: Sequence[str] = CONTROL, **parts) -> Language:
        known = paper_tokenizer(control)
        runner = ScriptRunner(script, known, context)
        parts = {"load_template": lambda: ChatTemplate(TEMPLATE)} | parts
        language = Language(name="paper", tokenizer=known, engine=Engine(runner), **parts)
        for home in ("tasks.chat", "tasks.code", "tasks.complete", "loaded.language"):
            monkeypatch.setattr(f"qkv.{home}.load_language", lambda *given, **where: language)
        return language

    return make


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer and a chat template, in bfloat16."""
    path, tokenizer = tmp_path_factory.mktemp("language") / "small", paper_tokenizer()
    config = DecoderConfig(
        vocab=tokenizer.vocab,
        context=128,
        dim=64,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn_dim=96,
        activation="silu",
        gated=True,
        bias=False,
        attention_bias=False,
        out_bias=False,
        norm="rms",
        position="rotary",
    )
    decoder = Decoder(config)
    strengthen(decoder, 0)
    save_decoder(decoder, path, family="llama", dtype=torch.bfloat16)
    tokenizer.save(path)
    ChatTemplate(TEMPLATE).save(path)
    return path


# A reader of paper: a BERT of a few thousand weights with its own vocabulary.

SENTENCES = [
    "a dog in a suit",
    "dogs playing poker",
    "a red cat and a blue fish",
    "an astronaut riding a horse on mars",
]


@pytest.fixture
def odd_keys(tmp_path: Path) -> Callable[[Path], tuple[Path, tuple[str, ...]]]:
    """A copy of a text model's folder whose files say what nobody knows, and the warnings for that."""

    def make(folder: Path) -> tuple[Path, tuple[str, ...]]:
        copy = shutil.copytree(folder, tmp_path / folder.parent.name / folder.name)
        files = {"config.json": "logit_softness", "tokenizer_config.json": "lowercase_all"}
        for name, key in files.items():
            (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | {key: 1}))
        said = "qkv does not know what they mean and leaves them out"
        return copy, tuple(f"unknown-keys: {name} has {key}; {said}" for name, key in files.items())

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the folder of one, with strong random weights: `kind` is Bert or MaskedBert, `said` the files of a sentence
    encoder, by name."""

    def make(kind: type[nn.Module] = Bert, said: Mapping[str, object] | None = None, **shape: object) -> Path:
        tokenizer = learn_wordpiece(SENTENCES, 60)
        size = {"dim": 32, "layers": 2, "heads": 2, "ffn_dim": 48, "context": 40} | shape
        model = kind(BertConfig(vocab=tokenizer.vocab, **size)).eval()
        strengthen(model, 5)
        folder = tmp_path_factory.mktemp("bert") / "reader"
        save_bert(model, folder)
        tokenizer.save(folder)
        for name, values in (said or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values))
        return folder

    return make
