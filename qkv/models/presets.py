"""Published shapes by name, for training from scratch: what a checkpoint's own config.json says otherwise.

Torch-free. `PRESETS["gpt3-small"]` is a DecoderConfig; `dataclasses.replace` changes what a run wants otherwise.
"""

from qkv.models.decoder_config import DecoderConfig

BAND = 256  # GPT-3's is not printed; this is GPT-Neo's


def _gpt3(layers: int, dim: int, heads: int, head_dim: int) -> DecoderConfig:
    """Language Models are Few-Shot Learners (2005.14165), section 2.1: GPT-2's block, with "alternating dense and
    locally banded sparse attention patterns"."""
    return DecoderConfig(
        context=2048,
        dim=dim,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        ffn_dim=4 * dim,
        windows=(None, BAND),
    )


PRESETS = {
    # Table 2.1 prints 24 heads of 128 for 1.3B, with which it would have 1.5 billion parameters.
    "gpt3-small": _gpt3(layers=12, dim=768, heads=12, head_dim=64),
    "gpt3-medium": _gpt3(layers=24, dim=1024, heads=16, head_dim=64),
    "gpt3-large": _gpt3(layers=24, dim=1536, heads=16, head_dim=96),
    "gpt3-xl": _gpt3(layers=24, dim=2048, heads=16, head_dim=128),
    "gpt3-2.7b": _gpt3(layers=32, dim=2560, heads=32, head_dim=80),
    "gpt3-6.7b": _gpt3(layers=32, dim=4096, heads=32, head_dim=128),
    "gpt3-13b": _gpt3(layers=40, dim=5140, heads=40, head_dim=128),
    "gpt3-175b": _gpt3(layers=96, dim=12_288, heads=96, head_dim=128),
    # Pythia (2304.01373), table 1.
    "pythia-160m": DecoderConfig(
        vocab=50_304, context=2048, activation="gelu", parallel=True, position="rotary", rotary_dim=16, tied=False
    ),
}
