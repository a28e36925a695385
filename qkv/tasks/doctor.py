"""What a bug report begins with: this machine, versions, which path each verb takes here and why, models, settings.

Everything is asked of whoever decides it when a verb runs, so that the report says what will happen. Nothing fails: a
fact that cannot be found says so in its own place. Home folders and the user's name are hidden. It builds the
kernels if they are not there yet, as the first text would; else nobody knows whether they can be.
"""

import getpass
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qkv import machine, registry
from qkv.engine.pool import free_memory
from qkv.errors import QkvError, shorten
from qkv.kernels import build
from qkv.loaded import memory
from qkv.loaded.where import AUTO, Where

if TYPE_CHECKING:
    import torch

Facts = dict[str, Any]  # values that JSON knows

PACKAGES = ("qkv", "torch", "numpy", "safetensors", "tokenizers")
FOREIGN = (  # settings of libraries that change a path
    *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "CXX"),
)


@dataclass(frozen=True)
class Report:
    machine: Facts
    kernels: Facts
    versions: Facts
    torch: Facts
    paths: list[Facts]
    models: list[Facts] | str
    settings: dict[str, str]


def examine(where: Where = AUTO, *, seconds: float = 1.0) -> Report:
    """The report; `where` is what the verbs would be given, `seconds` how long the memory is read."""
    report = Report(
        machine=_machine(seconds),
        kernels=_kernels(),
        versions={"python": platform.python_version(), **{name: _found(partial(version, name)) for name in PACKAGES}},
        torch=_torch(where),
        paths=[{"verbs": list(verbs), **_path(take, where)} for verbs, take in PATHS.items()],
        models=_found(_models),
        settings={name: shorten(os.environ[name], 200) for name in _settings()},
    )
    return Report(**_hidden(asdict(report)))


def _found(find: Callable[[], Any]) -> Any:
    """What it finds, or a text that says why not: whatever is broken here is what the report is for."""
    try:
        value = find()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {shorten(str(error), 200)})"
    return "unknown" if value is None else value


def _machine(seconds: float) -> Facts:
    free = _found(lambda: free_memory(unknown=0) or None)
    room = free if isinstance(free, int) else 1 << 30
    return {
        "system": _found(lambda: f"{platform.system()} {platform.release()} {platform.machine()}"),
        "processor": _found(machine.processor),
        "instruction_sets": _found(machine.instruction_sets),
        "cores": _found(machine.cores),
        "memory": {"total": _found(lambda: memory.total("cpu")), "free": free},
        "memory_speed": _found(lambda: round(machine.memory_speed(room, seconds))),
        "gpu": _found(_gpu),
    }


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        size = memory.readable(memory.total("cuda"))
        return f"{torch.cuda.get_device_name(0)}, {size}, CUDA {torch.version.cuda}"
    if machine.has_nvidia_driver():
        return (
            f"none that PyTorch finds, though NVIDIA's driver is here (PyTorch's CUDA: {torch.version.cuda or 'none'})"
        )
    return "none"


def _kernels() -> Facts:
    before = _found(lambda: build.library_path().is_file())
    reason = _found(lambda: build.available() or "")
    return {
        "compiler": _found(build.version),
        "found": before is True,  # built before this report
        "built": reason == "",
        "reason": reason or None,
        "instruction_sets": _found(build.instruction_sets),
    }


def _torch(where: Where) -> Facts:
    def facts() -> Facts:
        import torch

        from qkv.device import check_threads

        return {
            "capability": _found(torch.backends.cpu.get_cpu_capability),
            "onednn": _found(torch.backends.mkldnn.is_available),
            "bfloat16": _found(torch.ops.mkldnn._is_mkldnn_bf16_supported),
            "threads": _found(
                lambda: torch.get_num_threads() if where.threads is None else check_threads(where.threads)
            ),
        }

    found = _found(facts)
    return found if isinstance(found, dict) else {"capability": found}


# Which path a verb takes: what computes, and why.

Way = tuple[str, str]


def _path(take: Callable[[Where], Way], where: Where) -> Facts:
    def found() -> Way:
        try:
            return take(where)
        except QkvError as error:  # what the verb would say, too
            return "none", str(error)

    way = _found(found)
    path, why = (way, "") if isinstance(way, str) else way
    return {"path": path, "why": why}


def _text(where: Where) -> Way:
    from qkv.loaded.language import computing_device, needs_kernels, on_kernels

    if not on_kernels(computing_device(where.device), where.dtype):
        return _network(where)
    reason = build.available()
    if reason is None:
        dtype = "the precision of the model's file" if where.dtype == "auto" else where.dtype
        return f"compiled kernels, {dtype}", "a model that they do not know runs in PyTorch"
    return "none" if needs_kernels(where.dtype) else _network(where)[0], reason


def _draw(where: Where) -> Way:
    from qkv.loaded.drawer import packs
    from qkv.models.packed import can_pack

    def layout(device: "torch.device", dtype: "torch.dtype") -> str:
        if packs(device, dtype):
            return "U-Net packed"
        return "U-Net not packed" + (": float32 gains nothing" if can_pack(device, dtype) else "")

    return _network(where, layout)


def _packed(where: Where) -> Way:
    return _network(where, _linears)


def _fill(where: Where) -> Way:
    from qkv.tasks.fill import find_precision

    return _network(where, _linears, find_precision, "auto is always float32")


def _small(where: Where) -> Way:
    from qkv.device import find_small_dtype

    return _network(where, _linears, find_small_dtype, "small matrices gain nothing from bfloat16")


def _network(
    where: Where,
    layout: Callable[["torch.device", "torch.dtype"], str] | None = None,
    choose: Callable[[str, "torch.device"], "torch.dtype"] | None = None,
    because: str = "",
) -> Way:
    """In PyTorch, in the dtype that `choose` gives, `because` of that if it is not the usual one."""
    from qkv import device as devices

    device = devices.find_device(where.device)
    usual = devices.find_dtype(where.dtype, device)
    dtype = usual if choose is None else choose(where.dtype, device)
    parts = ["PyTorch", str(device), str(dtype).removeprefix("torch."), *([layout(device, dtype)] if layout else [])]
    return ", ".join(parts), _why(where, device, usual) if dtype is usual else because


def _linears(device: "torch.device", dtype: "torch.dtype") -> str:
    from qkv.models.packed import can_pack

    return "linear layers packed" if can_pack(device, dtype) else "linear layers not packed"


def _why(where: Where, device: "torch.device", dtype: "torch.dtype") -> str:
    if where.dtype != "auto":
        return "this dtype was asked for"
    what = "GPU" if device.type == "cuda" else "processor"
    return f"{'native' if str(dtype) == 'torch.bfloat16' else 'no native'} bfloat16 on this {what}"


PATHS: dict[tuple[str, ...], Callable[[Where], Way]] = {
    ("chat", "complete"): _text,
    ("draw",): _draw,
    ("embed", "search", "classify"): _packed,
    ("fill",): _fill,
    ("translate", "write"): _small,
}


def _models() -> list[Facts]:
    return [{"name": model.name, "kind": model.kind, "bytes": model.bytes} for model in registry.listing()]


def _settings() -> Iterator[str]:
    yield from sorted(name for name in os.environ if name.startswith("QKV_"))
    yield from (name for name in FOREIGN if name in os.environ)


# Nobody's name.


def _hidden(value: Any) -> Any:
    """The same with ~ for the home folder, and USER for other homes and for folders of the user's name."""
    if isinstance(value, dict):
        return {key: _hidden(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each) for each in value]
    if not isinstance(value, str):
        return value
    for pattern, instead in _secrets():
        value = re.sub(pattern, instead, value)
    return value


def _secrets() -> Iterator[tuple[str, str]]:
    end = r"(?=[/\\\s:;,'\")\]]|$)"
    home = os.path.expanduser("~")
    for folder in sorted({home, os.path.realpath(home)} - {"/", "~", ""}, key=len, reverse=True):
        yield re.escape(folder.rstrip("/")) + end, "~"
    yield r"(/home/|/Users/)[^/\s:;,'\")]+", r"\1USER"
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's number without a name
        return
    yield r"(?<=[/\\])" + re.escape(user) + end, "USER"
