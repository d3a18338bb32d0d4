"""The memory budget for decoding an image, checked against the declared size before anything is allocated."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from convnext_cli.errors import ImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 0.5 GiB as RGB
MAX_BYTES = 1_342_177_280
"""1.25 GiB, the memory that decoding one image may hold at once, including the reader's copies and the result."""

_LARGE = MAX_BYTES // 8
_one_large_image = threading.RLock()


@contextmanager
def reserve_memory(path: Any, width: int, height: int, bytes_per_pixel: float) -> Iterator[None]:
    """Check that an image fits the budget; let only one thread at a time decode a large one.

    Args:
        path: for the message.
        width: pixels, as the file declares.
        height: pixels, as the file declares.
        bytes_per_pixel: memory that decoding holds at once, divided by the number of pixels.

    Raises:
        ImageError: the image does not fit.
    """
    size = width * height * bytes_per_pixel
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels", "Scale it down, or cut it into tiles")
    if size > MAX_BYTES:
        raise ImageError(
            f"{path} has {width:,} x {height:,} pixels, which take {size / 1e9:.1f} GB to decode "
            f"(the limit is {MAX_BYTES / 1e9:.1f} GB)",
            "Scale it down, or cut it into tiles",
        )
    with nullcontext() if size < _LARGE else _one_large_image:
        yield
