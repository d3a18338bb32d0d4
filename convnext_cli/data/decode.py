"""The one place where a file becomes pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnext_cli.errors import ImageError

Pixels = NDArray[np.uint8]
"""An image, (H, W, 3), RGB."""

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits a pixel


def decode_image(path: Path) -> Pixels:
    """Reads an image file as RGB uint8 (H, W, 3), upright.

    Greyscale of more than 8 bits is stretched from its own darkest to its own brightest value, never clipped.

    Raises:
        ImageError: there is no such file, or it is not an image that can be read to its end.
    """
    try:
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode in _DEEP_MODES:
                return _stretch(np.asarray(image, dtype=np.float64))
            if image.mode in ("P", "PA", "LA"):
                image = image.convert("RGBA")  # a palette's transparency is lost with a warning otherwise
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", "Check its path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder", "Give the path of an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        why = str(error).replace(str(path), "the file").replace("\n", " ")
        raise ImageError(f"{path} cannot be read as an image ({why})", "Replace or remove the file") from error


def _stretch(grey: NDArray[Any]) -> Pixels:
    finite = grey[np.isfinite(grey)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    span = high - low or 1.0
    scaled = np.nan_to_num((grey - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
    return np.repeat(np.rint(scaled * 255).astype(np.uint8)[..., None], 3, axis=2)
