"""Data sets for the benchmarks, and samples of them.

CONVNEXT_TEST_DATA names the folder with cxr3, pets and tiny_imagenet32.zip; fashion is the test part of Fashion-MNIST
as Debian's package dataset-fashion-mnist installs it.
"""

import gzip
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_cli.data.digits import write_digits
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.data.manifest import read_manifest
from convnext_cli.data.scan import scan_folder
from tools.pretraining.pretrain import HELD_OUT

FASHION = Path("/usr/share/datasets/fashion-mnist")


def find_digits(out: Path) -> Index:
    """Return handwritten digits, 8 px."""
    return scan_folder(write_digits(out / "digits"))


def find_fashion(out: Path) -> Index:
    """Return ten classes of clothing, 28 px; the files are written once."""
    folder = out / "fashion"
    if not folder.is_dir():
        pixels = np.frombuffer(
            gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        )
        labels = np.frombuffer(
            gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
        )
        for i, (image, label) in enumerate(zip(pixels.reshape(-1, 28, 28), labels, strict=True)):
            target = folder / str(label) / f"{i:05}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)
    return scan_folder(folder)


def find_unseen(out: Path) -> Index:
    """Return the classes of Tiny ImageNet that the weights were not pretrained on, 32 px."""
    folder = out / "unseen"
    if not folder.is_dir():
        with zipfile.ZipFile(shared() / "tiny_imagenet32.zip") as archive:
            for name in archive.namelist():
                parts = Path(name).parts
                if not name.endswith("/") and (label := next((part for part in parts if part in HELD_OUT), None)):
                    target = folder / label / parts[-1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    return scan_folder(folder)


SETS: dict[str, Callable[[Path], Index]] = {
    "cxr3": lambda _: scan_folder(shared() / "cxr3"),
    "pets": lambda _: scan_folder(shared() / "pets"),
    "digits": find_digits,
    "fashion": find_fashion,
    "unseen": find_unseen,
}


def shared() -> Path:
    """Return the folder of data sets."""
    return Path(os.environ["CONVNEXT_TEST_DATA"])


def draw_manifest(index: Index, images: int, seed: int, path: Path, *, half: str | None = None) -> Index:
    """Sample whole groups and write them as a manifest: `images` to train and validate on, and as many to test on.

    Args:
        index: the whole data set.
        images: number of images.
        seed: of the sample.
        path: of the manifest.
        half: `choose` or `report`: sample from that half of the groups alone; None samples from all.
    """
    grouped, _ = group_index(index, "auto")
    groups = np.array(grouped.groups or grouped.paths)
    names, members = np.unique(groups, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))[members]  # position of each image's group
    order = np.argsort(rank, kind="stable")
    if half is not None:
        is_open = np.array([find_half(str(name)) == half for name in names])[members]
        order = order[is_open[order]]
    images = min(images, len(order) // 2)
    rows = []
    for at, row in enumerate(order[: 2 * images]):
        split = "train" if at < 0.8 * images else "val" if at < images else "test"
        rows.append((index.root / index.paths[row], index.classes[index.labels[row]], split, groups[row]))
    last = {group: split for *_, split, group in rows}  # a group that spans two splits goes to the later one
    lines = [f'"{image}","{label}",{last[group]},"{group}"' for image, label, _, group in rows]
    path.write_text("\n".join(["path,label,split,group", *lines, ""]), encoding="utf-8")
    return read_manifest(path)


def find_half(group: str) -> str:
    """Return the half that a group belongs to; settings are chosen on one half and reported on the other."""
    return ("choose", "report")[hashlib.sha256(group.encode()).digest()[0] % 2]
