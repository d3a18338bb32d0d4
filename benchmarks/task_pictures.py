"""Pictures with a known answer: digits, an angle, a number of shapes, a stroke thickness, a grade in five steps."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

DIGITS, CELL, SIDE = 10, 32, 64
EQUAL = (1.0,) * DIGITS
GRADES = (0.45, 0.25, 0.15, 0.1, 0.05)
"""Frequencies of the five grades."""

Pixels = NDArray[np.uint8]


def draw_composites(
    images: int, seed: int, frequencies: Sequence[float] = EQUAL
) -> tuple[list[Pixels], NDArray[np.float64]]:
    """Return pictures, (64, 64) each, of up to three digits in their quarters, and their digits, (N, 10).

    Args:
        images: number of pictures.
        seed: of the draws.
        frequencies: of the digits, in proportion.
    """
    digits, random = load_digits(), np.random.default_rng(seed)
    rows_of = [np.flatnonzero(digits.target == k) for k in range(DIGITS)]
    weights = None if frequencies == EQUAL else np.array(frequencies) / sum(frequencies)
    pictures, targets = [], np.zeros((images, DIGITS))
    for number in range(images):
        chosen = random.choice(DIGITS, random.integers(0, 4), replace=False, p=weights)
        pixels = random.normal(0, 6, (2 * CELL, 2 * CELL))
        for place, digit in zip(random.choice(4, len(chosen), replace=False), chosen, strict=True):
            small = (digits.images[random.choice(rows_of[digit])] * 15).astype(np.uint8)
            y, x = CELL * (place // 2), CELL * (place % 2)
            scaled = Image.fromarray(small).resize((CELL, CELL), Image.Resampling.BICUBIC)
            pixels[y : y + CELL, x : x + CELL] += np.asarray(scaled)
        pictures.append(pixels.clip(0, 255).astype(np.uint8))
        targets[number, chosen] = 1
    return pictures, targets


def draw_rotation(random: np.random.Generator) -> tuple[Pixels, float]:
    """Return a bar with a knob at one end, and its angle: -60 to 60 degrees."""
    angle = random.uniform(-60, 60)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2 - random.uniform(-6, 6, 2)[:, None, None]
    along = x * np.cos(np.radians(angle)) - y * np.sin(np.radians(angle))
    across = x * np.sin(np.radians(angle)) + y * np.cos(np.radians(angle))
    shape = ((abs(along) < 20) & (abs(across) < 3)) | ((along - 20) ** 2 + across**2 < 36)
    return _add_noise(180.0 * shape, random), angle


def draw_shapes(random: np.random.Generator) -> tuple[Pixels, float]:
    """Return a picture of discs and squares that do not touch, and their number: 0 to 9."""
    number = int(random.integers(0, 10))
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.zeros((SIDE, SIDE), np.float64)
    for place in random.choice(16, number, replace=False):
        row, column = (16 * np.array(divmod(int(place), 4)) + 8 + random.uniform(-2, 2, 2)).tolist()
        radius = random.uniform(3, 5)
        is_disc = random.random() < 0.5
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        square = np.maximum(abs(y - row), abs(x - column)) < 0.9 * radius
        pixels[inside if is_disc else square] = random.uniform(100, 200)
    return _add_noise(pixels, random), float(number)


def draw_thickness(random: np.random.Generator) -> tuple[Pixels, float]:
    """Return a digit, thinned or thickened, and the thickness of its strokes in px.

    The mean distance of a stroke's pixels from its edge is a quarter of the stroke's width.
    """
    digits = _load_digits()
    small = Image.fromarray((digits[random.integers(len(digits))] * 15).astype(np.uint8))
    large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    shape = large > random.uniform(60, 190)
    distance = ndimage.distance_transform_edt(shape)
    return _add_noise(180.0 * shape, random), 4 * float(distance[shape].mean())


def draw_grade(random: np.random.Generator) -> tuple[Pixels, float]:
    """Return a picture with blots, and its grade by the area that they cover: 0 to 4, each rarer than the one before.

    The limits between the grades are noisy by a tenth of a step.
    """
    grade = int(random.choice(len(GRADES), p=GRADES))
    area = (grade + random.uniform(-0.1, 1.1)) / len(GRADES) * 0.6
    y, x = np.mgrid[:SIDE, :SIDE]
    covered = np.zeros((SIDE, SIDE), bool)
    while covered.mean() < area:
        row, column = random.uniform(0, SIDE, 2)
        covered |= (y - row) ** 2 + (x - column) ** 2 < random.uniform(2, 6) ** 2
    return _add_noise(150.0 * covered, random, 25), float(grade)


def _add_noise(pixels: NDArray[np.floating[Any]], random: np.random.Generator, std: float = 15) -> Pixels:
    noisy: Pixels = (pixels + random.normal(20, std, pixels.shape)).clip(0, 255).astype(np.uint8)
    return noisy


def _load_digits() -> NDArray[np.float64]:
    images: NDArray[np.float64] = load_digits().images
    return images


def write_pictures(
    folder: Path, pictures: Sequence[Pixels], rows: Sequence[Sequence[object]], columns: Sequence[str]
) -> Path:
    """Write pictures and their table, with the columns path and `columns`; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[list[object]] = [["path", *columns]]
    for number, (pixels, row) in enumerate(zip(pictures, rows, strict=True)):
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
        lines.append([f"{number:05}.png", *row])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "table.csv"


def write_numbers(
    folder: Path, draw: Callable[[np.random.Generator], tuple[Pixels, float]], images: dict[str, int], seed: int
) -> Path:
    """Write pictures with a number each, of the splits in `images`; return the table."""
    random = np.random.default_rng(seed)
    drawn = [(split, *draw(random)) for split, number in images.items() for _ in range(number)]
    rows = [[split, f"{value:g}"] for split, _, value in drawn]
    return write_pictures(folder, [pixels for _, pixels, _ in drawn], rows, ["split", "value"])
