"""What holds the house up: one softmax over keys, a core that knows no family, imports that go down only."""

import ast
import re
from pathlib import Path

import pytest

import qkv

ROOT = Path(qkv.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in zip(NAMES, FILES)}

GROUND = ["errors", "textfiles", "atomic", "progress", "config", "published", "registry", "device"]
ROOMS = (
    "text core models weights fetch kernels sample engine loaded index pictures writing tasks data train evaluate serve"
)
FLOORS = [*GROUND, *ROOMS.split()]
DOORS = {"__init__.py", "__main__.py", "cli"}
FAMILIES = {
    *("bert", "gpt", "gpt2", "llama", "qwen", "bloom", "marian", "clip", "vit", "unet", "vae", "ddpm"),
    *("diffusion", "stable", "dalle", "unclip", "emblem", "t5", "neox", "gptj", "mistral", "falcon", "opt", "roberta"),
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


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("/")[0] not in DOORS])
def test_imports_go_down_only(name):
    floor = name.split("/")[0].removesuffix(".py")
    assert floor in FLOORS, f"{floor} is no room of the house"
    for module in imports(TREES[name]):
        package, _, rest = module.partition(".")
        if package != "qkv":
            continue
        other = rest.split(".")[0]
        assert other in FLOORS, f"{name} imports {module}"
        assert FLOORS.index(other) <= FLOORS.index(floor), f"{name} imports {module}, which stands above it"


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


@pytest.mark.parametrize("name", NAMES)
def test_a_room_like_the_others(name):
    path = Path(name)
    assert len(path.parts) <= 2, "two folder levels at most"
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(re.split(r"[/_.]", name))
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 400
    if TREES[name].body:
        assert ast.get_docstring(TREES[name]), "a module's docstring says its place"
    assert not {"transformers", "diffusers"} & {module.split(".")[0] for module in imports(TREES[name])}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("core/", "models/"))])
def test_no_module_draws_with_randn(name: str) -> None:
    """On the meta device it imports PyTorch's compiler, 2 seconds of every start; `load_module` skips `normal_`."""
    assert not identifiers(TREES[name]) & {"randn", "randn_like"}
