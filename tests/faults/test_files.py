"""Broken and hostile model files: each is refused in one line, at once, without memory. Nothing in them runs."""

import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch as package
import torch

from qkv.errors import CheckpointError
from qkv.weights.files import open_tensors
from qkv.weights.folder import Folder


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, shape: object = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


ONE = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
EMPTY = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


def million() -> bytes:
    return packed(("{" + ",".join(EMPTY % i for i in range(1_000_000)) + "}").encode())


def many(count: int) -> bytes:
    return packed(("{" + ",".join(EMPTY % i for i in range(count)) + "}").encode())


# name -> (the file's bytes, a piece of the reason)
HOSTILE = {
    # row 1
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "N is 0": (packed(b"", length=0) + b"{}", "header of 0 bytes"),
    "N is 2^63": (packed(b"{}", length=1 << 63), "header of"),
    "N is beyond the file": (packed(b"{}", length=3), "header of 3 bytes in a file of 10"),
    "N is 100,000,001": (packed(b"{}", length=100_000_001), "header of 100000001"),
    # row 2
    "not UTF-8": (packed(b'{"\xff":' + ONE[4:] + b"}", b"x"), "codec"),
    "UTF-16": (packed("{}".encode("utf-16")), "begin"),
    "not JSON": (packed(b"{" + ONE + b",]", b"x"), "property name"),
    "not an object": (packed(b"[]"), "begin"),
    "a leading space": (packed(b" {" + ONE + b"}", b"x"), "begin"),
    "a byte order mark": (packed("\ufeff{}".encode()), "begin"),
    "after the end": (packed(b"{" + ONE + b"}}", b"x"), "Extra data"),
    "no end": (packed(b"{" + ONE, b"x"), "delimiter"),
    "a comma at the end": (packed(b"{" + ONE + b",}", b"x"), "property name"),
    "a tensor twice": (packed(b"{" + ONE + b"," + ONE + b"}", b"x"), "twice"),
    "a tensor twice, once escaped": (packed(b"{" + ONE + b',"\\u0061"' + ONE[3:] + b"}", b"x"), "twice"),
    "a field twice": (packed(b'{"a":{"dtype":"U8","shape":[1],"shape":[1]}}', b"x"), "twice"),
    "four fields": (packed(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"shape":[1]}}', b"x"), "twice"),
    "a note twice": (packed(b'{"__metadata__":{"a":"b","a":"c"}}'), "twice"),
    "metadata twice": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "lists nested 10^5 deep": (packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "more lists"),
    "objects nested 10^5 deep": (packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "too deep"),
    "metadata is a text": (packed({"__metadata__": "a"}), "texts alone"),
    "metadata holds a number": (packed({"__metadata__": {"a": 1}}), "texts alone"),
    "metadata holds an object": (packed({"__metadata__": {"a": {}}}), "texts alone"),
    "metadata is a tensor": (packed(b'{"\\u005f_metadata__"' + ONE[3:] + b"}", b"x"), "texts alone"),
    "half a surrogate pair": (packed(b'{"\\ud800"' + ONE[3:] + b"}", b"x"), "surrogate"),
    # row 3
    "overlap": (packed({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xyz"), "overlaps"),
    "the same place": (packed({"a": tensor(0, 2), "b": tensor(0, 2)}, b"xy"), "overlaps"),
    "a hole": (packed({"a": tensor(0, 1), "b": tensor(2, 3)}, b"xyz"), "hole"),
    "a hole at the start": (packed({"a": tensor(1, 2)}, b"xy"), "hole"),
    "trailing bytes": (packed({"a": tensor(0, 1)}, b"xy"), "end at byte 1 of 2"),
    "trailing bytes, no tensors": (packed({}, b"x"), "end at byte 0 of 1"),
    "past the end": (packed({"a": tensor(0, 9)}, b"xy"), "end at byte 9 of 2"),
    "far past the end": (packed({"a": tensor(0, 1 << 50)}, b"xy"), "end at byte"),
    "negative": (packed({"a": tensor(-1, 1)}, b"xy"), "no tensor's"),
    "begin > end": (packed({"a": tensor(2, 1, [1])}, b"xy"), "cannot be bytes 2 to 1"),
    "three offsets": (packed({"a": tensor(0, 1) | {"data_offsets": [0, 1, 2]}}, b"x"), "no tensor's"),
    "fractional offsets": (packed({"a": tensor(0, 1) | {"data_offsets": [0, 1.0]}}, b"x"), "no tensor's"),
    # row 4
    "2^64 elements": (packed({"a": tensor(0, 0, [1 << 32, 1 << 32])}), "beyond any memory"),
    "2^64 elements, wrapping to 1": (packed({"a": tensor(0, 1, [3, 6148914691236517205 + (1 << 61)])}, b"x"), "beyond"),
    "nothing of 2^64": (packed({"a": tensor(0, 0, [0, 1 << 62, 1 << 62])}), "beyond any memory"),
    "a number of 30 digits": (packed({"a": tensor(0, 1, [10**29])}, b"x"), "beyond"),
    "a number of 10^5 digits": (packed(b'{"a":{"shape":[' + b"9" * 100_000), "digits"),
    "a thousand dimensions": (packed({"a": tensor(0, 1, [1] * 1000)}, b"x"), "no tensor's"),
    "a negative shape": (packed({"a": tensor(0, 1, [-1, -1])}, b"x"), "no tensor's"),
    "a true shape": (packed({"a": tensor(0, 1, [True])}, b"x"), "no tensor's"),
    "another length": (packed({"a": tensor(0, 4, [2], "F32")}, b"wxyz"), "cannot be bytes 0 to 4"),
    "an unknown dtype": (packed({"a": tensor(0, 1, [1], "Q4")}, b"x"), "of dtype Q4"),
    "10^6 tensors": (million(), "at most"),
    "20,000 tensors": (many(20_000), "more than"),
    "10^5 notes that are no texts": (packed({"__metadata__": {str(i): 1 for i in range(100_000)}}), "texts alone"),
    "2 MiB of notes": (packed(b'{"__metadata__":{' + b",".join(b'"%06x":1' % i for i in range(180_000))), "delimiter"),
    "10^5 empty lists": (packed(b'{"a":[' + b"[]," * 100_000), "more lists"),
    "lists nested 30,000 deep": (packed(b'{"a":' + b"[" * 30_000), "too deep"),
    "2 MiB of objects": (packed(b'{"a":[' + b"{}," * 690_000), "more than"),
    "2 MiB of numbers": (packed(b'{"a":[' + b"999," * 510_000), "Expecting"),
    # row 6
    "a pickle": (pickle.dumps({"a": 1}), "header of"),
    "an old pickle": (pickle.dumps({"a": list(range(9999))}, protocol=0), "header of"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, refusals):
    """What came of every hostile file, and by its path."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [folder / f"{i}.safetensors" for i in range(len(HOSTILE))]
    for path, (data, _) in zip(paths, HOSTILE.values()):
        path.write_bytes(data)
    (folder / "good").write_bytes(package.save({"a": torch.zeros(3)}))
    setup = "import torch\nfrom qkv.weights.files import open_tensors as run"
    found = refusals(setup, str(folder / "good"), map(str, paths))
    return found, dict(zip(HOSTILE, zip(paths, found.counts, found.reasons)))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_refused_at_once(name: str, refused) -> None:
    path, steps, reason = refused[1][name]
    assert str(path) in reason
    assert HOSTILE[name][1] in reason
    assert "\n" not in reason
    assert len(reason) < 400 + len(str(path))
    assert steps < 1000 + 4 * path.stat().st_size


def test_hostile_headers_take_no_memory(refused) -> None:
    assert refused[0].growth < 48 << 20


def test_good_counterpart_is_accepted(tmp_path: Path) -> None:
    """The parts that the files above are made of are fine by themselves."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(b"{" + ONE + b"}", b"x"))
    assert list(open_tensors(path)) == ["a"]
    path.write_bytes(many(1000))
    assert len(open_tensors(path)) == 1000


# Row 5.

BIG = package.save({f"layer.{i}.weight": torch.arange(1024.0) for i in range(3)})


def read_or_refuse(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        for found in open_tensors(path).values():
            found.sum()
    except CheckpointError:
        return False
    return True


def test_truncation_at_every_boundary(tmp_path: Path) -> None:
    header = 8 + int.from_bytes(BIG[:8], "little")
    for length in {*range(0, len(BIG), 4096), *range(header + 9), len(BIG) - 1}:
        assert not read_or_refuse(tmp_path / "a", BIG[:length]), length


def test_a_thousand_bit_flips(tmp_path: Path) -> None:
    header = 8 + int.from_bytes(BIG[:8], "little")
    generator = random.Random(0)
    accepted_headers = 0
    for i in range(1000):
        bit = generator.randrange(8 * (len(BIG) if i % 2 else header))
        flipped = bytearray(BIG)
        flipped[bit // 8] ^= 1 << bit % 8
        accepted = read_or_refuse(tmp_path / "a", bytes(flipped))
        assert accepted or bit // 8 < header
        accepted_headers += accepted and bit // 8 < header
    # A flipped letter of a name, or F32 that became I32, is a header as good as any.
    assert 0 < accepted_headers < 500


# Row 6.


class Exploit:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "a.ckpt", "model.safetensors"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickles_never_run(tmp_path: Path, name: str, write: object) -> None:
    canary = tmp_path / "canary"
    write(Exploit(canary), tmp_path / name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="header of" if name == "model.safetensors" else "is a pickle") as error:
        open_tensors(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(CheckpointError):
        Folder(tmp_path).tensors()
    assert not canary.exists()


def test_other_archives_are_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (50 << 20))
    sparse = torch.sparse_coo_tensor(torch.tensor([[10**9]]), torch.ones(1), (2 * 10**9,), check_invariants=True)
    torch.save(sparse, tmp_path / "sparse.pt")
    with pytest.raises(CheckpointError, match="header of"):
        open_tensors(tmp_path / "bomb.npz")
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_tensors(tmp_path / "sparse.pt")


# Row 8.


def index(folder: Path, shard: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    package.save_file({"a": torch.zeros(3)}, tmp_path / "outside.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    return model


@pytest.mark.parametrize(
    "shard",
    [
        "../../etc/passwd",
        "../outside.safetensors",
        "x/../../outside.safetensors",
        "/etc/passwd",
        "/dev/zero",
        "a\0b",
        "missing.safetensors",
        "\ud800",
        "",
        ".",
        "x" * 5000,
        3,
        None,
        ["a"],
    ],
)
@pytest.mark.parametrize("component", ["", "unet"])
def test_an_index_cannot_name_other_files(model: Path, shard: object, component: str) -> None:
    (model / component).mkdir(exist_ok=True)
    index(model / component, shard)
    with pytest.raises(CheckpointError) as error:
        Folder(model).tensors(component)
    assert str(model) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_index_cannot_go_round_about(model: Path) -> None:
    """`..` is refused even where it leads back inside."""
    package.save_file({"a": torch.zeros(3)}, model / "a.safetensors")
    for shard, refused in {"a.safetensors": False, "../model/a.safetensors": True}.items():
        index(model, shard)
        if refused:
            with pytest.raises(CheckpointError, match="points out of the model folder"):
                Folder(model).tensors()
        else:
            assert list(Folder(model).tensors()) == ["a"]


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "/dev/zero", "model.safetensors", "gone"])
def test_links_out_of_the_folder_are_refused(model: Path, target: str) -> None:
    (model / "model.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Folder(model).tensors()


def test_a_linked_folder_does_not_lead_out(model: Path) -> None:
    (model / "unet").symlink_to(model.parent)
    with pytest.raises(CheckpointError, match="out of the model folder"):
        Folder(model).file("unet/outside.safetensors")


def test_what_is_no_regular_file_is_never_opened(model: Path) -> None:
    """A FIFO without a writer would hold an ordinary `open` forever."""
    os.mkfifo(model / "model.safetensors")
    os.mkfifo(model / "config.json")
    for path in (model / "model.safetensors", Path("/dev/zero"), model, model / "a\0b"):
        with pytest.raises(CheckpointError):
            open_tensors(path)
    with pytest.raises(CheckpointError, match="regular"):
        Folder(model).tensors()
    with pytest.raises(CheckpointError, match="regular"):
        Folder(model).json("config.json")


def test_a_device_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a tape rewinds it."""
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(CheckpointError, match="/dev/zero is not a regular file"):
        open_tensors("/dev/zero")


def test_a_hub_cache_may_link_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0123abc"
    (snapshot / "unet").mkdir(parents=True)
    (repo / "blobs" / "deep").mkdir(parents=True)
    for place in (repo / "blobs" / "f00d", repo / "blobs" / "deep" / "f00d", repo / "elsewhere", tmp_path / "blobs"):
        package.save_file({"a": torch.zeros(3)}, place)
    (snapshot / "good.safetensors").symlink_to("../../blobs/f00d")
    (snapshot / "unet" / "model.safetensors").symlink_to("../../../blobs/f00d")
    (snapshot / "deep.safetensors").symlink_to("../../blobs/deep/f00d")
    (snapshot / "elsewhere.safetensors").symlink_to("../../elsewhere")
    (snapshot / "blobs.safetensors").symlink_to("../../../blobs")
    (repo / "blobs" / "onward").symlink_to("../elsewhere")
    (snapshot / "onward.safetensors").symlink_to("../../blobs/onward")
    assert Folder(snapshot).file("good.safetensors").exists()
    assert list(Folder(snapshot).tensors("unet")) == ["a"]
    assert list(Folder(snapshot / "unet").tensors()) == ["a"]
    for name in ("deep", "elsewhere", "blobs", "onward"):
        with pytest.raises(CheckpointError, match="out of the model folder"):
            Folder(snapshot).file(f"{name}.safetensors")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b"{", "JSON"),
        (b"[]", "list"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deep"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
    ],
    ids=["bytes", "cut", "list", "twice", "deep", "digits"],
)
def test_broken_json_is_refused(model: Path, text: bytes, reason: str) -> None:
    (model / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=reason):
        Folder(model).json("config.json")


def test_json_beyond_the_limit_is_not_read(model: Path) -> None:
    with open(model / "config.json", "wb") as file:
        file.truncate(10 << 30)  # sparse: takes no room on the disk
    with pytest.raises(CheckpointError, match="larger than"):
        Folder(model).json("config.json")
