"""The command line: results on stdout, one line on stderr for what cannot be, and exit codes."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from PIL import Image, PngImagePlugin

from qkv import cli
from qkv.tasks.draw import draw
from qkv.weights.files import open_tensors


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def qkv(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def quick(qkv: Callable[..., Ran], tiny: Path):
    """`qkv draw` on the tiny model."""
    return lambda *arguments: qkv("draw", *arguments, "--model", tiny, "--steps", 2)


def test_draw(quick: Callable[..., Ran], tiny: Path) -> None:
    ran = quick("a dog in a suit", "--seed", 3, "--negative", "red")
    assert ran == (0, "a-dog-in-a-suit-3.png\n", "")
    ours = draw("a dog in a suit", negative="red", seed=3, steps=2, model=tiny)[0]
    with Image.open("a-dog-in-a-suit-3.png") as image:
        assert image.tobytes() == ours.image.tobytes()


def test_no_file_of_a_name_that_we_chose_is_overwritten(quick: Callable[..., Ran]) -> None:
    names = [quick("A (dog:1.2), 狗!", "--seed", 3).out.strip() for _ in range(3)]
    assert names == ["a-dog-1-2-狗-3.png", "a-dog-1-2-狗-3-1.png", "a-dog-1-2-狗-3-2.png"]
    assert quick("?!", "--seed", 1).out == "picture-1.png\n"
    assert quick("../../etc/passwd", "--seed", 1).out == "etc-passwd-1.png\n"
    Path("cat-1.attention.png").touch()  # a heat map whose picture was moved away
    assert quick("cat", "--seed", 1, "--show-attention").out == "cat-1-1.png\ncat-1-1.attention.png\n"


def test_long_names_in_any_script(quick: Callable[..., Ran]) -> None:
    """A name may have 255 bytes; the part that is written first must not have more."""
    assert quick("\U00020000" * 60, "--seed", 2**62).code == 0
    name = "狗" * 83 + ".png"
    assert quick("a dog", "-o", name).out == f"{name}\n"


def test_out(quick: Callable[..., Ran]) -> None:
    assert quick("a dog", "-o", "b.png").out == "b.png\n"
    assert quick("a dog", "-o", "b.png", "--count", 2).out == "b-1.png\nb-2.png\n"
    assert quick("a dog", "-o", "new/", "--seed", 4, "--seed", 9, "--count", 2).out == (
        "new/a-dog-4.png\nnew/a-dog-9.png\n"
    )
    assert quick("a dog", "-o", "new", "--seed", 5).out == "new/a-dog-5.png\n"


def test_json(quick: Callable[..., Ran]) -> None:
    ran = quick("a dog", "--count", 2, "--seed", 3, "--json", "--guidance", 1, "--negative", "red", "--size", "32x40")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [(line["seed"], line["path"], line["size"]) for line in lines] == [
        (3, "a-dog-3.png", [32, 40]),
        (4, "a-dog-4.png", [32, 40]),
    ]
    assert [warning.split(":")[0] for warning in lines[0]["warnings"]] == ["size", "negative-without-guidance"]
    assert ran.err.count("qkv: warning: size:") == 1  # once for both pictures


def test_replay_is_the_same_file(quick: Callable[..., Ran], qkv: Callable[..., Ran], tiny: Path) -> None:
    options = ["--negative", "red", "--guidance", 3, "--sampler", "euler_ancestral", "--size", "40x32", "--seed", 8]
    first = quick("a (dog:1.2) in 雨", *options, "--threads", 1, "-o", "a.png")
    assert first.code == 0
    again = ("draw", "--replay", "a.png", "--model", tiny)
    assert qkv(*again, "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert qkv(*again, "--seed", 9, "-o", "c.png").code == 0
    assert Path("a.png").read_bytes() != Path("c.png").read_bytes()


def test_a_picture_tells_nothing_of_the_users_machine(
    quick: Callable[..., Ran], qkv: Callable[..., Ran], tiny: Path, tmp_path: Path
) -> None:
    """Its model is a name; a folder of that name is found where one is, or where --model says."""
    for model in (tiny, os.path.relpath(tiny), f"{tiny}/."):
        assert (
            json.loads(qkv("draw", "a", "--steps", 1, "--model", model, "-o", "a.png", "--json").out)["model"]
            == tiny.name
        )
        assert str(tiny.parent).encode() not in Path("a.png").read_bytes()
    assert str(tmp_path).encode() not in Path("a.png").read_bytes()
    ran = qkv("draw", "--replay", "a.png", "-o", "b.png")
    assert (ran.code, ran.out) == (2, "")
    assert f"a.png was drawn by the model '{tiny.name}', which is not here; say where it is with --model" in ran.err
    Path(tiny.name).symlink_to(tiny)
    assert qkv("draw", "--replay", "a.png", "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_strangers_picture_makes_nobody_fetch(
    qkv: Callable[..., Ran], quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("qkv.fetch.hub.ask", fetched.append)
    quick("a dog", "-o", "a.png")
    with Image.open("a.png") as image:
        said = PngImagePlugin.PngInfo()
        said.add_text("qkv", json.dumps(json.loads(image.text["qkv"]) | {"model": "evil/model"}))
        image.save("evil.png", pnginfo=said)
    ran = qkv("draw", "--replay", "evil.png", "-o", "b.png")
    assert (ran.code, fetched) == (2, [])
    assert "which is not here; say where it is with --model" in ran.err


def test_a_model_of_the_hubs_cache(qkv: Callable[..., Ran], tiny: Path, tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "cache" / "models--good--model" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    ran = qkv("draw", "a", "--steps", 1, "--seed", 1, "--model", "good/model", "--offline", "-o", "a.png", "--json")
    assert json.loads(ran.out)["model"] == "good/model"
    assert qkv("draw", "--replay", "a.png", "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "offline nothing is fetched" in qkv("draw", "a", "--model", "no/model", "--offline").err
    assert qkv("export", "good/model", "exported").code == 0


def test_replay_says_that_the_model_is_another(
    quick: Callable[..., Ran], qkv: Callable[..., Ran], tiny: Path, tmp_path: Path
) -> None:
    quick("a dog", "-o", "a.png")
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    file = next((other / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    ran = qkv("draw", "--replay", "a.png", "--model", other, "-o", "b.png")
    assert ran.code == 0
    assert "qkv: warning: model-changed:" in ran.err


def test_replay_says_that_the_versions_are_others(
    quick: Callable[..., Ran], qkv: Callable[..., Ran], tiny: Path
) -> None:
    quick("a dog", "-o", "a.png")
    with Image.open("a.png") as image:
        said = PngImagePlugin.PngInfo()
        for name, text in image.text.items():  # type: ignore[attr-defined]
            said.add_text(name, text.replace(torch.__version__, "1.0"))
        image.save("old.png", pnginfo=said)
    assert "versions-changed" not in qkv("draw", "--replay", "a.png", "--model", tiny, "-o", "b.png").err
    ran = qkv("draw", "--replay", "old.png", "--model", tiny, "-o", "b.png")
    assert ran.code == 0
    assert "versions-changed: old.png was drawn by qkv 0.1.0 and torch 1.0; its last bits may differ" in ran.err


def test_replay_of_another_tools_picture(quick: Callable[..., Ran]) -> None:
    text = PngImagePlugin.PngInfo()
    line = "Steps: 30, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 32x32, Model: v1-5, Clip skip: 2"
    text.add_text("parameters", f"a cat\nNegative prompt: red\n{line}")
    Image.new("RGB", (32, 32)).save("a.png", pnginfo=text)
    ran = quick("--replay", "a.png", "-o", "b.png", "--json")
    values = json.loads(ran.out)
    assert (values["prompt"], values["negative"], values["sampler"]) == ("a cat", "red", "euler_ancestral")
    assert (values["seed"], values["guidance"], values["steps"]) == (3, 5, 2)  # steps were given
    said = "another-tool: a.png was not drawn by qkv and cannot come out the same; "
    assert values["warnings"] == [f"{said}not honoured: Model: v1-5, Clip skip: 2"]
    assert "qkv: warning: another-tool:" in ran.err


def test_from_a_picture_and_again(quick: Callable[..., Ran], qkv: Callable[..., Ran], tiny: Path) -> None:
    """A picture that began from one says that it is needed, and from the same one comes out the same."""
    for seed, name in ((1, "first.png"), (2, "other.png")):
        assert quick("a red cat", "--seed", seed, "-o", name).code == 0
    Image.new("L", (32, 32), 255).save("mask.png")
    began = ("--image", "first.png", "--mask", "mask.png")
    assert quick("a dog", "--seed", 7, *began, "--strength", 0.9, "-o", "a.png").code == 0
    again = ("draw", "--replay", "a.png", "--model", tiny, "-o", "b.png")
    ran = qkv(*again)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "a.png began from a picture that it does not hold; give its image with --image" in ran.err
    assert qkv(*again, *began).code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    ran = qkv(*again, "--image", "other.png", "--mask", "mask.png")
    assert "image-changed: this is not the image that a.png began from" in ran.err
    assert "mask-changed" not in ran.err


def test_show_attention(quick: Callable[..., Ran]) -> None:
    ran = quick("a dog", "--show-attention", "-o", "a.png")
    assert ran.out == "a.png\na.attention.png\n"
    with Image.open("a.attention.png") as image:
        assert image.width > 3 * 128
    values = json.loads(quick("a dog", "--show-attention", "-o", "a.png", "--json").out)
    assert values["attention"] == "a.attention.png"


REFUSED = {
    "no prompt": (["draw"], "there is no prompt"),
    "empty prompt": (["draw", ""], "prompt is empty"),
    "size of 7": (["draw", "a", "--size", "7x7"], "width=7 is not a multiple of 8"),
    "absurd size": (["draw", "a", "--size", "1000000x1000000"], "pixels"),
    "no size": (["draw", "a", "--size", "big"], "WIDTHxHEIGHT"),
    "steps 0": (["draw", "a", "--steps", "0"], "steps=0"),
    "steps 10^9": (["draw", "a", "--steps", "1000000000"], "steps=1000000000"),
    "steps of text": (["draw", "a", "--steps", "many"], "not 'many'"),
    "a seed of text": (["draw", "a", "--seed", "1", "--seed", "x"], "not 'x'"),
    "a prompt without quotes": (["draw", "a", "dog"], "quotes"),
    "guidance nan": (["draw", "a", "--guidance", "nan"], "guidance=nan"),
    "count 0": (["draw", "a", "--count", "0"], "count=0"),
    "seed": (["draw", "a", "--seed", "-1"], "seed=-1"),
    "sampler": (["draw", "a", "--sampler", "eular"], "did you mean euler"),
    "sampler, all": (["draw", "a", "--sampler", "xyz"], "ddim, ddpm, dpmpp_2m"),
    "device": (["draw", "a", "--device", "tpu"], "unknown device"),
    "dtype": (["draw", "a", "--dtype", "int8"], "unknown dtype"),
    "threads": (["draw", "a", "--threads", "0"], "threads=0"),
    "out is no folder": (["draw", "a", "-o", "none/b.png"], "cannot write into the folder none"),
    "out in a file": (["draw", "a", "-o", "MODEL/model_index.json/b.png"], "cannot write into the folder"),
    "out is no picture": (["draw", "a", "-o", "b.jpg"], "ends in .png"),
    "out is a device": (["draw", "a", "-o", "/dev/full"], "ends in .png"),
    "replay of nothing": (["draw", "--replay", "none.png"], "No such file"),
    "unknown option": (["draw", "a", "--stepz", "3"], "--stepz"),
    "unknown verb": (["drow", "a"], "drow"),
    "model to remove": (["models", "rm", "none"], "unknown model 'none'"),
    "shipped model": (["models", "rm", "emblem"], "cannot be removed"),
    "export over something": (["export", "MODEL", "/tmp"], "already there"),
    "export in no dtype": (["export", "MODEL", "new", "--dtype", "fp8"], "unknown dtype"),
    "no recipe": (["train", "none.toml"], "none.toml"),
    "no such change": (["train", "none.toml", "--dtype", "float16"], "cannot be trained in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(qkv: Callable[..., Ran], tiny: Path, name: str) -> None:
    arguments, reason = REFUSED[name]
    model = ["--model", tiny] if arguments[0] == "draw" else []
    ran = qkv(*[argument.replace("MODEL", str(tiny)) for argument in arguments], *model)
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"qkv: error: [^\n]{10,600}\n", ran.err)
    assert reason in ran.err
    assert os.listdir() == []


@pytest.mark.parametrize("model", ["emblen", "../../x", "/none", "x" * 10_000])
def test_an_unknown_model_is_one_line(qkv: Callable[..., Ran], model: str) -> None:
    ran = qkv("draw", "a dog", "--model", model)
    assert ran.code == 2
    assert re.fullmatch(r"qkv: error: [^\n]{10,600}\n", ran.err)
    assert model != "emblen" or "did you mean emblem" in ran.err


@pytest.mark.parametrize(
    ("command", "reason"),
    [("drow", "did you mean draw?"), ("models ls", "known: rm"), ("eval pictures", "known: few-shot, translation")],
)
def test_an_unknown_command_is_one_line(qkv: Callable[..., Ran], command: str, reason: str) -> None:
    ran = qkv(*command.split())
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"qkv: error: unknown command '\w+'; [^\n]+\n", ran.err)
    assert reason in ran.err


def test_a_full_disk(quick: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have 1,000 bytes, as if then the disk were full: the old picture stays, and nothing else is left."""
    quick("a dog", "-o", "a.png")
    before = Path("a.png").read_bytes()
    assert len(before) > 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        ran = quick("a cat", "-o", "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 2
    assert re.fullmatch(r"qkv: error: cannot write a\.png: [^\n]+\n", ran.err)
    assert Path("a.png").read_bytes() == before
    assert os.listdir() == ["a.png"]


def test_a_fault_of_ours_is_one_line_too(qkv: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def fail() -> None:
        raise KeyError("deep inside\nand more")

    monkeypatch.setattr("qkv.registry.listing", fail)
    ran = qkv("models")
    assert ran.code == 1
    assert ran.err.startswith("qkv: error: a fault in qkv, KeyError")
    assert ran.err.count("\n") == 1
    monkeypatch.setenv("QKV_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["models"])


def test_models(qkv: Callable[..., Ran], home: Path, tiny: Path) -> None:
    shutil.copytree(tiny, home / "models" / "mine")
    (home / "models" / "mine" / "README.md").write_text("---\nlicense: mit\n---\n")
    found = [json.loads(line) for line in qkv("models", "--json").out.splitlines()]
    mine = next(model for model in found if model["name"] == "mine")
    assert (mine["licence"], mine["path"], mine["shipped"]) == ("mit", str(home / "models" / "mine"), False)
    assert re.search(r"^mine +pictures +\d+\.\d MB  mit ", qkv("models").out, re.MULTILINE)
    assert qkv("draw", "a dog", "--model", "mine", "--steps", 2, "-o", "a.png").code == 0
    assert qkv("models", "rm", "mine").out == f"{home / 'models' / 'mine'}\n"
    assert "mine" not in qkv("models").out


def test_export(qkv: Callable[..., Ran], quick: Callable[..., Ran], tiny: Path) -> None:
    assert qkv("export", tiny, "copy").out == "copy\n"
    quick("a dog", "--seed", 1, "-o", "a.png")
    assert qkv("draw", "a dog", "--seed", 1, "--steps", 2, "--model", "copy", "-o", "b.png").code == 0
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()
    assert json.loads(qkv("export", tiny, "half", "--dtype", "float16", "--json").out) == {"path": "half"}
    half = open_tensors("half/unet/diffusion_pytorch_model.safetensors")
    assert {str(tensor.dtype) for tensor in half.values()} == {"torch.float16"}
    assert qkv("export", tiny, "copy").code == 2
    Path("file").touch()
    assert qkv("export", tiny, "file/copy").err == "qkv: error: cannot write file/copy: Not a directory\n"
    Path("file").unlink()
    assert sorted(os.listdir()) == ["a.png", "b.png", "copy", "half"]


def test_train_hands_over_what_was_asked(qkv: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from qkv.train import recipes

    seen: list[object] = []

    def run(path: str, overrides: list[str], **options: object) -> SimpleNamespace:
        seen.append((path, overrides, options))
        return SimpleNamespace(checkpoint=Path("runs/a/1"), steps=5, loss=0.5, ended="signal" if len(seen) > 1 else "")

    monkeypatch.setattr(recipes, "run", run)
    options = ["--resume", "--folder", "f", "--device", "cpu", "--dtype", "bfloat16"]
    ran = qkv("train", "a.toml", "fit.steps=5", "batch=2", *options)
    assert ran == (0, "runs/a/1\n", "")
    expected = {"folder": Path("f"), "device": "cpu", "resume": True, "progress": True}
    assert seen == [("a.toml", ["fit.steps=5", "batch=2", "fit.dtype=bf16"], expected)]
    interrupted = qkv("train", "a.toml", "--json")
    assert interrupted.code == 130
    assert json.loads(interrupted.out)["checkpoint"] == "runs/a/1"


def test_offline_reaches_what_could_use_the_network(qkv: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "NPM_CONFIG_OFFLINE"):
        monkeypatch.setenv(name, "")
    qkv("models", "--offline")
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["NPM_CONFIG_OFFLINE"]) == ("1", "true")


VERBS = ["draw", "chat", "complete", "pull", "export", "train", "models", "models rm", "eval few-shot", "doctor"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_shared_options(qkv: Callable[..., Ran], verb: str) -> None:
    text = qkv(*verb.split(), "--help").out
    for option in ("--device", "--dtype", "--threads", "--offline", "--json"):
        assert option in text


def process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qkv", *map(str, arguments)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background of a shell ignores it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, preexec_fn=heard, **pipes, **options)


def test_help_and_the_package_import_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, qkv, qkv.registry, qkv.errors\n"
        "from qkv.cli import main\n"
        "qkv.NotFoundError, qkv.listing\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'numpy', 'rich', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for arguments in ([], ["--help"], ["draw", "--help"], ["chat", "--help"]):
        ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert ran.stderr.splitlines()[-1] == "[]"
        assert not arguments or (ran.returncode == 0 and "Usage: qkv" in ran.stdout)


def test_version(qkv: Callable[..., Ran]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", qkv("--version").out)


@pytest.mark.parametrize("group", [(), ("eval",)])
def test_without_a_command_it_says_which_there_are(qkv: Callable[..., Ran], group: tuple[str, ...]) -> None:
    ran = qkv(*group)
    assert ran == qkv(*group, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "\nCommands:\n" in ran.out


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    ran = subprocess.run([sys.executable, "-m", "qkv"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (130, "")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["qkv"] == "qkv.__main__:main"  # what `python -m qkv` runs


def test_ctrl_c_leaves_whole_pictures_only(tiny: Path, tmp_path: Path) -> None:
    running = process("draw", "a dog", "--model", tiny, "--steps", 20, "--count", 500, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.png")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "")
    files = list(tmp_path.iterdir())
    assert 1 <= len(files) < 500
    for file in files:
        with Image.open(file) as image:
            image.load()


def test_a_reader_that_has_seen_enough(tiny: Path, tmp_path: Path) -> None:
    running = process("draw", "a dog", "--model", tiny, "--steps", 1, "--count", 4, cwd=tmp_path)
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == ""
    running.wait(60)


def test_a_full_disk_behind_stdout(tiny: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "qkv", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ran.returncode != 0
    assert re.fullmatch(r"qkv: error: [^\n]+\n", ran.stderr)
