"""Recipe "chat": a published model learns to answer as a file of conversations does, the loss on the answers only.

    start: name, folder or GGUF file ─ lora ─ fit on *.jsonl ─ RUN/adapter (PEFT) and RUN/model (merged, whole)

LoRA (lora.py), or every weight, which takes several times the memory and forgets more. Preferences between answers
come after it (preference.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from qkv.errors import ConfigError
from qkv.fetch.pull import find
from qkv.loaded.generation import FILE
from qkv.models.decoder import Decoder
from qkv.text.chat import ChatTemplate
from qkv.text.language import LanguageTokenizer
from qkv.train.conversations import IGNORED, Example, Order, Rows, Speaker, digest, read_conversations, rows
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.lora import LoraConfig, add_lora, lora_layers, merge, save_adapter
from qkv.train.recipes import Context
from qkv.weights.configs import write_json
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.folder import Folder
from qkv.weights.gguf import open_gguf
from qkv.weights.gguf_decoder import load_gguf


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`start` is what `qkv chat --model` takes; `held_out` a second file, whose loss is logged. `context`: the most
    tokens of a conversation; a longer one is refused before training starts. `method` "full" trains every weight."""

    data: Path
    held_out: Path | None = None
    start: str = "smollm2"
    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch: int = 8
    context: int = 512
    fit: FitConfig

    def __post_init__(self) -> None:
        for name in ("batch", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class Start:
    """A published model to go on from."""

    decoder: Decoder
    tokenizer: LanguageTokenizer
    template: ChatTemplate
    generation: Mapping[str, Any] = field(default_factory=dict)  # its generation_config.json

    def speaker(self, context: int) -> Speaker:
        """ConfigError if the model cannot read as much."""
        if context > self.decoder.config.context:
            raise ConfigError(f"context={context} is more than the {self.decoder.config.context} tokens of the model")
        return Speaker(self.tokenizer, self.template, context)


def open_start(name: str, dtype: torch.dtype) -> Start:
    """A model by its name, folder or GGUF file. NotFoundError; CheckpointError, also without a chat template."""
    path = find(name, "text")
    if path.suffix == ".gguf":
        metadata = open_gguf(path).metadata
        tokenizer, template = LanguageTokenizer.from_gguf(metadata), ChatTemplate.from_gguf(metadata)
        return Start(load_gguf(path, dtype), tokenizer, template)
    tokenizer, template = LanguageTokenizer.load(path), ChatTemplate.load(path)
    folder = Folder(path)
    generation = folder.json(FILE) if folder.has(FILE) else {}
    return Start(load_decoder(folder, dtype=dtype), tokenizer, template, generation)


def open_trainable(name: str, lora: LoraConfig | None, config: FitConfig, device: torch.device) -> Start:
    """With its corrections to train, over a base that stays as narrow as it computes; or with all weights in fp32."""
    start = open_start(name, torch.bfloat16 if lora and config.dtype == "bf16" else torch.float32)
    start.decoder.to(device)
    torch.manual_seed(config.seed)
    if lora:
        add_lora(start.decoder, lora)
    return start


@dataclass(frozen=True)
class Batches:
    """The `Rows` of a step."""

    examples: list[Example]
    order: Order

    @classmethod
    def of(cls, examples: list[Example], batch: int, seed: int) -> "Batches":
        return cls(examples, Order([len(example.ids) for example in examples], batch, seed))

    def __call__(self, step: int) -> Rows:
        return rows([self.examples[row] for row in self.order.at(step)])


def train(recipe: Recipe, context: Context) -> Result[Decoder]:
    lora = recipe.lora if recipe.method == "lora" else None
    start = open_trainable(recipe.start, lora, recipe.fit, context.device)
    speaker = start.speaker(recipe.context)
    known = read_examples(recipe.data, speaker)
    unseen = read_examples(recipe.held_out, speaker) if recipe.held_out else []

    def validate(decoder: Decoder, step: int) -> dict[str, float]:
        return {"held_out": answer_loss(decoder, unseen, recipe.batch)} if unseen else {}

    result = context.fit(
        recipe,
        start.decoder,
        Batches.of(known, recipe.batch, recipe.fit.seed),
        answering,
        facts={"sha256": digest(recipe.data)},
        validate=validate,
    )
    save(result.model, start, context.folder, recipe.start)
    return result


def read_examples(path: Path, speaker: Speaker) -> list[Example]:
    """The conversations of a file as tokens. InputError that names the file and the line."""
    return read_conversations(path, speaker.example)


def answering(decoder: Decoder, batch: Rows, generator: torch.Generator) -> Loss:
    """The mean of -log p over the answers' tokens, in nats; only these go through the head."""
    learnt = batch.targets != IGNORED  # (B, T)
    logits = decoder.logits(decoder.states(batch.ids)[learnt])  # (N, V)
    return Loss(F.cross_entropy(logits.float(), batch.targets[learnt]), count=int(learnt.sum()))


@torch.no_grad()
def answer_loss(decoder: Decoder, examples: list[Example], batch: int) -> float:
    """`answering` over all examples, each token counting alike."""
    device, total, count = decoder.token.weight.device, 0.0, 0
    for i in range(0, len(examples), batch):
        part = rows(examples[i : i + batch])
        loss = answering(decoder, Rows(part.ids.to(device), part.targets.to(device)), torch.Generator())
        assert loss.count is not None
        total, count = total + float(loss.value) * loss.count, count + loss.count
    return total / count


def save(decoder: Decoder, start: Start, folder: Path, base: str) -> None:
    """FOLDER/adapter, if there are corrections, and FOLDER/model, which `qkv chat --model` opens."""
    if lora_layers(decoder):
        save_adapter(decoder, folder / "adapter", base=base)
        merge(decoder)
    save_decoder(decoder, folder / "model", also={"eos_token_id": sorted(start.tokenizer.stops)})
    start.tokenizer.save(folder / "model")
    write_json(folder / "model" / FILE, {**start.generation, "eos_token_id": sorted(start.tokenizer.stops)})
    start.template.save(folder / "model")
