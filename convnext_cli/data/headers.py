"""Read an attribute of the DICOM files of a data set: only the header of each file, several files at a time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from convnext_cli.data.index import Index
from convnext_cli.progress import Progress, Steps

THREADS, FILES_PER_EVENT = 8, 100


def list_dicom_rows(index: Index) -> list[int]:
    """Return the rows that may be DICOM: those without the suffix of another format."""
    from convnext_cli.images.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES

    others = IMAGE_SUFFIXES - DICOM_SUFFIXES
    return [row for row, path in enumerate(index.paths) if PurePosixPath(path).suffix.lower() not in others]


def read_dicom_attribute(index: Index, keyword: str) -> Steps[dict[int, str]]:
    """Return a DICOM attribute by row, without rows that have no value.

    Raises:
        ImageError: the extra is not installed.
    """
    from convnext_cli.images.dicom import read_tag

    rows = list_dicom_rows(index)
    values = {}
    with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers several at a time
        read = pool.map(lambda row: read_tag(index.root / index.paths[row], keyword), rows)
        for done, (row, value) in enumerate(zip(rows, read, strict=True), start=1):
            if value and value.strip():
                values[row] = value.strip()
            if done % FILES_PER_EVENT == 0:
                yield Progress(done=done, total=len(rows), activity=f"reading the DICOM attribute {keyword}")
    return values
