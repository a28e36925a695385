"""The parity test must see what is wrong: each small fault in a decoder, put in on purpose, makes it fail."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from qkv.core import position
from qkv.core.norm import UnitOffsetRMSNorm

IDS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [0] * 5 + [1] * 7]).bool()


def set_stack(model, **values):
    for name, value in values.items():
        object.__setattr__(model.stack.config, name, value)


def no_alibi(model, monkeypatch):
    model.stack.position = position.Position()


def alibi_slopes_of_a_power_of_two(model, monkeypatch):
    monkeypatch.setattr(position, "alibi_slopes", lambda heads: 2 ** (-8 * torch.arange(1, heads + 1) / heads))


def no_embedding_norm(model, monkeypatch):
    model.norm = None


def projections_stacked_one_after_another(model, monkeypatch):
    for block in model.stack.blocks:
        parts = [block.attention.q, block.attention.k, block.attention.v]
        heads = torch.stack([part.weight.unflatten(0, (4, -1)) for part in parts], dim=1)  # (H, 3, K, D)
        for part, weight in zip(parts, heads.flatten(0, 2).chunk(3)):
            part.weight.data = weight.contiguous()


def scale(model, monkeypatch):
    for block in model.stack.blocks:
        block.attention.scale = 1.0 if block.attention.scale is None else None


def rotary_base(model, monkeypatch):
    model.stack.position.base /= 2


def rotary_unscaled(model, monkeypatch):
    model.stack.position.scaling = None


def all_of_each_head_turns(model, monkeypatch):
    model.stack.position.dim = model.stack.config.head_width


def key_value_groups_swapped(model, monkeypatch):
    for block in model.stack.blocks:
        for part in (block.attention.k, block.attention.v):
            part.weight.data = part.weight.data.roll(block.attention.head_dim, dims=0)


def one_post_norm(model, monkeypatch):
    block = model.stack.blocks[1]
    block.norm_first = not block.norm_first


def one_after_the_other(model, monkeypatch):
    for block in model.stack.blocks:
        block.parallel = not block.parallel


def norms_apart(model, monkeypatch):
    for block in model.stack.blocks:
        block.ffn_norm = torch.nn.LayerNorm(64)


def one_norm_for_both(model, monkeypatch):
    for block in model.stack.blocks:
        block.ffn_norm = None


def no_head_bias(model, monkeypatch):
    model.head.bias = None


def activation(model, monkeypatch):
    for block in model.stack.blocks:
        block.ffn.activation = F.relu if model.config.gated else F.gelu


def tanh_activation(model, monkeypatch):
    for block in model.stack.blocks:
        block.ffn.activation = lambda x: F.gelu(x, approximate="tanh")


def no_head_norm(model, monkeypatch):
    for block in model.stack.blocks:
        block.attention.q_norm = None


def learned_positions_off_by_one(model, monkeypatch):
    model.position.weight.data = model.position.weight.data.roll(-1, dims=0)


def new_token_off_by_one(model, monkeypatch):
    turn = model.stack.position.rotary

    def late(places):
        return turn(places._replace(tokens=places.tokens + (places.tokens.shape[-1] == 1)))

    model.stack.position.rotary = late


def padding_counts(model, monkeypatch):
    def counted(mask, T):
        return torch.arange(mask.shape[1])[None, -T:].expand(len(mask), -1)

    monkeypatch.setattr("qkv.core.position.token_positions", counted)


def unmasked(model, monkeypatch):
    set_stack(model, causal=False)


def padding_is_seen(model, monkeypatch):
    monkeypatch.setattr("qkv.core.stack.padding_bias", lambda mask: torch.ones_like(mask)[:, None, None])


def window_one_too_wide(model, monkeypatch):
    windows = tuple(window and window + 1 for window in model.stack.config.windows)
    set_stack(model, windows=windows)


def windows_in_the_other_layers(model, monkeypatch):
    set_stack(model, windows=model.stack.config.windows[::-1])


def uncapped_scores(model, monkeypatch):
    for block in model.stack.blocks:
        block.attention.cap = None


def uncapped_logits(model, monkeypatch):
    object.__setattr__(model.config, "logit_cap", None)


def unscaled_embeddings(model, monkeypatch):
    object.__setattr__(model.config, "scaled", False)


def no_post_norm(model, monkeypatch):
    model.stack.blocks[1].ffn_post_norm = torch.nn.Identity()


def gains_are_whole(model, monkeypatch):
    monkeypatch.setattr(UnitOffsetRMSNorm, "forward", torch.nn.RMSNorm.forward)


def no_last_norm(model, monkeypatch):
    model.stack.norm = torch.nn.LayerNorm(64) if model.stack.norm is None else None


EVERYWHERE = [scale, one_post_norm, activation, unmasked, padding_is_seen]
ONE_NORM = [scale, unmasked, padding_is_seen, rotary_base, new_token_off_by_one]
MUTATIONS = {
    "gpt2": [*EVERYWHERE, learned_positions_off_by_one, padding_counts, one_after_the_other],
    "gpt-neo": [*EVERYWHERE, window_one_too_wide, windows_in_the_other_layers],
    "bloom": [*EVERYWHERE, no_alibi, no_embedding_norm, projections_stacked_one_after_another],
    "bloom, 6 heads": [no_alibi, alibi_slopes_of_a_power_of_two],
    "llama 2": [*EVERYWHERE, rotary_base, new_token_off_by_one],
    "llama 3": [*EVERYWHERE, rotary_base, rotary_unscaled, key_value_groups_swapped],
    "mistral": [*EVERYWHERE, rotary_base, key_value_groups_swapped, window_one_too_wide],
    "qwen 3": [*EVERYWHERE, rotary_base, key_value_groups_swapped, no_head_norm],
    "falcon 7b": [*ONE_NORM, tanh_activation, norms_apart],
    "falcon 11b": [*ONE_NORM, tanh_activation, norms_apart, key_value_groups_swapped],
    "falcon 40b": [*ONE_NORM, tanh_activation, one_norm_for_both, one_after_the_other, key_value_groups_swapped],
    "phi": [*ONE_NORM, activation, norms_apart, all_of_each_head_turns, no_head_bias],
    "phi, grouped": [rotary_base, all_of_each_head_turns, key_value_groups_swapped],
    "opt": [*EVERYWHERE, learned_positions_off_by_one, padding_counts, no_last_norm],
    "opt 350m": [*EVERYWHERE, learned_positions_off_by_one, no_last_norm],
    "gemma": [*EVERYWHERE, unscaled_embeddings, gains_are_whole, rotary_base],
    "gemma 2": [
        *(*EVERYWHERE, unscaled_embeddings, gains_are_whole, no_post_norm, uncapped_scores, uncapped_logits),
        *(key_value_groups_swapped, window_one_too_wide, windows_in_the_other_layers),
    ],
    "pythia": [
        *(scale, unmasked, padding_is_seen, tanh_activation, rotary_base, all_of_each_head_turns),
        *(one_after_the_other, projections_stacked_one_after_another),
    ],
}


def run(parity, pair, mutated):
    """Left-padded, the last tokens one by one: every fault shows in some of that."""

    def run_ours(model, dtype):
        cache, logits = model.new_cache(12), []
        for start, stop in ((0, 10), (10, 11), (11, 12)):
            logits.append(model(IDS[:, start:stop], mask=MASK[:, :stop], cache=cache))
        return torch.cat(logits, dim=1)[MASK]

    def run_theirs(model, dtype):
        positions = {"position_ids": (MASK.cumsum(-1) - 1).clamp_min(0)} if pair.model_type != "bloom" else {}
        return model(IDS, attention_mask=MASK.long(), **positions).logits[MASK]

    parity.agree(mutated, pair.theirs, run_ours, run_theirs)


@pytest.mark.parametrize("name", MUTATIONS)
def test_unchanged_it_passes(name, decoders, parity):
    pair = decoders(name)
    run(parity, pair, copy.deepcopy(pair.ours))


@pytest.mark.parametrize(("name", "mutate"), [(name, m) for name, rows in MUTATIONS.items() for m in rows])
def test_parity_fails_on(name, mutate, decoders, parity, monkeypatch):
    pair: SimpleNamespace = decoders(name)
    mutated = copy.deepcopy(pair.ours)
    mutate(mutated, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="parity: differs by"):
        run(parity, pair, mutated)
