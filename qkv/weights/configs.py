"""What the published config.json files of all families share; `qkv.published` tells how they are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkv.atomic import write_file

# How transformers spells the shape of a stack, in every family that came after BERT.
_WORDS = {
    **{
        "vocab": "vocab_size",
        "context": "max_position_embeddings",
        "dim": "hidden_size",
        "layers": "num_hidden_layers",
    },
    **{"heads": "num_attention_heads", "ffn_dim": "intermediate_size", "activation": "hidden_act"},
    "norm_eps": "layer_norm_eps",
}


def spelled(**other: str | None) -> dict[str, str]:
    """Published key -> our field: in the usual words, and in those of the family itself (None: it has no such key)."""
    return {key: ours for ours, key in (_WORDS | other).items() if key is not None}


# What any config.json of transformers may say, and what changes nothing of what we compute: labels and names, how its
# library computes and answers, dropout and initialisation.
COMMON = frozenset(
    {
        *("model_type", "name_or_path", "tokenizer_class", "finetuning_task", "task_specific_params", "prefix"),
        *("id2label", "label2id", "problem_type", "return_dict", "use_return_dict", "output_attentions"),
        *("output_hidden_states", "output_scores", "return_dict_in_generate", "torchscript", "use_bfloat16"),
        *("tf_legacy_loss", "gradient_checkpointing", "use_cache", "chunk_size_feed_forward", "attn_implementation"),
        *("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "initializer_range"),
        *("initializer_factor", "init_std", "layerdrop", "pretraining_tp", "is_encoder_decoder", "attn_pdrop"),
        *("embd_pdrop", "resid_pdrop", "hidden_dropout", "activation_dropout", "classifier_dropout", "embed_dropout"),
        *("resid_dropout", "classifier_dropout_prob", "encoder_layerdrop", "decoder_layerdrop", "auto_map"),
    }
)

# How older versions of transformers had every model generate, and stack: nothing that an encoder does.
GENERATION = frozenset(
    {
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
        *("diversity_penalty", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "sep_token_id"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
        *("is_decoder", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size"),
        *("tie_encoder_decoder", "tie_word_embeddings", "pruned_heads"),
    }
)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file as published ones look, in a folder that is made if need be. Raises OutputError."""
    write_file(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
