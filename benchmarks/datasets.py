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
from convnext_cli.data.tables.table import read_table
from tools.pretraining.pretrain import HELD_OUT

Ellipse: TypeAlias = tuple[tuple[float, float], tuple[int, int, int]]
"""Its two radii, relative to each other, and its colour."""
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
    """Return drawn images of 300 x 100 px whose class is the colour of a disc anywhere in them."""
    colours = {"blue": (70, 90, 230), "green": (60, 190, 80), "red": (220, 60, 50), "yellow": (220, 200, 60)}
    shapes = {name: ((1.0, 1.0), colour) for name, colour in colours.items()}
    return _draw_ellipses(out / "wide", shapes, lambda _: (300, 100))


def find_tall(out: Path) -> Index:
    """Return drawn images of 100 x 120 to 100 x 400 px whose class is the proportions of an ellipse in them."""
    shapes = {"flat": (1.0, 0.5), "round": (0.75, 0.75), "upright": (0.5, 1.0)}
    white = {name: (radii, (255, 255, 255)) for name, radii in shapes.items()}
    return _draw_ellipses(out / "tall", white, lambda random: (100, int(random.integers(120, 401))))


def _draw_ellipses(
    folder: Path, classes: dict[str, Ellipse], draw_size: Callable[[np.random.Generator], tuple[int, int]]
) -> Index:
    """Write 250 images of each class, once: an ellipse on dark, blurred noise."""
    random = np.random.default_rng(0)
    for name, (radii, colour) in classes.items() if not folder.is_dir() else ():
        (folder / name).mkdir(parents=True)
        for number in range(250):
            width, height = draw_size(random)
            noise = random.integers(0, 120, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            scale = random.uniform(24, 36)
            x, y = (random.uniform(scale, side - scale) for side in (width, height))
            dx, dy = (scale * radius for radius in radii)
            ImageDraw.Draw(image).ellipse((x - dx, y - dy, x + dx, y + dy), fill=colour)
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
    return read_manifest(read_table(path))


def find_half(group: str) -> str:
    """Return the half that a group belongs to; settings are chosen on one half and reported on the other."""
    return ("choose", "report")[hashlib.sha256(group.encode()).digest()[0] % 2]
