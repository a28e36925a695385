"""The stack alone is a Llama, a BLOOM and a GPT-2 of transformers, with padding and with a cache."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, BloomModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel
from transformers.models.llama import modeling_llama

from qkv.core.attention import rotate
from qkv.core.cache import Cache
from qkv.core.position import Position
from qkv.core.stack import Stack, StackConfig
from qkv.weights.tables import Row, Table, Transform, fused, transposed

DIM, LAYERS, VOCAB = 64, 3, 50
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [0] * 3 + [1] * 6]).bool()  # left-padded, as for generation

LLAMA = Table(
    [
        ("blocks.{}.attention_norm.weight", "layers.{}.input_layernorm.weight"),
        *((f"blocks.{{}}.attention.{p}.weight", f"layers.{{}}.self_attn.{p}_proj.weight") for p in "qkv"),
        ("blocks.{}.attention.out.weight", "layers.{}.self_attn.o_proj.weight"),
        ("blocks.{}.ffn_norm.weight", "layers.{}.post_attention_layernorm.weight"),
        *((f"blocks.{{}}.ffn.{p}.weight", f"layers.{{}}.mlp.{p}_proj.weight") for p in ("gate", "up", "down")),
        ("norm.weight", "norm.weight"),
    ],
    ["embed_tokens.weight"],
)


def by_heads(heads: int) -> Transform:
    """BLOOM stacks q, k and v within every head."""

    def split(tensor):
        return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, -1)).unbind(1)]

    def fuse(parts):
        return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)

    return Transform(split, fuse)


def bloom_table(heads: int) -> Table:
    return Table(
        [
            ("blocks.{}.attention_norm.{}", "h.{}.input_layernorm.{}"),
            Row(
                tuple(f"blocks.{{}}.attention.{p}.{{}}" for p in "qkv"),
                "h.{}.self_attention.query_key_value.{}",
                transform=by_heads(heads),
            ),
            ("blocks.{}.attention.out.{}", "h.{}.self_attention.dense.{}"),
            ("blocks.{}.ffn_norm.{}", "h.{}.post_attention_layernorm.{}"),
            ("blocks.{}.ffn.up.{}", "h.{}.mlp.dense_h_to_4h.{}"),
            ("blocks.{}.ffn.down.{}", "h.{}.mlp.dense_4h_to_h.{}"),
            ("norm.{}", "ln_f.{}"),
        ],
        ["word_embeddings.weight", "word_embeddings_layernorm.{}"],
    )


_IN = Transform(lambda tensor: tensor.t().chunk(3), lambda parts: torch.cat(list(parts)).t())
GPT2 = Table(
    [
        ("blocks.{}.attention_norm.{}", "h.{}.ln_1.{}"),
        Row(tuple(f"blocks.{{}}.attention.{p}.weight" for p in "qkv"), "h.{}.attn.c_attn.weight", transform=_IN),
        Row(tuple(f"blocks.{{}}.attention.{p}.bias" for p in "qkv"), "h.{}.attn.c_attn.bias", transform=fused(3)),
        Row(("blocks.{}.attention.out.weight",), "h.{}.attn.c_proj.weight", transform=transposed),
        ("blocks.{}.attention.out.bias", "h.{}.attn.c_proj.bias"),
        ("blocks.{}.ffn_norm.{}", "h.{}.ln_2.{}"),
        Row(("blocks.{}.ffn.up.weight",), "h.{}.mlp.c_fc.weight", transform=transposed),
        ("blocks.{}.ffn.up.bias", "h.{}.mlp.c_fc.bias"),
        Row(("blocks.{}.ffn.down.weight",), "h.{}.mlp.c_proj.weight", transform=transposed),
        ("blocks.{}.ffn.down.bias", "h.{}.mlp.c_proj.bias"),
        ("norm.{}", "ln_f.{}"),
    ],
    ["wte.weight", "wpe.weight"],
)


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Llama takes its norms in float32 even where it runs in float64."""
    monkeypatch.setattr(modeling_llama, "torch", SimpleNamespace(**{**vars(torch), "float32": torch.float64}))


def llama(parity):
    config = LlamaConfig(
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=VOCAB,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    theirs = parity.strong(LlamaModel(config))
    ours = Stack(
        StackConfig(
            dim=DIM,
            layers=LAYERS,
            heads=4,
            kv_heads=2,
            ffn_dim=96,
            activation="silu",
            gated=True,
            bias=False,
            attention_bias=False,
            out_bias=False,
            norm="rms",
            norm_eps=1e-6,
            causal=True,
            position="rotary",
            rotary_base=500.0,
        )
    )
    return parity.adopt(ours, LLAMA, theirs), theirs, LLAMA


def bloom(parity, heads=4):
    dim = 16 * heads
    theirs = parity.strong(BloomModel(BloomConfig(hidden_size=dim, n_layer=LAYERS, n_head=heads, vocab_size=VOCAB)))
    config = StackConfig(
        dim=dim,
        layers=LAYERS,
        heads=heads,
        ffn_dim=4 * dim,
        activation="gelu_tanh",
        causal=True,
        position="alibi",
    )
    return parity.adopt(Stack(config), bloom_table(heads), theirs), theirs, bloom_table(heads)


def bloom3(parity):
    return bloom(parity, heads=3)


def gpt2(parity):
    theirs = GPT2Model(GPT2Config(n_embd=DIM, n_layer=LAYERS, n_head=4, vocab_size=VOCAB, n_positions=16))
    theirs = parity.strong(theirs)
    config = StackConfig(dim=DIM, layers=LAYERS, heads=4, ffn_dim=4 * DIM, activation="gelu_tanh", causal=True)
    return parity.adopt(Stack(config), GPT2, theirs), theirs, GPT2


FAMILIES = {"llama": llama, "bloom": bloom, "bloom, 3 heads": bloom3, "gpt2": gpt2}


def compare(parity, ours, theirs, table, mask=None, cuts=(9,)):
    def embed(dtype):
        if isinstance(theirs, LlamaModel):
            x = theirs.embed_tokens(IDS)
        elif isinstance(theirs, BloomModel):
            x = theirs.word_embeddings_layernorm(theirs.word_embeddings(IDS))
        else:
            x = theirs.wte(IDS) + theirs.wpe(torch.arange(9))
        return x.detach().to(dtype)

    def run_ours(stack, dtype):
        cache, x, states = Cache(LAYERS, context=9) if len(cuts) > 1 else None, embed(dtype), []
        for start, stop in zip((0, *cuts), cuts):
            seen = None if mask is None else mask[:, :stop]
            states.append(stack(x[:, start:stop], mask=seen, cache=cache))
        return only(torch.cat(states, dim=1))

    def only(states):
        return states if mask is None else states[mask]  # what padding gives nobody reads

    def run_theirs(model, dtype):
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp_min(0)
        options = {} if positions is None or not isinstance(model, LlamaModel) else {"position_ids": positions}
        return only(model(IDS, attention_mask=None if mask is None else mask.long(), **options).last_hidden_state)

    parity.agree(ours, theirs, run_ours, run_theirs, None if len(cuts) > 1 else table)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cuts", [(9,), (4, 5, 9)])
def test_parity(family, padded, cuts, parity):
    compare(parity, *FAMILIES[family](parity), mask=MASK if padded else None, cuts=cuts)


def scale(stack, monkeypatch):
    stack.blocks[0].attention.scale = 1.0


def unmasked(stack, monkeypatch):
    object.__setattr__(stack.config, "causal", False)


def gate_and_up_swapped(stack, monkeypatch):
    ffn = stack.blocks[0].ffn
    ffn.gate, ffn.up = ffn.up, ffn.gate


def rotary_base(stack, monkeypatch):
    stack.position.base = 10_000.0


def interleaved_rotary(stack, monkeypatch):
    def turn(x, pair):
        order = torch.cat((torch.arange(0, x.shape[-1], 2), torch.arange(1, x.shape[-1], 2)))
        return rotate(x[..., order], pair)

    monkeypatch.setattr("qkv.core.attention.rotate", turn)


def shared_heads_in_another_order(stack, monkeypatch):
    for block in stack.blocks:
        block.attention.k.weight.data = block.attention.k.weight.data.roll(16, dims=0)


def no_alibi(stack, monkeypatch):
    stack.position = Position()


def exact_gelu(stack, monkeypatch):
    for block in stack.blocks:
        block.ffn.activation = torch.nn.functional.gelu


def post_norm(stack, monkeypatch):
    stack.blocks[1].norm_first = False


@pytest.mark.parametrize(
    ("family", "mutate"),
    [
        *((llama, mutate) for mutate in (scale, unmasked, gate_and_up_swapped, rotary_base, interleaved_rotary)),
        (llama, shared_heads_in_another_order),
        *((bloom, mutate) for mutate in (scale, unmasked, no_alibi, exact_gelu, post_norm)),
        *((gpt2, mutate) for mutate in (scale, unmasked, exact_gelu, post_norm)),
    ],
)
def test_parity_fails_on(family, mutate, parity, monkeypatch):
    ours, theirs, table = family(parity)
    mutate(ours, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"parity: differs by .*; first: (blocks|None)"):
        compare(parity, ours, theirs, table)
