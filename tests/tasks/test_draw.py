"""From prompt to picture on a tiny random model: what must change a picture does, and what must not does not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkv.errors import CheckpointError, InputError, NotFoundError
from qkv.loaded.drawer import load
from qkv.pictures.picture import Picture
from qkv.pictures.request import Request
from qkv.tasks import draw as module
from qkv.tasks.draw import Progress, drawing
from qkv.text.weighting import parse
from qkv.weights.files import open_tensors, save_tensors

pytestmark = pytest.mark.processor


@pytest.fixture
def draw(tiny: Path):
    def run(prompt: Any = "a dog in a suit", **options: Any) -> list[Picture]:
        return module.draw(prompt, **{"model": tiny, "steps": 3, "seed": 3} | options)

    return run


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


def same(left: Picture, right: Picture) -> bool:
    return pixels(left).tobytes() == pixels(right).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "auto"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_alone_is_as_in_a_batch_of_eight(draw, dtype: str, sampler: str) -> None:
    batch = draw(count=8, seed=40, dtype=dtype, sampler=sampler)
    assert [picture.seed for picture in batch] == list(range(40, 48))
    for number in (0, 5):
        assert same(batch[number], draw(seed=40 + number, dtype=dtype, sampler=sampler)[0])
    assert not same(batch[0], batch[1])


def test_what_is_asked_for_changes_the_picture(draw) -> None:
    first = draw()[0]
    assert same(first, draw()[0])
    assert first.image.size == (32, 32)
    assert pixels(first).std() > 20
    changes = [
        {"prompt": "a red cat"},
        {"prompt": "a (dog:1.3) in a suit"},
        {"negative": "blue"},
        {"seed": 4},
        {"steps": 4},
        {"guidance": 2},
        {"sampler": "euler"},
        {"eta": 0.5},
        {"size": (32, 40)},
    ]
    assert all(not same(first, draw(**change)[0]) for change in changes)


def test_a_long_prompt_is_read_to_its_end(draw) -> None:
    long = "a dog, " * 60
    assert not same(draw(long + "red")[0], draw(long + "blue")[0])
    assert not same(draw("a cat", negative=long + "red")[0], draw("a cat", negative=long + "blue")[0])


def test_weights_multiply_states_and_keep_each_chunks_mean(tiny: Path) -> None:
    model = load(tiny, dtype="float32")
    plain = model.tokenizer.chunks(parse("a red dog"))
    heavy = model.tokenizer.chunks(parse("a (red:1.5) dog"))
    with torch.no_grad():
        states = model.text(torch.from_numpy(plain.ids))
        _, memory, _ = module.read(model, "a (red:1.5) dog", "")
    weighted = states * torch.from_numpy(heavy.weights)[..., None]
    torch.testing.assert_close(memory, weighted * states.mean() / weighted.mean())
    assert (heavy.weights == 1.5).sum() >= 1


def test_prompt_and_negative_are_padded_to_the_same_chunks(tiny: Path) -> None:
    model = load(tiny, dtype="float32")
    with torch.no_grad():
        _, memory, nothing = module.read(model, "a dog, " * 60, "")
        _, short, _ = module.read(model, "a dog", "")
        empty = model.text(torch.from_numpy(model.tokenizer.chunks([]).ids))
    assert memory.shape == nothing.shape
    assert memory.shape[1] > short.shape[1] == 77
    torch.testing.assert_close(nothing, empty.repeat(1, memory.shape[1] // 77, 1))


def test_lists_of_prompts(draw) -> None:
    prompts = ["a dog", "a cat"]
    one = draw(prompts, negative="red", count=2, seed=7)
    assert [(p.prompt, p.negative, p.seed) for p in one] == [
        ("a dog", "red", 7),
        ("a dog", "red", 8),
        ("a cat", "red", 9),
        ("a cat", "red", 10),
    ]
    each = draw(prompts, negative=["red", "blue"], seed=[5, 5])
    assert [(p.prompt, p.negative, p.seed) for p in each] == [("a dog", "red", 5), ("a cat", "blue", 5)]
    assert same(each[1], draw("a cat", negative="blue", seed=5)[0])


def test_seeds_are_chosen_and_reported(draw) -> None:
    left, right = (draw(seed=None)[0] for _ in range(2))
    assert left.seed != right.seed
    assert same(left, draw(seed=left.seed)[0])
    assert draw(seed=2**64 - 1)[0].seed == 2**64 - 1


def test_guidance_off_is_said(draw) -> None:
    off = draw(guidance=1, negative="a cat, " * 60)[0]  # which is longer than the prompt, and pads nothing
    assert [warning.split(":")[0] for warning in off.warnings] == ["negative-without-guidance"]
    assert same(off, draw(guidance=0.5)[0])
    assert not draw(guidance=1)[0].warnings
    assert not draw(negative="a cat")[0].warnings


def test_warnings_have_names(draw) -> None:
    odd = draw("a [dog:cat:0.5]", size=(64, 32))[0]
    assert [warning.split(":")[0] for warning in odd.warnings] == ["size", "prompt-schedule"]
    assert odd.image.size == (64, 32)


def test_progress_counts_every_step(tiny: Path) -> None:
    events = list(drawing(Request(prompts=("a dog",), count=2, steps=3), tiny))
    assert [(e.picture, e.step) if isinstance(e, Progress) else "picture" for e in events] == [
        (0, 1),
        (0, 2),
        (0, 3),
        "picture",
        (1, 1),
        (1, 2),
        (1, 3),
        "picture",
    ]
    last, picture = events[2:4]
    assert last.preview().tobytes() == picture.image.tobytes()


def test_drawing_can_be_left(tiny: Path) -> None:
    events = drawing(Request(prompts=("a dog",), steps=3), tiny)
    next(events)
    assert not torch.is_inference_mode_enabled()
    events.close()


def test_threads_are_given_back(draw) -> None:
    before = torch.get_num_threads()
    assert draw(threads=before + 1)[0].settings.threads == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": []}, "0 prompts"),
        ({"prompt": [3]}, "not a text"),
        ({"prompt": "a" * 100_001}, "100,001 characters"),
        ({"prompt": "a, " * 30_000}, "chunks"),
        ({"negative": ["red", "blue"]}, "2 negative prompts for 1"),
        ({"count": 0}, "count=0"),
        ({"count": 10**9}, "count="),
        ({"prompt": ["a"] * 30, "count": 100}, "1000 pictures"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed="),
        ({"seed": 2**64 - 1, "count": 2}, "seed="),
        ({"seed": [1, 2]}, "2 seeds for 1"),
        ({"seed": "7"}, "seed="),
        ({"seed": True}, "seed=True"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10**9}, "steps="),
        ({"steps": 1001}, "steps=1001"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"guidance": -1}, "guidance=-1"),
        ({"guidance": "7"}, "guidance="),
        ({"eta": 2}, "eta=2"),
        ({"eta": 0.5, "sampler": "euler"}, "only ddim"),
        ({"sampler": "pndm"}, "zero terminal SNR"),
        ({"size": (30, 32)}, "width=30 is not a multiple of 8; the nearest is 32"),
        ({"size": (7, 7)}, "nearest is 8"),
        ({"size": (0, 8)}, "width=0"),
        ({"size": (10**6, 10**6)}, "pixels"),
        ({"size": (32,)}, "not width and height"),
        ({"size": (32.0, 32)}, "width=32.0"),
        ({"device": "gpu"}, "unknown device"),
        ({"dtype": "bf16"}, "did you mean bfloat16"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_what_cannot_be_is_refused(draw, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        draw(**change)


def test_unknown_names(draw) -> None:
    with pytest.raises(NotFoundError, match="did you mean euler"):
        draw(sampler="eular")
    with pytest.raises(NotFoundError, match="did you mean emblem"):
        draw(model="emblen")


def test_a_sampler_by_the_web_uis_name(draw) -> None:
    assert draw(sampler="Euler a")[0].settings.sampler == "euler_ancestral"
    assert draw(sampler="DPM++ 2M Karras", model="emblem")[0].settings.sampler == "dpmpp_2m_karras"


def changed(tiny: Path, folder: Path, file: str, **scale: float) -> Path:
    """A copy of the model with the named tensors multiplied."""
    copy = folder / "changed"
    shutil.copytree(tiny, copy)
    tensors = {
        name: tensor * scale.get(name.replace(".", "_"), 1) for name, tensor in open_tensors(copy / file).items()
    }
    save_tensors(copy / file, tensors)
    return copy


@pytest.mark.parametrize(
    ("file", "tensor", "stage"),
    [
        ("text_encoder/model.safetensors", "text_model_final_layer_norm_weight", "text encoder.*stack.norm"),
        ("unet/diffusion_pytorch_model.safetensors", "conv_in_weight", "U-Net.*at enter"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder_conv_in_weight", "autoencoder.*decoder.enter"),
    ],
)
def test_nan_names_stage_and_layer(draw, tiny: Path, tmp_path: Path, file: str, tensor: str, stage: str) -> None:
    broken = changed(tiny, tmp_path, file, **{tensor: float("nan")})
    with pytest.raises(CheckpointError, match=stage):
        draw(model=broken)


def test_an_autoencoder_that_overflows_runs_in_float32(draw, tiny: Path, tmp_path: Path) -> None:
    """Its first convolution is made so strong that float16 ends; a norm behind it makes that good."""
    loud = changed(tiny, tmp_path, "vae/diffusion_pytorch_model.safetensors", decoder_conv_in_weight=1e5)
    wide, narrow = draw(model=loud, dtype="float32")[0], draw(model=loud, dtype="float16")[0]
    assert not wide.warnings
    assert [warning.split(":")[0] for warning in narrow.warnings] == ["vae-precision"]
    assert np.abs(pixels(wide).astype(int) - pixels(narrow)).mean() < 10


def test_the_folder_says_how_it_is_drawn_best(draw, tiny: Path, tmp_path: Path) -> None:
    assert draw(steps=None, guidance=None)[0].settings.steps == 50
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    (copy / "qkv.json").write_text('{"steps": 2, "guidance": 4.0}')
    settings = draw(model=copy, steps=None)[0].settings
    assert (settings.steps, settings.guidance, settings.sampler) == (2, 4.0, "ddim")
    (copy / "qkv.json").write_text('{"steps": 5}')  # a model in memory is not taken for the changed one
    assert draw(model=copy, steps=None)[0].settings.steps == 5


def test_a_model_is_loaded_once(draw, tiny: Path) -> None:
    assert load(tiny, dtype="float32") is load(str(tiny), dtype="float32")
    assert load(tiny, dtype="float32") is not load(tiny, dtype="bfloat16")
