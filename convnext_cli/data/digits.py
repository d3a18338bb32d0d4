"""The data of the demo: the 1,797 handwritten digits of scikit-learn, as PNG files in class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 1797
MARK = ".convnext-demo"  # beside a folder of digits, complete or not


def is_digits_folder(folder: Path) -> bool:
    """Return True if `write_digits` wrote, or began to write, a folder."""
    return (folder.parent / MARK).exists() or len(list(folder.glob("[0-9]/*.png"))) == COUNT


def write_digits(folder: Path) -> Path:
    """Write `folder/<digit>/<number>.png`, 8 x 8 px greyscale, unless they exist; return `folder`.

    Source: UCI, Optical Recognition of Handwritten Digits (test part; CC BY 4.0), through scikit-learn's load_digits.
    """
    if len(list(folder.glob("[0-9]/*.png"))) == COUNT:
        return folder
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    text = "The digits beside it were written by `convnext demo`, which may overwrite them.\n"
    (folder.parent / MARK).write_text(text, encoding="utf-8")
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(label) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(image * (255 / 16)).astype(np.uint8)  # the digits have 17 levels, 0 to 16
        Image.fromarray(grey).save(target)
    return folder
