"""Names are looked up, never joined to paths."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qkv import cli, registry
from qkv.errors import InputError, NotFoundError

INDEX = '{"_class_name": "StableDiffusionPipeline"}'


def place(home: Path, name: str) -> Path:
    folder = home / "models" / name
    folder.mkdir(parents=True)
    (folder / registry.INDEX).write_text(INDEX)
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets" / "emblem"
    folder.mkdir(parents=True)
    (folder / registry.INDEX).write_text(INDEX)
    monkeypatch.setattr(registry, "ASSETS", folder.parent)
    return folder


def test_listing(home: Path, shipped: Path) -> None:
    mine = place(home, "mine")
    (mine / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (home / "models" / "no model").mkdir()
    place(home, "emblem")  # cannot take the place of the shipped one
    assert registry.listing() == [
        registry.Model("emblem", shipped, "pictures", len(INDEX), "Apache-2.0", shipped=True),
        registry.Model(
            "mine", mine, "pictures", (mine / "README.md").stat().st_size + len(INDEX), "mit", shipped=False
        ),
    ]


def test_nothing_is_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ASSETS", tmp_path / "none")
    assert registry.listing() == []
    with pytest.raises(NotFoundError, match="emblem is not in this installation"):
        registry.resolve("emblem")


def test_resolve(home: Path, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = place(home, "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert registry.resolve("emblem") == shipped
    assert registry.resolve("mine") == mine
    assert registry.resolve("./mine") == Path("./mine")
    assert registry.resolve(Path("mine")) == Path("mine")
    assert registry.resolve(str(mine)) == mine


@pytest.mark.parametrize(
    "name", ["../../x", "..", "/etc", "/none", "a\0b", "x" * 10_000, "", ".", "models/mine", "emblem/../mine", "~"]
)
def test_no_name_becomes_a_path(home: Path, shipped: Path, name: str) -> None:
    place(home, "mine")
    with pytest.raises(NotFoundError) as caught:
        registry.named(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["/none/of/it", "a\0b", "x" * 10_000, "none", "emblen", "", "smollm2"])
def test_resolve_of_what_is_not_here(home: Path, shipped: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        registry.resolve(name)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"model_index.json": "{}", "modules.json": "[]"}, "pictures"),
        ({"a.gguf": "GGUF"}, "text"),
        ({"config.json": '{"architectures": ["LlamaForCausalLM"]}'}, "text"),
        ({"config.json": '{"architectures": ["GPT2LMHeadModel"]}'}, "text"),
        ({"config.json": '{"architectures": ["BertForMaskedLM"]}'}, "fill"),
        ({"config.json": '{"architectures": ["BertModel"]}', "modules.json": "[]"}, "embeddings"),
        ({"config.json": '{"architectures": []}'}, "other"),
        ({"config.json": "[" * 100_000}, "other"),
        ({"config.json": "no JSON"}, "other"),
        ({"config.json": '{"architectures": ["BertModel"]}', "source.json": '{"kind": "text"}'}, "text"),
    ],
)
def test_kinds(home: Path, files: dict[str, str], kind: str) -> None:
    folder = home / "models" / "mine"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    assert [model.kind for model in registry.listing() if not model.shipped] == [kind]


def test_what_is_hidden_or_half_there_is_no_model(home: Path) -> None:
    place(home, ".pull-abc")
    (home / "models" / "empty").mkdir()
    (home / "models" / "file").touch()
    assert all(model.shipped for model in registry.listing())


def test_known_rows() -> None:
    assert set(registry.DEFAULTS.values()) <= {*registry.SHIPPED, *registry.KNOWN}
    for name, row in registry.KNOWN.items():
        assert name not in registry.SHIPPED
        assert name == Path(name).name
        assert row.licence
        hashes = [row.wheel.sha256, *(file.sha256 for file in row.files)]
        assert all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)
        assert len(set(hashes)) == len(hashes)
        paths = [Path(file.path) for file in row.files]
        assert all(not path.is_absolute() and ".." not in path.parts for path in paths)
        assert any(path.name.startswith("LICENSE") for path in paths)
        assert registry.CONFIG in map(str, paths) or [path for path in paths if path.suffix == ".gguf"]
        assert row.bytes == sum(file.bytes for file in row.files) > 10**6


def test_a_known_model_that_is_not_here(home: Path) -> None:
    for find in (registry.named, registry.resolve):
        with pytest.raises(NotFoundError, match="smollm2 is not here yet; run: qkv pull smollm2"):
            find("smollm2")
    with pytest.raises(NotFoundError, match="did you mean smollm2"):
        registry.named("smolm2")
    assert registry.here("smollm2") is None
    assert registry.here("") is None


def test_remove(home: Path, shipped: Path, tmp_path: Path) -> None:
    mine = place(home, "mine")
    assert registry.remove("mine") == mine
    assert not mine.exists()
    with pytest.raises(InputError, match="comes with the package"):
        registry.remove("emblem")
    for name in ("mine", "../home", str(tmp_path)):
        with pytest.raises(NotFoundError):
            registry.remove(name)


def test_remove_takes_a_link_and_not_what_it_points_to(home: Path, tmp_path: Path) -> None:
    real = place(tmp_path / "elsewhere", "real")
    (home / "models").mkdir(parents=True)
    os.symlink(real, home / "models" / "linked")
    registry.remove("linked")
    assert real.is_dir()
    assert not (home / "models" / "linked").exists()
    shutil.rmtree(real)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["draw", "a", "--model", "smollm2"], "smollm2 is a model for text, where one for pictures is needed"),
        (["export", "help-en-de", "copy"], "help-en-de is a model for translation, where one for pictures"),
        (["chat", "a", "--model", "emblem"], "emblem is a model for pictures, where one for text is needed"),
        (["complete", "a", "--model", "minilm"], "minilm is a model for embeddings, where one for text is needed"),
        (["translate", "a", "--model", "emblem"], "emblem is a model for pictures, where one for translation"),
        (["write", "a", "--model", "help-en-de"], "help-en-de is a model for translation, where one for writing"),
        (["fill", "[MASK]", "--model", "emblem"], "emblem is a model for pictures, where one for fill is needed"),
        (["embed", "a", "--model", "emblem"], "is a model for pictures, where one for embeddings or fill is needed"),
        (["search", "a", __file__, "--model", "smollm2"], "is a model for text, where one for embeddings or fill"),
        (["draw", "a", "--model", "a.gguf"], "a.gguf is a model for text, where one for pictures is needed"),
        (["chat", "a", "--model", "here"], "here is a model for pictures, where one for text is needed"),
    ],
)
def test_a_model_of_another_kind_is_named_before_it_is_fetched(
    words: list[str], said: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(b"GGUF")
    place(Path(), "here").rename("here")
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert said in err


@pytest.mark.parametrize("variables", [{"QKV_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {"HOME": "/c"}])
def test_home(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("QKV_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(registry.home()) in ("/a", "/b/qkv", "/c/.cache/qkv")


def test_no_test_writes_into_the_user_s_data_home(users_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by any call that makes, moves or removes, nor by a process that it starts."""
    assert registry.home() != users_home
    monkeypatch.setenv("QKV_HOME", str(users_home))
    path = registry.home() / "hashes" / "0"
    for write in (
        path.touch,
        path.mkdir,
        path.unlink,
        path.rmdir,
        lambda: path.rename(path),
        lambda: os.truncate(path, 0),
    ):
        with pytest.raises(AssertionError, match="a test writes .*hashes"):
            write()
    for env in (None, {}):
        with pytest.raises(AssertionError, match="a test starts a process"):
            subprocess.run([sys.executable, "-c", ""], env=env)
