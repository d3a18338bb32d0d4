"""False alarms and power of the drift test, on chest X-rays.

    python -m benchmarks.drift OUT [REPEATS]

A small model is fine-tuned from the weights in the package (64 px) on the X-rays of a part of the patients. The others
are a pool: each repeat draws validation patients and patients of another folder from it, at random, and compares them
as `eval RUN OTHER_FOLDER` does. Without a shift, any alarm is false. A shift changes every image of the other folder.
CONVNEXT_TEST_DATA names the folder with cxr3.
"""

import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.datasets import shared
from convnext_cli import finetune
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index, select_rows
from convnext_cli.data.scan import scan_folder
from convnext_cli.images.decode import decode_image
from convnext_cli.images.transforms import fit_image, pad_image
from convnext_cli.inference.calibration import read_novelty
from convnext_cli.inference.drift import Drift, ImageMeasures, compare_samples, list_values
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.intervals import score_interval

Pixels = NDArray[np.uint8]
TRAIN, POOL = 1200, 2000  # images
VALIDATION = 150  # patients
SIZES = (20, 50, 100, 200)  # patients of the other folder


def gamma(image: Pixels, power: float) -> Pixels:
    """Return an image with another gamma."""
    return np.asarray(255 * (image / 255) ** power, np.uint8)


def add_border(image: Pixels, fraction: float) -> Pixels:
    """Return an image with a black border, of a fraction of its sides, inside its frame."""
    tall, wide = (int(fraction * side) for side in image.shape[:2])
    framed = np.zeros_like(image)
    framed[tall:-tall, wide:-wide] = image[tall:-tall, wide:-wide]
    return framed


def add_text(image: Pixels) -> Pixels:
    """Return an image with the text of a scanner in two corners."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = max(8, image.shape[0] // 18)
    draw.text((size // 2, size // 2), "HOSPITAL 7\nPA ERECT", fill=(255, 255, 255), font_size=size)
    draw.text((image.shape[1] * 0.72, size // 2), "110 kV\n3.2 mAs", fill=(255, 255, 255), font_size=size)
    return np.asarray(picture)


SHIFTS: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda image: image,
    "gamma 0.8": lambda image: gamma(image, 0.8),
    "gamma 0.6": lambda image: gamma(image, 0.6),
    "border 4%": lambda image: add_border(image, 0.04),
    "border 8%": lambda image: add_border(image, 0.08),
    "scanner text": add_text,
}


def train(index: Index, rows: list[int], out: Path) -> Path:
    """Fine-tune on rows of an index, and return the run; one that exists is used again."""
    run, table = out / "run", out / "train.csv"
    if not (run / "metrics.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "patient"])
            writer.writerows(
                [str((index.root / index.paths[row]).resolve()), index.name_class(row), index.groups[row]]
                for row in rows
            )
        options: dict[str, Any] = {"model": "convnext_zepto_rms", "weights": "builtin", "image_size": 64, "epochs": 3}
        finetune(table, output=run, test_fraction=0.0, overwrite=True, audit=False, onnx=False, **options)
    return run


def measure(classifier: TorchClassifier, index: Index, shift: Callable[[Pixels], Pixels]) -> ImageMeasures:
    """Return the measures of all images of an index, shifted before preprocessing."""

    def load(row: int) -> Pixels:
        image = Image.fromarray(decode_image(index.root / index.paths[row]))
        image.thumbnail((256, 256))
        return pad_image(fit_image(shift(np.asarray(image)), classifier.preprocessing), classifier.preprocessing)

    parts = list(classifier.classify_batches(range(len(index)), load, features=True))
    features = np.concatenate([part.features for part in parts])
    statistics, corners = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("statistics", "corners")
    )
    scores = read_novelty(classifier.run).score(features, statistics)
    return ImageMeasures(
        values=list_values(scores, statistics, corners, None),
        targets=classifier.read_targets(index, list(range(len(index)))),
        groups=list(index.groups),
    )


def choose(measures: ImageMeasures, groups: set[str]) -> ImageMeasures:
    """Return the images of some groups."""
    assert measures.groups is not None
    rows = [row for row, group in enumerate(measures.groups) if group in groups]
    return replace(
        measures,
        values={key: values[rows] for key, values in measures.values.items()},
        targets=measures.targets[rows],
        groups=[measures.groups[row] for row in rows],
    )


def show(name: str, size: int, drifts: list[Drift]) -> None:
    """Print how often drift was found, and by which measure most often."""
    rate = float(np.mean([drift.images_drifted for drift in drifts]))
    balance = float(np.mean([any(m.is_drift and m.is_class for m in drift.measures) for drift in drifts]))
    interval = score_interval(rate, rate * (1 - rate) / len(drifts), len(drifts))
    keys = [measure.key for drift in drifts for measure in drift.measures if measure.is_drift and not measure.is_class]
    common = max(set(keys), key=keys.count) if keys else "-"
    print(
        f"{name:14}{size:9}{100 * rate:9.1f}  [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        f"{100 * balance:17.1f}  {common}",
        flush=True,
    )


def main(out: Path, repeats: int) -> None:
    """Print the table."""
    index, _ = group_index(scan_folder(shared() / "cxr3"), r"person\d+|IM-\d+|NORMAL2-IM-\d+")
    patients = np.array(sorted(set(index.groups)))
    np.random.default_rng(0).shuffle(patients)
    order = {patient: place for place, patient in enumerate(patients)}
    rows = sorted(range(len(index)), key=lambda row: order[index.groups[row]])
    index = replace(index, splits=("",) * len(index))
    classifier = TorchClassifier(train(index, rows[:TRAIN], out), cache=False)
    trained = {index.groups[row] for row in rows[:TRAIN]}
    pool = select_rows(index, [row for row in rows[TRAIN:] if index.groups[row] not in trained][:POOL])
    print(f"shift          patients  drift %  95% CI   class balance %  most often by   (n = {repeats:,})")
    plain = measure(classifier, pool, SHIFTS["none"])
    for name, shift in SHIFTS.items():
        shifted = plain if name == "none" else measure(classifier, pool, shift)
        for size in SIZES:
            drifts = []
            for seed in range(repeats):
                drawn = np.random.default_rng(seed).permutation(np.array(sorted(set(pool.groups))))
                parts = drawn[:VALIDATION], drawn[VALIDATION : VALIDATION + size]
                validation, here = (choose(m, set(part)) for m, part in zip((plain, shifted), parts, strict=True))
                drifts.append(compare_samples(classifier.task, classifier.classes, validation, here))
            show(name, size, drifts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
