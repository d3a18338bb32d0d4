"""Moved copies: near-duplicates of which one is a crop of the other, or turned by any angle, zoomed or shifted."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.audit.alignment import are_copies
from convnext_cli.data.audit.keypoints import SIDE, shrink_grey
from convnext_cli.data.audit.matching import Match, find_matches, list_widths
from convnext_cli.data.joined_rows import JoinedRows
from convnext_cli.errors import ImageError
from convnext_cli.images.decode import decode_image
from convnext_cli.machine import count_process_cpus, use_one_blas_thread
from convnext_cli.progress import Progress, Steps

MIN_KEYPOINTS = 24  # drawn forms on a plain ground have fewer, and are alike wherever they lie
MAX_COMPARED = 10_000  # pairs to decode again; those that share most keypoints are taken
_BLOCK = 128


def find_moved(
    paths: Sequence[Path], measures: NDArray[Any], rows: NDArray[np.int64], against: NDArray[np.int64] | None = None
) -> Steps[tuple[list[tuple[int, int]], int]]:
    """Return pairs of rows of which one image is a moved copy of the other, and at least how many were left out.

    Pairs that share keypoints are decoded again, aligned and compared. Pairs that others connect are not listed.

    Args:
        paths: (N,), files of all images.
        measures: (N,) of `MEASURES`.
        rows: the images to compare.
        against: the images with which each is compared. None: the same.
    """
    keypoints = measures["keypoints"]
    has_detail = keypoints["exists"].sum(axis=1) >= MIN_KEYPOINTS
    rows = rows[has_detail[rows]]
    against = rows if against is None else against[has_detail[against]]
    widths = list_widths(measures["width"], measures["height"])
    matches, left_out = yield from find_matches(keypoints, widths, rows, against)

    @lru_cache(maxsize=2048)
    def load(row: int) -> NDArray[np.float32] | None:
        try:
            return shrink_grey(Image.fromarray(decode_image(paths[row], at_least=SIDE)))
        except ImageError:
            return None

    def compare(match: Match) -> bool:
        one, two = map(load, match.pair)
        if one is None or two is None:
            return False
        return are_copies(one, two[:, ::-1] if match.is_mirrored else two, match.transform)

    joined, moved = JoinedRows(), []
    total = min(len(matches), MAX_COMPARED)
    with use_one_blas_thread(), ThreadPoolExecutor(count_process_cpus(), thread_name_prefix="compare") as pool:
        for start in range(0, total, _BLOCK):
            block = matches[start : min(start + _BLOCK, total)]
            block = [match for match in block if not joined.is_joined(*match.pair)]
            for match, is_copy in zip(block, pool.map(compare, block), strict=True):
                if is_copy:
                    moved.append(match.pair)
                    joined.join(*match.pair)
            yield Progress(done=start, total=total, activity="crops and turned copies compared")
    return moved, left_out + len(matches) - total
