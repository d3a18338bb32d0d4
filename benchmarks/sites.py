"""Internal and external metrics of a site whose images are shifted, on drawn pictures.

    python -m benchmarks.sites OUT [IMAGES]

The class is the form of an ellipse: flat or upright. There are three sites. At the first two, 90% of the upright ones,
and 10% of the flat ones, carry the text of a scanner; at the third one half of either does, images have another gamma,
and a border. So the text tells the class inside the first two sites, and nothing at the third. `finetune --leave-out
site` trains a model without each site; then each is evaluated on the left-out site as another folder, for its drift.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.drift import add_border, add_text, gamma
from convnext_cli import cross_validate, evaluate
from convnext_cli.metrics.registry import METRICS

SITES = ("A", "B", "C")
SIDE = 96
TEXT = 0.9  # fraction of the upright ellipses with a text, and of the flat ones without, at the first two sites
SHOWN = ("balanced_accuracy", "macro_roc_auc")


def draw(random: np.random.Generator, label: int, site: str) -> Image.Image:
    """Return a picture of a class at a site."""
    pixels = random.integers(60, 110, (SIDE, SIDE), np.uint8)
    picture = Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))
    x, y = random.uniform(35, SIDE - 35, 2)
    ratio = random.uniform(1.03, 1.12)  # so little that the text is the easier sign
    wide, tall = (16, 16 * ratio) if label else (16 * ratio, 16)
    ImageDraw.Draw(picture).ellipse((x - wide, y - tall, x + wide, y + tall), fill=(150, 150, 150))
    image = np.asarray(picture)
    has_text = random.random() < ((TEXT if label else 1 - TEXT) if site != "C" else 0.5)
    if has_text:
        image = add_text(image)
    return Image.fromarray(gamma(add_border(image, 0.05), 0.7) if site == "C" else image)


def write_data(out: Path, images: int) -> Path:
    """Write the pictures of each site, as class folders too, and their table; return the table."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(images):
        site, label = SITES[number % len(SITES)], int(random.integers(2))
        path = out / site / ("flat", "upright")[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(random, label, site).save(path)
        rows.append([path.relative_to(out).as_posix(), path.parent.name, site])
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "site"], *rows])
    return out / "table.csv"


def main(out: Path, images: int) -> None:
    """Print internal and external metrics of each site, and the drift of its images."""
    options: dict[str, Any] = {
        "model": "convnext_zepto_rms", "weights": "builtin", "image_size": 96, "epochs": 8, "group_from": "none",
    }  # fmt: skip
    table = write_data(out / "data", images)
    result = cross_validate(table, output=out / "runs", leave_out="site", onnx=False, overwrite=True, **options)
    metrics = [METRICS[key] for key in SHOWN]
    heads = "  ".join(f"{metric.short + ' %':>24}" for metric in metrics for _ in range(2))
    print(f"site  images  {heads}")
    for entry in result.left_out:
        cells = [
            f"{f'{name} {metric.format(part.values[metric.key])} {metric.format_ci(part.intervals[metric.key])}':>24}"
            for metric in metrics
            for name, part in (("in", entry.internal), ("ex", entry.external))
        ]
        print(f"{entry.name:4}  {entry.external.images:6}  {'  '.join(cells)}")
    print("\nleft out  drift of its images from the validation images of the others")
    for entry in result.left_out:
        drift = evaluate(entry.run, out / "data" / entry.name).drift
        assert drift is not None
        shifted = [measure for measure in drift.measures if measure.is_drift]
        texts = (f"{measure.title} {measure.difference.distance:.2f}" for measure in shifted)
        print(f"{entry.name:8}  {', '.join(texts) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 900)
