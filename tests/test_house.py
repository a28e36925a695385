"""What holds the house up, by docs/house.md: one softmax over keys, a core that knows no family, imports from the rows
above only."""

import ast
import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qkv

ROOT = Path(qkv.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
LAB = sorted((ROOT.parent / "lab").rglob("*.py"))
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in zip(NAMES, FILES)}

HOUSE = (ROOT.parent / "docs" / "house.md").read_text(encoding="utf-8")
TABLE = [line.split("|")[1] for line in HOUSE.splitlines() if line.startswith("| `")]
# Of each row of the table, from the ground up: the names of its rooms, or files.
ROWS = [[name.rstrip("/") for name in re.findall(r"`([\w/]+)`", cell)] for cell in TABLE]
FLOORS = [name for row in ROWS[:-1] for name in row]
DOORS = {"cli", "__init__.py", "__main__.py"}
FAMILIES = {
    *("bert", "gpt", "gpt2", "llama", "qwen", "bloom", "marian", "clip", "vit", "unet", "vae", "ddpm"),
    *("diffusion", "stable", "dalle", "unclip", "emblem", "t5", "neox", "gptj", "mistral", "falcon", "opt", "roberta"),
    *("gemma", "phi", "neo"),
}
FUSED = {"scaled_dot_product_attention", "flex_attention", "MultiheadAttention", "flash_attn"}


def words(identifier: str) -> list[str]:
    """snake_case and CamelCase taken apart."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", identifier)]


def identifiers(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "name", "attr", "arg", "asname", "module"):
            value = getattr(node, field, None)
            found |= {value} if isinstance(value, str) else set()
    return found


def imports(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in the file, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def softmaxes(tree: ast.AST) -> list[str]:
    """The functions that hold a call of softmax (of any spelling, but log_softmax over a vocabulary)."""
    return [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for name in [getattr(node.func, "attr", getattr(node.func, "id", ""))]
        if "softmax" in name.lower() and "log_softmax" not in name and name != "_softmax"
    ]


def test_one_softmax_over_keys():
    """Fused kernels have their own inside; they too stand behind `attend`."""
    assert {name: softmaxes(tree) for name, tree in TREES.items() if softmaxes(tree)} == {
        "core/attention.py": ["_softmax"]
    }
    fused = {name for name, tree in TREES.items() if identifiers(tree) & FUSED}
    assert fused == {"core/attention.py"}


def test_the_softmax_test_can_fail():
    for line in ("x.softmax(-1)", "F.softmax(x, dim=-1)", "torch.softmax(x, 1)", "nn.Softmax(-1)(x)", "softmax(x)"):
        assert softmaxes(ast.parse(f"def f(x):\n    return {line}")) == ["f"]
    assert softmaxes(ast.parse("def f(x):\n    return F.log_softmax(x, -1)")) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("core/")])
def test_core_knows_no_family(name):
    known = [identifier for identifier in identifiers(TREES[name]) if set(words(identifier)) & FAMILIES]
    assert not known


def test_the_family_test_can_fail():
    assert [set(words(name)) & FAMILIES for name in ("load_gpt2", "ClipStack", "is_VAE")] == [
        {"gpt2"},
        {"clip"},
        {"vae"},
    ]


def test_house_md_knows_every_room():
    tops = {name.split("/")[0].removesuffix(".py") for name in NAMES}
    assert tops == {name for row in ROWS for name in row}
    assert {"cli", "__init__", "__main__"} == set(ROWS[-1])
    assert len(set(FLOORS)) == len(FLOORS)


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("/")[0] not in DOORS])
def test_imports_come_from_the_rows_above(name):
    floor = name.split("/")[0].removesuffix(".py")
    assert floor in FLOORS, f"{floor} is no room of the house"
    for module in imports(TREES[name]):
        package, _, rest = module.partition(".")
        if package != "qkv":
            continue
        other = rest.split(".")[0]
        assert other in FLOORS, f"{name} imports {module}"
        assert FLOORS.index(other) <= FLOORS.index(floor), f"{name} imports {module}, which stands below it"


def test_every_contract_names_tests_that_are_there():
    contracts = re.findall(r"^- \*\*.*?(?=\n- |\Z)", HOUSE, re.MULTILINE | re.DOTALL)
    assert len(contracts) > 10
    for contract in contracts:
        named = re.findall(r"`((?:\w+/)?test_\w+\.py)`", contract)
        assert named, f"no test holds this: {contract}"
        assert [name for name in named if not (ROOT.parent / "tests" / name).is_file()] == []


def test_the_compiled_softmax_stands_in_one_file():
    """Over keys: what else is exponential there is an activation, of its own file."""
    sources = [path for kind in ("*.h", "*.cpp") for path in (ROOT / "kernels").glob(kind)]
    found = {path.name for path in sources if "exponential(" in path.read_text(encoding="utf-8")}
    assert found == {"attention.h", "lanes.h", "pointwise.h"}


def test_samplers_are_generators():
    from qkv.sample.denoise import SAMPLERS
    from qkv.tasks import chat, complete, draw, translate

    for row in SAMPLERS.values():
        assert inspect.isgeneratorfunction(row.run.func if isinstance(row.run, functools.partial) else row.run)
    for verb in (draw.drawing, complete.completing, chat.chatting, translate.translating):
        assert "Iterator" in str(inspect.signature(verb).return_annotation)


def test_text_starts_without_torch():
    program = "import sys, qkv; qkv.load_language, qkv.complete, qkv.chat; import qkv.engine.native_runner"
    program += "; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_nothing_unpickles_but_one_restricted_reader():
    loads = {
        name: ast.unparse(node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    }
    assert set(loads) == {"weights/files.py"}
    assert "weights_only=True" in loads["weights/files.py"]
    askers = {name for name, tree in TREES.items() if "open_pickle" in identifiers(tree)}
    assert askers == {"weights/files.py", "weights/upscaler.py", "fetch/wheel.py"}  # --allow-pickle; a pinned hash
    assert [name for name, tree in TREES.items() if imports(tree) & {"pickle", "dill", "joblib"}] == []


def test_rooms_stay_small():
    lines: dict[str, int] = {}
    for name in NAMES:
        room = name.split("/")[0]
        lines[room] = lines.get(room, 0) + len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert {room: count for room, count in lines.items() if count >= 4500} == {}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, functions)]
    assert sum(node.end_lineno - node.lineno < 20 for node in found) / len(found) >= 0.9


def test_the_package_knows_nothing_of_the_lab():
    assert [name for name in NAMES if any(module.split(".")[0] == "lab" for module in imports(TREES[name]))] == []


def test_the_public_names_are_those_that_type_checkers_see():
    seen = {
        alias.name: node.module
        for block in TREES["__init__.py"].body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == qkv._HOME_OF
    assert sorted(seen) == qkv.__all__
    assert all(getattr(qkv, name) for name in seen)


@pytest.mark.parametrize("path", [*FILES, *LAB], ids=lambda path: path.relative_to(ROOT.parent).as_posix())
def test_a_file_like_the_others(path):
    """The lab's too."""
    name, text = path.relative_to(ROOT.parent), path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(name.parts) <= 3, "two folder levels at most"
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(re.split(r"[/_.]", str(name)))
    assert len(text.splitlines()) < 400
    if tree.body:
        assert ast.get_docstring(tree), "a module's docstring says its place"
    assert not {"transformers", "diffusers"} & {module.split(".")[0] for module in imports(tree)}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("core/", "models/"))])
def test_no_module_draws_with_randn(name: str) -> None:
    """On the meta device it imports PyTorch's compiler, 2 seconds of every start; `load_module` skips `normal_`."""
    assert not identifiers(TREES[name]) & {"randn", "randn_like"}
