"""The judge as a folder: config.json, model.safetensors and tokenizer/, in our own names: nobody publishes another."""

from pathlib import Path

import torch

from lab.judge.network import Judge, JudgeConfig
from qkv.config import as_dict, build
from qkv.text.tokenizer import Tokenizer
from qkv.weights.configs import write_json
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_weights

JUDGE = Path(__file__).parents[1] / "assets" / "judge"  # the one that judges emblem


def load_judge(path: Path) -> tuple[Judge, Tokenizer]:
    """In fp32 and eval mode. Raises CheckpointError and ConfigError."""
    folder = Folder(path)
    with torch.device("meta"):
        judge = Judge(build(JudgeConfig, folder.json("config.json")))
    load_weights(judge, folder.tensors(), dtype=torch.float32, check_finite=True)
    judge.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return judge, Tokenizer.load(path / "tokenizer")


def save_judge(path: Path, judge: Judge, tokenizer: Tokenizer, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder. Raises OutputError."""
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in export_weights(judge).items()
    }
    write_json(path / "config.json", as_dict(judge.config))
    write_tensors(path, "model", tensors)
    tokenizer.save(path / "tokenizer")
