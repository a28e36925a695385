"""What a machine without a network needs to train on scenes, as one file.

Place: before a run of docs/gpu-queue.md. Of the icon packages only what sprites and drawings are made of (a tenth of
their size once it is packed), and an autoencoder in half precision; sprites, drawings and latents are made where it is
unpacked, which takes less time than they would take to travel.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import torch

from lab.emblem import dataset
from lab.scenes.vocabulary import LANGUAGES
from qkv.atomic import replacing
from qkv.fetch.npm import fetch
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.vae import AUTOENCODER, load_vae

WANTED = (
    *("icons.json", "chars.json", "assets/*.webp"),
    *(f"{language}/{file}.json" for language in LANGUAGES for file in ("data", "messages")),
    *("en/shortcodes/*.json", "meta/groups.json", "meta/unicode-names.json"),
)


def pack(autoencoder: Path, path: Path) -> None:
    """Writes `path`, an archive (.tar.xz) of `home/`, to be named by QKV_HOME, and of `autoencoder/`. Raises what
    `npm.fetch` and `load_vae` raise, and OutputError."""
    vae = load_vae(Folder(autoencoder))
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w:xz", preset=6) as archive:
        for name, source in packages():
            archive.add(source, f"home/data/packages/{name}")
        with TemporaryDirectory() as scratch:
            save_component(Path(scratch) / "vae", AUTOENCODER.export(vae), dtype=torch.float16)
            archive.add(scratch, "autoencoder")


def packages() -> Iterator[tuple[PurePosixPath, Path]]:
    """The files of all packages that are wanted, by their names under the packages' folder."""
    table, cache = dataset.table(), dataset.data_folder().parent / "packages"
    for work in (*table.sets, table.names):
        folder = fetch(work.pin, cache)
        for source in sorted({source for pattern in WANTED for source in folder.glob(pattern)}):
            yield PurePosixPath(folder.name, *source.relative_to(folder).parts), source
