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
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from convnext_cli.data.digits import write_digits
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.data.manifest import read_manifest
from convnext_cli.data.scan import scan_folder
from tools.pretraining.pretrain import HELD_OUT

Corners: TypeAlias = dict[str, list[tuple[float, float]]]
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


def find_wide(out: Path) -> Index:
    """Return drawn images of 300 x 100 px whose class is a small shape anywhere in them."""
    corners: Corners = {
        "cross": [
            (-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1),
            (-0.3, 1), (-0.3, 0.3), (-1, 0.3),
        ],
        "diamond": [(-1, 0), (0, -1), (1, 0), (0, 1)],
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(-1, 0.8), (0, -1), (1, 0.8)],
    }  # fmt: skip
    return _draw_shapes(out / "wide", corners, lambda _: (300, 100))


def find_tall(out: Path) -> Index:
    """Return drawn images of 100 x 120 to 100 x 400 px whose class is the proportions of an ellipse in them."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners: Corners = {
        name: list(zip(width * np.cos(angles), height * np.sin(angles), strict=True))
        for name, width, height in (("flat", 1.0, 0.65), ("round", 0.8, 0.8), ("upright", 0.65, 1.0))
    }
    return _draw_shapes(out / "tall", corners, lambda random: (100, int(random.integers(120, 401))))


def _draw_shapes(folder: Path, corners: Corners, size: Callable[[np.random.Generator], tuple[int, int]]) -> Index:
    """Write 300 images of each shape, a polygon with its corners, on blurred noise; they are written once."""
    random = np.random.default_rng(0)
    for name in corners if not folder.is_dir() else ():
        (folder / name).mkdir(parents=True)
        for number in range(300):
            width, height = size(random)
            noise = random.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            radius = random.uniform(16, 30)
            x, y = (random.uniform(radius, side - radius) for side in (width, height))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            points = [(x + radius * dx, y + radius * dy) for dx, dy in corners[name]]
            ImageDraw.Draw(image).polygon(points, fill=colour, outline="white")
            image.save(folder / name / f"{number:03}.png")
    return scan_folder(folder)


SETS: dict[str, Callable[[Path], Index]] = {
    "cxr3": lambda _: scan_folder(shared() / "cxr3"),
    "pets": lambda _: scan_folder(shared() / "pets"),
    "digits": find_digits,
    "fashion": find_fashion,
    "unseen": find_unseen,
    "wide": find_wide,
    "tall": find_tall,
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
