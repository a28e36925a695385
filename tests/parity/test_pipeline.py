"""Whole folders: what diffusers' StableDiffusionPipeline saves we load, and what we save it loads, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qkv.errors import CheckpointError
from qkv.text.tokenizer import train_tokenizer
from qkv.weights.diffusers import load_latent_diffusion, save_latent_diffusion

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def theirs(parity, tmp_path_factory) -> StableDiffusionPipeline:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(["a dog in a suit", "a castle in a forest"] * 3, vocab=540)
    tokenizer.save(folder)
    vocab = tokenizer.vocab
    text = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1}
    unet = {"block_out_channels": (16, 32), "norm_num_groups": 8, "cross_attention_dim": 32, "sample_size": 8}
    unet |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": (2, 4)}
    unet |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1}
    vae = {"block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 16, "scaling_factor": 0.5}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        text_encoder=parity.strong(CLIPTextModel(CLIPTextConfig(**text)), seed=1),
        unet=parity.strong(UNet2DConditionModel(**unet), seed=2),
        vae=parity.strong(AutoencoderKL(**vae), seed=3),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("form", ["plain", "sharded", "fp16"])
def test_there_and_back(theirs, form, tmp_path):
    variant = "fp16" if form == "fp16" else None
    theirs.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size="60KB" if form == "sharded" else "1GB")
    ours = load_latent_diffusion(tmp_path / "theirs", variant=variant)
    assert (ours.name, ours.size) == ("theirs", 16)
    save_latent_diffusion(ours, tmp_path / "ours", max_shard_bytes=60_000 if form == "sharded" else 10**9)

    again = StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    for part in PARTS:
        expected, got = getattr(theirs, part).state_dict(), getattr(again, part).state_dict()
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            assert got[name].equal(tensor), name
    assert dict(again.scheduler.config).items() >= scheduler(theirs).items()
    prompt = ["A Dog in a suit, a castle", ""]
    for kind in (theirs, again):
        assert (
            kind.tokenizer(prompt, padding="max_length").input_ids
            == theirs.tokenizer(prompt, padding="max_length").input_ids
        )
    assert again.safety_checker is None
    assert load_latent_diffusion(tmp_path / "ours").unet.config == ours.unet.config


def scheduler(pipeline) -> dict[str, object]:
    keys = ("beta_start", "beta_end", "beta_schedule", "skip_prk_steps", "steps_offset", "set_alpha_to_one")
    return {key: pipeline.scheduler.config[key] for key in (*keys, "prediction_type", "num_train_timesteps")}


def test_saving_twice_gives_the_same_bytes(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    for source, target in (("theirs", "one"), ("one", "two")):
        save_latent_diffusion(load_latent_diffusion(tmp_path / source), tmp_path / target)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert Path("unet/diffusion_pytorch_model.safetensors") in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_saving_in_half(theirs, dtype, step, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    save_latent_diffusion(load_latent_diffusion(tmp_path / "theirs"), tmp_path / "half", dtype=dtype)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "half")  # plain names, so that no argument is needed
    for part in PARTS:
        for name, tensor in getattr(theirs, part).state_dict().items():
            got = getattr(again, part).state_dict()[name]
            assert got.dtype is torch.float32, name
            assert (got - tensor).abs().max() <= step * tensor.abs().max(), name
    assert load_latent_diffusion(tmp_path / "half").unet.enter.weight.dtype is dtype


@torch.no_grad()
def test_the_time_is_not_rounded_with_the_rest(theirs, tmp_path):
    """In bfloat16 there is no 999: the network must still be told 999, not 1000."""
    theirs.save_pretrained(tmp_path)
    model = load_latent_diffusion(tmp_path, dtype=torch.bfloat16)
    told = []
    model.unet.register_forward_pre_hook(lambda unet, given: told.append(given[1]))
    read = model.remember(torch.randn(2, 5, 32))
    guess = model.predict(torch.randn(2, 4, 8, 8), 999, read)
    assert guess.dtype is torch.bfloat16
    assert told[0].tolist() == [999.0, 999.0]


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_parts_must_speak_to_each_other(theirs, parity, tmp_path):
    theirs.save_pretrained(tmp_path)
    train_tokenizer(["a dog in a suit, a castle in a forest of trees"] * 9, vocab=545).save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the text encoder \d+; they do not fit"):
        load_latent_diffusion(tmp_path)
    CLIPTextModel(CLIPTextConfig(**theirs.text_encoder.config.to_dict() | {"hidden_size": 64})).save_pretrained(
        tmp_path / "text_encoder"
    )
    with pytest.raises(CheckpointError, match="the U-Net reads texts of width 32, its text encoder has 64"):
        load_latent_diffusion(tmp_path)
    edit(tmp_path / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(CheckpointError, match="holds a StableDiffusionXLPipeline; this reads StableDiffusionPipeline"):
        load_latent_diffusion(tmp_path)
