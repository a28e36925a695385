"""What travels is what is needed: of packages some files, an autoencoder in half precision."""

import base64
import tarfile
from types import SimpleNamespace

import torch

from lab.scenes import travel
from qkv.fetch.npm import Package, fetch
from qkv.models.vae import VAE, VAEConfig
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.vae import AUTOENCODER, load_vae

INTEGRITY = "sha512-" + base64.b64encode(bytes(64)).decode()
PINS = [Package(name=name, version="1.0.0", integrity=INTEGRITY, bytes=1) for name in ("@icons/a", "names")]
FILES = {"icons.json": 0, "chars.json": 0, "index.js": 0, "assets/1F436.webp": 0}
NAMES = {"en/data.json": 1, "de/messages.json": 1, "ja/data.json": 1, "en/shortcodes/github.json": 1}


def test_an_archive_that_is_enough(monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("QKV_HOME", str(home))
    for pin, files in zip(PINS, (FILES, NAMES)):
        for name in files:
            path = home / "data/packages" / pin.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    works = [SimpleNamespace(pin=pin) for pin in PINS]
    monkeypatch.setattr(travel.dataset, "table", lambda: SimpleNamespace(sets=works[:1], names=works[1]))
    torch.manual_seed(0)
    vae = VAE(VAEConfig(latent_channels=2, dims=(4, 4), layers=1, groups=2, sample_size=16))
    save_component(tmp_path / "ae/vae", AUTOENCODER.export(vae))

    travel.pack(tmp_path / "ae", tmp_path / "all.tar.xz")
    with tarfile.open(tmp_path / "all.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    monkeypatch.setenv("QKV_HOME", str(tmp_path / "there/home"))
    found = fetch(PINS[0], tmp_path / "there/home/data/packages")  # without asking anybody
    assert {path.name for path in found.rglob("*") if path.is_file()} == {"icons.json", "chars.json", "1F436.webp"}
    names = fetch(PINS[1], tmp_path / "there/home/data/packages")
    assert not (names / "ja").exists()
    assert (names / "en/shortcodes/github.json").read_text() == "en/shortcodes/github.json"
    there = load_vae(Folder(tmp_path / "there/autoencoder"), dtype=torch.float32)
    assert torch.equal(there.encoder.enter.weight, vae.encoder.enter.weight.half().float())
