"""Every `qkv` line of the README runs, in its order, as a reader would type it, and offline."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from qkv import cli, draw
from qkv.models.upscaler import Compact, CompactConfig
from qkv.weights.files import save_tensors
from qkv.weights.upscaler import published_upscaler

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODELS = {"chat": "smollm2", "complete": "smollm2"}  # fetched by a first use; here a model of paper speaks


def lines() -> list[list[str]]:
    """The arguments of each line."""
    text = "\n".join(BLOCK.findall(README.read_text(encoding="utf-8")))
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("qkv ")]


def test_it_has_lines_for_everything_that_it_promises() -> None:
    assert {words[0] for words in lines()} >= {
        "draw",
        "upscale",
        "chat",
        "complete",
        "translate",
        "classify",
        "search",
        "--help",
    }


@pytest.mark.weights
def test_its_lines_run(scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path, capsys) -> None:
    scripted({"France?<|im_end|>\n<|im_start|>assistant\n": "Paris.", "(n):": "\n    return n"})
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "NPM_CONFIG_OFFLINE"):  # --offline sets them for the process
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    (apple,) = draw("a red apple, 3d style", seed=1, steps=4)
    apple.image.save("photo.jpg")
    _, weights = published_upscaler(Compact(CompactConfig(dim=8, layers=1)))
    save_tensors("realesr-general-x4v3.safetensors", weights)
    Path("pictures").mkdir()
    apple.save("pictures/apple.png")
    for words in lines():
        with pytest.raises(SystemExit) as ended:
            cli.main(words if words[0] in MODELS or words[0].startswith("-") else [*words, "--offline"])
        out, err = capsys.readouterr()
        assert not ended.value.code, f"qkv {shlex.join(words)}: {err}"
        assert out.strip(), f"qkv {shlex.join(words)} printed nothing"
