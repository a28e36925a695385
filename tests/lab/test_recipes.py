"""The recipes of emblem, one after the other on a tiny data set, down to a drawn picture."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.emblem import dataset, wordnet
from lab.emblem.dataset import EmblemData
from lab.emblem.items import Item, Words
from lab.train import borrowing, clip
from lab.train.diffusion import read_text
from qkv import classify, draw
from qkv.errors import ConfigError
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.train.recipes import run
from qkv.weights.folder import Folder

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 40), "blue": (30, 60, 220), "black": (0, 0, 0)}


def squares(**_: object) -> EmblemData:
    items, pictures = [], np.full((8, 128, 128, 3), 255, np.uint8)
    for row in range(8):
        name, colour = list(COLOURS.items())[row % 4]
        pictures[row, 32:96, 32:96] = colour
        items.append(
            Item(
                row=row, style="flat", icon=str(row), concept=name, base=name, name=name, keywords=(), group="objects",
                subgroup="", tone="", gender="", colours=(name,), split="validation" if row > 5 else "train",
                weight=1.0, words={"de": Words(f"{name} auf Deutsch", (), "")},
            )
        )  # fmt: skip
    return EmblemData(pictures=pictures, items=items)


FIT = ["fit.steps=2", "fit.log_every=1", "fit.sample_every=2", "fit.save_every=1", "fit.optim.warmup=1", "batch=4"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QKV_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(dataset, "load", squares)
    for module in (clip, wordnet):
        monkeypatch.setattr(module, "wordnet_glosses", lambda: [("cat", "a small animal; it purrs"), ("sun", "a star")])
    for module in (clip, borrowing):
        monkeypatch.setattr(
            module, "vectors", lambda teacher, texts, progress: np.eye(len(texts), 32, dtype=np.float16)
        )
    return tmp_path


def packed_latents(folder: Path) -> Path:
    """As `python -m lab data emblem --latents` writes it."""
    facts = [{k: v for k, v in asdict(item).items() if k not in ("row", "words", "tones")} for item in squares().items]
    numbers = np.random.default_rng(0).integers(-127, 128, (len(facts), 8, 16, 16), np.int8)
    texts = {"items": "\n".join(map(json.dumps, facts)), "words": '{"tones": {"de": {}}, "concepts": {}}'}
    coded = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    np.savez(folder / "packed.npz", latents=numbers, scale=np.full((1, 8, 1, 1), 0.02, np.float32), **coded)
    return folder / "packed.npz"


def test_the_recipes_make_a_model_that_draws(home: Path) -> None:
    recipes, runs = Path(__file__).parents[2] / "recipes", home / "runs"
    small_vae = ["model.dims=[8, 16, 16, 16]", "model.groups=4"]
    run(recipes / "emblem-autoencoder.toml", [*FIT, *small_vae], folder=runs / "vae", progress=False)
    assert (runs / "vae/samples/00000002.png").is_file()
    assert (runs / "vae/loss.png").is_file()

    small_clip = ["text.dim=32", "text.heads=2", "text.layers=1", "vision.layers=1", "vocab=600", "texts=4"]
    run(recipes / "emblem-clip.toml", [*FIT, *small_clip], folder=runs / "clip", progress=False)

    parts = [f'autoencoder="{runs}/vae/model"', f'clip="{runs}/clip/model"', "model.memory_dim=32", "freeze=[]"]
    rarely = ["fit.steps=30", "fit.save_every=30", "fit.sample_every=10"]  # each time the curves are drawn
    sketch = [*parts[:2], "components=8", "texts=4", *rarely]
    run(recipes / "emblem-draft.toml", [*FIT, *sketch], folder=runs / "draft", progress=False)
    rows = [json.loads(line) for line in (runs / "draft/metrics.jsonl").open()]
    wrong = [row["patches"] for row in rows if "patches" in row]
    assert wrong[-1] < 0.7 * wrong[0]
    drafted = read_text(runs / "draft/model")[0]
    assert not torch.equal(drafted.stack.norm.weight, read_text(runs / "clip/model")[0].stack.norm.weight)

    parts[1] = f'clip="{runs}/draft/model"'
    small_unet = ["model.dims=[16, 16, 32]", "model.heads=[2, 2, 2]", "model.groups=8", "drawing.steps=2"]
    made = run(recipes / "emblem-unet.toml", [*FIT, *parts, *small_unet], folder=runs / "unet", progress=False)
    assert made.steps == 2
    assert len(list((home / "home/data/latents").glob("*.npy"))) == 1

    (picture,) = draw("red, flat style", model=runs / "unet/model", steps=2, seed=1)
    assert picture.image.size == (128, 128)
    assert picture.settings.guidance == 4  # the recipe's, not Stable Diffusion's 7.5

    again = [
        *FIT,
        "fit.steps=1",
        "drawing.steps=2",
        f'start="{runs}/unet/model"',
        "fit.optim.optimizer=muon",
        'freeze=["text"]',
    ]
    on = run(recipes / "emblem-unet.toml", again, folder=runs / "on", progress=False).model
    assert torch.equal(on.text.token.weight, made.model.text.token.weight.half().float())  # frozen, from fp16 weights
    assert not torch.equal(on.unet.enter.weight, made.model.unet.enter.weight.half().float())

    parts_of = [f'{name}="{runs}/unet/model"' for name in ("autoencoder", "clip")]
    packed = ["fit.steps=1", f'latents="{packed_latents(home)}"', *parts_of, "model.memory_dim=32", *small_unet]
    assert run(recipes / "emblem-unet.toml", [*FIT, *packed], folder=runs / "packed", progress=False).steps == 1

    assert not torch.equal(made.model.text.stack.norm.weight, drafted.stack.norm.weight)  # it learnt along
    fresh = clip.load_clip(Folder(runs / "clip/model")).text
    parts_again = ["fit.steps=1", f'start="{runs}/clip/model"', f'reader="{runs}/unet/model"']
    met = run(recipes / "emblem-clip-pictures.toml", [*FIT, *parts_again], folder=runs / "met", progress=False).model
    assert torch.equal(met.clip.text.token.weight, made.model.text.token.weight.half().float())
    assert not torch.equal(met.clip.text.project.weight, fresh.project.weight)

    spoken = [
        f'clip="{runs}/unet/model"',
        'languages=["de"]',
        "english=0",
        *rarely,
        "fit.steps=40",
        "fit.optim.lr=2e-3",
    ]
    taught = run(recipes / "emblem-languages.toml", [*FIT, *spoken], folder=runs / "languages", progress=False)
    rows = map(json.loads, (runs / "languages/metrics.jsonl").open())
    said = [row["unseen_de"] for row in rows if "unseen_de" in row]
    assert said[-1] < 0.5 * said[0]  # "blue auf Deutsch" is read as "blue"
    before, after = (read_text(runs / name / "model")[0] for name in ("unet", "languages"))
    assert not torch.equal(after.token.weight, before.token.weight)
    assert taught.model.config == before.config

    more = [*FIT[1:], "fit.steps=3", *parts, *small_unet]
    assert run(recipes / "emblem-unet.toml", more, folder=runs / "unet", resume=True, progress=False).steps == 3
    with pytest.raises(ConfigError, match="captions.empty=0.5 was 0.1"):
        run(
            recipes / "emblem-unet.toml",
            [*more, "captions.empty=0.5"],
            folder=runs / "unet",
            resume=True,
            progress=False,
        )


def test_clip_with_siglips_loss(home: Path) -> None:
    """Another value in the recipe; what comes out is a CLIP folder as ever, that looks at pictures."""
    recipe = Path(__file__).parents[2] / "recipes/emblem-clip.toml"
    small = ["text.dim=32", "text.heads=2", "text.layers=1", "vision.layers=1", "vocab=600", "texts=4"]
    made = run(recipe, [*FIT, *small, "loss=sigmoid"], folder=home / "clip", progress=False)
    assert float(made.model.bias) == pytest.approx(-10, abs=0.1)
    assert float(made.model.clip.log_scale) == pytest.approx(2.3026, abs=0.1)
    white = Image.new("RGB", (256, 128), "white")
    assert load_clip_embedder(home / "clip/model").see(white).max() == 1  # -1 to 1, as in training
    found = classify(white, ["red", "blue"], model=home / "clip/model")
    assert sum(label.probability for label in found.labels) == pytest.approx(1)
    with pytest.raises(ConfigError, match="loss 'tanh'"):
        run(recipe, [*FIT, *small, "loss=tanh"], folder=home / "other", progress=False)


def test_wrong_recipes_are_named(home: Path) -> None:
    file = home / "a.toml"
    for text, message in (
        ("", "names no task"),
        ('task = "autoencode"', "unknown task 'autoencode'; did you mean autoencoder"),
        ('task = "autoencoder"\n[fit]\nstep = 5', "unknown key 'fit.step'; did you mean fit.steps"),
        ('task = "autoencoder"\n[fit]\nsteps = "5"', "fit.steps='5' is not a whole number"),
        ('task = "autoencoder"\nfreeze = ["x"]\n[fit]\nsteps = 1', "freeze='x' is the start of no parameter's name"),
        ('task = "clip"\n[fit]\nsteps = 1', "a CLIP from scratch needs a teacher"),
        ('task = "clip"\nstart = "a"\n[fit]\nsteps = 1', "start and reader go together"),
        ('task = "draft"\nautoencoder = "a"\nclip = "a"\ntexts = 8\n[fit]\nsteps = 1', "texts=8 need a teacher"),
        (
            'task = "draft"\nautoencoder = "a"\nclip = "a"\ntexts = -1\n[fit]\nsteps = 1',
            "texts=-1, synsets=60000; they",
        ),
        ('task = "diffusion"\n[model]\n[noise]\n[fit]\nsteps = 1', "autoencoder and clip are both needed"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            run(file, folder=home / "run", progress=False)
