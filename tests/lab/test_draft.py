"""What a draft says of a latent: all of it, if there are enough components, and each patch in its place."""

import copy

import pytest
import torch

from lab.train.draft import Draft, Drafter, Drafts, errors
from qkv.errors import ConfigError
from qkv.models.clip import TextConfig, TextTower

LATENTS = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(50, generator=torch.Generator().manual_seed(1))


def test_all_components_are_the_whole_latent():
    drafts = Drafts.of(LATENTS, WEIGHTS, components=48, patch=2)
    again = drafts.mean + drafts(LATENTS).whole @ drafts.axes.mT
    torch.testing.assert_close(again.view_as(LATENTS), LATENTS, atol=1e-5, rtol=0)


def test_the_first_components_say_the_most():
    drafts = Drafts.of(LATENTS, WEIGHTS, components=48, patch=2)
    share = (WEIGHTS / WEIGHTS.sum())[:, None]
    whole = drafts(LATENTS).whole
    torch.testing.assert_close((share * whole).sum(0), torch.zeros(48), atol=1e-5, rtol=0)
    spread = (share * whole.square()).sum(0)
    assert (spread[1:] <= spread[:-1] + 1e-5).all()


def test_patches_lie_row_by_row():
    drafts = Drafts.of(LATENTS, WEIGHTS, components=1, patch=2)
    apart = LATENTS - drafts.mean.view(3, 4, 4)
    patches = drafts(LATENTS).patches
    assert patches.shape == (50, 4, 12)
    assert torch.equal(patches[:, 1].view(50, 3, 2, 2), apart[:, :, :2, 2:])
    assert torch.equal(patches[:, 2].view(50, 3, 2, 2), apart[:, :, 2:, :2])


TEXT = TextConfig(vocab=9, context=8, dim=16, layers=1, heads=2, ffn_dim=24, start=7, end=8, pad=8)
IDS = torch.tensor([[7, 1, 8, 8, 8, 8, 8, 8], [7, 1, 2, 3, 4, 5, 8, 8]])  # the second ends behind position 3


@torch.no_grad()
def test_the_whole_is_asked_of_states_behind_the_end_and_before_the_patches():
    drafter = Drafter(TextTower(TEXT), components=5, patches=4, patch_dim=3, begin=4)
    drafter.whole.weight.zero_()
    drafter.whole.bias.fill_(2.0)
    asked = []
    drafter.whole.register_forward_hook(lambda head, given, told: asked.append(told.clone()) or told)
    found = errors(drafter, drafter.text, IDS, Draft(torch.zeros(2, 5), torch.ones(2, 4, 3)))
    assert asked[0].shape == (2, 4, 5)
    assert found.whole.tolist() == pytest.approx([5 * 4 / 12, 0])  # of the second caption no state is asked
    assert found.moved.tolist() == [0]  # of every fourth caption
    wrong = copy.deepcopy(drafter)
    wrong.whole.register_forward_hook(lambda head, given, told: told.index_fill(1, torch.tensor([0, 1, 2]), 9.0))
    assert torch.equal(
        errors(wrong, drafter.text, IDS, Draft(torch.zeros(2, 5), torch.ones(2, 4, 3))).whole, found.whole
    )


@torch.no_grad()
def test_patches_and_the_end_tokens_state():
    drafter = Drafter(TextTower(TEXT), components=5, patches=4, patch_dim=3, begin=4)
    teacher = copy.deepcopy(drafter.text)
    drafter.patch.weight.zero_()
    drafter.patch.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    drafter.text.stack.norm.bias.add_(0.5)  # every state moves by so much
    wanted = Draft(torch.zeros(2, 5), torch.stack((torch.ones(4, 3), torch.zeros(4, 3))))
    found = errors(drafter, teacher, IDS, wanted)
    assert found.patches.tolist() == pytest.approx([2 / 3, 5 / 3])
    assert found.moved.tolist() == pytest.approx([0.25], rel=1e-4)


def test_drafts_that_cannot_be():
    with pytest.raises(ConfigError, match="patch=3 does not divide"):
        Drafts.of(LATENTS, WEIGHTS, components=4, patch=3)
    for components in (0, 49):
        with pytest.raises(ConfigError, match=f"components={components} is out of range; it must be 1 to 48"):
            Drafts.of(LATENTS, WEIGHTS, components=components, patch=2)
    for begin in (0, 5):
        with pytest.raises(ConfigError, match=f"begin={begin} is out of range; 4 patches fit from 1 to 4"):
            Drafter(TextTower(TEXT), components=5, patches=4, patch_dim=3, begin=begin)
