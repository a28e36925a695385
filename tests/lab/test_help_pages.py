"""Pairs out of help pages and catalogues of paper, packed as Debian packs them."""

import io
import struct
import tarfile

import pytest

from lab.help import debian, help_pages
from lab.help.debian import unpack
from lab.help.help_pages import align, build, clean, menu_pairs, part_of, read_catalogue, read_page
from qkv.data.parallel import Pair, read_pairs
from qkv.errors import CheckpointError, InputError, MissingDependencyError, NotFoundError

PAGE = """<html><body><p>not in it: it has no id</p>
<h1 id="h1">{0} page</h1>
<p id="p1" class="paragraph">{0} <span class="menuitem">first</span>
  part. Second sentence here.</p>
<p id="p2">Press <span id="s" class="switchinline"><span hidden="true" id="MAC1" class="MAC"><span>Command</span></span>
<span hidden="true" id="default1"><span class="keycode">Ctrl</span></span></span><span>+F</span> now.</p>
<p id="p3" class="bascode">Print "code"</p><p id="p4"><code>x = 1</code></p>
<p id="p5">Only <span class="switchinline"><span class="CALC">Calc</span></span> knows.</p>
<p id="p6">&lt;{0}&gt; &amp; more</p></body></html>"""


@pytest.fixture
def page(tmp_path):
    def write(word):
        path = tmp_path / f"{word}.html"
        path.write_text(PAGE.format(word), encoding="utf-8")
        return path

    return write


def test_a_page(page):
    assert read_page(page("English")) == [
        ("h1", "English page"),
        ("p1", "English first part. Second sentence here."),
        ("p2", "Press Ctrl+F now."),
        ("p6", "<English> & more"),
    ]


def test_alignment_by_id():
    ours = [("a", "One. Two."), ("b", "Only ours."), ("c", "Three. Four.")]
    theirs = [("a", "Eins. Zwei."), ("x", "Nur deren."), ("c", "Drei und vier.")]
    assert list(align(ours, theirs)) == [("One.", "Eins."), ("Two.", "Zwei."), ("Three. Four.", "Drei und vier.")]


@pytest.mark.parametrize(
    ("pair", "good"),
    [
        (("Open the file.", "Öffnen Sie die Datei."), True),
        (("Calc", "Calc"), False),
        (("12.5", "12,5"), False),
        (("Yes", "Dies ist eine viel zu lange Übersetzung"), False),
        (("Open %1 now", "%1 jetzt öffnen"), False),
        (("See http://x.org now", "Siehe http://x.org jetzt"), False),
        (("Open the file.", "開啟檔案。"), True),
        (("word " * 90, "Wort " * 90), False),
    ],
)
def test_cleaning(pair, good):
    assert bool(list(clean([Pair(*pair)]))) is good


def catalogue(pairs):
    """A gettext .mo file."""
    keys, texts = ([text.encode() for text in side] for side in zip(*pairs))
    place, tables, body = 28 + 16 * len(pairs), b"", b""
    for side in (keys, texts):
        for text in side:
            tables += struct.pack("<2I", len(text), place + len(body))
            body += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0) + tables + body


MENUS = [("", "header"), ("STR_A\x04~Open", "Ö~ffnen"), ("x|y\x04_Save As", "Speichern _unter"), ("p\x04a\0b", "c\0d")]


def test_menus(tmp_path):
    folder = tmp_path / help_pages.MENUS / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "a.mo").write_bytes(catalogue(MENUS))
    assert list(menu_pairs(tmp_path)) == [("Open", "Öffnen"), ("Save As", "Speichern unter")]


@pytest.mark.parametrize("data", [b"", b"x" * 40, catalogue(MENUS)[:30], catalogue(MENUS)[:20] + b"\xff" * 80])
def test_broken_catalogues(tmp_path, data):
    (tmp_path / "a.mo").write_bytes(data)
    with pytest.raises(CheckpointError, match="gettext"):
        read_catalogue(tmp_path / "a.mo")


def deb(files):
    """A Debian package: an `ar` archive with a tarball of `files`."""
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tarball.getvalue()}
    parts = [
        f"{n:16}{0:12}{0:6}{0:6}{100644:8}{len(d):10}`\n".encode() + d + b"\n" * (len(d) % 2)
        for n, d in members.items()
    ]
    return b"!<arch>\n" + b"".join(parts)


@pytest.fixture
def apt(monkeypatch):
    """An apt-get that writes packages of paper."""
    pages = {f"page{i}.html": i for i in range(60)}

    def help_of(folder, word):
        return {
            f"./{help_pages.HELP}/{folder}/text/{name}": PAGE.format(f"{word} {i}").encode()
            for name, i in pages.items()
        }

    menus = {f"./{help_pages.MENUS}/de/LC_MESSAGES/a.mo": catalogue(MENUS)}
    files = {
        "libreoffice-help-en-us": help_of("en-US", "English"),
        "libreoffice-help-de": help_of("de", "Deutsche"),
        "libreoffice-l10n-de": menus,
    }
    asked = []

    def download(packages, scratch, cache):
        asked.append(list(packages))
        for package in packages:
            (scratch / f"{package}_4%3a7.4-1_all.deb").write_bytes(deb(files[package]))
        return sorted(scratch.glob("*.deb"))

    monkeypatch.setattr(debian, "_download", download)
    return asked


def test_build(apt, home):
    folder = build("en-de")
    parts = {part: read_pairs(folder, part, "en", "de") for part in ("train", "val", "test")}
    assert Pair("Save As", "Speichern unter") in parts["train"]
    seen = {part: {pair.source for pair in pairs if pair.source.endswith(" page")} for part, pairs in parts.items()}
    for i in range(60):
        assert f"English {i} page" in seen[part_of(f"page{i}.html")]
    assert sum(map(len, seen.values())) == 60
    assert 0 < len(seen["test"]) < 15
    notice = (folder / "NOTICE").read_text()
    assert "Mozilla Public License" in notice and "4:7.4-1" in notice  # noqa: PT018
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert build("en-de") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(apt) == 1, "what is here is not fetched again"


@pytest.mark.parametrize("pair", ["en-xx", "de-en", "", "en"])
def test_pairs_that_cannot_be_had(pair):
    with pytest.raises(InputError, match="en-de"):
        build(pair)


@pytest.mark.parametrize("data", [b"", b"!<arch>\n", b"PK\x03\x04", deb({"a": b"x"})[:-40], b"!<arch>\n" + b"x" * 60])
def test_broken_packages(tmp_path, data):
    (tmp_path / "a_1_all.deb").write_bytes(data)
    with pytest.raises(CheckpointError, match="a_1_all.deb"):
        unpack(tmp_path / "a_1_all.deb", tmp_path / "out")


def test_a_package_that_leads_out_is_refused(tmp_path):
    (tmp_path / "a.deb").write_bytes(deb({"../evil": b"x"}))
    with pytest.raises(CheckpointError):
        unpack(tmp_path / "a.deb", tmp_path / "in" / "out")
    assert not (tmp_path / "in" / "evil").exists()


def test_without_apt(monkeypatch, tmp_path):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="apt-get"):
        debian.fetch(["libreoffice-help-de"], tmp_path)


def test_apt_fails(monkeypatch, tmp_path, capsys):
    false = tmp_path / "apt-get"
    uri = "'http://example.org/a.deb' a.deb 2500000 SHA256:0"
    false.write_text(f"""#!/bin/sh
[ "$2" = --print-uris ] && echo "{uri}" && exit
echo 'E: Unable to locate package' >&2
exit 100
""")
    false.chmod(0o755)
    monkeypatch.setattr(debian.shutil, "which", lambda name: str(false))
    with pytest.raises(NotFoundError, match="Unable to locate"):
        debian.fetch(["libreoffice-help-de"], tmp_path / "cache")
    said = f"qkv: fetching libreoffice-help-de (2.5 MB) from Debian into {tmp_path / 'cache'}\n"
    assert capsys.readouterr().err == said, "before anything comes"
