"""Packages are believed only when their hash says so, and unpacked only where they belong."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from qkv.errors import CheckpointError, InputError, MissingDependencyError, NotFoundError
from qkv.fetch.npm import Package, fetch, unpack, verify


def tarball(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def pin(content: bytes) -> Package:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    return Package(name="@scope/fake", version="1.0.0", integrity=integrity, bytes=2_000_000)


GOOD = tarball({"package/icons.json": b"{}", "package/deep/er.txt": b"text"})


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for npm on PATH: `npm pack` copies the tarball that the test puts beside it, or fails."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'[ -f "{tmp_path}/served.tgz" ] || {{ echo "npm error code ENOTFOUND" >&2; exit 1; }}\n'
        f'/bin/cp "{tmp_path}/served.tgz" ./scope-fake-1.0.0.tgz\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path / "served.tgz"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_good_package_is_fetched_once(npm: Path, tmp_path: Path) -> None:
    npm.write_bytes(GOOD)
    folder = fetch(pin(GOOD), tmp_path / "cache")
    assert files(folder) == {"icons.json", "deep/er.txt"}
    npm.unlink()  # from now on npm fails
    assert fetch(pin(GOOD), tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "served",
    [GOOD[: len(GOOD) // 2], b"", tarball({"package/evil.txt": b"other"})],
    ids=["cut", "empty", "other"],  # gzip writes the time into its header: bytes as names would differ by worker
)
def test_a_cut_or_other_package_leaves_nothing(npm: Path, tmp_path: Path, served: bytes) -> None:
    npm.write_bytes(served)
    with pytest.raises(CheckpointError, match=r"@scope/fake@1\.0\.0 has the hash .* expected"):
        fetch(pin(GOOD), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_network_one_line_says_what_npm_said(
    npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFoundError, match=r"cannot fetch @scope/fake@1\.0\.0: npm error code ENOTFOUND") as error:
        fetch(pin(GOOD), tmp_path / "cache")
    assert "\n" not in str(error.value)
    said = f"qkv: fetching @scope/fake@1.0.0 (2.0 MB) from npm into {tmp_path / 'cache'}\n"
    assert capsys.readouterr().err == said, "before anything comes"


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="npm is not installed"):
        fetch(pin(GOOD), tmp_path / "cache")


@pytest.mark.parametrize(
    "content",
    [
        tarball({"package/ok.txt": b"", "package/../../escaped.txt": b"x"}),
        tarball({"/tmp/escaped.txt": b"x", "../escaped.txt": b"x"}),
        tarball({}, {"package/link": "/etc"}),
        tarball({}, {"package/link": "../../outside"}),
        tarball({"one/a": b"", "two/b": b""}),
        b"not a tarball",
    ],
    ids=["dotdot", "absolute", "link", "relative link", "two tops", "garbage"],
)
def test_hostile_tarballs_are_refused_even_with_the_right_hash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.tgz"
    path.write_bytes(content)
    verify(path, pin(content))
    with pytest.raises(CheckpointError):
        unpack(path, tmp_path / "room" / "unpacked")
    assert not (tmp_path / "escaped.txt").exists()
    assert not (tmp_path / "room" / "escaped.txt").exists()


@pytest.mark.parametrize("integrity", ["", "sha1-AAAA", "sha512-!!", "sha512-AAAA"])
def test_a_pin_must_be_sha512(integrity: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not sha512"):
        fetch(Package(name="fake", version="1", integrity=integrity, bytes=1), tmp_path)
