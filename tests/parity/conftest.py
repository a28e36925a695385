"""How our networks are compared with those of transformers and diffusers.

`strong` gives the reference values that leave no part hidden, `adopt` gives ours the same weights, `agree` holds
one against the other. With the libraries' own initialisation and a loose tolerance a BLOOM without ALiBi passes:
never weaken either.
"""

import copy
import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkv.core.record import first_difference, record
from qkv.weights.decoder import load_decoder
from qkv.weights.families import FAMILIES
from qkv.weights.folder import Folder
from qkv.weights.load import load_weights
from qkv.weights.tables import Table

Run = Callable[[Any, torch.dtype], Tensor]  # a model and the type to compute in -> what is compared


def strong(module: nn.Module, seed: int = 0) -> Any:
    """Re-initialises every parameter: weights std 0.3, biases 0.1, norm gains 1 with 0.3."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=draw)
                gain = "Norm" in type(part).__name__ and name == "weight"
                parameter.copy_(1 + 0.3 * noise if gain else noise * (0.1 if name.endswith("bias") else 0.3))
    return module.eval()


def adopt(ours: nn.Module, table: Table, theirs: nn.Module) -> Any:
    """Our network with copies of the reference's weights."""
    load_weights(ours, {name: tensor.clone() for name, tensor in table.ours(theirs.state_dict()).items()})
    return ours.eval()


def counterparts(table: Table, theirs: nn.Module) -> dict[str, str]:
    """Our modules by name, with the reference's module whose weights they hold: most are views, which tells whose."""
    state = theirs.state_dict()
    owner = {tensor.untyped_storage().data_ptr(): name for name, tensor in state.items()}
    pairs = {name: owner.get(tensor.untyped_storage().data_ptr()) for name, tensor in table.ours(state).items()}
    return {ours.rpartition(".")[0]: published.rpartition(".")[0] for ours, published in pairs.items() if published}


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def agree(ours: nn.Module, theirs: nn.Module, run_ours: Run, run_theirs: Run, table: Table | None = None) -> None:
    """Fails unless both agree to 1e-5 in float32, or to 1e-6 in float64 where the reference's own float32 is too far
    from it. With `table` the message names the first layer that differs, and norms must have the same epsilon, which
    hardly shows in numbers as large as these."""
    modules = dict(ours.named_modules())  # without a head that is tied to the embedding
    names = {name: of for name, of in counterparts(table, theirs).items() if name in modules} if table else {}
    for name, published in names.items():
        mine, other = (
            getattr(model.get_submodule(of), "eps", None) for model, of in ((ours, name), (theirs, published))
        )
        if mine != other and other is not None:
            pytest.fail(f"parity: {name} has eps={mine}, {published} has {other}")
    with torch.no_grad():
        exact = run_theirs(copy.deepcopy(theirs).double(), torch.float64)
        expected, dtype, tolerance = run_theirs(theirs, torch.float32), torch.float32, 1e-5
        if gap(expected, exact) > 3e-6:
            ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
            expected, dtype, tolerance = exact, torch.float64, 1e-6
        with record(ours) as mine:
            result = run_ours(ours, dtype)
        assert result.shape == expected.shape
        difference = gap(result, expected)
        if difference <= tolerance:
            return
        with record(theirs) as other:
            run_theirs(theirs, dtype)
    same = {name: other[published] for name, published in names.items() if name in mine and published in other}
    same = {name: value for name, value in same.items() if value.shape == mine[name].shape}  # not tokens and pixels
    first = first_difference(mine, same, tolerance)
    pytest.fail(f"parity: differs by {difference:.2e} in {dtype}; first: {first}")


@pytest.fixture(scope="session")
def parity() -> SimpleNamespace:
    return SimpleNamespace(strong=strong, adopt=adopt, counterparts=counterparts, gap=gap, agree=agree)


SHAPE = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
    **{"vocab_size": 50, "max_position_embeddings": 32},
}
OPT = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"ffn_dim": 96}
FALCON = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"ffn_hidden_size": 96}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DECODERS = {  # name -> transformers' model_type and what its configuration has beyond its defaults
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 50, "n_positions": 32}),
    "gpt-neo": (
        "gpt_neo",
        {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 50, "max_position_embeddings": 32}
        | {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 50}),
    "bloom, 6 heads": ("bloom", {"hidden_size": 96, "n_layer": 3, "n_head": 6, "vocab_size": 50}),
    "llama 2": ("llama", SHAPE),
    "llama 3": (
        "llama",
        SHAPE | {"num_key_value_heads": 2, "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    ),
    "llama, biased": ("llama", SHAPE | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"}),
    "smollm2": (
        "llama",
        SHAPE
        | {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "rms_norm_eps": 1e-5},
    ),
    "mistral": ("mistral", SHAPE | {"num_key_value_heads": 2, "sliding_window": 4, "head_dim": 8}),
    "qwen 2.5": ("qwen2", SHAPE | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen 2.5, windows": (
        "qwen2",
        SHAPE | {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen 3": ("qwen3", SHAPE | {"num_key_value_heads": 2, "head_dim": 32}),
    "pythia": ("gpt_neox", SHAPE),
    "neox, one after the other": (
        "gpt_neox",
        SHAPE | {"use_parallel_residual": False, "tie_word_embeddings": True, "rotary_pct": 0.5},
    ),
    "falcon 7b": ("falcon", FALCON),
    "falcon 11b": (
        "falcon",
        FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    "falcon 40b": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "tie_word_embeddings": False},
    ),
    "phi": ("phi", SHAPE),
    "phi, grouped": (
        "phi",
        SHAPE | {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.25}},
    ),
    "opt": ("opt", OPT),
    "opt, unbiased": ("opt", OPT | {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"}),
    "opt 350m": ("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "gemma": ("gemma", SHAPE | {"num_key_value_heads": 1, "head_dim": 24}),
    "gemma 2": (
        "gemma2",
        SHAPE
        | {"num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 4}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
    ),
    "gemma 2, uncapped": (
        "gemma2",
        SHAPE
        | {"num_key_value_heads": 4, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 3},
    ),
}


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """By the names of DECODERS: transformers' model with strong weights (`theirs`), the folder it saved, ours out of
    that folder, and the table of names."""
    transformers = pytest.importorskip("transformers")

    @functools.cache
    def make(name: str) -> SimpleNamespace:
        model_type, options = DECODERS[name]
        ends = {"bos_token_id": 0, "eos_token_id": 1}
        config = transformers.AutoConfig.for_model(model_type, **options, **ends)
        theirs = strong(transformers.AutoModelForCausalLM.from_config(config))
        module = sys.modules[type(theirs).__module__]
        if model_type in ("gpt_neo", "gemma", "gemma2"):  # scores in float32 even where it runs in float64
            vars(module)["torch"] = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
        if model_type in ("gemma", "gemma2"):  # norms too
            norm = getattr(module, f"{model_type.capitalize()}RMSNorm")
            norm.forward = lambda self, x: self._norm(x) * (1 + self.weight)
        folder = tmp_path_factory.mktemp("decoder") / "theirs"
        theirs.save_pretrained(folder)
        ours = load_decoder(Folder(folder))
        table = FAMILIES[model_type].table(ours.config)
        return SimpleNamespace(ours=ours, theirs=theirs, folder=folder, table=table, model_type=model_type)

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_decoder" in metafunc.fixturenames:
        metafunc.parametrize("any_decoder", DECODERS)
