"""The judges as folders, in our own names, since nobody publishes others: config.json and model.safetensors, and the
tokenizer of the one that reads captions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lab.judge.network import Judge, JudgeConfig
from lab.judge.reader import Reader, ReaderConfig
from qkv.config import as_dict, build
from qkv.text.tokenizer import Tokenizer
from qkv.weights.configs import write_json
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_weights

JUDGE = Path(__file__).parents[1] / "assets" / "judge"  # the one that judges emblem's single drawings
READER = Path(__file__).parents[1] / "assets" / "scenes-judge"


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
    _save(path, judge, as_dict(judge.config), dtype)
    tokenizer.save(path / "tokenizer")


def load_reader(path: Path) -> Reader:
    """The judge of scenes, in fp32 and eval mode. Raises CheckpointError and ConfigError."""
    folder = Folder(path)
    with torch.device("meta"):
        judge = Reader(build(ReaderConfig, folder.json("config.json")))
    load_weights(judge, folder.tensors(), dtype=torch.float32, check_finite=True)
    return judge.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def save_reader(path: Path, judge: Reader, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder. Raises OutputError."""
    _save(path, judge, as_dict(judge.config), dtype)


def _save(path: Path, judge: nn.Module, config: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in export_weights(judge).items()
    }
    write_json(path / "config.json", config)
    write_tensors(path, "model", tensors)
