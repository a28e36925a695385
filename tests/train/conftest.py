"""A chat model of a few thousand weights, in a folder as it would be published."""

from pathlib import Path

import pytest
import torch

from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.text.chat import ChatTemplate
from qkv.text.language import LanguageTokenizer
from qkv.text.learn import learn_bpe
from qkv.text.vocabulary import Added, Vocabulary
from qkv.train.conversations import Speaker
from qkv.weights.decoder import save_decoder

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = {
    "vocab": 258, "context": 96, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 48, "activation": "silu",
    "gated": True, "bias": False, "attention_bias": False, "out_bias": False, "norm": "rms", "position": "rotary",
}  # fmt: skip


def chat_tokenizer() -> LanguageTokenizer:
    bytes_only = learn_bpe("", 256).vocabulary
    turns = [Added(id=256 + i, content=name, special=True) for i, name in enumerate(("<|im_start|>", "<|im_end|>"))]
    ids = bytes_only.ids | {token.content: token.id for token in turns}
    return LanguageTokenizer(
        Vocabulary(ids=ids, merges=[], rules=bytes_only.rules, added=turns, eos="<|im_end|>", stops=frozenset({257}))
    )


def tiny_llama() -> Decoder:
    """Strongly initialised, so that nothing about it is near zero."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**LLAMA)).eval()  # type: ignore[arg-type]
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.normal_(parameter, 1.0, 0.3)
    return decoder


@pytest.fixture
def decoder() -> Decoder:
    return tiny_llama()


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    return Speaker(chat_tokenizer(), ChatTemplate(CHATML), 96)


@pytest.fixture
def chat_model(decoder: Decoder, speaker: Speaker, tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    save_decoder(decoder, folder)
    speaker.tokenizer.save(folder)
    speaker.template.save(folder)
    return folder
