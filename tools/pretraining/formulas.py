"""Generate labelled images by formulas, for pretraining without licensed images.

A class is a random draw of a formula's parameters. Its images vary them slightly, and vary colour, position, size,
rotation and background freely, so that only the form distinguishes classes. There are four families, after
formula-driven supervised learning (Kataoka et al. 2020, arXiv:2101.08515: fractals; 2022, arXiv:2206.09132: contours)
and learning from noise (Baradad et al. 2021, arXiv:2106.05963: spectra, dead leaves):

    fractal   an iterated function system's attractor on a background
    contour   closed curves of a few harmonics on a background
    texture   noise with a band of frequencies and orientations, all over the image
    leaves    many copies of a small shape, of one size, density and order
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Field = NDArray[np.float32]
"""A value per pixel, (S, S), 0 to 1."""
Random = np.random.Generator

FAMILIES = ("fractal", "fractal", "contour", "texture", "leaves")  # fractals twice: the richest of them
POINTS, TURNS, SKIPPED = 900, 28, 8  # of the chaos game: points at a time, maps applied to each, the first ones unseen


def write_images(folder: Path, *, classes: int, numbers: range, size: int, seed: int, processes: int) -> Iterator[int]:
    """Write `folder/<family>_<class>/<number>.png` and yield each finished class.

    Args:
        folder: where the class folders go.
        classes: how many classes; families take turns.
        numbers: which images of each class. An image depends on seed, class and number alone.
        size: side of the square images in pixels.
        seed: of all draws.
        processes: how many draw at a time.
    """
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(partial(_write_class, folder, numbers=numbers, size=size, seed=seed), range(classes))


def draw_image(family: str, parameters: dict[str, Any], random: Random, size: int) -> NDArray[np.uint8]:
    """Return an image of a class, (S, S, 3) uint8."""
    form = _DRAW[family](parameters, random, size)
    palette = parameters["palette"] if random.random() < parameters["palette_strength"] else _draw_palette(random)
    palette = np.clip(palette + random.normal(0, 0.06, palette.shape), 0, 1)
    front = _colour(form, palette)
    if family in ("fractal", "contour"):
        back = _colour(_draw_background(random, size), _draw_palette(random))
        cover = np.clip(form * 3, 0, 1)[..., None]
        front = cover * front + (1 - cover) * back
    if random.random() < 0.25:
        front = front.mean(axis=2, keepdims=True).repeat(3, axis=2)
    gain, shift = random.uniform(0.6, 1.2), random.uniform(-0.15, 0.15)
    front = (front - 0.5) * gain + 0.5 + shift + random.normal(0, random.uniform(0, 0.06), front.shape)
    image = Image.fromarray((np.clip(front, 0, 1) * 255).astype(np.uint8))
    if random.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    return np.asarray(image)


def draw_class(family: str, random: Random) -> dict[str, Any]:
    """Return the random parameters of a class."""
    return _CLASSES[family](random) | {
        "palette": _draw_palette(random),
        "palette_strength": random.choice((0.0, 0.8)),  # half of the classes have colours of their own
    }


def _write_class(folder: Path, label: int, *, numbers: range, size: int, seed: int) -> int:
    family = FAMILIES[label % len(FAMILIES)]
    parameters = draw_class(family, np.random.default_rng((seed, label)))
    target = folder / f"{family}_{label:03}"
    target.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image = draw_image(family, parameters, np.random.default_rng((seed, label, number)), size)
        Image.fromarray(image).save(target / f"{number:04}.png", compress_level=1)
    return label


# --- the classes' parameters -------------------------------------------------------------------------------------


def _fractal_class(random: Random) -> dict[str, Any]:
    """Return two to five contractions whose attractor fills enough of the image."""
    while True:
        maps = int(random.integers(2, 6))
        angles = random.uniform(0, 2 * np.pi, (2, maps))
        stretch = random.uniform(0.15, 0.85, (maps, 2)) * random.choice((-1, 1), (maps, 2))
        matrices = _rotate(angles[0]) @ (stretch[:, :, None] * _rotate(angles[1]))
        parameters = {"matrices": matrices, "shifts": random.uniform(-1, 1, (maps, 2))}
        if (_draw_fractal(parameters, np.random.default_rng(0), 32) > 0).mean() > 0.12:
            return parameters


def _contour_class(random: Random) -> dict[str, Any]:
    harmonics = int(random.integers(2, 5))
    return {
        "orders": random.choice(np.arange(2, 13), harmonics, replace=False),
        "heights": random.uniform(0.08, 0.4, harmonics),
        "phases": random.uniform(0, 2 * np.pi, harmonics),
        "rings": int(random.integers(1, 5)),
        "filled": bool(random.random() < 0.5),
        "squash": random.uniform(0.4, 1.0),
    }


def _texture_class(random: Random) -> dict[str, Any]:
    return {
        "frequency": np.exp(random.uniform(np.log(2), np.log(20))),  # cycles an image
        "band": random.uniform(0.1, 0.5),
        "spread": random.choice((0.1, 0.3, 3.0)),  # of the orientation, in radians; 3 is none at all
        "second": random.random() < 0.4,  # crossed by a second orientation
        "bend": int(random.integers(4)),
    }


def _leaves_class(random: Random) -> dict[str, Any]:
    return {
        "corners": int(random.choice((3, 4, 5, 6, 30))),
        "star": random.choice((1.0, 1.0, 0.45)),
        "radius": np.exp(random.uniform(np.log(0.03), np.log(0.16))),
        "spread": random.uniform(0, 0.5),
        "squash": random.choice((1.0, 0.5, 0.25)),
        "turned": bool(random.random() < 0.5),
        "ordered": bool(random.random() < 0.4),
        "cover": random.uniform(0.4, 1.5),
    }


# --- their images ------------------------------------------------------------------------------------------------


def _draw_fractal(parameters: dict[str, Any], random: Random, size: int) -> Field:
    """Return the density of an attractor by the chaos game, at a random rotation, scale and position."""
    matrices = parameters["matrices"] * random.uniform(0.93, 1.05, parameters["matrices"].shape)
    shifts = parameters["shifts"] + random.normal(0, 0.04, parameters["shifts"].shape)
    weight = np.abs(np.linalg.det(matrices)) + 0.02
    chosen = random.choice(len(weight), (TURNS, POINTS), p=weight / weight.sum())
    points = random.uniform(-1, 1, (POINTS, 2))
    seen = []
    for turn in range(TURNS):
        points = np.einsum("pij,pj->pi", matrices[chosen[turn]], points) + shifts[chosen[turn]]
        if turn >= SKIPPED:
            seen.append(points)
    cloud = np.concatenate(seen)
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    low, high = np.percentile(cloud, [1, 99], axis=0)
    cloud = (cloud - (low + high) / 2) / max(1e-6, float((high - low).max())) * random.uniform(0.55, 1.1)
    cloud = cloud @ _rotate(random.normal(0, 0.5)).T + random.uniform(-0.12, 0.12, 2) + 0.5
    cells = np.floor(cloud * size).astype(int)
    cells = cells[((cells >= 0) & (cells < size)).all(axis=1)]
    count = np.bincount(cells[:, 0] * size + cells[:, 1], minlength=size * size).reshape(size, size)
    density: Field = (np.log1p(count) / max(1e-6, np.log1p(count.max()))).astype(np.float32)
    return density


def _draw_contour(parameters: dict[str, Any], random: Random, size: int) -> Field:
    """Return nested closed curves r(angle) = 1 + harmonics, drawn at twice the size and scaled down."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    heights = parameters["heights"] * random.uniform(0.8, 1.2, parameters["heights"].shape)
    phases = parameters["phases"] + random.normal(0, 0.15, parameters["phases"].shape)
    radius = 1 + (heights[:, None] * np.cos(parameters["orders"][:, None] * angle + phases[:, None])).sum(axis=0)
    curve = np.stack([radius * np.cos(angle), radius * np.sin(angle) * parameters["squash"]], axis=1)
    curve = curve / np.abs(curve).max() * random.uniform(0.28, 0.55)
    curve = curve @ _rotate(random.normal(0, 0.5)).T
    centre = 0.5 + random.uniform(-0.12, 0.12, 2)
    picture = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(picture)
    for ring in range(parameters["rings"]):
        share = 1 - ring / (parameters["rings"] + 0.5)
        outline = [tuple(point) for point in (curve * share + centre) * 2 * size]
        tone = int(255 * (0.45 + 0.55 * (ring + 1) / parameters["rings"]))
        if parameters["filled"]:
            pen.polygon(outline, fill=tone)
        else:
            pen.line([*outline, outline[0]], fill=tone, width=max(2, size // 20))
    return _to_field(picture, size)


def _draw_texture(parameters: dict[str, Any], random: Random, size: int) -> Field:
    """Return noise with a band of frequencies and orientations."""
    turn = random.normal(0, 0.15)
    scale = parameters["frequency"] * random.uniform(0.85, 1.2)
    field = _band_noise(random, size, scale, parameters["band"], turn, parameters["spread"])
    if parameters["second"]:
        field = field + _band_noise(random, size, scale, parameters["band"], turn + np.pi / 2, parameters["spread"])
    bend = parameters["bend"]
    if bend == 1:
        field = np.abs(field)
    elif bend == 2:
        field = np.tanh(4 * field)
    elif bend == 3:
        field = np.exp(field)
    return _stretch(field)


def _draw_leaves(parameters: dict[str, Any], random: Random, size: int) -> Field:
    """Return overlapping copies of a small polygon, on a grid or at random positions."""
    radius = parameters["radius"] * random.uniform(0.85, 1.15)
    number = int(min(300, parameters["cover"] / (radius * radius * 3) + 3))
    if parameters["ordered"]:
        side = int(np.ceil(np.sqrt(number)))
        grid = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) / side
        places = grid + random.normal(0, 0.01, grid.shape)
    else:
        places = random.uniform(-0.05, 1.05, (number, 2))
    angle = np.linspace(0, 2 * np.pi, parameters["corners"] * 2, endpoint=False)
    reach = np.where(np.arange(len(angle)) % 2, parameters["star"], 1.0)
    shape = np.stack([reach * np.cos(angle), reach * np.sin(angle) * parameters["squash"]], axis=1)
    common = random.uniform(0, 2 * np.pi)
    picture = Image.new("L", (2 * size, 2 * size), int(random.integers(0, 60)))
    pen = ImageDraw.Draw(picture)
    for place in places:
        turn = random.uniform(0, 2 * np.pi) if parameters["turned"] else common
        grown = radius * np.exp(random.normal(0, parameters["spread"]))
        outline = (shape @ _rotate(turn).T * grown + place) * 2 * size
        pen.polygon([tuple(point) for point in outline], fill=int(random.integers(90, 256)))
    return _to_field(picture, size)


# --- parts -------------------------------------------------------------------------------------------------------


def _rotate(angle: Any) -> NDArray[np.float64]:
    """Return rotation matrices, (..., 2, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _draw_background(random: Random, size: int) -> Field:
    """Return noise with a random power-law spectrum."""
    frequency, _ = _frequencies(size)
    spectrum = np.fft.rfft2(random.normal(size=(size, size)))
    return _stretch(np.fft.irfft2(spectrum / np.maximum(frequency, 1) ** random.uniform(0.5, 2.5), (size, size)))


def _band_noise(random: Random, size: int, centre: float, band: float, turn: float, spread: float) -> Field:
    """Return noise around `centre` cycles per image (width `band` in log frequency) and the orientation `turn`."""
    frequency, angle = _frequencies(size)
    apart = np.angle(np.exp(2j * (angle - turn))) / 2  # an orientation is the same half a turn on
    envelope = np.exp(-((np.log(np.maximum(frequency, 0.5) / centre) / band) ** 2) - (apart / spread) ** 2)
    envelope[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(random.normal(size=(size, size))) * envelope, (size, size))
    normed: Field = (field / max(1e-9, float(field.std()))).astype(np.float32)
    return normed


def _frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the length in cycles per image, and the angle, of each frequency of rfft2."""
    down, right = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None]
    return np.hypot(down, right), np.arctan2(down, right)


def _draw_palette(random: Random) -> NDArray[np.float64]:
    """Return three random colours, (3, 3), for a palette."""
    base = random.uniform(0, 1, 3)
    palette = np.stack([base + random.normal(0, 0.15, 3) + step for step in (-0.35, 0, 0.35)])
    if random.random() < 0.5:
        palette = palette[::-1]
    if random.random() < 0.4:
        palette[random.integers(3)] = random.uniform(0, 1, 3)
    return np.clip(palette, 0, 1)


def _colour(field: Field, palette: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values (S, S) in the colours of a palette, (S, S, 3)."""
    return np.stack([np.interp(field, (0, 0.5, 1), palette[:, channel]) for channel in range(3)], axis=2)


def _stretch(field: NDArray[Any]) -> Field:
    low, high = np.percentile(field, [1, 99])
    stretched: Field = np.clip((field - low) / max(1e-9, high - low), 0, 1).astype(np.float32)
    return stretched


def _to_field(picture: Image.Image, size: int) -> Field:
    small = picture.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


_CLASSES: dict[str, Callable[[Random], dict[str, Any]]] = {
    "fractal": _fractal_class,
    "contour": _contour_class,
    "texture": _texture_class,
    "leaves": _leaves_class,
}
_DRAW: dict[str, Callable[[dict[str, Any], Random, int], Field]] = {
    "fractal": _draw_fractal,
    "contour": _draw_contour,
    "texture": _draw_texture,
    "leaves": _draw_leaves,
}
