"""Decoders' folders that are hostile, impossible, do not fit their weights, or ask for what we do not compute.

Rows 9 to 11 of the list of faults.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from qkv.errors import CheckpointError, ConfigError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder

SMALL = {"vocab": 20, "context": 8, "dim": 16, "layers": 2, "heads": 2, "ffn_dim": 24}
RMS = {"norm": "rms", "gated": True, "activation": "silu", "bias": False, "attention_bias": False, "out_bias": False}
GEMMA = {"position": "rotary", "norm": "rms_unit_offset", "activation": "gelu_tanh", "scaled": True}
KINDS = {
    "gpt2": {},
    "gpt_neo": {"scale": 1.0, "attention_bias": False, "windows": (None, 4)},
    "bloom": {"position": "alibi", "embed_norm": True, "ffn_dim": 64},
    "llama": {**RMS, "position": "rotary", "tied": False},
    "mistral": {**RMS, "position": "rotary", "tied": False, "windows": (4,)},
    "qwen2": {**RMS, "position": "rotary", "attention_bias": True},
    "qwen3": {**RMS, "position": "rotary", "qk_norm": True, "windows": (None, 4)},
    "gpt_neox": {"position": "rotary", "rotary_dim": 4, "parallel": True, "activation": "gelu", "tied": False},
    "falcon": {"position": "rotary", "parallel": True, "shared_norm": True, "activation": "gelu", "kv_heads": 1}
    | dict.fromkeys(("bias", "attention_bias", "out_bias"), False),
    "phi": {"position": "rotary", "rotary_dim": 4, "parallel": True, "shared_norm": True, "tied": False}
    | {"head_bias": True},
    "opt": {"position_offset": 2, "activation": "relu"},
    "gemma": {**RMS, **GEMMA},
    "gemma2": {**RMS, **GEMMA, "post_norm": True, "score_cap": 5.0, "scale": 0.25, "windows": (4, None)},
}
HUGE, NAN = 10**12, math.nan


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for kind, values in KINDS.items():
        save_decoder(Decoder(DecoderConfig(**SMALL | values)), folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_folder_loads(folder, kind):
    assert json.loads((folder / kind / "config.json").read_text())["model_type"] == kind
    assert load_decoder(Folder(folder / kind))(torch.tensor([[1, 2, 3]])).shape == (1, 3, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_comes_out_of_a_folder(folder, kind, monkeypatch, edit):
    canary = folder / "canary"
    call = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "conftest.py", "__init__.py"):
        (folder / kind / name).write_text(call)
    monkeypatch.chdir(folder / kind)
    monkeypatch.syspath_prepend(str(folder / kind))
    hostile = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "configuration_evil--evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation_internal": f"evil/kernel:{call}",
        "architectures": [call],
        "_name_or_path": "evil",
        "__class__": call,
        "dtype": call,
        "torch_dtype": call,
    }
    edit(folder / kind / "config.json", hostile)
    loaded = set(sys.modules)
    load_decoder(Folder(folder / kind))
    assert not canary.exists()
    assert not {name for name in set(sys.modules) - loaded if "evil" in name}


DEEP: list[object] = []
for _ in range(200):
    DEEP = [DEEP]

IMPOSSIBLE = {
    "gpt2": [
        ({"n_head": 0}, "heads=0 is out of range"),
        ({"n_head": 3}, "dim=16 is not divisible by heads=3"),
        ({"n_head": 2.0}, "heads=2.0 is not a whole number"),
        ({"num_attention_heads": 3}, "dim=16 is not divisible by heads=3"),
        ({"vocab_size": -1}, "vocab=-1 is out of range"),
        ({"vocab_size": HUGE}, "vocab=1000000000000 is out of range"),
        ({"n_layer": 10**9}, "layers=1000000000 is out of range"),
        ({"n_layer": 10**300}, "layers=10+ is out of range"),
        ({"n_positions": HUGE}, "context=1000000000000 is out of range"),
        ({"n_positions": 10**8}, "context=100000000 is out of range; learned positions"),
        ({"n_inner": 0}, "ffn_dim=0 is out of range"),
        ({"n_inner": None, "n_embd": "x" * 10**6}, "n_embd='x+… is not a whole number"),
        ({"n_inner": None, "n_embd": {"a": 1}}, "n_embd={'a': 1} is not a whole number"),
        ({"layer_norm_epsilon": NAN}, "norm_eps=nan is not a finite number"),
        ({"layer_norm_epsilon": -1e-5}, "norm_eps=-1e-05 is out of range"),
        ({"activation_function": "__import__('os').system('touch canary')"}, "unknown activation"),
        ({"activation_function": ["gelu"]}, r"activation=\['gelu'\] is not a text"),
        ({"tie_word_embeddings": "no"}, "tied='no' is not true or false"),
        ({"model_type": "gpt3"}, "unknown model_type 'gpt3'; did you mean gpt2"),
        ({"model_type": None}, "unknown model_type 'None'"),
        ({"model_type": {"gpt2": 1}}, "unknown model_type"),
    ],
    "gpt_neo": [
        ({"attention_types": [[["global", "local"], 10**9]]}, "attention_types=.* does not fit num_layers=2"),
        (
            {"attention_types": [[["global"], 1]]},
            r"attention_types=\['global'\] must hold global or local for 2 layers",
        ),
        ({"attention_types": [[["global", "evil"], 1]]}, "attention_types=.* must hold global or local"),
        ({"attention_types": "global"}, "attention_types='global' does not fit"),
        ({"attention_types": None}, "attention_types=None does not fit"),
        ({"attention_types": DEEP}, "attention_types=.* does not fit"),
        ({"window_size": 0}, "window_size=0 is out of range"),
        ({"num_layers": 10**9}, "num_layers=1000000000 is out of range; it must be 1 to 1000"),
    ],
    "bloom": [
        ({"n_head": 3}, "dim=16 is not divisible by heads=3"),
        ({"hidden_size": HUGE}, "hidden_size=1000000000000 is out of range"),
        ({"n_embed": 0}, "hidden_size=0 is out of range"),
        ({"seq_length": 0}, "context=0 is out of range"),
    ],
    "llama": [
        ({"num_key_value_heads": 3}, "kv_heads=3 does not divide heads=2"),
        ({"num_key_value_heads": 0}, "kv_heads=0 is out of range"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"head_dim": HUGE}, "head_dim=1000000000000 is out of range"),
        ({"rms_norm_eps": math.inf}, "norm_eps=inf is not a finite number"),
        ({"rms_norm_eps": 10**400}, "is not a finite number"),
        ({"max_position_embeddings": HUGE}, "context=1000000000000 is out of range"),
        ({"rope_theta": 0}, "rotary_base=0.0 is out of range"),
        ({"rope_theta": NAN}, "rotary_base=nan is not a finite number"),
        ({"rope_scaling": "llama3"}, "rope_parameters='llama3' is not a JSON object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "low=4.0 and high=1.0 of the rotary scaling",
        ),
    ],
    "mistral": [
        ({"sliding_window": 0}, "windows has 0"),
        ({"sliding_window": [4]}, r"windows\[0\]=\[4\] is not a whole number or none"),
    ],
    "qwen2": [
        ({"use_sliding_window": True, "sliding_window": None, "layer_types": None}, "sliding_window=None"),
        ({"layer_types": None, "max_window_layers": "1"}, "max_window_layers='1' is not a whole number"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types=.* must hold full_attention for 2 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is out of range; it must be 1 to 1000"),
    ],
    "qwen3": [
        ({"layer_types": ["full_attention"] * 3}, "must hold full_attention or sliding_attention for 2 layers"),
        ({"layer_types": ["full_attention", {}]}, "must hold full_attention or sliding_attention for 2 layers"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "must hold full_attention or sliding_attention"),
    ],
    "falcon": [
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, "kv_heads=3 does not divide heads=2"),
        ({"new_decoder_architecture": True, "num_kv_heads": [2]}, r"kv_heads=\[2\] is not a whole number or none"),
        ({"n_embed": 15}, "dim=15 is not divisible by heads=2"),
        ({"bias": "no"}, "bias='no' is not true or false"),
        ({"ffn_hidden_size": None, "hidden_size": HUGE}, "hidden_size=1000000000000 is out of range"),
    ],
    "phi": [
        ({"tie_word_embeddings": True}, "head_bias is for a head of its own; set tied=False"),
        ({"partial_rotary_factor": 0.4}, "rotary_dim=3 must be even and at most the head's width, 8"),
        ({"num_key_value_heads": 3}, "kv_heads=3 does not divide heads=2"),
    ],
    "opt": [
        ({"word_embed_proj_dim": 0}, "embed_dim=0 is out of range"),
        ({"enable_bias": "yes"}, "bias='yes' is not true or false"),
        ({"num_attention_heads": 3}, "dim=16 is not divisible by heads=3"),
    ],
    "gemma": [({"hidden_act": "gelu_exact"}, "unknown activation")],
    "gemma2": [
        ({"attn_logit_softcapping": 0}, "score_cap=0.0 is out of range"),
        ({"final_logit_softcapping": NAN}, "logit_cap=nan is not a number or none"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 is out of range"),
        ({"sliding_window": -1}, "windows has -1"),
        ({"layer_types": ["full_attention"]}, "layer_types=.* must hold full_attention or sliding_attention"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers=1000000000 is out of range"),
    ],
    "gpt_neox": [
        ({"rotary_pct": 0.4}, "rotary_dim=3 must be even and at most the head's width, 8"),
        ({"rotary_pct": 0.1}, "rotary_dim=0 must be even"),
        ({"rotary_pct": 1e308}, r"partial_rotary_factor=1e\+308 is out of range"),
        ({"rotary_pct": "x"}, "partial_rotary_factor='x' is not a number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is out of range"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "values", "message"), [(kind, *row) for kind, rows in IMPOSSIBLE.items() for row in rows]
)
def test_impossible_configurations(folder, kind, values, message, edit, refuse):
    edit(folder / kind / "config.json", values)
    refuse(message, load_decoder, Folder(folder / kind))


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NOT_OURS = [  # real keys of real checkpoints that mean something else than what we compute
    *(("llama", {"rope_scaling": {"rope_type": kind, "factor": 4.0}}) for kind in ("yarn", "linear", "dynamic")),
    ("llama", {"rope_scaling": {"type": "su", "factor": 4.0}}),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}),
    ("llama", {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}}),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("llama", {"rope_interleaved": True}),
    ("llama", {"sliding_window": 4}),
    ("llama", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("llama", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    ("llama", {"hidden_act": "relu2"}),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ("llama", {"model_type": "mixtral"}),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("qwen2", {"num_experts": 60}),
    ("qwen2", {"use_mrope": True}),
    ("qwen3", {"n_routed_experts": 64}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"add_cross_attention": True}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt_neox", {"attention_bias": False}),
    ("falcon", {"alibi": True}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"parallel_attn": False}),
    ("phi", {"qk_layernorm": True}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("opt", {"_remove_final_layer_norm": True}),
    ("gemma", {"use_bidirectional_attention": True}),
    ("gemma2", {"use_bidirectional_attention": True}),
]


@pytest.mark.parametrize(("kind", "values"), NOT_OURS)
def test_what_we_do_not_compute_is_refused_by_name(folder, kind, values, edit):
    edit(folder / kind / "config.json", values)
    (key, value), *_ = values.items()
    names = {key, *(value if isinstance(value, dict) else ())} | {"rope_type", "activation"}
    with pytest.raises(ConfigError) as caught:
        load_decoder(Folder(folder / kind))
    assert any(name in str(caught.value) for name in names), caught.value


def test_nothing_is_allocated_for_what_is_merely_large(folder, edit, refuse):
    edit(folder / "llama" / "config.json", {"hidden_size": 10**6, "vocab_size": 10**7})
    refuse(r"of another shape: .*token.weight is \(20, 16\)", load_decoder, Folder(folder / "llama"))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_missing_extra_or_of_another_shape_are_named(folder, kind, refuse):
    file = folder / kind / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    first = next(name for name in tensors if name.endswith("norm.weight") or name.endswith("ln_1.weight"))
    kept = {name: tensor for name, tensor in tensors.items() if name != first}
    save_tensors(file, kept)
    refuse(r"the weights do not fit Decoder; 1 missing: [\w.]+weight \(16,\)", load_decoder, Folder(folder / kind))
    save_tensors(file, tensors | {"evil.weight": tensors[first]})
    refuse(
        "1 published tensors are not known to this model's table: 'evil.weight'", load_decoder, Folder(folder / kind)
    )
    save_tensors(file, tensors | {first: tensors[first][:-1].clone()})
    refuse(r"1 of another shape: [\w.]+ is \(15,\), expected \(16,\)", load_decoder, Folder(folder / kind))


def test_fused_projections_that_do_not_split_are_named(folder, refuse):
    file = folder / "bloom" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    name = "transformer.h.0.self_attention.query_key_value.weight"
    save_tensors(file, tensors | {name: tensors[name][:-1].clone()})
    refuse(r"query_key_value.weight' of shape \(47, 16\) cannot be split", load_decoder, Folder(folder / "bloom"))


def test_what_is_not_finite_is_found_when_asked_for(folder):
    file = folder / "llama" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = NAN
    save_tensors(file, tensors)
    load_decoder(Folder(folder / "llama"))
    with pytest.raises(CheckpointError, match=r"stack.blocks.1.ffn.up.weight holds NaN or infinity"):
        load_decoder(Folder(folder / "llama"), check_finite=True)
