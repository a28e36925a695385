"""BLOOM, GPT-NeoX and Falcon as transformers publishes them: three families under Megatron's names, whose q, k and v
lie in one matrix, stacked by heads.

BLOOM (2211.05100) has ALiBi, and a norm after the embeddings. In GPT-NeoX-20B (2204.06745) and Pythia (2304.01373) a
quarter of each head turns, and attention and feed-forward read the same input. So they do in Falcon (2311.16867), which
norms it once (7B, 11B) or for each (40B, 180B), and whose queries share few keys. Left out: falcon-rw, whose ALiBi is
divided by the root of the head's width, and rounded to bfloat16.
"""

from typing import Any

import torch

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import ROTARY, DecoderFamily, fields, partly_rotary, widened
from qkv.weights.family import Joint, whole
from qkv.weights.files import release
from qkv.weights.tables import Pair, Row, Table, Transform, rows

_NORMS = ("(attention_norm|ffn_norm).{}", "(input|post_attention)_layernorm.{}")


def by_heads(heads: int, kv_heads: int | None = None) -> Transform:
    """q, k and v that are stacked within every head, or within the heads that share keys: (G * (H / G + 2) * K, D) or
    without D <-> (H * K, D), (G * K, D) and (G * K, D).

    Unlike other transforms it copies, for the rows of one projection lie apart.
    """
    groups = kv_heads or heads
    counts = (heads // groups, 1, 1)

    def split(tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = tensor.unflatten(0, (groups, sum(counts), -1)).split(counts, 1)
        found = [part.flatten(0, 2) for part in parts]
        release(tensor)
        return found

    def fuse(parts: Any) -> torch.Tensor:
        stacked = [part.unflatten(0, (groups, count, -1)) for part, count in zip(parts, counts)]
        return torch.cat(stacked, dim=1).flatten(0, 2)

    return Transform(split, fuse)


def _layer(config: DecoderConfig, attention: str, norms: tuple[str, str] = _NORMS) -> list[Pair]:
    return [
        norms,
        ("attention.(q|k|v).{}", f"{attention}.query_key_value.{{}}", by_heads(config.heads, config.kv_heads)),
        ("attention.out.{}", f"{attention}.dense.{{}}"),
        ("ffn.(up|down).{}", "mlp.dense_(h_to_4h|4h_to_h).{}"),
    ]


def _bloom_table(config: DecoderConfig) -> Table:
    """With the prefix that transformers writes, and without, as BigScience's own files have it."""
    ends = [
        ("token.weight", "word_embeddings.weight"),
        ("norm.{}", "word_embeddings_layernorm.{}"),
        ("stack.norm.{}", "ln_f.{}"),
    ]
    layer = rows(_layer(config, "self_attention"), "stack.blocks.{}.", "transformer.h.{}.", "h.{}.")
    return Table([*rows(ends, "", "transformer.", ""), *layer, ("head.weight", "lm_head.weight")])


BLOOM = DecoderFamily(
    architecture="BloomForCausalLM",
    keys=Keys(
        fields=fields(  # seq_length is of training: ALiBi itself has no longest input
            **{"context": "seq_length", "layers": "n_layer", "heads": "n_head", "norm_eps": "layer_norm_epsilon"},
            **{"ffn_dim": None, "activation": None},
        ),
        harmless={"slow_but_exact", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id"}
        | {"masked_softmax_fusion", "attention_softmax_in_fp32", "bias_dropout_fusion"},
        fixed={"model_type": ("bloom",), "apply_residual_connection_post_layernorm": (False,)},
        absent={"vocab_size": 250_880, "seq_length": 2048, "hidden_size": 64, "n_layer": 2, "n_head": 8},
    ),
    values={"position": "alibi", "embed_norm": True, "activation": "gelu_tanh"},
    table=_bloom_table,
    joints=(Joint((), lambda published: {"ffn_dim": 4 * whole(published, "hidden_size")}),),
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
)


def _neox_table(config: DecoderConfig) -> Table:
    ends: list[Row | Pair] = [
        ("token.weight", "gpt_neox.embed_in.weight"),
        ("stack.norm.{}", "gpt_neox.final_layer_norm.{}"),
        Row(("head.weight",), "embed_out.weight", ("lm_head.weight",)),
    ]
    masks = [f"gpt_neox.layers.{{}}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")]
    return Table([*ends, *rows(_layer(config, "attention"), "stack.blocks.{}.", "gpt_neox.layers.{}.")], masks)


NEOX = DecoderFamily(
    architecture="GPTNeoXForCausalLM",
    keys=Keys(
        fields=fields(parallel="use_parallel_residual"),
        harmless={"is_decoder"},
        fixed={"model_type": ("gpt_neox",), "attention_bias": (True,)},
        absent={"vocab_size": 50_432, "max_position_embeddings": 2048, "hidden_size": 6144, "num_hidden_layers": 44}
        | {"num_attention_heads": 64, "intermediate_size": 24_576},
    ),
    values={"activation": "gelu", "position": "rotary", "parallel": True, "tied": False},
    table=_neox_table,
    joints=(partly_rotary(0.25, "rotary_emb_base", "rotary_pct"),),
    aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
)


def _falcon_table(config: DecoderConfig) -> Table:
    shared, apart = ("attention_norm.{}", "input_layernorm.{}"), (_NORMS[0], "(ln_attn|ln_mlp).{}")
    layer = _layer(config, "self_attention", shared if config.shared_norm else apart)
    ends = [
        ("token.weight", "transformer.word_embeddings.weight"),
        ("stack.norm.{}", "transformer.ln_f.{}"),
        ("head.weight", "lm_head.weight"),
    ]
    return Table([*ends, *rows(layer, "stack.blocks.{}.", "transformer.h.{}.")])


_FALCON_LAYOUT = {"new_decoder_architecture", "num_kv_heads", "num_ln_in_parallel_attn", "bias"}


def _read_falcon(published: Published) -> dict[str, Any]:
    """The newer layout (11B, 40B, 180B) says how many norms and keys there are; in the older they are one."""
    newer = published.get("new_decoder_architecture")
    norms = published.get("num_ln_in_parallel_attn") or 2
    return {
        **dict.fromkeys(("bias", "attention_bias", "out_bias"), published.get("bias", False)),
        "kv_heads": published.get("num_kv_heads") if newer else 1,
        "shared_norm": norms == 1 if newer else True,
    }


def _write_falcon(config: DecoderConfig) -> Published:
    newer = config.kv_heads != 1 or not config.shared_norm
    written = {"new_decoder_architecture": newer, "num_kv_heads": config.kv_heads, "bias": config.bias}
    return written | {"num_ln_in_parallel_attn": 2 - config.shared_norm if newer else None}


FALCON = DecoderFamily(
    architecture="FalconForCausalLM",
    keys=Keys(
        fields=fields(ffn_dim=None, activation="activation", norm_eps="layer_norm_epsilon"),
        fixed={"model_type": ("falcon",), "alibi": (False,), "multi_query": (True,), "parallel_attn": (True,)},
        absent={"vocab_size": 65_024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
        | {"max_position_embeddings": 2048, "activation": "gelu"},
    ),
    values={"position": "rotary", "parallel": True},
    table=_falcon_table,
    joints=(
        ROTARY,
        widened("ffn_hidden_size"),
        Joint(_FALCON_LAYOUT, _read_falcon, _write_falcon),
    ),
    aliases={"n_embed": "hidden_size"},
)
