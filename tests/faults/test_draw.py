"""`qkv draw` on broken and hostile model folders: one line, exit code 2, nothing drawn and nothing run."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qkv import cli
from qkv.weights.files import open_tensors, save_tensors

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))

    return change


def write(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(data) and None


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def tensors(**scale: float | None) -> Callable[[Path], None]:
    """U-Net tensors times a number, or without them."""

    def change(folder: Path) -> None:
        found = open_tensors(folder / UNET)
        kept = {name: tensor * scale.get(name.replace(".", "_"), 1) for name, tensor in found.items()
                if scale.get(name.replace(".", "_"), 1) is not None}  # fmt: skip
        save_tensors(folder / UNET, kept)

    return change


def cut(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def link_out(folder: Path) -> None:
    (folder / UNET).unlink()
    os.symlink("/etc/passwd", folder / UNET)


def pipe(folder: Path) -> None:
    (folder / "qkv.json").unlink(missing_ok=True)
    os.mkfifo(folder / "qkv.json")


def index(shard: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        names = list(open_tensors(folder / UNET))
        (folder / UNET).unlink()
        text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)})
        (folder / f"{UNET}.index.json").write_text(text)

    return change


def pickled(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")


def crowded(folder: Path) -> None:
    """A token whose id lies behind the text encoder's embedding."""
    file = folder / "tokenizer/vocab.json"
    vocab = json.loads(file.read_text())
    file.write_text(json.dumps(vocab | {"dogdog": len(vocab) + 5}))


BROKEN = {
    "no index": (remove("model_index.json"), "there is no model in"),
    "index is no JSON": (write("model_index.json", b"{"), "JSON"),
    "index is nested": (write("model_index.json", b"[" * 200_000), "JSON"),
    "another pipeline": (edit("model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "no U-Net": (remove("unet/config.json"), "unet/config.json"),
    "empty weights": (write(UNET, b""), "too short"),
    "a header of 2^63": (write(UNET, b"\0" * 7 + b"\x80" + b"{}"), "header"),
    "cut weights": (cut, "not a valid safetensors"),
    "a link out": (link_out, "out of the model folder"),
    "a pickle": (pickled, "pickle"),
    "a shard above": (index("../../etc/passwd"), "out of the model folder"),
    "an absolute shard": (index("/dev/zero"), "out of the model folder"),
    "a pipe": (pipe, "not a regular file"),
    "unknown key": (edit("model_index.json", x=1), None),  # named, and left out
    "heads 0": (edit("unet/config.json", attention_head_dim=0), "heads"),
    "heads 3": (edit("unet/config.json", attention_head_dim=3), "divisible"),
    "vocab -1": (edit("text_encoder/config.json", vocab_size=-1), "vocab"),
    "10^9 layers": (edit("text_encoder/config.json", num_hidden_layers=10**9), "layers"),
    "10^12 positions": (edit("text_encoder/config.json", max_position_embeddings=10**12), "context"),
    "eps NaN": (edit("unet/config.json", norm_eps=float("nan")), "norm_eps"),
    "eps as text": (edit("unet/config.json", norm_eps="__import__('os')"), "norm_eps"),
    "code": (edit("unet/config.json", auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True), None),
    "unknown blocks": (edit("unet/config.json", down_block_types=["os.system"]), "down_block_types"),
    "unknown scheduler": (edit("scheduler/scheduler_config.json", _class_name="os.system"), "unknown scheduler"),
    "10^9 training steps": (edit("scheduler/scheduler_config.json", num_train_timesteps=10**9), "train_steps"),
    "parts do not fit": (edit("unet/config.json", cross_attention_dim=48), "fit"),
    "missing tensor": (tensors(conv_in_weight=None), "missing: enter.weight"),
    "NaN": (tensors(conv_out_weight=float("nan")), "NaN or infinity, first at leave"),
    "Inf": (tensors(conv_in_bias=float("inf")), "NaN or infinity, first at enter"),
    "tokenizer": (write("tokenizer/vocab.json", b"\xff"), "UTF-8"),
    "an id too high": (crowded, "tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sabotage, reason = BROKEN[name]
    model, here = tmp_path / "model", tmp_path / "here"
    shutil.copytree(tiny, model)
    sabotage(model)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as ended:
        cli.main(["draw", "a dog", "--model", str(model), "--steps", "2", "-o", "a.png"])
    out, err = capsys.readouterr()
    if reason is None:
        assert (ended.value.code, out) == (0, "a.png\n")
        assert re.fullmatch(r"qkv: warning: unknown-keys: \w+(/config)?.json has (x|auto_map, .*); [^\n]+\n", err)
        return
    assert (ended.value.code, out) == (2, "")
    assert re.fullmatch(r"qkv: error: [^\n]{10,1500}\n", err)
    assert reason in err
    assert os.listdir() == []


@pytest.mark.parametrize("text", ['{"steps": "many"}', '{"stepz": 3}', '{"guidance": NaN}', "[]", "{"])
def test_broken_defaults(text: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "qkv.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["draw", "a dog", "--model", str(tmp_path / "model")])
    assert ended.value.code == 2
    assert re.fullmatch(r"qkv: error: [^\n]{10,600}\n", capsys.readouterr().err)
