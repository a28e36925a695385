"""`qkv doctor`: its facts are there, its paths are those that the verbs take, it names nobody, and it never fails."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qkv import cli, machine, registry
from qkv.cli.doctor import LINES, WIDTH, screen
from qkv.engine.native_runner import NativeRunner
from qkv.engine.torch_runner import TorchRunner
from qkv.kernels import build
from qkv.loaded.drawer import load
from qkv.loaded.language import load_language
from qkv.loaded.translator import load_ready
from qkv.loaded.where import AUTO, Where
from qkv.models.bert import MaskedBert
from qkv.models.packed import PackedConv2d, PackedLinear
from qkv.tasks.doctor import Report, examine
from qkv.tasks.embed import load_embedder
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.tasks.fill import load_filler

DTYPES = ["auto", "float32", "bfloat16"]


def report(where: Where = AUTO) -> Report:
    return examine(where, seconds=0)


def path(verb: str, where: Where = AUTO) -> tuple[str, str]:
    row = next(row for row in report(where).paths if verb in row["verbs"])
    return row["path"], row["why"]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "missing-compiler")
    build.library.cache_clear()
    build.available.cache_clear()
    yield
    build.library.cache_clear()
    build.available.cache_clear()


def test_json_has_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["machine", "kernels", "versions", "torch", "paths", "models", "settings"]
    assert set(told["machine"]) == {
        *("system", "processor", "instruction_sets", "cores", "memory", "memory_speed", "gpu"),
    }
    assert told["machine"]["memory_speed"] > 1e8
    assert told["machine"]["memory"]["total"] > told["machine"]["memory"]["free"] > 0
    assert set(told["kernels"]) == {"compiler", "found", "built", "reason", "instruction_sets"}
    assert told["versions"]["torch"] == torch.__version__
    assert told["torch"]["capability"] == torch.backends.cpu.get_cpu_capability()
    shown = [{"name": model.name, "kind": model.kind, "bytes": model.bytes} for model in registry.listing()]
    assert told["models"] == shown
    verbs = {verb for row in told["paths"] for verb in row["verbs"]}
    assert verbs >= {"chat", "complete", "draw", "embed", "search", "fill", "classify", "translate", "write"}


def test_one_screen_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [registry.Model(f"m{i}" * 30, Path("m"), "text", 10**i, "MIT", shipped=False) for i in range(20)]
    monkeypatch.setattr(registry, "listing", lambda: many)
    for number in range(20):
        monkeypatch.setenv(f"QKV_{number}", "long " * 100)
    monkeypatch.setattr(build, "available", lambda: "a reason " * 100)
    lines = list(screen(report()))
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert text.replace("\n", "").isprintable()
    assert "and 9 more" in text


# Its paths are what the verbs do.


@pytest.mark.processor
@pytest.mark.skipif(build.available() is not None, reason=str(build.available()))
def test_texts_run_on_the_kernels(tiny_decoder: Path) -> None:
    assert path("chat")[0].startswith("compiled kernels")
    assert isinstance(load_language(tiny_decoder, device="cpu").engine.runner, NativeRunner)
    assert report().kernels["built"] is True


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_texts_run_in_pytorch(tiny_decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tiny_decoder)  # else it may be in memory, on kernels
    language = load_language(tmp_path / "other", device="cpu")
    assert isinstance(language.engine.runner, TorchRunner)
    way, why = path("chat", Where(device="cpu"))
    dtype = language.engine.runner.decoder.token.weight.dtype
    assert way == f"PyTorch, cpu, {str(dtype).removeprefix('torch.')}"
    assert "missing-compiler" in why
    assert why in language.warnings[0]
    assert path("chat", Where(device="cpu", dtype="int8")) == ("none", why)
    found = report().kernels
    assert (found["built"], found["reason"]) == (False, why)
    assert "no C++ compiler" in found["compiler"]


def test_a_named_dtype_of_texts(tiny_decoder: Path) -> None:
    assert path("chat", Where(device="cpu", dtype="float32"))[0] == "PyTorch, cpu, float32"
    assert isinstance(load_language(tiny_decoder, device="cpu", dtype="float32").engine.runner, TorchRunner)


@pytest.mark.processor
@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures(tiny: Path, dtype: str) -> None:
    model = load(tiny, device="cpu", dtype=dtype)
    packed = any(isinstance(part, PackedLinear | PackedConv2d) for part in model.unet.modules())
    precision = str(next(model.vae.parameters()).dtype).removeprefix("torch.")
    way, _ = path("draw", Where(device="cpu", dtype=dtype))
    wanted = f"PyTorch, cpu, {precision}, U-Net {'packed' if packed else 'not packed'}"
    assert way.removesuffix(": float32 gains nothing") == wanted


def linears(network: torch.nn.Module) -> str:
    """The path that a network has taken."""
    packed = any(isinstance(part, PackedLinear) for part in network.modules())
    precision = str(next(network.parameters()).dtype).removeprefix("torch.")
    return f"PyTorch, cpu, {precision}, linear layers {'packed' if packed else 'not packed'}"


@pytest.mark.processor
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_and_masks(tiny_bert, tiny_clip: Path, dtype: str) -> None:
    where = Where(device="cpu", dtype=dtype)
    assert path("embed", where)[0] == linears(load_embedder(tiny_bert(), device="cpu", dtype=dtype).bert)
    assert path("classify", where)[0] == linears(load_clip_embedder(tiny_clip, device="cpu", dtype=dtype).clip)
    masked = load_filler(tiny_bert(MaskedBert), device="cpu", dtype=dtype)
    assert path("fill", where)[0] == linears(masked.bert)


@pytest.mark.weights
@pytest.mark.processor
@pytest.mark.parametrize("dtype", DTYPES)
def test_translations(dtype: str) -> None:
    model = load_ready(device="cpu", dtype=dtype).model
    assert path("translate", Where(device="cpu", dtype=dtype))[0] == linears(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_verb_would_refuse_is_its_reason() -> None:
    ways = [(row["path"], row["why"]) for row in report(Where(device="cuda")).paths]
    assert set(ways) == {("none", "device cuda: PyTorch finds no GPU here; use cpu or auto")}


def test_threads_that_are_asked_for() -> None:
    assert report().torch["threads"] == torch.get_num_threads()
    assert report(Where(threads=7)).torch["threads"] == 7
    assert "is not in 1..1024" in report(Where(threads=0)).torch["threads"]


# It names nobody.


@pytest.mark.usefixtures("no_compiler")
def test_no_home_and_no_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "alice"
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(mine))
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "alice")
    monkeypatch.setenv("QKV_HOME", str(mine / "models here"))
    monkeypatch.setenv("QKV_OTHER", "/srv/alice/x:/home/bob/y:/srv/malice")
    monkeypatch.setenv("CXX", str(mine / "bin" / "c++"))
    for text in ("\n".join(screen(report())), json.dumps(vars(report()))):
        assert str(mine) not in text
        assert str(tmp_path) not in text
        assert "/alice" not in text
        assert "bob" not in text
        assert "QKV_HOME" in text
        assert "~/models here" in text
        assert "/srv/USER/x:/home/USER/y:/srv/malice" in text
        assert "~/bin/c++" in text


# It never fails.

BROKEN = """
import json, sys
sys.modules["torch"] = None

def guard(event, arguments):
    if event.startswith("socket.") and event != "socket.__new__":
        raise AssertionError(f"the network was used: {event}")

sys.addaudithook(guard)
from qkv.cli import main
main(["doctor", "--json"])
"""


def test_without_torch_and_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "missing-compiler")
    ran = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert told["torch"]["capability"].startswith("unknown (ModuleNotFoundError")
    assert told["versions"]["torch"] == torch.__version__
    assert all(row["path"].startswith("unknown (") for row in told["paths"])
    assert told["models"]


def test_what_cannot_be_found_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*given: object, **named: object) -> None:
        raise OSError("no\nluck")

    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    for name in ("memory_speed", "cores"):
        monkeypatch.setattr(machine, name, fail)
    monkeypatch.setattr(registry, "listing", fail)
    monkeypatch.setattr(build, "version", fail)
    monkeypatch.setattr(build, "available", fail)
    found = report()
    assert found.machine["processor"] == found.machine["instruction_sets"] == "unknown"
    assert found.machine["memory_speed"] == found.machine["cores"] == found.models == "unknown (OSError: no luck)"
    text = "\n".join(screen(found))
    assert text.count("unknown") >= 7


@pytest.mark.parametrize(
    ("kind", "rows", "name", "sets"),
    [
        (
            "aarch64",
            "Features : fp asimd asimddp i8mm bf16\nCPU implementer : 0x41\nCPU part : 0xd40",
            "0x41 0xd40",
            {"NEON", "dotprod", "i8mm", "bf16"},
        ),
        ("x86_64", "model name : Xeon\nflags : avx2 avx512f avx512_vnni", "Xeon", {"AVX2", "AVX-512", "VNNI"}),
        ("x86_64", "model name : Core Ultra\nflags : avx2 avx_vnni", "Core Ultra", {"AVX2", "VNNI"}),
    ],
)
def test_processors(monkeypatch, tmp_path: Path, kind: str, rows: str, name: str, sets: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(f"{rows}\n\nmodel name : another\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: kind)
    assert machine.processor() == name
    assert {name for name, has in machine.instruction_sets().items() if has} == sets


def test_a_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"machdep.cpu.brand_string": "Apple M2", "hw.optional.neon": "1", "hw.optional.arm.FEAT_DotProd": "1"}
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine, "_sysctl", lambda name, number=False: told.get(name))
    assert machine.processor() == "Apple M2"
    assert {name for name, has in machine.instruction_sets().items() if has} == {"NEON", "dotprod"}


@pytest.mark.processor
@pytest.mark.skipif(build.available() is not None, reason=str(build.available()))
def test_the_kernels_instruction_sets_are_the_sources_own() -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in build.SOURCES.glob("*.h"))
    found = build.instruction_sets()
    assert all(name in sources for name in found)
    has = machine.instruction_sets() or {}
    for name, macro in (("AVX2", "__AVX2__"), ("AVX-512", "__AVX512F__")):
        assert has.get(name, True) or macro not in found  # an older -march may leave some out
